"""Physical memory as the core sees it: one array of 64-bit words, little endian.

The array is RAM from physical address 0 up. Outside of it there is nothing: reads
give all ones and writes go nowhere, as on an open bus. Only operands of instructions
(`load_operand`, `store_operand`) may lie in devices. Every access checks its
bounds itself, for compiled code would not, and guests choose the addresses.
Values narrower than 64 bits are zero-extended; a 64-bit value is the word's own
two's complement, so it may be negative.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.compiler.raw import call, peek_in, poke_in, watched

MAXPHYADDR = 40
"""Width of physical addresses in bits."""


WATCH_COUNT = 0
"""Of the cells in which stores are watched (`compiler.raw.watched`): how many were noted, and then
the numbers of the cells of memory that they changed."""
NOTED_MOST = 62
"""More are not noted one by one: WATCH_COUNT is then one more."""
WATCH_LOAD = 64
WATCH_STORE = 65
"""The functions to call for loads from devices and stores to them: see `engine.device_pages`."""
WATCH_DEVICES = 66
DEVICE_SLOTS = 4
"""The numbers of the pages behind which there are devices, -1 for none: where, and how many."""
WATCH_TRANSLATES = 70
"""Whether the core may use translations that it remembers: see `translations`."""
WATCH_WRITTEN = 71
"""How many pages have WRITTEN_PAGE: the log of their numbers is after the cells of the pages."""
WATCH_TRANSLATIONS = 72
TRANSLATION_SLOTS = 32
"""Those translations, two cells each: where, and how many (a power of two)."""
WATCH_PAGES = 136
"""The first cell of those that say, a page each, what is to be watched there."""
WATCHED_PAGE = 1
"""Of such a cell: stores to this page are noted."""
WRITTEN_PAGE = 4
"""... this page was stored to since somebody cleared the bit, and is in the log."""
_ATTENDED = WATCHED_PAGE | WRITTEN_PAGE


@core
def watch_length(pages: int) -> int:
    """How many cells watch so many pages: those before WATCH_PAGES, the pages', and the log."""
    return WATCH_PAGES + 2 * pages


@core
def note_page(watch: Cells, pages: int, page: int) -> None:
    """Mark one of `pages` as written, and log it if it was not.

    SDM, "Page-Modification Logging", does so for EPT.
    """
    state = watch[WATCH_PAGES + page]
    if state & WRITTEN_PAGE:
        return
    watch[WATCH_PAGES + page] = state | WRITTEN_PAGE
    count = watch[WATCH_WRITTEN]
    watch[WATCH_WRITTEN] = count + 1
    watch[WATCH_PAGES + pages + count] = page


@core
@inlined
def note_store(mem: Memory, cell: int) -> None:
    """Note that a cell of memory changes, if its page is watched: an engine executes copies."""
    watch = watched(mem)
    if len(watch) == 0 or watch[WATCH_PAGES + (cell >> 9)] & _ATTENDED == WRITTEN_PAGE:
        return
    _note_first_or_watched(watch, len(mem) >> 9, cell)


@core
def _note_first_or_watched(watch: Cells, pages: int, cell: int) -> None:
    note_page(watch, pages, cell >> 9)
    if watch[WATCH_PAGES + (cell >> 9)] & WATCHED_PAGE == 0:
        return
    count = watch[WATCH_COUNT]
    if count > NOTED_MOST or (count > 0 and watch[count] == cell):
        return
    watch[WATCH_COUNT] = count + 1
    if count < NOTED_MOST:
        watch[count + 1] = cell


@core
@inlined
def stores_plainly(mem: Memory, pa: int, size: int, count: int) -> bool:
    """Whether `count` words of `size` bytes from `pa` on, in one page, need no more care to store.

    They are RAM and aligned, and nobody wants to know of each store to the page; if so, that it
    is written is noted here.
    """
    if pa < 0 or pa & (size - 1) != 0 or (pa + size * count) >> 3 >= len(mem):
        return False
    watch = watched(mem)
    if len(watch) == 0:
        return True
    state = watch[WATCH_PAGES + (pa >> 12)]
    if state & _ATTENDED == 0:
        note_page(watch, len(mem) >> 9, pa >> 12)
    return bool(state & WATCHED_PAGE == 0)


@core
@inlined
def store_plainly(mem: Memory, pa: int, size: int, value: int) -> None:
    """Write the low `size` bytes (2, 4 or 8) of `value` where `stores_plainly` is true."""
    if size == 4:
        poke_in(mem, pa, 32, value)
    elif size == 8:
        mem[pa >> 3] = value
    else:
        poke_in(mem, pa, 16, value)


@core
@inlined
def holds(mem: Memory, pa: int) -> bool:
    """Whether the byte at physical address `pa` is RAM."""
    return pa >= 0 and (pa >> 3) < len(mem)


@core
@inlined
def holds_eight(mem: Memory, pa: int) -> bool:
    """Whether the eight bytes from physical address `pa` on are RAM, before its last cell."""
    return pa >= 0 and (pa >> 3) < len(mem) - 1


@core
def load8(mem: Memory, pa: int) -> int:
    """Read the byte at physical address `pa`; FFH outside RAM."""
    return peek_in(mem, pa, 8) if holds(mem, pa) else 0xFF


@core
def store8(mem: Memory, pa: int, value: int) -> None:
    """Write the low 8 bits of `value` at physical address `pa`; dropped outside RAM."""
    if holds(mem, pa):
        note_store(mem, pa >> 3)
        poke_in(mem, pa, 8, value)


@core
@inlined
def load16(mem: Memory, pa: int) -> int:
    """Read 16 bits at physical address `pa`, zero-extended; any alignment."""
    return peek_in(mem, pa, 16) if holds_eight(mem, pa) else _load_bytes(mem, pa, 2)


@core
@inlined
def store16(mem: Memory, pa: int, value: int) -> None:
    """Write 16 bits at physical address `pa`; any alignment."""
    if (pa & 7) <= 6 and holds(mem, pa):
        note_store(mem, pa >> 3)
        poke_in(mem, pa, 16, value)
    else:
        _store_bytes(mem, pa, 2, value)


@core
@inlined
def load32(mem: Memory, pa: int) -> int:
    """Read 32 bits at physical address `pa`, zero-extended; any alignment."""
    return peek_in(mem, pa, 32) if holds_eight(mem, pa) else _load_bytes(mem, pa, 4)


@core
@inlined
def store32(mem: Memory, pa: int, value: int) -> None:
    """Write the low 32 bits of `value` at physical address `pa`; any alignment."""
    if (pa & 7) <= 4 and holds(mem, pa):
        note_store(mem, pa >> 3)
        poke_in(mem, pa, 32, value)
    else:
        _store_bytes(mem, pa, 4, value)


@core
@inlined
def load64(mem: Memory, pa: int) -> int:
    """Read 64 bits at physical address `pa`, two's complement; any alignment."""
    return peek_in(mem, pa, 64) if holds_eight(mem, pa) else _load_bytes(mem, pa, 8)


@core
@inlined
def store64(mem: Memory, pa: int, value: int) -> None:
    """Write 64 bits at physical address `pa`; any alignment."""
    if (pa & 7) == 0 and holds(mem, pa):
        note_store(mem, pa >> 3)
        mem[pa >> 3] = value
    else:
        _store_bytes(mem, pa, 8, value)


@core
def _load_bytes(mem: Memory, pa: int, size: int) -> int:
    value = 0
    for n in range(size):
        byte = load8(mem, pa + n)
        if n == 7 and byte > 0x7F:
            byte -= 0x100
        value |= byte << (8 * n)
    return value


@core
def _store_bytes(mem: Memory, pa: int, size: int, value: int) -> None:
    for n in range(size):
        store8(mem, pa + n, value >> (8 * n))


@core
@inlined
def load_sized(mem: Memory, pa: int, size: int) -> int:
    """Read `size` bytes (1, 2, 4 or 8) at physical address `pa`; any alignment."""
    if size == 8:
        return load64(mem, pa)
    if size == 4:
        return load32(mem, pa)
    return load16(mem, pa) if size == 2 else load8(mem, pa)


@core
def load_across(mem: Memory, first: int, second: int, linear: int, size: int) -> int:
    """Read 1, 2, 4 or 8 bytes at a linear address, which may straddle two pages.

    `first` is the physical address of the first byte, `second` that of the second page, which
    counts only if there is one. Eight bytes are two's complement.
    """
    in_first = 0x1000 - (linear & 0xFFF)
    if size <= in_first:
        return load_sized(mem, first, size)
    value = 0
    for n in range(size):
        byte = load8(mem, first + n if n < in_first else second + n - in_first)
        if n == 7 and byte > 0x7F:
            byte -= 0x100
        value |= byte << (8 * n)
    return value


@core
def store_sized(mem: Memory, pa: int, size: int, value: int) -> None:
    """Write the low `size` bytes (1, 2, 4 or 8) of `value` at physical address `pa`."""
    if size == 8:
        store64(mem, pa, value)
    elif size == 4:
        store32(mem, pa, value)
    elif size == 2:
        store16(mem, pa, value)
    else:
        store8(mem, pa, value)


@core
def has_device(watch: Cells, pa: int) -> bool:
    """Whether `pa` belongs to a device; `watch` as of `watched`."""
    found = False
    if len(watch) != 0 and pa >= 0:
        for n in range(DEVICE_SLOTS):
            found = found or watch[WATCH_DEVICES + n] == pa >> 12
    return found


@core
def load_operand(mem: Memory, pa: int, size: int) -> int:
    """Read 1, 2, 4 or 8 bytes of a page, from RAM or a device; 8 are two's complement."""
    watch = watched(mem)
    if (pa >> 3) >= len(mem) and has_device(watch, pa):
        return call(watch[WATCH_LOAD], (pa, size))
    return load_sized(mem, pa, size)


@core
def store_operand(mem: Memory, pa: int, size: int, value: int) -> None:
    """Write 1, 2, 4 or 8 bytes of a page, to RAM or a device."""
    watch = watched(mem)
    if (pa >> 3) >= len(mem) and has_device(watch, pa):
        call(
            watch[WATCH_STORE], (pa, size, value if size == 8 else value & ((1 << (8 * size)) - 1))
        )
    else:
        store_sized(mem, pa, size, value)
