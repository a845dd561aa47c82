"""Snapshots of a machine under direct paging: what its VMM knows goes back with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trapgate.vmm.accounts import Tally
from trapgate.vmm.direct.host import SharingMachine
from trapgate.vmm.direct.refusals import DirectCounts
from trapgate.vmm.moments import Watch
from trapgate.vmm.snapshots.snapshot import Snapshot


class DirectSnapshot(Snapshot):
    """A machine as it was, its tables and frames as the VMM knew them included.

    Made by the machine's `snapshot`, if it has its host for itself. `tables` is the way back to
    what the VMM knows now.
    """

    def __init__(
        self,
        vm: SharingMachine,
        watch: Watch[Any],
        tally: Tally,
        planned: list[Any],
        counts: DirectCounts,
        tables: Callable[[], None],
    ) -> None:
        super().__init__(vm, watch, tally, planned)
        self._tables = tables
        self._now, self._then = vars(counts), dict(vars(counts))

    def is_reached(self) -> bool:
        """Never: whether the VMM knows the same is not looked at."""
        return False

    def restore(self) -> int:
        """Restore everything; how many pages of memory had been written."""
        copied = super().restore()
        self._tables()
        self._now.update(self._then)
        return copied
