"""A processor of a machine: its pins, as devices see them, and what the VMM keeps for it."""

from __future__ import annotations

from trapgate.processor.own_state import OwnState
from trapgate.processor.processor import Processor
from trapgate.processor.reset import begin_at, reset
from trapgate.sdm import cells as f
from trapgate.sdm import registers, vmx
from trapgate.sdm.interruption import INFO_VALID
from trapgate.sdm.state import ACTIVITY_ACTIVE, ACTIVITY_WAIT_FOR_SIPI, RFLAGS_IF
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.cpus.identity import MISC_ENABLE_AT_RESET
from trapgate.vmm.cpus.mtrrs import Mtrrs
from trapgate.vmm.devices import INSTRUCTIONS_PER_MICROSECOND
from trapgate.vmm.devices.apic import LocalApic


class Cpu:
    """One of the processors that take turns on `processor`.

    What is sent to the one whose turn it is waits at its pins for the next VM entry. INIT and
    start-up IPIs to others take effect at once, unless they are in VMX operation, where their
    VMM has a say.
    """

    apic: LocalApic

    def __init__(self, processor: Processor, own: OwnState, vmcs: Vmcs) -> None:
        self._processor = processor
        self.own = own
        self.vmcs = vmcs
        self.mtrrs = Mtrrs()
        self.tsc_adjust = 0
        """IA32_TSC_ADJUST, 64 bits: what the guest has added to the time-stamp counter."""
        self.misc_enable = MISC_ENABLE_AT_RESET
        """IA32_MISC_ENABLE, 64 bits."""
        self.has_windows = True
        """Whether devices may show it memory where it is not: no, where a VMM owns the frames."""

    @property
    def number(self) -> int:
        """0 for the bootstrap processor; the APIC ID at first."""
        return self.own.number

    @property
    def has_turn(self) -> bool:
        """Is it the one that runs, or did last?"""
        return self._processor.runs(self.own)

    # What devices see.

    @property
    def cr8(self) -> int:
        """CR8, 4 bits."""
        return int(self.own.registers.cells[registers.CR8])

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.own.registers.cells[registers.CR8] = value

    def nmi(self) -> None:
        """Signal a non-maskable interrupt."""
        self.own.pins.nmi = True

    def smi(self) -> None:
        """Signal a system-management interrupt."""
        if self.has_turn:
            self._processor.smi()

    def init(self) -> None:
        """Signal INIT."""
        if self.has_turn or self.own.x86_vmm.in_vmx_operation:
            self.own.pins.init = True
            return
        self.reset()

    def leave_vmx(self) -> None:
        """End VMX operation, whatever was going on, as a reset does."""
        x = self.own.x86_vmm.state
        x[vmx.MODE], x[vmx.GUEST_IN_VMCS0] = vmx.MODE_OFF, 0
        x[vmx.VMXON_POINTER] = x[vmx.CURRENT] = vmx.NONE
        self.own.pins.clear()

    def reset(self) -> None:
        """What INIT does: the first one begins at the reset vector, others wait to be called."""
        reset(self.own.registers.cells, self.vmcs.cells)
        self.reset_platform()

    def reset_platform(self) -> None:
        """What INIT does beside the processor itself: its local APIC, and whether it waits."""
        self.apic.initialise()
        if not self.apic.of_bootstrap_processor:
            self.vmcs["GUEST_ACTIVITY_STATE"] = ACTIVITY_WAIT_FOR_SIPI

    def start_up(self, vector: int) -> None:
        """Send a start-up IPI; it is lost unless the processor waits for one."""
        if self.has_turn or self.own.x86_vmm.in_vmx_operation:
            self.own.pins.start_up = vector & 0xFF
        elif self.activity == ACTIVITY_WAIT_FOR_SIPI:
            begin_at(self.vmcs.cells, vector)

    def wait(self, microseconds: int) -> None:
        """Advance virtual time while the processor is stopped."""
        count = microseconds * INSTRUCTIONS_PER_MICROSECOND
        self._processor.skip_to(self._processor.time + count)

    def protect_firmware(self, segments: int) -> None:
        """Drop stores to these sixteenths of C0000H-FFFFFH, a bit each."""
        self._processor.engine.protect_firmware(segments)

    def open_window(self, number: int, start: int, size: int, target: int) -> None:
        """Map `size` bytes at physical `start` to those at `target`; see the engine's."""
        if self.has_windows:
            self._processor.engine.open_window(number, start, size, target)

    def open_planes(self) -> None:
        """Map A0000H to the VGA, as window 0."""
        if self.has_windows:
            self._processor.engine.open_planes()

    def hold_a20(self, *, low: bool) -> None:
        """Hold address line 20 low, or let it through."""
        self._processor.engine.hold_a20(low=low)

    # What the VMM wants to know, while the processor stands.

    @property
    def activity(self) -> int:
        """Its activity state (SDM, "Guest Non-Register State")."""
        return self.vmcs.words[f.GUEST_ACTIVITY_STATE]

    @property
    def takes_interrupts(self) -> bool:
        """Would an interrupt wake it?"""
        if self.activity == ACTIVITY_WAIT_FOR_SIPI:
            return False
        enabled = self.vmcs.words[f.GUEST_RFLAGS] & RFLAGS_IF
        return bool(enabled) or self.own.x86_vmm.wants_interrupts

    @property
    def is_called(self) -> bool:
        """Does an event or interrupt wait that wakes it?"""
        blocked = self.own.x86_vmm.in_root_operation
        return self.own.pins.wake(self.activity, init_waits=blocked) or (
            self.takes_interrupts and self.apic.pending()
        )

    def can_run(self, now: int) -> bool:
        """Has it something to do at virtual time `now`?"""
        injects = self.vmcs.words[f.VM_ENTRY_INTERRUPTION_INFORMATION] & INFO_VALID
        if self.activity == ACTIVITY_ACTIVE or injects or self.is_called:
            return True
        alarm = self.own.x86_vmm.preemption_deadline
        return alarm is not None and now >= alarm
