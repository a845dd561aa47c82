"""What today's kernels, tools and emulators print, and what each line has to become."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trace.foreign_text import PREFIXES, Host, bochs, workload
from trapgate.compiler.library import interpreted
from trapgate.trace import Trace, TraceError
from trapgate.trace.imports import Imported, import_trace, points
from trapgate.trace.imports.scan import scan

EXIT = (
    "vcpu 1 reason {reason} rip 0x10 info1 {info1:#x} info2 {info2:#x} intr_info {intr:#x} "
    "error_code {code:#x} requests 0x0"
)


def imported(tmp_path: Path, text: str) -> tuple[Imported, list[dict[str, Any]]]:
    source = tmp_path / "trace.txt"
    source.write_text(text)
    result = import_trace(source, tmp_path / "out.parquet")
    with Trace(result.path) as trace:
        return result, trace.table().to_pylist()


def put_exit(host: Host, reason: str, info1: int = 0, info2: int = 0, intr: int = 0) -> None:
    host.put("kvm_exit", EXIT.format(reason=reason, info1=info1, info2=info2, intr=intr, code=0))


def test_an_entry_tells_what_it_injects(tmp_path: Path) -> None:
    host = Host()
    host.put("kvm_entry", "vcpu 0, rip 0x4000 intr_info 0x80000b0e error_code 0x00000006")
    put_exit(host, "HLT")
    host.put("kvm_entry", "vcpu 0, rip 0x4010 intr_info 0x000000ec error_code 0x00000000")
    put_exit(host, "EXCEPTION_NMI", 0x28, 0, 0x80000B0E)
    host.put("kvm_inj_exception", "#PF (0x4)")
    host.put(
        "kvm_entry",
        "vcpu 0, rip 0x4020 intr_info 0x80000b0e error_code 0x00000004[immediate exit]",
    )
    put_exit(host, "HLT")
    host.put("kvm_entry", "vcpu 0, rip 0x4030 intr_info 0x800000d1 error_code 0x00000000")
    _, rows = imported(tmp_path, host.text)
    told = [
        (r["vector"], r["type"], r["error_code"], r["rip"], r["reason"])
        for r in rows
        if r["injected"]
    ]
    assert told == [
        (14, 3, 6, 0x4000, "KVM_INJECTION"),
        (14, 3, 4, 0x4020, "KVM_INJECTION"),
        (0xD1, 0, None, 0x4030, "KVM_INJECTION"),
    ]


@pytest.mark.parametrize("named", [True, False], ids=["named", "bare"])
def test_an_exit_tells_whose_delivery_it_met(tmp_path: Path, named: bool) -> None:
    host = Host()
    for information in (0x80000301, 0x800000EC, 0x80000B0E, 0x00000301, 0):
        if named:
            put_exit(host, "EPT_VIOLATION", 0x181, information)
        else:
            host.put("kvm_exit", f"reason EPT_VIOLATION rip 0x10 info 181 {information:x}")
        host.put("kvm_entry", "vcpu 1, rip 0x10")
    _, rows = imported(tmp_path, host.text)
    told = [(r["depth"], r["interrupted_vector"], r["interrupted_type"]) for r in rows]
    assert told == [(1, 1, 3), (1, 0xEC, 0), (1, 14, 3), (0, None, None), (0, None, None)]


def test_amd_tells_the_interrupted_code_too(tmp_path: Path) -> None:
    host = Host()
    host.put("kvm_exit", EXIT.format(reason="npf", info1=6, info2=0x5000, intr=0x80000B0E, code=7))
    _, (row,) = imported(tmp_path, host.text)
    assert (row["interrupted_vector"], row["interrupted_error_code"]) == (14, 7)
    assert (row["guest_physical"], row["error_code"]) == (0x5000, None)


def test_a_reinjection_is_told_apart(tmp_path: Path) -> None:
    host = Host()
    put_exit(host, "EPT_VIOLATION", 0x181, 0x80000301)
    host.put("kvm_inj_exception", "#DB [reinjected]")
    host.put("kvm_inj_virq", "IRQ 0xec [reinjected]")
    host.put("kvm_inj_virq", "IRQ 0xed")
    host.put("kvm_entry", "vcpu 1, rip 0x10 intr_info 0x80000301 error_code 0x0")
    _, rows = imported(tmp_path, host.text)
    told = [(r["reason"], r["vector"], r["injected"], r["rip"]) for r in rows[1:]]
    assert told == [
        ("KVM_REINJECTION", 1, True, 0x10),
        ("KVM_REINJECTION", 0xEC, True, None),
        ("KVM_INJECTION", 0xED, True, None),
    ]


@pytest.mark.parametrize(
    ("reason", "info1", "words"),
    [
        pytest.param("EPT_VIOLATION", 0x181, "read to absent page", id="absent"),
        pytest.param("EPT_VIOLATION", 0x1AA, "write to r-x page", id="write protection"),
        pytest.param("EPT_VIOLATION", 0x19C, "fetch to rw- page", id="no execution"),
        pytest.param(
            "EPT_VIOLATION",
            0x83,
            "read and write to absent page in a walk of the guest's tables",
            id="walk",
        ),
        pytest.param("npf", 0x100000006, "write to absent page", id="npf"),
        pytest.param("npf", 0x100000015, "fetch to present page", id="npf fetch"),
        pytest.param(
            "EXIT_NPF",
            0x200000006,
            "write to absent page in a walk of the guest's tables",
            id="npf walk",
        ),
    ],
)
def test_the_second_stage_in_words(tmp_path: Path, reason: str, info1: int, words: str) -> None:
    host = Host()
    put_exit(host, reason, info1, 0x2000 if "npf" in reason.lower() else 0)
    _, (row,) = imported(tmp_path, host.text)
    assert (row["qualification"], row["access"]) == (info1, words)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param("{comm} {thread} [{cpu:03}] {time}: kvm:", id="comm,tid,cpu,time"),
        pytest.param("{comm} {process}/{thread} [{cpu:03}] {time}: kvm:", id="pid"),
        pytest.param("{comm} {process}/{thread} d..1. [{cpu:03}] {time}: kvm:", id="flags before"),
        pytest.param("{time}: [{cpu:03}] {process}/{thread} kvm:", id="time first"),
        pytest.param("{comm} {thread} {time}: 1 kvm:", id="period"),
        pytest.param("{comm}-{thread} [{cpu:03}] {time} ", id="no colons"),
        pytest.param("> > {comm}-{thread} [{cpu:03}] d.... {time}: ", id="a quoted mail"),
        pytest.param("{comm}-{thread} [{cpu:03}] d.... {time}:\t", id="tabs"),
    ],
)
@pytest.mark.parametrize("comm", ["CPU 1/KVM", "qemu-system-x86", "vm 7 [x]"])
def test_heads_in_any_order(tmp_path: Path, head: str, comm: str) -> None:
    facts = {"comm": comm, "thread": 4001, "process": 4000, "cpu": 5}
    lines = []
    for time, event, body in (
        ("100.000001", "kvm_exit", EXIT.format(reason="HLT", info1=0, info2=0, intr=0, code=0)),
        ("100.000004", "kvm_entry", "vcpu 1, rip 0x10"),
    ):
        colon = "" if "{time} " in head and "{time}:" not in head else ":"
        lines.append(f"{head.format(time=time, **facts)}{event}{colon} {body}\n")
    result, (row,) = imported(tmp_path, "".join(lines))
    if "{process}" in head or not head.startswith("{time}"):
        assert row["thread"] == 4001
    assert (row["time"], row["latency"]) == (100_000_001_000, 3000)
    assert (row["vcpu"], result.counters.unreadable) == (1, 0)


def test_without_a_thread_the_vcpu_stands_for_it(tmp_path: Path) -> None:
    text = (
        "    [001]   10.000001:  kvm:kvm_entry: vcpu 0, rip 0x10\n"
        "    [002]   10.000001:  kvm:kvm_entry: vcpu 1, rip 0x20\n"
        f"    [001]   10.000005:  kvm:kvm_exit: {EXIT.replace('vcpu 1', 'vcpu 0')}\n"
        f"    [002]   10.000006:  kvm:kvm_exit: {EXIT}\n"
        "    [001]   10.000007:  kvm:kvm_inj_exception: #UD\n"
        "    [002]   10.000008:  kvm:kvm_entry: vcpu 1, rip 0x20\n"
        "    [001]   10.000009:  kvm:kvm_entry: vcpu 0, rip 0x10\n"
    ).format(reason="HLT", info1=0, info2=0, intr=0, code=0)
    _, rows = imported(tmp_path, text)
    assert [(r["vcpu"], r["thread"], r["latency"]) for r in rows] == [
        (0, None, 4000),
        (1, None, 2000),
        (0, None, None),
    ]


def test_pasted_lines_keep_their_order(tmp_path: Path) -> None:
    text = (
        " kvm_entry:            vcpu 0, rip 0x10\n"
        " kvm_exit:             reason EXIT_EXCP_GP rip 0x10 info 0 0\n"
        " kvm_inj_exception:    #GP (0x0)\n"
        " kvm_entry:            vcpu 0, rip 0x10\n"
        " kvm_exit:             reason hlt rip 0x20 info 0 0\n"
    )
    result, rows = imported(tmp_path, text)
    assert (result.time_unit, result.counters.untimed) == ("events", 5)
    assert [(r["time"], r["vector"], r["latency"]) for r in rows] == [
        (0, 13, None),
        (1, 13, None),
        (2, None, None),
    ]


def test_an_exit_without_its_rip(tmp_path: Path) -> None:
    host = Host()
    host.put("kvm_exit", "reason TRIPLE_FAULT info 0 0")
    host.put("kvm_exit", "vcpu 0 reason HLT")
    result, rows = imported(tmp_path, host.text)
    assert [(r["exit_reason"], r["rip"]) for r in rows] == [("TRIPLE_FAULT", None), ("HLT", None)]
    assert result.counters.unreadable == 0


def test_layouts_that_a_tool_does_not_know(tmp_path: Path) -> None:
    host = Host()
    host.put(
        "kvm_exit",
        "[FAILED TO PARSE] exit_reason=48 guest_rip=0x10 isa=1 info1=0x181 info2=2147484417 "
        "intr_info=0 error_code=0 vcpu_id=3",
    )
    host.put("kvm_entry", "[FAILED TO PARSE] vcpu_id=3 rip=0x10")
    host.put("kvm_exit", "[FAILED TO PARSE] exit_reason=78 guest_rip=0x10 isa=2 info1=2 info2=64")
    host.put("kvm_inj_virq", "[FAILED TO PARSE] vector=236 soft=0 reinjected=1")
    _, rows = imported(tmp_path, host.text)
    told = [(r["exit_reason"], r["vcpu"], r["vector"], r["interrupted_vector"]) for r in rows]
    assert told == [
        ("EPT_VIOLATION", 3, None, 1),
        ("PF excp", 3, 14, None),
        (None, 3, 0xEC, None),
    ]
    assert rows[2]["reason"] == "KVM_REINJECTION"


def test_a_vcpu_in_somebody_elses_event_says_nothing(tmp_path: Path) -> None:
    host = Host()
    host.put(
        "kvm_pi_irte_update",
        "PI is enabled and being updated for irq 40, vcpu 7, gsi: 0x20, gvec: 0x31",
    )
    put_exit(host, "HLT")
    result, (row,) = imported(tmp_path, host.text)
    assert (row["vcpu"], result.counters.foreign) == (1, 0)
    assert result.counters.posted == {(7, 0x31)}


def test_clocks_that_jump_are_counted(tmp_path: Path) -> None:
    host = Host()
    put_exit(host, "HLT")
    host.wait(-5000)
    host.put("kvm_entry", "vcpu 1, rip 0x10")
    result, (row,) = imported(tmp_path, host.text)
    assert (result.counters.backwards, result.counters.unpaired) == (1, 1)
    assert row["latency"] is None


def qemu_event(number: int, vector: int, code: int, rip: int = 0x100010) -> str:
    return (
        f"{number:6d}: v={vector:02x} e={code:04x} i=0 cpl=0 IP=0008:{rip:08x} "
        f"pc={rip:08x} SP=0010:00001000 env->regs[R_EAX]=00000000\n"
    )


def test_qemu_after_a_hardware_interrupt_without_a_line(tmp_path: Path) -> None:
    text = (
        "Servicing hardware INT=0xffffffff\ncheck_exception old: 0xffffffff new 0xd\n"
        + qemu_event(0, 13, 0xFFFFFFFA)
        + "Servicing hardware INT=0x08\n"  # in real mode no line follows
        + "check_exception old: 0xffffffff new 0xe\n"
        + qemu_event(1, 14, 2)
        + "Servicing hardware INT=0x0d\n"
        + qemu_event(2, 13, 0)
    )
    _, rows = imported(tmp_path, text)
    assert [(r["vector"], r["type"], r["error_code"]) for r in rows] == [
        (13, 3, 0xFFFFFFFA),
        (14, 3, 2),
        (13, 0, None),
    ]


def test_qemu_and_a_benign_first_fault(tmp_path: Path) -> None:
    text = (
        "check_exception old: 0xffffffff new 0x6\n"
        + qemu_event(0, 6, 0)
        + "check_exception old: 0xffffffff new 0xd\n"
        + qemu_event(1, 13, 0x32)
        + "check_exception old: 0xd new 0xd\n"
        + qemu_event(2, 8, 0)
        + "check_exception old: 0x8 new 0xd\n"
        + "check_exception old: 0xffffffff new 0xd\n"
        + qemu_event(3, 13, 0x32)
    )
    _, rows = imported(tmp_path, text)
    assert [(r["vector"], r["depth"], r["interrupted_vector"]) for r in rows] == [
        (6, 0, None),
        (13, 1, 6),
        (8, 2, 13),
        (None, 0, None),
        (13, 0, None),
    ]
    assert rows[3]["exit_reason"] == "TRIPLE_FAULT"


def test_bochs_without_debug_messages(tmp_path: Path) -> None:
    third = "exception(): 3rd (13) exception with no resolution, shutdown status is 00h"
    text = (
        bochs(7000, "interrupt(): gate descriptor is not valid sys seg (vector=0x0d)", level="e")
        + bochs(7000, "| RIP=0000000000000b9d (0000000000000b9d)", level="i")
        + bochs(7000, third, level="e")
        + bochs(9000, f">>PANIC<< {third}", level="p")
    )
    result, rows = imported(tmp_path, text)
    assert [(r["exit_reason"], r["rip"]) for r in rows] == [
        ("TRIPLE_FAULT", 0xB9D),
        ("TRIPLE_FAULT", None),
    ]
    assert result.counters.unreadable == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"\x1f\x8b\x08", "gunzip", id="gzip"),
        pytest.param(b"\x7fELF\x02", "a program", id="program"),
        pytest.param(
            b"x-1 [000] 1.000001: sched_switch: prev_comm=x\n",
            "other trace points than KVM's",
            id="other trace points",
        ),
        pytest.param(b" kvm_exit: TRAP: HSR_EC: 0x24\n", "arm64", id="arm64"),
        pytest.param(
            b"Analyze events for all VMs, all VCPUs:\n", "perf kvm stat report", id="a table"
        ),
        pytest.param(b"00000000001i[CPU0 ] hello\n", "debug: action=report", id="quiet Bochs"),
        pytest.param(b"EAX=00000000 EBX=00000000\n", "-d int", id="quiet QEMU"),
    ],
)
def test_what_a_file_is_that_holds_nothing(tmp_path: Path, content: bytes, words: str) -> None:
    source = tmp_path / "x"
    source.write_bytes(content)
    with pytest.raises(TraceError, match=words) as error:
        import_trace(source, tmp_path / "out.parquet")
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("style", PREFIXES)
def test_the_interpreted_scanner_says_the_same(style: str) -> None:
    host = Host(style)
    text = "".join(workload(host, 25))
    host = Host(style, new=False, svm=True)
    text += "".join(workload(host, 25)) + "CPU:2 [12 EVENTS DROPPED]\nnonsense\n"
    text += " q-1 [000] 1.5: kvm_exit: reason HLT rip\n q-1 [0] 1.5: kvm_inj_exception: #QQ\n"
    cells = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    told = []
    for function in (scan, interpreted(scan)):
        found = np.zeros((len(cells) // 16 + 1) * points.POINT, np.int64)
        counts = np.zeros(points.COUNTS, np.int64)
        count = function(cells, len(cells), found, counts)
        told.append((count, found[: count * points.POINT].tolist(), counts.tolist()))
    assert told[0] == told[1]


@pytest.mark.parametrize("word", ["007", "0x7", "UNKNOWN (69)", "0", "99999"])
def test_reasons_that_are_numbers(tmp_path: Path, word: str) -> None:
    host = Host()
    put_exit(host, word)
    _, (row,) = imported(tmp_path, host.text)
    expected = {"007": "INTERRUPT_WINDOW", "0x7": "INTERRUPT_WINDOW", "0": "EXCEPTION_NMI"}
    assert row["exit_reason"] == expected.get(word, row["exit_reason"])


def test_a_guests_guest_has_registers_of_its_own(tmp_path: Path) -> None:
    host = Host()
    for value, nested in ((0x31, False), (0x11, True), (0x33, False)):
        put_exit(host, "CR_ACCESS")
        if nested:
            body = host.lines[-1].partition("kvm_exit:")[2].strip()
            host.put("kvm_nested_vmexit", body)
        host.put("kvm_cr", f"cr_write 0 = 0x{value:x}")
        host.put("kvm_entry", "vcpu 1, rip 0x10")
    _, rows = imported(tmp_path, host.text)
    told = [(r["level"], r["operand"], r["data"], r["old_value"]) for r in rows]
    assert told == [(1, 0, 0x31, None), (2, 0, 0x11, None), (1, 0, 0x33, 0x31)]
