"""The best filters of the schemes that are made of pairs only: figures 3 and 4 (¶40-53).

All work on `Problem.reduced()`; each answer is a `Shape`, whose cubes are given in the
error code's own bits. Costs are packed (`problem.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.covers.cubes import (
    TABLE_WIDTH,
    Cube,
    cube_of,
    cube_sums,
    fixed_counts,
    heaviest,
    inside,
    joined,
    number_of,
    supercube,
)
from trapgate.criteria.problems.problem import NEVER, Deadline, Problem, together

Pair = tuple[int, int]
"""Mask and match, as VMCS fields hold them."""


@dataclass(frozen=True)
class Shape:
    """The codes x with a bit of `any_mask` set, or in `pair` or `shared`; or all the others.

    Those exit if `inverted` is False, all others if it is True. `pair` is the vector's own,
    `shared` the one that serves all vectors; None is a pair that holds no code. `cost` is
    that of the needless exits.
    """

    cost: int
    pair: Pair | None = None
    any_mask: int = 0
    inverted: bool = False
    shared: Pair | None = None


def pair_of(problem: Problem, cube: Cube | None) -> Pair | None:
    """A cube as mask and match, in the error code's own bits."""
    return None if cube is None else (problem.code(cube.fixed), problem.code(cube.value))


def cost_of(problem: Problem, exits: NDArray[np.bool_]) -> int:
    """What it costs if these indices exit."""
    return int(problem.cost[exits].sum())


def inside_one(problem: Problem) -> Shape:
    """What lies in one cube exits: the supercube of all that must, and no smaller one does."""
    small = problem.reduced()
    cube = supercube(small.must)
    return Shape(cost_of(small, inside(cube, len(small.must))), pair_of(small, cube))


def outside_one(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """What lies outside one cube exits: the heaviest cube without a code that must exit."""
    small = problem.reduced()
    cube = heaviest(small.cost, small.must, deadline)
    exits = ~inside(cube, len(small.must))
    return Shape(cost_of(small, exits), pair_of(small, cube), inverted=True)


def best_of_one(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """One cube with either polarity (figure 3)."""
    first = inside_one(problem)
    if first.cost == 0:
        return first
    second = outside_one(problem, deadline)
    return second if second.cost < first.cost else first


def inside_two(
    problems: Sequence[Problem],
    unserved: Sequence[int],
    deadline: Deadline = NEVER,
    *,
    pairs: int = 2,
) -> list[Shape | None]:
    """What lies in one of two cubes exits (figure 4); the second is the same for all problems.

    `unserved` is what it costs to leave a problem to its control bit: None in the answer.
    Whatever the second cube is, the best first is the supercube of what the second
    leaves; so trying all seconds is exact.
    """
    small = together(problems)
    alone = _with_shared(small, unserved, [supercube(one.must) for one in small], None)
    least = total_cost(alone, unserved)
    width, size = small[0].width, len(small[0].must)
    if pairs < 2 or least == 0:
        return alone
    if width > TABLE_WIDTH:
        return _grow_two(small, unserved, deadline)
    total = np.zeros(3**width, dtype=np.int64)
    counts = fixed_counts(width)
    for one, limit in zip(small, unserved, strict=True):
        deadline.check()
        some, ones_of = _rest(one)
        sums = cube_sums(one.cost, width)
        empty = some < ones_of  # no code is left: nothing ORed, everything ANDed
        fixed = np.where(empty, 0, (size - 1) & ~(some ^ ones_of))
        value = np.where(empty, 0, ones_of)
        own = number_of(fixed, value, width)
        costs = sums + np.where(empty, 0, sums[own] - _shared(sums, fixed, value, width))
        total += np.minimum(costs, limit)
    if int(total.min()) >= least:
        return alone
    places = np.flatnonzero(total == total.min())
    shared = cube_of(int(places[np.argmin(counts[places])]), width)
    held = inside(shared, size)
    return _with_shared(small, unserved, [supercube(one.must & ~held) for one in small], shared)


def total_cost(found: Sequence[Shape | None], unserved: Sequence[int]) -> int:
    """What shapes cost together, and what it costs to leave the others unserved."""
    return sum(
        limit if one is None else one.cost for one, limit in zip(found, unserved, strict=True)
    )


def _with_shared(
    problems: Sequence[Problem],
    unserved: Sequence[int],
    cubes: Sequence[Cube | None],
    shared: Cube | None,
) -> list[Shape | None]:
    shapes: list[Shape | None] = []
    for one, limit, cube in zip(problems, unserved, cubes, strict=True):
        size = len(one.must)
        cost = cost_of(one, inside(cube, size) | inside(shared, size))
        shape = Shape(cost, pair_of(one, cube), shared=pair_of(one, shared))
        shapes.append(shape if cost < limit else None)
    return shapes


def _rest(problem: Problem) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """OR and AND of the codes that must exit and lie outside each of the 3**n cubes.

    Outside a cube is: in the other half of one of the bits that it fixes.
    """
    every = len(problem.must) - 1
    index = np.flatnonzero(problem.must)
    some = np.zeros(1, dtype=np.int64)
    ones = np.full(1, every, dtype=np.int64)
    for n in reversed(range(problem.width)):
        high = index[(index >> n & 1) == 1]
        low = index[(index >> n & 1) == 0]
        ors = [int(np.bitwise_or.reduce(half)) if len(half) else 0 for half in (high, low)]
        ands = [int(np.bitwise_and.reduce(half)) if len(half) else every for half in (high, low)]
        some = np.bitwise_or.outer(some, np.array([*ors, 0])).reshape(-1)
        ones = np.bitwise_and.outer(ones, np.array([*ands, every])).reshape(-1)
    return some, ones


def _shared(
    sums: NDArray[np.int64], fixed: NDArray[np.int64], value: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
    """For each of the 3**n cubes, the sum over what it shares with its partner."""
    number = np.zeros(len(sums), dtype=np.int64)
    apart = np.zeros(len(sums), dtype=np.bool_)
    places = np.arange(len(sums))
    scale = 1
    for n in range(width):
        mine = places // scale % 3
        theirs = np.where(fixed >> n & 1, value >> n & 1, 2)
        apart |= (mine + theirs == 1) & (mine != theirs)
        number += np.minimum(mine, theirs) * scale
        scale *= 3
    return np.where(apart, 0, sums[number])


def _grow_two(
    problems: Sequence[Problem], unserved: Sequence[int], deadline: Deadline
) -> list[Shape | None]:
    """Branch and bound: each code that must exit joins its problem's own cube or the shared one.

    A cube only grows, and so does its cost; what costs as much as the best is cut off. A
    problem that costs as much as leaving it unserved is left so.
    """
    size = len(problems[0].must)
    every = size - 1
    numbers = np.arange(size)
    musts = [np.flatnonzero(one.must) for one in problems]

    @cache
    def cost(place: int, own: Cube | None, shared: Cube | None) -> int:
        exits = np.zeros(size, dtype=np.bool_)
        for cube in (own, shared):
            if cube is not None:
                exits |= (numbers & cube.fixed) == cube.value
        return min(int(problems[place].cost[exits].sum()), unserved[place])

    def farthest(place: int, own: Cube | None, shared: Cube | None) -> int | None:
        """The most decisive of the codes that neither cube holds; None if there is none."""
        codes = musts[place]
        distance = np.full(len(codes), size)
        for cube in (own, shared):
            if cube is not None:
                apart = np.bitwise_count((codes ^ cube.value) & cube.fixed)
                distance = np.minimum(distance, apart)
        at = int(np.argmax(distance))
        return int(codes[at]) if distance[at] else None

    best: _State = (tuple(supercube(one.must) for one in problems), None)
    least = sum(cost(place, own, None) for place, own in enumerate(best[0]))
    seen: set[_State] = set()
    stack: list[_State] = [((None,) * len(problems), None)]
    while stack:
        deadline.check()
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        owns, shared = state
        costs = [cost(place, own, shared) for place, own in enumerate(owns)]
        if sum(costs) >= least:
            continue
        for place, own in enumerate(owns):
            if costs[place] < unserved[place]:
                code = farthest(place, own, shared)
                if code is not None:
                    break
        else:
            least, best = sum(costs), state
            continue
        grown = (*owns[:place], joined(own, code, every), *owns[place + 1 :])
        if len(problems) > 1 or own is not None:  # a lone problem's first cube may be either
            stack.append((owns, joined(shared, code, every)))
        stack.append((grown, shared))
    return _with_shared(problems, unserved, *best)


_State = tuple[tuple[Cube | None, ...], Cube | None]
"""Each problem's own cube, and the shared one, as far as they have grown."""
