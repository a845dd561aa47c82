"""The VMM that a guest may be, if it is x86 code: what it is offered, and how it fares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.engine.unicorn_engine import UnicornEngine
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.cells import LENGTH
from trapgate.sdm.reasons import REASONS, ExitReason
from trapgate.sdm.registers import NAMES as REGISTER_NAMES
from trapgate.sdm.state import ACTIVITY_WAIT_FOR_SIPI
from trapgate.vmcs.explain import explain_entry_failure, explain_failure, hexadecimal
from trapgate.vmx.capability_msrs import capability_msrs
from trapgate.vmx.msr_areas import first_not_stored, load_msrs, why_not

_FOREVER = 1 << 62


class X86Vmm:
    """VMX as the guest of one processor uses it: `state` by `sdm.vmx`'s cells, and `vmcs`.

    `vmcs` is the processor's copy of the current VMCS, whose guest-state area is the state of
    that VMM's guest while it runs (docs/adr/0010).
    """

    def __init__(self, engine: UnicornEngine) -> None:
        self._engine = engine.cells
        self._memory = engine.memory
        self.state: Cells = np.zeros(vmx.LENGTH, np.int64)
        self.state[vmx.VMXON_POINTER] = self.state[vmx.CURRENT] = vmx.NONE
        self.state[vmx.LATEST_PAUSE] = vmx.NEVER
        self.vmcs: Cells = np.zeros(LENGTH, np.int64)
        self._words = memoryview(self.state.data)
        self._sink: Callable[[str], None] | None = None
        self._told = 0

    def look_at(self, machine: Cells) -> None:
        """Use `machine` as the engine's cells for this processor."""
        self._engine = machine

    def offer_vmx(self, *, extended: bool) -> None:
        """Make VMX available to the guest: VMXON works, and CPUID and capability MSRs report it.

        `extended` lets it use the extension fields. IA32_FEATURE_CONTROL is as firmware leaves
        it: locked, with VMX enabled.
        """
        x = self._words
        x[vmx.OFFERED] = 1
        # Page walks in two dimensions are the core's; the portable engine makes its own.
        native = self._engine[stops.NATIVE] != 0
        x[vmx.SECONDARY_ALLOWED] = ct.SECONDARY_WITH_EPT if native else ct.SECONDARY_REPORTED
        x[vmx.EXTENDED] = int(extended)
        x[vmx.FEATURE_CONTROL] = vmx.FEATURE_LOCKED | vmx.FEATURE_VMX_OUTSIDE_SMX

    def msrs(self) -> Mapping[int, int]:
        """What the MSRs of VMX read as; IA32_FEATURE_CONTROL alone if VMX is not offered."""
        x = self._words
        if not x[vmx.OFFERED]:
            return {vmx.MSR_FEATURE_CONTROL: vmx.FEATURE_LOCKED}
        msrs = capability_msrs(extended=bool(x[vmx.EXTENDED]), secondary=x[vmx.SECONDARY_ALLOWED])
        return {**msrs, vmx.MSR_FEATURE_CONTROL: x[vmx.FEATURE_CONTROL]}

    def set_feature_control(self, value: int) -> bool:
        """WRMSR to IA32_FEATURE_CONTROL; False if that is a #GP, as once it is locked."""
        x = self._words
        writable = vmx.FEATURE_LOCKED | vmx.FEATURE_VMX_OUTSIDE_SMX
        locked = x[vmx.FEATURE_CONTROL] & vmx.FEATURE_LOCKED
        if not x[vmx.OFFERED] or locked or value & ~writable:
            return False
        x[vmx.FEATURE_CONTROL] = value
        return True

    @property
    def in_vmx_operation(self) -> bool:
        """Whether the guest has executed VMXON."""
        return self._words[vmx.MODE] != vmx.MODE_OFF

    @property
    def in_root_operation(self) -> bool:
        """Whether it is in VMX root operation."""
        return self._words[vmx.MODE] == vmx.MODE_ROOT

    def counts(self) -> tuple[int, Mapping[ExitReason, int]]:
        """Its VM entries, and the VM exits to it by basic exit reason."""
        x = self._words
        counts = x[vmx.EXITS : vmx.EXITS + vmx.EXIT_REASONS]
        return x[vmx.ENTRIES], {REASONS[n]: count for n, count in enumerate(counts) if count}

    @property
    def has_entered(self) -> bool:
        """Whether it has ever entered a guest."""
        return self._words[vmx.ENTRIES] != 0

    @property
    def failures(self) -> int:
        """How many of its VMX instructions and VM entries have failed."""
        return self._words[vmx.FAILURES]

    @property
    def abort(self) -> int:
        """The VMX-abort indicator, 0 if there was none."""
        return self._words[vmx.ABORT]

    # Its guest.

    @property
    def guest_is_in_vmcs0(self) -> bool:
        """Whether the state of its guest is in VMCS 0, where the VMM in Python works on it."""
        return bool(self._words[vmx.GUEST_IN_VMCS0])

    @property
    def wants_interrupts(self) -> bool:
        """Whether its guest is served, and external interrupts exit to it, whatever IF says."""
        pin = self.vmcs[f.PIN_BASED_CONTROLS]
        return self.guest_is_in_vmcs0 and bool(pin & ct.PIN_EXTERNAL_INTERRUPT_EXITING)

    @property
    def acknowledges_interrupts(self) -> bool:
        """Whether a VM exit for an interrupt to it acknowledges that."""
        return bool(self.vmcs[f.VM_EXIT_CONTROLS] & ct.EXIT_ACKNOWLEDGE_INTERRUPT)

    def is_notification(self, vector: int) -> bool:
        """Whether that interrupt only notifies its guest of others, which are posted."""
        pin = self.vmcs[f.PIN_BASED_CONTROLS]
        notifies = vector == self.vmcs[f.POSTED_INTERRUPT_NOTIFICATION_VECTOR]
        return bool(pin & ct.PIN_POSTED_INTERRUPTS) and bool(notifies)

    @property
    def preemption_deadline(self) -> int | None:
        """The virtual time at which its preemption timer ends, if that is running."""
        end = int(self._engine[stops.NESTED_TIMER_END])
        waits = self.vmcs[f.GUEST_ACTIVITY_STATE] == ACTIVITY_WAIT_FOR_SIPI
        return None if end >= _FOREVER or waits else end

    # Why things fail.

    def explain_to(self, sink: Callable[[str], None]) -> None:
        """Tell `sink`, a line each, why its VMX instructions and VM entries fail."""
        self._sink = sink
        self._words[vmx.EXPLAINING] = 1

    def explain_latest(self) -> None:
        """Explain the latest failure, if somebody wants to know and has not been told."""
        x = self._words
        if self._sink is None or x[vmx.FAILURES] == self._told:
            return
        self._told = x[vmx.FAILURES]
        valid = x[vmx.CURRENT] != vmx.NONE and x[vmx.ERROR] != 0
        if x[vmx.ERROR] == vmx.NO_ERROR:
            words = explain_entry_failure(self.vmcs, self._msr_not_loaded())
        else:
            words = explain_failure(
                x[vmx.INSTRUCTION],
                x[vmx.ERROR],
                self.vmcs,
                valid=valid,
                operand=x[vmx.OPERAND],
                descriptor=(x[vmx.OPERAND_TYPE], x[vmx.OPERAND], x[vmx.OPERAND_REST]),
            )
        current = f", current VMCS {hexadecimal(x[vmx.CURRENT])}" if valid else ""
        self._sink(f"RIP {hexadecimal(x[vmx.FAILED_RIP])}{current}: {words}")

    def _msr_not_loaded(self) -> str:
        """Why a VM entry has not loaded an MSR, "" if that was not what failed."""
        if int(self.vmcs[f.EXIT_REASON]) & 0xFFFF != ExitReason.ENTRY_FAILURE_MSR_LOADING:
            return ""
        address, number = (
            int(self.vmcs[cell]) for cell in (f.VM_ENTRY_MSR_LOAD_ADDRESS, f.EXIT_QUALIFICATION)
        )
        return why_not(self._memory, address, number)

    def why_aborted(self) -> str:
        """Which MSR was not saved or loaded, if that has led to a VMX abort; "" otherwise."""
        n = self.vmcs
        stored = self.abort == vmx.ABORT_SAVING_MSRS
        if not stored and self.abort != vmx.ABORT_LOADING_MSRS:
            return ""
        fields = (
            (f.VM_EXIT_MSR_STORE_ADDRESS, f.VM_EXIT_MSR_STORE_COUNT)
            if stored
            else (f.VM_EXIT_MSR_LOAD_ADDRESS, f.VM_EXIT_MSR_LOAD_COUNT)
        )
        address, count = (int(n[cell]) for cell in fields)
        # On copies: who looks changes nothing.
        state, registers = n.copy(), np.zeros(len(REGISTER_NAMES), np.int64)
        find = first_not_stored if stored else load_msrs
        number = find(state, registers, self._memory, address, count)
        return why_not(self._memory, address, number, stored=stored) if number else ""
