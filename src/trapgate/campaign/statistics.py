"""Shares of outcomes, and how sure one can be of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from trapgate.campaign.outcomes import OUTCOMES
from trapgate.campaign.worker import Tally


@dataclass(frozen=True)
class Share:
    """An outcome: its runs, the points that these stand for, and their share of all points.

    `low` and `high` are the ends of the confidence interval; both are the share where
    everything was run.
    """

    outcome: str
    runs: int
    points: float
    share: float
    low: float
    high: float


def interval(share: float, runs: float, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share seen in so many runs."""
    if runs <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    weight = z * z / runs
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * sqrt(share * (1 - share) / runs + weight / (4 * runs))
    return max(0.0, centre - half), min(1.0, centre + half)


def merge(tallies: Iterable[Tally]) -> Tally:
    """The sum of tallies."""
    found: dict[str, tuple[int, float]] = {}
    for tally in tallies:
        for name, (runs, points) in tally.items():
            before = found.get(name, (0, 0.0))
            found[name] = before[0] + runs, before[1] + points
    return found


def shares(
    tally: Mapping[str, tuple[int, float]],
    *,
    exact: bool,
    confidence: float = 0.95,
    drawn: float = 1.0,
) -> list[Share]:
    """The outcomes of a tally, the commonest first; `exact` if nothing was left to chance.

    `drawn` is how many draws a point stands for: with pruning a run may stand for several.
    """
    points = sum(part for _, part in tally.values())
    found = []
    for name, (count, part) in tally.items():
        share = part / points if points else 0.0
        low, high = (share, share) if exact else interval(share, points * drawn, confidence)
        found.append(Share(name, count, part, share, low, high))
    order = {name: n for n, name in enumerate(OUTCOMES)}
    return sorted(found, key=lambda one: (-one.points, order.get(one.outcome, -1), one.outcome))
