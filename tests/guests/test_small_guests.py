"""A few instructions on the whole machine, for what only firmware and handlers together do."""

from pathlib import Path

import pytest

from tests.unit.guest_files import boot_sector
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine

MEMORY = 4 << 20
LEAVE = b"\xe6\xf4"  # out 0F4h, al
STOP = b"\xf4"


def status(tmp_path: Path, guest: bytes) -> int:
    """What the guest leaves with at the debug-exit port."""
    (tmp_path / "guest").write_bytes(guest)
    vm = VirtualMachine(MEMORY)
    vm.load(load_guest(tmp_path / "guest", memory=MEMORY))
    stop = vm.run(max_instructions=1_000_000)
    assert stop.end == End.DEBUG_EXIT, stop
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
