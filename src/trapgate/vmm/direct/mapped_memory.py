"""Machine memory of guests under frame maps: a range each, its own map behind the guest's part.

A guest names frames from 0 on. The first one's are the machine's; for others the processor adds
where their range begins (`paging.alias`). All ranges are multiples of 2 MiB, so that address line
20, which may be held low after the page walk, leads nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trapgate.paging import frame_map as fm
from trapgate.processor.logical import Memory
from trapgate.processor.processor import Processor
from trapgate.vmm.accounts import JOURNAL
from trapgate.vmm.direct.frames import FRAME_SIZE
from trapgate.vmm.direct.host import SharedProcessor
from trapgate.vmm.direct.links import Bytes, Links
from trapgate.vmm.direct.refusals import DirectPagingError
from trapgate.vmm.loaders.layout import RAM_HOLE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trapgate.trace import TraceWriter

FRAMES = 1 << 20
"""Frames that a map describes: four gigabytes."""
_GRANULE = 2 << 20


def room_for(memory: int) -> int:
    """How much machine memory a guest of `memory` bytes takes, both in bytes.

    Raises DirectPagingError if no frame map describes so much.
    """
    if memory % FRAME_SIZE or not 0 < memory <= FRAMES * FRAME_SIZE - 2 * FRAMES:
        raise DirectPagingError(
            f"{memory:#x} bytes of memory are not what a frame map describes: whole pages, "
            "less than 4 GB; ask for less"
        )
    return -(-(memory + 2 * FRAMES) // _GRANULE) * _GRANULE


class GuestRange:
    """`size` bytes of machine memory from `base` on, a guest's, by its own addresses."""

    def __init__(self, memory: Memory, base: int, size: int) -> None:
        self._memory = memory
        self.base, self.size = base, size

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes, which must lie within."""
        assert 0 <= address <= self.size - count
        return self._memory.read(self.base + address, count)

    def write(self, address: int, data: bytes) -> None:
        """Store `data`, which must lie within."""
        assert 0 <= address <= self.size - len(data)
        self._memory.write(self.base + address, data)


class ProtectedHost(SharedProcessor):
    """A processor and machine memory for guests of the sizes in `memories`, bytes each.

    They get it in the order in which their machines are made. `trace` gets every event of all of
    them. Raises DirectPagingError on the portable engine, whose page walk knows no frame map, and
    for more memory than lies below the devices of a PC.
    """

    def __init__(
        self, memories: Iterable[int], *, engine: str = "auto", trace: TraceWriter | None = None
    ) -> None:
        rooms = [room_for(memory) for memory in memories]
        if len(rooms) > 1 and sum(rooms) > RAM_HOLE:
            raise DirectPagingError(
                f"the guests take {sum(rooms) >> 20} MiB, and devices of a PC begin at "
                f"{RAM_HOLE >> 20}; give them less memory"
            )
        super().__init__(Processor(sum(rooms), engine=engine, journal=JOURNAL))
        why = self.processor.engine.why_not_native
        if why:
            raise DirectPagingError(
                f"a frame map needs the native engine, not the portable one ({why}); "
                "give --protect entries"
            )
        self.bytes: Bytes = self.processor.memory.cells.view(np.uint8)
        self._rooms = rooms
        self._base = 0
        if trace is not None:
            self.processor.trace_to(trace.append)

    def place(self, memory: int) -> int:
        """The machine address of the next guest's range, of `memory` bytes."""
        room = room_for(memory)
        if self._base + room > len(self.bytes):
            raise DirectPagingError(
                f"the host has no room left for {memory >> 20} MiB; name its guests' sizes when "
                "it is made"
            )
        base, self._base = self._base, self._base + room
        return base

    def links_at(self, base: int, memory: int) -> Links:
        """Knowledge of the tables of the guest there, and its map, in which all is data.

        What is another's, or the VMM's, is foreign; above the machine's memory devices are
        everybody's own.
        """
        mine = self.bytes[base : base + memory + 2 * FRAMES]
        frame_map = mine[memory : memory + FRAMES]
        frame_map[:] = fm.OWN
        frame_map[memory // FRAME_SIZE : len(self.bytes) // FRAME_SIZE] = fm.FOREIGN
        return Links(mine, memory, FRAMES, memory // FRAME_SIZE)
