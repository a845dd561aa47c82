"""Conditions on the fault information, such as `vector == PF and write and address < 0x1000`.

The syntax is Python's, of which only this is allowed:

* the names of values (`fault_values.VALUES`), compared with numbers by `==`, `!=`, `<`, `<=`, `>`,
  `>=`, also in chains (`0x1000 <= address < 0x2000`) and after `& NUMBER` or `>> NUMBER`;
* `VALUE in (1, 2, 3)`, `VALUE in range(START, END)`, `rip in symbol("copy_from_user")`,
  `VALUE in bitmap("NAME")`, and `not in`;
* the bits of a page fault's error code by their names (`write`, `user`, `present`, ...);
* `present(VALUE)` and `writable(VALUE)` for the bits of table entries, `bit(VALUE, NUMBER)`;
* `and`, `or`, `not`, parentheses, `all` and `none`.

Numbers may be vectors by their mnemonics (`PF`), event types (`nmi`), modes (`mode_64_bit`),
exit reasons (`HLT`), accesses to table registers (`LGDT`) and what switches tasks (`by_gate`), each
beside the value that is one.
A comparison of a value that the fault does not have is false, and so is its opposite (¶32).
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from trapgate.decision import fault_values as fv
from trapgate.decision.condition_names import CONSTANTS, KINDS
from trapgate.decision.criteria_rules import WORD, Clause, Operator
from trapgate.errors import TrapgateError, suggestion

_LONGEST = 20_000
_DEEPEST = 100

PAGE_FAULT_BITS: Final = {
    "present": 0,
    "write": 1,
    "user": 2,
    "reserved": 3,
    "fetch": 4,
    "protection_key": 5,
    "shadow_stack": 6,
    "hlat": 7,
    "sgx": 15,
}
"""The bits of a page fault's error code (SDM, "Page-Fault Error Code")."""

_ENTRY_BITS = {"present": 0, "writable": 1, "user": 2, "accessed": 5, "dirty": 6, "large": 7}


class ConditionError(TrapgateError):
    """A condition that cannot be read; the message says where, and what is there instead.

    `column` is where in the text, counted from 1.
    """

    def __init__(self, message: str, column: int = 0) -> None:
        self.column = column
        super().__init__(f"column {column}: {message}" if column else message)


@dataclass(frozen=True)
class Names:
    """What conditions may name: `symbols` with start and end (not included), and `bitmaps`.

    `values` are the fault information that they may be about. `bits` are the masks of
    the error code's bits, if they are not a page fault's.
    """

    symbols: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    bitmaps: Mapping[str, bytes] = field(default_factory=dict)
    values: Mapping[str, fv.FaultValue] = field(default_factory=lambda: fv.BY_NAME)
    bits: Mapping[str, int] | None = None

    def bit(self, name: str) -> Clause | None:
        """The condition that a named error-code bit is set; None if no bit has the name."""
        if self.bits is not None:
            mask = self.bits.get(name.lower())
            return None if mask is None else Clause(fv.BY_NAME["code"], Operator.ANY_BIT, mask)
        if name not in PAGE_FAULT_BITS:
            return None
        return _bit(fv.BY_NAME["page_fault_code"], PAGE_FAULT_BITS[name])

    def about_faults(self) -> Names:
        """The same names for conditions that no instruction or platform event comes before."""
        of_faults = {
            name: value for name, value in self.values.items() if value not in fv.OF_INSTRUCTIONS
        }
        return replace(self, values=of_faults)

    @property
    def bit_names(self) -> tuple[str, ...]:
        """The names of bits."""
        return tuple(PAGE_FAULT_BITS if self.bits is None else self.bits)


@dataclass(frozen=True)
class AllOf:
    """All parts hold; without parts it holds always."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class AnyOf:
    """One of the parts holds; without parts it never does."""

    parts: tuple[Condition, ...]


Condition = AllOf | AnyOf | Clause
"""A condition that was read. Opposites are inside the clauses."""

ALWAYS: Final = AllOf(())
NEVER: Final = AnyOf(())


def parse(text: str, names: Names | None = None) -> Condition:
    """Read a condition. Raises ConditionError."""
    if len(text) > _LONGEST:
        raise ConditionError(f"{len(text)} characters; keep a condition below {_LONGEST}")
    # It may have several lines; columns are counted in what one line would be.
    stripped = " ".join(text.strip().splitlines())
    try:
        tree = ast.parse(stripped, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = getattr(error, "offset", None) or len(stripped) + 1
        raise ConditionError(
            "this is not a condition; write one like cpl == 3 and write", column
        ) from None
    return _Reader(stripped, names or Names()).condition(tree, 0)


def opposite(condition: Condition) -> Condition:
    """What holds where `condition` does not, of the faults that have its values."""
    if isinstance(condition, AllOf):
        return AnyOf(tuple(map(opposite, condition.parts)))
    if isinstance(condition, AnyOf):
        return AllOf(tuple(map(opposite, condition.parts)))
    return replace(condition, negated=not condition.negated)


class _Reader:
    """Reads one text; it is kept for the columns of errors."""

    def __init__(self, text: str, names: Names) -> None:
        self._text = text
        self._names = names

    def _wrong(self, node: ast.expr, problem: str) -> ConditionError:
        # ast counts bytes of UTF-8.
        ahead = self._text.encode().splitlines()[: node.lineno]
        column = len(ahead[-1][: node.col_offset].decode(errors="ignore")) + 1
        return ConditionError(problem, column)

    def condition(self, node: ast.expr, depth: int) -> Condition:
        if depth > _DEEPEST:
            raise self._wrong(node, "nested too deeply; write several rules")
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = tuple(self.condition(value, depth + 1) for value in values)
                return AllOf(parts) if isinstance(op, ast.And) else AnyOf(parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return opposite(self.condition(operand, depth + 1))
            case ast.Constant(value=bool(truth)):
                return ALWAYS if truth else NEVER
            case ast.Name(id="all"):
                return ALWAYS
            case ast.Name(id="none"):
                return NEVER
            case ast.Name(id=name):
                bit = self._names.bit(name)
                if bit is not None:
                    return bit
                known = [*self._names.bit_names, "all", "none"]
                if name in self._names.values:
                    raise self._wrong(node, f"compare {name} with a number")
                raise self._wrong(node, f"nothing is called {name}; {suggestion(name, known)}")
            case ast.Compare(left=left, ops=ops, comparators=rights):
                sides = [left, *rights]
                parts = tuple(
                    self._comparison(a, op, b) for a, op, b in zip(sides, ops, rights, strict=False)
                )
                return parts[0] if len(parts) == 1 else AllOf(parts)
            case ast.Call():
                return self._called(node)
            case _:
                raise self._wrong(
                    node,
                    f"{ast.unparse(node)[:60]!r} is not a condition; "
                    "use comparisons, and, or, not, and the names of error-code bits",
                )

    def _called(self, node: ast.Call) -> Condition:
        match node:
            case ast.Call(func=ast.Name(id=name), args=[value], keywords=[]) if name in _ENTRY_BITS:
                return _bit(self._value(value), _ENTRY_BITS[name])
            case ast.Call(func=ast.Name(id="bit"), args=[value, number], keywords=[]):
                what = self._value(value)
                place = self._plain(number)
                if place >= what.width:
                    raise self._wrong(number, f"{what.name} has {what.width} bits, from 0 on")
                return _bit(what, place)
        known = [*_ENTRY_BITS, "bit"]
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        raise self._wrong(node, f"{name}(...) is unknown; {suggestion(name, known)}")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Condition:
        if isinstance(op, ast.In | ast.NotIn):
            what, mask, shift = self._operand(left)
            held = self._member(what, mask, shift, right)
            return opposite(held) if isinstance(op, ast.NotIn) else held
        kind = type(op)
        if kind not in _MIRRORED:
            raise self._wrong(right, "compare with ==, !=, <, <=, >, >= or in")
        if not self._is_value(left) and self._is_value(right):
            left, right, kind = right, left, _MIRRORED[kind]
        what, mask, shift = self._operand(left)
        number = self._fitting(right, what, shift)
        operator, negated = _OPERATORS[kind]
        if operator is Operator.EQUAL:
            return replace(_between(what, number, number, mask, shift), negated=negated)
        # Of the bits that a shift drops, the greatest number has all.
        low = number << shift
        operand = low if operator is Operator.BELOW else low | (1 << shift) - 1
        return Clause(what, operator, operand, mask=mask, negated=negated)

    def _member(self, what: fv.FaultValue, mask: int, shift: int, node: ast.expr) -> Condition:
        match node:
            case ast.Tuple(elts=elements) | ast.List(elts=elements) | ast.Set(elts=elements):
                numbers = sorted({self._fitting(element, what, shift) for element in elements})
                return AnyOf(
                    tuple(_between(what, low, high, mask, shift) for low, high in _runs(numbers))
                )
            case ast.Call(func=ast.Name(id="range"), args=[start, end], keywords=[]):
                low, high = self._fitting(start, what, shift), self._fitting(end, what, shift)
                if low >= high:
                    return NEVER
                return _between(what, low, high - 1, mask, shift)
            case ast.Call() if shift:
                raise self._wrong(node, "no >> before this; name the value itself")
            case ast.Call(func=ast.Name(id="symbol"), args=[ast.Constant(value=str(name))]):
                if name not in self._names.symbols:
                    raise self._unknown(node, "symbol", name, self._names.symbols)
                if what.width < 64:
                    raise self._wrong(
                        node, f"symbols are addresses, and {what.name} has {what.width} bits"
                    )
                low, high = self._names.symbols[name]
                return Clause(what, Operator.IN_RANGE, low, high - 1, mask)
            case ast.Call(func=ast.Name(id="bitmap"), args=[ast.Constant(value=str(name))]):
                if name not in self._names.bitmaps:
                    raise self._unknown(node, "bitmap", name, self._names.bitmaps)
                bits = self._names.bitmaps[name]
                return Clause(what, Operator.IN_BITMAP, mask=mask, bitmap=bits)
        raise self._wrong(
            node, 'write in (1, 2), in range(1, 9), in symbol("name") or in bitmap("name")'
        )

    def _unknown(
        self, node: ast.expr, kind: str, name: str, known: Mapping[str, object]
    ) -> ConditionError:
        if not known:
            return self._wrong(node, f"there is no {kind} {name!r}: no {kind}s are given")
        return self._wrong(node, f"there is no {kind} {name!r}; {suggestion(name, known)}")

    def _is_value(self, node: ast.expr) -> bool:
        if isinstance(node, ast.BinOp):
            node = node.left
        return isinstance(node, ast.Name) and node.id in self._names.values

    def _operand(self, node: ast.expr) -> tuple[fv.FaultValue, int, int]:
        """(the value, the mask before a comparison, how far it is shifted to the right)."""
        match node:
            case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
                what = self._value(left)
                return what, self._fitting(right, what), 0
            case ast.BinOp(left=left, op=ast.RShift(), right=right):
                what = self._value(left)
                shift = self._plain(right)
                if shift >= what.width:
                    raise self._wrong(right, f"{what.name} has {what.width} bits")
                return what, WORD, shift
            case ast.BinOp():
                raise self._wrong(
                    node, "only & NUMBER or >> NUMBER can stand between a value and a comparison"
                )
        return self._value(node), WORD, 0

    def _value(self, node: ast.expr) -> fv.FaultValue:
        if isinstance(node, ast.Name):
            values = self._names.values
            if node.id in values:
                return values[node.id]
            known = [*values, *self._names.bit_names]
            problem = f"no value is called {node.id}; {suggestion(node.id, known)}"
            if node.id in fv.BY_NAME:
                problem = f"{node.id} cannot be used in this condition; {_names_in(values)}"
            if self._names.bit(node.id) is not None:
                problem = f"{node.id} is a bit: it stands alone, or behind 'not'"
            raise self._wrong(node, problem)
        raise self._wrong(
            node, f"{ast.unparse(node)[:60]!r} is not a value of the fault information"
        )

    def _fitting(self, node: ast.expr, what: fv.FaultValue, shift: int = 0) -> int:
        number = self._number(node)
        if isinstance(node, ast.Name):
            kind = next(kind for kind in KINDS if node.id in kind.numbers)
            if what.number not in kind.of:
                fitting = " or ".join(fv.VALUES[one].name for one in kind.of)
                raise self._wrong(
                    node, f"{node.id} is {kind.words}, and {what.name} is none; compare {fitting}"
                )
        if number >> what.width - shift:
            left = f" left after >> {shift}" if shift else ""
            raise self._wrong(
                node,
                f"{number:#x} is too wide: {what.name} has {what.width - shift} bits{left}",
            )
        return number

    def _plain(self, node: ast.expr) -> int:
        """A number without a name: of a bit, or how far to shift."""
        if isinstance(node, ast.Name):
            raise self._wrong(node, f"{node.id} is not a number here; write 10 or 0xA")
        return self._number(node)

    def _number(self, node: ast.expr) -> int:
        match node:
            case ast.Constant(value=value) if type(value) is int and 0 <= value <= WORD:
                return value
            case ast.Name(id=name) if name in CONSTANTS:
                return CONSTANTS[name]
            case ast.Name(id=name):
                raise self._wrong(
                    node, f"no number is called {name}; {suggestion(name, CONSTANTS)}"
                )
        raise self._wrong(
            node,
            f"{ast.unparse(node)[:60]!r} is not an unsigned number of 64 bits; write 10 or 0xA",
        )


def _names_in(values: Mapping[str, object]) -> str:
    few = list(values)[:6]
    more = f" or {len(values) - len(few)} more" if len(values) > len(few) else ""
    return f"compare {', '.join(few)}{more}"


_OPERATORS: dict[type[ast.cmpop], tuple[Operator, bool]] = {
    ast.Eq: (Operator.EQUAL, False),
    ast.NotEq: (Operator.EQUAL, True),
    ast.Lt: (Operator.BELOW, False),
    ast.LtE: (Operator.BELOW_OR_EQUAL, False),
    ast.Gt: (Operator.BELOW_OR_EQUAL, True),
    ast.GtE: (Operator.BELOW, True),
}
_MIRRORED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Lt: ast.Gt,
    ast.LtE: ast.GtE,
    ast.Gt: ast.Lt,
    ast.GtE: ast.LtE,
}


def _bit(what: fv.FaultValue, number: int) -> Clause:
    return Clause(what, Operator.ANY_BIT, 1 << number)


def _between(what: fv.FaultValue, low: int, high: int, mask: int, shift: int) -> Clause:
    """The condition that a value, shifted to the right, is from `low` to `high`."""
    low, high = low << shift, (high << shift) | (1 << shift) - 1
    if low == high:
        return Clause(what, Operator.EQUAL, low, mask=mask)
    return Clause(what, Operator.IN_RANGE, low, high, mask)


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as the first and last of each run without a gap."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs
