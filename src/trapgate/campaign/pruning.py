"""Runs that need not be made: definition/use classes of general registers.

Between two accesses to a register nothing depends on it, so a flipped bit does the same whenever
in between it flips. Moments before the same next access are one class: if that access
overwrites the register there is no effect, and nothing is run; else one run stands for all of
them. What may read a register counts as a read: events, exits, conditional moves, writes of a
part. After the last access the register may matter at the end, so that is a class that is run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trapgate.campaign.errors import PlanError
from trapgate.campaign.moments import Course
from trapgate.campaign.plan import Sample
from trapgate.campaign.runs import MOST_RUNS, Runs, draw, sample_size
from trapgate.campaign.targets import Faults


@dataclass(frozen=True)
class Classes:
    """The classes of a register's moments.

    `of` says of each moment which class it is in; of each class `lives` is whether something
    reads the register next, `last` the number of its last moment, `size` how many it has.
    """

    of: NDArray[np.int64]
    lives: NDArray[np.bool_]
    last: NDArray[np.int64]
    size: NDArray[np.int64]


def classes_of(course: Course, moments: NDArray[np.int64], register: int) -> Classes:
    """The classes of the plan's `moments`, which are times of the course, for a register."""
    steps = np.searchsorted(course.times, moments)
    reads = course.reads >> register & 1
    accesses = np.flatnonzero(reads | course.writes >> register & 1)
    after = np.searchsorted(accesses, steps)
    lives = np.append(reads[accesses] != 0, True)[after]
    _, of, size = np.unique(after, return_inverse=True, return_counts=True)
    last = np.cumsum(size) - 1
    return Classes(of.astype(np.int64), lives[last], last, size)


@dataclass(frozen=True)
class Pruned:
    """Classes without effect: moment, target (its first fault's number), and points."""

    moments: NDArray[np.int64]
    faults: NDArray[np.int64]
    weights: NDArray[np.float64]


def prune(
    sample: Sample,
    moments: NDArray[np.int64],
    faults: Faults,
    course: Course,
    strata: NDArray[np.int64] | None,
    name: str,
) -> tuple[Runs, Pruned]:
    """The runs of a plan, a class each, and the classes that need none.

    In a sample points are drawn from the whole space, and a class stands for those of its points
    that were. Raises PlanError for targets that have no classes, and for too many runs.
    """
    if not faults.prunable:
        raise PlanError(
            "only flips of general registers can be pruned; leave prune out, or other targets",
            "prune",
            name,
        )
    space = len(moments) * len(faults)
    size = sample_size(sample, space)
    found = (
        _whole(moments, faults, course)
        if size is None
        else _drawn(sample, moments, faults, course, strata, name)
    )
    live, dead = found
    if len(live[0]) > MOST_RUNS:
        raise PlanError(
            f"{len(live[0]):,} runs are too many; give sample.runs or sample.half_width",
            "sample",
            name,
        )
    order = np.lexsort((live[1], live[0]))
    which, numbers, weights = live[0][order], live[1][order], live[2][order]
    runs = Runs(
        moments[which],
        numbers,
        weights,
        space,
        exact=size is None,
        drawn=space if size is None else size,
    )
    return runs, Pruned(moments[dead[0]], dead[1], dead[2])


_Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def _whole(moments: NDArray[np.int64], faults: Faults, course: Course) -> tuple[_Columns, _Columns]:
    """All classes: moment's number, fault, points; those that live, and those that do not."""
    live: list[_Columns] = []
    dead: list[_Columns] = []
    for first, count, register in faults.registers:
        classes = classes_of(course, moments, register)
        last, size = classes.last[classes.lives], classes.size[classes.lives]
        numbers = np.tile(np.arange(first, first + count), len(last))
        live.append((np.repeat(last, count), numbers, np.repeat(size, count).astype(np.float64)))
        gone = ~classes.lives
        weights = (classes.size[gone] * count).astype(np.float64)
        dead.append((classes.last[gone], np.full(int(gone.sum()), first), weights))
    return _joined(live), _joined(dead)


def _drawn(
    sample: Sample,
    moments: NDArray[np.int64],
    faults: Faults,
    course: Course,
    strata: NDArray[np.int64] | None,
    name: str,
) -> tuple[_Columns, _Columns]:
    """The classes of the points of a sample."""
    which, fault, weights = draw(sample, len(moments), faults, strata, name)
    live: list[_Columns] = []
    dead: list[_Columns] = []
    for first, bits, register in faults.registers:
        mine = (fault >= first) & (fault < first + bits)
        classes = classes_of(course, moments, register)
        of = classes.of[which[mine]]
        lives = classes.lives[of]
        for kept, wanted, numbers in (
            (live, lives, fault[mine]),
            (dead, ~lives, np.full(int(mine.sum()), first)),
        ):
            keys = np.stack((of[wanted], numbers[wanted]))
            unique, inverse = np.unique(keys, axis=1, return_inverse=True)
            points_each = np.bincount(
                inverse.ravel(), weights=weights[mine][wanted], minlength=unique.shape[1]
            )
            kept.append((classes.last[unique[0]], unique[1], points_each.astype(np.float64)))
    return _joined(live), _joined(dead)


def _joined(parts: list[_Columns]) -> _Columns:
    first, second, third = zip(*parts, strict=True)
    return np.concatenate(first), np.concatenate(second), np.concatenate(third)
