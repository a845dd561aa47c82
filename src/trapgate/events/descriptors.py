"""Segment descriptors in the guest's GDT and LDT.

SDM, "Segment Descriptors". A descriptor is its eight bytes as one 64-bit integer;
bits 47:40 and 55:52 are, in the place of bits 7:0 and 15:12, the access rights of
the VMCS's guest-state area.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.paging.memory import store8
from trapgate.paging.walk import REFUSED_GP, WRITE, read_system, walk
from trapgate.sdm.cells import (
    GUEST_ES_ACCESS_RIGHTS,
    GUEST_ES_BASE,
    GUEST_ES_LIMIT,
    GUEST_ES_SELECTOR,
    GUEST_GDTR_BASE,
    GUEST_GDTR_LIMIT,
    GUEST_IA32_EFER,
    GUEST_LDTR_ACCESS_RIGHTS,
    GUEST_LDTR_BASE,
    GUEST_LDTR_LIMIT,
)
from trapgate.sdm.state import (
    AR_ACCESSED,
    AR_CODE,
    AR_CONFORMING,
    AR_DB,
    AR_DPL_SHIFT,
    AR_L,
    AR_S,
    AR_UNUSABLE,
    EFER_LMA,
)
from trapgate.sdm.vectors import PF

NO_FAULT = -1
"""Stands where a fault's vector would if nothing was in the way."""

_ES, _SS, _DS, _FS, _GS = 0, 2, 3, 4, 5


@core
@inlined
def read_descriptor(
    v: Cells, mem: Memory, selector: int, wrong: int, code: int
) -> tuple[int, int, int, int]:
    """Read a segment descriptor: (NO_FAULT, 0, its linear address, descriptor).

    Or (`wrong`, `code`, 0, 0), the exception of a selector beyond its table's limit or into no
    LDT, and its error code; or (#PF's vector, its error code, faulting linear address, 0), where
    the error code may stand for #GP with `code` (`walk.REFUSED`).
    """
    if selector & 4:
        if v[GUEST_LDTR_ACCESS_RIGHTS] & AR_UNUSABLE:
            return wrong, code, 0, 0
        base = v[GUEST_LDTR_BASE]
        limit = v[GUEST_LDTR_LIMIT]
    else:
        base = v[GUEST_GDTR_BASE]
        limit = v[GUEST_GDTR_LIMIT]
    if (selector | 7) > limit:
        return wrong, code, 0, 0
    linear = base + (selector & 0xFFF8)
    descriptor, error, address = read_system(v, mem, linear, 8, REFUSED_GP | code)
    if error >= 0:
        return PF, error, address, 0
    return NO_FAULT, 0, linear, descriptor


@core
def mark_accessed(v: Cells, mem: Memory, descriptor: int, linear: int) -> int:
    """Set a descriptor's accessed flag; returns -1 or a page-fault error code."""
    if descriptor & (1 << 40):
        return -1
    physical, error, _, _ = walk(v, 0, mem, linear + 5, WRITE, 0)
    if error < 0:
        store8(mem, physical, ((descriptor >> 40) & 0xFF) | 1)
    return error


@core
@inlined
def limit_of(descriptor: int) -> int:
    """The limit in a segment descriptor, in bytes: the highest valid offset (32 bits)."""
    limit = (descriptor & 0xFFFF) | ((descriptor >> 32) & 0xF_0000)
    if descriptor & (1 << 55):
        limit = (limit << 12) | 0xFFF
    return limit


@core
def base_of(descriptor: int) -> int:
    """The base in a segment descriptor (32 bits)."""
    return ((descriptor >> 16) & 0xFF_FFFF) | ((descriptor >> 32) & 0xFF00_0000)


@core
def rights_of(descriptor: int) -> int:
    """The access rights in a segment descriptor, as an access-rights field has them."""
    return (descriptor >> 40) & 0xF0FF


@core
def privilege_of(descriptor: int) -> int:
    """The DPL in a segment descriptor."""
    return (descriptor >> 45) & 3


@core
def put_segment(v: Cells, n: int, selector: int, descriptor: int) -> None:
    """Load segment register `n` (0 ES to 5 GS): its four fields in the guest-state area."""
    v[GUEST_ES_SELECTOR + n] = selector
    v[GUEST_ES_BASE + n] = base_of(descriptor)
    v[GUEST_ES_LIMIT + n] = limit_of(descriptor)
    v[GUEST_ES_ACCESS_RIGHTS + n] = rights_of(descriptor) | AR_ACCESSED


@core
def put_flat_segment(v: Cells, n: int, selector: int, rights: int) -> None:
    """Load segment register `n` with base 0 and a limit of 4 GB, as fast system calls do."""
    v[GUEST_ES_SELECTOR + n] = selector & 0xFFFF
    v[GUEST_ES_BASE + n] = 0
    v[GUEST_ES_LIMIT + n] = 0xFFFF_FFFF
    v[GUEST_ES_ACCESS_RIGHTS + n] = rights


@core
def put_null_stack(v: Cells, selector: int, privilege: int) -> None:
    """Load SS with a null selector, as 64-bit code of rings 0 to 2 may; its DPL is the CPL."""
    v[GUEST_ES_SELECTOR + _SS] = selector
    v[GUEST_ES_BASE + _SS] = 0
    v[GUEST_ES_LIMIT + _SS] = 0xFFFF_FFFF
    v[GUEST_ES_ACCESS_RIGHTS + _SS] = AR_UNUSABLE | (privilege << AR_DPL_SHIFT)


@core
def put_8086_segment(v: Cells, n: int, selector: int) -> None:
    """Load segment register `n` as in virtual-8086 mode."""
    v[GUEST_ES_SELECTOR + n] = selector
    v[GUEST_ES_BASE + n] = selector << 4
    v[GUEST_ES_LIMIT + n] = 0xFFFF
    v[GUEST_ES_ACCESS_RIGHTS + n] = 0xF3


@core
def withdraw_data_segments(v: Cells, privilege: int) -> None:
    """On a return to an outer ring: make null what its `privilege` may not have.

    SDM, "IRET", "RET". The base of a segment that becomes null stays as it is.
    """
    for n in (_ES, _DS, _FS, _GS):
        rights = v[GUEST_ES_ACCESS_RIGHTS + n]
        conforming = rights & (AR_CODE | AR_CONFORMING) == AR_CODE | AR_CONFORMING
        if not conforming and (rights >> AR_DPL_SHIFT) & 3 < privilege:
            v[GUEST_ES_SELECTOR + n] = 0
            v[GUEST_ES_ACCESS_RIGHTS + n] = rights | AR_UNUSABLE


@core
def is_code_for(v: Cells, descriptor: int) -> bool:
    """Whether the target of a far transfer is code, and legal in IA-32e mode if that is on."""
    rights = rights_of(descriptor)
    if rights & (AR_S | AR_CODE) != AR_S | AR_CODE:
        return False
    both = rights & (AR_L | AR_DB) == AR_L | AR_DB
    return not (both and v[GUEST_IA32_EFER] & EFER_LMA != 0)


@core
def is_64_bit(v: Cells, descriptor: int) -> bool:
    """Whether a code segment's code would run in 64-bit mode."""
    return bool(v[GUEST_IA32_EFER] & EFER_LMA != 0 and rights_of(descriptor) & AR_L != 0)


@core
def target_is_legal(v: Cells, descriptor: int, target: int) -> bool:
    """Whether an instruction pointer is within a code segment: its limit, or canonical."""
    if is_64_bit(v, descriptor):
        return -(1 << 47) <= target < 1 << 47
    return 0 <= target <= limit_of(descriptor)
