"""Links between paging structures, counted; compiled, for a new root leads to many entries.

`counts` has four cells a frame: how many links lead to it as a table of level 1 (the last) to 4.
`state` holds what the functions have to know and what came of them, by the names below. `mem` is
physical memory as 64-bit words, the frame map (`paging.frame_map`) within.

A link that must not be is made like others, but for its own count, and told of in `state`: who
asked takes back what was asked for, by the very way on which it came.
"""

from typing import Final

from trapgate.compiler.dialect import Cells
from trapgate.compiler.library import Library
from trapgate.decision import frame_filters
from trapgate.decision.frame_filters import ALL_STALE, TABLES_STALE
from trapgate.paging import frame_map
from trapgate.paging.frame_map import LEAF, LEVEL, MIXED, MOST_LINKS, OWN, ROOT, TABLE

_CONSTANTS: Final = (frame_map, frame_filters)
LIBRARY: Final = Library("links", whole="trapgate.vmm.direct.withholding", constants=_CONSTANTS)

(
    MAP,
    MAP_FRAMES,
    FRAMES,
    LEVELS,
    WIDTH,
    LARGE_PAGES,
    POINTERS,
    STALE,
    LINKED,
    RELEASED,
    REFUSED,
    REFUSED_FRAME,
    UNSEEN,
    SEVERAL,
    OPEN,
    DEVICES,
    VMMS_TABLES,
    SPLIT_TABLES,
    UNCOUNTED,
    STATE_CELLS,
) = range(20)
"""The map's address and how many frames it has; how many are the guest's; the paging mode
(`links.Mode`); what is stale (`frame_filters.ALL_STALE`); how many tables came and went; the level
and the frame of the first table that may not be; whether links come unseen; whether a table has
become one of a further level; whether any frame may be a table of the last level; if the processor
does not consult the map, so that no entry may lead elsewhere, the first frame of the devices',
which are beyond it, else 0; the first frame of the tables that stand in for 4-MByte pages
(`withholding`), and how many there are; and whether links may change that the processor does not
count."""

P, PS = 1, 0x80
ADDRESS: Final = 0xFF_FFFF_F000
"""Bits of an entry that name a frame, of 40 bits of physical address."""
NOT_REFUSED: Final = 0
MAPPED: Final = 5
"""In place of a level: a frame that is mapped."""
LARGE_MUST_BE_ZERO: Final = 0x3F_E000
"""Bits 21:13 of an entry for a 4-MByte page: reserved, or an address beyond 4 GB (PSE-36)."""
_TABLES: Final = 0x0101_0101_0101_0101
assert TABLE == 1


@LIBRARY.inside
def byte_of(state: Cells, mem: Cells, frame: int) -> int:
    """The map's byte of a frame."""
    if frame < 0 or frame >= state[MAP_FRAMES]:
        return OWN if 0 < state[DEVICES] <= frame else 0
    at: int = state[MAP] + frame
    word: int = mem[at >> 3]
    return (word >> ((at & 7) << 3)) & 0xFF


@LIBRARY.inside
def mark(state: Cells, mem: Cells, counts: Cells, frame: int) -> None:
    """Record in the map's byte of a frame what it is used for."""
    last = counts[frame * 4] != 0
    upper = counts[frame * 4 + 1] | counts[frame * 4 + 2] | counts[frame * 4 + 3] != 0
    byte = OWN
    if last and upper:
        byte |= TABLE | MIXED
    elif last:
        byte |= TABLE | LEAF if maps_own_alone(state, mem, frame) else TABLE
    elif upper:
        byte |= TABLE | level_alone(counts, frame) << LEVEL
    if state[POINTERS] == 0:
        byte |= byte_of(state, mem, frame) & ROOT
    elif counts[frame * 4 + state[LEVELS] - 1] != 0:
        byte |= ROOT
    put_byte(state, mem, frame, byte)


@LIBRARY.inside
def level_alone(counts: Cells, frame: int) -> int:
    """One less than the level of a table of one upper level; 0 for one of several."""
    found = 0
    for n in range(1, 4):
        if counts[frame * 4 + n] != 0:
            if found != 0:
                return 0
            found = n
    return found


@LIBRARY.inside
def maps_own_alone(state: Cells, mem: Cells, frame: int) -> bool:
    """Whether all entries of a last-level table lead to frames of the guest's own."""
    for n in range(entries_of(state)):
        entry = entry_at(state, mem, frame, n)
        if entry & P != 0 and byte_of(state, mem, (entry & ADDRESS) >> 12) & OWN == 0:
            return False
    return True


@LIBRARY.inside
def put_byte(state: Cells, mem: Cells, frame: int, byte: int) -> None:
    """Write the map's byte of one of the guest's frames."""
    at = state[MAP] + frame
    mem[at >> 3] ^= (byte_of(state, mem, frame) ^ byte) << ((at & 7) << 3)


@LIBRARY.inside
def entry_at(state: Cells, mem: Cells, frame: int, n: int) -> int:
    """An entry of a table."""
    if state[WIDTH] == 8:
        entry: int = mem[frame << 9 | n]
        return entry
    pair: int = mem[frame << 9 | n >> 1]
    return (pair >> ((n & 1) << 5)) & 0xFFFF_FFFF


@LIBRARY.inside
def entries_of(state: Cells) -> int:
    """How many entries a table has."""
    return 512 if state[WIDTH] == 8 else 1024


@LIBRARY.inside
def leads_to_table(state: Cells, entry: int) -> bool:
    """Whether an entry of an upper table leads to a table: it is present, and no large page."""
    return bool(entry & P != 0 and (entry & PS == 0 or state[LARGE_PAGES] == 0))


@LIBRARY.inside
def is_same(before: int, after: int) -> bool:
    """Whether two present entries of an upper table lead to the same."""
    return bool((before ^ after) & (P | PS | ADDRESS) == 0)


@LIBRARY.inside
def refuse(state: Cells, level: int, frame: int) -> None:
    """Remember the first table that may not be."""
    if state[REFUSED] == NOT_REFUSED:
        state[REFUSED] = level
        state[REFUSED_FRAME] = frame


@LIBRARY.inside
def is_own(state: Cells, mem: Cells, frame: int) -> bool:
    """Whether a frame is memory of the guest's, which may be a table."""
    return bool(0 <= frame < state[FRAMES] and byte_of(state, mem, frame) & OWN)


@LIBRARY.inside
def link(state: Cells, mem: Cells, counts: Cells, frame: int, level: int) -> None:
    """One more link leads to `frame` as a table of `level`; the first validates it."""
    if level == 1 and state[OPEN] != 0:
        if byte_of(state, mem, frame) & OWN == 0:
            refuse(state, level, frame)
        return
    if not is_own(state, mem, frame):
        refuse(state, level, frame)
        return
    at = frame * 4 + level - 1
    counts[at] += 1
    if counts[at] > 1:
        return
    for n in range(4):
        if n != level - 1 and counts[frame * 4 + n] != 0:
            state[SEVERAL] = 1
    mark(state, mem, counts, frame)
    state[STALE] = ALL_STALE
    state[LINKED] += 1
    # What an upper table leads to is the guest's already.
    if level > 1 or (state[DEVICES] != 0 and counts[frame * 4 + 1] == 0):
        for n in range(entries_of(state)):
            link_entry(state, mem, counts, level, 0, entry_at(state, mem, frame, n))


@LIBRARY.inside
def unlink(state: Cells, mem: Cells, counts: Cells, frame: int, level: int) -> None:
    """One link less; with the last the frame is not a table of that level, and links nothing."""
    if (level == 1 and state[OPEN] != 0) or not is_own(state, mem, frame):
        return
    at = frame * 4 + level - 1
    counts[at] -= 1
    if counts[at] > 0:
        return
    forget(state, mem, counts, frame)
    if level > 1:
        for n in range(entries_of(state)):
            unlink_entry(state, mem, counts, level, entry_at(state, mem, frame, n), 0)


@LIBRARY.inside
def forget(state: Cells, mem: Cells, counts: Cells, frame: int) -> None:
    """A frame is no longer a table of some level."""
    mark(state, mem, counts, frame)
    state[STALE] = max(state[STALE], TABLES_STALE)
    state[RELEASED] += 1


@LIBRARY.inside
def link_entry(
    state: Cells, mem: Cells, counts: Cells, level: int, before: int, after: int
) -> None:
    """An entry of a table of `level` has been `before`, and is `after` now."""
    if level > 1 and leads_to_table(state, after):
        if not is_same(before, after):
            link(state, mem, counts, (after & ADDRESS) >> 12, level - 1)
    elif after & P != 0 and state[DEVICES] != 0:
        demand_own(state, mem, level, after)


@LIBRARY.inside
def demand_own(state: Cells, mem: Cells, level: int, entry: int) -> None:
    """Refuse an entry for a page, of 32-bit paging, that is not the guest's.

    Its memory is whole 4-MByte pages, so the first frame of one speaks for all.
    """
    frame = (entry & ADDRESS) >> 12
    if byte_of(state, mem, frame) & OWN == 0 or (level > 1 and entry & LARGE_MUST_BE_ZERO != 0):
        refuse(state, MAPPED, frame)


@LIBRARY.inside
def unlink_entry(
    state: Cells, mem: Cells, counts: Cells, level: int, before: int, after: int
) -> None:
    """An entry of a table of `level` has been `before`, and is `after` now."""
    if level > 1 and leads_to_table(state, before) and not is_same(before, after):
        unlink(state, mem, counts, (before & ADDRESS) >> 12, level - 1)


@LIBRARY.inside
def tally(state: Cells, mem: Cells, fresh: Cells, frame: int, level: int) -> None:
    """Count a link in `fresh`, and at the first one to a table those of its entries."""
    if frame >= state[FRAMES] or (level == 1 and state[OPEN] != 0):
        return
    at = frame * 4 + level - 1
    fresh[at] += 1
    if fresh[at] > 1 or level == 1:
        return
    for n in range(entries_of(state)):
        entry = entry_at(state, mem, frame, n)
        if leads_to_table(state, entry):
            tally(state, mem, fresh, (entry & ADDRESS) >> 12, level - 1)


# For Python.


@LIBRARY.entry
def link_root(state: Cells, mem: Cells, counts: Cells, frame: int) -> bool:
    """Link the top table of a root; whether that may be. If not, it has to be taken back."""
    state[REFUSED] = NOT_REFUSED
    link(state, mem, counts, frame, state[LEVELS])
    return bool(state[REFUSED] == NOT_REFUSED)


@LIBRARY.entry
def unlink_root(state: Cells, mem: Cells, counts: Cells, frame: int) -> None:
    """Take the link of a root's top table back."""
    unlink(state, mem, counts, frame, state[LEVELS])


@LIBRARY.entry
def edit(state: Cells, mem: Cells, counts: Cells, frame: int, first: int, before: Cells) -> bool:
    """Entries from `first` on have been `before` and are what is in memory; whether that may be.

    If not, no link has changed, and memory has to be put back.
    """
    state[REFUSED] = NOT_REFUSED
    levels = 0
    for level in range(1, 5):
        if counts[frame * 4 + level - 1] != 0:
            levels |= 1 << level
    # What comes is linked at all levels before what went is let go: else a table that is
    # its own would be counted wrongly on the way.
    for n in range(len(before)):
        after = entry_at(state, mem, frame, first + n)
        for level in range(1, 5):
            if levels >> level & 1 and after != before[n]:
                link_entry(state, mem, counts, level, before[n], after)
    refused = state[REFUSED] != NOT_REFUSED
    for n in range(len(before)):
        after = entry_at(state, mem, frame, first + n)
        for level in range(1, 5):
            if levels >> level & 1 and after != before[n]:
                if refused:
                    unlink_entry(state, mem, counts, level, after, before[n])
                elif state[UNSEEN] == 0:
                    unlink_entry(state, mem, counts, level, before[n], after)
    if levels & 2 and not refused:
        mark(state, mem, counts, frame)
    return not refused


@LIBRARY.entry
def find_used(state: Cells, mem: Cells, frames: Cells, part: int) -> None:
    """Put in place of each table in `frames` whether a present entry is in its first `part`th."""
    for k in range(len(frames)):
        found = 0
        for n in range(entries_of(state) // part):
            if entry_at(state, mem, frames[k], n) & P != 0:
                found = 1
                break
        frames[k] = found


@LIBRARY.inside
def clear(state: Cells, mem: Cells, fresh: Cells) -> None:
    """Make `fresh`, which is like `counts`, 0 for all frames that are tables."""
    start = state[MAP] >> 3
    for n in range((state[FRAMES] + 7) >> 3):
        if mem[start + n] & _TABLES != 0:
            for cell in range(n * 32, min(n * 32 + 32, len(fresh))):
                fresh[cell] = 0


@LIBRARY.entry
def tally_roots(state: Cells, mem: Cells, fresh: Cells, frames: Cells) -> None:
    """Count in `fresh` all links that the top tables in `frames` make, and those to them."""
    clear(state, mem, fresh)
    for n in range(len(frames)):
        tally(state, mem, fresh, frames[n], state[LEVELS])


@LIBRARY.entry
def replace(state: Cells, mem: Cells, counts: Cells, fresh: Cells) -> None:
    """Replace the counts by those in `fresh`."""
    start = state[MAP] >> 3
    for n in range((state[FRAMES] + 7) >> 3):
        if mem[start + n] & _TABLES != 0:
            for frame in range(n * 8, min(n * 8 + 8, state[FRAMES])):
                if byte_of(state, mem, frame) & TABLE != 0:
                    replace_frame(state, mem, counts, fresh, frame)


@LIBRARY.inside
def replace_frame(state: Cells, mem: Cells, counts: Cells, fresh: Cells, frame: int) -> None:
    """Replace the counts of one table by those in `fresh`."""
    gone = True
    for cell in range(frame * 4, frame * 4 + 4):
        gone = gone and fresh[cell] == 0
    for cell in range(frame * 4, frame * 4 + 4):
        gone = gone or (counts[cell] != 0 and fresh[cell] == 0)
        counts[cell] = fresh[cell]
    if gone:
        forget(state, mem, counts, frame)


# What the processor counts (`decision.frame_filters.follow_link`). `told` is what it was told last,
# in words of eight frames: the map, and after it how many links lead to each frame.


@LIBRARY.entry
def publish(state: Cells, mem: Cells, counts: Cells, told: Cells) -> None:
    """Tell the processor how many links lead to each table, after the map."""
    start = state[MAP] >> 3
    words = (state[FRAMES] + 7) >> 3
    state[UNCOUNTED] = 0
    for n in range(words):
        if (mem[start + n] | told[n]) & _TABLES != 0:
            word = 0
            for k in range(8):
                frame = n * 8 + 7 - k
                word = word << 8 | links_to_publish(state, counts, frame)
            mem[start + (state[MAP_FRAMES] >> 3) + n] = word
            told[n] = mem[start + n]
            told[words + n] = word


@LIBRARY.inside
def links_to_publish(state: Cells, counts: Cells, frame: int) -> int:
    """How many links lead to a frame, as far as the processor counts."""
    links = 0
    if frame < state[FRAMES]:
        levels = 0
        for cell in range(frame * 4, frame * 4 + 4):
            links += counts[cell]
            levels += 1 if counts[cell] != 0 else 0
        # It counts no links from a table of several levels, and none beyond the most.
        if levels > 1 or links >= MOST_LINKS:
            state[UNCOUNTED] = 1
    return min(links, MOST_LINKS)


@LIBRARY.entry
def catch_up(state: Cells, mem: Cells, counts: Cells, told: Cells) -> bool:
    """Learn from the processor's counts which links have come and gone since `publish`.

    False if those do not tell: then all links have to be counted anew.
    """
    start = state[MAP] >> 3
    links = start + (state[MAP_FRAMES] >> 3)
    words = (state[FRAMES] + 7) >> 3
    counted = bool(state[UNCOUNTED] == 0)
    for n in range(words):
        if (mem[start + n] | told[n]) & _TABLES != 0 and (
            not counted or mem[start + n] != told[n] or mem[links + n] != told[words + n]
        ):
            for k in range(8):
                byte = mem[start + n] >> (k << 3) & 0xFF
                to = mem[links + n] >> (k << 3) & 0xFF
                counted = counted and (byte & TABLE == 0 or to < MOST_LINKS)
                if counted or byte & TABLE == 0:
                    adopt(counts, n * 8 + k, byte, to)
    if counted:
        release_unlinked(state, mem, counts)
    return counted


@LIBRARY.inside
def adopt(counts: Cells, frame: int, byte: int, links: int) -> None:
    """Record `links` to a frame for which the map has `byte`: a table of one level, or data."""
    if frame * 4 < len(counts):
        for cell in range(frame * 4, frame * 4 + 4):
            counts[cell] = 0
        if byte & TABLE != 0:
            counts[frame * 4 + (byte >> LEVEL)] = links


@LIBRARY.inside
def release_unlinked(state: Cells, mem: Cells, counts: Cells) -> None:
    """Make data of tables that hold entries, but to which the last link has gone."""
    start = state[MAP] >> 3
    for n in range((state[FRAMES] + 7) >> 3):
        if mem[start + n] & _TABLES != 0:
            for frame in range(n * 8, min(n * 8 + 8, state[FRAMES])):
                byte = byte_of(state, mem, frame)
                at = frame * 4 + (byte >> LEVEL)
                if byte & TABLE != 0 and counts[at] == 0:
                    counts[at] = 1
                    unlink(state, mem, counts, frame, (byte >> LEVEL) + 1)
