"""Self-mapped tables: the conditions of ¶74, the classes of ¶75, and what a write touches.

`walk_by_hand` and `bytes_by_hand` are oracles that import nothing of ours.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trapgate.decision.self_map import (
    ABSENT,
    DIRECTORY,
    PTE,
    admits,
    entry_at,
    may_be_filtered,
    merged,
    refused_entry,
    self_mapped,
)
from trapgate.sdm import cells as f

MEMORY = 1 << 20
ROOT = 0x2000
PSE, PAE, SMAP = 1 << 4, 1 << 5, 1 << 21
LMA = 1 << 10
PG_WP = 0x80010001
BASE_32, SLOT_32 = 0xC0000000, 768
BASE_PAE, SLOT_PAE = 0xC0000000, 0
BASE_64, SLOT_64 = -(1 << 47) | 493 - 256 << 39, 493


@dataclass
class Tables:
    """Physical memory with tables in it, and the registers."""

    width: int = 4
    cr0: int = PG_WP
    cr3: int = ROOT
    cr4: int = 0
    efer: int = 0
    rflags: int = 2
    ptbase: int = BASE_32
    mem: Any = field(default_factory=lambda: np.zeros(MEMORY // 8, np.int64))

    @classmethod
    def two_level(cls, **more: int) -> "Tables":
        made = cls(**more)
        made.put(ROOT, SLOT_32, ROOT | 5)
        made.put(ROOT, 1, 0x5000 | 7)
        return made

    @classmethod
    def four_level(cls, **more: int) -> "Tables":
        made = cls(**{"width": 8, "cr4": PAE, "efer": LMA, "ptbase": BASE_64} | more)
        made.put(ROOT, SLOT_64, ROOT | 5)
        made.put(ROOT, 1, 0x5000 | 7)
        made.put(0x5000, 2, 0x6000 | 7)
        made.put(0x6000, 3, 0x7000 | 7)
        return made

    @classmethod
    def pae(cls, **more: int) -> "Tables":
        """Four directories at 3000H to 6000H, which the last one's first entries show."""
        made = cls(**{"width": 8, "cr4": PAE, "ptbase": BASE_PAE} | more)
        for n in range(4):
            made.put(ROOT, n, 0x3000 + n * 0x1000 | 1)
            made.put(0x6000, n, 0x3000 + n * 0x1000 | 5)
        made.put(0x3000, 1, 0x7000 | 7)
        made.put(0x5000, 2, 0x8000 | 7)
        return made

    def put(self, table: int, index: int, entry: int) -> None:
        at = table + index * self.width
        bytes_ = self.mem.view(np.uint8)
        bytes_[at : at + self.width] = list((entry & (1 << 64) - 1).to_bytes(8, "little"))[
            : self.width
        ]

    def holds(self) -> bool:
        return bool(self_mapped(self.cr0, self.cr3, self.cr4, self.efer, self.mem, self.ptbase))

    def at(self, linear: int, *, user: int = 0) -> tuple[int, int]:
        state = (self.cr0, self.cr3, self.cr4, self.efer, self.rflags, self.mem, self.ptbase)
        kind, physical = entry_at(*state, linear, user)
        return int(kind), int(physical)


def linear_64(*indexes: int) -> int:
    """The canonical linear address that four table indexes select."""
    address = 0
    for index in indexes:
        address = address << 9 | index
    address <<= 12
    return address - (address >> 47 << 48)


# Conditions of ¶74.


@pytest.mark.parametrize("ptbase", [BASE_32 + 0x1000, BASE_32 + 1, BASE_32 | 1 << 32, -(1 << 30)])
def test_an_unaligned_ptbase_maps_nothing(ptbase: int) -> None:
    assert Tables.two_level().holds()
    assert not Tables.two_level(ptbase=ptbase).holds()


@pytest.mark.parametrize(
    "ptbase", [BASE_64 + (1 << 38), BASE_64 ^ 1 << 60, BASE_64 & (1 << 48) - 1]
)
def test_an_unaligned_or_non_canonical_ptbase_maps_nothing(ptbase: int) -> None:
    assert Tables.four_level().holds()
    assert not Tables.four_level(ptbase=ptbase).holds()


@pytest.mark.parametrize("made", [Tables.two_level, Tables.four_level])
@pytest.mark.parametrize(
    "entry", [0, ROOT, 0x3000 | 7, ROOT | 1 << 20 | 7], ids=["0", "absent", "other", "far"]
)
def test_the_slot_must_hold_the_frame_of_cr3(made: Any, entry: int) -> None:
    tables = made()
    tables.put(ROOT, SLOT_32 if tables.width == 4 else SLOT_64, entry)
    assert not tables.holds()
    assert tables.at(tables.ptbase + 0x1000)[0] == ABSENT


def test_flags_of_cr3_do_not_matter() -> None:
    assert Tables.two_level(cr3=ROOT | 0x18).holds()
    assert Tables.four_level(cr3=ROOT | 0x18).holds()


def test_a_large_page_is_no_slot() -> None:
    """With PSE, PS in the slot's entry makes the region show 4 MB of memory, not the tables."""
    tables = Tables.two_level()
    tables.put(ROOT, SLOT_32, ROOT | 0x85)
    assert tables.holds()
    tables.cr4 = PSE
    assert not tables.holds()


@pytest.mark.parametrize(
    "state", [{"cr0": 0x10001}, {"cr4": PAE}, {"cr4": PAE | PSE, "ptbase": 0xC0000000}], ids=str
)
def test_without_paging_or_with_other_tables_there_is_no_slot(state: dict[str, int]) -> None:
    assert not Tables.two_level(**state).holds()


@pytest.mark.parametrize(
    "ptbase", [BASE_PAE + 0x400000, BASE_PAE + 1, BASE_PAE | 1 << 32, -1 << 23]
)
def test_an_unaligned_ptbase_maps_nothing_under_pae(ptbase: int) -> None:
    assert Tables.pae().holds()
    assert not Tables.pae(ptbase=ptbase).holds()
    assert not Tables.pae(cr0=0x10001).holds()


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("entry", [0, 0x3000 ^ 0x1000, 0x9000 | 5, 0x85, 1 << 33 | 5])
def test_each_slot_must_hold_its_directory(number: int, entry: int) -> None:
    tables = Tables.pae()
    frame = 0x3000 + number * 0x1000
    tables.put(0x6000, number, entry | frame if entry in (0x85, 1 << 33 | 5) else entry)
    assert not tables.holds()


def test_what_follows_the_four_pointers_does_not_matter() -> None:
    made = Tables.pae()
    made.put(ROOT, 4, 0x9000 | 1)
    assert made.holds()
    made.put(0x6000, 4, 0xA000 | 1)
    assert made.holds()


def test_a_slot_of_four_level_paging_is_no_large_page() -> None:
    made = Tables.four_level()
    assert made.holds()
    made.put(ROOT, SLOT_64, ROOT | 0x85)
    assert not made.holds()


def test_a_directory_that_is_not_there_has_no_slot() -> None:
    tables = Tables.pae()
    tables.put(ROOT, 1, 0)
    assert not tables.holds()
    tables.put(0x6000, 1, 0)
    assert tables.holds()
    assert tables.at(BASE_PAE + (2 << 21) + 0x2000)[0] == PTE
    tables.put(ROOT, 3, 0)
    assert not tables.holds()


# Classes of ¶75.


def test_two_level_classes() -> None:
    tables = Tables.two_level()
    assert tables.at(BASE_32 + 0x1000 + 12) == (PTE, 0x500C)
    assert tables.at(BASE_32 + 0x1000 * SLOT_32 + 8) == (DIRECTORY, ROOT + 8)
    # Not present, and not in the tables.
    assert tables.at(BASE_32 + 0x2000)[0] == ABSENT
    assert tables.at(BASE_32 - 4)[0] == ABSENT
    assert tables.at(BASE_32 + (4 << 20))[0] == ABSENT
    assert tables.at(0x1000)[0] == ABSENT


def test_pae_classes() -> None:
    tables = Tables.pae()
    assert tables.at(BASE_PAE + 0x1000 + 24) == (PTE, 0x7018)
    assert tables.at(BASE_PAE + (2 << 21) + 0x2000 + 8) == (PTE, 0x8008)
    # C0600000H is where the directories show, one after another.
    for n in range(4):
        shown = 0xC0600000 + n * 0x1000 + 16
        assert tables.at(shown) == (DIRECTORY, 0x3000 + n * 0x1000 + 16)
    assert tables.at(BASE_PAE + 0x2000)[0] == ABSENT
    assert tables.at(BASE_PAE - 8)[0] == ABSENT
    assert tables.at(BASE_PAE + (8 << 20))[0] == ABSENT
    tables.put(0x3000, 1, 0x7000 | 0x87)
    assert tables.at(BASE_PAE + 0x1000)[0] == ABSENT


def test_four_level_classes() -> None:
    tables = Tables.four_level()
    slot = SLOT_64
    assert tables.at(linear_64(slot, 1, 2, 3) + 8) == (PTE, 0x7008)
    assert tables.at(linear_64(slot, slot, 1, 2) + 8) == (DIRECTORY, 0x6008)
    assert tables.at(linear_64(slot, slot, slot, 1) + 8) == (DIRECTORY, 0x5008)
    assert tables.at(linear_64(slot, slot, slot, slot) + 8) == (DIRECTORY, ROOT + 8)
    assert tables.at(linear_64(slot, 1, 2, 4))[0] == ABSENT
    assert tables.at(linear_64(slot - 1, 1, 2, 3))[0] == ABSENT


def test_a_large_page_on_the_way_is_data_and_not_a_table() -> None:
    tables = Tables.two_level(cr4=PSE)
    tables.put(ROOT, 1, 0x5000 | 0x85)
    assert tables.at(BASE_32 + 0x1000)[0] == ABSENT
    tables.cr4 = 0
    assert tables.at(BASE_32 + 0x1000)[0] == PTE
    for table, index in ((0x5000, 2), (0x6000, 3)):
        long = Tables.four_level()
        assert long.at(linear_64(SLOT_64, 1, 2, 3))[0] == PTE
        long.put(table, index, 0x7000 | 0x87)
        assert long.at(linear_64(SLOT_64, 1, 2, 3))[0] == ABSENT


def test_only_what_rw_stops() -> None:
    tables = Tables.two_level()
    assert tables.at(BASE_32 + 0x1000, user=1)[0] == PTE
    tables.put(ROOT, SLOT_32, ROOT | 7)
    assert tables.at(BASE_32 + 0x1000)[0] == ABSENT
    # User mode, and U/S is 0 at one level.
    tables.put(ROOT, SLOT_32, ROOT | 1)
    assert tables.at(BASE_32 + 0x1000, user=1)[0] == ABSENT
    assert tables.at(BASE_32 + 0x1000)[0] == PTE


def test_what_smap_stops_is_not_rws() -> None:
    tables = Tables.two_level(cr4=SMAP)
    assert tables.at(BASE_32 + 0x1000)[0] == ABSENT
    tables.rflags = 2 | 1 << 18
    assert tables.at(BASE_32 + 0x1000)[0] == PTE
    tables.rflags = 2
    tables.put(ROOT, SLOT_32, ROOT | 1)
    assert tables.at(BASE_32 + 0x1000)[0] == PTE


def test_tables_outside_memory() -> None:
    tables = Tables.two_level()
    tables.put(ROOT, 1, 0x7FFF_F000 | 7)
    assert tables.at(BASE_32 + 0x1000)[0] == ABSENT
    assert not Tables.two_level(cr3=0x7FFF_F000).holds()
    assert not Tables.four_level(cr3=0x7F_FFFF_F000).holds()


# Brute force: small random tables, everything that the region shows.


def walk_by_hand(
    memory: bytes, width: int, root: int, slot: int, indexes: list[int]
) -> tuple[str, int] | None:
    """Through the slot by the indexes: what is there and where it lies; None for nothing.

    The tables are a tree of pages. Being on the way down from the slot is being one level
    further up in the tree than the depth says, as often as the slot was taken.
    """
    frame = root
    rights = 7
    large = False
    for index in [slot, *indexes]:
        at = frame + index * width
        entry = int.from_bytes(memory[at : at + width], "little")
        if not entry & 1:
            return None
        large = large or entry >> 7 & 1 == 1
        rights &= entry
        frame = entry & 0xF_FFFF_FFFF_F000
        if frame >= len(memory):
            return None
    if large or rights & 2:
        return None
    return ("pte" if indexes[0] != slot else "directory"), frame


@pytest.mark.parametrize("width", [4, 8])
@settings(max_examples=150)
@given(data=st.data())
def test_every_page_of_the_region(width: int, data: st.DataObject) -> None:
    levels = 2 if width == 4 else 4
    frames = st.integers(2, 7).map(lambda n: n << 12)
    flags = st.sampled_from([0, 1, 5, 5, 7, 7, 3, 0x85, 0x87])
    used = [0, 1, SLOT_32 if width == 4 else SLOT_64]
    tables = Tables(
        width=width,
        cr4=PAE if width == 8 else PSE,
        efer=LMA if width == 8 else 0,
        ptbase=BASE_64 if width == 8 else BASE_32,
    )
    for frame in range(2, 8):
        for index in used:
            tables.put(frame << 12, index, data.draw(frames) | data.draw(flags))
    tables.put(ROOT, used[2], ROOT | data.draw(st.sampled_from([5, 5, 7, 1, 0x85])))
    memory = tables.mem.tobytes()
    indexes = [data.draw(st.sampled_from(used)) for _ in range(levels - 1)]
    page = 0
    for index in indexes:
        page = page << (10 if width == 4 else 9) | index
    expected = None
    if tables.holds():
        expected = walk_by_hand(memory, width, ROOT, used[2], indexes)
    kind, physical = tables.at(tables.ptbase + (page << 12) + 16)
    if expected is None:
        assert kind == ABSENT
    else:
        assert (kind, physical) == (PTE if expected[0] == "pte" else DIRECTORY, expected[1] | 16)


def walk_pae(memory: bytes, linear: int) -> tuple[int, bool] | None:
    """(physical page, whether R/W is 0) of a linear address."""

    def entry(at: int) -> int:
        return int.from_bytes(memory[at : at + 8], "little")

    pointer = entry(ROOT + (linear >> 30) * 8)
    directory = pointer & ~0xFFF
    if not pointer & 1 or directory >= len(memory):
        return None
    table = entry(directory + (linear >> 21 & 511) * 8)
    if not table & 1 or table & 0x80 or (table & ~0xFFF) >= len(memory):
        return None
    page = entry((table & ~0xFFF) + (linear >> 12 & 511) * 8)
    if not page & 1 or page & 0x80 or (page & ~0xFFF) >= len(memory):
        return None
    return page & ~0xFFF, not table & page & 2


@settings(max_examples=300)
@given(data=st.data())
def test_every_page_of_the_region_under_pae(data: st.DataObject) -> None:
    """What `entry_at` calls an entry is one that some linear address is translated by."""
    frames = st.integers(3, 9).map(lambda n: n << 12)
    flags = st.sampled_from([0, 1, 5, 5, 7, 7, 0x85])
    tables = Tables.pae()
    for frame in range(3, 10):
        for index in (5, 6):
            tables.put(frame << 12, index, data.draw(frames) | data.draw(flags))
    changed = data.draw(st.integers(0, 3))
    tables.put(0x6000, changed, data.draw(frames) | data.draw(flags))
    index = data.draw(st.sampled_from([0, 1, 2, 3, 5, 6]))
    quarter = data.draw(st.integers(0, 3))
    linear = BASE_PAE + (quarter << 21) + (index << 12) + 16
    kind, physical = tables.at(linear)
    memory = tables.mem.tobytes()
    expected = walk_pae(memory, linear)
    if not tables.holds() or expected is None or not expected[1]:
        assert kind == ABSENT
        return
    assert physical == expected[0] | 16
    shown = [0x3000 + n * 0x1000 for n in range(4)]
    if quarter == 3 and index < 4:
        assert (kind, expected[0]) == (DIRECTORY, shown[index])
    else:
        # The directory's entry that leads to this table is where the paging would look.
        above = int.from_bytes(memory[shown[quarter] + index * 8 :][:8], "little")
        assert (kind, above & ~0xFFF) == (PTE, expected[0])


# Which entries a write touches.


def bytes_by_hand(page: bytes, width: int, offset: int, data: bytes) -> list[tuple[int, int, int]]:
    """(where, old, new) of each entry that a write touches, by writing it into a copy."""
    after = bytearray(page)
    after[offset : offset + len(data)] = data
    touched = sorted({n - n % width for n in range(offset, offset + len(data))})
    return [
        (
            at,
            int.from_bytes(page[at : at + width], "little"),
            int.from_bytes(after[at : at + width], "little"),
        )
        for at in touched
    ]


def allowed(name: int, kind: int, width: int, pse: bool, old: int, new: int) -> bool:
    """The filters' text, bit by bit."""
    if kind == 0 or name == 0 or (kind == 2 and name != 3):
        return False
    if not new & 1:
        return True
    if name != 2 or not old & 1:
        return False
    top = 32 if width == 4 else 52
    if old >> 12 & (1 << top - 12) - 1 != new >> 12 & (1 << top - 12) - 1:
        return False
    if (width == 8 or pse) and (old ^ new) >> 7 & 1:
        return False
    if new >> 1 & 1 and not old >> 1 & 1:
        return False
    return not (width == 8 and old >> 63 and not new >> 63)


def cell(number: int) -> int:
    return number - (number >> 63 << 64)


@pytest.mark.parametrize("width", [4, 8])
@settings(max_examples=400)
@given(data=st.data())
def test_every_entry_that_a_write_touches_is_judged(width: int, data: st.DataObject) -> None:
    pse = data.draw(st.booleans())
    name = data.draw(st.integers(0, 3))
    kind = data.draw(st.integers(0, 2))
    size = data.draw(st.sampled_from([1, 2, 4, 8]))
    offset = data.draw(st.integers(0, 32 - size))
    entry = st.sampled_from([0, 1, 0x5067, 0x5065, 0x50E7, (1 << 8 * width) - 1, 0x7065])
    page = b"".join(data.draw(entry).to_bytes(width, "little") for _ in range(32 // width))
    whole = int.from_bytes(page[offset : offset + size], "little")
    flips = data.draw(st.lists(st.integers(0, 8 * size - 1), max_size=2))
    for bit in flips:
        whole ^= 1 << bit
    written = whole.to_bytes(size, "little")
    mem = np.frombuffer(page, np.int64).copy()
    cr4 = PAE if width == 8 else PSE if pse else 0
    touched = bytes_by_hand(page, width, offset, written)
    refused = [at for at, old, new in touched if not allowed(name, kind, width, pse, old, new)]
    got = refused_entry(name, cr4, kind, mem, offset, size, cell(whole))
    assert got == (refused[0] if refused else -1)
    for _, old, new in touched:
        wide = (cell(new), cell(old)) if width == 8 else (new, old)
        assert admits(name, cr4, kind, *wide) == allowed(name, kind, width, pse, old, new)


@pytest.mark.parametrize("width", [4, 8])
@given(data=st.data())
def test_the_entry_that_a_write_leaves(width: int, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([1, 2, 4, 8]))
    ahead = data.draw(st.integers(1 - width, size - 1) | st.just(0))
    old, stored = (
        data.draw(st.integers(0, (1 << 8 * bytes_) - 1) | st.sampled_from([0, 1 << 8 * bytes_ - 1]))
        for bytes_ in (width, size)
    )
    page = bytearray(24)
    page[8 : 8 + width] = old.to_bytes(width, "little")
    page[8 - ahead : 8 - ahead + size] = stored.to_bytes(size, "little")
    new = int.from_bytes(page[8 : 8 + width], "little")
    wide = cell if width == 8 else int
    assert merged(wide(old), ahead, width, size, cell(stored)) == wide(new)


def test_which_faults_a_filter_may_judge() -> None:
    write, others = (3, 7), (0, 1, 2, 5, 6, 0x11, 0x13, 0x4003)
    for name in ("FAULT_FILTER", "PTBASE", "CRITERIA_TABLE_RULES"):
        cells = np.zeros(f.LENGTH, np.int64)
        assert not any(may_be_filtered(cells, code) for code in write)
        cells[getattr(f, name)] = 1
        assert all(may_be_filtered(cells, code) for code in write)
        assert not any(may_be_filtered(cells, code) for code in others)
        cells[f.EPT_POINTER_IN_FORCE] = 0x1000
        assert not any(may_be_filtered(cells, code) for code in write)


def test_frames_with_all_address_bits() -> None:
    # Tables in frames with the lowest number's bit set, and slots beside the right one empty.
    for made in (Tables(cr3=0x3000), Tables(cr3=0x3FFF)):
        made.put(0x3000, SLOT_32, 0x3005)
        made.put(0x3000, 1, 0x7007)
        assert made.holds()
        assert made.at(BASE_32 + 0x1FFF) == (PTE, 0x7FFF)
        assert made.at(BASE_32 + 0x1FFF - (1 << 32)) == (PTE, 0x7FFF)
    long = Tables(width=8, cr3=0x3FFF, cr4=PAE, efer=LMA, ptbase=BASE_64)
    long.put(0x3000, SLOT_64, 0x3005)
    assert long.holds()
    assert long.at(linear_64(SLOT_64, SLOT_64, SLOT_64, SLOT_64) | 0xFFF) == (DIRECTORY, 0x3FFF)


@pytest.mark.parametrize("base", [0xC0800000, 0x60800000, 0xFF800000, 0x20000000])
def test_pointers_in_the_middle_of_a_page(base: int) -> None:
    # The four pointers of PAE paging begin at a multiple of 32 bytes.
    made = Tables(width=8, cr3=0x2FF8, cr4=PAE, ptbase=base)
    directory, slot = 0x3000 + (base >> 30) * 0x2000, base >> 21 & 511
    for n in range(4):
        made.put(0x2FE0, n, 0x3000 + n * 0x2000 | 1)
        made.put(directory, slot + n, 0x3000 + n * 0x2000 | 5)
    made.put(0x9000, 9, 0xC007)
    assert made.holds()
    # Directory 3's tenth table, as the region shows it, and by 64-bit numbers as well.
    assert made.at(base + (3 << 21) + 0x9FFF) == (PTE, 0xCFFF)
    assert made.at(base + (3 << 21) + 0x9FFF - (1 << 32)) == (PTE, 0xCFFF)
    for other in (0x6001, 0x5001):
        made.put(directory, slot + 2, other)
        assert not made.holds()
    # A pointer that is not there has no slot, whatever else the two entries say.
    made.put(0x2FE0, 2, 0x5000)
    made.put(directory, slot + 2, 0x9000)
    assert made.holds()


def test_the_last_page_of_memory_may_be_a_table() -> None:
    made = Tables.two_level()
    made.put(ROOT, 1, MEMORY - 0x1000 | 7)
    assert made.at(BASE_32 + 0x1000) == (PTE, MEMORY - 0x1000)
    made.put(ROOT, 1, MEMORY | 7)
    assert made.at(BASE_32 + 0x1000) == (ABSENT, 0)


def test_half_of_the_address_space_is_canonical() -> None:
    for slot in (255, 256, 0):
        made = Tables(width=8, cr4=PAE, efer=LMA, ptbase=linear_64(slot, 0, 0, 0))
        made.put(ROOT, slot, ROOT | 5)
        assert made.holds(), slot
        made.ptbase ^= 1 << 47
        assert not made.holds(), slot


FIGURE_8 = [
    # old entry, new entry, figure 7, figure 8, ¶80 of a PTE
    (0x5067, 0x5066, True, True, True),  # 810: P is not set
    (0x5067, 0x9ABC, True, True, True),  # swapped out: the rest is free
    (0x5066, 0x5067, False, False, False),  # 816: P was not set
    (0x5067, 0x5007, False, True, False),  # accessed and dirty cleared
    (0x5067, 0x6067, False, False, False),  # 818: another frame
    (0x5067, 0x4067, False, False, False),  # by the address's lowest bit
    (0x5067, 0x5065, False, True, False),  # 820: read-only from now on
    (0x5065, 0x5067, False, False, False),  # 820: writable from now on
    (0x5067, 0x5063, False, True, False),  # U/S is the guest's
    (0x5063, 0x5067, False, True, False),
    (0x5067, 0x5067, False, True, False),  # nothing changes
    (0x5067, 0x5E7F, False, True, False),  # available bits, PWT, PCD
]


@pytest.mark.parametrize(("old", "new", "seven", "eight", "eighty"), FIGURE_8)
def test_the_figures_as_a_table(old: int, new: int, seven: bool, eight: bool, eighty: bool) -> None:
    for cr4 in (0, PSE, PAE):
        assert [admits(name, cr4, PTE, new, old) for name in range(4)] == [
            False,
            seven,
            eight,
            eighty,
        ]
        # Of a PDE, only ¶80 lets a write through.
        assert [admits(name, cr4, DIRECTORY, new, old) for name in range(4)] == [
            False,
            False,
            False,
            eighty,
        ]
        assert not any(admits(name, cr4, ABSENT, new, old) for name in range(4))


def test_ps_stays_where_it_would_mean_a_large_page() -> None:
    assert admits(2, 0, PTE, 0x50E7, 0x5067)
    assert not admits(2, PSE, PTE, 0x50E7, 0x5067)
    assert not admits(2, PAE, PTE, 0x50E7, 0x5067)
    assert admits(2, PAE, PTE, 0x50E6, 0x5067)


def test_execute_disable_may_be_set_and_not_cleared() -> None:
    executable, not_executable = 0x5067, cell(1 << 63 | 0x5067)
    assert admits(2, PAE, PTE, not_executable, executable)
    assert not admits(2, PAE, PTE, executable, not_executable)
    assert admits(2, PAE, PTE, 0x5066, not_executable)
