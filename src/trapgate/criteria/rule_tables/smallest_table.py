"""The smallest table that treats some faults as wished: a satisfiability problem.

A table is some rules in order, each a set of candidate clauses and an action, over an exception
bitmap of which every bit is free to choose. For each fault of a sample it is known which candidates
hold, so that "which rule matches first, and what does it do" is a formula. The fewest rules come
first, then the fewest clauses. What the solver does not find does not exist: so the smallest table
for a sample is a lower bound for all faults, and if it does all of them right, it is the smallest
there is.
"""

from dataclasses import dataclass
from typing import Any, Final

from trapgate.criteria.problems.problem import NEVER, Deadline
from trapgate.criteria.problems.solvers import interruptible, sat_modules, solver_modules
from trapgate.decision.criteria_rules import Action

VECTORS: Final = 32


@dataclass(frozen=True)
class Sample:
    """One fault: which candidates hold, its vector, and what is wished.

    `wanted` is EXIT or DELIVER; NEXT is an interrupt, of which the table decides nothing.
    `usual` is what becomes of it if the table does not decide, None if that is the
    exception bitmap's business. `weight` is None for a wish that has to be granted, else what it
    costs if it is not.
    """

    holds: tuple[bool, ...]
    vector: int
    wanted: Action
    usual: bool | None = None
    weight: int | None = None


@dataclass(frozen=True)
class Sketch:
    """A table found: for each rule its action and the candidates' numbers; and the bitmap."""

    rules: tuple[tuple[Action, tuple[int, ...]], ...]
    bitmap: int
    cost: int = 0

    @property
    def clauses(self) -> int:
        """How many clauses it has."""
        return sum(len(chosen) for _, chosen in self.rules)


class TableProblem:
    """Tables of `rules` rules of clauses out of `candidates`, and samples to be treated right.

    `usual` says whether a vector that no sample has exits.
    """

    def __init__(self, candidates: int, rules: int, *, usual: bool) -> None:
        self._pool = solver_modules().formula.IDPool()
        self._usual = usual
        self._rules = range(rules)
        self._candidates = range(candidates)
        self._clauses: list[list[int]] = []
        self._soft: list[tuple[int, int]] = []
        self._samples = 0
        self._vectors: set[int] = set()
        for rule in self._rules:
            self._clauses.append([-self._name("exit", rule), -self._name("deliver", rule)])

    def _name(self, *what: object) -> int:
        number: int = self._pool.id(what)
        return number

    def forbid(self, action: Action) -> None:
        """Allow no rule with this action."""
        for rule in self._rules:
            exits, delivers = self._name("exit", rule), self._name("deliver", rule)
            match action:
                case Action.EXIT:
                    self._clauses.append([-exits])
                case Action.DELIVER:
                    self._clauses.append([-delivers])
                case _:
                    self._clauses.append([exits, delivers])

    def add(self, sample: Sample) -> None:
        """Demand that a fault be treated right, or, with a weight, pay for it if it is not."""
        n = self._samples
        self._samples += 1
        bit = self._name("bit", sample.vector)
        if sample.usual is None:
            self._vectors.add(sample.vector)
        else:
            bit = self._name("usual", n)
            self._clauses.append([bit if sample.usual else -bit])
        lacking = [c for c in self._candidates if not sample.holds[c]]
        escape: list[int] = []
        if sample.weight is not None:
            pays = self._name("pays", n)
            escape = [pays]
            self._soft.append((pays, sample.weight))
        reached: list[int] = []
        for rule in self._rules:
            matches = self._name("matches", rule, n)
            used = [self._name("uses", rule, c) for c in lacking]
            self._clauses += [[-matches, -one] for one in used]
            self._clauses.append([matches, *used])
            first = [-matches, *reached]
            exits, delivers = self._name("exit", rule), self._name("deliver", rule)
            match sample.wanted:
                case Action.EXIT:
                    self._clauses.append([*first, -delivers, *escape])
                    self._clauses.append([*first, exits, bit, *escape])
                case Action.DELIVER:
                    self._clauses.append([*first, -exits, *escape])
                    self._clauses.append([*first, delivers, -bit, *escape])
                case _:
                    self._clauses.append([*first, -exits, *escape])
                    self._clauses.append([*first, -delivers, *escape])
            # The later rules are reached where none so far matches.
            reached.append(matches)
        if sample.wanted in (Action.EXIT, Action.DELIVER):
            sign = 1 if sample.wanted is Action.EXIT else -1
            self._clauses.append([*reached, sign * bit, *escape])

    def solve(self, most_clauses: int, deadline: Deadline = NEVER) -> Sketch | None:
        """A table of at most so many clauses, the cheapest one; None if there is none.

        Raises UndecidedError when the time is over.
        """
        uses = [self._name("uses", rule, c) for rule in self._rules for c in self._candidates]
        bound: list[list[int]] = []
        if uses and most_clauses < len(uses):
            limit = solver_modules().card.CardEnc.atmost(
                uses, bound=most_clauses, vpool=self._pool, encoding=_TOTALIZER
            )
            bound = limit.clauses
        if self._soft:
            return self._cheapest(bound, deadline)
        with solver_modules().solvers.Solver("glucose4", self._clauses + bound) as solver:
            found = interruptible(
                solver, deadline, lambda: solver.solve_limited(expect_interrupt=True)
            )
            if found is None:
                raise deadline.passed()
            if not found:
                return None
            return self._sketch({number for number in solver.get_model() if number > 0}, 0)

    def _cheapest(self, bound: list[list[int]], deadline: Deadline) -> Sketch | None:
        formula, rc2 = sat_modules()
        weighted = formula.WCNF()
        weighted.extend(self._clauses + bound)
        for pays, weight in self._soft:
            weighted.append([-pays], weight=weight)
        with rc2.RC2(weighted) as solver:
            model = interruptible(solver, deadline, lambda: solver.compute(expect_interrupt=True))
            if model is None:
                deadline.check()
                return None
            return self._sketch({number for number in model if number > 0}, int(solver.cost))

    def _sketch(self, true: set[int], cost: int) -> Sketch:
        def says(*what: object) -> bool:
            return self._name(*what) in true

        rules = []
        for rule in self._rules:
            action = Action.NEXT
            if says("exit", rule):
                action = Action.EXIT
            elif says("deliver", rule):
                action = Action.DELIVER
            chosen = tuple(c for c in self._candidates if says("uses", rule, c))
            rules.append((action, chosen))
        bits = (v for v in range(VECTORS) if v not in self._vectors and self._usual)
        chosen_bits = (v for v in self._vectors if v < VECTORS and says("bit", v))
        bitmap = sum(1 << v for v in (*bits, *chosen_bits))
        return Sketch(tuple(rules), bitmap, cost)


_TOTALIZER: Final[Any] = 6
"""`pysat.card.EncType.totalizer`."""
