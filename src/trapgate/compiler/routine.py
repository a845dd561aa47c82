"""A function of the dialect as its source declares it, and the error for one that is not."""

import ast
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType

from trapgate.compiler.kinds import ANY, NOTHING, Kind, kinds_of

_TYPES = "int, bool, Cells, Rows, Any, a tuple of these, or None for no result"


class DialectError(Exception):
    """Source that is not in the dialect.

    The message has file and line, what is wrong, and what to write instead
    (docs/core-dialect.md has the whole dialect).
    """


@dataclass(frozen=True)
class Routine:
    """A function with its syntax tree, and the kinds of its parameters and result."""

    function: FunctionType
    tree: ast.FunctionDef
    parameters: dict[str, Kind]
    result: Kind

    @property
    def symbol(self) -> str:
        """Its name in machine code."""
        return f"{self.function.__module__}.{self.function.__name__}"

    @property
    def has_code(self) -> bool:
        """Whether it is a function in machine code, too, not put where it is called."""
        return ANY not in self.parameters.values()

    def place(self, node: ast.AST) -> str:
        """Where a part of the source is, for people."""
        line = getattr(node, "lineno", self.tree.lineno)
        return f"{self.function.__code__.co_filename}:{line}"

    def error(self, node: ast.AST, why: str) -> DialectError:
        """What is wrong with `node`."""
        return DialectError(f"{self.place(node)}: {why}")


@functools.cache
def _definitions(file: str) -> dict[tuple[str, int], ast.FunctionDef]:
    """The functions of a module by name and first line, which is a decorator's if it has one."""
    tree = ast.parse(Path(file).read_bytes())
    return {
        (node.name, min([node.lineno, *(mark.lineno for mark in node.decorator_list)])): node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


_ONE_TARGET = (ast.AnnAssign, ast.AugAssign, ast.For)
_WITH_BLOCKS = (ast.If, ast.While, ast.For)


def _named(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple):
        for element in target.elts:
            yield from _named(element)


def assigned_in(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that statements of the dialect give values; expressions give none."""
    for statement in statements:
        targets: Sequence[ast.expr] = ()
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, _ONE_TARGET):
            targets = (statement.target,)
        for target in targets:
            yield from _named(target)
        if isinstance(statement, _WITH_BLOCKS):
            yield from assigned_in(statement.body)
            yield from assigned_in(statement.orelse)


@functools.cache
def routine(function: FunctionType) -> Routine:
    """Read the declaration of `function`. Raises DialectError."""
    code = function.__code__
    tree = _definitions(code.co_filename).get((function.__name__, code.co_firstlineno))
    if tree is None:
        raise DialectError(
            f"{code.co_filename}:{code.co_firstlineno}: {function.__name__} does not stand at the "
            "top of its module as it was imported; define it there, outside of `if`, class and "
            "function"
        )
    found = Routine(function, tree, {}, NOTHING)
    spec = tree.args
    optional: Sequence[object] = (spec.vararg, spec.kwarg, *spec.kw_defaults, *spec.defaults)
    if any(optional) or spec.kwonlyargs or spec.posonlyargs:
        raise found.error(
            tree, "parameters are positional, without defaults; write each as `name: type`"
        )
    for missing in (arg for arg in spec.args if arg.annotation is None):
        raise found.error(missing, f"{missing.arg} has no type; give it one: {_TYPES}")
    if tree.returns is None:
        raise found.error(tree, "the result has no type; write `-> int`, or `-> None` for none")
    try:
        return Routine(function, tree, *kinds_of(function))
    except (KeyError, TypeError):
        raise found.error(
            tree, f"a type that is not in the dialect; its types are {_TYPES}"
        ) from None
