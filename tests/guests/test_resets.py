"""A guest resets its machine: memory and clock go on, devices come up, firmware starts again."""

import json
from pathlib import Path
from struct import pack

import pytest
from typer.testing import CliRunner

from tests.guests.test_firmware import MEMORY, SEABIOS, needs_seabios
from trapgate.cli import app
from trapgate.cli.board import board
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.pc import Pc
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.loaders.bios import load_bios
from trapgate.vmm.machine import VirtualMachine

ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])
COUNT, BOOTS = 0x5000, 3
KEYBOARD = "b0fe e664"
WAYS = {
    "8042": KEYBOARD,
    "CF9H": "baf90c b006 ee",
    "port 92H": "b001 e692",
    "INT 19H": "cd19",
    "the reset vector": "ea 0000 ffff",
    "POST's entry": "ea 5be0 00f0",
}
TRIPLE_FAULT = "0f011e0060 cc"
"""Lidt [6000h], where zeros are; int3."""


def sector(way: str) -> bytes:
    """Count in memory; show the 8259's mask at port E9H and clear it; reset, or leave at 3."""
    code = "31c0 8ed8 fe060050 e421 e6e9 b000 e621 a00050 3c03 7408".replace(" ", "")
    reset = bytes.fromhex(way).ljust(8, b"\xf4")
    return (bytes.fromhex(code) + reset + b"\xe6\xf4\xf4").ljust(510, b"\0") + b"\x55\xaa"


def machine(way: str, engine: str = "native", processors: int = 1) -> VirtualMachine:
    plugged = Board(
        disks=(Memory(sector(way).ljust(1 << 20, b"\0")),), bios=True, processors=processors
    )
    vm = VirtualMachine(MEMORY, engine=engine, board=plugged)
    vm.boot()
    vm.reboots = True
    return vm


SLEEPER = (
    "31c0 8ed8 8ed0 bc007c b800f0 8ec0"  # segments 0, ES F000H
    "2666c7068c00617c0000 66c706009078563412"  # the waking vector is 7C61H; a mark at 9000H
    "b000e670e471 0402 27 3c60 7202 2c60 88c4"  # the CMOS clock's second, and two more
    "b001e67088e0e671 b003e670b0c0e671 b005e670b0c0e671 b00be670b0ENe671"  # alarm, interrupts
    "ba0206b80004ef ba0406b80024ef f4"  # PM1: the alarm wakes; S3
    "66813e009078563412 7510"  # 7C61H: is the mark there,
    "ba0006ed2500843d00847504 b000e6f4 b002e6f4"  # and WAK_STS and RTC_STS?
)


def sleeper(enables: int, engine: str, wakes: str = "0004") -> VirtualMachine:
    """A guest that sets an alarm, sleeps, and leaves with status 0 if it wakes as it should."""
    code = bytes.fromhex(
        SLEEPER.replace("EN", f"{enables:02x}").replace("b80004ef", f"b8{wakes}ef")
    )
    disk = Memory(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(512))
    vm = VirtualMachine(MEMORY, engine=engine, board=Board(disks=(disk,), bios=True))
    vm.boot()
    return vm


@ENGINES
def test_a_guest_sleeps_until_its_alarm(engine: str) -> None:
    """In S3: memory stays, virtual time passes, and it goes on at its waking vector."""
    vm = sleeper(0x22, engine)
    stop = vm.run(timeout=60)
    assert (stop.end, stop.status) == (End.DEBUG_EXIT, 0)
    assert vm.processor.skipped > 1_000_000_000


def test_a_sleep_that_nothing_ends_ends_the_run() -> None:
    vm = sleeper(0x02, "native")
    stop = vm.run(timeout=60)
    assert (stop.end, stop.status) == (End.ASLEEP, 0)
    assert "nothing will wake it" in stop.message


def statuses(vm: VirtualMachine) -> int:
    """PM1's statuses (ACPI Specification, "PM1 Status Registers")."""
    return vm.devices.read(0x600, 2, vm.processor.time)


@pytest.mark.parametrize("way", ["key", "button", "button, no interrupt"])
def test_keys_and_the_power_button_end_a_sleep(way: str) -> None:
    """ACPI Specification, "Power Button Override" and "Waking": WAK_STS, and PWRBTN_STS if it was.

    The guest sleeps without an alarm; what ends its sleep is planned.
    """
    vm = sleeper(0x02, "native", "0001" if way == "button" else "0004")

    def act(vm: VirtualMachine) -> None:
        assert vm.devices.power.asleep
        if way == "key":
            vm.devices.keyboard.type("a")
        else:
            vm.devices.power.press_button()

    vm.at(5_000_000_000, act)
    stop = vm.run(timeout=60)
    # It misses RTC_STS.
    assert (stop.end, stop.message) == (End.DEBUG_EXIT, "the guest exited with status 2")
    assert statuses(vm) & ~1 == (0x8000 if way == "key" else 0x8100)
    assert vm.processor.time > 5_000_000_000
    if way == "key":
        assert vm.devices.read(0x60, 1, 0) == 0x1E


def test_somebody_who_watches_is_waited_for() -> None:
    """A display, say, from which a key may come at any time of the host's."""
    vm = sleeper(0x02, "native")
    looked: list[int] = []

    def watch(vm: VirtualMachine) -> None:
        if vm.devices.power.asleep:
            looked.append(vm.processor.time)
        if len(looked) == 3:
            vm.devices.power.call()

    vm.watchers.append(watch)
    assert vm.run(timeout=60).end is End.DEBUG_EXIT
    assert looked == [looked[0]] * 3


def test_the_power_button_is_an_interrupt() -> None:
    """PWRBTN_EN and PWRBTN_STS together are an SCI; a one clears the status."""
    pc = Pc(1 << 20, lambda byte: None)
    for port, size, value in ((0x21, 1, 0xFB), (0xA1, 1, 0xFD), (0x602, 2, 0x100)):
        pc.write(port, size, value, 0)
    assert not pc.pending()
    pc.power.press_button()
    assert pc.read(0x600, 2, 0) == 0x100
    pc.write(0xA0, 1, 0x0A, 0)
    assert pc.read(0xA0, 1, 0) == 2
    pc.write(0x600, 2, 0x100, 0)
    assert pc.read(0x600, 2, 0) == 0


@ENGINES
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_bios_boots_again(way: str, engine: str) -> None:
    vm = machine(way, engine)
    stop = vm.run(max_instructions=50_000_000)
    assert (stop.end, stop.message) == (End.DEBUG_EXIT, f"the guest exited with status {BOOTS}")
    assert vm.summary().resets == BOOTS - 1
    assert bytes(vm.output) == b"\xb8" * BOOTS
    assert vm.devices.bus.event is not None


def test_other_processors_wait_again() -> None:
    vm = machine(WAYS["CF9H"], processors=3)
    assert vm.run(max_instructions=50_000_000).status == 1
    assert [cpu.activity for cpu in vm.cpus] == [0, 3, 3]
    assert vm.cpu.number == 0


def test_without_reboots_a_reset_ends() -> None:
    vm = machine(WAYS["8042"])
    vm.reboots = False
    stop = vm.run(max_instructions=50_000_000)
    assert stop.end is End.RESET
    assert vm.summary().resets == 0


def test_a_kernel_has_nothing_to_start_again() -> None:
    vm = VirtualMachine(MEMORY)
    vm.load(parse_guest(bytes.fromhex("b0fe e664 f4"), file="k", memory=MEMORY))
    vm.reboots = True
    assert vm.run(max_instructions=50_000_000).end is End.RESET


def test_a_triple_fault_is_a_reset_only_if_asked_for() -> None:
    vm = machine(TRIPLE_FAULT)
    assert vm.run(max_instructions=50_000_000).end is End.TRIPLE_FAULT
    vm = machine(TRIPLE_FAULT)
    vm.resets_on_triple_fault = True
    stop = vm.run(max_instructions=50_000_000)
    assert (stop.end, vm.summary().resets) == (End.DEBUG_EXIT, BOOTS - 1)


@ENGINES
@pytest.mark.parametrize(("code", "mask"), [(0x0A, b"\x77"), (0x05, b"\x77")])
def test_a_shutdown_code_brings_back_from_protected_mode(
    code: int, mask: bytes, engine: str
) -> None:
    """What a 286's extender does: into protected mode, and by a reset out of it."""
    resume = 0x7C00 + 0x60
    entry = 0x7C00 + 0x40
    gdt = pack("<QQ", 0, 0x00009A000000FFFF)
    table = pack("<HI", 15, 0x7C00 + 0x90)
    low = bytes.fromhex("fa 31c0 8ed8 b077 e621") + b"\xb0\x0f\xe6\x70\xb0" + bytes((code,))
    low += b"\xe6\x71\xc7\x06\x67\x04" + pack("<H", resume) + b"\xc7\x06\x69\x04\0\0"
    low += b"\x0f\x01\x16" + pack("<H", 0x7C00 + 0xA0) + bytes.fromhex("0f20c0 0c01 0f22c0")
    low += b"\xea" + pack("<HH", entry, 8)
    assert len(low) < 0x40
    protected = bytes.fromhex(KEYBOARD + "f4")
    # Back: the mask is as it was, CR0.PE is 0, and the code is gone.
    back = bytes.fromhex("31c0 8ed8 e421 e6e9 b00f e670 e471 e6e9 0f20c0 e6f4 f4")
    body = low.ljust(0x40, b"\x90") + protected.ljust(0x20, b"\xf4") + back
    body = body.ljust(0x90, b"\0") + gdt + table
    boot = body.ljust(510, b"\0") + b"\x55\xaa"
    plugged = Board(disks=(Memory(boot.ljust(1 << 20, b"\0")),), bios=True)
    vm = VirtualMachine(MEMORY, engine=engine, board=plugged)
    vm.boot()
    vm.reboots = True
    stop = vm.run(max_instructions=1_000_000)
    assert stop.end is End.DEBUG_EXIT
    assert bytes(vm.output) == mask + b"\0"
    assert vm.vmcs["CR0_READ_SHADOW"] & 1 == 0
    assert vm.summary().resets == 1


@needs_seabios
@ENGINES
def test_seabios_starts_again(engine: str) -> None:
    plugged = board([], [], [], SEABIOS, MEMORY, processors=2)
    disk = Memory(sector(WAYS["CF9H"]).ljust(1 << 20, b"\0"))
    plugged = type(plugged)(disks=(disk,), firmware=True, files=plugged.files, processors=2)
    vm = VirtualMachine(MEMORY, engine=engine, board=plugged)
    vm.load(load_bios(SEABIOS))
    vm.reboots = True
    stop = vm.run(timeout=120)
    assert (stop.end, stop.message) == (End.DEBUG_EXIT, f"the guest exited with status {BOOTS}")
    assert bytes(vm.output).count(b"SeaBIOS (version") == BOOTS


def test_the_command_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(sector(WAYS["8042"]).ljust(1 << 20, b"\0"))

    def run(*options: str) -> dict[str, object]:
        arguments = ["run", "--disk", str(disk), "--memory", "32M", "--json", "--timeout", "60"]
        answer = CliRunner().invoke(app, [*arguments, *options])
        found: dict[str, object] = json.loads(answer.stdout)
        return found

    assert run()["resets"] == BOOTS - 1
    ended = run("--no-reboot")
    assert ended["end"] == "reset"
    assert "resets" not in ended
