"""INT 10H: text on the screen, pixels, and the palette (IBM, "Video BIOS Interface")."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from trapgate.vmm.bios import drawn_text
from trapgate.vmm.bios import vga_modes as modes
from trapgate.vmm.bios.call import Call
from trapgate.vmm.bios.drawn_text import Surface
from trapgate.vmm.bios.vbe import VBE, Vbe
from trapgate.vmm.devices.vga import VgaRegisters
from trapgate.vmm.firmware.bios_image import FONTS, SEGMENT

_MODE, _COLUMNS, _PAGE_SIZE, _PAGE = 0x449, 0x44A, 0x44C, 0x462
_CURSORS, _SHAPE = 0x450, 0x460
_LAST_ROW, _HEIGHT = 0x484, 0x485
_OLD_FONT, _FONT = 4 * 0x1F, 4 * 0x43
"""Vectors that say where characters are: 80H and up in the CGA's modes, and all others."""
_TEXT, _TEXT_SIZE = 0xB8000, 0x8000
_PAGES = 0x800
"""Pages of text are multiples of it."""
_GRAPHICS = 0xA0000
_SEQUENCER = 0x3C4
_MOST_COLUMNS = 132
_BLANK = b" \x07"
_BACKSPACE, _BELL, _LINE_FEED, _RETURN = 8, 7, 10, 13


class Video:
    """The services; `emit` gets each character that is written, as COM1's output does.

    `out` writes a byte to a port of the `vga`. The frame buffer has `size` bytes at `address`.
    """

    def __init__(
        self,
        emit: Callable[[int], None],
        out: Callable[[int, int], None],
        vga: VgaRegisters,
        address: int,
        size: int,
    ) -> None:
        self._emit = emit
        self._out = out
        self._vga = vga
        self._services: dict[int, Callable[[Call], None]] = {
            0x00: self._set_mode,
            0x01: self._set_shape,
            0x02: self._set_cursor,
            0x03: self._get_cursor,
            0x05: self._set_page,
            0x06: self._scroll,
            0x07: self._scroll,
            0x08: self._read_character,
            0x09: self._write_characters,
            0x0A: self._write_characters,
            0x0C: self._write_pixel,
            0x0D: self._read_pixel,
            0x0E: self._teletype,
            0x0F: self._get_mode,
            0x10: self._palette,
            0x11: self._fonts,
            0x12: self._alternate,
            0x13: self._write_string,
            0x1A: self._combination,
        }
        if size:
            self._vbe = Vbe(vga, address, size, out)
            self._services[VBE] = self._linear_modes

    def call(self, call: Call) -> None:
        """INT 10H; functions that are not there change nothing."""
        service = self._services.get(call.high("ax"))
        if service is not None:
            service(call)

    def begin(self) -> None:
        """The registers of mode 3, before there is a guest to see memory."""
        self._put(modes.writes(3))

    def reset(self, call: Call) -> None:
        """Mode 3, an empty screen."""
        self._enter_mode(call, 3, clear=True)

    def _set_mode(self, call: Call) -> None:
        mode = call.low("ax")
        self._enter_mode(call, mode & 0x7F, clear=not mode & 0x80)

    def _enter_mode(self, call: Call, mode: int, *, clear: bool) -> None:
        if mode not in modes.COLUMNS:
            return
        call.put_word(_MODE, mode, 1)
        call.put_word(_COLUMNS, modes.COLUMNS[mode])
        call.put_word(_PAGE, 0, 1)
        call.write(_CURSORS, bytes(16))
        self._vga.show_linear(None)
        self._describe(call)
        self._put(modes.writes(mode))
        self._load_palette(0, modes.palette(mode))
        self._show_page(0)
        if mode in modes.TEXT_MODES:
            self._vga.planes.forget_glyphs(0)
        if clear and mode in modes.PLANAR_MODES:
            self._vga.planes.clear()
        elif clear and mode == modes.LINEAR_256:
            call.write(_GRAPHICS, bytes(0x10000))
        elif clear:
            call.write(
                _TEXT, (_BLANK if mode in modes.TEXT_MODES else bytes(2)) * (_TEXT_SIZE // 2)
            )
        self._show_cursor(call)

    def _linear_modes(self, call: Call) -> None:
        """AH = 4FH."""
        sets = call.low("ax") == 0x02
        self._vbe.call(call)
        mode = self._vga.linear
        if sets and mode is not None:
            call.put_word(_COLUMNS, mode.width // 8)
            call.put_word(_PAGE, 0, 1)
            call.write(_CURSORS, bytes(16))
            self._describe(call)

    def _surface(self, call: Call) -> Surface | None:
        """Where characters are drawn; None in text modes."""
        if self._vga.linear is not None:
            return drawn_text.of_linear(self._vga.linear, call)
        return drawn_text.of_mode(call.word(_MODE, 1), call, self._vga.planes)

    def _describe(self, call: Call) -> None:
        """Say in the data area how many rows of which characters there are, and where these are."""
        surface = self._surface(call)
        if surface is None:
            self._describe_rows(call, 25, 16)
        else:
            self._describe_rows(call, surface.rows, surface.height)

    def _describe_rows(self, call: Call, rows: int, height: int) -> None:
        size = 2 * self._columns(call) * rows
        call.put_word(_PAGE_SIZE, -(-size // _PAGES) * _PAGES)
        call.put_word(_LAST_ROW, rows - 1, 1)
        call.put_word(_HEIGHT, height)
        if height in FONTS:
            call.put_word(_FONT, SEGMENT << 16 | FONTS[height], 4)

    def _fonts(self, call: Call) -> None:
        """AH = 11H: which characters graphics modes draw, and those of text modes, and how high."""
        wanted = call.low("ax")
        is_text = call.word(_MODE, 1) in modes.TEXT_MODES
        if wanted & 0xEF in (0, 1, 2, 4) and is_text:
            self._load_characters(call)
        elif wanted == 0x03:
            self._put(((_SEQUENCER, 3), (_SEQUENCER + 1, call.low("bx"))))
        own = {0x11: 14, 0x12: 8, 0x14: 16}.get(wanted, 0)
        if wanted == 0x10 and 4 <= call.high("bx") <= 32:
            own = call.high("bx")
        if own and is_text:
            rows, writes = modes.rows_of(own)
            self._put(writes)
            self._describe_rows(call, rows, own)
            self._show_cursor(call)
            return
        height = FONTS.get({0x22: 14, 0x23: 8, 0x24: 16}.get(wanted, 0))
        given = call.segment("ES") << 12 | call.get("bp") & 0xFFFF
        if wanted == 0x20:
            call.put_word(_OLD_FONT, given, 4)
        elif wanted == 0x21:
            call.put_word(_FONT, given, 4)
        elif height is not None:
            call.put_word(_FONT, SEGMENT << 16 | height, 4)
        elif wanted == 0x30:
            which = call.high("bx")
            ours = {2: FONTS[14], 3: FONTS[8], 4: FONTS[8] + 8 * 0x80, 5: FONTS[14]}
            vectors = {0: call.word(_OLD_FONT, 4), 1: call.word(_FONT, 4)}
            far = vectors.get(which, SEGMENT << 16 | ours.get(which, FONTS[16]))
            call.put_segment("ES", far >> 16)
            call.put("bp", far & 0xFFFF)
            call.put("cx", call.word(_HEIGHT))
            call.put_low("dx", call.word(_LAST_ROW, 1))

    def _load_characters(self, call: Call) -> None:
        """AL = 0, 10H: CX characters of BH lines from ES:BP, from DX on, into set BL; else ours."""
        font, height = call.low("bx"), call.high("bx")
        if call.low("ax") & 0xF:
            self._vga.planes.forget_glyphs(font)
            return
        first = call.get("dx") & 0xFFFF
        at = call.segment("ES") + (call.get("bp") & 0xFFFF)
        for n in range(min(call.get("cx") & 0xFFFF, 256 - min(first, 256))):
            self._vga.planes.load_glyph(font, first + n, call.read(at + n * height, height))

    def _draw(
        self, call: Call, surface: Surface, place: bytes, character: int, colour: int
    ) -> None:
        """A character at a column and row; bit 7 of the colour blends it by XOR."""
        blend = bool(colour & 0x80) and self._vga.linear is None
        mask = 0x7F if blend else 0xFF
        column, row = place
        glyph = self._glyph(call, surface.height, character)
        surface.draw(column, row, glyph, colour & mask, blend=blend)

    def _glyph(self, call: Call, height: int, character: int) -> bytes:
        """The lines of a character, where the vectors say."""
        old = height == 8 and character >= 0x80 and call.word(_MODE, 1) in modes.CGA_MODES
        far = call.word(_OLD_FONT if old else _FONT, 4)
        number = character - 0x80 if old else character
        return call.read((far >> 16 << 4) + (far & 0xFFFF) + height * number, height)

    def _put(self, writes: Iterable[tuple[int, int]]) -> None:
        """Outputs, of which those to the attribute controller begin with an index."""
        self._vga.read(modes.STATUS, 1, 0)
        for port, value in writes:
            self._out(port, value)

    def _load_palette(self, first: int, colours: bytes) -> None:
        self._out(0x3C8, first)
        for part in colours:
            self._out(0x3C9, part)

    def _palette(self, call: Call) -> None:
        """AH = 10H: 16 registers and 256 colours, without blinking and grey; AL says which."""
        wanted = call.low("ax")
        first, count = call.get("bx") & 0xFF, min(call.get("cx") & 0xFFFF, 256)
        at = call.segment("ES") + (call.get("dx") & 0xFFFF)
        if wanted == 0x00:
            self._put(modes.attributes(call.low("bx") & 0x1F, bytes((call.high("bx"),))))
        elif wanted == 0x02:
            self._put(modes.attributes(0, call.read(at, 16)))
            self._put(modes.attributes(0x11, call.read(at + 16, 1)))
        elif wanted == 0x10:
            self._load_palette(first, bytes((call.high("dx"), call.high("cx"), call.low("cx"))))
        elif wanted == 0x12:
            self._load_palette(first, call.read(at, 3 * count))
        elif wanted == 0x15:
            red, green, blue = self._vga.colours(first, 1)
            call.put_high("dx", red)
            call.put("cx", green << 8 | blue)
        elif wanted == 0x17:
            call.write(at, self._vga.colours(first, count))

    def _set_shape(self, call: Call) -> None:
        call.put_word(_SHAPE, call.get("cx"))

    def _set_cursor(self, call: Call) -> None:
        call.put_word(_CURSORS + 2 * (call.high("bx") & 7), call.get("dx"))
        self._show_cursor(call)

    def _get_cursor(self, call: Call) -> None:
        call.put("dx", call.word(_CURSORS + 2 * (call.high("bx") & 7)))
        call.put("cx", call.word(_SHAPE))

    def _set_page(self, call: Call) -> None:
        page = call.low("ax") & 7
        call.put_word(_PAGE, page, 1)
        self._show_page(page * self._page_bytes(call) // 2)
        self._show_cursor(call)

    def _page_bytes(self, call: Call) -> int:
        return call.word(_PAGE_SIZE) or 2 * _PAGES

    def _show_page(self, start: int) -> None:
        for index, value in ((0x0C, start >> 8 & 0xFF), (0x0D, start & 0xFF)):
            self._out(0x3D4, index)
            self._out(0x3D5, value)

    def _show_cursor(self, call: Call) -> None:
        page = call.word(_PAGE, 1) & 7
        column, row = call.read(_CURSORS + 2 * page, 2)
        place = page * self._page_bytes(call) // 2 + row * self._columns(call) + column
        for index, value in ((0x0E, place >> 8 & 0xFF), (0x0F, place & 0xFF)):
            self._out(0x3D4, index)
            self._out(0x3D5, value)

    def _columns(self, call: Call) -> int:
        return min(call.word(_COLUMNS) or 80, _MOST_COLUMNS)

    def _last_row(self, call: Call) -> int:
        """The last row of a text mode, within text memory."""
        return min(call.word(_LAST_ROW, 1) or 24, _TEXT_SIZE // (2 * self._columns(call)) - 1)

    def _cell(self, call: Call, page: int, column: int, row: int) -> int:
        """The address of a character on a page, within text memory."""
        place = page * self._page_bytes(call) + 2 * (row * self._columns(call) + column)
        return _TEXT + place % _TEXT_SIZE

    def _scroll(self, call: Call) -> None:
        up = call.high("ax") == 6
        page = call.word(_PAGE, 1) & 7
        left, top = call.low("cx"), call.high("cx")
        surface = self._surface(call)
        if surface is not None:
            area = left, top, call.low("dx"), call.high("dx")
            surface.scroll(area, call.low("ax"), call.high("bx"), up=up)
            return
        right = min(call.low("dx"), self._columns(call) - 1)
        bottom = min(call.high("dx"), self._last_row(call))
        if right < left or bottom < top:
            return
        width = 2 * (right - left + 1)
        rows = [
            call.read(self._cell(call, page, left, row), width) for row in range(top, bottom + 1)
        ]
        count = call.low("ax") or len(rows)
        blank = bytes((0x20, call.high("bx"))) * (width // 2)
        blanks = [blank] * min(count, len(rows))
        moved = rows[count:] + blanks if up else blanks + rows[: max(len(rows) - count, 0)]
        for row, data in zip(range(top, bottom + 1), moved, strict=True):
            call.write(self._cell(call, page, left, row), data)

    def _read_character(self, call: Call) -> None:
        page = call.high("bx") & 7
        column, row = call.read(_CURSORS + 2 * page, 2)
        surface = self._surface(call)
        if surface is None:
            call.put("ax", call.word(self._cell(call, page, column, row)))
            return
        glyph = surface.glyph(column, row)
        found = (n for n in range(256) if self._glyph(call, surface.height, n) == glyph)
        call.put("ax", next(found, 0))

    def _write_characters(self, call: Call) -> None:
        page = call.high("bx") & 7
        column, row = call.read(_CURSORS + 2 * page, 2)
        keeps = call.high("ax") == 0x0A
        surface = self._surface(call)
        if surface is not None:
            column, row = call.read(_CURSORS + 2 * (call.word(_PAGE, 1) & 7), 2)
            for n in range(min(call.get("cx") & 0xFFFF, surface.columns - column)):
                place = bytes((column + n, row))
                self._draw(call, surface, place, call.low("ax"), call.low("bx"))
            return
        for n in range(min(call.get("cx") & 0xFFFF, 2000)):
            at = self._cell(call, page, column + n, row)
            call.write(at, bytes((call.low("ax"),)))
            if not keeps:
                call.write(at + 1, bytes((call.low("bx"),)))

    def _write_pixel(self, call: Call) -> None:
        mode = call.word(_MODE, 1)
        if mode == modes.LINEAR_256:
            at = (call.get("dx") & 0xFFFF) * 320 + (call.get("cx") & 0xFFFF)
            call.write(_GRAPHICS + at % 0x10000, bytes((call.low("ax"),)))
        elif mode in modes.PLANAR_MODES:
            colour = call.low("ax")
            self._vga.planes.put(*self._pixel(call, mode), colour & 15, blend=bool(colour & 0x80))
        elif mode in modes.CGA_MODES:
            at, shift, mask = self._cga_pixel(call, mode)
            colour, old = call.low("ax"), call.word(at, 1)
            one = (colour & mask) << shift
            new = old ^ one if colour & 0x80 else old & ~(mask << shift) | one
            call.write(at, bytes((new & 0xFF,)))

    def _read_pixel(self, call: Call) -> None:
        mode = call.word(_MODE, 1)
        if mode == modes.LINEAR_256:
            at = (call.get("dx") & 0xFFFF) * 320 + (call.get("cx") & 0xFFFF)
            call.put_low("ax", call.word(_GRAPHICS + at % 0x10000, 1))
        elif mode in modes.PLANAR_MODES:
            call.put_low("ax", self._vga.planes.get(*self._pixel(call, mode)))
        elif mode in modes.CGA_MODES:
            at, shift, mask = self._cga_pixel(call, mode)
            call.put_low("ax", call.word(at, 1) >> shift & mask)

    def _cga_pixel(self, call: Call, mode: int) -> tuple[int, int, int]:
        """Where column CX and row DX are: the byte, the lowest bit, and how many, as a mask."""
        column, row = call.get("cx") & 0xFFFF, call.get("dx") & 0xFFFF
        bits = 80 // modes.COLUMNS[mode]
        at = drawn_text.line_of_cga(row % 200) + column * bits // 8 % 80
        return at, 8 - bits - column * bits % 8, (1 << bits) - 1

    def _pixel(self, call: Call, mode: int) -> tuple[int, int]:
        """The address in the planes, and the bit there, of column CX and row DX."""
        column, row = call.get("cx") & 0xFFFF, call.get("dx") & 0xFFFF
        return row * modes.COLUMNS[mode] + (column >> 3) & 0xFFFF, 7 - (column & 7)

    def _teletype(self, call: Call) -> None:
        self.write(call, call.low("ax"))

    def write(self, call: Call, character: int, attribute: int | None = None) -> None:
        """A character at the cursor of the page shown, which moves on; the screen scrolls."""
        self._emit(character)
        page = call.word(_PAGE, 1) & 7
        surface = self._surface(call)
        columns = self._columns(call) if surface is None else surface.columns
        last = self._last_row(call) if surface is None else surface.rows - 1
        column, row = call.read(_CURSORS + 2 * page, 2)
        if character == _RETURN:
            column = 0
        elif character == _LINE_FEED:
            row += 1
        elif character == _BACKSPACE:
            column = max(column - 1, 0)
        elif character != _BELL and surface is not None:
            colour = call.low("bx") if attribute is None else attribute
            self._draw(call, surface, bytes((column, row)), character, colour)
            column += 1
        elif character != _BELL:
            at = self._cell(call, page, column, row)
            call.write(at, bytes((character,)))
            if attribute is not None:
                call.write(at + 1, bytes((attribute,)))
            column += 1
        if column >= columns:
            column, row = 0, row + 1
        while row > last:
            row -= 1
            if surface is not None:
                surface.scroll((0, 0, columns - 1, last), 1, 0, up=True)
                continue
            start = self._cell(call, page, 0, 0)
            kept = call.read(start + 2 * columns, 2 * columns * last)
            call.write(start, kept + _BLANK * columns)
        call.write(_CURSORS + 2 * page, bytes((column, row)))
        self._show_cursor(call)

    def _get_mode(self, call: Call) -> None:
        call.put("ax", call.word(_MODE, 1) | self._columns(call) << 8)
        call.put_high("bx", call.word(_PAGE, 1))

    def _alternate(self, call: Call) -> None:
        if call.low("bx") == 0x10:  # colour, 256 KiB
            call.put("bx", 0x0003)
            call.put("cx", 0x0009)

    def _write_string(self, call: Call) -> None:
        mode = call.low("ax")
        page = call.high("bx") & 7
        before = call.read(_CURSORS + 2 * page, 2)
        call.put_word(_CURSORS + 2 * page, call.get("dx"))
        at = call.segment("ES") + (call.get("bp") & 0xFFFF)
        for _ in range(min(call.get("cx") & 0xFFFF, 2000)):
            character, attribute = call.read(at, 2)
            if not mode & 2:
                attribute = call.low("bx")
            self.write(call, character, attribute)
            at += 2 if mode & 2 else 1
        if not mode & 1:
            call.write(_CURSORS + 2 * page, before)
            self._show_cursor(call)

    def _combination(self, call: Call) -> None:
        if call.low("ax") == 0:
            call.put_low("ax", 0x1A)
            call.put("bx", 0x0008)  # a VGA with a colour screen
