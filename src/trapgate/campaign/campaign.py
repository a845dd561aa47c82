"""A campaign from plan to results."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from trapgate import guests
from trapgate.campaign.bench import Bench
from trapgate.campaign.errors import PlanError
from trapgate.campaign.execute import Result
from trapgate.campaign.faults import Unread
from trapgate.campaign.golden import Reference
from trapgate.campaign.moments import (
    GoldenInstructions,
    Progress,
    instructions_of_golden_run,
    moments_of,
    no_progress,
)
from trapgate.campaign.outcomes import DETECTED, Ending, classify
from trapgate.campaign.plan import BUNDLED, Plan
from trapgate.campaign.pruning import OVERWRITTEN, STAYS, Pruned, demand_classes, prune
from trapgate.campaign.results import Results, table_of
from trapgate.campaign.runs import Runs, select
from trapgate.campaign.symbols import functions_of, names_of
from trapgate.campaign.targets import Faults, faults_of
from trapgate.campaign.worker import Tally, Worker
from trapgate.campaign.workers import Pool
from trapgate.sdm import cells as f
from trapgate.sdm.state import EFER_LMA
from trapgate.vmm.snapshots.state import SnapshotError

WORTH_SAVING: Final = 100_000_000
"""Instructions to the golden run's beginning from which on it is saved."""
_SPANS = 64
"""Strata of a sample that is stratified by time."""
_WHY: Final = {OVERWRITTEN: "overwritten before it is read", STAYS: "never read again"}
"""What is known of faults that are put into no run."""


@dataclass(frozen=True)
class Prepared:
    """A plan whose golden run has been made: what there is to run."""

    plan: Plan
    reference: Reference
    faults: Faults
    moments: int
    runs: Runs
    pruned: Pruned | None
    course: GoldenInstructions | None
    wide: bool


def prepare(plan: Plan, told: Progress = no_progress) -> Prepared:
    """Make the golden run and choose the runs. Raises PlanError for a plan that cannot be run.

    `told` hears how far a golden run is that has to be looked at instruction by instruction.
    """
    bench = Bench(plan)
    wide = bool(bench.vm.vmcs.words[f.GUEST_IA32_EFER] & EFER_LMA)
    faults = faults_of(plan.targets, plan.path, wide=wide)
    _demand_memory(faults, plan)
    if plan.prune:
        demand_classes(faults, plan)
    reference = Reference(bench)
    _demand_silence(reference)
    course = None
    stratify = plan.sample.stratify
    if plan.when.symbols or plan.prune or stratify == "symbol":
        course = instructions_of_golden_run(
            reference,
            told,
            uses=plan.prune,
            memory=faults.memory if plan.prune else (),
            pages=faults.pages if plan.prune else (),
        )
    moments = moments_of(reference, course)
    strata = None
    if stratify == "time":
        strata = np.arange(len(moments)) * _SPANS // len(moments)
    elif stratify == "symbol" and course is not None:
        rips = course.rips[np.searchsorted(course.times, moments)]
        strata = functions_of(bench.symbols, rips, plan.path)
    pruned = None
    if plan.prune and course is not None:
        runs, pruned = prune(
            plan.sample, moments, faults, course, strata, plan.path, plan.guest.memory
        )
    else:
        runs = select(plan.sample, moments, faults, strata, plan.path)
    return Prepared(plan, reference, faults, len(moments), runs, pruned, course, wide)


def _demand_memory(faults: Faults, plan: Plan) -> None:
    """Physical addresses must be in the machine's memory: elsewhere nothing holds bits."""
    size = plan.guest.memory
    for _, end in faults.memory:
        if end > size:
            raise PlanError(
                f"memory ends at {size:#x}, before {end - 1:#x}; name less, or give guest.memory",
                "target",
                plan.path,
            )


def _demand_silence(reference: Reference) -> None:
    """What is said to tell of a fault must not be in the golden run's output."""
    plan = reference.bench.plan
    for pattern in plan.detected:
        if pattern.search(reference.golden.output):
            raise PlanError(
                f"{pattern.pattern.decode()!r} is in the golden run's output too; name what only "
                f'a guest that notices something prints ("{DETECTED}")',
                "outcomes.detected",
                plan.path,
            )


def environment(plan: Plan, reference: Reference) -> dict[str, Any]:
    """What else results depend on: versions, the engine, the guest's files."""
    named = plan.guest.files
    if plan.guest.kernel == BUNDLED:
        named = guests.IMAGE_PATH, *named
    return {
        "trapgate": version("trapgate"),
        "engine": reference.bench.vm.processor.engine.kind,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "files": {one.name: _digest(one) for one in named if one.is_file()},
    }


def _digest(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def create(prepared: Prepared, folder: Path) -> Results:
    """The directory of a campaign that is about to begin. Raises CampaignError."""
    plan, reference = prepared.plan, prepared.reference
    facts = {
        "environment": environment(plan, reference),
        "golden": reference.golden.values(),
        "moments": prepared.moments,
        "faults": len(prepared.faults),
        "wide": prepared.wide,
        "exact": prepared.runs.exact,
        "drawn": prepared.runs.drawn,
        "confidence": plan.sample.confidence,
    }
    pruned = None if prepared.pruned is None else _pruned_rows(prepared, prepared.pruned)
    return Results.create(folder, plan, facts, prepared.runs, pruned, partial(_save, reference))


def _save(reference: Reference, path: Path) -> None:
    """Save the beginning for workers, if they would need long to get there."""
    bench = reference.bench
    if bench.start < WORTH_SAVING or not bench.vm.can_be_restored:
        return
    bench.go_to(bench.start)
    with suppress(SnapshotError):  # in the middle of a transfer, say: workers start from the start
        bench.vm.save(path)


def _unread(faults: Faults, number: int) -> Unread:
    """A fault that stands for all of its part, which may have but one."""
    _, bits, _ = faults.part_of(number)
    fault = faults[number]
    return Unread(fault.target, fault.bit if bits == 1 else -1)


def _pruned_rows(prepared: Prepared, pruned: Pruned) -> pa.Table:
    """Rows for faults whose outcome is known; they are not runs, and have no bit."""
    course, reference = prepared.course, prepared.reference
    plan, golden, symbols = prepared.plan, reference.golden, reference.bench.symbols
    assert course is not None
    rips = course.rips[np.searchsorted(course.times, pruned.moments)]
    how = golden.how, golden.status, golden.message, golden.output
    results = {
        fate: Result(
            classify(
                Ending(*how, (), True, True, fate == OVERWRITTEN), plan.detected, plan.classes
            ),
            *(golden.how, golden.status, why, 0, 0, ""),
        )
        for fate, why in _WHY.items()
    }
    return table_of(
        None,
        pruned.moments,
        [_unread(prepared.faults, n) for n in pruned.faults.tolist()],
        pruned.weights,
        [
            results[fate]._replace(rip=rip)
            for fate, rip in zip(pruned.fates.tolist(), rips.tolist(), strict=True)
        ],
        names_of(symbols, rips),
    )


def run(plan: Plan, results: Results, workers: int = 1, cluster: str = "") -> Iterator[Tally]:
    """Run what has no results yet; the tally of each batch when its results are stored.

    `workers` processes work, or this one if it is 1, or those of the Ray cluster at `cluster`.
    Raises CampaignError for a directory of
    another plan, one that is being worked on, and a disk without room.
    """
    results.demand_plan(plan)
    with results.locked():
        results.clear_drafts()
        missing = results.missing()
        if cluster and missing:
            from trapgate.campaign.cluster import work_on_cluster

            for _, tally in work_on_cluster(cluster, plan, results, missing):
                yield tally
            return
        if workers == 1 or len(missing) < 2:
            worker = Worker(plan, results.folder) if missing else None
            for batch in missing:
                assert worker is not None
                yield worker.work(batch, {})
            return
        with Pool(plan, results.folder, min(workers, len(missing))) as pool:
            for _, tally in pool.work(missing, results.batch):
                yield tally


def default_workers() -> int:
    """One for each processor that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
