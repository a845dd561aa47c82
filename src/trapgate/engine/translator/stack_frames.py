"""ENTER: what it checks besides its pushes, and how much of RBP it writes.

Compiled only; Linux wheels. SDM, "ENTER - Make Stack Frame for Procedure Parameters": a write at
the final stack pointer must be possible, though none is made; operands of 16 bits write BP only,
those of 32 bits all of EBP, whatever the width of the stack. The engine knows neither.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import cells, peek32, peek64, poke64
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.translator.branches import stack_width
from trapgate.engine.translator.control_flow import raise_from_helper
from trapgate.engine.translator.whole_stores import demand_writable
from trapgate.sdm.vectors import SS

_RSP, _RBP = 4, 5
_SS = 2
_LOW = 0xFFFF_FFFF


@jit
def place_of(m: Cells, number: int) -> int:
    """Where a general register is."""
    return int(m[mc.CPU]) + at.CPU_SIZE + at.REGS + 8 * number


@jit
def may_store(m: Cells, offset: int, size: int) -> bool:
    """Whether the stack segment allows a store of 2, 4 or 8 bytes at an offset."""
    log = 3 if size == 8 else size >> 1
    distance = (offset - m[mc.SEGMENT_LOWS + _SS]) & _LOW
    return bool(distance < m[mc.SEGMENT_BOUNDS + 8 * _SS + 4 + log])


@jit
def demand_stack(m: Cells, rsp: int, size: int, back: int) -> None:
    """Raise what a store at the top of the stack would meet; RSP is that from before ENTER."""
    env = m[mc.CPU] + at.CPU_SIZE
    width = stack_width(peek32(env + at.HFLAGS))
    pushed = peek64(place_of(m, _RSP)) - size
    if width != 8:
        mask = 0xFFFF if width == 2 else _LOW
        rsp &= mask
        if not may_store(m, rsp, size):
            raise_from_helper(m, env, SS, 0, 0, back)
        base = peek64(env + at.SEGMENTS + at.SEGMENT_SIZE * _SS + at.BASE)
        rsp = (rsp + base) & _LOW
        pushed = ((pushed & mask) + base) & _LOW
    if (rsp ^ pushed) >> 12 != 0:
        demand_writable(m, rsp, rsp, back)


@callback(VOID, *[INT64] * 2)
def on_enter_begins(machine: int, size: int) -> None:
    """Before ENTER."""
    m = cells(machine, mc.CELLS)
    m[mc.ACCUMULATOR] = peek64(place_of(m, _RSP))
    m[mc.KEPT_EXCHANGED] = peek64(place_of(m, _RBP))


@callback(VOID, *[INT64] * 2, RETURN_ADDRESS)
def on_enter_ends(machine: int, size: int, back: int) -> None:
    """After it, with everything on the stack."""
    m = cells(machine, mc.CELLS)
    final, frame = peek64(place_of(m, _RSP)), peek64(place_of(m, _RBP))
    # What has faulted is executed again from the beginning.
    poke64(place_of(m, _RSP), m[mc.ACCUMULATOR])
    poke64(place_of(m, _RBP), m[mc.KEPT_EXCHANGED])
    demand_stack(m, final, size, back)
    poke64(place_of(m, _RSP), final)
    if size == 2:
        frame = m[mc.KEPT_EXCHANGED] & ~0xFFFF | frame & 0xFFFF
    elif size == 4:
        frame = final & _LOW & ~0xFFFF | frame & 0xFFFF
    poke64(place_of(m, _RBP), frame)
