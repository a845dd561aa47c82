"""What a run did, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trapgate.decision.decide import Disposition
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import Stop

Faults = Mapping[int, Mapping[Disposition, int]]
"""Counts of faults by vector and disposition."""


@dataclass(frozen=True)
class NestedSummary:
    """What an x86 VMM and its guest did: VM entries, its guest's faults, VM exits to it."""

    entries: int
    faults: Faults
    exits: Mapping[ExitReason, int]


@dataclass(frozen=True)
class Summary:
    """What a run did: counts by vector and disposition, and by exit reason.

    `instructions` is virtual time, `seconds` the host's. `injected` counts, by vector,
    the deliveries that the VMM asked for at VM entry. `nested` is there if the guest
    was a VMM itself; its guest's faults are counted there only. `engine` is "native" or
    "portable", and then `why_not_native` says why.
    """

    instructions: int
    seconds: float
    faults: Faults
    injected: Mapping[int, int]
    exits: Mapping[ExitReason, int]
    stop: Stop | None = None
    nested: NestedSummary | None = None
    engine: str = "native"
    why_not_native: str = ""

    @property
    def engine_words(self) -> str:
        """Which engine ran, and why, in a few words."""
        return self.engine if not self.why_not_native else f"{self.engine}: {self.why_not_native}"

    def count(self, disposition: Disposition, vector: int | None = None) -> int:
        """How many faults (of `vector`, if given) went that way."""
        chosen = self.faults if vector is None else {vector: self.faults.get(vector, {})}
        return sum(counts.get(disposition, 0) for counts in chosen.values())

    def delivered_directly(self, vector: int) -> int:
        """How many events of `vector` reached the guest without the VMM's doing."""
        return self.count(Disposition.DELIVER, vector) - self.injected.get(vector, 0)
