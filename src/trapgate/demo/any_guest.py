"""What direct paging costs a guest that somebody brings, and what each fault filter saves it.

The same guest runs with its memory for itself, and then under a frame map with one filter after
the other, as far as `until` or its own end. It cannot notice, so all runs have to end alike.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapgate.decision.decide import Disposition
from trapgate.decision.fault_filters import (
    EMPTY_TABLE,
    FILTERS,
    KNOWN_TABLE,
    NO_LINK,
    OWN_FRAME,
    OWN_TABLE,
)
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import Stop
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.summary import Summary
from trapgate.vmm.ui.console import Console

if TYPE_CHECKING:
    from trapgate.vmm.devices.board import Board
    from trapgate.vmm.loaders import GuestImage


@dataclass(frozen=True)
class Setting:
    """One run's FAULT_FILTER and FRAME_FILTERS under a frame map; or no map at all."""

    name: str
    meaning: str
    fault_filter: str = "none"
    frame_filters: int = 0
    mapped: bool = True


SETTINGS = (
    Setting("own paging", "the guest has its memory and tables for itself", mapped=False),
    Setting("no filter", "each write to a table exits"),
    Setting("figure 7", "those complete that make a last-level entry not present", "figure-7"),
    Setting("figure 8", "and those that grant nothing new", "figure-8"),
    Setting("¶80", "figure 7, for upper tables too", "paragraph-80"),
    Setting("own-frame", "figure 8, and frames of the guest's own", "figure-8", OWN_FRAME),
    Setting(
        "and no-link",
        "and upper entries that lead where they led",
        "figure-8",
        OWN_FRAME | NO_LINK,
    ),
    Setting(
        "and ¶80",
        "and those that make an upper entry not present",
        "paragraph-80",
        OWN_FRAME | NO_LINK,
    ),
    Setting(
        "and known",
        "and upper entries that lead to known tables",
        "paragraph-80",
        OWN_FRAME | NO_LINK | KNOWN_TABLE,
    ),
    Setting(
        "and empty",
        "and to frames that hold no entry; the processor counts links",
        "paragraph-80",
        OWN_FRAME | NO_LINK | EMPTY_TABLE,
    ),
    Setting(
        "and own-table",
        "and last-level tables are not protected",
        "paragraph-80",
        OWN_FRAME | NO_LINK | EMPTY_TABLE | OWN_TABLE,
    ),
)


@dataclass(frozen=True)
class Run:
    """One run: how it stopped, its counts, and the host's processor time in seconds."""

    setting: Setting
    stop: Stop
    summary: Summary
    seconds: float

    @property
    def exits(self) -> int:
        """Page faults that exited: writes to tables that no filter completed."""
        return self.summary.count(Disposition.EXIT, PF)

    @property
    def completed(self) -> int:
        """Writes to tables that a filter completed."""
        return self.summary.count(Disposition.COMPLETE, PF)

    @property
    def root_loads(self) -> int:
        """MOVs to and from control registers that exited."""
        return self.summary.exits.get(ExitReason.CONTROL_REGISTER_ACCESS, 0)

    def saved(self, unfiltered: Run) -> float:
        """The part of the exits of a run without a filter that this one does not have."""
        return 1 - self.exits / max(unfiltered.exits, 1)

    @property
    def left(self) -> dict[str, int]:
        """The writes that exited, by the level of the table, and those that reused its frame."""
        writes = self.summary.table_writes
        return {} if writes is None else dict(writes.exited)


def run_guest(
    memory: int,
    load: Callable[[], GuestImage | None],
    *,
    board: Callable[[], Board],
    text: bytes = b"",
    until: str | None = None,
    timeout: float | None = None,
    engine: str = "auto",
    settings: Sequence[Setting] = SETTINGS,
) -> Iterator[Run]:
    """Run what `load` gives, or what the BIOS of `board` boots, under each of `settings` in turn.

    `memory` is RAM in bytes, `text` is typed at the serial port, `until` a regular expression of
    what comes out there, `timeout` seconds a run. Raises DirectPagingError on an engine without
    frame map, and what `load` and the machine raise.
    """
    for setting in settings:
        console = Console(io.BytesIO(), until=until)
        kind = ProtectedMachine if setting.mapped else VirtualMachine
        vm = kind(memory, engine=engine, console=console, board=board())
        if setting.mapped:
            vm.vmcs["FAULT_FILTER"] = FILTERS[setting.fault_filter]
            vm.vmcs["FRAME_FILTERS"] = setting.frame_filters
        image = load()
        if image is None:
            vm.boot()
        else:
            vm.load(image)
        vm.type(text)
        began = time.process_time()
        stop = vm.run(timeout=timeout)
        yield Run(setting, stop, vm.summary(), time.process_time() - began)


def ended_alike(runs: Sequence[Run]) -> bool:
    """Whether all runs ended in the same way, and none at a limit."""
    ends = {(run.stop.end, run.stop.status) for run in runs}
    return len(ends) == 1 and runs[0].stop.status == 0
