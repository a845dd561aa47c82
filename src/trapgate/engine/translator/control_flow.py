"""Far transfers, returns, fast system calls and segment loads, in place of the engine's helpers.

Compiled only; native path. Translated code calls these where it would call the helpers: the
state that the instruction looks at goes from the CPU into the VMCS in force, a core function does
the work, and what it changed goes back. What faults leaves the block as a fault of the MMU does.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, memory, peek32, peek64, poke32, poke64
from trapgate.engine import machine as mc
from trapgate.engine.guest.segments import look_at_segments
from trapgate.engine.guest.state import (
    load_code_and_stack,
    load_data_segments,
    load_flags,
    load_mode,
    load_segments,
    loads_segments_in_core,
    rflags_of,
    save_paging,
    save_segments,
    save_swapped_bases,
)
from trapgate.engine.library import layout as at
from trapgate.engine.memory.coherence import forget_stale_code
from trapgate.engine.memory.translations import use_translations, walk_always
from trapgate.events.descriptors import NO_FAULT
from trapgate.events.idt import TASK_GATE
from trapgate.instructions.descriptor_queries import (
    INVISIBLE,
    LAR,
    LSL,
    VERR,
    VERW,
    descriptor_query,
)
from trapgate.instructions.far_transfers import far_call, far_call_real, far_jump, far_return
from trapgate.instructions.fast_calls import syscall, sysenter, sysexit, sysret
from trapgate.instructions.intercepts import (
    GO_ON,
    RAISE_UD,
)
from trapgate.instructions.interrupt_return import interrupt_return
from trapgate.instructions.segment_loads import load_segment_register
from trapgate.operands.mode import privilege_level
from trapgate.paging.ept import EPT_VIOLATION
from trapgate.paging.walk import REFUSED, REFUSED_VECTOR
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg
from trapgate.sdm.state import RFLAGS_VM
from trapgate.sdm.vectors import GP, PF, UD

_ARITHMETIC = 0x8D5
"""OF, SF, ZF, AF, PF and CF."""
_ZF = 1 << 6
_OF = 1 << 11
_RETURN = 2
"""How far before a return address the call surely is."""


@jit
def machine_at(env: int) -> Cells:
    """The cells of the machine whose CPU state this is."""
    return cells(peek64(env + at.MACHINE), mc.CELLS)


@jit
def vmcs_in_force(m: Cells) -> Cells:
    """The VMCS in force."""
    return cells(m[mc.V], m[mc.V_CELLS])


@jit
def begin_transfer(m: Cells, env: int, v: Cells) -> None:
    """Save what the core functions of this module look at, the arithmetic flags left out."""
    save_paging(env, v)
    use_translations(m)
    save_segments(env, v)
    v[f.GUEST_RSP] = peek64(env + at.REGS + 8 * reg.RSP)
    v[f.GUEST_RFLAGS] = peek64(env + at.EFLAGS)


@jit
def begin_return(m: Cells, env: int, v: Cells) -> None:
    """`begin_transfer` for IRET, which has to be quick."""
    if not loads_segments_in_core(env):
        begin_transfer(m, env, v)
        return
    save_paging(env, v)
    use_translations(m)
    save_swapped_bases(env, v)
    v[f.GUEST_RSP] = peek64(env + at.REGS + 8 * reg.RSP)
    v[f.GUEST_RFLAGS] = peek64(env + at.EFLAGS)


@jit
def end_return(m: Cells, env: int, v: Cells) -> None:
    """`end_transfer` for IRET: on the way to an outer ring it may make data segments null."""
    hflags = peek32(env + at.HFLAGS)
    if hflags & at.HF_PE == 0 or v[f.GUEST_RFLAGS] & RFLAGS_VM:
        end_transfer(m, env, v)
        return
    walk_always(m)
    forget_stale_code(m)
    loaded = privilege_level(v) != hflags & 3 and load_data_segments(env, v)
    load_code_and_stack(m, env, v)
    if loaded:
        look_at_segments(m, env)


@jit
def end_transfer(m: Cells, env: int, v: Cells) -> None:
    """Load what they may have changed, but for RFLAGS; drop code where they stored."""
    walk_always(m)
    forget_stale_code(m)
    load_segments(env, v)
    poke64(env + at.REGS + 8 * reg.RSP, v[f.GUEST_RSP])
    poke64(env + at.EIP, v[f.GUEST_RIP])
    load_mode(m, env, v)


@jit
def raise_from_helper(
    m: Cells, env: int, fault: int, error_code: int, address: int, back: int
) -> None:
    """Leave the block with a fault of the instruction that `back`, a return address, lies in."""
    walk_always(m)
    forget_stale_code(m)
    if fault == TASK_GATE:
        poke32(env + at.ERROR_CODE, 0)
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_TASK_SWITCH)
        call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], back - _RETURN))
        return
    m[mc.FAULT_KIND] = 0
    if fault == PF and EPT_VIOLATION > error_code >= REFUSED:
        fault = (error_code >> REFUSED_VECTOR) & 0x1F
        error_code &= 0xFFFF
    elif fault == PF:
        # Where the two paths look for them.
        m[mc.FAULT_ADDRESS] = address
        m[mc.FAULT_CODE] = error_code
        poke64(m[mc.SCRATCH] + at.VMCB_EXIT_INFO_2, address)
    poke32(env + at.ERROR_CODE, error_code)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + fault)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], back - _RETURN))


@callback(VOID, *[INT64] * 3, RETURN_ADDRESS)
def on_iret(env: int, shift: int, next_rip: int, back: int) -> None:
    """helper_iret_protected: IRET with operands of 2 << `shift` bytes."""
    return_from_interrupt(env, shift, back)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_iret_real(env: int, shift: int, back: int) -> None:
    """helper_iret_real: IRET in real-address and virtual-8086 mode."""
    return_from_interrupt(env, shift, back)


@jit
def return_from_interrupt(env: int, shift: int, back: int) -> None:
    """IRET in any mode."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_return(m, env, v)
    fault, error, address = interrupt_return(
        v, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]), 2 << (shift & 3)
    )
    if fault != NO_FAULT:
        raise_from_helper(m, env, fault, error, address, back)
        return
    load_flags(m, env, v[f.GUEST_RFLAGS])
    end_return(m, env, v)


@callback(VOID, *[INT64] * 3, RETURN_ADDRESS)
def on_far_return(env: int, shift: int, release: int, back: int) -> None:
    """helper_lret_protected."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    fault, error, address = far_return(
        v, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]), 2 << (shift & 3), release & 0xFFFF
    )
    if fault != NO_FAULT:
        raise_from_helper(m, env, fault, error, address, back)
        return
    end_transfer(m, env, v)


@callback(VOID, *[INT64] * 4, RETURN_ADDRESS)
def on_far_jump(env: int, selector: int, offset: int, next_rip: int, back: int) -> None:
    """helper_ljmp_protected."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    fault, error, address = far_jump(
        v, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]), selector & 0xFFFF, offset
    )
    if fault != NO_FAULT:
        raise_from_helper(m, env, fault, error, address, back)
        return
    end_transfer(m, env, v)


@callback(VOID, *[INT64] * 5, RETURN_ADDRESS)
def on_far_call(env: int, selector: int, offset: int, shift: int, next_rip: int, back: int) -> None:
    """helper_lcall_protected."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    fault, error, address = far_call(
        v,
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        selector & 0xFFFF,
        offset,
        2 << (shift & 3),
        next_rip,
    )
    if fault != NO_FAULT:
        raise_from_helper(m, env, fault, error, address, back)
        return
    end_transfer(m, env, v)


@callback(VOID, *[INT64] * 5, RETURN_ADDRESS)
def on_far_call_real(
    env: int, selector: int, offset: int, shift: int, next_rip: int, back: int
) -> None:
    """helper_lcall_real."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    fault, error, address = far_call_real(
        v,
        cells(m[mc.R], m[mc.R_CELLS]),
        memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]),
        selector & 0xFFFF,
        offset & 0xFFFFFFFF,
        2 << (shift & 3),
        next_rip & 0xFFFFFFFF,
    )
    if fault != NO_FAULT:
        raise_from_helper(m, env, fault, error, address, back)
        return
    end_transfer(m, env, v)


@callback(VOID, *[INT64] * 3, RETURN_ADDRESS)
def on_load_segment(env: int, number: int, selector: int, back: int) -> None:
    """helper_load_seg: in protected mode only."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    fault, error, address = load_segment_register(
        v, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]), number & 7, selector & 0xFFFF
    )
    if fault != NO_FAULT:
        raise_from_helper(m, env, fault, error, address, back)
        return
    walk_always(m)
    forget_stale_code(m)
    load_segments(env, v)
    load_mode(m, env, v)


@jit
def ask(env: int, question: int, selector: int, back: int) -> int:
    """What LAR, LSL, VERR or VERW finds out. ZF is set where the translator takes it from."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    fault, error, address, answer = descriptor_query(v, mem, question, selector & 0xFFFF)
    if fault != NO_FAULT:
        raise_from_helper(m, env, fault, error, address, back)
        return 0
    walk_always(m)
    forget_stale_code(m)
    zero = _ZF if answer != INVISIBLE else 0
    poke64(env + at.CC_SRC, (rflags_of(m, env) & _ARITHMETIC & ~_ZF) | zero)
    return answer


@callback(INT64, *[INT64] * 2, RETURN_ADDRESS)
def on_access_rights(env: int, selector: int, back: int) -> int:
    """helper_lar: the rights, of which only ZF = 1 makes use."""
    return ask(env, LAR, selector, back)


@callback(INT64, *[INT64] * 2, RETURN_ADDRESS)
def on_segment_limit(env: int, selector: int, back: int) -> int:
    """helper_lsl: likewise."""
    return ask(env, LSL, selector, back)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_verify_read(env: int, selector: int, back: int) -> None:
    """helper_verr."""
    ask(env, VERR, selector, back)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_verify_write(env: int, selector: int, back: int) -> None:
    """helper_verw."""
    ask(env, VERW, selector, back)


@jit
def end_fast_call(m: Cells, env: int, v: Cells, outcome: int, back: int) -> None:
    """Load what a fast system call has changed, or raise what it raises."""
    if outcome != GO_ON:
        vector = UD if outcome == RAISE_UD else GP
        raise_from_helper(m, env, vector, 0, 0, back)
        return
    load_flags(m, env, v[f.GUEST_RFLAGS])
    end_transfer(m, env, v)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_syscall(env: int, length: int, back: int) -> None:
    """helper_syscall; RIP is in the CPU state already, as the flags are."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    r = cells(m[mc.R], m[mc.R_CELLS])
    v[f.GUEST_RFLAGS] = rflags_of(m, env)
    v[f.GUEST_RIP] = peek64(env + at.EIP)
    r[reg.LSTAR] = peek64(env + at.LSTAR)
    r[reg.STAR] = peek64(env + at.STAR)
    r[reg.FMASK] = peek64(env + at.FMASK)
    outcome = syscall(v, r, length & 15)
    if outcome == GO_ON:
        poke64(env + at.REGS + 8 * reg.RCX, r[reg.RCX])
        poke64(env + at.REGS + 8 * reg.R11, r[reg.R11])
    end_fast_call(m, env, v, outcome, back)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_sysret(env: int, shift: int, back: int) -> None:
    """helper_sysret."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    r = cells(m[mc.R], m[mc.R_CELLS])
    r[reg.STAR] = peek64(env + at.STAR)
    r[reg.RCX] = peek64(env + at.REGS + 8 * reg.RCX)
    r[reg.R11] = peek64(env + at.REGS + 8 * reg.R11)
    outcome = sysret(v, r, shift & 3 == 2)
    end_fast_call(m, env, v, outcome, back)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_sysenter(env: int, length: int, back: int) -> None:
    """helper_sysenter."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    v[f.GUEST_RFLAGS] = rflags_of(m, env)
    outcome = sysenter(v)
    end_fast_call(m, env, v, outcome, back)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_sysexit(env: int, shift: int, back: int) -> None:
    """helper_sysexit."""
    m = machine_at(env)
    v = vmcs_in_force(m)
    begin_transfer(m, env, v)
    r = cells(m[mc.R], m[mc.R_CELLS])
    r[reg.RCX] = peek64(env + at.REGS + 8 * reg.RCX)
    r[reg.RDX] = peek64(env + at.REGS + 8 * reg.RDX)
    outcome = sysexit(v, r, shift & 3 == 2)
    if outcome != GO_ON:
        end_fast_call(m, env, v, outcome, back)
        return
    end_transfer(m, env, v)


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_into(env: int, length: int, back: int) -> None:
    """helper_into. The engine's leaves the block without saying where, as if it ended here."""
    m = machine_at(env)
    if rflags_of(m, env) & _OF:
        poke32(env + at.ERROR_CODE, 0)
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_SOFTWARE_INTERRUPT)
        call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], back - _RETURN))


SUBSTITUTES = {
    "helper_into": on_into,
    "helper_iret_protected": on_iret,
    "helper_iret_real": on_iret_real,
    "helper_lret_protected": on_far_return,
    "helper_ljmp_protected": on_far_jump,
    "helper_lcall_protected": on_far_call,
    "helper_lcall_real": on_far_call_real,
    "helper_load_seg": on_load_segment,
    "helper_lar": on_access_rights,
    "helper_lsl": on_segment_limit,
    "helper_verr": on_verify_read,
    "helper_verw": on_verify_write,
    "helper_syscall": on_syscall,
    "helper_sysret": on_sysret,
    "helper_sysenter": on_sysenter,
    "helper_sysexit": on_sysexit,
}
"""Helpers of the engine's, and what is called instead."""
