"""Floppy disks that put an image into memory at 1 MiB and jump to it, for Bochs."""

import struct

from benchmarks.guests import LOAD

_FLOPPY = 1440 << 10
_SECTOR = 512
_PAGE = 4096
_MOST = 0x80000
"""Bytes of an image: it is read to 10000H first, and 90000H and up is the BIOS'."""

# Reads sectors behind itself to 10000H, goes to flat protected mode, moves them to LOAD
# and jumps to the entry point. The marks are put in their places below.
_LAST, _DOUBLEWORDS, _ENTRY = b"\x22\x11", b"\x44\x33\x22\x12", b"\x44\x33\x22\x11"
_BOOT = bytes.fromhex(
    "fa31c08ed88ed0bc007cbe0100bb00108ec389f0b112f6f188e14188c680e601"
    "d0e888c55331dbb80102cd135b72e183c3204681fe221175d790fae4920c02e6"
    "92660f0116947c0f20c00c010f22c066ea577c0000080066b810008ed88ec08e"
    "d0be00000100bf00001000b944332212fcf3a5b844332211ffe0669000000000"
    "00000000ffff0000009bcf00ffff00000093cf0017007c7c0000"
)

_MULTIBOOT_LOADED = 0x2BADB002
_MEMORY, _COMMAND, _MODULES = 1, 4, 8
_INFORMATION_SIZE = 48


def disk(image: bytes, entry: int) -> bytes:
    """A disk that loads `image` at LOAD and enters it at `entry`, in flat protected mode.

    Raises ValueError for an image that conventional memory does not hold.
    """
    if len(image) > _MOST:
        raise ValueError(f"{len(image)} bytes are too many: {_MOST} at most")
    sectors = -(-len(image) // _SECTOR)
    boot = _BOOT
    for mark, value in (
        (_LAST, struct.pack("<H", sectors + 1)),
        (_DOUBLEWORDS, struct.pack("<I", sectors * _SECTOR // 4)),
        (_ENTRY, struct.pack("<I", entry)),
    ):
        boot = boot.replace(mark, value, 1)
    return (boot.ljust(510, b"\0") + b"\x55\xaa" + image).ljust(_FLOPPY, b"\0")


def multiboot_disk(kernel: bytes, module: bytes, line: str, *, memory: int) -> bytes:
    """A disk with a multiboot kernel (an ELF for LOAD), its module and its command line.

    `memory` is what the kernel is told that the machine has, in bytes.
    """
    image, entry = _as_in_memory(kernel)
    image = _paged(image)
    module_at = LOAD + len(image)
    image = _paged(image + module)
    information = LOAD + len(image)
    listed = information + _INFORMATION_SIZE
    image += struct.pack(
        "<7I",
        _MEMORY | _COMMAND | _MODULES,
        639,
        (memory >> 10) - 1024,
        0,
        listed + 16,
        1,
        listed,
    ).ljust(_INFORMATION_SIZE, b"\0")
    image += struct.pack("<4I", module_at, module_at + len(module), 0, 0)
    image = _paged(image + line.encode() + b"\0")
    # mov eax, 2BADB002H; mov ebx, information; mov ecx, entry; jmp ecx
    registers = _MULTIBOOT_LOADED, information, entry
    start = b"".join(
        opcode + struct.pack("<I", value)
        for opcode, value in zip((b"\xb8", b"\xbb", b"\xb9"), registers, strict=True)
    )
    return disk(image + start + b"\xff\xe1", LOAD + len(image))


def _as_in_memory(elf: bytes) -> tuple[bytes, int]:
    entry, programs = struct.unpack_from("<II", elf, 24)
    (count,) = struct.unpack_from("<H", elf, 44)
    image = bytearray()
    for i in range(count):
        kind, offset, _, at, in_file, in_memory, _, _ = struct.unpack_from(
            "<8I", elf, programs + 32 * i
        )
        if kind == 1:
            image.extend(bytes(max(at - LOAD + in_memory - len(image), 0)))
            image[at - LOAD : at - LOAD + in_file] = elf[offset : offset + in_file]
    return bytes(image), entry


def _paged(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // _PAGE) * _PAGE, b"\0")
