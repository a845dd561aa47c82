"""Which runs a campaign consists of: moments times faults, all of them or a sample, with weights.

A point of the space is a moment and a fault. A run stands for `weight` points; the weights of
all runs, and of the points that are known to have no effect (`pruning`), add up to the size of
the space.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.campaign.errors import PlanError
from trapgate.campaign.plan import Sample
from trapgate.campaign.targets import Faults

MOST_RUNS: Final = 50_000_000
"""Runs of a campaign, at most."""


@dataclass(frozen=True)
class Runs:
    """The runs in the order of their moments: virtual times, numbers of faults, weights."""

    moments: NDArray[np.int64]
    faults: NDArray[np.int64]
    weights: NDArray[np.float64]
    space: int
    """Points that all of it stands for."""
    exact: bool
    """Whether nothing is left to chance."""
    drawn: int
    """Points that were drawn; all of them if nothing is left to chance."""

    def __len__(self) -> int:
        return len(self.moments)


def sample_size(sample: Sample, space: int) -> int | None:
    """How many points a sample has; None for all of them.

    For a half-width as many as the least favourable share, one half, takes in a space of that
    size (normal approximation, finite population).
    """
    if sample.half_width is not None:
        z = NormalDist().inv_cdf((1 + sample.confidence) / 2)
        endless = (z / (2 * sample.half_width)) ** 2
        wanted = ceil(endless / (1 + (endless - 1) / space))
    elif sample.runs is not None:
        wanted = sample.runs
    else:
        return None
    return None if wanted >= space else wanted


def points_of(
    sample: Sample, space: int, borders: NDArray[np.int64], path: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of the points of a sample, in order, and their weights.

    `borders` part the numbers from 0 to `space` into strata: each gets its share of the sample
    (`allot`). Raises PlanError if there are too many.
    """
    wanted = sample_size(sample, space)
    if wanted is None:
        if space > MOST_RUNS:
            raise PlanError(
                f"{space:,} runs are too many; give sample.runs or sample.half_width, or prune",
                "sample",
                path,
            )
        return np.arange(space, dtype=np.int64), np.ones(space)
    if wanted > MOST_RUNS:
        raise PlanError(f"{wanted:,} runs are too many; take fewer", "sample", path)
    random = np.random.default_rng(sample.seed)
    borders = np.unique(np.append(borders, [0, space]))
    points, weights = [], []
    sizes = np.diff(borders)
    strata = zip(borders.tolist(), sizes.tolist(), allot(wanted, sizes).tolist(), strict=False)
    for first, size, count in strata:
        points.append(first + _distinct(random, size, count))
        weights.append(np.full(count, size / count))
    return np.concatenate(points), np.concatenate(weights)


def allot(wanted: int, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many points of each stratum, by its size: `wanted` together, no more than there are.

    Each stratum has at least one, so there are more if there are more strata than that. What is
    left over of whole shares goes to the largest remainders.
    """
    ideal = wanted * (sizes / sizes.sum())
    counts: NDArray[np.int64] = np.clip(np.floor(ideal).astype(np.int64), 1, sizes)
    while (left := wanted - int(counts.sum())) > 0:
        room = np.flatnonzero(counts < sizes)
        counts[room[np.argsort(counts[room] - ideal[room], kind="stable")][:left]] += 1
    while (left := wanted - int(counts.sum())) < 0 and (counts > 1).any():
        spare = np.flatnonzero(counts > 1)
        counts[spare[np.argsort(ideal[spare] - counts[spare], kind="stable")][:-left]] -= 1
    return counts


def _distinct(random: np.random.Generator, size: int, count: int) -> NDArray[np.int64]:
    """`count` different numbers below `size`, in order, each set of them equally likely."""
    if count * 4 > size:
        return np.sort(random.permutation(size)[:count])
    # All tries are kept in the order they came, so that the first `count` different ones are fair.
    found = np.empty(0, np.int64)
    while len(found) < count:
        tried = np.concatenate((found, random.integers(0, size, count - len(found) + 16)))
        _, first = np.unique(tried, return_index=True)
        found = tried[np.sort(first)][:count]
    return np.sort(found)


def draw(
    sample: Sample, moments: int, faults: Faults, strata: NDArray[np.int64] | None, path: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The points of a sample: number of the moment, of the fault, and weight, in that order.

    `strata` says of each moment which stratum it is in, if the sample is stratified by moments;
    if by targets, each of the faults' targets is one. Raises PlanError if there are too many.
    """
    count = len(faults)
    space = moments * count
    if sample.stratify == "target":
        borders = np.array(faults.ends, np.int64) * moments
        points, weights = points_of(sample, space, borders, path)
        fault, which = np.divmod(points, moments)
    else:
        groups = np.zeros(moments, np.int64) if strata is None else strata
        order = np.argsort(groups, kind="stable")
        borders = (np.flatnonzero(np.diff(groups[order])) + 1) * count
        points, weights = points_of(sample, space, borders, path)
        place, fault = np.divmod(points, count)
        which = order[place]
    sequence = np.lexsort((fault, which))
    return which[sequence], fault[sequence], weights[sequence]


def select(
    sample: Sample,
    moments: NDArray[np.int64],
    faults: Faults,
    strata: NDArray[np.int64] | None,
    path: str,
) -> Runs:
    """The runs of a plan without pruning. Raises PlanError if there are too many."""
    which, fault, weights = draw(sample, len(moments), faults, strata, path)
    space = len(moments) * len(faults)
    return Runs(moments[which], fault, weights, space, len(which) == space, len(which))
