"""What every way of executing an instruction works on: engine, registers, memory, journal."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np

from trapgate.compiler.dialect import Cells, Rows
from trapgate.engine import machine as stops
from trapgate.engine.unicorn_engine import UnicornEngine as Engine
from trapgate.engine.unicorn_engine import open_engine
from trapgate.errors import TrapgateError
from trapgate.events.journal import HEAD_CAPACITY, HEAD_CURRENT, HEAD_LENGTH, HEAD_TIME, ROW_WIDTH
from trapgate.processor.pins import Pins
from trapgate.processor.x86_vmm import X86Vmm
from trapgate.sdm import registers, vmx
from trapgate.vmcs.vmcs import Vmcs


class Outcome(IntEnum):
    """How an instruction ended that was not executed in the ordinary way.

    GO_ON: the guest continues. EXITED: a VM exit of the VMCS in force. STOPPED: the engine
    has stopped for something else on the way, which is now to be dealt with.
    """

    GO_ON = 0
    EXITED = 1
    STOPPED = 2


class Memory:
    """Physical memory: `size` bytes from address 0; addresses outside do not exist."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._bytes = memoryview(engine.memory.view(np.uint8).data)
        self.cells: Cells = engine.memory
        self.size = len(self._bytes)

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes at `address`. Raises TrapgateError outside memory."""
        self._demand(address, count)
        return bytes(self._bytes[address : address + count])

    def write(self, address: int, data: bytes) -> None:
        """Store `data` at `address`. Raises TrapgateError outside memory."""
        self.write_data(address, data)
        self._engine.forget_code(address, len(data))

    def write_data(self, address: int, data: bytes) -> None:
        """The same, where nothing can have been translated that lies there."""
        self._demand(address, len(data))
        self._bytes[address : address + len(data)] = data

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
        self.cells[registers.XCR0] = 1

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


def _no_leaf(_leaf: int, _subleaf: int) -> tuple[int, int, int, int]:
    return 0, 0, 0, 0


def _nothing() -> None:
    pass


_REGISTERS = {name.lower(): n for n, name in enumerate(registers.NAMES) if name != "RSP"}


def signed(value: int) -> int:
    """A 64-bit number as the cells keep it: two's complement."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >> 63 else value


class LogicalProcessor:
    """The engine with the state around it, and the arbitration of what goes wrong there.

    `memory` is in bytes, `engine` as for `Processor`, `journal` the number of events kept.
    """

    def __init__(self, memory: int, *, engine: str, journal: int) -> None:
        self.engine = open_engine(memory, engine)
        self.memory = Memory(self.engine)
        self.registers = Registers()
        self.rows: Rows = np.zeros((max(journal, 1), ROW_WIDTH), np.int64)
        self.head: Cells = np.zeros(HEAD_LENGTH, np.int64)
        self.head[HEAD_CAPACITY] = journal
        # Plain integers, and quicker to reach from Python than the arrays.
        self._words = self.engine.words
        self._head = memoryview(self.head.data)
        self.x86_vmm = X86Vmm(self.engine)
        """The VMM that the guest may be itself."""
        self.engine.offer_vmx(self.x86_vmm.state, self.x86_vmm.vmcs)
        self.pins = Pins()
        self.head[HEAD_CURRENT] = vmx.NONE
        self._vmcs: Vmcs | None = None
        self.cpuid: Callable[[int, int], tuple[int, int, int, int]] = _no_leaf
        """EAX, EBX, ECX, EDX of CPUID with EAX and ECX, for guests that may execute it."""
        self.platform_reset: Callable[[], None] = _nothing
        """What else becomes of the platform when INIT has reset the guest's processor."""

    @property
    def time(self) -> int:
        """The virtual clock: instructions executed so far."""
        return self._words[stops.TIME]

    @property
    def vmcs(self) -> Vmcs | None:
        """The current VMCS."""
        return self._vmcs

    @property
    def in_force(self) -> Cells:
        """The VMCS in force: VMCS 0 or, while its guest runs, that of an x86 VMM."""
        c = self._words
        if c[stops.V] != c[stops.HOST]:
            return self.x86_vmm.vmcs
        assert self._vmcs is not None
        return self._vmcs.cells

    @property
    def vmcs0(self) -> Cells:
        """The VMCS of the VMM in Python, whoever is in force."""
        assert self._vmcs is not None
        return self._vmcs.cells

    def move_to_vmcs0(self) -> Cells:
        """VMCS 0, to which the state of an x86 VMM's guest is moved if that was running."""
        if self._words[stops.V] != self._words[stops.HOST]:
            self.engine.move_to_vmcs0()
        return self.in_force

    def move_from_vmcs0(self) -> None:
        """Undo `move_to_vmcs0`: nobody but the x86 VMM had business with its guest."""
        self.engine.move_from_vmcs0()

    def raise_fault(self, vector: int, error_code: int, address: int = 0) -> bool:
        """Arbitrate a hardware exception of the guest's; whether it caused a VM exit."""
        return self.raise_event(vector, 3, error_code, address)

    def raise_event(self, vector: int, kind: int, error_code: int = -1, address: int = 0) -> bool:
        """Arbitrate an event of that interruption type; whether it caused a VM exit."""
        self.head[HEAD_TIME] = self.time
        return self.engine.raise_event(vector, kind, error_code, address) != 0
