"""A debugger's breakpoints in translated code: where blocks have to begin, and where to stop.

Compiled only, native path. A breakpoint begins a block, for only where a block begins is the
virtual clock right; the block needs care then. Code without breakpoints stays as it was.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import cells, peek32, peek64, poke32
from trapgate.engine import machine as mc

_NEXT_PC = 0x10
_END = 0x18
"""In the translator's context of a block: the next address, and whether and how the block ends."""
_TOO_MANY = 1
"""It ends because the next instruction is to begin a block of its own."""


@jit
def is_breakpoint(m: Cells, address: int) -> bool:
    """Whether the run has to stop before the instruction at a linear address."""
    found = False
    addresses = cells(m[mc.BREAKPOINTS], m[mc.BREAKPOINTS_COUNT])
    for n in range(m[mc.BREAKPOINTS_COUNT]):
        if addresses[n] == address:
            found = True
    return found


@jit
def end_before_breakpoint(m: Cells, block: int) -> None:
    """An instruction of a block has been translated: end the block if a breakpoint comes next."""
    if m[mc.BREAKPOINTS_COUNT] == 0 or peek32(block + _END) != 0:
        return
    if is_breakpoint(m, peek64(block + _NEXT_PC)):
        poke32(block + _END, _TOO_MANY)


@jit
def stop_at_breakpoint(m: Cells, address: int) -> bool:
    """Whether the run stops at the breakpoint with which a block begins.

    To the VMM it looks as if the preemption timer had expired.
    """
    passed = m[mc.DEBUG_SKIP] == address + 1
    m[mc.DEBUG_SKIP] = 0
    if passed:
        return False
    m[mc.DEBUG_HIT] = address + 1
    m[mc.STOP] = mc.TIMER
    return True
