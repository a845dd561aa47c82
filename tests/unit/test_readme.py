"""The README and the docs are true where a program can tell."""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trapgate.cli import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "guests/README.md")
)

EXAMPLES = ["docs/guide/python.md", "docs/guide/criteria-tables.md"]


def lines(page: str) -> list[str]:
    return (ROOT / page).read_text().splitlines()


@pytest.mark.parametrize("page", ["README.md", *EXAMPLES])
def test_examples_do_what_they_say(page: str) -> None:
    result = doctest.testfile(str(ROOT / page), module_relative=False)
    assert result.attempted > 3
    assert result.failed == 0


def test_the_set_up_commands_are_those_that_ci_runs() -> None:
    ci = (ROOT / ".ci/run").read_text()
    commands = re.findall(r"^install_and_\w+=(['\"])(.*)\1$", ci, re.MULTILINE)
    assert len(commands) == 2
    for _, command in commands:
        assert lines("README.md").count(command) == 1


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://")):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def help_pages(*command: str) -> Iterator[str]:
    page = CliRunner().invoke(app, [*command, "--help"], prog_name="trapgate").output
    yield page
    listed = page.partition("Commands:\n")[2].partition("\n\n")[0]
    for name in re.findall(r"^  ([a-z]+)  ", listed, re.MULTILINE):
        yield from help_pages(*command, name)


@pytest.mark.parametrize("command", [*COMMANDS])
def test_the_guide_explains_every_option(command: str) -> None:
    guide = (ROOT / f"docs/guide/{command}.md").read_text()
    pages = list(help_pages(command))
    assert len(pages) > 1 or command not in {"campaign", "criteria", "trace"}
    for page in pages:
        options = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", page, re.MULTILINE)
        assert "--help" in options
        for option in set(options) - {"--help"}:
            assert re.search(rf"{option}(?![a-z-])", guide), option


def test_every_known_limit_is_explained() -> None:
    tests = (ROOT / "tests/conformance/test_limits.py").read_text()
    known = set(re.findall(r"^@limit.*?^def (test_\w+)", tests, re.MULTILINE | re.DOTALL))
    hostile = (ROOT / "tests/hostile/test_hostile_guests.py").read_text()
    expected = r"^@pytest\.mark\.xfail.*?^def (test_\w+)"
    known |= set(re.findall(expected, hostile, re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/limits.md").read_text()))
    assert known == named
    assert known
