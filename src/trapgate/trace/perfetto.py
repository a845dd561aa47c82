"""Traces for the Perfetto UI: tracks with slices, as JSON or as its own protocol buffers.

A process per VM, a track per vCPU. An exit is a slice until the next entry; an event that
the guest got is a short one, and nested events are slices within the slice of the first.
The protocol buffers have flows besides, arrows from a fault to the fault that met its
delivery, to the exit, and to the injection that answers it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from trapgate.trace.draft import draft
from trapgate.trace.labels import vector_label
from trapgate.trace.reader import Trace
from trapgate.trace.schema import TIME_UNIT

Key = tuple[int, int]
"""A track: process and thread as Perfetto has them."""


@dataclass
class _Track:
    """The last events of a vCPU, each nested in the one before it."""

    name: str
    chain: list[dict[str, Any]] = field(default_factory=list)


Chain = tuple[Key, str, list[dict[str, Any]]]
"""A track, its name, and events each nested in the one before; `end` says until when."""


def chains(trace: Trace) -> Iterator[Chain]:
    """All events of a trace, nested ones together."""
    tracks: dict[Key, _Track] = {}
    for batch in trace.batches():
        for row in batch.to_pylist():
            # Perfetto keeps process 0 and thread 0 for the idle task. A host's thread tells
            # vCPUs of several guests apart where the trace does not tell the guests apart.
            vcpu, thread = row.get("vcpu"), row.get("thread")
            key = row["vm"] + 1, (vcpu or 0) + 1 if thread is None else thread
            if key not in tracks:
                name = f"thread {thread}" if vcpu is None and thread else f"vCPU {vcpu or 0}"
                tracks[key] = _Track(name)
            track = tracks[key]
            if row["depth"] == 0 or row.get("latency") is not None or not track.chain:
                yield from _flushed(key, track)
            track.chain.append(row)
    for key, track in tracks.items():
        yield from _flushed(key, track)


def _flushed(key: Key, track: _Track) -> Iterator[Chain]:
    chain, track.chain = track.chain, []
    if chain:
        end = max(row["time"] + max(row.get("latency") or 1, 1) for row in chain)
        for inner, row in enumerate(reversed(chain)):
            row["end"] = end + inner
        yield key, track.name, chain


def to_perfetto(trace: Trace, out: Path) -> int:
    """Write JSON that the Perfetto UI opens. A time of 1 (ns, or instruction) is shown as
    1 ns. Returns the number of slices.

    Raises: TraceError if `out` cannot be written or the trace is damaged.
    """
    slices = 0
    named: set[Key] = set()
    with draft(out, "JSON") as temporary, temporary.open("w", encoding="utf-8") as file:
        facts = {TIME_UNIT: trace.time_unit, **trace.run}
        file.write('{"displayTimeUnit":"ns","otherData":')
        file.write(json.dumps(facts))
        file.write(',"traceEvents":[')
        separator = "\n"
        for key, name, chain in chains(trace):
            events = [] if key in named else _named(key, name)
            named.add(key)
            events += [_slice(row, key) for row in chain]
            slices += len(chain)
            for event in events:
                file.write(separator + json.dumps(event, separators=(",", ":")))
                separator = ",\n"
        file.write("\n]}\n")
    return slices


def _named(key: Key, name: str) -> list[dict[str, Any]]:
    pid, tid = key
    return [
        {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": word}}
        for what, word in (("process_name", f"VM {pid - 1}"), ("thread_name", name))
    ]


def _title(row: dict[str, Any]) -> str:
    name = vector_label(row["vector"])
    if row.get("exit_reason"):
        name = row["exit_reason"] if row["vector"] is None else f"{row['exit_reason']} {name}"
    return f"{name} (injected)" if row["injected"] else name


def _details(row: dict[str, Any]) -> dict[str, Any]:
    details: dict[str, Any] = {}
    for column in ("rip", "linear_address", "guest_physical", "cr3", "error_code", "data"):
        if row.get(column) is not None:
            details[column] = f"{row[column]:#x}"
    for column in ("sequence", "disposition", "reason", "cpl", "depth"):
        if row.get(column) is not None:
            details[column] = row[column]
    return details


def _slice(row: dict[str, Any], key: Key) -> dict[str, Any]:
    details = _details(row)
    return {
        "ph": "X",
        "name": _title(row),
        "cat": row["disposition"].lower(),
        "pid": key[0],
        "tid": key[1],
        "ts": row["time"] / 1000,
        "dur": (row["end"] - row["time"]) / 1000,
        "args": details,
    }


# Field numbers of Perfetto's messages (protos/perfetto/trace).
_PACKET, _TIMESTAMP, _TRACK_EVENT, _SEQUENCE, _FLAGS, _DESCRIPTOR = 1, 8, 11, 10, 13, 60
_TYPE, _TRACK_UUID, _NAME, _CATEGORIES, _ANNOTATIONS, _FLOWS = 9, 11, 23, 22, 4, 47
_UUID, _TRACK_NAME, _PARENT, _PROCESS, _THREAD = 1, 2, 5, 3, 4
_BEGIN, _END = 1, 2
_CLEARED: Final = 1
"""SEQ_INCREMENTAL_STATE_CLEARED: nothing before is needed to read on."""


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(field_number: int, value: int) -> bytes:
    return _varint(field_number << 3) + _varint(value & (1 << 64) - 1)


def _bytes(field_number: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(field_number << 3 | 2) + _varint(len(data)) + data


def _fixed(field_number: int, value: int) -> bytes:
    return _varint(field_number << 3 | 1) + value.to_bytes(8, "little")


def to_perfetto_proto(trace: Trace, out: Path) -> int:
    """Write Perfetto's own format, with flows; returns the number of slices.

    Raises: TraceError if `out` cannot be written or the trace is damaged.
    """
    with draft(out, "Perfetto trace") as temporary, temporary.open("wb") as file:
        return _Proto(file).write(trace)


class _Proto:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._tracks: dict[Key, int] = {}
        self._processes: dict[int, int] = {}
        self._flow = 0
        # What a track's last exit was, for the injection that answers it.
        self._answered: dict[Key, tuple[int | None, int]] = {}

    def write(self, trace: Trace) -> int:
        """Everything; the number of slices."""
        slices = 0
        for key, name, chain in chains(trace):
            if key not in self._tracks:
                self._describe(key, name)
            flows = self._flows(key, chain)
            for row, flow in zip(chain, flows, strict=True):
                self._slice(row, self._tracks[key], flow)
            for row in reversed(chain):
                ended = _number(_TYPE, _END) + _number(_TRACK_UUID, self._tracks[key])
                self._packet(row["end"], _bytes(_TRACK_EVENT, ended))
            slices += len(chain)
        return slices

    def _flows(self, key: Key, chain: list[dict[str, Any]]) -> list[list[int]]:
        """The flows of each event: one through a chain, one from an exit to its injection."""
        flows: list[list[int]] = [[] for _ in chain]
        if len(chain) > 1:
            self._flow += 1
            for own in flows:
                own.append(self._flow)
        vector, waiting = self._answered.pop(key, (None, 0))
        if chain[0]["injected"] and waiting and chain[0]["vector"] == vector:
            flows[0].append(waiting)
        last = chain[-1]
        if last["disposition"] == "EXIT" and last["vector"] is not None:
            self._flow += 1
            flows[-1].append(self._flow)
            self._answered[key] = last["vector"], self._flow
        return flows

    def _describe(self, key: Key, name: str) -> None:
        pid, tid = key
        if pid not in self._processes:
            self._processes[pid] = len(self._processes) + 1
            process = _number(1, pid) + _bytes(6, f"VM {pid - 1}")
            described = _number(_UUID, self._processes[pid]) + _bytes(_PROCESS, process)
            self._packet(None, _bytes(_DESCRIPTOR, described), flags=True)
        self._tracks[key] = (1 << 32) + len(self._tracks)
        thread = _number(1, pid) + _number(2, tid) + _bytes(5, name)
        described = _number(_UUID, self._tracks[key]) + _number(_PARENT, self._processes[pid])
        described += _bytes(_TRACK_NAME, name) + _bytes(_THREAD, thread)
        self._packet(None, _bytes(_DESCRIPTOR, described), flags=True)

    def _slice(self, row: dict[str, Any], track: int, flows: list[int]) -> None:
        event = _number(_TYPE, _BEGIN) + _number(_TRACK_UUID, track)
        event += _bytes(_NAME, _title(row)) + _bytes(_CATEGORIES, row["disposition"].lower())
        for name, value in _details(row).items():
            event += _bytes(_ANNOTATIONS, _bytes(10, name) + _bytes(6, str(value)))
        event += b"".join(_fixed(_FLOWS, flow) for flow in flows)
        self._packet(row["time"], _bytes(_TRACK_EVENT, event))

    def _packet(self, time: int | None, content: bytes, *, flags: bool = False) -> None:
        packet = b"" if time is None else _number(_TIMESTAMP, time)
        packet += _number(_SEQUENCE, 1) + (_number(_FLAGS, _CLEARED) if flags else b"") + content
        self._file.write(_bytes(_PACKET, packet))
