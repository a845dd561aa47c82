"""The virtual clock where a block of translated code is left before its end, or cut.

Compiled only. A block's instructions are added to the clock when it begins, so those after an
instruction that leaves it have to be taken off again. The engine restores the state of
the instruction then, through slots of its procedure linkage table (Linux x86-64
wheel only), and we count what is left of the block. An instruction counts when it was
executed, when it faults, and when it exits; one that will be executed again does not.

Where a place in machine code has been looked up once, what was found is kept: code that faults
faults again. Code stays where it is until the engine empties its whole buffer.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import BOOLEAN, BOUND, INT32, INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek8, peek16, peek32, peek64, poke32, poke64
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.exceptions import leave_unfinished

# What it means that the state within a block is restored, in RESTORED.
_REPEATS = 0
"""The engine leaves the block of its own, to execute the instruction again."""
_LEAVES = 1
"""The block ends with this instruction."""
_STAYS = 2
"""Somebody wants to know where we are, and the block continues."""


@jit
def signed_leb128(place: int) -> tuple[int, int]:
    """A number as the translator packs it, and where the next one is."""
    value = 0
    shift = 0
    byte = 0x80
    while byte & 0x80:
        byte = peek8(place)
        value |= (byte & 0x7F) << shift
        shift += 7
        place += 1
    if byte & 0x40 and shift < 64:
        value -= 1 << shift
    return value, place


@jit
def instructions_from(tb: int, linear: int) -> tuple[int, int]:
    """How many instructions a block has from the one at a linear address on, and its length.

    0 and 0 if none is there. After a block's machine code the translator keeps for each
    instruction how far the address, the state of the flags, and the end of its code are from those
    of the one before.
    """
    count = peek16(tb + at.TB_ICOUNT)
    place = peek64(tb + at.TB_CODE) + peek64(tb + at.TB_CODE + 8)
    here = peek64(tb)
    for n in range(count):
        step, place = signed_leb128(place)
        here += step
        step, place = signed_leb128(place)
        step, place = signed_leb128(place)
        if here == linear:
            length = peek64(tb) + peek16(tb + at.TB_SIZE) - here
            if n + 1 < count:
                length, place = signed_leb128(place)
            return count - n, length
    return 0, 0


@callback(VOID, *[INT64] * 3, BOUND)
def on_restore(env: int, tb: int, data: int, restore: int) -> None:
    """restore_state_to_opc: the state becomes that of an instruction within a block."""
    call(restore, (env, tb, data))
    machine = peek64(env + at.MACHINE)
    if machine == 0:
        return
    m = cells(machine, mc.CELLS)
    left, length = instructions_from(tb, peek64(data))
    m[mc.INSTRUCTION_LENGTH] = length
    m[mc.BEHIND] = max(left - 1, 0)
    m[mc.RESTORED_OP] = peek32(data + 8)
    if m[mc.RESTORED] == _LEAVES:
        m[mc.TIME] -= m[mc.BEHIND]
    elif m[mc.RESTORED] == _REPEATS:
        m[mc.TIME] -= left
        if m[mc.X87_FILLED] != 0:
            leave_unfinished(m, env)
        if m[mc.STEPPING] == mc.STEP_RUNNING:
            # It has stored to its own page, and is not done.
            m[mc.STEPPING] = mc.STEP_DUE


@jit
def place_of(host: int) -> int:
    """The first cell of the slot for what is known of the machine code at `host`."""
    return mc.PLACES + mc.PLACE_CELLS * ((host ^ host >> 6) & mc.PLACE_SLOTS - 1)


@jit
def restore_known(m: Cells, env: int, host: int, leaves: bool) -> bool:
    """What `on_restore_at` does, if the place has been looked up before."""
    slot = place_of(host)
    if m[slot] != host or host == 0:
        return False
    m[mc.PLACE] = slot
    poke64(env + at.EIP, m[slot + mc.PLACE_RIP])
    counts = m[slot + mc.PLACE_COUNTS]
    op = counts & 0xFF
    # Where the block does not say in what form the flags are, the CPU state does.
    if op != 0:
        poke32(env + at.CC_OP, op)
    m[mc.INSTRUCTION_LENGTH] = (counts >> 8) & 0xFF
    m[mc.BEHIND] = counts >> 16
    if leaves:
        m[mc.TIME] -= m[mc.BEHIND]
    return True


@jit
@inlined
def restore_at(m: Cells, cpu: int, host: int, leaves: bool, restore: int) -> int:
    """Restore the state of the instruction whose machine code is at `host`; 0 if there is none.

    `restore` is the engine's function that does; `leaves` says that the block ends there.
    """
    env = cpu + at.CPU_SIZE
    if restore_known(m, env, host, leaves):
        return 1
    m[mc.RESTORED] = _LEAVES if leaves else _STAYS
    found = call(restore, (cpu, host, leaves)) & 0xFF
    m[mc.RESTORED] = _REPEATS
    m[mc.PLACE] = 0
    if found:
        slot = place_of(host)
        m[mc.PLACE] = slot
        m[slot] = host
        m[slot + mc.PLACE_RIP] = peek64(env + at.EIP)
        counts = m[mc.RESTORED_OP] | m[mc.INSTRUCTION_LENGTH] << 8 | m[mc.BEHIND] << 16
        m[slot + mc.PLACE_COUNTS] = counts
        m[slot + mc.PLACE_OPERAND] = 0
    return found


@callback(BOOLEAN, INT64, INT64, INT32, BOUND)
def on_restore_at(cpu: int, host: int, leaves: int, restore: int) -> int:
    """cpu_restore_state."""
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    if machine == 0:
        return call(restore, (cpu, host, leaves)) & 0xFF
    return restore_at(cells(machine, mc.CELLS), cpu, host, leaves & 0xFF != 0, restore)


@callback(VOID, INT64, BOUND)
def on_code_is_dropped(translator: int, reset: int) -> None:
    """tcg_region_reset_all: the buffer of translated code is about to be filled anew."""
    uc = peek64(translator + em.UC)
    machine = peek64(peek64(uc + at.CPU_OF_HANDLE) + at.CPU_SIZE + at.MACHINE)
    if machine != 0:
        m = cells(machine, mc.CELLS)
        m[mc.PLACE] = 0
        for n in range(mc.PLACE_SLOTS):
            m[mc.PLACES + mc.PLACE_CELLS * n] = 0
    call(reset, (translator,))


@jit
def end_block_here(m: Cells) -> None:
    """The block ends with the instruction that was restored last, whoever leaves it."""
    m[mc.TIME] -= m[mc.BEHIND]
    m[mc.BEHIND] = 0


@jit
def locate(m: Cells, cpu: int, return_address: int) -> None:
    """Set the CPU state to that of the instruction within the block, which continues."""
    restore_at(m, cpu, return_address, False, m[mc.CPU_RESTORE_STATE])


@jit
def execute_again(m: Cells, cpu: int, return_address: int, count: int) -> None:
    """Leave the block before its current instruction, and continue with `count` instructions alone.

    Where the block has not begun, who calls this counts it first.
    """
    if return_address != 0:
        m[mc.TIME] -= 1
    poke32(cpu + at.CFLAGS_NEXT_TB, count)
    poke32(m[mc.EXCEPTION_INDEX], -1)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (cpu, return_address))


@jit
def cut_block(m: Cells, return_address: int, count: int) -> None:
    """Leave a block that has been counted before it begins, for one of `count` instructions.

    Whether events can be taken here has been looked at, and is not to be asked again: what
    is pending but blocked would keep the guest where it is for ever.
    """
    if m[mc.ATTENTION] != 0:
        m[mc.PATIENCE] = 1
    execute_again(m, m[mc.CPU], return_address, count)


@jit
def begin_device_access(m: Cells) -> None:
    """A device is about to be asked: let that be at the end of a block (native only).

    So the device sees the time of the instruction, and if it wants the VMM, the next one waits.
    """
    if m[mc.NATIVE] == 0 or m[mc.STEPPING] != 0:
        return
    return_address = peek64(m[mc.CPU] + at.IO_PC)
    locate(m, m[mc.CPU], return_address)
    if m[mc.BEHIND] != 0:
        execute_again(m, m[mc.CPU], return_address, 1)


@jit
@inlined
def set_deadline(m: Cells) -> None:
    """When a block has to look before it begins: early enough to be cut where time is up."""
    end = min(m[mc.TIMER_END], m[mc.NESTED_TIMER_END], m[mc.BUDGET_END])
    m[mc.DEADLINE] = end - mc.LONGEST_BLOCK


@jit
def cut_where_time_is_up(m: Cells, count: int, return_address: int) -> None:
    """A block of `count` instructions is about to begin: let it end where time does."""
    left = min(m[mc.TIMER_END], m[mc.NESTED_TIMER_END], m[mc.BUDGET_END]) - m[mc.TIME]
    if 0 < left < count and m[mc.STEPPING] == 0:
        m[mc.TIME] += count
        cut_block(m, return_address, left)


SLOTS = {
    "restore_state_to_opc": on_restore,
    "cpu_restore_state": on_restore_at,
    "tcg_region_reset_all": on_code_is_dropped,
}
"""As `coherence.SLOTS`."""
