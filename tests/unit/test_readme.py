"""The README and the docs are true where a program can tell."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

from trapgate.cli.demo import demo
from trapgate.cli.run import run

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


@pytest.mark.parametrize(("verb", "page"), [(run, "run"), (demo, "demo")])
def test_the_guide_explains_every_option(verb: object, page: str) -> None:
    assert callable(verb)
    text = (ROOT / f"docs/guide/{page}.md").read_text()
    renamed = {"as_json": "json", "text": "input"}
    if page == "run":
        renamed["guest"] = "GUEST"  # an argument there
    for name in inspect.signature(verb).parameters:
        option = renamed.get(name, name).replace("_", "-")
        assert f"`{option}`" in text or f"`--{option}" in text, option


def test_every_known_limit_is_explained() -> None:
    tests = (ROOT / "tests/conformance/test_limits.py").read_text()
    known = set(re.findall(r"^@limit.*?^def (test_\w+)", tests, re.MULTILINE | re.DOTALL))
    hostile = (ROOT / "tests/hostile/test_hostile_guests.py").read_text()
    expected = r"^@pytest\.mark\.xfail.*?^def (test_\w+)"
    known |= set(re.findall(expected, hostile, re.MULTILINE | re.DOTALL))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/limits.md").read_text()))
    assert known == named
    assert known
