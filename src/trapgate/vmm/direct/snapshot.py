"""Snapshots of a machine under direct paging: what its VMM knows goes back with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trapgate.vmm.snapshot import Snapshot

if TYPE_CHECKING:
    from trapgate.vmm.accounts import Tally
    from trapgate.vmm.direct.machine import DirectMachine


class DirectSnapshot(Snapshot):
    """A machine as it was, its tables and frames as the VMM knew them included.

    Made by `DirectMachine.snapshot`, of a machine that has its host for itself.
    """

    def __init__(self, vm: DirectMachine, tally: Tally, planned: list[Any]) -> None:
        super().__init__(vm, tally, planned)
        self._tables = vm.tables.keep()
        self._now, self._then = vars(vm.counts), dict(vars(vm.counts))

    def is_met(self) -> bool:
        """Never: whether the VMM knows the same is not looked at."""
        return False

    def restore(self) -> int:
        """Let everything be as it was; how many pages of memory had been written."""
        self._tables()
        self._now.update(self._then)
        return super().restore()
