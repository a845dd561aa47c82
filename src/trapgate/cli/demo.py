"""`trapgate demo`: the bundled guest under three filters."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console as Terminal
from rich.table import Table

from trapgate.cli.run import summary_json
from trapgate.cli.terminal import EngineKind, complaints, fail, prepared, terminal, vector_name

if TYPE_CHECKING:
    from trapgate.demo import Result

EXAMPLES = """
Examples:

  trapgate demo

  trapgate demo --workload fork --workload swap --scale 5

  trapgate demo --json

  trapgate demo --report demo.html
"""


def demo(
    workload: Annotated[
        list[str] | None, typer.Option(help="A workload to run (repeatable); all by default.")
    ] = None,
    scale: Annotated[int, typer.Option(min=1, help="Multiplies the work.")] = 1,
    engine: Annotated[EngineKind, typer.Option(help="Way into the engine.")] = EngineKind.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a page about the first run, and the other filters.")
    ] = None,
) -> None:
    """Run the bundled guest under three filters, and show what each of them costs."""
    with complaints(), prepared(), TemporaryDirectory() as folder:
        from trapgate import demo as demonstration

        results: list[Result] = []
        trace = None if report is None else Path(folder) / "demo.parquet"
        if report is not None:
            from trapgate.trace.frames import polars

            polars()  # complains at once, not after the runs
        try:
            for result in demonstration.run(
                workload or (), scale=scale, engine=engine.value, trace=trace
            ):
                if not results and not as_json:
                    sys.stdout.write(result.output.decode("ascii", "replace"))
                    sys.stdout.flush()
                results.append(result)
        except ValueError as error:
            raise fail(str(error)) from None
        good = demonstration.passed(results)
        if report is not None and trace is not None:
            _report(trace, report)
        if as_json:
            print(json.dumps([_result_json(result) for result in results], indent=2))
        else:
            _show_demo(results, terminal())
            words = "the same" if good else "NOT the same"
            print(f"The guest's output was {words} under every filter.")
        raise typer.Exit(0 if good else 1)


def _report(trace: Path, out: Path) -> None:
    from trapgate import demo as demonstration
    from trapgate import guests
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
        "filter": setting.name,
        "exception_bitmap": setting.bit << 14,
        "mask": setting.mask,
        "match": setting.match,
        "end": result.stop.end.value,
        "status": result.stop.status,
        "output_sha256_12": result.digest,
        **summary_json(result.summary),
    }


def _show_demo(results: list[Result], out: Terminal) -> None:
    kinds = Table(
        title="\nfaults of each kind: exited + handled by the guest itself",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    kinds.add_column("fault")
    for result in results:
        kinds.add_column(result.filter.name, justify="right")
    for vector in sorted({v for result in results for v in result.summary.faults if v < 32}):
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
