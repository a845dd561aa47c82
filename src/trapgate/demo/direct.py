"""The demonstration: one guest under several policies for its page faults, and what each costs.

The bundled guest edits its page tables all the time. Under direct paging (¶70) the processor
uses these tables as they are, read-only, and each edit is a page fault that a VMM has to look
at, or that a fault filter completes (figures 7 and 8, ¶80). Where the guest's memory is its
own, its tables are too, and only who handles its faults is in question (¶4, ¶46-49). Either
way the guest must not notice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trapgate import guests
from trapgate.decision.decide import Disposition
from trapgate.decision.fault_filters import FILTERS as FAULT_FILTERS
from trapgate.trace import TraceWriter
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.summary import Summary

MEMORY = 16 << 20
"""RAM of the demonstration's machine, in bytes."""
PTBASE = 0xC000_0000
"""Where the bundled guest shows itself its page tables."""
_PAGE_FAULT = 14


@dataclass(frozen=True)
class Filter:
    """What becomes of page faults: bit 14 of the exception bitmap, mask and match, FAULT_FILTER."""

    name: str
    meaning: str
    bit: int
    mask: int
    match: int
    fault_filter: str = "none"


FILTERS = (
    Filter("every page fault", "each one exits, and the VMM gives it back", 1, 0, 0),
    Filter("mask 3, match 3", "writes to present pages exit: a VMM that tracks writes", 1, 3, 3),
    Filter("none", "page faults are the guest's alone", 0, 0, 0),
)
"""For a guest that owns its memory."""

_TABLE_WRITES = 1, 0xF, 3
"""Writes of the supervisor's to present pages exit: no mask and match leaves out more of what
a VMM need not see, and none of what it must."""
DIRECT_FILTERS = (
    Filter("every page fault", "each one exits", 1, 0, 0),
    Filter("mask and match", "supervisor writes to present pages exit", *_TABLE_WRITES),
    Filter("figure 7", "and PTE writes with P = 0 complete", *_TABLE_WRITES, "figure-7"),
    Filter("figure 8", "and those that grant nothing new", *_TABLE_WRITES, "figure-8"),
    Filter("¶80", "figure 7, for PDEs too", *_TABLE_WRITES, "paragraph-80"),
)
"""For a guest under direct paging."""


@dataclass(frozen=True)
class Result:
    """One run: the filter, how it stopped, what the guest printed, and the counts.

    `workload` is the one that ran, "" for all that were asked for.
    """

    filter: Filter
    stop: Stop
    output: bytes
    summary: Summary
    workload: str = ""

    @property
    def digest(self) -> str:
        """A short fingerprint of the guest's output."""
        return hashlib.sha256(self.output).hexdigest()[:12]

    def faults(self, vector: int) -> tuple[int, int, int]:
        """How many faults of `vector` happened, exited, and went to the guest directly."""
        exited = self.summary.count(Disposition.EXIT, vector)
        direct = self.summary.delivered_directly(vector)
        return exited + direct + self.summary.count(Disposition.COMPLETE, vector), exited, direct


def run(
    workloads: Sequence[str] = (),
    *,
    scale: int = 1,
    engine: str = "auto",
    trace: Path | None = None,
) -> Iterator[Result]:
    """Run the bundled guest's `workloads` (all, if none is named) under each of FILTERS in turn.

    `trace` is where the faults of the first run are written, under which all page faults exit.

    Raises ValueError for a workload or scale that the guest does not have.
    """
    line = guests.command_line(*workloads, scale=scale)
    for setting in FILTERS:
        writer = None
        if trace is not None and setting is FILTERS[0]:
            writer = TraceWriter(trace, metadata={"guest": "bundled", "filter": setting.name})
        try:
            yield _run(VirtualMachine(MEMORY, engine=engine, trace=writer), line, setting, scale)
        finally:
            if writer is not None:
                writer.close()


def run_direct(
    workloads: Sequence[str] = (), *, scale: int = 1, engine: str = "auto"
) -> Iterator[Result]:
    """Run each of the `workloads` (all, if none is named) under each of DIRECT_FILTERS.

    Raises ValueError for a workload or scale that the guest does not have.
    """
    guests.command_line(*workloads, scale=scale)
    for name in [w.name for w in guests.WORKLOADS if not workloads or w.name in workloads]:
        line = guests.command_line(name, scale=scale)
        for setting in DIRECT_FILTERS:
            yield _run(DirectMachine(MEMORY, engine=engine), line, setting, scale, name)


def _run(vm: VirtualMachine, line: str, setting: Filter, scale: int, workload: str = "") -> Result:
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=line))
    vm.vmcs["EXCEPTION_BITMAP"] = setting.bit << _PAGE_FAULT
    vm.vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = setting.mask
    vm.vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = setting.match
    if setting.fault_filter != "none":
        vm.vmcs["FAULT_FILTER"] = FAULT_FILTERS[setting.fault_filter]
        vm.vmcs["PTBASE"] = PTBASE
    stop = vm.run(max_instructions=scale * 1_000_000_000)
    return Result(setting, stop, bytes(vm.output), vm.summary(), workload)


def passed(results: Sequence[Result]) -> bool:
    """Whether all runs ended well, and those of the same workload printed the same."""
    ended = all(result.stop.end is End.DEBUG_EXIT and result.stop.status == 0 for result in results)
    outputs = {(result.workload, result.output) for result in results}
    return ended and len(outputs) == len({result.workload for result in results})
