"""What a handler tells the machine to do after a VM exit, as values."""

from dataclasses import dataclass
from enum import Enum

from trapgate.decision.faults import Interruption


@dataclass(frozen=True, slots=True)
class Resume:
    """Continue at GUEST_RIP; an event whose delivery the exit interrupted is delivered again."""


@dataclass(frozen=True, slots=True)
class Emulated:
    """The handler has emulated the instruction: continue after it."""


@dataclass(frozen=True, slots=True)
class StateReplaced:
    """Continue in the state that the handler has made, without delivering an event again."""


@dataclass(frozen=True, slots=True)
class Inject:
    """Deliver `event` to the guest on VM entry (second seed, claim 1).

    `length` is the instruction's in bytes, for software interrupts and exceptions.
    """

    event: Interruption
    length: int = 0


class End(Enum):
    """Why a machine ended."""

    DEBUG_EXIT = "debug exit"
    RESET = "reset"
    POWER_OFF = "power off"
    ASLEEP = "asleep"
    HALTED = "halted"
    TRIPLE_FAULT = "triple fault"
    ENTRY_FAILED = "VM entry failed"
    UNHANDLED = "unhandled VM exit"
    UNTIL = "expression found"
    QUIT = "quit"
    INTERRUPTED = "interrupted"
    LIMIT = "limit reached"
    VMX_ABORT = "VMX abort"
    STOPPED_BY_VMM = "stopped by the VMM"
    REFUSED = "refused by the VMM"


@dataclass(frozen=True, slots=True)
class Stop:
    """The machine stops: `end` says why, `message` in a line, `status` as exit status."""

    end: End
    message: str
    status: int = 0

    @property
    def can_continue(self) -> bool:
        """Whether the guest would continue if it were run again: somebody else wanted the stop."""
        return self.end in (End.LIMIT, End.UNTIL, End.QUIT, End.INTERRUPTED)

    @property
    def is_normal(self) -> bool:
        """Whether it ended as guests should, so that there is nothing to explain."""
        own = (End.DEBUG_EXIT, End.RESET, End.POWER_OFF, End.ASLEEP, End.STOPPED_BY_VMM)
        return self.can_continue or self.end in own


Action = Resume | Emulated | StateReplaced | Inject | Stop

RESUME = Resume()
EMULATED = Emulated()
