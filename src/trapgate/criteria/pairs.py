"""The best filters of the schemes that are made of cubes: figures 3, 4 and 5 (¶40-58).

All work on `Problem.reduced()`; each answer is a `Shape`, whose cubes are given in the
error code's own bits. Costs are packed (`problem.py`).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.cubes import (
    TABLE_WIDTH,
    Cube,
    cube_of,
    cube_sums,
    fixed_counts,
    heaviest,
    inside,
    number_of,
    supercube,
)
from trapgate.criteria.problem import NEVER, Deadline, Problem

Pair = tuple[int, int]
"""Mask and match, as VMCS fields hold them."""


@dataclass(frozen=True)
class Shape:
    """The codes x with a bit of `any_mask` set, or in one of `pairs`; or all the others.

    Those exit if `inverted` is False, all others if it is True. `cost` is that of the
    needless exits.
    """

    cost: int
    pairs: tuple[Pair, ...] = ()
    any_mask: int = 0
    inverted: bool = False


def _pairs(problem: Problem, *cubes: Cube | None) -> tuple[Pair, ...]:
    return tuple(
        (problem.code(cube.fixed), problem.code(cube.value)) for cube in cubes if cube is not None
    )


def _cost(problem: Problem, exits: NDArray[np.bool_]) -> int:
    return int(problem.cost[exits].sum())


def inside_one(problem: Problem) -> Shape:
    """What lies in one cube exits: the supercube of all that must, and no smaller one does."""
    small = problem.reduced()
    cube = supercube(small.must)
    return Shape(_cost(small, inside(cube, len(small.must))), _pairs(small, cube))


def outside_one(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """What lies outside one cube exits: the heaviest cube without a code that must exit."""
    small = problem.reduced()
    cube = heaviest(small.cost, small.must, deadline)
    exits = ~inside(cube, len(small.must))
    return Shape(_cost(small, exits), _pairs(small, cube), inverted=True)


def best_of_one(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """One cube with either polarity (figure 3)."""
    first = inside_one(problem)
    if first.cost == 0:
        return first
    second = outside_one(problem, deadline)
    return second if second.cost < first.cost else first


def inside_two(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """What lies in either of two cubes exits (figure 4).

    Whatever the first cube is, the best second is the supercube of what the first
    leaves; so trying all firsts is exact.
    """
    small = problem.reduced()
    one = inside_one(small)
    if one.cost == 0:
        return one
    if small.width > TABLE_WIDTH:
        return _grow_two(small, one, deadline)
    width, size = small.width, len(small.must)
    some, ones = _rest(small)
    sums = cube_sums(small.cost, width)
    empty = some < ones  # no code is left: nothing ORed, everything ANDed
    fixed = np.where(empty, 0, (size - 1) & ~(some ^ ones))
    value = np.where(empty, 0, ones)
    second = number_of(fixed, value, width)
    costs = sums + np.where(empty, 0, sums[second] - _shared(sums, fixed, value, width))
    counts = fixed_counts(width) + np.where(empty, 0, fixed_counts(width)[second])
    best = int(costs.min())
    places = np.flatnonzero(costs == best)
    place = int(places[np.argmin(counts[places])])
    cubes = [cube_of(place, width)]
    if not empty[place]:
        cubes.append(Cube(int(fixed[place]), int(value[place])))
    return Shape(best, _pairs(small, *cubes))


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


def _grow_two(problem: Problem, one: Shape, deadline: Deadline) -> Shape:
    """Branch and bound: each code that must exit joins one cube or the other.

    A cube only grows, and so does its cost; what costs as much as the best is cut off.
    """
    index = np.flatnonzero(problem.must)
    size = len(problem.must)
    every = size - 1
    numbers = np.arange(size)
    best_cost = one.cost
    best: tuple[Cube | None, Cube | None] = supercube(problem.must), None

    def joined(cube: Cube | None, code: int) -> Cube:
        if cube is None:
            return Cube(every, code)
        fixed = cube.fixed & ~(cube.value ^ code)
        return Cube(fixed, cube.value & fixed)

    seen: set[tuple[Cube, Cube | None]] = set()
    stack: list[tuple[Cube, Cube | None]] = [(joined(None, int(index[0])), None)]
    while stack:
        deadline.check()
        first, second = stack.pop()
        if (first, second) in seen:
            continue
        seen.add((first, second))
        exits = (numbers & first.fixed) == first.value
        if second is not None:
            exits |= (numbers & second.fixed) == second.value
        cost = int(problem.cost[exits].sum())
        if cost >= best_cost:
            continue
        left = index[~exits[index]]
        if not len(left):
            best_cost, best = cost, (first, second)
            continue
        # The code that is farthest from both cubes decides most.
        far = np.bitwise_count((left ^ first.value) & first.fixed)
        if second is not None:
            far = np.minimum(far, np.bitwise_count((left ^ second.value) & second.fixed))
        code = int(left[np.argmax(far)])
        stack.append((joined(first, code), second))
        stack.append((first, joined(second, code)))
    return Shape(best_cost, _pairs(problem, *best))


def any_or_inside(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """What has a bit of a mask set or lies in one cube exits (¶56; figure 5, control bit 1).

    For each mask, the best cube is the supercube of what must exit and has none of the
    mask's bits; masks are tried from the cheapest on, until none can be better.
    """
    small = problem.reduced()
    if not small.must.any():
        return Shape(0)
    width, size = small.width, len(small.must)
    every = size - 1
    below_cost = small.cost.copy()
    some = np.where(small.must, np.arange(size), 0)
    ones = np.where(small.must, np.arange(size), every)
    for n in range(width):
        # From sums over single codes to sums over all codes whose bits lie in the index.
        for table, combine in (
            (below_cost, np.add),
            (some, np.bitwise_or),
            (ones, np.bitwise_and),
        ):
            halves = table.reshape(-1, 2, 1 << n)
            halves[:, 1] = combine(halves[:, 1], halves[:, 0])
    total = int(small.cost.sum())
    masks = np.arange(size)
    apart = every ^ masks
    floor = total - below_cost[apart]
    some, ones = some[apart], ones[apart]
    empty = some < ones
    fixed = every & ~(some ^ ones)
    if width <= TABLE_WIDTH:
        sums = cube_sums(small.cost, width)
        costs = floor + np.where(empty, 0, sums[number_of(fixed, ones & fixed, width)])
        best = int(costs.min())
        # Among equals, the fewest bits in the mask, which is easiest to read.
        places = np.flatnonzero(costs == best)
        mask = int(places[np.argmin(np.bitwise_count(places))])
    else:
        mask, best = _cheapest_mask(small, floor, fixed, ones, empty, deadline)
    cube = None if empty[mask] else Cube(int(fixed[mask]), int(ones[mask] & fixed[mask]))
    return Shape(best, _pairs(small, cube), small.code(mask))


def _cheapest_mask(
    problem: Problem,
    floor: NDArray[np.int64],
    fixed: NDArray[np.int64],
    ones: NDArray[np.int64],
    empty: NDArray[np.bool_],
    deadline: Deadline,
) -> tuple[int, int]:
    best, best_mask = int(problem.cost.sum()) + 1, 0
    known: dict[tuple[int, int], int] = {}
    for mask in np.argsort(floor, kind="stable"):
        if floor[mask] >= best:
            break
        deadline.check()
        cost = 0
        if not empty[mask]:
            cube = int(fixed[mask]), int(ones[mask] & fixed[mask])
            if cube not in known:
                known[cube] = int(problem.cost[inside(Cube(*cube), len(problem.cost))].sum())
            cost = known[cube]
        if floor[mask] + cost < best:
            best, best_mask = int(floor[mask]) + cost, int(mask)
    return best_mask, best


def neither_any_nor_inside(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """What has no bit of a mask set and lies outside one cube exits (figure 5, control bit 0).

    The mask can have every bit that no code has which must exit: more bits only spare
    more. The cube is the heaviest of what is left.
    """
    index = np.flatnonzero(problem.must)
    mask = (len(problem.must) - 1) & ~int(np.bitwise_or.reduce(index, initial=0))
    spared = (np.arange(len(problem.must)) & mask) != 0
    left = Problem(problem.positions, problem.must, np.where(spared, 0, problem.cost))
    outside = outside_one(left, deadline)
    return Shape(outside.cost, outside.pairs, problem.code(mask), inverted=True)


def best_of_figure_5(problem: Problem, deadline: Deadline = NEVER) -> Shape:
    """Figure 5 with either value of the control bit."""
    first = any_or_inside(problem, deadline)
    if first.cost == 0:
        return first
    second = neither_any_nor_inside(problem, deadline)
    return second if second.cost < first.cost else first
