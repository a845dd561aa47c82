"""The demonstration of an x86 VMM: the bundled guest under a VMM in Python and under one in x86.

The bundled hypervisor executes the VMX instructions itself and shadows the guest's page
tables (SDM, "Memory Virtualization"); the VMM in Python only provides the PC around both.
The guest must not notice: whoever its VMM is, it has to print the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trapgate import guests
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.loaders.image import GuestImage
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.summary import Summary

MEMORY = 32 << 20
"""RAM of the demonstration's machine, in bytes; the x86 VMM keeps some to itself."""

PYTHON = "python"


@dataclass(frozen=True)
class Result:
    """One run: the VMM, how it stopped, what the guest printed, and the counts.

    `vmm` is `python`, or the x86 VMM's policy; `counts` are what that VMM says it did.
    """

    vmm: str
    meaning: str
    stop: Stop
    output: bytes
    counts: Mapping[str, int]
    summary: Summary

    @property
    def digest(self) -> str:
        """A short fingerprint of the guest's output."""
        return hashlib.sha256(self.output).hexdigest()[:12]


def hypervisor_image(policy: str, line: str, *, memory: int = MEMORY) -> GuestImage:
    """The bundled hypervisor, with the bundled guest, whose command line `line` is, as module."""
    return parse_guest(
        guests.hypervisor(),
        file="hypervisor.elf",
        memory=memory,
        append=f"policy={policy} {line}",
        initrd=guests.image(),
    )


def run(workloads: Sequence[str] = (), *, scale: int = 1, engine: str = "auto") -> Iterator[Result]:
    """Run the bundled guest's `workloads` under the VMM in Python, then under the other one.

    Raises ValueError for a workload or scale that the guest does not have.
    """
    line = guests.command_line(*workloads, scale=scale)
    guest = parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=line)
    yield _run(PYTHON, "no page fault exits", guest, scale, engine)
    for policy, meaning in guests.POLICIES:
        yield _run(policy, meaning, hypervisor_image(policy, line), scale, engine)


def _run(vmm: str, meaning: str, image: GuestImage, scale: int, engine: str) -> Result:
    vm = VirtualMachine(MEMORY, engine=engine)
    vm.load(image)
    stop = vm.run(max_instructions=scale * 2_000_000_000)
    output = guests.hypervisor_output(bytes(vm.output))
    return Result(vmm, meaning, stop, output.guest, output.counts, vm.summary())


def passed(results: Sequence[Result]) -> bool:
    """Whether all runs ended well and the guest printed the same in all of them."""
    ended = all(result.stop.end is End.DEBUG_EXIT and result.stop.status == 0 for result in results)
    return ended and len({result.output for result in results}) == 1
