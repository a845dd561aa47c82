"""Guests that program screen, floppy controller and DMA with nonsense, and store to the screen.

Runs end, each time the same way; nothing but the disk and the guest's own memory changes.
"""

import random
from struct import pack

import pytest

from tests.guests.apic_guest import image
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

SEEDS = range(6)
MEMORY = 64 << 20
SECTORS = 1000
BAR_0, COMMAND = 0x8000_1010, 0x8000_1004
"""Of the VGA, device 2, as the ports at CF8H name them."""


def nonsense(seed: int) -> bytes:
    """Outputs to all ports of these devices, and string stores and loads where they may show."""
    r = random.Random(seed)
    ports = (
        *(0x3C0, 0x3C2, 0x3C4, 0x3C5, 0x3C6, 0x3C8, 0x3C9, 0x3CE, 0x3CF, 0x3D4, 0x3D5, 0x3DA),
        *(0x3F2, 0x3F4, 0x3F5, 0x3F5, 0x3F5, 0x3F7, *range(16), 0x81, 0xD6),
    )

    def byte() -> bytes:
        port, value = r.choice(ports), r.choice((r.randrange(256), r.randrange(16), 0x46, 0x45))
        code = b"\xec" if r.randrange(5) == 0 else b"\xb0" + bytes((value,)) + b"\xee"
        return b"\x66\xba" + pack("<H", port) + code  # mov dx, port; in al, dx or out dx, al

    def pair() -> bytes:
        """An index and its value, one of those that matter."""
        port, index, values = r.choice(
            (
                (0x3C4, 4, (2, 6, 14)),
                (0x3C4, 2, (15, 1, 8)),
                (0x3CE, 6, (5, 1, 0xD, 4)),
                (0x3CE, 5, (0, 1, 2, 3, 8, 0x40)),
                (0x3CE, 8, (0xFF, 0x0F)),
                (0x3D4, 0x13, (0, 40, 255)),
            )
        )
        return (
            b"\x66\xba"
            + pack("<H", port)
            + b"\x66\xb8"
            + bytes((index, r.choice(values)))
            + b"\x66\xef"
        )

    def mode() -> bytes:
        """A register of Bochs' VGA."""
        index = r.randrange(12)
        value = r.choice((r.randrange(1 << 16), 640, 480, 8, 32, 1, 0x41))
        return b"".join(
            b"\x66\xba" + pack("<H", port) + b"\x66\xb8" + pack("<H", word) + b"\x66\xef"
            for port, word in ((0x1CE, index), (0x1CF, value))
        )

    def place() -> bytes:
        """Where PCI shows the frame buffer: above RAM, in it, at devices, nowhere."""
        where = r.choice((0xE000_0000, 0x0080_0000, 0xFE80_0000, 0xFFFF_FFFF, r.getrandbits(32)))
        return b"".join(
            b"\x66\xba" + pack("<H", port) + b"\xb8" + pack("<I", value) + b"\xef"
            for port, value in (
                *((0xCF8, COMMAND), (0xCFC, r.choice((0, 2, 7)))),
                *((0xCF8, BAR_0), (0xCFC, where)),
            )
        )

    def stores() -> bytes:
        """STOSB, STOSD, MOVSB or LODSD, repeated, in and around A0000H and the frame buffer."""
        where = r.choice(
            (0xA0000, 0xAFFF8, 0xA0000 + r.randrange(0x10000), 0xE000_0000, 0xE07F_FFF8)
        )
        what = r.choice((b"\xf3\xaa", b"\xf3\xab", b"\xf3\xa4", b"\xf3\xad"))
        return (
            b"\xbf" + pack("<I", where) + b"\xbe" + pack("<I", where + r.randrange(64))
            + b"\xb9" + pack("<I", r.randrange(40)) + what
        )  # fmt: skip

    return b"".join(r.choice((byte, byte, pair, pair, mode, place, stores))() for _ in range(150))


@pytest.mark.parametrize("engine", ["native", "portable"])
@pytest.mark.parametrize("seed", SEEDS)
def test_nonsense_into_screen_and_floppy(seed: int, engine: str) -> None:
    outcomes = []
    for _ in range(2):
        floppy = Memory(bytes(SECTORS * 512))
        vm = VirtualMachine(MEMORY, engine=engine, board=Board(floppies=(floppy,), firmware=True))
        vm.load(parse_guest(image(nonsense(seed)), file="guest.bin", memory=MEMORY))
        stop = vm.run(max_instructions=200_000, timeout=60)
        assert stop.message != "out of time"
        assert floppy.count == SECTORS
        pixels = vm.devices.vga.pixels(vm.processor.memory)
        shown = None if pixels is None else pixels.tobytes()
        outcomes.append((stop, vm.processor.time, vm.summary().exits, shown))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0].end in set(End) - {End.ENTRY_FAILED, End.UNHANDLED}
