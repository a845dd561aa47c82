"""What is made of a condition: rules of a criteria table, an answer for one fault, or text."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from trapgate.decision import fault_values as fv
from trapgate.decision.condition_names import NUMBER_NAMES
from trapgate.decision.conditions import (
    PAGE_FAULT_BITS,
    AllOf,
    AnyOf,
    Condition,
    ConditionError,
)
from trapgate.decision.criteria_rules import WORD, Action, Clause, Operator, Rule

_MOST_RULES = 4096


def rules_for(condition: Condition, action: Action) -> tuple[Rule, ...]:
    """Rules that do `action` where `condition` holds: one for each way in which it can.

    Raises ConditionError if there are more ways than a table could hold.
    """
    ways = _disjuncts(condition)
    kept: list[frozenset[Clause]] = []
    for way in sorted(set(ways), key=len):
        if not any(other <= way for other in kept):
            kept.append(way)
    order = {clause: n for n, clause in enumerate(_clauses(condition))}
    return tuple(Rule(action, tuple(sorted(way, key=order.__getitem__))) for way in kept)


def _disjuncts(condition: Condition) -> list[frozenset[Clause]]:
    """The disjunctive normal form: sets of clauses that make the condition hold."""
    if isinstance(condition, Clause):
        return [frozenset([condition])]
    if isinstance(condition, AnyOf):
        ways = [way for part in condition.parts for way in _disjuncts(part)]
    else:
        ways = [frozenset()]
        for part in condition.parts:
            ways = _limited([one | other for one in ways for other in _disjuncts(part)])
    return _limited([way for way in ways if not _contradicts(way)])


def _limited(ways: list[frozenset[Clause]]) -> list[frozenset[Clause]]:
    if len(ways) > _MOST_RULES:
        raise ConditionError(f"it holds in more than {_MOST_RULES} ways; write it more plainly")
    return ways


def _contradicts(way: frozenset[Clause]) -> bool:
    return any(replace(clause, negated=not clause.negated) in way for clause in way)


def _clauses(condition: Condition) -> list[Clause]:
    if isinstance(condition, Clause):
        return [condition]
    return list(dict.fromkeys(clause for part in condition.parts for clause in _clauses(part)))


Fetch = Callable[[fv.FaultValue], int | None]
"""What a fault's value is, None if it does not have it."""

_TESTS: Final[Mapping[Operator, Callable[[int, Clause], bool]]] = {
    Operator.EQUAL: lambda value, clause: value == clause.operand,
    Operator.BELOW: lambda value, clause: value < clause.operand,
    Operator.BELOW_OR_EQUAL: lambda value, clause: value <= clause.operand,
    Operator.IN_RANGE: lambda value, clause: clause.operand <= value <= clause.limit,
    Operator.ANY_BIT: lambda value, clause: value & clause.operand != 0,
    Operator.ALL_BITS: lambda value, clause: value & clause.operand == clause.operand,
    Operator.IN_BITMAP: lambda value, clause: (
        value < 8 * len(clause.bitmap) and clause.bitmap[value >> 3] >> (value & 7) & 1 != 0
    ),
}


def holds(condition: Condition, fetch: Fetch) -> bool:
    """Whether a condition holds for one fault."""
    if isinstance(condition, AllOf):
        return all(holds(part, fetch) for part in condition.parts)
    if isinstance(condition, AnyOf):
        return any(holds(part, fetch) for part in condition.parts)
    value = fetch(condition.value)
    if value is None:
        return False
    return _TESTS[condition.operator](value & condition.mask, condition) != condition.negated


def condition_text(condition: Condition, bitmaps: Mapping[bytes, str] | None = None) -> str:
    """The condition as text that `conditions.parse` reads back to the same meaning.

    `bitmaps` has their names; one without a name is described, and cannot be read back.
    """
    if isinstance(condition, Clause):
        return _clause_words(condition, bitmaps or {})
    if not condition.parts:
        return "all" if isinstance(condition, AllOf) else "none"
    joint = " and " if isinstance(condition, AllOf) else " or "
    return joint.join(
        f"({condition_text(part, bitmaps)})"
        if isinstance(part, AllOf | AnyOf) and len(part.parts) > 1
        else condition_text(part, bitmaps)
        for part in condition.parts
    )


def _clause_words(clause: Clause, bitmaps: Mapping[bytes, str]) -> str:
    name = clause.value.name
    masked = name if clause.mask == WORD else f"{name} & {_shown(clause, clause.mask)}"
    operand = _shown(clause, clause.operand)
    single = clause.operand & clause.operand - 1 == 0 and clause.operand & clause.mask != 0
    match clause.operator:
        case Operator.ANY_BIT if single:
            bit = clause.operand.bit_length() - 1
            names = {number: label for label, number in PAGE_FAULT_BITS.items()}
            if clause.value.number == fv.PAGE_FAULT_CODE and bit in names:
                text = names[bit]
            else:
                text = f"bit({name}, {bit})"
            return f"not {text}" if clause.negated else text
        case Operator.ANY_BIT:
            bits = _shown(clause, clause.operand & clause.mask)
            return f"{name} & {bits} {'==' if clause.negated else '!='} 0"
        case Operator.ALL_BITS:
            bits = _shown(clause, clause.operand & clause.mask)
            if clause.operand & ~clause.mask:
                return f"{name} & 0 {'==' if clause.negated else '!='} 0"
            return f"{name} & {bits} {'!=' if clause.negated else '=='} {bits}"
        case Operator.EQUAL:
            return f"{masked} {'!=' if clause.negated else '=='} {operand}"
        case Operator.BELOW:
            return f"{masked} {'>=' if clause.negated else '<'} {operand}"
        case Operator.BELOW_OR_EQUAL:
            return f"{masked} {'>' if clause.negated else '<='} {operand}"
        case Operator.IN_RANGE:
            limit = _shown(clause, clause.limit)
            if clause.negated:
                return f"not {operand} <= {masked} <= {limit}"
            return f"{operand} <= {masked} <= {limit}"
        case _:
            count = sum(byte.bit_count() for byte in clause.bitmap)
            described = f"{count} numbers below {8 * len(clause.bitmap)}"
            negated = "not in" if clause.negated else "in"
            return f'{masked} {negated} bitmap("{bitmaps.get(clause.bitmap, described)}")'


def _shown(clause: Clause, number: int) -> str:
    names = NUMBER_NAMES.get(clause.value.number, {})
    if number in names:
        return names[number]
    return f"{number:#x}" if number > 9 else str(number)
