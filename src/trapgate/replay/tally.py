"""Rows of a trace counted together where no policy can tell them apart.

What a policy decides depends on a few columns with few values, so a trace of any length
becomes some hundred kinds of rows with counts and sums. Sums are integers, hence the same
in whatever order, pieces and places they are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from trapgate.replay.filters import Filters, filter_verdict
from trapgate.replay.judge import Columns, always_exits, exceptions
from trapgate.replay.policy import Policy
from trapgate.replay.tables import Table, action_of
from trapgate.trace.frames import count, polars

if TYPE_CHECKING:
    from polars import DataFrame, Expr, LazyFrame

KEYS: Final = ("vector", "type", "error_code", "injected", "code_missing", "disposition", "reason")
"""The columns that a policy's decision and its comparison with the record depend on."""

SUMS: Final = ("count", "timed", "time", "time_squared")
"""Rows; rows with a latency; the sum of latencies; the sum of their squares."""

_BASE: Final = 1 << 8
_FLAGS: Final = _BASE * 8


Asked = Filters | Table
"""What is judged row by row, before rows are counted together: fault filters, or a criteria table
and its PTBASE."""


def filters_of(policies: Iterable[Policy]) -> list[Asked]:
    """The fault filters and criteria tables that `policies` use, each once."""
    policies = list(policies)
    filters = {p.filters for p in policies if p.filters_writes}
    tables = dict.fromkeys((p.rules, p.ptbase) for p in policies if p.rules)
    return [*sorted(filters), *tables]


def columns_for(pairs: Sequence[Asked]) -> Columns:
    """The columns of a tally made for those filters and tables."""
    filters: dict[Filters, tuple[str, ...]] = {}
    tables: dict[Table, tuple[str, ...]] = {}
    for number, asked in enumerate(pairs):
        if isinstance(asked, Filters):
            filters[asked] = _flag_names(number, 2)
        else:
            tables[asked] = _flag_names(number, 3)
    return Columns(codes_missing=True, completes=filters, tables=tables)


def _flag_names(number: int, count: int) -> tuple[str, ...]:
    return tuple(f"flag_{number}_{n}" for n in range(count))


def packed_key(pairs: Sequence[Asked]) -> Expr:
    """One number (64 bits) made of all that policies with the filters `pairs` can ask of a row.

    Raises: ValueError for more filters and tables than there is room for.
    """
    pl = polars()
    narrow = pl.UInt64
    flags = [
        pl.col("injected"),
        pl.col("code_missing").fill_null(value=False),
        pl.col("error_code").is_not_null(),
        pl.col("vector").is_not_null(),
        pl.col("type").is_not_null(),
        pl.col("disposition") == "EXIT",
        pl.col("disposition") == "COMPLETE",
        always_exits(),
    ]
    packed = pl.col("vector").fill_null(0).cast(narrow)
    packed = packed + pl.col("type").fill_null(0).cast(narrow) * _BASE
    flag_base = _FLAGS
    for flag in flags:
        packed = packed + flag.cast(narrow) * flag_base
        flag_base *= 2
    for asked in pairs:
        if not isinstance(asked, Filters):
            # The three bits of its number are the flags (`judge.table_flags`), found at once.
            packed = packed + action_of(*asked).cast(narrow) * flag_base
            flag_base *= 8
            continue
        for flag in filter_verdict(asked, exceptions()):
            packed = packed + flag.fill_null(value=False).cast(narrow) * flag_base
            flag_base *= 2
    if flag_base > 1 << 32:
        raise ValueError(
            f"{len(pairs)} fault filters and criteria tables in one replay; give at most four"
        )
    whole: Expr = packed + pl.col("error_code").fill_null(0).cast(narrow) * (1 << 32)
    return whole


def tally(lazy: LazyFrame, pairs: Sequence[Asked], *, weighted: bool = False) -> DataFrame:
    """The kinds of rows of a trace, sorted; `pairs` are the filters to judge on the way.

    Rows are grouped by one number made of all keys, which is many times faster than
    grouping by columns; the numbers are taken apart again on the few kinds.
    """
    pl = polars()
    latency = pl.col("latency")
    wide = latency.cast(pl.Int128)
    kinds = (
        lazy.group_by(packed_key(pairs).alias("key"))
        .agg(
            count(weighted=weighted).cast(pl.Int128).alias("count"),
            latency.count().cast(pl.Int128).alias("timed"),
            wide.sum().alias("time"),
            (wide * wide).sum().alias("time_squared"),
        )
        .collect(engine="streaming")
    )
    return unpacked(kinds, pairs)


def unpacked(kinds: DataFrame, pairs: Sequence[Asked], *, order: bool = True) -> DataFrame:
    """The kinds with their keys as columns again, sorted by key unless `order` is False."""
    pl = polars()
    key = pl.col("key")

    def bit(number: int) -> Expr:
        is_set: Expr = (key // (_FLAGS << number)) % 2 == 1
        return is_set

    columns = [
        pl.when(bit(3)).then((key % _BASE).cast(pl.UInt8)).alias("vector"),
        pl.when(bit(4)).then((key // _BASE % 8).cast(pl.UInt8)).alias("type"),
        pl.when(bit(2)).then((key // (1 << 32)).cast(pl.UInt32)).alias("error_code"),
        bit(0).alias("injected"),
        bit(1).alias("code_missing"),
        pl.when(bit(5))
        .then(pl.lit("EXIT"))
        .when(bit(6))
        .then(pl.lit("COMPLETE"))
        .otherwise(pl.lit("DELIVER"))
        .alias("disposition"),
        pl.when(bit(7)).then(pl.lit("TRIPLE_FAULT")).otherwise(pl.lit("")).alias("reason"),
        pl.lit(value=False).alias("reflected"),
    ]
    made = columns_for(pairs)
    named: dict[Any, tuple[str, ...]] = {**(made.completes or {}), **(made.tables or {})}
    names = [name for asked in pairs for name in named[asked]]
    columns += [bit(8 + number).alias(name) for number, name in enumerate(names)]
    if order:
        kinds = kinds.sort("key")
    return kinds.select([*columns, *SUMS, "key"])


def merged(pieces: Iterable[Sequence[dict[str, Any]]], pairs: Sequence[Asked]) -> Any:
    """The tally of a whole from those of its pieces, as rows of key and sums."""
    pl = polars()
    total: dict[int, list[int]] = {}
    for piece in pieces:
        for row in piece:
            sums = total.setdefault(row["key"], [0] * len(SUMS))
            for place, name in enumerate(SUMS):
                sums[place] += row[name]
    rows = {"key": list(total), **{n: [s[i] for s in total.values()] for i, n in enumerate(SUMS)}}
    schema = {"key": pl.UInt64, **dict.fromkeys(SUMS, pl.Int128)}
    return unpacked(pl.DataFrame(rows, schema=schema), pairs)


def rows_of(kinds: DataFrame) -> list[dict[str, int]]:
    """A tally as plain rows of key and sums, to send and to merge."""
    return kinds.select("key", *SUMS).rows(named=True)
