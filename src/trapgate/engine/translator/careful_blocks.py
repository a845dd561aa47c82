"""Blocks of translated code that need care where they begin, and stops at a deadline (native path).

Compiled only. A block that needs care is told by low bits of its address: blocks are
aligned to more than these.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit, stub
from trapgate.compiler.raw import (
    call,
    cells,
    go_on,
    peek16,
    peek32,
    peek64,
    poke32,
    return_address,
)
from trapgate.engine import machine as mc
from trapgate.engine.guest.breakpoints import stop_at_breakpoint
from trapgate.engine.guest.clock import cut_block, cut_where_time_is_up
from trapgate.engine.library import layout as at
from trapgate.engine.memory.audit import is_stale
from trapgate.engine.translator.blocks import alignment_is_checked, must_stop
from trapgate.engine.translator.translator_errata import (
    CARE_AUDIT,
    CARE_BREAKPOINT,
    CARE_LIMIT,
    CARE_MXCSR,
)

_CARE = 0x1F
"""All bits of CARE."""
_GP = 13


@jit
def last_offset(tb: int) -> int:
    """The offset in CS of a block's last byte."""
    return peek64(tb) - peek64(tb + at.TB_CS_BASE) + peek16(tb + at.TB_SIZE) - 1


@jit
def is_asked_to_exit(m: Cells) -> bool:
    """Whether the engine is asked to leave translated code; a look for it does that."""
    return peek32(m[mc.REQUEST]) & 1 << 31 != 0


@jit
def leave_before(m: Cells, count: int) -> None:
    """A block of `count` instructions does not begin: the engine leaves it at once.

    It restores the first one's state as if that one were done (`clock`).
    """
    m[mc.TIME] += count - 1


@stub
def block_begins(machine: int, count: int) -> None:
    """Begin a block of `count` instructions.

    Translated code calls this where it would call the engine's own look for a request to exit, at
    every block.
    """
    m = cells(machine, mc.CELLS)
    if m[mc.TIME] >= m[mc.DEADLINE]:
        go_on(late_block_begins, (machine, count))
    if is_asked_to_exit(m):
        leave_before(m, count)
        go_on(m[mc.CHECK_EXIT], (m[mc.UC], 0))
    m[mc.TIME] += count


@stub
def late_block_begins(machine: int, count: int) -> None:
    """The same when the deadline is near: stop, or end the block where it comes."""
    m = cells(machine, mc.CELLS)
    if must_stop(m):
        call(m[mc.EMU_STOP], (m[mc.UC],))
        leave_before(m, count)
        go_on(m[mc.CHECK_EXIT], (m[mc.UC], 0))
    if is_asked_to_exit(m):
        leave_before(m, count)
        go_on(m[mc.CHECK_EXIT], (m[mc.UC], 0))
    cut_where_time_is_up(m, count, return_address())
    m[mc.TIME] += count


@stub
def careful_block_begins(machine: int, tagged: int) -> None:
    """Begin a block that needs care; `tagged` is its address, and says why."""
    m = cells(machine, mc.CELLS)
    count = peek16((tagged & ~_CARE) + at.TB_ICOUNT)
    if must_stop_at(m, tagged, return_address()):
        call(m[mc.EMU_STOP], (m[mc.UC],))
        leave_before(m, count)
        go_on(m[mc.CHECK_EXIT], (m[mc.UC], 0))
    if is_asked_to_exit(m):
        leave_before(m, count)
        go_on(m[mc.CHECK_EXIT], (m[mc.UC], 0))
    m[mc.TIME] += count


@jit
def ends_beyond_limit(m: Cells, tb: int, count: int, back: int) -> bool:
    """Whether a block ends beyond the limit of CS; if it is one instruction, that faults."""
    env = m[mc.CPU] + at.CPU_SIZE
    if last_offset(tb) <= peek32(env + at.SEGMENTS + at.SEGMENT_SIZE + at.LIMIT):
        return False
    if count == 1:
        m[mc.TIME] += 1
        m[mc.FAULT_KIND] = 0
        poke32(env + at.ERROR_CODE, 0)
        poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + _GP)
        call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], back))
    return True


@stub
def portable_block_begins(machine: int, tagged: int) -> None:
    """Begin any block on the portable path, where a hook has looked at the deadline.

    `tagged` is its address, and says whether it may end beyond the limit of CS.
    """
    m = cells(machine, mc.CELLS)
    tb = tagged & ~_CARE
    count = peek16(tb + at.TB_ICOUNT)
    if is_asked_to_exit(m):
        leave_before(m, count)
        go_on(m[mc.CHECK_EXIT], (m[mc.UC], 0))
    if m[mc.TIME] >= m[mc.DEADLINE]:
        cut_where_time_is_up(m, count, return_address())
    if tagged & CARE_LIMIT and ends_beyond_limit(m, tb, count, return_address()):
        m[mc.TIME] += count
        cut_block(m, return_address(), 1)
    m[mc.TIME] += count


@jit
def must_stop_at(m: Cells, tagged: int, back: int) -> bool:
    """At the start of a block that needs care: whether the engine has to stop.

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
        cut_where_time_is_up(m, count, back)
    cut = tagged & CARE_MXCSR != 0
    if tagged & CARE_LIMIT and ends_beyond_limit(m, tb, count, back):
        cut = True
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
    cut_block(m, back, 1)
    return False
