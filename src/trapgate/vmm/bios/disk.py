"""INT 13H: drives by cylinder, head and sector, and by packets (Phoenix, "Enhanced Disk Drive")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from struct import pack
from typing import Final

from trapgate.vmm.bios.call import CARRY, Call
from trapgate.vmm.devices.floppy import geometry
from trapgate.vmm.devices.storage import SECTOR, Sectors

_BAD_COMMAND, _NOT_FOUND, _WRITE_PROTECTED = 0x01, 0x04, 0x03
_LAST_STATUS: Final = 0x474
_MOST_SECTORS = 127
_HARD_DISK, _CD = 0x80, 0xE0


@dataclass(frozen=True)
class BiosDrive:
    """A drive as INT 13H knows it: its sectors, of `size` bytes, and its geometry."""

    sectors: Sectors
    cylinders: int
    heads: int
    track: int
    kind: int = 0
    size: int = SECTOR
    read_only: bool = False

    @property
    def count(self) -> int:
        """How many sectors of `size` it has."""
        return self.sectors.count * SECTOR // self.size

    def read(self, first: int, count: int) -> bytes:
        """`count` sectors of `size` from `first` on."""
        factor = self.size // SECTOR
        return self.sectors.read(first * factor, count * factor)


def hard_disk(sectors: Sectors) -> BiosDrive:
    """A hard disk with as many cylinders as make it whole, at most 1024."""
    heads = 16
    while heads < 255 and sectors.count > 1024 * heads * 63:
        heads = min(heads * 2, 255)
    cylinders = max(1, min(-(-sectors.count // (heads * 63)), 1024))
    return BiosDrive(sectors, cylinders, heads, 63)


def floppy(sectors: Sectors) -> BiosDrive:
    """A floppy disk in the drive that its size wants, else in one of 2.88 MB."""
    return BiosDrive(sectors, *geometry(sectors.count))


def cd(sectors: Sectors) -> BiosDrive:
    """A CD, by packets only."""
    return BiosDrive(sectors, 0, 0, 0, size=2048, read_only=True)


class Disks:
    """The services on drives by their numbers: 00H floppies, 80H hard disks, E0H CDs."""

    def __init__(self, drives: Mapping[int, BiosDrive], boot_cd: int | None = None) -> None:
        self._drives = drives
        self._boot_cd = boot_cd

    @property
    def hard_disks(self) -> int:
        """How many hard disks there are."""
        return sum(_HARD_DISK <= number < _CD for number in self._drives)

    def call(self, call: Call) -> None:
        """INT 13H."""
        function, number = call.high("ax"), call.low("dx")
        drive = self._drives.get(number)
        if function == 0x00:
            self._end(call, 0)
        elif function == 0x01:
            status = call.word(_LAST_STATUS, 1)
            call.put_high("ax", status)
            call.flag(CARRY, on=status != 0)
        elif function == 0x08:
            self._parameters(call, number, drive)
        elif function == 0x15:
            self._kind(call, number, drive)
        elif drive is None:
            self._end(call, _BAD_COMMAND)
        elif function in (0x02, 0x03, 0x04):
            self._by_geometry(call, drive, function)
        elif function in (0x42, 0x43, 0x44, 0x47):
            self._by_packet(call, drive, function)
        elif function == 0x41 and call.get("bx") & 0xFFFF == 0x55AA:
            call.put("bx", 0xAA55)
            call.put("cx", 0x0001)
            self._end(call, 0)
            call.put_high("ax", 0x21)
        elif function == 0x48:
            self._packet_parameters(call, drive)
        elif function in (0x0C, 0x0D, 0x10, 0x11, 0x16):
            self._end(call, 0)
        elif function == 0x4B and self._boot_cd is not None:
            at = call.segment("DS") + (call.get("si") & 0xFFFF)
            call.write(at, pack("<BBBBIHHHBBB", 0x13, 0, _CD, 0, 0, 0, 0, 0, 0, 0, 0))
            self._end(call, 0)
        else:
            self._end(call, _BAD_COMMAND)

    def _end(self, call: Call, status: int) -> None:
        call.put_word(_LAST_STATUS, status, 1)
        (call.fail if status else call.succeed)(status)

    def _by_geometry(self, call: Call, drive: BiosDrive, function: int) -> None:
        count = call.low("ax")
        cylinder = call.high("cx") | (call.low("cx") & 0xC0) << 2
        sector, head = call.low("cx") & 0x3F, call.high("dx")
        in_range = 1 <= sector <= drive.track and head < drive.heads
        first = (cylinder * drive.heads + head) * drive.track + sector - 1
        if not in_range or not count > 0 or first + count > drive.count:
            call.put_low("ax", 0)
            self._end(call, _NOT_FOUND)
            return
        at = call.segment("ES") + (call.get("bx") & 0xFFFF)
        self._move(call, drive, function & 1, function == 0x04, first, count, at)

    def _by_packet(self, call: Call, drive: BiosDrive, function: int) -> None:
        packet = call.segment("DS") + (call.get("si") & 0xFFFF)
        count = call.word(packet + 2)
        offset, segment = call.word(packet + 4), call.word(packet + 6)
        first = call.word(packet + 8, 8)
        at = (segment << 4) + offset
        if offset == segment == 0xFFFF and call.word(packet, 1) >= 0x18:
            at = call.word(packet + 16, 8)
        if first + count > drive.count or count > _MOST_SECTORS:
            call.put_word(packet + 2, 0)
            self._end(call, _NOT_FOUND)
            return
        quiet = function in (0x44, 0x47)
        self._move(call, drive, function & 1, quiet, first, count, at)

    def _move(
        self,
        call: Call,
        drive: BiosDrive,
        writes: int,
        quiet: bool,
        first: int,
        count: int,
        at: int,
    ) -> None:
        if quiet:
            self._end(call, 0)
        elif not writes:
            call.write(at, drive.read(first, count))
            self._end(call, 0)
        elif drive.read_only:
            self._end(call, _WRITE_PROTECTED)
        else:
            drive.sectors.write(first, call.read(at, count * SECTOR))
            self._end(call, 0)

    def _parameters(self, call: Call, number: int, drive: BiosDrive | None) -> None:
        if drive is None or not drive.track:
            self._end(call, _BAD_COMMAND if number & 0x80 else 0)
            call.put("cx", 0)
            call.put("dx", 0)
            return
        last = drive.cylinders - 1
        call.put_low("bx", drive.kind)
        call.put("cx", (last & 0xFF) << 8 | last >> 2 & 0xC0 | drive.track)
        floppies = sum(other < _HARD_DISK for other in self._drives)
        same = floppies if number < _HARD_DISK else self.hard_disks
        call.put("dx", (drive.heads - 1) << 8 | same)
        if not number & 0x80:
            call.put_segment("ES", 0xF000)
            call.put("di", 0x1F00)
        self._end(call, 0)

    def _kind(self, call: Call, number: int, drive: BiosDrive | None) -> None:
        self._end(call, 0)
        if drive is None:
            call.put_high("ax", 0)
        elif number & 0x80:
            call.put_high("ax", 3)
            call.put("cx", drive.count >> 16)
            call.put("dx", drive.count & 0xFFFF)
        else:
            call.put_high("ax", 1)

    def _packet_parameters(self, call: Call, drive: BiosDrive) -> None:
        at = call.segment("DS") + (call.get("si") & 0xFFFF)
        room = call.word(at)
        if room < 26:
            self._end(call, _BAD_COMMAND)
            return
        table = pack(
            "<HHIIIQH",
            26,
            0x74 if drive.read_only else 0x02,
            drive.cylinders,
            drive.heads,
            drive.track,
            drive.count,
            drive.size,
        )
        call.write(at, table)
        self._end(call, 0)
