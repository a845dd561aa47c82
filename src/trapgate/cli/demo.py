"""`trapgate demo`: the bundled guest under filters of its page faults, or under two VMMs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from trapgate.cli.notes import PORTABLE_FILTERS
from trapgate.cli.run_options import memory_size
from trapgate.cli.summary import summary_json
from trapgate.cli.terminal import (
    EngineKind,
    EngineOption,
    Paging,
    fail,
    one_line_errors,
    prepared,
    terminal,
    vector_name,
)

if TYPE_CHECKING:
    from rich.console import Console as Terminal

    from trapgate.demo import x86 as demo_x86
    from trapgate.demo.direct import Filter, Result

EXAMPLES = """
Examples:

  trapgate demo

  trapgate demo --workload aging --workload swap --scale 5

  trapgate demo --json

  trapgate demo --paging own

  trapgate demo --paging own --report demo.html

  trapgate demo --vmm x86

  trapgate demo --guest vmlinuz --initrd initrd.cpio --append console=ttyS0 --until "# $"

  trapgate demo --disk xv6.img --disk fs.img --memory 512M --until "sh"
"""


class VmmKind(StrEnum):
    """Which VMM the guest has."""

    python = "python"
    x86 = "x86"


def demo(
    workload: Annotated[
        list[str] | None, typer.Option(help="A workload to run (repeatable); default: all.")
    ] = None,
    scale: Annotated[int, typer.Option(min=1, max=10_000, help="Multiply the work by N.")] = 1,
    paging: Annotated[
        Paging,
        typer.Option(
            help="direct: the VMM guards the guest's page tables, and fault filters save exits; "
            "own: the guest's page tables are not guarded."
        ),
    ] = Paging.direct,
    engine: EngineOption = EngineKind.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(help="With --paging own: also write an HTML page about the runs."),
    ] = None,
    vmm: Annotated[
        VmmKind,
        typer.Option(
            help="x86: run the guest also under the bundled hypervisor, which is x86 code."
        ),
    ] = VmmKind.python,
    guest: Annotated[
        list[Path] | None,
        typer.Option(
            help="Your own kernel instead of the bundled guest, as for `trapgate run` (repeatable)."
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(help="Disk image for the guest; the BIOS boots it if there is no kernel."),
    ] = None,
    initrd: Annotated[Path | None, typer.Option(help="Initial RAM disk of --guest.")] = None,
    append: Annotated[str, typer.Option(help="Command line of --guest.")] = "",
    memory: Annotated[str, typer.Option(help="RAM of --guest.")] = "256M",
    text: Annotated[
        str,
        typer.Option("--input", help=r"Text to type at the serial port of --guest; \n is Enter."),
    ] = "",
    until: Annotated[
        str | None,
        typer.Option(
            help="End each run of --guest when the output matches this regular expression."
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.001, help="End each run of --guest after this many seconds."),
    ] = None,
) -> None:
    """Run the bundled guest under several page-fault filters, and show what each costs.

    With --guest or --disk: run any other guest, under a frame map.
    """
    if guest or disk:
        if workload or report is not None or vmm is VmmKind.x86 or paging is Paging.own:
            raise fail(
                "--guest: --workload, --report, --paging own and --vmm x86 are for the bundled "
                "guest; leave them out"
            )
        with one_line_errors(), prepared():
            from trapgate.cli.demo_guest import demo_guest

            alike = demo_guest(
                guest or [],
                disks=disk or [],
                initrd=initrd,
                append=append,
                memory=memory_size(memory),
                text=text,
                until=until,
                timeout=timeout,
                engine=engine.value,
                as_json=as_json,
            )
            raise typer.Exit(0 if alike else 1)
    if initrd is not None or append or text or until is not None or timeout is not None:
        raise fail("--initrd, --append, --input, --until, --timeout: need --guest or --disk")
    if vmm is VmmKind.x86:
        if report is not None:
            raise fail("--report: cannot be combined with --vmm x86; leave out one of them")
        _demo_x86(workload or (), scale, engine.value, as_json)
    if report is not None and paging is Paging.direct:
        raise fail("--report: needs --paging own; add it")
    with one_line_errors(), prepared():
        try:
            if paging is Paging.direct:
                good = _direct(workload or [], scale, engine.value, as_json)
            else:
                good = _own(workload or [], scale, engine.value, as_json, report)
        except ValueError as error:
            raise fail(f"--workload: {error}") from None
        raise typer.Exit(0 if good else 1)


def _direct(workloads: list[str], scale: int, engine: str, as_json: bool) -> bool:
    from trapgate.demo import direct as demonstration

    results: list[Result] = []
    with terminal(error=True).status("running") as status:
        for result in demonstration.run_direct(workloads, scale=scale, engine=engine):
            results.append(result)
            status.update(f"{result.workload}, {result.filter.name}")
    good = demonstration.passed(results)
    if as_json:
        print(json.dumps([_result_json(result) for result in results], indent=2))
        return good
    _show_direct([Costs.of(result) for result in results], terminal())
    words = "the same" if good else "NOT the same"
    print(f"The guest's output was {words} under every filter.")
    print(f"Engine: {results[0].summary.engine_words}")
    if results[0].summary.engine == "portable":
        print(f"Note: {PORTABLE_FILTERS}.")
    return good


@dataclass(frozen=True)
class Costs:
    """A line of the table: what became of the page faults of a run, or of several."""

    workload: str
    filter: Filter
    faults: int
    exits: int
    delivered: int
    completed: int
    seconds: float

    @classmethod
    def of(cls, result: Result) -> Costs:
        """The costs of one run."""
        from trapgate.decision.decide import Disposition

        summary = result.summary
        counts = summary.faults.get(14, {})
        faults, exits, _ = result.faults(14)
        delivered, completed = (
            counts.get(Disposition.DELIVER, 0),
            counts.get(Disposition.COMPLETE, 0),
        )
        return cls(
            result.workload, result.filter, faults, exits, delivered, completed, summary.seconds
        )

    @classmethod
    def sum(cls, some: list[Costs]) -> Costs:
        """The costs of all workloads under one filter."""
        return cls(
            "all",
            some[0].filter,
            sum(cost.faults for cost in some),
            sum(cost.exits for cost in some),
            sum(cost.delivered for cost in some),
            sum(cost.completed for cost in some),
            sum(cost.seconds for cost in some),
        )


def _show_direct(costs: list[Costs], out: Terminal) -> None:
    from rich.table import Table

    filters = list(dict.fromkeys(cost.filter for cost in costs))
    groups = [costs[n : n + len(filters)] for n in range(0, len(costs), len(filters))]
    if len(groups) > 1:
        groups.append([Costs.sum(list(same)) for same in zip(*groups, strict=True)])
    table = Table(
        title="page faults under direct paging, and what became of them",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for title in ("workload", "filter"):
        table.add_column(title)
    for title in ("faults", "exits", "delivered", "completed", "seconds", "relative"):
        table.add_column(title, justify="right")
    for group in groups:
        for n, cost in enumerate(group):
            numbers = (cost.faults, cost.exits, cost.delivered, cost.completed)
            table.add_row(
                "" if n else cost.workload,
                cost.filter.name,
                *(f"{number:,}" for number in numbers),
                f"{cost.seconds:.2f}",
                f"{cost.seconds / group[0].seconds:.2f}",
                end_section=n == len(group) - 1,
            )
    out.print(table)
    print()
    for setting in filters:
        rule = f"mask {setting.mask:X}H, match {setting.match:X}H"
        print(f"{setting.name} ({rule}): {setting.meaning}")
    print()
    print(_headline(groups))


def _headline(groups: list[list[Costs]]) -> str:
    """What figure 8 saved, of each workload."""
    saved = []
    for group in groups:
        first = group[0]
        eighth = next(cost for cost in group if cost.filter.fault_filter == "figure-8")
        saved.append(
            f"{first.workload} {1 - eighth.exits / max(first.exits, 1):.0%} "
            f"({first.seconds / eighth.seconds:.1f} times as fast)"
        )
    return f"Exits that figure 8 saves: {', '.join(saved)}."


def _own(workloads: list[str], scale: int, engine: str, as_json: bool, report: Path | None) -> bool:
    from trapgate.demo import direct as demonstration

    results: list[Result] = []
    if report is not None:
        from trapgate.trace.frames import polars

        polars()  # complains at once, not after the runs
        if report.is_dir() or not report.parent.is_dir():
            raise fail(f"--report: {report} cannot be a file; name one in an existing folder")
    with TemporaryDirectory() as folder:
        trace = None if report is None else Path(folder) / "demo.parquet"
        for result in demonstration.run(workloads, scale=scale, engine=engine, trace=trace):
            if not results and not as_json:
                sys.stdout.write(result.output.decode("ascii", "replace"))
                sys.stdout.flush()
            results.append(result)
        if report is not None and trace is not None:
            _report(trace, report)
    good = demonstration.passed(results)
    if as_json:
        print(json.dumps([_result_json(result) for result in results], indent=2))
        return good
    _show_own(results, terminal())
    words = "the same" if good else "NOT the same"
    print(f"The guest's output was {words} under every filter.")
    print(f"Engine: {results[0].summary.engine_words}")
    return good


def _demo_x86(workloads: Sequence[str], scale: int, engine: str, as_json: bool) -> NoReturn:
    with one_line_errors(), prepared():
        from trapgate.demo import x86 as demonstration

        results: list[demo_x86.Result] = []
        try:
            for result in demonstration.run(workloads, scale=scale, engine=engine):
                if not results and not as_json:
                    sys.stdout.write(result.output.decode("ascii", "replace"))
                    sys.stdout.flush()
                results.append(result)
        except ValueError as error:
            raise fail(str(error)) from None
        good = demonstration.passed(results)
        if as_json:
            print(json.dumps([_x86_json(result) for result in results], indent=2))
        else:
            _show_x86(results, terminal())
            words = "the same" if good else "NOT the same"
            print(f"The guest's output was {words} under both VMMs.")
            print(f"Engine: {results[0].summary.engine_words}")
        raise typer.Exit(0 if good else 1)


def _x86_json(result: demo_x86.Result) -> dict[str, Any]:
    return {
        "vmm": "python" if result.vmm == "python" else "x86",
        "policy": None if result.vmm == "python" else result.vmm,
        "end": result.stop.end.value,
        "status": result.stop.status,
        "output_sha256_12": result.digest,
        "vmm_counts": dict(result.counts),
        **summary_json(result.summary),
    }


def _show_x86(results: list[demo_x86.Result], out: Terminal) -> None:
    from rich.table import Table

    table = Table(
        title="\nthe same guest under two VMMs", title_justify="left", box=None, pad_edge=False
    )
    titles = {
        "exits": "exits",
        "exceptions": "exception or NMI",
        "filled in": "translations filled in",
        "table edits": "page-table edits carried out",
        "reflected": "exceptions 14 given to the guest",
    }
    table.add_column("VMM")
    for title in (*titles, "seconds"):
        table.add_column(title, justify="right")
    table.add_column("meaning")
    for result in results:
        own = [
            f"{result.counts[count]:,}" if count in result.counts else ""
            for count in titles.values()
        ]
        if not result.counts:
            own[0] = f"{sum(result.summary.exits.values()):,}"
        name = result.vmm if not result.counts else f"x86, policy={result.vmm}"
        table.add_row(name, *own, f"{result.summary.seconds:.2f}", result.meaning)
    out.print(table)
    for result in results:
        if result.stop.status:
            out.print(f"{result.vmm}: {result.stop.message}")


def _report(trace: Path, out: Path) -> None:
    from trapgate import guests
    from trapgate.demo import direct as demonstration
    from trapgate.replay import Policy
    from trapgate.report import report
    from trapgate.trace import TraceError
    from trapgate.trace.symbols import Symbols

    policies = [
        Policy.of(setting.name, vectors=[14] * setting.bit, mask=setting.mask, match=setting.match)
        for setting in demonstration.FILTERS
    ]
    image = trace.with_name("guest.elf")
    image.write_bytes(guests.image())
    symbols: Symbols | None
    try:
        symbols = Symbols(image)
    except TraceError:
        symbols = None  # a stripped image: addresses it is
    size = report(
        [trace], out, policies=policies, symbols=symbols, title="Trapgate's demonstration"
    )
    print(f"{out}: {size:,} bytes", file=sys.stderr)


def _result_json(result: Result) -> dict[str, Any]:
    setting = result.filter
    return {
        "workload": result.workload or "all",
        "filter": setting.name,
        "fault_filter": setting.fault_filter,
        "exception_bitmap": setting.bit << 14,
        "mask": setting.mask,
        "match": setting.match,
        "end": result.stop.end.value,
        "status": result.stop.status,
        "output_sha256_12": result.digest,
        **summary_json(result.summary),
    }


def _show_own(results: list[Result], out: Terminal) -> None:
    from rich.table import Table

    kinds = Table(
        title="\nfaults of each kind: exited + handled by the guest itself",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    kinds.add_column("fault")
    for result in results:
        kinds.add_column(result.filter.name, justify="right")
    for vector in sorted({vector for result in results for vector in result.summary.faults}):
        counts = [result.faults(vector) for result in results]
        kinds.add_row(
            vector_name(vector), *(f"{exited:,} + {direct:,}" for _, exited, direct in counts)
        )
    cost = Table(
        title="\nwhat the page-fault filter costs", title_justify="left", box=None, pad_edge=False
    )
    for title in ("filter", "page faults", "exits", "exits saved", "seconds", "relative"):
        cost.add_column(title, justify="left" if title == "filter" else "right")
    cost.add_column("meaning")
    first = results[0]
    for result in results:
        happened, exited, _ = result.faults(14)
        saved = 1 - exited / happened if happened else 0.0
        seconds = result.summary.seconds
        cost.add_row(
            result.filter.name,
            f"{happened:,}",
            f"{exited:,}",
            f"{saved:.0%}",
            f"{seconds:.2f}",
            f"{seconds / first.summary.seconds:.2f}",
            result.filter.meaning,
        )
    out.print(kinds)
    out.print(cost)
