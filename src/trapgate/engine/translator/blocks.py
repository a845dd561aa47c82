"""What happens where a block of translated code begins: time, stops, and blocks that need care.

Compiled only. The native path asks `due` alone, and counts in `translation`. On the
portable path a block is known by a slot of a table: its key, and its count of
instructions. What needs care has the complement of its key there, so that all others
cost one comparison.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, memory, peek32, peek64
from trapgate.engine import machine as mc
from trapgate.engine.guest.clock import set_deadline
from trapgate.engine.guest.state import save_paging
from trapgate.engine.library import layout as at
from trapgate.engine.memory.coherence import CODE, pages_of
from trapgate.paging.memory import load8
from trapgate.paging.walk import walk

_AC = 1 << 18
"""Of RFLAGS, and AM of CR0."""

_VM = 1 << 17
_CS_REGISTER = 11
_EFLAGS_REGISTER = 25
"""Unicorn's numbers."""

# Why a block needs care; low bits of its count, which is negative then.
_CARE_MXCSR = 1
_CARE_ALIGNMENT = 2
_CARE_PORT = 4


@jit
def register_now(m: Cells, number: int) -> int:
    """A register between two blocks, by Unicorn's number (portable path)."""
    value = m[mc.STOP_VALUE :]
    value[0] = 0
    call(m[mc.REG_READ], (m[mc.UC], number, value.ctypes.data))
    return int(value[0])


@jit
def flags_now(m: Cells) -> int:
    """EFLAGS between two blocks (portable path)."""
    return register_now(m, _EFLAGS_REGISTER)


@jit
def is_user_with_ac(m: Cells) -> bool:
    """Whether RFLAGS.AC is set, and not by a supervisor, for whom SMAP gives it a meaning."""
    flags = flags_now(m)
    return flags & _AC != 0 and (flags & _VM != 0 or register_now(m, _CS_REGISTER) & 3 == 3)


@jit
def alignment_is_checked(m: Cells) -> bool:
    """Whether the live state says that unaligned accesses fault (native only)."""
    env = m[mc.ENV]
    return (
        peek64(env + at.EFLAGS) & _AC != 0
        and peek32(env + at.HFLAGS) & 3 == 3
        and peek64(env + at.CR0) & _AC != 0
    )


@jit
def time_is_up(m: Cells) -> int:
    """Which of the limits of virtual time it is that has been reached."""
    if m[mc.TIME] >= m[mc.BUDGET_END]:
        return mc.LIMIT
    return mc.TIMER if m[mc.TIME] >= m[mc.TIMER_END] else mc.NESTED_TIMER


@jit
def waits_for_flag(m: Cells) -> bool:
    """Whether nothing can be taken until RFLAGS.IF becomes 1 (see `look_for_interrupts`).

    Only where the translator is ours does every instruction that sets it say so.
    """
    return (
        m[mc.CPU] != 0
        and m[mc.ATTENTION] == mc.WHEN_INTERRUPTIBLE
        and peek64(m[mc.ENV] + at.EFLAGS) & 0x200 == 0
    )


@jit
def must_stop(m: Cells) -> bool:
    """Whether the run has to stop at this block's start; STOP says why."""
    if m[mc.NEW_BLOCK_SIZE] != 0:
        m[mc.STOP] = mc.CHECKED
        m[mc.STOP_CODE] = mc.CHECK_BLOCK
        return True
    if m[mc.STEPPING] == mc.STEP_DUE:
        m[mc.STEPPING] = mc.STEP_RUNNING
        return False
    if m[mc.STEPPING] != 0:
        m[mc.STOP] = mc.STEPPED
        return True
    if m[mc.TIME] >= min(m[mc.TIMER_END], m[mc.NESTED_TIMER_END], m[mc.BUDGET_END]):
        m[mc.STOP] = time_is_up(m)
        return True
    attention = m[mc.ATTENTION]
    if m[mc.PATIENCE] != 0:
        # Python has just looked and could take nothing: the guest must get on.
        m[mc.PATIENCE] = 0
        attention = 0
    if attention & 1:
        m[mc.STOP] = mc.ATTEND
        return True
    if attention & 2 and m[mc.NATIVE] != 0:
        # Something waits for the guest to be interruptible.
        env = m[mc.ENV]
        blocked = peek32(env + at.HFLAGS) & at.HF_INHIBIT_IRQ and m[mc.SHADOW] != 0
        if peek64(env + at.EFLAGS) & 0x200 and not blocked:
            m[mc.STOP] = mc.ATTEND
            return True
    elif attention & 2 and flags_now(m) & 0x200:
        m[mc.STOP] = mc.ATTEND
        return True
    if m[mc.CHECKS] != 0 or (
        m[mc.NATIVE] != 0
        and (~peek32(m[mc.ENV] + at.MXCSR) & 0x1F80 != 0 or alignment_is_checked(m))
    ):
        m[mc.STOP] = mc.CHECKED
        m[mc.STOP_CODE] = mc.CHECK_NEXT
        return True
    if m[mc.ATTENTION] == 0 or waits_for_flag(m):
        set_deadline(m)
    return False


@jit
def block_hazards(m: Cells, linear: int, size: int) -> tuple[int, int]:
    """What the bytes of a block may need care for, and a digest of them.

    For LDMXCSR, FXRSTOR and XRSTOR (0FH AEH, memory form /1, /2 or /5), and for input and output.
    False alarms cost time only.
    """
    v = cells(m[mc.V], m[mc.V_CELLS])
    save_paging(m[mc.ENV], v)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    page = -1
    physical = 0
    word = 0
    care = 0
    digest = linear * 31 + size
    for n in range(size):
        here = linear + n
        if here >> 12 != page:
            physical, code, _, _ = walk(v, 0x40000, mem, here, 0, 0)
            if code >= 0:
                return care, digest
            page = here >> 12
            physical &= ~0xFFF
            if m[mc.TB_INVALIDATE] == 0 and physical >> 3 < m[mc.MEM_CELLS]:
                # Nobody else says that there is code.
                pages_of(m)[physical >> 12] |= CODE
        byte = load8(mem, physical | (here & 0xFFF))
        word = (word << 8 | byte) & 0xFFFFFF
        digest = digest * 0x100000001B3 + byte
        if word >> 8 == 0x0FAE and word & 0xC0 != 0xC0 and (word >> 3) & 7 in (1, 2, 5):
            care |= _CARE_MXCSR
        if byte & 0xF4 == 0xE4 or byte & 0xFC == 0x6C:
            care |= _CARE_PORT
    return care, digest


@jit
def note_block(m: Cells, address: int, size: int, count: int) -> None:
    """Remember how many instructions a block has.

    Under the complement of its key if it needs care: what needs none stays fast. A
    block that needs care is not forgotten for another that shares its slot.
    """
    if m[mc.STEPPING] != 0:
        return
    blocks = cells(m[mc.BLOCKS], 2 * mc.BLOCK_SLOTS)
    slot = ((address ^ address >> 16) & (mc.BLOCK_SLOTS - 1)) * 2
    key = address ^ size << 48
    care, digest = block_hazards(m, address, size)
    if care & _CARE_PORT:
        seen = cells(m[mc.SEEN], mc.BLOCK_SLOTS)
        if seen[slot >> 1] != digest:
            seen[slot >> 1] = digest
            m[mc.NEW_BLOCK] = address
            m[mc.NEW_BLOCK_SIZE] = size
            m[mc.DEADLINE] = 0
    care &= _CARE_MXCSR
    if is_user_with_ac(m):
        # The engine keeps blocks apart by this flag and by CPL, so this one is new, too.
        care |= _CARE_ALIGNMENT
    if blocks[slot + 1] < 0:
        if blocks[slot] == ~key:
            care |= -blocks[slot + 1] & _CARE_ALIGNMENT
        elif care == 0 and (blocks[slot] ^ ~address) & 0xFFFFFFFFFFFF != 0:
            return
    if care != 0:
        blocks[slot] = ~key
        blocks[slot + 1] = -(count << 2 | care)
    else:
        blocks[slot] = key
        blocks[slot + 1] = count


@jit
def is_unknown(m: Cells, blocks: Cells, address: int, size: int, slot: int) -> bool:
    """Whether nobody has noted a block that begins.

    Of new blocks the engine tells once one has run to its end: each of the first may have ended
    with an event. What is only cut shorter, where time is up, is known.
    """
    if blocks[slot] == 0:
        return True
    if m[mc.NEW_BLOCKS_TOLD] != 0:
        return False
    noted = ~blocks[slot] if blocks[slot + 1] < 0 else blocks[slot]
    difference = noted ^ address
    return bool(difference & 0xFFFFFFFFFFFF != 0 or difference >> 48 & 0xFFFF < size)


@jit
def check_block(m: Cells, address: int, size: int, slot: int) -> bool:
    """A block that is not in its slot, or needs care; whether the run has to stop.

    `trapgate.processor.stepping` executes what needs care.
    """
    blocks = cells(m[mc.BLOCKS], 2 * mc.BLOCK_SLOTS)
    key = address ^ size << 48
    if is_unknown(m, blocks, address, size, slot):
        note_block(m, address, size, (size + 3) >> 2)
        if m[mc.NEW_BLOCK_SIZE] != 0:
            return must_stop(m)
    if blocks[slot] != ~key or m[mc.STEPPING] != 0:
        m[mc.TIME] += (size + 3) >> 2 if m[mc.CPU] == 0 else 0
        return False
    m[mc.STOP] = mc.CHECKED
    m[mc.STOP_CODE] = mc.CHECK_NEXT
    return True
