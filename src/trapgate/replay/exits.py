"""Policies on exits that are not exceptions: what is saved and lost, by reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapgate.replay import accesses
from trapgate.replay.control_table import SWITCHED_MSRS, Control, Loss, control_of
from trapgate.replay.exit_policy import OUTSIDE, SAVED, UNJUDGED, ExitPolicy, judgement_of
from trapgate.trace.frames import count, is_weighted, polars, reading, scan
from trapgate.trace.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from polars import DataFrame


@dataclass(frozen=True)
class ReasonOutcome:
    """What a policy does to exits of one reason, of those that it speaks of.

    Of `recorded` exits `saved` do not happen any more, `unjudged` may; `lost` of the saved ones
    did what nobody does any more (`lost_words`), of `lost_untold` the trace does not tell
    whether anybody needed them. `time` saved is in the trace's unit, None without latencies.
    """

    reason: str
    control: str
    recorded: int
    saved: int
    unjudged: int
    lost: int
    lost_untold: int
    lost_words: str
    unknown: str
    timed: int
    time: int | None
    squared: int

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def lost_range(lost: int, untold: int) -> str:
    """`10`, or `10 to 15` where the trace does not tell of some."""
    return f"{lost:,} to {lost + untold:,}" if untold else f"{lost:,}"


def judge_exits(
    paths: Sequence[Path], policies: Sequence[ExitPolicy], chosen: Selection = EVERYTHING
) -> list[tuple[ReasonOutcome, ...]]:
    """What each policy does to exits that are not exceptions, in one pass; by reason.

    Exits that were given to the hypervisor above stay: they are its own.

    Raises: TraceError for files that are not traces.
    """
    pl = polars()
    latency = pl.col("latency")
    wide = latency.cast(pl.Int128)
    keys = [
        accesses.word().alias("word"),
        accesses.detail().alias("detail"),
        pl.col("operand").is_null().alias("no operand"),
        pl.col("data").is_null().alias("no data"),
        (accesses.is_msr() & pl.col("operand").is_in(list(SWITCHED_MSRS)))
        .fill_null(value=False)
        .alias("switched"),
        *(judgement_of(policy).alias(f"says {number}") for number, policy in enumerate(policies)),
    ]
    with reading(paths):
        cells = (
            scan(paths, chosen)
            .filter((pl.col("disposition") == "EXIT") & ~pl.col("injected"))
            .group_by(keys)
            .agg(
                count(weighted=is_weighted(paths)).cast(pl.Int64).alias("count"),
                latency.count().cast(pl.Int64).alias("timed"),
                wide.sum().alias("time"),
                (wide * wide).sum().alias("squared"),
            )
            .collect(engine="streaming")
        )
    second_stage = bool(
        cells["word"].str.contains("^(?:EPT_|npf|EXIT_NPF)").fill_null(value=False).any()
    )
    return [_by_reason(cells, number, second_stage=second_stage) for number in range(len(policies))]


def _by_reason(cells: DataFrame, number: int, *, second_stage: bool) -> tuple[ReasonOutcome, ...]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    controls: dict[str, Control] = {}
    for row in cells.iter_rows(named=True):
        said = row[f"says {number}"]
        if said == OUTSIDE:
            continue
        control = control_of(row["word"], row["detail"] or "")
        controls[control.name] = control
        sums = found.setdefault(
            (row["word"], control.name),
            dict.fromkeys(
                (*("recorded", "saved", "unjudged", "lost", "untold", "timed", "time"), "squared"),
                0,
            )
            | {"open": False},
        )
        sums["recorded"] += row["count"]
        sums["open"] |= is_open(control, row)
        if said == UNJUDGED:
            sums["unjudged"] += row["count"]
        if said != SAVED:
            continue
        sums["saved"] += row["count"]
        for name in ("timed", "time", "squared"):
            sums[name] += int(row[name] or 0)
        loss = loss_of(control, row, second_stage=second_stage)
        sums["lost"] += row["count"] * (loss is Loss.WORK)
        sums["untold"] += row["count"] * (loss is Loss.UNTOLD)
    outcomes = [
        ReasonOutcome(
            reason=word,
            control=name,
            recorded=sums["recorded"],
            saved=sums["saved"],
            unjudged=sums["unjudged"],
            lost=sums["lost"],
            lost_untold=sums["untold"],
            lost_words=controls[name].lost,
            unknown=controls[name].unknown if sums["open"] else "",
            timed=sums["timed"],
            time=sums["time"] if sums["timed"] else None,
            squared=sums["squared"],
        )
        for (word, name), sums in found.items()
    ]
    return tuple(sorted(outcomes, key=lambda one: (-one.saved, -one.recorded, one.reason)))


def is_open(control: Control, row: Mapping[str, Any]) -> bool:
    """Whether what a control leaves unknown is unknown of these exits."""
    if not control.unknown:
        return False
    return bool(row[f"no {control.needs}"]) if control.needs else True


def loss_of(control: Control, row: Mapping[str, Any], *, second_stage: bool) -> Loss:
    """What becomes of the work at exits that a control no longer causes."""
    if control.loss is Loss.SHADOW:
        return Loss.NOTHING if second_stage else Loss.WORK
    if row["switched"]:
        return Loss.NOTHING
    if control.loss is Loss.UNTOLD and control.needs == "operand" and not row["no operand"]:
        return Loss.WORK
    return control.loss
