"""Measure Trapgate and the programs that it is compared with, and print a table."""

import argparse
import contextlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from benchmarks import qemu
from benchmarks.measure import Benchmark, Outcome, SkipSide, measure, ratios
from benchmarks.suite import SUITE

_WIDTH = 140
_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(value: float, unit: str) -> str:
    """A result for reading: three figures, with a prefix where it is a rate."""
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{value / size:.3g} {prefix} {unit}"
    return f"{value:.3g} {unit}"


def spread(outcome: Outcome) -> str:
    """How far the results lie apart, in percent of the median."""
    if not outcome.median:
        return ""
    return f"{100 * (max(outcome.results) - min(outcome.results)) / outcome.median:.0f}%"


def table_of(measured: list[tuple[Benchmark, list[Outcome]]]) -> Table:
    """All results as a table; Trapgate's rows carry their ratios to the peers."""
    table = Table(title="Trapgate and its peers, median of each")
    for heading in ("benchmark", "side", "median", "spread", "ratio to peers", "goal"):
        justify: Literal["left", "right"] = "right" if heading in {"median", "spread"} else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    for benchmark, outcomes in measured:
        compared = ratios(outcomes)
        for row, outcome in enumerate(outcomes):
            median = outcome.median
            peers = compared.get(outcome.side, {})
            table.add_row(
                f"{benchmark.name}\n({benchmark.better} is better)" if row == 0 else "",
                outcome.side,
                f"skipped: {outcome.skipped}" if median is None else shown(median, benchmark.unit),
                spread(outcome),
                ", ".join(f"{ratio:.2f} x {peer}" for peer, ratio in peers.items()),
                benchmark.goal if row == 0 else "",
                end_section=row == len(outcomes) - 1,
            )
    return table


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    facts: dict[str, object] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    with contextlib.suppress(SkipSide):
        facts["qemu"] = qemu.version()
    return facts


def document(measured: list[tuple[Benchmark, list[Outcome]]]) -> dict[str, object]:
    """All results for machines."""
    return {
        "machine": machine(),
        "benchmarks": [
            {
                "name": benchmark.name,
                "what": benchmark.what,
                "unit": benchmark.unit,
                "better": benchmark.better,
                "goal": benchmark.goal,
                "sides": [
                    {
                        "name": outcome.side,
                        "median": outcome.median,
                        "results": list(outcome.results),
                        "skipped": outcome.skipped,
                    }
                    for outcome in outcomes
                ],
                "ratios": ratios(outcomes),
            }
            for benchmark, outcomes in measured
        ],
    }


def main() -> int:
    """Run the benchmarks that were asked for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [benchmark.name for benchmark in SUITE]
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"benchmarks to run, by default all: {', '.join(names)}",
    )
    parser.add_argument(
        "--runs", type=int, default=5, help="measured turns of each side (default: 5)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=1, help="turns before these, which do not count (default: 1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"no benchmark {unknown[0]}; there are {', '.join(names)}")
    if options.runs < 1 or options.warm_up < 0:
        parser.error("--runs must be at least 1 and --warm-up at least 0")
    progress = Console(stderr=True)
    measured = []
    for benchmark in SUITE:
        if options.names and benchmark.name not in options.names:
            continue
        with progress.status(f"{benchmark.name}: {benchmark.what}"):
            outcomes = measure(benchmark, runs=options.runs, warm_up=options.warm_up)
        measured.append((benchmark, outcomes))
    # Into a file there is room for lines that would fold on a terminal.
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(table_of(measured))
    if options.json:
        options.json.write_text(json.dumps(document(measured), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
