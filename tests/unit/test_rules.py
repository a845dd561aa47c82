"""The worked examples of the seed, one by one, against the rules."""

import ast
import inspect

import pytest

from trapgate.decision import rules
from trapgate.decision.rules import SCHEMES, control_bit, mapped_code, mapped_field
from trapgate.sdm.cells import ENCODINGS

FOUR_BITS = range(16)


def exits(name: str, control: bool, code: int, *fields: int) -> bool:
    return bool(SCHEMES[name].function(control, True, code, *fields))


@pytest.mark.parametrize(("control", "mask", "match"), [(True, 0x0, 0x0), (False, 0x0, 0xF)])
def test_paragraph_46_all_page_faults_exit(control: bool, mask: int, match: int) -> None:
    assert all(exits("figure-3", control, code, mask, match) for code in FOUR_BITS)


def test_paragraph_46_supervisor_writes_to_present_pages_exit() -> None:
    assert [c for c in FOUR_BITS if exits("figure-3", True, c, 0xF, 0x3)] == [3]


def test_paragraph_46_not_present_or_reserved_bit_exit() -> None:
    got = {c for c in FOUR_BITS if exits("figure-3", False, c, 0x9, 0x1)}
    assert got == {c for c in FOUR_BITS if not c & 1 or c & 8}


def test_paragraph_48_and_49_both_desired_results() -> None:
    results_1 = [exits("figure-3", False, code, 0b11, 0b01) for code in range(4)]
    results_2 = [exits("figure-3", True, code, 0b11, 0b01) for code in range(4)]
    assert results_1 == [True, False, True, True]
    assert results_2 == [False, True, False, False]


def test_paragraph_50_desired_results_1_need_the_inversion() -> None:
    # "The desired results 2 only require mask = (1 1) and match = (0 1)": a rule that exits on
    # a match gets them, and by no mask and match gets results 1.
    def on_match(mask: int, match: int) -> list[bool]:
        return [exits("match-exits", False, c, mask, match) for c in range(4)]

    assert on_match(0b11, 0b01) == [False, True, False, False]
    every = [on_match(mask, match) for mask in range(4) for match in range(4)]
    assert [True, False, True, True] not in every

    # ... which ¶47's polarity does get, and by no mask and match results 2.
    def on_mismatch(mask: int, match: int) -> list[bool]:
        return [exits("no-control", False, c, mask, match) for c in range(4)]

    assert on_mismatch(0b11, 0b01) == [True, False, True, True]
    every = [on_mismatch(mask, match) for mask in range(4) for match in range(4)]
    assert [False, True, False, False] not in every


def test_paragraph_43_without_an_error_code_the_control_bit_decides() -> None:
    for scheme in SCHEMES.values():
        for control in (False, True):
            fields = [7] * len(scheme.fields)
            assert scheme.function(control, False, -1, *fields) == control, scheme.name


def test_paragraph_44_polarity_exchanged() -> None:
    assert [c for c in range(4) if exits("exchanged", False, c, 0b11, 0b01)] == [1]
    assert [c for c in range(4) if exits("exchanged", True, c, 0b11, 0b01)] == [0, 2, 3]


@pytest.mark.parametrize("control", [False, True])
def test_paragraph_47_a_match_is_the_guests_whatever_the_control_bit(control: bool) -> None:
    assert [c for c in range(4) if not exits("no-control", control, c, 0b11, 0b01)] == [1]
    assert not any(exits("no-control", control, c, 0, 0) for c in FOUR_BITS)


def test_figure_4_either_pair_exits() -> None:
    # Writes by users (W and U set), or reserved bits.
    got = {c for c in FOUR_BITS if exits("figure-4", False, c, 0b0110, 0b0110, 0b1000, 0b1000)}
    assert got == {c for c in FOUR_BITS if c & 0b110 == 0b110 or c & 8}


def test_figure_5_any_bit_or_the_pair() -> None:
    hit = {c for c in FOUR_BITS if c & 0b1010 or c & 0b0101 == 0b0001}
    assert {c for c in FOUR_BITS if exits("figure-5", True, c, 0b1010, 0b0101, 1)} == hit
    assert {c for c in FOUR_BITS if not exits("figure-5", False, c, 0b1010, 0b0101, 1)} == hit


@pytest.mark.parametrize("control", [False, True])
def test_paragraph_56_figure_5_without_the_control_bit(control: bool) -> None:
    got = {c for c in FOUR_BITS if exits("any-or-match", control, c, 0b1010, 0b0101, 1)}
    assert got == {c for c in FOUR_BITS if c & 0b1010 or c & 0b0101 == 0b0001}


def test_paragraph_38_examples() -> None:
    assert [c for c in FOUR_BITS if exits("greater", False, c, 10)] == [11, 12, 13, 14, 15]
    assert [c for c in FOUR_BITS if exits("equal", False, c, 4)] == [4]


def test_paragraph_38_every_comparison_is_unsigned() -> None:
    big = 0x80000001
    expected = {
        "equal": (False, True, False),
        "not-equal": (True, False, True),
        "less": (True, False, False),
        "less-or-equal": (True, True, False),
        "greater": (False, False, True),
        "greater-or-equal": (False, True, True),
    }
    for name, outcome in expected.items():
        assert tuple(exits(name, False, c, big) for c in (1, big, 0xFFFFFFFF)) == outcome, name
        assert tuple(exits(name, True, c, big) for c in (1, big, 0xFFFFFFFF)) == outcome, name


def test_paragraph_38_membership_counts_only_the_values_in_use() -> None:
    values = (2, 3, 5, 7, 11, 13, 0, 0)
    got = [c for c in FOUR_BITS if exits("member", False, c, 0b00110111, *values)]
    assert got == [2, 3, 5, 11, 13]
    assert not any(exits("member", True, c, 0, *values) for c in FOUR_BITS)


def test_paragraph_41_a_narrow_field_maps_some_bits_only() -> None:
    # Two-bit fields that stand for bits 3:2 of the code; the rest of the code has no say.
    window, scale = 0b11, 1 << 2
    mask = mapped_field(0b11, window, scale)
    match = mapped_field(0b10, window, scale)
    got = {
        c for c in range(64) if exits("figure-3", True, mapped_code(c, window, scale), mask, match)
    }
    assert got == {c for c in range(64) if c >> 2 & 3 == 0b10}
    # Bits of a field beyond its width do not exist.
    assert mapped_field(0b1111, window, scale) == 0b1100


def test_control_bit_is_a_boolean() -> None:
    assert control_bit(1 << 14, 1 << 14) is True
    assert control_bit(1 << 13, 1 << 14) is False


def test_every_scheme_reads_existing_fields_and_takes_as_many_arguments() -> None:
    for scheme in SCHEMES.values():
        for vector in rules.PAIR:
            assert set(scheme.fields_for(vector)) <= set(ENCODINGS)
        arguments = inspect.signature(scheme.function).parameters
        assert len(arguments) == 3 + len(scheme.fields), scheme.name
    assert SCHEMES["figure-3"].fields_for(14) == (
        "PAGE_FAULT_ERROR_CODE_MASK",
        "PAGE_FAULT_ERROR_CODE_MATCH",
    )
    selectors = {(s.criterion, s.operator) for s in SCHEMES.values()}
    assert len(selectors) == len(SCHEMES)


def test_uses_control_tells_the_truth() -> None:
    for scheme in SCHEMES.values():
        fields = [0b0110] * len(scheme.fields)
        differs = any(
            exits(scheme.name, False, c, *fields) != exits(scheme.name, True, c, *fields)
            for c in FOUR_BITS
        )
        assert differs == scheme.uses_control, scheme.name


FORBIDDEN = (
    ast.If,
    ast.IfExp,
    ast.BoolOp,
    ast.Not,
    ast.While,
    ast.Assert,
    ast.Match,
    ast.Is,
    ast.IsNot,
    ast.In,
    ast.NotIn,
    ast.LShift,
    ast.RShift,
)


def offences(tree: ast.AST) -> list[str]:
    found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, FORBIDDEN)]
    chained = [n for n in ast.walk(tree) if isinstance(n, ast.Compare) and len(n.ops) > 1]
    filters = [n for n in ast.walk(tree) if isinstance(n, ast.comprehension) and n.ifs]
    ordered = [
        op
        for n in ast.walk(tree)
        if isinstance(n, ast.Compare)
        for op in n.ops
        if not isinstance(op, ast.Eq | ast.NotEq)  # z3's order is signed
    ]
    inverted = [n for n in ast.walk(tree) if isinstance(n, ast.Invert)]  # ~True is -2
    return (
        found
        + ["chain"] * len(chained)
        + ["filter"] * len(filters)
        + ["order"] * len(ordered)
        + ["invert"] * len(inverted)
    )


def test_the_syntax_tree_of_the_rules_has_no_operator_that_lies() -> None:
    assert offences(ast.parse(inspect.getsource(rules))) == []


@pytest.mark.parametrize(
    "text",
    [
        "a if b else c",
        "a and b",
        "a or b",
        "not a",
        "a == b == c",
        "a < b",
        "~a",
        "a in b",
        "a << 1",
        "[x for x in y if x]",
    ],
)
def test_the_walk_does_find_them(text: str) -> None:
    assert offences(ast.parse(text))
