"""Source lines of a guest's addresses, from the DWARF line tables of its ELF file.

The tables are read when the first address is asked for. Files may be damaged or made to hurt: what
cannot be read names no lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_MOST = 1 << 28
"""Bytes of a section that is unpacked to be read."""


class SourceLines:
    """FILE:LINE by address of the ELF file at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[int, str] = {}

    def __call__(self, address: int) -> str:
        """The source line of a linear address, as kernel.c:42; empty if nobody knows."""
        if address not in self._known:
            self._known[address] = _ignoring_damage(lambda: self._look_up(address))
        return self._known[address]

    def _look_up(self, address: int) -> str:
        from elftools.elf.elffile import ELFFile

        with self._path.open("rb") as stream:
            file = ELFFile(stream)
            if not file.has_dwarf_info() or any(
                section.compressed and section.data_size > _MOST for section in file.iter_sections()
            ):
                return ""
            dwarf = file.get_dwarf_info(relocate_dwarf_sections=False, follow_links=False)
            for unit in _units(dwarf, address):
                found = _line(dwarf.line_program_for_CU(unit), address)
                if found:
                    return found
        return ""


def _ignoring_damage(look: Callable[[], str]) -> str:
    try:
        return look()
    except Exception:  # noqa: BLE001 - a parser of formats of many kinds raises errors of as many
        return ""


def _units(dwarf: Any, address: int) -> Iterator[Any]:
    """Compilation units that may know the address."""
    ranges = dwarf.get_aranges()
    offset = None if ranges is None else ranges.cu_offset_at_addr(address)
    if offset is not None:
        yield dwarf.get_CU_at(offset)
        return
    yield from dwarf.iter_CUs()


def _line(program: Any, address: int) -> str:
    """The line whose row of the table is the last one not after the address."""
    before: Any = None
    for entry in () if program is None else program.get_entries():
        row = entry.state
        if row is None:
            continue
        if before is not None and before.address <= address < row.address:
            return f"{_name(program, before.file)}:{before.line}"
        before = None if row.end_sequence else row
    return ""


def _name(program: Any, number: int) -> str:
    files = program["file_entry"]
    first = 0 if program["version"] >= 5 else 1
    name = files[number - first].name
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    return "".join(c for c in text if c.isprintable())[-80:]
