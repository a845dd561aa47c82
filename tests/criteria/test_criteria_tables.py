"""What is proved of criteria tables: rules that never matter, examples, and which faults exit."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.test_criteria_table import expected
from trapgate.cli import app
from trapgate.criteria import CriteriaError, Party, compare_exits, merge, read_table
from trapgate.criteria.explain_table import TableReading
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.decision.decide import EXIT, decide_fault
from trapgate.vmcs.vmcs import Vmcs

pytest.importorskip("z3")


def table(*rules: tuple[str, Action]) -> list[Rule]:
    return [rule for text, action in rules for rule in rules_for(parse(text), action)]


def read(*rules: tuple[str, Action]) -> TableReading:
    return read_table(table(*rules))


def kinds(reading: TableReading) -> list[str]:
    return [warning.kind for warning in reading.warnings]


LIVE = [
    ("vector == PF and cpl == 3 and below_stack <= 64", Action.DELIVER),
    ("write and 0x1000 <= address < 0x2000 and rip != 5", Action.EXIT),
    ("selector_index == 3 and mode == mode_protected", Action.EXIT),
    ("type == external_interrupt and vector in (32, 33, 40)", Action.EXIT),
    ("walk_level == 2 and not present(entry)", Action.DELIVER),
    ("table_entry == 1 and bit(set_bits, 63)", Action.COMPLETE),
    ("new_frame_type == 16", Action.COMPLETE),
    ("interrupted_vector == 14", Action.EXIT),
    ("type == software_interrupt and instruction_length == 2", Action.DELIVER),
    ("bit(rflags, 17) and page_offset == 0xFFF", Action.EXIT),
    ("all", Action.EXIT),
]


def test_the_example_of_each_rule_is_a_fault_that_it_decides() -> None:
    rules = table(*LIVE)
    reading = read_table(rules)
    assert "dead-rule" not in kinds(reading)
    for one in reading.rules:
        assert one.example is not None, one.text
        assert expected(rules, one.example) == (rules[one.number].action, one.number), one.text
    assert reading.lines()[0].startswith(
        "rule 0: deliver if vector == PF and cpl == 3 and below_stack <= 0x40; e.g. #PF, code "
    )


DEAD = [
    # the rules, the warning's kind, what it says
    ([("cpl == 3", "exit"), ("cpl == 3 and write", "deliver")], "dead-rule", "rule 0 matches"),
    (
        [("cpl < 2", "exit"), ("cpl == 2", "exit"), ("cpl <= 2", "deliver")],
        "dead-rule",
        "the rules before it match",
    ),
    ([("address == 5 and not page_offset == 5", "exit")], "contradiction", "contradict"),
    ([("vector == GP and address < 5", "exit")], "absent-value", "has address"),
    ([("vector == UD and code == 0", "exit")], "absent-value", "has code"),
    ([("type == nmi and not write", "exit")], "absent-value", "has page_fault_code"),
    ([("mode == mode_real and cpl == 3", "exit")], "contradiction", "contradict"),
    ([("page == 1 and address == 0x2000", "exit")], "contradiction", "contradict"),
    ([("table_entry == 1 and not write", "complete")], "absent-value", "has table_entry"),
    ([("selector_index == 1 and page == 1", "exit")], "absent-value", "page"),
]


@pytest.mark.parametrize(("rules", "kind", "words"), DEAD, ids=[str(d[0][-1][0]) for d in DEAD])
def test_a_rule_that_decides_nothing_is_told_why(
    rules: list[tuple[str, str]], kind: str, words: str
) -> None:
    reading = read(*((text, Action[action.upper()]) for text, action in rules))
    assert reading.rules[-1].example is None
    assert (reading.warnings[-1].kind, words in reading.warnings[-1].text) == (kind, True), (
        reading.warnings
    )


def test_rules_that_overlap_and_disagree_are_told_with_a_fault() -> None:
    reading = read(("cpl == 3", Action.EXIT), ("write", Action.DELIVER), ("user", Action.EXIT))
    texts = [warning.text for warning in reading.warnings]
    assert kinds(reading) == ["overlap", "overlap"]
    assert texts[0].startswith("rule 0 comes before rule 1 for #PF, code 0x")
    assert texts[1].startswith("rule 1 comes before rule 2 for #PF, code 0x")


def vmcs(bitmap: int, *rules: tuple[str, Action], mask: int = 0, match: int = 0) -> Vmcs:
    made = Vmcs()
    made["EXCEPTION_BITMAP"] = bitmap
    made["PAGE_FAULT_ERROR_CODE_MASK"], made["PAGE_FAULT_ERROR_CODE_MATCH"] = mask, match
    made.criteria_table = table(*rules)
    return made


def exits(one: Vmcs, fault: dict[str, int]) -> bool:
    """By the integers that the processor decides with."""
    action, _ = expected(list(one.criteria_table), fault)
    if action in (Action.EXIT, Action.DELIVER, Action.COMPLETE):
        return action == Action.EXIT
    where, _ = decide_fault(one.cells, fault["vector"], fault["type"], fault.get("code", -1))
    return where == EXIT


PF = 1 << 14
PAIRS = [
    # wanted, given: sound, exact
    (vmcs(PF), vmcs(0, ("type == hardware_exception and vector == PF", Action.EXIT)), True, True),
    (vmcs(PF), vmcs(0, ("vector == PF", Action.EXIT)), True, False),
    (vmcs(PF), vmcs(PF, ("write and cpl == 3", Action.DELIVER)), False, False),
    (vmcs(0, ("write", Action.EXIT)), vmcs(PF, mask=2, match=2), True, True),
    (vmcs(0, ("write and address < 4096", Action.EXIT)), vmcs(PF, mask=2, match=2), True, False),
    (vmcs(PF | 1 << 13), vmcs(PF, ("vector == GP and code == 0", Action.EXIT)), False, False),
]


@pytest.mark.parametrize("number", range(len(PAIRS)))
def test_which_faults_exit_is_compared_and_counterexamples_are_real(number: int) -> None:
    wanted, given, sound, exact = PAIRS[number]
    found = compare_exits(wanted, given)
    assert (found.sound, found.exact) == (sound, exact)
    if found.missed is not None:
        assert exits(wanted, found.missed) > exits(given, found.missed)
    if found.needless is not None:
        assert exits(given, found.needless) > exits(wanted, found.needless)


def test_the_command_line(tmp_path: Path) -> None:
    files = {
        "stack.toml": '[controls]\nexceptions = ["PF"]\n[[rules]]\n'
        'when = "user and below_stack <= 64"\nthen = "deliver"\n',
        "all.toml": 'profile = "vt-x"\n[controls]\nexceptions = ["PF"]\n',
        "wishes.toml": '[PF]\nexit = ["not user"]\ndeliver = ["user"]\n[vectors]\nGP = "exit"\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    def run(*arguments: str) -> tuple[int, str]:
        paths = [str(tmp_path / one) if one in files else one for one in arguments]
        result = CliRunner().invoke(app, ["criteria", *paths])
        return result.exit_code, result.output

    status, said = run("check", "all.toml", "stack.toml")
    assert (status, said.startswith("counterexample: must exit and does not: #PF")) == (1, True)
    assert run("check", "stack.toml", "all.toml", "--sound")[0] == 0
    assert run("check", "all.toml", "all.toml") == (0, "holds: the same faults exit\n")
    status, said = run("check", "wishes.toml", "stack.toml")
    assert status == 1
    assert said.startswith("#GP: counterexample: ")
    assert "should not exit and does" in said.splitlines()[-1]
    assert "below_stack" in said
    status, said = run("explain", "stack.toml", "--no-table")
    assert said.splitlines()[0].startswith("rule 0: deliver if user and below_stack <= 0x40; e.g.")
    assert json.loads(run("explain", "stack.toml", "--json")[1])["files"][0]["table"]["rules"]
    status, said = run("merge", "stack.toml", "all.toml")
    assert status == 0
    assert said.startswith("exact, by fields and a criteria table of 0 rules")


def test_tables_that_vm_entry_refuses_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.toml"
    path.write_text('[[rules]]\nthen = "exit"\n[[rules]]\nwhen = "data == 5"\nthen = "complete"\n')
    result = CliRunner().invoke(app, ["criteria", "explain", str(path)])
    assert result.exit_code == 2
    assert "rule 1, clause 0 (counted from 0): a rule that completes needs" in result.output
    # Wishes are about exceptions, which have no port.
    path.write_text('[[wishes]]\nwhen = "port == 5"\nthen = "exit"\n')
    result = CliRunner().invoke(app, ["criteria", "define", str(path)])
    assert result.exit_code == 2
    assert "wishes[0].when: column 1: port cannot be used in this condition" in result.output


def test_what_a_table_says_is_not_merged_away() -> None:
    with pytest.raises(CriteriaError, match="two has a criteria table"):
        merge([Party("one", vmcs(PF)), Party("two", vmcs(0, ("write", Action.EXIT)))])
