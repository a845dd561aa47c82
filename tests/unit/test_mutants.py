"""The tool that makes mutants: which changes it makes, and that a function becomes the mutant."""

import sys
import tomllib
from collections.abc import Callable
from importlib import import_module, util
from pathlib import Path
from types import ModuleType

import pytest

from tools.mutate.__main__ import PARTS, REASONS, ROOT, as_pattern
from tools.mutate.mutants import mutants_of, put_in

SOURCE = '''
LIMIT = 12


def between(x: int) -> bool:
    """Whether x is one of these."""
    if x < 3 or x > LIMIT:
        return False
    return x != 7


def kind(x: int) -> int:
    match x:
        case 0 if LIMIT == 12:
            return 4
    return 5


class Pair:
    @property
    def first(self) -> int:
        value = 5 & 7
        return value
'''


@pytest.fixture
def module(tmp_path: Path) -> ModuleType:
    file = tmp_path / "small_module.py"
    file.write_text(SOURCE)
    spec = util.spec_from_file_location("small_module", file)
    assert spec is not None
    assert spec.loader is not None
    made = util.module_from_spec(spec)
    sys.modules["small_module"] = made
    spec.loader.exec_module(made)
    return made


def test_changes(module: ModuleType) -> None:
    head = "if x < 3 or x > LIMIT: | "
    found = {mutant.key for mutant in mutants_of(module)}
    assert {
        f"{head}x < 3 -> x <= 3",
        f"{head}x < 3 -> x >= 3",
        f"{head}x > LIMIT -> x >= LIMIT",
        f"{head}x < 3 or x > LIMIT -> x < 3 and x > LIMIT",
        f"{head}x < 3 or x > LIMIT -> x > LIMIT",
        f"{head}3 -> 2",
        f"{head}3 -> 1",
        f"{head}LIMIT -> 8",
        "return False | False -> True",
        "return x != 7 | x != 7 -> x == 7",
        "return x != 7 | 7 -> 6",
        "match x: | LIMIT == 12 -> not LIMIT == 12",
        "match x: | LIMIT == 12 -> LIMIT != 12",
        "return 4 | 4 -> 5",
        "value = 5 & 7 -> dropped",
        "value = 5 & 7 | 5 & 7 -> 5 | 7",
        "return value | value -> value ^ 1",
    } <= found
    assert not any("Whether" in key for key in found), "docstrings stay"


def test_every_mutant_is_another_function(module: ModuleType) -> None:
    answers: dict[str, Callable[[], object]] = {
        "between": lambda: [module.between(x) for x in range(-1, 20)],
        "kind": lambda: [module.kind(x) for x in range(2)],
        "Pair.first": lambda: module.Pair().first,
    }
    originals = {name: answer() for name, answer in answers.items()}
    for mutant in list(mutants_of(module)):
        put_in(mutant, module)
        try:
            assert answers[mutant.function]() != originals[mutant.function], mutant.key
        except NameError:
            assert mutant.key.endswith("dropped")


@pytest.mark.parametrize("part", PARTS)
def test_parts_name_modules_and_tests_that_are_there(part: str) -> None:
    for name in PARTS[part].modules:
        assert util.find_spec(f"trapgate.{name}") is not None
    for test in PARTS[part].tests:
        assert (ROOT / "tests" / test).is_file()


def test_reasons_are_for_mutants_that_there_are() -> None:
    keys: dict[str, dict[str, list[str]]] = {}
    for group in tomllib.loads(REASONS.read_text())["survivors"]:
        name = group["module"]
        if name not in keys:
            keys[name] = {}
            for mutant in mutants_of(import_module(f"trapgate.{name}")):
                keys[name].setdefault(mutant.function, []).append(mutant.key)
        assert keys[name].keys() >= set(group["functions"])
        for pattern in map(as_pattern, group["mutants"]):
            found = [key for function in group["functions"] for key in keys[name][function]]
            assert any(map(pattern.fullmatch, found)), f"{name}: {pattern.pattern}"
        assert group["reason"].endswith(".")
