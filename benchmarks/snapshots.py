"""`python -m benchmarks.snapshots`: going back to a snapshot, runs from it, by processor time."""

import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.suite import APPEND, LINUX
from trapgate import SavedMachine, guests
from trapgate.decision.faults import Interruption
from trapgate.sdm.interruption import InterruptionType
from trapgate.vmm.loaders import load_guest, parse_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.snapshots.snapshot import Snapshot

_MEMORY = 16 << 20
_START = 10_200_000


def bundled() -> VirtualMachine:
    """The bundled guest in the middle of its demand paging."""
    vm = VirtualMachine(_MEMORY)
    command = guests.command_line("demand")
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=_MEMORY, append=command))
    vm.step(_START)
    return vm


def linux() -> VirtualMachine | None:
    """Debian's amd64 kernel at its shell, where a command is being typed; None without it."""
    kernel, initrd = LINUX / "vmlinuz-amd64", LINUX / "initrd-amd64.cpio"
    if not kernel.exists() or not initrd.exists():
        return None
    vm = VirtualMachine(256 << 20)
    vm.load(load_guest(kernel, memory=256 << 20, append=APPEND, initrd=initrd))
    while b"/ # " not in vm.output:
        vm.step(20_000_000)
    vm.type(b"ls -l /\n")
    return vm


def measure(name: str, vm: VirtualMachine, length: int, rounds: int) -> None:
    """Print microseconds of a restore, and runs a second, without and with an exception put in."""
    snapshot = vm.snapshot()
    times, pages = [], []
    for _ in range(rounds):
        vm.step(length)
        begin = time.process_time()
        pages.append(vm.restore(snapshot))
        times.append((time.process_time() - begin) * 1e6)
    print(
        f"{name}: restore after {length:,} instructions, {median(pages):.0f} pages: "
        f"{median(times):.1f} us"
    )
    begin = time.process_time()
    for _ in range(5 * rounds):
        vm.restore(snapshot)
        vm.step(length)
    print(f"{name}: runs: {5 * rounds / (time.process_time() - begin):,.0f}/s")
    begin = time.process_time()
    inject(vm, snapshot, length, 5 * rounds)
    print(f"{name}: with an exception put in: {5 * rounds / (time.process_time() - begin):,.0f}/s")


_KIND = InterruptionType.HARDWARE_EXCEPTION
EVENTS: Sequence[Interruption] = (
    *(Interruption(vector, _KIND) for vector in (0, 1, 6)),
    *(Interruption(vector, _KIND, 0) for vector in (13, 14)),
)


def inject(vm: VirtualMachine, snapshot: Snapshot, length: int, runs: int) -> None:
    """So many runs, each with an exception at an instruction, by chance."""
    chance = random.Random(1)
    for _ in range(runs):
        vm.restore(snapshot)
        when = chance.randrange(length)
        vm.step(when)
        vm.inject(chance.choice(EVENTS))
        vm.step(length - when)
    vm.restore(snapshot)


def measure_file(name: str, vm: VirtualMachine) -> None:
    """Print how large a machine's file is, and how long it takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "machine"
        begin = time.process_time()
        vm.save(path)
        saved = time.process_time()
        SavedMachine(path).machine()
        loaded = time.process_time() - saved
        print(
            f"{name}: file of {path.stat().st_size >> 10:,} KiB, saved in {saved - begin:.2f} s, "
            f"loaded in {loaded:.2f} s"
        )


def main() -> None:
    """Print the figures of both guests."""
    guest = bundled()
    measure("bundled", guest, 10_000, 2_000)
    measure_file("bundled", guest)
    kernel = linux()
    if kernel is not None:
        measure("Linux", kernel, 1_000_000, 100)
        measure_file("Linux", kernel)


if __name__ == "__main__":
    main()
