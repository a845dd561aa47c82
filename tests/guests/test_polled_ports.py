"""Ports that are answered without the VMM's turn: nobody can tell but by the host's clock."""

from collections.abc import Callable

import pytest

from tests.guests.test_snapshots import END, machine, state
from trapgate.decision.faults import Interruption
from trapgate.instructions import polled_ports as polled
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import Action, End, Stop
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.clock import PM_TIMER_HERTZ, VirtualClock
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.exits.handlers import HANDLERS
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

ENGINES = pytest.mark.parametrize("engine", ["native", "portable"])
EXIT = b"\xe6\xf4"  # out F4h, al


def asked() -> Vmm:
    """A VMM with a handler of its own, which sees each exit."""
    return Vmm({ExitReason.IO_INSTRUCTION: _port})


def _port(vmexit: VmExit, vm: Platform) -> Action:
    return HANDLERS[ExitReason.IO_INSTRUCTION](vmexit, vm)


def drives() -> Board:
    disk, floppy = Memory(bytes(range(256)) * 1024), Memory(bytes(1440 << 10))
    return Board(disks=(disk,), floppies=(floppy,))


def real_mode(
    code: bytes, engine: str, vmm: Vmm | None = None, board: Board | None = None
) -> VirtualMachine:
    vm = VirtualMachine(1 << 20, engine=engine, vmm=vmm, board=board)
    vm.processor.memory.write(0x7C00, code)
    for name, value in {"GUEST_CS_SELECTOR": 0, "GUEST_CS_BASE": 0, "GUEST_RIP": 0x7C00}.items():
        vm.vmcs[name] = value
    vm.vmcs["GUEST_RSP"] = 0x7000
    return vm


def python_exits(vm: VirtualMachine) -> list[ExitReason]:
    """The reasons of the exits that come to the VMM from now on."""
    seen: list[ExitReason] = []
    handle = vm.vmm.handle

    def noting(vmexit: object, platform: object) -> object:
        seen.append(vmexit.reason)  # type: ignore[attr-defined]
        return handle(vmexit, platform)  # type: ignore[arg-type]

    vm.vmm.handle = noting  # type: ignore[method-assign, assignment]
    return seen


@ENGINES
@pytest.mark.parametrize("workload", ["demand", "faults"])
def test_the_bundled_guest_runs_the_same(engine: str, workload: str) -> None:
    quickly, slowly = machine(workload, engine), machine(workload, engine)
    slowly.vmm = asked()
    seen = python_exits(quickly)
    for vm in (quickly, slowly):
        vm.step(10_200_000 if engine == "native" else END)
        vm.inject(Interruption(6, InterruptionType.HARDWARE_EXCEPTION))
        vm.step(END)
    first, second = state(quickly), state(slowly)
    # What an exit reports is not kept of those that only the processor saw.
    del first["vmcs"], second["vmcs"]
    assert first == second
    assert b"panic" in quickly.output
    assert quickly.summary().exits[ExitReason.IO_INSTRUCTION] > 5 * len(seen)


# Read two sectors: drive and addresses, the command; both statuses before and behind each.
_DISK = (
    "51 baf601 b0e0 ee baf201 b002 ee 42 88c8 ee 42 b000 ee 42 ee baf701 b020 ee ec 00c3 ec 00c3"
    "8cc8 8ec0 bf0060 b90001 baf001 f36d baf603 ec 00c3 baf701 ec 00c3 ec 00c3"
    "b9ff00 baf001 f36d baf603 ec 00c3 baf001 6d baf701 ec 00c3 baf603 ec 00c3 59"
)
_LOOPS = {
    # in al, dx; test al, 20h; jz; mov al, cl; out 3F8h
    "polled output": ("", "bafd03 ec a820 74fb baf803 88c8 ee"),
    "timer": ("ba0806", "66ed 6601c3"),
    "post": ("", "88c8 e680 e480 00c3"),
    # out 43h, 0 (latch counter 0); in al, 40h, twice: as it is after reset; then live
    "counter, unloaded": ("", "b000 e643 e440 00c3 e440 00c3 e440 00c3"),
    "counter, mode 2": ("b034 e643 b0e8 e640 b003 e640", "b000 e643 e440 00c3 e440 00c3 e440 00c3"),
    "counter, mode 3": ("b036 e643 b001 e640 b010 e640", "e440 00c3 e440 00c3 b000 e643 e440 00c3"),
    "counter, mode 0": ("b030 e643 b0ff e640 b0ff e640", "b000 e643 b000 e643 e440 00c3 e440 00c3"),
    "counter, decimal": ("b035 e643 b000 e640 b010 e640", "b000 e643 e440 00c3 e440 00c3"),
    "counter, low bytes": ("b014 e643 b050 e640", "e440 00c3 b000 e643 e440 00c3"),
    "counter, read back": (
        "b034 e643 b0e8 e640 b003 e640",
        "b0c2 e643 e440 00c3 e440 00c3 e440 00c3",
    ),
    "counter, reloaded": (
        "b034 e643 b010 e640 b000 e640",
        "b020 e640 b000 e640 e440 00c3 e440 00c3",
    ),
    # gate of counter 2; mode 0 of 1000 ticks; then its output, polled
    "speaker": ("e461 0c01 e661 b0b0 e643 b0e8 e642 b003 e642", "e461 00c3 e442 00c3 e442 00c3"),
    "speaker, mode 3": ("b003 e661 b0b6 e643 b040 e642 b000 e642", "e461 00c3 e461 00c3"),
    "speaker, gated": ("b0b0 e643 b040 e642 b000 e642", "e461 00c3 e461 3401 e661 e461 00c3"),
    "clock": ("b08a e670", "e471 00c3 e471 00c3"),
    "clock, other registers": ("", "b00a e670 e471 00c3 b00c e670 e471 00c3 b000 e670 e471 00c3"),
    "clock, set": ("b00b e670 b082 e671", "b00a e670 e471 00c3 b00b e670 e471 00c3"),
    "keyboard": ("", "e464 00c3 b0aa e664 e464 00c3 e460 00c3"),
    "interrupts on": ("b003 baf903 ee", "bafd03 ec 00c3 baf803 88c8 ee bafa03 ec 00c3"),
    "loopback": ("b010 bafc03 ee", "baf803 88c8 ee bafd03 ec 00c3 baf803 ec 00c3"),
    "divisor": ("b083 bafb03 ee", "baf803 88c8 ee bafd03 ec 00c3 baf803 ec 00c3"),
    "input": ("", "bafd03 ec a801 7404 baf803 ec 00c3"),
    "strings": ("8cc88ed8 8ec0", "51 be007c b92000 baf803 f36e bafd03 bf0060 b92000 f36c 59"),
    "retrace": ("", "bada03 ec 00c3 ec 00c3"),
    # index, value, and what that index chooses, with and without a look at the retrace between
    "attributes": ("", "bac003 88c8 ee bada03 ec bac003 b010 ee bac103 ec 00c3 bac003 ee"),
    "cursor": ("", "bad403 88c8 240f ee 42 88c8 ee ec 00c3 4a ec 00c3"),
    # SENSE INTERRUPT STATUS, the main status before, between and behind
    "floppy": ("", "baf403 ec 00c3 42 b008 ee 4a ec 00c3 42 ec 00c3 ec 00c3 4a ec 00c3"),
    "disk": ("baf603 b000 ee", _DISK),
    "disk, polled": ("baf603 b002 ee", _DISK),
    "disk, to the next page": ("", _DISK.replace("bf0060", "bf005f")),
    "disk, to the segment's end": ("", _DISK.replace("bf0060", "bf00fe")),
    "disk, downwards": ("fd", _DISK),
    "disk, double words": ("", _DISK.replace("b90001 baf001 f36d", "b98000 baf001 66f36d")),
    "disk, addresses of 32 bits": (
        "66bf78563412 66b978563412",
        _DISK.replace("bf0060 b90001 baf001 f36d", "66bf00600000 66b900010000 baf001 67f36d"),
    ),
    "disk, into video memory": ("", _DISK.replace("8cc8 8ec0", "b800b8 8ec0")),
    "disk, the other drive": ("baf601 b0f0 ee", "baf701 ec 00c3 baf603 ec 00c3 ba7703 ec 00c3"),
    # pushf; pop ax; or ah, 1; push ax; popf
    "single steps": ("9c 58 80cc01 50 9d", "bafd03 ec baf803 88c8 ee"),
}
"""What is done once, and what 200 times, CX counting."""


def loop(begin: str, body: str) -> bytes:
    code = bytes.fromhex(body)
    back = (-len(code) - 3) & 0xFFFF
    return (
        bytes.fromhex(begin)
        + b"\xb9\xc8\x00"
        + code
        + b"\x49\x0f\x85"
        + (back - 2 & 0xFFFF).to_bytes(2, "little")
        + b"\x88\xd8"
        + EXIT
    )


@ENGINES
@pytest.mark.parametrize("name", _LOOPS)
def test_loops_over_ports_run_the_same(engine: str, name: str) -> None:
    code = loop(*_LOOPS[name])
    quickly = real_mode(code, engine, board=drives())
    slowly = real_mode(code, engine, asked(), board=drives())
    ends = []
    for vm in (quickly, slowly):
        vm.processor.memory.write(4, b"\x00\x05\x00\x00")  # #DB: inc bp; iret
        vm.processor.memory.write(0x500, b"\x45\xcf")
        vm.type(b"typed")
        stop = vm.run(max_instructions=3_000_000)
        assert stop.end is End.DEBUG_EXIT
        found = state(vm)
        del found["vmcs"]
        if name.startswith("disk"):
            # The end of a block is for the VMM, so where it has blocks they are two for it.
            del found["exits"]
        ends.append((stop, found, vm.processor.skipped, vm.devices.post.code))
    assert ends[0] == ends[1]


def ring_3(vm: VirtualMachine, iopl: int) -> None:
    """Let the code at 7C00H be in ring 3 of protected mode, with no I/O bitmap."""
    vm.vmcs.set_flat_segments(32, user=True)
    vm.vmcs["GUEST_CR0"] |= 1
    vm.vmcs["GUEST_TR_LIMIT"] = 103
    vm.vmcs["GUEST_RIP"] = 0x7C00
    vm.vmcs["GUEST_RFLAGS"] = 2 | iopl << 12


@ENGINES
@pytest.mark.parametrize("iopl", [0, 3])
def test_the_guest_needs_permission(engine: str, iopl: int) -> None:
    vm = real_mode(
        b"\xba\xfd\x03\x00\x00\xec\xba\xf8\x03\x00\x00\xee\xba\xf4\x00\x00\x00\xee", engine
    )
    ring_3(vm, iopl)
    stop = vm.run(max_instructions=100)
    assert stop.end is (End.DEBUG_EXIT if iopl else End.TRIPLE_FAULT)
    assert len(vm.output) == (1 if iopl else 0)


@ENGINES
def test_ports_that_do_not_exit_have_nothing_behind_them(engine: str) -> None:
    vm = real_mode(bytes.fromhex("bafd03 ec 88c3 b041 baf803 ee 88d8") + EXIT, engine)
    vm.vmcs["IO_BITMAP_A_ADDRESS"], vm.vmcs["IO_BITMAP_B_ADDRESS"] = 0x2000, 0x3000
    vm.processor.memory.write(0x2000 + 0xF4 // 8, b"\x10")
    vm.vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= 1 << 25
    stop = vm.run(max_instructions=100)
    assert (stop.end, stop.message) == (End.DEBUG_EXIT, "the guest exited with status 127")
    assert vm.output == b""


def test_a_run_ends_with_the_byte_that_is_waited_for() -> None:
    class Sink:
        def write(self, data: bytes) -> int:
            return len(data)

        def flush(self) -> None: ...

    ends = []
    for vmm in (None, asked()):
        console = Console(Sink(), until="C")
        vm = VirtualMachine(1 << 20, console=console, vmm=vmm)
        vm.processor.memory.write(0x7C00, bytes.fromhex("b041 baf803 ee fec0 ebfb"))
        vm.vmcs["GUEST_CS_SELECTOR"] = vm.vmcs["GUEST_CS_BASE"] = 0
        vm.vmcs["GUEST_RIP"] = 0x7C00
        stop = vm.run(max_instructions=10_000)
        ends.append((stop, vm.processor.time))
    assert ends[0] == ends[1]
    assert ends[0][0].end is End.UNTIL


def test_output_beyond_the_queue_and_beyond_what_is_kept() -> None:
    code = bytes.fromhex("66b900001100 baf803 ee 6649 75fb b005") + EXIT
    vm = real_mode(code, "native")
    seen = python_exits(vm)
    vm.run(max_instructions=10_000_000)
    assert len(vm.output) == 1 << 20
    assert vm.summary().exits[ExitReason.IO_INSTRUCTION] == 0x110001
    assert len(seen) < 0x110001 // 500


def test_a_machine_whose_vmm_has_vectors_answers_nothing() -> None:
    vm = real_mode(
        b"\xba\xfd\x03\xec" + EXIT, "native", Vmm(vectors={3: lambda vmexit, vm: _stop()})
    )
    seen = python_exits(vm)
    vm.run(max_instructions=10)
    assert seen == [ExitReason.IO_INSTRUCTION] * 2


def _stop() -> Stop:
    return Stop(End.STOPPED_BY_VMM, "", 0)


@pytest.mark.parametrize("now", [0, 1, 999, 10**9 - 1, 10**9, 7 * 10**15 + 3, (1 << 62) - 1])
def test_ticks_are_those_of_the_devices(now: int) -> None:
    clock = VirtualClock()
    ticks: Callable[..., int] = polled.ticks
    assert ticks(now, PM_TIMER_HERTZ, clock.hertz) == clock.ticks(now, PM_TIMER_HERTZ)
