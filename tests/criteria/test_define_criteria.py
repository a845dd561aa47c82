"""Wishes over all that faults tell: the cheapest criteria that grant them, checked by integers."""

import json
from itertools import combinations, product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.criteria.test_criteria_tables import exits
from trapgate.cli import app
from trapgate.criteria import (
    SpecError,
    compare_exits,
    define_criteria,
    operators_named,
    parse_wishes,
)
from trapgate.criteria.define_table import FoundCriteria
from trapgate.decision.condition_rules import holds
from trapgate.decision.criteria_rules import Action, Clause, Operator, Rule
from trapgate.decision.fault_values import BY_NAME
from trapgate.vmcs.vmcs import Vmcs

pytest.importorskip("z3")
pytest.importorskip("pysat")

STACK = """
[[wishes]]
when = "vector == PF and cpl == 3 and below_stack <= 64"
then = "deliver"
[[wishes]]
when = "vector == PF"
then = "exit"
"""


def wish(condition: str, default: str = "deliver", then: str = "exit") -> str:
    return f'default = "{default}"\n[[wishes]]\nwhen = "{condition}"\nthen = "{then}"\n'


def defined(text: str, scheme: str = "", rules: int = 64) -> FoundCriteria:
    return define_criteria(parse_wishes(text), scheme, rules=rules)


CHEAPEST = [
    # wishes, the means, rules, clauses
    (wish("write and user"), "vt-x", 0, 0),
    (wish("vector == GP or vector == PF and not present"), "vt-x", 0, 0),
    (wish("vector == UD", "exit", "deliver"), "vt-x", 0, 0),
    (wish("address < 0x1000 and not address < 0x1000"), "vt-x", 0, 0),
    (wish("vector == PF and code in (3, 4)"), "extended", 0, 0),
    (wish("selector_index == 5 and vector == NP"), "extended", 0, 0),
    (STACK, "table", 1, 2),
    (wish("write and present and user and 0x1000 <= address < 0x5000"), "table", 1, 2),
    # One mask of the type tells exceptions, and the bitmap has the vectors.
    (wish("rip < 5 and (vector == GP or vector == NP or vector == SS)"), "table", 1, 2),
    (wish("rip < 5 and vector == GP or cpl == 3 and vector == UD"), "table", 2, 5),
    (wish("write and address < 0x1000 and cpl <= 3"), "table", 1, 2),
    (wish("vector == PF and rip < 5", "exit", "deliver"), "table", 1, 2),
]


@pytest.mark.parametrize("number", range(len(CHEAPEST)))
def test_the_cheapest_means_that_are_exact(number: int) -> None:
    text, means, rules, clauses = CHEAPEST[number]
    found = defined(text)
    table = found.vmcs.criteria_table
    assert (found.means, found.exact) == (means, True)
    assert (len(table), sum(len(rule.clauses) for rule in table)) == (rules, clauses)
    assert found.smallest == (means == "table")
    again = Vmcs.from_toml(found.toml())
    assert compare_exits(again, found.vmcs).exact


FAULTS = [
    # vector, code, address, rsp, cpl: does it exit under STACK
    (14, 6, 0x7000, 0x7040, 3, False),
    (14, 6, 0x7000, 0x7041, 3, True),
    (14, 2, 0x7000, 0x7040, 0, True),
    (14, 4, 0x7041, 0x7040, 3, True),
    (13, 0, 0, 0x7040, 3, False),
]


def test_what_was_found_does_what_was_wished() -> None:
    found = defined(STACK)
    for vector, code, address, rsp, cpl, wanted in FAULTS:
        fault = {"vector": vector, "type": 3, "code": code, "rsp": rsp, "cpl": cpl}
        if vector == 14:
            fault |= {"address": address, "below_stack": rsp - address & (1 << 64) - 1}
            fault |= {"page_fault_code": code}
        assert exits(found.vmcs, fault) == wanted, fault


def test_fields_alone_are_sound_where_they_are_not_exact() -> None:
    found = defined(STACK, "vt-x")
    assert (found.means, found.exact) == ("vt-x", False)
    assert found.needless.startswith("#PF")
    everything = Vmcs()
    everything["EXCEPTION_BITMAP"] = 1 << 14
    assert compare_exits(defined(STACK).vmcs, found.vmcs).sound
    assert compare_exits(everything, found.vmcs).exact


TWO = wish("rip < 5 and vector == GP or cpl == 3 and vector == UD")


def test_within_what_the_hardware_has() -> None:
    """One rule of the two: the heavier needless exits are avoided."""
    found = define_criteria(parse_wishes(TWO), "table", rules=1)
    assert (found.exact, len(found.vmcs.criteria_table)) == (False, 1)
    assert compare_exits(define_criteria(parse_wishes(TWO)).vmcs, found.vmcs).sound
    none = define_criteria(parse_wishes(TWO), "table", clauses=0)
    assert none.weight is not None
    assert found.weight is not None
    assert none.weight > found.weight
    assert (none.vmcs.criteria_table, none.vmcs["EXCEPTION_BITMAP"]) == ((), 1 << 13 | 1 << 6)
    few = define_criteria(
        parse_wishes(wish("0x1000 <= address < 0x2000 and cpl == 0")),
        "table",
        operators=operators_named(["below", "equal"]),
    )
    (rule,) = few.vmcs.criteria_table
    assert {clause.operator.name for clause in rule.clauses} <= {"BELOW", "EQUAL"}
    assert len(rule.clauses) == 3
    assert few.exact


def what_it_says(clause: Clause) -> tuple[bool, ...]:
    def at(number: int) -> bool:
        return holds(clause, lambda _: number)

    return tuple(map(at, range(4)))


def narrow_clauses() -> list[Clause]:
    """Every clause on the privilege level, by what it says."""
    cpl = BY_NAME["cpl"]
    found: dict[tuple[bool, ...], Clause] = {}
    for operator in (Operator.EQUAL, Operator.BELOW, Operator.ANY_BIT, Operator.ALL_BITS):
        for mask, operand, negated in product(range(4), range(5), (False, True)):
            clause = Clause(cpl, operator, operand, mask=mask, negated=negated)
            found.setdefault(what_it_says(clause), clause)
    for low, high, negated in product(range(4), range(4), (False, True)):
        clause = Clause(cpl, Operator.IN_RANGE, low, high, negated=negated)
        found.setdefault(what_it_says(clause), clause)
    return list(found.values())


def test_no_smaller_table_exists_by_trying_all() -> None:
    """For wishes about the privilege level of #UD: every table of one rule, and smaller ones."""
    is_ud = Clause(BY_NAME["vector"], Operator.EQUAL, 6)
    is_not_ud = Clause(BY_NAME["vector"], Operator.EQUAL, 6, negated=True)
    hardware = [Clause(BY_NAME["type"], Operator.EQUAL, 3, negated=n) for n in (False, True)]
    clauses = [*narrow_clauses(), is_ud, is_not_ud, *hardware]
    faults = [
        {"vector": vector, "type": kind, "cpl": cpl}
        for vector, kind in ((6, 3), (13, 3), (6, 0), (3, 6))
        for cpl in range(4)
    ]

    def exits(rules: tuple[Rule, ...], bitmap: int, fault: dict[str, int]) -> int | None:
        """Whether it exits; None for an interrupt of which the table decides."""
        for rule in rules:
            if all(holds(clause, lambda value: fault.get(value.name)) for clause in rule.clauses):
                if rule.action is not Action.NEXT:
                    return None if fault["type"] == 0 else rule.action is Action.EXIT
                break
        return fault["type"] != 0 and bool(bitmap >> fault["vector"] & 1)

    def brute(wanted: set[int]) -> tuple[int, int]:
        """The fewest rules, up to one, and clauses."""
        right = [f["type"] == 3 and f["vector"] == 6 and f["cpl"] in wanted for f in faults]
        for bitmap in (0, 1 << 6):
            if [exits((), bitmap, fault) for fault in faults] == right:
                return 0, 0
        for count in range(4):
            for chosen in combinations(clauses, count):
                for action in (Action.EXIT, Action.DELIVER):
                    for bitmap in (0, 1 << 6):
                        table = (Rule(action, chosen),)
                        if [exits(table, bitmap, fault) for fault in faults] == right:
                            return 1, count
        return 2, 0

    for bits in range(16):
        wanted = {n for n in range(4) if bits >> n & 1}
        inside = " or ".join(f"cpl == {n}" for n in sorted(wanted)) or "none"
        found = define_criteria(parse_wishes(wish(f"vector == UD and ({inside})")), "table")
        rules, count = found.size
        assert found.exact
        assert found.smallest
        assert brute(wanted) == (rules, count), wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (wish("adress < 5"), "column 1: no value is called adress; did you mean address"),
        (wish("write", then="exits"), "'exits': did you mean exit"),
        (wish("write", default="none"), "'none'"),
        ('[[wishes]]\nwhen = 5\nthen = "exit"\n', "not a condition in quotes"),
        ('[[wishes]]\nwhat = "write"\nthen = "exit"\n', "what"),
        ("wishes = 3\n", "write"),
    ],
)
def test_wishes_that_cannot_be_read(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_wishes(text)


def test_the_command_line(tmp_path: Path) -> None:
    wishes, fields = tmp_path / "wishes.toml", tmp_path / "fields.toml"
    wishes.write_text(STACK)
    result = CliRunner().invoke(app, ["criteria", "define", str(wishes), "-o", str(fields)])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("exact, by a criteria table of 1 rule and 2 clauses\nno table")
    assert len(Vmcs.load(fields).criteria_table) == 1
    for option, words in (
        ("--scheme=tables", "did you mean table"),
        ("--fields=2", "--scheme"),
        ("--operator=in-rang", "did you mean in-range"),
    ):
        result = CliRunner().invoke(app, ["criteria", "define", str(wishes), option])
        assert (result.exit_code, words in result.output) == (2, True), result.output


def test_checking_fields_and_tables_against_wishes(tmp_path: Path) -> None:
    wishes, rules, fields = (tmp_path / name for name in ("wishes.toml", "r.toml", "f.toml"))
    when = "vector == PF and cpl == 3 and below_stack <= 64"
    wishes.write_text(wish(when, default="exit", then="deliver"))
    rules.write_text(f'[[rules]]\nwhen = "{when}"\nthen = "deliver"\n[[rules]]\nthen = "exit"\n')
    fields.write_text("[fields]\nEXCEPTION_BITMAP = 0xFFFFFFFF\n")

    def check(given: Path, *options: str) -> tuple[int, str]:
        result = CliRunner().invoke(
            app, ["criteria", "check", str(wishes), str(given), *options, "--json"]
        )
        return result.exit_code, result.stdout

    assert check(rules)[0] == 0
    status, told = check(fields)
    assert status == 1
    found = json.loads(told)
    assert found["missed"] is None
    assert (found["needless"]["vector"], found["needless"]["cpl"]) == (14, 3)
    assert check(fields, "--sound")[0] == 0
    fields.write_text("[fields]\nEXCEPTION_BITMAP = 0\n")
    status, told = check(fields, "--sound")
    assert status == 1
    assert json.loads(told)["missed"] is not None
