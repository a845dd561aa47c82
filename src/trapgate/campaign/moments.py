"""At which moments faults can be put in: virtual times of the golden run, and where it is then."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.campaign.bench import JOURNAL, Bench
from trapgate.campaign.errors import PlanError
from trapgate.campaign.golden import Reference
from trapgate.campaign.memory_uses import MemoryUses
from trapgate.campaign.places import LinearPage
from trapgate.campaign.symbols import within
from trapgate.campaign.uses import ALL, Uses
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import ConditionError, Names, parse
from trapgate.decision.criteria_rules import Action, CriteriaTableError, Rule, encode
from trapgate.decision.entry_facts import KIND
from trapgate.decision.frame_filters import entry_written
from trapgate.events.journal import (
    HEAD_SEQUENCE,
    ROW_ADDRESS,
    ROW_DATA,
    ROW_DEPTH,
    ROW_ENTRY,
    ROW_ERROR_CODE,
    ROW_OLD_VALUE,
    ROW_TIME,
    ROW_TYPE,
    ROW_VECTOR,
)
from trapgate.processor.fault_conditions import Occurrence, holds
from trapgate.processor.logical import signed
from trapgate.processor.operand import Operand
from trapgate.sdm import cells as f

LONGEST_COURSE: Final = 20_000_000
"""Instructions of a golden run that are looked at one by one, at most."""
_TELL = 10_000
_STEP = JOURNAL // 2
"""The journal holds what happens in so many instructions."""

Progress = Callable[[int, int], None]
"""Is told how far something is: done, and of how many."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class GoldenInstructions:
    """The golden run, instruction by instruction: where each begins, and what it finds.

    `times` are virtual times, `rips` linear addresses of code. `reads` and `writes` are masks of
    the general registers that the instruction, and what happens with it, may read, and that it
    overwrites; 0 if nobody asked for them. `memory_uses` are the accesses to memory.
    """

    times: NDArray[np.int64]
    rips: NDArray[np.int64]
    reads: NDArray[np.int64]
    writes: NDArray[np.int64]
    memory_uses: MemoryUses


def instructions_of_golden_run(
    reference: Reference,
    told: Progress = no_progress,
    *,
    uses: bool = False,
    memory: Sequence[tuple[int, int]] = (),
    pages: Sequence[LinearPage] = (),
) -> GoldenInstructions:
    """Run the golden run instruction by instruction, and look what each `uses` if wanted.

    `memory` are physical addresses (first, and last + 1) to which accesses are looked at, too, and
    so are those to linear `pages`.

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
    head = vm.processor.head
    looked = Uses()
    memory_uses = MemoryUses(vm, memory, pages)
    looks = bool(memory or pages)
    found = np.zeros((golden.length, 5), np.int64)
    count = 0
    while vm.processor.time < golden.end and vm.stopped is None:
        words = vm.vmcs.words  # of the processor whose turn it is
        linear = words[f.GUEST_RIP] + words[f.GUEST_CS_BASE]
        guest = Operand(vm.processor, vm.vmcs.cells)
        masks = looked.of(guest, linear) if uses else (0, 0)
        found[count] = vm.processor.time, linear, head[HEAD_SEQUENCE], *masks
        if looks:
            memory_uses.before(guest)
        vm.step(1)
        if looks:
            memory_uses.after(count)
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
    return GoldenInstructions(times, rips, reads, writes, memory_uses)


def _event_moments(reference: Reference) -> NDArray[np.int64]:
    """When the golden run takes the plan's events: just before the instruction that they meet."""
    bench, golden = reference.bench, reference.golden
    when = bench.plan.when
    rules = _rules_of(bench)
    events = [
        (time, event)
        for time, event in _events_of(reference)
        if golden.begin <= time < golden.end and (not when.faults or event.vector in when.faults)
    ]
    if not rules:
        return np.array(sorted({time for time, _ in events}), np.int64)
    times: set[int] = set()
    bench.go_to(bench.start)
    processor = bench.vm.processor
    for time, event in events:
        if time > processor.time:
            bench.vm.step(time - processor.time)
        if holds(processor, bench.vm.vmcs.cells, rules, _with_guest_state(bench, event)):
            times.add(time)
    return np.array(sorted(times), np.int64)


def _rules_of(bench: Bench) -> tuple[Rule, ...]:
    """The plan's condition. Raises PlanError."""
    text, symbols = bench.plan.when.condition, bench.symbols
    if not text:
        return ()
    names = Names(symbols=symbols.ranges() if symbols else {})
    try:
        rules = rules_for(parse(text, names.about_faults()), Action.EXIT)
        encode(rules)
    except (ConditionError, CriteriaTableError) as error:
        raise PlanError(str(error), "when.condition", bench.plan.path) from None
    return rules


def _events_of(reference: Reference) -> Iterator[tuple[int, Occurrence]]:
    """The events of the golden run's journal and their times, in order, from `bench.start` on."""
    bench, golden = reference.bench, reference.golden
    bench.go_to(bench.start)
    vm = bench.vm
    seen = int(vm.processor.head[HEAD_SEQUENCE])
    outer = -1
    while vm.processor.time < golden.end and vm.stopped is None:
        vm.step(min(_STEP, golden.end - vm.processor.time))
        fresh = int(vm.processor.head[HEAD_SEQUENCE]) - seen
        rows = [[int(cell) for cell in row] for row in islice(vm.processor.last_events(), fresh)]
        for row in reversed(rows):
            nested = row[ROW_DEPTH] > 0
            yield (
                row[ROW_TIME],
                Occurrence(
                    row[ROW_VECTOR],
                    row[ROW_TYPE],
                    row[ROW_ERROR_CODE],
                    row[ROW_ADDRESS],
                    depth=row[ROW_DEPTH],
                    outer=outer if nested else -1,
                    table_entry=row[ROW_ENTRY] & KIND,
                    old_entry=row[ROW_OLD_VALUE],
                    new_entry=row[ROW_DATA],
                ),
            )
            outer = row[ROW_VECTOR]
        seen += fresh


def _with_guest_state(bench: Bench, event: Occurrence) -> Occurrence:
    """An event with what the guest's state says of it, which is just before it."""
    vm = bench.vm
    guest = Operand(vm.processor, vm.vmcs.cells)
    kind = 0
    if event.table_entry:
        user = event.error_code >> 2 & 1
        flags = int(vm.vmcs.cells[f.GUEST_RFLAGS])
        kind, _ = entry_written(guest.v, flags, guest.mem, signed(event.address), user)
    return replace(event, length=guest.decode().len, table_entry=int(kind))


def moments_of(reference: Reference, course: GoldenInstructions | None) -> NDArray[np.int64]:
    """The virtual times of the plan's moments, in order. Raises PlanError if there are none.

    `course` is needed for symbols only.
    """
    plan, golden = reference.bench.plan, reference.golden
    when = plan.when
    if when.faults or when.condition:
        moments = _event_moments(reference)
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
