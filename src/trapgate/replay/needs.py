"""Of the exceptions that a policy lets go to the guest, those that the VMM needed.

Whether an exit was needed is told as `criteria learn` tells it: by a Boolean column, or
else by what followed. Where the same vector is injected next, the VMM only gave the
exception back, and nobody misses the exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trapgate.criteria.wishes.trace_faults import Faults, read_faults
from trapgate.replay.control_table import CONTROLS, EXCEPTIONS
from trapgate.replay.exits import ReasonOutcome
from trapgate.replay.judge import Columns, verdict
from trapgate.replay.policy import Policy
from trapgate.replay.result import Replay
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION
from trapgate.trace.frames import polars
from trapgate.trace.labels import vector_label

if TYPE_CHECKING:
    from polars import DataFrame

_LOST = next(control.lost for control in CONTROLS if control.name == EXCEPTIONS)


def with_lost_exceptions(
    result: Replay, traces: Sequence[Path], policies: Sequence[Policy], mark: str = ""
) -> Replay:
    """The result with a line for each vector, of what is saved and of what is lost.

    `mark` names the Boolean column of needed exits (`needed`, or inferred, if not given).
    Policies with a fault filter or a criteria table have no such lines: what they do hangs on
    more than vector and code. Exceptions whose code the trace does not tell are left out.

    Raises: TraceError, CriteriaError as `criteria.learn`.
    """
    faults = [read_faults(Path(path), mark, own=True)[0] for path in traces]
    outcomes = [
        replace(outcome, reasons=(*_by_vector(faults, policy), *outcome.reasons))
        for outcome, policy in zip(result.outcomes, policies, strict=True)
    ]
    return replace(result, outcomes=tuple(outcomes))


def _by_vector(parts: Sequence[Faults], policy: Policy) -> list[ReasonOutcome]:
    if policy.rules or policy.filters_writes or not policy.judges_exceptions:
        return []
    pl = polars()
    frame = pl.concat([_frame(part) for part in parts])
    said = verdict(policy, Columns(codes_missing=False))
    saved = said.judged & ~said.exits
    found = (
        frame.filter("exited")
        .with_columns(saved.alias("saved"))
        .group_by("vector")
        .agg(
            pl.col("count").sum().alias("recorded"),
            pl.col("count").filter("saved").sum().alias("saved"),
            pl.col("count").filter(pl.col("saved") & pl.col("needed")).sum().alias("lost"),
        )
        .sort("recorded", "vector", descending=[True, False])
    )
    return [
        ReasonOutcome(
            reason=vector_label(row["vector"]),
            control=EXCEPTIONS,
            recorded=row["recorded"],
            saved=row["saved"],
            unjudged=0,
            lost=row["lost"],
            lost_untold=0,
            lost_words=_LOST,
            unknown="",
            timed=0,
            time=None,
            squared=0,
        )
        for row in found.iter_rows(named=True)
    ]


def _frame(faults: Faults) -> DataFrame:
    """Kinds of exceptions as rows that a policy can judge."""
    pl = polars()
    columns = {
        "vector": pl.Series(faults.vector, dtype=pl.UInt8),
        "error_code": pl.Series(faults.code).replace(-1, None).cast(pl.UInt32),
        "exited": faults.exited,
        "needed": faults.needed,
        "count": faults.count,
    }
    frame: DataFrame = pl.DataFrame(columns).with_columns(
        pl.lit(TYPE_HARDWARE_EXCEPTION, pl.UInt8).alias("type"),
        pl.lit(value=False).alias("injected"),
        pl.lit(value=False).alias("reflected"),
        pl.lit("").alias("reason"),
    )
    return frame
