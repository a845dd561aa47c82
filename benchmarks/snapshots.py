"""`python -m benchmarks.snapshots`: going back to a snapshot, runs from it, by processor time."""

import random
import time
from statistics import median

from trapgate import guests
from trapgate.decision.faults import Interruption
from trapgate.sdm.interruption import InterruptionType
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import VirtualMachine

_MEMORY = 16 << 20
_START = 10_200_000
_LENGTH = 10_000


def bundled() -> VirtualMachine:
    """The bundled guest in the middle of its demand paging."""
    vm = VirtualMachine(_MEMORY)
    command = guests.command_line("demand")
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=_MEMORY, append=command))
    vm.step(_START)
    return vm


def main() -> None:
    """Print microseconds of a restore, and runs a second."""
    vm = bundled()
    snapshot = vm.snapshot()
    times = []
    pages = 0
    for _ in range(2000):
        vm.step(_LENGTH)
        begin = time.process_time()
        pages = vm.restore(snapshot)
        times.append((time.process_time() - begin) * 1e6)
    print(f"restore after {_LENGTH:,} instructions, {pages} pages: {median(times):.1f} us")
    begin = time.process_time()
    for _ in range(20_000):
        vm.restore(snapshot)
        vm.step(_LENGTH)
    print(f"runs of {_LENGTH:,} instructions: {20_000 / (time.process_time() - begin):,.0f}/s")
    chance = random.Random(1)
    events = [Interruption(n, InterruptionType.HARDWARE_EXCEPTION) for n in (0, 1, 6)]
    events += [Interruption(n, InterruptionType.HARDWARE_EXCEPTION, 0) for n in (13, 14)]
    begin = time.process_time()
    for _ in range(10_000):
        vm.restore(snapshot)
        when = chance.randrange(_LENGTH)
        vm.step(when)
        vm.inject(chance.choice(events))
        vm.step(_LENGTH - when)
    print(f"with an exception put in: {10_000 / (time.process_time() - begin):,.0f}/s")


if __name__ == "__main__":
    main()
