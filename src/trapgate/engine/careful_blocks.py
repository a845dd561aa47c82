"""Blocks of translated code that need care where they begin, and stops at a deadline (native path).

Compiled only. A block that needs care is told by low bits of its address: blocks are
aligned to more than these.
"""

from trapgate.compiler.kinds import INT64
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek16, peek32, peek64, poke32
from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.engine.audit import is_stale
from trapgate.engine.blocks import alignment_is_checked, must_stop
from trapgate.engine.odd_code import CARE_AUDIT, CARE_LIMIT, CARE_MXCSR

_CARE = 0xF
"""All bits of CARE."""
_GP = 13


@jit
def last_offset(tb: int) -> int:
    """The offset in CS of a block's last byte."""
    return peek64(tb) - peek64(tb + at.TB_CS_BASE) + peek16(tb + at.TB_SIZE) - 1


@callback(INT64, INT64)
def on_deadline(machine: int) -> int:
    """At a block's start, when the deadline has come: whether the engine has to stop."""
    m = cells(machine, mc.CELLS)
    if not must_stop(m):
        return 0
    call(m[mc.EMU_STOP], (m[mc.UC],))
    return 1


@callback(INT64, *[INT64] * 3)
def on_careful_block(machine: int, tagged: int, return_address: int) -> int:
    """At the start of a block that needs care: whether the engine has to stop.

    Where alignment is checked, `trapgate.processor.stepping` executes the block. Where the block
    may change MXCSR it is cut: executed one instruction at a time, until the one after
    which exceptions may be unmasked. So is one that ends beyond the limit of CS, until the
    instruction that does: that one faults.
    """
    m = cells(machine, mc.CELLS)
    tb = tagged & ~_CARE
    if tagged & CARE_AUDIT and is_stale(m, m[mc.ENV], tb, peek64(tb), peek16(tb + at.TB_SIZE)):
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return 1
    if m[mc.TIME] >= m[mc.DEADLINE] and must_stop(m):
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return 1
    cut = tagged & CARE_MXCSR != 0
    if tagged & CARE_LIMIT:
        limit = peek32(m[mc.ENV] + at.SEGMENTS + at.SEGMENT_SIZE + at.LIMIT)
        if last_offset(tb) > limit:
            cut = True
            if peek16(tb + at.TB_ICOUNT) == 1:
                m[mc.FAULT_KIND] = 0
                poke32(m[mc.ENV] + at.ERROR_CODE, 0)
                poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + _GP)
                call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], return_address))
    if m[mc.STEPPING] != 0:
        m[mc.TIME] += peek16(tb + at.TB_ICOUNT)
        return 0
    if alignment_is_checked(m):
        m[mc.STOP] = mc.CHECKED
        m[mc.STOP_CODE] = mc.CHECK_NEXT
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return 1
    if not cut:
        m[mc.TIME] += peek16(tb + at.TB_ICOUNT)
        return 0
    if peek32(tb + at.TB_CFLAGS) & at.TB_COUNT == 1:
        m[mc.TIME] += 1
        # What it has done to MXCSR is looked at where the next block starts.
        m[mc.DEADLINE] = 0
        return 0
    poke32(m[mc.CPU] + at.CFLAGS_NEXT_TB, 1)
    poke32(m[mc.EXCEPTION_INDEX], -1)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], return_address))
    return 0
