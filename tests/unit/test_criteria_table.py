"""The criteria table against a reading of its words that shares nothing with it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest
from trapgate.decision import fault_values as fv
from trapgate.decision.criteria_rules import (
    Action,
    Clause,
    CriteriaTableError,
    Operator,
    Rule,
    decode,
    encode,
)
from trapgate.decision.criteria_table import check_table, decide_by_table, operating_mode
from trapgate.decision.decide import Disposition, Reason, decide_event, decide_fault
from trapgate.sdm import cells as f
from trapgate.sdm import checks as ck
from trapgate.vmcs.vmcs import Vmcs

WORD = (1 << 64) - 1

numbers = st.one_of(
    st.integers(0, 15), st.integers(0, WORD), st.sampled_from([1 << 63, WORD, (1 << 63) - 1])
)
canonical = st.integers(-(1 << 47), (1 << 47) - 1).map(lambda one: one & WORD)
clauses = st.builds(
    Clause,
    value=st.sampled_from(fv.VALUES),
    operator=st.sampled_from(list(Operator)).filter(lambda one: one is not Operator.IN_BITMAP),
    operand=numbers,
    mask=st.one_of(st.just(WORD), numbers),
    negated=st.booleans(),
).flatmap(
    lambda one: st.builds(
        lambda limit: Clause(one.value, one.operator, one.operand, limit, one.mask, one.negated),
        numbers if one.operator is Operator.IN_RANGE else st.just(0),
    )
)
bitmaps = st.builds(
    lambda value, bits, negated: Clause(
        value, Operator.IN_BITMAP, negated=negated, bitmap=bits, mask=0xFF
    ),
    st.sampled_from(fv.VALUES),
    st.binary(min_size=1, max_size=24),
    st.booleans(),
)
rules = st.builds(
    Rule, st.sampled_from(list(Action)), st.lists(clauses | bitmaps, max_size=3).map(tuple)
)
tables = st.lists(rules, max_size=5)

TESTS: dict[Operator, Callable[[int, Clause], bool]] = {
    Operator.EQUAL: lambda x, c: x == c.operand,
    Operator.BELOW: lambda x, c: x < c.operand,
    Operator.BELOW_OR_EQUAL: lambda x, c: x <= c.operand,
    Operator.IN_RANGE: lambda x, c: c.operand <= x <= c.limit,
    Operator.ANY_BIT: lambda x, c: bool(x & c.operand),
    Operator.ALL_BITS: lambda x, c: x & c.operand == c.operand,
    Operator.IN_BITMAP: lambda x, c: x < 8 * len(c.bitmap) and bool(c.bitmap[x // 8] >> x % 8 & 1),
}


def expected(table: list[Rule], known: dict[str, int]) -> tuple[int, int]:
    """What the table does with a fault of which this is known."""
    for number, rule in enumerate(table):
        if all(
            clause.value.name in known
            and TESTS[clause.operator](known[clause.value.name] & clause.mask, clause)
            is not clause.negated
            for clause in rule.clauses
        ):
            return rule.action, number
    return 0, -1


@st.composite
def faults(draw: st.DrawFn) -> tuple[Guest, tuple[int, ...], dict[str, int]]:
    """A guest's arrays, the arguments that tell of a fault, and what is known of it by name."""
    guest = Guest(bits=draw(st.sampled_from([32, 64])), ring=draw(st.sampled_from([0, 3])))
    vector, kind = draw(
        st.sampled_from([(14, 3), (13, 3), (6, 3), (3, 6), (0x80, 4), (0x30, 0), (2, 2)])
    )
    code = draw(st.integers(0, 0xFFFF)) if kind == 3 and vector in (13, 14) else -1
    address, rsp = draw(canonical), draw(canonical)
    depth = draw(st.integers(0, 2))
    outer = draw(st.integers(0, 31)) if depth else -1
    kind_of_entry = draw(st.integers(0, 2)) if vector == 14 and kind == 3 else 0
    old, new = draw(numbers), draw(numbers)
    v = guest.v
    v[f.GUEST_RSP] = g.signed(rsp)
    known = {
        "vector": vector,
        "type": kind,
        "depth": depth,
        "rip": int(v[f.GUEST_RIP]) & WORD,
        "rsp": rsp,
        "cpl": int(v[f.GUEST_SS_ACCESS_RIGHTS]) >> 5 & 3,
        "mode": 4 if guest.long else 2,
        "rflags": int(v[f.GUEST_RFLAGS]) & WORD,
        "cr0": int(v[f.GUEST_CR0]) & WORD,
        "cr3": int(v[f.GUEST_CR3]) & WORD,
        "cr4": int(v[f.GUEST_CR4]) & WORD,
        "efer": int(v[f.GUEST_IA32_EFER]) & WORD,
    }
    if code >= 0:
        known["code"] = code
    if vector == 13 and kind == 3:
        known["selector_index"] = code >> 3
    if outer >= 0:
        known["interrupted_vector"] = outer
    if kind in (4, 5, 6):
        known["instruction_length"] = 2
    if vector == 14 and kind == 3:
        known["address"] = address
        known["page_fault_code"] = code
        known["page"] = address >> 12
        known["page_offset"] = address & 0xFFF
        known["below_stack"] = rsp - address & WORD
    guest.ram[g.CODE : g.CODE + 2] = (0x89, 0x03)  # MOV [EBX], EAX
    guest.r[0] = g.signed(old)
    paged = v[f.GUEST_CR0] >> 31 & 1  # the walk has tests of its own
    if "address" in known and code & 0x12 == 2 and outer < 0 and not paged:
        known |= {"data": old & 0xFFFF_FFFF, "data_size": 4}
    if kind_of_entry:
        known |= {"table_entry": kind_of_entry, "old_entry": old, "new_entry": new}
        known |= {"set_bits": new & ~old & WORD, "cleared_bits": old & ~new & WORD}
    if paged:
        known |= dict.fromkeys(("walk_level", "entry_address", "entry", "page_address"), 0)
    arguments = (vector, kind, code, g.signed(address), 2, depth, outer, kind_of_entry)
    return guest, (*arguments, g.signed(old), g.signed(new)), known


def put(guest: Guest, table: list[Rule]) -> None:
    vmcs = Vmcs()
    vmcs.criteria_table = tuple(table)
    longer = np.zeros(f.LENGTH, np.int64)
    longer[: len(guest.v)] = guest.v[: f.LENGTH]
    for cell in (f.CRITERIA_TABLE_LENGTH, f.CRITERIA_TABLE_RULES):
        longer[cell] = vmcs.cells[cell]
    longer[f.TABLE_START :] = vmcs.cells[f.TABLE_START :]
    guest.v = longer


@given(tables, faults())
def test_the_first_rule_that_matches_decides(
    table: list[Rule], fault: tuple[Guest, tuple[int, ...], dict[str, int]]
) -> None:
    guest, arguments, known = fault
    if guest.v[f.GUEST_CR0] >> 31 & 1:
        table = [rule for rule in table if not any(c.value.name in WALKED for c in rule.clauses)]
    put(guest, table)
    got = decide_by_table(guest.v, guest.r, guest.mem, *arguments)
    assert got == expected(table, known)


@settings(max_examples=40)
@given(faults(), st.booleans())
def test_each_value_and_operator_alone(
    fault: tuple[Guest, tuple[int, ...], dict[str, int]], negated: bool
) -> None:
    """A rule of one clause about each value that a fault may have, at it and beside it."""
    guest, arguments, known = fault
    first = guest.v
    for number, name in enumerate(ALONE):
        value = known.get(name, 0)
        for operator in (Operator.EQUAL, list(TESTS)[number % 6]):
            for operand in (value, value ^ 1, max(value - 1, 0), value ^ 1 << 12):
                limit = max(operand, value) if operator is Operator.IN_RANGE else 0
                clause = Clause(fv.BY_NAME[name], operator, operand, limit, negated=negated)
                table = [Rule(Action.EXIT, (clause,))]
                guest.v = first
                put(guest, table)
                got = decide_by_table(guest.v, guest.r, guest.mem, *arguments)
                assert got == expected(table, known), (name, operator, operand)


ALONE = [
    "vector",
    "type",
    "code",
    "instruction_length",
    "depth",
    "interrupted_vector",
    "address",
    "page",
    "page_offset",
    "below_stack",
    "page_fault_code",
    "selector_index",
    "cpl",
    "mode",
    "rip",
    "rsp",
    "rflags",
    "cr0",
    "cr3",
    "cr4",
    "efer",
    "table_entry",
    "old_entry",
    "new_entry",
    "set_bits",
    "cleared_bits",
]


@pytest.mark.parametrize("lma", [0, 1])
@pytest.mark.parametrize("vm", [0, 1])
@pytest.mark.parametrize("wide", [0, 1])
@pytest.mark.parametrize("pe", [0, 1])
def test_modes(pe: int, wide: int, vm: int, lma: int) -> None:
    guest = Guest()
    guest.set(
        GUEST_CR0=1 << 31 | 0x30 | pe,
        GUEST_RFLAGS=2 | 1 << 16 | vm << 17,
        GUEST_IA32_EFER=0x901 | lma << 10,
        GUEST_CS_ACCESS_RIGHTS=0xC09B | wide << 13,
    )
    mode = fv.MODE_64_BIT if wide else fv.MODE_COMPATIBILITY
    if not lma:
        mode = fv.MODE_PROTECTED
    if vm:
        mode = fv.MODE_VIRTUAL_8086
    assert operating_mode(guest.v) == (mode if pe else fv.MODE_REAL)


@given(tables, faults())
def test_what_no_rule_decides_the_other_criteria_do(
    table: list[Rule], fault: tuple[Guest, tuple[int, ...], dict[str, int]]
) -> None:
    guest, arguments, _ = fault
    vector, kind, code = arguments[:3]
    wanted = decide_fault(guest.v, vector, kind, code)
    assert decide_event(guest.v, guest.r, guest.mem, *arguments) == wanted
    put(guest, table)
    action, _ = decide_by_table(guest.v, guest.r, guest.mem, *arguments)
    if action in (Action.EXIT, Action.DELIVER):
        does = Disposition.EXIT if action == Action.EXIT else Disposition.DELIVER
        wanted = int(does), int(Reason.CRITERIA_TABLE)
    assert decide_event(guest.v, guest.r, guest.mem, *arguments) == wanted


WALKED = ("walk_level", "entry_address", "entry", "page_address")


@settings(max_examples=60)
@given(tables, faults())
def test_compiled_it_decides_the_same(
    table: list[Rule], fault: tuple[Guest, tuple[int, ...], dict[str, int]]
) -> None:
    guest, arguments, _ = fault
    put(guest, table)
    wanted = decide_by_table(guest.v, guest.r, guest.mem, *arguments)
    assert machine_code()(guest.v, guest.r, guest.mem, *arguments) == wanted


def machine_code(made: list[Any] = []) -> Any:  # noqa: B006
    from trapgate.compiler.program import alone

    if not made:
        made.append(alone(decide_by_table))
    return made[0]


@given(tables)
def test_what_is_encoded_is_decoded(table: list[Rule]) -> None:
    padded = [
        Rule(
            rule.action,
            tuple(
                c
                if not c.bitmap
                else Clause(c.value, c.operator, 0, 0, c.mask, c.negated, c.bitmap)
                for c in rule.clauses
            ),
        )
        for rule in table
    ]
    assert list(decode(encode(table), len(table))) == padded
    vmcs = Vmcs()
    vmcs.criteria_table = tuple(table)
    assert list(vmcs.criteria_table) == padded


@given(tables)
def test_a_table_made_of_rules_passes_the_checks_of_vm_entry(table: list[Rule]) -> None:
    vmcs = Vmcs()
    vmcs.criteria_table = tuple(table)
    filtered = (
        *("table_entry", "old_entry", "new_entry", "set_bits", "cleared_bits"),
        *("new_frame", "new_frame_type"),
    )
    bad = [
        n
        for n, rule in enumerate(table)
        if rule.action is Action.COMPLETE
        and (
            rule.about_instructions
            or not any(clause.value.name in filtered for clause in rule.clauses)
        )
    ]
    assert check_table(vmcs.cells) == ((ck.TABLE_COMPLETES, bad[0] << 16) if bad else (0, 0))


CLAUSE = Clause(fv.BY_NAME["cpl"], Operator.EQUAL, 3)


@pytest.mark.parametrize(
    ("change", "check", "place"),
    [
        ({f.CRITERIA_TABLE_LENGTH: 0}, ck.TABLE_RULES, 0),
        ({f.CRITERIA_TABLE_LENGTH: 12}, ck.TABLE_LENGTH, 0),
        ({f.CRITERIA_TABLE_LENGTH: 1 << 20}, ck.TABLE_LENGTH, 0),
        ({f.CRITERIA_TABLE_RULES: 65}, ck.TABLE_RULES, 0),
        ({f.CRITERIA_TABLE_RULES: -1}, ck.TABLE_RULES, 0),
        ({f.CRITERIA_TABLE_RULES: 3}, ck.TABLE_END, 2 << 16),
        ({f.CRITERIA_TABLE_LENGTH: 40}, ck.TABLE_END, 1 << 16),
        ({f.TABLE_START: 4 | 1 << 8}, ck.TABLE_RULE, 0),
        ({f.TABLE_START: 1 | 1 << 16}, ck.TABLE_RULE, 0),
        ({f.TABLE_START: 1 | 9 << 8}, ck.TABLE_END, 0),
        ({f.TABLE_START + 6: 11 | 7 << 8}, ck.TABLE_CLAUSE, 1 << 16),
        ({f.TABLE_START + 6: 11 | 1 << 13}, ck.TABLE_CLAUSE, 1 << 16),
        ({f.TABLE_START + 6: fv.VALUES_END}, ck.TABLE_VALUE, 1 << 16),
        ({f.TABLE_START + 9: 5}, ck.TABLE_CLAUSE, 1 << 16),
        ({f.TABLE_START + 6: 11 | 6 << 8, f.TABLE_START + 9: 8}, ck.TABLE_BITMAP, 1 << 16),
        ({f.TABLE_START + 5: 3 | 1 << 8}, ck.TABLE_COMPLETES, 1 << 16),
    ],
)
def test_what_no_table_may_hold_fails_vm_entry(
    change: dict[int, int], check: int, place: int
) -> None:
    vmcs = Vmcs()
    vmcs.criteria_table = (Rule(Action.EXIT, (CLAUSE,)), Rule(Action.DELIVER, (CLAUSE,)))
    for cell, value in change.items():
        vmcs.cells[cell] = value
    assert check_table(vmcs.cells) == (check, place)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([Rule(Action.EXIT)] * 65, "at most 64"),
        ([Rule(Action.EXIT, (CLAUSE,) * 256)], "at most 255"),
        ([Rule(Action.EXIT, (CLAUSE,) * 200)] * 3, "at most 16384"),
    ],
)
def test_tables_that_the_processor_cannot_take(table: list[Rule], words: str) -> None:
    with pytest.raises(CriteriaTableError, match=words):
        encode(table)


@pytest.mark.parametrize(
    "data", [b"", b"\4" + bytes(7), b"\1\1" + bytes(6), b"\1\1" + b"\xff" * 38]
)
def test_bytes_that_are_no_table(data: bytes) -> None:
    with pytest.raises(CriteriaTableError):
        decode(data, 1)
