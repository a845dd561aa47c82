"""The registers of a VGA in each mode, and its palette (IBM, "Video BIOS Interface" and "VGA").

Pages are the BIOS data area's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from trapgate.vmm.devices.pixels import PALETTE

TEXT_MODES: Final = {0: 40, 1: 40, 2: 80, 3: 80, 7: 80}
CGA_MODES: Final = {4: 40, 5: 40, 6: 80}
PLANAR_MODES: Final = {0x0D: 40, 0x0E: 80, 0x10: 80, 0x12: 80}
LINEAR_256: Final = 0x13
COLUMNS: Final = {**TEXT_MODES, **CGA_MODES, **PLANAR_MODES, LINEAR_256: 40}
"""Mode to columns of text: all modes that there are."""


class _Registers(NamedTuple):
    """Miscellaneous output, sequencer, CRT controller, graphics and attribute controller."""

    miscellaneous: str
    sequencer: str
    crtc: str
    graphics: str
    attribute: str


_EGA = "00 01 02 03 04 05 14 07 38 39 3A 3B 3C 3D 3E 3F"
_CGA = "00 01 02 03 04 05 06 07 10 11 12 13 14 15 16 17"
_PLAIN = "00 01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F"
_TEXT = _Registers(
    "67",
    "03 00 03 00 02",
    "5F 4F 50 82 55 81 BF 1F 00 4F 0D 0E 00 00 00 00 9C 0E 8F 28 1F 96 B9 A3 FF",
    "00 00 00 00 00 10 0E 00 FF",
    f"{_EGA} 0C 00 0F 08 00",
)
_TEXT_40 = _TEXT._replace(
    sequencer="03 08 03 00 02",
    crtc="2D 27 28 90 2B A0 BF 1F 00 4F 0D 0E 00 00 00 00 9C 8E 8F 14 1F 96 B9 A3 FF",
)
_LINES_200 = "BF 1F 00 C0 00 00 00 00 00 00 9C 0E 8F"
_REGISTERS: Final = {
    **{mode: _TEXT if columns == 80 else _TEXT_40 for mode, columns in TEXT_MODES.items()},
    **dict.fromkeys(
        (4, 5),
        _Registers(
            "63",
            "03 09 03 00 02",
            f"2D 27 28 90 2B 80 {_LINES_200} 14 00 96 B9 A2 FF",
            "00 00 00 00 00 30 0F 0F FF",
            f"{_CGA} 01 00 03 00 00",
        ),
    ),
    6: _Registers(
        "63",
        "03 01 01 00 06",
        f"5F 4F 50 82 54 80 {_LINES_200} 28 00 96 B9 C2 FF",
        "00 00 00 00 00 00 0D 0F FF",
        f"{_CGA} 01 00 01 00 00",
    ),
    0x0D: _Registers(
        "63",
        "03 09 0F 00 06",
        f"2D 27 28 90 2B 80 {_LINES_200} 14 00 96 B9 E3 FF",
        "00 00 00 00 00 00 05 0F FF",
        f"{_CGA} 01 00 0F 00 00",
    ),
    0x0E: _Registers(
        "63",
        "03 01 0F 00 06",
        f"5F 4F 50 82 54 80 {_LINES_200} 28 00 96 B9 E3 FF",
        "00 00 00 00 00 00 05 0F FF",
        f"{_CGA} 01 00 0F 00 00",
    ),
    0x10: _Registers(
        "A3",
        "03 01 0F 00 06",
        "5F 4F 50 82 54 80 BF 1F 00 40 00 00 00 00 00 00 83 85 5D 28 0F 63 BA E3 FF",
        "00 00 00 00 00 00 05 0F FF",
        f"{_EGA} 01 00 0F 00 00",
    ),
    0x12: _Registers(
        "E3",
        "03 01 0F 00 06",
        "5F 4F 50 82 54 80 0B 3E 00 40 00 00 00 00 00 00 EA 0C DF 28 00 E7 04 E3 FF",
        "00 00 00 00 00 00 05 0F FF",
        f"{_EGA} 01 00 0F 00 00",
    ),
    LINEAR_256: _Registers(
        "63",
        "03 01 0F 00 0E",
        "5F 4F 50 82 54 80 BF 1F 00 41 00 00 00 00 00 00 9C 0E 8F 28 40 96 B9 A3 FF",
        "00 00 00 00 00 40 05 0F FF",
        f"{_PLAIN} 41 00 0F 00 00",
    ),
}
TEXT_LINES: Final = 400
"""Of the screen in text modes."""
STATUS = 0x3DA
_MISCELLANEOUS, _ATTRIBUTE = 0x3C2, 0x3C0
_INDEXED: Final = (("sequencer", 0x3C4), ("crtc", 0x3D4), ("graphics", 0x3CE))
_SHOW = 0x20
"""In the attribute controller's index: the palette is the screen's again."""


def writes(mode: int) -> Iterator[tuple[int, int]]:
    """Port and byte of each output that sets a mode of `COLUMNS`.

    Before it STATUS has to be read, so that the attribute controller waits for an index.
    """
    registers = _REGISTERS[mode]
    yield _MISCELLANEOUS, int(registers.miscellaneous, 16)
    for name, port in _INDEXED:
        for index, value in enumerate(bytes.fromhex(getattr(registers, name))):
            yield port, index
            yield port + 1, value
    yield from attributes(0, bytes.fromhex(registers.attribute))


def attributes(first: int, values: bytes) -> Iterator[tuple[int, int]]:
    """Outputs for registers of the attribute controller, of which `first` is the first."""
    for index, value in enumerate(values, first):
        yield _ATTRIBUTE, index
        yield _ATTRIBUTE, value
    yield _ATTRIBUTE, _SHOW


def rows_of(height: int) -> tuple[int, Iterator[tuple[int, int]]]:
    """How many rows of characters a text mode has if each has `height` lines, and the outputs."""
    rows = TEXT_LINES // height
    last = rows * height - 1
    crtc = ((0x09, 0x40 | height - 1), (0x12, last & 0xFF))
    return rows, (pair for index, value in crtc for pair in ((0x3D4, index), (0x3D5, value)))


def palette(mode: int) -> bytes:
    """The colours that a BIOS loads with the mode: 6 bits each of red, green and blue."""
    if mode == LINEAR_256 or mode not in PLANAR_MODES:
        return PALETTE
    colours = bytearray()
    for n in range(64):
        if mode in (0x0D, 0x0E):
            # A monitor of 200 lines has one intensity, bit 4.
            at = 3 * (n & 7 | (n & 0x10) >> 1)
            colours += PALETTE[at : at + 3]
        else:
            colours += bytes(42 * (n >> bit & 1) + 21 * (n >> bit + 3 & 1) for bit in (2, 1, 0))
    return bytes(colours) + PALETTE[len(colours) :]
