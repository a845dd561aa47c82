"""Fault filters by the frame map, entry by entry, and what a completed write does to the map."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from trapgate.decision import entry_facts as facts
from trapgate.decision import frame_filters as ff
from trapgate.decision.criteria_rules import Action, Clause, Operator, Rule, encode
from trapgate.decision.fault_filters import (
    BY_CRITERIA_TABLE,
    BY_EMPTY_TABLE,
    BY_FAULT_FILTER,
    BY_KNOWN_TABLE,
    BY_NO_LINK,
    BY_OWN_FRAME,
    BY_OWN_TABLE,
    EMPTY_TABLE,
    FILTER_PARAGRAPH_80,
    KNOWN_TABLE,
    NO_FILTER,
    NO_LINK,
    OWN_FRAME,
    OWN_TABLE,
)
from trapgate.decision.fault_values import BY_NAME
from trapgate.decision.self_map import ABSENT, DIRECTORY, PTE
from trapgate.paging import frame_map as fm
from trapgate.sdm import cells as f

PSE, PAE = 1 << 4, 1 << 5
FRAMES = 12
"""Frames of the guest's, and as many bytes of the map."""
MAP = 0xE000
"""Where the map lies, and behind it the counts of links."""
WINDOW = 0x20_0000
OF_LEVEL = [0, fm.LEAF, 1 << fm.LEVEL, 2 << fm.LEVEL, 3 << fm.LEVEL]
"""What the map says of a table of that level alone, beside TABLE."""


@dataclass
class Machine:
    """The fields of a VMCS and memory: frames of the guest's, a map, and links."""

    cr4: int = PAE
    filters: int = 0
    window: int = 0
    """Where the guest's frame 0 lies in memory."""
    v: Any = field(init=False)
    mem: Any = field(init=False)

    def __post_init__(self) -> None:
        self.v = np.zeros(f.LENGTH, np.int64)
        self.mem = np.zeros((self.window + 0x1_0000) >> 3, np.int64)
        self.v[f.GUEST_CR4] = self.cr4
        self.v[f.FRAME_FILTERS] = self.filters
        self.v[f.FRAME_MAP_ADDRESS], self.v[f.FRAME_MAP_LENGTH] = MAP, FRAMES
        self.v[f.ALIAS_BASE] = self.window
        self.v[f.ALIAS_LENGTH] = 0x1_0000 if self.window else 0
        self.bytes[MAP : MAP + FRAMES] = fm.OWN

    @property
    def bytes(self) -> Any:
        return self.mem.view(np.uint8)

    @property
    def map(self) -> list[int]:
        return self.bytes[MAP : MAP + FRAMES].tolist()  # type: ignore[no-any-return]

    @property
    def links(self) -> list[int]:
        return self.bytes[MAP + FRAMES : MAP + 2 * FRAMES].tolist()  # type: ignore[no-any-return]

    def table(self, frame: int, level: int, links: int = 0, more: int = fm.OWN) -> None:
        self.bytes[MAP + frame] = more | fm.TABLE | OF_LEVEL[level]
        self.bytes[MAP + FRAMES + frame] = links

    def put(self, physical: int, entry: int, width: int = 8) -> None:
        at = self.window + physical
        self.bytes[at : at + width] = list(entry.to_bytes(width, "little"))

    def by(self, byte: int, kind: int, data: int, old: int = 0) -> int:
        return int(ff.filter_of(self.v, self.mem, byte, kind, data, old))


def above(level: int) -> int:
    return fm.OWN | fm.TABLE | OF_LEVEL[level]


# Which entry a write means


@pytest.mark.parametrize("window", [0, WINDOW])
@pytest.mark.parametrize(
    ("byte", "kind"),
    [
        (fm.OWN, None),
        (fm.OWN | fm.LEAF, None),
        (fm.OWN | fm.ROOT | fm.MIXED, None),
        (fm.OWN | fm.TABLE, DIRECTORY),
        (fm.OWN | fm.TABLE | fm.ROOT, DIRECTORY),
        (fm.OWN | fm.TABLE | 3 << fm.LEVEL, DIRECTORY),
        (fm.TABLE | fm.LEAF, PTE),
        (fm.OWN | fm.TABLE | fm.MIXED, ABSENT),
        (fm.OWN | fm.TABLE | fm.MIXED | fm.LEAF, ABSENT),
        (fm.FOREIGN, None),
        (fm.FOREIGN | fm.TABLE, None),
    ],
)
def test_the_map_says_what_an_entry_is(byte: int, kind: int | None, window: int) -> None:
    one = Machine(window=window)
    one.bytes[MAP + 5] = byte
    wanted = (ABSENT, 0) if kind is None else (kind, window + 0x5128)
    for user in (0, 1):
        assert ff.entry_by_map(one.v, one.mem, 0x5128, user) == wanted
        assert ff.entry_written(one.v, 2, one.mem, 0x5128, user) == wanted


def test_an_entry_is_where_the_guests_tables_lead() -> None:
    one = Machine(cr4=0)
    one.v[f.GUEST_CR0], one.v[f.GUEST_CR3] = 1 << 31 | 1, 0x1000
    one.put(0x1000 + 4 * 0x300, 0x2000 | 5, 4)
    one.put(0x2000 + 4 * 7, 0x6000 | 1, 4)
    one.table(6, 1)
    linear = 0x300 << 22 | 7 << 12 | 0x124
    assert ff.entry_written(one.v, 0, one.mem, linear, 0) == (PTE, 0x6124)
    # A supervisor's page is none of the user's; and where nothing is mapped, nothing is.
    one.table(0, 2)
    assert ff.entry_written(one.v, 0, one.mem, linear, 1) == (ABSENT, 0)
    assert ff.entry_written(one.v, 0, one.mem, linear + 0x1000, 0) == (ABSENT, 0)
    # SMAP is no reason here: that the store had its rights is known from the error code.
    one.v[f.GUEST_CR4] = 1 << 21
    one.put(0x2000 + 4 * 7, 0x6000 | 5, 4)
    assert ff.entry_written(one.v, 0, one.mem, linear, 0) == (PTE, 0x6124)


def test_an_entry_beyond_memory_is_none() -> None:
    one = Machine()
    one.v[f.FRAME_MAP_LENGTH] = 0x20
    one.bytes[MAP + 0x10] = fm.TABLE
    one.bytes[MAP + 0xF] = fm.TABLE
    assert ff.entry_by_map(one.v, one.mem, 0x1_0000, 0) == (ABSENT, 0)
    assert ff.entry_by_map(one.v, one.mem, 0xFFF8, 0) == (DIRECTORY, 0xFFF8)


def test_without_a_map_entries_are_those_of_a_self_map() -> None:
    one = Machine(cr4=0)
    one.v[f.FRAME_MAP_LENGTH] = 0
    one.v[f.GUEST_CR0], one.v[f.GUEST_CR3] = 1 << 31 | 1, 0x1000
    one.v[f.PTBASE] = 0xC000_0000
    one.put(0x1000 + 4 * 0x300, 0x1000 | 5, 4)
    one.put(0x1000, 0x2000 | 7, 4)
    assert ff.entry_written(one.v, 0, one.mem, 0xC000_0008, 0) == (PTE, 0x2008)
    assert ff.entry_written(one.v, 0, one.mem, 0xC030_0008, 0) == (DIRECTORY, 0x1008)
    one.table(2, 2)
    assert ff.entry_written(one.v, 0, one.mem, 0xC000_0008, 0) == (PTE, 0x2008)
    # Four levels: entry 493 of the root is the root.
    one.v[f.GUEST_CR4], one.v[f.GUEST_IA32_EFER] = PAE, 1 << 10
    one.v[f.PTBASE] = base = -(1 << 47) | 493 - 256 << 39
    for table, entry in ((0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007)):
        one.put(table, entry)
    one.put(0x1000 + 8 * 493, 0x1000 | 5)
    assert ff.entry_written(one.v, 0, one.mem, base | 0x128, 0) == (PTE, 0x4128)


@pytest.mark.parametrize("code", [0x4003, 0x4007, 3, 7, 0x4001, 0x4002, 0x400B, 0x4013, 0x8003])
def test_under_a_map_it_alone_has_to_stop_the_write(code: int) -> None:
    one = Machine()
    assert ff.is_stopped_table_write(one.v, code) == (code in (0x4003, 0x4007))
    one.v[f.EPT_POINTER_IN_FORCE] = 1
    assert not ff.is_stopped_table_write(one.v, code)
    one.v[f.EPT_POINTER_IN_FORCE] = 0
    # Without one it is R/W, for one who has a filter.
    one.v[f.FRAME_MAP_LENGTH] = 0
    assert not ff.is_stopped_table_write(one.v, code)
    one.v[f.FAULT_FILTER] = 1
    assert ff.is_stopped_table_write(one.v, code) == (code in (3, 7))


# What an entry leads to


@pytest.mark.parametrize(
    ("cr4", "entry", "table"),
    [
        (PAE, 0x12_3456_7000 | 1, 0x12_3456_7000),
        (PAE, -(1 << 63) | 0x5000 | 0xF7F, 0x5000),
        (PAE, 0x5000, -1),
        (PAE, 0x5000 | 0x80, -1),
        (PAE, 0x5000 | 0x81, -1),
        (0, 0x5000 | 0x81, 0x5000),
        (PSE, 0x5000 | 0x81, -1),
        (PSE, 0x5000 | 1, 0x5000),
        (0, 0xFFFF_F001, 0xFFFF_F000),
        (0, 1 << 32 | 0x5001, 0x5000),
        (PAE, 1, 0),
        (0, 0x5000, -1),
    ],
)
def test_the_table_that_an_entry_leads_to(cr4: int, entry: int, table: int) -> None:
    assert ff.table_led_to(cr4, entry) == table


@pytest.mark.parametrize("level", [1, 2, 3, 4])
@pytest.mark.parametrize("below", [1, 2, 3, 4])
def test_a_known_table_is_one_of_the_level_below(level: int, below: int) -> None:
    one = Machine()
    one.table(5, below)
    known = ff.leads_to_known_table(one.v, one.mem, above(level), 0x5000 | 7)
    assert bool(known) == (below == level - 1)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_frame_0_is_one_like_any_other(level: int) -> None:
    one = Machine(filters=EMPTY_TABLE)
    byte = above(level)
    assert follow(one, byte, 0, 1) == ff.ALL_STALE
    assert (one.map[0], one.links[0]) == (above(level - 1), 1)
    assert ff.leads_to_known_table(one.v, one.mem, byte, 1)
    assert follow(one, byte, 1, 0) == ff.TABLES_STALE
    assert (one.map[0], one.links[0]) == (fm.OWN, 0)
    told = facts.entry_facts(one.v, one.mem, DIRECTORY, 0x5008, 1)
    assert told & facts.EMPTY_FRAME
    one.put(0, 1)
    assert not ff.may_be_linked(one.v, one.mem, byte, 1)
    one.bytes[MAP] = fm.FOREIGN
    assert not ff.may_lead_to_last_level(one.v, one.mem, byte, 1)


@pytest.mark.parametrize("level", [2, 3, 4])
def test_what_is_no_known_table(level: int) -> None:
    one = Machine()
    one.table(5, level - 1)
    assert ff.leads_to_known_table(one.v, one.mem, above(level), 0x5000 | 1)
    assert not ff.leads_to_known_table(one.v, one.mem, above(level), 0x5000)
    assert not ff.leads_to_known_table(one.v, one.mem, above(level), 0x5000 | 0x81)
    # Of a table of several levels, or of data, the map tells no level.
    assert not ff.leads_to_known_table(one.v, one.mem, fm.OWN | fm.TABLE, 0x5000 | 1)
    for byte in (fm.OWN, fm.OWN | fm.TABLE, fm.OWN | fm.TABLE | fm.ROOT, fm.FOREIGN):
        one.bytes[MAP + 5] = byte
        assert not ff.leads_to_known_table(one.v, one.mem, above(level), 0x5000 | 1)
    assert not ff.leads_to_known_table(one.v, one.mem, above(level), FRAMES << 12 | 1)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_entries_of_level_2_may_lead_to_own_frames(level: int) -> None:
    one = Machine()
    byte = above(level)
    one.table(5, 1)
    for entry in (0x4001, 0x5001, 0x4000, 0x4081, FRAMES << 12, FRAMES << 12 | 0x81):
        assert ff.may_lead_to_last_level(one.v, one.mem, byte, entry) == (level == 2)
    one.bytes[MAP + 4] = fm.FOREIGN
    for entry in (0x4001, FRAMES << 12 | 1):
        assert not ff.may_lead_to_last_level(one.v, one.mem, byte, entry)


@pytest.mark.parametrize("window", [0, WINDOW])
@pytest.mark.parametrize("cr4", [0, PAE])
def test_a_frame_without_present_entries_is_empty(cr4: int, window: int) -> None:
    one = Machine(cr4=cr4, window=window)
    width = 8 if cr4 else 4
    assert ff.is_empty(one.v, one.mem, 0x5000)
    for at in (0, 1, 0x1FF, 4096 // width - 1):
        entry = 0x5000 + at * width
        one.put(entry, -2 & (1 << 8 * width) - 1, width)
        assert ff.is_empty(one.v, one.mem, 0x5000)
        one.put(entry, 1, width)
        assert not ff.is_empty(one.v, one.mem, 0x5000)
        one.put(entry, 0, width)
    for beside in (0x4FF8, 0x6000):
        one.put(beside, -1 & (1 << 64) - 1)
    assert ff.is_empty(one.v, one.mem, 0x5000)
    if cr4:
        # Bit 32 is none of a wide entry's.
        one.put(0x5008, 1 << 32)
        assert ff.is_empty(one.v, one.mem, 0x5000)


@pytest.mark.parametrize("beyond", [0x1_0000, 0xF008, 0x10_0000])
def test_what_is_not_in_memory_is_not_empty(beyond: int) -> None:
    one = Machine()
    assert ff.is_empty(one.v, one.mem, 0xD000)
    one.mem[MAP >> 3 : (MAP >> 3) + FRAMES] = 0
    assert ff.is_empty(one.v, one.mem, 0xF000)
    assert not ff.is_empty(one.v, one.mem, beyond)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_what_may_be_linked(level: int) -> None:
    one = Machine()
    byte = above(level)
    upper = level > 1

    def may(entry: int) -> bool:
        return bool(ff.may_be_linked(one.v, one.mem, byte, entry))

    assert may(0) == may(0x5080) == may(FRAMES << 12 | 0x81) == upper
    assert may(0x5001) == upper  # empty, and data
    one.put(0x5000, 1)
    assert not may(0x5001)
    one.table(5, level - 1 or 4)
    assert may(0x5001) == upper
    # Empty, but a table of another level; or not the guest's.
    one.put(0x5000, 0)
    one.table(5, level)
    assert not may(0x5001)
    one.bytes[MAP + 5] = fm.FOREIGN
    assert not may(0x5001)
    one.bytes[MAP + 5] = 0
    assert not may(0x5001)


# Which filter lets a write complete

EVERY = OWN_FRAME | NO_LINK | KNOWN_TABLE | OWN_TABLE | EMPTY_TABLE


@pytest.mark.parametrize("cr4", [0, PAE])
@pytest.mark.parametrize("filters", [0, OWN_FRAME, EVERY & ~OWN_FRAME, EVERY])
def test_own_frame(filters: int, cr4: int) -> None:
    one = Machine(filters=filters, cr4=cr4)
    wanted = BY_OWN_FRAME if filters & OWN_FRAME else NO_FILTER
    leaf = above(1)
    for data in (0x5001, 0x50E7, 0x5000, FRAMES << 12, 0x5FFF):
        assert one.by(leaf, PTE, data) == wanted, hex(data)
    assert one.by(leaf, PTE, FRAMES << 12 | 1) == NO_FILTER
    assert one.by(leaf, ABSENT, 0x5001) == NO_FILTER
    one.bytes[MAP + 5] = fm.FOREIGN
    assert one.by(leaf, PTE, 0x5001, 0x5001) == NO_FILTER
    one.table(5, 4, more=0)
    assert one.by(leaf, PTE, 0x5001) == NO_FILTER


def test_frames_of_wide_entries_are_wide() -> None:
    one = Machine(filters=OWN_FRAME)
    assert one.by(above(1), PTE, 1 << 32 | 0x5001) == NO_FILTER
    assert one.by(above(1), PTE, -(1 << 63) | 0x5001) == BY_OWN_FRAME
    one.v[f.GUEST_CR4] = 0
    assert one.by(above(1), PTE, 1 << 32 | 0x5001) == BY_OWN_FRAME


@pytest.mark.parametrize("filters", [0, NO_LINK, EVERY & ~(NO_LINK | OWN_TABLE | EMPTY_TABLE)])
def test_no_link(filters: int) -> None:
    one = Machine(filters=filters)
    wanted = BY_NO_LINK if filters & NO_LINK else NO_FILTER
    upper = fm.OWN | fm.TABLE
    for data, old in ((0, 0), (0x5001, 0x5067), (0x5081, 0), (0, 0x5081), (0x5067, 0x5001)):
        assert one.by(upper, DIRECTORY, data, old) == wanted, (hex(data), hex(old))
        assert one.by(upper, ABSENT, data, old) == NO_FILTER
    for data, old in ((0x5001, 0), (0, 0x5001), (0x5001, 0x6001), (0x5001, 0x5081)):
        assert one.by(upper, DIRECTORY, data, old) == NO_FILTER, (hex(data), hex(old))
    assert one.by(upper, PTE, FRAMES << 12 | 1, FRAMES << 12 | 1) == NO_FILTER


UPPER = [
    # The filter, who completes by it, and which of the entries below do.
    (KNOWN_TABLE, BY_KNOWN_TABLE, "table"),
    (EMPTY_TABLE, BY_EMPTY_TABLE, "table, none, empty"),
    (OWN_TABLE, BY_OWN_TABLE, "table, none, empty, full"),
    (NO_LINK | OWN_FRAME, NO_FILTER, ""),
]


@pytest.mark.parametrize(("filters", "by", "which"), UPPER)
def test_filters_of_upper_entries(filters: int, by: int, which: str) -> None:
    one = Machine(filters=filters)
    one.table(5, 1)
    one.put(0x5000, 1)
    one.put(0x7000, 1)
    one.bytes[MAP + 8] = fm.FOREIGN
    entries = {"table": 0x5001, "none": 0, "empty": 0x6001, "full": 0x7001, "foreign": 0x8001}
    for name, entry in entries.items():
        wanted = by if name in which.split(", ") else NO_FILTER
        assert one.by(above(2), DIRECTORY, entry, 0x9001) == wanted, name
        assert one.by(above(2), ABSENT, entry, 0x9001) == NO_FILTER, name
        assert one.by(fm.OWN | fm.TABLE, DIRECTORY, entry, 0x9001) == NO_FILTER, name
    # Of an upper entry's filters none is for one of the last level.
    wanted = BY_OWN_FRAME if filters & OWN_FRAME else NO_FILTER
    assert one.by(above(2), PTE, 0x5001, 0x9001) == wanted


def test_the_first_filter_that_completes_is_told() -> None:
    one = Machine(filters=EVERY)
    one.table(5, 1)
    assert one.by(above(2), DIRECTORY, 0x5001, 0x5001) == BY_NO_LINK
    assert one.by(above(2), DIRECTORY, 0x5001) == BY_OWN_TABLE
    one.v[f.FRAME_FILTERS] = EVERY & ~OWN_TABLE
    assert one.by(above(2), DIRECTORY, 0x5001) == BY_EMPTY_TABLE
    one.v[f.FAULT_FILTER] = FILTER_PARAGRAPH_80
    assert one.by(above(2), DIRECTORY, 0x5000) == BY_FAULT_FILTER
    assert one.by(above(1), PTE, 0x5000) == BY_FAULT_FILTER
    assert one.by(above(1), PTE, 0x5001) == BY_OWN_FRAME


def test_without_a_map_there_is_the_fault_filter_alone() -> None:
    one = Machine(filters=EVERY)
    one.v[f.FRAME_MAP_LENGTH], one.v[f.FAULT_FILTER] = 0, FILTER_PARAGRAPH_80
    assert one.by(0, DIRECTORY, 0x5000) == one.by(0, PTE, 0) == BY_FAULT_FILTER
    assert one.by(above(2), DIRECTORY, 0x5001, 0x5001) == one.by(above(1), PTE, 0x5001) == NO_FILTER


# The criteria table before them


def ruled(one: Machine, *rules: Rule) -> None:
    table = encode(rules)
    one.v[f.CRITERIA_TABLE_RULES], one.v[f.CRITERIA_TABLE_LENGTH] = len(rules), len(table)
    one.v[f.TABLE_START :][: len(table) // 8] = np.frombuffer(table, np.int64)


def judged(one: Machine, kind: int, physical: int, data: int, old: int, code: int = 0x4003) -> int:
    r = np.zeros(64, np.int64)
    done = ff.completed_by(one.v, r, one.mem, code, 0x9128, kind, physical, data, old)
    return int(done)


@pytest.mark.parametrize("window", [0, WINDOW])
def test_the_byte_of_the_entrys_own_table_counts(window: int) -> None:
    one = Machine(filters=OWN_TABLE, window=window)
    one.table(5, 2)
    assert judged(one, DIRECTORY, window + 0x5FF8, 0x4001, 0) == BY_OWN_TABLE
    assert judged(one, DIRECTORY, window + 0x6000, 0x4001, 0) == NO_FILTER
    one.table(6, 3)
    assert judged(one, DIRECTORY, window + 0x6000, 0x4001, 0) == NO_FILTER


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        (Action.COMPLETE, BY_CRITERIA_TABLE),
        (Action.EXIT, NO_FILTER),
        (Action.DELIVER, NO_FILTER),
        (Action.NEXT, BY_OWN_FRAME),
    ],
)
@pytest.mark.parametrize(
    "name", ["new_entry", "old_entry", "table_entry", "page_fault_code", "address"]
)
def test_the_criteria_table_comes_first(action: Action, wanted: int, name: str) -> None:
    one = Machine(filters=OWN_FRAME)
    value = {
        "new_entry": 0x4067,
        "old_entry": 0x6025,
        "table_entry": PTE,
        "page_fault_code": 0x4007,
        "address": 0x9128,
    }[name]
    entry = Clause(BY_NAME["new_entry"], Operator.EQUAL, 0x4067)
    rule = Rule(action, (Clause(BY_NAME[name], Operator.EQUAL, value), entry))
    ruled(one, rule)
    assert judged(one, PTE, 0x5128, 0x4067, 0x6025, 0x4007) == wanted
    # Where no rule matches, the filters go on.
    ruled(one, Rule(action, (Clause(BY_NAME[name], Operator.EQUAL, value ^ 8), entry)))
    assert judged(one, PTE, 0x5128, 0x4067, 0x6025, 0x4007) == BY_OWN_FRAME


@pytest.mark.parametrize(("name", "value"), [("depth", 0), ("depth", 1), ("interrupted_vector", 0)])
def test_a_write_that_is_judged_is_the_first_event(name: str, value: int) -> None:
    one = Machine()
    entry = Clause(BY_NAME["new_entry"], Operator.EQUAL, 5)
    ruled(one, Rule(Action.COMPLETE, (Clause(BY_NAME[name], Operator.EQUAL, value), entry)))
    first = (name, value) == ("depth", 0)
    assert judged(one, PTE, 0x5128, 5, 0) == (BY_CRITERIA_TABLE if first else NO_FILTER)


def test_a_criteria_table_needs_no_map() -> None:
    one = Machine()
    one.v[f.FRAME_MAP_LENGTH] = 0
    ruled(one, Rule(Action.COMPLETE, (Clause(BY_NAME["new_entry"], Operator.EQUAL, 5),)))
    assert judged(one, PTE, 0x5128, 5, 0) == BY_CRITERIA_TABLE
    assert judged(one, PTE, 0x5128, 7, 0) == NO_FILTER


# Writes of any width


def entries(one: Machine, physical: int, size: int, data: int) -> tuple[int, int]:
    r = np.zeros(64, np.int64)
    first, by = ff.judge_entries(one.v, r, one.mem, 0x4003, 0x9000, PTE, physical, size, data)
    return int(first), int(by)


@pytest.mark.parametrize("cr4", [0, PAE])
def test_each_entry_that_a_write_touches_is_judged(cr4: int) -> None:
    one = Machine(cr4=cr4, filters=OWN_FRAME)
    width = 8 if cr4 else 4
    one.table(5, 1)
    for n in range(4):
        one.put(0x5000 + n * width, 0x4001, width)
    one.bytes[MAP + 6] = fm.FOREIGN
    whole = 0x7001 | 0x7001 << 32 if width == 4 else 0x7001
    assert entries(one, 0x5000, 8, whole) == (-1, BY_OWN_FRAME)
    assert entries(one, 0x5008, 4, 0x7001) == (-1, BY_OWN_FRAME)
    assert entries(one, 0x5008, 4, 0x6001) == (0x5008, NO_FILTER)
    # A byte changes one entry, and that to what it has beside it.
    assert entries(one, 0x5001 + width, 1, 0x60) == (0x5000 + width, NO_FILTER)
    assert entries(one, 0x5001 + width, 1, 0x70) == (-1, BY_OWN_FRAME)
    if width == 4:
        # Eight bytes change two, and at an odd address three.
        assert entries(one, 0x5004, 8, 0x6001 | 0x7001 << 32) == (0x5004, NO_FILTER)
        assert entries(one, 0x5004, 8, 0x7001 | 0x6001 << 32) == (0x5008, NO_FILTER)
        assert entries(one, 0x5001, 8, 0x01_0000_6001_0000_70) == (0x5004, NO_FILTER)
        assert entries(one, 0x5001, 8, 0x60_0000_7001_0000_70) == (-1, BY_OWN_FRAME)
        one.put(0x5008, 0x1000_4001, 4)
        one.bytes[MAP + 0] = fm.FOREIGN
        assert entries(one, 0x5001, 8, 0x01_0000_7001_0000_70) == (0x5008, NO_FILTER)
        assert entries(one, 0x5001, 7, 0x0000_7001_0000_70) == (-1, BY_OWN_FRAME)
    else:
        assert entries(one, 0x5004, 8, 0x6001 << 32) == (0x5008, NO_FILTER)
        assert entries(one, 0x5004, 4, 1) == (0x5000, NO_FILTER)
        assert entries(one, 0x5004, 4, 0) == (-1, BY_OWN_FRAME)


def test_where_rules_let_some_entries_and_filters_the_others_it_is_the_filters() -> None:
    one = Machine(cr4=0, filters=OWN_FRAME)
    one.table(5, 1)
    own, by_rule = 0x7001, 0x6001
    one.bytes[MAP + 6] = fm.FOREIGN
    same = Clause(BY_NAME["new_entry"], Operator.EQUAL, by_rule)
    ruled(one, Rule(Action.COMPLETE, (same,)))
    assert entries(one, 0x5000, 8, by_rule | by_rule << 32) == (-1, BY_CRITERIA_TABLE)
    assert entries(one, 0x5000, 8, by_rule | own << 32) == (-1, BY_OWN_FRAME)
    assert entries(one, 0x5000, 8, own | by_rule << 32) == (-1, BY_OWN_FRAME)


# What a completed write does to the map


def follow(one: Machine, byte: int, old: int, new: int) -> int:
    return int(ff.follow_link(one.v, one.mem, byte, old, new))


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_frame_that_is_led_to_becomes_a_table(level: int) -> None:
    one = Machine(filters=EMPTY_TABLE)
    one.bytes[MAP + FRAMES + 5] = 17  # left from another use
    assert follow(one, above(level), 0, 0x5067) == ff.ALL_STALE
    assert one.map[5] == above(level - 1)
    assert one.links[5] == 1
    # It is one now, and translations stay.
    assert follow(one, above(level), 0, 0x5001) == 0
    assert (one.map[5], one.links[5]) == (above(level - 1), 2)
    assert [byte for n, byte in enumerate(one.map) if n != 5] == [fm.OWN] * (FRAMES - 1)
    assert sum(one.links) == 2


@pytest.mark.parametrize("level", [2, 3, 4])
@pytest.mark.parametrize("links", [1, 2, 254])
@pytest.mark.parametrize("full", [False, True])
def test_an_empty_table_without_links_becomes_data(level: int, links: int, full: bool) -> None:
    one = Machine(filters=EMPTY_TABLE)
    one.table(5, level - 1, links)
    one.put(0x5FF8, int(full))
    goes = links == 1 and not full
    assert follow(one, above(level), 0x5067, 0) == (ff.TABLES_STALE if goes else 0)
    assert one.map[5] == (fm.OWN if goes else above(level - 1))
    assert one.links[5] == links - 1


def test_more_links_than_are_counted_stay() -> None:
    one = Machine(filters=EMPTY_TABLE)
    one.table(5, 1, 254)
    for links in (255, 255):
        assert follow(one, above(2), 0, 0x5001) == 0
        assert one.links[5] == links
    assert follow(one, above(2), 0x5001, 0) == 0
    assert one.links[5] == 255
    # Nor does one go that is not known of.
    one.table(6, 1, 0)
    assert follow(one, above(2), 0x6001, 0) == 0
    assert (one.links[6], one.map[6]) == (0, above(1))


def test_a_link_that_moves() -> None:
    one = Machine(filters=EMPTY_TABLE)
    one.table(5, 1, 1)
    one.table(6, 1, 1)
    assert follow(one, above(2), 0x5001, 0x6001) == ff.TABLES_STALE
    assert (one.map[5:7], one.links[5:7]) == ([fm.OWN, above(1)], [0, 2])
    assert follow(one, above(2), 0x6001, 0x7001) == ff.ALL_STALE
    assert (one.map[6:8], one.links[6:8]) == ([above(1), above(1)], [1, 1])
    # To one that becomes a table, from one that ceases to be: all has to go.
    assert follow(one, above(2), 0x6001, 0x8001) == ff.ALL_STALE
    assert (one.map[6], one.map[8]) == (fm.OWN, above(1))


@pytest.mark.parametrize(
    ("byte", "filters", "old", "new"),
    [
        (fm.OWN | fm.TABLE, EMPTY_TABLE, 0x5001, 0x6001),  # of several levels
        (above(2), EMPTY_TABLE, 0x5001, 0x5067),
        (above(2), EMPTY_TABLE, 0, 0x6081),
        (above(2), EMPTY_TABLE | OWN_TABLE, 0x5001, 0x6001),
    ],
)
def test_what_changes_no_link(byte: int, filters: int, old: int, new: int) -> None:
    one = Machine(filters=filters)
    one.table(5, 1, 254)
    before = one.mem.tolist()
    assert follow(one, byte, old, new) == 0
    assert one.mem.tolist() == before


@pytest.mark.parametrize("level", [3, 4])
def test_own_table_is_about_links_of_level_2_alone(level: int) -> None:
    one = Machine(filters=EMPTY_TABLE | OWN_TABLE)
    assert follow(one, above(level), 0, 0x6001) == ff.ALL_STALE
    assert one.map[6] == above(level - 1)


@pytest.mark.parametrize("window", [0, WINDOW])
def test_each_entry_of_a_write_is_followed(window: int) -> None:
    one = Machine(cr4=0, filters=EMPTY_TABLE, window=window)
    one.table(5, 2)
    one.put(0x5004, 0x6001, 4)
    one.table(6, 1, 1)

    def write(physical: int, size: int, data: int, kind: int = DIRECTORY) -> int:
        return int(ff.follow_links(one.v, one.mem, kind, window + physical, size, data))

    assert write(0x5000, 8, 0x7001 | 0x8001 << 32, PTE) == 0
    for filters in (EVERY & ~EMPTY_TABLE, KNOWN_TABLE):
        one.v[f.FRAME_FILTERS] = filters
        assert write(0x5000, 8, 0x7001 | 0x8001 << 32) == 0
        assert one.links == [0] * 6 + [1] + [0] * 5
    one.v[f.FRAME_FILTERS] = EMPTY_TABLE
    assert write(0x5000, 8, 0x7001 | 0x8001 << 32) == ff.ALL_STALE
    assert one.links == [0] * 6 + [0, 1, 1] + [0] * 3
    assert one.map[6:9] == [fm.OWN, above(1), above(1)]
    # What is written is not there yet: the second entry leads to 6 still.
    one.table(6, 1, 1)
    assert write(0x5005, 1, 0x80) == ff.TABLES_STALE
    assert one.links[6:9] == [0, 1, 2]
    # A write that ends where an entry begins has not to do with that.
    one.table(6, 1, 1)
    assert write(0x5000, 4, 0) == 0
    assert one.links[6:9] == [1, 1, 2]


@pytest.mark.parametrize("cr4", [0, PAE])
def test_entries_have_all_their_bytes(cr4: int) -> None:
    width = 8 if cr4 else 4
    one = Machine(cr4=cr4, filters=EMPTY_TABLE, window=WINDOW)
    one.v[f.FRAME_MAP_LENGTH] = length = 0x10_0010
    old, new = (0x10_0007, 7) if cr4 else (0x16, 6)
    at = 0x5000 + width  # the second entry
    one.put(at, old << 12 | 1, width)
    one.table(5, 2)
    for frame in (old, new):
        one.bytes[MAP + frame] = above(1)
        one.bytes[MAP + length + frame] = 9
    # The half of it that is its frame's upper bits is cleared.
    half = width // 2
    stale = ff.follow_links(one.v, one.mem, DIRECTORY, WINDOW + at + half, half, 0)
    assert stale == 0
    assert [one.bytes[MAP + length + frame] for frame in (old, new)] == [8, 10]
    assert one.bytes[MAP : MAP + length].tolist().count(above(1)) == 2


def test_of_two_entries_the_heavier_consequence_counts() -> None:
    for data in (0x8001, 0x8001 << 32):
        one = Machine(cr4=0, filters=EMPTY_TABLE)
        one.table(5, 2)
        for at, frame in ((0x5000, 6), (0x5004, 7)):
            one.put(at, frame << 12 | 1, 4)
            one.table(frame, 1, 1)
        assert ff.follow_links(one.v, one.mem, DIRECTORY, 0x5000, 8, data) == ff.ALL_STALE


# The map


def test_bytes_of_the_map() -> None:
    one = Machine()
    for frame in range(FRAMES):
        one.bytes[MAP + frame] = frame
        one.bytes[MAP + FRAMES + frame] = 0x40 + frame
    for frame in range(FRAMES):
        assert fm.frame_byte(one.v, one.mem, frame << 12 | 0xABC) == frame
        assert fm.links_of(one.v, one.mem, frame << 12 | 0xABC) == 0x40 + frame
    for beyond in (FRAMES << 12, -1, -0x1000, 1 << 40):
        assert fm.frame_byte(one.v, one.mem, beyond) == fm.FOREIGN
    fm.set_frame_byte(one.v, one.mem, 0x3FFF, 0x55)
    fm.set_links(one.v, one.mem, 0x4FFF, 0x66)
    assert (one.map[2:5], one.links[3:6]) == ([2, 0x55, 4], [0x43, 0x66, 0x45])
    assert fm.has_frame_map(one.v)
    one.v[f.FRAME_MAP_LENGTH] = 0
    assert not fm.has_frame_map(one.v)


# What the journal keeps


@pytest.mark.parametrize(("cr4", "shape"), [(0, 0), (PSE, 8), (PAE, 12), (PAE | PSE, 12)])
@pytest.mark.parametrize("kind", [ABSENT, PTE, DIRECTORY])
def test_facts_without_a_map(kind: int, cr4: int, shape: int) -> None:
    one = Machine(cr4=cr4)
    one.v[f.FRAME_MAP_LENGTH] = 0
    assert facts.entry_facts(one.v, one.mem, kind, 0x5008, 0x4001) == kind | shape
    assert facts.facts_of_refused(one.v, one.mem, 0x5008, facts.REPEATED) == 0


@pytest.mark.parametrize("window", [0, WINDOW])
def test_facts_by_a_map(window: int) -> None:
    one = Machine(window=window)
    one.table(5, 2)
    one.table(6, 1)
    wide = facts.WIDE | facts.LARGE_PAGES | facts.BY_MAP | above(2) << 8

    def found(kind: int, new: int) -> int:
        return int(facts.entry_facts(one.v, one.mem, kind, window + 0x5008, new))

    assert found(DIRECTORY, 0x6001) == DIRECTORY | wide | above(1) << 16
    assert found(DIRECTORY, 0x4001) == DIRECTORY | wide | fm.OWN << 16 | facts.EMPTY_FRAME
    # Only of an upper entry, and of one that leads to a table.
    assert found(PTE, 0x4001) == PTE | wide | fm.OWN << 16
    assert found(DIRECTORY, 0x4000) == DIRECTORY | wide | fm.OWN << 16
    assert found(DIRECTORY, 0x4081) == DIRECTORY | wide | fm.OWN << 16
    assert found(DIRECTORY, 0x5001) == DIRECTORY | wide | above(2) << 16
    assert found(DIRECTORY, FRAMES << 12 | 1) == DIRECTORY | wide | fm.FOREIGN << 16
    assert found(DIRECTORY, 1 << 32 | 1) == DIRECTORY | wide | fm.FOREIGN << 16
    one.put(0x4FF8, 1)
    assert found(DIRECTORY, 0x4001) == DIRECTORY | wide | fm.OWN << 16
    for repeated in (0, facts.REPEATED):
        refused = facts.facts_of_refused(one.v, one.mem, window + 0x5008, repeated)
        assert refused == facts.BY_MAP | repeated | above(2) << 8
    assert facts.facts_of_refused(one.v, one.mem, 0, facts.REPEATED) == 0


def test_frames_of_narrow_entries_are_narrow() -> None:
    one = Machine(cr4=0)
    one.bytes[MAP + 5] = fm.OWN | fm.ROOT
    told = facts.entry_facts(one.v, one.mem, PTE, 0x5000, 1 << 32 | 0x5001)
    assert told >> 16 == fm.OWN | fm.ROOT
