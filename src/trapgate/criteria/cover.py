"""How many pairs, and so how many fields, would make a filter exact: prime implicants, covers.

A sum of products: the fewest cubes that hold all of some codes and none of others. Prime
implicants by Quine and McCluskey's table (`cubes.py`), the minimum cover by MaxSAT.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Timer

import numpy as np

from trapgate.criteria.codes import Truths
from trapgate.criteria.complaints import UndecidedError
from trapgate.criteria.cubes import TABLE_WIDTH, Cube, cube_any, cube_of, inside, supercube
from trapgate.criteria.problem import NEVER, Deadline, Problem
from trapgate.criteria.solvers import sat_modules

_MOST_PRIMES = 20_000
_CUBE = 1 << 20


def primes(wanted: Truths, barred: Truths) -> list[Cube]:
    """The largest cubes that hold a wanted index and no barred one.

    Raises:
        UndecidedError: there are more bits than a table of all cubes allows for.
    """
    width = len(wanted).bit_length() - 1
    if width > TABLE_WIDTH:
        raise UndecidedError(
            f"unknown: prime implicants of {width} bits are too many; wish in fewer bits"
        )
    shape = (3,) * width
    allowed = ~cube_any(barred, width).reshape(shape)
    prime = allowed & cube_any(wanted, width).reshape(shape)
    for axis in range(width):
        wider = np.take(allowed, 2, axis=axis)
        for place in (0, 1):
            narrow = [slice(None)] * width
            narrow[axis] = place  # type: ignore[call-overload]
            prime[tuple(narrow)] &= ~wider
    return [cube_of(int(number), width) for number in np.flatnonzero(prime.reshape(-1))]


def widened(cube: Cube, barred: Truths) -> Cube:
    """A prime implicant that holds `cube`: bits are freed while no barred index comes in."""
    index = np.flatnonzero(barred)
    fixed = cube.fixed
    for n in reversed(range(len(barred).bit_length() - 1)):
        wider = fixed & ~(1 << n)
        if not ((index & wider) == (cube.value & wider)).any():
            fixed = wider
    return Cube(fixed, cube.value & fixed)


def minimum_cover(wanted: Truths, barred: Truths, deadline: Deadline = NEVER) -> list[Cube]:
    """The fewest cubes that together hold every wanted index and no barred one; exact.

    Among equally many, those that fix the fewest bits.

    Raises:
        UndecidedError: not found in time.
    """
    whole = supercube(wanted)
    if whole is None:
        return []
    if not (barred & inside(whole, len(wanted))).any():
        return [widened(whole, barred)]
    candidates = primes(wanted, barred)
    if len(candidates) > _MOST_PRIMES:
        raise UndecidedError(
            f"unknown: {len(candidates)} prime implicants are too many; wish in fewer bits"
        )
    index = np.flatnonzero(wanted)
    fixed = np.array([cube.fixed for cube in candidates], dtype=np.int64)
    value = np.array([cube.value for cube in candidates], dtype=np.int64)
    rows = {
        tuple(np.flatnonzero((code & fixed) == value).tolist()): None for code in index.tolist()
    }
    # One cube more weighs more than all the bits that cubes could fix.
    weights = [_CUBE + cube.fixed.bit_count() for cube in candidates]
    chosen = _lightest(list(rows), weights, deadline)
    return [candidates[number] for number in chosen]


def _lightest(
    rows: Sequence[tuple[int, ...]], weights: Sequence[int], deadline: Deadline
) -> list[int]:
    """The lightest set of numbers that has one of each row: a minimum weighted cover."""
    essential = {row[0] for row in rows if len(row) == 1}
    left = [row for row in rows if essential.isdisjoint(row)]
    if not left:
        return sorted(essential)
    formula, rc2 = sat_modules()
    task = formula.WCNF()
    for row in left:
        task.append([number + 1 for number in row])
    for number in sorted({number for row in left for number in row}):
        task.append([-(number + 1)], weight=weights[number])
    with rc2.RC2(task) as solver:
        seconds = deadline.left()
        if seconds is None:
            model = solver.compute()
        else:
            timer = Timer(seconds, solver.interrupt)
            timer.start()
            try:
                model = solver.compute(expect_interrupt=True)
            finally:
                timer.cancel()
    if model is None:
        raise deadline.passed()
    return sorted(essential | {literal - 1 for literal in model if 0 < literal <= len(weights)})


@dataclass(frozen=True)
class Remedy:
    """One way to an exact filter: so many fields of that kind.

    `pairs` counts pairs of mask and match, `known` says whether a scheme of Trapgate has
    as many, `scheme` which.
    """

    kind: str
    fields: int
    pairs: int
    scheme: str = ""


def remedies(problem: Problem, deadline: Deadline = NEVER) -> list[Remedy]:
    """What would be exact, the fewest fields first (¶87, block 904).

    Kinds for which the number is not found in time, or of too many bits, are left out.

    Raises:
        UndecidedError: that goes for all kinds of pairs.
    """
    small = problem.reduced()
    must, spare = small.must, small.cost > 0
    index = np.arange(len(must))
    any_free = (index & ~int(np.bitwise_or.reduce(index[spare], initial=0))) != 0
    any_must = (index & ~int(np.bitwise_or.reduce(index[must], initial=0))) != 0
    kinds = (
        ("pairs; what matches any of them exits", 0, must, spare),
        ("pairs and the control bit 0; what matches none of them exits", 0, spare, must),
        ("an any-bit mask and pairs; what meets one of them exits", 1, must & ~any_free, spare),
        (
            "an any-bit mask, pairs and the control bit 0; what meets none exits",
            1,
            spare & ~any_must,
            must,
        ),
    )
    found = []
    undecided: UndecidedError | None = None
    for number, (kind, mask, wanted, barred) in enumerate(kinds):
        try:
            pairs = len(minimum_cover(wanted, barred, deadline))
        except UndecidedError as error:
            undecided = error
            continue
        found.append(Remedy(kind, mask + 2 * pairs, pairs, _SCHEMES[number].get(pairs, "")))
    if not found and undecided is not None:
        raise undecided
    members = len(problem.must_codes())
    scheme = "membership" if members <= 8 else ""
    found.append(Remedy("values; what equals one of them exits", members + 1, 0, scheme))
    return sorted(found, key=lambda remedy: remedy.fields)


_SCHEMES = (
    {0: "figure-3", 1: "figure-3", 2: "figure-4"},
    {0: "figure-3", 1: "figure-3"},
    {0: "figure-5", 1: "figure-5"},
    {0: "figure-5", 1: "figure-5"},
)
"""Which scheme has so many pairs, by kind."""
