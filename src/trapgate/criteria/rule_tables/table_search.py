"""Criteria tables found by counterexamples: the smallest that is exact, the best that is sound.

A sample of faults begins empty. The smallest table for it is found (`smallest_table`) and put to
z3; a fault that it treats wrong joins the sample, until there is none. So what is proved of the
sample (that no smaller table exists) holds of all faults, and that the table is right holds by z3's
word.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.rule_tables.clause_candidates import ALL_OPERATORS, candidates
from trapgate.criteria.rule_tables.smallest_table import Sample, Sketch, TableProblem
from trapgate.criteria.terms.fault_terms import EXCEPTION_TYPES, FaultTerms
from trapgate.criteria.terms.search import Search
from trapgate.criteria.terms.table_backends import clause_in, terms
from trapgate.decision.condition_rules import holds
from trapgate.decision.criteria_rules import MOST_RULES, Action, Clause, Operator, Rule
from trapgate.sdm.vectors import Vector
from trapgate.vmcs.vmcs import Vmcs

MOST_CLASSES: Final = 300
"""Kinds of faults that are told apart when nothing is exact."""
_MOST_CANDIDATES = 500

Example = Mapping[str, int]


@dataclass(frozen=True)
class Limits:
    """What the hardware has: so many rules, so many clauses in all, and these operators."""

    rules: int = MOST_RULES
    clauses: int = MOST_RULES * 255
    operators: Collection[Operator] = ALL_OPERATORS

    def allow(self, vmcs: Vmcs) -> bool:
        """Whether the table of a VMCS is within them."""
        rules = vmcs.criteria_table
        clauses = [clause for rule in rules for clause in rule.clauses]
        return (
            len(rules) <= self.rules
            and len(clauses) <= self.clauses
            and {clause.operator for clause in clauses} <= set(self.operators)
        )


@dataclass(frozen=True)
class Goal:
    """What is asked of exceptions: terms of `fault`, and the same of a single example.

    `must` is true of those that must exit, `spare` of those that should not. `wanted` says EXIT,
    DELIVER, or NEXT for those that are free. `rules` are where clauses come from, `usual`
    is what happens to faults of vectors that nobody speaks of.
    """

    fault: FaultTerms
    must: Any
    spare: Any
    wanted: Callable[[Example], Action]
    rules: tuple[Rule, ...]
    usual: bool = False


class TableSearch:
    """Searches for tables over an exception bitmap, or over the other fields of a VMCS (`base`)."""

    def __init__(self, goal: Goal, deadline: Deadline, base: Vmcs | None = None) -> None:
        z3 = z3_module()
        self._goal = goal
        self._deadline = deadline
        self._base = base
        self._search = Search(goal.fault, deadline)
        kind = goal.fault.values["type"]
        self.exception = z3.Or([kind == int(one) for one in EXCEPTION_TYPES])

    def missed(self, vmcs: Vmcs) -> Example | None:
        """An exception that must exit and does not."""
        z3 = z3_module()
        lost = z3.And(self._goal.must, z3.Not(self._goal.fault.exits(vmcs)))
        return self._search.find(z3.And(self.exception, lost))

    def needless(self, vmcs: Vmcs) -> Example | None:
        """One that should be delivered and exits."""
        z3 = z3_module()
        spared = z3.And(self._goal.spare, self._goal.fault.exits(vmcs))
        return self._search.find(z3.And(self.exception, spared))

    def is_exact(self, vmcs: Vmcs) -> bool:
        """Whether those exceptions exit that must, and no others, and no interrupt is decided."""
        return self._wrong(vmcs, sound=False) is None

    def exits(self, vmcs: Vmcs, example: Example) -> bool:
        """Whether one fault exits under a VMCS."""
        z3 = z3_module()
        return bool(z3.is_true(z3.simplify(self.at(example, self._goal.fault.exits(vmcs)))))

    def spares(self, example: Example) -> bool:
        """Whether it is an exception that should be delivered."""
        return self._is_exception(example) and self._goal.wanted(example) is Action.DELIVER

    def _wrong(self, vmcs: Vmcs, *, sound: bool) -> Example | None:
        """An exception that is treated wrong (if `sound`: lost), or a decided interrupt."""
        z3 = z3_module()
        exits = self._goal.fault.exits(vmcs)
        lost = z3.And(self._goal.must, z3.Not(exits))
        if not sound:
            lost = z3.Or(lost, z3.And(self._goal.spare, exits))
        decided = self._goal.fault.action(vmcs) != Action.NEXT.value
        return self._search.find(
            z3.Or(z3.And(self.exception, lost), z3.And(z3.Not(self.exception), decided))
        )

    def smallest(self, limits: Limits) -> Vmcs | None:
        """The exact table of the fewest rules, and of the fewest clauses among these.

        None if none within the limits is exact. Raises UndecidedError if it is not known.
        """
        clauses = self._clauses(limits)
        samples: list[Sample] = []
        for count in range(min(limits.rules, MOST_RULES) + 1):
            problem = TableProblem(len(clauses), count, usual=self._goal.usual)
            for sample in samples:
                problem.add(sample)
            best: Vmcs | None = None
            bound = limits.clauses
            while bound >= 0:
                sketch = problem.solve(bound, self._deadline)
                if sketch is None:
                    break
                vmcs = self._vmcs(sketch, clauses)
                example = self._wrong(vmcs, sound=False)
                if example is None:
                    best, bound = vmcs, sketch.clauses - 1
                    continue
                samples.append(self._sample(example, clauses))
                problem.add(samples[-1])
            if best is not None:
                return best
        return None

    def best(self, limits: Limits, weigh: Callable[[Example], int]) -> tuple[Vmcs, int] | None:
        """The sound table within the limits whose needless exits weigh least, and their weight.

        None if not even a sound one exists. Raises UndecidedError.
        """
        clauses = self._clauses(limits)
        problem = TableProblem(len(clauses), limits.rules, usual=self._goal.usual)
        for example in (*self.classes(), *self.others()):
            sample = self._sample(example, clauses)
            if sample.wanted is Action.DELIVER:
                sample = replace(sample, weight=max(weigh(example), 1))
            if sample.wanted is not Action.NEXT or not self._is_exception(example):
                problem.add(sample)
        best: tuple[Vmcs, int] | None = None
        bound = limits.clauses
        while bound >= 0:
            sketch = problem.solve(bound, self._deadline)
            if sketch is None or (best is not None and sketch.cost > best[1]):
                break
            vmcs = self._vmcs(sketch, clauses)
            wrong = self._wrong(vmcs, sound=True)
            if wrong is not None:
                problem.add(self._sample(wrong, clauses))
                continue
            # Perhaps as good a one has fewer clauses.
            best, bound = (vmcs, sketch.cost), sketch.clauses - 1
        return best

    def classes(self) -> Iterator[Example]:
        """An example of each kind of fault that the rules' clauses tell apart, up to a number."""
        z3 = z3_module()
        world, fault = terms(), self._goal.fault
        atoms = [
            clause_in(clause, fault.fetch, world)
            for clause in dict.fromkeys(c for rule in self._goal.rules for c in rule.clauses)
        ]
        vectors = sorted(
            {c.operand for r in self._goal.rules for c in r.clauses if c.value.name == "vector"}
        )
        atoms += [fault.values["vector"] == vector for vector in vectors]
        atoms += [self.exception, self._goal.must, self._goal.spare]
        blocked = z3.BoolVal(True)
        for _ in range(MOST_CLASSES):
            example = self._search.find(blocked)
            if example is None:
                return
            values = [z3.is_true(z3.simplify(self.at(example, atom))) for atom in atoms]
            same = [
                atom if truth else z3.Not(atom) for atom, truth in zip(atoms, values, strict=True)
            ]
            blocked = z3.And(blocked, z3.Not(z3.And(same)))
            yield example

    def others(self) -> Iterator[Example]:
        """Of each vector that no rule names, faults that look like those which rules speak of.

        A table that is not exact must not take these along for nothing.
        """
        z3 = z3_module()
        world, fault = terms(), self._goal.fault
        by_vector = ("vector", "type")
        named = {
            c.operand for rule in self._goal.rules for c in rule.clauses if c.value.name == "vector"
        }
        for rule in self._goal.rules:
            alike = [
                clause_in(clause, fault.fetch, world)
                for clause in rule.clauses
                if clause.value.name not in by_vector
            ]
            for vector in (int(row) for row in Vector if int(row) not in named):
                of_vector = z3.And(self._goal.spare, fault.values["vector"] == vector, *alike)
                example = self._search.find(z3.And(self.exception, of_vector))
                if example is not None:
                    yield example

    def at(self, example: Example, term: Any) -> Any:
        """A term for one fault."""
        z3 = z3_module()
        fault = self._goal.fault
        known = [
            (symbol, z3.BitVecVal(example.get(name, 0), 64))
            for name, symbol in fault.values.items()
        ]
        known += [
            (has, z3.BoolVal(name in example))
            for name, has in fault.present.items()
            if z3.is_const(has) and has.decl().kind() == z3.Z3_OP_UNINTERPRETED
        ]
        return z3.substitute(term, *known)

    def _is_exception(self, example: Example) -> bool:
        return example["type"] in set(map(int, EXCEPTION_TYPES))

    def _clauses(self, limits: Limits) -> tuple[Clause, ...]:
        found = candidates(self._goal.rules, limits.operators)
        if len(found) > _MOST_CANDIDATES:
            raise self._deadline.passed()
        return found

    def _sample(self, example: Example, clauses: Sequence[Clause]) -> Sample:
        truths = tuple(holds(clause, lambda value: example.get(value.name)) for clause in clauses)
        is_exception = self._is_exception(example)
        usual = None
        if self._base is not None and is_exception:
            usual = self.exits(self._base, example)
        wanted = self._goal.wanted(example) if is_exception else Action.NEXT
        return Sample(truths, example["vector"], wanted, usual)

    def _vmcs(self, sketch: Sketch, clauses: Sequence[Clause]) -> Vmcs:
        rules = [
            Rule(action, tuple(clauses[number] for number in chosen))
            for action, chosen in sketch.rules
        ]
        while rules and rules[-1].action is Action.NEXT:
            # The last rule may as well not be there.
            rules.pop()
        if self._base is None:
            return with_table(rules, sketch.bitmap)
        vmcs = self._base.copy()
        vmcs.criteria_table = tuple(rules)
        return vmcs


def with_table(rules: Iterable[Rule], bitmap: int) -> Vmcs:
    """A VMCS with an exception bitmap and a criteria table."""
    vmcs = Vmcs()
    vmcs["EXCEPTION_BITMAP"] = bitmap
    vmcs.criteria_table = tuple(rules)
    return vmcs


def first_action(rules: Iterable[Rule], example: Example, otherwise: Action) -> Action:
    """What the first rule that matches a fault says."""
    for rule in rules:
        if all(holds(clause, lambda value: example.get(value.name)) for clause in rule.clauses):
            return rule.action
    return otherwise
