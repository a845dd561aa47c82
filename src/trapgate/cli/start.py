"""Where a run begins: a saved machine, a guest, or what the built-in BIOS boots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trapgate.cli.run_options import Options, memory_size
from trapgate.cli.saved import open_saved, plugged_in
from trapgate.cli.terminal import Paging

if TYPE_CHECKING:
    from trapgate.vmm.devices.board import Board
    from trapgate.vmm.loaders.image import GuestImage
    from trapgate.vmm.machine import VirtualMachine
    from trapgate.vmm.saved_machine import SavedMachine


class Start(NamedTuple):
    """Where a run begins: a saved machine, a guest in `image`, or what the built-in BIOS boots.

    `file` is what the user gave, `board` what is plugged in.
    """

    file: Path
    board: Board
    image: GuestImage | None = None
    saved: SavedMachine | None = None

    def put_into(self, vm: VirtualMachine) -> tuple[str, int]:
        """Load the guest, if the machine has none yet: what it is, and how wide its code is."""
        if self.saved is not None:
            return f"{self.file}, saved at {self.saved.time:,} instructions", code_bits(vm)
        image = self.image
        if image is None:
            image = vm.boot()
        else:
            vm.load(image)
        return image.description, image.bits


def start_of(given: Options) -> Start:
    """Read what the options name: guest, drives, firmware."""
    from trapgate.cli.board import board
    from trapgate.vmm.loaders import load_guest
    from trapgate.vmm.loaders.bios import load_bios

    drives = given.disk or [], given.cdrom or [], given.floppy or []
    memory, guest = memory_size(given.memory), given.guest
    if given.load is not None:
        saved = open_saved(given.load, given.engine.value, _beside_a_saved_machine(given))
        return Start(given.load, plugged_in(saved, *drives), saved=saved)
    plugged = board(
        *drives,
        given.bios,
        memory,
        processors=given.cpus,
        kernel=guest is not None,
        testdev=given.testdev,
    )
    if guest is not None:
        image = load_guest(
            guest,
            memory=memory,
            append=given.append,
            initrd=given.initrd,
            modules=given.module or [],
            processors=given.cpus,
        )
        return Start(guest, plugged, image)
    if given.bios is not None:
        return Start(given.bios, plugged, load_bios(given.bios))
    disks, cds, floppies = drives
    return Start(Path((floppies + disks + cds)[0].partition(",")[0]), plugged)


def _beside_a_saved_machine(given: Options) -> dict[str, bool]:
    """Options that a saved machine has its own answers to: whether they were given."""
    return {
        "GUEST": given.guest is not None,
        "--bios": given.bios is not None,
        "--memory": given.memory is not None,
        "--append": bool(given.append),
        "--initrd": given.initrd is not None,
        "--module": bool(given.module),
        "--vmcs": given.vmcs is not None,
        "--paging": given.paging is not Paging.own or given.protect is not None,
        "--cpus": given.cpus != 1,
        "--testdev": given.testdev,
        "--seed": given.seed != 0,
    }


def code_bits(vm: VirtualMachine) -> int:
    """How wide the code is that a guest has come to: 64 in IA-32e mode, else 32."""
    return 64 if vm.vmcs["GUEST_IA32_EFER"] >> 10 & 1 else 32
