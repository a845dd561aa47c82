"""What carries messages between local APICs, and from the I/O APIC to them.

SDM, "Issuing Interprocessor Interrupts" and "Interrupt Distribution Mechanisms".
"""

from typing import Protocol

_LOWEST_PRIORITY = 1


class Receiver(Protocol):
    """A local APIC, as messages see it."""

    def is_destination(self, destination: int, *, logical: bool, wide: bool = False) -> bool:
        """Does a message to `destination` (8 bits, 32 if `wide`) mean it?"""

    def accept(self, vector: int, mode: int, *, level: bool = False) -> bool:
        """Take a message; whether a fixed interrupt was accepted."""

    def priority(self) -> int:
        """The processor's priority, 8 bits."""


class InterruptEnd(Protocol):
    """A receiver of the ends of level-triggered interrupts: the I/O APIC."""

    def end(self, vector: int) -> None:
        """`vector` is no longer in service somewhere."""


class Interconnect:
    """The local APICs of a machine, and its I/O APIC."""

    def __init__(self) -> None:
        self.receivers: tuple[Receiver, ...] = ()
        self.enders: tuple[InterruptEnd, ...] = ()

    def add(self, receiver: Receiver) -> None:
        """One more local APIC."""
        self.receivers += (receiver,)

    def send(
        self,
        vector: int,
        mode: int,
        destination: int,
        *,
        logical: bool,
        wide: bool = False,
        level: bool = False,
    ) -> bool:
        """Send a message to whom it means; whether a fixed interrupt was accepted.

        With lowest-priority delivery only the one gets it whose processor has the least to do, and
        the first of several.
        """
        meant = [
            one
            for one in self.receivers
            if one.is_destination(destination, logical=logical, wide=wide)
        ]
        if mode == _LOWEST_PRIORITY and len(meant) > 1:
            meant = [min(meant, key=lambda one: one.priority())]
        return self._deliver(meant, vector, mode, level=level)

    def broadcast(self, vector: int, mode: int, *, but: Receiver | None = None) -> bool:
        """Send a message to all, perhaps but one."""
        return self._deliver([one for one in self.receivers if one is not but], vector, mode)

    def end(self, vector: int) -> None:
        """A level-triggered interrupt ended at a local APIC."""
        for ender in self.enders:
            ender.end(vector)

    @staticmethod
    def _deliver(to: list[Receiver], vector: int, mode: int, *, level: bool = False) -> bool:
        accepted = [one.accept(vector, mode, level=level) for one in to]
        return any(accepted)
