"""Entries of the engine's TLB: they are set here, and all of them are dropped here (native path).

When the engine drops all its entries it overwrites its tables, 16 KiB a mode and more, and the
32 KiB in which it remembers where blocks are: more than the first-level cache of its host holds.
Where few entries have been set since the last time, only those are looked up and overwritten.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, peek32, peek64, poke16, poke64
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at

_MODE = 3
_EXECUTABLE = 4
"""Of an entry that was noted: whose it is, and whether code is fetched by it."""


@jit
@inlined
def set_entry(
    m: Cells, cpu: int, linear: int, physical: int, rights: int, mode: int, size: int
) -> None:
    """Map the page of a linear address to `physical`; both are addresses of pages.

    `rights` are 1 to read, 2 to write, 4 to execute; `size` is the page's, or 1 for an entry that
    serves one access.
    """
    entries = m[mc.ENTRIES + mc.ENTRIES_CELLS * m[mc.SPACE] :]
    entries[0] += 1
    if entries[0] <= mc.ENTRIES_MOST:
        entries[entries[0]] = linear | rights & _EXECUTABLE | mode
    call(m[mc.TLB_SET_PAGE], (cpu, linear, physical, rights, mode, size))


@jit
def drop_entry(entry: int) -> None:
    """Make an entry one for no page."""
    poke64(entry + at.TLB_READ, -1)
    poke64(entry + at.TLB_WRITE, -1)
    poke64(entry + at.TLB_CODE, -1)


@jit
def forget_blocks(cpu: int, linear: int) -> None:
    """Forget where the blocks of a page are."""
    mixed = linear ^ linear >> 6
    slots = cells(cpu + at.BLOCKS_FOUND + 8 * (mixed >> 6 & 0xFC0), at.BLOCKS_OF_PAGE)
    for n in range(at.BLOCKS_OF_PAGE):
        slots[n] = 0


@jit
def drop_noted(cpu: int, entries: Cells) -> None:
    """Drop all entries, which have been noted. A block is found only by an entry for its page."""
    env = cpu + at.CPU_SIZE
    for n in range(1, entries[0] + 1):
        noted = entries[n]
        table = env + at.TLB_TABLES + at.TLB_TABLE_SIZE * (noted & _MODE)
        place = noted >> 12 << at.TLB_ENTRY_SHIFT & peek64(table)
        drop_entry(peek64(table + 8) + place)
        if noted & _EXECUTABLE:
            forget_blocks(cpu, noted)
    for mode in range(at.TLB_MODES):
        description = env + at.TLB_DESCRIPTIONS + at.TLB_DESCRIPTION_SIZE * mode
        if peek64(description + at.TLB_DISPLACED) != 0:
            for n in range(at.TLB_VICTIMS):
                drop_entry(description + at.TLB_VICTIM + (n << at.TLB_ENTRY_SHIFT))
            poke64(description + at.TLB_DISPLACED, 0)
        poke64(description + at.TLB_USED, 0)
        poke64(description + at.TLB_LARGE, -1)
        poke64(description + at.TLB_LARGE_MASK, -1)
    poke16(env + at.TLB_CHANGED, 0)
    entries[0] = 0


@jit
def is_for_no_page(entries: int, count: int) -> bool:
    """Whether none of so many entries is for a page."""
    pages = -1
    for n in range(count):
        entry = entries + (n << at.TLB_ENTRY_SHIFT)
        pages &= peek64(entry + at.TLB_READ) & peek64(entry + at.TLB_WRITE)
        pages &= peek64(entry + at.TLB_CODE)
    return pages == -1


@jit
def is_empty(cpu: int, space: int) -> bool:
    """Whether the TLB's tables for a `space` have no entry, and no block of it is found."""
    env = cpu + at.CPU_SIZE
    for mode in range(at.TLB_MODES):
        table = env + at.TLB_TABLES + at.TLB_TABLE_SIZE * mode
        count = (peek64(table) >> at.TLB_ENTRY_SHIFT) + 1
        victims = env + at.TLB_DESCRIPTIONS + at.TLB_DESCRIPTION_SIZE * mode + at.TLB_VICTIM
        if not is_for_no_page(peek64(table + 8), count):
            return False
        if not is_for_no_page(victims, at.TLB_VICTIMS):
            return False
    found = False
    for slot in range(at.BLOCKS_FOUND_MOST):
        block = peek64(cpu + at.BLOCKS_FOUND + 8 * slot)
        if block != 0 and (peek32(block + at.TB_FLAGS) & at.HF_GUESTS_SET != 0) == (space != 0):
            found = True
    return not found


@jit
def drop_all(machine: int, cpu: int, modes: int, flush: int) -> None:
    """Drop all entries of some modes; `flush` is the engine's way, which may resize its tables."""
    if machine == 0:
        call(flush, (cpu, modes))
        return
    m = cells(machine, mc.CELLS)
    if m[mc.PARKS] == 0:
        m[mc.PARKED] = 0
    entries = m[mc.ENTRIES + mc.ENTRIES_CELLS * m[mc.SPACE] :]
    if entries[0] <= mc.ENTRIES_MOST and modes == (1 << at.TLB_MODES) - 1:
        drop_noted(cpu, entries)
        if m[mc.AUDIT] != 0 and not is_empty(cpu, m[mc.SPACE]):
            m[mc.LEFT_OVER] = 1
        return
    call(flush, (cpu, modes))
    if m[mc.NATIVE] != 0 and modes == (1 << at.TLB_MODES) - 1:
        entries[0] = 0
