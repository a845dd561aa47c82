"""What devices let the processor answer for them: ports that cost no turn of the VMM.

A device keeps a slot up to date with what the next access to a port will find
(`instructions.polled_ports`). What the processor has answered meanwhile, it learns when the VMM has
the processor next. Who runs devices without a processor is asked for everything, as ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.instructions import polled_ports as polled


@lru_cache(16)
def _bits(expected: int) -> memoryview[int]:
    """A bit for each byte, as cells."""
    cells: Cells = np.frombuffer(expected.to_bytes(32, "little"), np.int64)
    return memoryview(cells.data)


class Wired:
    """A part whose attributes are given once: what changes is behind them (`snapshots.state`)."""


class Slot:
    """One way to access one port: `size` bytes in or out."""

    __slots__ = ("_at", "_ports", "number")

    def __init__(self, ports: PolledPorts, number: int) -> None:
        self._ports = ports
        self._at = polled.HEAD + number * polled.WIDTH
        self.number = number

    def __getitem__(self, cell: int) -> int:
        """A cell of the slot, by its name in `polled_ports`."""
        return self._ports.words[self._at + cell]

    def __setitem__(self, cell: int, value: int) -> None:
        """Change one."""
        self._ports.words[self._at + cell] = value


class PolledPorts(Wired):
    """The table that the devices of a PC share with its processor."""

    def __init__(self) -> None:
        self._free = iter(range(polled.SLOTS))
        self._keep(np.zeros(polled.LENGTH, np.int64))

    def _keep(self, cells: Cells) -> None:
        self.cells = cells
        self.words: memoryview[int] = memoryview(cells.data)
        self.address = int(cells.ctypes.data)

    def __getstate__(self) -> tuple[Iterator[int], Cells]:
        """For copies, which have tables of their own."""
        return self._free, self.cells

    def __setstate__(self, state: tuple[Iterator[int], Cells]) -> None:
        self._free, cells = state
        self._keep(cells)

    def slot(
        self,
        port: int,
        *,
        is_in: bool,
        size: int = 1,
        kind: int = polled.ASK,
        wait: int = 0,
        hertz: int = 0,
        second: int = 0,
    ) -> Slot:
        """A new slot; `wait` is how many instructions' time an access takes.

        `hertz` is of the clock that it is about, `second` how many instructions a second has.
        """
        slot = Slot(self, next(self._free))
        slot[polled.ACCESS] = polled.access(port, size, is_in)
        slot[polled.KIND] = kind
        slot[polled.WAIT] = wait
        slot[polled.TICKS], slot[polled.SECOND] = hertz, second
        return slot

    def offer(self, block: int, data: bytes) -> None:
        """Put bytes, no more than there is room for, into a block."""
        start = 8 * (polled.BLOCKS + block * polled.BLOCK_CELLS)
        self.cells.view(np.uint8)[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def put(self, block: int, count: int) -> bytes:
        """The first `count` bytes of a block, which the processor has put there."""
        start = 8 * (polled.BLOCKS + block * polled.BLOCK_CELLS)
        return self.cells.view(np.uint8)[start : start + count].tobytes()

    def counted(self) -> tuple[int, int]:
        """How many accesses were answered since the last time, and how much time they took."""
        words = self.words
        found = words[polled.ANSWERED], words[polled.SKIPPED]
        words[polled.ANSWERED] = words[polled.SKIPPED] = 0
        return found

    def expect(self, expected: int) -> None:
        """Ask the VMM about these bytes, a bit each, before they are sent."""
        self.words[polled.EXPECTED : polled.EXPECTED + 4] = _bits(expected)

    def sent(self) -> bytes:
        """The bytes that were sent since the last time."""
        words = self.words
        count = words[polled.QUEUED]
        words[polled.QUEUED] = 0
        return bytes(words[polled.QUEUE : polled.QUEUE + count].tolist()) if count else b""
