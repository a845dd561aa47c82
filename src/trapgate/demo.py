"""The demonstration: one guest under three filters, and what each filter costs.

The bundled guest runs its workloads three times. Only the filter differs: every page
fault exits (¶4), VT-x mask and match let through what the guest can handle itself
(¶46-49), no page fault exits. The guest must not notice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trapgate import guests
from trapgate.decide import Disposition
from trapgate.trace import TraceWriter
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import Summary, VirtualMachine

MEMORY = 16 << 20
"""RAM of the demonstration's machine, in bytes."""
_PAGE_FAULT = 14


@dataclass(frozen=True)
class Filter:
    """A setting of the page-fault filter: bit 14 of the exception bitmap, mask and match."""

    name: str
    meaning: str
    bit: int
    mask: int
    match: int


FILTERS = (
    Filter("every page fault", "each one exits, and the VMM gives it back", 1, 0, 0),
    Filter("mask 3, match 3", "writes to present pages exit: a VMM that tracks writes", 1, 3, 3),
    Filter("none", "page faults are the guest's alone", 0, 0, 0),
)


@dataclass(frozen=True)
class Result:
    """One run: the filter, how it stopped, what the guest printed, and the counts."""

    filter: Filter
    stop: Stop
    output: bytes
    summary: Summary

    @property
    def digest(self) -> str:
        """A short fingerprint of the guest's output."""
        return hashlib.sha256(self.output).hexdigest()[:12]

    def faults(self, vector: int) -> tuple[int, int, int]:
        """How many faults of `vector` happened, exited, and went to the guest directly."""
        exited = self.summary.count(Disposition.EXIT, vector)
        direct = self.summary.delivered_directly(vector)
        return exited + direct, exited, direct


def run(
    workloads: Sequence[str] = (),
    *,
    scale: int = 1,
    engine: str = "auto",
    trace: Path | None = None,
) -> Iterator[Result]:
    """Run the bundled guest's `workloads` (all, if none is named) under each filter in turn.

    `trace` is where the faults of the first run are written, under which all page faults exit.

    Raises ValueError for a workload or scale that the guest does not have.
    """
    line = guests.command_line(*workloads, scale=scale)
    image = parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=line)
    for setting in FILTERS:
        writer = None
        if trace is not None and setting is FILTERS[0]:
            writer = TraceWriter(trace, metadata={"guest": "bundled", "filter": setting.name})
        vm = VirtualMachine(MEMORY, engine=engine, trace=writer)
        vm.load(image)
        vm.vmcs["EXCEPTION_BITMAP"] = setting.bit << _PAGE_FAULT
        vm.vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = setting.mask
        vm.vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = setting.match
        try:
            stop = vm.run(max_instructions=scale * 1_000_000_000)
        finally:
            if writer is not None:
                writer.close()
        yield Result(setting, stop, bytes(vm.output), vm.summary())


def passed(results: Sequence[Result]) -> bool:
    """Whether all runs ended well and printed the same."""
    ended = all(result.stop.end is End.DEBUG_EXIT and result.stop.status == 0 for result in results)
    return ended and len({result.output for result in results}) == 1
