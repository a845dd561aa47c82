"""Bochs' log with the CPU's debug messages on (`debug: action=report`)."""

import re

from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, PF
from trapgate.trace.imports.rows import Counters, Event, Sink

_LINE = re.compile(r"^(?P<time>\d{5,19})[a-z]\[CPU(?P<cpu>\d{1,4})\s*\]\s(?P<message>.*)$")
_EXCEPTION = re.compile(
    r"^exception\(0x(?P<vector>[0-9a-f]{2})\): error_code=(?P<code>[0-9a-f]{1,8})\b"
)
_INTERRUPT = re.compile(
    r"^interrupt\(\): vector = (?P<vector>[0-9a-f]{2}), TYPE = (?P<type>\d), EXT = [01]"
)
_ADDRESS = re.compile(
    r"^page fault for address (?P<address>[0-9a-f]{1,16}) @ (?P<rip>[0-9a-f]{1,16})\b"
)
_TRIPLE = re.compile(r"^exception\(\): 3rd \(\d+\) exception with no resolution")
_BEGINS = re.compile(r"^(?:exception\(|interrupt\(\): vector|page fault for address)")


def recognise(line: str) -> str | None:
    """The name of the format if `line` is typical of it."""
    match = _LINE.match(line)
    known = match and (_EXCEPTION.match(match["message"]) or _INTERRUPT.match(match["message"]))
    return "bochs" if known else None


class BochsReader:
    """One row for each exception, and for each other event that is delivered.

    `time` counts Bochs' ticks. An exception in the tick in which another event's delivery
    began is nested in it. `rip` is what Bochs shows for page faults: the instruction after
    the one that faulted, but for faults of fetches.
    """

    unit = "ticks"

    def __init__(self, counters: Counters, sink: Sink) -> None:
        self._counters = counters
        self._sink = sink
        self._sequence = 0
        self._address: dict[int, tuple[int, int]] = {}
        self._delivering: dict[int, tuple[int, int]] = {}

    def line(self, line: str) -> bool:
        """Take a line; False if it begins like an event but cannot be read."""
        match = _LINE.match(line)
        if match is None:
            self._counters.foreign += 1
            return True
        cpu, time, message = int(match["cpu"]), int(match["time"]), match["message"]
        if event := _EXCEPTION.match(message):
            self._exception(cpu, time, int(event["vector"], 16), int(event["code"], 16))
        elif event := _INTERRUPT.match(message):
            self._interrupt(cpu, time, int(event["vector"], 16), int(event["type"]))
        elif address := _ADDRESS.match(message):
            self._address[cpu] = int(address["address"], 16), int(address["rip"], 16)
        elif _TRIPLE.match(message):
            row = self._new(cpu, time, "EXIT")
            row.exit_reason = "TRIPLE_FAULT"
            self._sink(row)
        elif _BEGINS.match(message):
            return False
        else:
            self._counters.foreign += 1
        return True

    def end(self) -> None:
        """No more lines."""

    def _new(self, cpu: int, time: int, disposition: str) -> Event:
        self._sequence += 1
        return Event(self._sequence - 1, time, disposition, "BOCHS", vcpu=cpu)

    def _exception(self, cpu: int, time: int, vector: int, code: int) -> None:
        row = self._new(cpu, time, "DELIVER")
        row.vector, row.type = vector, TYPE_HARDWARE_EXCEPTION
        if ERROR_CODE_VECTORS >> vector & 1:
            row.error_code = code
        if vector == PF and cpu in self._address:
            row.linear_address, row.rip = self._address.pop(cpu)
        since, depth = self._delivering.get(cpu, (-1, 0))
        row.depth = min(depth + 1, 255) if since == time else 0
        self._delivering[cpu] = time, row.depth
        self._sink(row)

    def _interrupt(self, cpu: int, time: int, vector: int, kind: int) -> None:
        if kind == TYPE_HARDWARE_EXCEPTION:
            return  # the delivery of what exception() has told
        row = self._new(cpu, time, "DELIVER")
        row.vector, row.type = vector, kind
        self._delivering[cpu] = time, 0
        self._sink(row)
