"""ATA channels with disks and CD drives, by PIO and by the PIIX3's bus-master DMA.

Commands are carried out at once, so BSY never shows. (AT Attachment with Packet Interface,
ATA/ATAPI-4; Intel 82371SB data sheet, "IDE Controller Register Descriptions".)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import pack, unpack
from typing import Final

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.atapi import CdDrive
from trapgate.vmm.devices.bus import Line, UntimedDevice
from trapgate.vmm.devices.bus_master import BusMaster
from trapgate.vmm.devices.polled import PolledPorts
from trapgate.vmm.devices.storage import SECTOR, Sectors

_READY, _SEEK_COMPLETE, _DATA_REQUEST, _ERROR = 0x40, 0x10, 0x08, 0x01
_IDLE = _READY | _SEEK_COMPLETE
_ABORTED, _NOT_FOUND = 0x04, 0x10
_COMMAND_PHASE, _TO_HOST = 1, 2
"""Interrupt reason of a packet device: a command is awaited; data goes to the host."""

READ, WRITE = False, True
_PIO: Final = {
    # command: (direction, 48-bit address, several sectors at an interrupt)
    0x20: (READ, False, False),
    0x21: (READ, False, False),
    0x24: (READ, True, False),
    0xC4: (READ, False, True),
    0x29: (READ, True, True),
    0x30: (WRITE, False, False),
    0x31: (WRITE, False, False),
    0x34: (WRITE, True, False),
    0xC5: (WRITE, False, True),
    0x39: (WRITE, True, True),
}
_DMA: Final = {
    0xC8: (READ, False),
    0xC9: (READ, False),
    0x25: (READ, True),
    0xCA: (WRITE, False),
    0xCB: (WRITE, False),
    0x35: (WRITE, True),
}
_WITHOUT_EFFECT: Final = frozenset(
    # RECALIBRATE, READ VERIFY, INITIALIZE DEVICE PARAMETERS, power management, FLUSH, SET FEATURES
    (0x10, 0x40, 0x41, 0x42, 0x91, 0xE0, 0xE1, 0xE2, 0xE3, 0xE6, 0xE7, 0xEA, 0xEF)
)
_MOST_AT_AN_INTERRUPT = 16
_OFFERED = 8 * polled.BLOCK_CELLS // SECTOR


class HardDisk:
    """A disk of whole sectors, and what it says of itself."""

    def __init__(self, sectors: Sectors) -> None:
        self.sectors = sectors
        self.heads, self.track = 16, 63
        self.cylinders = max(1, min(sectors.count // (16 * 63), 16383))
        self.multiple = 1

    def identify(self) -> bytes:
        """IDENTIFY DEVICE: 512 bytes."""
        words = [0] * 256
        words[0] = 0x0040
        words[1], words[3], words[6] = self.cylinders, self.heads, self.track
        words[10:20] = _text("TG0001", 10)
        words[23:27] = _text("1.0", 4)
        words[27:47] = _text("Trapgate disk", 20)
        words[47] = 0x8000 | _MOST_AT_AN_INTERRUPT
        words[49] = 0x0300  # LBA and DMA
        words[51] = 0x0200
        words[53] = 7
        words[54:57] = self.cylinders, self.heads, self.track
        reachable = min(self.cylinders * self.heads * self.track, self.sectors.count)
        words[57], words[58] = reachable & 0xFFFF, reachable >> 16
        words[59] = 0x0100 | self.multiple
        short = min(self.sectors.count, (1 << 28) - 1)
        words[60], words[61] = short & 0xFFFF, short >> 16
        words[63] = 0x0407
        words[64] = 3
        words[65:69] = [120] * 4
        words[80], words[81] = 0x00F0, 0x0016
        words[82:85] = 0x4000, 0x7400, 0x4000  # FLUSH CACHE, 48-bit addresses
        words[85:88] = 0x4000, 0x3400, 0x4000
        for n in range(4):
            words[100 + n] = self.sectors.count >> 16 * n & 0xFFFF
        return pack("<256H", *words)


def _text(text: str, words: int) -> tuple[int, ...]:
    return unpack(f">{words}H", text.ljust(2 * words).encode("ascii"))


Drive = HardDisk | CdDrive


class AtaChannel(UntimedDevice):
    """A channel with a first and a second drive: ports `base` to `base + 7`, and `control`."""

    wide = True

    def __init__(
        self,
        base: int,
        control: int,
        line: Line,
        drives: tuple[Drive | None, Drive | None],
        ports: PolledPorts | None = None,
    ) -> None:
        self.ports = (*range(base, base + 8), control)
        ports = PolledPorts() if ports is None else ports
        self._ports = ports
        self._block = base >> 7 & 1  # 1F0H or 170H
        self._data_slots = [
            ports.slot(base, is_in=True, size=size, kind=polled.BLOCK) for size in (2, 4)
        ]
        for slot in self._data_slots:
            slot[polled.PARTNER] = self._data_slots[0].number
            slot[polled.VALUE] = self._block
        self._taking_slots = [
            ports.slot(base, is_in=False, size=size, kind=polled.TAKE) for size in (2, 4)
        ]
        for slot in self._taking_slots:
            slot[polled.PARTNER] = self._taking_slots[0].number
            slot[polled.VALUE] = self._block
        self._status_slot = ports.slot(base + 7, is_in=True)
        self._alternate_slot = ports.slot(control, is_in=True, kind=polled.LATCH)
        self.master: BusMaster | None = None
        self._base = base
        self._line = line
        self._drives = drives
        self._control = 0
        self._reset()

    def _reset(self) -> None:
        self._registers = [0, 1, 1, 1, 0, 0, 0, 0]
        self._previous = [0] * 8
        self._status = _IDLE
        self._error = 1
        self._buffer = b""
        self._wanted = 0
        """Bytes that the host has still to write; 0 while it reads."""
        self._offer()
        self._next: Callable[[], None] | None = None
        self._taken: Callable[[bytes], None] | None = None
        self._sign()
        self._interrupt(level=False)

    def _interrupt(self, *, level: bool) -> None:
        asks = level and not self._control & 2
        self._line.set(asks)
        # Reading the status takes the interrupt back.
        self._status_slot[polled.KIND] = polled.ASK if asks else polled.LATCH
        self._update_slots()

    def _update_slots(self) -> None:
        """Say what the next look at the status will find."""
        status = 0 if self._drive is None else self._status
        self._status_slot[polled.VALUE] = self._alternate_slot[polled.VALUE] = status

    @property
    def _drive(self) -> Drive | None:
        return self._drives[self._registers[6] >> 4 & 1]

    def _sign(self) -> None:
        """The signature of the selected drive, by which software knows its kind."""
        drive = self._drive
        high = (0x14, 0xEB) if isinstance(drive, CdDrive) else (0, 0)
        self._registers[2:6] = [1, 1, *high]

    # The data register.

    @property
    def _offset(self) -> int:
        """How many bytes of the buffer the host has read."""
        return self._data_slots[0][polled.START]

    @_offset.setter
    def _offset(self, offset: int) -> None:
        self._data_slots[0][polled.START] = offset

    def _offer(self) -> None:
        """Allow the processor to read the buffer, except its end, which has an effect."""
        data = self._buffer[: 8 * polled.BLOCK_CELLS]
        self._ports.offer(self._block, data)
        self._data_slots[0][polled.UNTIL] = len(data) - 4
        self._offset = 0
        self._accept()

    def _accept(self) -> None:
        """Allow the processor to take what the host writes, except its end."""
        room = min(self._wanted - len(self._buffer), 8 * polled.BLOCK_CELLS)
        self._taking_slots[0][polled.UNTIL] = room - 4
        self._taking_slots[0][polled.START] = 0

    @property
    def is_busy(self) -> bool:
        """Whether a transfer is under way."""
        return self._next is not None or self._taken is not None

    def read_block(self, count: int) -> bytes:
        """Up to `count` bytes from the data register at once, for a repeated INS."""
        if self._wanted or not self._status & _DATA_REQUEST:
            return b""
        data = self._buffer[self._offset : self._offset + count]
        self._offset += len(data)
        if self._offset >= len(self._buffer):
            self._finished()
        return data

    def write_block(self, data: bytes, size: int) -> int:
        """Take elements of `size` bytes, of a repeated OUTS, till no more are wanted; how many."""
        if not self._wanted or not self._status & _DATA_REQUEST:
            return 0
        wanted = self._wanted - len(self._buffer) - self._taking_slots[0][polled.START]
        data = data[: -(-wanted // size) * size]
        self._store(data)
        return len(data)

    def _store(self, data: bytes) -> None:
        if not self._wanted or not self._status & _DATA_REQUEST:
            return
        self._buffer += self._ports.put(self._block, self._taking_slots[0][polled.START]) + data
        self._accept()
        if len(self._buffer) >= self._wanted:
            whole, self._buffer = self._buffer[: self._wanted], b""
            self._wanted = 0
            taken, self._taken = self._taken, None
            if taken is not None:
                taken(whole)

    def _finished(self) -> None:
        self._status &= ~_DATA_REQUEST
        self._update_slots()
        following, self._next = self._next, None
        if following is not None:
            following()

    def _send(self, data: bytes, following: Callable[[], None] | None = None) -> None:
        """Make `data` ready for the host to read; then call `following`."""
        self._buffer, self._wanted = data, 0
        self._offer()
        self._next = following
        self._error = 0
        self._status = _IDLE | _DATA_REQUEST
        self._interrupt(level=True)

    def _receive(self, count: int, taken: Callable[[bytes], None], *, first: bool) -> None:
        """Accept `count` bytes from the host, which `taken` gets."""
        self._buffer, self._wanted = b"", count
        self._offer()
        self._taken = taken
        self._error = 0
        self._status = _IDLE | _DATA_REQUEST
        if not first:
            self._interrupt(level=True)

    def done(self) -> None:
        """A command has come to its end."""
        self._status = _IDLE
        self._error = 0
        self._interrupt(level=True)

    def _fail(self, error: int) -> None:
        self._status = _IDLE | _ERROR
        self._error = error
        self._interrupt(level=True)

    # Registers.

    def read(self, port: int, size: int, now: int) -> int:
        """Data, or a register; a channel without the drive reads 0, so that nobody waits."""
        n = port - self._base
        if n == 0:
            return int.from_bytes(self.read_block(size), "little")
        if size != 1:
            return (1 << 8 * size) - 1
        if self._drive is None:
            return 0
        if not 0 <= n < 7:
            if n == 7:
                self._interrupt(level=False)
            return self._status
        if n == 1:
            return self._error
        return (self._previous if self._control & 0x80 else self._registers)[n]

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Data, a register, a command, or the control register."""
        self._write(port - self._base, size, value)
        self._update_slots()

    def _write(self, n: int, size: int, value: int) -> None:
        if n == 0:
            self._store(value.to_bytes(size, "little"))
        elif size != 1:
            return
        elif n == 7:
            self._command(value)
        elif 0 < n < 7:
            self._previous[n] = self._registers[n]
            self._registers[n] = value
        else:
            was = self._control
            self._control = value
            if was & 4 and not value & 4:
                self._reset()

    def _command(self, code: int) -> None:
        self._interrupt(level=False)
        self._next = self._taken = None
        self._buffer, self._wanted = b"", 0
        self._offer()
        drive = self._drive
        if code == 0x90:  # EXECUTE DEVICE DIAGNOSTIC
            self._registers[6] &= ~0x10
            self._sign()
            self.done()
            self._error = 1
        elif isinstance(drive, HardDisk):
            self._disk_command(drive, code)
        elif drive is not None:
            self._cd_command(drive, code)

    def _disk_command(self, disk: HardDisk, code: int) -> None:
        if code == 0xEC:
            self._send(disk.identify())
        elif code in _PIO:
            direction, extended, several = _PIO[code]
            first, count = self._where(disk, extended=extended)
            if first < 0 or first + count > disk.sectors.count:
                self._fail(_NOT_FOUND)
                return
            chunk = disk.multiple if several else 1
            if direction is WRITE:
                self._write_sectors(disk, first, count, chunk, first_time=True)
            else:
                self._read_sectors(disk, first, count, chunk)
        elif code in _DMA:
            direction, extended = _DMA[code]
            first, count = self._where(disk, extended=extended)
            if self.master is None or first < 0 or first + count > disk.sectors.count:
                self._fail(_NOT_FOUND)
                return
            self._status = _IDLE | _DATA_REQUEST
            self.master.begin(disk.sectors, first, count, self.done, to_disk=direction)
        elif code == 0xC6:  # SET MULTIPLE MODE
            count = self._registers[2]
            if count > _MOST_AT_AN_INTERRUPT or count & count - 1:
                self._fail(_ABORTED)
                return
            disk.multiple = max(count, 1)
            self.done()
        elif code in (0xF8, 0x27):  # READ NATIVE MAX ADDRESS
            last = disk.sectors.count - 1
            self._registers[3:6] = [last & 255, last >> 8 & 255, last >> 16 & 255]
            self.done()
        elif code == 0xE5:  # CHECK POWER MODE
            self._registers[2] = 0xFF
            self.done()
        elif code in _WITHOUT_EFFECT:
            self.done()
        else:
            self._fail(_ABORTED)

    def _where(self, disk: HardDisk, *, extended: bool) -> tuple[int, int]:
        """The first sector (negative if it is none) and how many, as the registers say."""
        r, p = self._registers, self._previous
        if extended:
            low = r[3] | r[4] << 8 | r[5] << 16
            high = p[3] | p[4] << 8 | p[5] << 16
            return low | high << 24, (r[2] | p[2] << 8) or 65536
        count = r[2] or 256
        if r[6] & 0x40:
            return r[3] | r[4] << 8 | r[5] << 16 | (r[6] & 15) << 24, count
        cylinder, head = r[4] | r[5] << 8, r[6] & 15
        if not 1 <= r[3] <= disk.track or head >= disk.heads:
            return -1, count
        return (cylinder * disk.heads + head) * disk.track + r[3] - 1, count

    def _read_sectors(self, disk: HardDisk, first: int, count: int, chunk: int) -> None:
        # Without interrupts nobody sees where one sector ends and the next begins.
        n = min(count, _OFFERED if self._control & 2 else chunk)
        rest = partial(self._read_sectors, disk, first + n, count - n, chunk)
        self._send(disk.sectors.read(first, n), rest if count > n else None)

    def _write_sectors(
        self, disk: HardDisk, first: int, count: int, chunk: int, *, first_time: bool
    ) -> None:
        n = min(count, chunk)
        taken = partial(self._written, disk, first, count - n, chunk)
        self._receive(n * SECTOR, taken, first=first_time)

    def _written(self, disk: HardDisk, first: int, left: int, chunk: int, data: bytes) -> None:
        disk.sectors.write(first, data)
        if left:
            first += len(data) // SECTOR
            self._write_sectors(disk, first, left, chunk, first_time=False)
        else:
            self.done()

    def _cd_command(self, drive: CdDrive, code: int) -> None:
        if code == 0xA0:  # PACKET
            self._registers[2] = _COMMAND_PHASE
            self._receive(12, partial(self._packet, drive), first=True)
        elif code == 0xA1:
            self._send(drive.identify())
        elif code == 0x08:  # DEVICE RESET
            self._status = 0
            self._sign()
            self._error = 1
        elif code in (0xEC, 0x20):
            self._sign()
            self._fail(_ABORTED)
        elif code in (0xE0, 0xE1, 0xE5, 0xE7, 0xEF):
            self.done()
        else:
            self._fail(_ABORTED)

    def _packet(self, drive: CdDrive, packet: bytes) -> None:
        limit = self._registers[4] | self._registers[5] << 8
        limit = (limit or 0xFFFE) & ~1 or 2
        wants_dma = self._registers[1] & 1
        answer = drive.execute(packet)
        if answer is None:
            self._registers[2] = _COMMAND_PHASE | _TO_HOST
            self._status = _IDLE | _ERROR
            self._error = drive.sense_key << 4 | _ABORTED
            self._interrupt(level=True)
        elif not answer:
            self._packet_done()
        elif wants_dma and self.master is not None:
            self._status = _IDLE | _DATA_REQUEST
            self.master.send(answer, self._packet_done)
        else:
            self._send_packet(answer, limit)

    def _send_packet(self, answer: bytes, limit: int) -> None:
        part, rest = answer[:limit], answer[limit:]
        self._registers[2] = _TO_HOST
        self._registers[4], self._registers[5] = len(part) & 0xFF, len(part) >> 8
        self._send(part, partial(self._send_packet, rest, limit) if rest else self._packet_done)

    def _packet_done(self) -> None:
        self._registers[2] = _COMMAND_PHASE | _TO_HOST
        self.done()
