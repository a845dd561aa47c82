"""Linux bzImages, by the 32- and 64-bit boot protocols (versions 2.06 and later).

A kernel that says it has a 64-bit entry point (XLF_KERNEL_64) is entered at its load
address + 200H in 64-bit mode on identity page tables; any other at its load address in
32-bit protected mode. A relocatable kernel is loaded where it prefers to run.
"""

from trapgate.vmm.loaders.bootparams import HEADER, HEADER_LIMIT, boot_params
from trapgate.vmm.loaders.image import (
    MEGABYTE,
    PAGE,
    GuestImage,
    GuestImageError,
    GuestKind,
    Segment,
    guest_image,
    mebibytes,
    printable,
)
from trapgate.vmm.loaders.layout import STACK_TOP, Layout, command_line
from trapgate.vmm.loaders.state import (
    GDT_SIZE,
    PAGE_TABLES_SIZE,
    gdt,
    long_mode,
    page_tables,
    protected_mode,
)

_OLDEST = 0x0206
_SETUP_END = 0x280
_LOADED_HIGH = 0x01
_KERNEL_64 = 0x01
_ENTRY_64 = 0x200
_DEFAULT_INITRD_LIMIT = 0x37FF_FFFF


def is_bzimage(data: bytes) -> bool:
    """Does `data` begin like a Linux kernel image, whole or not?"""
    return data[0x1FE:0x200] == b"\x55\xaa" and data[0x202:0x206] == b"HdrS"


def load_linux(data: bytes, layout: Layout, append: str, initrd: bytes | None) -> GuestImage:
    """Make a guest of a bzImage. Raises GuestImageError if it is damaged or doesn't fit."""
    file = layout.file

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "little")

    version = number(0x206, 2)
    if len(data) < _SETUP_END:
        raise GuestImageError(file, "setup header", "the file is truncated; fetch it again")
    if version < _OLDEST:
        raise GuestImageError(
            file,
            "boot protocol version",
            f"{version >> 8}.{version & 0xFF:02d} is too old; use a kernel with 2.06 or later",
        )
    if not number(0x211, 1) & _LOADED_HIGH:
        raise GuestImageError(
            file, "loadflags", "this is a zImage, which loads low; build a bzImage"
        )
    setup = (number(0x1F1, 1) or 4) * 512 + 512
    payload = data[setup:]
    promised = number(0x1F4, 4) * 16
    # The size is in paragraphs of 16 bytes, rounded up.
    if not payload or len(payload) + 16 <= promised:
        raise GuestImageError(
            file,
            "syssize",
            f"the kernel should have {promised} bytes after its setup and has {len(payload)}; "
            "the file is truncated, fetch it again",
        )

    modern = version >= 0x020A
    preferred = number(0x258, 8) if modern else MEGABYTE
    load = preferred if modern and number(0x234, 1) else MEGABYTE
    needed = max(number(0x260, 4) if modern else 0, len(payload))
    end = max(load, preferred) + needed
    if load < MEGABYTE or load % PAGE:
        raise GuestImageError(
            file,
            "pref_address",
            f"{load:#x} is not an address at which a kernel can be loaded; fetch the file again",
        )
    if end > layout.top:
        raise GuestImageError(
            file,
            "init_size",
            f"the kernel needs memory up to {end:#x}; give it --memory {mebibytes(end)} or more"
            if end <= 0xE000_0000
            else f"the kernel needs memory up to {end:#x}, which no guest has; fetch it again",
        )
    layout.claim(load, end - load, "kernel")

    segments = [*layout.bios_data(), Segment(load, payload)]
    disk = (0, 0)
    if initrd:
        limit = number(0x22C, 4) or _DEFAULT_INITRD_LIMIT
        disk = (layout.place_high(len(initrd), "--initrd", limit + 1), len(initrd))
        segments.append(Segment(disk[0], initrd))

    line = command_line(file, append, number(0x238, 4) or 255)
    command = layout.place(len(line) + 1, "--append")
    segments.append(Segment(command, line + b"\0"))
    header = data[HEADER : min(0x202 + number(0x201, 1), HEADER_LIMIT)]
    zero_page = layout.place(PAGE, "boot_params")
    segments.append(Segment(zero_page, boot_params(layout, header, load, command, disk)))

    wide = version >= 0x020C and bool(number(0x236, 2) & _KERNEL_64)
    bits = 64 if wide else 32
    descriptors = layout.place(GDT_SIZE, "GDT")
    segments.append(Segment(descriptors, gdt(bits)))
    if wide:
        tables = layout.place(PAGE_TABLES_SIZE, "page tables")
        segments.append(Segment(tables, page_tables(tables)))
        fields = long_mode(load + _ENTRY_64, STACK_TOP, descriptors, tables)
    else:
        fields = protected_mode(load, STACK_TOP, descriptors)
    return guest_image(
        GuestKind.LINUX,
        bits,
        segments,
        fields,
        {"RSI": zero_page},
        f"{bits}-bit Linux {_release(data, number(0x20E, 2))}at {load:#x}, "
        f"boot protocol {version >> 8}.{version & 0xFF:02d}",
    )


def _release(data: bytes, pointer: int) -> str:
    """The kernel's version string, if its setup has one."""
    if not pointer:
        return ""
    text = data[pointer + 0x200 : pointer + 0x280].split(b"\0")[0].split(b" ")[0]
    return printable(text.decode("ascii", "replace")) + " " if text else ""
