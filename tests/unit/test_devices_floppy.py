"""The floppy controller and its DMA, as drivers see them (Intel 82077AA, 8237A data sheets)."""

import random

import pytest

from trapgate.vmm.devices.dma import DmaControllers
from trapgate.vmm.devices.floppy import FloppyController, geometry
from trapgate.vmm.devices.storage import Memory

SECTOR = 512
DISK = b"".join(n.to_bytes(2, "little") * 256 for n in range(2880))
OUTPUT, STATUS, FIFO, INPUT = 0x3F2, 0x3F4, 0x3F5, 0x3F7
READ, WRITE = 0x46, 0x4A
"""Transfers to and from memory, on channel 2."""


class Ram:
    """Memory of 1 MiB."""

    def __init__(self) -> None:
        self.bytes = bytearray(1 << 20)

    def read(self, address: int, count: int) -> bytes:
        return bytes(self.bytes[address : address + count]).ljust(count, b"\xff")

    def write(self, address: int, data: bytes) -> None:
        assert address + len(data) <= len(self.bytes)
        self.bytes[address : address + len(data)] = data


class Line:
    """Counts its edges."""

    level = False
    edges = 0

    def set(self, level: bool) -> None:
        self.edges += level and not self.level
        self.level = level


class Driver:
    """A controller with one disk of 1.44 MB."""

    def __init__(self, disk: bytes = DISK) -> None:
        self.ram, self.line, self.disk = Ram(), Line(), Memory(disk)
        self.dma = DmaControllers(self.ram)
        self.controller = FloppyController((self.disk,), self.line, self.dma)

    def out(self, port: int, *values: int) -> None:
        device = self.controller if port >= 0x3F0 else self.dma
        for value in values:
            device.write(port, 1, value, 0)

    def port(self, port: int) -> int:
        return self.controller.read(port, 1, 0)

    def command(self, *values: int) -> list[int]:
        """Send a command, and take its answer."""
        self.out(FIFO, *values)
        answer = []
        while self.port(STATUS) & 0x50 == 0x50:
            answer.append(self.port(FIFO))
        return answer

    def reset(self) -> None:
        self.out(OUTPUT, 0, 0x1C)
        for unit in range(4):
            assert self.command(8)[0] == 0xC0 | unit

    def seek(self, cylinder: int, head: int = 0) -> None:
        assert self.command(0x0F, head << 2, cylinder) == []
        assert self.command(8) == [0x20 | head << 2, cylinder]

    def channel(self, mode: int, address: int, count: int) -> None:
        self.out(0x0A, 6)
        self.out(0x0C, 0)
        self.out(0x04, address & 0xFF, address >> 8 & 0xFF)
        self.out(0x81, address >> 16)
        self.out(0x05, count - 1 & 0xFF, count - 1 >> 8)
        self.out(0x0B, mode)
        self.out(0x0A, 2)


def test_reset_seek_and_what_the_drive_says() -> None:
    driver = Driver()
    driver.reset()
    assert driver.line.edges == 1
    assert driver.port(INPUT) & 0x80
    assert driver.command(0x10) == [0x90]
    driver.seek(40)
    assert not driver.port(INPUT) & 0x80
    assert driver.command(4, 0) == [0x28]
    assert driver.command(7, 0) == []
    assert driver.command(8) == [0x20, 0]
    assert driver.command(4, 0) == [0x38]
    assert driver.command(8) == [0x80], "there was no interrupt"
    assert driver.command(0x1F) == [0x80], "no such command"
    driver.command(7, 1)
    assert driver.command(8) == [0x71, 0], "there is no second drive"


def test_a_track_by_dma() -> None:
    """Both sides with MT, into 64 KiB that the address does not leave."""
    driver = Driver()
    driver.reset()
    driver.seek(3)
    driver.channel(READ, 0x1_F000, 36 * SECTOR)
    edges = driver.line.edges
    assert driver.command(0xE6, 0, 3, 0, 1, 2, 18, 0x1B, 0xFF) == [0, 0, 0, 4, 0, 1, 2]
    assert driver.line.edges == edges + 1
    assert not driver.line.level
    expected = DISK[3 * 36 * SECTOR :][: 36 * SECTOR]
    assert driver.ram.read(0x1_F000, 0x1000) == expected[:0x1000]
    assert driver.ram.read(0x1_0000, len(expected) - 0x1000) == expected[0x1000:]
    assert driver.dma.read(8, 1, 0) == 4
    assert driver.dma.read(8, 1, 0) == 0


def test_writes_by_dma_and_the_end_of_a_track() -> None:
    driver = Driver()
    driver.reset()
    driver.seek(1, 1)
    driver.ram.bytes[0x8000:0x8400] = b"\xa5" * 1024
    driver.channel(WRITE, 0x8000, 1024)
    assert driver.command(0x45, 4, 1, 1, 17, 2, 18, 0x1B, 0xFF) == [4, 0, 0, 2, 1, 1, 2]
    place = (1 * 2 + 1) * 18 + 16
    assert driver.disk.read(place, 2) == b"\xa5" * 1024
    assert driver.disk.read(place + 2, 1) == DISK[(place + 2) * SECTOR :][:SECTOR]
    # More than there is on the track: abnormal, end of cylinder.
    driver.channel(READ, 0x8000, 2048)
    assert driver.command(0x46, 4, 1, 1, 18, 2, 18, 0x1B, 0xFF)[:2] == [0x44, 0x80]


def test_sectors_through_the_fifo() -> None:
    driver = Driver()
    driver.reset()
    assert driver.command(3, 0xDF, 3) == []
    driver.seek(0)
    driver.out(FIFO, 0x46, 0, 0, 0, 2, 2, 3, 0x1B, 0xFF)
    data = bytearray()
    while driver.port(STATUS) & 0x20:
        assert driver.port(STATUS) & 0xC0 == 0xC0
        data.append(driver.port(FIFO))
    assert bytes(data) == DISK[SECTOR : 3 * SECTOR]
    assert [driver.port(FIFO) for _ in range(7)][:2] == [0x40, 0x80]
    driver.out(FIFO, 0x45, 0, 0, 0, 5, 2, 5, 0x1B, 0xFF)
    while driver.port(STATUS) & 0x20:
        driver.out(FIFO, 0x77)
    assert driver.disk.read(4, 1) == b"\x77" * SECTOR


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ((0x46, 0, 9, 0, 1, 2, 18, 0x1B, 0xFF), [0x40, 4]),  # the head is not there
        ((0x46, 0, 0, 0, 19, 2, 19, 0x1B, 0xFF), [0x40, 4]),  # no such sector
        ((0x46, 1, 0, 0, 1, 2, 18, 0x1B, 0xFF), [0x41, 1]),  # no such drive
        ((0x46, 0, 0, 0, 1, 3, 18, 0x1B, 0xFF), [0x40, 4]),  # no sectors of 1024 bytes
        ((0x45, 4, 0, 0, 1, 2, 18, 0x1B, 0xFF), [0x44, 4]),  # heads that do not agree
    ],
)
def test_what_is_not_there(command: tuple[int, ...], answer: list[int]) -> None:
    driver = Driver()
    driver.reset()
    driver.seek(0)
    driver.channel(READ, 0x8000, 512)
    assert driver.command(*command)[:2] == answer
    assert driver.disk.read(0, 2880) == DISK


def test_formatting_and_identifications() -> None:
    driver = Driver()
    driver.reset()
    driver.seek(2)
    assert driver.command(0x4A, 0) == [0, 0, 0, 2, 0, 1, 2]
    driver.ram.bytes[0x8000 : 0x8000 + 72] = bytes(
        part for sector in range(1, 19) for part in (2, 0, sector, 2)
    )
    driver.channel(WRITE, 0x8000, 72)
    assert driver.command(0x4D, 0, 2, 18, 0x54, 0xF6)[:2] == [0, 0]
    assert driver.disk.read(72, 18) == b"\xf6" * 18 * SECTOR
    assert driver.disk.read(90, 1) == DISK[90 * SECTOR :][:SECTOR]


def test_the_drive_that_an_image_wants() -> None:
    assert geometry(2880) == (80, 2, 18, 4)
    assert geometry(700) == (40, 2, 9, 1)
    assert geometry(99999) == (80, 2, 36, 5)


@pytest.mark.parametrize("seed", range(6))
def test_nonsense_stays_on_the_disk(seed: int) -> None:
    """Any values at all ports of both, on a disk that ends within a track."""
    r = random.Random(seed)
    driver = Driver(bytes(1000 * SECTOR))
    first, all_ports = driver.controller.ports, tuple(driver.dma.ports)
    small = (0, 1, 2, 3, 4, 0x46, 0x45, 0x0F, 0x07, 0x4D, 0x0A, 0x13, 0x1C, 0x40, 0xE6)
    for _ in range(6000):
        device, ports = r.choice(
            ((driver.controller, first), (driver.controller, (FIFO,)), (driver.dma, all_ports))
        )
        port = r.choice(ports)
        if r.randrange(4):
            value = r.choice(small) if r.randrange(4) else r.randrange(256)
            device.write(port, 1, value, 0)
        else:
            assert 0 <= device.read(port, 1, 0) <= 0xFF
    assert driver.disk.count == 1000
    assert len(driver.disk.read(0, 1000)) == 1000 * SECTOR
    driver.out(OUTPUT, 0, 0x1C)
    driver.reset()
