"""One delivery through the guest's IDT: gate, code segment, stack, frame, new state.

SDM, INT n/INTO/INT3/INT1 operation and "Exception- and Interrupt-Handling in 64-bit
Mode". `deliver` either changes the guest state completely or leaves it as it was and
says which fault was in the way; what that fault leads to is `delivery`'s business.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.events.descriptors import (
    NO_FAULT,
    base_of,
    limit_of,
    mark_accessed,
    read_descriptor,
)
from trapgate.events.frame import (
    probe_frame,
    push_word,
    stack_has_room,
    stack_is_canonical,
    store_frame,
)
from trapgate.events.ivt import deliver_real, deliver_redirected, is_redirected
from trapgate.paging.memory import load64, stores_plainly
from trapgate.paging.translations import kind_of, remembered
from trapgate.paging.walk import READ, REFUSED_GP, REFUSED_TS, read_system
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_CS_BASE,
    GUEST_CS_LIMIT,
    GUEST_CS_SELECTOR,
    GUEST_ES_ACCESS_RIGHTS,
    GUEST_ES_SELECTOR,
    GUEST_IA32_EFER,
    GUEST_IDTR_BASE,
    GUEST_IDTR_LIMIT,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_BASE,
    GUEST_SS_LIMIT,
    GUEST_SS_SELECTOR,
    GUEST_TR_ACCESS_RIGHTS,
    GUEST_TR_BASE,
    GUEST_TR_LIMIT,
    GUEST_TR_SELECTOR,
)
from trapgate.sdm.interruption import (
    TYPE_PRIVILEGED_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.state import (
    AR_CODE,
    AR_CONFORMING,
    AR_DB,
    AR_DPL_SHIFT,
    AR_L,
    AR_P,
    AR_S,
    AR_UNUSABLE,
    AR_WRITABLE,
    CR0_PE,
    EFER_LMA,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
)
from trapgate.sdm.vectors import GP, NP, PF, SS, TS

DELIVERED = NO_FAULT
"""First number that `deliver` returns when the handler has been entered."""
TASK_GATE = -2
"""... when the gate is a task gate whose checks all passed."""

_ES, _DS, _FS, _GS = 0, 3, 4, 5
_LOW_CLEARED = RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM


@core
def deliver(
    v: Cells, mem: Memory, vector: int, kind: int, error_code: int, length: int
) -> tuple[int, int, int]:
    """Deliver one event through the guest's IDT.

    `kind` is the interruption type, `error_code` -1 if none is to be pushed, `length`
    the instruction's in bytes (used by software events, whose return address lies
    after the instruction). Returns (DELIVERED, bytes of a word of the frame, number of
    its words); (TASK_GATE, TSS selector, 0) with nothing changed; or the fault that
    stopped it: (vector, error code, linear address of a page fault), nothing changed but
    accessed and dirty flags.
    """
    if v[GUEST_CR0] & CR0_PE == 0:
        return deliver_real(v, mem, vector, _return_address(v, kind, length))
    # EXT says that the event came from outside the program: INT n, INT3 and INTO did not.
    ext = 1
    if kind in (TYPE_SOFTWARE_INTERRUPT, TYPE_SOFTWARE_EXCEPTION):
        ext = 0
    redirected, fault, error, address = is_redirected(v, mem, vector, kind)
    if fault != NO_FAULT:
        return fault, error, address
    if redirected:
        return deliver_redirected(v, mem, vector, _return_address(v, kind, length))
    if v[GUEST_IA32_EFER] & EFER_LMA:
        return _deliver_long(v, mem, vector, kind, error_code, length, ext)
    return _deliver_protected(v, mem, vector, kind, error_code, length, ext)


@core
def _return_address(v: Cells, kind: int, length: int) -> int:
    rip: int = v[GUEST_RIP]
    if TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION:
        return rip + length
    return rip


@core
def _handler_segment(
    v: Cells, mem: Memory, selector: int, cpl: int, ext: int
) -> tuple[int, int, int, int]:
    """Check the code segment that a gate names: (fault or -1, error code, descriptor, CPL).

    A page fault's address is in the place of the descriptor.
    """
    if selector & 0xFFFC == 0:
        return GP, ext, 0, 0
    named = (selector & 0xFFFC) | ext
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear, 0
    rights = (descriptor >> 40) & 0xF0FF
    dpl = (rights >> AR_DPL_SHIFT) & 3
    if rights & AR_S == 0 or rights & AR_CODE == 0 or dpl > cpl:
        return GP, named, 0, 0
    if v[GUEST_IA32_EFER] & EFER_LMA and rights & (AR_L | AR_DB) != AR_L:
        return GP, named, 0, 0
    if rights & AR_P == 0:
        return NP, named, 0, 0
    new_cpl = cpl if rights & AR_CONFORMING else dpl
    if v[GUEST_RFLAGS] & RFLAGS_VM and new_cpl != 0:
        return GP, named, 0, 0
    error = mark_accessed(v, mem, descriptor, linear)
    if error >= 0:
        return PF, error, linear + 5, 0
    return -1, 0, descriptor, new_cpl


@core
def _enter_handler(
    v: Cells, selector: int, descriptor: int, cpl: int, offset: int, rsp: int, gate: int
) -> None:
    """The last step, which cannot fail: CS, RIP, RSP and RFLAGS of the handler."""
    v[GUEST_CS_SELECTOR] = (selector & 0xFFFC) | cpl
    v[GUEST_CS_BASE] = base_of(descriptor)
    v[GUEST_CS_LIMIT] = limit_of(descriptor)
    v[GUEST_CS_ACCESS_RIGHTS] = ((descriptor >> 40) & 0xF0FF) | 1
    v[GUEST_RIP] = offset
    v[GUEST_RSP] = rsp
    cleared = _LOW_CLEARED
    if gate & 1 == 0:
        cleared |= RFLAGS_IF
    v[GUEST_RFLAGS] = v[GUEST_RFLAGS] & ~cleared


@core
@inlined
def _check_gate(
    vector: int, kind: int, cpl: int, gate: int, long: bool, ext: int
) -> tuple[int, int]:
    """Type, privilege and presence of a gate: (fault or -1, error code)."""
    code = (vector << 3) | 2 | ext
    type_and_s = (gate >> 40) & 0x1F
    legal = 0xE <= type_and_s <= 0xF
    if not long and 5 <= type_and_s <= 7:
        legal = True
    if not legal:
        return GP, code
    # INT1 counts as a software event, but its gate's DPL is not looked at.
    software = (
        TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION
        and kind != TYPE_PRIVILEGED_SOFTWARE_EXCEPTION
    )
    if software and (gate >> 45) & 3 < cpl:
        return GP, code
    if gate & (1 << 47) == 0:
        return NP, code
    return -1, 0


@core
def _deliver_long(
    v: Cells, mem: Memory, vector: int, kind: int, error_code: int, length: int, ext: int
) -> tuple[int, int, int]:
    named = (vector << 3) | 2 | ext
    if (vector << 4) + 15 > v[GUEST_IDTR_LIMIT]:
        return GP, named, 0
    linear = v[GUEST_IDTR_BASE] + (vector << 4)
    physical = remembered(mem, linear, kind_of(0, READ, 0))
    if physical >= 0 and linear & 0xFFF <= 0xFF0:
        gate = load64(mem, physical)
        upper = load64(mem, physical + 8)
    else:
        gate, error, address = read_system(v, mem, linear, 8, REFUSED_GP | named)
        if error >= 0:
            return PF, error, address
        upper, error, address = read_system(v, mem, linear + 8, 8, REFUSED_GP | named)
        if error >= 0:
            return PF, error, address

    cpl = (v[GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3
    fault, error = _check_gate(vector, kind, cpl, gate, True, ext)
    if fault >= 0:
        return fault, error, 0
    selector = (gate >> 16) & 0xFFFF
    fault, error, descriptor, new_cpl = _handler_segment(v, mem, selector, cpl, ext)
    if fault >= 0:
        return fault, error, descriptor

    old_rsp = v[GUEST_RSP]
    top = old_rsp
    ist = (gate >> 32) & 7
    if ist != 0 or new_cpl != cpl:
        offset = ist * 8 + 28 if ist != 0 else new_cpl * 8 + 4
        task = (v[GUEST_TR_SELECTOR] & 0xFFFC) | ext
        if offset + 7 > v[GUEST_TR_LIMIT]:
            return TS, task, 0
        top, error, address = read_system(v, mem, v[GUEST_TR_BASE] + offset, 8, REFUSED_TS | task)
        if error >= 0:
            return PF, error, address
    count = 6 if error_code >= 0 else 5
    top &= ~0xF
    if not stack_is_canonical(top, count * 8):
        return SS, ext, 0
    high = ((upper & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000
    rip = (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF_0000) | (high << 32)
    if not -(1 << 47) <= rip < 1 << 47:
        return GP, ext, 0
    user = 1 if new_cpl == 3 else 0
    physical, error, address = probe_frame(v, mem, 0, top, -1, 8, count, user)
    if error >= 0:
        return PF, error, address

    ss = v[GUEST_SS_SELECTOR]
    cs = v[GUEST_CS_SELECTOR]
    rflags = v[GUEST_RFLAGS]
    back = _return_address(v, kind, length)
    if stores_plainly(mem, physical, 8, count):
        store_frame(mem, physical, 8, True, ss, old_rsp, rflags, cs, back, error_code)
    else:
        if physical >= 0:
            physical += count * 8
        push_word(v, mem, physical, 0, top, -1, 8, user, 0, ss)
        push_word(v, mem, physical, 0, top, -1, 8, user, 1, old_rsp)
        push_word(v, mem, physical, 0, top, -1, 8, user, 2, rflags)
        push_word(v, mem, physical, 0, top, -1, 8, user, 3, cs)
        push_word(v, mem, physical, 0, top, -1, 8, user, 4, back)
        if error_code >= 0:
            push_word(v, mem, physical, 0, top, -1, 8, user, 5, error_code)
    if new_cpl != cpl:
        # A null selector that is legal on 64-bit rings below 3; its DPL is the CPL.
        v[GUEST_SS_SELECTOR] = new_cpl
        v[GUEST_SS_BASE] = 0
        v[GUEST_SS_LIMIT] = 0xFFFF_FFFF
        v[GUEST_SS_ACCESS_RIGHTS] = AR_UNUSABLE | (new_cpl << AR_DPL_SHIFT)
    _enter_handler(v, selector, descriptor, new_cpl, rip, top - count * 8, gate >> 40)
    return DELIVERED, 8, count


@core
def _deliver_protected(
    v: Cells, mem: Memory, vector: int, kind: int, error_code: int, length: int, ext: int
) -> tuple[int, int, int]:
    if (vector << 3) + 7 > v[GUEST_IDTR_LIMIT]:
        return GP, (vector << 3) | 2 | ext, 0
    gate, error, address = read_system(v, mem, v[GUEST_IDTR_BASE] + (vector << 3), 8, REFUSED_GP)
    if error >= 0:
        return PF, error, address
    cpl = (v[GUEST_SS_ACCESS_RIGHTS] >> AR_DPL_SHIFT) & 3
    fault, error = _check_gate(vector, kind, cpl, gate, False, ext)
    if fault >= 0:
        return fault, error, 0
    selector = (gate >> 16) & 0xFFFF
    if (gate >> 40) & 0xF == 5:
        return check_tss(v, mem, selector, ext, 0, GP)
    fault, error, descriptor, new_cpl = _handler_segment(v, mem, selector, cpl, ext)
    if fault >= 0:
        return fault, error, descriptor

    rflags = v[GUEST_RFLAGS]
    ss_selector = v[GUEST_SS_SELECTOR]
    ss_rights = v[GUEST_SS_ACCESS_RIGHTS]
    ss_base = v[GUEST_SS_BASE]
    ss_limit = v[GUEST_SS_LIMIT]
    top = v[GUEST_RSP] & 0xFFFF_FFFF
    stack_error = ext
    size = 4 if gate & (1 << 43) else 2
    count = 4 if error_code >= 0 else 3
    switched = new_cpl != cpl
    if switched:
        count += 2
        fault, error, address, ss_selector, top, ss = stack_of_ring(v, mem, new_cpl, ext)
        if fault >= 0:
            return fault, error, address
        ss_rights = ((ss >> 40) & 0xF0FF) | 1
        ss_base = base_of(ss)
        ss_limit = limit_of(ss)
        stack_error = (ss_selector & 0xFFFC) | ext
        if rflags & RFLAGS_VM:
            count += 4
    mask = 0xFFFF_FFFF if ss_rights & AR_DB else 0xFFFF
    sp = top & mask
    if not stack_has_room(ss_limit, ss_rights, sp, size, count):
        return SS, stack_error, 0
    offset = gate & 0xFFFF
    if size == 4:
        offset |= (gate >> 32) & 0xFFFF_0000
    if offset > limit_of(descriptor):
        return GP, ext, 0
    user = 1 if new_cpl == 3 else 0
    physical, error, address = probe_frame(v, mem, ss_base, sp, mask, size, count, user)
    if error >= 0:
        return PF, error, address

    old_ss = v[GUEST_SS_SELECTOR]
    old_esp = v[GUEST_RSP]
    old_cs = v[GUEST_CS_SELECTOR]
    back = _return_address(v, kind, length)
    if rflags & RFLAGS_VM == 0 and stores_plainly(mem, physical, size, count):
        store_frame(
            mem, physical, size, switched, old_ss, old_esp, rflags, old_cs, back, error_code
        )
    else:
        if physical >= 0:
            physical += count * size
        n = 0
        if switched:
            if rflags & RFLAGS_VM:
                gs = v[GUEST_ES_SELECTOR + _GS]
                fs = v[GUEST_ES_SELECTOR + _FS]
                ds = v[GUEST_ES_SELECTOR + _DS]
                es = v[GUEST_ES_SELECTOR + _ES]
                push_word(v, mem, physical, ss_base, sp, mask, size, user, 0, gs)
                push_word(v, mem, physical, ss_base, sp, mask, size, user, 1, fs)
                push_word(v, mem, physical, ss_base, sp, mask, size, user, 2, ds)
                push_word(v, mem, physical, ss_base, sp, mask, size, user, 3, es)
                _null_data_segment(v, _ES)
                _null_data_segment(v, _DS)
                _null_data_segment(v, _FS)
                _null_data_segment(v, _GS)
                n = 4
            push_word(v, mem, physical, ss_base, sp, mask, size, user, n, old_ss)
            push_word(v, mem, physical, ss_base, sp, mask, size, user, n + 1, old_esp)
            n += 2
        push_word(v, mem, physical, ss_base, sp, mask, size, user, n, rflags)
        push_word(v, mem, physical, ss_base, sp, mask, size, user, n + 1, old_cs)
        push_word(v, mem, physical, ss_base, sp, mask, size, user, n + 2, back)
        if error_code >= 0:
            push_word(v, mem, physical, ss_base, sp, mask, size, user, n + 3, error_code)
    if switched:
        v[GUEST_SS_SELECTOR] = ss_selector
        v[GUEST_SS_BASE] = ss_base
        v[GUEST_SS_LIMIT] = ss_limit
        v[GUEST_SS_ACCESS_RIGHTS] = ss_rights
    esp = (top & ~mask) | ((sp - count * size) & mask)
    _enter_handler(v, selector, descriptor, new_cpl, offset, esp, gate >> 40)
    return DELIVERED, size, count


@core
def stack_of_ring(
    v: Cells, mem: Memory, ring: int, ext: int
) -> tuple[int, int, int, int, int, int]:
    """The TSS's stack for `ring`: (fault or -1, error code, address, SS, ESP, descriptor)."""
    offset = ring * 8 + 4
    wide = v[GUEST_TR_ACCESS_RIGHTS] & 8 != 0
    width = 4
    if not wide:
        offset = ring * 4 + 2
        width = 2
    if offset + width + 1 > v[GUEST_TR_LIMIT]:
        return TS, (v[GUEST_TR_SELECTOR] & 0xFFFC) | ext, 0, 0, 0, 0
    linear = v[GUEST_TR_BASE] + offset
    # The selector is read first: it is its address that a page fault reports.
    selector, error, address = read_system(v, mem, linear + width, 2, REFUSED_GP)
    if error >= 0:
        return PF, error, address, 0, 0, 0
    esp, error, address = read_system(v, mem, linear, width, REFUSED_GP)
    if error >= 0:
        return PF, error, address, 0, 0, 0
    if selector & 0xFFFC == 0:
        return TS, ext, 0, 0, 0, 0
    named = (selector & 0xFFFC) | ext
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, TS, named)
    if fault != NO_FAULT:
        return fault, error, linear, 0, 0, 0
    rights = (descriptor >> 40) & 0xFF
    writable_data = rights & (AR_S | AR_CODE | AR_WRITABLE) == AR_S | AR_WRITABLE
    if selector & 3 != ring or (rights >> AR_DPL_SHIFT) & 3 != ring or not writable_data:
        return TS, named, 0, 0, 0, 0
    if rights & AR_P == 0:
        return SS, named, 0, 0, 0, 0
    error = mark_accessed(v, mem, descriptor, linear)
    if error >= 0:
        return PF, error, linear + 5, 0, 0, 0
    return -1, 0, 0, selector, esp, descriptor


@core
def _null_data_segment(v: Cells, segment: int) -> None:
    v[GUEST_ES_SELECTOR + segment] = 0
    v[GUEST_ES_ACCESS_RIGHTS + segment] = AR_UNUSABLE


@core
def check_tss(
    v: Cells, mem: Memory, selector: int, ext: int, busy: int, wrong: int
) -> tuple[int, int, int]:
    """The checks of a new task's TSS before a switch to it (SDM, "Treatment of Task Switches").

    `busy` is 2 if the TSS has to be busy, as on a return, else 0; `wrong` is the
    exception of a selector or descriptor that names no such TSS. Returns as `deliver`.
    """
    named = (selector & 0xFFFC) | ext
    if selector & 4:
        return wrong, named, 0
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, wrong, named)
    if fault != NO_FAULT:
        return fault, error, linear
    kind = (descriptor >> 40) & 0x1F
    if kind & ~8 != 1 | busy:
        return wrong, named, 0
    if descriptor & (1 << 47) == 0:
        return NP, named, 0
    if limit_of(descriptor) < (0x67 if kind & 8 else 0x2B):
        return TS, named, 0
    return TASK_GATE, selector, 0
