"""Snapshots: a virtual machine at one moment, and the way back to it.

The processor's part is arrays (`processor.snapshot`). The devices' is the attributes of every
object that can be reached from the PC and belongs to it: numbers and references are
remembered, containers are copied. What a device keeps elsewhere (a file, an array) is refused, so
that nothing is forgotten in silence.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from dataclasses import is_dataclass
from datetime import datetime
from enum import Enum
from types import BuiltinMethodType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from trapgate.errors import TrapgateError
from trapgate.processor.snapshot import ProcessorSnapshot, plain

if TYPE_CHECKING:
    from trapgate.vmm.machine import Tally, VirtualMachine

_FIXED = (
    *(int, float, str, bytes, type(None), range, frozenset, datetime, Enum, type),
    *(FunctionType, BuiltinMethodType),
)
_CONTAINERS = (list, dict, set, deque, bytearray)
_OURS = ("trapgate.vmm.devices", "trapgate.vmm.cpu", "trapgate.vmm.mtrrs")
_HOST = frozenset({"number", "base"})


class SnapshotError(TrapgateError):
    """A machine has state that a snapshot cannot take back; the message says what and why."""


class _State:
    """Everything of the devices that changes."""

    def __init__(self, *roots: object) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._slots: list[tuple[object, list[tuple[str, object]]]] = []
        self._now: list[Any] = []
        self._then: list[Any] = []
        """Containers, and copies of them."""
        self._seen: set[int] = set()
        for root in roots:
            self._look(root)

    def _look(self, one: object) -> None:
        todo = [one]
        while todo:
            one = todo.pop()
            if isinstance(one, _FIXED) or id(one) in self._seen:
                continue
            self._seen.add(id(one))
            if isinstance(one, functools.partial):
                todo += [one.func, *one.args, *one.keywords.values()]
            elif isinstance(one, MethodType):
                todo.append(one.__self__)
            elif isinstance(one, tuple):
                todo += one
            elif isinstance(one, _CONTAINERS):
                self._now.append(one)
                self._then.append(one.copy())
                todo += one.values() if isinstance(one, dict) else one
            elif type(one).__module__.startswith(_OURS):
                todo += self._parts(one)
            elif not type(one).__module__.startswith("trapgate."):
                raise SnapshotError(
                    f"a device keeps a {type(one).__name__}, which no snapshot can take back; "
                    "give the machine disks that are kept in memory"
                )

    def _parts(self, one: object) -> list[object]:
        if hasattr(one, "__dict__"):
            attributes = vars(one)
            self._attributes.append((attributes, dict(attributes)))
            return list(attributes.values())
        names = [name for base in type(one).__mro__ for name in getattr(base, "__slots__", ())]
        values = [getattr(one, name) for name in names]
        kind: Any = type(one)
        if not (is_dataclass(one) and kind.__dataclass_params__.frozen):
            self._slots.append((one, list(zip(names, values, strict=True))))
        return values

    def restore(self) -> None:
        for attributes, saved in self._attributes:
            attributes.update(saved)
        for one, values in self._slots:
            for name, value in values:
                setattr(one, name, value)
        if self._now != self._then:
            for container, saved in zip(self._now, self._then, strict=True):
                if container != saved:
                    put_back(container, saved)


def put_back(container: Any, saved: Any) -> None:
    """Let a container have what a copy of it has; it stays the same object."""
    if isinstance(container, list | bytearray):
        container[:] = saved
        return
    container.clear()
    if isinstance(container, deque):
        container.extend(saved)
    else:
        container.update(saved)


class Snapshot:
    """A machine as it was: VMCS, registers, memory, devices, clock, journal, counts.

    Made by `VirtualMachine.snapshot`. What the machine has given away stays given: rows in a
    trace, bytes on a console.
    """

    def __init__(self, vm: VirtualMachine, tally: Tally, planned: list[Any]) -> None:
        self.machine = vm
        self.time = vm.processor.time
        """The virtual time of the moment, in instructions."""
        self._devices = _State(vm.devices, *vm.cpus)
        self._cpu = vm.cpu
        self._processor = ProcessorSnapshot(vm.processor, vm.vmcs)
        self._plain = [
            (vars(vm), {**plain(vm, _HOST), "stopped": vm.stopped}),
            (vars(tally), plain(tally)),
            (vars(vm.turns), plain(vm.turns)),
        ]
        self._counts: list[tuple[Any, Any]] = [
            (tally.exits, tally.exits.copy()),
            (planned, planned.copy()),
            (vm.output, vm.output.copy()),
        ]
        counters: list[Counter[int]] = list(tally.injected.values())
        self._counts += [(counter, counter.copy()) for counter in counters]

    def restore(self) -> int:
        """Let the machine be as it was; how many pages of memory had been written."""
        self.machine.turn_to(self._cpu)
        self._devices.restore()
        for attributes, saved in self._plain:
            attributes.update(saved)
        for container, saved in self._counts:
            if container != saved:
                put_back(container, saved)
        return self._processor.restore()

    def differing_pages(self) -> int:
        """How many pages of the machine's memory are not now as they were."""
        return self._processor.differing_pages()

    def __repr__(self) -> str:
        """Of which machine, and when."""
        return f"<Snapshot of machine {self.machine.number} at {self.time:,} instructions>"
