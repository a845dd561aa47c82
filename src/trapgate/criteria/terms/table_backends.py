"""A criteria table on other backends than the processor: arrays, columns, bit-vectors.

The operators are the expressions of `clauses`, the very ones that the processor runs; a
`Backend` only says how truth values are combined there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trapgate.decision.clauses import all_bits, any_bit, below_64, in_range, is_equal, masked
from trapgate.decision.conditions import AllOf, Condition
from trapgate.decision.criteria_rules import Action, Clause, Operator, Rule
from trapgate.decision.fault_values import FaultValue


@dataclass(frozen=True)
class Backend:
    """How one backend writes constants of 64 bits and combines truth values.

    `number` makes a constant of an unsigned number, `choose` is `then if condition else
    otherwise`, `member` whether the bit of that number is set in a bitmap.
    """

    number: Callable[[int], Any]
    both: Callable[[Any, Any], Any]
    either: Callable[[Any, Any], Any]
    inverse: Callable[[Any], Any]
    choose: Callable[[Any, Any, Any], Any]
    member: Callable[[Any, bytes], Any]
    true: Any = True


def arrays() -> Backend:
    """NumPy arrays of unsigned 64-bit numbers."""

    def member(value: Any, bitmap: bytes) -> Any:
        bits = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little").astype(np.bool_)
        inside = value < len(bits)
        return inside & bits[np.where(inside, value, 0).astype(np.int64)]

    return Backend(
        number=np.uint64,
        both=np.logical_and,
        either=np.logical_or,
        inverse=np.logical_not,
        choose=np.where,
        member=member,
    )


def terms() -> Backend:
    """Bit-vectors of z3, 64 bits wide."""
    import z3

    def member(value: Any, bitmap: bytes) -> Any:
        numbers = [n for n in range(8 * len(bitmap)) if bitmap[n >> 3] >> (n & 7) & 1]
        return z3.Or([value == n for n in numbers])

    return Backend(
        number=lambda number: z3.BitVecVal(number, 64),
        both=z3.And,
        either=z3.Or,
        inverse=z3.Not,
        choose=z3.If,
        member=member,
        true=z3.BoolVal(True),
    )


Fetch = Callable[[FaultValue], tuple[Any, Any]]
"""Whether faults have a value, and the value, both in the backend's kind."""


def clause_in(clause: Clause, fetch: Fetch, backend: Backend) -> Any:
    """Where a clause holds. Its numbers may be terms of the backend as well as integers."""

    def number(value: Any) -> Any:
        return backend.number(value) if isinstance(value, int) else value

    present, whole = fetch(clause.value)
    mask: Any = clause.mask  # perhaps a term, whose == is not a truth value
    everything = isinstance(mask, int) and mask == (1 << 64) - 1
    value = whole if everything else masked(whole, number(mask))
    operand, limit = number(clause.operand), number(clause.limit)
    ones, sign = backend.number((1 << 64) - 1), backend.number(1 << 63)
    match clause.operator:
        case Operator.EQUAL:
            holds = is_equal(value, operand)
        case Operator.BELOW:
            holds = below_64(value, operand, ones, sign)
        case Operator.BELOW_OR_EQUAL:
            holds = backend.inverse(below_64(operand, value, ones, sign))
        case Operator.IN_RANGE:
            holds = in_range(value, operand, limit, ones, sign)
        case Operator.ANY_BIT:
            holds = any_bit(value, operand)
        case Operator.ALL_BITS:
            holds = all_bits(value, operand)
        case _:
            holds = backend.member(value, clause.bitmap)
    return backend.both(present, backend.inverse(holds) if clause.negated else holds)


def condition_in(condition: Condition, fetch: Fetch, backend: Backend) -> Any:
    """Where a condition holds."""
    if isinstance(condition, Clause):
        return clause_in(condition, fetch, backend)
    together = isinstance(condition, AllOf)
    holds = backend.true if together else backend.inverse(backend.true)
    for part in condition.parts:
        truth = condition_in(part, fetch, backend)
        holds = backend.both(holds, truth) if together else backend.either(holds, truth)
    return holds


def rule_in(rule: Rule, fetch: Fetch, backend: Backend) -> Any:
    """Where all clauses of a rule hold."""
    holds = backend.true
    for clause in rule.clauses:
        holds = backend.both(holds, clause_in(clause, fetch, backend))
    return holds


def table_in(rules: Sequence[Rule], fetch: Fetch, backend: Backend, otherwise: Any) -> Any:
    """What the table does, as numbers of `Action`; `otherwise` where no rule matches."""
    result = otherwise
    for rule in reversed(rules):
        result = backend.choose(
            rule_in(rule, fetch, backend), backend.number(Action(rule.action).value), result
        )
    return result
