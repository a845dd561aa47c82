"""At which moments faults can be put in: virtual times of the golden run, and where it is then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.campaign.errors import PlanError
from trapgate.campaign.golden import Reference
from trapgate.campaign.symbols import within
from trapgate.events.journal import HEAD_SEQUENCE, ROW_SEQUENCE, ROW_TIME, ROW_VECTOR
from trapgate.sdm import cells as f

LONGEST_PATH: Final = 20_000_000
"""Instructions of a golden run that are looked at one by one, at most."""
_STEP = 10_000
"""The journal holds what happens in so many instructions."""

Told = Callable[[int, int], None]
"""Is told how far something is: done, and of how many."""


def silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Path:
    """The golden run, instruction by instruction: where each begins, and what it finds.

    `times` are virtual times, `rips` linear addresses of code, `events` how many events had
    happened. `registers` (n x 16, by their encoding) are those before the instruction.
    """

    times: NDArray[np.int64]
    rips: NDArray[np.int64]
    events: NDArray[np.int64]
    registers: NDArray[np.int64]


def path_of(reference: Reference, told: Told = silent) -> Path:
    """Run the golden run instruction by instruction. Raises PlanError if it is too long."""
    bench, golden = reference.bench, reference.golden
    if golden.length > LONGEST_PATH:
        raise PlanError(
            f"the golden run has {golden.length:,} instructions, too many to be looked at one by "
            f"one; let it begin later or end earlier, or leave out symbols and prune",
            "golden",
            bench.plan.path,
        )
    bench.go_to(bench.start)
    vm = bench.vm
    words, head = vm.vmcs.words, vm.processor.head
    registers = vm.processor.registers.cells
    found = np.zeros((golden.length, 3), np.int64)
    general = np.zeros((golden.length, 16), np.int64)
    count = 0
    while vm.processor.time < golden.end and vm.stopped is None:
        found[count] = (
            vm.processor.time,
            words[f.GUEST_RIP] + words[f.GUEST_CS_BASE],
            head[HEAD_SEQUENCE],
        )
        general[count] = registers[:16]
        general[count, 4] = words[f.GUEST_RSP]
        count += 1
        vm.step(1)
        if not count % _STEP:
            told(count, golden.length)
    if bench.output != golden.output or vm.processor.time != golden.end:
        raise PlanError(
            "the golden run is another one if it is looked at; take what counts time from outside",
            "golden",
            bench.plan.path,
        )
    return Path(found[:count, 0], found[:count, 1], found[:count, 2], general[:count])


def _fault_moments(reference: Reference) -> NDArray[np.int64]:
    """When the golden run takes the plan's faults: just before the instruction that faults."""
    bench, golden = reference.bench, reference.golden
    wanted = set(bench.plan.when.faults)
    bench.go_to(bench.start)
    vm = bench.vm
    times: set[int] = set()
    seen = int(vm.processor.head[HEAD_SEQUENCE])
    while vm.processor.time < golden.end and vm.stopped is None:
        vm.step(min(_STEP, golden.end - vm.processor.time))
        for row in vm.processor.last_events():
            if int(row[ROW_SEQUENCE]) < seen:
                break
            if int(row[ROW_VECTOR]) in wanted:
                times.add(int(row[ROW_TIME]))
        seen = int(vm.processor.head[HEAD_SEQUENCE])
    inside = sorted(time for time in times if golden.begin <= time < golden.end)
    return np.array(inside, np.int64)


def moments_of(reference: Reference, path: Path | None) -> NDArray[np.int64]:
    """The virtual times of the plan's moments, in order. Raises PlanError if there are none.

    `path` is needed for symbols only.
    """
    plan, golden = reference.bench.plan, reference.golden
    when = plan.when
    if when.faults:
        moments = _fault_moments(reference)
    elif path is not None:
        moments = path.times
        if when.symbols:
            moments = moments[within(reference.bench.symbols, when.symbols, path.rips, plan.path)]
        moments = moments[:: when.every]
    else:
        moments = np.arange(golden.begin, golden.end, when.every, dtype=np.int64)
    if not len(moments):
        raise PlanError(
            "the golden run is never there; choose other moments, or a longer golden run",
            "when",
            plan.path,
        )
    return moments
