"""Processor states in which guests start, as guest-state fields of the VMCS.

Access rights are in the VMCS's layout (SDM, "Guest Register State"): the descriptor's
bytes 5 and 6, bit 16 for "unusable".
"""

from collections.abc import Iterator

_CODE_64 = 0xA09B
_CODE_32 = 0xC09B
_DATA_32 = 0xC093  # with the B bit: a 32-bit stack is pushed to 32 bits at a time
_CODE_16 = 0x009B
_DATA_16 = 0x0093
_UNUSABLE = 0x10000
_BUSY_TSS = 0x008B

_CODE_SELECTOR = 0x10
_DATA_SELECTOR = 0x18

_CR0_PE = 1 << 0
_CR0_ET = 1 << 4
_CR0_NE = 1 << 5
_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10

_PAGE_WRITABLE = 0x3
_PAGE_LARGE = 0x80
_MAPPED_GIGABYTES = 4

GDT_SIZE = 32
PAGE_TABLES_SIZE = (2 + _MAPPED_GIGABYTES) * 4096
"""Bytes of page tables that map the first 4 GB onto themselves with 2 MB pages."""

_DATA_SEGMENTS = ("ES", "SS", "DS", "FS", "GS")


def gdt(bits: int) -> bytes:
    """Two empty descriptors, flat code of `bits` (32, 64) at 10H and flat data at 18H."""
    code = 0x00AF9B000000FFFF if bits == 64 else 0x00CF9B000000FFFF
    data = 0x00CF93000000FFFF
    return b"".join(entry.to_bytes(8, "little") for entry in (0, 0, code, data))


def page_tables(base: int) -> bytes:
    """`PAGE_TABLES_SIZE` bytes for physical `base`: PML4, PDPT and a directory a gigabyte."""
    entries = [0] * (PAGE_TABLES_SIZE // 8)
    entries[0] = base + 0x1000 | _PAGE_WRITABLE
    for i in range(_MAPPED_GIGABYTES):
        entries[512 + i] = base + 0x2000 + i * 0x1000 | _PAGE_WRITABLE
    for i in range(_MAPPED_GIGABYTES * 512):
        entries[1024 + i] = i << 21 | _PAGE_WRITABLE | _PAGE_LARGE
    return b"".join(entry.to_bytes(8, "little") for entry in entries)


def real_mode(ip: int, sp: int) -> dict[str, int]:
    """Real mode at 0000:`ip` with the stack at 0000:`sp`."""
    fields = _common(ip, sp)
    fields["GUEST_CR0"] = _CR0_ET | _CR0_NE
    fields["GUEST_IDTR_LIMIT"] = 0x3FF
    fields.update(_segment("CS", 0, 0xFFFF, _CODE_16))
    for name in _DATA_SEGMENTS:
        fields.update(_segment(name, 0, 0xFFFF, _DATA_16))
    return fields


def protected_mode(eip: int, esp: int, gdt_base: int) -> dict[str, int]:
    """32-bit flat protected mode without paging, interrupts off."""
    fields = _common(eip, esp)
    fields["GUEST_CR0"] = _CR0_PE | _CR0_ET | _CR0_NE
    fields.update(_flat(_CODE_32, gdt_base))
    return fields


def long_mode(rip: int, rsp: int, gdt_base: int, tables: int) -> dict[str, int]:
    """64-bit mode on the page tables at physical `tables`, interrupts off."""
    fields = _common(rip, rsp)
    fields["GUEST_CR0"] = _CR0_PE | _CR0_ET | _CR0_NE | _CR0_PG
    fields["GUEST_CR3"] = tables
    fields["GUEST_CR4"] = _CR4_PAE
    fields["GUEST_IA32_EFER"] = _EFER_LME | _EFER_LMA
    fields.update(_flat(_CODE_64, gdt_base))
    return fields


def _common(ip: int, sp: int) -> dict[str, int]:
    fields = {
        "GUEST_RIP": ip,
        "GUEST_RSP": sp,
        "GUEST_RFLAGS": 0x2,
        "GUEST_CR0": 0,
        "GUEST_CR3": 0,
        "GUEST_CR4": 0,
        "GUEST_DR7": 0x400,
        "GUEST_IA32_EFER": 0,
        "GUEST_IA32_PAT": 0x0007040600070406,
        "GUEST_IA32_DEBUGCTL": 0,
        "GUEST_IA32_SYSENTER_CS": 0,
        "GUEST_IA32_SYSENTER_ESP": 0,
        "GUEST_IA32_SYSENTER_EIP": 0,
        "GUEST_GDTR_BASE": 0,
        "GUEST_GDTR_LIMIT": 0,
        "GUEST_IDTR_BASE": 0,
        "GUEST_IDTR_LIMIT": 0,
        "GUEST_ACTIVITY_STATE": 0,
        "GUEST_INTERRUPTIBILITY_STATE": 0,
        "GUEST_PENDING_DEBUG_EXCEPTIONS": 0,
        "VMCS_LINK_POINTER": (1 << 64) - 1,
    }
    fields.update(_segment("LDTR", 0, 0, _UNUSABLE))
    # VM entry wants a usable, busy task register even where there is no task.
    fields.update(_segment("TR", 0, 0x67, _BUSY_TSS))
    return fields


def _flat(code: int, gdt_base: int) -> Iterator[tuple[str, int]]:
    yield from _segment("CS", _CODE_SELECTOR, 0xFFFFFFFF, code)
    for name in _DATA_SEGMENTS:
        yield from _segment(name, _DATA_SELECTOR, 0xFFFFFFFF, _DATA_32)
    yield "GUEST_GDTR_BASE", gdt_base
    yield "GUEST_GDTR_LIMIT", GDT_SIZE - 1


def _segment(name: str, selector: int, limit: int, rights: int) -> Iterator[tuple[str, int]]:
    yield f"GUEST_{name}_SELECTOR", selector
    yield f"GUEST_{name}_BASE", 0
    yield f"GUEST_{name}_LIMIT", limit
    yield f"GUEST_{name}_ACCESS_RIGHTS", rights
