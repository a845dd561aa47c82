"""Rules of the criteria table as values, and their bytes (`decision.criteria_table` has the
format).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from trapgate.decision import criteria_table as table
from trapgate.decision.fault_values import OF_INSTRUCTIONS, VALUES, FaultValue
from trapgate.errors import TrapgateError

_WORD = 8
WORD: Final = (1 << 64) - 1
"""All bits of a value."""


class CriteriaTableError(TrapgateError):
    """A criteria table that is too long, cut off, or holds what no rule can; the message says
    what.
    """


class Action(IntEnum):
    """What a rule that matches does."""

    NEXT = table.NEXT
    """What the other fields of the VMCS say."""
    EXIT = table.RULE_EXIT
    DELIVER = table.RULE_DELIVER
    COMPLETE = table.RULE_COMPLETE


class Operator(IntEnum):
    """How a clause compares; all numbers are unsigned."""

    EQUAL = table.EQUAL
    BELOW = table.BELOW
    BELOW_OR_EQUAL = table.BELOW_OR_EQUAL
    IN_RANGE = table.IN_RANGE
    ANY_BIT = table.ANY_BIT
    ALL_BITS = table.ALL_BITS
    IN_BITMAP = table.IN_BITMAP


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition on one value of the fault information.

    The bits of `mask` of the value are compared with `operand`, or with `operand` to `limit`,
    both included. `bitmap` has bit n set if the clause holds for n; the other operands are not
    used then. `negated` turns the condition round; a value that the fault does not have never
    satisfies a clause.
    """

    value: FaultValue
    operator: Operator
    operand: int = 0
    limit: int = 0
    mask: int = WORD
    negated: bool = False
    bitmap: bytes = b""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is done with a fault for which all clauses hold."""

    action: Action
    clauses: tuple[Clause, ...] = ()

    @property
    def about_instructions(self) -> bool:
        """Whether it is about intercepted instructions and platform events, not about faults."""
        return any(clause.value in OF_INSTRUCTIONS for clause in self.clauses)


MOST_RULES: Final = table.MOST_RULES
"""Rules that the processor takes (the capability MSR says so too)."""


def encode(rules: Sequence[Rule]) -> bytes:
    """The bytes of a table. Raises CriteriaTableError if it has more than the processor takes."""
    if len(rules) > table.MOST_RULES:
        raise CriteriaTableError(f"{len(rules)} rules; at most {table.MOST_RULES} fit")
    behind = sum(_WORD + len(rule.clauses) * table.CLAUSE_BYTES for rule in rules)
    bitmaps: dict[bytes, int] = {}
    words: list[int] = []
    for rule in rules:
        if len(rule.clauses) > 0xFF:
            raise CriteriaTableError(f"a rule of {len(rule.clauses)} clauses; at most 255 fit")
        words.append(rule.action | len(rule.clauses) << 8)
        for clause in rule.clauses:
            operand, limit = clause.operand, clause.limit
            if clause.operator is Operator.IN_BITMAP:
                bits = clause.bitmap + bytes(-len(clause.bitmap) % _WORD)
                operand = bitmaps.setdefault(bits, behind)
                behind += len(bits) if operand == behind else 0
                limit = len(clause.bitmap) * 8
            negated = table.NEGATED if clause.negated else 0
            words += [
                clause.value.number | clause.operator << 8 | negated,
                clause.mask,
                operand,
                limit,
            ]
    data = b"".join((word & WORD).to_bytes(_WORD, "little") for word in words)
    data += b"".join(bitmaps)
    if len(data) > table.TABLE_BYTES:
        raise CriteriaTableError(f"{len(data)} bytes; at most {table.TABLE_BYTES} fit")
    return data


def decode(data: bytes, count: int) -> tuple[Rule, ...]:
    """The first `count` rules in a table's bytes. Raises CriteriaTableError for a bad one."""

    def word(offset: int, where: str) -> int:
        if offset + _WORD > len(data):
            raise CriteriaTableError(f"{where}: the table ends here")
        return int.from_bytes(data[offset : offset + _WORD], "little")

    rules = []
    offset = 0
    for number in range(count):
        head = word(offset, f"rule {number}")
        offset += _WORD
        if head >> 16 or head & 0xFF not in set(Action):
            raise CriteriaTableError(f"rule {number}: {head:#x} is not a rule's first word")
        clauses = []
        for n in range(head >> 8):
            where = f"rule {number}, clause {n}"
            kind, mask, operand, limit = (
                word(offset + _WORD * part, where) for part in range(table.CLAUSE_BYTES // _WORD)
            )
            offset += table.CLAUSE_BYTES
            what, operator = kind & 0xFF, kind >> 8 & 0xF
            if kind >> 13 or what >= len(VALUES) or operator not in set(Operator):
                raise CriteriaTableError(f"{where}: {kind:#x} is not the first word of a clause")
            bitmap = b""
            if operator == Operator.IN_BITMAP:
                if operand + (limit + 7) // 8 > len(data):
                    raise CriteriaTableError(f"{where}: the bitmap lies outside the table")
                bitmap = data[operand : operand + (limit + 7) // 8]
                operand = limit = 0
            clauses.append(
                Clause(
                    VALUES[what],
                    Operator(operator),
                    operand,
                    limit,
                    mask,
                    bool(kind & table.NEGATED),
                    bitmap,
                )
            )
        rules.append(Rule(Action(head & 0xFF), tuple(clauses)))
    return tuple(rules)
