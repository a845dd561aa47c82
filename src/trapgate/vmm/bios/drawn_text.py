"""Text in graphics modes: characters as pixels, in each layout that video memory can have.

A `Surface` knows the lines of a mode in units of characters, eight pixels each. So drawing,
scrolling and clearing are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trapgate.vmm.bios import vga_modes as modes
from trapgate.vmm.devices.guest_memory import GuestMemory
from trapgate.vmm.devices.pixels import DIRECT, PALETTE, LinearMode
from trapgate.vmm.devices.planes import Planes

_GRAPHICS, _CGA, _ODD_LINES = 0xA0000, 0xB8000, 0x2000
HEIGHTS: Final = {
    **dict.fromkeys(modes.TEXT_MODES, 16),
    **dict.fromkeys((*modes.CGA_MODES, 0x0D, 0x0E, modes.LINEAR_256), 8),
    0x10: 14,
    0x12: 16,
}
"""Lines of a character, by mode."""
LINEAR_HEIGHT: Final = 16
"""The same in modes with a linear frame buffer."""
_LINES: Final = {0x10: 350, 0x12: 480}


@dataclass(frozen=True)
class Surface:
    """`columns` of characters, `lines` of pixels, and `height` lines of a character.

    `read` gives, and `write` stores, the bytes of characters side by side on a line: `wide` bytes
    each. `pixels` makes them of eight bits, for the colours of those that are 1 and 0; `shape`
    makes eight bits of them: 0 where the colour is 0.
    """

    columns: int
    lines: int
    height: int
    wide: int
    read: Callable[[int, int, int], bytes]
    write: Callable[[int, int, bytes], None]
    pixels: Callable[[int, int, int], bytes]
    shape: Callable[[bytes], int]

    @property
    def rows(self) -> int:
        """Of characters."""
        return self.lines // self.height

    def draw(self, column: int, row: int, glyph: bytes, colour: int, *, blend: bool) -> None:
        """A character on black, or by XOR over what is there."""
        if column >= self.columns or row >= self.rows:
            return
        for line, bits in enumerate(glyph, row * self.height):
            drawn = self.pixels(bits, colour, 0)
            if blend:
                below = self.read(line, column, 1)
                drawn = bytes(one ^ other for one, other in zip(drawn, below, strict=True))
            self.write(line, column, drawn)

    def glyph(self, column: int, row: int) -> bytes:
        """The shape of what is drawn where a character would be."""
        if column >= self.columns or row >= self.rows:
            return b""
        first = row * self.height
        lines = range(first, first + self.height)
        return bytes(self.shape(self.read(line, column, 1)) for line in lines)

    def scroll(self, area: tuple[int, int, int, int], count: int, colour: int, *, up: bool) -> None:
        """Move the rows of an area (left, top, right, bottom) by `count`; others get a colour."""
        left, top, right, bottom = area
        right, bottom = min(right, self.columns - 1), min(bottom, self.rows - 1)
        if right < left or bottom < top:
            return
        columns = right - left + 1
        first, end = top * self.height, (bottom + 1) * self.height
        moved = min((count or bottom - top + 1) * self.height, end - first)
        kept = [self.read(line, left, columns) for line in range(first, end)]
        blanks = [self.pixels(0, 0, colour) * columns] * moved
        lines = kept[moved:] + blanks if up else blanks + kept[: len(kept) - moved]
        for line, data in enumerate(lines, first):
            self.write(line, left, data)


def of_mode(mode: int, memory: GuestMemory, planes: Planes) -> Surface | None:
    """The surface of a mode that INT 10H, AH = 0 sets; None for text modes."""
    columns = modes.COLUMNS.get(mode, 0)
    lines, height = _LINES.get(mode, 200), HEIGHTS.get(mode, 16)
    if mode in modes.PLANAR_MODES:
        return _planar(columns, lines, height, planes)
    if mode == modes.LINEAR_256:
        return _in_memory(columns, lines, height, 8, memory, lambda y: _GRAPHICS + 320 * y, _byte)
    if mode in modes.CGA_MODES:
        wide = 80 // columns
        pixels = _two_bits if wide == 2 else _one_bit
        return _in_memory(columns, lines, height, wide, memory, line_of_cga, pixels)
    return None


def of_linear(mode: LinearMode, memory: GuestMemory) -> Surface:
    """The surface of a linear frame buffer."""

    def pixels(bits: int, one: int, zero: int) -> bytes:
        return _eight(bits, _direct(mode.bits, one), _direct(mode.bits, zero))

    def place(line: int) -> int:
        return mode.address + mode.start + line * mode.pitch

    wide = 8 * mode.bytes_per_pixel
    return _in_memory(mode.width // 8, mode.height, LINEAR_HEIGHT, wide, memory, place, pixels)


def _in_memory(
    columns: int,
    lines: int,
    height: int,
    wide: int,
    memory: GuestMemory,
    place: Callable[[int], int],
    pixels: Callable[[int, int, int], bytes],
) -> Surface:
    def read(line: int, column: int, count: int) -> bytes:
        return memory.read(place(line) + wide * column, wide * count)

    def write(line: int, column: int, data: bytes) -> None:
        memory.write(place(line) + wide * column, data)

    return Surface(columns, lines, height, wide, read, write, pixels, _shape)


def _planar(columns: int, lines: int, height: int, planes: Planes) -> Surface:
    def read(line: int, column: int, count: int) -> bytes:
        planes.begin()
        at = 4 * (line * columns + column)
        return bytes(planes.bytes[at : at + 4 * count])

    def write(line: int, column: int, data: bytes) -> None:
        planes.begin()
        at = 4 * (line * columns + column)
        planes.bytes[at : at + len(data)] = data

    return Surface(columns, lines, height, 4, read, write, _four_planes, _shape_of_planes)


def line_of_cga(line: int) -> int:
    """Where a line of a mode that goes back to the CGA begins."""
    return _CGA + (line & 1) * _ODD_LINES + (line >> 1) * 80


def _eight(bits: int, one: bytes, zero: bytes) -> bytes:
    return b"".join(one if bits >> n & 1 else zero for n in range(7, -1, -1))


def _shape(line: bytes) -> int:
    """Of eight pixels side by side, as wide each as the line has bytes."""
    value, bits = int.from_bytes(line, "big"), len(line)
    mask = (1 << bits) - 1
    return sum(1 << n for n in range(8) if value >> n * bits & mask)


def _shape_of_planes(line: bytes) -> int:
    return line[0] | line[1] | line[2] | line[3]


def _byte(bits: int, one: int, zero: int) -> bytes:
    return _eight(bits, bytes((one & 0xFF,)), bytes((zero & 0xFF,)))


def _direct(bits: int, colour: int) -> bytes:
    """A pixel of a linear frame buffer: of 256 colours, or one of the palette's first 16."""
    layout = DIRECT.get(bits)
    if layout is None:
        return bytes((colour & 0xFF,))
    parts = PALETTE[3 * (colour & 15) :][:3]
    value = sum(
        part >> 6 - size << lowest if size <= 6 else part << size - 6 << lowest
        for part, (size, lowest) in zip(parts, (layout.red, layout.green, layout.blue), strict=True)
    )
    return value.to_bytes((bits + 7) // 8, "little")


def _two_bits(bits: int, one: int, zero: int) -> bytes:
    value = 0
    for n in range(7, -1, -1):
        value = value << 2 | (one if bits >> n & 1 else zero) & 3
    return value.to_bytes(2, "big")


def _one_bit(bits: int, one: int, zero: int) -> bytes:
    return bytes((bits * (one & 1) | (bits ^ 0xFF) * (zero & 1),))


def _four_planes(bits: int, one: int, zero: int) -> bytes:
    return bytes(
        bits * (one >> plane & 1) | (bits ^ 0xFF) * (zero >> plane & 1) for plane in range(4)
    )
