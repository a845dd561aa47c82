"""`trapgate trace`: import, look at and export fault traces."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trapgate.cli.documents import HtmlOption, MarkdownOption, shown
from trapgate.cli.examples import examples
from trapgate.cli.groups import command_group
from trapgate.cli.selection import (
    LevelOption,
    RipOption,
    TimeOption,
    VcpuOption,
    VmOption,
    selection,
)
from trapgate.cli.terminal import fail, one_line_errors, plain, terminal

if TYPE_CHECKING:
    from trapgate.trace.stat import Line, Stat

app = command_group("Import, show and export traces.")


class Format(StrEnum):
    """Formats of foreign traces."""

    auto = "auto"
    trace_dat = "trace-dat"
    perf_data = "perf-data"
    trace_cmd = "trace-cmd"
    ftrace = "ftrace"
    perf_script = "perf-script"
    qemu = "qemu"
    bochs = "bochs"
    bpftrace = "bpftrace"


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

IMPORT_EXAMPLES = """
Examples:

  trace-cmd record -e kvm && trapgate trace import trace.dat -o host.parquet

  perf record -e 'kvm:*' -a && trapgate trace import perf.data -o host.parquet

  trace-cmd report -N > host.txt && trapgate trace import host.txt -o host.parquet
"""


@contextmanager
def _progress(size: int) -> Iterator[Callable[[int], None] | None]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    console = terminal(error=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(
        BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        task = bar.add_task("", total=size)
        yield lambda done: bar.update(task, completed=done)


@app.command("import", epilog=IMPORT_EXAMPLES)
def import_command(
    file: Annotated[Path, typer.Argument(help="Recording, trace as text, or log, to read.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Parquet file to write.")],
    format: Annotated[Format, typer.Option(help="What FILE is.")] = Format.auto,  # noqa: A002
    as_json: AsJson = False,
) -> None:
    """Read a trace of a real host (KVM), or a log of QEMU or Bochs, into a fault trace."""
    from trapgate.trace.imports import import_trace

    with one_line_errors():
        size = file.stat().st_size if file.is_file() else 0
        with _progress(size) as progress:
            result = import_trace(file, output, format=format.value, progress=progress)
        if as_json:
            print(json.dumps(result.as_json(), indent=2))
            return
        counters = result.counters
        out = terminal()
        out.print(
            f"{output}: {counters.rows:,} rows from {counters.lines:,} lines ({result.format})"
        )
        for count, words in (
            (counters.foreign, "foreign lines left out"),
            (counters.unreadable, "lines name an event but cannot be read"),
            (counters.truncated, "cut or damaged lines or pages left out"),
            (counters.gaps, f"gaps in the recording, {counters.lost:,} events lost at least"),
            (counters.unpaired, "exits without a latency: no entry of their vCPU follows"),
            (counters.vectorless, "exceptions without a vector: give `trace-cmd report -N`"),
            (counters.backwards, "events are earlier than the one before of their thread"),
            (counters.untimed, "events without a time of their own: their order alone is known"),
        ):
            if count:
                out.print(f"  {count:,} {words}")
        if counters.posted:
            out.print(f"  {len(counters.posted):,} interrupts of devices go to the guest directly")
        for remark in counters.remarks:
            out.print(f"  {plain(remark)}")


@app.command(epilog=examples("trace stat"))
def stat(
    trace: Annotated[list[Path], typer.Argument(help="Traces to count together.")],
    symbols: Annotated[
        Path | None, typer.Option(help="System.map or ELF of the guest's kernel.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Lines of each table.")] = 15,
    level: LevelOption = None,
    vm: VmOption = None,
    vcpu: VcpuOption = None,
    time: TimeOption = ":",
    rip: RipOption = ":",
    beside: Annotated[
        Path | None, typer.Option(help="Another trace to compare with (Markdown, or --html).")
    ] = None,
    markdown: MarkdownOption = False,
    html: HtmlOption = None,
    as_json: AsJson = False,
) -> None:
    """Count and time events per reason, vector, error code, vCPU and symbol."""
    with one_line_errors():
        from trapgate.trace.stat import compared, statistics
        from trapgate.trace.symbols import Symbols

        table = None if symbols is None else Symbols(symbols)
        chosen = selection(level, vm, vcpu, time, rip)
        result = statistics(trace, symbols=table, chosen=chosen)
        document = partial(result.document, top)
        if beside is not None:
            other = statistics([beside], symbols=table, chosen=chosen)
            names = (", ".join(path.name for path in trace), beside.name)
            document = partial(compared, result, other, names)
            markdown = markdown or html is None
        if shown(document, markdown=markdown, html=html):
            return
        if as_json:
            print(json.dumps(result.as_json(), indent=2))
            return
        _show(result, top)


def _show(result: Stat, top: int) -> None:
    from rich.table import Table

    out = terminal()
    asked = f" ({result.chosen})" if result.chosen else ""
    out.print(f"{result.events:,} events{asked}; times in {result.time_unit}")
    if result.lost:
        out.print(f"the recorder lost {result.lost:,} events: they are in no count")
    timed = any(line.timed for lines in result.tables.values() for line in lines)
    for name, lines in result.tables.items():
        if not lines:
            continue
        table = Table(title=f"\nper {name}", title_justify="left", box=None, pad_edge=False)
        table.add_column(name, overflow="fold")
        times = ("total", "min", "mean", "p50", "p99", "max") if timed else ()
        for column in ("count", "share", "exits", *times):
            table.add_column(column, justify="right")
        for line in lines[:top]:
            table.add_row(
                plain(f"{line.key} ({line.words})" if line.words else line.key),
                f"{line.count:,}",
                f"{line.share:.1%}",
                f"{line.exits:,}",
                *(_times(line) if timed else ()),
            )
        out.print(table)
        if len(lines) > top:
            out.print(f"({len(lines) - top:,} more; --top shows them)")


def _times(line: Line) -> tuple[str, ...]:
    values = (line.total, line.least, line.mean, line.p50, line.p99, line.most)
    return tuple("" if value is None else f"{value:,.0f}" for value in values)


COLLECT_EXAMPLES = """
Examples:

  trapgate trace collect filter > record.sh

  trapgate trace collect reflect --tool bpftrace --seconds 60 > exits.bt
"""


@app.command(epilog=COLLECT_EXAMPLES)
def collect(
    question: Annotated[
        str, typer.Argument(help="Question: filter, reflect, inject, controls or everything.")
    ],
    tool: Annotated[str, typer.Option(help="trace-cmd, perf or bpftrace.")] = "trace-cmd",
    seconds: Annotated[int, typer.Option(min=1, help="How long to record.")] = 10,
    process: Annotated[
        int | None, typer.Option(min=1, help="Process ID of the only virtual machine to record.")
    ] = None,
) -> None:
    """Print a script that records on a host what a question needs."""
    from trapgate.trace.collect import script

    with one_line_errors():
        print(script(question, tool, seconds=seconds, process=process), end="")


@app.command(epilog=examples("trace head"))
def head(
    trace: Annotated[Path, typer.Argument(help="Trace to look at.")],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Show the first rows of a trace, and the facts about its run."""
    from trapgate.trace import Trace

    with one_line_errors(), Trace(trace) as opened:
        shown: list[dict[str, Any]] = []
        for batch in opened.batches(rows=rows):
            shown += batch.to_pylist()
            if len(shown) >= rows:
                break
        shown = shown[:rows]
        if as_json:
            for row in shown:
                print(json.dumps(row))
            return
        out = terminal()
        complete = "" if opened.complete else ", incomplete"
        out.print(
            f"{trace}: {len(opened):,} rows, version {opened.version}{complete}, "
            f"times in {opened.time_unit}"
        )
        for key, value in opened.run.items():
            told = ", ".join(line for line in value.splitlines() if line)
            out.print(f"  {plain(key)}: {plain(told)}")
        _show_rows(shown)


_SHOWN = (
    *("time", "vm", "vcpu", "vector", "error_code", "rip", "linear_address", "guest_physical"),
    *("interrupted_vector", "access", "disposition", "reason", "exit_reason", "latency", "depth"),
    *("operand", "data", "old_value", "level", "reflected", "injected", "weight"),
)


def _show_rows(rows: list[dict[str, Any]]) -> None:
    from trapgate.trace.labels import shown_value

    names = [name for name in _SHOWN if any(row.get(name) not in (None, False) for row in rows)]
    lines = [[plain(shown_value(name, row[name])) for name in names] for row in rows]
    titles = [name.replace("_", " ") for name in names]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    for line in (titles, *lines):
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


@app.command(epilog=examples("trace export"))
def export(
    trace: Annotated[Path, typer.Argument(help="Trace to export.")],
    perfetto: Annotated[
        Path | None,
        typer.Option(
            help="Write what the Perfetto UI opens: JSON if FILE ends in .json, else its own "
            "format, with flows."
        ),
    ] = None,
    ftrace: Annotated[
        Path | None, typer.Option(help="Write text as ftrace prints it; an import reads it again.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write CSV.")] = None,
) -> None:
    """Write a trace for other programs; DuckDB and others read the Parquet as it is."""
    from trapgate.trace import Trace
    from trapgate.trace.export import to_csv, to_ftrace
    from trapgate.trace.perfetto import to_perfetto, to_perfetto_proto
    from trapgate.trace.schema import WEIGHTED

    if perfetto is None and csv is None and ftrace is None:
        raise fail("nothing to write: give --perfetto FILE, --ftrace FILE or --csv FILE")
    with one_line_errors(), Trace(trace) as opened:
        if opened.run.get(WEIGHTED) == "yes" and (perfetto is not None or ftrace is not None):
            raise fail(f"{trace}: a histogram, which has counts and no events; give --csv FILE")
        if perfetto is not None:
            write = to_perfetto if perfetto.suffix == ".json" else to_perfetto_proto
            print(f"{perfetto}: {write(opened, perfetto):,} slices", file=sys.stderr)
        if ftrace is not None:
            print(f"{ftrace}: {to_ftrace(opened, ftrace):,} events", file=sys.stderr)
        if csv is not None:
            print(f"{csv}: {to_csv(opened, csv):,} rows", file=sys.stderr)
