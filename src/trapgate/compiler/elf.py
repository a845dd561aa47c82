"""Linking an object file by hand: its sections, laid one after the other, run wherever they lie.

LLVM's code for Linux on x86-64 (position-independent, small model) holds only distances from
one place of its own to another. They are filled in here, once, so that loading is copying.
What code may write, the cells of bound callbacks, has pages of its own behind all else.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

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
_CODE, _FRAMES, _DATA = "code", "frames", "data"
_PARTS = {_CODE: 64, _FRAMES: 64, _DATA: _PAGE}
"""What an image consists of, in this order, and what each part is aligned to."""


@dataclass(frozen=True)
class _Symbol:
    name: str
    kind: int
    section: int
    value: int
    size: int


class _File:
    """An object file, and where in the image its sections are."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        (start,) = struct.unpack_from("<Q", data, 40)
        size, count, names = struct.unpack_from("<HHH", data, 58)
        self.sections = [
            dict(
                zip(
                    _SECTION, struct.unpack_from("<IIQQQQIIQQ", data, start + n * size), strict=True
                )
            )
            for n in range(count)
        ]
        self._names = self.sections[names]["offset"]
        self.symbols = list(self._symbols())
        self.starts: dict[int, int] = {}

    def _text(self, start: int) -> str:
        return self.data[start : self.data.index(b"\0", start)].decode()

    def _symbols(self) -> Iterator[_Symbol]:
        table = next(section for section in self.sections if section["type"] == _SYMBOLS)
        names = self.sections[table["link"]]["offset"]
        for at in range(table["offset"], table["offset"] + table["size"], 24):
            name, info, _, section, value, size = struct.unpack_from("<IBBHQQ", self.data, at)
            yield _Symbol(self._text(names + name), info & 15, section, value, size)

    def part(self, section: dict[str, int]) -> str:
        """The part of the image that a section belongs to; empty if to none."""
        if not section["flags"] & _ALLOCATED or section["type"] == _NOTE or not section["size"]:
            return ""
        if section["flags"] & _WRITABLE:
            return _DATA
        return _FRAMES if self._text(self._names + section["name"]) == ".eh_frame" else _CODE

    def place(self, image: bytearray, part: str) -> None:
        """Add the sections of a part to the image."""
        for n, section in enumerate(self.sections):
            if self.part(section) == part:
                image += bytes(-len(image) % section["align"])
                self.starts[n] = len(image)
                if section["type"] == _EMPTY:
                    image += bytes(section["size"])
                else:
                    image += self.data[section["offset"] : section["offset"] + section["size"]]

    def places(self) -> Iterator[tuple[_Symbol, int]]:
        """Its symbols, and where each is in the image."""
        for symbol in self.symbols:
            if symbol.section in self.starts:
                yield symbol, self.starts[symbol.section] + symbol.value

    def relocate(self, image: bytearray, elsewhere: dict[str, int]) -> None:
        """Fill in the distances, to its own symbols and those of the other files."""
        for section in self.sections:
            if section["type"] != _RELOCATIONS or section["info"] not in self.starts:
                continue
            for at in range(section["offset"], section["offset"] + section["size"], 24):
                offset, info, addend = struct.unpack_from("<QQq", self.data, at)
                symbol, kind = self.symbols[info >> 32], info & 0xFFFF_FFFF
                if symbol.section in self.starts:
                    where: int | None = self.starts[symbol.section] + symbol.value
                else:
                    where = elsewhere.get(symbol.name)
                if where is None or kind not in _DISTANCES:
                    raise EngineError(f"machine code needs {symbol.name!r} (relocation {kind})")
                place = self.starts[section["info"]] + offset
                distance = where + addend - place
                width = _DISTANCES[kind]
                image[place : place + width] = distance.to_bytes(width, "little", signed=True)


def linked(*objects: bytes) -> Image:
    """The image of ELF object files. Raises EngineError where one needs anything from outside."""
    files = [_File(data) for data in objects]
    image = bytearray()
    begins: dict[str, int] = {}
    for part, alignment in _PARTS.items():
        image += bytes(-len(image) % alignment)
        begins[part] = len(image)
        for file in files:
            file.place(image, part)
        if part == _FRAMES:
            image += bytes(4)  # a length of 0 ends the list
    places = [found for file in files for found in file.places()]
    defined = {symbol.name: place for symbol, place in places if symbol.name}
    for file in files:
        file.relocate(image, defined)
    functions = {
        symbol.name: (place, symbol.size) for symbol, place in places if symbol.kind == _FUNCTION
    }
    return Image(bytes(image), functions, begins[_FRAMES], len(image) - begins[_DATA])
