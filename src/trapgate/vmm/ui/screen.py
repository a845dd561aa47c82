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
        return _draw_text(vga.cells(memory), vga.text_mode.columns)
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


def _font() -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    for name in _FONTS:
        try:
            return ImageFont.truetype(name, 14)
        except OSError:
            continue
    return ImageFont.load_default(12)


def _draw_text(cells: bytes, columns: int) -> Image:
    from PIL import Image, ImageDraw

    rows = len(cells) // 2 // columns
    picture = Image.new("RGB", (columns * _CELL_WIDTH, rows * _CELL_HEIGHT))
    canvas, font = ImageDraw.Draw(picture), _font()
    for n, character in enumerate(shown(cells[::2])):
        attribute = cells[2 * n + 1]
        left, top = n % columns * _CELL_WIDTH, n // columns * _CELL_HEIGHT
        box = (left, top, left + _CELL_WIDTH - 1, top + _CELL_HEIGHT - 1)
        canvas.rectangle(box, TEXT_COLOURS[attribute >> 4 & 7])
        if character != " ":
            canvas.text((left, top), character, TEXT_COLOURS[attribute & 15], font)
    return picture
