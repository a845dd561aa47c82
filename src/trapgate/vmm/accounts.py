"""What has happened on a machine: counts, the journal's last events, and how it shows itself."""

from __future__ import annotations

from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.decision.decide import Disposition
from trapgate.events.journal import COUNTS, DISPOSITIONS, HEAD_COUNTS, TYPES, VECTORS
from trapgate.sdm.event_words import event_name, hexadecimal
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import REASONS, ExitReason
from trapgate.vmm.actions import Stop
from trapgate.vmm.event_frame import event_frame
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.summary import Counts, EventKind, NestedSummary, Summary

if TYPE_CHECKING:
    from polars import DataFrame

_KINDS = {
    EventKind.FAULT: InterruptionType.HARDWARE_EXCEPTION,
    EventKind.INTERRUPT: InterruptionType.EXTERNAL_INTERRUPT,
    EventKind.SOFTWARE_INTERRUPT: InterruptionType.SOFTWARE_INTERRUPT,
}
JOURNAL = 1 << 15
"""Events that a machine's processor remembers."""


@dataclass
class Tally:
    """What a machine has counted of its own."""

    seconds: float = 0.0
    resets: int = 0
    exits: array[int] = field(default_factory=lambda: array("q", [0] * (max(REASONS) + 1)))
    """By basic exit reason."""
    injected: dict[EventKind, dict[int, int]] = field(
        default_factory=lambda: {kind: defaultdict(int) for kind in EventKind}
    )


class Accounts(Platform):
    """A platform that keeps accounts: `number` is the machine's, `stopped` why it has ended."""

    number: int
    stopped: Stop | None
    _tally: Tally

    def __repr__(self) -> str:
        """Where the guest stands, and whether it has stopped."""
        state = f"stopped: {self.stopped.end.value}" if self.stopped else "not stopped"
        rip = hexadecimal(self.vmcs["GUEST_RIP"])
        return (
            f"<VirtualMachine {self.number}: {self.processor.memory.size >> 20} MB, "
            f"{self.processor.engine.kind} engine, RIP {rip}, "
            f"{self.processor.time:,} instructions, {state}>"
        )

    def _repr_html_(self) -> str:
        """What happened so far, for notebooks."""
        from html import escape

        from trapgate.trace.html import table

        summary = self.summary()
        rows = [
            (f"{event_name(vector, _KINDS[kind])} {disposition.name.lower()}", f"{count:,}")
            for kind, vectors in summary.events.items()
            for vector, counts in vectors.items()
            for disposition, count in counts.items()
        ]
        rows += [
            (f"VM exit: {reason.name.lower().replace('_', ' ')}", f"{count:,}")
            for reason, count in summary.exits.items()
        ]
        return f"<p>{escape(repr(self))}</p>" + table(("what", "count"), rows)

    def events(self, count: int = JOURNAL) -> DataFrame:
        """The last events, the earliest first, as a Polars frame; numbers as in the trace.

        `name` is the event in words, `error_code` and `address` are null where there is none.
        Raises: MissingExtraError without polars.
        """
        return event_frame(islice(self.processor.last_events(), count))

    def _event_counts(self, level: int) -> Cells:
        """The journal's counts of one level, by type, vector and disposition."""
        start = HEAD_COUNTS + level * COUNTS
        return self.processor.head[start : start + COUNTS]

    def summary(self) -> Summary:
        """What has happened so far."""
        entries = 0
        exits: dict[ExitReason, int] = {}
        for cpu in self.cpus:
            made, seen = cpu.own.x86_vmm.counts()
            entries += made
            for reason, count in seen.items():
                exits[reason] = exits.get(reason, 0) + count
        return Summary(
            self.processor.time,
            self.processor.skipped,
            self._tally.seconds,
            self._events(0),
            {kind: dict(counts) for kind, counts in self._tally.injected.items()},
            {reason: count for reason in ExitReason if (count := self._tally.exits[reason])},
            self.stopped,
            NestedSummary(entries, self._events(1), exits) if entries else None,
            self.processor.engine.kind,
            self.processor.engine.why_not_native,
            resets=self._tally.resets,
        )

    def _events(self, level: int) -> dict[EventKind, Counts]:
        """The journal's counts for one level."""
        every = self._event_counts(level).reshape(TYPES, VECTORS, DISPOSITIONS)
        found: dict[EventKind, Counts] = {}
        for kind in EventKind:
            counts = every[[t for t in range(TYPES) if EventKind.of(t) is kind]].sum(axis=0)
            found[kind] = {
                int(vector): {
                    disposition: int(counts[vector, disposition])
                    for disposition in Disposition
                    if counts[vector, disposition]
                }
                for vector in np.flatnonzero(counts.any(axis=1))
            }
        return found
