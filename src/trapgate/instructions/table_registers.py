"""Loads of GDTR, IDTR, LDTR and TR.

SDM, "LGDT/LIDT", "LLDT" and "LTR". Mode, privilege and VM exits are the caller's business.
A fault is (vector, error code, linear address of a page fault), none is (NO_FAULT, 0, 0).
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.descriptors import (
    base_of,
    limit_of,
    read_descriptor,
)
from trapgate.instructions.effects import address_is_canonical
from trapgate.operands.mode import in_64_bit_mode
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
    GUEST_IDTR_BASE,
    GUEST_IDTR_LIMIT,
)
from trapgate.sdm.state import AR_P, AR_UNUSABLE, EFER_LMA
from trapgate.sdm.vectors import GP, NP, PF

NO_FAULT = -1
_LDTR, _TR = 6, 7
"""Their numbers among the segment registers of the guest-state area."""
_LDT = 2
_BUSY = 2
_AVAILABLE_TSS_16, _AVAILABLE_TSS = 1, 9


@core
def load_descriptor_table(v: Cells, is_idt: bool, base: int, limit: int) -> bool:
    """Load GDTR, or IDTR; False if `base` is not canonical in 64-bit mode, which is #GP(0)."""
    if in_64_bit_mode(v) and not address_is_canonical(base):
        return False
    if is_idt:
        v[GUEST_IDTR_BASE] = base
        v[GUEST_IDTR_LIMIT] = limit
    else:
        v[GUEST_GDTR_BASE] = base
        v[GUEST_GDTR_LIMIT] = limit
    return True


@core
def load_system_segment(
    v: Cells, mem: Memory, selector: int, is_task: bool
) -> tuple[int, int, int]:
    """Load TR, or LDTR, with `selector` (16 bits); the fault."""
    which = _TR if is_task else _LDTR
    named = selector & 0xFFFC
    if named == 0:
        if is_task:
            return GP, 0, 0
        v[GUEST_ES_SELECTOR + which] = selector
        v[GUEST_ES_ACCESS_RIGHTS + which] = AR_UNUSABLE
        return NO_FAULT, 0, 0
    if selector & 4:
        return GP, named, 0
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear
    long = v[GUEST_IA32_EFER] & EFER_LMA != 0
    rights = (descriptor >> 40) & 0xF0FF
    kind = rights & 0x1F
    wanted = kind == _LDT
    if is_task:
        wanted = kind == _AVAILABLE_TSS or (kind == _AVAILABLE_TSS_16 and not long)
    if not wanted:
        return GP, named, 0
    if rights & AR_P == 0:
        return NP, named, 0
    base = base_of(descriptor)
    if long:
        # Sixteen bytes; the type of the upper eight has to be 0.
        if (selector | 7) + 8 > v[GUEST_GDTR_LIMIT]:
            return GP, named, 0
        upper, error, address = read_system(v, mem, linear + 8, 8, REFUSED_GP | named)
        if error >= 0:
            return PF, error, address
        base = base | (upper & 0xFFFF_FFFF) << 32
        if (upper >> 40) & 0x1F != 0 or not address_is_canonical(base):
            return GP, named, 0
    if is_task:
        rights = rights | _BUSY
        physical, error, _, _ = walk(v, 0, mem, linear + 5, WRITE, 0)
        if error >= 0:
            return PF, error, linear + 5
        store8(mem, physical, rights & 0xFF)
    v[GUEST_ES_SELECTOR + which] = selector
    v[GUEST_ES_BASE + which] = base
    v[GUEST_ES_LIMIT + which] = limit_of(descriptor)
    v[GUEST_ES_ACCESS_RIGHTS + which] = rights
    return NO_FAULT, 0, 0
