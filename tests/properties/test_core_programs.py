"""Programs of the dialect at random: compiled, they do what they do when interpreted."""

import ast
import functools
import importlib.util
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.properties.core_interpreter import (
    Array,
    UndefinedError,
    Word,
    begin,
    counted,
    wrapped,
)
from trapgate.compiler.program import alone

_CELLS = 8
_EDGES = (0, 1, 2, 63, -1, 1 << 31, (1 << 63) - 1, -(1 << 63), 0xFFFF_FFFF)
_INTEGERS = st.one_of(
    st.integers(-9, 9), st.sampled_from(_EDGES), st.integers(-(1 << 63), (1 << 63) - 1)
)
_HEAD = """
from trapgate.compiler.dialect import Cells

BIT = 1 << 40
YES = True


def twice(a: int, b: bool) -> tuple[int, bool]:
    if b:
        return a * 2, a < 0
    return a, not b


def clamp(a: int, low: int, high: int) -> int:
    return min(max(a, low), high)


def bump(v: Cells, n: int) -> None:
    if n < 0:
        return
    v[n & 7] += 1

"""


class _Writer:
    """Writes a function; each choice is Hypothesis', so that it can make the program smaller."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.loops = 0

    def one_of(self, *ways: Callable[[], str]) -> str:
        way: Callable[[], str] = self.draw(st.sampled_from(ways))
        return way()

    def integer(self, depth: int) -> str:
        """An expression that is an integer."""
        if depth == 0:
            return self.one_of(
                lambda: self.draw(st.sampled_from(("a", "b", "x", "y", "v[0]", "v[a & 7]", "BIT"))),
                lambda: f"({self.draw(_INTEGERS)})",
            )
        one = two = functools.partial(self.integer, depth - 1)
        truth = functools.partial(self.truth, depth - 1)
        operator = self.draw(st.sampled_from(("+", "-", "*", "&", "|", "^")))
        shift = self.draw(st.sampled_from(("<<", ">>")))
        return self.one_of(
            lambda: f"({one()} {operator} {two()})",
            lambda: f"({one()} {shift} ({two()} & 63))",
            lambda: f"({one()} {shift} {self.draw(st.integers(0, 63))})",
            lambda: f"({one()} % ({two()} | 1))",
            lambda: f"({one()} // ({two()} | 1))",
            lambda: f"(~{one()})",
            lambda: f"(-{one()})",
            lambda: f"({one()} if {truth()} else {two()})",
            lambda: f"({one()} and {two()})",
            lambda: f"({one()} or {two()})",
            lambda: f"int({truth()})",
            lambda: f"({truth()} + {truth()})",
            lambda: f"min({one()}, {two()}, 5)",
            lambda: f"max({one()}, {two()})",
            lambda: f"v[{one()} & 7]",
            lambda: f"len(v[{one()} & 7:])",
            lambda: f"v[{one()} & 3:][{two()} & 3]",
            lambda: f"twice({one()}, {truth()})[0]",
            lambda: f"clamp({one()}, {two()}, 100)",
        )

    def truth(self, depth: int) -> str:
        """An expression that is a boolean."""
        if depth == 0:
            return str(self.draw(st.sampled_from(("c", "d", "True", "False", "YES"))))
        one = two = functools.partial(self.integer, depth - 1)
        truth = functools.partial(self.truth, depth - 1)
        relation = self.draw(st.sampled_from(("==", "!=", "<", "<=", ">", ">=")))
        joint = self.draw(st.sampled_from(("and", "or", "&", "|", "^", "==", "!=")))
        member = self.draw(st.sampled_from(("in", "not in")))
        return self.one_of(
            lambda: f"({one()} {relation} {two()})",
            lambda: f"({one()} <= {two()} < {one()})",
            lambda: f"({truth()} {joint} {truth()})",
            lambda: f"(not {truth()})",
            lambda: f"(not {one()})",
            lambda: f"bool({one()})",
            lambda: f"({one()} {member} (1, {two()}, {one()}))",
            lambda: f"({truth()} if {truth()} else {truth()})",
            lambda: f"twice({one()}, {truth()})[1]",
        )

    def put(self, level: int, line: str) -> None:
        self.lines.append("    " * level + line)

    def block(self, level: int, depth: int) -> None:
        """Some statements, the first of which is always there."""
        for _ in range(self.draw(st.integers(1, 3))):
            self.statement(level, depth)

    def statement(self, level: int, depth: int) -> None:
        kinds = ["assign", "change", "store", "edit", "both", "truth", "call"]
        kinds += ["if", "for", "each", "while"] * (depth > 0)
        kinds += ["leave"] * (self.loops > 0)
        name = self.draw(st.sampled_from(("x", "y", "b")))
        match self.draw(st.sampled_from(kinds)):
            case "assign":
                self.put(level, f"{name} = {self.integer(2)}")
            case "change":
                operator = self.draw(st.sampled_from(("+", "-", "^", "|", "&", "*")))
                self.put(level, f"{name} {operator}= {self.integer(2)}")
            case "store":
                self.put(level, f"v[{self.integer(1)} & 7] = {self.integer(2)}")
            case "edit":
                self.put(level, f"v[{self.integer(1)} & 7] ^= {self.integer(1)}")
            case "both":
                self.put(level, f"x, y = y, {self.integer(2)}")
            case "truth":
                self.put(level, f"d = {self.truth(2)}")
            case "call":
                self.put(level, f"bump(v, {self.integer(1)})")
            case "if":
                self.put(level, f"if {self.truth(2)}:")
                self.block(level + 1, depth - 1)
                if self.draw(st.booleans()):
                    self.put(level, f"elif {self.integer(1)}:")
                    self.block(level + 1, depth - 1)
                self.put(level, "else:")
                self.block(level + 1, depth - 1)
            case "for":
                self.put(level, f"for {name} in range({self.integer(1)} & 7):")
                self.loop(level, depth)
            case "each":
                self.put(level, f"for {name} in ({self.integer(1)}, {self.integer(1)}, 3):")
                self.loop(level, depth)
            case "while":
                counter = f"n{len(self.lines)}"
                self.put(level, f"{counter} = 0")
                self.put(level, f"while {counter} < 5 and {self.truth(1)}:")
                self.put(level + 1, f"{counter} += 1")
                self.loop(level, depth)
            case "leave":
                self.put(level, f"if {self.truth(1)}:")
                leave = self.draw(st.sampled_from(("break", "continue", "return x, d")))
                self.put(level + 1, leave)

    def loop(self, level: int, depth: int) -> None:
        self.loops += 1
        self.block(level + 1, depth - 1)
        self.loops -= 1

    def function(self) -> str:
        self.put(0, "def program(v: Cells, a: int, b: int, c: bool) -> tuple[int, bool]:")
        self.put(1, "x = a")
        self.put(1, "y = b")
        self.put(1, "d = c")
        self.block(1, 2)
        self.put(1, f"return {self.integer(2)} ^ x ^ y, d")
        return "\n".join(self.lines) + "\n"


@st.composite
def programs(draw: Any) -> str:
    """The source of a module."""
    return _HEAD + "\n" + _Writer(draw).function()


class _Words(ast.NodeTransformer):
    """Let all numbers that are written be words, so that they wrap from the start."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) is not int:
            return node
        return ast.copy_location(ast.Call(ast.Name("Word", ast.Load()), [node], []), node)


def _interpreted(source: str) -> Callable[..., Any]:
    tree = ast.fix_missing_locations(_Words().visit(ast.parse(source)))
    scope: dict[str, Any] = {"Word": Word, "range": counted, "int": Word}
    exec(compile(tree, "interpreted", "exec"), scope)
    program: Callable[..., Any] = scope["program"]
    return program


_numbers = itertools.count()


def _module(source: str, folder: Path) -> ModuleType:
    name = f"program_{next(_numbers)}"
    file = folder / f"{name}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


_ARGUMENTS = st.tuples(
    st.lists(_INTEGERS, min_size=_CELLS, max_size=_CELLS), _INTEGERS, _INTEGERS, st.booleans()
)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(programs(), st.lists(_ARGUMENTS, min_size=8, max_size=8))
def test_programs(folder: Path, source: str, inputs: list[Any]) -> None:
    module = _module(source, folder)
    begin()
    reference = _interpreted(source)
    compiled = alone(module.program, module.twice, module.clamp, module.bump)
    compared = 0
    for cells, a, b, c in inputs:
        expected_cells = Array(list(cells))
        begin()
        try:
            number, truth = reference(expected_cells, Word(a), Word(b), c)
        except UndefinedError:
            continue
        found_cells = np.array(cells, np.int64)
        found = compiled(found_cells, a, b, c)
        assert found == (wrapped(number), bool(truth))
        assert found_cells.tolist() == expected_cells.cells
        compared += 1
    assume(compared)
