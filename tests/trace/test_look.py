"""Looking at traces: statistics, symbols, export, and the commands that do it."""

import csv
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from tests.trace.foreign_text import Host, workload
from trapgate.cli import app
from trapgate.trace import Trace, TraceError, TraceWriter
from trapgate.trace.export import to_csv
from trapgate.trace.frames import COLUMNS, MissingExtraError, scan, time_unit
from trapgate.trace.imports import import_trace
from trapgate.trace.perfetto import to_perfetto
from trapgate.trace.stat import statistics
from trapgate.trace.symbols import Symbols

pytest.importorskip("polars")

MAP = """\
0000000000000000 D per_cpu_start
ffffffff81000000 T first
ffffffff81000100 t second
ffffffff81000100 T alias
ffffffff81000200 T third
ffffffff82000000 D data
"""


@pytest.fixture
def host_trace(tmp_path: Path) -> Path:
    source = tmp_path / "host.txt"
    source.write_text("".join(workload(Host(), 500)))
    return import_trace(source, tmp_path / "host.parquet").path


def own(path: Path, rows: NDArray[np.int64]) -> Path:
    with TraceWriter(path) as writer:
        writer.append(rows)
    return path


def chain() -> NDArray[np.int64]:
    """A page fault while a page fault is delivered, the double fault, and one more."""
    rows = np.zeros((4, 20), np.int64)
    rows[:, 0] = range(4)
    rows[:, 1] = 100, 100, 100, 250
    rows[:, 3] = 14, 14, 8, 13
    rows[:, 4] = 3
    rows[:, 12] = 1
    rows[:, 14] = 0, 1, 2, 0
    return rows


def test_statistics_of_a_host_trace(host_trace: Path) -> None:

    stat = statistics([host_trace])
    assert (stat.events, stat.time_unit) == (700, "ns")
    assert sum(line.count for line in stat.tables["vector"]) == 700
    by_reason = {line.key: line for line in stat.tables["reason"]}
    # Every fifth exit, the third of its round, is a HLT.
    waits = [1000 + n % 13 * 1000 for n in range(500) if n % 5 == 4]
    halts = by_reason["HLT"]
    assert (halts.count, halts.exits, halts.timed, halts.total) == (100, 100, 100, sum(waits))
    assert (halts.least, halts.most) == (min(waits), max(waits))
    assert halts.mean == pytest.approx(np.mean(waits))
    assert halts.p50 == np.quantile(waits, 0.5, method="nearest")
    assert halts.p99 == np.quantile(waits, 0.99, method="nearest")
    assert halts.share == 100 / 700
    injected = by_reason["KVM_INJECTION"]
    assert (injected.exits, injected.delivered, injected.total) == (0, 200, None)
    codes = {line.key: line.exits for line in stat.tables["error code"]}
    assert {key: codes[key] for key in ("#PF 0x2", "#PF 0x14", "#GP 0x0")} == {
        "#PF 0x2": 40,
        "#PF 0x14": 40,
        "#GP 0x0": 100,
    }


def test_statistics_of_our_own_trace_have_no_times(tmp_path: Path) -> None:

    stat = statistics([own(tmp_path / "t.parquet", chain())])
    assert stat.time_unit == "instructions"
    assert {line.key: line.count for line in stat.tables["vector"]} == {
        "#PF": 2,
        "#DF": 1,
        "#GP": 1,
    }
    assert all(line.total is None for line in stat.tables["vector"])


def test_statistics_of_writes_to_tables_are_per_level(tmp_path: Path) -> None:
    rows = np.zeros((8, 20), np.int64)
    rows[:, 3], rows[:, 4], rows[:, 5] = 14, 3, 0x4003
    by_map, last, upper = 1 << 4, 1, 2
    bytes_of_tables = [0x13, 0x13, 0x51, 0xD1, 0x19, 0x11]
    rows[:6, 11] = [by_map | byte << 8 | last for byte in bytes_of_tables]
    rows[6, 11], rows[7, 11] = last, upper
    rows[0, 12] = 2
    stat = statistics([own(tmp_path / "t.parquet", rows)])
    assert {line.key: (line.exits, line.completed) for line in stat.tables["table"]} == {
        "level 1": (1, 1),
        "level 2": (1, 0),
        "level 4": (1, 0),
        "several levels": (1, 0),
        "level unknown": (1, 0),
        "self-mapped, last level": (1, 0),
        "self-mapped, an upper level": (1, 0),
    }
    assert not statistics([own(tmp_path / "u.parquet", chain())]).tables["table"]


def test_statistics_per_symbol(host_trace: Path, tmp_path: Path) -> None:

    (tmp_path / "System.map").write_text(MAP)
    table = statistics([host_trace], symbols=Symbols(tmp_path / "System.map")).tables["symbol"]
    rips = [n % 97 * 16 for n in range(500)]
    expected = {
        "first": sum(rip < 0x100 for rip in rips),
        "alias": sum(0x100 <= rip < 0x200 for rip in rips),
        "third": sum(rip >= 0x200 for rip in rips),
        "(no symbol)": 200,
    }
    assert {line.key: line.count for line in table} == expected


def elf(wide: bool, symbols: list[tuple[str, int, int, int, int]]) -> bytes:
    """An ELF file with sections null, .text, .symtab, .strtab: (name, value, size, type, index)."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in symbols)
    table, at = b"", 1
    for name, value, size, kind, index in symbols:
        if wide:
            table += struct.pack("<IBBHQQ", at, kind, 0, index, value, size)
        else:
            table += struct.pack("<IIIBBH", at, value, size, kind, 0, index)
        at += len(name) + 1
    head, entry = (64, 64) if wide else (52, 40)
    form = "<IIQQQQIIQQ" if wide else "<10I"
    sections = [
        (0,) * 10,
        (0, 1, 6, 0, 0, 0, 0, 0, 0, 0),
        (0, 2, 0, 0, head, len(table), 3, 0, 0, 0),
        (0, 3, 0, 0, head + len(table), len(names), 0, 0, 0, 0),
    ]
    offset = head + len(table) + len(names)
    if wide:
        header = struct.pack(
            "<4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, 0, 0, offset, 0,
            64, 0, 0, entry, 4, 0,
        )  # fmt: skip
    else:
        header = struct.pack(
            "<4s5B7xHHIIIIIHHHHHH", b"\x7fELF", 1, 1, 1, 0, 0, 2, 3, 1, 0, 0, offset, 0,
            52, 0, 0, entry, 4, 0,
        )  # fmt: skip
    return header + table + names + b"".join(struct.pack(form, *row) for row in sections)


@pytest.mark.parametrize("wide", [True, False], ids=["64 bits", "32 bits"])
def test_symbols_of_an_elf_file(tmp_path: Path, wide: bool) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(
        elf(
            wide,
            [
                ("function", 0x1000, 0x10, 2, 1),
                ("label", 0x1100, 0, 0, 1),
                ("next", 0x1200, 4, 2, 1),
                ("object", 0x1300, 4, 1, 1),
                ("elsewhere", 0x1400, 4, 2, 0),
                ("absolute", 0x1500, 4, 0, 0xFFF1),
            ],
        )
    )
    symbols = Symbols(path)
    assert symbols.names == ["function", "label", "next"]
    addresses = np.array([0xFFF, 0x1000, 0x100F, 0x1010, 0x1150, 0x1203, 0x1204], np.uint64)
    assert symbols.indices(addresses).tolist() == [-1, 0, 0, -1, 1, 2, -1]


def test_a_real_elf_file() -> None:
    image = Path(sys.executable).resolve()
    if b".symtab\0" not in image.read_bytes():
        pytest.skip("this Python is stripped")
    symbols = Symbols(image)
    assert len(symbols.names) == len(symbols.starts) > 0
    assert symbols.indices(symbols.starts[:1]).tolist() == [0]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "cannot be read", id="missing"),
        pytest.param(b"", "it contains no function", id="empty"),
        pytest.param(b"hello\n", "it contains no function", id="foreign"),
        pytest.param(b"\x7fELF\x02\x01", "a damaged ELF file", id="cut"),
        pytest.param(elf(True, [("f", 1, 1, 2, 1)])[:-90], "a damaged ELF file", id="cut later"),
    ],
)
def test_what_holds_no_symbols(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "System.map"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceError, match=problem):
        Symbols(path)


def test_symbols_that_do_not_match(host_trace: Path, tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text("00001000 T other\n00002000 T another\n")
    result = CliRunner().invoke(app, ["trace", "stat", str(host_trace), "--symbols", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"trapgate: {path}: none of the trace's addresses (0xff")
    assert "nokaslr" in result.stderr
    assert result.stderr.count("\n") == 1


def test_perfetto_shows_nested_events_within_the_first(tmp_path: Path) -> None:
    with Trace(own(tmp_path / "t.parquet", chain())) as trace:
        assert to_perfetto(trace, tmp_path / "t.json") == 4
    found = json.loads((tmp_path / "t.json").read_text())
    slices = [event for event in found["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in slices] == ["#PF", "#PF", "#DF", "#GP"]
    ends = [round((event["ts"] + event["dur"]) * 1000) for event in slices]
    assert ends == [103, 102, 101, 251]
    assert found["otherData"]["time-unit"] == "instructions"


def test_perfetto_has_a_track_per_vcpu(host_trace: Path, tmp_path: Path) -> None:
    with Trace(host_trace) as trace:
        to_perfetto(trace, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {"vCPU 0", "vCPU 1"}
    exits = [event for event in events if event["ph"] == "X" and event["cat"] == "exit"]
    exits.sort(key=lambda event: int(event["args"]["sequence"]))
    assert [event["dur"] for event in exits][:3] == [1.0, 2.0, 3.0]
    assert exits[0]["name"] == "EXCEPTION_NMI #PF"
    assert len(exits) == 500


def test_csv_holds_every_row(host_trace: Path, tmp_path: Path) -> None:
    with Trace(host_trace) as trace:
        assert to_csv(trace, tmp_path / "t.csv") == 700
        expected = trace.table().to_pylist()
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 700
    assert [int(row["time"]) for row in rows] == [row["time"] for row in expected]
    assert rows[0]["exit_reason"] == "EXCEPTION_NMI"
    assert rows[1]["latency"] == ""


def test_frames_of_both_versions_together(tmp_path: Path, host_trace: Path) -> None:
    path = own(tmp_path / "own.parquet", chain())
    frame = scan([path]).collect()
    assert frame.columns == list(COLUMNS)
    assert frame["latency"].null_count() == 4
    assert frame["vcpu"].to_list() == [0] * 4
    assert scan([path, path]).collect().height == 8
    assert time_unit([path, path]) == "instructions"
    with pytest.raises(TraceError, match=r"own\.parquet: counts time in instructions, and .*in ns"):
        time_unit([host_trace, path])
    with pytest.raises(TraceError, match="no trace given"):
        time_unit([])


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, host_trace: Path) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    result = CliRunner().invoke(app, ["trace", "stat", str(host_trace)])
    assert result.exit_code == 2
    assert (
        result.stderr == "trapgate: this needs polars; install it: pip install 'trapgate[replay]'\n"
    )
    with pytest.raises(MissingExtraError):
        scan([host_trace])


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["trace", *map(str, arguments)])


def test_the_commands(tmp_path: Path) -> None:
    source, out = tmp_path / "host.txt", tmp_path / "host.parquet"
    source.write_text("junk\n" + "".join(workload(Host(), 100)))
    result = invoke("import", source, "-o", out)
    assert result.exit_code == 0
    assert "140 rows from 261 lines (trace-cmd)" in result.stdout
    assert "1 foreign lines left out" in result.stdout
    counted = json.loads(invoke("import", source, "-o", out, "--json").stdout)
    assert (counted["rows"], counted["format"], counted["time_unit"]) == (140, "trace-cmd", "ns")
    shown = invoke("stat", out).stdout
    assert "per error code" in shown
    assert "p99" in shown
    assert json.loads(invoke("stat", out, "--json").stdout)["events"] == 140
    first = invoke("head", out, "-n", 3).stdout.splitlines()
    assert len([line for line in first if "EXCEPTION_NMI" in line or "KVM_INJ" in line]) == 3
    rows = [json.loads(line) for line in invoke("head", out, "-n", 3, "--json").stdout.splitlines()]
    assert [row["sequence"] for row in rows] == [0, 1, 2]
    assert invoke("export", out).exit_code == 2
    assert invoke("export", out, "--csv", tmp_path / "o.csv").exit_code == 0


@pytest.mark.parametrize("command", ["stat", "head", "export"])
def test_bad_files_are_told_in_one_line(tmp_path: Path, command: str) -> None:
    bad = tmp_path / "bad.parquet"
    pq.write_table(scan_nothing(), bad)
    more = ["--csv", tmp_path / "o.csv"] if command == "export" else []
    for path, words in ((bad, "not a fault trace"), (tmp_path / "none", "no such file")):
        result = invoke(command, path, *more)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.parquet"]


def altered(path: Path, change: Callable[[pa.Table], pa.Table], **facts: bytes) -> Path:
    """The trace at `path`, changed and written by another program, so to say."""
    table = pq.read_table(path)
    stored = {**pq.read_schema(path).metadata, **{k.encode(): v for k, v in facts.items()}}
    pq.write_table(change(table).replace_schema_metadata(stored), path)
    return path


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, column)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            lambda t: pa.table([*t.columns, t["vector"]], names=[*t.column_names, "vector"]),
            "several columns are named vector",
            id="a column twice",
        ),
        pytest.param(
            lambda t: with_column(t, "time", pa.nulls(len(t), pa.uint64())),
            "column time has nulls",
            id="nulls where none may be",
        ),
        pytest.param(
            lambda t: with_column(t, "disposition", pa.array(["LEAVE"] * len(t))),
            "disposition 'LEAVE' is none of EXIT, DELIVER, COMPLETE",
            id="another disposition",
        ),
        pytest.param(lambda t: t.drop(["reason", "cpl"]), "missing cpl, reason", id="missing"),
    ],
)
def test_traces_of_another_make_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], problem: str
) -> None:
    path = altered(own(tmp_path / "t.parquet", chain()), change)
    for command in (["head"], ["stat"], ["export", "--perfetto", str(tmp_path / "t.json")]):
        result = invoke(*command, path)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert problem in result.stderr
    assert [each.name for each in tmp_path.iterdir()] == ["t.parquet"]


def test_extra_nested_columns_do_no_harm(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        extra = pa.array([{"a": None, "b": "LEAVE"}] * len(table))
        return table.add_column(0, "extra", extra)

    path = altered(own(tmp_path / "t.parquet", chain()), change)
    assert invoke("stat", path).exit_code == 0


def test_words_of_a_file_do_not_steer_the_terminal(tmp_path: Path) -> None:
    def change(table: pa.Table) -> pa.Table:
        return with_column(table, "reason", pa.array(["[/b] \x1b[31m :smile:"] * len(table)))

    path = altered(
        own(tmp_path / "t.parquet", chain()), change, **{"trapgate.run.guest": b"\x1b[2J"}
    )
    for command in ("stat", "head"):
        result = invoke(command, path)
        assert result.exit_code == 0
        assert "[/b] ?[31m :smile:" in result.stdout
        assert "\x1b" not in result.output


def test_facts_that_are_no_text_are_shown_all_the_same(tmp_path: Path) -> None:
    path = altered(
        own(tmp_path / "t.parquet", chain()), lambda t: t, **{"trapgate.run.guest": b"\xff"}
    )
    with Trace(path) as trace:
        assert trace.run["guest"] == "\ufffd"
    assert invoke("head", path).exit_code == 0
    assert invoke("stat", path).exit_code == 2, "Polars wants text"


def test_perfetto_keeps_guests_apart_that_the_trace_does_not(tmp_path: Path) -> None:
    one, two = Host(), Host(process=9000)
    for host in (one, two):
        host.exit("HLT", 1, (0, 0))
        host.wait(3000)
        host.entry()
    lines = [line for pair in zip(one.lines, two.lines, strict=True) for line in pair]
    (tmp_path / "h.txt").write_text("".join(f"{line}\n" for line in lines))
    with Trace(import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path) as trace:
        to_perfetto(trace, tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [(e["tid"], e["dur"]) for e in events if e["ph"] == "X"] == [(4001, 3.0), (9001, 3.0)]
    assert all(event["pid"] and event["tid"] for event in events)


def test_quantiles_of_few_times_are_interpolated(tmp_path: Path) -> None:
    host = Host()
    for latency in (1000, 2000, 5000, 9000):
        host.exit("HLT", 1, (0, 0))
        host.wait(latency)
        host.entry()
    (tmp_path / "h.txt").write_text(host.text)
    path = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path
    (line,) = statistics([path]).tables["reason"]
    assert line.p50 == 3500
    assert line.p99 == pytest.approx(np.quantile([1000, 2000, 5000, 9000], 0.99))


def scan_nothing() -> Any:
    return pa.table({"x": [1, 2, 3]})


def test_an_empty_trace_has_empty_tables(tmp_path: Path) -> None:
    path = own(tmp_path / "t.parquet", np.zeros((0, 20), np.int64))
    result = invoke("stat", path, "--json")
    assert json.loads(result.stdout)["events"] == 0
    assert invoke("head", path).exit_code == 0
