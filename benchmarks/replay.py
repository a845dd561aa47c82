"""`python -m benchmarks.replay [--rows N] [--runs N] [--json FILE]`: the replay's speed.

All on one thread, so that the rates are those of one core. The trace is made here, once,
with the share of vectors and codes that a page-fault-heavy guest has.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # read when polars is imported

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.measure import Benchmark, measure
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action
from trapgate.decision.decide import decide_fault
from trapgate.replay import Family, Policy, replay, sweep
from trapgate.replay.replay import direct
from trapgate.replay.tables import action_of
from trapgate.trace import TraceWriter
from trapgate.trace.frames import scan

if TYPE_CHECKING:
    from polars import DataFrame

POLICY = Policy.of("writes", vectors=[14, 13], mask=3, match=3)
BASE = ("vector", "type", "error_code", "injected", "disposition", "reason", "reflected")
FOUR_CLAUSES = "vector == PF and cpl == 0 and rip < 0x110000 and bit(code, 1)"
ROW_BY_ROW = 200_000
"""Rows that row-at-a-time Python is given; it would take too long with all."""


def journal(rows: int, seed: int) -> NDArray[np.int64]:
    """Journal rows: mostly page faults with the usual codes, some other exceptions."""
    random = np.random.default_rng(seed)
    made = np.zeros((rows, 20), np.int64)
    made[:, 0] = np.arange(rows) + seed * rows
    made[:, 1] = made[:, 0] * 700
    made[:, 3] = random.choice([14, 13, 6, 7], rows, p=[0.85, 0.05, 0.05, 0.05])
    made[:, 4] = 3
    codes = random.choice([0, 2, 4, 6, 7, 0x14], rows)
    made[:, 5] = np.where(made[:, 3] == 14, codes, np.where(made[:, 3] == 13, 0, -1))
    made[:, 6] = 0x100000 + random.integers(0, 5000, rows) * 16
    made[:, 12] = random.integers(0, 2, rows)
    return made


def write(path: Path, rows: int) -> None:
    """The trace that all sides read."""
    part = 1_000_000
    with TraceWriter(path) as writer:
        for number in range(-(-rows // part)):
            writer.append(journal(min(part, rows - number * part), number))


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long `work` takes, by `clock`."""
    start = clock()
    work()
    return clock() - start


def by_numpy(columns: dict[str, NDArray[Any]]) -> tuple[int, int, int]:
    """The same policy on NumPy arrays: exits, saved and added."""
    vector, code, has = columns["vector"], columns["code"], columns["has"]
    asked = (columns["type"] == 3) & ~columns["injected"]
    page_fault = (vector == 14) & (True ^ (((code & 3) != 3) & has))
    exits = asked & (page_fault | (vector == 13))
    was = columns["exit"]
    saved, added = asked & was & ~exits, exits & ~was
    return int(exits.sum()), int(saved.sum()), int(added.sum())


def by_rows(rows: list[tuple[Any, ...]]) -> tuple[int, int, int]:
    """The same, a row at a time with the processor's own decision."""
    exits = saved = added = 0
    cells = POLICY.vmcs.cells
    for vector, kind, code, injected, disposition, *_ in rows:
        if kind not in {3, 5, 6} or injected:
            continue
        verdict, _ = decide_fault(cells, vector, kind, -1 if code is None else code)
        exits += verdict == 0
        saved += verdict != 0 and disposition == "EXIT"
        added += verdict == 0 and disposition != "EXIT"
    return exits, saved, added


def benchmarks(path: Path, rows: int) -> list[Benchmark]:
    """All of them, on the trace at `path`."""
    import polars as pl

    frame: DataFrame = scan([path]).select(BASE).collect()
    arrays = {
        "vector": frame["vector"].to_numpy(),
        "type": frame["type"].to_numpy(),
        "code": frame["error_code"].fill_null(0).to_numpy(),
        "has": frame["error_code"].is_not_null().to_numpy(),
        "injected": frame["injected"].to_numpy(),
        "exit": (frame["disposition"] == "EXIT").to_numpy(),
    }
    few = frame.head(min(rows, ROW_BY_ROW))
    tuples = few.rows()
    ours = direct(few.lazy(), POLICY)
    assert by_rows(tuples) == (ours["exits"], ours["saved"], ours["added"])
    whole = direct(frame.lazy(), POLICY)
    assert by_numpy(arrays) == (whole["exits"], whole["saved"], whole["added"])

    memory = Benchmark(
        "replay-memory", "a VT-x policy from memory, one core", "rows/s", "higher",
        "100 million rows a second and core",
    )  # fmt: skip
    memory.side("trapgate")(lambda: rows / seconds(lambda: direct(frame.lazy(), POLICY)))
    memory.side("numpy")(lambda: rows / seconds(lambda: by_numpy(arrays)))
    memory.side("row at a time")(lambda: len(tuples) / seconds(lambda: by_rows(tuples)))

    plain = pl.scan_parquet(path, glob=False).select(
        pl.col("vector").sum(),
        pl.col("type").sum(),
        pl.col("error_code").sum(),
        pl.col("injected").sum(),
        pl.col("disposition").count(),
        pl.col("reason").count(),
    )
    parquet = Benchmark(
        "replay-parquet", "the same from Parquet", "rows/s", "higher", "half of scan-and-sum"
    )
    parquet.side("trapgate")(lambda: rows / seconds(lambda: replay([path], [POLICY])))
    scanned = functools.partial(plain.collect, engine="streaming")
    parquet.side("scan and sum")(lambda: rows / seconds(scanned))

    columns = ("vector", "type", "error_code", "rip", "cpl", "cr3", "depth", "linear_address")
    rows_of_faults = scan([path]).select(*columns, "code_missing").collect()
    four = rules_for(parse(FOUR_CLAUSES), Action.EXIT)
    ruled = Benchmark(
        "replay-table", "a criteria table of 4 clauses from memory, processor time", "rows/s",
        "higher", "50 million rows a second and core",
    )  # fmt: skip
    exits = rows_of_faults.lazy().select((action_of(four) == 1).sum())
    ruled.side("trapgate")(lambda: rows / seconds(exits.collect, time.process_time))

    swept = Benchmark("replay-sweep", "243 policies from Parquet", "s", "lower", "40 x one policy")
    family = Family(0b11111, Policy.of("base", vectors=[14]))
    assert sum(1 for _ in family) == 243
    swept.side("trapgate sweep")(lambda: seconds(lambda: sweep([path], family)))
    swept.side("one policy")(lambda: seconds(lambda: replay([path], [POLICY])))
    return [memory, parquet, ruled, swept]


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replay", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000, help="of the trace")
    parser.add_argument("--runs", type=int, default=5, help="of each side")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here, too")
    options = parser.parse_args()
    from benchmarks.__main__ import document, table_of

    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace.parquet"
        write(path, options.rows)
        measured = [
            (benchmark, measure(benchmark, runs=options.runs))
            for benchmark in benchmarks(path, options.rows)
        ]
    Console().print(table_of(measured))
    if options.json:
        options.json.write_text(json.dumps(document(measured), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
