"""What expressions of the dialect mean: names, constants, conditions, indexes and calls.

A name that is no variable means what it means in the function's module when the code is
made, so that constants are folded.
"""

import ast
import functools
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType, ModuleType

import numpy as np

from trapgate.compiler import raw
from trapgate.compiler.definitions import Definitions
from trapgate.compiler.kinds import (
    ANY,
    BOOL,
    CELLS,
    FALSE,
    INT,
    MEMORY,
    NOTHING,
    ROWS,
    TRUE,
    Kind,
    Value,
    integer,
    together,
)
from trapgate.compiler.operators import Alternatives, Operators
from trapgate.compiler.routine import Routine, assigned_in, routine
from trapgate.compiler.text import Code

_BUILTINS = {"int": int, "bool": bool, "len": len, "min": min, "max": max}
_FLOATING = {
    f"{name}_{plural}": (instruction, bits)
    for name, instruction in {
        "add": "fadd",
        "subtract": "fsub",
        "multiply": "fmul",
        "divide": "fdiv",
    }.items()
    for plural, bits in {"doubles": 64, "singles": 32}.items()
}
"""Of `raw`: LLVM's instructions, and how many bits their operands have."""


class Expressions(Operators):
    """Expressions of one function, with these arguments, put into `code`."""

    def __init__(
        self,
        module: Definitions,
        code: Code,
        source: Routine,
        arguments: dict[str, Value],
        within: tuple[Routine, ...] = (),
        *,
        is_stub: bool = False,
    ) -> None:
        super().__init__(module, code, source)
        self.scope = source.function.__globals__
        self.constants = dict(arguments)
        """Variables that never change."""
        self.assigned = set(assigned_in(source.tree.body))
        """Names of variables that the function itself gives values."""
        self.variables: dict[str, Value] = {}
        """Slots of the others."""
        self.known: set[str] = set()
        """Those of them that have a value, whichever way the code has come here."""
        self.is_stub = is_stub
        """Whether C calls this very code, so that it knows its caller and may go on elsewhere."""
        self._within = within
        """Functions that are being put where they are called, for one must not call itself."""

    def value(self, node: ast.expr) -> Value:
        """The value of an expression."""
        match node:  # what there is most of comes first
            case ast.Name(name) if name in self.known:
                return self.code.load(self.variables[name])
            case ast.Name(name) if name in self.constants:
                return self.constants[name]
            case ast.Constant(bool(constant)):
                return TRUE if constant else FALSE
            case ast.Constant(int(number)):
                return self._constant(number, node)
            case ast.Attribute(ast.Attribute(array, "ctypes"), "data"):
                where = self.expect(CELLS, array).parts[0]
                return self.code.let(f"ptrtoint ptr {where.text} to i64")
            case ast.Name() | ast.Attribute():
                return self._constant(self.meaning(node), node)
            case ast.BinOp(left, op, right):
                return self.combine(op, self.value(left), self.value(right), node)
            case ast.Subscript():
                return self._subscript(node)
            case ast.Call(function, arguments, []):
                return self._call(function, arguments, node)
            case ast.Compare(left, [ast.In() | ast.NotIn() as op], [operand]):
                return self._among(self.value(left), op, operand)
            case ast.Compare(left, ops, operands):
                links = self._links(self.value(left), ops, operands, node)
                return links[0]() if len(links) == 1 else self._decided(ast.And(), links, node)
            case ast.UnaryOp(ast.USub(), ast.Constant(int(number))) if number is not True:
                return self._constant(-number, node)  # the least number's opposite is none
            case ast.UnaryOp(ast.Not()):
                return self.truth(node)
            case ast.UnaryOp(op, operand):
                return self.signed(op, self.value(operand), node)
            case ast.BoolOp(op, operands):
                values = [functools.partial(self.value, operand) for operand in operands]
                return self._decided(op, values, node)
            case ast.IfExp(test, then, otherwise):
                return self._either(test, then, otherwise)
            case ast.Tuple([_, *_] as elements):
                return together([self.value(element) for element in elements])
        raise self.error(
            node,
            f"`{ast.unparse(node)[:60]}` is no expression of the dialect; it has numbers, names, "
            "operators, comparisons, `x if c else y`, tuples, indexes and calls by position",
        )

    def expect(self, kind: Kind, node: ast.expr) -> Value:
        """The value of an expression of this kind."""
        return self.coerce(self.value(node), kind, node)

    # Names and constants.

    def meaning(self, node: ast.expr) -> object:
        """What a name or a module's attribute means in the source's module."""
        match node:
            case ast.Name(name) if name in self.assigned:
                raise self.error(
                    node, f"{name} may have no value here; give it one on every way to this line"
                )
            case ast.Name(name) if name in self.scope:
                return self.scope[name]
            case ast.Name(name) if name in _BUILTINS:
                return _BUILTINS[name]
            case ast.Attribute(ast.Name(name), attribute) if not self._is_variable(name):
                owner = self.scope.get(name)
                if isinstance(owner, ModuleType) and hasattr(owner, attribute):
                    return getattr(owner, attribute)
        raise self.error(
            node,
            f"`{ast.unparse(node)}` is no variable and no constant; "
            "import it, or the module it is in, at the top",
        )

    def _is_variable(self, name: str) -> bool:
        return name in self.assigned or name in self.constants

    def is_builtin(self, name: str) -> bool:
        """Whether a name means what Python's builtins say."""
        return not self._is_variable(name) and name not in self.scope

    def _constant(self, meant: object, node: ast.expr) -> Value:
        """A number, a boolean or an array that was there before the code."""
        if isinstance(meant, bool):
            return TRUE if meant else FALSE
        if isinstance(meant, int):
            if not -(1 << 63) <= meant < 1 << 63:
                raise self.error(
                    node,
                    f"{meant:#x} does not fit 64 bits with a sign; "
                    f"write {meant - (1 << 64):#x}, or a mask that is left of bit 63",
                )
            return integer(meant)
        if isinstance(meant, np.ndarray) and meant.dtype == np.int64 and meant.ndim == 1:
            return self.module.array(self.code, meant)
        raise self.error(
            node,
            f"`{ast.unparse(node)}` is a {type(meant).__name__}, no value of the dialect; "
            "constants are integers, booleans, and arrays of int64 of one dimension",
        )

    # Conditions.

    def truth(self, node: ast.expr) -> Value:
        """Whether an expression counts as true."""
        match node:
            case ast.BoolOp(op, operands):
                truths = [functools.partial(self.truth, operand) for operand in operands]
                return self._decided(op, truths, node)
            case ast.UnaryOp(ast.Not(), operand):
                return self.opposite(self.truth(operand))
            case ast.Call(ast.Name("bool"), [operand], []) if self.is_builtin("bool"):
                return self.truth(operand)
        return self.is_true(self.value(node), node)

    def _decided(
        self, op: ast.boolop, operands: Sequence[Callable[[], Value]], node: ast.expr
    ) -> Value:
        """The value of `and` and `or`: that of the operand that decides, the last looked at."""
        result = Alternatives(self)
        after = self.code.name()
        for operand in operands:
            value = operand()
            result.keep(value)
            onward = self.code.name()
            ways = (onward, after) if isinstance(op, ast.And) else (after, onward)
            self.code.branch(self.is_true(value, node), *ways)
            self.code.label(onward)
        self.code.label(after)
        return result.value(node)

    def branch_on(self, test: ast.expr, yes: str, no: str) -> None:
        """Go on at one of two labels, as soon as it is decided at which."""
        match test:
            case ast.BoolOp(op, [*first, last]):
                for operand in first:
                    onward = self.code.name()
                    ways = (onward, no) if isinstance(op, ast.And) else (yes, onward)
                    self.branch_on(operand, *ways)
                    self.code.label(onward)
                self.branch_on(last, yes, no)
            case ast.UnaryOp(ast.Not(), operand):
                self.branch_on(operand, no, yes)
            case ast.Compare(left, [_, _, *_] as ops, operands):
                *links, last_link = self._links(self.value(left), ops, operands, test)
                for link in links:
                    onward = self.code.name()
                    self.code.branch(link(), onward, no)
                    self.code.label(onward)
                self.code.branch(last_link(), yes, no)
            case _:
                self.code.branch(self.truth(test), yes, no)

    def choose(
        self, test: ast.expr, then: Callable[[], None], otherwise: Callable[[], None]
    ) -> None:
        """One thing or the other."""
        yes, no, after = (self.code.name() for _ in range(3))
        self.branch_on(test, yes, no)
        self.code.label(yes)
        then()
        self.code.jump(after)
        self.code.label(no)
        otherwise()
        self.code.label(after)

    def _either(self, test: ast.expr, then: ast.expr, otherwise: ast.expr) -> Value:
        """`then if test else otherwise`."""
        result = Alternatives(self)
        one, other = (
            functools.partial(lambda node: result.keep(self.value(node)), node)
            for node in (then, otherwise)
        )
        self.choose(test, one, other)
        return result.value(test)

    def _links(
        self, left: Value, ops: list[ast.cmpop], operands: list[ast.expr], node: ast.expr
    ) -> list[Callable[[], Value]]:
        """Comparisons, of which a false one is the last to be looked at."""
        before = left

        def next_one(op: ast.cmpop, operand: ast.expr) -> Value:
            nonlocal before
            left = before
            if isinstance(op, ast.In | ast.NotIn):
                raise self.error(node, "`in` between other comparisons; join them with `and`")
            before = self.value(operand)
            return self.comparison(op, left, before, node)

        return [functools.partial(next_one, *pair) for pair in zip(ops, operands, strict=True)]

    def _among(self, left: Value, op: ast.cmpop, operand: ast.expr) -> Value:
        """Whether `left` is one of the elements of a written tuple."""
        if not isinstance(operand, ast.Tuple):
            raise self.error(operand, "`in` takes a tuple written there, as in `n in (1, 2)`")
        found = FALSE
        for element in operand.elts:
            same = self.compared("eq", left, self.value(element), element)
            found = self.code.let(f"or i1 {found.text}, {same.text}", BOOL)
        return self.opposite(found) if isinstance(op, ast.NotIn) else found

    # Indexes.

    def _subscript(self, node: ast.Subscript) -> Value:
        whole = self.value(node.value)
        match node.slice:
            case ast.Slice(ast.expr() as start, None, None) if whole.kind is CELLS:
                return self.tail(whole, self.expect(INT, start), node)
            case ast.Slice():
                raise self.error(node, "the only slice is that of Cells from an index on: `v[n:]`")
            case index if whole.kind is ROWS:
                return self.row(whole, self.expect(INT, index), node)
            case ast.Constant(int(n)) if 0 <= n < len(whole.kind.elements):
                return whole.parts[n]
            case _ if whole.kind.elements:
                raise self.error(
                    node,
                    f"a {whole.kind.name} has elements 0 to {len(whole.kind.elements) - 1}, "
                    "whose number is written there",
                )
            case index:
                return self.code.load(self.cell(whole, self.expect(INT, index), node))

    # Calls.

    def _call(self, function: ast.expr, arguments: list[ast.expr], node: ast.Call) -> Value:
        """A call of a builtin, of what `raw` has, or of another function of the dialect."""
        if isinstance(function, ast.Name) and self._is_variable(function.id):
            raise self.error(node, f"{function.id} is a variable; call functions by their names")
        callee = self.meaning(function)
        callee = getattr(callee, "function", callee)
        if callee is bool and len(arguments) == 1:
            return self.truth(node)
        values = [self.value(argument) for argument in arguments]
        if isinstance(callee, type | BuiltinFunctionType) and callee in _BUILTINS.values():
            return self._builtin(callee, values, node)
        if isinstance(callee, FunctionType) and callee.__module__ == raw.__name__:
            return self._raw(callee.__name__, values, node)
        if isinstance(callee, FunctionType) and self.module.is_dialect(callee):
            return self.call_routine(routine(callee), values, node)
        raise self.error(
            node,
            f"`{ast.unparse(function)}` is no function of the dialect; "
            "mark it with @core, or write out what it does",
        )

    def call_routine(self, callee: Routine, values: Sequence[Value], node: ast.AST) -> Value:
        """A call of a function of the dialect."""
        if len(values) != len(callee.parameters):
            raise self.error(
                node,
                f"{len(values)} arguments for the {len(callee.parameters)} parameters "
                f"of {callee.function.__name__}; it has no defaults",
            )
        given = zip(callee.parameters.items(), values, strict=True)
        arguments = {
            name: value if kind is ANY else self.coerce(value, kind, node)
            for (name, kind), value in given
        }
        if callee.has_code:
            return self.module.call(self.code, callee, list(arguments.values()))
        if callee in self._within:
            raise self.error(node, "a function with `Any` calls itself; give it types, or a loop")
        within = (*self._within, callee)
        return Expressions(self.module, self.code, callee, arguments, within).expanded()

    def expanded(self) -> Value:
        """The result of a function that is put where it is called: names, then a result."""
        for statement in self.source.tree.body:
            match statement:
                case ast.Expr(ast.Constant(str())):
                    pass
                case ast.Assign([ast.Name(name)], value):
                    self.constants[name] = self.value(value)
                case ast.Return(ast.expr() as result):
                    return self.value(result)
                case _:
                    raise self.error(
                        statement,
                        "a function with `Any` has names that get values, and then a result; "
                        "give its parameters types, or write one expression",
                    )
        raise self.error(self.source.tree, "it has no result; end it with `return`")

    def demand_stub(self, node: ast.AST) -> None:
        """Only a stub has a caller that it knows."""
        if not self.is_stub:
            raise self.error(node, "this is for stubs; mark the function with @stub")

    def _builtin(self, callee: object, values: list[Value], node: ast.Call) -> Value:
        """`int`, `len`, `min` and `max`."""
        if callee is len and len(values) == 1 and values[0].kind in (CELLS, MEMORY):
            return values[0].parts[1]
        if (callee is int and len(values) == 1) or (callee in (min, max) and len(values) > 1):
            numbers = [self.coerce(value, INT, node) for value in values]
            return functools.reduce(
                lambda left, right: self.extreme(callee is min, left, right, node), numbers
            )
        raise self.error(
            node,
            f"`{ast.unparse(node)}` is no call of the dialect; it has int(n), bool(n), "
            "len(cells), and min and max of two integers or more",
        )

    def _floating(self, operation: str, bits: int, words: list[str]) -> Value:
        """Arithmetic of numbers of `bits` bits, as which integers are taken."""
        code = self.code
        kind = "double" if bits == 64 else "float"
        if bits != 64:
            words = [code.let(f"trunc i64 {word} to i{bits}").text for word in words]
        first, second = (code.let(f"bitcast i{bits} {word} to {kind}").text for word in words)
        result = code.let(f"{operation} {kind} {first}, {second}").text
        found = code.let(f"bitcast {kind} {result} to i{bits}")
        return found if bits == 64 else code.let(f"zext i{bits} {found.text} to i64")

    def _bits_in(
        self, memory: Value, place: Value, bits: Value, new: Sequence[Value], node: ast.Call
    ) -> Value:
        """`peek_in` and, with a new value, `poke_in`."""
        width = bits.number
        widths = (8, 16, 32) if new else (8, 16, 32, 64)
        if memory.kind is not MEMORY or width is None or width not in widths:
            raise self.error(node, "this takes Memory, a place, and how many bits, written there")
        code = self.code
        where = self.byte(memory, self.coerce(place, INT, node), width >> 3, node)
        for given in new:
            value = code.let(f"trunc i64 {self.coerce(given, INT, node).text} to i{width}")
            code.put(f"store i{width} {value.text}, ptr {where}, align 1")
            return Value("", NOTHING)
        value = code.let(f"load i{width}, ptr {where}, align 1")
        return value if width == 64 else code.let(f"zext i{width} {value.text} to i64")

    def _raw(self, name: str, values: list[Value], node: ast.Call) -> Value:
        """Memory and C functions by their addresses: see `trapgate.compiler.raw`."""
        code = self.code
        if name == "call" and len(values) == 2 and values[1].kind.elements:
            address = self.coerce(values[0], INT, node).text
            words = [self.coerce(part, INT, node).text for part in values[1].parts]
            given = ", ".join(f"i64 {word}" for word in words)
            return code.let(f"call i64 {code.pointer(address)}({given})")
        if name == "return_address" and not values:
            self.demand_stub(node)
            where = code.let("call ptr @llvm.returnaddress(i32 0)").text
            return code.let(f"ptrtoint ptr {where} to i64")
        if name == "watched" and [value.kind for value in values] == [MEMORY]:
            return self.watch(values[0])
        if name in ("peek_in", "poke_in") and len(values) == (3 if name == "peek_in" else 4):
            return self._bits_in(values[0], values[1], values[2], values[3:], node)
        words = [self.coerce(value, INT, node).text for value in values]
        if (name, len(words)) == ("memory", 3):
            return code.memory(code.pointer(words[0]), words[1], code.pointer(words[2]))
        if (name, len(words)) in (("cells", 2), ("table", 3)):
            kind = CELLS if name == "cells" else ROWS
            return code.array(kind, code.pointer(words[0]), *words[1:])
        if name in _FLOATING and len(words) == 2:
            return self._floating(*_FLOATING[name], words)
        width = name[4:]
        if name.startswith("peek") and len(words) == 1:
            value = code.let(f"load i{width}, ptr {code.pointer(words[0])}, align 1")
            return value if width == "64" else code.let(f"zext i{width} {value.text} to i64")
        if name.startswith("poke") and len(words) == 2:
            if width != "64":
                words[1] = code.let(f"trunc i64 {words[1]} to i{width}").text
            code.put(f"store i{width} {words[1]}, ptr {code.pointer(words[0])}, align 1")
            return Value("", NOTHING)
        raise self.error(
            node, f"`{ast.unparse(node)}` is no call of the dialect; see compiler/raw.py"
        )
