"""Classes of outcomes that a plan's own Python functions decide about."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.campaign.plans import EVENTS, HEAD
from trapgate.campaign.campaign import create, prepare, run
from trapgate.campaign.errors import ClassError, PlanError
from trapgate.campaign.plan import Plan, parse_plan
from trapgate.campaign.replay import replay
from trapgate.campaign.results import Results
from trapgate.campaign.tables import tally
from trapgate.cli import app

BODY = EVENTS.replace("20", "300") + '\n[[class]]\nname = "panicked"\n'
JUDGE = """
def shows(ending):
    return not ending.same_output and b"panic: " in ending.output

def fails(ending):
    raise RuntimeError("no idea")

number = 3
"""


def given(folder: Path, function: str, *, trusted: bool = True) -> Plan:
    (folder / "judge.py").write_text(JUDGE)
    text = HEAD + BODY + f'function = "{function}"\n'
    return parse_plan(text, "plan.toml", folder, trusted=trusted)


def test_a_function_takes_runs_from_other_outcomes(tmp_path: Path) -> None:
    plan = given(tmp_path, "judge.py:shows")
    results = create(prepare(plan), tmp_path / "c")
    list(run(plan, results))
    counts = tally(results)
    shown, _ = counts["panicked"]
    assert 0 < shown < results.runs_total
    row = next(n for n in range(results.runs_total) if _outcome(results, n) == "panicked")
    with pytest.raises(PlanError, match=r"class\[1\].function: executes judge.py; give --trust"):
        replay(results, row)
    assert replay(results, row, trusted=True).agrees
    refused = CliRunner().invoke(app, ["campaign", "show", str(results.folder), str(row)])
    assert (refused.exit_code, "--trust" in refused.output) == (2, True)
    # Another function makes another plan.
    (tmp_path / "judge.py").write_text(JUDGE.replace("panic: ", "panic"))
    other = parse_plan(plan.text, "plan.toml", tmp_path)
    assert other.digest != plan.digest


def _outcome(results: Results, number: int) -> str:
    row = results.row(number)
    assert row is not None
    return str(row["outcome"])


def test_a_function_that_fails_stops_the_campaign(tmp_path: Path) -> None:
    plan = given(tmp_path, "judge.py:fails")
    results = create(prepare(plan), tmp_path / "c")
    with pytest.raises(ClassError, match=r"'panicked' failed .RuntimeError: no idea"):
        list(run(plan, results))


@pytest.mark.parametrize(
    ("function", "word"),
    [
        ("judge.py", "names no function"),
        ("judge.py:show", "did you mean shows"),
        ("judge.py:number", "no function 'number'"),
        ("other.py:shows", "cannot be read"),
    ],
)
def test_what_is_no_function_is_refused(function: str, word: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=word):
        given(tmp_path, function)


def test_a_file_that_is_no_python_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def\n")
    with pytest.raises(PlanError, match=r"odd.py cannot be executed .SyntaxError"):
        given(tmp_path, "odd.py:shows")
