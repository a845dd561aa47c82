"""Traces for other programs: the Perfetto UI's JSON, and CSV."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.csv

from trapgate.trace.draft import draft
from trapgate.trace.labels import vector_label
from trapgate.trace.reader import Trace
from trapgate.trace.schema import TIME_UNIT


def to_csv(trace: Trace, out: Path) -> int:
    """Write all columns as CSV, numbers in decimal; returns the number of rows.

    Raises: TraceError if `out` cannot be written or the trace is damaged.
    """
    plain = pa.schema(
        [
            pa.field(f.name, pa.string()) if pa.types.is_dictionary(f.type) else f
            for f in trace.schema
        ]
    )
    rows = 0
    with draft(out, "CSV") as temporary, pyarrow.csv.CSVWriter(temporary, plain) as writer:
        for batch in trace.batches():
            columns = [column.cast(kind) for column, kind in zip(batch, plain.types, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=plain))
            rows += batch.num_rows
    return rows


def to_perfetto(trace: Trace, out: Path) -> int:
    """Write JSON that the Perfetto UI opens: a process per VM, a track per vCPU.

    An exit is a slice until the next entry; an event that the guest got is a short one, and
    nested events are slices within the slice of the first. A time of 1 (ns, or
    instruction) is shown as 1 ns. Returns the number of slices.

    Raises: TraceError if `out` cannot be written or the trace is damaged.
    """
    with draft(out, "JSON") as temporary, temporary.open("w", encoding="utf-8") as file:
        return _Perfetto(file, trace).write()


@dataclass
class _Track:
    """The last events of a vCPU, each nested in the one before it."""

    chain: list[dict[str, Any]] = field(default_factory=list)


class _Perfetto:
    def __init__(self, file: TextIO, trace: Trace) -> None:
        self._file = file
        self._trace = trace
        self._tracks: dict[tuple[int, int], _Track] = {}
        self._written = 0
        self._slices = 0

    def write(self) -> int:
        """Everything, row by row."""
        facts = {TIME_UNIT: self._trace.time_unit, **self._trace.run}
        self._file.write('{"displayTimeUnit":"ns","otherData":')
        self._file.write(json.dumps(facts))
        self._file.write(',"traceEvents":[')
        for row in self._rows():
            # Perfetto keeps process 0 and thread 0 for the idle task. A host's thread tells
            # vCPUs of several guests apart where the trace does not tell the guests apart.
            vcpu, thread = row.get("vcpu"), row.get("thread")
            key = row["vm"] + 1, (vcpu or 0) + 1 if thread is None else thread
            track = self._tracks.get(key)
            if track is None:
                track = self._tracks[key] = _Track()
                self._name(
                    key, f"thread {thread}" if vcpu is None and thread else f"vCPU {vcpu or 0}"
                )
            if row["depth"] == 0 or row.get("latency") is not None or not track.chain:
                self._flush(key, track)
            track.chain.append(row)
        for key, track in self._tracks.items():
            self._flush(key, track)
        self._file.write("\n]}\n")
        return self._slices

    def _rows(self) -> Iterator[dict[str, Any]]:
        for batch in self._trace.batches():
            yield from batch.to_pylist()

    def _name(self, key: tuple[int, int], name: str) -> None:
        pid, tid = key
        for what, word in (("process_name", f"VM {pid - 1}"), ("thread_name", name)):
            self._event({"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": word}})

    def _flush(self, key: tuple[int, int], track: _Track) -> None:
        chain, track.chain = track.chain, []
        if not chain:
            return
        end = max(row["time"] + max(row.get("latency") or 1, 1) for row in chain)
        for inner, row in enumerate(reversed(chain)):
            row["end"] = end + inner
        for row in chain:
            self._slices += 1
            self._event(_slice(row, key))

    def _event(self, event: dict[str, Any]) -> None:
        self._file.write(",\n" if self._written else "\n")
        self._file.write(json.dumps(event, separators=(",", ":")))
        self._written += 1


def _slice(row: dict[str, Any], key: tuple[int, int]) -> dict[str, Any]:
    name = vector_label(row["vector"])
    if row.get("exit_reason"):
        name = row["exit_reason"] if row["vector"] is None else f"{row['exit_reason']} {name}"
    details: dict[str, Any] = {}
    for column in ("rip", "linear_address", "guest_physical", "cr3", "error_code", "data"):
        if row.get(column) is not None:
            details[column] = f"{row[column]:#x}"
    for column in ("sequence", "disposition", "reason", "cpl", "depth"):
        if row.get(column) is not None:
            details[column] = row[column]
    return {
        "ph": "X",
        "name": f"{name} (injected)" if row["injected"] else name,
        "cat": row["disposition"].lower(),
        "pid": key[0],
        "tid": key[1],
        "ts": row["time"] / 1000,
        "dur": (row["end"] - row["time"]) / 1000,
        "args": details,
    }
