"""Faults, exits and injections that stop the guest before they take effect."""

from __future__ import annotations

from dataclasses import dataclass

from trapgate.debug.postmortem.instruction import decoded
from trapgate.debug.postmortem.view import Step, view_of
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import Names, parse
from trapgate.decision.criteria_rules import Action as RuleAction
from trapgate.decision.criteria_rules import Rule, encode
from trapgate.decision.faults import Interruption
from trapgate.errors import TrapgateError
from trapgate.processor.fault_conditions import Occurrence, holds
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import cells as f
from trapgate.sdm import state as st
from trapgate.sdm.event_words import code_words, event_words, hexadecimal
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import PF, Vector
from trapgate.vmm.actions import RESUME, Action, Inject
from trapgate.vmm.machine import VirtualMachine

_TURNS = (
    ExitReason.PREEMPTION_TIMER,
    ExitReason.INTERRUPT_WINDOW,
    ExitReason.MONITOR_TRAP_FLAG,
)
_FIELDS = ("EXCEPTION_BITMAP", "PAGE_FAULT_ERROR_CODE_MASK", "PAGE_FAULT_ERROR_CODE_MATCH")
"""That say which exceptions exit."""
_OPEN = 0x7
"""P, R/W and U/S: what lets any access through."""


class CatchError(TrapgateError):
    """A catchpoint or a decision that cannot be; the message says why, in one line."""


@dataclass(frozen=True)
class Pending:
    """A VM exit that stopped the guest, and what it is in words."""

    vmexit: VmExit
    words: str


class Catches:
    """What is to be caught, and the decision about what was."""

    def __init__(self, vm: VirtualMachine, names: Names | None = None) -> None:
        self._vm = vm
        self._names = names or Names()
        self._faults: dict[int, tuple[Rule, ...]] = {}
        self._exits: set[ExitReason] | None = None
        self._kept: list[dict[str, int]] = []
        """For each processor, what its VMCS has when nothing is caught."""
        self._decision = "deliver"
        self._injected: Interruption | None = None
        self._opened: list[tuple[int, bytes]] = []
        self._pending: Pending | None = None
        self.injections = False

    @property
    def any(self) -> bool:
        """Whether anything is caught or on its way."""
        return bool(self._faults or self._exits or self.injections or self._opened)

    @property
    def stepping(self) -> bool:
        """Whether an access is being completed, which takes one step."""
        return bool(self._opened)

    # What is caught.

    def catch_fault(self, name: str, text: str) -> str:
        """Catch exceptions of a vector, all or those that fulfil a condition.

        Raises TrapgateError for what is neither.
        """
        try:
            vector = int(Vector[name.upper().removeprefix("#")])
        except KeyError:
            raise CatchError(f"no exception {name!r}; write one like PF, GP or UD") from None
        wanted = rules_for(parse(text or "all", self._names.about_faults()), RuleAction.EXIT)
        encode(wanted)
        if not self._faults:
            self._kept = [{name: cpu.vmcs[name] for name in _FIELDS} for cpu in self._vm.cpus]
        self._faults[vector] = wanted
        self._apply()
        return f"#{name.upper().removeprefix('#')} is caught{f' if {text}' if text else ''}\n"

    def catch_exit(self, name: str) -> str:
        """Catch VM exits of one reason, or of all but those that only give the VMM a turn."""
        try:
            reasons = (
                {ExitReason[name.upper()]}
                if name
                else {reason for reason in ExitReason if reason not in _TURNS}
            )
        except KeyError:
            raise CatchError(f"no exit reason {name!r}; see the SDM's names, as in CPUID") from None
        self._exits = (self._exits or set()) | reasons
        return f"VM exits are caught{f': {name.upper()}' if name else ''}\n"

    def clear(self) -> None:
        """Catch nothing more; the VMCS is as it was."""
        self.trapped()
        self._faults.clear()
        self._apply()
        self._exits = None
        self.injections = False

    def moved(self) -> None:
        """The machine, VMCS and page tables, is as it was at another time."""
        self._opened.clear()
        self._apply()

    def _apply(self) -> None:
        """Set the VMCS so that what is caught exits, and nothing else."""
        for cpu, kept in zip(self._vm.cpus, self._kept, strict=False):
            for name, value in kept.items():
                cpu.vmcs[name] = value
            for vector in self._faults:
                cpu.vmcs["EXCEPTION_BITMAP"] |= 1 << vector
            if PF in self._faults:
                cpu.vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = 0
                cpu.vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = 0

    def caught(self, vmexit: VmExit) -> Pending | None:
        """The exit, if it is to stop the guest."""
        self._pending = None
        event = vmexit.interruption
        if vmexit.reason is ExitReason.EXCEPTION_OR_NMI and event is not None:
            wanted = self._faults.get(event.vector)
            if wanted is not None and self._fulfils(vmexit, event, wanted):
                self._pending = Pending(vmexit, self._fault_words(vmexit, event))
        if self._pending is None and self._exits and vmexit.reason in self._exits:
            reason = vmexit.reason.name.lower().replace("_", " ")
            words = f"VM exit: {reason}, qualification {hexadecimal(vmexit.qualification)}"
            self._pending = Pending(vmexit, words)
        self._decision = "deliver"
        return self._pending

    def _fulfils(self, vmexit: VmExit, event: Interruption, wanted: tuple[Rule, ...]) -> bool:
        outer = vmexit.idt_vectoring
        return holds(
            self._vm.processor,
            self._vm.vmcs.cells,
            wanted,
            Occurrence(
                event.vector,
                int(event.type),
                -1 if event.error_code is None else event.error_code,
                vmexit.qualification,
                vmexit.instruction_length,
                int(outer is not None),
                -1 if outer is None else outer.vector,
            ),
        )

    def _fault_words(self, vmexit: VmExit, event: Interruption) -> str:
        code = -1 if event.error_code is None else event.error_code
        words = event_words(event.vector, event.type, code)
        details = [code_words(event.vector, code)]
        if event.vector == PF:
            details.append(f"address {hexadecimal(vmexit.qualification)}")
        rest = ", ".join(detail for detail in details if detail)
        where = hexadecimal(self._vm.vmcs["GUEST_RIP"])
        return (
            f"caught {words} at RIP {where}{f': {rest}' if rest else ''}; not delivered yet: "
            "monitor deliver, skip, complete or inject, then continue"
        )

    # What is decided.

    def decide(self, decision: str, injected: Interruption | None = None) -> str:
        """What becomes of the fault that was caught, once the guest continues."""
        pending = self._pending
        if pending is None or pending.vmexit.interruption is None:
            raise CatchError("no fault has been caught; catch one with monitor catch PF")
        if decision == "complete":
            self._open(pending.vmexit)
        self._decision, self._injected = decision, injected
        what = f" {injected}" if injected else ""
        return f"decided: {decision}{what}; continue carries it out\n"

    def _open(self, vmexit: VmExit) -> None:
        """Whether the access of a page fault could be completed: look, and change nothing yet."""
        event = vmexit.interruption
        if event is None or event.vector != PF:
            raise CatchError("only page faults can be completed; deliver, skip or inject")
        if self._steps(vmexit) is None:
            raise CatchError("no page is there to complete the access with; map one, or skip it")

    def _steps(self, vmexit: VmExit) -> tuple[Step, ...] | None:
        walk = view_of(self._vm).walk(vmexit.qualification)
        if walk.physical is None or not walk.steps:
            return None
        return walk.steps

    def action(self, pending: Pending | None) -> Action | None:
        """What the decision asks for; None for what the VMM would do anyway."""
        if pending is None or pending.vmexit.interruption is None:
            return None
        match self._decision:
            case "skip":
                instruction = decoded(view_of(self._vm))
                if instruction is not None:
                    self._vm.vmcs["GUEST_RIP"] = instruction.next_ip
                return RESUME
            case "inject" if self._injected is not None:
                return Inject(self._injected)
            case "complete":
                self._let_through(pending.vmexit)
                return RESUME
        return None

    def _let_through(self, vmexit: VmExit) -> None:
        """Give the entries on the way all rights for one step; `trapped` takes them back."""
        memory = self._vm.processor.memory
        view = view_of(self._vm)
        wide = view.long or view.cell(f.GUEST_CR4) & st.CR4_PAE
        for step in self._steps(vmexit) or ():
            if step.name == "PDPTE" and not view.long:
                continue  # has no rights
            width = 8 if wide else 4
            old = memory.read(step.address, width)
            entry = int.from_bytes(old, "little") | _OPEN
            memory.write(step.address, entry.to_bytes(width, "little"))
            self._opened.append((step.address, old))
        self._vm.processor.engine.flush_translations()

    def trapped(self) -> None:
        """The step is done: the page tables are the guest's again."""
        for address, old in self._opened:
            self._vm.processor.memory.write(address, old)
        if self._opened:
            self._vm.processor.engine.flush_translations()
            self._opened.clear()

    @staticmethod
    def event(vector: int, code: int | None) -> Interruption:
        """A hardware exception to inject."""
        return Interruption(vector, InterruptionType.HARDWARE_EXCEPTION, code)
