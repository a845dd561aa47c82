"""What the objects of a machine hold: everything that changes, found by walking from the roots.

Numbers and references are remembered, containers copied, arrays named for whoever copies those
(`processor.snapshot`). What an object keeps elsewhere, in a file say, is refused, so that nothing
is forgotten in silence. Each thing has a path, from the root's name on, which is the same in
every machine that is made the same way.
"""

from __future__ import annotations

import functools
from array import array
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
from trapgate.vmm.devices.polled import Slot, Wired
from trapgate.vmm.devices.storage import ImageFile, OverlayFile

FIXED = (
    *(int, float, str, bytes, type(None), range, frozenset, datetime, Enum, type),
    *(FunctionType, BuiltinMethodType, memoryview, Slot, type(iter(range(0)))),
)
"""What never changes, and leads to nothing that does."""
CONTAINERS = (list, dict, set, deque, bytearray)
_OURS = (
    "trapgate.vmm.devices",
    "trapgate.vmm.cpus.cpu",
    "trapgate.vmm.cpus.mtrrs",
    "trapgate.vmm.bios",
)


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
        self.files: dict[str, ImageFile] = {}
        """Images that are only read."""
        self._seen: set[int] = set()
        self.attributes: dict[str, dict[str, Any]] = {}
        """Of each object: what its attributes are to be again."""
        self.contents: dict[str, Any] = {}
        """Of each container: what it is to hold again."""
        self._look(roots)
        self._live = [vars(self.objects[path]) for path in self.attributes]
        self._were = list(self.attributes.values())
        self._now = list(self.containers.values())
        self._then = list(self.contents.values())
        self._cells = {path: array.copy() for path, array in self.arrays.items()}

    def _look(self, roots: Mapping[str, object]) -> None:
        todo = deque(roots.items())
        while todo:
            path, one = todo.popleft()
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
                self.contents[path] = one.copy()
            items = one.items() if isinstance(one, dict) else enumerate(one)
            if not isinstance(one, bytearray):
                yield from ((f"{path}[{key!r}]", part) for key, part in items)
        elif isinstance(one, ImageFile | OverlayFile):
            if not isinstance(one, ImageFile) or one.is_changed:
                raise SnapshotError(
                    f"{one}: what the guest writes goes to this file, which no snapshot can take "
                    "back; leave out write and overlay="
                )
            self.files[path] = one
        elif type(one).__module__.startswith(_OURS):
            self.objects[path] = one
            attributes = attributes_of(one)
            if attributes is not None:
                if not isinstance(one, Wired):
                    self.attributes[path] = dict(attributes)
                yield from ((f"{path}.{name}", part) for name, part in attributes.items())
        elif not type(one).__module__.startswith("trapgate."):
            raise SnapshotError(
                f"{path} is a {type(one).__name__}, which no snapshot can take back"
            )

    def is_reached(self) -> bool:
        """Whether everything is as it was, arrays included."""
        return (
            self._live == self._were
            and self._now == self._then
            and all(np.array_equal(array, self._cells[path]) for path, array in self.arrays.items())
        )

    def restore(self) -> None:
        """Restore everything except the arrays."""
        # That something has changed is the exception, and quicker to find out.
        if self._live != self._were:
            for attributes, then in zip(self._live, self._were, strict=True):
                if attributes != then:
                    attributes.update(then)
        if self._now != self._then:
            for container, then in zip(self._now, self._then, strict=True):
                if container != then:
                    put_back(container, then)


def attributes_of(one: object) -> dict[str, Any] | None:
    """The attributes of an object; None of one that cannot change.

    What has slots and can change is not known here.
    """
    if hasattr(one, "__dict__"):
        return vars(one)
    kind: Any = type(one)
    assert is_dataclass(one), kind
    assert kind.__dataclass_params__.frozen, kind
    return None


def put_back(container: Any, saved: Any) -> None:
    """Restore the contents of a container from a copy; it stays the same object."""
    if isinstance(container, list | bytearray | array):
        container[:] = saved
        return
    container.clear()
    if isinstance(container, deque):
        container.extend(saved)
    else:
        container.update(saved)
