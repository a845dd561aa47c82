"""Tasks: what is asked of each vector, whoever asks: a SPEC, filters to merge, a trace."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.errors import CriteriaError
from trapgate.criteria.problems.codes import Codes, Layout, Truths, vector_label
from trapgate.criteria.problems.problem import MOST_WEIGHT, Costs, Problem, problem
from trapgate.criteria.proofs.proof import Term, membership, wished
from trapgate.criteria.wishes.spec import (
    DELIVER,
    EXIT,
    FREE,
    GOAL_NUMBERS,
    Spec,
    VectorWishes,
)

Goals = NDArray[np.uint8]
Weights = Mapping[int, Mapping[int, int]]
"""How often each error code of each vector was seen."""


@dataclass(frozen=True)
class Task:
    """What is asked of one vector.

    `goals` has FREE, EXIT or DELIVER for each of the layout's codes, or one entry if the
    vector has no error code (`layout` None). `must` and `spare` say the same as z3 terms,
    from their own source. `weights` counts each code, None for all the same.
    """

    vector: int
    layout: Layout | None
    goals: Goals
    must: Term
    spare: Term
    weights: Costs | None = None

    def codes(self) -> Codes:
        """The layout's codes; none without an error code."""
        return np.zeros(0, dtype=np.int64) if self.layout is None else self.layout.codes()

    def problem(self) -> Problem:
        """The same for the algorithms."""
        assert self.layout is not None
        return problem(
            self.layout.positions, self.goals == EXIT, self.goals == DELIVER, self.weights
        )


def task_of(wishes: VectorWishes, weights: Weights | None = None) -> Task:
    """The task that wishes about a vector amount to."""
    if wishes.layout is None:
        goal = np.array([GOAL_NUMBERS[wishes.default]], dtype=np.uint8)
        return Task(wishes.vector, None, goal, _never, _never)
    codes, goals = wishes.goals()
    must, spare = wished(wishes)
    return Task(
        wishes.vector,
        wishes.layout,
        goals,
        must,
        spare,
        weights_of(wishes.vector, codes, weights),
    )


def task_of_goals(
    vector: int, layout: Layout, goals: Goals, weights: Weights | None = None
) -> Task:
    """The task that a goal for each code amounts to."""

    def term(wanted: int) -> Term:
        return lambda code: membership(code, goals == wanted, layout.positions)

    counted = weights_of(vector, layout.codes(), weights)
    return Task(vector, layout, goals, term(EXIT), term(DELIVER), counted)


def tasks_of(spec: Spec, weights: Weights | None = None) -> list[Task]:
    """The tasks of a SPEC, by vector."""
    return [task_of(spec.vectors[vector], weights) for vector in sorted(spec.vectors)]


def weights_of(vector: int, codes: Codes, weights: Weights | None) -> Costs | None:
    """The weights of one vector's codes, as an array; those not mentioned weigh nothing.

    Raises: CriteriaError: a weight is not a whole number, or it is too large.
    """
    if weights is None:
        return None
    counts = weights.get(vector, {})
    for code, count in counts.items():
        try:
            fits = 0 <= index(count) < MOST_WEIGHT
        except TypeError:
            fits = False
        if not fits:
            raise CriteriaError(
                f"{count!r} is not a weight for error code {code:#x}; "
                "count with whole numbers from 0 to 2**35",
                field=vector_label(vector),
            )
    return np.array([counts.get(int(code), 0) for code in codes], dtype=np.int64)


def weightless(tasks: Iterable[Task], weights: Weights | None) -> list[str]:
    """What of the weights does not count, in words: faults whose error codes nobody considers."""
    told = []
    for task in tasks:
        counts = (weights or {}).get(task.vector, {})
        known = set(task.codes().tolist())
        lost = sum(count for code, count in counts.items() if code not in known)
        if task.layout is not None and lost:
            told.append(
                f"{lost} of {sum(counts.values())} faults with vector {vector_label(task.vector)} "
                "do not count as weights: their error codes are unknown or have other bits"
            )
    return told


def remarks(spec: Spec) -> list[str]:
    """What was probably not meant, in words."""
    told = []
    for wishes in spec.vectors.values():
        if wishes.layout is None:
            continue
        codes, goals = wishes.goals()
        occurs: Truths = np.asarray(wishes.layout.occurs(codes), dtype=np.bool_)
        told += [
            f"{spec.path or 'line'}:{wish.line}: names no error code that the processor can raise"
            for wish in wishes.wishes
            if not wishes.keep_impossible and not (wish.names(codes) & occurs).any()
        ]
        told += [
            f"{vector_label(wishes.vector)}: {words}, what no wish names being free; "
            f'default = "{other}" changes that'
            for goal, other, words in (
                (EXIT, "deliver", "nothing has to be delivered, so all may exit"),
                (DELIVER, "exit", "nothing has to exit, so nothing does"),
            )
            if wishes.wishes and wishes.default == "free" and set(goals.tolist()) == {FREE, goal}
        ]
    return told


def _never(_code: Any) -> Any:
    from trapgate.criteria.problems.solvers import z3_module

    return z3_module().BoolVal(False)
