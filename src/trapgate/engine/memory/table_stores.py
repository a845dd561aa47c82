"""Writes to page tables that a fault filter may let through (native path only).

A store that R/W alone stops, to a page of the self-mapped tables, gets a TLB entry for
this one access that leads to a page of MMIO. The callback of that page is given the data
before anything is stored, judges them, and stores them or raises the page fault. See
docs/adr/0011.

Only an aligned store by an instruction that stores once comes here: whatever comes in
parts is for `trapgate.processor.table_writes`. Compiled only.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, memory, peek32, peek64, poke32, table
from trapgate.decision.decide import COMPLETE, EXIT, decide_filtered
from trapgate.decision.entry_facts import entry_facts
from trapgate.decision.frame_filters import (
    ALL_STALE,
    entry_written,
    follow_links,
    is_stopped_table_write,
    judge_entries,
)
from trapgate.decision.self_map import entry_of, entry_size, merged
from trapgate.decode.read_modify_write import repeats, stores_once
from trapgate.engine import machine as mc
from trapgate.engine.guest.clock import locate
from trapgate.engine.guest.state import save_for_criteria, save_paging
from trapgate.engine.library import layout as at
from trapgate.engine.memory.coherence import CODE, forget_stale_code, pages_of
from trapgate.engine.memory.tlb import set_entry
from trapgate.events.journal import (
    HEAD_DATA,
    HEAD_ENTRY,
    HEAD_OLD_VALUE,
    HEAD_SEQUENCE,
    HEAD_TIME,
    ROW_WIDTH,
    record,
)
from trapgate.paging.alias import unaliased
from trapgate.paging.frame_map import has_frame_map
from trapgate.paging.memory import load8, load64, store_sized
from trapgate.paging.walk import walk
from trapgate.sdm import cells as f
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION
from trapgate.sdm.vectors import PF

_AC = 0x40000
_WP = 0x10000
_FRAME = 0xFF_FFFF_F000
_DPL = 0x60
_KNOSMAP = 2
"""The engine's MMU index of supervisor accesses that SMAP does not restrict."""


@jit
def code_at_rip(m: Cells) -> int:
    """Eight bytes of code at RIP, little endian; what cannot be read is 0.

    The VMCS in force has the engine's control registers.
    """
    env = m[mc.ENV]
    linear = peek64(env + at.EIP)
    if peek32(env + at.HFLAGS) & at.HF_CS64 == 0:
        linear = (linear + peek64(env + at.SEGMENTS + at.SEGMENT_SIZE + at.BASE)) & 0xFFFFFFFF
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    v = cells(m[mc.V], m[mc.V_CELLS])
    word = 0
    n = 0
    while n < 8:
        physical, code, _, _ = walk(v, _AC, mem, linear + n, 0, 0)
        if code >= 0:
            return word
        if n == 0 and linear & 0xFFF <= 0xFF8:
            return int(load64(mem, physical))
        word |= load8(mem, physical) << (8 * n)
        n += 1
    return word


@jit
@inlined
def is_reuse(v: Cells, word: int, long: bool, physical: int) -> bool:
    """Whether a repeated string store goes to a table, other than the loaded root.

    Whoever fills a whole table wants its frame for something else, which its VMM should know.
    """
    if not has_frame_map(v) or (unaliased(v, physical) ^ v[f.GUEST_CR3]) & _FRAME == 0:
        return False
    return repeats(word, long)


@jit
def intercept_store(
    m: Cells,
    cpu: int,
    address: int,
    size: int,
    user: int,
    code: int,
    mmu_index: int,
    return_address: int,
) -> bool:
    """Redirect a store that would fault with `code`; False if no filter may judge it here.

    The walk that found the fault was the last thing that happened.
    """
    v = cells(m[mc.V], m[mc.V_CELLS])
    if not is_stopped_table_write(v, code):
        return False
    if return_address == 0 or address & (size - 1) != 0:
        return False
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    kind, physical = entry_written(v, _AC if mmu_index == _KNOSMAP else 0, mem, address, user)
    if kind == 0 or pages_of(m)[physical >> 12] & CODE:
        # Code in a page table: the block itself may be what the store changes.
        return False
    locate(m, cpu, return_address)
    word = code_at_rip(m)
    long = peek32(m[mc.ENV] + at.HFLAGS) & at.HF_CS64 != 0
    if not stores_once(word, long) or is_reuse(v, word, long, physical):
        return False
    m[mc.STORE_LINEAR] = address
    m[mc.STORE_PHYSICAL] = physical
    m[mc.STORE_KIND] = kind
    m[mc.STORE_SIZE] = size
    m[mc.STORE_CODE] = code
    m[mc.STORE_RETURN] = return_address
    m[mc.STORE_INDEX] = mmu_index
    # An entry for less than a page is used once.
    set_entry(m, cpu, address & ~0xFFF, at.STORES, 2, mmu_index, 1)
    return True


@jit
def judge_table_store(m: Cells, offset: int, size: int, value: int) -> None:
    """The data of a redirected store: let it through, or raise the page fault instead."""
    if size < m[mc.STORE_SIZE]:
        # Eight bytes come in halves.
        if offset & 4 == 0:
            m[mc.STORE_LOW] = value & 0xFFFFFFFF
            return
        value = value << 32 | m[mc.STORE_LOW]
        size = m[mc.STORE_SIZE]
    env = m[mc.ENV]
    v = cells(m[mc.V], m[mc.V_CELLS])
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    r = cells(m[mc.R], m[mc.R_CELLS])
    head = cells(m[mc.HEAD], m[mc.HEAD_CELLS])
    if v[f.CRITERIA_TABLE_RULES] != 0:
        save_for_criteria(m, env, v, r)
    else:
        save_paging(env, v)
    cr4 = v[f.GUEST_CR4]
    physical = m[mc.STORE_PHYSICAL]
    code = m[mc.STORE_CODE]
    kind = m[mc.STORE_KIND]
    linear = m[mc.STORE_LINEAR]
    refused, which = judge_entries(v, r, mem, code, linear, kind, physical, size, value)
    disposition, reason = EXIT, 0
    if refused < 0:
        disposition, reason = decide_filtered(v, code, which)
    width = entry_size(cr4)
    entry = refused if refused >= 0 else physical & ~(width - 1)
    old = entry_of(mem, entry, width)
    new = merged(old, entry - physical, width, size, value)
    head[HEAD_ENTRY] = entry_facts(v, mem, kind, entry, new)
    head[HEAD_DATA] = new
    head[HEAD_OLD_VALUE] = old
    if disposition == COMPLETE:
        # As if R/W allowed it, which to a supervisor without WP it does.
        v[f.GUEST_CR0] &= ~_WP
        length = v[f.FRAME_MAP_LENGTH]
        v[f.FRAME_MAP_LENGTH] = 0
        _, _, _, page_size = walk(v, _AC, mem, m[mc.STORE_LINEAR], 1, 0)
        v[f.FRAME_MAP_LENGTH] = length
        v[f.GUEST_CR0] = peek64(env + at.CR0)
        # The engine caches translations, and nothing of the paging structures above.
        if follow_links(v, mem, kind, physical, size, value) == ALL_STALE:
            call(m[mc.TLB_FLUSH], (m[mc.CPU],))
        store_sized(mem, physical, size, value)
        v[f.GUEST_RIP] = peek64(env + at.EIP)
        cpl = peek32(env + at.HFLAGS) & 3
        v[f.GUEST_SS_ACCESS_RIGHTS] = (v[f.GUEST_SS_ACCESS_RIGHTS] & ~_DPL) | cpl << 5
        # What is after it in the block has been counted already.
        head[HEAD_TIME] = m[mc.TIME] - m[mc.BEHIND]
        rows = table(m[mc.ROWS], m[mc.ROWS_CAPACITY], ROW_WIDTH)
        record(v, rows, head, PF, TYPE_HARDWARE_EXCEPTION, code, linear, COMPLETE, reason, 0, 0)
        if head[HEAD_SEQUENCE] >= m[mc.JOURNAL_LIMIT]:
            m[mc.ATTENTION] |= mc.AT_ONCE
            m[mc.DEADLINE] = 0
        # The page is read before and after: one refill less.
        page = m[mc.STORE_LINEAR] & ~0xFFF
        set_entry(m, m[mc.CPU], page, physical & ~0xFFF, 1, m[mc.STORE_INDEX], page_size)
        forget_stale_code(m)
        return
    m[mc.FAULT_KIND] = mc.FAULT_JUDGED
    m[mc.FAULT_ADDRESS] = m[mc.STORE_LINEAR]
    m[mc.FAULT_CODE] = code
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + 14)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], m[mc.STORE_RETURN]))
