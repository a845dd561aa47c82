"""Every exit set that a scheme can have at all, by trying all values of its fields.

Imports nothing from the code under test: the rules are written down again, from the
seed's figures, as plain Python.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Sets = NDArray[np.bool_]
Rule = Callable[[int], bool]


def _pairs(width: int) -> Iterator[tuple[int, int]]:
    """All pairs of mask and match that differ in effect; the last never matches."""
    for mask in range(1 << width):
        for match in range(1 << width):
            if not match & ~mask:
                yield mask, match
    yield 0, 1 << 20


def _values(width: int) -> Iterator[int]:
    yield from range((1 << width) + 1)
    yield 0xFFFFFFFF


def _figure_3(width: int) -> Iterator[Rule]:
    for bit, (mask, match) in product((False, True), _pairs(width)):
        yield lambda code, b=bit, m=mask, v=match: b if code & m == v else not b  # type: ignore[misc]


def _no_bit(width: int) -> Iterator[Rule]:
    for mask, match in _pairs(width):
        yield lambda code, m=mask, v=match: code & m != v  # type: ignore[misc]


def _match_exits(width: int) -> Iterator[Rule]:
    for mask, match in _pairs(width):
        yield lambda code, m=mask, v=match: code & m == v  # type: ignore[misc]


def _figure_4(width: int) -> Iterator[Rule]:
    for (m1, v1), (m2, v2) in product(_pairs(width), repeat=2):
        yield lambda code, a=m1, b=v1, c=m2, d=v2: code & a == b or code & c == d  # type: ignore[misc]


def _figure_5_no_bit(width: int) -> Iterator[Rule]:
    for some, (mask, match) in product(range(1 << width), _pairs(width)):
        yield lambda code, a=some, m=mask, v=match: code & a != 0 or code & m == v  # type: ignore[misc]


def _figure_5(width: int) -> Iterator[Rule]:
    for rule in _figure_5_no_bit(width):
        yield rule
        yield lambda code, r=rule: not r(code)  # type: ignore[misc]


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "equal": lambda code, value: code == value,
    "not-equal": lambda code, value: code != value,
    "less": lambda code, value: code < value,
    "less-or-equal": lambda code, value: code <= value,
    "greater": lambda code, value: code > value,
    "greater-or-equal": lambda code, value: code >= value,
}


def _comparison(name: str) -> Callable[[int], Iterator[Rule]]:
    def rules(width: int) -> Iterator[Rule]:
        for value in _values(width):
            yield lambda code, v=value: COMPARISONS[name](code, v)  # type: ignore[misc]

    return rules


def _any_comparison(width: int) -> Iterator[Rule]:
    for name in COMPARISONS:
        yield from _comparison(name)(width)


def _membership(width: int) -> Iterator[Rule]:
    for chosen in range(1 << (1 << width)):
        if chosen.bit_count() <= 8:
            yield lambda code, c=chosen: bool(c >> code & 1)  # type: ignore[misc]


SCHEMES: dict[str, Callable[[int], Iterator[Rule]]] = {
    "vt-x": _figure_3,
    "figure-3": _figure_3,
    "exchanged": _figure_3,
    "no-bit": _no_bit,
    "match-exits": _match_exits,
    "figure-4": _figure_4,
    "figure-5": _figure_5,
    "figure-5-no-bit": _figure_5_no_bit,
    "comparison": _any_comparison,
    **{name: _comparison(name) for name in COMPARISONS},
    "membership": _membership,
}


@cache
def exit_sets(scheme: str, width: int) -> Sets:
    """All sets of codes that the scheme can make exit, one a row, each once."""
    words = {
        sum(rule(code) << code for code in range(1 << width)) for rule in SCHEMES[scheme](width)
    }
    return np.array([[word >> code & 1 for code in range(1 << width)] for word in words], np.bool_)


def least_cost(scheme: str, must: Sets, cost: NDArray[np.int64]) -> int | None:
    """The least sum of `cost` over the exits of a sound filter; None if none is sound."""
    sets = exit_sets(scheme, len(must).bit_length() - 1)
    sound = sets[~(must & ~sets).any(axis=1)]
    return int((sound @ cost).min()) if len(sound) else None


def fewest_cubes(wanted: Sets, barred: Sets) -> int:
    """How many cubes it takes to hold all of `wanted` and none of `barred`."""
    width = len(wanted).bit_length() - 1
    codes = range(1 << width)
    word = sum(1 << code for code in codes if wanted[code])
    bad = sum(1 << code for code in codes if barred[code])
    cubes = {sum(1 << code for code in codes if code & m == v) for m, v in _pairs(width)}
    useful = {cube & word for cube in cubes if not cube & bad} - {0}
    reached, count = {0}, 0
    while word not in reached:
        count += 1
        reached = {old | cube for old in reached for cube in useful}
    return count


def _shared_and_own(scheme: str, width: int) -> Iterator[Sets]:
    """For each value of the fields that serve all vectors, the sets that a vector can have exit."""
    codes = np.arange(1 << width)
    cubes = np.array([codes & mask == match for mask, match in _pairs(width)])
    if scheme == "figure-4":
        for shared in cubes:
            yield cubes | shared
    elif scheme.startswith("figure-5"):
        for some in range(1 << width):
            hit = cubes | (codes & some != 0)
            yield hit if scheme == "figure-5-no-bit" else np.concatenate([hit, ~hit])
    elif scheme == "membership":
        for row in exit_sets("membership", width):
            yield row[None]
    else:
        for name in COMPARISONS if scheme == "comparison" else [scheme]:
            for value in _values(width):
                yield np.array([[COMPARISONS[name](code, value) for code in codes.tolist()]])


def least_together(
    scheme: str, asked: list[tuple[Sets, NDArray[np.int64]]], unserved: list[int]
) -> int:
    """The least sum of costs over all vectors, each under the scheme or left unserved.

    `asked` has what must exit and the costs of each vector, over the same bits.
    """
    best = sum(unserved)
    for sets in _shared_and_own(scheme, len(asked[0][0]).bit_length() - 1):
        total = 0
        for (must, cost), limit in zip(asked, unserved, strict=True):
            sound = sets[~(must & ~sets).any(axis=1)]
            total += min(int((sound @ cost).min()) if len(sound) else limit, limit)
        best = min(best, total)
    return best
