"""Rows of an imported trace, from their first mention to the Parquet file."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final, Self

import pyarrow as pa
import pyarrow.parquet as pq

from trapgate.trace.schema import HOST_SCHEMA, POSTED_INTERRUPTS, VERSION, metadata_of

ROW_GROUP: Final = 65536
"""Rows in a row group of an imported trace."""


@dataclass(slots=True)
class Event:
    """One row that is being put together: the columns of `HOST_SCHEMA` by name.

    `sequence` is the number of its line among the lines that made rows; the row is
    written once nothing more can become known about it.
    """

    sequence: int
    time: int
    disposition: str
    reason: str
    vm: int = 0
    vmcs: int = 0
    vector: int | None = None
    type: int | None = None
    error_code: int | None = None
    rip: int | None = None
    cpl: int | None = None
    cr3: int | None = None
    linear_address: int | None = None
    data: int | None = None
    old_value: int | None = None
    depth: int = 0
    injected: bool = False
    vcpu: int | None = None
    thread: int | None = None
    exit_reason: str | None = None
    latency: int | None = None
    guest_physical: int | None = None
    level: int | None = None
    reflected: bool | None = None
    code_missing: bool | None = None
    interrupted_vector: int | None = None
    interrupted_type: int | None = None
    interrupted_error_code: int | None = None
    qualification: int | None = None
    access: str | None = None
    weight: int | None = None
    operand: int | None = None


@dataclass
class Counters:
    """What became of a foreign trace.

    | count | of what |
    |---|---|
    | `lines` | lines of a text, or records of a binary recording |
    | `rows` | rows that were written |
    | `foreign` | lines about something else: other trace points, comments, register dumps |
    | `unreadable` | lines that name an event but lack its fields |
    | `truncated` | last lines without an end; pages and records that are cut or damaged |
    | `lost` | events that the recorder says it dropped; `gaps`: how often it says so |
    | `unpaired` | exits without a latency: no entry follows, or events were lost before it |
    | `vectorless` | exceptions whose vector the trace does not tell |
    | `backwards` | events that are earlier than the one before of their thread |
    | `untimed` | events without a time |

    `posted` are the interrupts of devices, by vCPU and vector, that reach the guest without an
    exit. `remarks` say in words what else is odd about the recording.
    """

    lines: int = 0
    rows: int = 0
    foreign: int = 0
    unreadable: int = 0
    truncated: int = 0
    lost: int = 0
    gaps: int = 0
    unpaired: int = 0
    vectorless: int = 0
    backwards: int = 0
    untimed: int = 0
    posted: set[tuple[int, int]] = field(default_factory=set)
    remarks: list[str] = field(default_factory=list)

    def facts(self) -> dict[str, str]:
        """The counts that are not 0, for a trace's metadata."""
        known = {f.name: getattr(self, f.name) for f in fields(self)}
        counts = {f"import-{n}": str(count) for n, count in known.items() if type(count) is int}
        told = {name: text for name, text in counts.items() if text != "0"}
        if self.remarks:
            told["import-remarks"] = "; ".join(self.remarks)
        if self.posted:
            told[POSTED_INTERRUPTS] = ", ".join(
                f"vCPU {vcpu} vector {vector:#x}" for vcpu, vector in sorted(self.posted)[:64]
            )
        return told


_COLUMNS = tuple(HOST_SCHEMA.names)


class RowWriter:
    """Writes events to a Parquet file, sorted by sequence within each row group."""

    def __init__(self, path: Path) -> None:
        self.rows = 0
        self._events: list[Event] = []
        self._writer = pq.ParquetWriter(
            path,
            HOST_SCHEMA,
            compression="zstd",
            compression_level=1,
            write_page_checksum=True,
        )

    def add(self, event: Event) -> None:
        """Take an event about which everything is known."""
        self._events.append(event)
        if len(self._events) >= ROW_GROUP:
            self._flush()

    def write(self, batch: pa.RecordBatch) -> None:
        """Write a row group."""
        self.rows += batch.num_rows
        self._writer.write_batch(batch)

    @property
    def taken(self) -> int:
        """Events so far, written or not."""
        return self.rows + len(self._events)

    def finish(self, run: dict[str, str]) -> None:
        """Write what is left, and the facts about the run."""
        if self._events:
            self._flush()
        self._writer.add_key_value_metadata(metadata_of(run, complete=True, version=VERSION))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def _flush(self) -> None:
        events, self._events = self._events, []
        events.sort(key=lambda event: event.sequence)
        arrays = [
            _column([getattr(event, name) for event in events], HOST_SCHEMA.field(name).type)
            for name in _COLUMNS
        ]
        self.write(pa.RecordBatch.from_arrays(arrays, schema=HOST_SCHEMA))


def _column(values: list[object], kind: pa.DataType) -> pa.Array:
    if not pa.types.is_dictionary(kind):
        return pa.array(values, kind)
    encoded = pa.array(values, pa.string()).dictionary_encode()
    return pa.DictionaryArray.from_arrays(encoded.indices.cast(kind.index_type), encoded.dictionary)


Sink = Callable[[Event], None]
"""Takes an event about which everything is known."""
