"""Merged criteria tables: sound and exact by z3's word and by integers, and small."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.criteria.test_criteria_tables import exits
from trapgate.cli import app
from trapgate.criteria import Party, compare_exits, merge_tables
from trapgate.decision.condition_rules import condition_text
from trapgate.decision.conditions import AllOf
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
    ((LOW, PORTS), (4, 9)),
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
    assert found.smallest is (PORTS not in texts)  # what is added about events is not counted
    rules = found.vmcs.criteria_table
    assert (len(rules), sum(len(rule.clauses) for rule in rules)) == size
    assert compare_exits([party.vmcs for party in asking], found.vmcs).exact
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


PAIRS_OF_EVENTS = [
    # what the files have, and what the merge says beside exceptions
    (
        ('port == 0x80", "deliver', 'reason == WBINVD", "exit'),
        ('port in range(0x70, 0x90)", "deliver', 'reason == IO_INSTRUCTION", "exit'),
        [
            ("deliver", "port == 0x80 and 0x70 <= port <= 0x8f"),
            ("exit", "reason == WBINVD"),
            ("next", "0x70 <= port <= 0x8f"),
            ("exit", "reason == IO_INSTRUCTION"),
        ],
    ),
    # INT 14 and interrupt 14 as well as #PF: the condition does not say which
    (('vector == PF", "exit',), ('leaf == 1", "deliver',), None),
    (
        ('type == external_interrupt and vector >= 0x80", "exit',),
        ('type == external_interrupt and vector != 0x90", "exit',),
        None,
    ),
]


@pytest.mark.parametrize(("first", "second", "wanted"), PAIRS_OF_EVENTS)
def test_interrupts_and_instructions_are_merged(
    first: tuple[str, ...], second: tuple[str, ...], wanted: list[tuple[str, str]] | None
) -> None:
    texts = [
        "".join('[[rules]]\nwhen = "{}"\nthen = "{}"\n'.format(*one.split('", "')) for one in rules)
        for rules in (first, second)
    ]
    asking = parties(*texts)
    asking[1].vmcs["PIN_BASED_CONTROLS"] |= 8
    found = merge_tables(asking)
    assert found.exact
    assert not found.notes
    assert compare_exits([party.vmcs for party in asking], found.vmcs).exact
    rules = [
        (rule.action.name.lower(), condition_text(AllOf(rule.clauses)))
        for rule in found.vmcs.criteria_table
    ]
    if wanted is not None:
        assert rules == wanted
    assert {share.asked for share in found.shares} >= {("l0",)}


def test_bitmaps_that_differ_cannot_be_merged() -> None:
    asking = parties(PORTS, LOW)
    use = 1 << 25
    for place, party in enumerate(asking):
        party.vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= use
        party.vmcs["IO_BITMAP_A_ADDRESS"] = 0x1000 * place
    (note,) = merge_tables(asking).notes
    assert re.fullmatch(r"loses IO_INSTRUCTION, .*: its fields are not merged", note)


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
