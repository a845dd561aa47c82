"""Criteria tables that judge writes to page tables: which complete, exit, or go to the guest."""

from struct import pack

import pytest

from tests.conformance.self_mapped_guest import (
    CODE,
    FOUR_LEVEL,
    PAE,
    ROOT,
    STACK,
    TWO_LEVEL,
    Bench,
    Layout,
    Outcome,
)
from trapgate.decision import embodiments
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import Names, parse
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.decision.decide import Disposition, Reason
from trapgate.decision.fault_filters import FILTERS, OWN_FRAME
from trapgate.events.journal import (
    ROW_ADDRESS,
    ROW_CPL,
    ROW_DATA,
    ROW_DISPOSITION,
    ROW_OLD_VALUE,
    ROW_REASON,
    ROW_RIP,
    ROW_TIME,
)
from trapgate.paging.frame_map import LEAF, OWN, TABLE

pytestmark = pytest.mark.conformance

FRAME = 0x123 << 12
PRESENT, CLEAN, UNMAPPED = FRAME | 0x67, FRAME | 0x07, FRAME | 0x66
READ_ONLY, WRITABLE_NOW = FRAME | 0x65, FRAME | 0x67
OTHER = 0x124 << 12 | 0x67
STORE = bytes.fromhex("8907")
"""MOV [EDI], EAX."""
STRING = bytes.fromhex("fcb902000000f3ab")
"""CLD; MOV ECX, 2; REP STOSD."""
ADD = bytes.fromhex("0107")
"""ADD [EDI], EAX."""

both_engines = pytest.mark.parametrize("engine", ["native", "portable"])
layouts = pytest.mark.parametrize(
    "layout", [TWO_LEVEL, PAE, FOUR_LEVEL], ids=["two-level", "pae", "four-level"]
)


def when(condition: str, action: Action) -> tuple[Rule, ...]:
    return rules_for(parse(condition), action)


def write(
    bench: Bench,
    value: int,
    rules: tuple[Rule, ...] = (),
    *,
    code: bytes = STORE,
    old: int = PRESENT,
    offset: int = 0x40,
    memory: dict[int, bytes] | None = None,
    **fields: int,
) -> Outcome:
    layout = bench.layout
    filler = old.to_bytes(layout.width, "little") * (0x1000 // layout.width)
    return bench.run(
        (b"\x48" if layout.bits == 64 and code == STORE else b"") + code,
        writable=False,
        memory=dict.fromkeys(layout.frames, filler) | (memory or {}),
        registers={"rax": value, "rdi": layout.tables + offset},
        fields={"FAULT_FILTER": 0} | fields,
        rules=rules,
    )


def embodiment(name: str, layout: Layout) -> tuple[Rule, ...]:
    if name == "figure-8":
        return embodiments.figure_8(wide=layout.width == 8, page_size=True)
    return {"figure-7": embodiments.figure_7, "paragraph-80": embodiments.paragraph_80}[name]()


WRITES = {
    "unmaps": (UNMAPPED, PRESENT, STORE, 0x40),
    "cleans": (CLEAN, PRESENT, STORE, 0x40),
    "protects": (READ_ONLY, PRESENT, STORE, 0x40),
    "grants": (WRITABLE_NOW, READ_ONLY, STORE, 0x40),
    "maps another": (OTHER, PRESENT, STORE, 0x40),
    "two entries": (0x66, PRESENT, STORE, 0x42),
    "two pages": (UNMAPPED, PRESENT, STORE, 0xFFE),
    "a string": (UNMAPPED, PRESENT, STRING, 0x40),
    "adds": (1, UNMAPPED, ADD, 0x40),
    "takes away": ((1 << 32) - 1, PRESENT, ADD, 0x40),
}


@both_engines
@layouts
@pytest.mark.parametrize("name", ["figure-7", "figure-8", "paragraph-80"])
def test_a_filter_as_a_table_completes_what_the_filter_completes(
    name: str, layout: Layout, engine: str
) -> None:
    bench = Bench(layout, engine)
    directory = {ROOT + 4 * 500: pack("<I", PRESENT)}
    went = set()
    for what, (value, old, code, offset) in WRITES.items():
        built_in = write(
            bench, value, code=code, old=old, offset=offset, FAULT_FILTER=FILTERS[name]
        )
        table = write(bench, value, embodiment(name, layout), code=code, old=old, offset=offset)
        assert [row[ROW_DISPOSITION] for row in table.rows] == [
            row[ROW_DISPOSITION] for row in built_in.rows
        ], what
        assert table.exit.reason == built_in.exit.reason, what
        assert (table.fields, table.registers) == (built_in.fields, built_in.registers), what
        assert table.memory == built_in.memory, what
        went |= {row[ROW_DISPOSITION] for row in table.rows}
    assert went == {Disposition.EXIT, Disposition.COMPLETE}
    if layout is TWO_LEVEL:
        # A PDE that nothing needs.
        at = 0xC0300000 + 4 * 500 - layout.tables
        row = write(bench, UNMAPPED, embodiment(name, layout), offset=at, memory=directory).rows[-1]
        completes = row[ROW_DISPOSITION] == Disposition.COMPLETE
        assert completes == (name == "paragraph-80")


@both_engines
@pytest.mark.parametrize("code", [STORE, ADD], ids=["store", "read-modify-write"])
def test_the_first_rule_that_matches_decides_before_any_filter(engine: str, code: bytes) -> None:
    bench = Bench(TWO_LEVEL, engine)
    # Both instructions make an absent entry of an absent one.
    old = UNMAPPED if code == STORE else 0
    judged = "table_entry == 1 and not present(new_entry)"
    for action, disposition in (
        (Action.EXIT, Disposition.EXIT),
        (Action.DELIVER, Disposition.DELIVER),
        (Action.COMPLETE, Disposition.COMPLETE),
    ):
        for number in (0, 2):
            rules = (*when(judged, action), Rule(Action.EXIT))
            row = write(bench, UNMAPPED, rules, code=code, old=old, FAULT_FILTER=number).rows[0]
            assert row[ROW_DISPOSITION] == disposition
            assert row[ROW_REASON] == Reason.CRITERIA_TABLE
            assert (row[ROW_DATA], row[ROW_OLD_VALUE]) == (UNMAPPED, old)
    # NEXT, and no rule that matches, leave it to the filter and its order.
    for rules in (when(judged, Action.NEXT), when("vector == GP", Action.EXIT)):
        row = write(bench, UNMAPPED, rules, code=code, old=old, FAULT_FILTER=2).rows[0]
        assert row[ROW_REASON] == Reason.FAULT_FILTER_FIGURE_8
        row = write(
            bench, UNMAPPED, rules, code=code, old=old, FAULT_FILTER=2, FAULT_FILTER_ORDER=3
        ).rows[0]
        assert row[ROW_DISPOSITION] == Disposition.EXIT
        assert row[ROW_REASON] != Reason.CRITERIA_TABLE


@both_engines
@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("code", [STORE, ADD], ids=["store", "read-modify-write"])
def test_the_table_sees_the_processor_as_it_was_before_the_write(
    engine: str, ring: int, code: bytes
) -> None:
    """... in the middle of a block, and though one instruction was tried to know its data.

    The accessed bit is left out: the engine's load of a read-modify-write has set it.
    """
    bench = Bench(TWO_LEVEL, engine, ring=ring)
    linear = TWO_LEVEL.tables + 0x40
    # XOR EBX, EBX sets ZF.
    block = bytes.fromhex("9031db") + code
    facts = (
        f"rip == {CODE + 3:#x} and rsp == {STACK:#x} and cpl == {ring} and mode == mode_protected "
        f"and bit(rflags, 6) and cr3 == {ROOT:#x} and vector == PF and type == hardware_exception "
        f"and address == {linear:#x} and code == {7 if ring else 3} and not bit(efer, 10) "
        f"and walk_level == 1 and entry & 0xFFFFFFDF == {TWO_LEVEL.frames[0] | 7:#x} "
        f"and page_address == {TWO_LEVEL.frames[0] + 0x40:#x} "
        f"and old_entry == 0 and new_entry == {UNMAPPED:#x} and set_bits == {UNMAPPED:#x}"
    )
    every = write(bench, UNMAPPED, when(facts, Action.COMPLETE), code=block, old=0)
    assert every.rows[0][ROW_DISPOSITION] == Disposition.COMPLETE
    assert (every.rows[0][ROW_RIP], every.rows[0][ROW_CPL]) == (CODE + 3, ring)
    for fact in facts.split(" and "):
        wrong = when(f"not {fact} and table_entry == 1", Action.COMPLETE)
        outcome = write(bench, UNMAPPED, wrong, code=block, old=0)
        assert outcome.rows[0][ROW_DISPOSITION] == Disposition.EXIT, fact


@both_engines
def test_a_completed_write_has_the_time_of_its_instruction(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine)
    nop = b"\x90"
    code = nop + STORE + 3 * nop + STORE + 5 * nop
    outcome = write(bench, UNMAPPED, when("table_entry == 1", Action.COMPLETE), code=code)
    assert [row[ROW_DISPOSITION] for row in outcome.rows[:2]] == [Disposition.COMPLETE] * 2
    assert [row[ROW_TIME] for row in outcome.rows[:2]] == [2, 6]


@both_engines
def test_each_entry_of_a_write_is_judged_and_the_first_refused_is_told(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine)
    # Four bytes at offset 2 of an entry: the one keeps P, the other loses it.
    rules = (
        *when("table_entry == 1 and present(new_entry)", Action.COMPLETE),
        *when("table_entry == 1 and not present(new_entry)", Action.DELIVER),
    )
    outcome = write(bench, 0x0066_0123, rules, offset=0x42)
    row = outcome.rows[0]
    assert row[ROW_DISPOSITION] == Disposition.DELIVER
    assert row[ROW_DATA] == PRESENT & 0xFFFF_0000 | 0x66
    assert row[ROW_ADDRESS] & 0xFFFF_FFFF == TWO_LEVEL.tables + 0x42


@both_engines
@layouts
def test_a_bitmap_of_frames_says_what_entries_may_lead_to(layout: Layout, engine: str) -> None:
    """The VMM's own bitmap of frames, ¶72 without a frame map."""
    bench = Bench(layout, engine)
    mine = bytearray(0x40)
    mine[0x123 >> 3] |= 1 << (0x123 & 7)
    names = Names(bitmaps={"mine": bytes(mine)})
    condition = 'table_entry == 1 and new_frame in bitmap("mine")'
    rules = rules_for(parse(condition, names), Action.COMPLETE)
    for value, disposition in (
        (CLEAN, Disposition.COMPLETE),
        (OTHER, Disposition.EXIT),
        # What is not present leads to no frame.
        (UNMAPPED, Disposition.EXIT),
    ):
        outcome = write(bench, value, rules, FAULT_FILTER=0)
        assert outcome.rows[-1][ROW_DISPOSITION] == disposition, hex(value)


@both_engines
def test_a_fault_that_is_no_such_write_has_no_entry(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine)
    completes = when("table_entry <= 3", Action.COMPLETE)
    for ptbase in (0x8000_0000, 0xC000_1000):
        outcome = write(bench, UNMAPPED, completes, PTBASE=ptbase)
        assert outcome.rows[-1][ROW_DISPOSITION] == Disposition.EXIT
        assert outcome.rows[-1][ROW_REASON] != Reason.CRITERIA_TABLE


MAP = 0x80000
"""The frame map, a byte for each of 256 frames of memory."""


def test_the_frame_map_as_a_value() -> None:
    bench = Bench(TWO_LEVEL, "native")
    frames = bytearray([OWN]) * 256
    for frame in TWO_LEVEL.frames:
        frames[frame >> 12] = TABLE | LEAF | OWN
    frames[0x44] = 0
    mine, others = 0x45067, 0x44067

    def went(value: int, rules: tuple[Rule, ...], frame_filters: int = 0) -> Disposition:
        memory = {MAP: bytes(frames), TWO_LEVEL.self_entry: pack("<I", ROOT | 7)}
        outcome = write(
            bench,
            value,
            rules,
            memory=memory,
            PTBASE=0,
            FRAME_MAP_ADDRESS=MAP,
            FRAME_MAP_LENGTH=256,
            FRAME_FILTERS=frame_filters,
        )
        return Disposition(outcome.rows[0][ROW_DISPOSITION])

    for value in (mine, others, UNMAPPED, OTHER):
        own = went(value, embodiments.own_frame())
        assert own == went(value, (), frame_filters=OWN_FRAME)
        assert own == (Disposition.COMPLETE if value in (mine, UNMAPPED) else Disposition.EXIT)
    exact = f"frame_type == {TABLE | LEAF | OWN} and table_entry == 1 and new_frame_type == 0"
    assert went(others, when(exact, Action.COMPLETE)) == Disposition.COMPLETE
    assert went(mine, when(exact, Action.COMPLETE)) == Disposition.EXIT
    # An entry that is not present leads to no frame.
    assert went(UNMAPPED, when("new_frame_type <= 255", Action.COMPLETE)) == Disposition.EXIT
