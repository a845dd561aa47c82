"""Tasks: what is asked of each vector, whoever asks: a SPEC, filters to merge, a trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.codes import Codes, Layout, Truths
from trapgate.criteria.problem import Costs, Problem, problem
from trapgate.criteria.proof import Term, membership, wished
from trapgate.criteria.spec import (
    DELIVER,
    EXIT,
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
    """The weights of one vector's codes, as an array."""
    if weights is None:
        return None
    counts = weights.get(vector, {})
    return np.array([counts.get(int(code), 0) for code in codes], dtype=np.int64)


def hopeless(wishes: VectorWishes) -> list[int]:
    """Lines of wishes that name only codes which the processor cannot raise."""
    if wishes.layout is None or wishes.keep_impossible:
        return []
    codes = wishes.layout.codes()
    occurs: Truths = np.asarray(wishes.layout.occurs(codes), dtype=np.bool_)
    return [wish.line for wish in wishes.wishes if not (wish.names(codes) & occurs).any()]


def _never(_code: Any) -> Any:
    from trapgate.criteria.solvers import z3_module

    return z3_module().BoolVal(False)
