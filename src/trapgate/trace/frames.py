"""Traces as Polars frames: one lazy frame over any number of files, all columns present."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from trapgate.errors import TrapgateError
from trapgate.trace.reader import Trace
from trapgate.trace.schema import (
    ENTRY_COLUMNS,
    FAULT_VERSION,
    HOST_COLUMNS,
    SCHEMA,
    VCPU,
    WEIGHTED,
    TraceError,
)
from trapgate.trace.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from polars import DataType, Expr, LazyFrame

COLUMNS: Final = (*SCHEMA.names, *(field.name for field in (*HOST_COLUMNS, *ENTRY_COLUMNS)))
"""The columns of every frame, in order."""


class MissingExtraError(TrapgateError):
    """A package of an optional extra is not installed; the message names the extra."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}; install it: pip install 'trapgate[{extra}]'")
        self.extra = extra


def optional(package: str, extra: str, purpose: str) -> ModuleType:
    """Import `package`, which comes with `extra`.

    Raises: MissingExtraError if it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise MissingExtraError(package, extra, purpose) from None


def polars() -> ModuleType:
    """The polars module.

    Raises: MissingExtraError if it is not installed.
    """
    return optional("polars", "replay", "this")


def time_unit(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Check that all `paths` are traces that count time in one unit; return it.

    Raises: TraceError for a file that is not a trace, for none, and for mixed units.
    """
    unit = ""
    first = ""
    for path in paths:
        with Trace(path) as trace:
            if unit and trace.time_unit != unit:
                problem = f"counts time in {trace.time_unit}, and {first} in {unit}"
                raise TraceError(str(path), problem, "give traces of one kind at a time")
            unit, first = trace.time_unit, first or str(path)
    if not unit:
        raise TraceError("(no file)", "no trace given", "give at least one")
    return unit


def scan(paths: Sequence[str | os.PathLike[str]], chosen: Selection = EVERYTHING) -> LazyFrame:
    """All rows of the traces that are `chosen`, in order, with every column of `COLUMNS`.

    Columns that a file lacks are null. Nothing is read yet.

    Raises: TraceError for a file that is not a trace; MissingExtraError without polars.
    """
    frames = [_scan(Path(path)) for path in paths]
    lazy: LazyFrame = polars().concat(frames)
    return chosen.of(lazy)


def is_weighted(paths: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether rows of the traces stand for many events each."""
    return any(facts.get(WEIGHTED) == "yes" for facts in facts_of(paths))


def lost_events(paths: Sequence[str | os.PathLike[str]]) -> int:
    """How many events the recorders of the traces say that they lost, at least.

    Where a recorder tells of a gap and not how long it is, one was lost in it.
    """
    return sum(
        max(int(facts.get("import-lost", "0")), int(facts.get("import-gaps", "0")))
        for facts in facts_of(paths)
    )


def facts_of(paths: Sequence[str | os.PathLike[str]]) -> Iterator[dict[str, str]]:
    """The facts about the run of each trace."""
    for path in paths:
        with Trace(path) as trace:
            yield trace.run


def count(*, weighted: bool) -> Expr:
    """The number of events of a group of rows."""
    pl = polars()
    number: Expr = pl.col("weight").fill_null(1).sum() if weighted else pl.len()
    return number


@contextmanager
def reading(paths: Sequence[str | os.PathLike[str]]) -> Iterator[None]:
    """Turn what Polars says about damaged data into a complaint that names the file.

    Raises: TraceError in place of Polars' errors.
    """
    pl = polars()
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        for path in paths:
            with Trace(path) as trace:
                for _ in trace.batches():
                    pass
        detail = (str(error).splitlines() or ["unreadable"])[0].rstrip(". ")
        names = ", ".join(map(str, paths))
        problem = f"not readable as Parquet ({detail})"
        raise TraceError(names, problem, "record the trace again") from None


def _scan(path: Path) -> LazyFrame:
    pl = polars()
    with Trace(path) as trace:
        added = HOST_COLUMNS if trace.version > FAULT_VERSION else (VCPU, *ENTRY_COLUMNS)
        known = [*SCHEMA.names, *(f.name for f in added if f.name in trace.schema.names)]
    types = _types()
    lazy = pl.scan_parquet(path, glob=False)
    absent = [pl.lit(None, types[name]).alias(name) for name in COLUMNS if name not in known]
    frame: LazyFrame = lazy.select(known).with_columns(absent).select(COLUMNS)
    return frame


def _types() -> dict[str, DataType]:
    pl = polars()
    empty = pl.from_arrow(pa.schema([*SCHEMA, *HOST_COLUMNS, *ENTRY_COLUMNS]).empty_table())
    types: dict[str, DataType] = dict(empty.schema)
    return types
