"""Cubes: the codes that one pair of mask and match lets through, and how to find the best.

A cube of n bits is (fixed, value): the indices x with `x & fixed == value`. Tables of all
3**n cubes are arrays with one axis a bit, the highest first, and three places along
each: bit 0, bit 1, bit free. (Quine-McCluskey's implicants, in NumPy.)
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.problems.codes import Codes, Truths
from trapgate.criteria.problems.problem import NEVER, Costs, Deadline

TABLE_WIDTH = 12
"""Up to so many bits all cubes are tabulated: 531,441 of them."""

_BATCH = 1 << 16
"""Entries that a search looks at together: as many as a processor's cache holds."""


class Cube(NamedTuple):
    """The indices x with `x & fixed == value`."""

    fixed: int
    value: int


def spanned(codes: Codes, every: int) -> Cube:
    """The smallest cube that holds all of `codes` (not none); `every` has all bits set."""
    ones = int(np.bitwise_and.reduce(codes))
    some = int(np.bitwise_or.reduce(codes))
    return Cube(every & ~(some ^ ones), ones)


def supercube(members: Truths) -> Cube | None:
    """The smallest cube that holds all marked indices; None if there are none."""
    index = np.flatnonzero(members).astype(np.int64)
    return spanned(index, len(members) - 1) if len(index) else None


def joined(cube: Cube | None, code: int, every: int) -> Cube:
    """The smallest cube that holds `cube` and one code more."""
    if cube is None:
        return Cube(every, code)
    fixed = cube.fixed & ~(cube.value ^ code)
    return Cube(fixed, cube.value & fixed)


def inside(cube: Cube | None, size: int) -> Truths:
    """Which of `size` indices lie in a cube; none if it is None."""
    if cube is None:
        return np.zeros(size, dtype=np.bool_)
    held: Truths = (np.arange(size) & cube.fixed) == cube.value
    return held


def cube_sums(values: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The sum over each of the 3**width cubes, flat."""
    table = values.reshape((2,) * width)
    for axis in range(width):
        table = np.concatenate([table, table.sum(axis=axis, keepdims=True)], axis=axis)
    return table.reshape(-1)


def cube_any(members: Truths, width: int) -> Truths:
    """Whether each of the 3**width cubes holds a marked index, flat."""
    table = members.reshape((2,) * width)
    for axis in range(width):
        table = np.concatenate([table, table.any(axis=axis, keepdims=True)], axis=axis)
    return table.reshape(-1)


def cube_of(number: int, width: int) -> Cube:
    """The cube at that place of a flat table."""
    fixed = value = 0
    for n in range(width):
        number, place = divmod(number, 3)
        if place < 2:
            fixed |= 1 << n
            value |= place << n
    return Cube(fixed, value)


def number_of(fixed: Any, value: Any, width: int) -> Any:
    """The place of a cube in a flat table; ints or arrays."""
    number = fixed * 0
    for n in reversed(range(width)):
        place = np.where(fixed >> n & 1, value >> n & 1, 2)
        number = number * 3 + place
    return number


def fixed_counts(width: int) -> NDArray[np.int64]:
    """How many bits each of the 3**width cubes fixes, flat."""
    counts = np.zeros(1, dtype=np.int64)
    for _ in range(width):
        counts = np.add.outer(counts, np.array([1, 1, 0])).reshape(-1)
    return counts


def heaviest(weights: Costs, forbidden: Truths, deadline: Deadline = NEVER) -> Cube | None:
    """The cube with the largest sum of `weights` that holds no forbidden index.

    None if no cube without forbidden indices has a positive sum. Among equals one that
    fixes few bits. Exact: all cubes by table, or a search that cuts off only what
    cannot be better.
    """
    width = len(weights).bit_length() - 1
    alive = np.where(forbidden, 0, weights)
    if not alive.any():
        return None
    every = supercube(alive > 0)
    assert every is not None
    if not (forbidden & inside(every, len(weights))).any():
        return every
    if width <= TABLE_WIDTH:
        sums = cube_sums(weights, width)
        sums[cube_any(forbidden, width)] = 0
        best = int(sums.max())
        places = np.flatnonzero(sums == best)
        counts = fixed_counts(width)[places]
        return cube_of(int(places[np.argmin(counts)]), width)
    return _search(weights, forbidden, width, deadline)


class _States(NamedTuple):
    """Cubes of which the highest bits are decided; one row each.

    A row of `sums` has the weight over the decided bits for each value of the others, and
    minus infinity where the cube would hold a forbidden index. (`problem.py` keeps costs
    below 2**53, so that these sums are exact.) `fixed` and `values` are the cubes so far.
    """

    bits: int
    sums: NDArray[np.float64]
    fixed: NDArray[np.int64]
    values: NDArray[np.int64]

    def of(self, rows: Any) -> "_States":
        """Only those rows."""
        return _States(self.bits, self.sums[rows], self.fixed[rows], self.values[rows])

    def bounds(self) -> NDArray[np.float64]:
        """No cube of a row weighs more than all that is not forbidden."""
        bounds: NDArray[np.float64] = np.maximum(self.sums, 0).sum(axis=1)
        return bounds

    def decided(self) -> "_States":
        """The highest open bit decided in each of the three ways: 0, 1, free."""
        bit = 1 << self.bits - 1
        rows = len(self.sums)
        sums = np.empty((3 * rows, bit))
        sums[:rows] = low = self.sums[:, :bit]
        sums[rows : 2 * rows] = high = self.sums[:, bit:]
        np.add(low, high, out=sums[2 * rows :])
        fixed = np.concatenate([self.fixed | bit, self.fixed | bit, self.fixed])
        values = np.concatenate([self.values, self.values | bit, self.values])
        return _States(self.bits - 1, sums, fixed, values)


_WIDE = 8
"""Rows with more open bits than this are hardly ever cut off: not worth a look."""


def _search(weights: Costs, forbidden: Truths, width: int, deadline: Deadline) -> Cube | None:
    """Branch and bound over the bits, depth first over batches of states."""
    zero = np.zeros(1, np.int64)
    sums = np.where(forbidden, -np.inf, weights.astype(np.float64))[None]
    best = _grown(weights, forbidden)
    least = float(weights[inside(best, len(weights))].sum())
    stack = [_States(width, sums, zero, zero)]
    while stack:
        deadline.check()
        states = stack.pop()
        if states.bits <= _WIDE:
            bounds = states.bounds()
            states = states.of(bounds > least)
            if not len(states.sums):
                continue
        if states.bits == 0:
            place = int(np.argmax(states.sums[:, 0]))
            best = Cube(int(states.fixed[place]), int(states.values[place]))
            least = float(states.sums[place, 0])
        elif len(states.sums) > 1 and states.sums.size > _BATCH:
            # The more promising half comes last, so that it is taken first.
            order = np.argsort(states.bounds())
            half = len(order) // 2
            stack += [states.of(order[:half]), states.of(order[half:])]
        else:
            stack.append(states.decided())
    return best


def _grown(weights: Costs, forbidden: Truths) -> Cube:
    """A good cube to begin with: the heaviest of those grown from some heavy codes."""
    size = len(weights)
    width = size.bit_length() - 1
    alive = np.where(forbidden, 0, weights)
    index = np.arange(size)
    bad = index[forbidden]
    best, best_weight = Cube(size - 1, int(np.argmax(alive))), int(alive.max())
    for seed in np.argsort(-alive)[: 2 * width]:
        if not alive[seed]:
            break
        # Bits that keep most forbidden codes away are given up last.
        differ = bad ^ seed
        fixed = size - 1
        for n in sorted(range(width), key=lambda n: int((differ == 1 << n).sum())):
            wider = fixed & ~(1 << n)
            if not ((differ & wider) == 0).any():
                fixed = wider
        cube = Cube(fixed, int(seed) & fixed)
        weight = int(weights[(index & fixed) == cube.value].sum())
        if weight > best_weight:
            best, best_weight = cube, weight
    return best
