"""Physical memory as the core sees it: one array of 64-bit words, little endian.

The array is RAM from physical address 0 up. Outside of it there is nothing: reads
give all ones and writes go nowhere, as on an open bus. Only operands of instructions
(`load_operand`, `store_operand`) may lie in devices. Every access checks its
bounds itself, for compiled code would not, and guests choose the addresses.
Values narrower than 64 bits are zero-extended; a 64-bit value is the word's own
two's complement, so it may be negative.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.compiler.raw import call, watched

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
"""How many pages have WRITTEN_PAGE: the log of their numbers is behind the cells of the pages."""
WATCH_TRANSLATIONS = 72
TRANSLATION_SLOTS = 32
"""Those translations, two cells each: where, and how many (a power of two)."""
WATCH_PAGES = 136
"""The first cell of those that say, a page each, what is to be watched there."""
WATCHED_PAGE = 1
"""Of such a cell: stores to this page are noted."""
WRITTEN_PAGE = 4
"""... this page was stored to since somebody cleared the bit, and is in the log."""


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
    if len(watch) == 0:
        return
    note_page(watch, len(mem) >> 9, cell >> 9)
    if watch[WATCH_PAGES + (cell >> 9)] & WATCHED_PAGE == 0:
        return
    count = watch[WATCH_COUNT]
    if count > NOTED_MOST or (count > 0 and watch[count] == cell):
        return
    watch[WATCH_COUNT] = count + 1
    if count < NOTED_MOST:
        watch[count + 1] = cell


@core
def load8(mem: Memory, pa: int) -> int:
    """Read the byte at physical address `pa`; FFH outside RAM."""
    if pa < 0 or (pa >> 3) >= len(mem):
        return 0xFF
    word: int = mem[pa >> 3]
    return (word >> ((pa & 7) << 3)) & 0xFF


@core
def store8(mem: Memory, pa: int, value: int) -> None:
    """Write the low 8 bits of `value` at physical address `pa`; dropped outside RAM."""
    if pa < 0 or (pa >> 3) >= len(mem):
        return
    note_store(mem, pa >> 3)
    shift = (pa & 7) << 3
    word: int = mem[pa >> 3]
    # All bits of the byte cleared, then set: for the top byte 0xFF << 56 would not
    # fit a signed 64-bit integer, so the sign comes from shifting -256 back in.
    byte = value & 0xFF
    if shift == 56:
        if byte > 0x7F:
            byte -= 0x100
        mem[pa >> 3] = (word & 0x00FF_FFFF_FFFF_FFFF) | (byte << 56)
    else:
        mem[pa >> 3] = (word & ~(0xFF << shift)) | (byte << shift)


@core
def load16(mem: Memory, pa: int) -> int:
    """Read 16 bits at physical address `pa`, zero-extended; any alignment."""
    if (pa & 7) <= 6 and pa >= 0 and (pa >> 3) < len(mem):
        word: int = mem[pa >> 3]
        return (word >> ((pa & 7) << 3)) & 0xFFFF
    return load8(mem, pa) | (load8(mem, pa + 1) << 8)


@core
def store16(mem: Memory, pa: int, value: int) -> None:
    """Write the low 16 bits of `value` at physical address `pa`; any alignment."""
    store8(mem, pa, value)
    store8(mem, pa + 1, value >> 8)


@core
def load32(mem: Memory, pa: int) -> int:
    """Read 32 bits at physical address `pa`, zero-extended; any alignment."""
    if (pa & 7) <= 4 and pa >= 0 and (pa >> 3) < len(mem):
        word: int = mem[pa >> 3]
        return (word >> ((pa & 7) << 3)) & 0xFFFF_FFFF
    return load16(mem, pa) | (load16(mem, pa + 2) << 16)


@core
def store32(mem: Memory, pa: int, value: int) -> None:
    """Write the low 32 bits of `value` at physical address `pa`; any alignment."""
    if (pa & 3) == 0 and pa >= 0 and (pa >> 3) < len(mem):
        note_store(mem, pa >> 3)
        word: int = mem[pa >> 3]
        if (pa & 4) == 0:
            mem[pa >> 3] = (word & ~0xFFFF_FFFF) | (value & 0xFFFF_FFFF)
        else:
            high = ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000
            mem[pa >> 3] = (word & 0xFFFF_FFFF) | (high << 32)
        return
    store16(mem, pa, value)
    store16(mem, pa + 2, value >> 16)


@core
@inlined
def load64(mem: Memory, pa: int) -> int:
    """Read 64 bits at physical address `pa`, two's complement; any alignment."""
    if (pa & 7) == 0 and pa >= 0 and (pa >> 3) < len(mem):
        word: int = mem[pa >> 3]
        return word
    high = (load32(mem, pa + 4) ^ 0x8000_0000) - 0x8000_0000
    return load32(mem, pa) | (high << 32)


@core
@inlined
def store64(mem: Memory, pa: int, value: int) -> None:
    """Write 64 bits at physical address `pa`; any alignment."""
    if (pa & 7) == 0 and pa >= 0 and (pa >> 3) < len(mem):
        note_store(mem, pa >> 3)
        mem[pa >> 3] = value
        return
    store32(mem, pa, value)
    store32(mem, pa + 4, value >> 32)


@core
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
