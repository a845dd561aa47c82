"""A run of a campaign once more, exactly as it was, with somebody looking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trapgate.campaign.errors import PlanError
from trapgate.campaign.execute import Result
from trapgate.campaign.plan import Plan, find_plan, parse_plan, shipped
from trapgate.campaign.results import Results
from trapgate.campaign.symbols import names_of
from trapgate.campaign.worker import Worker
from trapgate.tomlfile import read_toml
from trapgate.vmm.machine import VirtualMachine


@dataclass(frozen=True)
class RepeatedRun:
    """A run that was run again: where and what, what came of it, and what was stored of it."""

    run: int
    moment: int
    symbol: str
    fault: str
    result: Result
    printed: str
    chain: tuple[str, ...]
    stored: dict[str, Any] | None

    @property
    def agrees(self) -> bool:
        """Whether what was stored of it, if anything, is what happened now."""
        if self.stored is None:
            return True
        now = self.result._asdict()
        names = ("outcome", "end", "status", "detail", "instructions", "output")
        return all(self.stored[name] == now[name] for name in names)

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        stored = "not run yet" if self.stored is None else "the same"
        return {
            "run": self.run,
            "moment": self.moment,
            "symbol": self.symbol,
            "fault": self.fault,
            **self.result._asdict(),
            "rip": f"{self.result.rip & 0xFFFF_FFFF_FFFF_FFFF:#x}",
            "printed": self.printed,
            "chain": list(self.chain),
            "stored": stored if self.agrees else f"another: {self.stored}",
        }


def plan_of(results: Results, *, trusted: bool = False) -> Plan:
    """The plan that is kept in a campaign's directory, with files as they were named then.

    Raises PlanError if it names functions and is not `trusted`: somebody else may have made it.
    """
    name = str(results.facts["plan"])
    folder = find_plan(name).folder if name in shipped() else Path(results.facts["plan_folder"])
    path = results.folder / "plan.toml"

    def wrong(problem: str) -> PlanError:
        return PlanError(problem, path=str(path))

    return parse_plan(read_toml(path, wrong), name, folder, trusted=trusted)


def replay(
    results: Results,
    run: int,
    *,
    trace: Path | None = None,
    there: Callable[[VirtualMachine, bool], None] | None = None,
    trusted: bool = False,
) -> RepeatedRun:
    """Run `run` again; `trace` gets its events from the fault on.

    `there` is called with the machine just before the fault, and whether its code is 64-bit.

    Functions that the plan names are called only if it is `trusted`.

    Raises CampaignError for a run that there is not, PlanError where the golden run is another.
    """
    stored = results.row(run)
    plan = plan_of(results, trusted=trusted)
    worker = Worker(plan, results.folder)
    vm = worker.bench.vm
    writer = None
    if trace is not None:
        from trapgate.trace import TraceWriter

        facts = {"guest": plan.guest.kernel, "campaign": plan.title, "run": str(run)}
        writer = TraceWriter(trace, metadata=facts)

    def now() -> None:
        if writer is not None:
            vm.processor.trace_to(writer.append)
        if there is not None:
            there(vm, bool(results.facts["wide"]))

    try:
        result = worker.result(run, now)
        vm.processor.drain()
    finally:
        if writer is not None:
            writer.close()
    return RepeatedRun(
        run=run,
        moment=worker.moment(run),
        symbol=names_of(worker.bench.symbols, np.array([result.rip], np.int64))[0],
        fault=worker.fault(run).what,
        result=result,
        printed=worker.bench.output.decode("utf-8", "backslashreplace"),
        chain=tuple(vm.fault_chain()) if vm.stopped and not vm.stopped.can_continue else (),
        stored=stored,
    )
