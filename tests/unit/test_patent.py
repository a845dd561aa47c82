"""Every name in docs/patent.md exists."""

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/patent.md").read_text("utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("|")]
NAMES = sorted({name for row in ROWS for name in re.findall(r"`([\w.]+)`", row)})
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("test_")])
def test_the_code_exists(name: str) -> None:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(["trapgate", *parts[:count]]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part)
        return
    pytest.fail(f"there is no {name}")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("test_")])
def test_the_test_exists(name: str) -> None:
    module, _, function = name.partition(".")
    trees = [ast.parse(path.read_text("utf-8")) for path in TESTS if path.stem == module]
    assert trees
    nodes = (node for tree in trees for node in ast.walk(tree))
    assert not function or function in {
        node.name for node in nodes if isinstance(node, ast.FunctionDef)
    }


def test_all_paragraphs_are_there() -> None:
    first = TEXT[: TEXT.index("### Its claims")]
    seen: set[int] = set()
    for row in first.splitlines():
        found = re.match(r"\| (\d+)(?:-(\d+))?(?:, (?:first|second) half)? \|", row)
        if found:
            seen.update(range(int(found[1]), int(found[2] or found[1]) + 1))
    assert seen == set(range(1, 89))


@pytest.mark.parametrize(
    ("start", "end", "claims"),
    [("### Its", "## The second", 30), ("## The second", "## Where", 26)],
)
def test_all_claims_are_there(start: str, end: str, claims: int) -> None:
    part = TEXT[TEXT.index(start) : TEXT.index(end)]
    seen: set[int] = set()
    for row in re.findall(r"^\| ([\d, -]+) \|", part, re.MULTILINE):
        for piece in row.split(", "):
            low, _, high = piece.partition("-")
            seen.update(range(int(low), int(high or low) + 1))
    assert seen == set(range(1, claims + 1))
