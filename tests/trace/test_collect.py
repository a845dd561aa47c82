"""Scripts for hosts, histograms with weights, and which events are asked about."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.trace.foreign_text import Host
from tests.trace.test_hosts import put_exit
from trapgate.cli import app
from trapgate.criteria import weights_in
from trapgate.replay import Policy, replay
from trapgate.replay.bursts import burst_interval
from trapgate.replay.controls import by_control
from trapgate.trace import Trace, TraceError
from trapgate.trace.collect import QUESTIONS, TOOLS, script
from trapgate.trace.frames import lost_events
from trapgate.trace.imports import import_trace
from trapgate.trace.selection import Selection, stretch
from trapgate.trace.stat import statistics

pytest.importorskip("polars")

HISTOGRAM = """Attaching 6 probes...

@exits[1, 12, 0, 0, 1, 0]: 1000
@exits[1, 0, 2147486478, 2, 1, 0]: 300
@exits[1, 0, 2147486478, 7, 2, 1]: 50
@exits[1, 48, 0, 0, 2, 0]: 20
@exits[2, 78, 0, 6, 1, 0]: 4
@exits[2, 97, 0, 0, 1, 0]: 2
@exits[1, 0, garbled
"""


@pytest.fixture
def histogram(tmp_path: Path) -> Path:
    (tmp_path / "exits.txt").write_text(HISTOGRAM)
    result = import_trace(tmp_path / "exits.txt", tmp_path / "exits.parquet")
    assert (result.format, result.counters.unreadable, result.counters.rows) == ("bpftrace", 1, 6)
    return result.path


def test_a_histogram_has_accesses_and_injections(tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text(
        "@exits[1, 30, 0, 0, 1, 0, 66584576, -1]: 5\n"
        "@exits[1, 32, 0, 0, 1, 0, 0, 1760]: 7\n"
        "@exits[1, 28, 0, 0, 1, 0, 19, 18446744073709551615]: 2\n"
        "@exits[2, 1024, 0, 0, 1, 0, 8589934594, -1]: 3\n"
        "@injections[3, 14, 6]: 11\n"
        "@injections[0, 236, 0]: 13\n"
        "@injections[3, 999, 6]: 1\n"
    )
    result = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet")
    assert result.counters.unreadable == 1
    with Trace(result.path) as trace:
        rows = trace.table().to_pylist()
    told = [(r["exit_reason"], r["operand"], r["access"], r["weight"]) for r in rows[:4]]
    assert told == [
        ("IO_INSTRUCTION", 0x3F8, None, 5),
        ("MSR_WRITE", 0x6E0, None, 7),
        ("CR_ACCESS", 3, None, 2),
        ("npf", None, "write to absent page in a walk of the guest's tables", 3),
    ]
    injected = [(r["vector"], r["type"], r["error_code"], r["injected"], r["weight"]) for r in rows]
    assert injected[4:] == [(14, 3, 6, True, 11), (0xEC, 0, None, True, 13)]
    found = {line.control: line.exits for line in by_control([result.path]).lines}
    assert found["CR3-store exiting"] == 2
    assert found["MSR bitmaps"] == 7


def test_a_histogram_has_no_events_to_export(histogram: Path, tmp_path: Path) -> None:
    command = ["trace", "export", str(histogram)]
    refused = CliRunner().invoke(app, [*command, "--ftrace", str(tmp_path / "x.txt")])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    written = CliRunner().invoke(app, [*command, "--csv", str(tmp_path / "x.csv")])
    assert written.exit_code == 0
    assert "weight" in (tmp_path / "x.csv").read_text()


def test_a_histogram_tells_what_it_lost(tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text(
        "stdin:3:1-9: WARNING: Map full; can't update element. Try increasing max_map_keys.\n"
        "WARNING: Failed to map_update_elem: -7\nLost 12 events\n@exits[1, 12, 0, 0, 1, 0]: 5\n"
    )
    result = import_trace(tmp_path / "h.txt", tmp_path / "h.parquet")
    assert (result.counters.lost, result.counters.gaps, result.counters.foreign) == (12, 3, 0)
    assert len(result.counters.remarks) == 1
    assert lost_events([result.path]) == 12
    assert statistics([result.path]).lost == 12


KVM = Path("/sys/kernel/tracing/events/kvm/kvm_exit/format")


@pytest.mark.skipif(
    shutil.which("bpftrace") is None or not KVM.exists(), reason="no bpftrace, or no KVM here"
)
@pytest.mark.parametrize("question", QUESTIONS)
def test_bpftrace_takes_its_script(question: str, tmp_path: Path) -> None:
    path = tmp_path / "script.bt"
    path.write_text(script(question, "bpftrace"))
    done = subprocess.run(
        ["bpftrace", "-d", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_scripts(question: str, tool: str) -> None:
    text = script(question, tool, seconds=7, process=4000)
    assert "4000" in text
    assert "7" in text
    assert "trapgate trace import" in text
    if tool != "bpftrace":
        assert all(f"kvm:{point}" in text for point in QUESTIONS[question].points)
        subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    else:
        assert text.count("{") == text.count("}")


def test_misuse_of_collect() -> None:
    with pytest.raises(TraceError, match="is not a question"):
        script("why", "perf")
    result = CliRunner().invoke(app, ["trace", "collect", "filter", "--tool", "strace"])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert CliRunner().invoke(app, ["trace", "collect", "filter"]).stdout == script(
        "filter", "trace-cmd"
    )


def test_weights_count_everywhere(histogram: Path) -> None:
    with Trace(histogram) as trace:
        rows = trace.table().to_pylist()
    assert [(r["exit_reason"], r["vector"], r["error_code"], r["weight"]) for r in rows] == [
        ("HLT", None, None, 1000),
        ("EXCEPTION_NMI", 14, 2, 300),
        ("EXCEPTION_NMI", 14, 7, 50),
        ("EPT_VIOLATION", None, None, 20),
        ("PF excp", 14, 6, 4),
        ("nmi", 2, None, 2),
    ]
    assert weights_in(histogram) == {14: {2: 300, 7: 50, 6: 4}}
    stat = statistics([histogram])
    assert stat.events == 1376
    assert {line.key: line.count for line in stat.tables["vector"]}["#PF"] == 354
    (outcome,) = replay([histogram], [Policy.of("none")]).outcomes
    assert (outcome.rows, outcome.saved) == (1376, 304), "what L1 was given is not L0's to save"
    many = replay([histogram], [Policy.of("none"), Policy.of("all", vectors=[14])]).outcomes
    assert [one.saved for one in many] == [304, 0]


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    host = Host()
    for number in range(20):
        put_exit(host, "EXCEPTION_NMI", 0x1000 * number, 0, 0x80000B0E)
        if number % 2:
            put_exit(host, "EXCEPTION_NMI", 0x1000 * number, 0, 0x80000B0E)
            host.lines[-1] = host.lines[-1].replace("kvm_exit:", "kvm_nested_vmexit:")
        if number % 4 == 1:
            host.put(
                "kvm_nested_vmexit_inject",
                "reason: EXCEPTION_NMI ext_inf1: 0x0 ext_inf2: 0x0 ext_int: 0x80000b0e "
                "ext_int_err: 0x0",
            )
        host.wait(1000 + number % 3 * 1000)
        host.put("kvm_entry", "vcpu 1, rip 0x10")
        host.wait(100_000)
        put_exit(host, "IO_INSTRUCTION", 0x3F80000 + number % 2 * 0x10000)
        host.wait(2000)
        host.put("kvm_entry", "vcpu 1, rip 0x10")
        host.wait(100_000)
    (tmp_path / "h.txt").write_text(host.text)
    return import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path


def test_selections(nested: Path) -> None:
    counts = {
        choice: statistics([nested], chosen=choice).events
        for choice in (
            Selection(),
            Selection(levels=(2,)),
            Selection(vcpus=(1,)),
            Selection(vcpus=(3,)),
            Selection(vms=(0,)),
            Selection(time=(None, 300_000)),
            Selection(rip=(0x11, None)),
        )
    }
    assert list(counts.values()) == [40, 10, 40, 0, 40, 3, 0]
    assert statistics([nested], chosen=Selection(levels=(2,))).chosen == "level 2"
    none = Policy.of("none")
    assert replay([nested], [none]).outcomes[0].saved == 15
    chosen = replay([nested], [none], chosen=Selection(levels=(2,)))
    assert (chosen.outcomes[0].saved, chosen.chosen) == (5, "level 2")
    assert stretch("0x10:", "--rip") == (16, None)
    for text in ("5", "a:b", "-1:2", ":" + "9" * 30):
        with pytest.raises(TraceError, match="is not a range"):
            stretch(text, "--time")


def test_exits_by_control(nested: Path) -> None:
    found = {line.control: line for line in by_control([nested]).lines}
    ports = found["I/O bitmaps, unconditional I/O exiting"]
    assert (ports.exits, ports.savable, ports.savable_time) == (20, 20, 40_000)
    assert ports.details == (("port 0x3f8", 10), ("port 0x3f9", 10))
    faults = found["exception bitmap, page-fault mask and match"]
    assert (faults.exits, faults.reflected, faults.savable) == (20, 5, 15)
    result = CliRunner().invoke(app, ["replay", str(nested), "--controls"])
    assert result.exit_code == 0, result.stderr
    assert "given to the guest's hypervisor, hence not savable: 5" in result.stdout


def test_an_interval_for_bursts(nested: Path) -> None:
    none = Policy.of("none")
    interval = burst_interval([nested], none)
    assert interval is not None
    (outcome,) = replay([nested], [none]).outcomes
    assert interval[0] < outcome.time.estimate < interval[1]
    assert burst_interval([nested], Policy.of("all", vectors=[14])) is None
    path = nested.parent / "none.toml"
    path.write_text('profile = "vt-x"\n[fields]\nEXCEPTION_BITMAP = 0\n')
    result = CliRunner().invoke(app, ["replay", str(nested), "--policy", str(path), "--bursts"])
    assert "if exits come in bursts" in result.stdout
