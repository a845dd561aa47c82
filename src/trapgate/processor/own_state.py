"""What a logical processor has for its own, where several take turns on one engine.

Memory, translated code, the clock and the journal are the machine's. So it is with atomicity: a
turn ends between two instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.engine.unicorn_engine import UnicornEngine
from trapgate.events.journal import HEAD_CPU, HEAD_CURRENT, HEAD_GENERATION, HEAD_LEVEL
from trapgate.processor.logical import Registers
from trapgate.processor.pins import Pins
from trapgate.processor.x86_vmm import X86Vmm
from trapgate.vmcs.vmcs import Vmcs

_CELLS = np.array(stops.OWN_STATE)
_HEAD = np.array((HEAD_CPU, HEAD_CURRENT, HEAD_GENERATION, HEAD_LEVEL))


@dataclass
class OwnState:
    """One logical processor: its number, pins, registers, VMX state, and current VMCS.

    `put_aside` and `take_up` move what the engine and the head of the journal keep of it, x87 and
    SSE registers among them.
    """

    number: int
    registers: Registers
    x86_vmm: X86Vmm
    vmcs: Vmcs | None = None
    pins: Pins = field(default_factory=Pins)
    vector_registers: bytes = b""
    cells: Cells = field(default_factory=lambda: np.zeros(0, np.int64))
    head: Cells = field(default_factory=lambda: np.zeros(0, np.int64))
    _placed: Vmcs | None = None
    _places: tuple[int, int, int, int] = (0, 0, 0, 0)

    def arrays(self) -> list[Cells]:
        """What holds its state beside memory, `vmcs` aside; always the same objects."""
        return [self.registers.cells, self.x86_vmm.state, self.x86_vmm.vmcs]

    def put_aside(self, engine: UnicornEngine, head: Cells) -> None:
        """Remember what they hold."""
        self.vector_registers = engine.save_registers()
        self.cells = engine.cells.copy()
        self.head = head[_HEAD]
        self.x86_vmm.look_at(self.cells)

    def take_up(self, engine: UnicornEngine, head: Cells) -> None:
        """Give them what they held."""
        vmcs = self.vmcs
        assert vmcs is not None
        if vmcs is not self._placed:
            # To ask NumPy where arrays lie takes longer than all else.
            x86_vmm = self.x86_vmm
            arrays = vmcs.cells, self.registers.cells, x86_vmm.state, x86_vmm.vmcs
            self._placed, self._places = vmcs, UnicornEngine.places_of(*arrays)
        engine.exchange(vmcs.cells, self.registers.cells, self._places)
        engine.restore_registers(self.vector_registers)
        engine.cells[_CELLS] = self.cells[_CELLS]
        head[_HEAD] = self.head
        self.x86_vmm.look_at(engine.cells)
