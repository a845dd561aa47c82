"""Conditions on an error code, such as `write and present and not user`.

The syntax is Python's, of which only this is allowed: names of bits, `and`, `or`,
`not`, parentheses, `all` and `none`, and comparisons of `code`, `code & NUMBER`,
`code >> NUMBER` or `index` with numbers (`==`, `!=`, `<`, `<=`, `>`, `>=`, `in`).
A condition is read once and evaluated in two worlds, NumPy arrays and z3 terms, by the
same walk; both take `Logic`'s operators.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trapgate.criteria.codes import Codes, Layout, Truths
from trapgate.criteria.errors import SpecError
from trapgate.errors import suggestion

_LONGEST = 20_000
_DEEPEST = 200


@dataclass(frozen=True)
class Logic:
    """How one world combines truth values and orders unsigned numbers."""

    both: Callable[[Any, Any], Any]
    either: Callable[[Any, Any], Any]
    inverse: Callable[[Any], Any]
    less: Callable[[Any, Any], Any]
    shifted: Callable[[Any, int], Any]


ARRAYS = Logic(
    both=np.logical_and,
    either=np.logical_or,
    inverse=np.logical_not,
    less=np.less,
    shifted=np.right_shift,
)


def terms() -> Logic:
    """The logic of z3's terms."""
    import z3

    return Logic(both=z3.And, either=z3.Or, inverse=z3.Not, less=z3.ULT, shifted=z3.LShR)


@dataclass(frozen=True)
class Condition:
    """A condition that has been read; `text` as it was written, `tree` checked."""

    text: str
    tree: ast.expr
    names: Mapping[str, int]

    def holds(self, codes: Codes) -> Truths:
        """For which of `codes` it holds."""
        truths = self.value(codes, ARRAYS)
        return np.broadcast_to(np.asarray(truths, dtype=np.bool_), codes.shape).copy()

    def value(self, code: Any, logic: Logic) -> Any:
        """Its truth for `code` in the world of `logic`."""
        return _truth(self.tree, code, logic, self.names)


def condition(
    text: str, layout: Layout, path: str = "", line: int = 0, field: str = ""
) -> Condition:
    """Read a condition on the error codes of `layout`.

    Raises:
        SpecError: it is no condition, or names a bit that the error code does not have.
    """

    def wrong(problem: str) -> SpecError:
        return SpecError(problem, path=path, line=line, field=field)

    if len(text) > _LONGEST:
        raise wrong(f"the condition has {len(text)} characters; keep it below {_LONGEST}")
    names = layout.names()
    try:
        tree = ast.parse(_without_hyphens(text.strip(), names), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise wrong(
            f"{shown!r} is no condition; write one like 'write and present and not user'"
        ) from None
    _check(tree, names, wrong, 0)
    return Condition(text, tree, names)


def _without_hyphens(text: str, names: Mapping[str, int]) -> str:
    for name in names:
        if "_" in name:
            text = text.replace(name.replace("_", "-"), name)
    return text


_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn)
_Wrong = Callable[[str], SpecError]


def _check(node: ast.expr, names: Mapping[str, int], wrong: _Wrong, depth: int) -> None:
    if depth > _DEEPEST:
        raise wrong("the condition is nested too deeply; write it as a list of wishes")
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _check(value, names, wrong, depth + 1)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check(operand, names, wrong, depth + 1)
        case ast.Name(id=name):
            known = [*names, "all", "none", "code"]
            if name.lower() not in known[:-1]:
                raise wrong(f"no bit is called {name!r}; {suggestion(name, known)}")
        case ast.Constant(value=bool()):
            pass
        case ast.Compare(left=left, ops=ops, comparators=rights):
            _check_number(left, names, wrong)
            if len(ops) != 1 or not isinstance(ops[0], _COMPARISONS):
                raise wrong("compare one thing with one other: 'code >= 4 and code < 8'")
            right = rights[0]
            if isinstance(ops[0], ast.In | ast.NotIn):
                if not isinstance(right, ast.Tuple | ast.List | ast.Set):
                    raise wrong("'in' wants numbers in parentheses: 'code in (3, 5, 7)'")
                for element in right.elts:
                    _number(element, wrong)
            else:
                _number(right, wrong)
        case _:
            raise wrong(
                f"{ast.unparse(node)[:60]!r} is not allowed in a condition; "
                "use bits, and, or, not, and comparisons of code"
            )


def _check_number(node: ast.expr, names: Mapping[str, int], wrong: _Wrong) -> None:
    match node:
        case ast.Name(id="code"):
            return
        case ast.Name(id="index") if "index_0" in names:
            return
        case ast.BinOp(
            left=ast.Name(id="code"), op=ast.BitAnd() | ast.RShift(), right=ast.Constant() as right
        ):
            _number(right, wrong)
        case _:
            raise wrong(
                f"{ast.unparse(node)[:60]!r} cannot be compared; "
                "compare code, code & NUMBER or code >> NUMBER"
            )


def _number(node: ast.expr, wrong: _Wrong) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value < 1 << 32:
        return node.value
    raise wrong(f"{ast.unparse(node)[:60]!r} is no number of 32 bits; write 10 or 0xA")


def _truth(node: ast.expr, code: Any, logic: Logic, names: Mapping[str, int]) -> Any:
    match node:
        case ast.BoolOp(op=op, values=values):
            combine = logic.both if isinstance(op, ast.And) else logic.either
            result = _truth(values[0], code, logic, names)
            for value in values[1:]:
                result = combine(result, _truth(value, code, logic, names))
            return result
        case ast.UnaryOp(operand=operand):
            return logic.inverse(_truth(operand, code, logic, names))
        case ast.Constant(value=value):
            return code == code if value else code != code  # noqa: PLR0124
        case ast.Name(id=name):
            if name.lower() in names:
                return (code & names[name.lower()]) != 0
            return code == code if name.lower() == "all" else code != code  # noqa: PLR0124
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _compared(_operand(left, code, logic), op, right, logic)
    raise AssertionError(ast.dump(node))


def _operand(node: ast.expr, code: Any, logic: Logic) -> Any:
    match node:
        case ast.BinOp(op=ast.BitAnd(), right=ast.Constant(value=int(mask))):
            return code & mask
        case ast.BinOp(op=ast.RShift(), right=ast.Constant(value=int(count))):
            return logic.shifted(code, min(count, 31)) if count < 32 else code & 0
        case ast.Name(id="index"):
            return logic.shifted(code, 3)
    return code


def _compared(left: Any, op: ast.cmpop, right: ast.expr, logic: Logic) -> Any:
    if isinstance(op, ast.In | ast.NotIn):
        assert isinstance(right, ast.Tuple | ast.List | ast.Set)
        result = left != left  # noqa: PLR0124
        for element in right.elts:
            assert isinstance(element, ast.Constant)
            result = logic.either(result, left == element.value)
        return logic.inverse(result) if isinstance(op, ast.NotIn) else result
    assert isinstance(right, ast.Constant)
    number = right.value
    match op:
        case ast.Eq():
            return left == number
        case ast.NotEq():
            return left != number
        case ast.Lt():
            return logic.less(left, number)
        case ast.GtE():
            return logic.inverse(logic.less(left, number))
        case ast.Gt():
            return logic.less(number, left)
        case _:
            return logic.inverse(logic.less(number, left))
