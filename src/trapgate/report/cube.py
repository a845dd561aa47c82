"""A trace counted along every way the report can cut it: small, whatever its length.

A cell is what happened to one kind of events in one span of time. A kind is what the
filters of the page and the policies can tell apart: why, vector, error code, symbol,
disposition. All charts are sums of cells, so a filter on the page is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trapgate.replay.exit_policy import OUTSIDE, SAVED, judgement_of
from trapgate.replay.exit_policy import STAYS as STAYS_AN_EXIT
from trapgate.replay.exit_policy import UNJUDGED as NOT_JUDGED
from trapgate.replay.judge import verdict
from trapgate.replay.policy import Policy
from trapgate.replay.tally import SUMS, Asked, columns_for, filters_of, packed_key, unpacked
from trapgate.trace.frames import count, is_weighted, polars, reading, scan, time_unit
from trapgate.trace.labels import vector_label
from trapgate.trace.schema import TraceError
from trapgate.trace.stat import check_symbols, symbol_indices
from trapgate.trace.symbols import Symbols

if TYPE_CHECKING:
    from polars import DataFrame, Expr, LazyFrame

BINS: Final = 96
"""Spans of time, at most."""

CELLS: Final = 30_000
"""Cells, at most."""

BYTES: Final = 850_000
"""Bytes of JSON, at most: a page of all that stays below a megabyte."""

SYMBOLS: Final = 30
"""Symbols (or addresses, without symbols) that are told apart; the others are one."""

_DIMENSIONS: Final = ("reason", "vector", "code", "symbol", "disposition")
_LEAST = 500
_NUMBERS: Final = ("count", "timed", "spent")

Progress = Callable[[str, float], None]
"""Is told what is being done, and what share (0 to 1) of the work that begins at."""


def no_progress(words: str, share: float) -> None:
    """Nobody is told."""


OTHER: Final = "(other)"
NONE: Final = "(none)"

EXIT, DELIVER, COMPLETE, UNJUDGED, STAYS = range(5)
"""What a policy does to a kind of events; `STAYS` as recorded, for it is not its business."""


@dataclass(frozen=True)
class Cube:
    """The counted trace.

    `labels` holds for each dimension the words, `kinds` for each dimension the index of
    each kind's word, and for each policy (`verdicts`) what it does to the kind. `cells`
    are columns: span of time, kind, events, events with a latency, sum of latencies.
    `start` and `step` tell when a span begins.
    """

    unit: str
    events: int
    start: int
    step: int
    bins: int
    labels: dict[str, list[str]]
    kinds: dict[str, list[int]]
    verdicts: list[list[int]]
    cells: dict[str, list[int]]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(vars(self))


def cube_of(
    paths: Sequence[Path],
    policies: Sequence[Policy] = (),
    *,
    symbols: Symbols | None = None,
    most: int = CELLS,
    progress: Progress | None = None,
) -> Cube:
    """Count traces; memory and result do not grow with their length. `progress` is told what
    is being done, and what share (0 to 1) of a whole report's work that begins at.

    Raises: TraceError for files that are not traces, or hold no event, or symbols that do
    not match.
    """
    pl = polars()
    unit = time_unit(paths)
    pairs = filters_of(policies)
    say = progress or no_progress
    with reading(paths):
        lazy = scan(paths)
        say("times", 0.0)
        facts = lazy.select(
            count(weighted=is_weighted(paths)).alias("rows"),
            pl.col("time").min().alias("first"),
            pl.col("time").max().alias("last"),
        ).collect(engine="streaming")
        rows, first, last = facts.row(0)
        if not rows:
            files = ", ".join(map(str, paths))
            raise TraceError(files, "no event in it", "give a trace of a run that had some")
        if symbols is not None:
            check_symbols(lazy, symbols)
        step = (last - first) // BINS + 1
        say("addresses", 0.15)
        lazy, names = _placed(lazy, symbols)
        say("events", 0.35)
        # A categorical column keeps words short on the way through the group-by.
        why = pl.when(pl.col("exit_reason").is_null()).then(pl.col("reason").cast(pl.String))
        speaking = {f"exits {n}": p.exits for n, p in enumerate(policies) if p.exits.judges_exits}
        recorded = (pl.col("disposition") == "EXIT") & ~pl.col("injected")
        counted = (
            lazy.group_by(
                ((pl.col("time") - first) // step).cast(pl.UInt16).alias("bin"),
                packed_key(pairs).alias("key"),
                why.otherwise(pl.col("exit_reason").cast(pl.String)).alias("why"),
                "place",
                *(
                    pl.when(recorded).then(judgement_of(policy)).otherwise(OUTSIDE).alias(name)
                    for name, policy in speaking.items()
                ),
            )
            .agg(
                *_sums(
                    count(weighted=is_weighted(paths)),
                    pl.col("latency").count(),
                    pl.col("latency").sum(),
                )
            )
            .collect(engine="streaming")
        )
    keys = ["key", "why", "place", *speaking]
    kinds = counted.select(keys).unique().sort(keys).with_row_index("kind")
    cells = counted.join(kinds, on=keys).select("bin", "kind", *_NUMBERS)
    described = _described(kinds, policies, pairs, names)
    while True:
        fitted = _fitted(cells, described, step, most)
        cube = _cube(*fitted[:2], unit=unit, rows=rows, first=first, step=fitted[2])
        if most < _LEAST or len(json.dumps(cube.as_json(), separators=(",", ":"))) <= BYTES:
            return cube
        most = most * 2 // 3


def _sums(*columns: Expr) -> list[Expr]:
    pl = polars()
    return [
        column.cast(pl.Int64).alias(name) for column, name in zip(columns, _NUMBERS, strict=True)
    ]


def _placed(lazy: LazyFrame, symbols: Symbols | None) -> tuple[LazyFrame, list[str]]:
    """The events with the index of their symbol (or address) as `place`, and the names."""
    pl = polars()
    if symbols is None:
        at = pl.col("rip")
    else:
        at = pl.col("rip").map_batches(
            lambda column: symbol_indices(column, symbols), return_dtype=pl.Int32
        )
    known = lazy.with_columns(at.alias("at"))
    top = (
        known.select("at")
        .drop_nulls()
        .group_by("at")
        .len()
        .sort(["len", "at"], descending=[True, False])
        .head(SYMBOLS)
        .select("at")
        .collect(engine="streaming")
    )
    names = [NONE, OTHER]
    names += [f"{at:#x}" if symbols is None else symbols.names[at] for at in top["at"]]
    # A join streams; replacing one value by another does not.
    ranked = top.with_columns(pl.int_range(2, len(names), dtype=pl.UInt16).alias("ranked"))
    place = pl.when(pl.col("at").is_null()).then(0).otherwise(pl.col("ranked").fill_null(1))
    placed = known.join(ranked.lazy(), on="at", how="left")
    return placed.with_columns(place.cast(pl.UInt16).alias("place")), names


def _described(
    kinds: DataFrame,
    policies: Sequence[Policy],
    pairs: Sequence[Asked],
    names: list[str],
) -> DataFrame:
    """For each kind its words, and as `says N` what policy N does to it."""
    pl = polars()
    zeros = [pl.lit(0, pl.Int128).alias(name) for name in SUMS]
    facts = unpacked(kinds.select("key", *zeros), pairs, order=False)
    facts = facts.hstack(kinds.select(name for name in kinds.columns if name.startswith("exits ")))
    columns = columns_for(pairs)
    says = []
    for number, policy in enumerate(policies):
        said = verdict(policy, columns)
        exits = f"exits {number}"
        other = pl.col(exits) if exits in kinds.columns else pl.lit(OUTSIDE)
        says.append(
            pl.when(other == STAYS_AN_EXIT).then(EXIT)
            .when(other == SAVED).then(DELIVER)
            .when(other == NOT_JUDGED).then(UNJUDGED)
            .when(said.exits).then(EXIT)
            .when(said.completes).then(COMPLETE)
            .when(said.judged).then(DELIVER)
            .when(said.unjudged).then(UNJUDGED)
            .otherwise(STAYS)
            .alias(f"says {number}")
        )  # fmt: skip
    codes = facts.select("vector", "error_code", "code_missing").iter_rows()
    events = facts.select("disposition", "injected").iter_rows()
    words = pl.DataFrame(
        {
            "kind": kinds["kind"],
            "reason": kinds["why"],
            "vector": [vector_label(value) for value in facts["vector"]],
            "code": [_code(vector, code, missing=missing) for vector, code, missing in codes],
            "symbol": [names[place] for place in kinds["place"]],
            "disposition": ["injected" if again else word.lower() for word, again in events],
        }
    )
    described: DataFrame = words.hstack(facts.select(says)) if says else words
    return described


def _fitted(
    cells: DataFrame, kinds: DataFrame, step: int, most: int
) -> tuple[DataFrame, DataFrame, int]:
    """Kinds that nothing tells apart as one; then, until there are at most `most` cells,
    coarser spans, fewer symbols, fewer error codes. No event is left out.
    """
    pl = polars()
    cells, kinds = _regrouped(cells, kinds)
    spans, kept = BINS, {"symbol": SYMBOLS, "code": 64}
    while cells.height > most:
        left = [name for name, count in kept.items() if count]
        if spans > 6 or (spans > 1 and not left):
            spans, step = spans // 2, step * 2
            cells = cells.with_columns(pl.col("bin") // 2)
        else:
            if not left:
                break
            kept[left[0]] //= 2
            kinds = _commonest(cells, kinds, left[0], kept[left[0]])
        cells, kinds = _regrouped(cells, kinds)
    return cells, kinds, step


def _regrouped(cells: DataFrame, kinds: DataFrame) -> tuple[DataFrame, DataFrame]:
    pl = polars()
    facts = [name for name in kinds.columns if name != "kind"]
    fewer = kinds.select(facts).unique().sort(facts).with_row_index("new")
    place = kinds.join(fewer, on=facts, nulls_equal=True).select("kind", "new")
    summed = (
        cells.join(place, on="kind")
        .group_by("bin", pl.col("new").alias("kind"))
        .agg(*_sums(*(pl.col(name).sum() for name in _NUMBERS)))
    )
    return summed, fewer.rename({"new": "kind"})


def _commonest(cells: DataFrame, kinds: DataFrame, name: str, count: int) -> DataFrame:
    """The kinds with all but the `count` commonest words of a dimension made one."""
    pl = polars()
    top = (
        cells.join(kinds, on="kind")
        .group_by(name)
        .agg(pl.col("count").sum())
        .sort(["count", name], descending=[True, False])
        .head(count)[name]
        .to_list()
    )
    keep = pl.col(name).is_in([*top, NONE])
    word = pl.when(keep).then(pl.col(name)).otherwise(pl.lit(OTHER))
    merged: DataFrame = kinds.with_columns(word.alias(name))
    return merged


def _cube(
    cells: DataFrame, kinds: DataFrame, *, unit: str, rows: int, first: int, step: int
) -> Cube:
    cells = cells.sort("kind", "bin")
    words = {name: kinds[name].to_list() for name in _DIMENSIONS}
    labels = {name: sorted(set(values)) for name, values in words.items()}
    index = {name: {word: n for n, word in enumerate(known)} for name, known in labels.items()}
    return Cube(
        unit=unit,
        events=rows,
        start=first,
        step=step,
        bins=max(cells["bin"].to_list()) + 1,
        labels=labels,
        kinds={name: [index[name][word] for word in values] for name, values in words.items()},
        verdicts=[kinds[n].to_list() for n in kinds.columns if n.startswith("says ")],
        cells={name: cells[name].to_list() for name in ("bin", "kind", *_NUMBERS)},
    )


def _code(vector: int | None, code: int | None, *, missing: bool) -> str:
    if code is not None:
        return f"{vector_label(vector)} {code:#x}"
    return f"{vector_label(vector)} not recorded" if missing else NONE
