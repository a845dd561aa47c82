"""Names of a guest's functions: from the file that the plan names, or from the guest itself."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trapgate import guests
from trapgate.campaign.errors import PlanError
from trapgate.campaign.plan import BUNDLED, Guest
from trapgate.errors import suggestion
from trapgate.trace.schema import TraceError
from trapgate.trace.symbols import Symbols


def symbols_of(guest: Guest) -> Symbols | None:
    """The symbols of a plan's guest; None if nobody has any. Raises TraceError."""
    if guest.symbols is not None:
        return Symbols(guest.symbols)
    if guest.kernel == BUNDLED:
        return Symbols(guests.MAP_PATH)
    if not guest.kernel:
        return None
    try:
        return Symbols(Path(guest.kernel))
    except TraceError:
        return None  # a kernel without symbols is none the worse


def within(
    symbols: Symbols | None, patterns: tuple[str, ...], addresses: NDArray[np.int64], path: str
) -> NDArray[np.bool_]:
    """Which of `addresses` lie in functions whose names match one of `patterns` (`trap*`, say).

    Raises PlanError for a pattern that matches no function.
    """
    if symbols is None:
        raise PlanError("needs names of functions; give guest.symbols", "when.symbols", path)
    wanted = np.zeros(len(symbols.names) + 1, bool)
    for pattern in patterns:
        matches = [fnmatchcase(name, pattern) for name in symbols.names]
        if not any(matches):
            raise PlanError(
                f"no symbol {pattern!r}; {suggestion(pattern, symbols.names)}", "when.symbols", path
            )
        wanted[:-1] |= matches
    return wanted[symbols.indices(addresses.view(np.uint64))]


def names_of(symbols: Symbols | None, addresses: NDArray[np.int64]) -> list[str]:
    """The functions that addresses are in; empty where nobody knows."""
    if symbols is None:
        return [""] * len(addresses)
    found = symbols.indices(addresses.view(np.uint64)).tolist()
    return [symbols.names[n] if n >= 0 else "" for n in found]


def functions_of(
    symbols: Symbols | None, addresses: NDArray[np.int64], path: str
) -> NDArray[np.int64]:
    """Which function each address is in, as a number; -1 in none. Raises PlanError without any."""
    if symbols is None:
        raise PlanError("needs names of functions; give guest.symbols", "sample.stratify", path)
    return symbols.indices(addresses.view(np.uint64)).astype(np.int64)
