"""What a VGA shows in its graphics modes, as pixels (IBM VGA; VESA BIOS Extension Core 3.0).

In modes whose memory is one plane video memory is RAM as the guest addresses it: linear frame
buffers, mode 13H, and the modes that go back to the CGA. The others have `planes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""Height x width x 3: red, green, blue, 8 bits each."""

_LINEAR_256, _CGA = 0xA0000, 0xB8000
_CGA_ODD_LINES = 0x2000


class Readable(Protocol):
    """Physical memory of the guest."""

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes."""


@dataclass(frozen=True)
class Layout:
    """Where the colours lie in a pixel: (bits, lowest bit) of red, green, blue, and of nothing."""

    red: tuple[int, int]
    green: tuple[int, int]
    blue: tuple[int, int]
    reserved: tuple[int, int] = (0, 0)


DIRECT: Final = {
    15: Layout((5, 10), (5, 5), (5, 0), (1, 15)),
    16: Layout((5, 11), (6, 5), (5, 0)),
    24: Layout((8, 16), (8, 8), (8, 0)),
    32: Layout((8, 16), (8, 8), (8, 0), (8, 24)),
}
"""By bits of a pixel; with 8 bits it is an index into the palette."""


@dataclass(frozen=True)
class LinearMode:
    """A mode with a linear frame buffer.

    `bits` are a pixel's (8, 15, 16, 24 or 32), `pitch` the bytes from line to line, `address`
    the frame buffer's physical one, and `start` the bytes of it before the first pixel shown.
    """

    number: int
    width: int
    height: int
    bits: int
    pitch: int
    address: int
    start: int = 0

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of a pixel."""
        return (self.bits + 7) // 8


@dataclass(frozen=True)
class PlanarMode:
    """How the CRT controller shows the planes.

    `columns` are characters of eight dots from side to side, `height` lines; `pitch` are the
    addresses from line to line, `start` the first. `is_byte_a_pixel` says that a pixel is a plane's
    byte, of two dots ("mode X"); else it is a bit of each plane. Lines from `split` on begin at
    address 0 again. The first `panned` pixels of each line are left out, below `split` only if
    `pans_below`.
    """

    columns: int
    height: int
    pitch: int
    start: int
    is_byte_a_pixel: bool
    split: int
    panned: int = 0
    pans_below: bool = True


def _steps(low: int, high: int) -> list[tuple[int, int, int]]:
    """A circle of 24 hues from blue by red and green, each colour between `low` and `high`."""
    between = [low + (high - low) * n // 4 for n in range(5)]
    corners = [(0, 0, 4), (4, 0, 4), (4, 0, 0), (4, 4, 0), (0, 4, 0), (0, 4, 4), (0, 0, 4)]
    hues = []
    for one, other in pairwise(corners):
        for n in range(4):
            hue = [between[a + (b - a) * n // 4] for a, b in zip(one, other, strict=True)]
            hues.append((hue[0], hue[1], hue[2]))
    return hues


_CGA_COLOURS: Final = [
    *((0, 0, 0), (0, 0, 42), (0, 42, 0), (0, 42, 42), (42, 0, 0), (42, 0, 42), (42, 21, 0)),
    *((42, 42, 42), (21, 21, 21), (21, 21, 63), (21, 63, 21), (21, 63, 63), (63, 21, 21)),
    *((63, 21, 63), (63, 63, 21), (63, 63, 63)),
]
_GREYS = (0, 5, 8, 11, 14, 17, 20, 24, 28, 32, 36, 40, 45, 50, 56, 63)
_CIRCLES = ((0, 63), (31, 63), (45, 63), (0, 28), (14, 28), (20, 28), (0, 16), (8, 16), (11, 16))

PALETTE: Final = bytes(
    part
    for colour in (
        *_CGA_COLOURS,
        *((grey, grey, grey) for grey in _GREYS),
        *(hue for low, high in _CIRCLES for hue in _steps(low, high)),
        *[(0, 0, 0)] * 8,
    )
    for part in colour
)
"""The 256 colours that a VGA BIOS loads: 6 bits each of red, green and blue."""

TEXT_COLOURS: Final = [
    (red << 2 | red >> 4, green << 2 | green >> 4, blue << 2 | blue >> 4)
    for red, green, blue in _CGA_COLOURS
]
"""Of text modes: 8 bits each of red, green and blue."""
_CGA_PALETTE: Final = np.array([0, 11, 13, 15])
"""Palette 1 of modes 4 and 5, which a BIOS chooses: black, cyan, magenta, white."""


def _colours(palette: bytes) -> Pixels:
    six = np.frombuffer(palette, np.uint8).reshape(256, 3)
    return np.asarray(six << 2 | six >> 4, np.uint8)


def linear(mode: LinearMode, memory: Readable, palette: bytes) -> Pixels:
    """The pixels of a mode with a linear frame buffer."""
    width = mode.width * mode.bytes_per_pixel
    data = memory.read(mode.address + mode.start, mode.pitch * (mode.height - 1) + width)
    raw = np.frombuffer(data.ljust(mode.pitch * mode.height, b"\0"), np.uint8)
    raw = raw.reshape(mode.height, mode.pitch)[:, :width]
    if mode.bits == 8:
        return _colours(palette)[raw]
    parts = raw.reshape(mode.height, mode.width, mode.bytes_per_pixel).astype(np.uint32)
    pixels = sum(parts[:, :, n] << 8 * n for n in range(mode.bytes_per_pixel))
    layout = DIRECT[mode.bits]
    shown = np.empty((mode.height, mode.width, 3), np.uint8)
    for n, (bits, low) in enumerate((layout.red, layout.green, layout.blue)):
        most = (1 << bits) - 1
        shown[:, :, n] = ((pixels >> low) & most) * 255 // most
    return shown


def mode_13h(memory: Readable, palette: bytes, start: int) -> Pixels:
    """320 x 200 in 256 colours."""
    data = (memory.read(_LINEAR_256, 0x10000) * 2)[start : start + 64000]
    return _colours(palette)[np.frombuffer(data, np.uint8).reshape(200, 320)]


def planar(mode: PlanarMode, planes: bytes, palette: bytes) -> Pixels:
    """The pixels of a mode with four planes; `planes` has four bytes an address.

    `palette` has the colours of all values of a pixel, 6 bits each of red, green and blue.
    """
    memory = np.frombuffer(planes, np.uint8).reshape(-1, 4)
    below = max(mode.height - mode.split, 0)
    above = mode.height - below
    starts = [mode.start + mode.pitch * n for n in range(above)]
    starts += [mode.pitch * n for n in range(below)]
    # One more of each line, for what panning brings in.
    lines = memory[(np.array(starts)[:, None] + np.arange(mode.columns + 1)) % len(memory)]
    if mode.is_byte_a_pixel:
        values = lines.reshape(mode.height, -1)
    else:
        bits = np.unpackbits(lines.transpose(2, 0, 1), axis=2)
        values = sum((bits[n] << n for n in range(4)), np.zeros_like(bits[0]))
    width = mode.columns * (4 if mode.is_byte_a_pixel else 8)
    panned = values[:, mode.panned : mode.panned + width]
    if not mode.pans_below:
        panned = np.concatenate((panned[:above], values[above:, :width]))
    six = np.frombuffer(palette, np.uint8).reshape(-1, 3)
    return np.asarray((six << 2 | six >> 4)[panned], np.uint8)


def cga(memory: Readable, bits: int) -> Pixels:
    """320 x 200 in four colours (`bits` 2), or 640 x 200 in two (1): odd lines are apart."""
    data = np.frombuffer(memory.read(_CGA, 0x4000), np.uint8)
    lines = np.empty((200, 80), np.uint8)
    lines[::2] = data[:8000].reshape(100, 80)
    lines[1::2] = data[_CGA_ODD_LINES : _CGA_ODD_LINES + 8000].reshape(100, 80)
    single = np.unpackbits(lines, axis=1)
    if bits == 1:
        return np.repeat(single[:, :, None] * 255, 3, axis=2).astype(np.uint8)
    values = single[:, ::2] << 1 | single[:, 1::2]
    shown: Pixels = np.array(TEXT_COLOURS, np.uint8)[_CGA_PALETTE[values]]
    return shown
