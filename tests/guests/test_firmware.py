"""Real firmware, where a package has put it: it finds the drives, and boots a sector of ours."""

from pathlib import Path

import pytest

from trapgate.cli.board import board
from trapgate.vmm.actions import End
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.loaders.bios import load_bios
from trapgate.vmm.machine import VirtualMachine

SEABIOS = Path("/usr/share/seabios/bios.bin")
needs_seabios = pytest.mark.skipif(not SEABIOS.is_file(), reason="no SeaBIOS (Debian: seabios)")
MEMORY = 32 << 20

_CODE = (
    "fa 31c0 8ed8 8ec0 8ed0 bc007c fb"  # segments 0, the stack below
    "be507c b442 cd13 72xx"  # INT 13H, AH = 42H: the packet at 7C50H
    "be0080"  # what it has read
    "ac 08c0 7409 b40e bb0700 cd10 ebf2"  # INT 10H, AH = 0EH: each character of it
    "b400 cd16"  # INT 16H: wait for a key
    "b40e bb0700 cd10"  # and show it
    "b000 e6f4 f4"  # exit with status 0
)
_FAILED_AT = 0x44
_JUMP_ENDS = 0x14
BOOT = bytes.fromhex(_CODE.replace("xx", f"{_FAILED_AT - _JUMP_ENDS:02x}"))
MESSAGE = b"read by firmware\r\n\0"


def image() -> bytes:
    """A disk: the boot sector, its packet for INT 13H at offset 50H, the message at sector 2."""
    failed = b"\xb0\x02\xe6\xf4\xf4"
    packet = b"\x10\0\1\0" + (0x8000).to_bytes(4, "little") + (2).to_bytes(8, "little")
    sector = (BOOT.ljust(_FAILED_AT, b"\x90") + failed).ljust(0x50, b"\0") + packet
    sector = sector.ljust(510, b"\0") + b"\x55\xaa"
    return (sector + bytes(512) + MESSAGE.ljust(512, b"\0")).ljust(1 << 20, b"\0")


@needs_seabios
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_seabios_boots_our_sector_from_a_disk(engine: str) -> None:
    plugged = board([], [], [], SEABIOS, MEMORY)
    plugged = type(plugged)(disks=(Memory(image()),), firmware=True, files=plugged.files, log=None)
    vm = VirtualMachine(MEMORY, engine=engine, board=plugged)
    vm.load(load_bios(SEABIOS))
    vm.type(b"k")
    stop = vm.run(timeout=120)
    output = bytes(vm.output)
    assert stop.end is End.DEBUG_EXIT, output
    assert stop.status == 0
    assert b"SeaBIOS (version" in output
    assert b"Booting from Hard Disk" in output
    assert b"read by firmware" in output


@needs_seabios
@pytest.mark.parametrize("engine", ["native", "portable"])
def test_seabios_reads_and_writes_a_floppy(engine: str) -> None:
    """By its own driver: the guest copies sector 3 of cylinder 5 to sector 7 of cylinder 9."""
    code = bytes.fromhex(
        "fa31c08ed88ec08ed0bc007cfb"
        "b80102bb0080b90305ba0001cd137211"  # read: AX 0201H, CX 0503H, DX 0100H
        "b80103bb0080b90709ba0000cd137202"  # write: AX 0301H, CX 0907H, DX 0
        "b000e6f4f4"
    )
    disk = bytearray(1440 << 10)
    disk[: len(code)], disk[510:512] = code, b"\x55\xaa"
    source, target = ((5 * 2 + 1) * 18 + 2), 9 * 36 + 6
    disk[source * 512 : source * 512 + 512] = b"copied! " * 64
    floppy = Memory(bytes(disk))
    plugged = board([], [], [], SEABIOS, MEMORY)
    plugged = type(plugged)(floppies=(floppy,), firmware=True, files=plugged.files, log=None)
    vm = VirtualMachine(MEMORY, engine=engine, board=plugged)
    vm.load(load_bios(SEABIOS))
    stop = vm.run(timeout=120)
    assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0), bytes(vm.output)
    assert floppy.read(target, 1) == b"copied! " * 64


@needs_seabios
def test_seabios_says_that_there_is_nothing_to_boot() -> None:
    log = bytearray()
    plugged = board([], [], [], SEABIOS, MEMORY)
    plugged = type(plugged)(firmware=True, files=plugged.files, log=log.append)
    vm = VirtualMachine(MEMORY, board=plugged)
    vm.load(load_bios(SEABIOS))
    vm.run(max_instructions=300_000_000, timeout=60)
    assert b"No bootable device" in vm.output
    assert b"Found 1 PCI" in log or b"PCI" in log
