"""Fault filters by the frame map: which writes to tables may complete, wherever those are mapped.

"Is it a page-table entry" is here what the VMM says of the frame (¶72), not of the address.
Figures 7 and 8 and ¶80 can be asked so. Two more filters look up what the map says of the frame
that an entry comes to lead to (¶85), and complete what those leave:

* own-frame: an entry of a last-level table may come to lead to any frame of the guest's own,
  at any rights, or to nothing. Tables are protected by the map, whatever leads to them.
* no-link: an entry of an upper table may change if it leads to the same table as before, or to
  none before and after. Large pages are not links, for what they reach is foreign where it is not
  the guest's.

* known-table: an entry of an upper table may come to lead to a table that is known to be one of
  the level below, and of no other. The VMM must not take its counts of links for true.
* empty-table: likewise, or to a frame that holds no entry, of which the processor then makes a
  table; it counts links, and makes data of an empty table when the last one goes.
* own-table: an entry of a table of level 2 may come to lead to any frame of the guest's own. The
  VMM then protects no table of the last level: what its entries lead to, the walk looks up.

docs/fault-filters.md has the argument. A table that is of the last level and of an upper one
at once satisfies none. One of the last level without LEAF counts as an upper one: it has entries
that lead elsewhere, which the walk stops, so that nothing depends on what it holds.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.decision.criteria_table import NEXT, RULE_COMPLETE, decide_by_table
from trapgate.decision.fault_filters import (
    BY_CRITERIA_TABLE,
    BY_EMPTY_TABLE,
    BY_FAULT_FILTER,
    BY_KNOWN_TABLE,
    BY_NO_LINK,
    BY_OWN_FRAME,
    BY_OWN_TABLE,
    EMPTY_TABLE,
    FRAME,
    FRAME_64,
    KNOWN_TABLE,
    NO_FILTER,
    NO_LINK,
    OWN_FRAME,
    OWN_TABLE,
    PRESENT,
)
from trapgate.decision.self_map import (
    ABSENT,
    DIRECTORY,
    PTE,
    admits,
    entry_at,
    entry_of,
    entry_size,
    is_large,
    may_be_filtered,
    merged,
)
from trapgate.paging.alias import aliased, unaliased
from trapgate.paging.frame_map import (
    LEAF,
    LEVEL,
    MIXED,
    MOST_LINKS,
    OWN,
    TABLE,
    frame_byte,
    has_frame_map,
    links_of,
    set_frame_byte,
    set_links,
)
from trapgate.paging.walk import READ, walk
from trapgate.sdm.cells import (
    CRITERIA_TABLE_RULES,
    EPT_POINTER_IN_FORCE,
    FAULT_FILTER,
    FRAME_FILTERS,
    GUEST_CR0,
    GUEST_CR3,
    GUEST_CR4,
    GUEST_IA32_EFER,
    PTBASE,
)
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION
from trapgate.sdm.pagefault import PFEC_MAP, PFEC_P, PFEC_U, PFEC_W
from trapgate.sdm.state import CR4_PAE, RFLAGS_AC
from trapgate.sdm.vectors import PF

TABLES_STALE = 1
"""What a processor caches of paging structures has to go: a table is none any more."""
ALL_STALE = 2
"""All translations have to go, too: a frame that may be written by one has become a table."""


@core
def entry_by_map(v: Cells, mem: Memory, linear: int, user: int) -> tuple[int, int]:
    """Which table entry a write to `linear` means that the frame map alone stops.

    (PTE, DIRECTORY or ABSENT, the physical address), as `self_map.entry_at` answers; a table of
    both kinds has an address, too.
    """
    physical, code, _, _ = walk(v, RFLAGS_AC, mem, linear, READ, user)
    if code >= 0 or physical >> 3 >= len(mem):
        return ABSENT, 0
    byte = frame_byte(v, mem, unaliased(v, physical))
    if byte & TABLE == 0:
        return ABSENT, 0
    if byte & MIXED:
        return ABSENT, physical
    return PTE if byte & LEAF else DIRECTORY, physical


@core
def table_led_to(cr4: int, entry: int) -> int:
    """The address of the table that an entry of an upper table leads to; -1 for none."""
    if entry & PRESENT == 0 or is_large(cr4, entry):
        return -1
    return entry & (FRAME_64 if cr4 & CR4_PAE else FRAME)


@core
def leads_to_known_table(v: Cells, mem: Memory, byte: int, entry: int) -> bool:
    """Whether an entry of a table with the map's `byte` leads to one of the level below."""
    level = byte >> LEVEL
    table = table_led_to(v[GUEST_CR4], entry)
    if level == 0 or table < 0:
        return False
    below = frame_byte(v, mem, table)
    return bool(below & LEAF) if level == 1 else below >> LEVEL == level - 1


@core
def may_lead_to_last_level(v: Cells, mem: Memory, byte: int, entry: int) -> bool:
    """Whether an entry of a table with the map's `byte`, one of level 2, leads to an own frame.

    Or to no table. Where this is asked, any frame may be a table of the last level.
    """
    table = table_led_to(v[GUEST_CR4], entry)
    return bool(byte >> LEVEL == 1 and (table < 0 or frame_byte(v, mem, table) & OWN))


@core
def is_empty(v: Cells, mem: Memory, table: int) -> bool:
    """Whether a frame of memory holds no entry that is present, at whatever level."""
    present = PRESENT
    if entry_size(v[GUEST_CR4]) == 4:
        present |= PRESENT << 32
    at = aliased(v, table) >> 3
    if at + 512 > len(mem):
        return False
    found = 0
    for n in range(512):
        found |= mem[at + n] & present
    return found == 0


@core
def may_be_linked(v: Cells, mem: Memory, byte: int, entry: int) -> bool:
    """Whether an entry of a table with the map's `byte` leads to no table, to one of the level
    below alone, or to data that can become one because it is empty.
    """
    if byte >> LEVEL == 0:
        return False
    table = table_led_to(v[GUEST_CR4], entry)
    if table < 0 or leads_to_known_table(v, mem, byte, entry):
        return True
    return frame_byte(v, mem, table) == OWN and is_empty(v, mem, table)


@core
def follow_link(v: Cells, mem: Memory, byte: int, old: int, new: int) -> int:
    """Carry a completed write to an entry of an upper table over to the map.

    `byte` is the map's of the table. A frame that is led to becomes a table, and an empty one to
    which the last link goes becomes data: the result is what has to go then, 0 for nothing. What
    is not counted leaves a count too high: links from a table of several levels, and too many.
    """
    cr4 = v[GUEST_CR4]
    before = table_led_to(cr4, old)
    after = table_led_to(cr4, new)
    level = byte >> LEVEL
    if level == 0 or before == after or (level == 1 and v[FRAME_FILTERS] & OWN_TABLE):
        return 0
    stale = 0
    if after >= 0:
        links = links_of(v, mem, after)
        if frame_byte(v, mem, after) & TABLE == 0:
            links = 0
            kind = LEAF if level == 1 else (level - 1) << LEVEL
            set_frame_byte(v, mem, after, OWN | TABLE | kind)
            stale = ALL_STALE
        set_links(v, mem, after, min(links + 1, MOST_LINKS))
    if before >= 0:
        links = links_of(v, mem, before)
        if 0 < links < MOST_LINKS:
            set_links(v, mem, before, links - 1)
            if links == 1 and is_empty(v, mem, before):
                set_frame_byte(v, mem, before, OWN)
                stale = max(stale, TABLES_STALE)
    return stale


@core
def follow_links(v: Cells, mem: Memory, kind: int, physical: int, size: int, data: int) -> int:
    """Carry a write that completes, of `size` bytes at `physical`, over to the map beforehand.

    What has to go then, as `follow_link` says.
    """
    if kind != DIRECTORY or v[FRAME_FILTERS] & EMPTY_TABLE == 0:
        return 0
    byte = frame_byte(v, mem, unaliased(v, physical))
    width = entry_size(v[GUEST_CR4])
    at = physical & ~(width - 1)
    stale = 0
    while at < physical + size:
        old = entry_of(mem, at, width)
        new = merged(old, at - physical, width, size, data)
        stale = max(stale, follow_link(v, mem, byte, old, new))
        at += width
    return stale


@core
def filter_of(v: Cells, mem: Memory, byte: int, kind: int, data: int, old: int) -> int:
    """Which filter lets a write turn the entry `old` of a table into `data`; NO_FILTER if none.

    `byte` is the frame map's of the table, if there is a map.
    """
    cr4 = v[GUEST_CR4]
    if admits(v[FAULT_FILTER], cr4, kind, data, old):
        return BY_FAULT_FILTER
    if not has_frame_map(v):
        return NO_FILTER
    filters = v[FRAME_FILTERS]
    if kind == PTE and filters & OWN_FRAME:
        frame = data & (FRAME_64 if cr4 & CR4_PAE else FRAME)
        if data & PRESENT == 0 or frame_byte(v, mem, frame) & OWN:
            return BY_OWN_FRAME
    same = table_led_to(cr4, old) == table_led_to(cr4, data)
    if kind == DIRECTORY and filters & NO_LINK and same:
        return BY_NO_LINK
    if kind == DIRECTORY and filters & OWN_TABLE and may_lead_to_last_level(v, mem, byte, data):
        return BY_OWN_TABLE
    if kind == DIRECTORY and filters & EMPTY_TABLE and may_be_linked(v, mem, byte, data):
        return BY_EMPTY_TABLE
    if kind == DIRECTORY and filters & KNOWN_TABLE and leads_to_known_table(v, mem, byte, data):
        return BY_KNOWN_TABLE
    return NO_FILTER


@core
def completed_by(
    v: Cells,
    r: Cells,
    mem: Memory,
    error_code: int,
    linear: int,
    kind: int,
    physical: int,
    data: int,
    old: int,
) -> int:
    """What lets a stopped write to `linear` turn the entry `old` into `data`; NO_FILTER if nothing.

    The entry is at the machine address `physical`.

    The criteria table comes first. A rule of it that says no more than NEXT leaves the entry to
    the filters.
    """
    if v[CRITERIA_TABLE_RULES] != 0:
        action, _ = decide_by_table(
            v, r, mem, PF, TYPE_HARDWARE_EXCEPTION, error_code, linear, 0, 0, -1, kind, old, data
        )
        if action == RULE_COMPLETE:
            return BY_CRITERIA_TABLE
        if action != NEXT:
            return NO_FILTER
    byte = 0
    if has_frame_map(v):
        byte = frame_byte(v, mem, unaliased(v, physical))
    return filter_of(v, mem, byte, kind, data, old)


@core
@inlined
def is_stopped_table_write(v: Cells, error_code: int) -> bool:
    """Whether a page fault is of the kind that a fault filter may judge.

    With a frame map that is a write which the map alone stops.
    """
    if not has_frame_map(v):
        return may_be_filtered(v, error_code)
    return bool(
        error_code | PFEC_U == PFEC_P | PFEC_W | PFEC_U | PFEC_MAP and v[EPT_POINTER_IN_FORCE] == 0
    )


@core
def entry_written(v: Cells, rflags: int, mem: Memory, linear: int, user: int) -> tuple[int, int]:
    """Which table entry a stopped write to `linear` means: see `entry_by_map`, `entry_at`."""
    if has_frame_map(v):
        return entry_by_map(v, mem, linear, user)
    return entry_at(
        v[GUEST_CR0],
        v[GUEST_CR3],
        v[GUEST_CR4],
        v[GUEST_IA32_EFER],
        rflags,
        mem,
        v[PTBASE],
        linear,
        user,
    )


@core
def judge_entries(
    v: Cells,
    r: Cells,
    mem: Memory,
    error_code: int,
    linear: int,
    kind: int,
    physical: int,
    size: int,
    data: int,
) -> tuple[int, int]:
    """Ask for each entry that a write changes: (the first refused or -1, what lets it).

    The write is of `size` bytes (1 to 8) at `physical`, as for `self_map.refused_entry`. Where
    the criteria table lets one entry and a filter another, it is the filter.
    """
    width = entry_size(v[GUEST_CR4])
    at = physical & ~(width - 1)
    which = BY_CRITERIA_TABLE
    while at < physical + size:
        old = entry_of(mem, at, width)
        new = merged(old, at - physical, width, size, data)
        which = min(which, completed_by(v, r, mem, error_code, linear, kind, at, new, old))
        if which == NO_FILTER:
            return at, NO_FILTER
        at += width
    return -1, which
