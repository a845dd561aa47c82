"""Two campaigns beside each other: what a change of the guest, of its VMM or of a plan did."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from trapgate.campaign.errors import CampaignError
from trapgate.campaign.results import Results
from trapgate.campaign.statistics import Share, shares
from trapgate.campaign.tables import tally


@dataclass(frozen=True)
class Difference:
    """An outcome's shares in both campaigns, and their difference with its interval.

    `sure` is whether the interval leaves out 0.
    """

    outcome: str
    before: float
    after: float
    low: float
    high: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def sure(self) -> bool:
        """Whether it is more than chance."""
        return self.low > 0 or self.high < 0


def compare(before: Results, after: Results, confidence: float = 0.95) -> list[Difference]:
    """The outcomes of two campaigns, the greatest change first.

    The interval is Newcombe's, of the two shares' own (Wilson's); it has no width where both
    campaigns left nothing to chance. Raises CampaignError for one without any runs.
    """
    first, second = (_shares(one, confidence) for one in (before, after))
    none = Share("", 0, 0.0, 0.0, 0.0, 0.0)
    found = []
    for name in first.keys() | second.keys():
        one, other = first.get(name, none), second.get(name, none)
        change = other.share - one.share
        low = change - sqrt((one.high - one.share) ** 2 + (other.share - other.low) ** 2)
        high = change + sqrt((one.share - one.low) ** 2 + (other.high - other.share) ** 2)
        found.append(Difference(name, one.share, other.share, low, high))
    return sorted(found, key=lambda one: (-abs(one.change), one.outcome))


def _shares(results: Results, confidence: float) -> dict[str, Share]:
    counts = tally(results)
    if not counts:
        raise CampaignError(f"{results.folder}: nothing has been run yet; use campaign run")
    done = sum(runs for runs, _ in counts.values()) == results.runs_total
    exact = bool(results.facts["exact"]) and done
    found = shares(counts, exact=exact, confidence=confidence, drawn=results.draws_per_point)
    return {one.outcome: one for one in found}
