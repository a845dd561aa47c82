"""What is started from the drives: a boot sector, or a CD's boot image (El Torito)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trapgate.vmm.bios.disk import BiosDrive, floppy
from trapgate.vmm.devices.storage import SECTOR, Part

_SIGNATURE = b"\x55\xaa"
_BLOCK = 2048
_BOOT_RECORD = 17
_MOST_SECTORS = 1024
_BOOTABLE = 0x88
_EMULATED_HARD_DISK = 4
_EMULATED_FLOPPIES = {1: 2400, 2: 2880, 3: 5760}
BOOT_ADDRESS = 0x7C00


@dataclass(frozen=True)
class BootImage:
    """Bytes, where they go, and the number of the drive that DL tells."""

    data: bytes
    address: int
    drive: int


def can_boot(drive: BiosDrive) -> bool:
    """Whether a hard disk's first sector is one to boot."""
    return drive.read(0, 1)[510:] == _SIGNATURE


def boot_image(drives: dict[int, BiosDrive]) -> BootImage | None:
    """What the first drive that can be booted has: floppies, then hard disks, then CDs."""
    for number, drive in sorted(drives.items()):
        found = _of_cd(number, drive) if drive.size == _BLOCK else _of_disk(number, drive)
        if found is not None:
            return found
    return None


def _of_disk(number: int, drive: BiosDrive) -> BootImage | None:
    sector = drive.read(0, 1)
    # Floppies are booted without a signature, too, if there is anything.
    if sector[510:] != _SIGNATURE and (number & 0x80 or not sector.strip(b"\0")):
        return None
    return BootImage(sector, BOOT_ADDRESS, number)


@dataclass(frozen=True)
class _Entry:
    """A CD's initial boot entry (El Torito, figure 3), its image in blocks from `first` on."""

    emulation: int
    segment: int
    sectors: int
    first: int


def _entry(drive: BiosDrive) -> _Entry | None:
    if drive.count <= _BOOT_RECORD:
        return None
    record = drive.read(_BOOT_RECORD, 1)
    if record[1:6] != b"CD001" or not record.startswith(b"\0") or b"EL TORITO" not in record[:48]:
        return None
    catalog = int.from_bytes(record[0x47:0x4B], "little")
    if catalog >= drive.count:
        return None
    entry = drive.read(catalog, 1)[32:64]
    if entry[0] != _BOOTABLE:
        return None
    return _Entry(
        entry[1] & 0xF,
        int.from_bytes(entry[2:4], "little") or BOOT_ADDRESS >> 4,
        min(int.from_bytes(entry[6:8], "little") or 1, _MOST_SECTORS),
        int.from_bytes(entry[8:12], "little"),
    )


def _of_cd(number: int, drive: BiosDrive) -> BootImage | None:
    entry = _entry(drive)
    if entry is None or entry.emulation:
        return None
    blocks = -(-entry.sectors * 512 // _BLOCK)
    if entry.first + blocks > drive.count:
        return None
    data = drive.read(entry.first, blocks)[: entry.sectors * 512]
    return BootImage(data, entry.segment << 4, number)


def emulated_floppy(disc: BiosDrive) -> BiosDrive | None:
    """The floppy that a CD asks to be shown as drive 0, if it does."""
    entry = _entry(disc)
    if entry is None or entry.emulation not in _EMULATED_FLOPPIES:
        return None
    count = _EMULATED_FLOPPIES[entry.emulation]
    first = entry.first * (_BLOCK // SECTOR)
    if first + count > disc.sectors.count:
        count = disc.sectors.count - first
    return replace(floppy(Part(disc.sectors, first, count)), read_only=True) if count > 0 else None


def emulated_hard_disk(disc: BiosDrive) -> BiosDrive | None:
    """The hard disk that a CD asks to be shown as drive 80H, if it does.

    It is as long as its one partition says (El Torito, "Hard Disk Emulation"), and has the heads
    and sectors with which that partition ends.
    """
    entry = _entry(disc)
    first = 0 if entry is None else entry.first * (_BLOCK // SECTOR)
    if entry is None or entry.emulation != _EMULATED_HARD_DISK or first >= disc.sectors.count:
        return None
    table = disc.sectors.read(first, 1)[446:510]
    partition = next((table[n : n + 16] for n in range(0, 64, 16) if table[n + 4]), bytes(16))
    start, length = (int.from_bytes(partition[at : at + 4], "little") for at in (8, 12))
    heads, track = partition[5] + 1, partition[6] & 0x3F
    count = min(start + length, disc.sectors.count - first)
    if not track or not length or count <= 0:
        return None
    cylinders = max(1, min(-(-count // (heads * track)), 1024))
    return BiosDrive(Part(disc.sectors, first, count), cylinders, heads, track, read_only=True)
