"""The bundled hypervisor: x86 code that runs the bundled guest, here and on a peer with VMX."""

import json
import shutil
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import bochs
from benchmarks.floppy import multiboot_disk
from benchmarks.guests import fault_loop, multiboot_guest
from benchmarks.measure import SkipSide
from trapgate import guests
from trapgate.cli import app
from trapgate.demo import x86 as demo_x86
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

EXPECTED = Path(__file__).with_name("bundled_expected.txt").read_text()
QEMU = "qemu-system-i386"
GAVE_UP = 3
WORKLOADS = [workload.name for workload in guests.WORKLOADS]
POLICIES = [policy.name for policy in guests.POLICIES]
HEADER = struct.pack("<III", 0x1BADB002, 0, -0x1BADB002 & 0xFFFFFFFF)


def run(
    line: str, *, module: bytes | None = None, engine: str = "auto"
) -> tuple[guests.HypervisorOutput, Stop, int]:
    """Run the hypervisor with a module (the bundled guest): output, stop, instructions."""
    vm = VirtualMachine(demo_x86.MEMORY, engine=engine)
    image = parse_guest(
        guests.hypervisor(),
        file="hypervisor.elf",
        memory=demo_x86.MEMORY,
        append=line,
        initrd=guests.image() if module is None else module,
    )
    vm.load(image)
    stop = vm.run(max_instructions=2_000_000_000)
    return guests.hypervisor_output(bytes(vm.output)), stop, vm.summary().instructions


def left_with(stop: Stop) -> int:
    """The byte that went to the debug-exit port."""
    assert stop.end is End.DEBUG_EXIT, stop
    return int(stop.message.removeprefix("the guest exited with status "))


@cache
def alone(line: str) -> str:
    """What the guest prints under the VMM in Python."""
    vm = VirtualMachine(demo_x86.MEMORY)
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=demo_x86.MEMORY, append=line))
    assert vm.run(max_instructions=2_000_000_000).status == 0
    return vm.output.decode()


def flat_guest(code: bytes) -> bytes:
    """A multiboot ELF of one segment at 1 MiB that begins with `code`, paging off."""
    at, entry = 0x100000, 0x100000 + len(HEADER)
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    header = identity + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    body = HEADER + code
    segment = struct.pack("<8I", 1, 0x80, at, at, len(body), len(body), 7, 0x1000)
    return (header + segment).ljust(0x80, b"\0") + body


def test_image_is_a_small_multiboot_elf() -> None:
    image = guests.hypervisor()
    assert len(image) < 64 * 1024
    assert image[:6] == b"\x7fELF\x01\x01"
    assert image.index(HEADER[:4]) < 8192


def test_output_is_taken_apart() -> None:
    output = guests.hypervisor_output(b"hypervisor: hello 7\none\nhypervisor: 12 exits\ntwo\n")
    assert output.guest == b"one\ntwo\n"
    assert output.lines == ("hello 7", "12 exits")
    assert output.counts == {"exits": 12}


@pytest.mark.parametrize("workload", WORKLOADS)
def test_the_guest_prints_the_same_under_both_vmms(workload: str) -> None:
    line = guests.command_line(workload)
    output, stop, _ = run(line)
    assert output.guest.decode() == alone(line)
    assert stop.status == 0
    assert "the guest exited with status 0" in output.lines


def test_policies_differ_in_exits_alone() -> None:
    line = guests.command_line("fork", "faults")
    results = {policy: run(f"policy={policy} {line}")[0] for policy in POLICIES}
    assert {output.guest.decode() for output in results.values()} == {alone(line)}
    every, faults, match = (results[policy].counts for policy in POLICIES)
    assert every["exits"] > faults["exits"] > match["exits"]
    assert every["exceptions 6 given to the guest"] == 2  # UD2 in ring 3 and in ring 0
    assert "exceptions 6 given to the guest" not in faults
    # What match leaves to the guest are faults on absent pages; the shadow needs the rest.
    assert every["translations filled in"] == match["translations filled in"]
    assert match["exceptions 14 given to the guest"] < faults["exceptions 14 given to the guest"]


@pytest.mark.parametrize("policy", POLICIES)
def test_exits_through_the_idt_print_the_same(policy: str) -> None:
    # The stubs take time: with a timer its interrupts would come at other instructions.
    line = f"policy={policy} {guests.command_line('fork', 'faults', timer=False)}"
    straight, stop, _ = run(line)
    through, also, _ = run(f"exits=idt {line}")
    assert (through, also.status) == (straight, stop.status)
    assert through.counts["exits"] > 100
    ticking = guests.command_line("fork")
    assert run(f"exits=idt {ticking}")[0].guest.decode() == alone(ticking)


def test_a_run_is_the_same_every_time() -> None:
    line = f"{guests.command_line('swap')} inject=pf@500"
    assert run(line) == run(line)


@pytest.mark.native
def test_both_engines_agree() -> None:
    line = guests.command_line("faults")
    native, portable = (run(f"policy=all {line}", engine=e)[0] for e in ("native", "portable"))
    assert native == portable


def test_trapgate_run_takes_the_guest_as_initrd() -> None:
    images = [str(guests.HYPERVISOR_PATH), "--initrd", str(guests.IMAGE_PATH)]
    command = [sys.executable, "-m", "trapgate", "run", *images, "--append", "workload=faults"]
    done = subprocess.run(
        [*command, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["message"] == "the guest exited with status 0"
    # Two levels: the hypervisor's own faults, and those of its guest.
    assert answer["x86_vmm"]["entries"] > 100
    assert "14" in answer["x86_vmm"]["faults"]
    assert "14" not in answer["faults"]


def test_a_spurious_page_fault_goes_unnoticed() -> None:
    line = guests.command_line("fork")
    output, stop, _ = run(f"{line} inject=pf@2000,pf@3000")
    assert output.guest.decode() == alone(line)
    assert stop.status == 0
    injected = [words for words in output.lines if words.startswith("injected vector 14")]
    assert len(injected) == 2
    assert all(words.endswith("ring 3") for words in injected)


@pytest.mark.parametrize(
    ("fault", "panic"),
    [
        ("nmi", "vector 2 error 00000000"),
        ("gp", "vector 13 error 00000000"),
        ("gp:0x18", "vector 13 error 00000018"),
        ("12:8", "vector 12 error 00000008"),
        ("6", "vector 6 error 00000000"),
        ("9", "vector 9 error 00000000"),
    ],
)
def test_an_injected_fault_reaches_the_kernel(fault: str, panic: str) -> None:
    """At exit 50 the guest is building its first process, in ring 0."""
    output, stop, _ = run(f"workload=demand timer=off inject={fault}@50")
    assert f"panic: unexpected exception in the kernel: {panic} eip" in output.guest.decode()
    assert left_with(stop) == 2
    assert any(words.startswith("injected vector") for words in output.lines)


def test_an_injection_that_did_not_come_is_said_so() -> None:
    output, _, _ = run("workload=faults timer=off inject=nmi@1000000")
    assert "not injected: vector 2, which was to come at exit 1000000" in output.lines


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("policy=none", "bad option 'policy=none'; valid policies: all, pf, match"),
        ("exits=id", "bad option 'exits=id'; exits come to an entry point (exits=entry) or"),
        ("inject=pf", "bad option 'inject=pf'; write inject=WHAT@EXIT"),
        ("inject=pf@0", "bad option 'inject=pf@0'"),
        ("inject=6:1@5", "bad option 'inject=6:1@5'"),
        ("inject=256@5", "bad option 'inject=256@5'"),
        ("inject=6@99999999999", "bad option 'inject=6@99999999999'"),
        ("inject=" + ",".join(["6@1"] * 9), "bad option 'inject="),
        ("workload=" + "x" * 2000, "the command line is longer than 1024 bytes"),
    ],
)
def test_bad_options_are_refused(line: str, says: str) -> None:
    output, stop, _ = run(line)
    assert output.lines[0].startswith(says)
    assert output.guest == b""
    assert left_with(stop) == GAVE_UP


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (b"MZ" * 100, "not an ELF for the 386"),
        (guests.image()[:60], "its program headers are not in the file"),
        (guests.image()[:0x3000], "a segment is not in the file"),
        (guests.image().replace(HEADER[:4], bytes(4)), "no header in the first 8 KiB"),
    ],
)
def test_other_modules_are_refused(module: bytes, says: str) -> None:
    output, stop, _ = run("", module=module)
    assert output.lines[0].endswith(says)
    assert left_with(stop) == GAVE_UP


@pytest.mark.parametrize(
    ("code", "says", "status"),
    [
        ("f4", "the guest has halted", 0),
        ("0f0b", "triple fault of the guest at EIP 0010000C", GAVE_UP),
        ("b910000000 0f32", "triple fault of the guest", GAVE_UP),  # RDMSR: #GP, no IDT
        ("0f01c1", "triple fault of the guest", GAVE_UP),  # VMCALL: #UD
        ("a100000040", "the guest, paging off, touches 40000000, where it has no memory", GAVE_UP),
        ("b807000000 e6f4", "the guest exited with status 7", 7),
        ("0f20c0 24fe 0f22c0", "the guest goes to real mode", GAVE_UP),
        ("0f20c0 0d00000080 0f22c0", "the guest's paging is without write protection", GAVE_UP),
    ],
)
def test_how_guests_end(code: str, says: str, status: int) -> None:
    output, stop, _ = run("", module=flat_guest(bytes.fromhex(code)))
    assert any(words.startswith(says) for words in output.lines)
    assert left_with(stop) == status


def test_large_pages_are_shadowed() -> None:
    """The loops' guest maps itself by one page of 4 MiB; its faults are on absent pages."""
    output, stop, _ = run("policy=match", module=multiboot_guest(fault_loop(3000)))
    assert stop.status == 0
    assert output.counts["exits"] < 10
    output, stop, _ = run("policy=pf", module=multiboot_guest(fault_loop(3000)))
    assert stop.status == 0
    assert output.counts["exceptions 14 given to the guest"] == 3000


def test_without_a_module_it_says_what_it_wants() -> None:
    vm = VirtualMachine(demo_x86.MEMORY)
    vm.load(parse_guest(guests.hypervisor(), file="hypervisor.elf", memory=demo_x86.MEMORY))
    assert left_with(vm.run(max_instructions=10_000_000)) == GAVE_UP
    assert b"hypervisor: no guest: give me a multiboot kernel as a module" in vm.output


def test_the_demo_shows_both_vmms() -> None:
    arguments = ["demo", "--vmm", "x86", "--workload", "fork"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "The guest's output was the same under both VMMs." in result.output
    runs = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert [run["policy"] for run in runs] == [None, *POLICIES]
    assert len({run["output_sha256_12"] for run in runs}) == 1


def test_the_demo_refuses_a_report_about_the_x86_vmm(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--vmm", "x86", "--report", str(tmp_path / "page")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def on_bochs(line: str) -> guests.HypervisorOutput:
    disk = multiboot_disk(
        guests.hypervisor(), guests.image(), f"hypervisor.elf {line}", memory=bochs.MEMORY
    )
    try:
        _, serial = bochs.run(disk)
    except SkipSide as why:
        pytest.skip(f"Bochs: {why}")
    return guests.hypervisor_output(serial)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_bochs_agrees(policy: str) -> None:
    """Bochs' VMX was written by others. Without a timer every exit and every edit is the same."""
    output = on_bochs(f"policy={policy} timer=off")
    # #AC is optional; Bochs raises it.
    different = ("timer on", "fault #AC")
    printed, expected = (
        [line for line in text.splitlines() if not line.startswith(different)]
        for text in (output.guest.decode(), EXPECTED)
    )
    assert printed == expected
    here, _, _ = run(f"policy={policy} timer=off")
    ignored = {"exceptions 17 given to the guest", "exits", "exception or NMI"}  # #AC there only
    assert {k: v for k, v in output.counts.items() if k not in ignored} == {
        k: v for k, v in here.counts.items() if k not in ignored
    }


@pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")
def test_without_vmx_it_says_so() -> None:
    machine = [QEMU, "-accel", "tcg", "-nodefaults", "-no-reboot", "-display", "none", "-m", "32M"]
    devices = ["-serial", "stdio", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    images = ["-kernel", str(guests.HYPERVISOR_PATH), "-initrd", str(guests.IMAGE_PATH)]
    done = subprocess.run(
        [*machine, *devices, *images],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith("hypervisor: this processor has no VMX")
    assert done.returncode == 2 * GAVE_UP + 1
