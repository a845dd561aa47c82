"""Reading a fault trace: open, check, stream."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from trapgate.trace.html import bars, table
from trapgate.trace.labels import shown_value, vector_label
from trapgate.trace.schema import (
    COMPLETE_KEY,
    DISPOSITIONS,
    FAULT_VERSION,
    HOST_COLUMNS,
    HOST_SCHEMA,
    RUN_PREFIX,
    SCHEMA,
    TIME_UNIT,
    VCPU,
    VERSION,
    VERSION_KEY,
    TraceError,
)

SHOWN = 8
"""Rows that a notebook shows."""

COUNTED = 1_000_000
"""Rows that are counted for a notebook's chart; a longer trace says so."""


class Trace:
    """A fault trace in a file; a context manager.

    `run` holds the facts about the run that its writer noted, `complete` is False if the
    writer was killed or stopped at a limit. Columns beyond those of `schema.SCHEMA` are
    allowed.

    Raises: TraceError if the file is missing, damaged, no trace, of a later version, or
    lacks a column.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = self._open()
        self.schema: pa.Schema = self._file.schema_arrow
        # pyarrow keeps a schema's metadata twice, and what a writer adds later once.
        self._stored: dict[bytes, bytes] = {
            **(self.schema.metadata or {}),
            **(self._file.metadata.metadata or {}),
        }
        stored = self._stored
        try:
            self.version = self._check()
        except TraceError:
            self._file.close()
            raise
        self.complete = stored.get(COMPLETE_KEY) == b"yes"
        self.run = {
            key.removeprefix(RUN_PREFIX).decode(errors="replace"): value.decode(errors="replace")
            for key, value in stored.items()
            if key.startswith(RUN_PREFIX)
        }

    def __len__(self) -> int:
        """The number of rows, one per fault."""
        return int(self._file.metadata.num_rows)

    @property
    def time_unit(self) -> str:
        """What `time` and `latency` count: instructions, ns, ticks or events."""
        return self.run.get(TIME_UNIT, "instructions")

    @property
    def row_groups(self) -> int:
        """The number of row groups, the pieces in which a trace was written."""
        return int(self._file.metadata.num_row_groups)

    @property
    def group_starts(self) -> list[int]:
        """The number of the first row of each row group, and after them that of all rows."""
        described = self._file.metadata
        starts = [0]
        for group in range(self.row_groups):
            starts.append(starts[-1] + described.row_group(group).num_rows)
        return starts

    def batches(
        self, columns: Sequence[str] | None = None, *, rows: int = 65536
    ) -> Iterator[pa.RecordBatch]:
        """The rows in order, at most `rows` at a time; memory stays flat.

        Raises: TraceError if the data turn out to be damaged.
        """
        batches = self._file.iter_batches(
            batch_size=rows, columns=None if columns is None else list(columns)
        )
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(error) from error
            if batch is None:
                return
            yield batch

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows at once.

        Raises: TraceError if the data turn out to be damaged.
        """
        wanted = self.schema if columns is None else pa.schema(map(self.schema.field, columns))
        table = pa.Table.from_batches(list(self.batches(columns)), schema=wanted)
        return table.unify_dictionaries()

    def _repr_html_(self) -> str:
        """Facts, events by vector, and the first rows, for a notebook."""
        counts: Counter[str] = Counter()
        counted = 0
        for batch in self.batches(["vector", "disposition"]):
            pairs = zip(*(batch.column(name).to_pylist() for name in (0, 1)), strict=True)
            for (vector, disposition), count in Counter(pairs).items():
                counts[f"{vector_label(vector)} {disposition.lower()}"] += count
            counted += batch.num_rows
            if counted >= COUNTED:
                break
        shown = next(self.batches(rows=SHOWN), None)
        rows = [] if shown is None else shown.to_pylist()
        columns = [name for name in self.schema.names if any(row[name] is not None for row in rows)]
        facts = [
            ("rows", f"{len(self):,}"),
            ("version", self.version),
            ("times in", self.time_unit),
            ("complete", "yes" if self.complete else "no"),
            *self.run.items(),
        ]
        note = "" if counted >= len(self) else f"<p>chart: the first {counted:,} rows</p>"
        return (
            f"<h4>Trace {escape(self.path.name)}</h4>{table(('fact', 'value'), facts)}"
            f"{bars(counts.most_common(20), 'events by vector and disposition')}{note}"
            + table(columns, [[shown_value(name, row[name]) for name in columns] for row in rows])
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> pq.ParquetFile:
        if not self.path.exists():
            raise self._error("no such file", "give the trace that `--trace` wrote")
        if not self.path.is_file():
            raise self._error("not a regular file", "give the trace that `--trace` wrote")
        if self.path.stat().st_size == 0:
            raise self._error("the file is empty", "record the trace again")
        try:
            return pq.ParquetFile(self.path, page_checksum_verification=True)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._damaged(error) from error

    def _check(self) -> int:
        stored = self._stored
        if VERSION_KEY not in stored:
            raise self._error(
                f"no metadata key {VERSION_KEY.decode()}, so not a fault trace",
                "give a file that `--trace` wrote",
            )
        text = stored[VERSION_KEY].decode(errors="replace")
        if not text.isdecimal() or not 1 <= int(text) <= VERSION:
            raise self._error(
                f"version {text} of the trace schema, and this program knows 1 to {VERSION}",
                "read it with the Trapgate that wrote it",
            )
        missing = [name for name in SCHEMA.names if name not in self.schema.names]
        if missing:
            raise self._error(f"missing {', '.join(missing)}", "record the trace again")
        twice = [name for name, count in Counter(self.schema.names).items() if count > 1]
        if twice:
            raise self._error(f"several columns are named {twice[0]}", "record the trace again")
        of_host = int(text) > FAULT_VERSION
        added = HOST_COLUMNS if of_host else (VCPU,)
        present = (field for field in added if field.name in self.schema.names)
        for expected in (*SCHEMA, *present):
            found = self.schema.field(expected.name).type
            if _plain(found) != _plain(expected.type):
                raise self._error(
                    f"column {expected.name} has type {found}, not {expected.type}",
                    "record the trace again",
                )
        self._check_values(HOST_SCHEMA if of_host else SCHEMA)
        return int(text)

    def _check_values(self, schema: pa.Schema) -> None:
        """Refuse what the statistics of the columns tell: nulls, and words that are none."""
        described = self._file.metadata
        places = {described.schema.column(n).path: n for n in range(described.num_columns)}
        for wanted in schema:
            name = wanted.name
            nulls = name in places and not wanted.nullable and self.schema.field(name).nullable
            if not nulls and name != "disposition":
                continue
            for group in range(self.row_groups):
                found = described.row_group(group).column(places[name]).statistics
                if found is not None and nulls and found.null_count:
                    problem = f"column {name} has nulls, and it must have none"
                    raise self._error(problem, "record the trace again")
                if found is not None and name == "disposition" and found.has_min_max:
                    for word in {found.min, found.max} - set(DISPOSITIONS):
                        problem = f"disposition {word!r} is none of {', '.join(DISPOSITIONS)}"
                        raise self._error(problem, "record the trace again")

    def _damaged(self, error: Exception) -> TraceError:
        detail = (str(error).splitlines() or ["unreadable"])[0].rstrip(". ")
        return self._error(f"not readable as Parquet ({detail})", "record the trace again")

    def _error(self, problem: str, remedy: str) -> TraceError:
        return TraceError(str(self.path), problem, remedy)


def _plain(kind: pa.DataType) -> pa.DataType:
    # Whether names are stored as a dictionary, and how wide its indices are, is the
    # writer's business.
    return kind.value_type if pa.types.is_dictionary(kind) else kind
