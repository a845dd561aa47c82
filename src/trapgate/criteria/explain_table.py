"""What a criteria table does: rules in words, rules that never matter, an example for each claim.

Everything is proved by z3 of all faults that may happen (`fault_terms`), with the operators that
the processor runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trapgate.criteria.explain import Warn
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.terms.fault_terms import FaultTerms, fault_terms, in_words
from trapgate.criteria.terms.instruction_terms import instruction_in_words, instruction_terms
from trapgate.criteria.terms.search import Search
from trapgate.criteria.terms.table_backends import rule_in, terms
from trapgate.decision.condition_rules import condition_text
from trapgate.decision.conditions import AllOf
from trapgate.decision.criteria_rules import Rule


@dataclass(frozen=True)
class RuleReading:
    """One rule: `text` is its condition, `example` the values of a fault that it decides.

    `example` is None for a rule that decides none.
    """

    number: int
    action: str
    text: str
    example: dict[str, int] | None
    example_text: str = ""

    def line(self) -> str:
        """In words."""
        shown = f"; e.g. {self.example_text}" if self.example_text else ""
        return f"rule {self.number}: {self.action} if {self.text}{shown}"


@dataclass(frozen=True)
class TableReading:
    """A table read back, with warnings."""

    rules: tuple[RuleReading, ...]
    warnings: tuple[Warn, ...]

    def lines(self) -> list[str]:
        """In words."""
        return [one.line() for one in self.rules] + [
            f"  warning: {warning.text}" for warning in self.warnings
        ]

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rules": [vars(one) for one in self.rules],
            "warnings": [vars(warning) for warning in self.warnings],
        }


def read_table(rules: Sequence[Rule], *, timeout: float | None = None) -> TableReading:
    """The rules in words, each with a fault that it decides, and what is wrong with them.

    Rules about instructions are read by themselves, for no others meet what they decide.

    Raises: UndecidedError: z3 has no answer within `timeout` seconds. MissingSolverError.
    """
    deadline = Deadline(timeout)
    read: list[RuleReading] = []
    warnings: list[tuple[int, Warn]] = []
    for about_instructions, tell in ((False, in_words), (True, instruction_in_words)):
        numbers = [n for n, one in enumerate(rules) if one.about_instructions == about_instructions]
        if not numbers:
            continue
        events = instruction_terms() if about_instructions else fault_terms(rules)
        reader = _Reader([(n, rules[n]) for n in numbers], events, deadline, tell)
        for place in range(len(numbers)):
            one, found = reader.read(place)
            read.append(one)
            warnings += [(one.number, warning) for warning in found]
    read.sort(key=lambda one: one.number)
    warnings.sort(key=lambda one: one[0])
    return TableReading(tuple(read), tuple(warning for _, warning in warnings))


class _Reader:
    """Reads rules that may meet one another, given with their numbers in the table."""

    def __init__(
        self,
        rules: Sequence[tuple[int, Rule]],
        events: FaultTerms,
        deadline: Deadline,
        tell: Callable[[dict[str, int], frozenset[str]], str],
    ) -> None:
        self._rules = rules
        self._events = events
        self._search = Search(events, deadline)
        self._tell = tell
        self._matches = [rule_in(rule, events.fetch, terms()) for _, rule in rules]

    def read(self, place: int) -> tuple[RuleReading, list[Warn]]:
        """The rule at a place in words, and what there is to warn of."""
        z3 = z3_module()
        number, rule = self._rules[place]
        matches, search = self._matches, self._search
        asked = frozenset(clause.value.name for clause in rule.clauses)
        example = search.find(z3.And(matches[place], z3.Not(z3.Or(matches[:place]))))
        told = self._tell(example, asked) if example else ""
        text = condition_text(AllOf(rule.clauses))
        reading = RuleReading(number, rule.action.name.lower(), text, example, told)
        if example is None:
            return reading, [self._dead(place)]
        warnings = []
        for other in range(place):
            earlier, action = self._rules[other][0], self._rules[other][1].action
            if action == rule.action:
                continue
            before = z3.Not(z3.Or(matches[:other]))
            both = search.find(z3.And(matches[place], matches[other], before))
            if both is not None:
                shared = f"rule {earlier} comes before rule {number} for {self._tell(both, asked)}"
                warnings.append(Warn("overlap", shared))
        return reading, warnings

    def _dead(self, place: int) -> Warn:
        """Why a rule decides nothing."""
        z3 = z3_module()
        number, rule = self._rules[place]
        matches, search, present = self._matches, self._search, self._events.present
        asked = frozenset(clause.value.name for clause in rule.clauses)
        example = search.find(matches[place])
        if example is not None:
            covering = [
                self._rules[other][0]
                for other in range(place)
                if search.find(z3.And(matches[place], z3.Not(matches[other]))) is None
            ]
            which = f"rule {covering[0]} matches" if covering else "the rules before it match"
            shown = f"; e.g. {self._tell(example, asked)}"
            text = f"rule {number} decides nothing: {which} whatever it does{shown}"
            return Warn("dead-rule", text)
        names = [clause.value.name for clause in rule.clauses]
        if search.find(z3.And([present[name] for name in names])) is None:
            lacking = next(
                name
                for n, name in enumerate(names)
                if search.find(z3.And([present[one] for one in names[: n + 1]])) is None
            )
            return Warn(
                "absent-value",
                f"rule {number} never matches: no fault has {lacking} together with the rest",
            )
        held = [
            rule_in(Rule(rule.action, (one,)), self._events.fetch, terms()) for one in rule.clauses
        ]
        for clause, holds in zip(rule.clauses, held, strict=True):
            others = z3.And([one for one in held if one is not holds])
            if search.find(others) is not None and search.find(z3.And(others, holds)) is None:
                absent = search.find(z3.And(others, present[clause.value.name])) is None
                if absent:
                    text = f"no fault for which the rest holds has {clause.value.name}"
                    return Warn("absent-value", f"rule {number} never matches: {text}")
        return Warn(
            "contradiction", f"rule {number} never matches: its clauses contradict one another"
        )
