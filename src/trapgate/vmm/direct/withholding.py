"""R/W taken away in every entry that would let the guest write to a table (¶70, ¶76); compiled.

An entry of a last-level table must not let it write to a table, and one of an upper table not to
a table that is of an upper level itself: by self-mapping its entries are the last of a walk. The
R/W that the guest has set there is *withheld*: it is 0 in memory, and a bit remembers it. When the
frame is a table no more, or the entry no entry, the guest gets it back.

A 4-MByte page with a table in it is *split*: the entry leads to a table of the VMM's instead, as
long as there is one left. With none left R/W is withheld in the entry itself.

Nothing is counted: `review` looks at what is in memory. So filters may take mappings and
rights away unseen. `state`, `mem` and `counts` are those of `linking`. What the VMM has done is in
the rows of `book`:

- WITHHELD has a bit an entry;
- HELD has a bit a frame in which R/W is withheld or an entry leads to a table of the VMM's;
- CHANGED has a bit a frame that has been stored to, and in its last cell whether any has;
- SPLITS has two cells a table of the VMM's: 0, or 1 more than the number of the entry in memory
  that leads to it; and what the guest wrote there.
"""

from typing import Final

from trapgate.compiler.dialect import Cells, Rows
from trapgate.decision.frame_filters import TABLES_STALE
from trapgate.paging.frame_map import TABLE
from trapgate.vmm.direct.linking import (
    ADDRESS,
    FRAMES,
    LARGE_PAGES,
    LIBRARY,
    MAP,
    PS,
    SPLIT_TABLES,
    STALE,
    VMMS_TABLES,
    P,
    byte_of,
    entry_at,
    leads_to_table,
)

WITHHELD, HELD, CHANGED, SPLITS, BOOK_ROWS = range(5)
W, U = 2, 4
_ACCESSED, _DIRTY = 0x20, 0x40
_FLAGS: Final = 0x17F & ~PS
"""Flags of an entry for a 4-MByte page that mean the same in one for a page of 4 KiB."""
_ENTRIES: Final = 1024
_TABLES: Final = 0x0101_0101_0101_0101
assert TABLE == 1


@LIBRARY.inside
def put_entry(mem: Cells, book: Rows, frame: int, n: int, entry: int) -> None:
    """Store an entry of four bytes, and say so."""
    shift = (n & 1) << 5
    at = frame << 9 | n >> 1
    mem[at] = mem[at] & ~(0xFFFF_FFFF << shift) | entry << shift
    book[CHANGED][frame >> 6] |= 1 << (frame & 63)
    book[CHANGED][len(book[CHANGED]) - 1] = 1


@LIBRARY.inside
def is_withheld(book: Rows, frame: int, n: int) -> bool:
    """Whether R/W of an entry is withheld."""
    return bool(book[WITHHELD][frame << 4 | n >> 6] >> (n & 63) & 1)


@LIBRARY.inside
def withhold(mem: Cells, book: Rows, frame: int, n: int, entry: int) -> None:
    """Take R/W away from an entry."""
    book[WITHHELD][frame << 4 | n >> 6] |= 1 << (n & 63)
    book[HELD][frame >> 6] |= 1 << (frame & 63)
    put_entry(mem, book, frame, n, entry & ~W)


@LIBRARY.inside
def give_back(state: Cells, mem: Cells, book: Rows, frame: int, n: int) -> None:
    """Give an entry whose R/W is withheld its R/W back, unless a filter has removed it."""
    book[WITHHELD][frame << 4 | n >> 6] &= ~(1 << (n & 63))
    entry = entry_at(state, mem, frame, n)
    if entry & P != 0:
        put_entry(mem, book, frame, n, entry | W)


@LIBRARY.inside
def has_bits(book: Rows, frame: int) -> bool:
    """Whether R/W of some entry of a table is withheld."""
    some = 0
    for n in range(16):
        some |= book[WITHHELD][frame << 4 | n]
    return bool(some != 0)


# Large pages.


@LIBRARY.inside
def is_large(state: Cells, entry: int) -> bool:
    """Whether a present entry of an upper table is one for a 4-MByte page."""
    return bool(entry & PS != 0 and state[LARGE_PAGES] != 0)


@LIBRARY.inside
def holds_table(state: Cells, mem: Cells, entry: int) -> bool:
    """Whether a table lies in a 4-MByte page."""
    first = (entry & ADDRESS) >> 12 & ~(_ENTRIES - 1)
    found = False
    for n in range(first, first + _ENTRIES):
        found = found or byte_of(state, mem, n) & TABLE != 0
    return bool(found)


@LIBRARY.inside
def split_of(state: Cells, book: Rows, frame: int, n: int, entry: int) -> int:
    """Which of the VMM's tables an entry leads to in place of a 4-MByte page; -1 for none."""
    slot: int = ((entry & ADDRESS) >> 12) - state[VMMS_TABLES]
    if (
        entry & P != 0
        and 0 <= slot < state[SPLIT_TABLES]
        and book[SPLITS][2 * slot] == (frame << 10 | n) + 1
    ):
        return slot
    return -1


@LIBRARY.inside
def split(
    state: Cells,
    mem: Cells,
    book: Rows,
    frame: int,
    n: int,
    entry: int,
) -> bool:
    """Make an entry for a 4-MByte page lead to a table of the VMM's; whether one was left."""
    for slot in range(state[SPLIT_TABLES]):
        if book[SPLITS][2 * slot] == 0:
            book[SPLITS][2 * slot] = (frame << 10 | n) + 1
            book[SPLITS][2 * slot + 1] = entry
            book[HELD][frame >> 6] |= 1 << (frame & 63)
            table = state[VMMS_TABLES] + slot
            page = entry & ADDRESS & ~0x3F_F000 | entry & _FLAGS
            for below in range(_ENTRIES):
                put_entry(mem, book, table, below, page)
                if byte_of(state, mem, page >> 12) & TABLE != 0:
                    withhold(mem, book, table, below, page)
                page += 1 << 12
            put_entry(mem, book, frame, n, table << 12 | entry & _FLAGS)
            return True
    return False


@LIBRARY.inside
def join(state: Cells, mem: Cells, book: Rows, slot: int) -> None:
    """Restore an entry to the 4-MByte page that the guest wrote, with changes since then."""
    table = state[VMMS_TABLES] + slot
    place = book[SPLITS][2 * slot] - 1
    entry = entry_at(state, mem, place >> 10, place & _ENTRIES - 1)
    if split_of(state, book, place >> 10, place & _ENTRIES - 1, entry) == slot:
        dirty = 0
        for n in range(_ENTRIES):
            dirty |= entry_at(state, mem, table, n) & _DIRTY
        kept = book[SPLITS][2 * slot + 1] & ~(W | U) | entry & (W | U | _ACCESSED) | dirty
        put_entry(mem, book, place >> 10, place & _ENTRIES - 1, kept)
        state[STALE] = max(state[STALE], TABLES_STALE)
    book[SPLITS][2 * slot] = 0
    for n in range(16):
        book[WITHHELD][table << 4 | n] = 0


@LIBRARY.inside
def stays_split(state: Cells, mem: Cells, counts: Cells, book: Rows, slot: int) -> bool:
    """Whether an entry of an upper table still leads to a table of the VMM's, for good reason."""
    place = book[SPLITS][2 * slot] - 1
    frame = place >> 10
    entry = entry_at(state, mem, frame, place & _ENTRIES - 1)
    return bool(
        is_upper(state, counts, frame)
        and state[LARGE_PAGES] != 0
        and split_of(state, book, frame, place & _ENTRIES - 1, entry) == slot
        and holds_table(state, mem, book[SPLITS][2 * slot + 1])
    )


# Entries.


@LIBRARY.inside
def is_upper(state: Cells, counts: Cells, frame: int) -> bool:
    """Whether a frame is a table of the upper level."""
    return bool(frame < state[FRAMES] and counts[frame * 4 + 1] != 0)


@LIBRARY.inside
def would_write_to_table(state: Cells, mem: Cells, counts: Cells, frame: int, entry: int) -> bool:
    """Whether a present entry of a table would, with R/W, let the guest write to some table."""
    target = (entry & ADDRESS) >> 12
    if not is_upper(state, counts, frame):
        return bool(byte_of(state, mem, target) & TABLE != 0)
    if leads_to_table(state, entry):
        return is_upper(state, counts, target)
    return holds_table(state, mem, entry)


@LIBRARY.inside
def review_entry(
    state: Cells,
    mem: Cells,
    counts: Cells,
    book: Rows,
    frame: int,
    n: int,
) -> None:
    """Withhold R/W of a table's entry, or give it back."""
    entry = entry_at(state, mem, frame, n)
    without = is_withheld(book, frame, n)
    if (
        entry & P == 0
        or (not entry & W and not without)
        or not would_write_to_table(state, mem, counts, frame, entry)
    ):
        if without:
            give_back(state, mem, book, frame, n)
    elif entry & W:
        upper = is_upper(state, counts, frame) and is_large(state, entry)
        if not upper or not split(state, mem, book, frame, n, entry):
            withhold(mem, book, frame, n, entry)


# For Python.


@LIBRARY.entry
def show(
    state: Cells,
    mem: Cells,
    book: Rows,
    frame: int,
    first: int,
    count: int,
) -> None:
    """Restore entries to what the guest wrote, until they are reviewed."""
    for n in range(first, first + count):
        slot = split_of(state, book, frame, n, entry_at(state, mem, frame, n))
        if slot >= 0:
            join(state, mem, book, slot)
        if is_withheld(book, frame, n):
            give_back(state, mem, book, frame, n)


@LIBRARY.entry
def review_some(
    state: Cells,
    mem: Cells,
    counts: Cells,
    book: Rows,
    frame: int,
    first: int,
    count: int,
) -> None:
    """The same as `review`, of a table's entries that have been shown."""
    for n in range(first, first + count):
        review_entry(state, mem, counts, book, frame, n)


@LIBRARY.entry
def review(
    state: Cells,
    mem: Cells,
    counts: Cells,
    book: Rows,
) -> None:
    """Withhold R/W wherever it would let the guest write to a table; give back what is withheld
    elsewhere.
    """
    for slot in range(state[SPLIT_TABLES]):
        if book[SPLITS][2 * slot] != 0 and not stays_split(state, mem, counts, book, slot):
            join(state, mem, book, slot)
    start = state[MAP] >> 3
    for cell in range((state[FRAMES] + 7) >> 3):
        kept = book[HELD][cell >> 3] >> ((cell & 7) << 3) & 0xFF
        if mem[start + cell] & _TABLES | kept != 0:
            for frame in range(cell * 8, min(cell * 8 + 8, state[FRAMES])):
                bit = 1 << (frame & 63)
                if byte_of(state, mem, frame) & TABLE != 0:
                    for n in range(_ENTRIES):
                        review_entry(state, mem, counts, book, frame, n)
                elif book[HELD][frame >> 6] & bit != 0:
                    for n in range(_ENTRIES):
                        if is_withheld(book, frame, n):
                            give_back(state, mem, book, frame, n)
                if book[HELD][frame >> 6] & bit != 0 and not has_bits(book, frame):
                    book[HELD][frame >> 6] &= ~bit
    for slot in range(state[SPLIT_TABLES]):
        if book[SPLITS][2 * slot] != 0:
            frame = book[SPLITS][2 * slot] - 1 >> 10
            book[HELD][frame >> 6] |= 1 << (frame & 63)
            for n in range(_ENTRIES):
                review_entry(
                    state,
                    mem,
                    counts,
                    book,
                    state[VMMS_TABLES] + slot,
                    n,
                )
