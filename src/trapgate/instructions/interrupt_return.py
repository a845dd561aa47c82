"""IRET: return from an event's handler (SDM, "IRET/IRETD/IRETQ").

`interrupt_return` either changes the guest state completely or leaves it as it was and says
which fault was in the way, as `idt.deliver` does for the way there.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.descriptors import (
    NO_FAULT,
    is_64_bit,
    is_code_for,
    mark_accessed,
    privilege_of,
    put_8086_segment,
    put_null_stack,
    put_segment,
    read_descriptor,
    rights_of,
    target_is_legal,
    withdraw_data_segments,
)
from trapgate.events.idt import TASK_GATE
from trapgate.events.stack import (
    probe_words,
    stack_holds,
    word_at,
    words_are_canonical,
    words_share_page,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CR4,
    GUEST_CS_BASE,
    GUEST_CS_LIMIT,
    GUEST_CS_SELECTOR,
    GUEST_IA32_EFER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_BASE,
    GUEST_SS_LIMIT,
)
from trapgate.sdm.state import (
    AR_CODE,
    AR_CONFORMING,
    AR_DB,
    AR_P,
    AR_S,
    AR_WRITABLE,
    CR0_PE,
    CR4_VME,
    EFER_LMA,
    RFLAGS_AC,
    RFLAGS_DF,
    RFLAGS_FIXED_1,
    RFLAGS_ID,
    RFLAGS_IF,
    RFLAGS_IOPL,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_STATUS,
    RFLAGS_TF,
    RFLAGS_VIF,
    RFLAGS_VIP,
    RFLAGS_VM,
)
from trapgate.sdm.vectors import GP, NP, PF, SS

_CS, _SS = 1, 2
_ALWAYS = RFLAGS_STATUS | RFLAGS_DF | RFLAGS_TF | RFLAGS_NT
"""What every IRET in protected mode loads."""
_ALWAYS_WIDE = RFLAGS_RF | RFLAGS_AC | RFLAGS_ID
"""What an IRET of more than 16 bits loads, too."""
_REAL = _ALWAYS | RFLAGS_IF | RFLAGS_IOPL
_VIRTUAL_8086_WORDS = 9


@core
def interrupt_return(v: Cells, mem: Memory, size: int) -> tuple[int, int, int]:
    """IRET with operands of `size` bytes (2, 4 or 8).

    Returns (NO_FAULT, 0, 0), all done; (TASK_GATE, 0, 0) where it is a return to another task,
    nothing done; or (vector, error code, linear address of a page fault), nothing changed.
    """
    rflags = v[GUEST_RFLAGS]
    protected = v[GUEST_CR0] & CR0_PE != 0
    virtual = protected and rflags & RFLAGS_VM != 0
    if virtual and rflags & RFLAGS_IOPL != RFLAGS_IOPL:
        if size != 2 or v[GUEST_CR4] & CR4_VME == 0:
            return GP, 0, 0
    elif protected and not virtual and rflags & RFLAGS_NT:
        if v[GUEST_IA32_EFER] & EFER_LMA:
            return GP, 0, 0
        return TASK_GATE, 0, 0
    long = in_64_bit_mode(v)
    base = 0
    mask = -1
    sp = v[GUEST_RSP]
    limit = v[GUEST_SS_LIMIT]
    rights = v[GUEST_SS_ACCESS_RIGHTS]
    cpl = privilege_level(v)
    # In 64-bit mode RSP and SS are always popped.
    count = 5 if long else 3
    if long:
        if not words_are_canonical(sp, size * count):
            return SS, 0, 0
    else:
        base = v[GUEST_SS_BASE]
        mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
        sp &= mask
        if not stack_holds(limit, rights, sp, size, count):
            return SS, 0, 0
    user = 1 if cpl == 3 else 0
    physical, error, address = probe_words(v, mem, base, sp, mask, size, count, user)
    if error >= 0:
        return PF, error, address
    target = word_at(v, mem, physical, base, sp, mask, size, user, 0)
    selector = word_at(v, mem, physical, base, sp, mask, size, user, 1) & 0xFFFF
    flags = word_at(v, mem, physical, base, sp, mask, size, user, 2)
    popped = (v[GUEST_RSP] & ~mask) | ((sp + size * 3) & mask)
    if not protected or virtual:
        return _within_8086_mode(v, target, selector, flags, size, popped)
    if flags & RFLAGS_VM and cpl == 0 and v[GUEST_IA32_EFER] & EFER_LMA == 0 and size == 4:
        return _to_virtual_8086_mode(v, mem, base, sp, mask, target, selector, flags)
    fault, error, address, code = return_segment(v, mem, selector, cpl)
    if fault != NO_FAULT:
        return fault, error, address
    rpl = selector & 3
    if rpl != cpl and not long:
        count = 5
        if not stack_holds(limit, rights, sp, size, count):
            return SS, 0, 0
        if not words_share_page(physical, sp, mask, size * count):
            physical, error, address = probe_words(v, mem, base, sp, mask, size, count, user)
            if error >= 0:
                return PF, error, address
    if count == 3:
        if not target_is_legal(v, code, target):
            return GP, 0, 0
        v[GUEST_RSP] = popped
    else:
        rsp = word_at(v, mem, physical, base, sp, mask, size, user, 3)
        stack_selector = word_at(v, mem, physical, base, sp, mask, size, user, 4) & 0xFFFF
        fault, error, address, stack = return_stack(v, mem, stack_selector, rpl, code)
        if fault != NO_FAULT:
            return fault, error, address
        if not target_is_legal(v, code, target):
            return GP, 0, 0
        put_return_stack(v, stack_selector, stack, rsp, rpl, is_64_bit(v, code))
    put_segment(v, _CS, selector, code)
    v[GUEST_RIP] = target
    loaded = _ALWAYS
    if size != 2:
        loaded |= _ALWAYS_WIDE
    if cpl <= (rflags & RFLAGS_IOPL) >> 12:
        loaded |= RFLAGS_IF
    if cpl == 0:
        loaded |= RFLAGS_IOPL
        if size != 2:
            loaded |= RFLAGS_VIF | RFLAGS_VIP
    v[GUEST_RFLAGS] = (rflags & ~loaded) | (flags & loaded) | RFLAGS_FIXED_1
    if rpl != cpl:
        withdraw_data_segments(v, rpl)
    return NO_FAULT, 0, 0


@core
def return_segment(v: Cells, mem: Memory, selector: int, cpl: int) -> tuple[int, int, int, int]:
    """The code segment to return to: (NO_FAULT or fault, error code, address, descriptor)."""
    if selector & 0xFFFC == 0:
        return GP, 0, 0, 0
    named = selector & 0xFFFC
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear, 0
    rpl = selector & 3
    dpl = privilege_of(descriptor)
    if not is_code_for(v, descriptor) or rpl < cpl:
        return GP, named, 0, 0
    rights = rights_of(descriptor)
    if (dpl > rpl) if rights & AR_CONFORMING else (dpl != rpl):
        return GP, named, 0, 0
    if rights & AR_P == 0:
        return NP, named, 0, 0
    error = mark_accessed(v, mem, descriptor, linear)
    if error >= 0:
        return PF, error, linear + 5, 0
    return NO_FAULT, 0, 0, descriptor


@core
def return_stack(
    v: Cells, mem: Memory, selector: int, rpl: int, code: int
) -> tuple[int, int, int, int]:
    """The stack segment of an outer ring `rpl`: as `return_segment`, or a null one as 0.

    `code` is the descriptor of the code segment that goes with it.
    """
    if selector & 0xFFFC == 0:
        if is_64_bit(v, code) and rpl != 3:
            return NO_FAULT, 0, 0, 0
        return GP, 0, 0, 0
    named = selector & 0xFFFC
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear, 0
    rights = rights_of(descriptor)
    writable_data = rights & (AR_S | AR_CODE | AR_WRITABLE) == AR_S | AR_WRITABLE
    if selector & 3 != rpl or not writable_data or privilege_of(descriptor) != rpl:
        return GP, named, 0, 0
    if rights & AR_P == 0:
        return SS, named, 0, 0
    error = mark_accessed(v, mem, descriptor, linear)
    if error >= 0:
        return PF, error, linear + 5, 0
    return NO_FAULT, 0, 0, descriptor


@core
def put_return_stack(
    v: Cells, selector: int, descriptor: int, rsp: int, rpl: int, long: bool
) -> None:
    """Load SS and RSP of the ring `rpl`; `long` says whether its code is 64-bit code."""
    if selector & 0xFFFC == 0:
        put_null_stack(v, selector, rpl)
    else:
        put_segment(v, _SS, selector, descriptor)
    if not long and descriptor & 1 << 54 == 0:
        rsp = (v[GUEST_RSP] & 0xFFFF_0000) | (rsp & 0xFFFF)
    v[GUEST_RSP] = rsp


@core
def _within_8086_mode(
    v: Cells, target: int, selector: int, flags: int, size: int, popped: int
) -> tuple[int, int, int]:
    """The end of IRET in real-address mode, and in virtual-8086 mode if it stays there."""
    rflags = v[GUEST_RFLAGS]
    loaded = _REAL
    virtual = v[GUEST_CR0] & CR0_PE != 0
    if size != 2:
        loaded |= _ALWAYS_WIDE
    if virtual:
        loaded &= ~RFLAGS_IOPL
    if virtual and rflags & RFLAGS_IOPL != RFLAGS_IOPL:
        # CR4.VME: VIF stands for IF.
        if flags & RFLAGS_TF or (flags & RFLAGS_IF and rflags & RFLAGS_VIP):
            return GP, 0, 0
        loaded = (loaded & ~RFLAGS_IF) | RFLAGS_VIF
        flags = (flags & ~RFLAGS_VIF) | (RFLAGS_VIF if flags & RFLAGS_IF else 0)
    if target > v[GUEST_CS_LIMIT]:
        return GP, 0, 0
    v[GUEST_RIP] = target
    v[GUEST_CS_SELECTOR] = selector
    v[GUEST_CS_BASE] = selector << 4
    v[GUEST_RSP] = popped
    v[GUEST_RFLAGS] = (rflags & ~loaded) | (flags & loaded) | RFLAGS_FIXED_1
    return NO_FAULT, 0, 0


@core
def _to_virtual_8086_mode(
    v: Cells,
    mem: Memory,
    base: int,
    sp: int,
    mask: int,
    target: int,
    selector: int,
    flags: int,
) -> tuple[int, int, int]:
    """The end of IRET from ring 0 to virtual-8086 mode."""
    count = _VIRTUAL_8086_WORDS
    if not stack_holds(v[GUEST_SS_LIMIT], v[GUEST_SS_ACCESS_RIGHTS], sp, 4, count):
        return SS, 0, 0
    physical, error, address = probe_words(v, mem, base, sp, mask, 4, count, 0)
    if error >= 0:
        return PF, error, address
    if target > 0xFFFF:
        return GP, 0, 0
    rsp = word_at(v, mem, physical, base, sp, mask, 4, 0, 3)
    # SS, then ES, DS, FS, GS.
    stack = word_at(v, mem, physical, base, sp, mask, 4, 0, 4)
    extra = word_at(v, mem, physical, base, sp, mask, 4, 0, 5)
    data = word_at(v, mem, physical, base, sp, mask, 4, 0, 6)
    fs = word_at(v, mem, physical, base, sp, mask, 4, 0, 7)
    gs = word_at(v, mem, physical, base, sp, mask, 4, 0, 8)
    put_8086_segment(v, 0, extra & 0xFFFF)
    put_8086_segment(v, _CS, selector)
    put_8086_segment(v, _SS, stack & 0xFFFF)
    put_8086_segment(v, 3, data & 0xFFFF)
    put_8086_segment(v, 4, fs & 0xFFFF)
    put_8086_segment(v, 5, gs & 0xFFFF)
    v[GUEST_RIP] = target
    v[GUEST_RSP] = rsp
    loaded = _ALWAYS | _ALWAYS_WIDE | RFLAGS_IF | RFLAGS_IOPL | RFLAGS_VIF | RFLAGS_VIP
    loaded |= RFLAGS_VM
    v[GUEST_RFLAGS] = (v[GUEST_RFLAGS] & ~loaded) | (flags & loaded) | RFLAGS_FIXED_1
    return NO_FAULT, 0, 0
