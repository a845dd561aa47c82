"""The logical processor: VM entry, VM exit, and the guest that runs between them.

Decisions are `decide`'s and `delivery`'s, execution is the engine's; this module only
turns what stopped the engine into VM exits (second seed, claims 1-9; first seed,
figure 2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.engine import written_pages  # noqa: F401 - compiled code, to be known before any is used
from trapgate.engine.memory.device_pages import Load, Store
from trapgate.errors import TrapgateError
from trapgate.events.exits import vm_exit
from trapgate.events.journal import HEAD_CPU, HEAD_GENERATION, HEAD_SEQUENCE, HEAD_VM
from trapgate.processor import decoded, pending, stepping, table_writes, task_switch
from trapgate.processor.logical import LogicalProcessor, Outcome, Registers, signed
from trapgate.processor.own_state import OwnState
from trapgate.processor.pins import Pins, Smi
from trapgate.processor.vm_exit import VmExit, VmFail
from trapgate.processor.x86_vmm import X86Vmm
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import registers
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs.explain import explain_failure
from trapgate.vmcs.vmcs import Vmcs

_CHECKED_SLICE = 256
"""Instructions executed one at a time between two looks at the host's time."""
_FOREVER = 1 << 62


class IdleError(TrapgateError):
    """The guest halted, nothing is set that could wake it, and HLT does not exit.

    Set HLT exiting or the VMX-preemption timer, or assert an event before entering.
    """


class Processor(LogicalProcessor):
    """A logical processor in VMX root operation, under a VMM written in Python.

    `memory` is in bytes, `engine` is "native", "portable" or "auto" (native where its
    self-test passes), `journal` the number of events that are kept. Guests run from
    `vmlaunch` and `vmresume` until they cause a VM exit.

    Raises:
        EngineError: the engine is absent, not the pinned version, or fails calibration.
    """

    def __init__(self, memory: int, *, engine: str = "auto", journal: int = 4096) -> None:
        super().__init__(memory, engine=engine, journal=journal)
        self._numbers: dict[int, int] = {}
        first = OwnState(0, self.engine, self.registers, self.x86_vmm, self.pins)
        self.every = [first]
        """The logical processors, one of which has the engine."""
        self._own = first
        self._priority = 0
        self.expires: float | None = None
        """Host time (`time.monotonic`) when a guest that needs checks at every instruction, and
        so is slow, has to stop; its run then ends with an exit of the preemption timer."""
        self._checked = 0
        self.stops_at_events = False
        """Whether an event of the guest's ends the run, as the preemption timer does: where the
        guest is about to continue."""
        self._entered = 0
        self._sink: Callable[[Cells], None] | None = None
        self._drained = 0
        self.skipped = 0
        """How much of the virtual time was skipped."""

    def name_vm(self, number: int) -> None:
        """From now on, record events in the journal as those of VM `number`."""
        self.head[HEAD_VM] = number

    def answer_ports(self, table: int) -> None:
        """Answer accesses to ports by the table of `instructions.polled_ports` there.

        0: all of them exit. Who gives the address keeps the table alive.
        """
        self._words[stops.PORTS] = table

    def skip_to(self, time: int) -> None:
        """Advance the virtual clock although nothing was executed, as while the guest halts."""
        c = self._words
        jump = max(time - c[stops.TIME], 0)
        c[stops.TIME] += jump
        self.skipped += jump

    def wait_in_loops(self, instructions: int) -> None:
        """Set how much time passes at each RDTSC in a loop that only waits; 0: none."""
        self._words[stops.POLL_WAIT] = instructions

    @property
    def time_left(self) -> int:
        """How many instructions may come before the run's next deadline."""
        c = self._words
        return min(c[stops.TIMER_END], c[stops.NESTED_TIMER_END], c[stops.BUDGET_END]) - self.time

    def count(self, instructions: int) -> None:
        """Count instructions that were carried out elsewhere in the virtual clock."""
        self._words[stops.TIME] += instructions

    def trace_to(self, sink: Callable[[Cells], None]) -> None:
        """Give every event's row to `sink`, in order, in batches (n x 20)."""
        self._sink = sink
        self._drained = int(self.head[HEAD_SEQUENCE])

    def rewind(self, sequence: int) -> None:
        """The journal is as it was: the sink is to get what comes from row `sequence` on."""
        self._drained = sequence

    @property
    def sink(self) -> Callable[[Cells], None] | None:
        """The receiver of the rows of events."""
        return self._sink

    def drain(self) -> None:
        """Give the sink what it has not seen."""
        if self._sink is None:
            return
        sequence = int(self.head[HEAD_SEQUENCE])
        capacity = len(self.rows)
        while self._drained < sequence:
            start = self._drained % capacity
            count = min(sequence - self._drained, capacity - start)
            self._sink(self.rows[start : start + count])
            self._drained += count

    def _make_room(self) -> None:
        """Drain the journal in time; the engine stops at JOURNAL_LIMIT for this."""
        if self.stops_at_events:
            self.drain()
            self._words[stops.JOURNAL_LIMIT] = self._head[HEAD_SEQUENCE] + 1
            return
        if self._sink is None:
            self._words[stops.JOURNAL_LIMIT] = _FOREVER
            return
        if self._head[HEAD_SEQUENCE] - self._drained >= len(self.rows) // 2:
            self.drain()
        # Up to half a journal's events may come between the limit and the stop.
        self._words[stops.JOURNAL_LIMIT] = self._drained + len(self.rows) // 2

    def last_events(self) -> Iterator[Cells]:
        """The rows of the journal, the latest first."""
        sequence = int(self.head[HEAD_SEQUENCE])
        for n in range(min(sequence, len(self.rows))):
            yield self.rows[(sequence - 1 - n) % len(self.rows)]

    # Devices behind physical addresses.

    def connect(self, load: Load, store: Store, pages: Collection[int]) -> None:
        """Put devices behind physical `pages`, by number: `load` and `store` answer for them.

        They are called in the middle of an instruction, with a physical address, a size of
        1 to 8 bytes, and the value; what they raise ends the run.
        """
        self.engine.devices.connect(load, store)
        self.engine.devices.place(pages)

    def place_devices(self, pages: Collection[int]) -> None:
        """Move the devices to these pages."""
        self.engine.devices.place(pages)

    def preempt(self) -> None:
        """Give the VMM a turn before the next instruction, as if the preemption timer expired."""
        self.engine.devices.preempt()

    # Events at the processor's pins (¶21-22: interrupts and platform events).

    def interrupt(self, vector: int | None) -> None:
        """Assert an external interrupt with `vector` (None: no longer)."""
        self.pins.interrupt = vector

    def nmi(self) -> None:
        """Signal a non-maskable interrupt; it stays pending until it is taken."""
        self.pins.nmi = True

    def init(self) -> None:
        """Signal INIT; it stays pending in VMX root operation, and is lost in wait-for-SIPI."""
        self.pins.init = True

    def start_up(self, vector: int) -> None:
        """Send a start-up IPI of eight bits; it is lost unless the processor waits for one.

        In activity state 3, wait-for-SIPI, it exits: STARTUP_IPI, `vector` in the qualification.
        """
        self.pins.start_up = vector & 0xFF

    def smi(self, io: VmExit | None = None) -> None:
        """Signal a system-management interrupt, which exits with OTHER_SMI if `extended`.

        With IO_SMI if an I/O instruction raises it: `io` is that instruction's exit, which is
        being handled (SDM, "SMM VM Exits": the qualification is the same, and IO_RCX, IO_RSI,
        IO_RDI and IO_RIP hold what the registers are now, before RIP moves on).
        """
        if io is None:
            self.pins.smi = Smi(ExitReason.OTHER_SMI, 0, {})
            return
        r = self.registers.cells
        fields = {
            f.IO_RCX: int(r[registers.RCX]),
            f.IO_RSI: int(r[registers.RSI]),
            f.IO_RDI: int(r[registers.RDI]),
            f.IO_RIP: signed(io.vmcs["GUEST_RIP"]),
        }
        self.pins.smi = Smi(ExitReason.IO_SMI, io.qualification, fields)

    def watch_priority(self) -> None:
        """Make a change of CR8 end the run as the preemption timer does, for a local APIC."""
        self._priority = stops.PIN_PRIORITY

    # Several logical processors.

    def add(self, vmcs: Vmcs, number: int) -> OwnState:
        """One more logical processor, as after a reset; `vmcs` is current on it.

        `number` is that which its machine knows it by. Turns change between two VM entries
        (`turn_to`).
        """
        one = OwnState(number, self.engine, Registers(), X86Vmm(self.engine), Pins())
        self.every.append(one)
        head = self.head.copy()
        head[HEAD_CPU] = one.number
        head[HEAD_GENERATION] = self._numbers.setdefault(id(vmcs), len(self._numbers))
        one.save(vmcs, head)
        return one

    def runs(self, one: OwnState) -> bool:
        """Whether that is the one that has the engine."""
        return one is self._own

    def turn_to(self, one: OwnState) -> None:
        """Continue as another one of `every`; cached translations of linear addresses are lost."""
        if one is self._own:
            return
        self._own.save(self._vmcs, self.head)
        one.restore(self.head)
        self._own = one
        self._vmcs = one.vmcs
        self.registers, self.pins, self.x86_vmm = one.registers, one.pins, one.x86_vmm

    # The two instructions of seed two.

    def vmlaunch(self, vmcs: Vmcs) -> VmExit | VmFail:
        """VM entry with a VMCS whose launch state is clear; the VM exit that ended it.

        SDM, "VMLAUNCH/VMRESUME". VMfailValid(4) if it has been launched.
        """
        if vmcs.launched:
            return self._fail(vmcs, 4, resuming=False)
        outcome = self._run(vmcs)
        if isinstance(outcome, VmExit) and not outcome.entry_failed:
            vmcs.launched = True
        return outcome

    def vmresume(self, vmcs: Vmcs) -> VmExit | VmFail:
        """VM entry with a VMCS that was launched; VMfailValid(5) if it was not."""
        if not vmcs.launched:
            return self._fail(vmcs, 5, resuming=True)
        return self._run(vmcs)

    def _fail(self, vmcs: Vmcs, error: int, *, resuming: bool) -> VmFail:
        vmcs.cells[f.VM_INSTRUCTION_ERROR] = error
        instruction = ExitReason.VMRESUME if resuming else ExitReason.VMLAUNCH
        return VmFail(error, explain_failure(instruction, error, vmcs.cells))

    def _run(self, vmcs: Vmcs) -> VmExit | VmFail:
        v = vmcs.words
        engine = self.engine
        c = self._words
        if vmcs is not self._vmcs:
            self._attach(vmcs)
        elif not v[f.SECONDARY_PROCESSOR_BASED_CONTROLS] & ct.SECONDARY_VPID:
            engine.flush_translations()
        if self._sink is not None or self.stops_at_events:
            self._entered = self._head[HEAD_SEQUENCE]
            self._make_room()
        c[stops.PINS] = self.pins.bits | self._priority
        c[stops.STOP] = stops.RUNNING
        engine.enter_and_run()
        while c[stops.STOP] != stops.EXITED or (
            v[f.EXIT_REASON] == ExitReason.TASK_SWITCH and self._switched_tasks(vmcs.cells)
        ):
            if c[stops.STOP] != stops.EXITED and not self._handle_stop():
                engine.run_until_stopped()
        if c[stops.WAITED]:
            self.skipped += c[stops.WAITED]
            c[stops.WAITED] = 0
        if engine.devices.trouble is not None:
            engine.devices.raise_trouble()
        if c[stops.STOP_CODE] == stops.FAILED_VALID:
            return self._fail(vmcs, v[f.VM_INSTRUCTION_ERROR], resuming=vmcs.launched)
        if v[f.VM_EXIT_CONTROLS] & ct.EXIT_SAVE_PREEMPTION_TIMER:
            left = max(c[stops.TIMER_END] - c[stops.TIME], 0)
            v[f.VMX_PREEMPTION_TIMER_VALUE] = min(left, 0xFFFF_FFFF)
        return VmExit(vmcs)

    def _switched_tasks(self, v: Cells) -> bool:
        """Whether the exit was a task switch that the guest was to make, and it continues."""
        if not task_switch.left_to_guest(v):
            return False
        exited = task_switch.carry_out(self, v)
        self._words[stops.STOP] = stops.EXITED if exited else stops.RUNNING
        if not exited:
            self.engine.run_until_stopped()
        return True

    def make_current(self, vmcs: Vmcs) -> None:
        """Make `vmcs` the current one, as VMPTRLD does."""
        if vmcs is not self._vmcs:
            self._attach(vmcs)

    def _attach(self, vmcs: Vmcs) -> None:
        number = self._numbers.setdefault(id(vmcs), len(self._numbers))
        self.head[HEAD_GENERATION] = number
        self._vmcs = vmcs
        self.engine.attach(vmcs.cells, self.registers.cells, self.rows, self.head)
        self.engine.flush_translations()

    def _handle_stop(self) -> bool:
        """Deal with what stopped the engine; whether that was a VM exit to this VMM.

        The engine itself continues with an x86 VMM whose guest exits.
        """
        c = self._words
        self.x86_vmm.explain_latest()
        c[stops.STOP] = stops.EXITED if self._handle_stop_in_force() else stops.RUNNING
        return c[stops.STOP] == stops.EXITED and c[stops.V] == c[stops.HOST]

    def _handle_stop_in_force(self) -> bool:
        """Deal with what stopped the engine; whether that was a VM exit of the VMCS in force."""
        c = self._words
        v = self.in_force
        stop = c[stops.STOP]
        if stop == stops.ASSIST:
            exited = decoded.assist(self, v)
        elif stop == stops.CHECKED:
            exited = self._checked_instruction(v) or self._out_of_time(v)
        elif stop == stops.TABLE_WRITE:
            exited = self._is_vm_exit(table_writes.step(self, v))
        elif stop == stops.HALTED:
            exited = self._halted(v)
        elif stop == stops.EXPLAIN:
            exited = False
        elif stop in (stops.ATTEND, stops.LIMIT):
            exited = self._take_pending_events(v)
        elif stop == stops.BROKEN and self.engine.fetched_nothing:
            # Nothing there reads as all ones, and that is not an instruction.
            exited = self.raise_fault(6, -1)
        else:
            self.engine.explain_break()
            exited = False
        return exited

    def _checked_instruction(self, v: Cells) -> bool:
        if self._words[stops.STOP_CODE] == stops.CHECK_BLOCK:
            stepping.look_for_ports(self, v)
            return False
        if self._words[stops.STOP_CODE] == stops.CHECK_NO_PORT:
            self.engine.forget_port()
            return False
        if self.engine.has_breakpoints and self.engine.meets_breakpoint(
            stepping.linear_rip(self, v)
        ):
            vm_exit(self.move_to_vmcs0(), ExitReason.PREEMPTION_TIMER, 0, 0)
            return True
        exited = self._is_vm_exit(stepping.step(self, v)) or stepping.monitor_trap(self, v)
        self._words[stops.UNBLOCKED] = 0
        return exited

    def _is_vm_exit(self, outcome: Outcome) -> bool:
        """Whether an instruction's end was a VM exit of the VMCS in force."""
        return (
            self._handle_stop_in_force()
            if outcome is Outcome.STOPPED
            else outcome is Outcome.EXITED
        )

    def _out_of_time(self, v: Cells) -> bool:
        """Whether `expires` has come, which then looks like the preemption timer's end."""
        self._checked += 1
        if self._checked % _CHECKED_SLICE or self.expires is None:
            return False
        if time.monotonic() < self.expires:
            return False
        vm_exit(self.move_to_vmcs0(), ExitReason.PREEMPTION_TIMER, 0, 0)
        return True

    def _take_pending_events(self, v: Cells) -> bool:
        """Take what is pending, in the order of "Priority Among Concurrent Events" (SDM)."""
        c = self.engine.cells
        if self.stops_at_events and self._head[HEAD_SEQUENCE] > self._entered:
            vm_exit(self.move_to_vmcs0(), ExitReason.PREEMPTION_TIMER, 0, 0)
            return True
        exited = pending.take(self, v)
        if not exited:
            # What is pending may stay blocked: let the guest execute a block before the next look.
            c[stops.PATIENCE] = 1
            self._make_room()
            timer = int(c[stops.TIMER_END])
            c[stops.PINS] = self.pins.bits | self._priority
            self.engine.set_clock()
            c[stops.TIMER_END] = timer
            self.engine.look_ahead()
        return exited

    def _waits_for_vmm(self) -> bool:
        """Whether VMCS 0 asks for exits on HLT: its VMM knows what can wake the guest."""
        assert self._vmcs is not None
        primary = self._vmcs.words[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
        return bool(primary & ct.PRIMARY_HLT_EXITING)

    def _halted(self, v: Cells) -> bool:
        """HLT without HLT exiting: the virtual clock jumps to what wakes the guest."""
        c = self.engine.cells
        if pending.take(self, v):
            return True
        if v[f.GUEST_ACTIVITY_STATE] == 0:
            return False
        if v is self.x86_vmm.vmcs and self._waits_for_vmm():
            vm_exit(self.move_to_vmcs0(), ExitReason.HLT, 0, 0)
            return True
        alarm = self.x86_vmm.preemption_deadline
        if alarm is not None and alarm < c[stops.TIMER_END]:
            # The preemption timer of the x86 VMM comes first; the engine sees to it.
            self.skip_to(alarm)
            return False
        if c[stops.TIMER_END] >= _FOREVER:
            raise IdleError(
                "the guest halted and nothing can wake it; set HLT exiting or the "
                "VMX-preemption timer, or assert an event"
            )
        self.skip_to(int(c[stops.TIMER_END]))
        vm_exit(self.move_to_vmcs0(), ExitReason.PREEMPTION_TIMER, 0, 0)
        return True
