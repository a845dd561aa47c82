"""Snapshots: a virtual machine at one moment, and the way back to it.

The processor's part is arrays (`processor.snapshot`), the devices' what their objects hold
(`state`).
"""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.processor.snapshot import ProcessorSnapshot, plain, take_plain
from trapgate.vmm.accounts import Accounts, Tally
from trapgate.vmm.moments import Watch
from trapgate.vmm.snapshots.state import SnapshotError, State, put_back
from trapgate.vmm.snapshots.state_values import BusyError, take_values, values_of

_HOST = frozenset({"number", "base", "console", "bios", "stopped", "_power_on"})
"""Attributes of a machine that are the host's, or remembered apart."""
_TIME = stops.RUN_STATE.index(stops.TIME)


class Snapshot:
    """A machine as it was: VMCS, registers, memory, devices, clock, journal, counts.

    Made by `VirtualMachine.snapshot`. What the machine has given away stays given: rows in a
    trace, bytes on a console.
    """

    def __init__(self, vm: Accounts, watch: Watch[Any], tally: Tally, planned: list[Any]) -> None:
        self.machine = vm
        self.time = vm.processor.time
        """The virtual time of the moment, in instructions."""
        self._cpu = vm.cpu
        cpus = {f"cpu {cpu.number}": cpu for cpu in vm.cpus}
        bios = {} if vm.bios is None else {"bios": vm.bios}
        self._devices = State({"pc": vm.devices, **cpus, **bios})
        self._processor = ProcessorSnapshot(vm.processor, vm.vmcs, self._devices.arrays.values())
        self._stopped = vm.stopped
        self._plain = [(vars(one), plain(one, _HOST)) for one in (vm, tally, vm.turns)]
        self._watch, self._watched = watch, watch.state()
        kept: dict[str, Any] = {
            "exits": tally.exits,
            "planned": planned,
            "output": vm.output,
            **{kind.value: counts for kind, counts in tally.injected.items()},
        }
        self._injected = [kind.value for kind in tally.injected]
        self.console_asked = vm.console is not None
        """Whether a console may have asked to be told of bytes at once, which goes back too."""
        self._kept: dict[str, tuple[Any, Any]] = {
            name: (container, copy(container)) for name, container in kept.items()
        }

    def restore(self) -> int:
        """Restore the machine; how many pages of memory had been written."""
        if self.machine.cpu is not self._cpu:
            self.machine.turn_to(self._cpu)
        self._devices.restore()
        for attributes, saved in self._plain:
            attributes.update(saved)
        self.machine.stopped = self._stopped
        for container, saved in self._kept.values():
            if container != saved:
                put_back(container, saved)
        copied = self._processor.restore()
        self._watch.restore(self._watched)
        return copied

    # For files (`snapshots.file`).

    @property
    def processor(self) -> ProcessorSnapshot:
        """The processors' part."""
        return self._processor

    def disks(self) -> dict[str, str]:
        """The images that the guest reads, by their places: a digest of each."""
        return {path: image.identity() for path, image in self._devices.files.items()}

    def values(self) -> dict[str, Any]:
        """What is not an array, as JSON has values.

        Raises SnapshotError for a machine that has ended or has several processors; BusyError
        while a disk transfer is under way or an SMI waits.
        """
        vm = self.machine
        if len(vm.cpus) > 1:
            raise SnapshotError("a machine with several processors cannot be saved in a file")
        if self._stopped is not None and not self._stopped.can_continue:
            raise SnapshotError(f"the machine has ended: {self._stopped.message}")
        if self._processor.smi_waits:
            raise BusyError("an SMI waits to be taken; save an instruction later")
        then = {name: saved for name, (_, saved) in self._kept.items()}
        return {
            "plain": [saved for _, saved in self._plain],
            "exits": then["exits"].tolist(),
            "output": b64encode(then["output"]).decode(),
            "injected": {name: list(then[name].items()) for name in self._injected},
            "devices": values_of(self._devices),
            "processor": self._processor.values(),
        }

    def take(self, values: Mapping[str, Any], arrays: Sequence[Cells], rows: Cells) -> None:
        """Let `restore` lead to what `values` and arrays of another process say; memory does.

        Raises SnapshotError, ValueError, KeyError or TypeError for what is none.
        """
        self._stopped = None
        self.console_asked = True  # who knows
        for (_, now), then in zip(self._plain, values["plain"], strict=True):
            take_plain(now, then)
        saved = {name: saved for name, (_, saved) in self._kept.items()}
        if len(values["exits"]) != len(saved["exits"]):
            raise ValueError("exits of other reasons")
        saved["exits"][:] = array("q", map(int, values["exits"]))
        saved["output"][:] = b64decode(values["output"], validate=True)
        for name in self._injected:
            saved[name].clear()
            saved[name].update({int(n): int(count) for n, count in values["injected"][name]})
        take_values(self._devices, values["devices"])
        self._processor.take(values["processor"], arrays, rows)
        self.time = int(values["processor"]["run state"][_TIME])

    def is_reached(self) -> bool:
        """Whether the machine is now where it was then, so that the same follows.

        Time, processor, devices, memory, what is planned and waited for, and what was printed.
        Counts, the trace, and how the latest exit came about tell of the past, and may differ.
        """
        vm = self.machine
        return (
            vm.processor.time == self.time
            and vm.stopped is None
            and self._watch.state().waiting == self._watched.waiting
            and self._processor.is_reached()
            and all(now == then for now, then in (self._kept["planned"], self._kept["output"]))
            and self._devices.is_reached()
            and self._processor.differing_pages() == 0
        )

    def differing_pages(self) -> int:
        """How many pages of the machine's memory are not now as they were."""
        return self._processor.differing_pages()

    def __repr__(self) -> str:
        """The machine, and the virtual time."""
        return f"<Snapshot of machine {self.machine.number} at {self.time:,} instructions>"
