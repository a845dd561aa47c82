"""The screen as a picture: what `devices.vga` shows, drawn by Pillow."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trapgate.errors import TrapgateError
from trapgate.vmm.devices.pixels import TEXT_COLOURS, Readable
from trapgate.vmm.devices.vga import VgaRegisters, shown

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

_CELL_WIDTH, _CELL_HEIGHT = 9, 16
"""Of a character in text modes, in pixels."""
_FONTS: Final = ("DejaVuSansMono.ttf", "LiberationMono-Regular.ttf", "FreeMono.ttf", "cour.ttf")
"""Of fonts with one width the first that the system has is taken."""


class ScreenError(TrapgateError):
    """The screen cannot be drawn: Pillow is missing."""


def draw(vga: VgaRegisters, memory: Readable) -> Image:
    """The screen. Raises ScreenError."""
    try:
        from PIL import Image
    except ImportError:
        raise ScreenError(
            "pictures of the screen need Pillow; install it: pip install 'trapgate[screen]'"
        ) from None
    if vga.is_text:
        return _draw_text(vga, vga.cells(memory))
    pixels = vga.pixels(memory)
    assert pixels is not None
    return Image.fromarray(pixels)


def png(vga: VgaRegisters, memory: Readable) -> bytes:
    """The screen as a PNG file's bytes. Raises ScreenError."""
    file = io.BytesIO()
    draw(vga, memory).save(file, "PNG")
    return file.getvalue()


def save(vga: VgaRegisters, memory: Readable, path: Path) -> None:
    """Write the screen to a PNG file. Raises ScreenError."""
    data = png(vga, memory)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ScreenError(
            f"{path}: cannot be written ({error.strerror}); give a file in a writable folder"
        ) from None


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    for name in _FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size * 6 / 7)


def _draw_text(vga: VgaRegisters, cells: bytes) -> Image:
    """Characters of the guest's own, and for those that it has not loaded the host's."""
    from PIL import Image, ImageDraw

    columns = vga.text_mode.columns
    rows = len(cells) // 2 // columns
    pairs = list(zip(cells[::2], cells[1::2], strict=True))
    glyphs = {pair: glyph for pair in set(pairs) if (glyph := vga.glyph(*pair)) is not None}
    width, height = _CELL_WIDTH, _CELL_HEIGHT
    if glyphs:
        width, height = width if vga.is_nine_wide else 8, vga.character_height
    picture = Image.new("RGB", (columns * width, rows * height))
    canvas, font = ImageDraw.Draw(picture), _font(height * 14 // 16)
    for n, (pair, character) in enumerate(zip(pairs, shown(cells[::2]), strict=True)):
        attribute = pair[1]
        left, top = n % columns * width, n // columns * height
        box = (left, top, left + width - 1, top + height - 1)
        canvas.rectangle(box, TEXT_COLOURS[attribute >> 4 & 7])
        glyph = glyphs.get(pair)
        if glyph is not None:
            ninth = 1 if vga.repeats_lines and 0xC0 <= pair[0] < 0xE0 else 0
            lines = b"".join(bytes((line, (line & ninth) << 7)) for line in glyph)
            mask = Image.frombytes("1", (width, height), lines if width > 8 else glyph)
            canvas.bitmap((left, top), mask, TEXT_COLOURS[attribute & 15])
        elif character != " ":
            canvas.text((left, top), character, TEXT_COLOURS[attribute & 15], font)
    return picture
