"""MXCSR and the alignment of SSE operands, of which the engine knows less than a processor.

SDM, volume 1, "MXCSR Control and Status Register". The engine's arithmetic has flags of its own.
They join MXCSR where it is about to be read or replaced (`on_mxcsr_is_used`), and where Python
looks at it. Operands that must be aligned are checked as segments are (`checked_accesses`): a
conditional move chooses the address, or one that has no translation and raises #GP.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import BOUND, INT64, RETURN_ADDRESS, UINT32, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, memory, peek8, peek32, peek64, poke8, poke32
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.guest.state import save_paging
from trapgate.engine.library import layout as at
from trapgate.engine.translator.sse_arithmetic import flags_met
from trapgate.engine.x87.pointers import finish_image
from trapgate.paging.memory import load32
from trapgate.paging.walk import READ, walk
from trapgate.sdm.state import CR4_OSXSAVE
from trapgate.sdm.vectors import GP, UD

POISON_OF_ALIGNMENT = -(1 << 63) | 3 << 32
"""An address without a translation, as `checked_accesses` has them: #GP, of segment DS."""
_MXCSR_AT = 24
"""Where MXCSR lies in an image of FXSAVE or XSAVE."""
_SSE_AND_AVX = 6


@callback(VOID, INT64, INT64, INT64)
def on_mxcsr_is_used(machine: int, env: int, what: int) -> None:
    """Before an instruction that reads or replaces MXCSR: what arithmetic has met joins it.

    `what` (`decode.x87_pointers`) is for the helper that it may call.
    """
    cells(machine, mc.CELLS)[mc.X87_IMAGE] = what
    met = flags_met(peek8(env + at.SSE_FLAGS))
    poke32(env + at.MXCSR, peek32(env + at.MXCSR) | met)
    poke8(env + at.SSE_FLAGS, 0)


@jit
def raise_exception(env: int, back: int, vector: int, kind: int) -> None:
    """Leave the block with an exception of the instruction that `back`, a return address, lies in.

    Of `kind` FAULT_OF_SEGMENT its error code is 0, else `dispatch` has to find out what it is.
    """
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    m[mc.FAULT_KIND] = kind
    poke32(env + at.ERROR_CODE, 0)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + vector)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (env - at.CPU_SIZE, back))


@jit
def raise_gp(env: int, back: int) -> None:
    """The same with #GP(0)."""
    raise_exception(env, back, GP, mc.FAULT_OF_SEGMENT)


@callback(VOID, INT64, UINT32, BOUND, RETURN_ADDRESS)
def load_mxcsr(env: int, value: int, helper: int, back: int) -> None:
    """helper_ldmxcsr: #GP(0) for a value with reserved bits."""
    if value >> 16 == 0:
        call(helper, (env, value))
        return
    raise_gp(env, back)


@jit
def refuses_mxcsr(env: int, address: int) -> bool:
    """Whether the MXCSR of an FXSAVE image at a linear address has reserved bits."""
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    v = cells(m[mc.V], m[mc.V_CELLS])
    save_paging(env, v)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    user = 1 if peek32(env + at.HFLAGS) & 3 == 3 else 0
    physical, code, _, _ = walk(v, peek64(env + at.EFLAGS), mem, address + _MXCSR_AT, READ, user)
    # Where it faults the engine will find out.
    return code < 0 and load32(mem, physical) >> 16 != 0


@callback(VOID, INT64, INT64, BOUND, RETURN_ADDRESS)
def restore_fx(env: int, address: int, helper: int, back: int) -> None:
    """helper_fxrstor: #GP(0) for reserved bits of MXCSR, if it is restored."""
    if peek32(env + at.HFLAGS) & at.HF_OSFXSR and refuses_mxcsr(env, address):
        raise_gp(env, back)
    call(helper, (env, address))


@callback(VOID, INT64, INT64, INT64, BOUND, RETURN_ADDRESS)
def restore_extended(env: int, address: int, wanted: int, helper: int, back: int) -> None:
    """helper_xrstor: likewise; `wanted` is the requested-feature bitmap."""
    if peek64(env + at.CR4) & CR4_OSXSAVE == 0:
        raise_exception(env, back, UD, 0)
    if wanted & _SSE_AND_AVX and refuses_mxcsr(env, address):
        raise_gp(env, back)
    call(helper, (env, address, wanted))
    # The engine leaves the block after it.
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    finish_image(m, env, m[mc.X87_IMAGE], back)


LOADS_OF_MXCSR = {
    "helper_ldmxcsr": load_mxcsr,
    "helper_fxrstor": restore_fx,
    "helper_xrstor": restore_extended,
}
"""The engine's helpers, and what is in front of them."""


@jit
def emit_alignment(t: Cells, context: int, address: int) -> int:
    """Emit the choice of an address; a temporary with the one to use, to be released."""
    chosen = em.new_temporary(t, context)
    low = em.new_constant(t, context, 15)
    one = em.new_constant(t, context, 1)
    poison = em.new_constant(t, context, POISON_OF_ALIGNMENT)
    em.emit_3(t, context, em.AND, context + low, context + address, context + low)
    call(t[em.CONDITIONAL_MOVE], (context, em.BELOW, chosen, low, one, address, poison))
    em.release(t, context, low)
    em.release(t, context, one)
    em.release(t, context, poison)
    return chosen
