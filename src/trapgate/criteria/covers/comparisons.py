"""The best comparison of the error code with a value (¶38), which serves all vectors.

What exits is told by two running sums: over the codes below the value, and over those up
to it. The same expression gives the cost of what exits and how many must exit of it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.problems.codes import Codes
from trapgate.criteria.problems.problem import UNSERVED, Problem

HIGHEST = 0xFFFFFFFF

EXITS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "equal": lambda below, upto, _total: upto - below,
    "not-equal": lambda below, upto, total: total - (upto - below),
    "less": lambda below, _upto, _total: below,
    "less-or-equal": lambda _below, upto, _total: upto,
    "greater": lambda _below, upto, total: total - upto,
    "greater-or-equal": lambda below, _upto, total: total - below,
}
"""The sum over what exits, from the sums over the codes below the value, up to it, and all."""


class Comparison(NamedTuple):
    """An operator, its value, and what each problem costs under it; None: left unserved."""

    operator: str
    value: int
    costs: tuple[int | None, ...]


def best_comparison(
    problems: Sequence[Problem], unserved: Sequence[int], operators: Iterable[str]
) -> Comparison | None:
    """The best operator and value for all problems; None if there is no operator to choose.

    `unserved` is what it costs to leave a problem to its control bit. Among equals the
    one under which the fewest codes exit, those that are free included.
    """
    values = _values([one.codes() for one in problems])
    best: tuple[tuple[int, int], Comparison] | None = None
    for operator in operators:
        costs, exits = zip(*(_sums(one, operator, values) for one in problems), strict=True)
        total = sum(map(np.minimum, costs, unserved))
        count = sum(exits)
        places = np.flatnonzero(total == total.min())
        place = places[np.argmin(count[places])]
        rank = int(total[place]), int(count[place])
        if best is None or rank < best[0]:
            told = tuple(
                int(cost[place]) if cost[place] < limit else None
                for cost, limit in zip(costs, unserved, strict=True)
            )
            best = rank, Comparison(operator, int(values[place]), told)
    return None if best is None else best[1]


def comparable(must: Codes, spare: Codes, operators: Iterable[str]) -> list[str]:
    """The operators that make all of `must` exit and none of `spare`, for some value."""
    must, spare = np.sort(must), np.sort(spare)
    values = _values([must, spare])
    found = []
    for operator in operators:
        every = _exits(must, np.ones(len(must), dtype=np.int64), operator, values) == len(must)
        none = _exits(spare, np.ones(len(spare), dtype=np.int64), operator, values) == 0
        if (every & none).any():
            found.append(operator)
    return found


def _values(codes: Sequence[Codes]) -> Codes:
    """Between these values nothing changes."""
    some = np.concatenate([*codes, np.array([0, HIGHEST])])
    return np.unique(np.concatenate([some, np.minimum(some + 1, HIGHEST)]))


def _sums(
    problem: Problem, operator: str, values: Codes
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What a problem costs under each value (UNSERVED where not all exits that must), and how
    many codes exit.
    """
    codes = problem.codes()
    must = problem.must.astype(np.int64)
    sound = _exits(codes, must, operator, values) == must.sum()
    cost = np.where(sound, _exits(codes, problem.cost, operator, values), UNSERVED)
    return cost, _exits(codes, np.ones_like(must), operator, values)


def _exits(
    codes: Codes, weights: NDArray[np.int64], operator: str, values: Codes
) -> NDArray[np.int64]:
    """The sum of the (ascending) codes' weights over what exits, for each value."""
    sums = np.concatenate([[0], np.cumsum(weights)])
    below = sums[np.searchsorted(codes, values, side="left")]
    upto = sums[np.searchsorted(codes, values, side="right")]
    found: NDArray[np.int64] = EXITS[operator](below, upto, sums[-1])
    return found
