"""The clauses that tables for some rules could be made of.

These are the rules' own clauses and their opposites, and those that could replace several clauses:

* every range between the bounds that the rules compare a value with;
* every mask and match over the bits that they look at;
* every set of the few numbers that they name;
* that a fault has a value at all.

For a value of three bits or fewer, all ranges, masks and matches are candidates.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Final

from trapgate.criteria.errors import CriteriaError
from trapgate.decision import fault_values as fv
from trapgate.decision.condition_rules import holds
from trapgate.decision.criteria_rules import Clause, Operator, Rule
from trapgate.decision.fault_values import FaultValue
from trapgate.errors import suggestion

_WORD: Final = (1 << 64) - 1
_MOST_BOUNDS = 9
_MOST_BITS = 5
_MOST_MEMBERS = 5
_NARROW = 3
_WIDEST_BITMAP = 13
"""Bits of a value that a bitmap of a kilobyte has room for."""
ALL_OPERATORS: Final = frozenset(Operator)


def operators_named(names: Collection[str] | None) -> frozenset[Operator]:
    """The operators of that name, as in "in-range"; all without any.

    Raises: CriteriaError for a name that is none.
    """
    known = {one.name.lower().replace("_", "-"): one for one in Operator}
    for name in names or ():
        if name not in known:
            raise CriteriaError(f"{name!r}: {suggestion(name, known)}", field="operator")
    return frozenset(known[name] for name in names) if names else ALL_OPERATORS


def candidates(
    rules: Iterable[Rule], operators: Collection[Operator] = ALL_OPERATORS
) -> tuple[Clause, ...]:
    """The clauses, plain ones first, of the given operators alone."""
    clauses = list(dict.fromkeys(clause for rule in rules for clause in rule.clauses))
    values = list(dict.fromkeys(clause.value for clause in clauses))
    found: dict[Clause, None] = {}
    for value in values:
        mine = [clause for clause in clauses if clause.value == value]
        for clause in (*mine, *_of_value(value, mine)):
            if clause.operator in operators:
                found.setdefault(clause)
                found.setdefault(replace(clause, negated=not clause.negated))
    return tuple(_without_twins(found))


def _of_value(value: FaultValue, mine: list[Clause]) -> Iterator[Clause]:
    # Every fault that has the value satisfies the first.
    yield Clause(value, Operator.BELOW_OR_EQUAL, (1 << value.width) - 1)
    if value.width <= _NARROW:
        bounds, bits = list(range(1 << value.width)), list(range(value.width))
    else:
        bounds, bits = sorted(_bounds(mine)), sorted(_bits(mine))
    if len(bounds) <= _MOST_BOUNDS:
        ends = [*bounds, 1 << value.width]
        for low, high in combinations(ends, 2):
            yield _range(value, low, high - 1)
        if bounds and bounds[0] > 0:
            yield _range(value, 0, bounds[0] - 1)
    if len(bits) <= _MOST_BITS:
        for chosen in _subsets(bits):
            mask = sum(1 << bit for bit in chosen)
            for some in ((), *_subsets(chosen)):
                match = sum(1 << bit for bit in some)
                yield Clause(value, Operator.EQUAL, match, mask=mask)
    members = sorted({c.operand for c in mine if c.operator == Operator.EQUAL and c.mask == _WORD})
    if value.width <= _WIDEST_BITMAP and len(members) <= _MOST_MEMBERS:
        for some in _subsets(members):
            if len(some) > 1 and some[-1] - some[0] >= len(some):
                yield Clause(value, Operator.IN_BITMAP, bitmap=_bitmap(some))


def _range(value: FaultValue, low: int, high: int) -> Clause:
    if low == high:
        return Clause(value, Operator.EQUAL, low)
    if low == 0:
        return Clause(value, Operator.BELOW_OR_EQUAL, high)
    if high == (1 << value.width) - 1:
        return Clause(value, Operator.BELOW, low, negated=True)
    return Clause(value, Operator.IN_RANGE, low, high)


def _bounds(clauses: Iterable[Clause]) -> set[int]:
    """Where the truth of comparisons of the whole value changes."""
    found: set[int] = set()
    for clause in clauses:
        if clause.mask != _WORD:
            continue
        match clause.operator:
            case Operator.EQUAL:
                found |= {clause.operand, clause.operand + 1}
            case Operator.BELOW:
                found.add(clause.operand)
            case Operator.BELOW_OR_EQUAL:
                found.add(clause.operand + 1)
            case Operator.IN_RANGE:
                found |= {clause.operand, clause.limit + 1}
    width = next((clause.value.width for clause in clauses), 64)
    return {bound for bound in found if 0 < bound < 1 << width}


def _bits(clauses: Iterable[Clause]) -> set[int]:
    """The bits that are looked at one by one."""
    found = 0
    for clause in clauses:
        if clause.operator in (Operator.ANY_BIT, Operator.ALL_BITS):
            found |= clause.operand & clause.mask
        elif clause.operator == Operator.EQUAL and clause.mask != _WORD:
            found |= clause.mask
    return {bit for bit in range(64) if found >> bit & 1}


def _subsets(items: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for count in range(1, len(items) + 1):
        yield from combinations(items, count)


def _bitmap(numbers: tuple[int, ...]) -> bytes:
    bits = bytearray((max(numbers) >> 3) + 1)
    for number in numbers:
        bits[number >> 3] |= 1 << (number & 7)
    return bytes(bits)


def _without_twins(clauses: Iterable[Clause]) -> Iterator[Clause]:
    """The first of each set of equivalent clauses on a narrow value."""
    seen: set[tuple[int, tuple[bool, ...]]] = set()
    for clause in clauses:
        if clause.value.width <= _NARROW:
            says = tuple(
                holds(clause, lambda _, number=number: number)  # type: ignore[misc]
                for number in range(1 << clause.value.width)
            )
            if (clause.value.number, says) in seen or not any(says):
                continue
            seen.add((clause.value.number, says))
        yield clause


OF_EXCEPTIONS: Final = (
    Clause(fv.BY_NAME["type"], Operator.EQUAL, 3),
    Clause(fv.BY_NAME["type"], Operator.IN_RANGE, 5, 6),
)
"""What tells exceptions, of the hardware and of instructions, from interrupts."""
