"""The golden run: what the guest does when nothing is put into it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trapgate.campaign.bench import AT_POINT, OUT_OF_BUDGET, Bench, Counts, Halt
from trapgate.campaign.errors import PlanError

if TYPE_CHECKING:
    from trapgate.vmm.snapshots.snapshot import Snapshot

_SHOWN = 1 << 16
_CHECKPOINTS = 8
_LONG = 200_000
"""Instructions of a golden run that has checkpoints: in shorter ones they cost what they save."""


@dataclass(frozen=True)
class Golden:
    """What a golden run was like, as it is kept: numbers and digests.

    `begin` and `end` are virtual times; `output` is what was printed between them.
    """

    begin: int
    end: int
    how: str
    status: int
    message: str
    output: bytes
    memory: str
    registers: str

    @property
    def length(self) -> int:
        """Instructions."""
        return self.end - self.begin

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        shown = self.output[:_SHOWN].decode("utf-8", "backslashreplace")
        digest = hashlib.sha256(self.output).hexdigest()
        return {**asdict(self), "output": shown, "output_sha256": digest}


@dataclass(frozen=True)
class Checkpoint:
    """The golden run on the way: everything of the machine, and the counts of events so far."""

    snapshot: Snapshot
    counts: Counts


class Reference:
    """The golden run on a bench, with all that runs are compared with.

    Raises PlanError if it never ends, or is another one the second time.
    """

    def __init__(self, bench: Bench) -> None:
        plan = bench.plan
        self.bench = bench
        self.golden, self.counts, self.last = self._run(bench)
        self.registers = bench.registers()
        again, *_ = self._run(bench)
        if again != self.golden:
            raise PlanError(
                "the golden run is not the same the second time: "
                + ", ".join(_differences(self.golden, again))
                + "; take from the machine what it has from outside (a terminal, a disk that "
                "is written)",
                "golden",
                plan.path,
            )
        self.halt = Halt(self.golden.how, self.golden.status, self.golden.message)
        spare = plan.budget if plan.budget is not None else max(10 * self.golden.length, 1_000_000)
        at_time = plan.end.kind == "instructions"
        self.limit = self.golden.end if at_time else self.golden.end + spare
        """The virtual time at which a run has used up its budget."""
        self.checkpoints = self._make_checkpoints()
        """Moments of the golden run on the way, in order."""

    def _make_checkpoints(self) -> list[Checkpoint]:
        bench, golden = self.bench, self.golden
        plan, vm = bench.plan, bench.vm
        count = plan.checkpoints
        if count is None:
            count = _CHECKPOINTS if golden.length >= _LONG else 0
        bench.go_to(bench.start)
        found = []
        for number in range(1, count + 1):
            time = golden.begin + golden.length * number // (count + 1)
            if time <= vm.processor.time or vm.step(time - vm.processor.time) is not None:
                continue
            found.append(Checkpoint(vm.snapshot(), bench.counted()))
        return found

    def ahead(self, moment: int) -> Iterator[Checkpoint]:
        """Checkpoints after a moment, at growing distances."""
        first = bisect_right(self.checkpoints, moment, key=lambda one: one.snapshot.time)
        step = 1
        while first < len(self.checkpoints):
            yield self.checkpoints[first]
            first += step
            step *= 2

    @staticmethod
    def _run(bench: Bench) -> tuple[Golden, Counts, Snapshot]:
        plan, vm = bench.plan, bench.vm
        bench.go_to(bench.start)
        at_time = plan.end.kind == "instructions"
        limit = bench.start + (plan.end.count if at_time else plan.golden_budget)
        halt = bench.run_to(limit)
        if halt is OUT_OF_BUDGET or (halt is not AT_POINT and plan.end.kind != "exit"):
            why = halt.message or f"it runs for more than {plan.golden_budget:,} instructions"
            raise PlanError(
                f"the golden run never comes to {plan.end} ({why}); give another end, or a budget",
                "golden.end",
                plan.path,
            )
        if vm.processor.time <= bench.start:
            raise PlanError("the golden run is empty; let it end later", "golden.end", plan.path)
        golden = Golden(
            begin=bench.start,
            end=vm.processor.time,
            how=halt.end,
            status=halt.status,
            message=halt.message,
            output=bench.output,
            memory=hashlib.sha256(vm.processor.memory.cells.data).hexdigest(),
            registers=hashlib.sha256(bench.registers()).hexdigest(),
        )
        return golden, bench.counted(), bench.vm.snapshot()

    def demand_equal(self, kept: dict[str, Any], where: str) -> None:
        """Raise PlanError if a golden run that was kept is not this one."""
        now = self.golden.values()
        if kept != now:
            names = ", ".join(sorted(name for name in now if kept.get(name) != now[name]))
            raise PlanError(
                f"the golden run in {where} was another one ({names}); give another directory",
                "golden",
                self.bench.plan.path,
            )


def _differences(one: Golden, other: Golden) -> list[str]:
    first, second = asdict(one), asdict(other)
    return [name for name in first if first[name] != second[name]]
