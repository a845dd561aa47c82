"""Runs that need not be made: definition/use classes of registers, flags and memory.

Between two accesses to a register or a byte nothing depends on it, so a flipped bit does the same
whenever in between it flips. Moments before the same next access are one class: if that access
overwrites it there is no effect, and nothing is run; else one run stands for all of them. What may
read counts as a read: events, exits, conditional moves, writes of a part (`uses`,
`memory_uses`). After the last access a register may matter at the end, so that is a class that is
run; a byte of memory only stays changed, which is an outcome that is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.campaign.errors import PlanError
from trapgate.campaign.moments import GoldenInstructions
from trapgate.campaign.places import LinearPage
from trapgate.campaign.plan import Plan, Sample
from trapgate.campaign.runs import MOST_RUNS, Runs, draw, sample_size
from trapgate.campaign.targets import MOST_PAGES, Faults, Part

LIVES: Final = 0
OVERWRITTEN: Final = 1
STAYS: Final = 2
"""What becomes of a changed bit: something reads it, it is overwritten, or neither ever happens."""


@dataclass(frozen=True)
class Classes:
    """The classes of a part's moments.

    `of` says of each moment which class it is in; of each class `fate` is LIVES, OVERWRITTEN or
    STAYS, `last` the number of its last moment, `size` how many it has.
    """

    of: NDArray[np.int64]
    fate: NDArray[np.int64]
    last: NDArray[np.int64]
    size: NDArray[np.int64]


def classes_of(
    steps: NDArray[np.int64], accesses: NDArray[np.int64], reads: NDArray[np.bool_], end: int
) -> Classes:
    """The classes of moments, which are numbers of instructions (`steps`), by a part's accesses.

    These are numbers of instructions, too, in order, and whether each may read. `end` is what
    becomes of a bit that changes after the last one.
    """
    after = np.searchsorted(accesses, steps)
    fates = np.append(np.where(reads, LIVES, OVERWRITTEN), end)
    which, of, size = np.unique(after, return_inverse=True, return_counts=True)
    return Classes(of.astype(np.int64), fates[which], np.cumsum(size) - 1, size)


def _finder(
    course: GoldenInstructions, moments: NDArray[np.int64], memory_size: int
) -> Callable[[Part], Classes]:
    """What gives the classes of the plan's `moments`, which are times of the course, for a part."""
    steps = np.searchsorted(course.times, moments)
    known: dict[tuple[bytes, bytes, int, int, int], Classes] = {}

    def find(part: Part) -> Classes:
        if part.page is not None:
            return in_page(part.page, part.address)
        if part.address < 0:
            reads = course.reads >> part.register & 1
            accesses = np.flatnonzero(reads | course.writes >> part.register & 1)
            return classes_of(steps, accesses, reads[accesses] != 0, LIVES)
        return at_address(part.address, steps)

    def at_address(address: int, steps: NDArray[np.int64]) -> Classes:
        accesses, is_read = course.memory_uses.of(address)
        end = STAYS if address < memory_size else LIVES
        key = accesses.tobytes(), is_read.tobytes(), end, int(steps[0]), len(steps)
        found = known.get(key)
        if found is None:
            # Many bytes have the same ones: the bytes of a word, and all that are never touched.
            found = known[key] = classes_of(steps, accesses, is_read, end)
        return found

    def in_page(page: LinearPage, offset: int) -> Classes:
        """Those of a byte that is now here, now there: between two moves it is as any other."""
        stays = course.memory_uses.where(page)
        borders = np.searchsorted(steps, [first for first, _ in stays[1:]])
        found: list[Classes] = []
        for (_, at), some in zip(stays, np.split(steps, borders), strict=True):
            if len(some) == 0:
                continue
            if at >= 0:
                found.append(at_address(at + offset, some))
            else:  # it is not mapped: that is what all these runs say
                found.append(classes_of(some, some[:0], some[:0] > 0, LIVES))
        return _joined(found)

    return find


def _joined(classes: list[Classes]) -> Classes:
    """Classes of moments that follow those of the one before."""
    counts = [len(one.fate) for one in classes]
    moments = [len(one.of) for one in classes]
    before = np.cumsum([0, *counts[:-1]]).tolist()
    earlier = np.cumsum([0, *moments[:-1]]).tolist()
    return Classes(
        np.concatenate([one.of + n for one, n in zip(classes, before, strict=True)]),
        np.concatenate([one.fate for one in classes]),
        np.concatenate([one.last + n for one, n in zip(classes, earlier, strict=True)]),
        np.concatenate([one.size for one in classes]),
    )


@dataclass(frozen=True)
class Pruned:
    """Classes whose outcome is known: moment, target (its first fault's number), points, fate."""

    moments: NDArray[np.int64]
    faults: NDArray[np.int64]
    weights: NDArray[np.float64]
    fates: NDArray[np.int64]


def prune(
    sample: Sample,
    moments: NDArray[np.int64],
    faults: Faults,
    course: GoldenInstructions,
    strata: NDArray[np.int64] | None,
    name: str,
    memory_size: int,
) -> tuple[Runs, Pruned]:
    """The runs of a plan, a class each, and the classes that need none.

    In a sample points are drawn from the whole space, and a class stands for those of its points
    that were. `memory_size` is the machine's, in bytes. Raises PlanError for too many runs.
    """
    space = len(moments) * len(faults)
    size = sample_size(sample, space)
    find = _finder(course, moments, memory_size)
    parts = (
        _whole(faults, find, name)
        if size is None
        else _drawn(draw(sample, len(moments), faults, strata, name), faults, find)
    )
    which, numbers, weights, fates = (np.concatenate(column) for column in zip(*parts, strict=True))
    live = fates == LIVES
    order = np.lexsort((numbers[live], which[live]))
    runs = Runs(
        moments[which[live][order]],
        numbers[live][order],
        weights[live][order],
        space,
        exact=size is None,
        drawn=space if size is None else size,
    )
    known = Pruned(moments[which[~live]], numbers[~live], weights[~live], fates[~live])
    return runs, known


def demand_classes(faults: Faults, plan: Plan) -> None:
    """Raise PlanError for faults without classes, or where others than the guest read."""
    guest = plan.guest
    in_memory = bool(faults.memory or faults.pages)
    why = ""
    if not faults.prunable:
        why = (
            f"only flips of general registers, flags and memory (at most {MOST_PAGES:,} linear "
            "pages) can be pruned; leave prune out, or other targets"
        )
    elif not guest.kernel and guest.bios is None:
        why = "the built-in BIOS reads registers and memory, too; leave prune out"
    elif in_memory and guest.paging == "direct":
        why = "under direct paging the VMM reads the guest's memory, too; leave prune out"
    elif in_memory and guest.drives:
        why = "drives read the guest's memory, too; leave prune out, or the drives"
    if why:
        raise PlanError(why, "prune", plan.path)


_Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]
"""Of classes: a moment's number, a fault, points, fate."""


def _whole(faults: Faults, find: Callable[[Part], Classes], name: str) -> list[_Columns]:
    """All classes: those that live once for each bit, the others once for all bits.

    Raises PlanError for too many.
    """
    found: list[_Columns] = []
    total = 0
    for first, count, part in faults.parts:
        classes = find(part)
        live = classes.fate == LIVES
        total += int(live.sum()) * count
        if total > MOST_RUNS:
            raise PlanError(
                f"more than {MOST_RUNS:,} runs; give sample.runs or sample.half_width",
                "sample",
                name,
            )
        last, size = classes.last[live], classes.size[live]
        numbers = np.tile(np.arange(first, first + count), len(last))
        points = np.repeat(size, count).astype(np.float64)
        found.append((np.repeat(last, count), numbers, points, np.zeros(len(numbers), np.int64)))
        last, size, fate = (one[~live] for one in (classes.last, classes.size, classes.fate))
        points = (size * count).astype(np.float64)
        found.append((last, np.full(len(last), first, np.int64), points, fate))
    return found


def _drawn(
    points: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]],
    faults: Faults,
    find: Callable[[Part], Classes],
) -> list[_Columns]:
    """The classes of the points of a sample: which moment, which fault, weight."""
    which, fault, weights = points
    drawn, place = np.unique(fault, return_inverse=True)
    firsts = np.array([faults.part_of(number)[0] for number in drawn.tolist()])[place]
    order = np.argsort(firsts, kind="stable")
    borders = np.flatnonzero(np.diff(firsts[order])) + 1
    found: list[_Columns] = []
    for mine in np.split(order, borders):
        first, _, part = faults.part_of(int(firsts[mine[0]]))
        classes = find(part)
        of = classes.of[which[mine]]
        # Of a class that nothing reads it is all the same which bit it is.
        numbers = np.where(classes.fate[of] == LIVES, fault[mine], first)
        unique, inverse = np.unique(np.stack((of, numbers)), axis=1, return_inverse=True)
        total = np.zeros(unique.shape[1])
        np.add.at(total, inverse.ravel(), weights[mine])
        found.append((classes.last[unique[0]], unique[1], total, classes.fate[unique[0]]))
    return found
