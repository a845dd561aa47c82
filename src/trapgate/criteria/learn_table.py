"""Profile-guided tables: what a VMM needed, told by more columns of a trace than the error code.

The clauses come from the faults themselves: the bits that vary, numbers of which there are few, and
of others the bounds where what was needed changes. Of all tables of so many rules that one is taken
which keeps every needed exit and has the fewest others, by MaxSAT: with the fewest rules, and the
fewest clauses.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria import pages
from trapgate.criteria.define_table import counted
from trapgate.criteria.errors import CriteriaError, UndecidedError
from trapgate.criteria.learn import UNSEEN, Effect, Tested, Unseen
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.proofs.wish_tasks import EXCEPTIONS
from trapgate.criteria.rule_tables.clause_candidates import candidates
from trapgate.criteria.rule_tables.smallest_table import Sample, Sketch, TableProblem
from trapgate.criteria.rule_tables.table_search import with_table
from trapgate.criteria.terms.table_backends import arrays, clause_in, table_in
from trapgate.criteria.wishes.fault_rows import IN_TRACES, FaultRows, read_rows
from trapgate.decision import fault_values as fv
from trapgate.decision.criteria_rules import Action, Clause, Operator, Rule
from trapgate.decision.fault_values import FaultValue
from trapgate.errors import suggestion
from trapgate.trace.document import Document
from trapgate.vmcs.vmcs import Vmcs

_FEW = 5
"""Numbers of a value that are told apart one by one."""
_MOST_BOUNDS = 8
_MOST_KINDS = 2000
_EXCEPTION = Clause(
    fv.BY_NAME["type"], Operator.IN_BITMAP, bitmap=bytes([1 << 3 | 1 << 5 | 1 << 6])
)
_ONLY_EXCEPTIONS: Final = frozenset(
    fv.BY_NAME[name]
    for name in ("code", "page_fault_code", "selector_index", "address", "page", "page_offset")
)
_BITS: Final = (fv.ERROR_CODE, fv.PAGE_FAULT_CODE)


@dataclass(frozen=True)
class LearnedTable(Tested, Paged):
    """A criteria table that keeps what was needed, and its effect, as `learn.Learned` has it.

    `by` are the values that it may look at.
    """

    vmcs: Vmcs
    by: tuple[str, ...]
    mark: str
    trained: Effect
    held_out: Effect | None
    unseen: Unseen
    unknown: int = 0

    def toml(self) -> str:
        """A VMCS file."""
        return self.vmcs.to_toml()

    def lines(self) -> list[str]:
        """In words."""
        rules = self.vmcs.criteria_table
        told = [
            f"a criteria table of {counted(len(rules), 'rule')}, by {', '.join(self.by)}",
            f"needed exits: {f'column {self.mark}' if self.mark else 'inferred from injections'}",
            f"what no rule is about: {self.unseen} (--unseen)",
            *self.effects(),
        ]
        if self.unknown:
            told.append(f"{self.unknown} faults are left out: the trace lacks their error codes")
        if self.whole.exits_after > self.whole.exits_before:
            told.append("more exits than in the recorded run: keep the criteria that it had")
        return told

    def page(self) -> Document:
        """The table, and its effect."""
        parts = (*pages.paragraphs(self.lines()), *pages.file(self.toml()))
        return Document("A criteria table learned from a trace", parts)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "by": list(self.by),
            **self.effects_document(),
            "toml": self.toml(),
        }


def learn_table(
    path: Path,
    by: Collection[str],
    *,
    mark: str = "",
    hold_out: float = 0.25,
    unseen: Unseen = "exit",
    rules: int = 4,
    clauses: int | None = None,
    timeout: float | None = None,
) -> LearnedTable:
    """Learn a table of at most `rules` rules over the values `by` from the first part of a trace.

    With `unseen` "exit" its rules say what is delivered, and all else exits; otherwise they say
    what exits. `mark` and `hold_out` as for `learn`, `clauses` are of all rules together.

    Raises:
        TraceError: the file is not a trace.
        CriteriaError: there is no such column or value, or nothing to learn from.
        UndecidedError: out of time, or too many kinds of faults. MissingSolverError.
    """
    if not 0 <= hold_out < 1:
        raise CriteriaError("give 0 or more, and less than 1", field="hold-out")
    if unseen not in UNSEEN:
        raise CriteriaError(f"{unseen!r}: {suggestion(unseen, UNSEEN)}", field="unseen")
    values = tuple(dict.fromkeys((fv.BY_NAME["vector"], *map(_value, by))))
    first, rest, column, unknown = read_rows(path, values, mark, hold_out)
    if not first.faults.total:
        raise CriteriaError("no exceptions to learn from; trace a guest", path=str(path))
    exits = unseen == "exit"
    chosen = _table(first, values, rules, clauses, Deadline(timeout), exits=exits)
    bitmap = sum(1 << vector for vector in EXCEPTIONS) if exits else 0
    vmcs = with_table(chosen, bitmap)
    return LearnedTable(
        vmcs,
        tuple(value.name for value in values),
        column,
        _effect(first, chosen, exits=exits),
        _effect(rest, chosen, exits=exits) if rest.faults.total else None,
        unseen,
        unknown,
    )


def _value(name: str) -> FaultValue:
    known = {value.name: value for value in IN_TRACES}
    if name not in known:
        raise CriteriaError(f"{name!r}: {suggestion(name, known)}", field="by")
    return known[name]


def _table(
    rows: FaultRows,
    values: Sequence[FaultValue],
    most: int,
    most_clauses: int | None,
    deadline: Deadline,
    *,
    exits: bool,
) -> tuple[Rule, ...]:
    seen = [Rule(Action.NEXT, (clause,)) for value in values for clause in _seen(rows, value)]
    clauses = candidates(seen)
    samples = list(_samples(rows, clauses, exits=exits))
    bound = most * 255 if most_clauses is None else most_clauses
    best: Sketch | None = None
    for count in range(1, most + 1):
        problem = TableProblem(len(clauses), count, usual=exits)
        for action in (Action.NEXT, Action.EXIT if exits else Action.DELIVER):
            problem.forbid(action)
        for sample in samples:
            problem.add(sample)
            deadline.check()
        found = _cheapest(problem, bound, deadline)
        if found is not None and (best is None or found.cost < best.cost):
            best = found
        if best is not None and best.cost == 0:
            break
    if best is None:
        raise UndecidedError(
            f"no table of {most} rules keeps what was needed; allow more rules or clauses"
        )
    return tuple(
        _of_exceptions(Rule(action, tuple(clauses[number] for number in used)))
        for action, used in best.rules
    )


def _cheapest(problem: TableProblem, bound: int, deadline: Deadline) -> Sketch | None:
    """The cheapest table, and of equals one of the fewest clauses."""
    best: Sketch | None = None
    while bound >= 0:
        sketch = problem.solve(bound, deadline)
        if sketch is None or (best is not None and sketch.cost > best.cost):
            break
        best, bound = sketch, sketch.clauses - 1
    return best


def _of_exceptions(rule: Rule) -> Rule:
    """The rule for exceptions alone: traces' interrupts were not learned from."""
    if any(clause.value in _ONLY_EXCEPTIONS for clause in rule.clauses):
        return rule
    return replace(rule, clauses=(*rule.clauses, _EXCEPTION))


def _seen(rows: FaultRows, value: FaultValue) -> Iterator[Clause]:
    """Clauses that tell the faults apart by one value."""
    present, found = rows.fetch(value)
    numbers = found[present]
    needed = rows.faults.needed[present]
    unique = np.unique(numbers)
    if value.number in _BITS and len(unique):
        varies = int(np.bitwise_or.reduce(unique) ^ np.bitwise_and.reduce(unique))
        for bit in range(value.width):
            if varies >> bit & 1:
                yield Clause(value, Operator.ANY_BIT, 1 << bit)
        return
    if len(unique) <= _FEW:
        for number in unique.tolist():
            yield Clause(value, Operator.EQUAL, number)
        return
    for bound in _bounds(numbers, needed, rows.faults.count[present]):
        yield Clause(value, Operator.BELOW, bound)


def _bounds(numbers: NDArray[np.uint64], needed: Any, count: Any) -> list[int]:
    """Where a sorted value changes from what was needed to what was not, the heaviest first."""
    unique, back = np.unique(numbers, return_inverse=True)
    wanted = np.zeros(len(unique), np.int64)
    spared = np.zeros(len(unique), np.int64)
    np.add.at(wanted, back[needed], count[needed])
    np.add.at(spared, back[~needed], count[~needed])
    sides = wanted > 0
    changes = np.flatnonzero(sides[1:] != sides[:-1]) + 1
    # What is between two changes weighs as much as its faults.
    totals = np.concatenate([[0], np.cumsum(wanted + spared)])
    edges = [0, *changes.tolist(), len(unique)]
    weights = [
        min(int(totals[b] - totals[a]), int(totals[c] - totals[b]))
        for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    heaviest = sorted(zip(weights, changes.tolist(), strict=True), reverse=True)[:_MOST_BOUNDS]
    return sorted(int(unique[place]) for _, place in heaviest)


def _samples(rows: FaultRows, clauses: Sequence[Clause], *, exits: bool) -> Iterator[Sample]:
    """The kinds of faults that the clauses tell apart."""
    world = arrays()
    truths = np.stack([np.asarray(clause_in(one, rows.fetch, world)) for one in clauses], axis=1)
    kinds, back = np.unique(
        np.column_stack([truths, rows.faults.vector.astype(np.uint8)]), axis=0, return_inverse=True
    )
    if len(kinds) > _MOST_KINDS:
        raise UndecidedError(
            f"{len(kinds)} kinds of faults are too many to learn from; name fewer values"
        )
    back = back.reshape(-1)
    needed = np.zeros(len(kinds), np.int64)
    spared = np.zeros(len(kinds), np.int64)
    wanted, count = rows.faults.needed, rows.faults.count
    np.add.at(needed, back[wanted], count[wanted])
    np.add.at(spared, back[~wanted], count[~wanted])
    for kind, must, spare in zip(kinds.tolist(), needed.tolist(), spared.tolist(), strict=True):
        holds = tuple(map(bool, kind[:-1]))
        if must:
            yield Sample(holds, kind[-1], Action.EXIT, usual=exits)
        else:
            yield Sample(holds, kind[-1], Action.DELIVER, usual=exits, weight=spare)


def _effect(rows: FaultRows, rules: Sequence[Rule], *, exits: bool) -> Effect:
    world = arrays()
    faults = rows.faults
    usual = np.full(len(faults.count), (Action.EXIT if exits else Action.DELIVER).value, np.uint64)
    action = np.asarray(table_in(rules, rows.fetch, world, usual))
    after = action == Action.EXIT.value
    if exits:
        after |= action == Action.NEXT.value
    return Effect.of(faults, after)
