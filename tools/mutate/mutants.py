"""Small deliberate faults in functions: which there are, and how to put one in.

A mutant is one function with one change: a comparison swapped, a constant off by one bit, a
condition negated, an operator swapped, an operand or a statement dropped, a value returned
changed. It is put in by giving the function object the changed code, so that whoever has
imported the function runs it.
"""

import ast
import copy
import hashlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one function (or of a module's private constant).

    `key` names it in the tables, and does not depend on line numbers; `digest` is that of the
    function's source, `first` to `last` are the lines that a test must run to notice it.
    """

    module: str
    function: str
    key: str
    digest: str
    first: int
    last: int
    definition: ast.stmt
    """The module's statement that the function is, or stands in; unchanged."""
    place: ast.AST
    changed: ast.AST
    """What stands in the definition, and what is to stand there instead."""


def mutants_of(module: ModuleType) -> Iterator[Mutant]:
    """All mutants of a module's functions, methods and private constants."""
    source = inspect.getsource(module)
    tree = ast.parse(source)
    for definition, name, node in _functions(tree.body):
        digest = hashlib.sha256(ast.dump(node).encode()).hexdigest()[:16]
        seen: dict[str, int] = {}
        for place, changed, statement, words in _changes(node, vars(module)):
            number = seen[words] = seen.get(words, 0) + 1
            key = words if number == 1 else f"{words} (#{number})"
            first, last = _lines(statement)
            yield Mutant(
                module.__name__, name, key, digest, first, last, definition, place, changed
            )


def _functions(body: list[ast.stmt]) -> Iterator[tuple[ast.stmt, str, ast.FunctionDef]]:
    for definition in body:
        if isinstance(definition, ast.FunctionDef):
            yield definition, definition.name, definition
        elif isinstance(definition, ast.ClassDef):
            for method in definition.body:
                if isinstance(method, ast.FunctionDef):
                    yield definition, f"{definition.name}.{method.name}", method


Change = tuple[ast.AST, ast.AST, ast.stmt, str]
"""A node, what stands there instead, the statement that it is part of, and words for it."""


def _changes(function: ast.FunctionDef, names: dict[str, Any]) -> Iterator[Change]:
    returns = ast.unparse(function.returns) if function.returns is not None else ""
    for statement in function.body:
        yield from _in_statement(statement, names, returns)


def _in_statement(statement: ast.stmt, names: dict[str, Any], returns: str) -> Iterator[Change]:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return  # a docstring
    if isinstance(statement, ast.FunctionDef | ast.Import | ast.ImportFrom | ast.Assert):
        if isinstance(statement, ast.FunctionDef):
            for inner in statement.body:
                yield from _in_statement(inner, names, "")
        return
    blocks = [
        inner
        for name in ("body", "orelse", "finalbody")
        for inner in getattr(statement, name, [])
        if isinstance(inner, ast.stmt)
    ]
    if not blocks:
        if isinstance(statement, ast.Assign | ast.AugAssign | ast.Expr | ast.Continue | ast.Break):
            yield statement, ast.Pass(), statement, f"{_short(statement)} -> dropped"
        if isinstance(statement, ast.Return) and statement.value is not None:
            for new in _returned(statement.value, returns):
                yield _described(statement.value, new, statement)
    condition = getattr(statement, "test", None)
    if condition is not None and not isinstance(condition, ast.Constant | ast.Compare):
        negated = ast.UnaryOp(ast.Not(), condition)
        yield _described(condition, negated, statement)
    for field, value in ast.iter_fields(statement):
        if field in ("body", "orelse", "finalbody", "handlers", "annotation", "cases"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.expr):
                yield from _in_expression(node, statement, names)
    for inner in blocks:
        yield from _in_statement(inner, names, returns)
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        guard = getattr(part, "guard", None)
        if guard is not None:
            yield _described(guard, ast.UnaryOp(ast.Not(), guard), statement)
            yield from _in_expression(guard, statement, names)
        for inner in part.body:
            yield from _in_statement(inner, names, returns)


def _returned(value: ast.expr, returns: str) -> Iterator[ast.expr]:
    """What else a function may return; what `_in_expression` changes anyway is left to it."""
    if isinstance(value, ast.Name | ast.Call | ast.Subscript | ast.Attribute | ast.IfExp):
        if returns == "bool":
            yield ast.UnaryOp(ast.Not(), value)
        elif returns == "int":
            yield ast.BinOp(value, ast.BitXor(), ast.Constant(1))


def _in_expression(root: ast.expr, statement: ast.stmt, names: dict[str, Any]) -> Iterator[Change]:
    for node in ast.walk(root):
        for new in _replacements(node, names):
            yield _described(node, new, statement)


def _replacements(node: ast.AST, names: dict[str, Any]) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for n, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                operators = [*node.ops[:n], other(), *node.ops[n + 1 :]]
                yield ast.Compare(node.left, operators, node.comparators)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
        for n in range(len(node.values)):
            values = node.values[:n] + node.values[n + 1 :]
            yield values[0] if len(values) == 1 else ast.BoolOp(node.op, values)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Constant):
        for value in _other_values(node.value):
            yield ast.Constant(value)
    elif isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name.isupper() or (name.startswith("_") and name[1:].isupper()):
            value = eval(ast.unparse(node), names)  # a constant of the module's
            if isinstance(value, int):
                yield ast.Constant(int(value) & int(value) - 1 if value else 1)


def _other_values(value: object) -> Iterator[int]:
    """A constant off by one bit: its lowest, and its highest."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value ^ 1
        if value > 1:
            yield value ^ 1 << value.bit_length() - 1


def _described(node: ast.AST, new: ast.AST, statement: ast.stmt) -> Change:
    return node, new, statement, f"{_short(statement)} | {_text(node)} -> {_text(new)}"


def _text(node: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(copy.copy(node)))


def _short(statement: ast.stmt) -> str:
    """A statement in one line: of a compound one its head."""
    return " ".join(ast.unparse(statement).splitlines()[0].split())


def _lines(statement: ast.stmt) -> tuple[int, int]:
    """The lines on which a statement itself stands, without what it contains."""
    body = getattr(statement, "body", None)
    if not isinstance(body, list):
        return statement.lineno, statement.end_lineno or statement.lineno
    return statement.lineno, max(statement.lineno, body[0].lineno - 1)


def _with(node: ast.AST, place: ast.AST, changed: ast.AST) -> ast.AST:
    """A copy of `node` in which `changed` stands for `place`."""
    if node is place:
        return ast.copy_location(changed, node)
    copied = copy.copy(node)
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            setattr(copied, field, _with(value, place, changed))
        elif isinstance(value, list):
            parts = [_with(x, place, changed) if isinstance(x, ast.AST) else x for x in value]
            setattr(copied, field, parts)
    return copied


def put_in(mutant: Mutant, module: ModuleType) -> None:
    """Make the function the mutant, in this process."""
    tree = ast.Module([_with(mutant.definition, mutant.place, mutant.changed)], [])  # type: ignore[list-item]
    ast.fix_missing_locations(tree)
    code = compile(tree, str(module.__file__), "exec", dont_inherit=True)
    found = next(c for c in _codes(code) if c.co_qualname == mutant.function)
    function_of(module, mutant.function).__code__ = found


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def function_of(module: ModuleType, name: str) -> FunctionType:
    """The function of that qualified name, without what is wrapped around it."""
    found: Any = module
    for part in name.split("."):
        found = vars(found)[part]
    if isinstance(found, property):
        found = found.fget
    found = getattr(found, "func", found) if hasattr(found, "attrname") else found
    while hasattr(found, "__wrapped__"):
        found = found.__wrapped__
    found = getattr(found, "__func__", found)
    assert isinstance(found, FunctionType), name
    return found
