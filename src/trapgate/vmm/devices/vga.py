"""A VGA's registers, and what is on its screen (IBM VGA, "Registers").

Video memory is RAM from A0000H on, but in planar modes, and while a guest loads characters, where
the processor sees `planes` there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices import pixels
from trapgate.vmm.devices.bus import UntimedDevice
from trapgate.vmm.devices.pixels import LinearMode, Pixels, PlanarMode, Readable
from trapgate.vmm.devices.planes import BASE, Planes
from trapgate.vmm.devices.polled import PolledPorts

TEXT_MEMORY = 0xB8000
_TEXT_SIZE = 0x8000
_MOST_COLUMNS, _MOST_ROWS = 160, 128
_ATTRIBUTE, _SEQUENCER, _GRAPHICS, _COLOUR_CRTC, _MONO_CRTC = 0x3C0, 0x3C4, 0x3CE, 0x3D4, 0x3B4
_DATA_OF = {0x3C5: _SEQUENCER, 0x3CF: _GRAPHICS, 0x3D5: _COLOUR_CRTC, 0x3B5: _MONO_CRTC}
_RETRACE = 0x09
_AT_B8000 = 3
"""In the graphics controller's miscellaneous register: where video memory is."""
_INTERLEAVED, _BYTE_A_PIXEL = 0x20, 0x40
"""In its mode register."""
_PANS_ABOVE_ONLY = 0x20
"""In the attribute controller's mode: no panning after the line-compare register's line."""
BANK = 0x10000
"""Bytes of the window at A0000H."""
_RAM, _PLANES = -2, -1
_CHAINED, _SEQUENTIAL = 8, 4
"""In the sequencer's memory mode: consecutive bytes are in consecutive planes; or in the same one,
where otherwise odd addresses have other planes than even ones."""


@dataclass(frozen=True)
class TextMode:
    """How the CRT controller shows text memory: `columns` x `rows` characters.

    From row to row are `pitch` bytes, the first is `start`; rows from `split` on begin at 0 again.
    """

    columns: int
    rows: int
    pitch: int
    start: int
    split: int


_USUAL_TEXT = TextMode(80, 25, 160, 0, 25)
"""What is shown while nobody has programmed the CRT controller."""


class Windows(Protocol):
    """How the processor finds memory elsewhere; see `pc.Processor`."""

    def open_window(self, number: int, start: int, size: int, target: int) -> None:
        """Map `size` bytes at physical `start` to those at `target`."""

    def open_planes(self) -> None:
        """Map A0000H to the planes."""


class VgaRegisters(UntimedDevice):
    """Ports 3B4H to 3DFH: five indexed sets, the palette, and a retrace bit that toggles."""

    ports = (0x3B4, 0x3B5, 0x3BA, *range(0x3C0, 0x3E0))

    def __init__(self, windows: Windows, ports: PolledPorts | None = None) -> None:
        ports = PolledPorts() if ports is None else ports
        self._crtc_index = ports.slot(_COLOUR_CRTC, is_in=False, kind=polled.KEEP)
        self._status = ports.slot(0x3DA, is_in=True, kind=polled.TOGGLE)
        self._status[polled.RELOAD] = _RETRACE
        sets = (_ATTRIBUTE, _SEQUENCER, _GRAPHICS, _COLOUR_CRTC, _MONO_CRTC)
        self._sets = {one: bytearray(256) for one in sets}
        self._index = dict.fromkeys(sets, 0)
        self._awaits_data = False
        self._miscellaneous = 0x67
        self._palette = bytearray(pixels.PALETTE)
        self._palette_read = self._palette_write = 0
        self._mask = 0xFF
        self.linear: LinearMode | None = None
        """The mode with a linear frame buffer that is set, if any."""
        self.planes = Planes(self._sets[_GRAPHICS], self._sets[_SEQUENCER])
        self._windows = windows
        self._bank: int | None = None
        self._seen = _RAM
        """What the processor sees at A0000H: _RAM, _PLANES, or the address of a bank."""

    def read(self, port: int, size: int, now: int) -> int:
        """A register; ports without one read 0."""
        if port in (0x3DA, 0x3BA):
            self._awaits_data = False
            self._status[polled.VALUE] ^= _RETRACE
            return self._status[polled.VALUE]
        if port in _DATA_OF:
            chosen = _DATA_OF[port]
            return self._sets[chosen][self._chosen(chosen)]
        if port in self._index:
            return self._chosen(port)
        if port == 0x3C1:
            return self._sets[_ATTRIBUTE][self._index[_ATTRIBUTE] & 0x1F]
        if port == 0x3C9:
            value = self._palette[self._palette_read]
            self._palette_read = (self._palette_read + 1) % 768
            return value
        return {0x3C6: self._mask, 0x3CC: self._miscellaneous}.get(port, 0)

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """A register."""
        if port == _ATTRIBUTE:
            if self._status[polled.READS]:
                self._status[polled.READS] = 0
                self._awaits_data = False
            if self._awaits_data:
                self._sets[_ATTRIBUTE][self._index[_ATTRIBUTE] & 0x1F] = value
            else:
                self._index[_ATTRIBUTE] = value
            self._awaits_data = not self._awaits_data
        elif port in _DATA_OF:
            chosen = _DATA_OF[port]
            self._sets[chosen][self._chosen(chosen)] = value
            self._look()
        elif port == _COLOUR_CRTC:
            self._crtc_index[polled.VALUE] = value
        elif port in self._index:
            self._index[port] = value
        elif port == 0x3C2:
            self._miscellaneous = value
        elif port == 0x3C6:
            self._mask = value
        elif port == 0x3C7:
            self._palette_read = 3 * value % 768
        elif port == 0x3C8:
            self._palette_write = 3 * value % 768
        elif port == 0x3C9:
            self._palette[self._palette_write] = value & 0x3F
            self._palette_write = (self._palette_write + 1) % 768

    def _chosen(self, indexed: int) -> int:
        """Which register of an indexed set was chosen last."""
        kept = indexed == _COLOUR_CRTC
        return self._crtc_index[polled.VALUE] & 0xFF if kept else self._index[indexed]

    def show_linear(self, mode: LinearMode | None, bank: int | None = None) -> None:
        """Show a mode with a linear frame buffer, or none; `bank` is what lies at A0000H."""
        self.linear = mode
        self._bank = bank if mode is not None else None
        self._look()

    def _look(self) -> None:
        """Map A0000H to what belongs there now."""
        seen = _RAM
        if self._bank is not None:
            seen = self._bank
        elif self.is_planar or self._loads_characters:
            seen = _PLANES
        if seen == self._seen:
            return
        self._seen = seen
        if seen == _PLANES:
            self.planes.begin()
            self._windows.open_planes()
        elif seen == _RAM:
            self._windows.open_window(0, 0, 0, 0)
        else:
            self._windows.open_window(0, BASE, BANK, seen)

    @property
    def is_planar(self) -> bool:
        """Whether the mode is a graphics mode whose memory is four planes, side by side."""
        return not self.is_text and self._has_planes

    @property
    def _loads_characters(self) -> bool:
        """Whether a text mode's plane of characters is at A0000H."""
        sequential = bool(self._sets[_SEQUENCER][4] & _SEQUENTIAL)
        return self.is_text and self._has_planes and sequential

    @property
    def _has_planes(self) -> bool:
        mapped = self._sets[_GRAPHICS][6] >> 2 & 3
        chained = self._sets[_SEQUENCER][4] & _CHAINED
        return self.linear is None and mapped < _AT_B8000 - 1 and not chained

    @property
    def character_height(self) -> int:
        """Lines of a character in text modes; 16 while nobody has said."""
        return (self._sets[_COLOUR_CRTC][9] & 0x1F or 15) + 1

    def glyph(self, character: int, attribute: int) -> bytes | None:
        """What the guest has loaded for a character, a byte a line; None if nothing.

        Bit 3 of the attribute chooses between two sets (IBM VGA, "Character Map Select Register").
        """
        chosen = self._sets[_SEQUENCER][3]
        if attribute & 8:
            font = chosen >> 2 & 3 | chosen >> 3 & 4
        else:
            font = chosen & 3 | chosen >> 2 & 4
        return self.planes.glyph(font, character, self.character_height)

    @property
    def is_nine_wide(self) -> bool:
        """Whether characters have nine dots, of which the font has eight."""
        return not self._sets[_SEQUENCER][1] & 1

    @property
    def repeats_lines(self) -> bool:
        """Whether the ninth dot of characters C0H to DFH is like the eighth."""
        return bool(self._sets[_ATTRIBUTE][0x10] & 4)

    def colours(self, first: int, count: int) -> bytes:
        """`count` entries of the palette, 6 bits each of red, green and blue."""
        return bytes((self._palette * 2)[3 * first : 3 * (first + count)])

    @property
    def start(self) -> int:
        """Where the screen begins, in bytes from the start of text memory."""
        crtc = self._sets[_COLOUR_CRTC]
        return 2 * (crtc[0x0C] << 8 | crtc[0x0D]) % 0x8000

    @property
    def is_text(self) -> bool:
        """Whether the screen shows characters, not pixels."""
        return self.linear is None and not self._sets[_GRAPHICS][6] & 1

    @property
    def cursor(self) -> tuple[int, int]:
        """Column and row of the cursor."""
        crtc = self._sets[_COLOUR_CRTC]
        place = (crtc[0x0E] << 8 | crtc[0x0F]) - self.start // 2
        row, column = divmod(place, self.text_mode.pitch // 2)
        return column, row

    @property
    def text_mode(self) -> TextMode:
        """How text memory is shown."""
        crtc = self._sets[_COLOUR_CRTC]
        columns, pitch = crtc[1] + 1, 4 * crtc[0x13]
        lines = self._lines()
        height = ((crtc[9] & 0x1F) + 1) << (crtc[9] >> 7)
        rows = lines // height
        if not (1 < columns <= _MOST_COLUMNS and 0 < rows <= _MOST_ROWS and pitch):
            return replace(_USUAL_TEXT, start=self.start)
        return TextMode(columns, rows, pitch, self.start, -(-self._split() // height))

    def _lines(self) -> int:
        """The lines of the screen, before any are repeated."""
        crtc = self._sets[_COLOUR_CRTC]
        return (crtc[0x12] | (crtc[7] & 2) << 7 | (crtc[7] & 0x40) << 3) + 1

    def _split(self) -> int:
        """The first line after the line-compare register's: memory is shown from 0 on again."""
        crtc = self._sets[_COLOUR_CRTC]
        return (crtc[0x18] | (crtc[7] & 0x10) << 4 | (crtc[9] & 0x40) << 3) + 1

    def cells(self, memory: Readable) -> bytes:
        """The screen in a text mode, row by row: a character and its attribute each."""
        data = memory.read(TEXT_MEMORY, _TEXT_SIZE) * 2
        mode, shown = self.text_mode, bytearray()
        for row in range(mode.rows):
            above = row < mode.split
            at = mode.start + row * mode.pitch if above else (row - mode.split) * mode.pitch
            shown += data[at % _TEXT_SIZE :][: 2 * mode.columns]
        return bytes(shown)

    def pixels(self, memory: Readable) -> Pixels | None:
        """The screen in a graphics mode; None in a text mode."""
        if self.linear is not None:
            return pixels.linear(self.linear, memory, bytes(self._palette))
        graphics = self._sets[_GRAPHICS]
        if self.is_text:
            return None
        if graphics[6] >> 2 & 3 == _AT_B8000:
            return pixels.cga(memory, 2 if graphics[5] & _INTERLEAVED else 1)
        if graphics[5] & _BYTE_A_PIXEL and self._sets[_SEQUENCER][4] & _CHAINED:
            return pixels.mode_13h(memory, bytes(self._palette), 2 * self.start)
        return pixels.planar(self._geometry(), self._planes_shown(), self._colours_shown())

    def _geometry(self) -> PlanarMode:
        """What the CRT controller makes of the planes."""
        crtc, graphics = self._sets[_COLOUR_CRTC], self._sets[_GRAPHICS]
        repeated = ((crtc[9] & 0x1F) + 1) << (crtc[9] >> 7)
        panned = self._sets[_ATTRIBUTE][0x13] & 0xF
        is_byte_a_pixel = bool(graphics[5] & _BYTE_A_PIXEL)
        return PlanarMode(
            columns=crtc[1] + 1,
            height=max(self._lines() // repeated, 1),
            pitch=2 * crtc[0x13],
            start=crtc[0x0C] << 8 | crtc[0x0D],
            is_byte_a_pixel=is_byte_a_pixel,
            split=-(-self._split() // repeated),
            panned=panned // 2 if is_byte_a_pixel else panned & 7,
            pans_below=not self._sets[_ATTRIBUTE][0x10] & _PANS_ABOVE_ONLY,
        )

    def _planes_shown(self) -> bytes:
        return bytes(self.planes.bytes) or bytes(4 * BANK)

    def _colours_shown(self) -> bytes:
        """The palette as the attribute controller leads to it, 16 colours; or all 256."""
        attributes = self._sets[_ATTRIBUTE]
        if self._sets[_GRAPHICS][5] & _BYTE_A_PIXEL:
            return bytes(self._palette)
        chosen = bytearray()
        for n in range(16):
            entry = attributes[n] & 0x3F
            if attributes[0x10] & 0x80:
                entry = entry & 0xF | (attributes[0x14] & 3) << 4
            entry |= (attributes[0x14] & 0xC) << 4
            chosen += self._palette[3 * entry : 3 * entry + 3]
        return bytes(chosen)

    def text(self, memory: Readable) -> list[str]:
        """The screen's lines, without blanks at their ends; none in a graphics mode."""
        if not self.is_text:
            return []
        characters = shown(self.cells(memory)[::2])
        columns = self.text_mode.columns
        return [characters[at : at + columns].rstrip() for at in range(0, len(characters), columns)]


def shown(characters: bytes) -> str:
    """What a PC's character generator shows for characters in video memory."""
    return characters.decode("cp437").translate(_SHOWN)


_SHOWN = {
    **dict(zip(range(32), " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼", strict=True)),
    0x7F: "⌂",
    0xA0: " ",
}
"""What a PC's character generator has where code page 437 has controls."""
