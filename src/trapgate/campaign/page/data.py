"""What the page shows: counts by where, what and outcome, and runs behind each count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trapgate.campaign.outcomes import HARMLESS, MEANINGS, OUTCOMES
from trapgate.campaign.results import Results
from trapgate.campaign.statistics import interval, shares
from trapgate.campaign.tables import frame, tally
from trapgate.trace.frames import optional

if TYPE_CHECKING:
    from polars import DataFrame, Expr, LazyFrame

BINS: Final = 48
"""Spans of time, at most."""
ROWS: Final = 40
"""Targets, functions and bits that are told apart, those with the most harm first."""
EXAMPLES: Final = 6
"""Runs that are named for a count."""
OTHER: Final = "(other)"


def page_data(results: Results) -> dict[str, Any]:
    """All that the page shows. Raises CampaignError without results."""
    pl: Any = optional("polars", "campaign", "campaign report")
    lazy = frame(results).with_columns(
        pl.col(name).cast(pl.String) for name in ("symbol", "target", "outcome", "fault")
    )
    golden = results.facts["golden"]
    begin, end = int(golden["begin"]), int(golden["end"])
    bins = max(1, min(BINS, end - begin))
    table = lazy.with_columns(
        ((pl.col("moment") - begin) * bins // max(end - begin, 1)).clip(0, bins - 1).alias("time"),
        pl.when(pl.col("symbol") == "")
        .then(_hexadecimal())
        .otherwise(pl.col("symbol"))
        .alias("at"),
        pl.when(pl.col("bit").is_null())
        .then(pl.lit("-"))
        .otherwise(pl.lit("bit ") + pl.col("bit").cast(pl.String))
        .alias("which"),
        pl.when(pl.col("outcome").is_in(sorted(HARMLESS)))
        .then(0.0)
        .otherwise(pl.col("weight"))
        .alias("harm"),
    )
    outcomes = tally(results)
    done = sum(runs for runs, _ in outcomes.values())
    whole = bool(results.facts["exact"]) and done == results.runs_total
    order = [name for name in OUTCOMES if name in outcomes]
    order += sorted(outcomes.keys() - set(order))
    confidence = float(results.facts["confidence"])
    drawn = results.draws_per_point
    labels = {name: _labels(table, name) for name in ("target", "at", "which")}
    return {
        "title": str(results.facts["title"]),
        "folder": str(results.folder),
        "facts": _facts(results, done),
        "pruned": results.has_pruned,
        "outcomes": order,
        "meanings": [MEANINGS.get(name, "a class of the plan's") for name in order],
        "harmless": [name in HARMLESS for name in order],
        "shares": [
            [one.outcome, one.runs, one.points, one.share, one.low, one.high]
            for one in shares(outcomes, exact=whole, confidence=confidence, drawn=drawn)
        ],
        "labels": labels,
        "begin": begin,
        "step": (end - begin) / bins,
        "bins": bins,
        "heat": {
            "time": _cells(table, "time", "target", order, labels),
            "at": _cells(table, "at", "target", order, labels),
        },
        "vulnerable": {
            name: _vulnerable(table, name, drawn, confidence, exact=whole)
            for name in ("at", "target", "which")
        },
    }


def _hexadecimal() -> Expr:
    pl: Any = optional("polars", "campaign", "campaign report")
    page: Expr = pl.lit("page of RIP ") + (pl.col("rip") // 4096 * 4096).cast(pl.String)
    return page


def _labels(table: LazyFrame, name: str) -> list[str]:
    """The labels of a dimension that are told apart, in order of harm."""
    pl: Any = optional("polars", "campaign", "campaign report")
    found = (
        table.group_by(name)
        .agg(pl.col("harm").sum(), pl.col("weight").sum())
        .sort(["harm", "weight", name], descending=[True, True, False])
        .collect()
    )
    names: list[str] = found[name].to_list()
    return names if len(names) <= ROWS else [*names[: ROWS - 1], OTHER]


def _cells(
    table: LazyFrame, across: str, down: str, outcomes: list[str], labels: dict[str, list[str]]
) -> list[list[Any]]:
    """Column, row, outcome, runs, points and some runs, for each cell and outcome."""
    pl: Any = optional("polars", "campaign", "campaign report")
    known = {name: {label: n for n, label in enumerate(labels[name])} for name in labels}
    for name in (across, down):
        if name in known:
            last = len(labels[name]) - 1
            table = table.with_columns(
                pl.col(name).replace_strict(known[name], default=last, return_dtype=pl.Int64)
            )
    found: DataFrame = (
        table.group_by(across, down, "outcome")
        .agg(
            pl.col("run").count().alias("runs"),
            pl.col("weight").sum(),
            pl.col("run").drop_nulls().sort().head(EXAMPLES).alias("examples"),
        )
        .sort(across, down, "outcome")
        .collect()
    )
    place = {name: n for n, name in enumerate(outcomes)}
    return [
        [row[0], row[1], place[row[2]], row[3], round(row[4], 3), row[5]]
        for row in found.iter_rows()
    ]


def _vulnerable(
    table: LazyFrame, name: str, drawn: float, confidence: float, *, exact: bool
) -> list[list[Any]]:
    """Labels by the share of harm: label, runs, points, share, and the interval's ends."""
    pl: Any = optional("polars", "campaign", "campaign report")
    found = (
        table.group_by(name)
        .agg(pl.col("run").count(), pl.col("weight").sum(), pl.col("harm").sum())
        .collect()
    )
    rows = []
    for label, runs, points, harm in found.iter_rows():
        share = harm / points if points else 0.0
        low, high = (share, share) if exact else interval(share, points * drawn, confidence)
        rows.append([label, runs, round(points, 3), share, low, high])
    rows.sort(key=lambda row: (-row[4], -row[3], row[0]))
    return rows[:ROWS]


def _facts(results: Results, done: int) -> list[list[str]]:
    facts, golden = results.facts, results.facts["golden"]
    environment = facts["environment"]
    return [
        ["plan", str(facts["plan"])],
        ["runs", f"{done:,} of {results.runs_total:,}"],
        ["space", f"{facts['moments']:,} moments x {facts['faults']:,} faults"],
        [
            "golden run",
            f"{golden['end'] - golden['begin']:,} instructions from {golden['begin']:,}",
        ],
        ["ends by", f"{golden['how']} {golden['message']}".strip()],
        ["trapgate", f"{environment['trapgate']}, {environment['engine']} engine"],
        *([name, digest[:16]] for name, digest in environment["files"].items()),
    ]
