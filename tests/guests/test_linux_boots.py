"""Unmodified Debian kernels boot to a shell, take a typed command, and do so the same each time."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from benchmarks.suite import APPEND, LINUX
from trapgate.decision.decide import Disposition
from trapgate.engine.machine import AUDITED
from trapgate.sdm.cells import VMX_PREEMPTION_TIMER_VALUE
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.saved_machine import SavedMachine
from trapgate.vmm.ui.console import Console

pytestmark = pytest.mark.linux

MEMORY = 128 << 20
PROMPT = b"/ # "
ENOUGH = 20_000_000_000
KERNELS = {
    "amd64": ("vmlinuz-amd64", "initrd-amd64.cpio", b"x86_64"),
    "i386": ("vmlinuz-686", "initrd-i386.cpio", b"i686"),
}


def paths(name: str) -> tuple[Path, Path]:
    kernel, initrd, _ = KERNELS[name]
    if not (LINUX / kernel).exists() or not (LINUX / initrd).exists():
        pytest.skip(f"no {kernel}: run tools/fetch-linux")
    return LINUX / kernel, LINUX / initrd


def until(vm: VirtualMachine, output: io.BytesIO, text: bytes, start: int) -> int:
    """Run until `text` appears behind `start` in the output; where it ends."""
    while True:
        found = output.getvalue().find(text, start)
        if found >= 0:
            return found + len(text)
        assert vm.step(5_000_000) is None, vm.stopped
        assert vm.processor.time < ENOUGH, output.getvalue()[-2000:].decode(errors="replace")
        assert vm.console is not None
        vm.console.flush()


def booted(name: str, append: str = APPEND) -> tuple[VirtualMachine, io.BytesIO]:
    """A machine whose guest shows the shell's prompt."""
    kernel, initrd = paths(name)
    output = io.BytesIO()
    vm = VirtualMachine(MEMORY, console=Console(output))
    vm.load(load_guest(kernel, memory=MEMORY, append=append, initrd=initrd))
    until(vm, output, PROMPT, 0)
    return vm, output


@pytest.mark.parametrize("name", ["amd64", pytest.param("i386", marks=pytest.mark.slow)])
def test_a_kernel_boots_to_a_shell_and_runs_what_is_typed(name: str) -> None:
    vm, output = booted(name)
    assert b"Linux version 6.1." in output.getvalue()
    typed = len(output.getvalue())
    vm.type(b"uname -m; echo $((6 * 7))0\n")
    place = until(vm, output, KERNELS[name][2] + b"\r\n", typed)
    place = until(vm, output, b"420\r\n", place)
    until(vm, output, PROMPT, place)
    summary = vm.summary()
    assert summary.count(Disposition.DELIVER, PF) > 100
    assert summary.count(Disposition.EXIT, PF) == 0
    vm.type(b"poweroff -f\n")
    while vm.step(5_000_000) is None:
        assert vm.processor.time < ENOUGH
    assert vm.stopped is not None
    assert vm.stopped.end == End.POWER_OFF


@pytest.mark.parametrize("name", ["amd64", pytest.param("i386", marks=pytest.mark.slow)])
def test_a_kernel_uses_the_apics_and_sleeps(name: str) -> None:
    vm, output = booted(name)
    vm.type(b"cat /proc/interrupts; sleep 1; echo awake\n")
    typed = len(output.getvalue())
    began = vm.processor.time
    place = until(vm, output, b"awake\r\n/ # ", typed)
    assert vm.processor.time - began > vm.devices.bus.clock.hertz
    rows = output.getvalue()[typed:place].decode().splitlines()
    counts = {row.split()[0]: row.split()[1:] for row in rows if len(row.split()) > 1}
    assert int(counts["LOC:"][0]) > 100
    assert counts["4:"][1:3] == ["IO-APIC", "4-edge"]
    assert int(counts["4:"][0]) > 0


@pytest.mark.parametrize("name", ["amd64", pytest.param("i386", marks=pytest.mark.slow)])
def test_a_kernel_leaves_no_stale_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It patches its own text through other addresses, and reuses pages of code."""
    monkeypatch.setenv("TRAPGATE_AUDIT", "1")
    vm, _ = booted(name)
    assert vm.processor.engine.cells[AUDITED] > 10_000_000


@pytest.mark.slow
def test_a_kernel_does_without_the_apics() -> None:
    vm, output = booted("amd64", f"{APPEND} noapic nolapic acpi=off")
    vm.type(b"cat /proc/interrupts; sleep 1; echo awake\n")
    typed = len(output.getvalue())
    place = until(vm, output, b"awake\r\n/ # ", typed)
    shown = output.getvalue()[typed:place]
    assert b"XT-PIC" in shown
    assert b"IO-APIC" not in shown


@pytest.mark.slow
def test_two_boots_are_alike() -> None:
    runs = []
    for _ in range(2):
        vm, output = booted("amd64")
        summary = vm.summary()
        digest = hashlib.sha256(output.getvalue()).hexdigest()
        runs.append((summary.instructions, summary.faults, summary.exits, digest))
    assert runs[0] == runs[1]


def test_a_kernel_goes_on_from_a_file(tmp_path: Path) -> None:
    kernel, initrd = paths("amd64")
    vm = VirtualMachine(MEMORY)
    vm.load(load_guest(kernel, memory=MEMORY, append=APPEND, initrd=initrd))
    for length in (300_000_000, 40_000_123):
        vm.step(length)
        vm.save(tmp_path / "machine")
        other = SavedMachine(tmp_path / "machine").machine()
        before = [digest(one) for one in (vm, other)]
        assert before[0] == before[1]
        for one in (vm, other):
            one.step(30_000_000)
        assert digest(other) == digest(vm)
        assert digest(vm) != before[0]
        vm = other


def digest(vm: VirtualMachine) -> str:
    """Of all that can be compared of a machine, but its VMM's timer."""
    processor = vm.processor
    found = hashlib.sha256(processor.memory.cells.tobytes())
    for array in (np.delete(vm.vmcs.cells, VMX_PREEMPTION_TIMER_VALUE), processor.registers.cells):
        found.update(array.tobytes())
    rows = np.array(list(processor.last_events()))
    rest = (bytes(vm.output), processor.time, vm.devices.next_deadline(processor.time))
    found.update(rows.tobytes() + repr((rest, processor.engine.vectors.state())).encode())
    return found.hexdigest()
