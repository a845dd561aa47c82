"""Conditions: read, turned into rules, put into words, and refused with the column."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.core_guest import Guest
from tests.unit.test_criteria_table import clauses, expected, faults, numbers
from trapgate.decision.condition_rules import condition_text, holds, rules_for
from trapgate.decision.conditions import (
    ALWAYS,
    NEVER,
    AllOf,
    AnyOf,
    Condition,
    ConditionError,
    Names,
    opposite,
    parse,
)
from trapgate.decision.criteria_rules import Action, Clause, Operator
from trapgate.decision.fault_values import BY_NAME, VALUES

Fault = tuple[Guest, tuple[int, ...], dict[str, int]]

conditions: st.SearchStrategy[Condition] = st.recursive(
    clauses,
    lambda parts: st.builds(
        lambda kind, some: kind(tuple(some)),
        st.sampled_from([AllOf, AnyOf]),
        st.lists(parts, max_size=3),
    ),
    max_leaves=8,
)

NAMES = Names(symbols={"copy_from_user": (0x1000, 0x1040)}, bitmaps={"odd": b"\xaa" * 32})

FAULT = {
    "vector": 14,
    "type": 3,
    "code": 6,
    "page_fault_code": 6,
    "address": 0xC000_1004,
    "page": 0xC0001,
    "page_offset": 4,
    "rip": 0x1010,
    "cpl": 3,
    "mode": 2,
    "depth": 0,
    "cr3": 0x5000,
    "old_entry": 0x7063,
    "new_entry": 0x7061,
}


def known(condition: str) -> bool:
    return holds(parse(condition, NAMES), lambda value: FAULT.get(value.name))


@pytest.mark.parametrize(
    "text",
    [
        "vector == PF and write and not present and user",
        "0xC0000000 <= address < 0xC0400000",
        "0xC0000000 < address and 5 > page_offset",
        "rip in symbol('copy_from_user')",
        "page in bitmap('odd') or vector in bitmap('odd') or cpl in bitmap('odd')",
        "vector in (13, PF) and code not in (5, 7)",
        "page_offset in range(4, 8)",
        "present(new_entry) and not writable(new_entry) and writable(old_entry)",
        "bit(old_entry, 1) and bit(cr3, 12)",
        "address & 0xFFF == 4 and code & 6 != 0",
        "type == hardware_exception and mode == mode_protected",
        "all and not none",
        "not (vector == GP or cpl < 3)",
        "cpl in {1, 2, 3}",
    ],
)
def test_conditions_that_hold(text: str) -> None:
    assert known(text)
    assert not known(f"not ({text})")


@pytest.mark.parametrize("text", ["interrupted_vector == 14", "instruction_length < 9", "rsp > 1"])
def test_a_value_that_is_absent_makes_a_comparison_and_its_opposite_false(text: str) -> None:
    assert not known(text)
    assert not known(f"not {text}")


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("adress == 1", 1, "address"),
        ("vector == PF and adress == 1", 18, "did you mean address"),
        ("writ and user", 1, "write"),
        ("address", 1, "compare address with a number"),
        ("write == 1", 1, "write is a bit"),
        ("vector == 256", 11, "too wide: vector has 8 bits"),
        ("cpl & 8 == 0", 7, "too wide: cpl has 2 bits"),
        ("vector == PG", 11, "no number is called PG"),
        ("vector == -1", 11, "not an unsigned number"),
        ("vector == 1.5", 11, "not an unsigned number"),
        ("rip in symbol('main')", 8, "there is no symbol 'main'"),
        ("rip in bitmap('main')", 8, "there is no bitmap 'main'"),
        ("rip in 5", 8, "in range(1, 9)"),
        ("vector is 14", 11, "compare with =="),
        ("vector == 14 and", 17, "this is not a condition"),
        ("__import__('os')", 1, "is unknown"),
        ("address + 12 == 3", 1, "only & NUMBER or >> NUMBER"),
        ("cpl >> 2 == 0", 8, "cpl has 2 bits"),
        ("cpl >> 1 == 2", 13, "cpl has 1 bits left after >> 1"),
        ("rip >> 1 in symbol('main')", 13, "no >> before this"),
        ("bit(cpl, 2)", 10, "cpl has 2 bits"),
        ("lambda: 1", 1, "is not a condition"),
        ("größe == 1", 1, "no value is called"),
        ("'ä' and cpl == 4", 1, "is not a condition"),
        ("cpl == 3 and 'ä'", 14, "is not a condition"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_column(text: str, column: int, problem: str) -> None:
    with pytest.raises(ConditionError, match=f"^column {column}: ") as caught:
        parse(text, NAMES)
    assert problem in str(caught.value)
    assert caught.value.column == column


@pytest.mark.parametrize(
    "text", ["(" * 300 + "write" + ")" * 300, "write and " * 3000 + "write", "not " * 200 + "write"]
)
def test_monstrous_conditions_are_refused_or_read(text: str) -> None:
    with pytest.raises(ConditionError, match=r"characters|not a condition|nested"):
        parse(text)


def test_too_many_ways_are_refused() -> None:
    text = " and ".join(f"(bit(rip, {n}) or bit(rsp, {n}))" for n in range(30))
    with pytest.raises(ConditionError, match="more than 4096 ways"):
        rules_for(parse(text), Action.EXIT)


@given(conditions, faults())
def test_the_rules_hold_where_the_condition_does(condition: Condition, fault: Fault) -> None:
    seen = fault[2]
    rules = rules_for(condition, Action.DELIVER)
    wanted = holds(condition, lambda value: seen.get(value.name))
    assert (expected(list(rules), seen)[0] == Action.DELIVER) == wanted


@given(conditions, faults())
def test_a_condition_and_its_opposite_share_no_fault(condition: Condition, fault: Fault) -> None:
    seen = fault[2]

    def truth(one: Condition) -> bool:
        return holds(one, lambda value: seen.get(value.name))

    assert not (truth(condition) and truth(opposite(condition)))
    everything = dict.fromkeys(("code", "selector_index", "interrupted_vector"), 0)
    if all(clause.value.name in seen | everything for clause in leaves(condition)):
        values = everything | seen

        def of_all(one: Condition) -> bool:
            return holds(one, lambda value: values.get(value.name))

        assert of_all(condition) != of_all(opposite(condition))


def leaves(condition: Condition) -> list[Clause]:
    if isinstance(condition, Clause):
        return [condition]
    return [leaf for part in condition.parts for leaf in leaves(part)]


@given(conditions, faults(), numbers)
def test_what_is_put_into_words_means_the_same(
    condition: Condition, fault: Fault, number: int
) -> None:
    seen = fault[2]
    wide = [leaf for leaf in leaves(condition) if too_wide(leaf)]
    if wide:
        return
    again = parse(condition_text(condition))
    assert truth(again, seen) == truth(condition, seen)
    others = dict.fromkeys(seen, number & 1)
    assert truth(again, others) == truth(condition, others)


def truth(condition: Condition, values: dict[str, int]) -> bool:
    return holds(condition, lambda value: values.get(value.name))


def too_wide(clause: Clause) -> bool:
    """Numbers that a value cannot have are refused when read."""
    limit = 1 << clause.value.width
    mask = clause.mask if clause.mask != (1 << 64) - 1 else 0
    return max(clause.operand, clause.limit, mask) >= limit or clause.operand > clause.limit > 0


def test_constants() -> None:
    assert parse("all") == ALWAYS
    assert parse("none") == NEVER
    assert condition_text(ALWAYS) == "all"
    assert condition_text(NEVER) == "none"


def test_the_guide_has_every_value() -> None:
    guide = (Path(__file__).parents[2] / "docs/guide/criteria-tables.md").read_text("utf-8")
    for value in VALUES:
        kind = "dynamic" if value.dynamic else "semi-static"
        row = f"| `{value.name}` | {value.width} | {kind} | {value.present} | {value.meaning} |"
        assert row in guide


def test_a_condition_may_have_several_lines() -> None:
    assert parse("\n  vector == PF\n and\n  write\n") == parse("vector == PF and write")
    with pytest.raises(ConditionError, match="column 18: nothing is called wrote"):
        parse("vector == PF and\nwrote")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vector == HLT", "column 11: HLT is an exit reason, and vector is none; compare reason"),
        ("cpl == mode_real", "mode_real is a mode"),
        ("type in (nmi, PF)", "PF is a vector, and type is none; compare vector or interrupted"),
        ("table_access == by_gate", "by_gate is what switches tasks"),
        ("bit(cr3, PF)", "PF is not a number here"),
        ("address >> PF == 3", "PF is not a number here"),
    ],
)
def test_names_of_numbers_have_kinds(text: str, problem: str) -> None:
    with pytest.raises(ConditionError, match=re.escape(problem)):
        parse(text)


def test_symbols_are_addresses() -> None:
    names = Names(symbols={"trap": (0x1000, 0x1010)})
    found = parse('rip in symbol("trap")', names)
    assert found == Clause(BY_NAME["rip"], Operator.IN_RANGE, 0x1000, 0x100F)
    with pytest.raises(ConditionError, match="symbols are addresses, and cpl has 2 bits"):
        parse('cpl in symbol("trap")', names)


def test_the_seeds_word_for_what_is_written() -> None:
    """A condition as one would say it of figure 7."""
    text = (
        "vector == PF and write and not user and 0xC0000000 <= address < 0xC0400000 "
        "and not present(data)"
    )
    read = parse(text)
    assert isinstance(read, AllOf)
    assert read.parts[-1] == Clause(BY_NAME["data"], Operator.ANY_BIT, 1, negated=True)


def held_at(read: Condition, number: int) -> bool:
    return holds(read, lambda _: number)


@pytest.mark.parametrize(
    "operator", ["==", "!=", "<", "<=", ">", ">=", "in range(1, 3)", "in (0, 2)"]
)
def test_shifts_are_comparisons_of_the_whole_value(operator: str) -> None:
    text = f"depth >> 3 {operator}" + ("" if "in" in operator else " 2")
    read = parse(text)
    for depth in range(256):
        wanted = eval(text, {"depth": depth})
        assert held_at(read, depth) == wanted, depth
