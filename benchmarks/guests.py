"""Small 32-bit guests, as machine code made here: loops, and an ELF with a multiboot header.

The same bytes run on every side. A guest ends by writing to port F4H, which is the debug
exit of Trapgate's machine and of QEMU's `isa-debug-exit`.
"""

import struct
from dataclasses import dataclass

LOAD = 0x100000
"""Where the ELF's only segment is loaded; its pages are code, tables, page directory."""

TABLES = LOAD + 0x1000
DIRECTORY = LOAD + 0x2000
STACK = LOAD + 0x80000
BUFFER = 0x200000
"""128 KB that `store_loop` writes."""

ABSENT = 0x40000000
"""A linear address without a page."""

_CODE, _DATA = 0x08, 0x10
_USER_CODE, _USER_DATA, _TASK = 0x1B, 0x23, 0x28
_TSS_AT = 0x200
_TSS_SIZE = 104
_IOPL_3 = 0x3002
_MULTIBOOT_MAGIC = 0x1BADB002
_ELF_HEADER, _PROGRAM_HEADER, _MULTIBOOT_HEADER = 52, 32, 12
_FILE_OFFSET = 0x1000


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _u16(value: int) -> bytes:
    return struct.pack("<H", value)


@dataclass(frozen=True)
class Loop:
    """Position-independent 32-bit code without an end: `instructions` are executed in it."""

    code: bytes
    instructions: int


def _counted(before: bytes, body: bytes, instructions: int, count: int) -> Loop:
    # mov ecx, count; `before`; top: `body`; dec ecx; jnz top
    top = body + b"\x49"
    code = b"\xb9" + _u32(count) + before + top + b"\x75" + struct.pack("b", -len(top) - 2)
    return Loop(code, count * (instructions + 2))


def tight_loop(count: int) -> Loop:
    """`count` times: add eax, ecx; xor edx, eax; rol edx, 3; dec ecx; jnz."""
    return _counted(b"", b"\x01\xc8\x31\xc2\xc1\xc2\x03", 3, count)


def store_loop(count: int) -> Loop:
    """`count` times two stores, to 128 KB in turn, and four other instructions.

    mov eax, ecx; and eax, 3FFFH; mov [edi + 4*eax], ecx; mov [edi + 4*eax + 64K], eax;
    dec ecx; jnz.
    """
    body = bytes.fromhex("89c8 25ff3f0000 890c87 898487") + _u32(0x10000)
    return _counted(b"\xbf" + _u32(BUFFER), body, 4, count)


def fault_loop(count: int, *, store: bool = False) -> Loop:
    """`count` times: a load, or store, that page-faults, skipped by the handler; dec ecx; jnz.

    Needs `multiboot_guest`, whose handler for page faults steps over two bytes.
    """
    access = b"\x89\x03" if store else b"\x8b\x03"
    return _counted(b"\xbb" + _u32(ABSENT), access, 1, count)


def vmcall_loop(count: int) -> Loop:
    """`count` times: vmcall; dec ecx; jnz."""
    return _counted(b"", b"\x0f\x01\xc1", 1, count)


def cpuid_loop(count: int) -> Loop:
    """`count` times: mov edi, ecx; xor eax, eax; cpuid; mov ecx, edi; dec ecx; jnz."""
    return _counted(b"", bytes.fromhex("89cf 31c0 0fa2 89f9"), 4, count)


def port_loop(count: int) -> Loop:
    """`count` times a byte to port 80H, where a PC has nothing that answers; dec ecx; jnz."""
    return _counted(b"", b"\xe6\x80", 1, count)


def multiboot_guest(loop: Loop, *, user: bool = False) -> bytes:
    """An ELF that runs `loop`, paging on, in ring 0 (3 if `user`), and ends the machine.

    The first 4 MB are mapped by one large page, nothing else is. The page-fault handler
    (an interrupt gate to ring 0) drops the error code, adds 2 to the saved EIP and returns.
    """
    handler = bytes.fromhex("83c404 83042402 cf")  # add esp, 4; add dword [esp], 2; iret
    handler_at = LOAD + _MULTIBOOT_HEADER
    entry = handler_at + len(handler)
    gdtr, idtr, gdt, idt, tss = TABLES, TABLES + 8, TABLES + 16, TABLES + 64, TABLES + _TSS_AT
    start = b"\xfa\xbc" + _u32(STACK)  # cli; mov esp, STACK
    start += b"\x0f\x01\x15" + _u32(gdtr) + b"\x0f\x01\x1d" + _u32(idtr)  # lgdt, lidt
    start += b"\xea" + _u32(entry + len(start) + 7) + _u16(_CODE)  # jmp far
    start += b"\x66\xb8" + _u16(_DATA)  # mov ax, data; mov ds, es, ss, ax
    start += bytes.fromhex("8ed8 8ec0 8ed0")
    start += bytes.fromhex("0f20e0 83c810 0f22e0")  # CR4.PSE
    start += b"\xb8" + _u32(DIRECTORY) + bytes.fromhex("0f22d8")  # CR3
    start += b"\x0f\x20\xc0\x0d" + _u32(0x80010001) + b"\x0f\x22\xc0"  # CR0.PG, WP, PE
    if user:
        start += _to_ring_3(entry + len(start))
    stop = bytes.fromhex("31c0 e6f4 fa f4 ebfc")  # xor eax, eax; out F4H, al; cli; hlt; again
    header = struct.pack("<III", _MULTIBOOT_MAGIC, 0, -_MULTIBOOT_MAGIC & 0xFFFFFFFF)
    code = header + handler + start + loop.code + stop
    flat = struct.pack(
        "<6Q",
        *(0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF),
        # Base and limit of the TSS lie in several pieces.
        _TSS_SIZE - 1 | (tss & 0xFFFFFF) << 16 | 0x89 << 40 | tss >> 24 << 56,
    )
    gate = struct.pack("<HHHH", handler_at & 0xFFFF, _CODE, 0x8E00, handler_at >> 16)
    tables = struct.pack("<HI2x", len(flat) - 1, gdt) + struct.pack("<HI2x", 8 * 15 - 1, idt)
    tables = (tables + flat).ljust(idt - TABLES, b"\0") + bytes(8 * 14) + gate
    stacks = struct.pack("<III", 0, STACK, _DATA).ljust(_TSS_SIZE - 4, b"\0")
    tables = tables.ljust(_TSS_AT, b"\0") + stacks + _u32(_TSS_SIZE << 16)
    directory = _u32(0x87)  # 4 MB page at 0: present, writable, user, large
    segment = (
        code.ljust(0x1000, b"\0") + tables.ljust(0x1000, b"\0") + directory.ljust(0x1000, b"\0")
    )
    return _elf(segment, entry)


def _to_ring_3(here: int) -> bytes:
    """Code at `here` that goes on behind itself in ring 3, which may use all I/O ports."""
    # mov ax, task; ltr ax; mov ax, user data; mov ds, es, ax
    code = b"\x66\xb8" + _u16(_TASK) + bytes.fromhex("0f00d8")
    code += b"\x66\xb8" + _u16(_USER_DATA) + bytes.fromhex("8ed8 8ec0")
    frame = (_USER_DATA, STACK - 0x1000, _IOPL_3, _USER_CODE)
    pushes = b"".join(b"\x68" + _u32(value) for value in frame)
    behind = here + len(code) + len(pushes) + 6
    return code + pushes + b"\x68" + _u32(behind) + b"\xcf"  # push; iret


def _elf(segment: bytes, entry: int) -> bytes:
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    file_header = identity + struct.pack(
        "<HHIIIIIHHHHHH",
        2,
        3,
        1,
        entry,
        _ELF_HEADER,
        0,
        0,
        _ELF_HEADER,
        _PROGRAM_HEADER,
        1,
        0,
        0,
        0,
    )
    size = len(segment)
    program_header = struct.pack("<8I", 1, _FILE_OFFSET, LOAD, LOAD, size, size, 7, 0x1000)
    return (file_header + program_header).ljust(_FILE_OFFSET, b"\0") + segment
