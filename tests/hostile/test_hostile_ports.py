"""Nonsense for every port and device page of a PC with all drives, without a processor.

Sequences that get deep into a device: a group's registers in any order, with the commands that
begin something among the values. The host raises nothing, a device that computes forever would
hang, and the images are as long as they were; those that nobody may write are as they were.
"""

import random
from pathlib import Path
from struct import pack

import pytest

from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.pc import Pc
from trapgate.vmm.devices.storage import open_image

MEMORY = 1 << 20
SECTORS, BLOCKS, FLOPPY = 1000, 77, 1001
"""Of the images; none ends where a cylinder or a track does."""
STEPS = 6000
PAGES = (0xFEC00000, 0xFED00000, 0xFEE00000, 0xFF000000, 0xA0000)
GROUPS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "IDE": (
        (*range(0x1F0, 0x1F8), 0x3F6, *range(0x170, 0x178), 0x376, 0x1F7, 0x1F7, 0x1F0),
        (*(0x20, 0x30, 0xC4, 0xC5, 0xC6, 0xC8, 0xCA, 0x24, 0x25, 0x34, 0x35, 0xEC, 0xA1, 0xA0),
         *(0xE7, 0xEA, 0x90, 0x91, 0xEF, 0x08, 0x04, 0x06, 0xE0, 0xF0, 0xA0, 0x40, 1, 0)),
    ),
    "bus master": ((*range(0xC000, 0xC010),), (0, 1, 8, 9, 6, 0x66, 4)),
    "PCI": ((0xCF8, 0xCFC, 0xCFD, 0xCFE, 0xCF9), (0, 4, 0x10, 0x20, 0x3C, 0x59, 0x72, 7)),
    "floppy and DMA": (
        (*range(0x3F0, 0x3F8), 0x3F5, 0x3F5, *range(16), *range(0x80, 0x90), *range(0xC0, 0xE0)),
        (0x46, 0xC6, 0xE6, 0x45, 0xC5, 0x4D, 0x4A, 0x0F, 7, 8, 3, 0x13, 4, 2, 18, 1, 0x1C),
    ),
    "VGA": ((*range(0x3B4, 0x3DC), 0x1CE, 0x1CF), (0, 1, 2, 4, 5, 6, 0x41, 0xB0C5, 640, 8, 15)),
    "PS/2": (
        (0x60, 0x64, 0x92),
        (0xD1, 0xD4, 0xD2, 0xD3, 0xED, 0xF0, 0xF2, 0xF3, 0xF4, 0xAA, 0x20),
    ),
    "8259, 8254, CMOS": (
        (0x20, 0x21, 0xA0, 0xA1, *range(0x40, 0x44), 0x61, 0x70, 0x71, 0x4D0, 0x4D1),
        (0x11, 0x19, 0x0A, 0x0B, 0x20, 0x60, 0xE7, 0x34, 0xB6, 0xC2, 0xE2, 0x36, 0x30, 0x0C),
    ),
    "UART": ((*range(0x3F8, 0x400),), (0x83, 0x03, 0x10, 0x1F, 0xC7, 0x0F)),
    "fw_cfg": ((0x510, 0x511, 0x514, 0x518), (0, 1, 0x19, 0x20, 0x8003, 0xFFFF)),
    "power, test devices": (
        (*range(0x600, 0x60C), 0xE0, 0xE9, *range(0x2000, 0x2018), 0x80),
        (0x2001, 0x3C00, 1, 0x401, 0xFFFF),
    ),
}  # fmt: skip


class Ram:
    """Guest memory for bus masters, with tables of theirs in it."""

    def __init__(self, r: random.Random) -> None:
        self.data = bytearray(MEMORY)
        for at in range(0, 0x4000, 8):
            entry = r.randrange(MEMORY), r.choice((0, 512, 2, 0x8000_0200, 0x8000_0000, 0xFFFE))
            self.data[at : at + 8] = pack("<II", r.choice((entry[0], r.getrandbits(32))), entry[1])

    def read(self, address: int, count: int) -> bytes:
        return bytes(self.data[address : address + count]).ljust(count, b"\xff")

    def write(self, address: int, data: bytes) -> None:
        part = data[: max(0, len(self.data) - address)]
        self.data[address : address + len(part)] = part


def drive(pc: Pc, r: random.Random) -> None:
    """STEPS accesses; what the devices ask of the machine is left alone."""
    now = 0
    pc.write(0xCF8, 4, 1 << 31 | 1 << 11 | 1 << 8 | 0x20, now)
    pc.write(0xCFC, 4, 0xC001, now)
    pc.write(0xCF8, 4, 1 << 31 | 1 << 11 | 1 << 8 | 4, now)
    pc.write(0xCFC, 2, 5, now)
    names = list(GROUPS)
    ports, values = GROUPS[names[0]]
    for _ in range(STEPS):
        now += r.choice((1, 40, 100_000))
        if r.randrange(12) == 0:
            ports, values = GROUPS[r.choice(names)]
        port = r.choice(ports) if r.randrange(50) else r.randrange(0x10000)
        size = r.choice((1, 1, 1, 2, 4))
        value = r.choice((r.choice(values), r.choice(values), r.getrandbits(8 * size)))
        what = r.randrange(20)
        if what == 0:
            page = r.choice(PAGES) + r.randrange(0x400)
            width = r.choice((1, 2, 4, 8))
            pc.store(page, width, r.getrandbits(8 * width), now)
            assert 0 <= pc.load(page, width, now) < 1 << 8 * width
        elif what == 1:
            pc.read_string(port, size, r.choice((1, 3, 300)), now)
        elif what == 2:
            deadline = pc.next_deadline(now)
            now = deadline if deadline is not None and deadline < now + (1 << 24) else now
            pc.advance(now)
            if pc.pending():
                pc.acknowledge()
        elif what == 3:
            pc.keyboard.type("aB\n")
            pc.keyboard.move(r.randrange(-300, 300), r.randrange(-300, 300), r.randrange(8))
        elif what < 9:
            assert 0 <= pc.read(port, size, now) < 1 << 8 * size
        else:
            pc.write(port, size, value & (1 << 8 * size) - 1, now)
        if r.randrange(500) == 0:
            pc.vga.text(Blank())
            pc.vga.pixels(Blank())


class Blank:
    """Memory for the screen."""

    def read(self, address: int, count: int) -> bytes:
        return bytes(count)


@pytest.mark.parametrize("seed", range(6))
def test_nonsense_at_every_port(seed: int, tmp_path: Path) -> None:
    r = random.Random(seed)
    contents = {
        "kept.img": r.randbytes(SECTORS * 512),
        "written.img": r.randbytes(SECTORS * 512),
        "disc.iso": r.randbytes(BLOCKS * 2048),
        "floppy.img": r.randbytes(FLOPPY * 512),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    kept, written, disc, floppy = (tmp_path / name for name in contents)
    board = Board(
        disks=(open_image(str(kept)), open_image(f"{written},write")),
        cds=(open_image(str(disc)),),
        floppies=(open_image(str(floppy)), open_image(str(floppy))),
        firmware=True,
        testdev=True,
    )
    ram = Ram(r)
    pc = Pc(MEMORY, lambda byte: None, ram=ram, board=board, frame_buffer=(1 << 19, 1 << 18))
    drive(pc, r)
    for path in (kept, disc, floppy):
        assert path.read_bytes() == contents[path.name]
    assert written.stat().st_size == SECTORS * 512
    assert len(ram.data) == MEMORY
