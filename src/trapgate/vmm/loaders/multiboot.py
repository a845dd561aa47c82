"""Multiboot (version 1) guests: kernels that name their needs in a header near the start.

The kernel starts in flat 32-bit protected mode with EAX = 2BADB002H and EBX pointing to
the information structure: memory sizes and map, command line (the file's name first),
modules, and our name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from trapgate.vmm.loaders.elf import is_elf, parse_elf, place_elf
from trapgate.vmm.loaders.image import (
    COMMAND_LINE_LIMIT,
    MEGABYTE,
    GuestImage,
    GuestImageError,
    GuestKind,
    Segment,
    guest_image,
)
from trapgate.vmm.loaders.layout import LOW_MEMORY_END, STACK_TOP, Layout, command_line
from trapgate.vmm.loaders.state import GDT_SIZE, gdt, protected_mode

_MAGIC = 0x1BADB002
_ANSWER = 0x2BADB002
_SEARCHED = 8192
_HEADER = Struct("<III")
_ADDRESSES = Struct("<IIIII")
_MODULE = Struct("<IIII")

_KNOWN_NEEDS = 0b111
_NEEDS = 0xFFFF
_HAS_ADDRESSES = 1 << 16

_INFORMATION_SIZE = 0x78
_MEMORY, _COMMAND_LINE, _MODULES, _MEMORY_MAP, _LOADER_NAME = 1 << 0, 1 << 2, 1 << 3, 1 << 6, 1 << 9
_NAME = b"trapgate\0"


@dataclass(frozen=True, slots=True)
class Module:
    """A file for a multiboot kernel, and its line: a name, perhaps arguments after it."""

    data: bytes
    line: str


@dataclass(frozen=True, slots=True)
class MultibootHeader:
    """A multiboot header: its offset in the file and its flags."""

    offset: int
    flags: int


def find_header(data: bytes) -> MultibootHeader | None:
    """The first valid header in the first 8192 bytes, or None."""
    magic = _MAGIC.to_bytes(4, "little")
    searched = data[:_SEARCHED]
    offset = searched.find(magic)
    while offset >= 0:
        if offset % 4 == 0 and offset + _HEADER.size <= len(searched):
            values = _HEADER.unpack_from(searched, offset)
            if sum(values) & 0xFFFFFFFF == 0:
                return MultibootHeader(offset, values[1])
        offset = searched.find(magic, offset + 1)
    return None


def load_multiboot(
    data: bytes,
    header: MultibootHeader,
    layout: Layout,
    append: str,
    modules: Sequence[Module],
) -> GuestImage:
    """Make a guest of a multiboot kernel. Raises GuestImageError if it can't be."""
    file = layout.file
    unknown = header.flags & _NEEDS & ~_KNOWN_NEEDS
    if unknown:
        raise GuestImageError(
            file,
            "multiboot flags",
            f"asks for features {unknown:#x} that version 1 does not have; build it for version 1",
        )
    # The video bit (2) is a wish: there is no display, and the answer says so.
    if header.flags & _HAS_ADDRESSES:
        segments, entry = _place_by_addresses(data, header, layout)
    elif is_elf(data):
        segments, entry = place_elf(parse_elf(data, file), data, layout)
    else:
        raise GuestImageError(
            file,
            "multiboot flags",
            "the file is not an ELF and bit 16 is clear, so nothing says where to load it; "
            "set the address fields",
        )
    placed: list[tuple[int, int, bytes]] = []
    for module in modules:
        start = layout.place_after(len(module.data), "modules")
        placed.append((start, start + len(module.data), _line(module.line)))
        segments.append(Segment(start, module.data))
    segments += layout.bios_data()
    line = _command(file, append)
    size = _INFORMATION_SIZE + 24 * len(layout.map()) + len(line)
    size += sum(16 + len(text) for _, _, text in placed)
    information = layout.place(size + len(_NAME), "multiboot information")
    descriptors = layout.place(GDT_SIZE, "GDT")
    segments += [
        Segment(information, _information(layout, information, line, placed)),
        Segment(descriptors, gdt(32)),
    ]
    return guest_image(
        GuestKind.MULTIBOOT,
        32,
        segments,
        protected_mode(entry, STACK_TOP, descriptors),
        {"RAX": _ANSWER, "RBX": information},
        f"multiboot kernel, entry {entry:#x}",
    )


def _place_by_addresses(
    data: bytes, header: MultibootHeader, layout: Layout
) -> tuple[list[Segment], int]:
    """Load by the header's address fields, which stand for those of an a.out or raw file."""
    file = layout.file
    at = header.offset + _HEADER.size
    if at + _ADDRESSES.size > len(data):
        raise GuestImageError(
            file, "multiboot address fields", "the file is truncated; fetch or build it again"
        )
    header_address, load, load_end, bss_end, entry = _ADDRESSES.unpack_from(data, at)
    start = header.offset - (header_address - load)
    if not 0 <= start <= header.offset:
        raise GuestImageError(
            file,
            "multiboot load_addr",
            f"header_addr {header_address:#x} and load_addr {load:#x} put the start of the "
            f"kernel outside the file; mend the address fields",
        )
    size = load_end - load if load_end else len(data) - start
    if size <= 0 or start + size > len(data):
        raise GuestImageError(
            file,
            "multiboot load_end_addr",
            f"{size} bytes from offset {start:#x} are not in the file's {len(data)}; "
            "mend the address fields, or fetch the file again if it is truncated",
        )
    end = bss_end or load + size
    if end < load + size:
        raise GuestImageError(
            file,
            "multiboot bss_end_addr",
            f"{bss_end:#x} lies before the end of the data, {load + size:#x}; "
            "mend the address fields",
        )
    if not load <= entry < end:
        raise GuestImageError(
            file,
            "multiboot entry_addr",
            f"{entry:#x} lies outside the kernel, {load:#x}-{end - 1:#x}; mend the address fields",
        )
    layout.claim(load, end - load, "multiboot load_addr")
    return [Segment(load, data[start : start + size])], entry


def _line(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape").replace(b"\0", b"?")[:COMMAND_LINE_LIMIT] + b"\0"


def _command(file: str, append: str) -> bytes:
    """The file's name, then what was asked for: kernels take the first word as their own name."""
    name = file.rsplit("/", 1)[-1] or "kernel"
    line = command_line(file, append)
    own = name.encode("utf-8", "surrogateescape").replace(b"\0", b"?")[:COMMAND_LINE_LIMIT]
    return own + (b" " + line if line else b"") + b"\0"


def _information(
    layout: Layout,
    base: int,
    line: bytes,
    modules: Sequence[tuple[int, int, bytes]],
) -> bytes:
    data = bytearray(_INFORMATION_SIZE)

    def put(offset: int, value: int) -> None:
        data[offset : offset + 4] = value.to_bytes(4, "little")

    def append(more: bytes) -> int:
        address = base + len(data)
        data.extend(more)
        return address

    flags = _MEMORY | _COMMAND_LINE | _MODULES | _MEMORY_MAP | _LOADER_NAME
    put(0, flags)
    put(4, LOW_MEMORY_END >> 10)
    put(8, (layout.top - MEGABYTE) >> 10)
    entries = b"".join(
        (20).to_bytes(4, "little")
        + start.to_bytes(8, "little")
        + length.to_bytes(8, "little")
        + kind.to_bytes(4, "little")
        for start, length, kind in layout.map()
    )
    put(44, len(entries))
    put(48, append(entries))
    lines = [append(text) for _, _, text in modules]
    put(20, len(modules))
    put(
        24,
        append(
            b"".join(
                _MODULE.pack(start, end, at, 0)
                for (start, end, _), at in zip(modules, lines, strict=True)
            )
        ),
    )
    put(16, append(line))
    put(64, append(_NAME))
    return bytes(data)
