"""Out and in again: ftrace's text gives the same rows, Perfetto's library reads its format."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.trace import recordings
from tests.trace.foreign_text import Host, workload
from trapgate.cli import app
from trapgate.trace import Trace
from trapgate.trace.export import to_ftrace
from trapgate.trace.imports import import_trace
from trapgate.trace.perfetto import to_perfetto_proto


def host_trace(tmp_path: Path) -> Path:
    (tmp_path / "trace.dat").write_bytes(recordings.trace_dat_6(recordings.workload(200)))
    return import_trace(tmp_path / "trace.dat", tmp_path / "host.parquet").path


def rows_of(path: Path) -> list[dict[str, Any]]:
    with Trace(path) as trace:
        return sorted(trace.table().to_pylist(), key=lambda r: (r["thread"], r["time"]))


COMPARED = (
    *("time", "vm", "vector", "type", "error_code", "rip", "linear_address", "disposition"),
    *("reason", "depth", "injected", "vcpu", "thread", "exit_reason", "latency", "level"),
    *("interrupted_vector", "interrupted_type", "qualification", "access"),
)


def test_ftrace_text_gives_the_same_rows(tmp_path: Path) -> None:
    path = host_trace(tmp_path)
    with Trace(path) as trace:
        count = to_ftrace(trace, tmp_path / "back.txt")
    result = import_trace(tmp_path / "back.txt", tmp_path / "back.parquet")
    assert result.format == "ftrace"
    assert (result.counters.unreadable, result.counters.foreign) == (0, 2)
    assert result.counters.lines == count + 2
    before, after = rows_of(path), rows_of(tmp_path / "back.parquet")
    for one, other in zip(before, after, strict=True):
        assert {n: one[n] for n in COMPARED} == {n: other[n] for n in COMPARED}


def test_perfettos_own_library_reads_its_format(tmp_path: Path) -> None:
    messages = pytest.importorskip(
        "perfetto.protos.perfetto.trace.perfetto_trace_pb2", reason="perfetto is not installed"
    )
    source = tmp_path / "h.txt"
    source.write_text("".join(workload(Host(), 100)))
    path = import_trace(source, tmp_path / "h.parquet").path
    with Trace(path) as trace:
        rows = trace.table().to_pylist()
        count = to_perfetto_proto(trace, tmp_path / "t.perfetto")
    parsed = messages.Trace()
    parsed.ParseFromString((tmp_path / "t.perfetto").read_bytes())
    # What is not in the schema would be kept as unknown, and be written again.
    parsed.DiscardUnknownFields()
    assert parsed.ByteSize() == (tmp_path / "t.perfetto").stat().st_size
    begins = [p for p in parsed.packet if p.HasField("track_event") and p.track_event.type == 1]
    ends = [p for p in parsed.packet if p.HasField("track_event") and p.track_event.type == 2]
    assert len(begins) == len(ends) == count == len(rows)
    assert sorted(p.timestamp for p in begins) == sorted(row["time"] for row in rows)
    tracks = {p.track_descriptor.uuid for p in parsed.packet if p.HasField("track_descriptor")}
    assert {p.track_event.track_uuid for p in begins} <= tracks
    flows: dict[int, list[Any]] = {}
    for packet in begins:
        for flow in packet.track_event.flow_ids:
            flows.setdefault(flow, []).append(packet)
    answered = [pair for pair in flows.values() if len(pair) == 2]
    # The workload injects 20 of the page faults and all 20 #GP that it answers.
    assert len(answered) == 40
    for exit_, injection in answered:
        assert exit_.track_event.track_uuid == injection.track_event.track_uuid
        assert injection.track_event.name.endswith("(injected)")


def test_flows_through_nested_faults(tmp_path: Path) -> None:
    from tests.replay.traces import journal, write

    messages = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    rows = journal(3)
    rows[:, 2] = 0
    rows[:, 3] = 14, 13, 8
    rows[:, 4] = 3
    rows[:, 12] = 1
    rows[:, 14] = 0, 1, 2
    rows[:, 15] = 0
    with Trace(write(tmp_path / "n.parquet", rows)) as trace:
        to_perfetto_proto(trace, tmp_path / "n.perfetto")
    parsed = messages.Trace()
    parsed.ParseFromString((tmp_path / "n.perfetto").read_bytes())
    flows = [
        list(packet.track_event.flow_ids)
        for packet in parsed.packet
        if packet.HasField("track_event") and packet.track_event.type == 1
    ]
    assert len(flows) == 3
    assert flows[0] == flows[1] == flows[2] != []


def test_the_command(tmp_path: Path) -> None:
    path = host_trace(tmp_path)
    arguments = ["trace", "export", str(path)]
    result = CliRunner().invoke(
        app,
        [
            *arguments,
            *("--perfetto", str(tmp_path / "p.perfetto")),
            *("--ftrace", str(tmp_path / "f.txt")),
        ],
    )
    assert result.exit_code == 0, result.stderr
    assert "300 slices" in result.stderr
    assert CliRunner().invoke(app, arguments).exit_code == 2
    assert not (tmp_path / "p.perfetto").read_bytes().startswith(b"{")
