"""What is put into a run: an event at VM entry, changed bits, or an instruction left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from trapgate.campaign.places import AbsentError, Place
from trapgate.decision.faults import Interruption
from trapgate.errors import FieldValueError
from trapgate.processor.operand import Operand
from trapgate.sdm.event_words import event_name
from trapgate.sdm.interruption import InterruptionType
from trapgate.vmm.machine import EventPendingError, VirtualMachine

FAULTS: Final = (
    InterruptionType.NMI,
    InterruptionType.HARDWARE_EXCEPTION,
    InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
    InterruptionType.SOFTWARE_EXCEPTION,
)
"""Types of events that count as faults; interrupts come whenever they come."""
FLIP, SET_0, SET_1 = "flip", "0", "1"


class Fault(Protocol):
    """Something to do to a machine between two instructions.

    `target` is what it is done to, `bit` which one (-1 for none), `what` says it in words.
    `holds` is whether it is to be done again before every instruction that follows, `raises` the
    faults that it is itself, by name.
    """

    @property
    def target(self) -> str:
        """What it is done to."""
        ...

    @property
    def bit(self) -> int:
        """Which bit."""
        ...

    @property
    def what(self) -> str:
        """In words."""
        ...

    @property
    def holds(self) -> bool:
        """Whether it stays."""
        ...

    @property
    def raises(self) -> tuple[str, ...]:
        """Which faults it is."""
        ...

    def apply(self, vm: VirtualMachine) -> None:
        """Do it. Raises AbsentError."""
        ...


@dataclass(frozen=True)
class Event:
    """An event that the next VM entry delivers (second seed, claims 1-9)."""

    event: Interruption
    address: int | None = None
    length: int = 0
    bit: int = -1
    holds: bool = False

    @property
    def raises(self) -> tuple[str, ...]:
        """Itself, if it is a fault and no interrupt."""
        return (self.target,) if self.event.type in FAULTS else ()

    @property
    def target(self) -> str:
        """The event's name."""
        return event_name(self.event.vector, self.event.type)

    @property
    def what(self) -> str:
        """The event, its error code and CR2."""
        parts = []
        if self.event.error_code is not None:
            parts.append(f"code={self.event.error_code:#x}")
        if self.address is not None:
            parts.append(f"cr2={self.address:#x}")
        return self.target + (f"({', '.join(parts)})" if parts else "")

    def apply(self, vm: VirtualMachine) -> None:
        """Put it into the VM-entry fields."""
        try:
            vm.inject(self.event, address=self.address, length=self.length)
        except EventPendingError as error:
            raise AbsentError(str(error)) from None


@dataclass(frozen=True)
class Flip:
    """A bit of a place that changes, or is forced to 0 or 1, once or from then on."""

    place: Place
    bit: int
    mode: str = FLIP
    holds: bool = False
    raises: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The place."""
        return self.place.name

    @property
    def what(self) -> str:
        """Place, bit, and what becomes of it."""
        change = "" if self.mode == FLIP else f" {'stuck at' if self.holds else '='} {self.mode}"
        return f"{self.place.name} bit {self.bit}{change}"

    def apply(self, vm: VirtualMachine) -> None:
        """Change the bit."""
        value = self.place.read(vm)
        mask = 1 << self.bit
        changed = (
            value ^ mask
            if self.mode == FLIP
            else value | mask
            if self.mode == SET_1
            else value & ~mask
        )
        if changed != value:
            self.place.write(vm, changed)


@dataclass(frozen=True)
class Unread:
    """A bit of a target that nobody reads, or any; it is put into no run."""

    target: str
    bit: int = -1
    holds: bool = False
    raises: tuple[str, ...] = ()

    @property
    def what(self) -> str:
        """The bit, or all."""
        return f"{self.target}, any bit" if self.bit < 0 else f"{self.target} bit {self.bit}"

    def apply(self, vm: VirtualMachine) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Skip:
    """The next instruction is left out."""

    bit: int = -1
    holds: bool = False
    raises: tuple[str, ...] = ()
    target: str = "skipped instruction"
    what: str = "skip"

    def apply(self, vm: VirtualMachine) -> None:
        """Move RIP past it."""
        guest = Operand(vm.processor, vm.vmcs.cells)
        instruction = guest.decode()
        if instruction.is_invalid:
            raise AbsentError("no instruction can be fetched here")
        try:
            vm.vmcs["GUEST_RIP"] = guest.wrap(vm.vmcs["GUEST_RIP"] + len(instruction))
        except FieldValueError as error:
            raise AbsentError(str(error)) from None
