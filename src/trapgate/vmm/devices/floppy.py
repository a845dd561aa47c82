"""A floppy disk controller (Intel 82077AA data sheet), at 3F0H, with DMA channel 2 and IRQ 6.

Commands are carried out at once. Sectors are of 512 bytes, as images have them; gaps, data rates
and head settling mean nothing, and formatting fills sectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.bus import Line, UntimedDevice
from trapgate.vmm.devices.dma import DmaControllers
from trapgate.vmm.devices.polled import PolledPorts
from trapgate.vmm.devices.storage import SECTOR, Sectors

FORMATS: Final = {
    # sectors: (cylinders, heads, sectors a track, type as CMOS memory has it)
    320: (40, 1, 8, 1),
    360: (40, 1, 9, 1),
    640: (40, 2, 8, 1),
    720: (40, 2, 9, 1),
    1440: (80, 2, 9, 3),
    2400: (80, 2, 15, 2),
    2880: (80, 2, 18, 4),
    5760: (80, 2, 36, 5),
}
_CHANNEL = 2
_OUTPUT, _TAPE, _MAIN_STATUS, _FIFO, _INPUT = 0x3F2, 0x3F3, 0x3F4, 0x3F5, 0x3F7
_READY, _TO_HOST, _WITHOUT_DMA, _BUSY = 0x80, 0x40, 0x20, 0x10
_NOT_RESET, _GATE = 0x04, 0x08
"""In the digital output register."""
_ABNORMAL, _INVALID, _CHANGED = 0x40, 0x80, 0xC0
_SEEK_END, _NO_TRACK_0 = 0x20, 0x10
"""In ST0."""
_NO_ADDRESS_MARK, _NOT_WRITABLE, _NO_DATA, _END_OF_CYLINDER = 0x01, 0x02, 0x04, 0x80
"""In ST1."""
_MULTI_TRACK = 0x80
_IMPLIED_SEEK = 0x40
"""In the second byte of CONFIGURE."""
_VERSION = 0x90
_SECTOR_CODE = 2
"""128 << 2 bytes."""
_LONGEST = 1 << 17


def geometry(count: int) -> tuple[int, int, int, int]:
    """Cylinders, heads, sectors a track and type of a disk of `count` sectors.

    In the drive that its size wants, else in one of 2.88 MB.
    """
    return next((shape for most, shape in FORMATS.items() if count <= most), FORMATS[5760])


@dataclass
class _Drive:
    sectors: Sectors
    cylinder: int = 0
    is_changed: bool = True
    """Until the head has moved."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return geometry(self.sectors.count)

    def place(self, cylinder: int, head: int, sector: int) -> int | None:
        """The number of a sector; None if there is none."""
        cylinders, heads, track, _ = self.shape
        if cylinder >= cylinders or head >= heads or not 1 <= sector <= track:
            return None
        number = (cylinder * heads + head) * track + sector - 1
        return number if number < self.sectors.count else None


@dataclass
class _Transfer:
    """A READ or WRITE on its way: where the next sector is, and the last one of a track."""

    drive: _Drive
    unit: int
    cylinder: int
    head: int
    sector: int
    last: int
    is_multi_track: bool
    fill: int | None = None
    data: bytearray = field(default_factory=bytearray)

    def step(self) -> bool:
        """Go to the next sector; False if it is beyond the command's end."""
        if self.sector != self.last:
            self.sector = self.sector + 1 & 0xFF
            return True
        self.sector = 1
        if self.is_multi_track and self.head == 0:
            self.head = 1
            return True
        self.cylinder += 1
        self.head = 0 if self.is_multi_track else self.head
        return False


class FloppyController(UntimedDevice):
    """The controller of one or two drives; `line` is IRQ 6."""

    ports = (*range(0x3F0, 0x3F6), 0x3F7)

    def __init__(
        self,
        disks: Sequence[Sectors],
        line: Line,
        dma: DmaControllers,
        ports: PolledPorts | None = None,
    ) -> None:
        ports = PolledPorts() if ports is None else ports
        self._status_slot = ports.slot(_MAIN_STATUS, is_in=True, kind=polled.LATCH)
        self._drives = [_Drive(disk) for disk in disks]
        self._line, self._dma = line, dma
        self._output = _NOT_RESET | _GATE
        self._tape = 0
        self._without_dma = False
        self._lock = False
        self._configuration = bytes((0, 0, 0))
        self._perpendicular = 0
        self._specified = bytes((0, 0))
        self._command = bytearray()
        self._answer = bytearray()
        self._states: list[int] = []
        """What SENSE INTERRUPT STATUS has to tell: a ST0 each."""
        self._reading: _Transfer | None = None
        self._writing: _Transfer | None = None
        self._wanted: dict[int, tuple[int, Callable[[], None]]] = {
            # Command: bytes with it, and what it does.
            0x02: (9, self._read),
            0x03: (3, self._specify),
            0x04: (2, self._sense_drive),
            0x05: (9, self._write),
            0x06: (9, self._read),
            0x07: (2, self._recalibrate),
            0x08: (1, self._sense_interrupt),
            0x09: (9, self._write),
            0x0A: (2, self._read_id),
            0x0C: (9, self._read),
            0x0D: (6, self._format),
            0x0E: (1, self._dump),
            0x0F: (3, self._seek),
            0x10: (1, self._version),
            0x12: (2, self._set_perpendicular),
            0x13: (4, self._configure),
            0x14: (1, self._set_lock),
            0x16: (9, self._verify),
        }
        self._update_slots()

    def _update_slots(self) -> None:
        """Say what the next look at the main status will find."""
        self._status_slot[polled.VALUE] = self._main_status()

    # Ports.

    def read(self, port: int, size: int, now: int) -> int:
        """Status, the FIFO, or what was written."""
        if port == _OUTPUT:
            return self._output
        if port == _TAPE:
            return self._tape
        if port == _MAIN_STATUS:
            return self._main_status()
        if port == _FIFO:
            value = self._take()
            self._update_slots()
            return value
        if port == _INPUT:
            drive = self._drive(self._output & 3)
            return 0x80 if drive is None or drive.is_changed else 0
        return 0

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Output register, FIFO, resets; data rates mean nothing."""
        if port == _OUTPUT:
            before, self._output = self._output, value
            if not value & _NOT_RESET:
                self._forget()
            elif not before & _NOT_RESET:
                self._come_up()
        elif port == _TAPE:
            self._tape = value & 3
        elif port == _MAIN_STATUS and value & 0x80:
            self._forget()
            self._come_up()
        elif port == _FIFO and self._output & _NOT_RESET:
            self._put(value)
        self._update_slots()

    def _main_status(self) -> int:
        if not self._output & _NOT_RESET:
            return 0
        if self._reading is not None:
            return _READY | _TO_HOST | _WITHOUT_DMA | _BUSY
        if self._writing is not None:
            return _READY | _WITHOUT_DMA | _BUSY
        if self._answer:
            return _READY | _TO_HOST | _BUSY
        return _READY | (_BUSY if self._command else 0)

    def _forget(self) -> None:
        self._command.clear()
        self._answer.clear()
        self._states.clear()
        self._reading = self._writing = None
        self._line.set(False)

    def _come_up(self) -> None:
        if not self._lock:
            self._configuration = bytes((0, 0, 0))
        self._states += [_CHANGED | unit for unit in range(4)]
        self._interrupt()

    def _interrupt(self) -> None:
        if self._output & _GATE:
            # An edge, also where nobody has taken notice of the last one.
            self._line.set(False)
            self._line.set(True)

    # The FIFO: a command's bytes, data without DMA, the answer.

    def _take(self) -> int:
        transfer = self._reading
        if transfer is not None:
            value = transfer.data.pop(0)
            if not transfer.data:
                self._next_read(transfer)
            return value
        self._line.set(False)
        return self._answer.pop(0) if self._answer else 0

    def _put(self, value: int) -> None:
        transfer = self._writing
        if transfer is not None:
            transfer.data.append(value)
            if len(transfer.data) == SECTOR:
                self._next_write(transfer)
            return
        if self._answer or self._reading is not None:
            return
        self._command.append(value)
        known = self._wanted.get(self._command[0] & 0x1F)
        if known is None:
            self._finish(bytes((_INVALID,)))
        elif len(self._command) == known[0]:
            known[1]()

    def _finish(self, answer: bytes, *, tells: bool = False) -> None:
        """The command is over; `tells` says that it ends with an interrupt."""
        self._command.clear()
        self._reading = self._writing = None
        self._answer[:] = answer
        if tells:
            self._interrupt()

    def _drive(self, unit: int) -> _Drive | None:
        return self._drives[unit] if unit < len(self._drives) else None

    # Commands without data.

    def _specify(self) -> None:
        self._specified = bytes(self._command[1:3])
        self._without_dma = bool(self._command[2] & 1)
        self._finish(b"")

    def _sense_drive(self) -> None:
        unit = self._command[1] & 7
        drive = self._drive(unit & 3)
        status = unit | 0x08
        if drive is not None:
            status |= 0x20 | (0x10 if drive.cylinder == 0 else 0)
        self._finish(bytes((status,)))

    def _move(self, unit: int, cylinder: int) -> None:
        drive = self._drive(unit & 3)
        state = _SEEK_END | unit
        if drive is None:
            state |= _ABNORMAL | _NO_TRACK_0
        else:
            drive.cylinder, drive.is_changed = cylinder, False
        self._states = [state]
        self._finish(b"", tells=True)

    def _recalibrate(self) -> None:
        self._move(self._command[1] & 3, 0)

    def _seek(self) -> None:
        self._move(self._command[1] & 7, self._command[2])

    def _sense_interrupt(self) -> None:
        if not self._states:
            self._finish(bytes((_INVALID,)))
            return
        state = self._states.pop(0)
        drive = self._drive(state & 3)
        self._line.set(False)
        self._finish(bytes((state, drive.cylinder if drive is not None else 0)))

    def _version(self) -> None:
        self._finish(bytes((_VERSION,)))

    def _configure(self) -> None:
        self._configuration = bytes(self._command[1:4])
        self._finish(b"")

    def _set_perpendicular(self) -> None:
        self._perpendicular = self._command[1]
        self._finish(b"")

    def _set_lock(self) -> None:
        self._lock = bool(self._command[0] & 0x80)
        self._finish(bytes((self._lock << 4,)))

    def _dump(self) -> None:
        cylinders = [drive.cylinder for drive in self._drives]
        cylinders += [0] * (4 - len(cylinders))
        lock = self._lock << 7 | self._perpendicular & 0x7F
        last = FORMATS[2880][2]
        self._finish(bytes((*cylinders, *self._specified, last, lock, *self._configuration[1:3])))

    # Commands with data.

    def _begin(self) -> _Transfer | None:
        """The transfer that the command asks for; None, and an answer, if there can be none."""
        _, unit, cylinder, head, sector, size, last, *_ = self._command
        drive = self._drive(unit & 3)
        place = None
        if drive is not None and self._configuration[1] & _IMPLIED_SEEK:
            drive.cylinder, drive.is_changed = cylinder, False
        if drive is not None and size == _SECTOR_CODE and drive.cylinder == cylinder:
            place = drive.place(cylinder, head, sector)
        if drive is None or place is None or head != unit >> 2 & 1:
            wrong = _NO_ADDRESS_MARK if drive is None else _NO_DATA
            self._finish(
                bytes((_ABNORMAL | unit & 7, wrong, 0, cylinder, head, sector, size)), tells=True
            )
            return None
        multi = bool(self._command[0] & _MULTI_TRACK)
        return _Transfer(drive, unit & 3, cylinder, head, sector, last, multi)

    def _end(self, transfer: _Transfer, first: int = 0) -> None:
        """The answer to a transfer; `first` is what went wrong, of ST1."""
        state = transfer.head << 2 | transfer.unit | (_ABNORMAL if first else 0)
        place = transfer.cylinder & 0xFF, transfer.head, transfer.sector
        self._finish(bytes((state, first, 0, *place, _SECTOR_CODE)), tells=True)

    def _read(self) -> None:
        transfer = self._begin()
        if transfer is None:
            return
        if self._without_dma:
            transfer.data += self._sector(transfer) or b""
            self._reading = transfer
            self._interrupt()
            return
        for _ in range(_LONGEST // SECTOR):
            data = self._sector(transfer)
            if data is None:
                self._end(transfer, _NO_DATA)
                return
            count, is_all = self._dma.to_memory(_CHANNEL, data)
            if count < SECTOR and not is_all:
                break
            more = transfer.step()
            if is_all:
                self._end(transfer)
                return
            if not more:
                break
        self._end(transfer, _END_OF_CYLINDER)

    def _sector(self, transfer: _Transfer) -> bytes | None:
        place = transfer.drive.place(transfer.cylinder, transfer.head, transfer.sector)
        return None if place is None else transfer.drive.sectors.read(place, 1)

    def _next_read(self, transfer: _Transfer) -> None:
        """A sector was taken from the FIFO."""
        if not transfer.step():
            self._end(transfer, _END_OF_CYLINDER)
            return
        data = self._sector(transfer)
        if data is None:
            self._end(transfer, _NO_DATA)
            return
        transfer.data += data
        self._interrupt()

    def _write(self) -> None:
        transfer = self._begin()
        if transfer is None:
            return
        if self._without_dma:
            self._writing = transfer
            self._interrupt()
            return
        for _ in range(_LONGEST // SECTOR):
            data, is_all = self._dma.from_memory(_CHANNEL, SECTOR)
            if not data:
                break
            if not self._store(transfer, data):
                self._end(transfer, _NO_DATA)
                return
            more = transfer.step()
            if is_all:
                self._end(transfer)
                return
            if not more:
                break
        self._end(transfer, _END_OF_CYLINDER)

    def _store(self, transfer: _Transfer, data: bytes) -> bool:
        place = transfer.drive.place(transfer.cylinder, transfer.head, transfer.sector)
        if place is not None:
            transfer.drive.sectors.write(place, data.ljust(SECTOR, b"\0"))
        return place is not None

    def _next_write(self, transfer: _Transfer) -> None:
        """A sector was put into the FIFO."""
        stored = self._store(transfer, bytes(transfer.data))
        transfer.data.clear()
        if not stored:
            self._end(transfer, _NO_DATA)
        elif transfer.step():
            self._interrupt()
        else:
            self._end(transfer, _END_OF_CYLINDER)

    def _verify(self) -> None:
        transfer = self._begin()
        if transfer is None:
            return
        while self._sector(transfer) is not None:
            if not transfer.step():
                self._end(transfer)
                return
        self._end(transfer, _NO_DATA)

    def _read_id(self) -> None:
        unit = self._command[1] & 7
        drive = self._drive(unit & 3)
        head = unit >> 2
        cylinder = drive.cylinder if drive is not None else 0
        there = drive is not None and drive.place(cylinder, head, 1) is not None
        state, first = (unit, 0) if there else (_ABNORMAL | unit, _NO_ADDRESS_MARK)
        self._finish(bytes((state, first, 0, cylinder, head, 1, _SECTOR_CODE)), tells=True)

    def _format(self) -> None:
        """Fill a track; the identifications of its sectors are taken, and must be as they are."""
        _, unit, size, count, _, fill = self._command
        drive = self._drive(unit & 3)
        head, state, first = unit >> 2 & 1, unit & 7, 0
        if drive is None or size != _SECTOR_CODE:
            state, first = state | _ABNORMAL, _NO_ADDRESS_MARK
        else:
            names, _ = self._dma.from_memory(_CHANNEL, 4 * count)
            for cylinder, side, sector, code in zip(*[iter(names)] * 4, strict=False):
                place = drive.place(cylinder, side, sector)
                if place is None or code != _SECTOR_CODE or side != head:
                    state, first = state | _ABNORMAL, _NO_DATA
                    break
                drive.sectors.write(place, bytes((fill,)) * SECTOR)
        self._finish(bytes((state, first, 0, 0, head, 1, _SECTOR_CODE)), tells=True)
