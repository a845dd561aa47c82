"""What a logical processor has for its own, where several take turns on one engine.

Memory, translated code, the clock and the journal are the machine's. So it is with atomicity: a
turn ends between two instructions.
"""

from __future__ import annotations

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


class OwnState:
    """One logical processor: its number, pins, registers, VMX state, and current VMCS.

    `save` and `restore` move what the engine and the head of the journal keep of it, x87 and
    SSE registers among them.
    """

    def __init__(
        self,
        number: int,
        engine: UnicornEngine,
        registers: Registers,
        x86_vmm: X86Vmm,
        pins: Pins,
    ) -> None:
        self.number = number
        self.registers, self.x86_vmm, self.pins = registers, x86_vmm, pins
        self.vmcs: Vmcs | None = None
        self._engine = engine
        self._live = engine.vectors.live
        self._vector_registers = self._live.copy()
        self._cells = engine.cells.copy()
        self._head: Cells = np.zeros(len(_HEAD), np.int64)
        self._placed: Vmcs | None = None
        self._places = (0, 0, 0, 0)

    def arrays(self) -> list[Cells]:
        """What holds its state beside memory and the VMCS."""
        return [self.registers.cells, self.x86_vmm.state, self.x86_vmm.vmcs]

    def saved_arrays(self) -> list[Cells]:
        """What holds the rest while it has no turn."""
        return [self._vector_registers, self._cells, self._head]

    def save(self, vmcs: Vmcs | None, head: Cells) -> None:
        """Remember what engine and journal hold, and its current VMCS."""
        self.vmcs = vmcs
        self._vector_registers[:] = self._live
        self._cells[:] = self._engine.cells
        self._head[:] = head[_HEAD]
        self.x86_vmm.look_at(self._cells)

    def restore(self, head: Cells) -> None:
        """Give them what they held."""
        vmcs, engine = self.vmcs, self._engine
        assert vmcs is not None
        if vmcs is not self._placed:
            # To ask NumPy where arrays lie takes longer than all else.
            self._placed, self._places = vmcs, engine.places_of(vmcs.cells, *self.arrays())
        engine.exchange(vmcs.cells, self.registers.cells, self._places)
        self._live[:] = self._vector_registers
        engine.cells[_CELLS] = self._cells[_CELLS]
        head[_HEAD] = self._head
        self.x86_vmm.look_at(engine.cells)
