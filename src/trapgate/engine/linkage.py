"""The slots through which a shared library calls its own exported functions.

An ELF library that was not linked with -Bsymbolic calls them through its procedure
linkage table (System V ABI, AMD64 supplement, "Procedure Linkage Table"), so that
another function can be put in front of one of them.
"""

import ctypes
import struct
from pathlib import Path

import numpy as np

from trapgate.errors import EngineError

_DYNAMIC = 2
_STRTAB, _SYMTAB, _STRSZ, _PLTRELSZ, _JMPREL = 5, 6, 10, 2, 23
_JUMP_SLOT = 7


def slots(library: ctypes.CDLL, names: tuple[str, ...]) -> dict[str, int]:
    """The address of each function's slot. Raises EngineError where the library has none."""
    try:
        data = Path(library._name).read_bytes()
        tables = _tables(data)
        relocations = np.frombuffer(data, "<u8", tables[_PLTRELSZ] // 8, tables[_JMPREL])
        offsets, kinds = relocations[0::3], relocations[1::3]
        wanted = {name.encode(): name for name in names}
        found = {}
        for offset, kind in zip(offsets.tolist(), kinds.tolist(), strict=True):
            name_at, _, _, _, value, _ = struct.unpack_from(
                "<IBBHQQ", data, tables[_SYMTAB] + 24 * (kind >> 32)
            )
            start = tables[_STRTAB] + name_at
            name = wanted.get(data[start : data.index(0, start)])
            if name is not None and kind & 0xFFFF_FFFF == _JUMP_SLOT:
                found[name] = _address(library, name) - value + offset
    except (OSError, struct.error, KeyError, ValueError, AttributeError) as reason:
        raise EngineError(f"the Unicorn library is not an ELF file as expected: {reason}") from None
    for name in names:
        slot = found.get(name)
        if slot is None or ctypes.c_uint64.from_address(slot).value != _address(library, name):
            raise EngineError(f"the Unicorn library does not call {name} through a slot of its own")
    return found


def _address(library: ctypes.CDLL, name: str) -> int:
    address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert address is not None
    return address


def _tables(data: bytes) -> dict[int, int]:
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
