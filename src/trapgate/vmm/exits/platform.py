"""The PC around a virtual processor, as the VMM's handlers see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from iced_x86 import Instruction

from trapgate.decision.faults import Interruption
from trapgate.events.breakpoints import note_data, note_ports
from trapgate.events.journal import ROW_ADDRESS, ROW_DEPTH, ROW_ERROR_CODE, ROW_RIP, ROW_VECTOR
from trapgate.instructions import effects
from trapgate.processor.logical import signed
from trapgate.processor.operand import Operand, OperandFaultError
from trapgate.processor.processor import Processor
from trapgate.processor.task_switch import load_cr3
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm import cells as f
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.state import ACTIVITY_ACTIVE, ACTIVITY_HLT
from trapgate.sdm.vectors import PF, ROWS
from trapgate.vmcs.vmcs import Vmcs
from trapgate.vmm.actions import Action, End, Inject, Resume, Stop
from trapgate.vmm.bios.firmware import Bios
from trapgate.vmm.cpus.cpu import Cpu
from trapgate.vmm.cpus.turns import Turns
from trapgate.vmm.devices import MachineEventKind, Pc
from trapgate.vmm.devices.apic import MSR_APIC_BASE
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.guest_memory import GuestMemory
from trapgate.vmm.devices.planes import is_video
from trapgate.vmm.loaders.layout import frame_buffer, memory_map
from trapgate.vmm.ui.console import Console

_TF = 1 << 8
_MOST_OUTPUT = 1 << 20
"""Bytes of output that are kept without a console."""
_MOST_DEADLINES = 64
"""How many deadlines of devices a halted guest sleeps through in one go."""


class _Ram:
    """All ones where there is no memory, and stores dropped."""

    def __init__(self, processor: Processor) -> None:
        self._memory = processor.memory

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes."""
        there = max(0, min(count, self._memory.size - address))
        return self._memory.read(address, there).ljust(count, b"\xff") if there else b"\xff" * count

    def write(self, address: int, data: bytes) -> None:
        """Store what there is memory for."""
        there = max(0, min(len(data), self._memory.size - address))
        if there:
            self._memory.write(address, data[:there])


class Platform:
    """Processors, VMCSs of their guest, and a PC's devices: what a handler may read and change.

    There is a processor for each of `vmcss`; `cpu` and `vmcs` are of the one whose turn it is.
    `seed` decides on the lengths of turns.
    `memory` is RAM in bytes; `console` takes the serial port's output and gives it keys;
    `board` is what is plugged in, `ram` what bus masters find in memory's place. `beside` says that
    the processor runs other machines, too.
    """

    def __init__(
        self,
        memory: int,
        *,
        processor: Processor,
        vmcss: Sequence[Vmcs],
        console: Console | None,
        board: Board | None = None,
        ram: GuestMemory | None = None,
        seed: int = 0,
        beside: bool = False,
    ) -> None:
        self.processor = processor
        if beside:
            owns = list(map(processor.add, vmcss, range(len(vmcss))))
        else:
            processor.make_current(vmcss[0])
            owns = [*processor.every, *map(processor.add, vmcss[1:], range(1, len(vmcss)))]
        self.cpus = [Cpu(processor, *both) for both in zip(owns, vmcss, strict=True)]
        self.cpu, self.vmcs = self.cpus[0], vmcss[0]
        self.turns = Turns(self.cpus, seed)
        self.console = console
        self.board = Board() if board is None else board
        """What is plugged in."""
        self.output = bytearray()
        self.ram: GuestMemory = _Ram(processor) if ram is None else ram
        """Memory as bus masters and our own firmware see it."""
        built_in = board is not None and board.bios
        has_video = built_in or (board is not None and board.firmware)
        video = frame_buffer(memory) if has_video else (memory, 0)
        ranges = memory_map(memory, video[1])
        self.devices = Pc(
            memory - video[1],
            self._emit,
            processor=self.cpu,
            others=self.cpus[1:],
            ranges=ranges,
            ram=self.ram,
            board=board,
            frame_buffer=video,
        )
        for cpu, apic in zip(self.cpus, self.devices.apics, strict=True):
            cpu.apic = apic
            if cpu is not self.cpu:
                cpu.reset()
        self.bios = (
            Bios(board, self.devices, self._emit, ranges, video)
            if board is not None and built_in
            else None
        )
        """Our own firmware, if it is what boots the guest."""
        self.base = 0
        """Where in the processor's memory the guest's address 0 lies."""
        self.has_firmware = False
        """Whether there is something at the reset vector."""
        self._device_due = 0

    def turn_to(self, cpu: Cpu) -> None:
        """Switch to another processor."""
        page = self.devices.apic.page
        self.processor.turn_to(cpu.own)
        self.cpu, self.vmcs = cpu, cpu.vmcs
        self.devices.select(cpu.number)
        if self.devices.apic.page != page:
            self.processor.place_devices(self.devices.pages)

    def reset_around_processor(self) -> None:
        """What INIT does to the one whose turn it is, beside the processor itself."""
        self.cpu.reset_platform()
        self.devices.update_slots()

    def device_due(self) -> None:
        """Ask the devices what they need before the next VM entry."""
        self._device_due = 0

    def adjust_tsc(self, by: int) -> None:
        """Move the guest's time-stamp counter, as WRMSR to it or to IA32_TSC_ADJUST does."""
        mask = 0xFFFF_FFFF_FFFF_FFFF
        self.cpu.tsc_adjust = (self.cpu.tsc_adjust + by) & mask
        self.vmcs["TSC_OFFSET"] = (self.vmcs["TSC_OFFSET"] + by) & mask

    def general(self, number: int) -> int:
        """The general register of that encoding, unsigned."""
        if number == 4:
            return self.vmcs["GUEST_RSP"]
        return int(self.processor.registers.cells[number]) & 0xFFFF_FFFF_FFFF_FFFF

    def set_general(self, number: int, value: int) -> None:
        """Write the general register of that encoding; as wide as the mode makes it."""
        if not self.vmcs["GUEST_CS_ACCESS_RIGHTS"] & 1 << 13:
            value &= 0xFFFF_FFFF
        if number == 4:
            self.vmcs["GUEST_RSP"] = value & 0xFFFF_FFFF_FFFF_FFFF
        else:
            self.processor.registers.cells[number] = signed(value)

    def advance(self, vmexit: VmExit) -> None:
        """Move RIP past the instruction that exited."""
        self.processor.engine.step_over(vmexit.instruction_length)

    def take_cr3(self, value: int) -> Stop | None:
        """Load CR3 for a task switch; what stops the machine instead, if it may not.

        Raises TaskFaultError.
        """
        load_cr3(self.processor, self.vmcs.cells, value)
        return None

    def after_device(self, port: int = -1) -> Stop | None:
        """A device was used, at `port` if any: the machine's end, if somebody asked for it."""
        if not self.devices.bus.moves_no_deadline(port):
            self._device_due = 0
        event = self.devices.bus.event
        if event is not None:
            if event.kind is MachineEventKind.DEBUG_EXIT:
                guest = event.status >> 1
                return Stop(
                    End.DEBUG_EXIT, f"the guest exited with status {guest}", 0 if guest == 0 else 1
                )
            if event.kind is MachineEventKind.POWER_OFF:
                return Stop(End.POWER_OFF, f"the guest turned the machine off ({event.source})")
            if event.kind is MachineEventKind.SLEEP:
                return Stop(
                    End.ASLEEP, f"the guest sleeps ({event.source}), and nothing will wake it"
                )
            return Stop(End.RESET, f"the guest reset the machine ({event.source})")
        console = self.console
        if console is not None:
            if console.found:
                return Stop(End.UNTIL, "the expression appeared")
            if console.left:
                return Stop(End.QUIT, "ended by Ctrl-A x")
        return None

    def write_apic_msr(self, index: int, value: int) -> bool:
        """WRMSR to one of the local APIC's; False if it raises #GP."""
        now = self.processor.time
        tsc = int(effects.time_stamp(self.vmcs.cells, now)) & 0xFFFF_FFFF_FFFF_FFFF
        self._device_due = 0
        written = self.devices.apic.write_msr(index, value, tsc, now)
        if index == MSR_APIC_BASE:
            self.devices.update_slots()
            self.processor.place_devices(self.devices.pages)
        return written

    def _load(self, address: int, size: int) -> int:
        """The guest loads from a device's page; it continues as it was."""
        return self.devices.load(address, size, self.processor.time)

    def _store(self, address: int, size: int, value: int) -> None:
        """The guest stores to a device's page; the VMM wants a turn to see what comes of it."""
        self.devices.store(address, size, value, self.processor.time)
        if is_video(address):
            return
        self._device_due = 0
        self.processor.preempt()

    def fault(self, vector: int, error_code: int) -> Inject:
        """Deliver an exception; its error code counts in protected mode only."""
        protected = self.vmcs["GUEST_CR0"] & 1
        kind = InterruptionType.HARDWARE_EXCEPTION
        return Inject(Interruption(vector, kind, error_code if protected else None))

    def string_io(self, port: int, size: int, *, is_in: bool) -> Action:
        """One iteration of INS or OUTS; the exit says where its memory operand is."""
        v = self.vmcs.cells
        guest = Operand(self.processor, v)
        instruction = guest.decode()
        linear = self.vmcs["GUEST_LINEAR_ADDRESS"]
        now = self.processor.time
        traps = v[f.GUEST_RFLAGS] & _TF or v[f.GUEST_DR7] & 0xFF
        repeats = instruction.has_rep_prefix or instruction.has_repne_prefix
        if repeats and not traps and self._string_block(guest, instruction, port, is_in=is_in):
            return self.after_device(port) or Resume()
        try:
            guest.string_step(
                instruction,
                linear,
                (lambda: self.devices.read(port, size, now)) if is_in else None,
                lambda value: self.devices.write(port, size, value, now),
            )
        except OperandFaultError as fault:
            if fault.vector == PF:
                self.processor.registers.cells[16] = fault.address
            return self.fault(fault.vector, fault.error_code)
        registers = self.processor.registers.cells
        note_ports(v, registers, port, size)
        note_data(v, registers, signed(linear), size, is_in)
        self.processor.engine.end_emulated_instruction()
        return self.after_device(port) or Resume()

    def _string_block(
        self, guest: Operand, instruction: Instruction, port: int, *, is_in: bool
    ) -> bool:
        """Iterations of REP INS or OUTS within a page, as many as the device has or takes.

        No more than come before the next deadline. False: take one.
        """
        left = self.processor.time_left
        step = guest.string_block(instruction, self.vmcs["GUEST_LINEAR_ADDRESS"], left)
        if step is None:
            return False
        physical, size, count = step
        memory, now = self.processor.memory, self.processor.time
        if is_in:
            data = self.devices.read_string(port, size, count, now)
            memory.write(physical, data)
            done = len(data) // size
        else:
            data = memory.read(physical, count * size)
            done = self.devices.write_string(port, size, data, now)
        # The exit has been counted, which is one iteration.
        self.processor.count(done - 1)
        guest.count_iterations(instruction, size, done)
        return True

    @property
    def next_planned(self) -> int | None:
        """When something is to be done to the guest, in virtual time; None if nothing is."""
        return None

    def rest(self) -> Action:
        """The processor whose turn it is waits: others may continue."""
        if len(self.cpus) == 1:
            return self.idle()
        v = self.vmcs.words
        if v[f.GUEST_ACTIVITY_STATE] == ACTIVITY_ACTIVE:
            v[f.GUEST_ACTIVITY_STATE] = ACTIVITY_HLT
        return Resume()

    def listen(self, seconds: float = 0.0) -> bool:
        """Wait for what is typed at a terminal, and take it; whether something was typed."""
        console = self.console
        if console is None:
            return False
        keys = console.wait(seconds) if seconds else console.poll()
        if keys:
            self.devices.uart.receive(keys)
        pressed = console.take_button()
        if pressed:
            self.devices.power.press_button()
        return bool(keys) or pressed

    def wait(self, seconds: float) -> bool:
        """Wait for that much host time if somebody may type; False if nobody can."""
        if self.console is None or not self.console.interactive:
            return False
        self.listen(seconds)
        return True

    def idle(self) -> Action:
        """All processors wait: let virtual time jump to what could wake one."""
        devices, processor = self.devices, self.processor
        awake = any(cpu.takes_interrupts for cpu in self.cpus) or devices.sends_nmis
        alarms = [
            alarm for cpu in self.cpus if (alarm := cpu.own.x86_vmm.preemption_deadline) is not None
        ]
        alarm = min(alarms, default=None)
        planned = self.next_planned
        for _ in range(_MOST_DEADLINES):
            now = processor.time
            devices.advance(now)
            if any(cpu.is_called for cpu in self.cpus):
                return Resume()
            stop = self.after_device()
            if stop is not None:
                return stop
            if alarm is not None and now >= alarm:
                return Resume()
            if planned is not None and now >= planned:
                break
            deadline = devices.next_deadline(now) if awake else None
            if alarm is not None and (deadline is None or alarm < deadline):
                deadline = alarm
            if planned is not None and (deadline is None or planned < deadline):
                deadline = planned
            console = self.console
            interactive = console is not None and console.interactive
            if deadline is None and not (awake and interactive):
                why = ", and no device will wake it" if awake else " with interrupts disabled"
                return Stop(End.HALTED, f"the guest halted{why}")
            if interactive:
                seconds = 1.0 if deadline is None else (deadline - now) / devices.bus.clock.hertz
                if self.listen(min(seconds, 1.0)):
                    devices.advance(now)
                    if any(cpu.is_called for cpu in self.cpus):
                        return Resume()
            if deadline is not None:
                processor.skip_to(deadline)
        # It is time for something else, or devices run and wake nobody: a timer whose interrupt is
        # in service, say. The guest stays halted, and whoever runs it has a look at its limits.
        self.vmcs.words[f.GUEST_ACTIVITY_STATE] = ACTIVITY_HLT
        return Resume()

    def fault_chain(self) -> Iterator[str]:
        """The last chain of nested faults, the first first: RIP, error code and CR2 of each."""
        rows = []
        for row in self.processor.last_events():
            rows.append(row)
            if row[ROW_DEPTH] == 0:
                break
        doubled = False
        for depth, row in enumerate(reversed(rows)):
            vector = int(row[ROW_VECTOR])
            name = f"#{ROWS[vector].vector.name}" if vector in ROWS else f"vector {vector}"
            what = "third fault" if doubled else "nested fault" if depth else "fault"
            if vector == 8 and depth:
                what, doubled = "double fault", True
            code = int(row[ROW_ERROR_CODE])
            text = f"{what} {name} at RIP {int(row[ROW_RIP]) & 0xFFFF_FFFF_FFFF_FFFF:#x}"
            if code >= 0:
                text += f", error code {code:#x}"
            if vector == 14:
                text += f", CR2 {int(row[ROW_ADDRESS]) & 0xFFFF_FFFF_FFFF_FFFF:#x}"
            yield text

    def see_output(self, byte: int) -> None:
        """Nothing: see `VirtualMachine`."""

    def _emit_sent(self) -> None:
        """Give out what the guest has sent at COM1 without an exit."""
        sent = self.devices.uart.taken()
        if self.console is not None:
            for byte in sent:
                self.console.emit(byte)
        else:
            self.output += sent[: max(_MOST_OUTPUT - len(self.output), 0)]

    def _emit(self, byte: int) -> None:
        self.see_output(byte)
        if self.console is not None:
            self.console.emit(byte)
        elif len(self.output) < _MOST_OUTPUT:
            self.output.append(byte)
