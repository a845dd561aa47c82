"""One vector's wishes as arrays: which codes must exit, and what each needless exit costs.

Codes are numbered by the bits that may be set: bit n of an index stands for the error
code's bit `positions[n]`. A cost of 0 means free. Costs are compared by weight first,
then by the number of codes: both are packed into one integer.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.errors import CriteriaError, UndecidedError
from trapgate.criteria.problems.codes import Codes, Truths, deposited

Costs = NDArray[np.int64]

UNSERVED = 1 << 58
"""A cost above all others: that of not being served, where that is no choice."""

ONE_CODE = 1
WEIGHT = 1 << 17
"""What one unit of weight costs: more than all codes of 16 bits together."""
MOST_WEIGHT = 1 << 35
"""Weights add up to less than this."""


@dataclass(frozen=True)
class Problem:
    """What is asked of one vector's criterion.

    `must` marks the codes that must exit; `cost` (packed) is what it costs if a code
    exits that should not, 0 for codes that must exit or are free. Both have an entry
    for each value of the bits at `positions`.
    """

    positions: tuple[int, ...]
    must: Truths
    cost: Costs
    _reduced: list["Problem"] = field(default_factory=list, compare=False, repr=False)

    @property
    def width(self) -> int:
        """The number of bits."""
        return len(self.positions)

    def code(self, index: int) -> int:
        """The error code of that index; also a mask or match given as an index."""
        return int(deposited(int(index), self.positions))

    def codes(self) -> Codes:
        """All codes, ascending."""
        codes: Codes = deposited(np.arange(len(self.must), dtype=np.int64), self.positions)
        return codes

    def must_codes(self) -> Codes:
        """The codes that must exit, ascending."""
        index = np.flatnonzero(self.must).astype(np.int64)
        codes: Codes = deposited(index, self.positions)
        return codes

    def reduced(self) -> "Problem":
        """The same without bits that tell nothing about what must exit (see `together`)."""
        if not self._reduced:
            self._reduced.extend(together([self]))
        return self._reduced[0]

    def over(self, positions: tuple[int, ...]) -> "Problem":
        """The same over more bits, which are 0 in all of its codes."""
        if positions == self.positions:
            return self
        codes = self.codes()
        index = np.zeros_like(codes)
        for n, position in enumerate(positions):
            index |= (codes >> position & 1) << n
        must = np.zeros(1 << len(positions), dtype=np.bool_)
        cost = np.zeros(1 << len(positions), dtype=np.int64)
        must[index], cost[index] = self.must, self.cost
        return Problem(positions, must, cost)


def together(problems: Sequence[Problem]) -> list[Problem]:
    """Problems over the same bits: all that one of them has and that tell something.

    A bit on which no problem's required exits depend is left out, for every scheme of masks
    has a best filter that ignores it: where a pair looks at the bit, one half of the codes is
    served without that pair, and serving the other half likewise costs no more. A bit that
    one problem's codes lack stays, because it can keep a shared pair off them.
    """
    positions = sorted({position for one in problems for position in one.positions})
    wide = [one.over(tuple(positions)) for one in problems]
    musts, costs = [one.must for one in wide], [one.cost for one in wide]
    for n in reversed(range(len(positions))):
        halves = [must.reshape(-1, 2, 1 << n) for must in musts]
        if all(np.array_equal(half[:, 0], half[:, 1]) for half in halves):
            musts = [half[:, 0].reshape(-1) for half in halves]
            costs = [cost.reshape(-1, 2, 1 << n).sum(axis=1).reshape(-1) for cost in costs]
            del positions[n]
    return [Problem(tuple(positions), must, cost) for must, cost in zip(musts, costs, strict=True)]


def problem(
    positions: Sequence[int],
    must: Truths,
    spare: Truths,
    weights: NDArray[np.int64] | None = None,
) -> Problem:
    """A problem in which `must` codes have to exit and `spare` codes should not.

    `weights` (not negative; 1 for each code if not given) says how much each needless
    exit counts; equal weight is decided by the number of codes.

    Raises:
        CriteriaError: the shapes differ, a weight is negative, or they are too large.
    """
    size = 1 << len(positions)
    if must.shape != (size,) or spare.shape != (size,):
        raise CriteriaError(f"{len(positions)} bits have {size} codes; give as many entries")
    if (must & spare).any():
        raise CriteriaError("a code cannot both have to exit and be spared; choose one")
    cost = np.zeros(size, dtype=np.int64)
    if weights is None:
        cost[spare] = WEIGHT + ONE_CODE
    else:
        if weights.shape != (size,):
            raise CriteriaError(f"{size} codes need as many weights, not {weights.size}")
        if (weights < 0).any():
            raise CriteriaError("a weight is negative; count with 0 and up")
        if float(weights.astype(np.float64).sum()) >= MOST_WEIGHT:
            raise CriteriaError("the weights are too large; keep their sum below 2**35")
        cost[spare] = weights[spare].astype(np.int64) * WEIGHT + ONE_CODE
    return Problem(tuple(positions), must.astype(np.bool_), cost)


def weight_and_count(cost: int) -> tuple[int, int]:
    """A packed cost as (weight, number of codes)."""
    return int(cost) // WEIGHT, int(cost) % WEIGHT


_FOR_EVER = 4_000_000.0
"""Seconds."""


class Deadline:
    """The moment after which a search gives up; `seconds` from now, None for never."""

    def __init__(self, seconds: float | None = None) -> None:
        # More than solvers can be told is for ever.
        self.seconds = seconds if seconds is not None and seconds < _FOR_EVER else None
        self._end = None if self.seconds is None else time.monotonic() + self.seconds

    def check(self) -> None:
        """Raise UndecidedError if it has passed."""
        if self._end is not None and time.monotonic() > self._end:
            raise self.passed()

    def left(self) -> float | None:
        """Seconds left, at least 0; None for never."""
        return None if self._end is None else max(self._end - time.monotonic(), 0.0)

    def passed(self) -> UndecidedError:
        """The error to raise."""
        return UndecidedError(
            f"unknown: no answer within {self.seconds:g} s; allow more time with --timeout"
        )


NEVER = Deadline()
"""No limit."""
