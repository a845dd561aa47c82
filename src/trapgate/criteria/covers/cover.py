"""How many pairs, and so how many fields, would make a filter exact: prime implicants, covers.

A sum of products: the fewest cubes that hold all of some codes and none of others. Prime
implicants by Quine and McCluskey's table (`cubes.py`), the minimum cover by MaxSAT.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from trapgate.criteria.covers.comparisons import EXITS, comparable
from trapgate.criteria.covers.cubes import TABLE_WIDTH, Cube, cube_any, cube_of, inside, supercube
from trapgate.criteria.covers.exactness import (
    ANY_OR_PAIRS,
    FORMS,
    MEMBERS,
    OUTSIDE,
    OUTSIDE_BOTH,
    PAIRS,
    coverable,
)
from trapgate.criteria.errors import UndecidedError
from trapgate.criteria.problems.codes import Codes, Truths
from trapgate.criteria.problems.problem import NEVER, Deadline, Problem
from trapgate.criteria.problems.solvers import interruptible, sat_modules

_MOST_PRIMES = 20_000
_CUBE = 1 << 20
_FEW = 3
"""With more bits than a table allows for it is only asked whether so many cubes do."""


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
        model = interruptible(solver, deadline, lambda: solver.compute(expect_interrupt=True))
    if model is None:
        raise deadline.passed()
    return sorted(essential | {literal - 1 for literal in model if 0 < literal <= len(weights)})


@dataclass(frozen=True)
class Remedy:
    """One way to an exact filter: so many fields of that kind.

    `pairs` counts pairs of mask and match, `scheme` names the scheme of Trapgate that has
    as many; empty if none does.
    """

    kind: str
    fields: int
    pairs: int = 0
    scheme: str = ""


def remedies(
    problem: Problem, operators: Collection[str], deadline: Deadline = NEVER
) -> list[Remedy]:
    """What would be exact with these operators, the fewest fields first (¶87, 904, 906).

    Kinds for which the number is not found in time, or of too many bits, are left out.

    Raises:
        UndecidedError: that goes for all kinds of pairs.
    """
    small = problem.reduced()
    index = np.arange(len(small.must))
    must, spare = index[small.must], index[small.cost > 0]
    found = []
    undecided: UndecidedError | None = None
    for form in (PAIRS, OUTSIDE, ANY_OR_PAIRS, OUTSIDE_BOTH):
        if not form.operators <= set(operators):
            continue
        try:
            pairs = _fewest(*form.demand(must, spare), small.width, deadline)
        except UndecidedError as error:
            undecided = error
            continue
        schemes = [name for name, forms in FORMS.items() if forms.get(form, -1) >= pairs]
        found.append(
            Remedy(
                form.words(pairs),
                form.any_mask + 2 * pairs,
                pairs,
                schemes[0] if schemes else "",
            )
        )
    if not found and undecided is not None:
        raise undecided
    codes = problem.codes()
    must, spare = codes[problem.must], codes[problem.cost > 0]
    compared = comparable(must, spare, [name for name in EXITS if name in operators])
    found += [
        Remedy(f"a value; what is {name.replace('-', ' ')} exits", 1, scheme=name)
        for name in compared
    ]
    if "member" in operators:
        scheme = "membership" if len(must) <= MEMBERS else ""
        kind = "values, and which of them count; what equals one exits"
        found.append(Remedy(kind, len(must) + 1, scheme=scheme))
    return sorted(found, key=lambda remedy: remedy.fields)


def _fewest(wanted: Codes, barred: Codes, width: int, deadline: Deadline) -> int:
    if width <= TABLE_WIDTH:
        index = np.arange(1 << width)
        return len(minimum_cover(np.isin(index, wanted), np.isin(index, barred), deadline))
    for pairs in range(_FEW + 1):
        if coverable(wanted, barred, pairs, deadline):
            return pairs
    raise UndecidedError(f"unknown: more than {_FEW} pairs of {width} bits; wish in fewer bits")
