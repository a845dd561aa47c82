"""Names for a guest's addresses: functions of its ELF file or System.map."""

from pathlib import Path

import numpy as np

from trapgate.debug.story.instruction import Namer, no_names
from trapgate.trace.schema import TraceError
from trapgate.trace.symbols import Symbols

_MAGIC = b"\x7fELF"


def namer(guest: Path, symbols: Path | None) -> Namer:
    """Names from `symbols`, or from the guest's own file if it is an ELF with symbols.

    Raises TraceError if `symbols` is given and is no such file.
    """
    if symbols is None:
        try:
            with guest.open("rb") as file:
                if file.read(4) != _MAGIC:
                    return no_names
            table = Symbols(guest)
        except (OSError, TraceError):
            return no_names
    else:
        table = Symbols(symbols)

    def name(address: int) -> str:
        index = int(table.indices(np.array([address], np.uint64))[0])
        if index < 0:
            return ""
        offset = address - int(table.starts[index])
        return table.names[index] + (f"+{offset:X}H" if offset else "")

    return name
