"""Machine memory of guests under direct paging, a range each, and the VMM's frames behind it.

The VMM has tables of its own for each guest there, and a byte for each frame.
"""

from __future__ import annotations

import numpy as np

from trapgate.processor.processor import Processor
from trapgate.trace import TraceWriter
from trapgate.vmm.accounts import JOURNAL
from trapgate.vmm.direct.frames import FRAME_SIZE, VMM, Frames
from trapgate.vmm.direct.host import SharedProcessor
from trapgate.vmm.direct.refusals import DirectPagingError
from trapgate.vmm.direct.tables import Layout

LARGE_PAGE = 4 << 20
"""A VM's memory is so many bytes, or a multiple."""
_MOST = 16
"""Machines of a host."""
_SPLITS = 32
"""4-MByte pages of a guest's that lie over tables, for which the VMM has tables of its own."""


class Host(SharedProcessor):
    """A processor and `memory` bytes for virtual machines, whose frames it keeps apart.

    Machines get their memory in the order in which they are made. `engine` is as for
    `Processor`, and `trace` gets every event of all of them.
    """

    def __init__(
        self, memory: int, *, engine: str = "auto", trace: TraceWriter | None = None
    ) -> None:
        if memory <= 0 or memory % LARGE_PAGE:
            raise DirectPagingError(
                f"{memory:#x} bytes of memory are not a multiple of 4 MiB, the unit of direct "
                f"paging; ask for {-(-max(memory, 1) // LARGE_PAGE) * 4}M"
            )
        self._guests = memory // FRAME_SIZE
        most = min(_MOST, memory // LARGE_PAGE)
        pages = self._guests // FRAME_SIZE + 2
        self._room = 1 + _SPLITS + pages
        """The VMM's frames for a machine: a directory, tables, and a byte for each frame."""
        frames = self._guests + most * self._room
        assert frames <= pages * FRAME_SIZE
        super().__init__(Processor(frames * FRAME_SIZE, engine=engine, journal=JOURNAL))
        self.bytes = self.processor.memory.cells.view(np.uint8)
        self.words = self.processor.memory.cells.view(np.uint32)
        self.frames = Frames(frames)
        self.frames.give(VMM, self._guests, frames - self._guests)
        self._next = 0
        """Where the memory of the latest machine ends."""
        if trace is not None:
            self.processor.trace_to(trace.append)

    def place(self, memory: int) -> int:
        """Memory for one more machine: the address of the first of its `memory` bytes.

        It is 0 for the first. Others lie above their own size, so that addresses from 0
        on and machine addresses are not the same (see `DirectMachine`).
        """
        if memory % LARGE_PAGE or not memory:
            raise DirectPagingError(f"{memory:#x} bytes are not a multiple of 4 MiB; ask for one")
        base = max(self._next, memory) if self.machines else 0
        if len(self.machines) >= _MOST:
            raise DirectPagingError(f"a host holds {_MOST} machines; make another")
        self.frames.give(len(self.machines) + 1, base // FRAME_SIZE, memory // FRAME_SIZE)
        self._next = base + memory
        return base

    def layout(self, number: int, base: int, memory: int) -> Layout:
        """Where what belongs to machine `number` is, whose `memory` bytes begin at `base`."""
        first = self._guests + (number - 1) * self._room + 1
        return Layout(
            *(base // FRAME_SIZE, memory // FRAME_SIZE, self._guests, len(self.frames)),
            *(first, _SPLITS, first + _SPLITS),
        )
