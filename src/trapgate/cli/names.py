"""What conditions may name: symbols of a file, and bitmaps that are files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

if TYPE_CHECKING:
    from trapgate.decision.conditions import Names

SymbolsOption = Annotated[
    Path | None,
    typer.Option(help='System.map or ELF for conditions: rip in symbol("copy_from_user").'),
]
BitmapOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE",
        help='A set of numbers for conditions: page in bitmap("NAME"); bit n of the file is for n '
        "(repeatable).",
    ),
]
_MAGIC: Final = b"\x7fELF"


def names_for(symbols: Path | None, bitmaps: list[str] | None, guest: Path | None = None) -> Names:
    """The names that conditions may use: those of `symbols`, else of a `guest` that is an ELF.

    Raises TrapgateError for a file that cannot be read, holds no symbols, or is no NAME=FILE.
    """
    from trapgate.decision.conditions import Names

    return Names(
        symbols=_symbols(symbols, guest),
        bitmaps=dict(map(_bitmap, bitmaps or ())),
    )


def _symbols(file: Path | None, guest: Path | None) -> dict[str, tuple[int, int]]:
    if file is None and (guest is None or not _is_elf(guest)):
        return {}
    from trapgate.trace.schema import TraceError
    from trapgate.trace.symbols import Symbols

    try:
        return Symbols(file or guest or Path()).ranges()
    except TraceError:
        if file is not None:
            raise
        return {}  # a guest without symbols is none the worse


def _is_elf(file: Path) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _bitmap(text: str) -> tuple[str, bytes]:
    from trapgate.decision.criteria_table import TABLE_BYTES
    from trapgate.errors import TrapgateError

    name, equals, file = text.partition("=")
    if not (name.isidentifier() and equals and file):
        raise TrapgateError(f"--bitmap: {text!r}: write NAME=FILE")
    try:
        with Path(file).open("rb") as stream:
            bits = stream.read(TABLE_BYTES + 1)
    except OSError as error:
        raise TrapgateError(
            f"--bitmap: {file}: cannot be read ({error.strerror}); check the path"
        ) from None
    if not 0 < len(bits) <= TABLE_BYTES:
        raise TrapgateError(
            f"--bitmap: {file}: a bitmap has 1 to {TABLE_BYTES} bytes, for a table holds it"
        )
    return name, bits
