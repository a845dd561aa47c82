"""From wishes over all that faults tell to the cheapest criteria that grant them (¶86-87).

VT-x's fields come first, if they can tell the faults apart; then the extensions' fields; then a
criteria table of the fewest rules, and among these of the fewest clauses, within what the
hardware has (blocks 904 and 906). If nothing is exact, the best sound criteria: what must exit
does, and of the rest as little as can be. Wishes are about exceptions. What is found is proved of
all exceptions that may happen.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from trapgate.criteria import pages
from trapgate.criteria.answer import Definition
from trapgate.criteria.define import compiled
from trapgate.criteria.difference import Difference
from trapgate.criteria.errors import (
    InexpressibleError,
    ProofError,
    UndecidedError,
    UnknownSchemeError,
)
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.proofs.tasks import Weights
from trapgate.criteria.proofs.wish_tasks import EXCEPTIONS, tasks_of
from trapgate.criteria.rule_tables.clause_candidates import ALL_OPERATORS, OF_EXCEPTIONS
from trapgate.criteria.rule_tables.table_search import (
    Example,
    Goal,
    Limits,
    TableSearch,
    first_action,
    with_table,
)
from trapgate.criteria.terms.fault_terms import fault_terms, in_words
from trapgate.criteria.terms.table_backends import arrays, clause_in, table_in, terms
from trapgate.criteria.wishes.fault_rows import IN_TRACES, FaultRows
from trapgate.criteria.wishes.fault_wishes import FaultWishes
from trapgate.decision.condition_rules import holds
from trapgate.decision.criteria_rules import MOST_RULES, Action, Operator, Rule
from trapgate.errors import suggestion
from trapgate.trace.document import Document
from trapgate.vmcs.vmcs import Vmcs

SCHEMES_OF_WISHES: Final = ("", "vt-x", "auto", "table")
SMALLEST: Final = "no table of fewer rules, or of as many and fewer clauses, is exact (proved)"
NOT_PROVED: Final = "no rule and no clause can be left out; that none smaller exists is not proved"


@dataclass(frozen=True)
class FoundCriteria(Paged):
    """The criteria found: a VMCS, and how it grants the wishes.

    `means` is "vt-x", "extended" or "table". `exact` says that nothing else exits; if not,
    `needless` tells of a fault that does, and `weight` is that of all needless exits where it is
    known. `definition` has the fields' own answers, where there are no rules. `smallest` says that
    no smaller table is exact.
    """

    vmcs: Vmcs
    means: str
    exact: bool
    needless: str = ""
    definition: Definition | None = None
    smallest: bool = False
    weight: int | None = None

    def toml(self) -> str:
        """A VMCS file."""
        return self.vmcs.to_toml()

    @property
    def size(self) -> tuple[int, int]:
        """Rules and clauses of the table."""
        rules = self.vmcs.criteria_table
        return len(rules), sum(len(rule.clauses) for rule in rules)

    def lines(self) -> list[str]:
        """In words."""
        rules, clauses = self.size
        how = {
            "vt-x": "VT-x's fields alone",
            "extended": "the extensions' fields",
            "table": f"a criteria table of {counted(rules, 'rule')} "
            f"and {counted(clauses, 'clause')}",
        }[self.means]
        if self.exact:
            told = [f"exact, by {how}"]
            if self.means == "table":
                told.append(SMALLEST if self.smallest else NOT_PROVED)
            return told
        weight = "" if self.weight is None else f", weight {self.weight}"
        return [f"sound, not exact, by {how}; exits needlessly{weight}: {self.needless}"]

    def page(self) -> Document:
        """Criteria for wishes about whole faults."""
        parts = (*pages.paragraphs(self.lines()), *pages.file(self.toml()))
        return Document("Criteria for wishes about faults", parts)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        rules, clauses = self.size
        return {
            "means": self.means,
            "exact": self.exact,
            "needless": self.needless,
            "weight": self.weight,
            "rules": rules,
            "clauses": clauses,
            "smallest": self.smallest,
            "toml": self.toml(),
        }


def define_criteria(
    wishes: FaultWishes,
    scheme: str = "",
    *,
    rules: int = MOST_RULES,
    clauses: int | None = None,
    operators: Collection[Operator] = ALL_OPERATORS,
    weights: Weights | None = None,
    rows: FaultRows | None = None,
    timeout: float | None = None,
) -> FoundCriteria:
    """The cheapest criteria that grant `wishes`; if none does, the best sound ones.

    `scheme` is "vt-x", "auto" (all fields), "table", or empty for all three in this order.
    `rules`, `clauses` (of all rules) and `operators` are what the hardware takes. `weights` counts
    error codes, by vector, for fields; `rows` are faults that say how much a table's needless
    exits weigh.

    Raises: InexpressibleError: no sound ones either. UndecidedError, MissingSolverError,
    UnknownSchemeError.
    """
    if scheme not in SCHEMES_OF_WISHES:
        known = [name for name in SCHEMES_OF_WISHES if name]
        raise UnknownSchemeError(
            f"no scheme {scheme!r} for such wishes; {suggestion(scheme, known)}"
        )
    deadline = Deadline(timeout)
    answers = _Answers(wishes, deadline, rows)
    tasks = tasks_of(wishes, weights)
    others = "exit" if wishes.default is Action.EXIT else "deliver"
    best: list[FoundCriteria] = []
    refused: InexpressibleError | None = None
    for name in ("vt-x", "auto"):
        if scheme not in ("", name):
            continue
        try:
            definition = compiled(tasks, name, others=others, deadline=deadline, path=wishes.path)
        except InexpressibleError as error:
            refused = error
            continue
        found = answers.granted(Vmcs.from_toml(definition.toml()), definition.profile)
        found = replace(found, definition=definition)
        if found.exact:
            return found
        best.append(found)
    if scheme in ("", "table"):
        most = MOST_RULES * 255 if clauses is None else clauses
        table = answers.table(Limits(rules, most, operators))
        if table is not None and table.exact:
            return table
        if table is not None:
            best.append(table)
    if not best:
        raise refused or InexpressibleError(
            f"no table of {rules} rules grants these wishes; allow more, or fields",
            (),
            path=wishes.path,
        )
    if len(best) > 1:
        # All on one scale. Of equals the first is the plainest.
        best = [replace(one, weight=answers.weight(one.vmcs)) for one in best]
    return min(best, key=lambda one: (one.weight or 0, one.means == "table"))


def check_wishes(wishes: FaultWishes, vmcs: Vmcs, *, timeout: float | None = None) -> Difference:
    """Whether `vmcs` grants `wishes`, for all exceptions that may happen.

    Raises: UndecidedError, MissingSolverError.
    """
    answers = _Answers(wishes, Deadline(timeout), others=vmcs.criteria_table)
    return answers.difference(vmcs)


class _Answers:
    """What was wished, as terms over one fault, and answers to it."""

    def __init__(
        self,
        wishes: FaultWishes,
        deadline: Deadline,
        rows: FaultRows | None = None,
        others: Sequence[Rule] = (),
    ) -> None:
        self._wishes = wishes
        self._deadline = deadline
        self._rows = rows
        rules = (*wishes.rules, Rule(Action.NEXT, OF_EXCEPTIONS))
        fault = fault_terms((*rules, *others))
        world = terms()
        wished = table_in(wishes.rules, fault.fetch, world, world.number(wishes.default))
        goal = Goal(
            fault,
            wished == Action.EXIT.value,
            wished == Action.DELIVER.value,
            lambda example: first_action(wishes.rules, example, wishes.default),
            rules,
            usual=wishes.default is Action.EXIT,
        )
        self._search = TableSearch(goal, deadline)
        self._classes: list[Example] | None = None

    def granted(self, vmcs: Vmcs, means: str, *, smallest: bool = False) -> FoundCriteria:
        """The answer that a VMCS is. Raises ProofError if it is not even sound."""
        if self._search.missed(vmcs) is not None:
            raise ProofError("the criteria found let a fault out; please report this")
        needless = self._search.needless(vmcs)
        asked = frozenset(c.value.name for rule in self._wishes.rules for c in rule.clauses)
        told = in_words(needless, asked) if needless else ""
        return FoundCriteria(vmcs, means, needless is None, told, smallest=smallest)

    def difference(self, vmcs: Vmcs) -> Difference:
        """How a VMCS, whose rules are among the `others`, falls short of what was wished."""
        rules = (*self._wishes.rules, *vmcs.criteria_table)
        asked = frozenset(clause.value.name for rule in rules for clause in rule.clauses)
        missed, needless = self._search.missed(vmcs), self._search.needless(vmcs)
        return Difference(
            dict(missed) if missed else None,
            dict(needless) if needless else None,
            in_words(missed, asked) if missed else "",
            in_words(needless, asked) if needless else "",
        )

    def table(self, limits: Limits) -> FoundCriteria | None:
        """The smallest exact table within the limits, else the best sound one."""
        plain = self._literal_table()
        # More rules than these cannot be needed.
        enough = min(limits.rules, limits.clauses + 1, len(plain.criteria_table))
        within = replace(limits, rules=enough)
        try:
            found = self._search.smallest(within)
        except UndecidedError:
            if not limits.allow(plain):
                raise
            return self.granted(plain, "table")
        if found is not None:
            return self.granted(found, "table", smallest=True)
        sound = self._search.best(within, self._weigh)
        if sound is None:
            return None
        return replace(self.granted(sound[0], "table"), weight=sound[1])

    def weight(self, vmcs: Vmcs) -> int:
        """What the needless exits of a VMCS weigh, kind by kind."""
        return sum(
            self._weigh(example)
            for example in self._kinds()
            if self._search.spares(example) and self._search.exits(vmcs, example)
        )

    def _kinds(self) -> list[Example]:
        if self._classes is None:
            self._classes = [*self._search.classes(), *self._search.others()]
        return self._classes

    def _weigh(self, example: Example) -> int:
        """How many faults are of the kind of `example`, as far as the rows tell; or 1."""
        if self._rows is None:
            return 1
        alike = np.ones(len(self._rows.faults.count), np.bool_)
        alike &= self._rows.faults.vector == example["vector"]
        for clause in dict.fromkeys(c for rule in self._wishes.rules for c in rule.clauses):
            if clause.value in IN_TRACES:
                truth = holds(clause, lambda value: example.get(value.name))
                alike &= clause_in(clause, self._rows.fetch, arrays()) == truth
        return int(self._rows.faults.count[alike].sum())

    def _literal_table(self) -> Vmcs:
        """An exact table made of the wishes as they stand, of which nothing can be left out."""
        found: list[Vmcs] = []
        for bitmap in (0, sum(1 << vector for vector in EXCEPTIONS)):
            wished = list(self._wishes.rules)
            usual = Action.EXIT if bitmap else Action.DELIVER
            if self._wishes.default not in (usual, Action.NEXT):
                wished.append(Rule(self._wishes.default))
            wished = [part for rule in wished for part in _of_exceptions(rule)]
            small = self._without_excess(wished, bitmap)
            if len(small) <= MOST_RULES:
                found.append(with_table(small, bitmap))
        if not found:
            raise InexpressibleError(
                f"these wishes take more than the {MOST_RULES} rules of a table; wish less",
                (),
                path=self._wishes.path,
            )
        return min(found, key=lambda vmcs: len(vmcs.criteria_table))

    def _exact(self, rules: Sequence[Rule], bitmap: int) -> bool:
        if len(rules) > MOST_RULES:
            return False
        return self._search.is_exact(with_table(rules, bitmap))

    def _without_excess(self, wished: list[Rule], bitmap: int) -> list[Rule]:
        """Without each rule, then each clause, that makes no difference to the wishes."""
        rules = wished
        number = len(rules) - 1
        while number >= 0:
            fewer = rules[:number] + rules[number + 1 :]
            if self._exact(fewer, bitmap):
                rules = fewer
            number -= 1
        for number in range(len(rules)):
            place = len(rules[number].clauses) - 1
            while place >= 0:
                clauses = rules[number].clauses
                shorter = Rule(rules[number].action, clauses[:place] + clauses[place + 1 :])
                fewer = [*rules[:number], shorter, *rules[number + 1 :]]
                if self._exact(fewer, bitmap):
                    rules = fewer
                place -= 1
        return rules


def counted(number: int, noun: str) -> str:
    """How many of them, in words: 1 rule, 2 rules."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _of_exceptions(rule: Rule) -> Iterator[Rule]:
    """The same rule for exceptions alone: those of the hardware, and those of instructions."""
    for clause in OF_EXCEPTIONS:
        yield Rule(rule.action, (*rule.clauses, clause))
