"""An audit of `coherence`: does the memory that a block was translated from still hold the same?

With TRAPGATE_AUDIT=1 in the environment every block, each time it is entered, compares a digest of
its source with the one taken when it was translated, and a difference ends the run. Native blocks
are known by their address, those of the portable path, whose hook is not told that, by
linear address, size and place. A block whose slot another one has taken is not looked at.
Whenever all translations of linear addresses are dropped, one that is left ends the run, too.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import cells, memory, peek16, peek32, peek64
from trapgate.engine import machine as mc
from trapgate.engine.guest.state import save_paging
from trapgate.engine.library import layout as at
from trapgate.paging.memory import load8
from trapgate.paging.walk import walk

SLOTS = 1 << 17
WIDTH = 4
"""Cells of a slot: the block, where its first and its second page lie, the digest."""
_AC = 1 << 18
TB_SIZE = 0x14
"""In a block: how many bytes of guest code it was made from."""
_FNV = 0x100000001B3


@jit
def page_at(m: Cells, env: int, linear: int) -> int:
    """Where the page of code at a linear address lies, or -1."""
    v = cells(m[mc.V], m[mc.V_CELLS])
    save_paging(env, v)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    user = 1 if peek32(env + at.HFLAGS) & 3 == 3 else 0
    physical, code, _, _ = walk(v, _AC, mem, linear, 2, user)
    return physical & ~0xFFF if code < 0 else -1


@jit
def digest_of(m: Cells, linear: int, size: int, first: int, second: int) -> int:
    """A digest of a block's source, as memory has it now."""
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    digest = linear * 31 + size
    for n in range(size):
        here = linear + n
        page = first if (here ^ linear) & ~0xFFF == 0 else second
        digest = (digest ^ load8(mem, page | (here & 0xFFF))) * _FNV
    return digest


@jit
def slot_of(key: int) -> int:
    """The first cell of a block's slot."""
    return ((key * 0x1E3779B97F4A7C15) >> 24 & (SLOTS - 1)) * WIDTH


@jit
def key_of(m: Cells, block: int, linear: int, size: int, first: int) -> int:
    """What a block is known by."""
    if m[mc.NATIVE] != 0:
        return block
    return (linear ^ size << 48) * _FNV ^ first


@jit
def note_source(m: Cells, env: int, block: int) -> None:
    """Remember what a block that was just translated was made from."""
    linear = peek64(block)
    size = peek16(block + TB_SIZE)
    first = page_at(m, env, linear)
    second = first
    if (linear ^ (linear + size - 1)) & ~0xFFF != 0:
        second = page_at(m, env, linear + size - 1)
    if size == 0 or first < 0 or second < 0:
        return
    slots = cells(m[mc.AUDIT], SLOTS * WIDTH)
    key = key_of(m, block, linear, size, first)
    slot = slot_of(key)
    slots[slot] = key
    slots[slot + 1] = first
    slots[slot + 2] = second
    slots[slot + 3] = digest_of(m, linear, size, first, second)


@jit
def is_stale(m: Cells, env: int, block: int, linear: int, size: int) -> bool:
    """Whether a block that is about to be executed was made from something else.

    Or whether a translation of linear addresses is left that should not be (`tlb`).
    """
    slots = cells(m[mc.AUDIT], SLOTS * WIDTH)
    first = page_at(m, env, linear) if m[mc.NATIVE] == 0 else 0
    key = key_of(m, block, linear, size, first)
    slot = slot_of(key)
    m[mc.AUDITED] += 1
    if m[mc.LEFT_OVER] != 0:
        m[mc.STOP] = mc.UNDROPPED
        return True
    if slots[slot] != key:
        return False
    digest = digest_of(m, linear, size, slots[slot + 1], slots[slot + 2])
    if digest == slots[slot + 3]:
        return False
    m[mc.STOP] = mc.STALE
    m[mc.STOP_INFO] = linear
    return True
