"""Our own BIOS: it boots sectors of ours, and its services answer as IBM's and Phoenix's do.

The services are called by guest code, `INT n` and then a jump to itself at 0:600H, with registers
set from outside; what they leave is compared with the interfaces' documents.
"""

import json
from pathlib import Path
from struct import pack, unpack

import pytest
from typer.testing import CliRunner

from tests.guests.test_firmware import MESSAGE
from tests.guests.test_firmware import image as disk_image
from trapgate.cli import app
from trapgate.vmm.actions import End
from trapgate.vmm.bios.firmware import BootError
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.firmware.bios_image import SEGMENT, STUB, STUBS
from trapgate.vmm.machine import VirtualMachine

MEMORY = 32 << 20
CODE = 0x600
CARRY, ZERO = 1, 1 << 6
ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])


def numbered(count: int, size: int = 512) -> bytes:
    return b"".join(pack("<I", n) * (size // 4) for n in range(count))


def cd_image() -> bytes:
    """An El Torito CD whose boot image, four sectors at block 20, leaves with the status 7."""
    image = bytearray(2048 * 32)
    image[17 * 2048 : 17 * 2048 + 39] = b"\0CD001\1EL TORITO SPECIFICATION".ljust(39, b"\0")
    image[17 * 2048 + 0x47 : 17 * 2048 + 0x4B] = pack("<I", 19)
    image[19 * 2048 : 19 * 2048 + 32] = b"\1\0".ljust(30, b"\0") + b"\x55\xaa"
    image[19 * 2048 + 32 : 19 * 2048 + 44] = pack("<BBHBBHI", 0x88, 0, 0, 0, 0, 4, 20)
    image[20 * 2048 : 20 * 2048 + 5] = b"\xb0\x07\xe6\xf4\xf4"
    return bytes(image)


class Caller:
    """A machine whose guest calls one service at a time."""

    memory = MEMORY

    def __init__(self, board: Board | None = None) -> None:
        self.vm = VirtualMachine(
            self.memory, board=board or Board(disks=(Memory(disk_image()),), bios=True)
        )
        self.vm.boot()
        self.registers = self.vm.processor.registers

    def call(self, vector: int, *, before: bytes = b"", **registers: int) -> int:
        """Call it, and give RFLAGS; registers by their names: ax=0x0E41."""
        code = before + bytes((0xCD, vector)) + b"\xeb\xfe"
        self.vm.processor.memory.write(CODE, code)
        for name, value in registers.items():
            setattr(self.registers, f"r{name}", value)
        self.vm.vmcs["GUEST_RIP"] = CODE
        self.vm.vmcs["GUEST_CS_SELECTOR"] = self.vm.vmcs["GUEST_CS_BASE"] = 0
        for _ in range(20):
            self.vm.step(100)
            if self.vm.vmcs["GUEST_RIP"] == CODE + len(code) - 2:
                break
        assert self.vm.vmcs["GUEST_RIP"] == CODE + len(code) - 2
        return self.vm.vmcs["GUEST_RFLAGS"]

    def read(self, address: int, count: int) -> bytes:
        return self.vm.processor.memory.read(address, count)


@ENGINES
def test_boots_a_disk(engine: str) -> None:
    board = Board(disks=(Memory(disk_image()),), bios=True)
    vm = VirtualMachine(MEMORY, engine=engine, board=board)
    image = vm.boot()
    assert image.description == "boot sector of drive 80H in real mode at 0x7c00"
    vm.type(b"k")
    stop = vm.run(timeout=60)
    assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0)
    assert bytes(vm.output) == MESSAGE.rstrip(b"\0") + b"k"
    assert vm.devices.vga.text(vm.processor.memory)[:2] == ["read by firmware", "k"]


def test_a_key_is_waited_for() -> None:
    vm = VirtualMachine(MEMORY, board=Board(disks=(Memory(disk_image()),), bios=True))
    vm.boot()
    vm.step(3_000_000)
    assert bytes(vm.output) == MESSAGE.rstrip(b"\0")
    vm.devices.keyboard.type("Q")
    stop = vm.run(timeout=60)
    assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0)
    assert bytes(vm.output).endswith(b"Q")


def test_a_monitor_may_keep_the_port_to_itself() -> None:
    """What a stub begins with, an OUT, is nothing elsewhere; what follows it is enough."""
    caller = Caller()
    behind = pack("<HH", STUBS + STUB * 0x12 + 2, SEGMENT)
    caller.call(0x1B, before=b"\xe6\xe4\x9c\x9a" + behind, ax=0)
    assert caller.registers.rax & 0xFFFF == 639


@ENGINES
def test_boots_a_cd(engine: str) -> None:
    vm = VirtualMachine(MEMORY, engine=engine, board=Board(cds=(Memory(cd_image()),), bios=True))
    vm.boot()
    assert vm.processor.registers.rdx == 0xE0
    assert vm.run(timeout=60).message == "the guest exited with status 7"


def test_a_cd_is_shown_as_a_floppy() -> None:
    image = bytearray(cd_image().ljust(2048 * 800, b"\0"))
    image[19 * 2048 + 33] = 2
    image[20 * 2048 : 20 * 2048 + 512 * 3] = disk_image()[: 512 * 3]
    caller = Caller(Board(cds=(Memory(bytes(image)),), bios=True))
    assert caller.registers.rdx == 0
    caller.call(0x13, ax=0x0201, cx=3, dx=0, bx=0x9000)
    assert caller.read(0x9000, len(MESSAGE)) == MESSAGE
    assert caller.call(0x13, ax=0x0301, cx=3, dx=0, bx=0x9000) & CARRY
    assert caller.registers.rax >> 8 & 0xFF == 3


def test_a_cd_is_shown_as_a_hard_disk() -> None:
    """As drive 80H, as long as its partition, with its geometry; real disks come behind it."""
    image = bytearray(cd_image().ljust(2048 * 800, b"\0"))
    image[19 * 2048 + 33] = 4
    disk = bytearray(disk_image())
    partition = pack("<BBBBBBBBII", 0x80, 0, 2, 0, 6, 3, 16, 9, 16, 624)  # ends at (9, 3, 16)
    disk[446:462] = partition
    image[20 * 2048 : 20 * 2048 + 512 * 3] = disk[: 512 * 3]
    blank = Memory(bytes(1 << 20))
    caller = Caller(Board(cds=(Memory(bytes(image)),), disks=(blank,), bios=True))
    assert caller.registers.rdx == 0x80
    caller.call(0x13, ax=0x0800, dx=0x80)
    assert caller.registers.rdx & 0xFFFF == 0x0302
    assert caller.registers.rcx & 0x3F == 16
    caller.call(0x13, ax=0x0201, cx=3, dx=0x80, bx=0x9000)
    assert caller.read(0x9000, len(MESSAGE)) == MESSAGE
    assert caller.call(0x13, ax=0x0301, cx=3, dx=0x80, bx=0x9000) & CARRY
    assert not caller.call(0x13, ax=0x0301, cx=1, dx=0x81, bx=0x9000) & CARRY
    assert blank.read(0, 1).startswith(MESSAGE)
    bootable = Memory(disk_image())
    caller = Caller(Board(cds=(Memory(bytes(image)),), disks=(bootable,), bios=True))
    caller.call(0x13, ax=0x1500, dx=0x81)
    assert caller.registers.rax >> 8 & 0xFF == 0, "a disk that boots keeps its number"


def test_floppies_come_before_disks() -> None:
    board = Board(
        disks=(Memory(disk_image()),), floppies=(Memory(disk_image()[: 1440 << 10]),), bios=True
    )
    caller = Caller(board)
    assert caller.registers.rdx == 0
    caller.call(0x11)
    assert caller.registers.rax & 0xC1 == 0x01
    flags = caller.call(0x13, ax=0x0800, dx=0)
    assert not flags & CARRY
    assert caller.registers.rdx & 0xFF == 1


def test_nothing_to_boot() -> None:
    vm = VirtualMachine(MEMORY, board=Board(disks=(Memory(bytes(1 << 20)),), bios=True))
    with pytest.raises(BootError, match=r"drives: 80H.*55H AAH"):
        vm.boot()


def test_sectors_by_cylinder_head_and_sector() -> None:
    disk = Memory(b"\x55\xaa".rjust(512, b"\0") + numbered(2000))
    caller = Caller(Board(disks=(disk,), bios=True))
    assert not caller.call(0x13, ax=0x0800, dx=0x80) & CARRY
    sectors, heads = caller.registers.rcx & 0x3F, (caller.registers.rdx >> 8 & 0xFF) + 1
    assert (sectors, heads) == (63, 16)
    # Cylinder 1, head 2, sector 3.
    assert not caller.call(0x13, ax=0x0202, cx=0x0103, dx=0x0280, bx=0x9000) & CARRY
    first = (1 * 16 + 2) * 63 + 2
    assert caller.read(0x9000, 1024) == numbered(2000)[(first - 1) * 512 : (first + 1) * 512]
    for cx, dx in ((0x0100, 0x0280), (0xFF03, 0x0280), (0x0103, 0x2080)):
        assert caller.call(0x13, ax=0x0201, cx=cx, dx=dx, bx=0x9000) & CARRY
        assert caller.registers.rax >> 8 & 0xFF == 4
    assert caller.call(0x13, ax=0x0201, cx=1, dx=0x81, bx=0x9000) & CARRY


def test_sectors_by_packet() -> None:
    disk = Memory(b"\x55\xaa".rjust(512, b"\0") + bytes(512 * 99))
    caller = Caller(Board(disks=(disk,), bios=True))
    caller.call(0x13, ax=0x4100, bx=0x55AA, dx=0x80)
    assert caller.registers.rbx & 0xFFFF == 0xAA55
    memory = caller.vm.processor.memory
    memory.write(0x9000, b"written".ljust(512, b"!"))
    memory.write(0x8000, pack("<BBHHHQ", 16, 0, 1, 0x9000, 0, 42))
    assert not caller.call(0x13, ax=0x4300, si=0x8000, dx=0x80) & CARRY
    assert disk.read(42, 1) == b"written".ljust(512, b"!")
    memory.write(0x8000, pack("<BBHHHQ", 16, 0, 2, 0, 0xA00, 41))
    assert not caller.call(0x13, ax=0x4200, si=0x8000, dx=0x80) & CARRY
    assert caller.read(0xA000, 1024) == bytes(512) + b"written".ljust(512, b"!")
    memory.write(0x8000, pack("<BBHHHQ", 16, 0, 2, 0, 0xA00, 99))
    assert caller.call(0x13, ax=0x4200, si=0x8000, dx=0x80) & CARRY
    memory.write(0x8000, pack("<H", 26))
    assert not caller.call(0x13, ax=0x4800, si=0x8000, dx=0x80) & CARRY
    assert unpack("<QH", caller.read(0x8010, 10)) == (100, 512)


def test_memory() -> None:
    caller = Caller()
    caller.call(0x12)
    assert caller.registers.rax & 0xFFFF == 639
    entries = []
    following = 0
    while True:
        flags = caller.call(0x15, ax=0xE820, bx=following, cx=20, dx=0x534D4150, di=0x9000)
        assert not flags & CARRY
        assert caller.registers.rax & 0xFFFFFFFF == 0x534D4150
        entries.append(unpack("<QQI", caller.read(0x9000, 20)))
        following = caller.registers.rbx & 0xFFFFFFFF
        if not following:
            break
    assert (0x100000, MEMORY - 0x100000, 1) in entries
    caller.call(0x15, ax=0x8800)
    assert caller.registers.rax & 0xFFFF == MEMORY // 1024 - 1024
    caller.call(0x15, ax=0xE801)
    assert caller.registers.rax & 0xFFFF == 15 * 1024
    assert caller.registers.rbx & 0xFFFF == (MEMORY - (16 << 20)) >> 16
    assert caller.call(0x15, ax=0xD800) & CARRY
    assert caller.registers.rax >> 8 & 0xFF == 0x86


def test_the_screen_scrolls() -> None:
    caller = Caller()
    caller.call(0x10, ax=0x0003)
    for n in range(30):
        caller.call(0x10, ax=0x0E00 + ord("A") + n, bx=7)
        caller.call(0x10, ax=0x0E0D, bx=7)
        caller.call(0x10, ax=0x0E0A, bx=7)
    caller.call(0x10, ax=0x0300, bx=0)
    assert caller.registers.rdx & 0xFFFF == 24 << 8
    lines = caller.vm.devices.vga.text(caller.vm.processor.memory)
    assert lines[0] == chr(ord("A") + 6)
    assert lines[23] == chr(ord("A") + 29)


@pytest.mark.parametrize(
    ("mode", "font", "columns", "rows", "page"),
    [
        (0x01, 0x14, 40, 25, 0x800),
        (0x03, 0x14, 80, 25, 0x1000),
        (0x03, 0x11, 80, 28, 0x1800),
        (0x03, 0x12, 80, 50, 0x2000),
        (0x01, 0x12, 40, 50, 0x1000),
    ],
)
def test_text_modes_of_other_sizes(
    mode: int, font: int, columns: int, rows: int, page: int
) -> None:
    caller = Caller()
    vga, memory = caller.vm.devices.vga, caller.vm.processor.memory
    caller.call(0x10, ax=mode)
    caller.call(0x10, ax=0x1100 | font)
    assert (vga.text_mode.columns, vga.text_mode.rows) == (columns, rows)
    assert (caller.read(0x484, 1)[0], int.from_bytes(caller.read(0x44C, 2), "little")) == (
        rows - 1,
        page,
    )
    # A line of "1" on page 1, whose last character wraps; then that page scrolls by a row.
    caller.call(0x10, ax=0x0501)
    for _ in range(columns + 1):
        caller.call(0x10, ax=0x0E31, bx=7)
    assert vga.text(memory)[:2] == ["1" * columns, "1"]
    assert vga.cursor == (1, 1)
    caller.call(0x10, ax=0x0200, bx=0x100, dx=rows - 1 << 8)
    caller.call(0x10, ax=0x0E32, bx=7)
    assert vga.text(memory)[-1] == "2"
    caller.call(0x10, ax=0x0E0A, bx=7)
    assert vga.text(memory)[0] == "1"
    assert vga.text(memory)[-2] == "2"
    # Page 0 is as it was.
    caller.call(0x10, ax=0x0500)
    assert vga.text(memory) == [""] * rows


@pytest.mark.parametrize("mode", [0x04, 0x06, 0x0D, 0x12, 0x13])
def test_characters_are_read_back_in_graphics_modes(mode: int) -> None:
    caller = Caller()
    caller.call(0x10, ax=mode)
    caller.call(0x10, ax=0x0E41, bx=1)
    caller.call(0x10, ax=0x0200, bx=0, dx=0)
    caller.call(0x10, ax=0x0800, bx=0)
    assert caller.registers.rax & 0xFF == 0x41
    caller.call(0x10, ax=0x0C01, cx=0, dx=7)
    caller.call(0x10, ax=0x0C01, cx=3, dx=7)
    caller.call(0x10, ax=0x0800, bx=0)
    assert caller.registers.rax & 0xFF == 0


@pytest.mark.parametrize(("mode", "most"), [(0x04, 3), (0x06, 1)])
def test_pixels_of_the_cga(mode: int, most: int) -> None:
    caller = Caller()
    caller.call(0x10, ax=mode)
    for column in range(8):
        caller.call(0x10, ax=0x0C00 | column & most, cx=column, dx=3)
    caller.call(0x10, ax=0x0C80 | most, cx=1, dx=3)
    found = []
    for column in range(8):
        caller.call(0x10, ax=0x0D00, cx=column, dx=3)
        found.append(caller.registers.rax & 0xFF)
    assert found == [column & most ^ (most if column == 1 else 0) for column in range(8)]
    # The second odd line.
    at = 0xB8000 + 0x2000 + 80
    expected = int("".join(f"{value:0{most.bit_length()}b}" for value in found), 2)
    assert caller.read(at, 2)[: most.bit_length()] == expected.to_bytes(most.bit_length(), "big")


def test_time_passes() -> None:
    caller = Caller()
    caller.call(0x1A, ax=0)
    first = (caller.registers.rcx & 0xFFFF) << 16 | caller.registers.rdx & 0xFFFF
    # Two seconds.
    assert not caller.call(0x15, before=b"\xfb", ax=0x8600, cx=0x001E, dx=0x8480) & CARRY
    caller.vm.step(100_000)
    caller.call(0x1A, ax=0)
    assert (caller.registers.rcx & 0xFFFF) << 16 | caller.registers.rdx & 0xFFFF > first


def test_hostile_values_stay_in_the_guest() -> None:
    """Every service with every function, and registers and data area full of ones."""
    caller = Caller()
    services = caller.vm.bios
    assert services is not None
    vectors = (0x08, 0x09, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x17, 0x1A)
    calls = [(vector, function << 8 | 0xFF) for vector in vectors for function in range(256)]
    # Those of power management and PCI have functions of their own.
    calls += [
        (vector, ax | n) for vector, ax in ((0x15, 0x5300), (0x1A, 0xB100)) for n in range(16)
    ]
    for vector, ax in calls:
        caller.vm.processor.memory.write(0x417, b"\xff" * 0xE0)
        ones = 0xFFFF_FFFF
        caller.call(
            vector,
            ax=ax,
            bx=ones,
            cx=ones,
            dx=0xFFFF_FF80,
            si=ones,
            di=ones,
            bp=ones,
        )
    assert caller.vm.stopped is None


def test_the_command_boots_a_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(disk_image())
    before = disk.read_bytes()
    result = CliRunner().invoke(
        app, ["run", "--disk", str(disk), "--memory", "16M", "--keys", "z", "--json"]
    )
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    assert answer["end"] == "debug exit"
    assert answer["screen"] == ["read by firmware", "z"]
    assert disk.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--disk", "{}"], "nothing to boot"),
        (["--floppy", "{}", "--floppy", "{}", "--floppy", "{}"], "--floppy"),
        (["--floppy", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_drives_are_refused_in_a_line(tmp_path: Path, options: list[str], words: str) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    result = CliRunner().invoke(app, ["run", *(option.format(disk) for option in options)])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_power_management_turns_the_machine_off() -> None:
    caller = Caller()
    assert caller.call(0x15, ax=0x5301, bx=1) & CARRY
    assert not caller.call(0x15, ax=0x5300, bx=0) & CARRY
    assert (caller.registers.rax & 0xFFFF, caller.registers.rbx) == (0x0102, 0x504D)
    # Not before it is connected, and only in real mode.
    assert caller.call(0x15, ax=0x5307, bx=1, cx=3) & CARRY
    assert caller.registers.rax >> 8 & 0xFF == 0x03
    assert caller.call(0x15, ax=0x5303, bx=0) & CARRY
    assert caller.registers.rax >> 8 & 0xFF == 0x08
    assert not caller.call(0x15, ax=0x5301, bx=0) & CARRY
    assert not caller.call(0x15, ax=0x530E, bx=0, cx=0x0102) & CARRY
    assert caller.registers.rax & 0xFFFF == 0x0102
    assert not caller.call(0x15, ax=0x530A, bx=1) & CARRY
    assert caller.registers.rbx & 0xFFFF == 0x01FF
    assert caller.call(0x15, ax=0x530B) & CARRY
    assert caller.registers.rax >> 8 & 0xFF == 0x80
    code = b"\xb8\x07\x53\xbb\x01\x00\xb9\x03\x00\xcd\x15"
    caller.vm.processor.memory.write(CODE, code + b"\xeb\xfe")
    caller.vm.vmcs["GUEST_RIP"] = CODE
    stop = caller.vm.run(max_instructions=1000)
    assert (stop.end, stop.status) == (End.POWER_OFF, 0)


def test_idling_takes_time() -> None:
    caller = Caller()
    caller.call(0x15, ax=0x5301, bx=0)
    before = caller.vm.processor.time
    caller.call(0x15, ax=0x5305)
    assert caller.vm.processor.time - before > 1_000_000


def test_functions_of_the_pci_bus() -> None:
    caller = Caller()
    assert not caller.call(0x1A, ax=0xB101) & CARRY
    assert caller.registers.rdx & 0xFFFF_FFFF == 0x20494350
    assert (caller.registers.rax & 0xFFFF, caller.registers.rbx & 0xFFFF) == (1, 0x0210)
    # The IDE interface by its vendor and by its class; the second one of a kind there is not.
    for number, ecx in ((0xB102, 0x7010), (0xB103, 0x010180)):
        assert not caller.call(0x1A, ax=number, cx=ecx, dx=0x8086, si=0) & CARRY
        assert caller.registers.rbx & 0xFFFF == 1 << 3 | 1
        assert caller.call(0x1A, ax=number, cx=ecx, dx=0x8086, si=1) & CARRY
        assert caller.registers.rax >> 8 & 0xFF == 0x86
    assert caller.call(0x1A, ax=0xB102, cx=1, dx=0xFFFF, si=0) & CARRY
    assert caller.registers.rax >> 8 & 0xFF == 0x83


def test_registers_of_the_pci_bus() -> None:
    caller = Caller()
    address = 0x8000_1234
    caller.vm.devices.write(0xCF8, 4, address, 0)
    found = []
    for number in (0xB108, 0xB109, 0xB10A):
        assert not caller.call(0x1A, ax=number, bx=0, cx=0x5555_5555, di=0) & CARRY
        found.append(caller.registers.rcx)
    assert found == [0x5555_5586, 0x5555_8086, 0x1237_8086]
    caller.call(0x1A, ax=0xB109, bx=9, cx=0, di=0x04)
    command = caller.registers.rcx & 0xFFFF
    assert not caller.call(0x1A, ax=0xB10C, bx=9, cx=command ^ 5, di=4) & CARRY
    caller.call(0x1A, ax=0xB109, bx=9, di=4)
    assert caller.registers.rcx & 0xFFFF == command ^ 5
    assert caller.vm.devices.read(0xCF8, 4, 0) == address & ~3
    for ax, register in ((0xB109, 1), (0xB10A, 2), (0xB10D, 0x101)):
        assert caller.call(0x1A, ax=ax, bx=0, di=register) & CARRY
        assert caller.registers.rax >> 8 & 0xFF == 0x87
    assert caller.call(0x1A, ax=0xB106, bx=0) & CARRY


_LETTER_A = ("..###...", ".#...#..", ".#...#..", ".#####..", ".#...#..", ".#...#..", ".#...#..")


class Drawing(Caller):
    """A machine in a graphics mode, and what is on its screen."""

    memory = 64 << 20

    def __init__(self, mode: int) -> None:
        super().__init__()
        if mode < 0x100:
            self.call(0x10, ax=mode)
        else:
            self.call(0x10, ax=0x4F02, bx=mode | 0x4000)
        self.height = unpack("<H", self.read(0x485, 2))[0]
        self.rows = self.read(0x484, 1)[0] + 1

    def shown(self, column: int, row: int) -> list[str]:
        """A character's pixels: `#` where there is something else than the background."""
        pixels = self.vm.devices.vga.pixels(self.vm.processor.memory)
        assert pixels is not None
        part = pixels[row * self.height : (row + 1) * self.height, 8 * column : 8 * column + 8]
        return ["".join(".#"[int(pixel.any())] for pixel in line) for line in part]


@pytest.mark.parametrize(
    ("mode", "height", "rows", "colour"),
    [
        *((4, 8, 25, 3), (6, 8, 25, 1), (0x0D, 8, 25, 10), (0x0E, 8, 25, 15), (0x10, 14, 25, 7)),
        *((0x12, 16, 30, 12), (0x13, 8, 25, 14), (0x101, 16, 30, 9), (0x110, 16, 30, 15)),
        *((0x114, 16, 37, 15), (0x112, 16, 30, 15), (0x143, 16, 37, 15)),
    ],
)
def test_text_is_drawn_in_graphics_modes(mode: int, height: int, rows: int, colour: int) -> None:
    caller = Drawing(mode)
    assert (caller.height, caller.rows) == (height, rows)
    twice = height > 8
    letter = [line for line in _LETTER_A for _ in range(1 + twice)]
    above = (height - len(letter)) // 2
    expected = ["." * 8] * above + letter
    expected += ["." * 8] * (height - len(expected))
    blank = ["." * 8] * height
    caller.call(0x10, ax=0x0E41, bx=colour)
    assert caller.shown(0, 0) == expected
    assert caller.shown(1, 0) == blank
    # At the bottom the screen scrolls.
    caller.call(0x10, ax=0x0200, bx=0, dx=(rows - 1) << 8 | 3)
    caller.call(0x10, ax=0x0942, bx=colour, cx=2)
    caller.call(0x10, ax=0x0A41, bx=colour, cx=1)
    assert caller.shown(3, rows - 1) == expected
    assert caller.shown(4, rows - 1) != blank
    caller.call(0x10, ax=0x0E0A, bx=colour)
    assert caller.shown(3, rows - 2) == expected
    assert caller.shown(3, rows - 1) == blank
    assert caller.shown(0, 0) == blank
    # What is blended twice is gone; a window is cleared.
    if mode < 0x100:
        for _ in range(2):
            caller.call(0x10, ax=0x0941, bx=colour | 0x80, cx=1)
        assert caller.shown(3, rows - 1) == blank
    caller.call(0x10, ax=0x0600, bx=0, cx=(rows - 2) << 8 | 3, dx=(rows - 2) << 8 | 3)
    assert caller.shown(3, rows - 2) == blank


def test_guests_bring_characters_of_their_own() -> None:
    caller = Drawing(0x13)
    assert not caller.call(0x10, ax=0x1130, bx=0x0300) & CARRY
    assert (caller.registers.rcx & 0xFFFF, caller.registers.rdx & 0xFF) == (8, 24)
    at = caller.vm.vmcs["GUEST_ES_BASE"] + (caller.registers.rbp & 0xFFFF)
    assert caller.read(at + 8 * ord("A"), 8)[0] == 0x38
    caller.vm.processor.memory.write(0x9000 + 8 * 0x41, bytes.fromhex("8142241818244281"))
    caller.call(0x10, before=b"\x31\xc0\x8e\xc0\xb8\x21\x11", bx=0, cx=8, bp=0x9000)
    caller.call(0x10, ax=0x0E41, bx=15)
    assert caller.shown(0, 0)[0] == "#......#"
