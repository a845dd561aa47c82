"""The logical processor: VM entry, VM exit, and the guest that runs between them.

Decisions are `decide`'s and `delivery`'s, execution is the engine's; this module only
turns what stopped the engine into VM exits (second seed, claims 1-9; first seed,
figure 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trapgate import instructions
from trapgate.core import Cells
from trapgate.engine import machine as stops
from trapgate.engine.compiled import compiled
from trapgate.engine.unicorn_engine import UnicornEngine as Engine
from trapgate.engine.unicorn_engine import open_engine
from trapgate.errors import TrapgateError
from trapgate.faults import Interruption
from trapgate.journal import HEAD_CAPACITY, HEAD_GENERATION, HEAD_LENGTH, HEAD_TIME, HEAD_VM, ROW_WIDTH
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import registers
from trapgate.sdm.reasons import ExitReason
from trapgate.vmcs import Vmcs

_SLICE = 1 << 26
"""Instructions after which Python looks for signals: a Ctrl-C waits no longer."""
_FOREVER = 1 << 62
_FAILED = 1 << 31
_BLOCKED_BY_STI_OR_SS = 3
_BLOCKED_BY_NMI = 8
_IF = 1 << 9


class IdleError(TrapgateError):
    """The guest halted, nothing is set that could wake it, and HLT does not exit.

    Set HLT exiting or the VMX-preemption timer, or assert an event before entering.
    """


@dataclass(frozen=True, slots=True)
class VmExit:
    """A VM exit (SDM, "VM-Exit Information Fields").

    `reason` is the basic exit reason, `qualification` 64 bits, `interruption` the event
    that caused the exit, `idt_vectoring` the event that was being delivered,
    `instruction_length` in bytes (0 where undefined). `entry_failed` says that the guest
    never ran. `vmcs` holds the guest's state.
    """

    reason: ExitReason
    qualification: int
    interruption: Interruption | None
    idt_vectoring: Interruption | None
    instruction_length: int
    entry_failed: bool
    vmcs: Vmcs


@dataclass(frozen=True, slots=True)
class VmFail:
    """VMLAUNCH or VMRESUME failed: VMfailValid with this VM-instruction error number."""

    error: int


class Memory:
    """Physical memory: `size` bytes from address 0; addresses outside do not exist."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bytes = memoryview(engine.memory.view(np.uint8))
        self.cells: Cells = engine.memory
        self.size = len(self._bytes)

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes at `address`. Raises TrapgateError outside memory."""
        self._demand(address, count)
        return bytes(self._bytes[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at `address`. Raises TrapgateError outside memory."""
        self._demand(address, len(data))
        self._bytes[address : address + len(data)] = data
        self._engine.forget_code(address, len(data))

    def _demand(self, address: int, count: int) -> None:
        if address < 0 or count < 0 or address + count > self.size:
            raise TrapgateError(
                f"physical memory has {self.size:#x} bytes, no {count:#x} at {address:#x}; "
                "give the processor more memory"
            )


class Registers:
    """The registers that no VMCS field holds, by name: rax..r15 but rsp, cr2, dr0..dr3, dr6, ..."""

    __slots__ = ("cells",)
    cells: Cells

    def __init__(self) -> None:
        object.__setattr__(self, "cells", np.zeros(len(registers.NAMES), np.int64))
        self.cells[registers.DR6] = 0xFFFF0FF0

    def __getattr__(self, name: str) -> int:
        index = _REGISTERS.get(name)
        if index is None:
            raise AttributeError(f"no register {name}; RSP, RIP and RFLAGS are VMCS fields")
        return int(self.cells[index]) & 0xFFFF_FFFF_FFFF_FFFF

    def __setattr__(self, name: str, value: int) -> None:
        index = _REGISTERS.get(name)
        if index is None:
            raise AttributeError(f"no register {name}; RSP, RIP and RFLAGS are VMCS fields")
        self.cells[index] = signed(value)


_REGISTERS = {name.lower(): n for n, name in enumerate(registers.NAMES) if name != "RSP"}


def signed(value: int) -> int:
    """A 64-bit number as the cells keep it: two's complement."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >> 63 else value


class Processor:
    """A logical processor in VMX root operation, under a VMM written in Python.

    `memory` is in bytes, `engine` is "native", "portable" or "auto" (native where its
    self-test passes), `journal` the number of events that are kept. Guests run from
    `vmlaunch` and `vmresume` until they cause a VM exit.

    Raises:
        EngineError: the engine is absent, not the pinned version, or fails calibration.
    """

    def __init__(self, memory: int, *, engine: str = "auto", journal: int = 4096) -> None:
        self.engine = open_engine(memory, engine)
        self.memory = Memory(self.engine)
        self.registers = Registers()
        self.rows: Cells = np.zeros((max(journal, 1), ROW_WIDTH), np.int64)
        self.head: Cells = np.zeros(HEAD_LENGTH, np.int64)
        self.head[HEAD_CAPACITY] = journal
        self._vmcs: Vmcs | None = None
        self._numbers: dict[int, int] = {}
        self._interrupt: int | None = None
        self._nmi = False
        self._init = False
        self._smi = False
        self._stop = False

    @property
    def time(self) -> int:
        """The virtual clock: instructions executed so far."""
        return int(self.engine.cells[stops.TIME])

    @property
    def vmcs(self) -> Vmcs | None:
        """The current VMCS."""
        return self._vmcs

    def name_vm(self, number: int) -> None:
        """Let the journal say that what happens from now on happens in VM `number`."""
        self.head[HEAD_VM] = number

    # Events at the processor's pins (¶21-22: interrupts and platform events).

    def interrupt(self, vector: int | None) -> None:
        """Assert an external interrupt with `vector` (None: no longer)."""
        self._interrupt = vector

    def nmi(self) -> None:
        """Signal a non-maskable interrupt; it stays pending until it is taken."""
        self._nmi = True

    def init(self) -> None:
        """Signal INIT."""
        self._init = True

    def smi(self) -> None:
        """Signal a system-management interrupt."""
        self._smi = True

    # The two instructions of seed two.

    def vmlaunch(self, vmcs: Vmcs) -> VmExit | VmFail:
        """VM entry with a VMCS whose launch state is clear; the VM exit that ended it.

        SDM, "VMLAUNCH/VMRESUME". VMfailValid(4) if it has been launched.
        """
        if vmcs.launched:
            return self._fail(vmcs, 4)
        outcome = self._run(vmcs)
        if isinstance(outcome, VmExit) and not outcome.entry_failed:
            vmcs.launched = True
        return outcome

    def vmresume(self, vmcs: Vmcs) -> VmExit | VmFail:
        """VM entry with a VMCS that was launched; VMfailValid(5) if it was not."""
        if not vmcs.launched:
            return self._fail(vmcs, 5)
        return self._run(vmcs)

    def _fail(self, vmcs: Vmcs, error: int) -> VmFail:
        vmcs.cells[f.VM_INSTRUCTION_ERROR] = error
        return VmFail(error)

    def _run(self, vmcs: Vmcs) -> VmExit | VmFail:
        v = vmcs.cells
        engine = self.engine
        c = engine.cells
        if vmcs is not self._vmcs:
            self._attach(vmcs)
        elif not v[f.SECONDARY_PROCESSOR_BASED_CONTROLS] & ct.SECONDARY_VPID:
            engine.flush_translations()
        self._set_clock(v)
        engine.enter_and_go()
        while c[stops.STOP] != stops.EXITED:
            if not self._settle(v):
                engine.go()
        if c[stops.STOP_CODE] == stops.FAILED_VALID:
            return VmFail(int(v[f.VM_INSTRUCTION_ERROR]))
        if v[f.VM_EXIT_CONTROLS] & ct.EXIT_SAVE_PREEMPTION_TIMER:
            left = max(int(c[stops.TIMER_END]) - int(c[stops.TIME]), 0)
            v[f.VMX_PREEMPTION_TIMER_VALUE] = min(left, 0xFFFF_FFFF)
        return self._exit(vmcs)

    def _exit(self, vmcs: Vmcs) -> VmExit:
        v = vmcs.cells
        reason = int(v[f.EXIT_REASON])
        interruption = vectoring = None
        if v[f.VM_EXIT_INTERRUPTION_INFORMATION]:
            interruption = Interruption.decode(
                int(v[f.VM_EXIT_INTERRUPTION_INFORMATION]),
                int(v[f.VM_EXIT_INTERRUPTION_ERROR_CODE]),
            )
        if v[f.IDT_VECTORING_INFORMATION]:
            vectoring = Interruption.decode(
                int(v[f.IDT_VECTORING_INFORMATION]), int(v[f.IDT_VECTORING_ERROR_CODE])
            )
        return VmExit(
            _REASONS[reason & 0xFFFF],
            int(v[f.EXIT_QUALIFICATION]) & 0xFFFF_FFFF_FFFF_FFFF,
            interruption,
            vectoring,
            int(v[f.VM_EXIT_INSTRUCTION_LENGTH]),
            bool(reason & _FAILED),
            vmcs,
        )

    def _attach(self, vmcs: Vmcs) -> None:
        number = self._numbers.setdefault(id(vmcs), len(self._numbers))
        self.head[HEAD_GENERATION] = number
        self._vmcs = vmcs
        self.engine.attach(vmcs.cells, self.registers.cells, self.rows, self.head)
        self.engine.flush_translations()

    def _set_clock(self, v: Cells) -> None:
        """Arm the preemption timer, and say when the engine has to stop and look."""
        c = self.engine.cells
        now = int(c[stops.TIME])
        timer = _FOREVER
        if v[f.PIN_BASED_CONTROLS] & ct.PIN_PREEMPTION_TIMER:
            timer = now + int(v[f.VMX_PREEMPTION_TIMER_VALUE])
        c[stops.TIMER_END] = timer
        c[stops.BUDGET_END] = now + _SLICE
        waiting = 0
        if v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_INTERRUPT_WINDOW_EXITING:
            waiting = stops.WHEN_INTERRUPTIBLE
        if self._interrupt is not None:
            exiting = v[f.PIN_BASED_CONTROLS] & ct.PIN_EXTERNAL_INTERRUPT_EXITING
            waiting |= stops.AT_ONCE if exiting else stops.WHEN_INTERRUPTIBLE
        if self._nmi or self._init or self._smi:
            waiting |= stops.AT_ONCE
        c[stops.ATTENTION] = waiting
        c[stops.DEADLINE] = 0 if waiting else min(timer, now + _SLICE)

    def _settle(self, v: Cells) -> bool:
        """Deal with what stopped the engine; whether that was a VM exit."""
        c = self.engine.cells
        stop = c[stops.STOP]
        if stop == stops.ASSIST:
            exited = instructions.assist(self, v)
        elif stop == stops.TIMER:
            _vm_exit(v, ExitReason.VMX_PREEMPTION_TIMER, 0, 0)
            exited = True
        elif stop == stops.HALTED:
            exited = self._halted(v)
        elif stop in (stops.ATTEND, stops.LIMIT):
            exited = self._attend(v)
        else:
            self.engine.explain_break()
            exited = False
        c[stops.STOP] = stops.EXITED if exited else stops.RUNNING
        return exited

    def _attend(self, v: Cells) -> bool:
        """Take what is pending, in the order of "Priority Among Concurrent Events" (SDM)."""
        c = self.engine.cells
        exited = self._take(v)
        if not exited:
            now = int(c[stops.TIME])
            timer = int(c[stops.TIMER_END])
            self._set_clock(v)
            c[stops.TIMER_END] = timer
            c[stops.BUDGET_END] = now + _SLICE
            if c[stops.DEADLINE]:
                c[stops.DEADLINE] = min(timer, now + _SLICE)
        return exited

    def _take(self, v: Cells) -> bool:
        pin = int(v[f.PIN_BASED_CONTROLS])
        state = int(v[f.GUEST_INTERRUPTIBILITY_STATE])
        if self._init:
            self._init = False
            _vm_exit(v, ExitReason.INIT_SIGNAL, 0, 0)
            return True
        if self._smi:
            self._smi = False
            _vm_exit(v, ExitReason.OTHER_SMI, 0, 0)
            return True
        if self._nmi and not state & _BLOCKED_BY_STI_OR_SS:
            blocked = state & _BLOCKED_BY_NMI and not pin & ct.PIN_VIRTUAL_NMIS
            if not blocked:
                self._nmi = False
                return self._raise(v, 2, 2)
        interruptible = bool(v[f.GUEST_RFLAGS] & _IF) and not state & _BLOCKED_BY_STI_OR_SS
        primary = int(v[f.PRIMARY_PROCESSOR_BASED_CONTROLS])
        if interruptible and primary & ct.PRIMARY_INTERRUPT_WINDOW_EXITING:
            _vm_exit(v, ExitReason.INTERRUPT_WINDOW, 0, 0)
            return True
        if self._interrupt is not None:
            vector = self._interrupt
            if pin & ct.PIN_EXTERNAL_INTERRUPT_EXITING:
                self._interrupt = None
                _vm_exit(v, ExitReason.EXTERNAL_INTERRUPT, 0, 0)
                if v[f.VM_EXIT_CONTROLS] & ct.EXIT_ACKNOWLEDGE_INTERRUPT:
                    word, _ = Interruption(vector, 0).encode()  # type: ignore[arg-type]
                    v[f.VM_EXIT_INTERRUPTION_INFORMATION] = word
                return True
            if interruptible:
                self._interrupt = None
                v[f.GUEST_ACTIVITY_STATE] = 0
                return self._raise(v, vector, 0)
        return False

    def raise_fault(self, vector: int, error_code: int, address: int = 0) -> bool:
        """Arbitrate a hardware exception of the guest's; whether it caused a VM exit."""
        assert self._vmcs is not None
        return self._raise(self._vmcs.cells, vector, 3, error_code, address)

    def _raise(
        self, v: Cells, vector: int, kind: int, error_code: int = -1, address: int = 0
    ) -> bool:
        self.head[HEAD_TIME] = self.time
        event = (vector, kind, error_code, address, 0, 0)
        r = self.registers.cells
        return bool(_raise_event(v, r, self.memory.cells, self.rows, self.head, *event))

    def _halted(self, v: Cells) -> bool:
        """HLT without HLT exiting: the virtual clock jumps to what wakes the guest."""
        c = self.engine.cells
        if self._take(v):
            return True
        if v[f.GUEST_ACTIVITY_STATE] == 0:
            return False
        if c[stops.TIMER_END] >= _FOREVER:
            raise IdleError(
                "the guest halted and nothing can wake it; set HLT exiting or the "
                "VMX-preemption timer, or assert an event"
            )
        c[stops.TIME] = max(int(c[stops.TIME]), int(c[stops.TIMER_END]))
        _vm_exit(v, ExitReason.VMX_PREEMPTION_TIMER, 0, 0)
        return True


_vm_exit = compiled("vm_exit")
_raise_event = compiled("raise_event")
_REASONS = {int(reason): reason for reason in ExitReason}
