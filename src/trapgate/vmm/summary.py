"""What a run did, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from trapgate.decision.decide import Disposition
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import Stop

Counts = Mapping[int, Mapping[Disposition, int]]
"""How many events, by vector and disposition."""


class EventKind(StrEnum):
    """Kind of an event: INT 10H is not the exception whose vector it uses, nor is an IRQ."""

    FAULT = "faults"
    """An exception (INT3, INTO and INT1 raise some), or an NMI."""
    INTERRUPT = "interrupts"
    """From outside."""
    SOFTWARE_INTERRUPT = "software_interrupts"
    """INT n."""

    @classmethod
    def of(cls, kind: int) -> EventKind:
        """The kind of an interruption type."""
        if kind == InterruptionType.EXTERNAL_INTERRUPT:
            return cls.INTERRUPT
        if kind == InterruptionType.SOFTWARE_INTERRUPT:
            return cls.SOFTWARE_INTERRUPT
        return cls.FAULT


@dataclass(frozen=True)
class NestedSummary:
    """What an x86 VMM and its guest did: VM entries, its guest's events, VM exits to it."""

    entries: int
    events: Mapping[EventKind, Counts]
    exits: Mapping[ExitReason, int]

    @property
    def faults(self) -> Counts:
        """Its guest's exceptions and NMIs."""
        return self.events[EventKind.FAULT]


@dataclass(frozen=True)
class TableWrites:
    """Writes to page tables under a frame map: `completed` by the filter that let them through,
    `exited` by the level of the table, of which `reused` made a table data again.
    """

    completed: Mapping[str, int]
    exited: Mapping[str, int]


@dataclass(frozen=True)
class Summary:
    """What a run did: counts by kind, vector and disposition, and by exit reason.

    `instructions` is virtual time, `halted` the part of it in which nothing was executed,
    `seconds` the host's time. `injected` counts, by kind and vector, the deliveries that the VMM
    asked for at VM entry. `nested` is there if the guest
    was a VMM itself; its guest's faults are counted there only. `engine` is "native" or
    "portable", and then `why_not_native` says why.
    """

    instructions: int
    halted: int
    seconds: float
    events: Mapping[EventKind, Counts]
    injected: Mapping[EventKind, Mapping[int, int]]
    exits: Mapping[ExitReason, int]
    stop: Stop | None = None
    nested: NestedSummary | None = None
    engine: str = "native"
    why_not_native: str = ""
    table_writes: TableWrites | None = None
    resets: int = 0
    """How often the guest reset the machine and continued."""

    @property
    def engine_words(self) -> str:
        """Which engine ran, and why, in a few words."""
        return self.engine if not self.why_not_native else f"{self.engine}: {self.why_not_native}"

    @property
    def faults(self) -> Counts:
        """Exceptions and NMIs."""
        return self.events[EventKind.FAULT]

    @property
    def executed(self) -> int:
        """Instructions that were executed: virtual time passes while the guest halts, too."""
        return self.instructions - self.halted

    def count(self, disposition: Disposition, vector: int | None = None) -> int:
        """How many events went that way; with `vector`, how many exceptions with that vector."""
        if vector is not None:
            return self.faults.get(vector, {}).get(disposition, 0)
        every = (counts for of_kind in self.events.values() for counts in of_kind.values())
        return sum(counts.get(disposition, 0) for counts in every)

    def delivered_directly(self, vector: int) -> int:
        """How many exceptions of `vector` reached the guest without the VMM's doing."""
        injected = self.injected.get(EventKind.FAULT, {}).get(vector, 0)
        return self.count(Disposition.DELIVER, vector) - injected
