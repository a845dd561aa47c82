"""A multiboot guest that raises every page-fault error code reachable in 32-bit PAE mode.

Rings 0 and 3 read, write and fetch; pages are absent, read-only, the other ring's,
not executable, or have a reserved bit set; SMEP, SMAP, NX and CR0.WP are on. Each access
is followed by the next, whose address the page-fault handler finds in EBX.
"""

import struct

from trapgate.sdm.pagefault import PFEC_ID, PFEC_P, PFEC_RSVD, PFEC_U, PFEC_W

LOAD = 0x100000
_USER_CODE_PAGE = LOAD + 0x2000
_TABLES = LOAD + 0x3000
_IDT_AT, _TSS_AT = 0x80, 0x180
_PDPT = LOAD + 0x4000
_DIRECTORY, _PAGE_TABLE = LOAD + 0x5000, LOAD + 0x6000
_STACK, _USER_STACK = 0x17F000, 0x17E000

ABSENT, SUPERVISOR, USER, SUPERVISOR_NX, USER_NX, RESERVED = (
    0x180000 + 0x1000 * n for n in range(6)
)

P, W, U, RSVD, ID = PFEC_P, PFEC_W, PFEC_U, PFEC_RSVD, PFEC_ID

CASES = {
    0: ("read", ABSENT),
    W: ("write", ABSENT),
    ID: ("fetch", ABSENT),
    U: ("read", ABSENT),
    U | W: ("write", ABSENT),
    U | ID: ("fetch", ABSENT),
    P: ("read", USER),
    P | W: ("write", USER),
    P | ID: ("fetch", SUPERVISOR_NX),
    P | U: ("read", SUPERVISOR),
    P | U | W: ("write", SUPERVISOR),
    P | U | ID: ("fetch", USER_NX),
    P | RSVD: ("read", RESERVED),
    P | RSVD | W: ("write", RESERVED),
    P | RSVD | ID: ("fetch", RESERVED),
    P | RSVD | U: ("read", RESERVED),
    P | RSVD | U | W: ("write", RESERVED),
    P | RSVD | U | ID: ("fetch", RESERVED),
}
"""By error code: what is done to which page, in the ring that the code's U says."""


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _access(kind: str, page: int) -> bytes:
    if kind == "fetch":
        return b"\xb8" + _u32(page) + b"\xff\xe0"  # mov eax, page; jmp eax
    return (b"\xa0" if kind == "read" else b"\xa2") + _u32(page)  # mov al, [page] or back


def _accesses(here: int) -> tuple[bytes, bytes]:
    """Code for all cases at `here`, and the user's part of it."""
    code = user = b""
    for error_code, (kind, page) in CASES.items():
        access = _access(kind, page)
        if error_code & U:
            frame = (0x23, _USER_STACK, 2, 0x1B, _USER_CODE_PAGE + len(user))
            user += access
            access = b"".join(b"\x68" + _u32(word) for word in frame) + b"\xcf"  # push ...; iret
        code += b"\xbb" + _u32(here + len(code) + 5 + len(access)) + access  # mov ebx, next
    return code, user


def _page_entries() -> list[int]:
    entries = [page << 12 | 3 for page in range(512)]
    special = {
        _USER_CODE_PAGE: 7,
        _USER_STACK - 0x1000: 7,
        ABSENT: None,
        SUPERVISOR: 3,
        USER: 7,
        SUPERVISOR_NX: 3 | 1 << 63,
        USER_NX: 7 | 1 << 63,
        RESERVED: 7 | 1 << 45,
    }
    for page, rights in special.items():
        entries[page >> 12] = 0 if rights is None else page | rights
    return entries


def image() -> bytes:
    """The guest, as an ELF file."""
    handler = b"\xbc" + _u32(_STACK) + b"\xff\xe3"  # mov esp, STACK; jmp ebx
    handler_at = LOAD + 12
    entry = handler_at + len(handler)
    start = b"\xfa\xbc" + _u32(_STACK)  # cli; mov esp, STACK
    start += b"\x0f\x01\x15" + _u32(_TABLES) + b"\x0f\x01\x1d" + _u32(_TABLES + 8)  # lgdt, lidt
    start += b"\xea" + _u32(entry + len(start) + 7) + b"\x08\x00"  # jmp far
    start += bytes.fromhex("66b81000 8ed0 66b82300 8ed8 8ec0")  # SS ring 0's, DS and ES ring 3's
    start += bytes.fromhex("66b82800 0f00d8")  # ltr
    start += bytes.fromhex("b9800000c0 0f32 0d00080000 0f30")  # EFER.NXE
    start += b"\xb8" + _u32(1 << 5 | 1 << 20 | 1 << 21) + bytes.fromhex("0f22e0")  # PAE SMEP SMAP
    start += b"\xb8" + _u32(_PDPT) + bytes.fromhex("0f22d8")  # CR3
    start += bytes.fromhex("0f20c0 0d") + _u32(0x80010001) + bytes.fromhex("0f22c0")  # PG WP PE
    cases, user = _accesses(entry + len(start))
    stop = bytes.fromhex("31c0 e6f4 fa f4 ebfc")  # xor eax, eax; out F4H, al; cli; hlt; again
    magic = 0x1BADB002
    code = struct.pack("<III", magic, 0, -magic & 0xFFFFFFFF) + handler + start + cases + stop
    assert len(code) <= 0x2000
    pages = struct.pack("<512Q", *_page_entries())
    segment = (
        code.ljust(0x2000, b"\0")
        + user.ljust(0x1000, b"\0")
        + _tables(handler_at).ljust(0x1000, b"\0")
        + struct.pack("<Q", _DIRECTORY | 1).ljust(0x1000, b"\0")
        + struct.pack("<Q", _PAGE_TABLE | 7).ljust(0x1000, b"\0")
        + pages
    )
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head = identity + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = len(segment)
    head += struct.pack("<8I", 1, 0x1000, LOAD, LOAD, size, size, 7, 0x1000)
    return head.ljust(0x1000, b"\0") + segment


def _tables(handler: int) -> bytes:
    tss = _TABLES + _TSS_AT
    flat = (0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF)
    task = 0x67 | (tss & 0xFFFFFF) << 16 | 0x89 << 40 | tss >> 24 << 56
    gdt = struct.pack("<6Q", *flat, task)
    gate = struct.pack("<HHHH", handler & 0xFFFF, 8, 0x8E00, handler >> 16)
    pointers = struct.pack("<HI2x", len(gdt) - 1, _TABLES + 16)
    pointers += struct.pack("<HI2x", 8 * 15 - 1, _TABLES + _IDT_AT)
    tables = (pointers + gdt).ljust(_IDT_AT, b"\0") + bytes(8 * 14) + gate
    stacks = struct.pack("<III", 0, _STACK, 0x10).ljust(0x68, b"\0")
    return tables.ljust(_TSS_AT, b"\0") + stacks
