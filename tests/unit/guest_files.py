"""Small guest files, built here byte by byte, for the tests of the loaders."""

from struct import pack

MEGABYTE = 1 << 20


def bzimage(
    *,
    version: int = 0x020F,
    flags: int = 0x01,
    extended_flags: int = 0x01,
    preferred: int = 0x100_0000,
    init_size: int = 0x20_0000,
    relocatable: int = 1,
    setup_sectors: int = 3,
    payload: bytes = b"\x90" * 4096,
    system: int | None = None,
    command_limit: int = 2047,
    initrd_limit: int = 0x7FFF_FFFF,
) -> bytes:
    head = bytearray((setup_sectors + 1) * 512)

    def put(offset: int, size: int, value: int) -> None:
        head[offset : offset + size] = value.to_bytes(size, "little")

    put(0x1F1, 1, setup_sectors)
    put(0x1F4, 4, len(payload) // 16 if system is None else system)
    put(0x1FE, 2, 0xAA55)
    put(0x200, 2, 0x66EB)
    head[0x202:0x206] = b"HdrS"
    put(0x206, 2, version)
    put(0x20E, 2, 0x300)
    put(0x211, 1, flags)
    put(0x22C, 4, initrd_limit)
    put(0x230, 4, 0x20_0000)
    put(0x234, 1, relocatable)
    put(0x236, 2, extended_flags)
    put(0x238, 4, command_limit)
    put(0x258, 8, preferred)
    put(0x260, 4, init_size)
    head[0x500:0x510] = b"9.9.9-test (me)\0"
    return bytes(head) + payload


def elf(
    segments: list[tuple[int, int, int, bytes, int]],
    *,
    bits: int = 64,
    entry: int | None = None,
    kind: int = 2,
    machine: int | None = None,
) -> bytes:
    """An ELF of `segments`: (type, virtual, physical, data, memory size)."""
    wide = bits == 64
    size = 56 if wide else 32
    start = 64 if wide else 52
    if machine is None:
        machine = 62 if wide else 3
    entry = segments[0][2] if entry is None else entry
    identity = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    header = identity + pack(
        "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
        kind, machine, 1, entry, start, 0, 0, start, size, len(segments), 0, 0, 0,
    )  # fmt: skip
    offset = start + size * len(segments)
    table = b""
    for what, virtual, physical, data, memory in segments:
        if wide:
            table += pack("<IIQQQQQQ", what, 7, offset, virtual, physical, len(data), memory, 1)
        else:
            table += pack("<IIIIIIII", what, offset, virtual, physical, len(data), memory, 7, 1)
        offset += len(data)
    return header + table + b"".join(segment[3] for segment in segments)


def multiboot_header(flags: int, *addresses: int) -> bytes:
    magic = 0x1BADB002
    return pack("<III", magic, flags, -(magic + flags) & 0xFFFFFFFF) + b"".join(
        pack("<I", address) for address in addresses
    )


def boot_sector(code: bytes) -> bytes:
    return code.ljust(510, b"\0") + b"\x55\xaa"
