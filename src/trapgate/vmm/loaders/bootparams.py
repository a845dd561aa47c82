"""Linux' boot_params, the "zero page", which tells a kernel of its machine.

Offsets are those of Documentation/arch/x86/zero-page and boot in the kernel. Bare ELF
and flat guests get one too: it costs a page and tells them the memory map.
"""

from trapgate.vmm.loaders.image import COMMAND_LINE_LIMIT, MEGABYTE, PAGE
from trapgate.vmm.loaders.layout import Layout

HEADER = 0x1F1
"""Where the setup header begins, in the file and in boot_params."""

HEADER_LIMIT = 0x290
"""Where the setup header ends at the latest."""

_LOADER_UNDEFINED = 0xFF
_LOADED_HIGH = 0x01


def own_header() -> bytes:
    """A setup header for guests that bring none: magic numbers, version 2.12, loaded high."""
    header = bytearray(0x280 - HEADER)
    _put(header, 0x1FE - HEADER, 2, 0xAA55)
    header[0x202 - HEADER : 0x206 - HEADER] = b"HdrS"
    _put(header, 0x206 - HEADER, 2, 0x020C)
    header[0x211 - HEADER] = _LOADED_HIGH
    _put(header, 0x230 - HEADER, 4, MEGABYTE)
    _put(header, 0x238 - HEADER, 4, COMMAND_LINE_LIMIT)
    return bytes(header)


def boot_params(
    layout: Layout, header: bytes, load: int, command: int, initrd: tuple[int, int]
) -> bytes:
    """The 4096 bytes of boot_params.

    `header` is the setup header from offset 1F1H on; `load` the address of the code,
    `command` that of the command line, `initrd` the start and size of the initial RAM disk.
    """
    page = bytearray(PAGE)
    page[HEADER : HEADER + len(header)] = header
    page[0x210] = _LOADER_UNDEFINED
    _put(page, 0x214, 4, load)
    _put(page, 0x218, 4, initrd[0])
    _put(page, 0x21C, 4, initrd[1])
    _put(page, 0x228, 4, command)
    extended = (layout.top - MEGABYTE) >> 10
    _put(page, 0x002, 2, min(extended, 0xFFFF))
    _put(page, 0x1E0, 4, extended)
    entries = layout.map()
    page[0x1E8] = len(entries)
    for i, (start, length, kind) in enumerate(entries):
        at = 0x2D0 + 20 * i
        _put(page, at, 8, start)
        _put(page, at + 8, 8, length)
        _put(page, at + 16, 4, kind)
    return bytes(page)


def _put(page: bytearray, offset: int, size: int, value: int) -> None:
    page[offset : offset + size] = value.to_bytes(size, "little")
