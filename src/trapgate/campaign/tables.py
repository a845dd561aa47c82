"""Results as tables: Polars frames and DuckDB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trapgate.campaign.errors import CampaignError
from trapgate.campaign.results import SCHEMA, Results
from trapgate.campaign.worker import Tally
from trapgate.trace.frames import optional

if TYPE_CHECKING:
    from polars import DataFrame, LazyFrame


def frame(results: Results) -> LazyFrame:
    """All results so far, a row a run (`results.SCHEMA`).

    Raises CampaignError if there are none, MissingExtraError without polars.
    """
    pl: Any = optional("polars", "replay", "this")
    parts = results.tables()
    if not parts:
        raise CampaignError(f"{results.folder}: nothing has been run yet; use campaign run")
    lazy: LazyFrame = pl.concat([pl.scan_parquet(part) for part in parts])
    return lazy


def tally(results: Results) -> Tally:
    """By outcome: runs, and the points that they stand for. Needs no extra."""
    import pyarrow.compute as pc

    found: dict[str, tuple[int, float]] = {}
    for part in results.tables():
        table = results.read(part, SCHEMA).select(["outcome", "weight", "run"])
        plain = table.set_column(0, "outcome", pc.cast(table.column("outcome"), "string"))
        sums = plain.group_by("outcome").aggregate([("weight", "sum"), ("run", "count")])
        for row in sums.to_pylist():
            runs, points = found.get(row["outcome"], (0, 0.0))
            found[row["outcome"]] = runs + row["run_count"], points + row["weight_sum"]
    return found


def sql(results: Results, query: str) -> DataFrame:
    """What a DuckDB query says of the table `runs`, as a Polars frame.

    The query sees nothing but that table: no file, no network. Raises CampaignError for a query
    that DuckDB does not take, MissingExtraError without duckdb.
    """
    duckdb: Any = optional("duckdb", "campaign", "campaign sql")
    parts = [str(part) for part in results.tables()]
    if not parts:
        raise CampaignError(f"{results.folder}: nothing has been run yet; use campaign run")
    with duckdb.connect(":memory:") as connection:
        try:
            connection.execute(f"SET allowed_paths = {parts!r}")
            connection.read_parquet(parts).create_view("runs")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            answer: DataFrame = connection.sql(query).pl()
        except (duckdb.Error, AttributeError) as error:
            raise CampaignError(f"the query fails: {error}") from None
        return answer
