"""A virtual machine: a processor, a VMCS, a PC around it, and the VMM's turn between runs.

The VMM gets the processor back at every VM exit and asks its handlers; interrupts of the
devices enter the guest by event injection, and the VMX-preemption timer brings the
processor back when a device wants time (SDM, "VM-Entry Controls for Event Injection").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from trapgate.decision.faults import Interruption
from trapgate.errors import TrapgateError
from trapgate.instructions.polled_ports import ANSWERED
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit, VmFail
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import ROWS, Occurrence
from trapgate.sdm.vmx import RANDOM
from trapgate.vmcs.file import Profile, Settings
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.accounts import JOURNAL, Accounts, Tally
from trapgate.vmm.actions import (
    EMULATED,
    Action,
    Emulated,
    End,
    Inject,
    Resume,
    Stop,
)
from trapgate.vmm.cpus.cpu import Cpu
from trapgate.vmm.cpus.turns import PLE_GAP, PLE_WINDOW
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.clock import INSTRUCTIONS_PER_MICROSECOND
from trapgate.vmm.devices.guest_memory import GuestMemory
from trapgate.vmm.exits.handlers import identity
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.loaders import GuestImage, GuestKind
from trapgate.vmm.moments import Moment, Watch
from trapgate.vmm.reset import PowerOn, enter_s3, wait_in_s3, warm_reset
from trapgate.vmm.snapshots.snapshot import Snapshot
from trapgate.vmm.snapshots.state import SnapshotError
from trapgate.vmm.summary import EventKind
from trapgate.vmm.ui.console import EVERY_BYTE, Console

if TYPE_CHECKING:
    from trapgate.trace import TraceWriter


_NE = 1 << 5
_WINDOW = ct.PRIMARY_INTERRUPT_WINDOW_EXITING
_TIMER_MAX = 0xFFFF_FFFF
_POLL = 2_000_000
"""Instructions between two looks at the terminal."""
_RF = 1 << 16
_VALID = 1 << 31
_HARDWARE = 3 << 8
_NEVER = 1 << 62


class EventPendingError(TrapgateError):
    """An event cannot be injected since another one waits for the VM entry; step, and try again."""


class VirtualMachine(Accounts):
    """A PC with one virtual processor or several, ready for `load` and `run`.

    `memory` is RAM in bytes, `engine` as for `Processor`, or `processor` one that it shares
    with others (see `direct.DirectMachine`). `console` takes the serial
    port's output and gives it keys; `trace` gets every fault. `number` is the VM's in
    the trace. `seed` moves the time-stamp counter's start and is what RDRAND starts from: all
    that a guest could take for random. `profile` is the VMCS's. `explain` is told, a line
    each, why VMX instructions and VM entries of a guest that is a VMM itself fail. `board` is
    what is plugged into the PC: processors, drives, and files for firmware; `ram` what its bus
    masters store to, if that is not simply memory. Several processors take turns (`turns`), whose
    lengths `seed` decides. `journal` is how many events the machine remembers. `beside` says that
    other machines have `processor`, too.

    Raises EngineError as `Processor` does.
    """

    can_be_restored: ClassVar[bool] = True
    """Whether a snapshot holds all that there is to know."""

    def __init__(
        self,
        memory: int = 128 << 20,
        *,
        engine: str = "auto",
        processor: Processor | None = None,
        vmm: Vmm | None = None,
        console: Console | None = None,
        trace: TraceWriter | None = None,
        number: int = 0,
        seed: int = 0,
        profile: Profile = "extended",
        explain: Callable[[str], None] | None = None,
        board: Board | None = None,
        ram: GuestMemory | None = None,
        journal: int = JOURNAL,
        beside: bool = False,
    ) -> None:
        super().__init__(
            memory,
            processor=processor or Processor(memory, engine=engine, journal=journal),
            vmcss=[Vmcs(profile) for _ in range(1 if board is None else board.processors)],
            console=console,
            board=board,
            ram=ram,
            seed=seed,
            beside=beside,
        )
        self.number = number
        self.own_processor()
        if processor is None:
            # Who shares a processor has a VMM under it that guards memory, and must not be one.
            for cpu in self.cpus:
                cpu.own.x86_vmm.offer_vmx(extended=profile == "extended")
        if explain is not None:
            for cpu in self.cpus:
                cpu.own.x86_vmm.explain_to(explain)
        self.processor.watch_priority()
        self.processor.wait_in_loops(INSTRUCTIONS_PER_MICROSECOND)
        self.vmm = vmm or Vmm()
        self.stopped: Stop | None = None
        self.reboots = False
        """Whether a reset starts the machine's firmware again, instead of ending the run."""
        self.resets_on_triple_fault = False
        """Whether a triple fault is a reset, as on a PC, and not the end of a guest that died."""
        self._power_on: PowerOn | None = None
        self._tally = Tally()
        self._next_poll = 0
        self.watchers: list[Callable[[VirtualMachine], None]] = []
        """Called every two million instructions or so; they do not keep a halted guest going."""
        self._answers = self.devices.ports.words
        self.watch = Watch(self.processor, number, self._plan_now)
        """What the machine waits for, beside counts of instructions."""
        self._look_at_output()
        self._planned: list[tuple[int, int, Callable[[VirtualMachine], None]]] = []
        self._plans = 0
        if trace is not None:
            self.processor.trace_to(trace.append)
        for cpu in self.cpus:
            self._set_controls(cpu, seed)

    def own_processor(self) -> None:
        """Tell the processor whose guest it runs from now on."""
        self.processor.name_vm(self.number)
        self.processor.connect(self._load, self._store, self.devices.pages)
        self.processor.cpuid = partial(identity, self)
        self.processor.platform_reset = self.reset_around_processor

    def _set_controls(self, cpu: Cpu, seed: int) -> None:
        """The controls of a VMM that emulates a PC and leaves all faults to the guest."""
        vmcs = cpu.vmcs
        vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_PREEMPTION_TIMER
        vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= (
            ct.PRIMARY_HLT_EXITING
            | ct.PRIMARY_UNCONDITIONAL_IO_EXITING
            | ct.PRIMARY_TSC_OFFSETTING
            | ct.PRIMARY_MONITOR_EXITING
            | ct.PRIMARY_MWAIT_EXITING
        )
        vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= (
            ct.SECONDARY_VPID | ct.SECONDARY_RDTSCP | ct.SECONDARY_INVPCID
        )
        vmcs["VIRTUAL_PROCESSOR_IDENTIFIER"] = 1
        vmcs["TSC_OFFSET"] = seed * 0x9E37_79B9 & 0xFFFF_FFFF_FFFF
        vmcs["PLE_GAP"], vmcs["PLE_WINDOW"] = PLE_GAP, PLE_WINDOW
        random = (seed + 1 + (cpu.number << 16)) * 0x9E37_79B9
        cpu.own.x86_vmm.state[RANDOM] = random & 0xFFFF_FFFF
        # VMX fixes CR0.NE to 1; the guest sees what it wrote.
        vmcs["CR0_GUEST_HOST_MASK"] = _NE

    def load(self, image: GuestImage) -> None:
        """Put a guest into memory and its first state into the VMCS."""
        for segment in image.segments:
            self.processor.memory.write(self.base + segment.address, segment.data)
        self.has_firmware = image.kind is GuestKind.FIRMWARE
        if self.has_firmware:
            self._comes_up(partial(self.load, image))
        for name, value in image.fields.items():
            self.vmcs[name] = value
        for name, value in image.registers.items():
            setattr(self.processor.registers, name.lower(), value)
        vmcs = self.vmcs
        vmcs["CR0_READ_SHADOW"] = vmcs["GUEST_CR0"]
        vmcs["GUEST_CR0"] |= _NE
        vmcs["CR4_READ_SHADOW"] = vmcs["GUEST_CR4"]
        vmcs["GUEST_CR4"] |= 1 << 13
        entry = vmcs["VM_ENTRY_CONTROLS"] & ~ct.ENTRY_IA32E_MODE_GUEST
        vmcs["VM_ENTRY_CONTROLS"] = entry | (ct.ENTRY_IA32E_MODE_GUEST if image.long_mode else 0)

    def boot(self) -> GuestImage:
        """Boot the first bootable drive with the built-in BIOS. Raises BootError."""
        if self.bios is None:
            raise ValueError("the machine has no BIOS: give it Board(bios=True)")
        self._comes_up(self.boot)
        image = self.bios.guest()
        self.load(image)
        self.bios.start(self)
        return image

    def _comes_up(self, start: Callable[[], object]) -> None:
        """Remember how the machine comes up, before its firmware starts for the first time."""
        if self._power_on is None and self.can_be_restored:
            self._power_on = PowerOn(self, start)

    def _end(self, stop: Stop | None) -> None:
        """Stop, unless it is a reset, and there is something that a reset starts, or a nap."""
        asleep = stop is not None and stop.end is End.ASLEEP
        if asleep and self.can_be_restored and enter_s3(self):
            return
        if stop is not None and stop.end is End.RESET and self.reboots and self._reset():
            self._tally.resets += 1
            return
        self.stopped = stop

    def _reset(self) -> bool:
        if warm_reset(self):
            return True
        if self._power_on is None:
            return False
        self._power_on.reset()
        return True

    def apply(self, settings: Settings) -> None:
        """Change the VMCS as a settings file says. Raises VmcsError as `Vmcs.apply` does.

        What the machine itself lives on stays: I/O exits, the preemption timer, and the
        bits of CR0 and CR4 that VMX fixes.
        """
        for vmcs in (cpu.vmcs for cpu in self.cpus):
            vmcs.apply(settings)
            vmcs["PIN_BASED_CONTROLS"] |= ct.PIN_PREEMPTION_TIMER
            vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= ct.PRIMARY_UNCONDITIONAL_IO_EXITING

    def type(self, text: bytes) -> None:
        """Type `text` at the serial port, as fast as the guest takes it."""
        self.devices.uart.receive(text)
        self._device_due = 0

    # Running.

    def run(self, *, max_instructions: int | None = None, timeout: float | None = None) -> Stop:
        """Run until the machine stops, has executed so many instructions, or seconds passed."""
        end = None if max_instructions is None else self.processor.time + max_instructions
        expires = None if timeout is None else time.monotonic() + timeout
        self.processor.expires = expires
        self.let_ports_answer()
        started = time.perf_counter()
        try:
            while self.stopped is None:
                self._turn(end, expires)
        except KeyboardInterrupt:
            self.stopped = Stop(End.INTERRUPTED, "interrupted", 1)
        finally:
            self._tally.seconds += time.perf_counter() - started
            self.processor.drain()
            if self.console is not None:
                self.console.flush()
        assert self.stopped is not None
        return self.stopped

    def step(self, budget: int) -> Stop | None:
        """Run for `budget` instructions; what ended it, if something did."""
        end = self.processor.time + budget
        self.let_ports_answer()
        started = time.perf_counter()
        while self.stopped is None and self.processor.time < end:
            self._turn(None, None, until=end)
        self._tally.seconds += time.perf_counter() - started
        if self.stopped is not None:
            self.processor.drain()
            if self.console is not None:
                self.console.flush()
        return self.stopped

    def let_ports_answer(self) -> None:
        """Enable the answering of polled ports, if nothing else needs to see their exits."""
        reason = ExitReason.IO_INSTRUCTION
        answers = self.vmm.has_default_handler(reason) and not self.watch.wants(reason)
        self.processor.answer_ports(self.devices.ports.address if answers else 0)

    def _count_answers(self) -> None:
        """Take over what the processor has answered for the devices: exits like any other."""
        answered, skipped = self.devices.ports.counted()
        self._tally.exits[ExitReason.IO_INSTRUCTION] += answered
        self.processor.skipped += skipped
        self._emit_sent()

    def inject(self, event: Interruption, *, address: int | None = None, length: int = 0) -> None:
        """Deliver `event` to the guest at the next VM entry, if the checks at VM entry pass.

        `address` is the linear address of a page fault, for CR2; `length` the bytes of the
        instruction of a software event. An entry that fails stops the machine. What devices want
        stays pending. Raises EventPendingError if an event whose delivery was broken off is to be
        delivered again.
        """
        if self.vmcs.words[f.VM_ENTRY_INTERRUPTION_INFORMATION] & _VALID:
            raise EventPendingError("an event is about to be delivered already; step first")
        if address is not None:
            self.processor.registers.cr2 = address
        self._inject(Inject(event, length))

    def at(self, when: Moment, action: Callable[[VirtualMachine], None]) -> None:
        """Call `action` with this machine at a moment (`moments`), exactly then.

        A count of instructions is one; if the machine has executed more, at once. While an event
        waits for the VM entry, after that one.
        """
        if isinstance(when, int):
            heappush(self._planned, (when, self._plans, action))
            self._plans += 1
            return
        self.watch.add(when, action)
        self._look_at_output()

    def see_output(self, byte: int) -> None:
        """A byte of output, for who waits for it."""
        if self.watch.waits:
            self.watch.see(bytes((byte,)))

    def _plan_now(self, action: Callable[[VirtualMachine], None]) -> None:
        self.at(self.processor.time, action)
        self._look_at_output()

    def _look_at_output(self) -> None:
        """Make COM1 report bytes before the guest continues, where somebody waits for them."""
        expected = 0 if self.console is None else self.console.expected
        self.devices.uart.expect(EVERY_BYTE if self.watch.byte_by_byte else expected)

    @property
    def next_planned(self) -> int | None:
        """When the next action of `at` is due, in virtual time."""
        return self._planned[0][0] if self._planned else None

    def snapshot(self) -> Snapshot:
        """Everything of the machine at this moment, for `restore`.

        Raises SnapshotError for a machine under direct paging, or with a device whose state is
        kept outside of it: a disk that is a file, say.
        """
        if not self.can_be_restored:
            raise SnapshotError("the VMM of direct paging knows more than the machine: no snapshot")
        return Snapshot(self, self.watch, self._tally, self._planned)

    def save(self, path: str | Path) -> None:
        """Write everything of the machine to a file, from which `SavedMachine` makes it anew.

        What is planned by `at` is not in it. The file is there whole or not at all. Raises
        SnapshotError as `snapshot` does, for a machine under direct paging or with several
        processors, in the middle of a disk transfer, and if the file cannot be written.
        """
        from trapgate.vmm.snapshots.file import save

        if not self.can_be_restored:
            raise SnapshotError("a machine under direct paging cannot be saved in a file")
        save(self.snapshot(), Path(path))

    def restore(self, snapshot: Snapshot) -> int:
        """Restore everything; how many pages of memory had been written since.

        It costs what was changed. The run that follows is the one that followed then, to the last
        row of the trace. Raises SnapshotError for another machine's snapshot.
        """
        if snapshot.machine is not self:
            raise SnapshotError("this is the snapshot of another machine; restore it there")
        copied = snapshot.restore()
        if self.console is not None or snapshot.console_asked:
            self._look_at_output()
        return copied

    def _turn(self, end: int | None, expires: float | None, until: int | None = None) -> None:
        """One VM entry, and what its exit asks for."""
        processor, devices = self.processor, self.devices
        now = processor.time
        if end is not None and now >= end:
            halted = self.processor.skipped
            waited = f", halted for {halted} ns of virtual time" if halted else ""
            self.stopped = Stop(End.LIMIT, f"{now - halted} instructions executed{waited}", 1)
            return
        if expires is not None and time.monotonic() >= expires:
            self.stopped = Stop(End.LIMIT, "out of time", 1)
            return
        console = self.console
        if (console is not None or self.watchers) and now >= self._next_poll:
            self._next_poll = now + _POLL
            self.listen()
            self._end(self.after_device())
            for watcher in self.watchers if self.stopped is None else ():
                watcher(self)
            if self.stopped is not None:
                return
        if now >= self._device_due:
            devices.advance(now)
            due = devices.next_deadline(now)
            self._device_due = _NEVER if due is None else due
        while (
            self._planned
            and self._planned[0][0] <= now
            and not self.vmcs.words[f.VM_ENTRY_INTERRUPTION_INFORMATION] & _VALID
        ):
            heappop(self._planned)[2](self)
            if self.stopped is not None:
                return
        if devices.power.asleep:
            self.stopped = wait_in_s3(self)
            return
        if len(self.cpus) > 1 and not self._take_turn(now):
            return
        vmcs = self.vmcs
        v = vmcs.words
        if devices.pending() or v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & _WINDOW:
            self._offer_interrupt(v)
        # No calls of min(), which would take a twentieth of the whole turn.
        looks = console is not None or expires is not None or self.watchers
        limit = now + (_POLL if looks else _TIMER_MAX)
        if self._device_due < limit:  # noqa: PLR1730
            limit = self._device_due
        if self.turns.end < limit:  # noqa: PLR1730
            limit = self.turns.end
        if end is not None and end < limit:
            limit = end
        if self._planned and self._planned[0][0] < limit:
            limit = self._planned[0][0]
        if until is not None and until < limit:
            limit = until
        v[f.VMX_PREEMPTION_TIMER_VALUE] = limit - now if limit > now else 0
        outcome = processor.vmresume(vmcs) if vmcs.launched else processor.vmlaunch(vmcs)
        if self._answers[ANSWERED]:
            self._count_answers()
        if isinstance(outcome, VmFail):
            self.stopped = Stop(End.ENTRY_FAILED, f"VM entry failed: {outcome.explanation}", 1)
            return
        self._tally.exits[outcome.reason] += 1
        if self.watch.waits:
            self.watch.look(outcome)
        action = self.vmm.handle(outcome, self)
        if action is EMULATED:
            processor.engine.step_over(outcome.instruction_length)
        else:
            self._carry_out(outcome, action)

    def wait(self, seconds: float) -> bool:
        """Wait for that much host time if somebody watches; False if nobody does."""
        if self.watchers:
            if not self.listen():
                time.sleep(seconds)
            for watcher in self.watchers:
                watcher(self)
            return True
        return super().wait(seconds)

    def _take_turn(self, now: int) -> bool:
        """Run the processor whose turn it is; False if all wait, and time has advanced."""
        cpu = self.turns.next(self.cpu, now)
        if cpu is None:
            waited = self.idle()
            self._end(waited if isinstance(waited, Stop) else None)
            return False
        if cpu is not self.cpu:
            self.turn_to(cpu)
        v = self.vmcs.words
        secondary = v[f.SECONDARY_PROCESSOR_BASED_CONTROLS] & ~ct.SECONDARY_PAUSE_LOOP_EXITING
        if self.turns.shared:
            secondary |= ct.SECONDARY_PAUSE_LOOP_EXITING
        v[f.SECONDARY_PROCESSOR_BASED_CONTROLS] = secondary
        return True

    def _offer_interrupt(self, v: memoryview[int]) -> None:
        """Inject a pending interrupt if the guest takes one now, else ask for the window."""
        x86_vmm = self.processor.x86_vmm
        primary = v[f.PRIMARY_PROCESSOR_BASED_CONTROLS]
        wanted = 0
        if self.devices.pending():
            blocked = v[f.GUEST_INTERRUPTIBILITY_STATE] & 3 and not x86_vmm.wants_interrupts
            open_now = (
                self.cpu.takes_interrupts
                and not blocked
                and not v[f.VM_ENTRY_INTERRUPTION_INFORMATION] & _VALID
            )
            if open_now:
                # An x86 VMM that does not acknowledge on exit finds the interrupt pending.
                if not x86_vmm.wants_interrupts or x86_vmm.acknowledges_interrupts:
                    vector = self.devices.acknowledge()
                    if x86_vmm.wants_interrupts and x86_vmm.is_notification(vector):
                        self.devices.apic.end_of_interrupt()
                        self.processor.engine.post_interrupts()
                        self._offer_interrupt(v)
                        return
                    self._tally.injected[EventKind.INTERRUPT][vector] += 1
                else:
                    vector = 0
                v[f.VM_ENTRY_INTERRUPTION_INFORMATION] = _VALID | vector
                if self.devices.pending():
                    wanted = _WINDOW
            else:
                wanted = _WINDOW
        if primary & _WINDOW != wanted:
            v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] = primary & ~_WINDOW | wanted

    def _carry_out(self, vmexit: VmExit, action: Action) -> None:
        if isinstance(action, Emulated):
            self.advance(vmexit)
        elif isinstance(action, Inject):
            self._inject(action)
        elif isinstance(action, Stop):
            dies = action.end is End.TRIPLE_FAULT and self.resets_on_triple_fault
            self._end(Stop(End.RESET, action.message) if dies else action)
        elif isinstance(action, Resume):
            vectoring = vmexit.idt_vectoring
            if vectoring is not None:
                length = self.vmcs.words[f.VM_EXIT_INSTRUCTION_LENGTH]
                self._inject(Inject(vectoring, length))

    def _inject(self, action: Inject) -> None:
        v = self.vmcs.words
        self._tally.injected[EventKind.of(action.event.type)][action.event.vector] += 1
        word, code = action.event.encode()
        row = ROWS.get(action.event.vector)
        if row is not None and row.occurrence is Occurrence.FAULT and word & _HARDWARE:
            # Its frame says so, and entering with it does not.
            v[f.GUEST_RFLAGS] |= _RF
        v[f.VM_ENTRY_INTERRUPTION_INFORMATION] = word
        v[f.VM_ENTRY_EXCEPTION_ERROR_CODE] = code
        v[f.VM_ENTRY_INSTRUCTION_LENGTH] = action.length
