"""What guests without firmware or a boot protocol of their own are given.

Bare ELF and flat guests start with interrupts off, a stack below 640 KB, and RSI (ESI)
pointing to Linux' boot_params, whose memory map, command line and initrd they may use.
"""

from trapgate.vmm.loaders.bootparams import boot_params, own_header
from trapgate.vmm.loaders.image import PAGE, GuestImage, GuestKind, Segment, guest_image
from trapgate.vmm.loaders.layout import STACK_TOP, Layout, command_line
from trapgate.vmm.loaders.state import (
    GDT_SIZE,
    PAGE_TABLES_SIZE,
    gdt,
    long_mode,
    page_tables,
    protected_mode,
)


def finish(
    kind: GuestKind,
    bits: int,
    layout: Layout,
    segments: list[Segment],
    entry: int,
    append: str,
    initrd: bytes | None,
    description: str,
) -> GuestImage:
    """Complete a guest whose `segments` `layout` has claimed, to start at physical `entry`.

    `bits` is 32 (flat protected mode) or 64 (64-bit mode, the first 4 GB mapped onto
    themselves). Raises GuestImageError if something doesn't fit.
    """
    load = min((segment.address for segment in segments), default=0)
    disk = (0, 0)
    if initrd:
        disk = (layout.place_high(len(initrd), "--initrd", 1 << 32), len(initrd))
        segments.append(Segment(disk[0], initrd))
    segments += layout.bios_data()
    line = command_line(layout.file, append)
    command = layout.place(len(line) + 1, "--append")
    zero_page = layout.place(PAGE, "boot_params")
    descriptors = layout.place(GDT_SIZE, "GDT")
    segments += [
        Segment(command, line + b"\0"),
        Segment(zero_page, boot_params(layout, own_header(), load, command, disk)),
        Segment(descriptors, gdt(bits)),
    ]
    if bits == 64:
        tables = layout.place(PAGE_TABLES_SIZE, "page tables")
        segments.append(Segment(tables, page_tables(tables)))
        fields = long_mode(entry, STACK_TOP, descriptors, tables)
    else:
        fields = protected_mode(entry, STACK_TOP, descriptors)
    return guest_image(kind, bits, segments, fields, {"RSI": zero_page}, description)
