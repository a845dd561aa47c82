"""Translated code and the memory that it was made from: who stores there, and what is dropped.

A block of translated code is a copy of guest code. Whoever stores to the bytes that it was made
from has to drop it before the next instruction is executed:

* Stores of the guest's, by any alias of the page, go through `on_store`: the engine tells
  by `on_code_appears` and `on_code_is_gone` which physical pages have code, and no TLB entry
  of such a page may store without asking (`on_fast_stores`).
* Stores of the core (frames of deliveries, accessed and dirty flags, descriptors, VMCS
  regions, MSR areas) are noted by `paging.memory`, and forgotten by `forget_stale_code`.
* Stores from outside (a VMM, devices) come to `UnicornEngine.forget_code`.

All three mark the page as written, too, for snapshots (`written_pages`): a TLB entry that asks no
more has asked once.

The engine calls the first four through slots of its procedure linkage table (Linux
only). Where there are none, each store has to be hooked. `audit` looks whether
all this is true.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import BOUND, INT32, INT64, UINT32, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek64
from trapgate.engine import machine as mc
from trapgate.engine.guest.clock import execute_again
from trapgate.engine.library import layout as at
from trapgate.paging.memory import (
    NOTED_MOST,
    WATCH_COUNT,
    WATCH_PAGES,
    WATCHED_PAGE,
    note_page,
    watch_length,
)

CODE = WATCHED_PAGE
"""Of a page's cell: there may be code that was translated from it."""
FAST_STORES = 2
"""There may be TLB entries by which stores are not told of."""
_STORES = 1 << 8
"""Bits 31:8 count stores to the page since its code was dropped the last time."""
_DROPS = 1 << 32
"""From here on: how often it was."""
_MOST_STORES = 256
"""So many stores, one at a time, cost about what it costs to translate a page's code anew."""
_MOST_DROPS = 8
_WIDEST = 8
"""Bytes of the widest store that the engine takes apart."""
_FLUSH_CODE = 1 << 30 | 10
"""Unicorn's control of that name, to be written, without arguments."""


@jit
def machine_of(uc: int) -> int:
    """The address of the cells of the machine that an engine's handle belongs to, or 0."""
    return peek64(peek64(uc + at.CPU_OF_HANDLE) + at.CPU_SIZE + at.MACHINE)


@jit
def pages_of(m: Cells) -> Cells:
    """A cell for each page of memory."""
    return cells(m[mc.WATCH] + 8 * WATCH_PAGES, m[mc.MEM_CELLS] >> 9)


@jit
def page_of(machine: int, address: int) -> int:
    """The number of the page of a machine's memory that has a physical address; -1: none has it.

    Nor where there is no machine, and `machine` is 0.
    """
    page = address >> 12
    if machine == 0 or not 0 <= page < cells(machine, mc.CELLS)[mc.MEM_CELLS] >> 9:
        return -1
    return page


@jit
def watch_of(m: Cells) -> Cells:
    """All cells that watch memory."""
    return cells(m[mc.WATCH], watch_length(m[mc.MEM_CELLS] >> 9))


@jit
def forget_range(m: Cells, start: int, end: int) -> None:
    """Drop what was translated from physical [start, end)."""
    if m[mc.TB_INVALIDATE] != 0:
        call(m[mc.TB_INVALIDATE], (m[mc.UC], start, end))
    else:
        call(m[mc.UC_CTL], (m[mc.UC], _FLUSH_CODE))


@jit
@inlined
def forget_stale_code(m: Cells) -> bool:
    """Drop what was translated from memory that the core has changed; whether it has."""
    return peek64(m[mc.WATCH] + 8 * WATCH_COUNT) != 0 and forget_noted_cells(m)


@jit
def forget_noted_cells(m: Cells) -> bool:
    """`forget_stale_code` where the core has changed such memory."""
    watch = cells(m[mc.WATCH], WATCH_PAGES)
    count = watch[WATCH_COUNT]
    watch[WATCH_COUNT] = 0
    if count > NOTED_MOST:
        forget_range(m, 0, m[mc.MEM_CELLS] * 8)
        return True
    first = last = watch[1]
    for n in range(2, count + 1):
        cell = watch[n]
        # A frame is stored downwards.
        if first - 1 <= cell <= last + 1:
            first = min(first, cell)
            last = max(last, cell)
        else:
            forget_range(m, first * 8, last * 8 + 8)
            first = last = cell
    forget_range(m, first * 8, last * 8 + 8)
    return True


@callback(VOID, INT64, INT64, BOUND)
def on_code_appears(uc: int, address: int, protect: int) -> None:
    """tlb_protect_code: the first block is about to be made of a page. The engine does nothing."""
    machine = machine_of(uc)
    page = page_of(machine, address)
    if page < 0:
        return
    m = cells(machine, mc.CELLS)
    pages = pages_of(m)
    if pages[page] & FAST_STORES:
        host = m[mc.MEM] + (address & ~0xFFF)
        call(m[mc.TLB_RESET_DIRTY], (peek64(uc + at.CPU_OF_HANDLE), host, 4096))
        # That was for the tables in use.
        m[mc.PARKED] = 0
    pages[page] = pages[page] & ~FAST_STORES | CODE


@callback(VOID, INT64, INT64, BOUND)
def on_code_is_gone(uc: int, address: int, unprotect: int) -> None:
    """tlb_unprotect_code: a page has no more blocks. The engine does nothing."""
    machine = machine_of(uc)
    page = page_of(machine, address)
    if page >= 0:
        pages_of(cells(machine, mc.CELLS))[page] &= ~CODE


@jit
def begins(m: Cells, start: int, return_address: int) -> bool:
    """Whether the store of a byte begins an access, rather than going on with one.

    The engine makes an unaligned store byte by byte. Whoever has an instruction executed again
    after some of them has a read-modify-write work on its own result. Bytes without a gap by one
    instruction are accesses of one size, which divides 8; those that come in from the page before
    may have begun there.
    """
    if start != m[mc.STORED_BYTE] + 1 or return_address != m[mc.STORED_BY]:
        m[mc.STORED_FROM] = start
    m[mc.STORED_BYTE] = start
    m[mc.STORED_BY] = return_address
    first = m[mc.STORED_FROM]
    return bool((start - first) % _WIDEST == 0 and first & 0xFFF >= _WIDEST)


@callback(VOID, INT64, INT64, INT64, INT32, INT64, BOUND)
def on_store(
    uc: int, locked: int, start: int, size: int, return_address: int, invalidate: int
) -> None:
    """tb_invalidate_phys_page_fast: a store by a TLB entry that asks first.

    A page whose code is not executed any more must not stay slow, so after a number of stores
    all its code goes; after four times as many if it comes back.
    """
    machine = machine_of(uc)
    if machine == 0:
        call(invalidate, (uc, locked, start, size, return_address))
        return
    m = cells(machine, mc.CELLS)
    pages = pages_of(m)
    page = start >> 12
    m[mc.STORED_PAGE] = page
    if not 0 <= page < len(pages):
        return
    note_page(watch_of(m), len(pages), page)
    if pages[page] & CODE == 0:
        return
    if size == 1 and return_address != 0:
        if not begins(m, start, return_address):
            call(invalidate, (uc, locked, start, 1, return_address))
            return
        # What the bytes after would have executed again is so now, before one of them is stored.
        size = min(_WIDEST, 4096 - (start & 0xFFF))
    call(invalidate, (uc, locked, start, size, return_address))
    state = pages[page]
    if state & CODE == 0 or return_address == 0 or m[mc.NATIVE] == 0:
        return
    drops = state >> 32
    if (state & 0xFFFFFFFF) >> 8 < _MOST_STORES << (2 * drops):
        pages[page] = state + _STORES
        return
    pages[page] = min(drops + 1, _MOST_DROPS) * _DROPS | state & 0xFF
    forget_range(m, page << 12, (page + 1) << 12)
    # The block that stores may be one of those: execute the instruction alone, and again.
    execute_again(m, m[mc.CPU], return_address, 1)


@callback(VOID, INT64, INT64, BOUND)
def on_fast_stores(cpu: int, linear: int, set_dirty: int) -> None:
    """tlb_set_dirty: after a store, the TLB entry of `linear` needs to ask no more."""
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    if machine != 0:
        m = cells(machine, mc.CELLS)
        pages = pages_of(m)
        page = m[mc.STORED_PAGE]
        if 0 <= page < len(pages):
            if pages[page] & CODE:
                return
            pages[page] |= FAST_STORES
    call(set_dirty, (cpu, linear))


@callback(VOID, INT64, INT64, INT64, BOUND)
def on_block_made(cpu: int, linear: int, size: int, reset_dirty: int) -> None:
    """tlb_reset_dirty_by_vaddr: the block's pages must ask again, by one linear address of theirs.

    They do, by all: see `on_code_appears` and `on_fast_stores`. The engine looks through its whole
    TLB for each block that it makes.
    """
    if peek64(cpu + at.CPU_SIZE + at.MACHINE) == 0:
        call(reset_dirty, (cpu, linear, size))


@callback(VOID, INT64, INT64, UINT32, BOUND)
def on_marked_entry(cpu: int, address: int, value: int, store: int) -> None:
    """x86_stl_phys_notdirty: the engine's own page walk sets flags in an entry (portable only)."""
    call(store, (cpu, address, value))
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    page = page_of(machine, address)
    if page < 0:
        return
    m = cells(machine, mc.CELLS)
    pages = pages_of(m)
    note_page(watch_of(m), len(pages), page)
    if pages[page] & CODE:
        forget_range(m, address, address + 4)


SLOTS = {
    "tlb_protect_code": on_code_appears,
    "tlb_unprotect_code": on_code_is_gone,
    "tb_invalidate_phys_page_fast": on_store,
    "tlb_reset_dirty_by_vaddr": on_block_made,
    "tlb_set_dirty": on_fast_stores,
    "x86_stl_phys_notdirty": on_marked_entry,
}
"""The engine's functions, and ours that are called instead, bound to the engine's addresses."""
