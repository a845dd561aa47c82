"""Disk images, ATA and ATAPI drives and their bus masters, driven as software drives them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest

from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.pc import Pc
from trapgate.vmm.devices.storage import DiskImageError, Memory, open_image

COMMAND, STATUS, DEVICE = 0x1F7, 0x1F7, 0x1F6
IDE = 1 << 31 | 1 << 11 | 1 << 8
"""The address of function 00:01.1's configuration space."""


class Ram:
    """Guest memory for bus masters."""

    def __init__(self) -> None:
        self.data = bytearray(1 << 20)

    def read(self, address: int, count: int) -> bytes:
        return bytes(self.data[address : address + count]).ljust(count, b"\xff")

    def write(self, address: int, data: bytes) -> None:
        part = data[: max(0, len(self.data) - address)]
        self.data[address : address + len(part)] = part


def sectors(count: int) -> bytes:
    return b"".join(pack("<I", n) * 128 for n in range(count))


class Machine:
    """A PC with drives."""

    def __init__(self, *disks: bytes, cd: bytes | None = None) -> None:
        self.ram = Ram()
        self.disks = [Memory(disk) for disk in disks]
        cds = () if cd is None else (Memory(cd),)
        board = Board(disks=(*self.disks,), cds=cds)
        self.pc = Pc(1 << 24, lambda byte: None, ram=self.ram, board=board)

    def out(self, port: int, value: int, size: int = 1) -> None:
        self.pc.write(port, size, value, 0)

    def get(self, port: int, size: int = 1) -> int:
        return self.pc.read(port, size, 0)

    def configuration(self, at: int, value: int | None = None) -> int:
        self.out(0xCF8, IDE | at, 4)
        if value is not None:
            self.out(0xCFC, value, 4)
        return self.get(0xCFC, 4)

    def lba(self, first: int, count: int, command: int, device: int = 0xE0) -> None:
        self.out(DEVICE, device | first >> 24)
        self.out(0x1F2, count)
        for n in range(3):
            self.out(0x1F3 + n, first >> 8 * n & 0xFF)
        self.out(COMMAND, command)

    def words(self, count: int) -> bytes:
        return b"".join(self.get(0x1F0, 2).to_bytes(2, "little") for _ in range(count))


def test_sectors_by_programmed_input() -> None:
    machine = Machine(sectors(64))
    machine.lba(5, 3, 0x20)
    assert machine.get(STATUS) == 0x58
    assert machine.words(256) == pack("<I", 5) * 128
    assert machine.get(STATUS) == 0x58
    assert machine.words(512) == pack("<I", 6) * 128 + pack("<I", 7) * 128
    assert machine.get(STATUS) == 0x50
    assert machine.words(1) == b"\0\0"


def test_each_sector_interrupts_and_status_takes_it_back() -> None:
    machine = Machine(sectors(64))

    def requested() -> bool:
        machine.out(0xA0, 0x0A)
        return bool(machine.get(0xA0) & 0x40)

    for port, value in ((0xA0, 0x19), (0xA1, 0x70), (0xA1, 2), (0xA1, 1)):  # level-triggered
        machine.out(port, value)
    machine.lba(1, 2, 0x20)
    assert requested()
    machine.get(0x3F6)
    assert requested()  # the alternate status leaves it
    machine.get(STATUS)
    assert not requested()
    machine.words(256)
    assert requested()


def test_sectors_by_programmed_output_and_in_groups() -> None:
    machine = Machine(sectors(64))
    machine.out(0x1F2, 4)
    machine.out(DEVICE, 0xE0)
    machine.out(COMMAND, 0xC6)  # four sectors at an interrupt
    machine.lba(8, 5, 0xC5)
    for n in range(5 * 256):
        assert machine.get(STATUS) == 0x58
        machine.out(0x1F0, n, 2)
    assert machine.get(STATUS) == 0x50
    stored = b"".join(pack("<H", n) for n in range(5 * 256))
    assert machine.disks[0].read(8, 5) == stored
    assert machine.disks[0].read(7, 1) == pack("<I", 7) * 128
    machine.lba(8, 5, 0xC4)
    assert machine.pc.read_string(0x1F0, 2, 4096, 0) == stored[: 4 * 512]
    assert machine.pc.read_string(0x1F0, 2, 4096, 0) == stored[4 * 512 :]


def test_cylinders_heads_and_sectors() -> None:
    machine = Machine(sectors(16 * 63 * 3))
    for cylinder, head, sector in ((0, 0, 1), (1, 2, 3), (2, 15, 63)):
        machine.out(DEVICE, 0xA0 | head)
        for port, value in ((0x1F2, 1), (0x1F3, sector), (0x1F4, cylinder), (0x1F5, 0)):
            machine.out(port, value)
        machine.out(COMMAND, 0x20)
        number = (cylinder * 16 + head) * 63 + sector - 1
        assert machine.words(256) == pack("<I", number) * 128
    machine.out(0x1F3, 0)
    machine.out(COMMAND, 0x20)
    assert machine.get(STATUS) == 0x51
    assert machine.get(0x1F1) == 0x10


def test_addresses_of_48_bits() -> None:
    machine = Machine(sectors(700))
    machine.out(DEVICE, 0x40)
    for port, high, low in (
        (0x1F2, 300 >> 8, 300 & 0xFF),
        (0x1F3, 0, 390 & 0xFF),
        (0x1F4, 0, 390 >> 8),
        (0x1F5, 0, 0),
    ):
        machine.out(port, high)
        machine.out(port, low)
    machine.out(COMMAND, 0x24)
    for n in range(300):
        assert machine.words(256) == pack("<I", 390 + n) * 128
    assert machine.get(STATUS) == 0x50


@pytest.mark.parametrize(("first", "count"), [(64, 1), (60, 5), ((1 << 28) - 1, 1)])
def test_what_lies_behind_the_end_is_an_error(first: int, count: int) -> None:
    machine = Machine(sectors(64))
    for command in (0x20, 0x30, 0xC8, 0xCA):
        machine.lba(first, count, command)
        assert machine.get(STATUS) == 0x51
    assert machine.disks[0].read(0, 64) == sectors(64)


def test_identify_tells_the_size() -> None:
    machine = Machine(bytes(512), bytes(100_000 * 512))
    machine.out(DEVICE, 0xB0)
    machine.out(COMMAND, 0xEC)
    data = machine.words(256)
    assert int.from_bytes(data[120:124], "little") == 100_000
    assert int.from_bytes(data[200:208], "little") == 100_000


def test_drives_that_are_not_there_read_0_and_nobody_waits() -> None:
    machine = Machine(sectors(1))
    machine.out(DEVICE, 0xF0)
    machine.out(COMMAND, 0xEC)
    assert machine.get(STATUS) == 0
    assert machine.get(0x177) == 0


def bus_master(machine: Machine, base: int = 0xC000) -> int:
    machine.configuration(0x20, base)
    machine.configuration(0x04, 5)
    return base


def test_the_base_address_register_decodes() -> None:
    machine = Machine(sectors(1))
    assert machine.configuration(0) == 0x7010_8086
    machine.configuration(0x20, 0xFFFF_FFFF)
    assert machine.configuration(0x20) == 0xFFFF_FFF1
    assert machine.get(0xC002) == 0xFF
    bus_master(machine)
    assert machine.get(0xC002) == 0x60
    bus_master(machine, 0xD000)
    assert machine.get(0xC002) == 0xFF
    assert machine.get(0xD00A) == 0x60
    machine.configuration(0x04, 0)
    assert machine.get(0xD002) == 0xFF
    bus_master(machine, 0x3F0)  # where the serial port is: nothing gives way
    assert machine.get(0x3FD) != 0xFF


def test_reading_by_bus_master() -> None:
    machine = Machine(sectors(64))
    base = bus_master(machine)
    machine.ram.write(0x1000, pack("<II", 0x8000, 0x300) + pack("<II", 0x9000, 1 << 31 | 0x500))
    machine.out(base + 4, 0x1000, 4)
    machine.lba(10, 4, 0xC8)
    assert machine.get(base + 2) & 5 == 0
    machine.out(base, 9)
    assert machine.get(base + 2) & 5 == 4
    assert machine.get(STATUS) == 0x50
    data = sectors(64)[10 * 512 : 14 * 512]
    assert machine.ram.read(0x8000, 0x300) == data[:0x300]
    assert machine.ram.read(0x9000, 0x500) == data[0x300:]
    machine.out(base + 2, 4)
    assert machine.get(base + 2) & 4 == 0


def test_writing_by_bus_master() -> None:
    machine = Machine(sectors(64))
    base = bus_master(machine)
    machine.ram.write(0x8000, b"x" * 1024)
    machine.ram.write(0x1000, pack("<II", 0x8000, 1 << 31 | 1024))
    machine.out(base + 4, 0x1000, 4)
    machine.out(base, 1)
    machine.lba(20, 2, 0xCA)
    wanted = pack("<I", 19) * 128 + b"x" * 1024 + pack("<I", 22) * 128
    assert machine.disks[0].read(19, 4) == wanted


def test_a_table_that_never_ends_and_lies_nowhere_ends_all_the_same() -> None:
    machine = Machine(sectors(64))
    base = bus_master(machine)
    for table in (0xFFFF_FFF0, 0):
        machine.out(base + 4, table, 4)
        machine.lba(0, 64, 0xC8)
        machine.out(base, 9)
        assert machine.get(STATUS) == 0x50
        machine.out(base, 0)


# CD drives.


def packet(machine: Machine, *parts: int, limit: int = 0xFFFE) -> int:
    machine.out(DEVICE, 0xA0)
    machine.out(0x1F1, 0)
    machine.out(0x1F4, limit & 0xFF)
    machine.out(0x1F5, limit >> 8)
    machine.out(COMMAND, 0xA0)
    assert machine.get(0x1F2) & 3 == 1
    data = bytes(parts).ljust(12, b"\0")
    for n in range(0, 12, 2):
        machine.out(0x1F0, data[n] | data[n + 1] << 8, 2)
    return machine.get(STATUS)


def test_a_cd_is_told_by_its_signature() -> None:
    machine = Machine(cd=bytes(2048 * 20))
    machine.out(DEVICE, 0xA0)
    machine.out(COMMAND, 0xEC)
    assert machine.get(STATUS) == 0x51
    assert (machine.get(0x1F4), machine.get(0x1F5)) == (0x14, 0xEB)
    machine.out(COMMAND, 0xA1)
    assert machine.words(256)[:2] == pack("<H", 0x8580)


def test_blocks_of_a_cd_in_parts_of_the_hosts_choice() -> None:
    image = b"".join(pack("<I", n) * 512 for n in range(20))
    machine = Machine(cd=image)
    assert packet(machine, 0x25) == 0x58
    assert machine.words(4) == pack(">II", 19, 2048)
    assert packet(machine, 0x28, 0, 0, 0, 0, 7, 0, 0, 3, limit=4096) == 0x58
    got = b""
    while machine.get(STATUS) & 8:
        count = machine.get(0x1F4) | machine.get(0x1F5) << 8
        assert count <= 4096
        got += machine.words(count // 2)
    assert got == image[7 * 2048 : 10 * 2048]
    assert machine.get(0x1F2) & 3 == 3


def test_what_a_cd_refuses_and_why() -> None:
    machine = Machine(cd=bytes(2048 * 20))
    for parts, key, additional in (
        ((0x28, 0, 0, 0, 0, 20, 0, 0, 1), 5, 0x21),
        ((0xDE,), 5, 0x20),
        ((0x2A, 0, 0, 0, 0, 0, 0, 0, 1), 5, 0x20),
    ):
        assert packet(machine, *parts) == 0x51
        assert machine.get(0x1F1) >> 4 == key
        assert packet(machine, 0x03, 0, 0, 0, 18) == 0x58
        sense = machine.words(9)
        assert (sense[2], sense[12]) == (key, additional)
    assert packet(machine, 0x00) == 0x50


def test_a_cd_by_bus_master() -> None:
    image = b"".join(pack("<I", n) * 512 for n in range(20))
    machine = Machine(cd=image)
    base = bus_master(machine)
    machine.ram.write(0x1000, pack("<II", 0x8000, 1 << 31 | 4096))
    machine.out(base + 4, 0x1000, 4)
    machine.out(base, 9)
    machine.out(DEVICE, 0xA0)
    machine.out(0x1F1, 1)
    machine.out(COMMAND, 0xA0)
    for word in (0x28, 0, 0x300, 0, 0x002, 0):
        machine.out(0x1F0, word, 2)
    assert machine.get(STATUS) == 0x50
    assert machine.ram.read(0x8000, 4096) == image[3 * 2048 : 5 * 2048]


# Images.


@pytest.mark.parametrize(
    ("make", "option", "words"),
    [
        (lambda p: None, "{}", "No such file"),
        (lambda p: p.mkdir(), "{}", "is a directory"),
        (lambda p: p.write_bytes(b""), "{}", "is empty"),
        (lambda p: p.write_bytes(bytes(1000)), "{}", "add 24 bytes"),
        (lambda p: p.write_bytes(b"QFI\xfb" + bytes(508)), "{}", "qemu-img convert"),
        (lambda p: p.write_bytes(b"KDMV" + bytes(508)), "{}", "a VMDK image"),
        (lambda p: p.write_bytes(b"\x1f\x8b" + bytes(510)), "{}", "gunzip"),
        (lambda p: p.write_bytes(bytes(512)), "{},writes", "is not an option of an image"),
        (lambda p: p.write_bytes(bytes(512)), "{},write,overlay=x", "choose one"),
        (lambda p: p.write_bytes(bytes(512)), "{},overlay=", "is not an option of an image"),
        (os.mkfifo, "{}", "is not a regular file"),
    ],
)
def test_images_that_are_none(
    make: Callable[[Path], None], option: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    make(path)
    with pytest.raises(DiskImageError, match=words) as caught:
        open_image(option.format(path))
    assert "disk.img" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_never_changes_unless_somebody_says_so(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(sectors(8))
    disk = open_image(str(path))
    disk.write(3, b"y" * 1024)
    assert disk.read(2, 4) == pack("<I", 2) * 128 + b"y" * 1024 + pack("<I", 5) * 128
    assert path.read_bytes() == sectors(8)


def test_an_overlay_is_kept_beside(tmp_path: Path) -> None:
    path, overlay = tmp_path / "disk.img", tmp_path / "changes"
    path.write_bytes(sectors(8))
    disk = open_image(f"{path},overlay={overlay}")
    disk.write(3, b"y" * 1024)
    with pytest.raises(DiskImageError, match="another machine"):
        open_image(f"{path},overlay={overlay}")
    del disk
    again = open_image(f"{path},overlay={overlay}")
    assert again.read(2, 4) == pack("<I", 2) * 128 + b"y" * 1024 + pack("<I", 5) * 128
    assert path.read_bytes() == sectors(8)
    del again
    other = tmp_path / "other.img"
    other.write_bytes(sectors(9))
    with pytest.raises(DiskImageError, match="is not an overlay of this image"):
        open_image(f"{other},overlay={overlay}")


def test_a_writer_has_the_image_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(sectors(8))
    reader = open_image(str(path))
    with pytest.raises(DiskImageError, match="somebody uses it"):
        open_image(f"{path},write")
    del reader
    writer = open_image(f"{path},write")
    writer.write(7, b"z" * 512)
    with pytest.raises(DiskImageError, match="somebody writes to it"):
        open_image(str(path))
    assert path.read_bytes() == sectors(7) + b"z" * 512


WRITER = """
import itertools, sys
from trapgate.vmm.devices.storage import open_image
disk = open_image(sys.argv[1])
for n in itertools.count(1):
    for sector in range(64):
        disk.write(sector, n.to_bytes(4, "little") * 128)
    print(n, flush=True)
"""


@pytest.mark.parametrize("option", ["{0},write", "{0},overlay={0}.changes"])
def test_a_kill_leaves_an_image_as_a_real_disk_would_be(option: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(64 * 512))
    chosen = option.format(path)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, chosen], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 20:
        pass
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()
    data = open_image(chosen).read(0, 64)
    rounds = [int.from_bytes(data[n : n + 4], "little") for n in range(0, len(data), 512)]
    # Each sector is whole, the last round's come first, and nothing older is left.
    assert all(data[n : n + 512] == data[n : n + 4] * 128 for n in range(0, len(data), 512))
    assert rounds == sorted(rounds, reverse=True)
    assert rounds[0] - rounds[-1] <= 1
    assert rounds[-1] >= 19
