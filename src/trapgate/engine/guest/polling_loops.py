"""Loops that do nothing but look at the time-stamp counter until a time has come.

A machine's devices that guests poll for that let a microsecond pass at each access. So does RDTSC
where a guest has executed it over and over at the same place, in a loop of a few instructions that
read and compute alone: without it a second would take as long as a thousand million
instructions.
What counts is virtual time, so all runs of a guest are alike. Compiled only.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import memory
from trapgate.decode.length import length_of
from trapgate.decode.pure_instructions import NOT_PURE, step_of
from trapgate.engine import machine as mc
from trapgate.engine.guest.fetched_code import is_long, linear_rip
from trapgate.operands.mode import privilege_level
from trapgate.paging.memory import load64
from trapgate.paging.walk import FETCH, walk
from trapgate.sdm import cells as f
from trapgate.sdm.state import AR_DB

_LONGEST = 32
"""Instructions from one look to the next."""
_PATIENCE = 32
"""So many looks, one after the other, make a loop."""
_PAGE = 0x1000
_LONGEST_INSTRUCTION = 15


@jit
def is_pure_loop(m: Cells, v: Cells) -> bool:
    """Whether the instruction at RIP lies in a loop without stores, within a page."""
    linear = linear_rip(v)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    user = 1 if privilege_level(v) == 3 else 0
    physical, error, _, _ = walk(v, v[f.GUEST_RFLAGS], mem, linear, FETCH, user)
    if error >= 0 or physical + _PAGE > 8 * m[mc.MEM_CELLS]:
        return False
    long = is_long(v)
    wide = v[f.GUEST_CS_ACCESS_RIGHTS] & AR_DB != 0
    page = physical & ~(_PAGE - 1)
    here = physical & (_PAGE - 1)
    at = here
    begin = -1
    for _ in range(_LONGEST):
        # First from here to the branch that leads back, and then from where it leads to here.
        if at > _PAGE - _LONGEST_INSTRUCTION - 1:
            return False
        low = load64(mem, page + at)
        high = load64(mem, page + at + 8)
        length = length_of(low, high, long, wide)
        step = step_of(low, high, length, long, wide)
        if step == NOT_PURE:
            return False
        at += length
        if step < 0 and begin < 0:
            begin = at + step
            if not 0 <= begin <= here:
                return False
            at = begin
        elif step < 0:
            return False
        if begin >= 0 and at >= here:
            return at == here
    return False


@jit
def look_at_time(m: Cells, v: Cells, word: int) -> None:
    """RDTSC or RDTSCP, of which `word` are the first bytes, was executed at RIP: time may run."""
    if m[mc.POLL_WAIT] == 0 or m[mc.V] != m[mc.HOST]:
        return
    if word & 0xFFFF != 0x310F and word & 0xFFFFFF != 0xF9010F:
        return
    time = m[mc.TIME]
    place = linear_rip(v)
    follows = place == m[mc.POLL_PLACE] and time - m[mc.POLL_TIME] <= _LONGEST
    m[mc.POLL_PLACE] = place
    m[mc.POLL_TIME] = time
    m[mc.POLLS] = m[mc.POLLS] + 1 if follows else 0
    if m[mc.POLLS] < _PATIENCE:
        return
    if m[mc.POLLS] == _PATIENCE and not is_pure_loop(m, v):
        # Never again, as long as it continues.
        m[mc.POLLS] = -(1 << 40)
        return
    m[mc.TIME] += m[mc.POLL_WAIT]
    m[mc.WAITED] += m[mc.POLL_WAIT]
    m[mc.POLL_TIME] = m[mc.TIME]
