"""Policies on exits that are no exceptions, against the processor's own functions row by row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.trace.foreign_text import Host
from trapgate.cli import app
from trapgate.decision.decide import REASONS
from trapgate.errors import VmcsFileError
from trapgate.instructions import intercepts
from trapgate.replay import Policy, replay
from trapgate.replay.bursts import burst_interval
from trapgate.replay.control_table import CONTROLS, control_of
from trapgate.replay.controls import by_control
from trapgate.replay.needs import with_lost_exceptions
from trapgate.sdm.controls import PrimaryControl
from trapgate.trace import Trace
from trapgate.trace.imports import import_trace
from trapgate.vmcs.file import parse_settings
from trapgate.vmcs.vmcs import Vmcs

pytest.importorskip("polars")

PRIMARY = PrimaryControl
PORTS = (0x60, 0x3F8, 0x3FB, 0x7FFF, 0x8000, 0xFFFF)
MSRS = (0x10, 0x174, 0x6E0, 0x830, 0x1FFF, 0x2000, 0xC0000080, 0xC0000101, 0x40000000)
PLAIN = {
    "HLT": PRIMARY.HLT_EXITING,
    "INVLPG": PRIMARY.INVLPG_EXITING,
    "RDTSC": PRIMARY.RDTSC_EXITING,
    "RDPMC": PRIMARY.RDPMC_EXITING,
    "MWAIT_INSTRUCTION": PRIMARY.MWAIT_EXITING,
    "MONITOR_INSTRUCTION": PRIMARY.MONITOR_EXITING,
    "PAUSE_INSTRUCTION": PRIMARY.PAUSE_EXITING,
    "DR_ACCESS": PRIMARY.MOV_DR_EXITING,
}


def recorded(tmp_path: Path, count: int = 600, seed: int = 1) -> Path:
    """A host's exits of all kinds; of one in ten KVM did not say what was accessed."""
    random = np.random.default_rng(seed)
    host = Host()

    def exit_(reason: str, info1: int = 0, told: tuple[str, str] | None = None) -> None:
        host.exit(reason, 0x1000, (info1, 0))
        if told is not None and random.random() < 0.9:
            host.put(*told)
        host.wait(int(random.integers(1, 9)) * 1000)
        host.put("kvm_entry", "vcpu 0, rip 0x1000")

    for _ in range(count):
        host.wait(10_000)
        value = int(random.choice([0x11, 0x31, 0x80050033, 0x80050013, 0x2000, 0x3000]))
        match int(random.integers(0, 7)):
            case 0:
                exit_(str(random.choice(list(PLAIN))))
            case 1:
                size = int(random.choice([1, 2, 4]))
                exit_("IO_INSTRUCTION", int(random.choice(PORTS)) << 16 | size - 1)
            case 2:
                way = str(random.choice(["read", "write"]))
                body = f"msr_{way} {int(random.choice(MSRS)):x} = 0x{value:x}"
                exit_(f"MSR_{way.upper()}", 0, ("kvm_msr", body))
            case 3:
                number = int(random.choice([0, 3, 4]))
                exit_("CR_ACCESS", number, ("kvm_cr", f"cr_write {number} = 0x{value:x}"))
            case 4:
                number = int(random.choice([3, 8]))
                exit_("CR_ACCESS", 0x10 | number, ("kvm_cr", f"cr_read {number} = 0x{value:x}"))
            case 5:
                exit_("EPT_VIOLATION", int(random.choice([0x181, 0x182, 0x18A, 0x1AA])))
            case _:
                exit_(str(random.choice(["CPUID", "VMCALL", "TPR_BELOW_THRESHOLD"])))
    (tmp_path / "exits.txt").write_text(host.text)
    return import_trace(tmp_path / "exits.txt", tmp_path / "exits.parquet").path


def stretch(numbers: Any, low: int) -> list[str]:
    return [f"{n:#x}-{n + low:#x}" for n in sorted(int(n) for n in numbers)]


def drawn(random: np.random.Generator) -> dict[str, Any]:
    """A policy that says all that the processor's functions need."""
    bits = int(random.integers(0, 1 << 32))
    bits &= ~(PRIMARY.UNCONDITIONAL_IO_EXITING | PRIMARY.SECONDARY_CONTROLS)
    bits |= PRIMARY.USE_IO_BITMAPS | PRIMARY.USE_MSR_BITMAPS
    return {
        "bits": bits,
        "ports": random.choice(PORTS[:-1], 2, replace=False).tolist(),
        "msr_reads": random.choice(MSRS[:-1], 3, replace=False).tolist(),
        "msr_writes": random.choice(MSRS[:-1], 3, replace=False).tolist(),
        "cr0": int(random.choice([0, 0x20, 0x80000000])),
        "cr4": int(random.choice([0, 0x20, 0x2000])),
        "targets": random.choice([0x2000, 0x3000, 0x4000], 2).tolist(),
    }


def toml(given: dict[str, Any]) -> str:
    return f"""
profile = "vt-x"
[fields]
PRIMARY_PROCESSOR_BASED_CONTROLS = {given["bits"]:#x}
CR0_GUEST_HOST_MASK = {given["cr0"]:#x}
CR4_GUEST_HOST_MASK = {given["cr4"]:#x}
CR3_TARGET_COUNT = 2
CR3_TARGET_VALUE_0 = {given["targets"][0]:#x}
CR3_TARGET_VALUE_1 = {given["targets"][1]:#x}
[intercepts]
ports = {json.dumps(stretch(given["ports"], 0))}
msr_reads = {json.dumps(stretch(given["msr_reads"], 0))}
msr_writes = {json.dumps(stretch(given["msr_writes"], 0))}
"""


def machine(given: dict[str, Any]) -> tuple[Vmcs, Any]:
    """A VMCS and memory with its bitmaps: ports at 0, MSRs at 2000H (SDM, "MSR-Bitmap Address")."""
    memory = np.zeros(0x3000 // 8, np.int64)
    octets = memory.view(np.uint8)
    for port in given["ports"]:
        octets[port >> 3] |= 1 << (port & 7)
    for name, base in (("msr_reads", 0x2000), ("msr_writes", 0x2800)):
        for index in given[name]:
            if index <= 0x1FFF or 0xC0000000 <= index <= 0xC0001FFF:
                high = 1024 if index >> 30 else 0
                octets[base + high + ((index & 0x1FFF) >> 3)] |= 1 << (index & 7)
    vmcs = Vmcs("vt-x")
    vmcs["GUEST_CR0"] = 0x31
    vmcs.set_flat_segments(32)
    vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] = given["bits"]
    vmcs["IO_BITMAP_B_ADDRESS"] = 0x1000
    vmcs["MSR_BITMAP_ADDRESS"] = 0x2000
    vmcs["CR0_GUEST_HOST_MASK"], vmcs["CR4_GUEST_HOST_MASK"] = given["cr0"], given["cr4"]
    vmcs["CR3_TARGET_COUNT"] = 2
    for number, target in enumerate(given["targets"]):
        vmcs[f"CR3_TARGET_VALUE_{number}"] = target
    return vmcs, memory


def exits(row: dict[str, Any], vmcs: Vmcs, memory: Any, given: dict[str, Any]) -> bool | None:
    """Whether the processor exits for what a row is about; None if the row does not say enough."""
    word, operand, data = row["exit_reason"], row["operand"], row["data"]
    qualification = row["qualification"]
    if word in PLAIN:
        return bool(given["bits"] & PLAIN[word])
    if word == "IO_INSTRUCTION":
        return bool(intercepts.io_exits(vmcs.cells, memory, operand, qualification % 8 + 1))
    if word.startswith("MSR_"):
        if operand is None:
            return None
        return bool(intercepts.msr_exits(vmcs.cells, memory, operand, int(word == "MSR_WRITE")))
    if qualification >> 4:
        found = intercepts.intercept_mov_from_cr(vmcs.cells, qualification & 15, 0, 3)
        return bool(found == intercepts.EXITED)
    if operand == 3:
        if not given["bits"] & PRIMARY.CR3_LOAD_EXITING:
            return False
    elif not given[f"cr{operand}"]:
        return False
    elif row["old_value"] is None:
        return None
    else:
        vmcs[f"CR{operand}_READ_SHADOW"] = row["old_value"]
    if data is None:
        return None
    return bool(
        intercepts.intercept_mov_to_cr(vmcs.cells, operand, 0, data, 3) == intercepts.EXITED
    )


@pytest.mark.parametrize("seed", range(6))
def test_as_the_processor_judges(tmp_path: Path, seed: int) -> None:
    path = recorded(tmp_path, seed=seed)
    with Trace(path) as trace:
        rows = trace.table().to_pylist()
    random = np.random.default_rng(seed)
    given = [drawn(random) for _ in range(3)]
    policies = [
        Policy.from_settings(f"p{n}", parse_settings(toml(one))) for n, one in enumerate(given)
    ]
    outcomes = replay([path], policies).outcomes
    for one, outcome in zip(given, outcomes, strict=True):
        vmcs, memory = machine(one)
        counts: Counter[str] = Counter()
        time = 0
        for row in rows:
            word = row["exit_reason"]
            if word in {"CPUID", "VMCALL", "EPT_VIOLATION"}:
                continue
            if word == "TPR_BELOW_THRESHOLD":
                told: bool | None = False
                if one["bits"] & PRIMARY.TPR_SHADOW:
                    continue
            else:
                told = exits(row, vmcs, memory, one)
            counts["recorded"] += 1
            counts["unjudged"] += told is None
            counts["saved"] += told is False
            time += row["latency"] if told is False else 0
        assert counts["unjudged"] > 0
        assert counts["saved"] > 0
        assert outcome.unjudged == outcome.unjudged_exits == counts["unjudged"]
        assert outcome.saved == counts["saved"]
        assert outcome.saved_range == (counts["saved"], counts["saved"] + counts["unjudged"])
        assert outcome.recorded_exits == counts["recorded"] - counts["unjudged"]
        assert outcome.time.estimate == time
        assert outcome.rows == len(rows)
        assert outcome.outside == len(rows) - counts["recorded"]
        assert sum(reason.saved for reason in outcome.reasons) == outcome.saved
    alone = [replay([path], [policy]).outcomes[0] for policy in policies]
    assert alone == list(outcomes)


HEAD = 'profile = "vt-x"\n'


def outcome_of(path: Path, text: str) -> Any:
    return replay([path], [Policy.from_settings("p", parse_settings(HEAD + text))]).outcomes[0]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return recorded(tmp_path)


def test_what_is_not_named_stays(path: Path) -> None:
    outcome = outcome_of(path, '[controls]\nprimary = ["-HLT_EXITING"]\n')
    (only,) = outcome.reasons
    assert (only.reason, only.saved, only.lost) == ("HLT", only.recorded, 0)
    assert outcome.saved == only.recorded > 0
    assert outcome.outside_exits == outcome.rows - only.recorded
    # A file that says nothing of exceptions leaves them alone.
    assert not Policy.from_settings(
        "p", parse_settings(HEAD + '[controls]\nprimary = ["-HLT_EXITING"]\n')
    ).judges_exceptions


def test_losses_by_reason(path: Path) -> None:
    outcome = outcome_of(path, "[intercepts]\nmsr_writes = []\nmsr_reads = []\nports = []\n")
    with Trace(path) as trace:
        rows = trace.table().to_pylist()
    mine = [r for r in rows if r["exit_reason"] == "MSR_WRITE"]
    covered = [r for r in mine if r["operand"] is not None and r["operand"] not in MSRS[5:6]]
    covered = [r for r in covered if r["operand"] != 0x40000000]
    switched = [r for r in covered if r["operand"] in {0x174, 0xC0000101}]
    found = {one.reason: one for one in outcome.reasons}
    writes = found["MSR_WRITE"]
    assert (writes.saved, writes.lost) == (len(covered), len(covered) - len(switched))
    assert writes.unjudged == sum(r["operand"] is None for r in mine) > 0
    assert "record kvm_msr" in writes.unknown
    ports = found["IO_INSTRUCTION"]
    assert ports.lost == ports.saved > 0
    # Beyond the last port an access always exits (SDM, "Instructions That Cause VM Exits").
    assert ports.recorded > ports.saved


def test_pages_of_the_second_stage(path: Path) -> None:
    with Trace(path) as trace:
        access = Counter(r["access"] for r in trace.table().to_pylist() if r["access"])
    protected = access["write to r-- page"] + access["write to r-x page"]
    absent = access["read to absent page"] + access["write to absent page"]
    assert protected > 0
    assert absent > 0
    one = outcome_of(path, "[intercepts]\nwrite_protection = false\n")
    assert (one.saved, one.reasons[0].lost) == (protected, protected)
    assert outcome_of(path, "[intercepts]\nlate_mapping = false\n").saved == absent
    assert outcome_of(path, "[intercepts]\nlate_mapping = true\n").saved == 0
    everything = outcome_of(path, '[controls]\nsecondary = ["-EPT"]\n')
    assert everything.saved == sum(access.values())


def test_what_no_trace_tells(path: Path, tmp_path: Path) -> None:
    loops = outcome_of(path, "[fields]\nPLE_WINDOW = 8192\n")
    (pause,) = loops.reasons
    assert (pause.saved, pause.unjudged) == (0, pause.recorded)
    assert "how long each loop" in pause.unknown
    host = Host()
    for window in (4096, 8192, 16384):
        host.exit("PAUSE_INSTRUCTION", 0x10, (0, 0))
        host.put("kvm_ple_window_update", f"vcpu 0 old {window} new {2 * window} (growed)")
        host.wait(1000)
        host.put("kvm_entry", "vcpu 0, rip 0x10")
    (tmp_path / "w.txt").write_text(host.text)
    windows = import_trace(tmp_path / "w.txt", tmp_path / "w.parquet").path
    told = [
        (one.recorded, one.saved, one.unjudged)
        for size in (4096, 8192, 1 << 20)
        for one in outcome_of(windows, f"[fields]\nPLE_WINDOW = {size}\n").reasons
    ]
    assert told == [(3, 0, 0), (3, 0, 1), (3, 0, 3)]
    gap = outcome_of(windows, "[fields]\nPLE_WINDOW = 4096\nPLE_GAP = 64\n")
    assert gap.unjudged == 3
    assert outcome_of(path, "[fields]\nTPR_THRESHOLD = 5\n").saved_range[0] == 0
    assert outcome_of(path, "[fields]\nTPR_THRESHOLD = 0\n").saved > 0
    unknown = outcome_of(path, '[controls]\nprimary = ["USE_IO_BITMAPS"]\n')
    assert unknown.unjudged == unknown.reasons[0].recorded > 0


def test_what_the_hypervisor_above_was_given_stays(tmp_path: Path) -> None:
    host = Host()
    for reflected in (True, False):
        host.exit("HLT", 0x10, (0, 0))
        if reflected:
            host.exit("HLT", 0x10, (0, 0), event="kvm_nested_vmexit")
            host.put("kvm_nested_vmexit_inject", "reason: HLT ext_inf1: 0x0 ext_inf2: 0x0")
        host.wait(1000)
        host.put("kvm_entry", "vcpu 0, rip 0x10")
    (tmp_path / "n.txt").write_text(host.text)
    path = import_trace(tmp_path / "n.txt", tmp_path / "n.parquet").path
    outcome = outcome_of(path, '[controls]\nprimary = ["-HLT_EXITING"]\n')
    assert (outcome.recorded_exits, outcome.saved, outcome.time.estimate) == (2, 1, 1000)


def test_bursts_count_all_that_is_saved(path: Path) -> None:
    policy = Policy.from_settings(
        "p", parse_settings(HEAD + '[controls]\nprimary = ["-HLT_EXITING"]\n')
    )
    interval = burst_interval([path], policy)
    assert interval is not None
    (outcome,) = replay([path], [policy]).outcomes
    assert interval[0] < outcome.time.estimate < interval[1]
    low, high = outcome.time.of_two_recordings
    assert high - low == pytest.approx(2**0.5 * (outcome.time.high - outcome.time.low))
    assert "1.41" in outcome.as_json()["time"]["interval"]


def test_controls_take_no_policy(path: Path) -> None:
    refused = CliRunner().invoke(app, ["replay", str(path), "--controls", "--policy", "x.toml"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ports = [65536]", "65536 is not a number below 0x10000"),
        ('ports = ["9-5"]', "'9-5' is not a number below"),
        ('ports = ["x"]', "'x' is not a number below"),
        ("ports = 5", "must be a list"),
        ("ports = [true]", "True is not a number below"),
        ("prots = []", "did you mean ports"),
        ("late_mapping = 1", "1 is neither true nor false"),
    ],
)
def test_intercepts_that_are_none(text: str, words: str) -> None:
    with pytest.raises(VmcsFileError, match=words):
        parse_settings(f"[intercepts]\n{text}\n")


def test_a_processor_takes_no_intercepts() -> None:
    with pytest.raises(VmcsFileError, match="only `trapgate replay` reads it"):
        Vmcs("vt-x").apply(parse_settings("[intercepts]\nports = []\n"))


def test_every_pattern_is_met_first_by_its_own_control() -> None:
    for control in CONTROLS:
        for pattern in control.reasons:
            word, _, detail = pattern.replace("*", "").partition(" ")
            assert control_of(word, detail).name == control.name, pattern
    assert control_of("EPT_VIOLATION FAILED_VMENTRY").name.startswith("EPT entries")
    assert control_of("CPUID").name == "none: always exits"


def test_every_reason_of_our_own_has_its_control() -> None:
    told = {name: control_of(name).name for name in REASONS.values()}
    always = {"TASK_GATE", "TRIPLE_FAULT", "OTHER_EVENT"}
    no_exits = {
        "SOFTWARE_INTERRUPT",
        "INJECTED",
        "OWN_FRAME",
        "NO_LINK",
        "KNOWN_TABLE",
        "OWN_TABLE",
        "EMPTY_TABLE",
    }
    no_exits |= {name for name in told if name.startswith("FAULT_FILTER_") and "ALONE" not in name}
    nothing = {name for name, control in told.items() if control == "none: always exits"}
    assert nothing == always | no_exits
    assert told["FIGURE_3_MATCH"] == told["MEMBER"] == told["CONTROL_BIT"]


def test_the_commands(path: Path, tmp_path: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text(HEAD + '[controls]\nprimary = ["-HLT_EXITING"]\n[intercepts]\nports = []\n')
    run = CliRunner()
    shown = run.invoke(app, ["replay", str(path), "--policy", str(policy)])
    assert shown.exit_code == 0, shown.stderr
    assert "HLT exiting" in shown.stdout
    assert "the devices behind those ports" in " ".join(shown.stdout.split())
    page = tmp_path / "page.html"
    asked = ["replay", str(path), "--policy", str(policy), "--html", str(page), "--markdown"]
    shown = run.invoke(app, asked)
    assert "| HLT | HLT exiting |" in shown.stdout
    assert "exits by reason" in page.read_text()
    shown = run.invoke(app, ["replay", str(path), "--controls", "--html", str(page), "--markdown"])
    assert shown.exit_code == 0, shown.stderr
    assert "| MSR bitmaps | MSR 0x6e0 (IA32_TSC_DEADLINE) |" in shown.stdout
    assert "I/O bitmaps" in page.read_text()
    assert "CR3-load exiting" in by_control([path])._repr_html_()
    result = replay([path], [Policy.load(policy)])
    assert "HLT exiting" in result._repr_html_()
    assert "HLT_EXITING off, ports none" in Policy.load(policy)._repr_html_()


def test_exceptions_without_codes_give_a_range(tmp_path: Path) -> None:
    """Old kernels do not record codes of exits: policies that need them answer with a range."""
    host = Host(new=False)
    for number in range(8):
        host.wait(1000)
        host.exception(14, 7, 0x10, number << 12)
    (tmp_path / "old.txt").write_text(host.text)
    path = import_trace(tmp_path / "old.txt", tmp_path / "old.parquet").path
    with Trace(path) as trace:
        rows = trace.table().to_pylist()
    assert [(r["vector"], r["error_code"], r["code_missing"]) for r in rows] == [
        (14, None, True)
    ] * 8

    def judged(mask: int, match: int, vectors: tuple[int, ...] = (14,)) -> tuple[int, int, int]:
        (one,) = replay([path], [Policy.of("p", vectors=vectors, mask=mask, match=match)]).outcomes
        return (one.judged, *one.saved_range)

    assert judged(3, 3) == (0, 0, 8)
    assert judged(0, 0) == (8, 0, 0)
    # No code matches: the opposite of bit 14 decides, whatever the codes were.
    assert judged(0, 1) == (8, 8, 8)
    assert judged(4, 5) == (8, 8, 8)
    assert judged(0, 1, ()) == (8, 0, 0)
    several = [Policy.of(f"{n}", vectors=[14], mask=n, match=1) for n in (0, 1, 2)]
    together = [one.saved_range for one in replay([path], several).outcomes]
    assert together == [(8, 8), (0, 8), (8, 8)]


def test_exceptions_that_the_vmm_needed(tmp_path: Path) -> None:
    """What is given back at once nobody misses; what the hypervisor above was given is its own."""
    host = Host()
    for number in range(12):
        host.wait(1000)
        host.exception(14, 7 if number % 2 else 0, 0x10, 0x1000)
        if number % 3 == 0:
            host.inject(14, 7)
        if number == 1:
            host.exit("EXCEPTION_NMI", 0x10, (0x1000, 0), 0x80000B0E, 7, event="kvm_nested_vmexit")
            host.put(
                "kvm_nested_vmexit_inject", "reason: EXCEPTION_NMI ext_inf1: 0x0 ext_inf2: 0x0"
            )
        host.wait(1000)
        host.put("kvm_entry", "vcpu 0, rip 0x10")
    host.exception(6, 0, 0x10)
    (tmp_path / "e.txt").write_text(host.text)
    path = import_trace(tmp_path / "e.txt", tmp_path / "e.parquet").path
    policies = [Policy.of("writes", vectors=[14], mask=1, match=1), Policy.of("none")]
    first = replay([path], policies)
    result = with_lost_exceptions(first, [path], policies)
    told = [
        [(one.reason, one.recorded, one.saved, one.lost) for one in outcome.reasons]
        for outcome in result.outcomes
    ]
    # Codes of 0 are the even ones; of those 0 and 6 were given back.
    assert told == [
        [("#PF", 11, 6, 4), ("#UD", 1, 1, 1)],
        [("#PF", 11, 11, 7), ("#UD", 1, 1, 1)],
    ]
    assert [one.saved for one in result.outcomes] == [one.saved for one in first.outcomes]
    assert [sum(r.saved for r in one.reasons) for one in result.outcomes] == [7, 12]
    assert [one.saved for one in first.outcomes] == [7, 12]
    (tmp_path / "p.toml").write_text('profile = "vt-x"\n[fields]\nEXCEPTION_BITMAP = 0\n')
    command = ["replay", str(path), "--policy", str(tmp_path / "p.toml"), "--lost"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.stderr
    assert "#UD" in shown.stdout
    refused = CliRunner().invoke(app, [*command, "--level", "1"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)


def test_an_untimed_trace_knows_what_it_lacks(tmp_path: Path) -> None:
    host = Host(new=False)
    host.exception(14, 7, 0x10, 0x1000)
    text = "".join(line.partition(": ")[2] + "\n" for line in host.text.splitlines())
    (tmp_path / "u.txt").write_text(text)
    result = import_trace(tmp_path / "u.txt", tmp_path / "u.parquet")
    assert result.time_unit == "events"
    (one,) = replay([result.path], [Policy.of("p", vectors=[14], mask=3, match=3)]).outcomes
    assert (one.judged, one.unjudged, one.saved) == (0, 1, 0)
