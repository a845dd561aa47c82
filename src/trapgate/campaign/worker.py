"""A worker: a process with a bench of its own that runs batches and stores their results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trapgate.campaign.bench import Bench
from trapgate.campaign.errors import CampaignError
from trapgate.campaign.execute import Result, execute
from trapgate.campaign.faults import Fault
from trapgate.campaign.golden import Reference
from trapgate.campaign.outcomes import ERROR
from trapgate.campaign.plan import Plan, parse_plan
from trapgate.campaign.results import Results, table_of
from trapgate.campaign.symbols import names_of
from trapgate.campaign.targets import Faults, faults_of


def _nothing(_run: int) -> None:
    pass


Tally = dict[str, tuple[int, float]]
"""By outcome: runs, and the points that they stand for."""


class Worker:
    """A bench at the golden run's beginning, and the directory that results go to.

    Raises PlanError if the golden run is not the directory's.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.results = Results.open(folder)
        self.bench = Bench(plan, self.results.beginning)
        self.reference = Reference(self.bench)
        self.reference.demand_equal(self.results.facts["golden"], str(folder))
        self.faults: Faults = faults_of(plan.targets, plan.path, wide=self.results.facts["wide"])
        self._runs = self.results.runs
        golden = self.reference.golden
        if not (
            golden.begin <= self._runs.moments.min() <= self._runs.moments.max() < golden.end
            and 0 <= self._runs.faults.min() <= self._runs.faults.max() < len(self.faults)
        ):
            raise CampaignError(f"{folder}/space.parquet: damaged; run the campaign again")
        self._approached: int | None = None

    def moment(self, run: int) -> int:
        """The virtual time of a run's fault."""
        return int(self._runs.moments[run])

    def fault(self, run: int) -> Fault:
        """What is put into a run."""
        fault: Fault = self.faults[self._runs.faults[run]]
        return fault

    def result(self, run: int, there: Callable[[], None] = lambda: None) -> Result:
        """Run a run; `there` is called just before the fault is put in."""
        batch = run // self.results.batch
        if batch != self._approached:
            numbers = self.results.range_of(batch)
            self.bench.approach(self.moment(numbers.start), len(numbers))
            self._approached = batch
        return execute(self.reference, self.moment(run), self.fault(run), there)

    def work(
        self,
        batch: int,
        failed: Mapping[int, str],
        begins: Callable[[int], None] = _nothing,
    ) -> Tally:
        """Run a batch and store its results; what became of how many.

        `failed` are runs that ended a worker, and how: they are not tried again. `begins` is
        told each run before it begins.
        """
        runs = self._runs
        numbers = self.results.range_of(batch)
        found: list[Result] = []
        for run in numbers:
            if run in failed:
                found.append(Result(ERROR, "", 0, failed[run], 0, 0, ""))
                continue
            begins(run)
            result = self.result(run)
            found.append(result)
            if result.outcome == ERROR:
                self._renew()
        part = slice(numbers.start, numbers.stop)
        weights = runs.weights[part]
        table = table_of(
            np.arange(numbers.start, numbers.stop),
            runs.moments[part],
            [self.faults[n] for n in runs.faults[part].tolist()],
            weights,
            found,
            names_of(self.bench.symbols, np.array([one.rip for one in found], np.int64)),
        )
        self.results.keep(batch, table)
        counts: Counter[str] = Counter()
        points: Counter[str] = Counter()
        for result, weight in zip(found, weights.tolist(), strict=True):
            counts[result.outcome] += 1
            points[result.outcome] += weight
        return {name: (counts[name], float(points[name])) for name in counts}

    def _renew(self) -> None:
        """A new machine, since nobody knows what became of the old one."""
        self.bench = Bench(self.bench.plan, self.results.beginning)
        self.reference = Reference(self.bench)
        self._approached = None


def serve(pipe: Any, plan: tuple[str, str, str], folder: str, now: Any) -> None:
    """The work of a process: numbers of batches come through `pipe`, tallies go back.

    `plan` is its text, its name and its folder; `now` a shared number, that of the current run.
    What cannot be mended here goes back as text.
    """
    import signal

    from trapgate.errors import TrapgateError

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator sees to it
    text, name, base = plan
    try:
        worker = Worker(parse_plan(text, name, Path(base)), Path(folder))

        def begins(run: int) -> None:
            now.value = run

        pipe.send({})
        while True:
            order = pipe.recv()
            if order is None:
                return
            now.value = -1
            batch, failed = order
            pipe.send(worker.work(batch, failed, begins))
            now.value = -1
    except TrapgateError as error:
        pipe.send(str(error))
    except (EOFError, BrokenPipeError):
        return  # nobody is there any more
