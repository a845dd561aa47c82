"""Foreign traces become fault traces; what cannot be read is counted, or told in one line."""

import re
import resource
from pathlib import Path
from typing import Any

import pytest

from tests.trace.foreign_text import PREFIXES, Host, bochs, qemu, workload
from trapgate.trace import Trace, TraceError
from trapgate.trace.imports import Imported, import_trace


def imported(tmp_path: Path, text: str, **options: Any) -> tuple[Imported, list[dict[str, Any]]]:
    source = tmp_path / "trace.txt"
    source.write_text(text)
    result = import_trace(source, tmp_path / "out.parquet", **options)
    with Trace(result.path) as trace:
        assert trace.version == 2
        assert trace.complete
        assert trace.time_unit == result.time_unit
        return result, trace.table().to_pylist()


def known(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what it does not say."""
    return {name: value for name, value in row.items() if value not in (None, False, 0)}


@pytest.mark.parametrize("style", PREFIXES)
@pytest.mark.parametrize("new", [True, False], ids=["newer", "older"])
def test_a_page_fault_exit_in_every_style(tmp_path: Path, style: str, new: bool) -> None:
    host = Host(style, new)
    host.exception(14, 6, 0xFFFFFFFF81000010, 0x7F00DEADB000, vcpu=1)
    host.page_fault(0x7F00DEADB000, 6, 0xFFFFFFFF81000010, vcpu=1)
    host.wait(2_345_000)
    host.inject(14, 6, vcpu=1)
    host.entry(vcpu=1)
    header = "# tracer: nop\n" if style.startswith("ftrace") else ""
    result, rows = imported(tmp_path, header + host.text)
    assert result.format == re.sub("-(tgid|flags|thread|latency|difference|fields)$", "", style)
    assert (result.counters.rows, result.counters.unreadable, result.counters.unpaired) == (2, 0, 0)
    assert [known(row) for row in rows] == [
        {
            "time": 1_000_000_000,
            "disposition": "EXIT",
            "reason": "KVM_EXIT",
            "vector": 14,
            "type": 3,
            "error_code": 6,
            "rip": 0xFFFFFFFF81000010,
            "linear_address": 0x7F00DEADB000,
            "vcpu": 1,
            "thread": 4002,
            "exit_reason": "EXCEPTION_NMI",
            "latency": 2_345_000,
            "level": 1,
        },
        {
            "sequence": 1,
            "time": 1_002_345_000,
            "disposition": "DELIVER",
            "reason": "KVM_INJECTION",
            "vector": 14,
            "type": 3,
            "error_code": 6,
            "vcpu": 1,
            "thread": 4002,
            "injected": True,
        },
    ]


def test_an_older_kernel_does_not_tell_the_error_code(tmp_path: Path) -> None:
    host = Host(new=False)
    host.exception(13, 0x18, 0x1000)
    host.entry()
    host.exception(6, 0, 0x1000)
    host.entry()
    _, (protection, opcode) = imported(tmp_path, host.text)
    assert (protection["vector"], protection["error_code"], protection["code_missing"]) == (
        13,
        None,
        True,
    )
    assert (opcode["vector"], opcode["error_code"], opcode["code_missing"]) == (6, None, None)


@pytest.mark.parametrize("new", [True, False], ids=["newer", "older"])
def test_amd(tmp_path: Path, new: bool) -> None:
    host = Host(new=new, svm=True)
    host.exception(14, 7, 0x1000, 0xC0001000)
    host.entry()
    host.exception(1, 0, 0x1001)
    host.entry()
    host.exit("npf", 0x1002, (0x100000006, 0xFEE00000))
    host.entry()
    host.exit("nmi", 0x1003, (0, 0))
    host.entry()
    _, rows = imported(tmp_path, host.text)
    names = ("exit_reason", "vector", "type", "error_code", "linear_address", "guest_physical")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("PF excp", 14, 3, 7, 0xC0001000, None),
        ("DB excp", 1, 3, None, None, None),
        ("npf", None, None, None, None, 0xFEE00000),
        ("nmi", 2, 2, None, None, None),
    ]


def test_other_exits_and_what_they_met(tmp_path: Path) -> None:
    host = Host()
    host.exit("EXTERNAL_INTERRUPT", 0x10, (0, 0), 0x800000EC)
    host.entry()
    # A page fault of the second stage while a page fault was being delivered.
    host.exit("EPT_VIOLATION", 0x20, (0x83, 0x80000B0E))
    host.page_fault(0x1234000, 0x100000007, 0x20)
    host.entry()
    host.exit("EXCEPTION_NMI", 0x30, (0, 0), 0x80000202)
    host.entry()
    host.exit("EPT_VIOLATION FAILED_VMENTRY", 0x40, (0, 0))
    host.entry()
    _, rows = imported(tmp_path, host.text)
    assert [(row["vector"], row["type"], row["depth"]) for row in rows] == [
        (0xEC, 0, 0),
        (None, None, 1),
        (2, 2, 0),
        (None, None, 0),
    ]
    assert rows[1]["guest_physical"] == 0x1234000
    assert rows[1]["linear_address"] is None
    assert rows[3]["exit_reason"] == "EPT_VIOLATION FAILED_VMENTRY"


@pytest.mark.parametrize(
    ("body", "vector", "kind", "code"),
    [
        pytest.param("#PF (0x2)", 14, 3, 2, id="code"),
        pytest.param("#UD (0x0)", 6, 3, None, id="older kernels print a code where there is none"),
        pytest.param("#UD", 6, 3, None, id="no code"),
        pytest.param("#GP (0x0) [reinjected]", 13, 3, 0, id="reinjected"),
        pytest.param("0x15 (0x3)", 21, 3, 3, id="a vector without a name"),
        pytest.param(
            "[FAILED TO PARSE] exception=14 has_error=1 error_code=20 reinjected=1",
            14,
            3,
            20,
            id="a tool older than the kernel",
        ),
        pytest.param(
            "[FAILED TO PARSE] exception=13 has_error=0 error_code=0 reinjected=0",
            13,
            3,
            None,
            id="the same without a code",
        ),
    ],
)
def test_injected_exceptions(
    tmp_path: Path, body: str, vector: int, kind: int, code: int | None
) -> None:
    host = Host()
    host.put("kvm_inj_exception", body)
    _, (row,) = imported(tmp_path, host.text)
    assert (row["vector"], row["type"], row["error_code"], row["injected"]) == (
        vector,
        kind,
        code,
        True,
    )


@pytest.mark.parametrize(
    ("body", "vector", "kind"),
    [
        pytest.param("irq 49", 49, 0, id="older"),
        pytest.param("IRQ 0x31", 49, 0, id="newer"),
        pytest.param("IRQ 0x31 [reinjected]", 49, 0, id="reinjected"),
        pytest.param("Soft/INTn 0x80", 128, 4, id="software"),
    ],
)
def test_injected_interrupts(tmp_path: Path, body: str, vector: int, kind: int) -> None:
    host = Host()
    host.put("kvm_inj_virq", body)
    _, (row,) = imported(tmp_path, host.text)
    assert (row["vector"], row["type"], row["injected"]) == (vector, kind, True)


def test_nested_exits_mark_the_exit_they_belong_to(tmp_path: Path) -> None:
    host = Host()
    host.exit("EXCEPTION_NMI", 0x10, (0x5000, 0), 0x80000B0E, 4)
    host.exit("EXCEPTION_NMI", 0x10, (0x5000, 0), 0x80000B0E, 4, event="kvm_nested_vmexit")
    host.put(
        "kvm_nested_vmexit_inject",
        "reason: EXCEPTION_NMI ext_inf1: 0x0000000000005000 ext_inf2: 0x0000000000000000 "
        "ext_int: 0x80000b0e ext_int_err: 0x00000004",
    )
    host.entry()
    host.exit("HLT", 0x20, (0, 0))
    host.entry()
    _, (nested, plain) = imported(tmp_path, host.text)
    assert (nested["level"], nested["reflected"], nested["error_code"]) == (2, True, 4)
    assert (plain["level"], plain["reflected"]) == (1, None)


def test_nested_exits_recorded_alone_are_rows(tmp_path: Path) -> None:
    host = Host()
    for event in ("kvm_nested_vmexit", "kvm_nested_vmexit_inject"):
        rip = "rip: 0x0000000000000010 " if event == "kvm_nested_vmexit" else ""
        host.put(
            event,
            f"{rip}reason: EXCEPTION_NMI ext_inf1: 0x0000000000005000 "
            "ext_inf2: 0x0000000000000000 ext_int: 0x80000b0e ext_int_err: 0x00000006",
        )
        host.wait(500_000)
        host.entry()
    _, (seen, reflected) = imported(tmp_path, host.text)
    for row in (seen, reflected):
        assert (row["vector"], row["error_code"], row["level"], row["latency"]) == (
            14,
            6,
            2,
            500_000,
        )
    assert (seen["reflected"], reflected["reflected"]) == (None, True)


# How libtraceevent's plugin for KVM prints events, whatever the kernel has recorded: two bare
# numbers, of which the second is the IDT-vectoring information where entries have a RIP.
def plugin_exit(host: Host, reason: str, info: tuple[int, int] = (0, 0), vcpu: int = 0) -> None:
    host.put(
        "kvm_exit", f"reason {reason} rip 0x10 fault_in+0x10 info {info[0]:x} {info[1]:x}", vcpu
    )


def plugin_entry(host: Host, vcpu: int = 0) -> None:
    host.wait(1000)
    host.put("kvm_entry", f" vcpu {vcpu} rip 0x10", vcpu)


def test_the_plugin_hides_vectors_of_intel(tmp_path: Path) -> None:
    host = Host()
    plugin_exit(host, "EXCEPTION_NMI", (0x5000, 0x80000B0E))
    host.page_fault(0x5000, 6, 0x10)
    plugin_entry(host)
    plugin_exit(host, "EXCEPTION_NMI", (0, 0x80000B0E))
    plugin_entry(host)
    plugin_exit(host, "EXCEPTION_NMI")
    plugin_entry(host)
    plugin_exit(host, "EPT_VIOLATION", (0x181, 0x80000B0E))
    host.page_fault(0x6000, 6, 0x10)
    plugin_entry(host)
    plugin_exit(host, "EXTERNAL_INTERRUPT")
    plugin_entry(host)
    plugin_exit(host, "UNKNOWN (69)")
    plugin_entry(host)
    result, rows = imported(tmp_path, host.text)
    names = ("vector", "type", "error_code", "code_missing", "linear_address", "guest_physical")
    assert [(*(row[name] for name in names), row["depth"]) for row in rows] == [
        (14, 3, 6, None, 0x5000, None, 1),
        (None, None, None, True, None, None, 1),
        (None, None, None, True, None, None, 0),
        (None, None, None, None, None, 0x6000, 1),
        (None, 0, None, None, None, None, 0),
        (None, None, None, None, None, None, 0),
    ]
    assert (result.counters.vectorless, rows[5]["exit_reason"]) == (2, "UNKNOWN (69)")
    assert all(row["latency"] == 1000 for row in rows)


def test_the_plugin_has_names_of_its_own_for_amd(tmp_path: Path) -> None:
    host = Host()
    for reason in ("EXCP_PF", "EXCP_GP", "EXCP_UD", "EXCP_XF", "NPF", "NMI", "INTR", "HLT"):
        plugin_exit(host, f"EXIT_{reason}", (6, 0x5000))
        plugin_entry(host)
    _, rows = imported(tmp_path, host.text)
    names = ("vector", "type", "error_code", "linear_address", "guest_physical")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (14, 3, 6, 0x5000, None),
        (13, 3, 6, None, None),
        (6, 3, None, None, None),
        (19, 3, None, None, None),
        (None, None, None, None, 0x5000),
        (2, 2, None, None, None),
        (None, 0, None, None, None),
        (None, None, None, None, None),
    ]


def test_the_plugin_on_nested_exits(tmp_path: Path) -> None:
    host = Host()
    plugin_exit(host, "EXCEPTION_NMI", (0x5000, 0))
    host.put(
        "kvm_nested_vmexit",
        "<CANT FIND FIELD rip>vcpu 0 reason EXCEPTION_NMI rip 0x10 info1 0x0000000000005000 info2 "
        "0x0000000000000000 intr_info 0x80000b0e error_code 0x00000004 requests 0x0",
    )
    host.put(
        "kvm_nested_vmexit_inject",
        "reason EXCEPTION_NMI info1 5000 info2 0 int_info 80000b0e int_info_err 4",
    )
    plugin_entry(host)
    host.put(
        "kvm_nested_vmexit",
        " rip 10 reason EXCEPTION_NMI info1 6000 info2 80000b0e int_info 80000b0e int_info_err 7",
    )
    plugin_entry(host)
    _, rows = imported(tmp_path, host.text)
    names = ("vector", "error_code", "linear_address", "level", "reflected", "depth", "rip")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (14, 4, 0x5000, 2, True, 0, 0x10),
        (14, 7, 0x6000, 2, None, 1, 0x10),
    ]


def test_numbers_that_are_too_long_are_unreadable(tmp_path: Path) -> None:
    host = Host()
    host.exit("HLT", 1, (0, 0))
    host.entry()
    host.put("kvm_entry", "vcpu " + "9" * 5000)
    host.put("kvm_exit", f"reason HLT rip 0x{'f' * 17} info 0 0")
    host.put("kvm_inj_exception", "0x1ff (0x2)")
    host.put("kvm_inj_virq", "irq " + "1" * 5000)
    for head in ("9" * 5000 + " [000] 1.5", "1 [000] " + "9" * 5000, "1 [000] 99999999999.5"):
        host.lines.append(f" qemu-{head}: kvm_exit: reason HLT rip 0x1 info 0 0")
    host.lines.append("9" * 60000 + ": kvm_exit: reason HLT rip 0x1 info 0 0")
    host.lines.append("1 " * 30000 + "x: kvm_exit: reason HLT rip 0x1 info 0 0")
    host.lines.append("PERF_RECORD_LOST " * 3800)
    result, _ = imported(tmp_path, host.text)
    assert (result.counters.rows, result.counters.unreadable) == (1, 9)


def test_vcpus_are_paired_apart(tmp_path: Path) -> None:
    host = Host(new=False)
    host.exit("HLT", 1, (0, 0), vcpu=0)
    host.wait(1000)
    host.exit("CPUID", 2, (0, 0), vcpu=1)
    host.wait(1000)
    host.entry(vcpu=1)
    host.wait(3000)
    host.entry(vcpu=0)
    _, rows = imported(tmp_path, host.text)
    assert [(row["vcpu"], row["exit_reason"], row["latency"]) for row in rows] == [
        (0, "HLT", 5000),
        (1, "CPUID", 1000),
    ]


def test_guests_are_told_apart_by_their_process(tmp_path: Path) -> None:
    one, two = Host("perf-script"), Host("perf-script", process=9000)
    for host in (one, two):
        host.exit("HLT", 1, (0, 0))
        host.entry()
    _, rows = imported(tmp_path, one.text + two.text)
    assert [(row["vm"], row["vcpu"], row["thread"]) for row in rows] == [(0, 0, 4001), (1, 0, 9001)]


@pytest.mark.parametrize(
    ("marker", "lost"),
    [
        pytest.param("CPU:2 [123 EVENTS DROPPED]", 123, id="trace-cmd"),
        pytest.param("CPU:2 [EVENTS DROPPED]", 0, id="trace-cmd without a number"),
        pytest.param("CPU:2 [LOST 77 EVENTS]", 77, id="ftrace"),
        pytest.param("swapper 0 [002] 1.5: PERF_RECORD_LOST lost 9", 9, id="perf"),
    ],
)
def test_no_latency_across_lost_events(tmp_path: Path, marker: str, lost: int) -> None:
    host = Host()
    host.exit("HLT", 1, (0, 0))
    host.lines.append(marker)
    host.entry()
    host.exit("HLT", 2, (0, 0))
    host.wait(1000)
    host.entry()
    result, rows = imported(tmp_path, host.text)
    assert (result.counters.lost, result.counters.gaps, result.counters.unpaired) == (lost, 1, 1)
    assert [row["latency"] for row in rows] == [None, 1000]


def test_events_lost_on_another_cpu_do_not_matter(tmp_path: Path) -> None:
    host = Host()
    host.exit("HLT", 1, (0, 0))
    host.lines.append("CPU:7 [1 EVENTS DROPPED]")
    host.wait(1000)
    host.entry()
    _, (row,) = imported(tmp_path, host.text)
    assert row["latency"] == 1000


def test_the_header_of_ftrace_tells_what_was_overwritten(tmp_path: Path) -> None:
    host = Host("ftrace")
    host.lines = ["# tracer: nop", "#", "# entries-in-buffer/entries-written: 100/350   #P:8"]
    host.entry()
    host.exit("HLT", 1, (0, 0))
    host.entry()
    result, _ = imported(tmp_path, host.text)
    assert (result.format, result.counters.lost, result.counters.rows) == ("ftrace", 250, 1)


def test_foreign_broken_and_cut_lines_are_counted(tmp_path: Path) -> None:
    host = Host()
    host.lines = ["cpus=8", "", "nonsense"]
    host.put("sched_switch", "prev_comm=x prev_pid=1 ==> next_comm=y")
    host.put("kvm_exit", "reason HLT rip")
    host.put("kvm_page_fault", "address ")
    host.put("kvm_inj_exception", "#QQ")
    host.put("kvm_entry", "")
    host.exit("HLT", 1, (0, 0))
    host.wait(1000)
    host.entry()
    host.exit("CPUID", 1, (0, 0))
    result, rows = imported(tmp_path, host.text[:-9])
    counters = result.counters
    assert (counters.lines, counters.foreign, counters.unreadable) == (11, 3, 4)
    assert (counters.truncated, counters.rows) == (1, 1)
    assert rows[0]["exit_reason"] == "HLT"
    with Trace(result.path) as trace:
        assert trace.run["import-unreadable"] == "4"
        assert trace.run["source"] == "trace.txt"


def test_an_exit_without_an_entry_has_no_latency(tmp_path: Path) -> None:
    host = Host()
    host.exit("HLT", 1, (0, 0))
    host.exit("CPUID", 2, (0, 0))
    result, rows = imported(tmp_path, host.text)
    assert result.counters.unpaired == 2
    assert [row["latency"] for row in rows] == [None, None]


def test_raw_clocks_count_ticks(tmp_path: Path) -> None:
    text = (
        " qemu-1 [000] 5000: kvm_exit: reason HLT rip 0x1 info 0 0\n"
        " qemu-1 [000] 5600: kvm_entry: vcpu 0\n"
    )
    result, (row,) = imported(tmp_path, text)
    assert (result.time_unit, row["time"], row["latency"]) == ("ticks", 5000, 600)


def test_qemu(tmp_path: Path) -> None:
    text = (
        "SMM: enter\n"
        + qemu(0, 14, 2, cpl=3, cr2=0xC0001000)
        + "Servicing hardware INT=0x08\n"
        + qemu(1, 8, 0)
        + qemu(2, 0x80, 0, soft=1, cpl=3)
        + qemu(3, 3, 0, soft=1)
        + "check_exception old: 0xffffffff new 0xe\n"
        + qemu(4, 14, 0, cr2=0)
        + "check_exception old: 0xe new 0xd\n"
        + qemu(5, 8, 0)
        + "check_exception old: 0x8 new 0xd\nTriple fault\n"
    )
    result, rows = imported(tmp_path, text)
    assert (result.format, result.time_unit, result.counters.unreadable) == ("qemu", "events", 0)
    names = ("vector", "type", "error_code", "linear_address", "depth", "exit_reason")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (14, 3, 2, 0xC0001000, 0, None),
        (8, 0, None, None, 0, None),
        (128, 4, None, None, 0, None),
        (3, 6, None, None, 0, None),
        (14, 3, 0, 0, 0, None),
        (8, 3, 0, None, 1, None),
        (None, None, None, None, 0, "TRIPLE_FAULT"),
    ]
    assert (rows[0]["cpl"], rows[0]["cr3"], rows[0]["rip"]) == (3, 0x3000, 0x100010)


def test_qemu_tells_a_triple_fault_without_its_name(tmp_path: Path) -> None:
    checks = "check_exception old: 0xd new 0xd\ncheck_exception old: 0x8 new 0xd\n"
    result, (row,) = imported(tmp_path, "SMM: enter\n" + checks)
    assert (result.format, row["exit_reason"]) == ("qemu", "TRIPLE_FAULT")


def test_bochs(tmp_path: Path) -> None:
    text = (
        bochs(5, "Bochs x86 Emulator 2.7", level="i", device="      ")
        + bochs(1000, "page fault for address 00000000c0001000 @ 0000000000100010")
        + bochs(1000, "exception(0x0e): error_code=0002")
        + bochs(1000, "interrupt(): vector = 0e, TYPE = 3, EXT = 0")
        + bochs(1000, "exception(0x0b): error_code=0073")
        + bochs(2000, "interrupt(): vector = 20, TYPE = 0, EXT = 1", device="CPU1  ")
        + bochs(3000, "exception(0x06): error_code=0000")
        + bochs(4000, "exception(0x0")
        + bochs(5000, "exception(): 3rd (13) exception with no resolution, shutdown", level="e")
    )
    result, rows = imported(tmp_path, text)
    assert (result.format, result.counters.unreadable) == ("bochs", 1)
    names = ("time", "vcpu", "vector", "type", "error_code", "linear_address", "depth")
    assert [tuple(row[name] for name in names) for row in rows[:-1]] == [
        (1000, 0, 14, 3, 2, 0xC0001000, 0),
        (1000, 0, 11, 3, 0x73, None, 1),
        (2000, 1, 32, 0, None, None, 0),
        (3000, 0, 6, 3, None, None, 0),
    ]
    assert rows[-1]["exit_reason"] == "TRIPLE_FAULT"


@pytest.mark.parametrize("new", [True, False], ids=["newer", "older"])
@pytest.mark.parametrize("svm", [False, True], ids=["vmx", "svm"])
def test_a_workload_is_read_to_the_last_row(tmp_path: Path, new: bool, svm: bool) -> None:
    host = Host("perf-script", new, svm)
    result, rows = imported(tmp_path, "".join(workload(host, 1000)))
    exits = [row for row in rows if row["disposition"] == "EXIT"]
    assert (len(exits), len(rows), result.counters.foreign) == (1000, 1400, 0)
    assert [row["latency"] for row in exits] == [1000 + n % 13 * 1000 for n in range(1000)]
    assert sum(row["vector"] == 14 for row in exits) == 400
    assert {row["error_code"] for row in exits if row["vector"] == 14} == {2, 6, 7, 4, 0x14}
    assert [row["sequence"] for row in rows] == list(range(1400))


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    text = "".join(workload(Host(), 300))
    first = imported(tmp_path, text)[0].path.read_bytes()
    assert imported(tmp_path, text)[0].path.read_bytes() == first


def test_memory_stays_flat_and_progress_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trapgate.trace.imports.rows.ROW_GROUP", 4096)
    source = tmp_path / "long.txt"
    host = Host()
    with source.open("w") as file:
        for part in range(3):
            host.time = 1_000_000_000 * (part + 1)
            file.writelines(workload(host, 3000))
    told: list[int] = []
    for _ in range(3):  # Arrow's own pools fill
        import_trace(source, tmp_path / "first.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with source.open("a") as file:
        for part in range(3, 18):
            host.time = 1_000_000_000 * (part + 1)
            file.writelines(workload(host, 3000))
    result = import_trace(source, tmp_path / "second.parquet", progress=told.append)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert result.counters.rows == 18 * 3000 * 7 // 5
    assert after - before < 8 << 10, "kilobytes, for six times the lines"
    assert told == sorted(told)
    assert told[-1] == source.stat().st_size


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "no such file", id="missing"),
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(b"\n\nhello\n", "the first other line: hello", id="foreign"),
        pytest.param(b"\x00\xff\x1b[31m" * 99, "contains no event of a guest", id="binary"),
        pytest.param(
            b" qemu-1 [000] 1.5: kvm_exit: reason HLT\n",
            "kvm_exit: reason HLT;",
            id="an event without fields",
        ),
        pytest.param(
            b" qemu-1 [000] 1.5: kvm_entry: vcpu 0\n", "no event of a guest", id="entries alone"
        ),
    ],
)
def test_nothing_usable_is_told_in_one_line(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    source, out = tmp_path / "trace.txt", tmp_path / "out.parquet"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(TraceError) as error:
        import_trace(source, out)
    assert problem in str(error.value)
    assert str(error.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["trace.txt"] * (content is not None)


def test_an_older_output_survives_a_failed_import(tmp_path: Path) -> None:
    source, out = tmp_path / "trace.txt", tmp_path / "out.parquet"
    out.write_text("precious")
    source.write_text("hello\n")
    with pytest.raises(TraceError):
        import_trace(source, out)
    assert out.read_text() == "precious"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    source = tmp_path / "trace.txt"
    source.write_text("".join(workload(Host(), 3)))
    for out in (tmp_path, tmp_path / "absent" / "out.parquet"):
        with pytest.raises(TraceError, match="cannot write the trace"):
            import_trace(source, out)


def test_misuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format is 'xml'"):
        import_trace(tmp_path, tmp_path, format="xml")
