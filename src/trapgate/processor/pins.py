"""What waits at a logical processor's pins until it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trapgate.engine.machine import PIN_EVENT, PIN_INTERRUPT
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import ACTIVITY_WAIT_FOR_SIPI


@dataclass(frozen=True, slots=True)
class Smi:
    """A pending SMI: the exit that it causes, and the fields that this writes beside."""

    reason: ExitReason
    qualification: int
    fields: Mapping[int, int]


@dataclass
class Pins:
    """The vector of an external interrupt, an NMI, INIT, an SMI, the vector of a start-up IPI."""

    interrupt: int | None = None
    nmi: bool = False
    init: bool = False
    smi: Smi | None = None
    start_up: int | None = None

    def clear(self) -> None:
        """Nothing waits any more."""
        self.interrupt = self.smi = self.start_up = None
        self.nmi = self.init = False

    @property
    def bits(self) -> int:
        """What waits, as bits of PINS (`engine.machine`)."""
        waiting = 0 if self.interrupt is None else PIN_INTERRUPT
        if self.nmi or self.init or self.smi is not None or self.start_up is not None:
            waiting |= PIN_EVENT
        return waiting

    def wake(self, activity: int, *, init_waits: bool) -> bool:
        """Is there an event, interrupts aside, that a processor in that activity state takes?

        `init_waits` says that INIT stays pending, as it does in VMX root operation.
        """
        if activity == ACTIVITY_WAIT_FOR_SIPI:
            return self.start_up is not None
        return self.nmi or self.smi is not None or (self.init and not init_waits)
