"""The PIIX3's bus masters: registers of an IDE channel's DMA, and its tables of memory ranges."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import unpack

from trapgate.vmm.devices.bus import UntimedDevice
from trapgate.vmm.devices.guest_memory import GuestMemory
from trapgate.vmm.devices.storage import SECTOR, Sectors

_LONGEST_TABLE = 1 << 13
"""Entries of a bus master's table before somebody must have gone wrong."""


class BusMaster(UntimedDevice):
    """The bus-master registers of one channel; `ports` are where its function's BAR has them."""

    wide = True

    def __init__(self, memory: GuestMemory) -> None:
        self.ports: range = range(0)
        self._memory = memory
        self._command = 0
        self._status = 0x60
        self._table = 0
        self._job: Callable[[], None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a transfer is under way."""
        return self._job is not None

    def begin(
        self, sectors: Sectors, first: int, count: int, done: Callable[[], None], *, to_disk: bool
    ) -> None:
        """A DMA command of a disk's; it runs as soon as the master is started, `done` after it."""
        way = self._from_memory if to_disk else self._to_memory
        self._start(partial(way, sectors, first, count, done))

    def _to_memory(
        self, sectors: Sectors, first: int, count: int, done: Callable[[], None]
    ) -> None:
        self._scatter(sectors.read(first, count))
        done()

    def _from_memory(
        self, sectors: Sectors, first: int, count: int, done: Callable[[], None]
    ) -> None:
        data = self._gather(count * SECTOR)
        sectors.write(first, data[: len(data) // SECTOR * SECTOR])
        done()

    def send(self, data: bytes, done: Callable[[], None]) -> None:
        """Data of a CD drive's, likewise."""
        self._start(partial(self._packet_data, data, done))

    def _packet_data(self, data: bytes, done: Callable[[], None]) -> None:
        self._scatter(data)
        done()

    def _start(self, job: Callable[[], None]) -> None:
        self._job = job
        if self._command & 1:
            self._run()

    def _run(self) -> None:
        job, self._job = self._job, None
        if job is not None:
            job()
            self._status = self._status & ~1 | 4

    def _regions(self) -> list[tuple[int, int]]:
        """Address and length of each region of the table."""
        found = []
        for n in range(_LONGEST_TABLE):
            address, size = unpack("<II", self._memory.read(self._table + 8 * n, 8))
            found.append((address & ~1, size & 0xFFFE or 0x10000))
            if size >> 31:
                break
        return found

    def _scatter(self, data: bytes) -> None:
        position = 0
        for address, size in self._regions():
            if position >= len(data):
                break
            self._memory.write(address, data[position : position + size])
            position += size

    def _gather(self, count: int) -> bytes:
        parts = []
        for address, size in self._regions():
            if count <= 0:
                break
            parts.append(self._memory.read(address, min(size, count)))
            count -= size
        return b"".join(parts)

    def read(self, port: int, size: int, now: int) -> int:
        """Command, status or table pointer."""
        n = port - self.ports.start
        image = self._command | self._status << 16 | self._table << 32
        return image >> 8 * n & (1 << 8 * size) - 1 if n < 8 else 0

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Start or stop, clear status bits, or set the table pointer."""
        n = port - self.ports.start
        if n == 0:
            starts = value & ~self._command & 1
            self._command = value & 9
            if starts:
                self._status |= 1
                self._run()
            elif not value & 1:
                self._status &= ~1
        elif n == 2:
            self._status = self._status & ~(value & 6) & ~0x60 | value & 0x60
        elif n == 4 and size == 4:
            self._table = value & ~3
