"""A few instructions on the whole machine, for what only firmware and handlers together do."""

from pathlib import Path

import pytest

from tests.unit.guest_files import boot_sector
from trapgate.decision.decide import Disposition
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.summary import EventKind

MEMORY = 4 << 20
LEAVE = b"\xe6\xf4"  # out 0F4h, al
STOP = b"\xf4"


def machine(tmp_path: Path, guest: bytes) -> VirtualMachine:
    (tmp_path / "guest").write_bytes(guest)
    vm = VirtualMachine(MEMORY)
    vm.load(load_guest(tmp_path / "guest", memory=MEMORY))
    return vm


def finished(tmp_path: Path, guest: bytes) -> VirtualMachine:
    """The guest's machine after it has left through the debug-exit port."""
    vm = machine(tmp_path, guest)
    stop = vm.run(max_instructions=100_000_000)
    assert stop.end == End.DEBUG_EXIT, stop
    return vm


def status(tmp_path: Path, guest: bytes) -> int:
    """What the guest leaves with at the debug-exit port."""
    stop = finished(tmp_path, guest).stopped
    assert stop is not None
    return stop.status


@pytest.mark.parametrize(("service", "carry"), [(0x10, 0), (0x13, 1), (0x15, 1), (0x1A, 0)])
def test_the_services_of_a_bios_that_is_not_there(tmp_path: Path, service: int, carry: int) -> None:
    # clc; mov ax, 0E820h; int service; mov al, 0; adc al, 0
    code = b"\xf8\xb8\x20\xe8\xcd" + bytes([service]) + b"\xb0\x00\x14\x00" + LEAVE + STOP
    assert status(tmp_path, boot_sector(code)) == carry


def test_one_move_to_cr0_turns_long_mode_on_and_exits(tmp_path: Path) -> None:
    # CR0.NE belongs to the VMM. A guest may set it together with PG; then it is the VMM's
    # handler that turns IA-32e mode on, and the VM-entry control has to follow.
    code = bytes.fromhex(
        "c7050020000007300000"  # mov dword [2000h], 3007h: PML4
        "c7050030000007400000"  # page-directory pointers
        "c7050040000087000000"  # a page of 2 MiB
        "0f20e0 83c820 0f22e0"  # CR4.PAE
        "b800200000 0f22d8"
        "b9800000c0 0f32 0d00010000 0f30"  # EFER.LME
        "0f20c0 0d20000080 0f22c0"  # CR0.PG and NE
        "0f32 c1e80a 3401"  # EFER.LMA, inverted
    )
    assert status(tmp_path, code + LEAVE + STOP) == 0


@pytest.mark.parametrize("string", [b"\xf3\x6d", b"\xf3\x6f"], ids=["insw", "outsw"])
@pytest.mark.parametrize("prefix", [b"", b"\x36"], ids=["", "ss"])
@pytest.mark.parametrize("port", [0x80, 0x1F0, 0x2F8])
def test_string_io_stops_at_the_end_of_64_kb(
    tmp_path: Path, prefix: bytes, string: bytes, port: int
) -> None:
    # Its third word would be at FFFFH. OUTS, which heeds SS, gets #SS then, INS #GP.
    code = bytes.fromhex(
        "31c0 8ed8 8ec0 fc"
        "c7063000 807c 8c1e3200"  # vector 12
        "c7063400 907c 8c1e3600"  # vector 13
        "bffbff befbff b90500 ba"
    )
    code += port.to_bytes(2, "little") + prefix + string + b"\xb0\xee" + LEAVE + STOP
    code = code.ljust(0x80, STOP) + b"\x88\xc8\x04\x10" + LEAVE + STOP  # CL + 10H
    code = code.ljust(0x90, STOP) + b"\x88\xc8\x04\x20" + LEAVE + STOP  # CL + 20H
    stack_fault = prefix != b"" and string == b"\xf3\x6f"
    stop = finished(tmp_path, boot_sector(code)).stopped
    assert stop is not None
    assert stop.message.endswith(f"status {0x13 if stack_fault else 0x23}")


EOI = bytes.fromhex("b020e620")
# IRQ 0 every millisecond as vector 8, the vector of double faults.
TIMER = bytes.fromhex(
    "b011e620 b008e621 b004e621 b001e621 b0fee621"  # 8259: vectors from 8, only IRQ 0
    "b034e643 b0a9e640 b004e640"  # 8254: channel 0 divides by 4A9H
)


def test_a_timer_whose_interrupt_stays_in_service_ends_with_the_limit(tmp_path: Path) -> None:
    vm = machine(tmp_path, boot_sector(TIMER + b"\xfb\xf4\xf4" + LEAVE + STOP))
    stop = vm.run(max_instructions=50_000_000, timeout=60)
    assert stop.end is End.LIMIT
    assert "instructions" in stop.message
    assert vm.summary().events[EventKind.INTERRUPT] == {8: {Disposition.DELIVER: 1}}


def test_a_summary_tells_interrupts_from_the_exceptions_of_their_vectors(tmp_path: Path) -> None:
    code = b"\xcd\x10" * 3 + TIMER + (b"\xfb\xf4" + EOI) * 2 + b"\xfa" + LEAVE + STOP
    summary = finished(tmp_path, boot_sector(code)).summary()
    assert summary.faults == {}
    assert summary.events[EventKind.SOFTWARE_INTERRUPT] == {0x10: {Disposition.DELIVER: 3}}
    assert summary.events[EventKind.INTERRUPT] == {8: {Disposition.DELIVER: 2}}
    assert summary.injected == {
        EventKind.FAULT: {},
        EventKind.INTERRUPT: {8: 2},
        EventKind.SOFTWARE_INTERRUPT: {},
    }
    assert summary.count(Disposition.DELIVER) == 5
    assert summary.count(Disposition.DELIVER, 0x10) == summary.delivered_directly(8) == 0


def test_a_summary_tells_halted_time_from_instructions(tmp_path: Path) -> None:
    awake = finished(tmp_path, boot_sector(TIMER + LEAVE + STOP)).summary()
    assert awake.halted <= 3000, "what port writes wait for"
    halts = finished(
        tmp_path, boot_sector(TIMER + (b"\xfb\xf4" + EOI) * 9 + LEAVE + STOP)
    ).summary()
    # Nine sleeps of a millisecond, and the few instructions between them.
    assert halts.halted > 8_000_000
    assert awake.executed < halts.executed < 1000
    assert halts.executed + halts.halted == halts.instructions


def test_a_guest_that_halts_again_and_again_meets_the_limit(tmp_path: Path) -> None:
    again = b"\xeb" + bytes([0xFC - len(EOI)])
    vm = machine(tmp_path, boot_sector(TIMER + b"\xfb\xf4" + EOI + again))
    stop = vm.run(max_instructions=20_000_000)
    summary = vm.summary()
    assert stop.end is End.LIMIT
    assert stop.message == (
        f"{summary.executed} instructions executed, halted for {summary.halted} ns of virtual time"
    )
    assert summary.executed < 1000 < summary.halted
