"""What a trace holds: per reason, vector, error code, processor and symbol, with times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trapgate.paging.frame_map import LEAF, LEVEL, MIXED
from trapgate.trace.code_words import code_words
from trapgate.trace.document import Document, Heading, Paragraph, Part, Table, without_empty
from trapgate.trace.frames import count, is_weighted, lost_events, polars, reading, scan, time_unit
from trapgate.trace.labels import vector_label
from trapgate.trace.selection import EVERYTHING, Selection
from trapgate.trace.symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from polars import DataFrame, Expr, LazyFrame, Series

UNNAMED: Final = "(no symbol)"


@dataclass(frozen=True)
class Line:
    """One line of a table: a key, its events, and the times of its exits (in `time_unit`).

    `exits`, `delivered` and `completed` add up to `count`; `share` is of all events.
    Times are None where the trace has none: `timed` exits have one, `total` is their sum.
    """

    key: str
    count: int
    share: float
    exits: int
    delivered: int
    completed: int
    timed: int
    total: int | None
    least: int | None
    mean: float | None
    p50: float | None
    p99: float | None
    most: int | None
    words: str = ""
    """What the key means, where it is a code."""


@dataclass(frozen=True)
class Stat:
    """All tables of a trace, by name; `events` is their number, `lost` how many the recorder
    says that it lost. `chosen` says in words which were counted, if not all.
    """

    events: int
    time_unit: str
    tables: dict[str, list[Line]]
    lost: int = 0
    chosen: str = ""

    def document(self, top: int = 15) -> Document:
        """The tables as a document, for a page, a notebook or a mail."""
        said = f"{self.events:,} events; times in {self.time_unit}"
        parts: list[Part] = [Paragraph(said + (f"; only {self.chosen}" if self.chosen else ""))]
        if self.lost:
            parts.append(Paragraph(f"the recorder lost {self.lost:,} events: in no count"))
        for name, lines in self.tables.items():
            rows = tuple(
                (*_named(line), line.count, f"{line.share:.1%}", line.exits, line.total,
                 line.mean, line.p99)
                for line in lines[:top]
            )  # fmt: skip
            heads = (name, "meaning", "count", "share", "exits", "total", "mean", "p99")
            if rows:
                parts += [Heading(f"Per {name}"), without_empty(Table(heads, rows))]
        return Document("What the trace holds", tuple(parts))

    def _repr_html_(self) -> str:
        """For a notebook."""
        return self.document().notebook()

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "events": self.events,
            "time_unit": self.time_unit,
            "lost": self.lost,
            "chosen": self.chosen,
            "tables": {name: [vars(line) for line in lines] for name, lines in self.tables.items()},
        }


def _named(line: Line) -> tuple[str, str]:
    """A line's key and what it means."""
    return (
        ("none", "no fault, or the trace does not tell")
        if line.key == "-"
        else (line.key, line.words)
    )


def compared(one: Stat, other: Stat, names: tuple[str, str]) -> Document:
    """Two traces side by side: each key's events and time, the greatest difference first."""
    parts: list[Part] = [
        Paragraph(f"{name}: {stat.events:,} events, times in {stat.time_unit}, {stat.lost:,} lost")
        for name, stat in zip(names, (one, other), strict=True)
    ]
    for name in one.tables:
        left, right = ({line.key: line for line in stat.tables[name]} for stat in (one, other))
        rows = []
        for key in left.keys() | right.keys():
            pair = left.get(key), right.get(key)
            counts = [0 if line is None else line.count for line in pair]
            times = [None if line is None else line.mean for line in pair]
            known = _named(next(line for line in pair if line is not None))
            rows.append((*known, *counts, counts[1] - counts[0], *times))
        rows.sort(key=lambda row: (-abs(int(row[4] or 0)), str(row[0])))
        heads = (name, "meaning", *names, "difference", *(f"mean, {one}" for one in names))
        if rows:
            table = Table(heads, tuple(rows[:30]))
            parts += [Heading(f"Per {name}"), without_empty(table)]
    return Document(f"{names[0]} and {names[1]} compared", tuple(parts))


def symbol_indices(column: Series, symbols: Symbols) -> Series:
    """For a series of addresses the indices of their symbols, null where there is none."""
    pl = polars()
    found = symbols.indices(column.fill_null(0).to_numpy())
    indices: Series = pl.Series(column.name, found).replace(-1, None)
    return indices


def check_symbols(lazy: LazyFrame, symbols: Symbols) -> None:
    """Raise TraceError if the first thousands of addresses have no symbol at all."""
    pl = polars()
    some = lazy.select(pl.col("rip").drop_nulls()).head(100_000).collect(engine="streaming")
    addresses: NDArray[np.uint64] = some["rip"].to_numpy()
    if not len(addresses) or (symbols.indices(addresses) >= 0).any():
        return
    rest = lazy.select(pl.col("rip").drop_nulls().unique()).collect(engine="streaming")
    symbols.demand_match(rest["rip"].to_numpy())


def statistics(
    paths: Sequence[Path], *, symbols: Symbols | None = None, chosen: Selection = EVERYTHING
) -> Stat:
    """The tables of the `chosen` events of traces together; `symbols` adds one per function.

    Raises: TraceError for files that are not traces, or symbols that do not match.
    """
    unit = time_unit(paths)
    with reading(paths):
        return _statistics(paths, unit, symbols, chosen)


def _statistics(
    paths: Sequence[Path], unit: str, symbols: Symbols | None, chosen: Selection
) -> Stat:
    pl = polars()
    lazy = scan(paths, chosen)
    weighted = is_weighted(paths)
    words = pl.coalesce(pl.col("exit_reason").cast(pl.String), pl.col("reason").cast(pl.String))
    keys: dict[str, list[Expr]] = {
        "reason": [words.alias("reason")],
        "vector": [pl.col("vector")],
        "error code": [pl.col("vector"), pl.col("error_code")],
        "table": [_table_level().alias("table")],
        "vCPU": [pl.col("vcpu")],
    }
    if symbols is not None:
        check_symbols(lazy, symbols)
        named = pl.col("rip").map_batches(
            lambda column: symbol_indices(column, symbols), return_dtype=pl.Int32
        )
        keys["symbol"] = [named.alias("symbol")]
    # Equal times of equal events are counted together, so that quantiles, which have to
    # see all times, take no more memory than there are different ones.
    frames = [
        lazy.group_by(*key, "disposition", "latency")
        .agg(count(weighted=weighted).cast(pl.Int64).alias("cells"))
        .collect(engine="streaming")
        .pipe(_measured, [expression.meta.output_name() for expression in key])
        for key in keys.values()
    ]
    tables = {}
    events = 0
    for (name, key), frame in zip(keys.items(), frames, strict=True):
        events = int(frame["count"].sum())
        if name == "error code":
            frame = frame.filter(pl.col("error_code").is_not_null())
        elif name == "table":
            frame = frame.filter(pl.col("table").is_not_null())
        elif name == "vCPU" and len(frame) == 1:
            # There is one, or nobody says.
            frame = frame.clear()
        tables[name] = _lines(frame, len(key), events, name, symbols)
    return Stat(events, unit, tables, lost_events(paths), chosen.words())


def _table_level() -> Expr:
    """To a table of which level a row's write went, in words; null for all other rows."""
    pl = polars()
    byte, kind = pl.col("table_byte"), pl.col("table_entry")
    which = pl.when(kind == 1).then(pl.lit("last")).otherwise(pl.lit("an upper"))
    words: Expr = (
        pl.when(byte & MIXED != 0)
        .then(pl.lit("several levels"))
        .when(byte & LEAF != 0)
        .then(pl.lit("level 1"))
        .when(byte >= 1 << LEVEL)
        .then(pl.format("level {}", byte // (1 << LEVEL) + 1))
        .when(byte.is_not_null())
        .then(pl.lit("level unknown"))
        .when(kind.is_not_null())
        .then(pl.format("self-mapped, {} level", which))
    )
    return words


def _measured(cells: DataFrame, key: list[str]) -> DataFrame:
    """For each key the sums, and the quantiles of its times, from counts of equal events."""
    pl = polars()
    number, latency = pl.col("cells"), pl.col("latency")
    word = pl.col("disposition").cast(pl.String)
    events = cells.group_by(key).agg(
        number.sum().alias("count"),
        number.filter(word == "EXIT").sum().alias("exits"),
        number.filter(word == "DELIVER").sum().alias("delivered"),
        number.filter(word == "COMPLETE").sum().alias("completed"),
        number.filter(latency.is_not_null()).sum().alias("timed"),
    )
    seen = number.sum()
    times = (
        cells.filter(latency.is_not_null())
        .sort("latency")
        .with_columns(number.cum_sum().over(key).alias("rank"))
        .group_by(key)
        .agg(
            (latency.cast(pl.Int128) * number).sum().alias("total"),
            latency.min().alias("least"),
            ((latency.cast(pl.Int128) * number).sum() / seen).alias("mean"),
            _quantile(0.5).alias("p50"),
            _quantile(0.99).alias("p99"),
            latency.max().alias("most"),
        )
    )
    measured: DataFrame = events.join(times, on=key, how="left", nulls_equal=True)
    return measured


def _quantile(share: float) -> Expr:
    """Between the times of the two nearest ranks, in proportion (NumPy's `linear`)."""
    pl = polars()
    place = (pl.col("cells").sum() - 1) * share
    below, above = (
        pl.col("latency").filter(pl.col("rank") > rank).min().cast(pl.Float64)
        for rank in (place.floor(), place.ceil())
    )
    between: Expr = below + (above - below) * (place - place.floor())
    return between


def _lines(
    frame: DataFrame, keys: int, events: int, table: str, symbols: Symbols | None
) -> list[Line]:
    lines = []
    for row in frame.iter_rows(named=True):
        values = list(row.values())[:keys]
        if table == "vector":
            key = vector_label(values[0])
        elif table == "error code":
            key = f"{vector_label(values[0])} {values[1]:#x}"
        elif table == "symbol":
            assert symbols is not None
            key = UNNAMED if values[0] is None else symbols.names[values[0]]
        else:
            key = str(values[0])
        measured = {name: row[name] for name in list(row)[keys:]}
        words = code_words(values[0], values[1]) if table == "error code" else ""
        lines.append(Line(key=key, share=row["count"] / events, words=words, **measured))
    return sorted(lines, key=lambda line: (-(line.total or 0), -line.count, line.key))
