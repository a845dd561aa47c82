"""What the objects of a machine hold: everything that changes, found by walking from the roots.

Numbers and references are remembered, containers copied, arrays named for whoever copies those
(`processor.snapshot`). What an object keeps elsewhere, in a file say, is refused, so that nothing
is forgotten in silence. Each thing has a path, from the root's name on, which is the same in
every machine that is made the same way.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from datetime import datetime
from enum import Enum
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.errors import TrapgateError
from trapgate.vmm.devices.bus import Wires
from trapgate.vmm.devices.quick import Slot, Wired

FIXED = (
    *(int, float, str, bytes, type(None), range, frozenset, datetime, Enum, type),
    *(FunctionType, BuiltinMethodType, memoryview, Slot, type(iter(range(0)))),
)
"""What never changes, and leads to nothing that does."""
CONTAINERS = (list, dict, set, deque, bytearray)
_OURS = ("trapgate.vmm.devices", "trapgate.vmm.cpu", "trapgate.vmm.mtrrs", "trapgate.vmm.bios")


class SnapshotError(TrapgateError):
    """A machine has state that a snapshot cannot take back; the message says what and why."""


class State:
    """Everything that changes of what can be reached from `roots`.

    But for what classes of the module `leaving` keep, for who wants no snapshot.
    """

    def __init__(self, roots: Mapping[str, object], *, leaving: str | None = None) -> None:
        self._leaving = leaving
        self.objects: dict[str, object] = {}
        self.containers: dict[str, Any] = {}
        self.arrays: dict[str, Cells] = {}
        self._seen: set[int] = set()
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._slots: list[tuple[object, list[tuple[str, object]]]] = []
        for name, root in roots.items():
            self._look(name, root)
        self._now = list(self.containers.values())
        self._then = [container.copy() for container in self._now]
        self._cells = {path: array.copy() for path, array in self.arrays.items()}

    def _look(self, path: str, one: object) -> None:
        todo = [(path, one)]
        while todo:
            path, one = todo.pop()
            if isinstance(one, FIXED) or id(one) in self._seen:
                continue
            if type(one).__module__ == self._leaving:
                continue
            self._seen.add(id(one))
            todo += self._within(path, one)

    def _within(self, path: str, one: Any) -> Iterator[tuple[str, object]]:
        """What an object leads to."""
        if isinstance(one, functools.partial):
            parts = (one.func, *one.args, *one.keywords.values())
            yield from ((f"{path}({n})", part) for n, part in enumerate(parts))
        elif isinstance(one, MethodType):
            yield f"{path}.__self__", one.__self__
        elif isinstance(one, np.ndarray):
            self.arrays[path] = one
        elif isinstance(one, tuple):
            yield from ((f"{path}[{n}]", part) for n, part in enumerate(one))
        elif isinstance(one, CONTAINERS):
            if not isinstance(one, Wires):
                self.containers[path] = one
            items = one.items() if isinstance(one, dict) else enumerate(one)
            if not isinstance(one, bytearray):
                yield from ((f"{path}[{key!r}]", part) for key, part in items)
        elif type(one).__module__.startswith(_OURS):
            self.objects[path] = one
            yield from ((f"{path}.{name}", part) for name, part in self._attributes_of(one))
        elif not type(one).__module__.startswith("trapgate."):
            raise SnapshotError(
                f"{path} is a {type(one).__name__}, which no snapshot can take back; "
                "give the machine disks that are kept in memory"
            )

    def _attributes_of(self, one: object) -> list[tuple[str, object]]:
        if hasattr(one, "__dict__"):
            attributes = vars(one)
            if not isinstance(one, Wired):
                self._attributes.append((attributes, dict(attributes)))
            return list(attributes.items())
        names = [name for base in type(one).__mro__ for name in getattr(base, "__slots__", ())]
        values = [(name, getattr(one, name)) for name in names]
        kind: Any = type(one)
        if not (is_dataclass(one) and kind.__dataclass_params__.frozen):
            self._slots.append((one, values))
        return values

    def is_met(self) -> bool:
        """Whether everything is as it was, arrays included."""
        return (
            all(attributes == saved for attributes, saved in self._attributes)
            and self._now == self._then
            and all(getattr(one, n) == value for one, values in self._slots for n, value in values)
            and all(np.array_equal(array, self._cells[path]) for path, array in self.arrays.items())
        )

    def restore(self) -> None:
        """Let everything be as it was but the arrays."""
        for attributes, saved in self._attributes:
            attributes.update(saved)
        for one, values in self._slots:
            for name, value in values:
                setattr(one, name, value)
        if self._now != self._then:
            for container, then in zip(self._now, self._then, strict=True):
                if container != then:
                    put_back(container, then)


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
