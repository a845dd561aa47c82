"""Binary recordings: whatever holds the events, the rows are the same; damage is told in words."""

import random
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.trace.recordings import (
    Given,
    perf_data,
    perf_pipe,
    trace_dat_6,
    trace_dat_7,
    workload,
)
from trapgate.cli import app
from trapgate.trace import Trace, TraceError
from trapgate.trace.export import to_ftrace
from trapgate.trace.imports import Imported, import_trace

EVENTS = workload(300)

FORMS: dict[str, Callable[[], bytes]] = {
    "trace.dat 6": lambda: trace_dat_6(EVENTS),
    "trace.dat 6, 32 bits": lambda: trace_dat_6(EVENTS, long=4),
    "trace.dat 6, instance": lambda: trace_dat_6(EVENTS, instance=True),
    "trace.dat 7": lambda: trace_dat_7(EVENTS),
    "trace.dat 7, zstd": lambda: trace_dat_7(EVENTS, codec="zstd"),
    "trace.dat 7, zlib": lambda: trace_dat_7(EVENTS, codec="zlib"),
    "perf.data": lambda: perf_data(EVENTS),
    "perf.data, zstd": lambda: perf_data(EVENTS, codec="zstd"),
    "perf.data, pipe": lambda: perf_pipe(EVENTS),
}


def imported(tmp_path: Path, data: bytes) -> tuple[Imported, list[dict[str, Any]]]:
    source = tmp_path / "recording"
    source.write_bytes(data)
    result = import_trace(source, tmp_path / "out.parquet")
    with Trace(result.path) as trace:
        return result, trace.table().to_pylist()


def expected() -> list[tuple[Any, ...]]:
    """What the workload amounts to, straight from its events."""
    rows: list[tuple[Any, ...]] = []
    for number in range(300):
        time = 1_000_000_000 + number * 7_000 + (number // 50) * 400_000_000
        vcpu = number % 3
        word = ("EXCEPTION_NMI", "EPT_VIOLATION", "HLT", "NEW_ONE")[number % 4]
        vector, code = (14, number % 8) if number % 4 == 0 else (None, None)
        physical = number << 12 if number % 4 == 1 else None
        met = 1 if number % 4 == 1 else None
        rows.append((time, vcpu, 4001 + vcpu, word, vector, code, physical, met, 3000))
        if number % 4 == 0:
            rows.append((time + 1000, vcpu, 4001 + vcpu, None, 14, code, None, None, None))
        elif number % 4 == 1:
            rows.append((time + 1000, vcpu, 4001 + vcpu, None, 0xEC, None, None, None, None))
    return rows


NAMES = ("time", "vcpu", "thread", "exit_reason", "vector", "error_code", "guest_physical",
         "interrupted_vector", "latency")  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_say_the_same(tmp_path: Path, form: str) -> None:
    result, rows = imported(tmp_path, FORMS[form]())
    counters = result.counters
    assert [tuple(row[name] for name in NAMES) for row in rows] == expected()
    assert (result.time_unit, counters.foreign, counters.truncated) == ("ns", 75, 0)
    assert result.format == ("trace-dat" if "trace" in form else "perf-data")
    assert counters.lines == len(EVENTS)
    assert counters.remarks == []


SAID = ("vector", "error_code", "rip", "guest_physical", "interrupted_vector", "vcpu")


def as_text(tmp_path: Path, command: list[str]) -> list[dict[str, Any]]:
    """The rows of what a tool prints of a recording."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return imported(tmp_path, done.stdout.encode())[1]


@pytest.mark.parametrize(
    "fields",
    [
        "comm,tid,pid,time,cpu,event,trace",
        "time,event,trace",
        "cpu,event,trace,time",
        "tid,event,trace,time,cpu",
        "event,trace",
        "+period",
        "-comm",
        "-tid",
        "-cpu",
        "+flags",
    ],
)
@pytest.mark.skipif(shutil.which("perf") is None, reason="no perf")
def test_layouts_of_perf_script(tmp_path: Path, fields: str) -> None:
    recording = tmp_path / "perf.data"
    recording.write_bytes(perf_data(workload(60)))
    expected_rows = imported(tmp_path, recording.read_bytes())[1]
    rows = as_text(tmp_path, ["perf", "script", "-i", str(recording), "-F", fields])
    names = SAID if fields == "event,trace" else (*SAID, "latency")
    assert [[r[n] for n in names] for r in rows] == [[r[n] for n in names] for r in expected_rows]


@pytest.mark.parametrize("option", ["-N", "-R", "-N -l", "-N -t", "-N -w", "-N --ts-diff"])
@pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="no trace-cmd")
def test_layouts_of_trace_cmd(tmp_path: Path, option: str) -> None:
    recording = tmp_path / "trace.dat"
    recording.write_bytes(trace_dat_7(workload(60)))
    expected_rows = imported(tmp_path, recording.read_bytes())[1]
    rows = as_text(tmp_path, ["trace-cmd", "report", *option.split(), "-i", str(recording)])
    names = (*SAID, "latency")
    assert [[r[n] for n in names] for r in rows] == [[r[n] for n in names] for r in expected_rows]


def accesses(write: int = 1) -> list[Given]:
    """Exits of MSRs and control registers, and what KVM says of them."""
    found: list[Given] = []
    told: list[tuple[int, int, str, dict[str, int]]] = [
        (32, 0, "kvm_msr", {"write": 1, "ecx": 0xC0000101, "data": 1 << 63}),
        (31, 0, "kvm_msr", {"ecx": 0x1B, "data": 5}),
        (28, 4, "kvm_cr", {"rw": 1, "cr": 4, "val": 0x6F0}),
        (28, 4, "kvm_cr", {"rw": 1, "cr": 4, "val": 0x6B0}),
        (28, 0x13, "kvm_cr", {"cr": 3, "val": 0x2000}),
        (30, 0x3F80003, "kvm_fpu", {}),
        (40, 0, "kvm_ple_window_update", {"old": 4096, "new": 8192}),
    ]
    for number, (reason, info1, name, values) in enumerate(told):
        time = 1_000_000_000 + number * 10_000
        exit_ = {"exit_reason": reason, "info1": info1, "isa": 1, "guest_rip": 16}
        found += [
            (time, 0, 4001, "kvm_exit", exit_),
            (time + 1000, 0, 4001, name, values),
            (time + 2000, 0, 4001, "kvm_entry", {"rip": 16}),
        ]
    irq = {"host_irq": 40, "vcpu_id": 7, "gvec": 0x31, "set": write}
    return [*found, (1_001_000_000, 1, 99, "kvm_pi_irte_update", irq)]


def printed(event: Given) -> str:
    """An event as the kernel prints it."""
    time, cpu, thread, name, v = event
    match name:
        case "kvm_exit":
            word = {28: "CR_ACCESS", 30: "IO_INSTRUCTION", 31: "MSR_READ", 32: "MSR_WRITE"}
            word[40] = "PAUSE_INSTRUCTION"
            body = (
                f"vcpu 0 reason {word[v['exit_reason']]} rip 0x10 info1 0x{v['info1']:016x} "
                "info2 0x0 intr_info 0x00000000 error_code 0x00000000"
            )
        case "kvm_msr":
            way = "write" if v.get("write") else "read"
            body = f"msr_{way} {v['ecx']:x} = 0x{v['data']:x}"
        case "kvm_cr":
            body = f"cr_{'write' if v.get('rw') else 'read'} {v['cr']:x} = 0x{v['val']:x}"
        case "kvm_ple_window_update":
            body = f"vcpu 0 old {v['old']} new {v['new']} (growed)"
        case "kvm_entry":
            body = "vcpu 0, rip 0x10"
        case "kvm_pi_irte_update":
            body = (
                "PI is enabled and being updated for irq 40, vcpu 7, gsi: 0x0, gvec: 0x31, "
                "pi_desc_addr: 0x1000"
            )
        case _:
            body = "unload"
    seconds = f"{time // 10**9}.{time % 10**9:09}"
    return f" CPU 0/KVM-{thread} [{cpu:03}] {seconds}: {name}: {body}\n"


def raw(event: Given) -> str:
    """An event as `trace-cmd report -R` prints it."""
    time, cpu, thread, name, values = event
    decimal = {"exit_reason", "isa", "write", "rw", "set", "vcpu_id", "ecx", "cr", "old", "new"}
    shown = " ".join(f"{n}={v if n in decimal else hex(v)}" for n, v in values.items())
    if name == "kvm_entry":
        shown = f"vcpu_id=0 {shown}"
    return f" CPU-{thread} [{cpu:03}] {time // 10**9}.{time % 10**9:09}: {name}: {shown}\n"


ACCESS_FORMS: dict[str, Callable[[], bytes]] = {
    "raw text": lambda: "".join(map(raw, accesses())).encode(),
    "text": lambda: "".join(map(printed, accesses())).encode(),
    "trace.dat": lambda: trace_dat_6(accesses()),
    "perf.data": lambda: perf_data(accesses()),
}


@pytest.mark.parametrize("form", ACCESS_FORMS)
def test_what_exits_access(tmp_path: Path, form: str) -> None:
    result, rows = imported(tmp_path, ACCESS_FORMS[form]())
    told = [(r["exit_reason"], r["operand"], r["data"], r["old_value"], r["latency"]) for r in rows]
    assert told == [
        ("MSR_WRITE", 0xC0000101, 1 << 63, None, 2000),
        ("MSR_READ", 0x1B, 5, None, 2000),
        ("CR_ACCESS", 4, 0x6F0, None, 2000),
        ("CR_ACCESS", 4, 0x6B0, 0x6F0, 2000),
        ("CR_ACCESS", 3, 0x2000, None, 2000),
        ("IO_INSTRUCTION", 0x3F8, None, None, 2000),
        ("PAUSE_INSTRUCTION", None, 4096, None, 2000),
    ]
    assert result.counters.posted == {(7, 0x31)}
    with Trace(result.path) as trace:
        assert trace.run["posted-interrupts"] == "vCPU 7 vector 0x31"


def test_accesses_go_around(tmp_path: Path) -> None:
    first, rows = imported(tmp_path, trace_dat_6(accesses()))
    with Trace(first.path) as trace:
        to_ftrace(trace, tmp_path / "again.txt")
    again = import_trace(tmp_path / "again.txt", tmp_path / "again.parquet")
    with Trace(again.path) as trace:
        names = ("exit_reason", "operand", "data", "old_value", "latency", "qualification")
        assert [[row[n] for n in names] for row in trace.table().to_pylist()] == [
            [row[n] for n in names] for row in rows
        ]


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.skipif(shutil.which("trace-cmd") is None, reason="no trace-cmd")
def test_trace_cmd_reads_what_the_writer_writes(tmp_path: Path, codec: str) -> None:
    for data in (trace_dat_7(EVENTS, codec=codec), trace_dat_6(EVENTS)):
        (tmp_path / "trace.dat").write_bytes(data)
        told = subprocess.run(
            ["trace-cmd", "report", "-N", tmp_path / "trace.dat"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        _, binary = imported(tmp_path, data)
        _, text = imported(tmp_path, told.encode())
        for row in (*binary, *text):
            row["time"] //= 1000  # the text has microseconds
        assert binary == text


@pytest.mark.skipif(shutil.which("perf") is None, reason="no perf")
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_perf_reads_what_the_writer_writes(tmp_path: Path, codec: str) -> None:
    data = perf_data(EVENTS, codec=codec)
    (tmp_path / "perf.data").write_bytes(data)
    told = subprocess.run(
        ["perf", "script", "--ns", "-F", "comm,tid,pid,cpu,time,event,trace", "-i",
         tmp_path / "perf.data"],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert told.stdout.count("kvm:kvm_exit") == 300, told.stderr
    _, binary = imported(tmp_path, data)
    _, text = imported(tmp_path, told.stdout.encode())
    assert binary == text


@pytest.mark.parametrize(
    ("data", "lost"),
    [
        pytest.param(lambda: trace_dat_6(EVENTS, missed=77), 154, id="trace.dat"),
        pytest.param(lambda: trace_dat_6(EVENTS, missed=77, long=4), 154, id="32 bits"),
        pytest.param(lambda: perf_data(EVENTS, lost=9), 9, id="perf.data"),
    ],
)
def test_lost_events_are_counted(tmp_path: Path, data: Callable[[], bytes], lost: int) -> None:
    result, rows = imported(tmp_path, data())
    assert result.counters.lost == lost
    assert len(rows) == len(expected())
    with Trace(result.path) as trace:
        assert trace.run["import-lost"] == str(lost)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(lambda: trace_dat_6(EVENTS)[:900], "cut short", id="cut in the head"),
        pytest.param(
            lambda: trace_dat_6(EVENTS).replace(b"tracing6\0\0", b"tracing6\0\1", 1),
            "big-endian host",
            id="big-endian",
        ),
        pytest.param(
            lambda: trace_dat_6(EVENTS).replace(b"tracing6", b"tracing9", 1),
            "version '9'; 6 and 7 are known",
            id="version",
        ),
        pytest.param(
            lambda: trace_dat_7(EVENTS).replace(b"none\0", b"lzma\0", 1),
            "none of them KVM's exits",
            id="codec",
        ),
        pytest.param(lambda: b"2ELIFREP" + bytes(96), "big-endian host", id="swapped perf"),
        pytest.param(lambda: perf_data(EVENTS)[:60], "beyond the file's end", id="cut perf"),
        pytest.param(
            lambda: trace_dat_6(EVENTS).replace(b"exit_reason", b"exit_whatso"),
            "fields that are not known",
            id="another kernel's fields",
        ),
        pytest.param(
            lambda: trace_dat_6([e for e in EVENTS if e[3] == "kvm_fpu"]),
            "75 events, none of them KVM's exits",
            id="other events",
        ),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, data: Callable[[], bytes], words: str) -> None:
    source = tmp_path / "recording"
    source.write_bytes(data())
    if "another" in words or "not known" in words:
        result = import_trace(source, tmp_path / "out.parquet")
        assert any(words in remark for remark in result.counters.remarks)
        return
    with pytest.raises(TraceError, match=words) as error:
        import_trace(source, tmp_path / "out.parquet")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


def test_a_recording_that_is_cut_keeps_what_it_has(tmp_path: Path) -> None:
    for whole in (trace_dat_6(EVENTS), trace_dat_7(EVENTS, codec="zstd")):
        cut = whole[: len(whole) - len(whole) // 4]
        if whole[10:11] == b"7":
            continue  # its options are at the end: nothing is left
        result, rows = imported(tmp_path, cut)
        assert 0 < len(rows) < len(expected())
        assert result.counters.truncated > 0
    killed = perf_data(EVENTS, killed=True)
    with pytest.raises(TraceError, match="does not say where it ends"):
        imported(tmp_path, killed)


def test_the_command_shows_lost_events(tmp_path: Path) -> None:
    source = tmp_path / "trace.dat"
    source.write_bytes(trace_dat_6(EVENTS, missed=5))
    result = CliRunner().invoke(
        app, ["trace", "import", str(source), "-o", str(tmp_path / "o.parquet")]
    )
    assert result.exit_code == 0, result.stderr
    assert "10 events lost at least" in result.stdout


FUZZED = {
    "6": trace_dat_6(workload(60)),
    "7": trace_dat_7(workload(60)),
    "7 zstd": trace_dat_7(workload(60), codec="zstd"),
    "7 zlib": trace_dat_7(workload(60), codec="zlib"),
    "perf": perf_data(workload(60)),
    "perf zstd": perf_data(workload(60), codec="zstd"),
    "pipe": perf_pipe(workload(60)),
    "accesses": trace_dat_6(accesses(), instance=True),
}


def mutated(data: bytes, source: random.Random) -> bytes:
    """A file with some bytes, numbers or stretches changed."""
    changed = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        if not changed:
            break
        at = source.randrange(len(changed))
        match source.randrange(6):
            case 0:
                changed[at] ^= 1 << source.randrange(8)
            case 1:
                changed[at] = source.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                width = source.choice((2, 4, 8))
                number = source.choice(
                    (0, 1, 2**31 - 1, 2**63 - 1, 2**64 - 1, source.getrandbits(64))
                )
                part = (number & (1 << 8 * width) - 1).to_bytes(width, "little")
                changed[at : at + width] = part[: len(changed) - at]
            case 3:
                del changed[at : at + source.choice((1, 4, 4096))]
            case 4:
                changed = changed[: at + 1]
            case _:
                changed[at:at] = changed[at : at + source.choice((1, 8, 512))]
    # Most of what is read stands in the head.
    return bytes(changed)


def fuzz(count: int, tmp_path: Path, seed: int) -> tuple[int, int]:
    source = random.Random(seed)
    path, out = tmp_path / "f", tmp_path / "o.parquet"
    read = refused = 0
    for number in range(count):
        data = FUZZED[list(FUZZED)[number % len(FUZZED)]]
        path.write_bytes(mutated(data, source))
        try:
            import_trace(path, out)
            read += 1
        except TraceError as error:
            refused += "\n" not in str(error)
    return read, refused


def test_mutated_recordings_are_read_or_refused(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, refused = fuzz(700, tmp_path, seed=1)
    assert read + refused == 700
    assert read > 50
    assert refused > 50
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 400 << 10, "kilobytes"


@pytest.mark.slow
def test_a_hundred_thousand_mutated_recordings(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(fuzz(100_000, tmp_path, seed=2)) == 100_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10
