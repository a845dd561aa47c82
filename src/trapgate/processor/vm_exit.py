"""What ends a run of a guest: a VM exit, or the failure of VMLAUNCH or VMRESUME."""

from __future__ import annotations

from dataclasses import dataclass, field

from trapgate.decision.faults import Interruption
from trapgate.sdm import cells as f
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.reasons import REASONS, ExitReason
from trapgate.vmcs.explain import explain_entry_failure
from trapgate.vmcs.vmcs import Vmcs

_FAILED = 1 << 31
_INFORMATION = slice(f.EXIT_REASON, f.VM_EXIT_INSTRUCTION_LENGTH + 1)
"""The cells of exit reason, interruption information and error code, IDT-vectoring information
and error code, and instruction length."""


class VmExit:
    """A VM exit (SDM, "VM-Exit Information Fields").

    It remembers the exit information of its VMCS as it was, and makes of it what is asked for.
    `vmcs` holds the guest's state, which moves on.
    """

    __slots__ = (
        "_information",
        "_qualification",
        "explanation",
        "instruction_length",
        "reason",
        "vmcs",
    )

    def __init__(self, vmcs: Vmcs) -> None:
        """The latest exit of `vmcs`."""
        words = vmcs.words
        self.vmcs = vmcs
        self._information = information = words[_INFORMATION].tolist()
        self._qualification = words[f.EXIT_QUALIFICATION]
        reason = information[0]
        self.reason: ExitReason = REASONS[reason & 0xFFFF]
        """The basic exit reason."""
        self.instruction_length: int = information[5]
        """Bytes of the instruction that exited; 0 where undefined."""
        self.explanation = explain_entry_failure(vmcs.cells) if reason & _FAILED else ""
        """Why VM entry failed; empty if it did not."""

    @property
    def qualification(self) -> int:
        """The exit qualification, 64 bits."""
        return self._qualification & 0xFFFF_FFFF_FFFF_FFFF

    @property
    def interruption(self) -> Interruption | None:
        """The event that caused the exit."""
        _, word, code, *_ = self._information
        return Interruption.decode(word, code) if word else None

    @property
    def idt_vectoring(self) -> Interruption | None:
        """The event that was being delivered when the exit came."""
        _, _, _, word, code, _ = self._information
        return Interruption.decode(word, code) if word else None

    @property
    def entry_failed(self) -> bool:
        """Whether the guest never ran."""
        return bool(self._information[0] & _FAILED)

    def __repr__(self) -> str:
        """In words: the reason, the event, and where the guest was."""
        reason = self.reason.name.lower().replace("_", " ")
        parts = [f"VM entry failed: {reason}" if self.entry_failed else f"VM exit: {reason}"]
        if self.interruption is not None:
            parts.append(repr(self.interruption).strip("<>"))
        if self.qualification:
            parts.append(f"qualification {hexadecimal(self.qualification)}")
        if self.idt_vectoring is not None:
            parts.append(f"while delivering {repr(self.idt_vectoring).strip('<>')}")
        return f"<{', '.join(parts)}, RIP {hexadecimal(self.vmcs['GUEST_RIP'])}>"

    def _repr_html_(self) -> str:
        """What the exit tells, a row each, for notebooks."""
        from trapgate.trace.html import table

        told = (
            ("exit reason", f"{int(self.reason)} {self.reason.name.lower().replace('_', ' ')}"),
            ("qualification", hexadecimal(self.qualification)),
            ("event", self.interruption),
            ("while delivering", self.idt_vectoring),
            ("instruction length", self.instruction_length or None),
            ("RIP", hexadecimal(self.vmcs["GUEST_RIP"])),
        )
        heads = ("VM entry failed" if self.entry_failed else "VM exit", "")
        rows = ((name, str(value).strip("<>")) for name, value in told if value is not None)
        return table(heads, rows)


@dataclass(frozen=True, slots=True)
class VmFail:
    """VMLAUNCH or VMRESUME failed: VMfailValid with this VM-instruction error number.

    `explanation` says which check failed, on which field, with which value.
    """

    error: int
    explanation: str = field(default="", compare=False)
