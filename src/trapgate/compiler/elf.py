"""Linking an object file by hand: its sections, laid one after the other, run wherever they lie.

LLVM's code for Linux on x86-64 (position-independent, small model) holds only distances from
one place of its own to another. They are filled in here, once, so that loading is copying.
What code may write, the cells of bound callbacks, has pages of its own behind all else.
"""

import struct

from trapgate.compiler.image import Image
from trapgate.errors import EngineError

_SYMBOLS, _RELOCATIONS, _NOTE, _EMPTY = 2, 4, 7, 8
"""Types of sections (System V ABI, "Sections")."""
_WRITABLE = 1
_ALLOCATED = 2
_PAGE = 4096
_FUNCTION = 2
_DISTANCES = {2: 4, 4: 4, 24: 8}
"""R_X86_64_PC32, PLT32 and PC64, and how many bytes they fill."""
_SECTION = ["name", "type", "flags", "address", "offset", "size", "link", "info", "align", "entry"]
_FRAMES = ".eh_frame"


def linked(data: bytes) -> Image:
    """An ELF object file as an image. Raises EngineError where it needs anything from outside."""
    sections = _sections(data)
    starts: dict[int, int] = {}
    image = bytearray()
    frames = None
    placed = [
        (n, section)
        for n, section in enumerate(sections)
        if section["flags"] & _ALLOCATED and section["type"] != _NOTE and section["size"]
    ]
    writable = 0
    for n, section in sorted(placed, key=lambda one: one[1]["flags"] & _WRITABLE):
        if section["flags"] & _WRITABLE and not writable:
            image += bytes(-len(image) % _PAGE)
            writable = len(image)
        image += bytes(-len(image) % max(section["align"], 64))
        starts[n] = len(image)
        if section["type"] == _EMPTY:
            image += bytes(section["size"])
        else:
            image += data[section["offset"] : section["offset"] + section["size"]]
            if _section_name(data, sections, section) == _FRAMES:
                frames = starts[n]
                image += bytes(4)  # a length of 0 ends the list
    symbols = _symbols(data, sections)
    for section in sections:
        if section["type"] != _RELOCATIONS or section["info"] not in starts:
            continue
        for at in range(section["offset"], section["offset"] + section["size"], 24):
            offset, info, addend = struct.unpack_from("<QQq", data, at)
            name, _, where, value, _ = symbols[info >> 32]
            kind = info & 0xFFFF_FFFF
            if where not in starts or kind not in _DISTANCES:
                raise EngineError(f"machine code needs {name!r} (relocation {kind})")
            place = starts[section["info"]] + offset
            distance = starts[where] + value + addend - place
            width = _DISTANCES[kind]
            image[place : place + width] = distance.to_bytes(width, "little", signed=True)
    functions = {
        name: (starts[section] + value, size)
        for name, kind, section, value, size in symbols
        if kind == _FUNCTION and section in starts
    }
    return Image(bytes(image), functions, frames, len(image) - (writable or len(image)))


def _sections(data: bytes) -> list[dict[str, int]]:
    (start,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    return [
        dict(zip(_SECTION, struct.unpack_from("<IIQQQQIIQQ", data, start + n * size), strict=True))
        for n in range(count)
    ]


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _section_name(data: bytes, sections: list[dict[str, int]], section: dict[str, int]) -> str:
    (names,) = struct.unpack_from("<H", data, 62)
    return _text(data, sections[names]["offset"] + section["name"])


def _symbols(data: bytes, sections: list[dict[str, int]]) -> list[tuple[str, int, int, int, int]]:
    """Name, type, section, value and size of each symbol."""
    table = next(section for section in sections if section["type"] == _SYMBOLS)
    names = sections[table["link"]]["offset"]
    found = []
    for at in range(table["offset"], table["offset"] + table["size"], 24):
        name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", data, at)
        found.append((_text(data, names + name), info & 15, section, value, size))
    return found
