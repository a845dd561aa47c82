"""Names for a guest's addresses: functions of its ELF file or System.map, and source lines."""

from pathlib import Path

import numpy as np

from trapgate.debug.postmortem.instruction import Namer, no_names
from trapgate.debug.postmortem.lines import SourceLines

_MAGIC = b"\x7fELF"


def namer(guest: Path | None, symbols: Path | None) -> Namer:
    """Names from `symbols`, or from the guest's own file if it is an ELF with symbols.

    With debugging information there is the source line, too: main+3H, kernel.c:42.
    Raises TraceError if `symbols` is given and is no such file.
    """
    if symbols is None and (guest is None or not is_elf(guest)):
        return no_names
    # Not before they are needed: with them comes pyarrow.
    from trapgate.trace.schema import TraceError
    from trapgate.trace.symbols import Symbols

    if symbols is None:
        assert guest is not None
        try:
            table = Symbols(guest)
        except (OSError, TraceError):
            return no_names
    else:
        table = Symbols(symbols)

    lines = SourceLines(table.path) if is_elf(table.path) else no_names

    def name(address: int) -> str:
        index = int(table.indices(np.array([address], np.uint64))[0])
        if index < 0:
            return lines(address)
        offset = address - int(table.starts[index])
        line = lines(address)
        return (
            table.names[index] + (f"+{offset:X}H" if offset else "") + (f", {line}" if line else "")
        )

    return name


def is_elf(file: Path) -> bool:
    """Whether a file begins as ELF files do."""
    try:
        with file.open("rb") as stream:
            return stream.read(4) == _MAGIC
    except OSError:
        return False
