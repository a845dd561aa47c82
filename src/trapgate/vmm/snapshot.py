"""Snapshots: a virtual machine at one moment, and the way back to it.

The processor's part is arrays (`processor.snapshot`), the devices' what their objects hold
(`state`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trapgate.processor.snapshot import ProcessorSnapshot, plain
from trapgate.vmm.state import State, put_back

if TYPE_CHECKING:
    from trapgate.vmm.machine import Tally, VirtualMachine

_HOST = frozenset({"number", "base"})


class Snapshot:
    """A machine as it was: VMCS, registers, memory, devices, clock, journal, counts.

    Made by `VirtualMachine.snapshot`. What the machine has given away stays given: rows in a
    trace, bytes on a console.
    """

    def __init__(self, vm: VirtualMachine, tally: Tally, planned: list[Any]) -> None:
        self.machine = vm
        self.time = vm.processor.time
        """The virtual time of the moment, in instructions."""
        self._cpu = vm.cpu
        cpus = {f"cpu {cpu.number}": cpu for cpu in vm.cpus}
        self._devices = State({"pc": vm.devices, **cpus})
        self._processor = ProcessorSnapshot(vm.processor, vm.vmcs, self._devices.arrays.values())
        self._plain = [
            (vars(vm), {**plain(vm, _HOST), "stopped": vm.stopped}),
            (vars(tally), plain(tally)),
            (vars(vm.turns), plain(vm.turns)),
        ]
        self._watched = vm.watch.state()
        self._counts: list[tuple[Any, Any]] = [
            (tally.exits, tally.exits.copy()),
            (planned, planned.copy()),
            (vm.output, vm.output.copy()),
            *((counts, counts.copy()) for counts in tally.injected.values()),
        ]

    def restore(self) -> int:
        """Let the machine be as it was; how many pages of memory had been written."""
        self.machine.turn_to(self._cpu)
        self._devices.restore()
        for attributes, saved in self._plain:
            attributes.update(saved)
        for container, saved in self._counts:
            if container != saved:
                put_back(container, saved)
        copied = self._processor.restore()
        self.machine.watch.restore(self._watched)
        return copied

    def is_met(self) -> bool:
        """Whether the machine is now where it was then, so that the same follows.

        Time, processor, devices, memory, what is planned, and what was printed. Counts, the trace,
        and how the latest exit came about tell of the past, and may differ.
        """
        vm = self.machine
        return (
            vm.processor.time == self.time
            and vm.stopped is None
            and self._processor.is_met()
            and all(now == then for now, then in self._counts[1:3])
            and self._devices.is_met()
            and self._processor.differing_pages() == 0
        )

    def differing_pages(self) -> int:
        """How many pages of the machine's memory are not now as they were."""
        return self._processor.differing_pages()

    def __repr__(self) -> str:
        """Of which machine, and when."""
        return f"<Snapshot of machine {self.machine.number} at {self.time:,} instructions>"
