"""Far JMP, CALL and RET, call gates included (SDM, "JMP", "CALL", "RET").

Those named `_real` are for real-address and virtual-8086 mode. Each function returns
(NO_FAULT, 0, 0), all done; (TASK_GATE, 0, 0) where the selector is that of a task gate or TSS,
nothing done (`task_switch` has the checks); or (vector, error code, linear address of a page
fault), nothing changed but accessed and dirty flags.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.breakpoints import note_words
from trapgate.events.descriptors import (
    NO_FAULT,
    base_of,
    is_64_bit,
    is_code_for,
    limit_of,
    mark_accessed,
    privilege_of,
    put_null_stack,
    put_segment,
    read_descriptor,
    rights_of,
    target_is_legal,
    withdraw_data_segments,
)
from trapgate.events.frame import probe_frame, push_word, stack_has_room, stack_is_canonical
from trapgate.events.idt import TASK_GATE, stack_of_ring
from trapgate.events.stack import probe_words, stack_holds, word_at, words_are_canonical
from trapgate.instructions.interrupt_return import put_return_stack, return_segment, return_stack
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.walk import REFUSED_TS, read_system
from trapgate.sdm.cells import (
    GUEST_CS_BASE,
    GUEST_CS_LIMIT,
    GUEST_CS_SELECTOR,
    GUEST_IA32_EFER,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_BASE,
    GUEST_SS_LIMIT,
    GUEST_SS_SELECTOR,
    GUEST_TR_BASE,
    GUEST_TR_LIMIT,
    GUEST_TR_SELECTOR,
)
from trapgate.sdm.state import (
    AR_CONFORMING,
    AR_DB,
    AR_L,
    AR_P,
    AR_S,
    EFER_LMA,
)
from trapgate.sdm.vectors import GP, NP, PF, SS, TS

_CS, _SS = 1, 2
_CALL_GATE_16, _CALL_GATE_32, _TASK_GATE = 4, 12, 5
_UPPER_TYPE = 0x1F << 40
"""Of the upper half of a call gate of 16 bytes: must be 0."""


@core
def is_far_branch(opcode: int, form: int) -> bool:
    """Whether an opcode, FFH with the ModR/M byte `form`, is that of a far JMP or RET."""
    return opcode in (0xEA, 0xCA, 0xCB) or (opcode == 0xFF and form < 0xC0 and form & 0x38 == 0x28)


@core
def far_jump(v: Cells, mem: Memory, selector: int, offset: int) -> tuple[int, int, int]:
    """JMP to `selector`:`offset`."""
    fault, error, address, selector, code, target, _ = _target(v, mem, selector, offset, True)
    if fault != NO_FAULT:
        return fault, error, address
    if not target_is_legal(v, code, target):
        return GP, 0, 0
    put_segment(v, _CS, (selector & 0xFFFC) | privilege_level(v), code)
    v[GUEST_RIP] = target
    return NO_FAULT, 0, 0


@core
def far_call(
    v: Cells, r: Cells, mem: Memory, selector: int, offset: int, size: int, next_rip: int
) -> tuple[int, int, int]:
    """CALL of `selector`:`offset` with operands of `size` bytes; `next_rip` is pushed."""
    fault, error, address, selector, code, target, gate = _target(v, mem, selector, offset, False)
    if fault != NO_FAULT:
        return fault, error, address
    cpl = privilege_level(v)
    if gate:
        size = _word_of(v, gate)
        if not rights_of(code) & AR_CONFORMING and privilege_of(code) < cpl:
            return _call_inner_ring(v, r, mem, gate, selector, code, target, size, next_rip)
    sp = v[GUEST_RSP]
    base = 0
    mask = -1
    if in_64_bit_mode(v):
        if not stack_is_canonical(sp, 2 * size):
            return SS, 0, 0
    else:
        base = v[GUEST_SS_BASE]
        mask = 0xFFFF_FFFF if v[GUEST_SS_ACCESS_RIGHTS] & AR_DB else 0xFFFF
        sp &= mask
        if not stack_has_room(v[GUEST_SS_LIMIT], v[GUEST_SS_ACCESS_RIGHTS], sp, size, 2):
            return SS, 0, 0
    if not target_is_legal(v, code, target):
        return GP, 0, 0
    error, address = _push_return(v, r, mem, base, sp, mask, size, next_rip)
    if error >= 0:
        return PF, error, address
    put_segment(v, _CS, (selector & 0xFFFC) | cpl, code)
    v[GUEST_RIP] = target
    return NO_FAULT, 0, 0


@core
def far_call_real(
    v: Cells, r: Cells, mem: Memory, selector: int, offset: int, size: int, next_rip: int
) -> tuple[int, int, int]:
    """The same in real-address and virtual-8086 mode."""
    rights = v[GUEST_SS_ACCESS_RIGHTS]
    mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
    sp = v[GUEST_RSP] & mask
    base = v[GUEST_SS_BASE]
    if not stack_has_room(v[GUEST_SS_LIMIT], rights, sp, size, 2):
        return SS, 0, 0
    if offset > v[GUEST_CS_LIMIT]:
        return GP, 0, 0
    error, address = _push_return(v, r, mem, base, sp, mask, size, next_rip)
    if error >= 0:
        return PF, error, address
    return far_jump_real(v, selector, offset)


@core
def _push_return(
    v: Cells, r: Cells, mem: Memory, base: int, sp: int, mask: int, size: int, next_rip: int
) -> tuple[int, int]:
    """Push CS and `next_rip` at `sp`: (-1, 0), or a page fault's error code and address."""
    user = 1 if privilege_level(v) == 3 else 0
    physical, error, address = probe_frame(v, mem, base, sp, mask, size, 2, user)
    if error >= 0:
        return error, address
    if physical >= 0:
        physical += 2 * size
    push_word(v, mem, physical, base, sp, mask, size, user, 0, v[GUEST_CS_SELECTOR])
    push_word(v, mem, physical, base, sp, mask, size, user, 1, next_rip)
    note_words(v, r, base, sp - 2 * size, mask, size, 2, True)
    v[GUEST_RSP] = (v[GUEST_RSP] & ~mask) | ((sp - 2 * size) & mask)
    return -1, 0


@core
def far_jump_real(v: Cells, selector: int, offset: int) -> tuple[int, int, int]:
    """`far_jump` in real-address and virtual-8086 mode."""
    if offset > v[GUEST_CS_LIMIT]:
        return GP, 0, 0
    v[GUEST_CS_SELECTOR] = selector
    v[GUEST_CS_BASE] = selector << 4
    v[GUEST_RIP] = offset
    return NO_FAULT, 0, 0


@core
def far_return_real(v: Cells, mem: Memory, size: int, release: int) -> tuple[int, int, int]:
    """`far_return` in real-address and virtual-8086 mode."""
    rights = v[GUEST_SS_ACCESS_RIGHTS]
    mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
    sp = v[GUEST_RSP] & mask
    base = v[GUEST_SS_BASE]
    if not stack_holds(v[GUEST_SS_LIMIT], rights, sp, size, 2):
        return SS, 0, 0
    user = 1 if privilege_level(v) == 3 else 0
    physical, error, address = probe_words(v, mem, base, sp, mask, size, 2, user)
    if error >= 0:
        return PF, error, address
    target = word_at(v, mem, physical, base, sp, mask, size, user, 0)
    selector = word_at(v, mem, physical, base, sp, mask, size, user, 1) & 0xFFFF
    fault, error, address = far_jump_real(v, selector, target)
    if fault == NO_FAULT:
        v[GUEST_RSP] = (v[GUEST_RSP] & ~mask) | ((sp + 2 * size + release) & mask)
    return fault, error, address


@core
def far_return(v: Cells, mem: Memory, size: int, release: int) -> tuple[int, int, int]:
    """RET with operands of `size` bytes, that releases `release` bytes of parameters."""
    long = in_64_bit_mode(v)
    cpl = privilege_level(v)
    limit = v[GUEST_SS_LIMIT]
    rights = v[GUEST_SS_ACCESS_RIGHTS]
    sp = v[GUEST_RSP]
    base = 0
    mask = -1
    if long:
        if not words_are_canonical(sp, 2 * size):
            return SS, 0, 0
    else:
        base = v[GUEST_SS_BASE]
        mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
        sp &= mask
        if not stack_holds(limit, rights, sp, size, 2):
            return SS, 0, 0
    user = 1 if cpl == 3 else 0
    physical, error, address = probe_words(v, mem, base, sp, mask, size, 2, user)
    if error >= 0:
        return PF, error, address
    target = word_at(v, mem, physical, base, sp, mask, size, user, 0)
    selector = word_at(v, mem, physical, base, sp, mask, size, user, 1) & 0xFFFF
    fault, error, address, code = return_segment(v, mem, selector, cpl)
    if fault != NO_FAULT:
        return fault, error, address
    rpl = selector & 3
    if rpl == cpl:
        if not target_is_legal(v, code, target):
            return GP, 0, 0
        v[GUEST_RSP] = (v[GUEST_RSP] & ~mask) | ((sp + 2 * size + release) & mask)
    else:
        sp = (sp + 2 * size + release) & mask
        if (long and not words_are_canonical(sp, 2 * size)) or (
            not long and not stack_holds(limit, rights, sp, size, 2)
        ):
            return SS, 0, 0
        physical, error, address = probe_words(v, mem, base, sp, mask, size, 2, user)
        if error >= 0:
            return PF, error, address
        rsp = word_at(v, mem, physical, base, sp, mask, size, user, 0)
        stack_selector = word_at(v, mem, physical, base, sp, mask, size, user, 1) & 0xFFFF
        fault, error, address, stack = return_stack(v, mem, stack_selector, rpl, code)
        if fault != NO_FAULT:
            return fault, error, address
        if not target_is_legal(v, code, target):
            return GP, 0, 0
        to_64_bit = is_64_bit(v, code)
        put_return_stack(v, stack_selector, stack, rsp, rpl, to_64_bit)
        wrap = 0xFFFF if not to_64_bit and stack & 1 << 54 == 0 else 0xFFFF_FFFF
        rsp = v[GUEST_RSP]
        if to_64_bit:
            v[GUEST_RSP] = rsp + release
        else:
            v[GUEST_RSP] = (rsp & ~wrap) | ((rsp + release) & wrap)
    put_segment(v, _CS, selector, code)
    v[GUEST_RIP] = target
    if rpl != cpl:
        withdraw_data_segments(v, rpl)
    return NO_FAULT, 0, 0


@core
def _target(
    v: Cells, mem: Memory, selector: int, offset: int, jump: bool
) -> tuple[int, int, int, int, int, int, int]:
    """Where a far JMP or CALL leads.

    (NO_FAULT or fault, error code, address, code selector, its descriptor, offset, gate or 0).
    A call through a gate may lead to an inner ring, a `jump` may not.
    """
    if selector & 0xFFFC == 0:
        return GP, 0, 0, 0, 0, 0, 0
    named = selector & 0xFFFC
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear, 0, 0, 0, 0
    cpl = privilege_level(v)
    rights = rights_of(descriptor)
    dpl = privilege_of(descriptor)
    gate = 0
    if rights & AR_S == 0:
        kind = rights & 0xF
        long = v[GUEST_IA32_EFER] & EFER_LMA != 0
        if not long and (kind == _TASK_GATE or kind & ~10 == 1):
            return TASK_GATE, 0, 0, 0, 0, 0, 0
        if kind != _CALL_GATE_32 and (kind != _CALL_GATE_16 or long):
            return GP, named, 0, 0, 0, 0, 0
        if dpl < cpl or dpl < selector & 3:
            return GP, named, 0, 0, 0, 0, 0
        if rights & AR_P == 0:
            return NP, named, 0, 0, 0, 0, 0
        gate = descriptor
        offset = (gate & 0xFFFF) | (gate >> 32 & 0xFFFF_0000)
        if kind == _CALL_GATE_16:
            offset &= 0xFFFF
        if long:
            fault, error, linear, upper = read_descriptor(v, mem, selector + 8, GP, named)
            if fault != NO_FAULT:
                return fault, error, linear, 0, 0, 0, 0
            if upper & _UPPER_TYPE:
                return GP, named, 0, 0, 0, 0, 0
            offset |= upper << 32
        selector = (gate >> 16) & 0xFFFF
        if selector & 0xFFFC == 0:
            return GP, 0, 0, 0, 0, 0, 0
        named = selector & 0xFFFC
        fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
        if fault != NO_FAULT:
            return fault, error, linear, 0, 0, 0, 0
        rights = rights_of(descriptor)
        dpl = privilege_of(descriptor)
        if long and rights & (AR_L | AR_DB) != AR_L:
            return GP, named, 0, 0, 0, 0, 0
    if not is_code_for(v, descriptor):
        return GP, named, 0, 0, 0, 0, 0
    if rights & AR_CONFORMING or (gate and not jump):
        if dpl > cpl:
            return GP, named, 0, 0, 0, 0, 0
    elif dpl != cpl or (gate == 0 and selector & 3 > cpl):
        return GP, named, 0, 0, 0, 0, 0
    if rights & AR_P == 0:
        return NP, named, 0, 0, 0, 0, 0
    error = mark_accessed(v, mem, descriptor, linear)
    if error >= 0:
        return PF, error, linear + 5, 0, 0, 0, 0
    return NO_FAULT, 0, 0, selector, descriptor, offset, gate


@core
def _word_of(v: Cells, gate: int) -> int:
    """The size of what a call through a gate pushes, in bytes."""
    if v[GUEST_IA32_EFER] & EFER_LMA:
        return 8
    return 4 if rights_of(gate) & 0xF == _CALL_GATE_32 else 2


@core
def _call_inner_ring(
    v: Cells,
    r: Cells,
    mem: Memory,
    gate: int,
    selector: int,
    code: int,
    target: int,
    size: int,
    next_rip: int,
) -> tuple[int, int, int]:
    """A call through a gate to a more privileged ring: on its stack, with parameters copied."""
    cpl = privilege_level(v)
    ring = privilege_of(code)
    if size == 8:
        return _call_inner_ring_long(v, r, mem, selector, code, target, next_rip)
    fault, error, address, stack_selector, top, stack = stack_of_ring(v, mem, ring, 0)
    if fault != NO_FAULT:
        return fault, error, address
    base = base_of(stack)
    mask = 0xFFFF_FFFF if stack & 1 << 54 else 0xFFFF
    sp = top & mask
    copied = (gate >> 32) & 0x1F
    if not stack_has_room(limit_of(stack), rights_of(stack), sp, size, 4 + copied):
        return SS, stack_selector & 0xFFFC, 0
    if not target_is_legal(v, code, target):
        return GP, 0, 0
    old_base = v[GUEST_SS_BASE]
    old_mask = 0xFFFF_FFFF if v[GUEST_SS_ACCESS_RIGHTS] & AR_DB else 0xFFFF
    old_sp = v[GUEST_RSP] & old_mask
    old_user = 1 if cpl == 3 else 0
    source = 0
    if copied != 0:
        if not stack_holds(v[GUEST_SS_LIMIT], v[GUEST_SS_ACCESS_RIGHTS], old_sp, size, copied):
            return SS, 0, 0
        source, error, address = probe_words(
            v, mem, old_base, old_sp, old_mask, size, copied, old_user
        )
        if error >= 0:
            return PF, error, address
    physical, error, address = probe_frame(v, mem, base, sp, mask, size, 4 + copied, 0)
    if error >= 0:
        return PF, error, address
    if physical >= 0:
        physical += size * (4 + copied)
    push_word(v, mem, physical, base, sp, mask, size, 0, 0, v[GUEST_SS_SELECTOR])
    push_word(v, mem, physical, base, sp, mask, size, 0, 1, v[GUEST_RSP])
    for n in range(copied):
        word = word_at(v, mem, source, old_base, old_sp, old_mask, size, old_user, copied - 1 - n)
        push_word(v, mem, physical, base, sp, mask, size, 0, 2 + n, word)
    push_word(v, mem, physical, base, sp, mask, size, 0, 2 + copied, v[GUEST_CS_SELECTOR])
    push_word(v, mem, physical, base, sp, mask, size, 0, 3 + copied, next_rip)
    note_words(v, r, old_base, old_sp, old_mask, size, copied, False)
    note_words(v, r, base, sp - size * (4 + copied), mask, size, 4 + copied, True)
    put_segment(v, _SS, stack_selector, stack)
    v[GUEST_RSP] = (top & ~mask) | ((sp - size * (4 + copied)) & mask)
    put_segment(v, _CS, (selector & 0xFFFC) | ring, code)
    v[GUEST_RIP] = target
    return NO_FAULT, 0, 0


@core
def _call_inner_ring_long(
    v: Cells, r: Cells, mem: Memory, selector: int, code: int, target: int, next_rip: int
) -> tuple[int, int, int]:
    """The same in IA-32e mode: nothing is copied, and SS becomes null."""
    ring = privilege_of(code)
    offset = ring * 8 + 4
    task = v[GUEST_TR_SELECTOR] & 0xFFFC
    if offset + 7 > v[GUEST_TR_LIMIT]:
        return TS, task, 0
    top, error, address = read_system(v, mem, v[GUEST_TR_BASE] + offset, 8, REFUSED_TS | task)
    if error >= 0:
        return PF, error, address
    if not stack_is_canonical(top, 32):
        return SS, 0, 0
    if not target_is_legal(v, code, target):
        return GP, 0, 0
    physical, error, address = probe_frame(v, mem, 0, top, -1, 8, 4, 0)
    if error >= 0:
        return PF, error, address
    if physical >= 0:
        physical += 32
    push_word(v, mem, physical, 0, top, -1, 8, 0, 0, v[GUEST_SS_SELECTOR])
    push_word(v, mem, physical, 0, top, -1, 8, 0, 1, v[GUEST_RSP])
    push_word(v, mem, physical, 0, top, -1, 8, 0, 2, v[GUEST_CS_SELECTOR])
    push_word(v, mem, physical, 0, top, -1, 8, 0, 3, next_rip)
    note_words(v, r, 0, top - 32, -1, 8, 4, True)
    put_null_stack(v, ring, ring)
    v[GUEST_RSP] = top - 32
    put_segment(v, _CS, (selector & 0xFFFC) | ring, code)
    v[GUEST_RIP] = target
    return NO_FAULT, 0, 0
