"""Wishes over all that faults tell: the cheapest criteria that grant them, checked by integers."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.criteria.test_criteria_tables import exits
from trapgate.cli import app
from trapgate.criteria import (
    InexpressibleError,
    SpecError,
    compare_exits,
    define_criteria,
    parse_wishes,
)
from trapgate.criteria.define_table import Granted
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


def granted(text: str, scheme: str = "", rules: int = 64) -> Granted:
    return define_criteria(parse_wishes(text), scheme, rules=rules)


CHEAPEST = [
    # wishes, the means, rules, clauses
    (wish("write and user"), "vt-x", 0, 0),
    (wish("vector == GP or vector == PF and not present"), "vt-x", 0, 0),
    (wish("vector == UD", "exit", "deliver"), "vt-x", 0, 0),
    (wish("address < 0x1000 and not address < 0x1000"), "vt-x", 0, 0),
    (wish("vector == PF and code in (3, 4)"), "extended", 0, 0),
    (wish("selector_index == 5 and vector == NP"), "extended", 0, 0),
    (STACK, "table", 2, 4),
    (wish("write and address < 0x1000 and cpl <= 3"), "table", 1, 2),
    (wish("vector == PF and rip < 5", "exit", "deliver"), "table", 1, 3),
]


@pytest.mark.parametrize("number", range(len(CHEAPEST)))
def test_the_cheapest_means_that_are_exact(number: int) -> None:
    text, means, rules, clauses = CHEAPEST[number]
    found = granted(text)
    table = found.vmcs.criteria_table
    assert (found.means, found.exact) == (means, True)
    assert (len(table), sum(len(rule.clauses) for rule in table)) == (rules, clauses)
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
    found = granted(STACK)
    for vector, code, address, rsp, cpl, wanted in FAULTS:
        fault = {"vector": vector, "type": 3, "code": code, "rsp": rsp, "cpl": cpl}
        if vector == 14:
            fault |= {"address": address, "below_stack": rsp - address & (1 << 64) - 1}
            fault |= {"page_fault_code": code}
        assert exits(found.vmcs, fault) == wanted, fault


def test_fields_alone_are_sound_where_they_are_not_exact() -> None:
    found = granted(STACK, "vt-x")
    assert (found.means, found.exact) == ("vt-x", False)
    assert found.needless.startswith("#PF")
    everything = Vmcs()
    everything["EXCEPTION_BITMAP"] = 1 << 14
    assert compare_exits(granted(STACK).vmcs, found.vmcs).sound
    assert compare_exits(everything, found.vmcs).exact
    # A table that the hardware has no room for.
    assert granted(STACK, rules=1).means != "table"
    with pytest.raises(InexpressibleError, match="no table of 1 rules"):
        granted(STACK, "table", rules=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (wish("adress < 5"), "column 1: no value is called adress; did you mean address"),
        (wish("write", then="exits"), "'exits': did you mean exit"),
        (wish("write", default="none"), "'none'"),
        ('[[wishes]]\nwhen = 5\nthen = "exit"\n', "no condition in quotes"),
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
    assert result.output.startswith("exact, by a criteria table of 2 rules and 4 clauses\n")
    assert len(Vmcs.load(fields).criteria_table) == 2
    for option, words in (("--scheme=tables", "did you mean table"), ("--fields=2", "--scheme")):
        result = CliRunner().invoke(app, ["criteria", "define", str(wishes), option])
        assert (result.exit_code, words in result.output) == (2, True), result.output
