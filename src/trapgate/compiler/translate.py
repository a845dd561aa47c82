"""From the core's dialect of Python to LLVM's language: one module for all its functions.

The dialect has 64-bit integers that wrap, booleans, arrays of such integers, tuples of
these as results, functions that call each other, and `if`, `while`, `for` over a range or
a written tuple. Types come from annotations: a variable has that of its first value. The
source is read as a syntax tree; a name that is no variable means what it means in the
function's module, so that constants are folded. Whatever is not in the dialect is a
`DialectError` with its file and line.

A function with a parameter of type `Any` has no code of its own: its expressions are put
where it is called, with the types that they have there (`trapgate.decision.rules`).
"""

import ast
import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

from trapgate.compiler import raw
from trapgate.compiler.kinds import (
    ANY,
    BOOL,
    BOOLEAN,
    CELLS,
    FALSE,
    INT,
    KINDS,
    MEMORY,
    NOTHING,
    ROWS,
    TRUE,
    VOID,
    Code,
    CType,
    Kind,
    Value,
    integer,
    kinds_of,
    tuple_of,
)


class DialectError(Exception):
    """Source that is not in the dialect; the message says where and why."""


_ARITHMETIC: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("sub", operator.sub),
    ast.Mult: ("mul", operator.mul),
    ast.BitAnd: ("and", operator.and_),
    ast.BitOr: ("or", operator.or_),
    ast.BitXor: ("xor", operator.xor),
    ast.LShift: ("shl", operator.lshift),
    ast.RShift: ("ashr", operator.rshift),
}
_BITWISE = (ast.BitAnd, ast.BitOr, ast.BitXor)
_SHIFTS = (ast.LShift, ast.RShift)
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "eq",
    ast.NotEq: "ne",
    ast.Lt: "slt",
    ast.LtE: "sle",
    ast.Gt: "sgt",
    ast.GtE: "sge",
}


@dataclass(frozen=True)
class Routine:
    """A function of the dialect, as its source declares it."""

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

    def error(self, node: ast.AST, why: str) -> DialectError:
        """What is wrong with `node`."""
        line = getattr(node, "lineno", self.tree.lineno)
        return DialectError(f"{self.function.__code__.co_filename}:{line}: {why}")


@functools.cache
def _definitions(file: str) -> dict[str, ast.FunctionDef]:
    tree = ast.parse(Path(file).read_bytes())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


@functools.cache
def routine(function: FunctionType) -> Routine:
    """Read the declaration of `function`. Raises DialectError."""
    tree = _definitions(function.__code__.co_filename)[function.__name__]
    found = Routine(function, tree, {}, NOTHING)
    spec = tree.args
    if spec.vararg or spec.kwarg or spec.defaults or spec.kwonlyargs or spec.posonlyargs:
        raise found.error(tree, "parameters are positional, without defaults")
    try:
        return Routine(function, tree, *kinds_of(function))
    except KeyError as annotation:
        raise found.error(tree, f"{annotation} is no type of the dialect") from None


class Module:
    """One LLVM module: the functions asked for, and all that they call."""

    def __init__(self, is_dialect: Callable[[object], bool]) -> None:
        self.is_dialect = is_dialect
        self._texts: list[str] = []
        self._arrays: dict[int, tuple[str, Any]] = {}
        self._asked: dict[str, Routine] = {}

    def text(self) -> str:
        """The module in LLVM's language; all functions that were asked for are there."""
        done = 0
        while done < len(self._asked):
            for wanted in list(self._asked.values())[done:]:
                self._define(wanted)
                done += 1
        # No calls of the C library's memset() and memcpy() for loops like theirs.
        attributes = 'attributes #0 = { nounwind "no-builtins" }'
        return "\n".join([*self._texts, attributes])

    def ask(self, wanted: Routine) -> str:
        """The symbol of a function that this module is to have."""
        self._asked.setdefault(wanted.symbol, wanted)
        return f'@"{wanted.symbol}"'

    def _define(self, wanted: Routine) -> None:
        code = Code()
        arguments = {name: Value(f"%a{n}", k) for n, (name, k) in enumerate(_named(wanted))}
        Body(self, code, wanted, arguments).all()
        parameters = ", ".join(f"{v.kind.llvm} {v.text}" for v in arguments.values())
        self.put(code, wanted.symbol, f"internal fastcc {wanted.result.llvm}", parameters)

    def for_c(self, wanted: Routine, symbol: str, returns: CType, takes: Sequence[CType]) -> None:
        """Export a function with integer parameters to C, under `symbol`."""
        if len(takes) != len(wanted.parameters):
            raise wanted.error(
                wanted.tree, "the types given to the mark are not as many as its parameters"
            )
        code = Code()
        arguments = []
        for n, (ctype, kind) in enumerate(zip(takes, wanted.parameters.values(), strict=True)):
            value = Value(f"%a{n}", INT)
            if ctype is BOOLEAN:
                value = code.let(f"icmp ne i8 %a{n}, 0", BOOL)
            elif ctype.llvm != "i64":
                extend = "sext" if ctype.signed else "zext"
                value = code.let(f"{extend} {ctype.llvm} %a{n} to i64")
            arguments.append(Body(self, code, wanted, {}).coerce(value, kind, wanted.tree))
        result = self.call(code, wanted, arguments)
        if returns is VOID:
            code.end("ret void")
        else:
            widened = Body(self, code, wanted, {}).coerce(result, INT, wanted.tree)
            if returns.llvm != "i64":
                widened = code.let(f"trunc i64 {widened.text} to {returns.llvm}")
            code.end(f"ret {returns.llvm} {widened.text}")
        parameters = ", ".join(f"{ctype.llvm} %a{n}" for n, ctype in enumerate(takes))
        self.put(code, symbol, returns.llvm, parameters)

    def put(self, code: Code, symbol: str, result: str, parameters: str) -> None:
        """Add a function with this code."""
        head = f'define {result} @"{symbol}"({parameters}) #0 {{'
        self._texts.append(f"{head}\n{code.body()}\n}}")

    def call(self, code: Code, callee: Routine, arguments: Sequence[Value]) -> Value:
        """A call of a function with code of its own."""
        given = ", ".join(f"{value.kind.llvm} {value.text}" for value in arguments)
        call = f"call fastcc {callee.result.llvm} {self.ask(callee)}({given})"
        if callee.result is NOTHING:
            code.put(call)
            return Value("", NOTHING)
        return code.let(call, callee.result)

    def string(self, words: str) -> str:
        """A constant string of C; its address."""
        name = f"@string{len(self._texts)}"
        data = "".join(f"\\{byte:02x}" for byte in (*words.encode(), 0))
        shape = f"[{len(words.encode()) + 1} x i8]"
        self._texts.append(f'{name} = private unnamed_addr constant {shape} c"{data}"')
        return name

    def array(self, constant: Any) -> Value:
        """A constant array of a Python module."""
        if id(constant) not in self._arrays:
            name = f"@array{len(self._arrays)}"
            numbers = ", ".join(f"i64 {number}" for number in constant.tolist())
            shape = f"[{len(constant)} x i64]"
            self._texts.append(f"{name} = private unnamed_addr constant {shape} [{numbers}]")
            self._arrays[id(constant)] = name, constant
        name, _ = self._arrays[id(constant)]
        return Value(f"{{ptr {name}, i64 {len(constant)}}}", CELLS)


def _named(wanted: Routine) -> list[tuple[str, Kind]]:
    return list(wanted.parameters.items())


class Body:
    """One function's statements and expressions, put into `code` with these arguments."""

    def __init__(
        self, module: Module, code: Code, source: Routine, arguments: dict[str, Value]
    ) -> None:
        self.module = module
        self.code = code
        self.source = source
        self.scope = source.function.__globals__
        self.constants = dict(arguments)
        """Variables that never change."""
        self.assigned = {
            node.id
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        """Names of variables that the function itself gives values."""
        self.variables: dict[str, Value] = {}
        """Slots of the others."""
        self.loops: list[tuple[str, str]] = []
        """Where `continue` and `break` go."""

    def error(self, node: ast.AST, why: str) -> DialectError:
        """What is wrong with `node`."""
        return self.source.error(node, why)

    def all(self) -> None:
        """The whole function."""
        for name in sorted(self.assigned & set(self.constants)):
            value = self.constants.pop(name)
            self.variables[name] = slot = self.code.slot(value.kind)
            self.code.slots.append(f"store {value.kind.llvm} {value.text}, ptr {slot.text}")
        self.block(self.source.tree.body)
        if not self.code.ended and self.source.result is not NOTHING:
            raise self.error(self.source.tree, "its end may be reached without a result")
        self.code.end("ret void")

    def expanded(self) -> Value:
        """The result of a function that is put where it is called: names, then a result."""
        for statement in self.source.tree.body:
            match statement:
                case ast.Expr(ast.Constant()):
                    pass
                case ast.Assign([ast.Name(name)], value):
                    self.constants[name] = self.value(value)
                case ast.Return(ast.expr() as result):
                    return self.value(result)
                case _:
                    raise self.error(statement, "with `Any` there are only names and a result")
        raise self.error(self.source.tree, "it has no result")

    # Statements.

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Statements one after the other."""
        for statement in statements:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        """One statement."""
        match node:
            case ast.Expr(ast.Constant(str())) | ast.Pass():
                pass
            case ast.Expr(ast.Call() as call):
                self.value(call)
            case ast.Assign(targets, source):
                value = self.value(source)
                for target in targets:
                    self.assign(target, value)
            case ast.AnnAssign(ast.Name() as target, annotation, ast.expr() as source):
                kind = KINDS.get(self.meaning(annotation))
                if kind is None:
                    raise self.error(annotation, "this is no type of the dialect")
                self.assign(target, self.coerce(self.value(source), kind, node))
            case ast.AugAssign(target, op, source):
                self.change(target, op, source)
            case ast.Return(result):
                self.give_back(node, result)
            case ast.If(test, body, otherwise):
                self.choose(test, lambda: self.block(body), lambda: self.block(otherwise))
            case ast.While(test, body, []):
                self.loop(test, body)
            case ast.For(ast.Name() as target, ast.Call(ast.Name("range"), bounds), body, []):
                self.count(target, bounds, body)
            case ast.For(ast.Name() as target, ast.Tuple(elements), body, []):
                self.each(target, elements, body)
            case ast.Break() if self.loops:
                self.code.jump(self.loops[-1][1])
            case ast.Continue() if self.loops:
                self.code.jump(self.loops[-1][0])
            case _:
                raise self.error(node, f"`{ast.unparse(node)[:60]}` is no statement of the dialect")

    def give_back(self, node: ast.Return, result: ast.expr | None) -> None:
        """`return`."""
        kind = self.source.result
        if result is None:
            if kind is not NOTHING:
                raise self.error(node, f"a result of type {kind.name} is missing")
            self.code.end("ret void")
            return
        value = self.coerce(self.value(result), kind, node)
        self.code.end("ret void" if kind is NOTHING else f"ret {kind.llvm} {value.text}")

    def assign(self, target: ast.expr, value: Value) -> None:
        """Give one target its value."""
        match target:
            case ast.Name("_"):
                pass
            case ast.Name(name):
                if value.kind is NOTHING:
                    raise self.error(target, f"there is no value for {name}")
                if name not in self.variables:
                    self.variables[name] = self.code.slot(value.kind)
                slot = self.variables[name]
                self.code.store(self.coerce(value, slot.kind, target), slot)
            case ast.Tuple(elements):
                if len(elements) != len(value.kind.parts):
                    raise self.error(target, f"{len(elements)} names for a {value.kind.name}")
                for n, element in enumerate(elements):
                    self.assign(element, self.part(value, n))
            case ast.Subscript(array, index):
                place = self.place(self.value(array), index)
                self.code.store(self.coerce(value, INT, target), place)
            case _:
                raise self.error(target, f"nothing can be assigned to `{ast.unparse(target)}`")

    def change(self, target: ast.expr, op: ast.operator, source: ast.expr) -> None:
        """`target op= source`."""
        if isinstance(target, ast.Subscript):
            place = self.place(self.value(target.value), target.slice)
        elif isinstance(target, ast.Name) and target.id in self.variables:
            place = self.variables[target.id]
        else:
            raise self.error(target, f"`{ast.unparse(target)}` has no value to change")
        value = self.combine(op, self.code.load(place), self.value(source), target)
        self.code.store(self.coerce(value, place.kind, target), place)

    def choose(
        self, test: ast.expr, then: Callable[[], None], otherwise: Callable[[], None]
    ) -> None:
        """One thing or the other."""
        yes, no, after = (self.code.name() for _ in range(3))
        self.code.branch(self.truth(test), yes, no)
        self.code.label(yes)
        then()
        if not self.code.ended:
            self.code.jump(after)
        self.code.label(no)
        otherwise()
        self.code.label(after)

    @contextmanager
    def looping(self, again: str, after: str) -> Iterator[None]:
        """Let `continue` and `break` go there."""
        self.loops.append((again, after))
        yield
        self.loops.pop()

    def loop(self, test: ast.expr, body: Sequence[ast.stmt]) -> None:
        """`while`."""
        again, inside, after = (self.code.name() for _ in range(3))
        self.code.label(again)
        self.code.branch(self.truth(test), inside, after)
        self.code.label(inside)
        with self.looping(again, after):
            self.block(body)
        if not self.code.ended:
            self.code.jump(again)
        self.code.label(after)

    def count(self, target: ast.Name, bounds: list[ast.expr], body: Sequence[ast.stmt]) -> None:
        """`for` over a range from 0 or a given number, in steps of 1."""
        values = [self.coerce(self.value(bound), INT, bound) for bound in bounds]
        if len(values) not in (1, 2):
            raise self.error(target, "a range has one bound or two")
        counter = self.code.slot(INT)
        self.code.store(values[0] if len(values) == 2 else integer(0), counter)
        again, inside, onward, after = (self.code.name() for _ in range(4))
        self.code.label(again)
        now = self.code.load(counter)
        self.code.branch(self.compared("slt", now, values[-1], target), inside, after)
        self.code.label(inside)
        self.assign(target, now)
        with self.looping(onward, after):
            self.block(body)
        self.code.label(onward)
        self.code.store(
            self.combine(ast.Add(), self.code.load(counter), integer(1), target), counter
        )
        if not self.code.ended:
            self.code.jump(again)
        self.code.label(after)

    def each(self, target: ast.Name, elements: list[ast.expr], body: Sequence[ast.stmt]) -> None:
        """`for` over a tuple: its body once for each element."""
        values = [self.value(element) for element in elements]
        after = self.code.name()
        for value in values:
            onward = self.code.name()
            self.assign(target, value)
            with self.looping(onward, after):
                self.block(body)
            self.code.label(onward)
        self.code.label(after)

    # Expressions.

    def value(self, node: ast.expr) -> Value:
        """The value of an expression."""
        match node:
            case ast.Constant(bool(constant)):
                return TRUE if constant else FALSE
            case ast.Constant(int(number)):
                return self.constant(number, node)
            case ast.Name(name) if name in self.constants:
                return self.constants[name]
            case ast.Name(name) if name in self.variables:
                return self.code.load(self.variables[name])
            case ast.Attribute(ast.Attribute(array, "ctypes"), "data"):
                where = self.part(self.expect(CELLS, array), 0)
                return self.code.let(f"ptrtoint ptr {where.text} to i64")
            case ast.Name() | ast.Attribute():
                return self.constant(self.meaning(node), node)
            case ast.BinOp(left, op, right):
                return self.combine(op, self.value(left), self.value(right), node)
            case ast.UnaryOp(op, operand):
                return self.unary(op, operand, node)
            case ast.BoolOp(op, operands):
                values = [functools.partial(self.value, operand) for operand in operands]
                return self.decided(op, values, node)
            case ast.Compare(left, ops, operands):
                return self.chain(self.value(left), ops, operands, node)
            case ast.IfExp(test, then, otherwise):
                return self.either(test, then, otherwise)
            case ast.Tuple(elements):
                return self.together([self.value(element) for element in elements])
            case ast.Subscript(array, ast.Slice(ast.expr() as start, None, None)):
                return self.tail(self.expect(CELLS, array), start)
            case ast.Subscript(array, index):
                whole = self.value(array)
                if whole.kind is ROWS:
                    return self.row(whole, index)
                if whole.kind.parts:
                    return self.part(whole, self.literal(index))
                return self.code.load(self.place(whole, index))
            case ast.Call(function, arguments, []):
                return self.call(function, arguments, node)
            case _:
                raise self.error(
                    node, f"`{ast.unparse(node)[:60]}` is no expression of the dialect"
                )

    def meaning(self, node: ast.expr) -> object:
        """What a name or a module's attribute means in the source's module."""
        match node:
            case ast.Name(name) if name in self.assigned:
                raise self.error(node, f"{name} has no value here")
            case ast.Name(name) if name in self.scope:
                return self.scope[name]
            case ast.Name(name) if name in _BUILTINS:
                return _BUILTINS[name]
            case ast.Attribute(ast.Name(name), attribute):
                owner = self.scope.get(name)
                if isinstance(owner, ModuleType) and hasattr(owner, attribute):
                    return getattr(owner, attribute)
        raise self.error(node, f"`{ast.unparse(node)}` is no variable and no constant")

    def literal(self, node: ast.expr) -> int:
        """A number written there."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise self.error(node, "a tuple's elements go by numbers written there")

    def constant(self, meant: object, node: ast.expr) -> Value:
        """A number, a boolean or an array that was there before the code."""
        if isinstance(meant, bool):
            return TRUE if meant else FALSE
        if isinstance(meant, int):
            if not -(1 << 63) <= meant < 1 << 63:
                raise self.error(node, f"{meant:#x} does not fit 64 bits with a sign")
            return integer(meant)
        if isinstance(meant, np.ndarray) and meant.dtype == np.int64 and meant.ndim == 1:
            return self.module.array(meant)
        what = f"`{ast.unparse(node)}` is a {type(meant).__name__}"
        raise self.error(node, f"{what}, no value of the dialect")

    def coerce(self, value: Value, kind: Kind, node: ast.AST) -> Value:
        """`value` as one of `kind`: a boolean may stand for an integer."""
        if value.kind == kind:
            return value
        if (value.kind, kind) == (BOOL, INT):
            if value.number is not None:
                return integer(value.number)
            return self.code.let(f"zext i1 {value.text} to i64")
        if len(value.kind.parts) == len(kind.parts) > 0:
            parts = (self.part(value, n) for n in range(len(kind.parts)))
            pairs = zip(parts, kind.parts, strict=True)
            return self.together([self.coerce(part, wanted, node) for part, wanted in pairs])
        raise self.error(node, f"a value of type {value.kind.name} where {kind.name} is needed")

    def expect(self, kind: Kind, node: ast.expr) -> Value:
        """The value of an expression of this kind."""
        return self.coerce(self.value(node), kind, node)

    def truth(self, node: ast.expr) -> Value:
        """Whether an expression counts as true."""
        match node:
            case ast.BoolOp(op, operands):
                truths = [functools.partial(self.truth, operand) for operand in operands]
                return self.decided(op, truths, node)
            case ast.UnaryOp(ast.Not(), operand):
                return self.code.let(f"xor i1 {self.truth(operand).text}, 1", BOOL)
            case ast.Call(ast.Name("bool"), [operand], []) if "bool" not in self.scope:
                return self.truth(operand)
        return self.is_true(self.value(node), node)

    def is_true(self, value: Value, node: ast.expr) -> Value:
        """Whether a value counts as true."""
        if value.kind is BOOL:
            return value
        return self.compared("ne", self.coerce(value, INT, node), integer(0), node)

    def decided(
        self, op: ast.boolop, operands: Sequence[Callable[[], Value]], node: ast.expr
    ) -> Value:
        """The value of `and` and `or`: that of the operand that decides, the last looked at."""
        result = Alternatives(self)
        after = self.code.name()
        for operand in operands:
            value = operand()
            result.keep(value, node)
            onward = self.code.name()
            ways = (onward, after) if isinstance(op, ast.And) else (after, onward)
            self.code.branch(self.is_true(value, node), *ways)
            self.code.label(onward)
        self.code.label(after)
        return result.value(node)

    def either(self, test: ast.expr, then: ast.expr, otherwise: ast.expr) -> Value:
        """`then if test else otherwise`."""
        result = Alternatives(self)
        one, other = (
            functools.partial(lambda node: result.keep(self.value(node), node), node)
            for node in (then, otherwise)
        )
        self.choose(test, one, other)
        return result.value(test)

    def chain(
        self, left: Value, ops: list[ast.cmpop], operands: list[ast.expr], node: ast.expr
    ) -> Value:
        """Comparisons, of which a false one is the last to be looked at."""
        before = left

        def next_one(op: ast.cmpop, operand: ast.expr) -> Value:
            nonlocal before
            left = before
            if isinstance(op, ast.In | ast.NotIn):
                return self.among(left, op, operand)
            if type(op) not in _COMPARISONS:
                raise self.error(node, f"{type(op).__name__} is no comparison of the dialect")
            before = self.value(operand)
            return self.compared(_COMPARISONS[type(op)], left, before, node)

        links = [functools.partial(next_one, *pair) for pair in zip(ops, operands, strict=True)]
        return links[0]() if len(links) == 1 else self.decided(ast.And(), links, node)

    def among(self, left: Value, op: ast.cmpop, operand: ast.expr) -> Value:
        """Whether `left` is one of the elements of a written tuple."""
        if not isinstance(operand, ast.Tuple):
            raise self.error(operand, "`in` takes a tuple written there")
        found = FALSE
        for element in operand.elts:
            same = self.compared("eq", left, self.value(element), element)
            found = self.code.let(f"or i1 {found.text}, {same.text}", BOOL)
        if isinstance(op, ast.NotIn):
            found = self.code.let(f"xor i1 {found.text}, 1", BOOL)
        return found

    def compared(self, predicate: str, left: Value, right: Value, node: ast.AST) -> Value:
        """A signed comparison of integers, or whether booleans are the same."""
        if not (left.kind is right.kind is BOOL and predicate in ("eq", "ne")):
            left, right = (self.coerce(value, INT, node) for value in (left, right))
        text = f"icmp {predicate} {left.kind.llvm} {left.text}, {right.text}"
        return self.code.let(text, BOOL)

    def unary(self, op: ast.unaryop, operand: ast.expr, node: ast.expr) -> Value:
        """A sign, a complement, or `not`."""
        if isinstance(op, ast.Not):
            return self.truth(node)
        value = self.value(operand)
        if value.kind is not INT:
            raise self.error(node, f"a value of type {value.kind.name} where int is needed")
        if isinstance(op, ast.USub):
            return self.combine(ast.Sub(), integer(0), value, node)
        if isinstance(op, ast.Invert):
            return self.combine(ast.BitXor(), value, integer(-1), node)
        raise self.error(node, "this operator is not in the dialect")

    def combine(self, op: ast.operator, left: Value, right: Value, node: ast.AST) -> Value:
        """Arithmetic on 64 bits that wraps; on booleans &, | and ^ give a boolean."""
        if left.kind is right.kind is BOOL and isinstance(op, _BITWISE):
            name, _ = _ARITHMETIC[type(op)]
            return self.code.let(f"{name} i1 {left.text}, {right.text}", BOOL)
        left, right = (self.coerce(value, INT, node) for value in (left, right))
        if isinstance(op, ast.Mod):
            return self.modulo(left, right)
        if type(op) not in _ARITHMETIC:
            raise self.error(node, f"{type(op).__name__} is no operator of the dialect")
        name, fold = _ARITHMETIC[type(op)]
        if isinstance(op, _SHIFTS):
            if right.number is None:
                # As the processor does.
                right = self.code.let(f"and i64 {right.text}, 63")
            elif not 0 <= right.number < 64:
                raise self.error(node, f"a shift by {right.number} bits")
        if left.number is not None and right.number is not None:
            return integer(fold(left.number, right.number))
        return self.code.let(f"{name} i64 {left.text}, {right.text}")

    def modulo(self, left: Value, right: Value) -> Value:
        """The remainder, which has the divisor's sign; 0 where that is 0."""
        code = self.code
        zero = code.let(f"icmp eq i64 {right.text}, 0", BOOL)
        divisor = code.let(f"select i1 {zero.text}, i64 1, i64 {right.text}")
        rest = code.let(f"srem i64 {left.text}, {divisor.text}")
        signs = code.let(f"xor i64 {rest.text}, {divisor.text}")
        differ = code.let(f"icmp slt i64 {signs.text}, 0", BOOL)
        some = code.let(f"icmp ne i64 {rest.text}, 0", BOOL)
        wrong = code.let(f"and i1 {differ.text}, {some.text}", BOOL)
        more = code.let(f"select i1 {wrong.text}, i64 {divisor.text}, i64 0")
        return code.let(f"add i64 {rest.text}, {more.text}")

    # Arrays and tuples.

    def part(self, value: Value, n: int) -> Value:
        """Element `n` of a tuple, or of what an array is made of."""
        kind = value.kind.parts[n] if value.kind.parts else INT
        return self.code.let(f"extractvalue {value.kind.llvm} {value.text}, {n}", kind)

    def together(self, values: Sequence[Value]) -> Value:
        """A tuple."""
        kind = tuple_of(value.kind for value in values)
        whole = Value("poison", kind)
        for n, value in enumerate(values):
            text = f"insertvalue {kind.llvm} {whole.text}, {value.kind.llvm} {value.text}, {n}"
            whole = self.code.let(text, kind)
        return whole

    def place(self, array: Value, index: ast.expr) -> Value:
        """The cell of an array, as a slot. Nobody looks whether there is one."""
        if array.kind not in (CELLS, MEMORY):
            raise self.error(index, f"a {array.kind.name} has no cells")
        return self._at(array, self.expect(INT, index))

    def _at(self, array: Value, index: Value) -> Value:
        start = self.part(array, 0)
        return self.code.let(f"getelementptr i64, ptr {start.text}, i64 {index.text}")

    def tail(self, array: Value, start: ast.expr) -> Value:
        """An array from one of its cells on."""
        first = self.expect(INT, start)
        length = self.combine(ast.Sub(), self.part(array, 1), first, start)
        return self.code.array(CELLS, self._at(array, first).text, length.text)

    def watch(self, memory: Value) -> Value:
        """The cells in which stores to memory are watched."""
        code = self.code
        place = code.let(f"extractvalue {MEMORY.llvm} {memory.text}, 2").text
        nobody = code.let(f"icmp eq ptr {place}, null", BOOL).text
        length = code.let(f"select i1 {nobody}, i64 0, i64 {(1 << 63) - 1}").text
        return code.array(CELLS, place, length)

    def row(self, rows: Value, index: ast.expr) -> Value:
        """One row of an array of two dimensions."""
        width = self.part(rows, 2)
        cell = self.combine(ast.Mult(), self.expect(INT, index), width, index)
        return self.code.array(CELLS, self._at(rows, cell).text, width.text)

    # Calls.

    def call(self, function: ast.expr, arguments: list[ast.expr], node: ast.Call) -> Value:
        """A call of a builtin, of what `raw` has, or of another function of the dialect."""
        callee = self.meaning(function)
        callee = getattr(callee, "function", callee)
        if callee in (int, len, min, max):
            return self.builtin(callee, [self.value(argument) for argument in arguments], node)
        if callee is bool and len(arguments) == 1:
            return self.truth(node)
        values = [self.value(argument) for argument in arguments]
        if isinstance(callee, FunctionType) and callee.__module__ == raw.__name__:
            return self.raw(callee.__name__, values, node)
        if isinstance(callee, FunctionType) and self.module.is_dialect(callee):
            return self.call_routine(routine(callee), values, node)
        raise self.error(node, f"`{ast.unparse(function)}` is no function of the dialect")

    def call_routine(self, callee: Routine, values: Sequence[Value], node: ast.AST) -> Value:
        """A call of a function of the dialect."""
        if len(values) != len(callee.parameters):
            raise self.error(
                node, f"{len(values)} arguments for {len(callee.parameters)} parameters"
            )
        given = zip(callee.parameters.items(), values, strict=True)
        arguments = {
            name: value if kind is ANY else self.coerce(value, kind, node)
            for (name, kind), value in given
        }
        if not callee.has_code:
            return Body(self.module, self.code, callee, arguments).expanded()
        return self.module.call(self.code, callee, list(arguments.values()))

    def builtin(self, callee: object, values: list[Value], node: ast.Call) -> Value:
        """`int`, `len`, `min` and `max`."""
        if callee is len and len(values) == 1 and values[0].kind in (CELLS, MEMORY):
            return self.part(values[0], 1)
        numbers = [self.coerce(value, INT, node) for value in values]
        if callee is int and len(numbers) == 1:
            return numbers[0]
        if callee in (min, max) and len(numbers) > 1:
            return functools.reduce(functools.partial(self.extreme, callee is min, node), numbers)
        raise self.error(node, f"`{ast.unparse(node)}` is no call of the dialect")

    def extreme(self, least: bool, node: ast.AST, left: Value, right: Value) -> Value:
        """The lesser or the greater of two."""
        better = self.compared("slt" if least else "sgt", right, left, node)
        return self.code.let(f"select i1 {better.text}, i64 {right.text}, i64 {left.text}")

    def raw(self, name: str, values: list[Value], node: ast.Call) -> Value:
        """Memory and C functions by their addresses: see `trapgate.compiler.raw`."""
        code = self.code
        if name == "call" and len(values) == 2 and values[1].kind.parts:
            parts = [self.part(values[1], n) for n in range(len(values[1].kind.parts))]
            given = ", ".join(f"i64 {self.coerce(part, INT, node).text}" for part in parts)
            return code.let(f"call i64 {code.pointer(values[0].text)}({given})")
        if name == "watched" and [value.kind for value in values] == [MEMORY]:
            return self.watch(values[0])
        words = [self.coerce(value, INT, node).text for value in values]
        if (name, len(words)) == ("memory", 3):
            places = [code.pointer(words[n]) for n in (0, 2)]
            whole = code.array(MEMORY, places[0], words[1])
            text = f"insertvalue {MEMORY.llvm} {whole.text}, ptr {places[1]}, 2"
            return code.let(text, MEMORY)
        if (name, len(words)) in (("cells", 2), ("table", 3)):
            kind = CELLS if name == "cells" else ROWS
            return code.array(kind, code.pointer(words[0]), *words[1:])
        width = name[4:]
        if name.startswith("peek") and len(words) == 1:
            value = code.let(f"load i{width}, ptr {code.pointer(words[0])}, align 1")
            return value if width == "64" else code.let(f"zext i{width} {value.text} to i64")
        if name.startswith("poke") and len(words) == 2:
            if width != "64":
                words[1] = code.let(f"trunc i64 {words[1]} to i{width}").text
            code.put(f"store i{width} {words[1]}, ptr {code.pointer(words[0])}, align 1")
            return Value("", NOTHING)
        raise self.error(node, f"`{ast.unparse(node)}` is no call of the dialect")


class Alternatives:
    """A value that comes from one of several places; an integer if some are, else a boolean."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._slots: dict[Kind, Value] = {}
        self._kinds: set[Kind] = set()

    def keep(self, value: Value, node: ast.expr) -> None:
        """One of them."""
        self._kinds.add(value.kind)
        for kind in (BOOL, INT) if value.kind is BOOL else (value.kind,):
            if kind not in self._slots:
                self._slots[kind] = self._body.code.slot(kind)
            self._body.code.store(self._body.coerce(value, kind, node), self._slots[kind])

    def value(self, node: ast.expr) -> Value:
        """What was kept last."""
        kinds = self._kinds if len(self._kinds) == 1 else self._kinds - {BOOL}
        if len(kinds) != 1 or (self._kinds - kinds and kinds != {INT}):
            raise self._body.error(node, "the alternatives are of different types")
        return self._body.code.load(self._slots[kinds.pop()])


_BUILTINS = {"int": int, "bool": bool, "len": len, "min": min, "max": max}
