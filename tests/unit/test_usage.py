"""Mistakes on the command line: one line on standard error, status 2."""

import re

import pytest
from typer.testing import CliRunner

from trapgate.cli import COMMANDS, app


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "x", "--cpus", "33"], "trapgate: --cpus: "),
        (["run", "x", "--engine", "fast"], "trapgate: --engine: 'fast' is unknown"),
        (["run", "x", "--nosuch"], "trapgate: No such option: --nosuch"),
        (["run", "--save"], "trapgate: Option '--save' requires an argument"),
        (["campaign", "run"], "trapgate: Missing argument"),
        (["--nosuch"], "trapgate: No such option: --nosuch"),
        (["rn"], "trapgate: No such command 'rn'"),
    ],
)
def test_a_mistake_is_told_in_one_line(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(app, arguments, prog_name="trapgate")
    assert result.exit_code == 2
    (told,) = result.stderr.splitlines()
    assert told.startswith(line)
    command = [name for name in arguments[:1] if name in COMMANDS]
    assert f"; see {' '.join(['trapgate', *command])}" in told
    assert told.endswith(" --help")


@pytest.mark.parametrize("arguments", [[], ["campaign"]])
def test_nothing_given_shows_the_help(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments, prog_name="trapgate")
    assert "Commands:" in result.output + result.stderr
    assert result.exit_code == 2


@pytest.mark.parametrize("group", ["campaign", "criteria", "trace"])
def test_each_help_has_an_example_that_begins_with_its_command(group: str) -> None:
    listed = CliRunner().invoke(app, [group, "--help"], prog_name="trapgate").output
    names = re.findall(r"^  ([a-z]+)  +\S", listed.partition("Commands:")[2], re.MULTILINE)
    assert len(names) >= 5
    for name in names:
        told = CliRunner().invoke(app, [group, name, "--help"], prog_name="trapgate").output
        examples = told.partition("Examples:")[2]
        assert f"trapgate {group} {name}" in " ".join(examples.split()), name


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "x", "--cpus", "0"], "--cpus: 0 is out of range; give 1 to 32;"),
        (["run", "x", "--turn", "0"], "--turn: 0 is too small; give 1 or more;"),
        (["run", "x", "--seed", "x"], "--seed: 'x' is not a whole number;"),
        (["run", "x", "--timeout", "x"], "--timeout: 'x' is not a number;"),
        (["run", "x", "--timeout", "0"], "--timeout: 0.0 is too small; give 0.001 or more;"),
        (["run", "x", "--paging", "x"], "--paging: 'x' is unknown; choose from 'direct', 'own';"),
        (["demo", "--disk", "x", "--engine", "portable"], "--engine: a frame map needs"),
        (["demo", "--scale", "10001"], "--scale: 10001 is out of range; give 1 to 10000;"),
        (["trace", "head", "x", "-n", "0"], "--rows: 0 is too small; give 1 or more;"),
        (["replay", "x", "--sweep-when", "cpl =="], "--sweep-when: column "),
        (
            ["replay", "x", "--policy", "x", "--time", "5"],
            "--time: '5' is not a range; give FROM:TO;",
        ),
    ],
)
def test_values_that_cannot_be_have_a_remedy(arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(app, arguments, prog_name="trapgate")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"trapgate: {words}")


@pytest.mark.parametrize("command", [*COMMANDS])
def test_help_names_values_and_is_whole(command: str) -> None:
    told = CliRunner().invoke(app, [command, "--help"], prog_name="trapgate").output
    assert not re.search(r"<(str|path|int|float)\b", told)
    assert "..." not in told.partition("Commands:")[2]
    assert "--install-completion" not in told
