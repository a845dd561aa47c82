"""The slots through which a shared library calls its own exported functions.

An ELF library that was not linked with -Bsymbolic calls them through its procedure
linkage table (System V ABI, "Procedure Linkage Table"), so that
another function can be put in front of one of them.
"""

import ctypes
import mmap
import struct
from pathlib import Path

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.engine.library.host import HOST
from trapgate.errors import EngineError

_DYNAMIC = 2
_STRTAB, _SYMTAB, _STRSZ, _PLTRELSZ, _JMPREL = 5, 6, 10, 2, 23


def slots(library: ctypes.CDLL, names: tuple[str, ...]) -> dict[str, int]:
    """The address of each function's slot. Raises EngineError where the library has none."""
    try:
        with Path(library._name).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tables = _tables(data)
        calls = _calls(data, tables)
        found = {name: _slot(library, name, data, tables, calls) for name in names}
    except (OSError, struct.error, LookupError, ValueError, AttributeError) as reason:
        raise EngineError(f"the Unicorn library is not an ELF file as expected: {reason}") from None
    for name, slot in found.items():
        if ctypes.c_uint64.from_address(slot).value != _address(library, name):
            raise EngineError(f"the Unicorn library does not call {name} through a slot of its own")
    return found


def _calls(data: mmap.mmap, tables: dict[int, int]) -> Cells:
    """The slots: where each is, its symbol's number, and where that symbol's name is."""
    # In the usual layout the table of strings follows that of symbols, 24 bytes each.
    symbols = np.frombuffer(
        data, "<u4", (tables[_STRTAB] - tables[_SYMTAB]) // 24 * 6, tables[_SYMTAB]
    )
    relocations = np.frombuffer(data, "<i8", tables[_PLTRELSZ] // 24 * 3, tables[_JMPREL])
    places, kinds = relocations[::3], relocations[1::3]
    slots = kinds & 0xFFFF_FFFF == HOST.jump_slot
    numbers = kinds[slots] >> 32
    return np.stack([places[slots], numbers, symbols[::6][numbers]], axis=1)


def _slot(
    library: ctypes.CDLL, name: str, data: mmap.mmap, tables: dict[int, int], calls: Cells
) -> int:
    """The address of one slot. Raises ValueError if there is none."""
    start = tables[_STRTAB]
    named = data.find(b"\0" + name.encode() + b"\0", start, start + tables[_STRSZ]) + 1 - start
    if named <= 0:
        raise ValueError(f"no symbol {name}")
    wanted = calls[calls[:, 2] == named].tolist()
    if len(wanted) != 1:
        raise ValueError(f"{len(wanted)} slots for {name}")
    ((place, symbol, _),) = wanted
    (value,) = struct.unpack_from("<Q", data, tables[_SYMTAB] + 24 * symbol + 8)
    return _address(library, name) - int(value) + int(place)


def symbol(library: ctypes.CDLL, name: str) -> int:
    """The address of a function of the engine's, less `_x86_64`. Raises EngineError if absent."""
    try:
        return _address(library, f"{name}_x86_64")
    except AttributeError:
        raise EngineError(f"the Unicorn library has no symbol {name}_x86_64") from None


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _tables(data: mmap.mmap) -> dict[int, int]:
    """The dynamic section's entries: here addresses in the file are offsets in it."""
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("no 64-bit ELF file")
    for n in range(count):
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, start + size * n)
        if kind == _DYNAMIC:
            return dict(struct.iter_unpack("<QQ", data[offset : offset + length]))
    raise ValueError("no dynamic section")
