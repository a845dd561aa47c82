"""A VGA's 256 KiB of video memory as four planes, and how the processor reaches them.

IBM VGA, "Video Memory Read and Write Operations". An address has a byte in each plane; which of
them are read and written, and what a store makes of what was there, the sequencer and the graphics
controller say. The four bytes of an address lie side by side, as one number of 32 bits whose byte
n is plane n's.
"""

from __future__ import annotations

from typing import Final

BASE: Final = 0xA0000
SIZE: Final = 0x10000
"""Of the window through which the processor sees the planes, in bytes."""
_ALL = 0xFFFF_FFFF
_EVERY_PLANE = 0x0101_0101
_SPREAD: Final = [sum(0xFF << 8 * n for n in range(4) if mask >> n & 1) for mask in range(16)]
"""A bit a plane as a byte a plane."""
_SET_RESET, _ENABLE, _COMPARE, _FUNCTION, _READ_PLANE, _MODE, _DONT_CARE, _BIT_MASK = (
    *(0, 1, 2, 3, 4, 5, 7, 8),
)
"""Registers of the graphics controller."""
_MAP_MASK = 2
"""Of the sequencer: the planes that are written."""
_FONT_PLANE, _GLYPH = 2, 32
"""Where text modes have their characters, and how many bytes each has there."""
_FONTS = (0x0000, 0x4000, 0x8000, 0xC000, 0x2000, 0x6000, 0xA000, 0xE000)
"""Where the eight sets of 256 characters begin."""
_COMPARE_COLOURS = 8
"""In the mode register: a read says where a colour is."""


class Planes:
    """The planes under the registers of the `graphics` controller and the `sequencer`."""

    wide = True
    ports = range(0)

    def __init__(self, graphics: bytearray, sequencer: bytearray) -> None:
        self._graphics, self._sequencer = graphics, sequencer
        self.bytes = bytearray()
        """Four bytes an address; empty until there is a planar mode."""
        self._latches = 0
        self.loaded = bytearray(SIZE // _GLYPH)
        """Whether a character was stored, by its place in plane 2."""

    def begin(self) -> None:
        """There is a planar mode from now on."""
        if not self.bytes:
            self.bytes.extend(bytes(4 * SIZE))

    def clear(self) -> None:
        """All pixels are 0."""
        self.bytes[:] = bytes(len(self.bytes))

    def load_glyph(self, font: int, character: int, lines: bytes) -> None:
        """Store a character of one of the eight sets, up to 32 lines of eight pixels."""
        self.begin()
        at = _FONTS[font & 7] + _GLYPH * character
        for n, line in enumerate(lines[:_GLYPH]):
            self.bytes[4 * (at + n) + _FONT_PLANE] = line
        self.loaded[at // _GLYPH] = 1

    def forget_glyphs(self, font: int) -> None:
        """One of the sets is firmware's own again."""
        first = _FONTS[font & 7] // _GLYPH
        self.loaded[first : first + 256] = bytes(256)

    def glyph(self, font: int, character: int, height: int) -> bytes | None:
        """The lines of a character; None if nobody has loaded it."""
        at = _FONTS[font & 7] + _GLYPH * character
        if not self.loaded[at // _GLYPH]:
            return None
        return bytes(self.bytes[4 * at + _FONT_PLANE : 4 * (at + height) : 4])

    def put(self, at: int, bit: int, value: int, *, blend: bool = False) -> None:
        """A pixel gets a value of 0 to 15, whatever the registers say; `blend`: by XOR."""
        self.begin()
        for plane in range(4):
            wanted = value >> plane & 1
            place = 4 * at + plane
            if blend:
                self.bytes[place] ^= wanted << bit
            else:
                self.bytes[place] = self.bytes[place] & ~(1 << bit) | wanted << bit

    def get(self, at: int, bit: int) -> int:
        """A pixel's value."""
        self.begin()
        return sum((self.bytes[4 * at + plane] >> bit & 1) << plane for plane in range(4))

    def next_deadline(self, now: int) -> int | None:
        """No deadline: nothing happens without an access."""
        return None

    def advance(self, now: int) -> None:
        """Nothing to do: time means nothing here."""

    def read(self, offset: int, size: int, now: int) -> int:
        """Load `size` bytes at `offset` of the window, one after the other, as the bus has them."""
        value = 0
        for n in range(size):
            value |= self._load(offset + n & 0xFFFF) << 8 * n
        return value

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """Store `size` bytes at `offset` of the window, one after the other."""
        for n in range(size):
            self._store(offset + n & 0xFFFF, value >> 8 * n & 0xFF)

    def _load(self, at: int) -> int:
        registers = self._graphics
        self._latches = int.from_bytes(self.bytes[4 * at : 4 * at + 4], "little")
        if not registers[_MODE] & _COMPARE_COLOURS:
            return self._latches >> 8 * (registers[_READ_PLANE] & 3) & 0xFF
        wanted = _SPREAD[registers[_COMPARE] & 15]
        differing = (self._latches ^ wanted) & _SPREAD[registers[_DONT_CARE] & 15]
        differing |= differing >> 16
        return ~(differing | differing >> 8) & 0xFF

    def _store(self, at: int, value: int) -> None:
        registers = self._graphics
        mode = registers[_MODE] & 3
        mask = registers[_BIT_MASK]
        if mode == 1:
            data, mask = self._latches, 0xFF
        else:
            rotated = (value | value << 8) >> (registers[_FUNCTION] & 7) & 0xFF
            colour = _SPREAD[registers[_SET_RESET] & 15]
            if mode == 0:
                chosen = _SPREAD[registers[_ENABLE] & 15]
                data = rotated * _EVERY_PLANE & ~chosen | colour & chosen
            elif mode == 2:
                data = _SPREAD[value & 15]
            else:
                data, mask = colour, mask & rotated
            function = registers[_FUNCTION] >> 3 & 3
            if function == 1:
                data &= self._latches
            elif function == 2:
                data |= self._latches
            elif function == 3:
                data ^= self._latches
        bits = mask * _EVERY_PLANE
        data = data & bits | self._latches & ~bits & _ALL
        written = self._sequencer[_MAP_MASK]
        if written >> _FONT_PLANE & 1:
            self.loaded[at // _GLYPH] = 1
        kept = _SPREAD[~written & 15]
        if kept:
            data = data & ~kept | int.from_bytes(self.bytes[4 * at : 4 * at + 4], "little") & kept
        self.bytes[4 * at : 4 * at + 4] = data.to_bytes(4, "little")


def is_video(address: int) -> bool:
    """Whether a physical address is one of the window's."""
    return 0 <= address - BASE < SIZE
