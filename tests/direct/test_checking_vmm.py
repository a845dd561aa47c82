"""A VMM that keeps copies of all tables, on Linux: nothing changes in one that it has not seen."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.suite import LINUX
from trapgate.paging import frame_map as fm
from trapgate.processor.vm_exit import VmExit
from trapgate.vmm.actions import Action, End, Stop
from trapgate.vmm.direct import linking
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.ui.console import Console

pytestmark = [pytest.mark.linux, pytest.mark.slow]

MEMORY = 256 << 20
ENOUGH = 1_000_000
ACCESSED_AND_DIRTY = np.uint64(0x60)


class CheckingMachine(ProtectedMachine):
    """Without a filter each write to a table exits; before each is carried out all are compared."""

    comparisons = unseen = 0
    _frames: NDArray[np.int64] = np.zeros(0, np.int64)
    _copies: NDArray[np.uint64] = np.zeros((0, 512), np.uint64)

    def carry_out(self, vmexit: VmExit, user: int) -> Action:
        words = self.processor.memory.cells.view(np.uint64).reshape(-1, 512)
        differences = (words[self._frames] ^ self._copies) & ~ACCESSED_AND_DIRTY
        self.unseen += int(np.count_nonzero(differences))
        self.comparisons += len(self._frames)
        action = super().carry_out(vmexit, user)
        self._keep()
        if self.comparisons >= ENOUGH or self.unseen:
            return Stop(End.LIMIT, "compared enough")
        return action

    def load_cr3(self, value: int) -> Action:
        action = super().load_cr3(value)
        self._keep()
        return action

    def _keep(self) -> None:
        """Copies of what is a table now."""
        everything = self.processor.memory.cells.view(np.uint8)
        frame_map = everything[self.memory :][: self.memory >> 12]
        self._frames = np.flatnonzero(frame_map & fm.TABLE)
        self._copies = everything.view(np.uint64).reshape(-1, 512)[self._frames]


def checked(flushes: bool) -> CheckingMachine:
    if not (LINUX / "vmlinuz-amd64").exists():
        pytest.skip("run tools/fetch-linux")
    vm = CheckingMachine(MEMORY, console=Console(io.BytesIO(), until="# $"))
    vm.vmcs["FAULT_FILTER"] = vm.vmcs["FRAME_FILTERS"] = 0
    image = load_guest(
        LINUX / "vmlinuz-amd64",
        memory=MEMORY,
        append="console=ttyS0 pti=on",
        initrd=LINUX / "initrd-amd64.cpio",
    )
    vm.load(image)
    if not flushes:
        state = vm.links._state
        vm.links.settle = lambda *_: state.__setitem__(linking.STALE, 0)  # type: ignore[method-assign]
    vm.run(timeout=300)
    return vm


def test_no_store_to_a_table_goes_unseen() -> None:
    vm = checked(flushes=True)
    assert vm.comparisons >= ENOUGH, vm.stopped
    assert vm.unseen == 0


def test_without_flushes_stores_go_unseen() -> None:
    vm = checked(flushes=False)
    assert vm.unseen > 0
