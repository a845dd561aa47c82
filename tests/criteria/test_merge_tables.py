"""Merged criteria tables: sound and exact by z3's word and by integers, and small."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.criteria.test_criteria_tables import exits
from trapgate.cli import app
from trapgate.criteria import Party, compare_exits, merge_tables
from trapgate.decision.criteria_rules import Clause, Operator
from trapgate.decision.fault_values import BY_NAME
from trapgate.vmcs.vmcs import Vmcs

pytest.importorskip("z3")
pytest.importorskip("pysat")

STACKS = """
[[rules]]
when = "vector == PF and cpl == 3 and below_stack <= 64"
then = "deliver"
[[rules]]
when = "vector == PF and type == hardware_exception"
then = "exit"
"""
LOW = """
[controls]
exceptions = ["GP"]
[[rules]]
when = "write and address < 0x1000"
then = "exit"
"""
FILTER = """
[controls]
exceptions = ["PF"]
[fields]
PAGE_FAULT_ERROR_CODE_MASK = 7
PAGE_FAULT_ERROR_CODE_MATCH = 3
"""
PORTS = """
[[rules]]
when = "port == 0x80"
then = "exit"
[[rules]]
when = "cpl == 3 and vector == UD"
then = "exit"
"""

PAIRS = [
    # two files, rules and clauses that the merge takes
    ((STACKS, LOW), (2, 4)),
    ((FILTER, LOW), (1, 2)),
    ((STACKS, STACKS), (1, 2)),
    ((LOW, PORTS), (2, 5)),
]


def parties(*texts: str) -> list[Party]:
    return [Party(f"l{n}", Vmcs.from_toml(text)) for n, text in enumerate(texts)]


@pytest.mark.parametrize(("texts", "size"), PAIRS)
def test_a_merge_exits_whenever_one_of_them_would(
    texts: tuple[str, ...], size: tuple[int, int]
) -> None:
    asking = parties(*texts)
    found = merge_tables(asking)
    assert found.exact
    assert found.smallest
    rules = found.vmcs.criteria_table
    assert (len(rules), sum(len(rule.clauses) for rule in rules)) == size
    for party in asking:
        faults_only = party.vmcs.copy()
        hardware = Clause(BY_NAME["type"], Operator.EQUAL, 3)
        faults_only.criteria_table = tuple(
            replace(rule, clauses=(*rule.clauses, hardware))
            for rule in party.vmcs.criteria_table
            if not rule.about_instructions
        )
        assert compare_exits(faults_only, found.vmcs).sound
    again = Vmcs.from_toml(found.toml())
    assert compare_exits(again, found.vmcs).exact
    for code in (0, 2, 3, 6, 7, 0x15):
        for address in (0, 0xFFF, 0x1000, 0x7000):
            for cpl in (0, 3):
                for rsp in (address, address + 64, address + 65):
                    fault = {
                        "vector": 14,
                        "type": 3,
                        "code": code,
                        "page_fault_code": code,
                        "address": address,
                        "cpl": cpl,
                        "rsp": rsp,
                        "below_stack": rsp - address,
                    }
                    wanted = any(exits(party.vmcs, fault) for party in asking)
                    assert exits(found.vmcs, fault) == wanted, fault


def test_rules_about_instructions_are_left_out_and_named() -> None:
    found = merge_tables(parties(LOW, PORTS))
    instructions, interrupts = found.notes
    assert instructions == "l1: its rules about instructions are not merged"
    # Which of them is shown is the solver's choice.
    assert re.fullmatch(
        r"l1: only exceptions are merged; its table also makes this exit: \w+ interrupt \d+",
        interrupts,
    )
    assert not any(rule.about_instructions for rule in found.vmcs.criteria_table)


def test_within_what_the_hardware_has() -> None:
    asking = parties(STACKS, LOW)
    found = merge_tables(asking, rules=1)
    assert not found.exact
    assert found.needless.startswith("#")
    assert compare_exits([party.vmcs for party in asking], found.vmcs).sound
    assert len(found.vmcs.criteria_table) <= 1


def test_who_asked() -> None:
    found = merge_tables(parties(STACKS, LOW))
    assert {share.asked for share in found.shares} == {("l0",), ("l1",), ("l0", "l1")}
    assert "give it to l0 and l1" in "\n".join(found.lines())


def test_the_command_line(tmp_path: Path) -> None:
    first, second, both = (tmp_path / name for name in ("l0.toml", "l1.toml", "l02.toml"))
    first.write_text(STACKS)
    second.write_text(LOW)

    def said(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["criteria", *map(str, arguments)])
        return result.exit_code, result.output

    status, output = said("merge", first, second, "-o", both)
    assert status == 0
    assert output.startswith("exact, by fields and a criteria table of 2 rules and 4 clauses\n")
    assert said("check", first, second, both) == (0, "vmcs02 is sound\n")
    status, output = said("check", first, second, second)
    assert status == 1
    assert output.startswith("loses, wanted by l0: #PF")
    assert said("merge", first, second, "--rules", "0")[0] == 0
    plain = tmp_path / "plain.toml"
    plain.write_text(FILTER)
    status, output = said("merge", plain, plain.rename(tmp_path / "other.toml"), "--rules", "1")
    assert status == 2


def test_check_warns_of_rules_that_decide_nothing(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        LOW + '[[rules]]\nwhen = "write and address < 16"\nthen = "exit"\n'
        '[[rules]]\nwhen = "vector == UD and code == 3"\nthen = "exit"\n'
    )
    result = CliRunner().invoke(app, ["criteria", "check", str(rules), str(rules)])
    assert result.exit_code == 0
    _, dead, absent = result.output.splitlines()
    assert dead.startswith("warning: rule 1 decides nothing: rule 0 matches whatever it does; e.g.")
    assert absent.startswith("warning: rule 2 never matches: no fault")
