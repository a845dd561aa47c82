"""Blocks of translated code that need care where they begin, and stops at a deadline (native path).

Compiled only. A block that needs care is told by low bits of its address: blocks are
aligned to more than these.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT64
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek16, peek32, peek64, poke32
from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.engine.audit import is_stale
from trapgate.engine.blocks import alignment_is_checked, must_stop
from trapgate.engine.breakpoints import stop_at_breakpoint
from trapgate.engine.clock import cut_where_time_is_up, execute_again
from trapgate.engine.odd_code import CARE_AUDIT, CARE_BREAKPOINT, CARE_LIMIT, CARE_MXCSR

_CARE = 0x1F
"""All bits of CARE."""
_GP = 13


@jit
def last_offset(tb: int) -> int:
    """The offset in CS of a block's last byte."""
    return peek64(tb) - peek64(tb + at.TB_CS_BASE) + peek16(tb + at.TB_SIZE) - 1


@callback(INT64, *[INT64] * 3)
def on_deadline(machine: int, count: int, return_address: int) -> int:
    """At a block's start, when the deadline is near: whether the engine has to stop."""
    m = cells(machine, mc.CELLS)
    if must_stop(m):
        call(m[mc.EMU_STOP], (m[mc.UC],))
        return 1
    cut_where_time_is_up(m, count, return_address)
    return 0


@jit
def stops_here(m: Cells, tagged: int, return_address: int) -> bool:
    """Whether the engine has to stop at the start of a block that needs care.

    Where alignment is checked, `trapgate.processor.stepping` executes the block. Where the block
    may change MXCSR it is cut: executed one instruction at a time, until the one after
    which exceptions may be unmasked. So is one that ends beyond the limit of CS, until the
    instruction that does: that one faults.
    """
    tb = tagged & ~_CARE
    count = peek16(tb + at.TB_ICOUNT)
    if tagged & CARE_AUDIT and is_stale(m, m[mc.ENV], tb, peek64(tb), peek16(tb + at.TB_SIZE)):
        return True
    if m[mc.TIME] >= m[mc.DEADLINE]:
        if must_stop(m):
            return True
        cut_where_time_is_up(m, count, return_address)
    cut = tagged & CARE_MXCSR != 0
    if tagged & CARE_LIMIT:
        limit = peek32(m[mc.ENV] + at.SEGMENTS + at.SEGMENT_SIZE + at.LIMIT)
        if last_offset(tb) > limit:
            cut = True
            if count == 1:
                m[mc.TIME] += 1
                m[mc.FAULT_KIND] = 0
                poke32(m[mc.ENV] + at.ERROR_CODE, 0)
                poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + _GP)
                call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], return_address))
    if m[mc.STEPPING] != 0:
        return False
    if tagged & CARE_BREAKPOINT and stop_at_breakpoint(m, peek64(tb)):
        return True
    if alignment_is_checked(m):
        m[mc.STOP] = mc.CHECKED
        m[mc.STOP_CODE] = mc.CHECK_NEXT
        return True
    if not cut:
        return False
    if peek32(tb + at.TB_CFLAGS) & at.TB_COUNT == 1:
        # What it does to MXCSR is looked at where the next block starts.
        m[mc.DEADLINE] = 0
        return False
    m[mc.TIME] += count
    execute_again(m, m[mc.CPU], return_address, 1)
    return False


@callback(INT64, *[INT64] * 3)
def on_careful_block(machine: int, tagged: int, return_address: int) -> int:
    """At the start of a block that needs care: count it; whether the engine has to stop."""
    m = cells(machine, mc.CELLS)
    stops = stops_here(m, tagged, return_address)
    m[mc.TIME] += peek16((tagged & ~_CARE) + at.TB_ICOUNT)
    if not stops:
        return 0
    call(m[mc.EMU_STOP], (m[mc.UC],))
    return 1


@callback(INT64, *[INT64] * 3)
def on_counted_block(machine: int, tb: int, return_address: int) -> int:
    """At the start of any block on the portable path: count it, or cut it where time is up."""
    m = cells(machine, mc.CELLS)
    count = peek16(tb + at.TB_ICOUNT)
    if m[mc.TIME] >= m[mc.DEADLINE]:
        cut_where_time_is_up(m, count, return_address)
    m[mc.TIME] += count
    return 0
