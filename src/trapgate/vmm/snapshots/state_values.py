"""What a `State` holds as values that JSON has, and back into that of another machine.

References to parts of the machine are paths, bound methods a path and a name. What is neither a
value nor such a reference (a function, something of the host's) is a wire: it is not written, and
the machine that takes the state has its own. Whatever is read is checked against that machine, so
that a file which somebody has made up cannot do more than give a guest a strange PC.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import deque
from datetime import datetime
from types import MethodType
from typing import Any

from trapgate.vmm.devices.bus import Wires
from trapgate.vmm.snapshots.state import CONTAINERS, SnapshotError, State, put_back

_WIRE = {"wire": True}
_METHODS = frozenset({"read", "write", "read_block", "write_block"})
"""What may be bound to a port."""
_SEQUENCES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)
}
_MAPPINGS: dict[str, type[Any]] = {"dict": dict, "Wires": Wires}
_DEEPEST = 20


class BusyError(SnapshotError):
    """The machine can be saved, but not now: some thousand instructions later."""


class _WireError(Exception):
    """There is something that is not written."""


class _Writer:
    def __init__(self, state: State) -> None:
        parts = {**state.objects, **state.containers}
        self._paths = {id(part): path for path, part in parts.items()}

    def value(self, one: Any) -> Any:
        """A value or a reference. Raises _WireError."""
        if id(one) in self._paths:
            return {"at": self._paths[id(one)]}
        if isinstance(one, MethodType):
            path = self._paths.get(id(one.__self__))
            if path is None or one.__name__ not in _METHODS:
                raise _WireError
            return {"method": [path, one.__name__]}
        return self.content(one)

    def content(self, one: Any) -> Any:
        """The value of what may be a part itself."""
        kind = type(one)
        if one is None or kind in (bool, int, float, str):
            return one
        if kind in (bytes, bytearray):
            return {kind.__name__: b64encode(one).decode()}
        if kind is datetime:
            return {"datetime": one.isoformat()}
        if kind is range:
            return {"range": [one.start, one.stop, one.step]}
        if kind in _SEQUENCES.values():
            items = sorted(one) if isinstance(one, set | frozenset) else one
            return {kind.__name__: [self.value(part) for part in items]}
        if kind in _MAPPINGS.values():
            pairs = [[self.value(key), self.value(part)] for key, part in one.items()]
            return {kind.__name__: pairs}
        raise _WireError

    def or_wire(self, one: Any, *, whole: bool) -> Any:
        """A value, or the sign of a wire; `whole` asks for what a part holds."""
        try:
            return self.content(one) if whole else self.value(one)
        except _WireError:
            return _WIRE


def values_of(state: State) -> dict[str, Any]:
    """All that changes, for `take_values`; arrays and files are not in it.

    Raises BusyError in the middle of a disk transfer.
    """
    if any(getattr(one, "is_busy", False) for one in state.objects.values()):
        raise BusyError("a disk transfer is under way; save some thousand instructions later")
    writer = _Writer(state)
    return {
        "objects": {
            path: {name: writer.or_wire(one, whole=False) for name, one in saved.items()}
            for path, saved in state.attributes.items()
        },
        "containers": {
            path: writer.or_wire(one, whole=True) for path, one in state.contents.items()
        },
    }


class _Reader:
    def __init__(self, state: State, saved: dict[str, Any]) -> None:
        self._parts = {**state.objects, **state.containers}
        self._saved = saved
        self._made: dict[str, Any] = {}
        """Containers that the machine that was saved had, and this one has not."""

    def value(self, found: Any, depth: int = 0) -> Any:
        """What a value or reference means here. Raises SnapshotError."""
        if found is None or type(found) in (bool, int, float, str):
            return found
        if not isinstance(found, dict) or len(found) != 1 or depth > _DEEPEST:
            raise SnapshotError("its state is not written as state is")
        ((kind, what),) = found.items()
        try:
            return self._named(kind, what, depth)
        except (TypeError, ValueError, OverflowError):
            raise SnapshotError(f"its state has a {kind} that is none") from None

    def _named(self, kind: str, what: Any, depth: int) -> Any:
        if kind == "at":
            return self._part(what, depth)
        if kind == "method":
            path, name = what
            if name not in _METHODS:
                raise SnapshotError(f"its state binds {name!r} to a port")
            return getattr(self._parts[path], name)
        if kind in ("bytes", "bytearray"):
            data = b64decode(what, validate=True)
            return bytearray(data) if kind == "bytearray" else data
        if kind == "datetime":
            return datetime.fromisoformat(what)
        if kind == "range":
            start, stop, step = what
            return range(start, stop, step)
        if kind in _SEQUENCES:
            return _SEQUENCES[kind](self.value(part, depth + 1) for part in what)
        if kind in _MAPPINGS:
            pairs = [[self.value(part, depth + 1) for part in pair] for pair in what]
            return _MAPPINGS[kind](pairs)
        raise SnapshotError(f"its state has a {kind!r}, which is nothing")

    def _part(self, path: str, depth: int) -> Any:
        if path in self._parts:
            return self._parts[path]
        if path not in self._made:
            self._made[path] = self.value(self._saved["containers"].get(path), depth + 1)
            if not isinstance(self._made[path], CONTAINERS):
                raise SnapshotError(f"its state leads to {path}, which is not there")
        return self._made[path]


def take_values(state: State, saved: dict[str, Any]) -> None:
    """Let `state` be restored to what `values_of` gave, in whatever machine that was made so.

    Raises SnapshotError for what this machine cannot be.
    """
    try:
        objects, containers = dict(saved["objects"]), dict(saved["containers"])
        if objects.keys() != state.attributes.keys():
            other = min(objects.keys() ^ state.attributes.keys())
            raise SnapshotError(f"it is of a machine with other devices ({other})")
        reader = _Reader(state, {"objects": objects, "containers": containers})
        for path, attributes in state.attributes.items():
            found = dict(objects[path])
            if found.keys() != attributes.keys():
                other = min(found.keys() ^ attributes.keys())
                raise SnapshotError(f"it is of a machine with other devices ({path}.{other})")
            for name, now in attributes.items():
                attributes[name] = _fitting(f"{path}.{name}", now, found[name], reader)
        for path, now in state.contents.items():
            if path in containers and containers[path] != _WIRE:
                then = reader.value(containers[path])
                if type(then) is not type(now):
                    raise SnapshotError(f"its {path} is not of type {type(now).__name__}")
                put_back(now, then)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        raise SnapshotError("its state is not written as state is") from None


def _fitting(path: str, now: Any, found: Any, reader: _Reader) -> Any:
    """What an attribute is to be: of the kind that it has, if it is not None."""
    if found == _WIRE:
        # A function where there was none before is what a device continues with.
        if now is None:
            raise SnapshotError(f"{path} is in the middle of a transfer; save at another moment")
        return now
    then = reader.value(found)
    same = type(then) is type(now) or {type(then), type(now)} <= {bool, int}
    if not same and then is not None and now is not None:
        raise SnapshotError(f"its {path} is a {type(then).__name__}")
    return then
