"""The best filters of figure 5: an any-bit mask, which serves all vectors, and pairs (¶54-58)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trapgate.criteria.covers.cubes import Cube, inside
from trapgate.criteria.covers.pairs import Shape, cost_of, outside_one, pair_of
from trapgate.criteria.problems.problem import NEVER, UNSERVED, Costs, Deadline, Problem, together

_WITNESSES = 4
"""Codes that must exit which a bound looks at."""


class _Part:
    """One problem of figure 5, for every mask: what it costs at least, and exactly.

    With the control bit 1 (¶56 without it) a code exits that has a bit of the mask or
    lies in the problem's cube: the best is the supercube of what must exit and has none
    of the mask's bits. With the control bit 0 (`invertible`) a code exits that has none and lies
    outside the cube: no code that must exit may have a bit of the mask, and the cube is
    the heaviest of what is left.
    """

    def __init__(
        self, problem: Problem, unserved: int, invertible: bool, deadline: Deadline
    ) -> None:
        self.problem, self.unserved, self.deadline = problem, unserved, deadline
        size = len(problem.must)
        every = size - 1
        numbers = np.arange(size)
        spared = problem.cost.copy()
        some = np.where(problem.must, numbers, 0)
        ones = np.where(problem.must, numbers, every)
        held = problem.must.copy()
        for n in range(problem.width):
            # From sums over single codes to sums over all codes whose bits lie in the index.
            for table, combine in (
                (spared, np.add),
                (some, np.bitwise_or),
                (ones, np.bitwise_and),
                (held, np.logical_or),
            ):
                halves = table.reshape(-1, 2, 1 << n)
                halves[:, 1] = combine(halves[:, 1], halves[:, 0])
        apart = every ^ numbers
        self._floor = int(problem.cost.sum()) - spared[apart]
        some, ones = some[apart], ones[apart]
        self._empty = ~held[apart]
        self._fixed = every & ~(some ^ ones)
        self._value = ones & self._fixed
        self.widest = every & ~int(np.bitwise_or.reduce(numbers[problem.must], initial=0))
        """The mask of all bits that no code has which must exit."""
        self._spare = int(np.bitwise_or.reduce(numbers[problem.cost > 0], initial=0))
        self._cubes: dict[Cube, int] = {}
        self._outsides: dict[int, Shape] = {}
        self._outside_bounds = np.full(size, UNSERVED)
        self.bounds = np.minimum(self._floor, unserved)
        if invertible:
            # More bits in the mask only spare more.
            least = np.maximum(self._least_outside(spared), self._outside(self.widest).cost)
            allowed = (numbers & ~self.widest) == 0
            self._outside_bounds = np.where(allowed, least, UNSERVED)
            self.bounds = np.minimum(self.bounds, self._outside_bounds)

    def _least_outside(self, sums: Costs) -> Costs:
        """For each mask, less than what can exit with the control bit 0; `sums` are over subsets.

        The cube does not hold a code that must exit, so it is on the other side of some
        bit; what is on this side exits.
        """
        apart = len(sums) - 1 ^ np.arange(len(sums))
        must = np.flatnonzero(self.problem.must)
        least = np.zeros_like(sums)
        for code in must[np.linspace(0, len(must) - 1, min(len(must), _WITNESSES)).astype(int)]:
            exits = np.full_like(sums, UNSERVED)
            for n in range(self.problem.width):
                low = sums[apart & ~(1 << n)]
                exits = np.minimum(exits, sums[apart] - low if code >> n & 1 else low)
            least = np.maximum(least, exits)
        return least

    def shape(self, mask: int, limit: int) -> Shape | None:
        """The best for that mask, if it costs less than `limit` and than being unserved."""
        limit, found = min(limit, self.unserved), None
        if self._floor[mask] < limit:
            within = self._inside(mask)
            if within.cost < limit:
                limit, found = within.cost, within
        if self._outside_bounds[mask] < limit:
            outside = self._outside(mask)
            if outside.cost < limit:
                found = outside
        return found

    def _inside(self, mask: int) -> Shape:
        cube = None
        cost = int(self._floor[mask])
        if not self._empty[mask]:
            cube = Cube(int(self._fixed[mask]), int(self._value[mask]))
            if cube not in self._cubes:
                self._cubes[cube] = cost_of(self.problem, inside(cube, len(self.problem.must)))
            cost += self._cubes[cube]
        return Shape(cost, pair_of(self.problem, cube), self.problem.code(mask))

    def _outside(self, mask: int) -> Shape:
        problem = self.problem
        telling = mask & self._spare  # the mask's other bits spare nothing
        if telling not in self._outsides:
            spared = (np.arange(len(problem.must)) & telling) != 0
            left = Problem(problem.positions, problem.must, np.where(spared, 0, problem.cost))
            self._outsides[telling] = outside_one(left, self.deadline)
        return replace(self._outsides[telling], any_mask=problem.code(mask))


def any_or_inside(
    problems: Sequence[Problem],
    unserved: Sequence[int],
    *,
    invertible: bool,
    deadline: Deadline = NEVER,
) -> list[Shape | None]:
    """Figure 5 (`invertible`), and without the control bit (¶56); the any-bit mask is one for all.

    `unserved` as in `inside_two`. Masks are tried from the cheapest on, until none can be
    better.
    """
    small = together(problems)
    parts = [
        _Part(one, limit, invertible, deadline) for one, limit in zip(small, unserved, strict=True)
    ]
    bounds = np.sum([part.bounds for part in parts], axis=0)
    order = np.lexsort((np.bitwise_count(np.arange(len(bounds))), bounds))
    least = sum(unserved) + 1
    best: list[Shape | None] = [None] * len(parts)
    for mask in order.tolist():
        deadline.check()
        total = int(bounds[mask])
        if total >= least:
            break
        shapes = []
        for part in parts:
            bound = int(part.bounds[mask])
            shape = part.shape(mask, least - total + bound)
            total += (part.unserved if shape is None else shape.cost) - bound
            shapes.append(shape)
        if total < least:
            least, best = total, shapes
    return best
