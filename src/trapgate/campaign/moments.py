"""At which moments faults can be put in: virtual times of the golden run, and where it is then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.campaign.bench import JOURNAL
from trapgate.campaign.errors import PlanError
from trapgate.campaign.golden import Reference
from trapgate.campaign.symbols import within
from trapgate.campaign.touches import Touches
from trapgate.campaign.uses import ALL, Uses
from trapgate.events.journal import HEAD_SEQUENCE, ROW_SEQUENCE, ROW_TIME, ROW_VECTOR
from trapgate.processor.decoded import Operand
from trapgate.sdm import cells as f

LONGEST_COURSE: Final = 20_000_000
"""Instructions of a golden run that are looked at one by one, at most."""
_TELL = 10_000
_STEP = JOURNAL // 2
"""The journal holds what happens in so many instructions."""

Told = Callable[[int, int], None]
"""Is told how far something is: done, and of how many."""


def silent(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Course:
    """The golden run, instruction by instruction: where each begins, and what it finds.

    `times` are virtual times, `rips` linear addresses of code. `reads` and `writes` are masks of
    the general registers that the instruction, and what happens with it, may read, and that it
    overwrites; 0 if nobody asked for them. `touches` are the accesses to memory.
    """

    times: NDArray[np.int64]
    rips: NDArray[np.int64]
    reads: NDArray[np.int64]
    writes: NDArray[np.int64]
    touches: Touches


def course_of(
    reference: Reference,
    told: Told = silent,
    *,
    uses: bool = False,
    memory: Sequence[tuple[int, int]] = (),
) -> Course:
    """Run the golden run instruction by instruction, and look what each `uses` if wanted.

    `memory` are physical addresses (first, and last + 1) to which accesses are looked at, too.

    Raises PlanError if it is too long.
    """
    bench, golden = reference.bench, reference.golden
    if golden.length > LONGEST_COURSE:
        raise PlanError(
            f"the golden run has {golden.length:,} instructions, too many to be looked at one by "
            f"one; let it begin later or end earlier, or leave out symbols and prune",
            "golden",
            bench.plan.path,
        )
    bench.go_to(bench.start)
    vm = bench.vm
    words, head = vm.vmcs.words, vm.processor.head
    looked = Uses()
    touches = Touches(vm, memory)
    found = np.zeros((golden.length, 5), np.int64)
    count = 0
    while vm.processor.time < golden.end and vm.stopped is None:
        linear = words[f.GUEST_RIP] + words[f.GUEST_CS_BASE]
        guest = Operand(vm.processor, vm.vmcs.cells)
        masks = looked.of(guest, linear) if uses else (0, 0)
        found[count] = vm.processor.time, linear, head[HEAD_SEQUENCE], *masks
        if memory:
            touches.before(guest)
        vm.step(1)
        if memory:
            touches.after(count)
        count += 1
        if not count % _TELL:
            told(count, golden.length)
    if bench.output != golden.output or vm.processor.time != golden.end:
        raise PlanError(
            "the golden run is another one if it is looked at; take what counts time from outside",
            "golden",
            bench.plan.path,
        )
    times, rips, events, reads, writes = found[:count].T.copy()
    # Where anything else happened than one instruction, it may have read whatever it wanted.
    last = events[-1:] + 1, times[-1:] + 2
    more = (np.diff(events, append=last[0]) != 0) | (np.diff(times, append=last[1]) != 1)
    reads[more] = ALL
    writes[more] = 0
    return Course(times, rips, reads, writes, touches)


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


def moments_of(reference: Reference, course: Course | None) -> NDArray[np.int64]:
    """The virtual times of the plan's moments, in order. Raises PlanError if there are none.

    `course` is needed for symbols only.
    """
    plan, golden = reference.bench.plan, reference.golden
    when = plan.when
    if when.faults:
        moments = _fault_moments(reference)
    elif course is not None:
        moments = course.times
        if when.symbols:
            moments = moments[within(reference.bench.symbols, when.symbols, course.rips, plan.path)]
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
