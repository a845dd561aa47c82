"""Guests without any header: a boot sector, or flat 32-bit code.

A file of exactly 512 bytes that ends in 55H AAH is a boot sector: real mode, at
0000:7C00, DL = 80H. Any other file is flat 32-bit code: it is loaded and entered at 1 MB as
`bare` says.
"""

from trapgate.vmm.loaders.bare import finish
from trapgate.vmm.loaders.image import (
    MEGABYTE,
    GuestImage,
    GuestImageError,
    GuestKind,
    Segment,
    guest_image,
    mebibytes,
)
from trapgate.vmm.loaders.layout import Layout
from trapgate.vmm.loaders.state import real_mode

_SECTOR = 512
_SECTOR_ADDRESS = 0x7C00

_FOREIGN = (
    (b"MZ", "a DOS or Windows program"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"BZh", "bzip2-compressed"),
    (b"PK\x03\x04", "a zip archive"),
    (b"!<arch>", "a package or library"),
    (b"070701", "an initial RAM disk, which belongs to --initrd"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"QFI\xfb", "a disk image"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\xce\xfa\xed\xfe", "a macOS program"),
    (b"#!", "a script"),
)
_TEXT_LOOKED_AT = 65536


def is_boot_sector(data: bytes) -> bool:
    """Is `data` one sector with the boot signature?"""
    return len(data) == _SECTOR and data[-2:] == b"\x55\xaa"


def load_boot_sector(data: bytes, layout: Layout, append: str, initrd: bytes | None) -> GuestImage:
    """Make a guest of a boot sector. Raises GuestImageError if it is given what it can't take."""
    for option, given in (("--append", append), ("--initrd", initrd)):
        if given:
            raise GuestImageError(layout.file, option, "a boot sector can't take it; leave it out")
    segments = [*layout.bios_data(), Segment(_SECTOR_ADDRESS, data)]
    return guest_image(
        GuestKind.BOOT_SECTOR,
        16,
        segments,
        real_mode(_SECTOR_ADDRESS, _SECTOR_ADDRESS),
        {"RDX": 0x80},
        "boot sector in real mode at 0000:7c00",
    )


def load_flat(data: bytes, layout: Layout, append: str, initrd: bytes | None) -> GuestImage:
    """Make a guest of headerless 32-bit code. Raises GuestImageError if it is not code."""
    file = layout.file
    for magic, what in _FOREIGN:
        if data.startswith(magic):
            raise GuestImageError(
                file, "contents", f"this is {what}, not a guest; give a kernel or flat code"
            )
    if not data.strip(b"\0"):
        raise GuestImageError(
            file, "contents", "nothing but zero bytes, so no guest; give a kernel or flat code"
        )
    if _is_text(data[:_TEXT_LOOKED_AT]):
        raise GuestImageError(
            file, "contents", "this is a text, not a guest; give a kernel or flat code"
        )
    if MEGABYTE + len(data) > layout.memory:
        raise GuestImageError(
            file,
            "size",
            f"{len(data)} bytes of flat code at 1 MB do not fit; give the guest "
            f"--memory {mebibytes(MEGABYTE + len(data))} or more",
        )
    layout.claim(MEGABYTE, len(data), "flat code")
    return finish(
        GuestKind.FLAT,
        32,
        layout,
        [Segment(MEGABYTE, data)],
        MEGABYTE,
        append,
        initrd,
        f"flat 32-bit code, {len(data)} bytes at {MEGABYTE:#x}",
    )


def _is_text(data: bytes) -> bool:
    """Is it UTF-8 of printable characters? Hardly any code is."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:  # otherwise just cut in the middle of a character
            return False
        text = data[: error.start].decode()
    return text != "" and all(c.isprintable() or c in "\t\n\f\r" for c in text)
