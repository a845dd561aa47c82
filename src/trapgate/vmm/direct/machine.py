"""Machines under direct paging: several VMs in one memory, each with its page tables in use (¶70).

A VM has a range of machine memory, and its page tables hold machine addresses. While paging
is off it sees its memory twice, from 0 on and at its machine addresses, by a directory of the
VMM's; VMX leaves CR0.PG at 1 all along. When it turns paging on, its own directory is
validated and used. From then on the VMM takes part in four things: CR3, the bits of CR0 and
CR4 that paging depends on, and writes to page tables that no fault filter completes.

The guest finds a processor that has 32-bit paging and no other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from trapgate.decision.criteria_rules import Action as CriteriaAction
from trapgate.decision.faults import Interruption
from trapgate.instructions import effects
from trapgate.instructions.intercepts import GO_ON
from trapgate.processor.operand import Operand, PageFaultError
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import (
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_VMXE,
    EFER_LME,
    EFER_NXE,
)
from trapgate.vmcs.file import Profile, Settings
from trapgate.vmm.actions import EMULATED, RESUME, Action, End, Inject, Stop
from trapgate.vmm.direct.host import SharingMachine
from trapgate.vmm.direct.host_memory import LARGE_PAGE, Host
from trapgate.vmm.direct.linking import PS, P
from trapgate.vmm.direct.links import Refusal
from trapgate.vmm.direct.refusals import (
    DirectCounts,
    DirectPagingError,
    demand_no_drives,
    demand_one_processor,
)
from trapgate.vmm.direct.snapshot import DirectSnapshot
from trapgate.vmm.direct.tables import ENTRIES, Fault, GuestTables
from trapgate.vmm.direct.withholding import U, W
from trapgate.vmm.direct.writes import decode_write, instruction_at_rip
from trapgate.vmm.exits import handlers
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.loaders import GuestImage
from trapgate.vmm.snapshots.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from iced_x86 import Instruction

    from trapgate.trace import TraceWriter
    from trapgate.vmm.devices.board import Board
    from trapgate.vmm.exits.handlers import Handler
    from trapgate.vmm.ui.console import Console

_TARGETS = 4
"""Values of CR3 that the guest may load without an exit."""
_PAGE = 4096
_LOW = 0xFFFF_FFFF
_PF, _GP = 14, 13
_WRITE_TO_PRESENT_PAGE = P | W
"""The error code of a write that R/W stopped; with U, of user mode's."""
_EFER = 0xC000_0080
_GENERAL_PROTECTION = Inject(Interruption(_GP, InterruptionType.HARDWARE_EXCEPTION, 0))
_CR0_OWNED = CR0_PG | CR0_WP | CR0_PE | CR0_NE
_CR4_LACKING = CR4_PAE | CR4_SMAP
"""Bits that the guest's processor has not. SMAP would have the VMM check more than R/W."""
_CR4_OWNED = CR4_PSE | CR4_VMXE | _CR4_LACKING

OnRefusal = Literal["fault", "stop"]


class DirectMachine(SharingMachine):
    """A PC under direct paging: `memory` bytes of `host`'s, or of a host of its own.

    `on_refusal` says what becomes of a guest that wants of its page tables what the VMM
    does not do: it gets the fault ("fault"), #PF for a write and #GP for a control
    register; or it is stopped ("stop"). Fault filter, order and PTBASE are the VMCS's.
    The rest is as for `VirtualMachine`.

    Raises DirectPagingError if the memory is not a multiple of 4 MiB, FrameError if the host
    has not so much left.
    """

    host: Host
    can_be_restored = False

    def __init__(
        self,
        memory: int = 16 << 20,
        *,
        host: Host | None = None,
        on_refusal: OnRefusal = "fault",
        engine: str = "auto",
        handlers: Mapping[ExitReason, Handler] | None = None,
        console: Console | None = None,
        trace: TraceWriter | None = None,
        seed: int = 0,
        profile: Profile = "extended",
        explain: Callable[[str], None] | None = None,
        board: Board | None = None,
    ) -> None:
        demand_one_processor(board)
        demand_no_drives(board)
        host = host or Host(memory, engine=engine, trace=trace)
        base = host.place(memory)
        number = len(host.machines) + 1
        super().__init__(
            memory,
            host,
            vmm=Vmm({**HANDLERS, **(handlers or {})}),
            console=console,
            number=number,
            seed=seed,
            profile=profile,
            explain=explain,
            board=board,
        )
        self.base, self.memory = base, memory
        self.cpu.has_windows = False
        self.on_refusal = on_refusal
        layout = host.layout(number, base, memory)
        self.tables = GuestTables(host.bytes, layout)
        self.counts = DirectCounts()
        self.paging = self.has_paged = False
        self.cr3 = 0
        """CR3 as the guest sees it, while it does not page."""
        self._targets: list[int] = []
        self._without_paging = self._map_all(layout.tables - 1)
        # Until a filter is asked for, every page fault exits: what is not the VMM's is given back.
        self.vmcs["EXCEPTION_BITMAP"] = 1 << _PF

    def _map_all(self, frame: int) -> int:
        """A directory in `frame` that shows the VM its memory from 0 on and where it is."""
        directory = self.host.words[frame * ENTRIES : (frame + 1) * ENTRIES]
        count = self.memory // LARGE_PAGE
        first = self.base // LARGE_PAGE
        entries = self.base + np.arange(count) * LARGE_PAGE | P | W | PS
        directory[:count] = entries
        directory[first : first + count] = entries
        return frame * _PAGE

    def _turn(self, end: int | None, expires: float | None, until: int | None = None) -> None:
        # Whatever was asked of the tables since the guest ran, and however that ended.
        self.tables.settle(self.flush, self.processor.engine.forget_code)
        if self.tables.has_turned():
            self._let_cr3_be([cr3 for cr3 in self._targets if (cr3 >> 12,) in self.tables.roots])
        super()._turn(end, expires, until)

    def follow_cr3(self) -> None:
        """Learn of what the guest has done without an exit."""
        if self.paging:
            v = self.vmcs.words
            self.tables.directory = v[f.GUEST_CR3] >> 12
            self.tables.unseen |= v[f.FAULT_FILTER] != 0

    def _let_cr3_be(self, targets: list[int]) -> None:
        """Allow the guest to load CR3 with these without an exit."""
        if targets != self._targets:
            self._targets = targets
            v = self.vmcs.cells
            v[f.CR3_TARGET_COUNT] = len(targets)
            v[f.CR3_TARGET_VALUE_0 : f.CR3_TARGET_VALUE_0 + len(targets)] = targets

    def snapshot(self) -> Snapshot:
        """Everything of the machine at this moment, for `restore`.

        Raises SnapshotError for one of several machines of a host.
        """
        self.demand_host_for_itself()
        return DirectSnapshot(
            self, self.watch, self._tally, self._planned, self.counts, self.tables.keep()
        )

    # Before the guest runs.

    def load(self, image: GuestImage) -> None:
        """Put a guest into memory. Raises DirectPagingError if it starts in another mode."""
        fields = image.fields
        if image.long_mode or not fields["GUEST_CR0"] & CR0_PE or fields["GUEST_CR0"] & CR0_PG:
            raise DirectPagingError(
                f"{image.description}: under direct paging guests start in 32-bit protected mode "
                "without paging; give a multiboot kernel or a 32-bit ELF"
            )
        self.host.enter(self)
        super().load(image)
        self._own()

    def apply(self, settings: Settings) -> None:
        """Change the VMCS as a settings file says; what keeps the guest in stays."""
        super().apply(settings)
        self._own()

    def _completes_writes(self) -> bool:
        """Whether a filter or a rule of the criteria table may let writes to tables complete."""
        rules = self.vmcs.criteria_table
        return self.vmcs["FAULT_FILTER"] != 0 or any(
            rule.action is CriteriaAction.COMPLETE for rule in rules
        )

    def _own(self) -> None:
        """What the VMM must hold on to."""
        vmcs = self.vmcs
        vmcs["CR0_GUEST_HOST_MASK"] |= _CR0_OWNED
        vmcs["CR4_GUEST_HOST_MASK"] |= _CR4_OWNED
        vmcs["GUEST_CR0"] |= CR0_PG | CR0_WP | CR0_NE
        vmcs["CR3_TARGET_COUNT"], self._targets = 0, []
        vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= ct.PRIMARY_CR3_LOAD_EXITING
        self.tables.unseen |= self._completes_writes()
        vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] &= ~ct.SECONDARY_UNRESTRICTED_GUEST
        if not self.paging:
            vmcs["GUEST_CR3"] = self._without_paging
            vmcs["GUEST_CR4"] |= CR4_PSE
            vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= ct.PRIMARY_CR3_STORE_EXITING

    # What the guest does.

    def refuse(self, refusal: Refusal, instead: Action) -> Action:
        """What becomes of a guest that asks for what it may not have."""
        self.counts.refused += 1
        self.counts.last_refusal = refusal.reason
        if self.on_refusal == "stop":
            rip = self.vmcs["GUEST_RIP"]
            return Stop(End.REFUSED, f"at RIP {rip:#x} the VMM refused: {refusal.reason}", 1)
        return instead

    def flush(self) -> None:
        """Flush the processor's cached translations."""
        self.processor.engine.flush_translations()

    def load_cr3(self, value: int) -> Action:
        """MOV to CR3."""
        if self.paging:
            refusal = self.tables.load_cr3(value)
            if refusal is not None:
                return self.refuse(refusal, _GENERAL_PROTECTION)
            self.vmcs["GUEST_CR3"] = value
            others = [cr3 for cr3 in self._targets if cr3 != value]
            self._let_cr3_be([value, *others][:_TARGETS])
        self.cr3 = value
        self.flush()
        return EMULATED

    def write_cr0(self, value: int) -> Action:
        """MOV to CR0, LMSW."""
        v = self.vmcs.cells
        if not value & CR0_PE:
            reason = "the guest leaves protected mode; direct paging has no other"
            return Stop(End.REFUSED, reason, 1)
        if effects.write_cr(v, self.processor.registers.cells, 0, value) != GO_ON:
            return _GENERAL_PROTECTION
        paging = bool(value & CR0_PG)
        if paging and not self.paging:
            self.tables.unseen |= self._completes_writes()
            self.tables.set_large_pages(bool(v[f.CR4_READ_SHADOW] & CR4_PSE))
            refusal = self.tables.load_cr3(self.cr3)
            if refusal is not None:
                self.counts.refused += 1
                self.counts.last_refusal = refusal.reason
                reason = f"the page directory at {self.cr3:#x} cannot be used: {refusal.reason}"
                return Stop(End.REFUSED, reason, 1)
            v[f.GUEST_CR3] = self.cr3
            self._let_cr3_be([self.cr3])
            v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] &= ~ct.PRIMARY_CR3_STORE_EXITING
            v[f.GUEST_CR4] = v[f.GUEST_CR4] & ~CR4_PSE | v[f.CR4_READ_SHADOW] & CR4_PSE
        elif self.paging and not paging:
            self.cr3 = int(v[f.GUEST_CR3])
            self._let_cr3_be([])
            self.tables.forget_all()
            v[f.GUEST_CR3] = self._without_paging
            v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] |= ct.PRIMARY_CR3_STORE_EXITING
            v[f.GUEST_CR4] |= CR4_PSE
        self.paging = paging
        self.has_paged |= paging
        v[f.CR0_READ_SHADOW] = value
        self.flush()
        return EMULATED

    def write_cr4(self, value: int) -> Action:
        """MOV to CR4."""
        v = self.vmcs.cells
        large = bool(value & CR4_PSE)
        if value & _CR4_LACKING:
            return _GENERAL_PROTECTION
        refusal = self.tables.set_large_pages(large) if self.paging else None
        if refusal is not None:
            return self.refuse(refusal, _GENERAL_PROTECTION)
        if effects.write_cr(v, self.processor.registers.cells, 4, value) != GO_ON:
            if self.paging:
                self.tables.set_large_pages(bool(v[f.CR4_READ_SHADOW] & CR4_PSE))
            return _GENERAL_PROTECTION
        if self.paging:
            v[f.GUEST_CR4] = v[f.GUEST_CR4] & ~CR4_PSE | value & CR4_PSE
        v[f.CR4_READ_SHADOW] = value
        self.flush()
        return EMULATED

    def carry_out(self, vmexit: VmExit, user: bool) -> Action:
        """A write that R/W stopped: an edit of a page table, or the guest's fault."""
        v = vmexit.vmcs.cells
        linear = vmexit.qualification & _LOW
        leaf = self.tables.look_up(linear)
        write_protect = user or bool(v[f.CR0_READ_SHADOW] & CR0_WP)
        wanted = P | W * write_protect | U * user
        if wanted & ~leaf.guest:
            return handlers.reflect(vmexit, self)
        if leaf.memory & W:
            self.flush()
            return RESUME
        guest = Operand(self.processor, v)
        instruction = instruction_at_rip(guest)
        is_table = self.tables.is_table(leaf.frame)
        repeats = instruction.has_rep_prefix or instruction.has_repne_prefix
        if is_table and (user or repeats) and self.tables.drop_roots_to(leaf.frame):
            return RESUME
        outcome = self._edit(guest, instruction, leaf.frame, linear, write_protect, user)
        if isinstance(outcome, Refusal):
            # What comes is not an entry: perhaps the guest uses the frame for something else.
            if is_table and self.tables.drop_roots_to(leaf.frame):
                return RESUME
            return self.refuse(outcome, handlers.reflect(vmexit, self))
        if outcome is not None:
            return _page_fault(self, outcome.address, outcome.error_code)
        self.counts.edits += 1
        return RESUME

    def _edit(
        self,
        guest: Operand,
        instruction: Instruction,
        frame: int,
        linear: int,
        write_protect: bool,
        user: bool,
    ) -> Refusal | Fault | None:
        """Complete the instruction at RIP, or say why not."""
        back = self.tables.shown(frame, linear)
        try:
            write = decode_write(guest, instruction)
        except PageFaultError as fault:
            return Fault(fault.address, fault.error_code)
        finally:
            if back is not None:
                back()
        if write is None:
            rip = self.vmcs["GUEST_RIP"]
            return Refusal(f"the instruction at {rip:#x} is none that page tables are edited by")
        outcome = self.tables.store(
            write.linear, write.data, write_protect=write_protect, user=user
        )
        if outcome is None:
            write.finish(guest)
        return outcome

    def make_way_for_event(self, vmexit: VmExit) -> Action:
        """The delivery of an event was stopped: by what is a table no more, or by the guest."""
        leaf = self.tables.look_up(vmexit.qualification & _LOW)
        if leaf.guest & ~leaf.memory & W and self.tables.drop_roots_to(leaf.frame):
            return RESUME
        return handlers.reflect(vmexit, self)


def _page_fault(vm: DirectMachine, address: int, error_code: int) -> Action:
    vm.processor.registers.cr2 = address
    return Inject(Interruption(_PF, InterruptionType.HARDWARE_EXCEPTION, error_code))


# Handlers.


def exception(vmexit: VmExit, vm: Platform) -> Action:
    """A page fault may be an edit of a page table; all else is the guest's."""
    assert isinstance(vm, DirectMachine)
    event = vmexit.interruption
    if event is None or event.vector != _PF:
        return handlers.reflect(vmexit, vm)
    vm.follow_cr3()
    if not vm.paging:
        reason = f"the guest, without paging, uses address {vmexit.qualification:#x}, and has none"
        return Stop(End.REFUSED, reason, 1)
    code = event.error_code or 0
    if code & ~U != _WRITE_TO_PRESENT_PAGE:
        return handlers.reflect(vmexit, vm)
    if vmexit.idt_vectoring is not None:
        return vm.make_way_for_event(vmexit)
    return vm.carry_out(vmexit, user=bool(code & U))


def control_register(vmexit: VmExit, vm: Platform) -> Action:
    """MOV to and from CR3; MOV to CR0 or CR4 that changes a bit of the VMM's; LMSW."""
    assert isinstance(vm, DirectMachine)
    vm.follow_cr3()
    qualification = vmexit.qualification
    number, access = qualification & 0xF, qualification >> 4 & 3
    value = vm.general(qualification >> 8 & 0xF) & _LOW
    if access == 3:
        seen = int(effects.cr0_seen(vmexit.vmcs.cells))
        return vm.write_cr0(seen & ~0xE | qualification >> 16 & 0xF)
    if number == 3 and access == 1:
        vm.set_general(qualification >> 8 & 0xF, vm.cr3)
        return EMULATED
    if access == 0 and number in _WRITERS:
        return _WRITERS[number](vm, value)
    return handlers.control_register(vmexit, vm)


_WRITERS = {
    0: DirectMachine.write_cr0,
    3: DirectMachine.load_cr3,
    4: DirectMachine.write_cr4,
}


def write_msr(vmexit: VmExit, vm: Platform) -> Action:
    """WRMSR: no long mode and no execute-disable, which other page tables go with."""
    registers = vm.processor.registers
    if registers.rcx & _LOW == _EFER and registers.rax & (EFER_LME | EFER_NXE):
        return _GENERAL_PROTECTION
    return handlers.write_msr(vmexit, vm)


def identify(vmexit: VmExit, vm: Platform) -> Action:
    """CPUID, of a processor with 32-bit paging."""
    leaf = vm.processor.registers.rax & _LOW
    action = handlers.identify(vmexit, vm)
    vm.processor.registers.rdx &= ~_HIDDEN_EDX.get(leaf, 0)
    vm.processor.registers.rbx &= ~_HIDDEN_EBX.get(leaf, 0)
    return action


_HIDDEN_EDX = {1: 1 << 3 | 1 << 6 | 1 << 17, 0x8000_0001: 1 << 20 | 1 << 29}
"""Of CPUID's leaves: PSE, PAE and PSE-36; NX, long mode. 4-MByte pages work, but a guest that uses
them may find a table of the VMM's in its directory (`withholding.split`).
"""
_HIDDEN_EBX = {7: 1 << 20}
"""Likewise: SMAP."""


def task_switch(vmexit: VmExit, vm: Platform) -> Action:
    """A task switch would load CR3 from memory unseen: refused, in words."""
    return Stop(
        End.REFUSED,
        "the guest switches tasks, which loads CR3; direct paging has interrupt gates only",
        1,
    )


HANDLERS: Mapping[ExitReason, Handler] = {
    ExitReason.TASK_SWITCH: task_switch,
    ExitReason.EXCEPTION_OR_NMI: exception,
    ExitReason.CONTROL_REGISTER_ACCESS: control_register,
    ExitReason.WRMSR: write_msr,
    ExitReason.CPUID: identify,
}
"""What a VMM does otherwise under direct paging."""
