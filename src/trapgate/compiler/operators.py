"""What the dialect's operators do with values: each is some instructions of LLVM.

All arithmetic is on 64 bits and wraps, all comparisons are signed. Nothing here knows names
or statements.
"""

import ast
import operator
from collections.abc import Callable

from trapgate.compiler.definitions import Definitions
from trapgate.compiler.kinds import (
    BOOL,
    CELLS,
    INT,
    MEMORY,
    ROWS,
    Kind,
    Value,
    integer,
    together,
)
from trapgate.compiler.routine import DialectError, Routine
from trapgate.compiler.text import Code, stores

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
_INSTEAD: dict[type[ast.AST], str] = {
    ast.Div: "write `//`, or `>>` for powers of two: there are no fractions",
    ast.Pow: "write `1 << n` for powers of two",
    ast.Is: "write `==`",
    ast.IsNot: "write `!=`",
}
_ADVICE = {
    (INT, BOOL): "; write `bool(...)` or a comparison",
    (MEMORY, CELLS): "; let the parameter be Memory",
    (ROWS, CELLS): "; let the parameter be Rows",
}


class Operators:
    """Operations on values, put into `code`, a part of `module`, for what `source` says."""

    def __init__(self, module: Definitions, code: Code, source: Routine) -> None:
        self.module = module
        self.code = code
        self.source = source

    def error(self, node: ast.AST, why: str) -> DialectError:
        """What is wrong with `node`."""
        return self.source.error(node, why)

    def _demand(self, comparison: str, node: ast.AST, what: str) -> None:
        """In a checked build, go on only if a condition holds."""
        if not self.module.checked:
            return
        onward, failed = self.code.name(), self.code.name()
        self.code.branch(self.code.let(comparison, BOOL), onward, failed)
        self.code.label(failed)
        where = f"{self.source.place(node)}: {self.source.function.__name__}"
        self.module.stop(self.code, f"{where}: {what}: {ast.unparse(node)}")
        self.code.label(onward)

    def coerce(self, value: Value, kind: Kind, node: ast.AST) -> Value:
        """`value` as one of `kind`: a boolean may stand for an integer."""
        if value.kind == kind:
            return value
        if (value.kind, kind) == (BOOL, INT):
            if value.number is not None:
                return integer(value.number)
            return self.code.let(f"zext i1 {value.text} to i64")
        if len(value.kind.elements) == len(kind.elements) > 0:
            pairs = zip(value.parts, kind.parts, strict=True)
            return together([self.coerce(part, wanted, node) for part, wanted in pairs])
        advice = _ADVICE.get((value.kind, kind), "")
        raise self.error(
            node, f"a value of type {value.kind.name} where {kind.name} is needed{advice}"
        )

    def is_true(self, value: Value, node: ast.AST) -> Value:
        """Whether a value counts as true."""
        if value.kind is BOOL:
            return value
        return self.compared("ne", self.coerce(value, INT, node), integer(0), node)

    def opposite(self, truth: Value) -> Value:
        """`not`, of a boolean."""
        return self.code.let(f"xor i1 {truth.text}, 1", BOOL)

    def comparison(self, op: ast.cmpop, left: Value, right: Value, node: ast.AST) -> Value:
        """The value of a comparison operator."""
        if type(op) not in _COMPARISONS:
            raise self._unknown(op, node, "comparison")
        return self.compared(_COMPARISONS[type(op)], left, right, node)

    def compared(self, predicate: str, left: Value, right: Value, node: ast.AST) -> Value:
        """A signed comparison of integers, or whether booleans are the same."""
        if not (left.kind is right.kind is BOOL and predicate in ("eq", "ne")):
            left, right = (self.coerce(value, INT, node) for value in (left, right))
        text = f"icmp {predicate} {left.kind.llvm} {left.text}, {right.text}"
        return self.code.let(text, BOOL)

    def signed(self, op: ast.unaryop, value: Value, node: ast.AST) -> Value:
        """The value of `-` or `~`."""
        if value.kind is not INT:
            advice = "; write `not`, or `int(...)`" if value.kind is BOOL else ""
            raise self.error(node, f"a value of type {value.kind.name} where int is needed{advice}")
        if isinstance(op, ast.USub):
            return self.combine(ast.Sub(), integer(0), value, node)
        if isinstance(op, ast.Invert):
            return self.combine(ast.BitXor(), value, integer(-1), node)
        raise self.error(node, "a sign that changes nothing; leave it out")

    def combine(self, op: ast.operator, left: Value, right: Value, node: ast.AST) -> Value:
        """Arithmetic on 64 bits that wraps; on booleans &, | and ^ give a boolean."""
        if left.kind is right.kind is BOOL and isinstance(op, _BITWISE):
            name, _ = _ARITHMETIC[type(op)]
            return self.code.let(f"{name} i1 {left.text}, {right.text}", BOOL)
        left, right = (self.coerce(value, INT, node) for value in (left, right))
        if isinstance(op, ast.Mod):
            return self._modulo(left, right, node)
        if isinstance(op, ast.FloorDiv):
            return self._quotient(left, right, node)
        if type(op) not in _ARITHMETIC:
            raise self._unknown(op, node, "operator")
        name, fold = _ARITHMETIC[type(op)]
        if isinstance(op, _SHIFTS):
            right = self._shift_count(right, node)
        if left.number is not None and right.number is not None:
            return integer(fold(left.number, right.number))
        return self.code.let(f"{name} i64 {left.text}, {right.text}")

    def _unknown(self, op: ast.AST, node: ast.AST, what: str) -> Exception:
        advice = _INSTEAD.get(type(op), "its operators are in docs/core-dialect.md")
        return self.error(node, f"{type(op).__name__} is no {what} of the dialect; {advice}")

    def _shift_count(self, count: Value, node: ast.AST) -> Value:
        if count.number is not None:
            if not 0 <= count.number < 64:
                raise self.error(node, f"a shift by {count.number} bits; a count is from 0 to 63")
            return count
        self._demand(f"icmp ult i64 {count.text}, 64", node, "shift count out of range")
        # As the processor does.
        return self.code.let(f"and i64 {count.text}, 63")

    def _division(self, left: Value, right: Value, node: ast.AST) -> tuple[Value, Value, Value]:
        """The divisor to use, the remainder that the processor gives, and whether to round down."""
        code = self.code
        zero = code.let(f"icmp eq i64 {right.text}, 0", BOOL)
        self._demand(f"icmp ne i64 {right.text}, 0", node, "modulo 0")
        # The remainder of the least number by -1 is 0, but srem has no result for it.
        unit = code.let(f"icmp eq i64 {right.text}, -1", BOOL)
        trivial = code.let(f"or i1 {zero.text}, {unit.text}", BOOL)
        divisor = code.let(f"select i1 {trivial.text}, i64 1, i64 {right.text}")
        rest = code.let(f"srem i64 {left.text}, {divisor.text}")
        signs = code.let(f"xor i64 {rest.text}, {divisor.text}")
        differ = code.let(f"icmp slt i64 {signs.text}, 0", BOOL)
        some = code.let(f"icmp ne i64 {rest.text}, 0", BOOL)
        return divisor, rest, code.let(f"and i1 {differ.text}, {some.text}", BOOL)

    def _modulo(self, left: Value, right: Value, node: ast.AST) -> Value:
        """The remainder, which has the divisor's sign; 0 where that is 0."""
        code = self.code
        divisor, rest, wrong = self._division(left, right, node)
        more = code.let(f"select i1 {wrong.text}, i64 {divisor.text}, i64 0")
        return code.let(f"add i64 {rest.text}, {more.text}")

    def _quotient(self, left: Value, right: Value, node: ast.AST) -> Value:
        """The quotient, rounded down; 0 where the divisor is 0. By -1 it wraps."""
        code = self.code
        divisor, _, wrong = self._division(left, right, node)
        toward_zero = code.let(f"sdiv i64 {left.text}, {divisor.text}")
        less = code.let(f"sext i1 {wrong.text} to i64")
        quotient = code.let(f"add i64 {toward_zero.text}, {less.text}")
        # By 0 and -1 it was divided by 1: what comes of that, times the divisor.
        factor = code.let(f"icmp eq i64 {divisor.text}, {right.text}", BOOL)
        by = code.let(f"select i1 {factor.text}, i64 1, i64 {right.text}")
        return code.let(f"mul i64 {quotient.text}, {by.text}")

    def extreme(self, least: bool, left: Value, right: Value, node: ast.AST) -> Value:
        """The lesser or the greater of two."""
        better = self.compared("slt" if least else "sgt", right, left, node)
        return self.code.let(f"select i1 {better.text}, i64 {right.text}, i64 {left.text}")

    # Tuples and arrays.

    def cell(self, array: Value, index: Value, node: ast.AST) -> Value:
        """The cell of an array, as a slot. Only checked code looks whether there is one."""
        if array.kind not in (CELLS, MEMORY):
            raise self.error(
                node, f"a {array.kind.name} has no cells; an index is for Cells, Rows or a tuple"
            )
        self._inside(index, "ult", array.parts[1], node)
        return self._at(array, index)

    def byte(self, memory: Value, place: Value, size: int, node: ast.AST) -> str:
        """The address of a byte of physical memory, where so many bytes are used."""
        code = self.code
        for offset in {0, size - 1}:
            last = code.let(f"add i64 {place.text}, {offset}")
            cell = code.let(f"ashr i64 {last.text}, 3")
            self._inside(cell, "ult", memory.parts[1], node)
        start = memory.parts[0]
        return code.let(f"getelementptr i8, ptr {start.text}, i64 {place.text}").text

    def tail(self, array: Value, first: Value, node: ast.AST) -> Value:
        """An array from one of its cells on, or from its end."""
        length = array.parts[1]
        self._inside(first, "ule", length, node)
        rest = self.combine(ast.Sub(), length, first, node)
        return self.code.array(CELLS, self._at(array, first).text, rest.text)

    def watch(self, memory: Value) -> Value:
        """The cells in which stores to memory are watched."""
        code = self.code
        place = memory.parts[2].text
        nobody = code.let(f"icmp eq ptr {place}, null", BOOL).text
        length = code.let(f"select i1 {nobody}, i64 0, i64 {(1 << 63) - 1}").text
        return code.array(CELLS, place, length)

    def row(self, rows: Value, index: Value, node: ast.AST) -> Value:
        """One row of an array of two dimensions."""
        assert rows.kind is ROWS
        self._inside(index, "ult", rows.parts[1], node)
        width = rows.parts[2]
        start = self.combine(ast.Mult(), index, width, node)
        return self.code.array(CELLS, self._at(rows, start).text, width.text)

    def _inside(self, index: Value, relation: str, length: Value, node: ast.AST) -> None:
        # Unsigned: a negative index is none at all.
        comparison = f"icmp {relation} i64 {index.text}, {length.text}"
        self._demand(comparison, node, "index out of range")

    def _at(self, array: Value, index: Value) -> Value:
        start = array.parts[0]
        return self.code.let(f"getelementptr i64, ptr {start.text}, i64 {index.text}")


class Alternatives:
    """A value that comes from one of several places; an integer if some are, else a boolean."""

    def __init__(self, body: Operators) -> None:
        self._body = body
        self._kept: list[tuple[int, Value]] = []
        self._kinds: set[Kind] = set()

    def keep(self, value: Value) -> None:
        """One of them, which is what counts if the code gets here."""
        self._kinds.add(value.kind)
        if not self._body.code.ended:
            self._kept.append((len(self._body.code.lines), value))

    def value(self, node: ast.expr) -> Value:
        """What was kept last."""
        kinds = self._kinds if len(self._kinds) == 1 else self._kinds - {BOOL}
        if len(kinds) != 1 or (self._kinds - kinds and kinds != {INT}):
            raise self._body.error(
                node, "the alternatives are of different types; make them one with int() or bool()"
            )
        code = self._body.code
        slot = code.slot(kinds.pop())
        # Of what kind they are together is known only now.
        for place, value in reversed(self._kept):
            if value.kind == slot.kind:
                code.insert(place, stores(value, slot))
            else:
                wide = Value(code.name(), INT)
                widened = f"{wide.text} = zext i1 {value.text} to i64"
                code.insert(place, [widened, *stores(wide, slot)])
        return code.load(slot)
