"""`trapgate campaign`: fault injection by the million."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trapgate.cli.examples import examples
from trapgate.cli.groups import command_group
from trapgate.cli.terminal import one_line_errors, plain, prepared, terminal

if TYPE_CHECKING:
    from trapgate.campaign.campaign import Prepared
    from trapgate.campaign.plan import Plan
    from trapgate.campaign.results import Results
    from trapgate.campaign.worker import Tally
    from trapgate.vmm.machine import VirtualMachine

EXAMPLES = """
Examples:

  trapgate campaign run fault-handler

  trapgate campaign plan flips.toml

  trapgate campaign run flips.toml --output flips --workers 8

  trapgate campaign stat flips

  trapgate campaign show flips 4711 --trace run.parquet

  trapgate campaign sql flips "select target, count(*) from runs group by all"

Exit status: 0 success, 1 Trapgate failed in a run or was interrupted, 2 wrong usage or input.
"""

app = command_group("Inject faults into a guest by plan, and classify the outcomes.", EXAMPLES)

PlanArgument = Annotated[str, typer.Argument(help="TOML file of a plan, or a bundled plan's name.")]
FolderArgument = Annotated[Path, typer.Argument(help="Directory of results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _prepare(plan: Plan) -> Prepared:
    from trapgate.campaign.campaign import prepare

    console = terminal(error=True)
    if not console.is_terminal:
        return prepare(plan)
    with console.status("the golden run") as status:
        return prepare(
            plan, lambda done, total: status.update(f"the golden run: {done:,} of {total:,}")
        )


@app.command("plan", epilog=examples("campaign plan"))
def plan_command(plan: PlanArgument, as_json: AsJson = False) -> None:
    """Check a plan: make its golden run, and say how many runs it needs."""
    from trapgate.campaign.plan import find_plan

    with one_line_errors(), prepared():
        found = _prepare(find_plan(plan))
    golden, runs = found.reference.golden, found.runs
    facts: dict[str, Any] = {
        "title": found.plan.title,
        "golden": golden.values(),
        "moments": found.moments,
        "faults": len(found.faults),
        "space": runs.space,
        "runs": len(runs),
    }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    out = terminal()
    out.print(plain(found.plan.title))
    out.print(f"golden run: {golden.length:,} instructions from {golden.begin:,}, to {golden.how}")
    out.print(f"space: {found.moments:,} moments x {len(found.faults):,} faults = {runs.space:,}")
    out.print(f"runs: {len(runs):,}")


@app.command(epilog=examples("campaign run"))
def run(
    plan: PlanArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of results; default: NAME.campaign."),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Worker processes; 0: one for each host processor.")
    ] = 0,
    ray: Annotated[
        str,
        typer.Option(help="Use the Ray cluster at this address; local: start one on this host."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run a campaign, or continue one that was stopped."""
    from trapgate.campaign.plan import find_plan

    with one_line_errors(), prepared():
        from trapgate.campaign.campaign import create, default_workers
        from trapgate.campaign.results import Results

        wanted = find_plan(plan)
        folder = output or Path(f"{Path(plan).stem}.campaign")
        if Results.exists(folder):
            results = Results.open(folder)
            results.demand_plan(wanted)
        else:
            results = create(_prepare(wanted), folder)
        finished = _run_missing(wanted, results, workers or default_workers(), ray)
        _show(results, as_json=as_json)
    if not finished:
        print(f"trapgate: stopped; the same command continues from here: {folder}", file=sys.stderr)
        raise typer.Exit(1)
    raise typer.Exit(1 if _tally(results).get("error") else 0)


def _run_missing(plan: Plan, results: Results, workers: int, ray: str) -> bool:
    """Run what is missing, with a bar; False if Ctrl-C ended it."""
    from trapgate.campaign.campaign import run as work
    from trapgate.campaign.statistics import merge

    tally = _tally(results)
    begun, before = time.monotonic(), _runs(tally)
    try:
        with _bar(results.runs_total, before, results.draws_per_point) as told:
            for more in work(plan, results, workers, ray):
                tally = merge((tally, more))
                rate = (_runs(tally) - before) / max(time.monotonic() - begun, 1e-9)
                told(tally, rate)
    except KeyboardInterrupt:
        return False
    return True


class _bar:  # noqa: N801 - used as a function
    """A progress bar on a terminal: runs, rate, and the outcomes so far with their intervals."""

    def __init__(self, total: int, done: int, drawn: float) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        self._drawn = drawn
        self._console = terminal(error=True)
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            Remaining(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total, completed=done)

    def __enter__(self) -> Any:
        self._progress.start()
        return self._progress_line

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _progress_line(self, tally: Tally, rate: float) -> None:
        from trapgate.campaign.statistics import shares

        words = ", ".join(
            f"{one.outcome} {one.share:.1%} ±{(one.high - one.low) / 2:.1%}"
            for one in shares(tally, exact=False, drawn=self._drawn)[:3]
        )
        done = _runs(tally)
        self._progress.update(
            self._task, completed=done, description=f"{rate:,.0f} runs/s; {plain(words)}"
        )


def _runs(tally: Tally) -> int:
    return sum(count for count, _ in tally.values())


def _tally(results: Results) -> Tally:
    from trapgate.campaign.tables import tally

    return tally(results)


@app.command(epilog=examples("campaign stat"))
def stat(folder: FolderArgument, as_json: AsJson = False) -> None:
    """Show the outcomes of the runs so far."""
    with one_line_errors():
        from trapgate.campaign.results import Results

        _show(Results.open(folder), as_json=as_json)


def _show(results: Results, *, as_json: bool) -> None:
    from rich.table import Table

    from trapgate.campaign.outcomes import MEANINGS
    from trapgate.campaign.statistics import shares

    tally = _tally(results)
    done = _runs(tally)
    complete = done == results.runs_total
    exact = bool(results.facts.get("exact")) and complete
    confidence = float(results.facts.get("confidence", 0.95))
    found = shares(tally, exact=exact, confidence=confidence, drawn=results.draws_per_point)
    if as_json:
        answer = {
            "title": results.facts.get("title"),
            "runs": done,
            "of": results.runs_total,
            "space": results.facts.get("space"),
            "complete": complete,
            "outcomes": [
                {
                    "outcome": one.outcome,
                    "runs": one.runs,
                    "points": one.points,
                    "share": one.share,
                    "interval": [one.low, one.high],
                }
                for one in found
            ],
        }
        print(json.dumps(answer, indent=2))
        return
    out = terminal()
    out.print(plain(results.facts.get("title")))
    out.print(f"{done:,} of {results.runs_total:,} runs, for {results.facts['space']:,} points")
    table = Table("outcome", "meaning")
    for head in ("runs", "share") if exact else ("runs", "share", f"{confidence:.0%} interval"):
        table.add_column(head, justify="right")
    for one in found:
        cells = [plain(one.outcome), MEANINGS.get(one.outcome, "a class of the plan's")]
        cells += [f"{one.runs:,}", f"{one.share:.3%}"]
        if not exact:
            cells.append(f"{one.low:.3%} to {one.high:.3%}")
        table.add_row(*cells)
    out.print(table)


@app.command(epilog=examples("campaign diff"))
def diff(
    before: FolderArgument,
    after: Annotated[Path, typer.Argument(help="Directory of other results.")],
    as_json: AsJson = False,
) -> None:
    """Compare two campaigns: which outcomes became more or less frequent."""
    with one_line_errors():
        from trapgate.campaign.compare import compare
        from trapgate.campaign.results import Results

        found = compare(Results.open(before), Results.open(after))
    if as_json:
        names = ("outcome", "before", "after", "change", "low", "high", "sure")
        print(json.dumps([{n: getattr(one, n) for n in names} for one in found], indent=2))
        return
    from rich.table import Table

    table = Table("outcome")
    for head in ("before", "after", "change", "95% interval", ""):
        table.add_column(head, justify="right")
    for one in found:
        interval = f"{one.low:+.3%} to {one.high:+.3%}"
        told = "" if one.sure else "within chance"
        cells = f"{one.before:.3%}", f"{one.after:.3%}", f"{one.change:+.3%}", interval, told
        table.add_row(plain(one.outcome), *cells)
    terminal().print(table)


@app.command(epilog=examples("campaign report"))
def report(
    folder: FolderArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="HTML file to write; or a PNG, SVG or PDF.")
    ],
    figure: Annotated[
        str, typer.Option(help="Of a PNG, SVG or PDF: map, functions, outcomes or vulnerable.")
    ] = "map",
) -> None:
    """Write a self-contained HTML page about a campaign, which opens offline.

    Or one of its figures, for papers: that needs the extra `figures`.
    """
    with one_line_errors():
        from trapgate.campaign.figures import SUFFIXES, write_figure
        from trapgate.campaign.page.write import write_page
        from trapgate.campaign.results import Results

        results = Results.open(folder)
        if output.suffix in SUFFIXES:
            size = write_figure(results, output, figure)
        else:
            size = write_page(results, output)
    print(f"{output}: {size:,} bytes")


@contextmanager
def _debugger(gdb: str | None) -> Iterator[Callable[[VirtualMachine, bool], None] | None]:
    """What stops a run before its fault until gdb lets it continue."""
    if gdb is None:
        yield None
        return
    from trapgate.debug.gdb import Debugger, address_of

    where = address_of(gdb)
    served: list[tuple[Debugger, VirtualMachine]] = []

    def there(vm: VirtualMachine, wide: bool) -> None:
        debugger = Debugger(vm, *where, bits=64 if wide else 32)
        served.append((debugger, vm))
        host, port = debugger.address
        print(f"trapgate: gdb: target remote {host}:{port}", file=sys.stderr, flush=True)
        debugger.wait()

    yield there
    for debugger, vm in served:
        if vm.stopped is not None:
            debugger.finished(vm.stopped)


@app.command(epilog=examples("campaign show"))
def show(
    folder: FolderArgument,
    number: Annotated[int, typer.Argument(min=0, help="Number of the run.")],
    trace: Annotated[
        Path | None, typer.Option(help="Write every fault of the run to this Parquet file.")
    ] = None,
    gdb: Annotated[
        str | None,
        typer.Option(help="Stop before the fault, and serve gdb at [HOST:]PORT."),
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Execute the Python files that the campaign's plan names."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Repeat run NUMBER exactly, and show what happens."""
    with one_line_errors(), prepared():
        from trapgate.campaign.replay import replay
        from trapgate.campaign.results import Results

        results = Results.open(folder)
        with _debugger(gdb) as there:
            seen = replay(results, number, trace=trace, there=there, trusted=trust)
    if as_json:
        print(json.dumps(seen.as_json(), indent=2))
    else:
        out = terminal()
        for name, value in seen.as_json().items():
            if value not in ("", None, []):
                out.print(f"{name}: {plain(value)}" if name != "printed" else "printed:")
                if name == "printed":
                    out.print("\n".join(f"  {plain(line)}" for line in str(value).splitlines()))
    raise typer.Exit(0 if seen.agrees else 1)


@app.command(epilog=examples("campaign sql"))
def sql(
    folder: FolderArgument,
    query: Annotated[str, typer.Argument(help="SQL over the table `runs`.")],
    as_json: AsJson = False,
) -> None:
    """Query the results in SQL (DuckDB)."""
    with one_line_errors():
        from trapgate.campaign.results import Results
        from trapgate.campaign.tables import sql as ask

        answer = ask(Results.open(folder), query)
    if as_json:
        print(json.dumps(answer.to_dicts(), indent=2, default=str))
        return
    from rich.table import Table

    table = Table(*answer.columns)
    for row in answer.iter_rows():
        table.add_row(*(plain(cell) for cell in row))
    terminal().print(table)
