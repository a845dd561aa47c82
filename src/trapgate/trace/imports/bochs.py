"""Bochs' log: with the CPU's debug messages (`debug: action=report`) each event, without them
its triple faults.
"""

import re
from typing import Final

from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, PF
from trapgate.trace.imports.rows import Counters, Event, Sink

_LINE = re.compile(
    rb"^(?P<time>\d{5,19})[a-z]\[CPU(?P<cpu>\d{1,4})\s*\]\s(?:>>PANIC<< )?(?P<message>.*)$"
)
_EXCEPTION = re.compile(
    rb"^exception\(0x(?P<vector>[0-9a-f]{2})\): error_code=(?P<code>[0-9a-f]{1,8})\b"
)
_INTERRUPT = re.compile(
    rb"^interrupt\(\): vector = (?P<vector>[0-9a-f]{2}), TYPE = (?P<type>\d), EXT = [01]"
)
_ADDRESS = re.compile(
    rb"^page fault for address (?P<address>[0-9a-f]{1,16}) @ (?P<rip>[0-9a-f]{1,16})\b"
)
_RIP = re.compile(rb"^\| [ER]IP=(?P<rip>[0-9a-f]{8,16}) \(")
_TRIPLE = re.compile(rb"^exception\(\): 3rd \(\d+\) exception with no resolution")
_BEGINS = re.compile(rb"^(?:exception\(|interrupt\(\): vector|page fault for address)")

SIGN: Final = re.compile(
    rb"^\d{5,19}[a-z]\[CPU\d{1,4}\s*\]\s(?:>>PANIC<< )?"
    rb"(?:exception\(0x|interrupt\(\): |exception\(\): 3rd)",
    re.MULTILINE,
)
"""What is typical of the format."""


class BochsReader:
    """One row for each exception, and for each other event that is delivered.

    `time` counts Bochs' ticks. An exception in the tick in which another event's delivery
    began is nested in it. `rip` is what Bochs shows for page faults: the instruction after
    the one that faulted, but for faults of fetches; of a triple fault, what the dump of
    registers before it says.
    """

    unit = "ticks"

    def __init__(self, counters: Counters, sink: Sink) -> None:
        self.unread: bytes | None = None
        self._counters = counters
        self._sink = sink
        self._sequence = 0
        self._address: dict[int, tuple[int, int]] = {}
        self._rip: dict[int, tuple[int, int]] = {}
        self._delivering: dict[int, Event] = {}

    def take(self, piece: bytes) -> None:
        """Read whole lines."""
        lines = piece.split(b"\n")
        if not lines[-1]:
            lines.pop()
        self._counters.lines += len(lines)
        for line in lines:
            if line.strip() and not self._line(line.rstrip()):
                self._counters.unreadable += 1
                self.unread = self.unread or line

    def _line(self, line: bytes) -> bool:
        """Take a line; False if it begins like an event but cannot be read."""
        match = _LINE.match(line)
        if match is None:
            self._counters.foreign += 1
            self.unread = self.unread or line
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
            at, rip = self._rip.pop(cpu, (-1, 0))
            row.rip = rip if at == time else None
            self._sink(row)
        elif _BEGINS.match(message):
            return False
        else:
            if rip_shown := _RIP.match(message):
                self._rip[cpu] = time, int(rip_shown["rip"], 16)
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
        before = self._delivering.get(cpu)
        if before is not None and before.time == time:
            row.depth = min(before.depth + 1, 255)
            row.interrupted_vector, row.interrupted_type = before.vector, before.type
            row.interrupted_error_code = before.error_code
        self._delivering[cpu] = row
        self._sink(row)

    def _interrupt(self, cpu: int, time: int, vector: int, kind: int) -> None:
        if kind == TYPE_HARDWARE_EXCEPTION:
            return  # the delivery of what exception() has told
        row = self._new(cpu, time, "DELIVER")
        row.vector, row.type = vector, kind
        self._delivering[cpu] = row
        self._sink(row)
