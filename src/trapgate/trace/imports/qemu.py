"""QEMU's log of interrupts and exceptions (`-d int`)."""

import re
from typing import Final

from trapgate.sdm.interruption import (
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.vectors import BP, DF, ERROR_CODE_VECTORS, NMI, OF, PF
from trapgate.trace.imports.rows import Counters, Event, Sink

_EVENT = re.compile(rb"^\s*(?P<count>\d{1,18}): v=(?P<vector>[0-9a-f]{2})\b(?P<body>.*)$")
_BODY = re.compile(
    rb"^ e=(?P<code>[0-9a-f]{4,8}) i=(?P<soft>[01]) cpl=(?P<cpl>[0-3]) "
    rb"IP=[0-9a-f]{4}:(?P<rip>[0-9a-f]{8,16}) pc=[0-9a-f]{8,16} SP=[0-9a-f]{4}:[0-9a-f]{8,16}"
    rb"(?: CR2=(?P<cr2>[0-9a-f]{8,16})| .*)$"
)
_CR3 = re.compile(rb"\bCR3=([0-9a-f]{8,16})\b")
_CHECK = re.compile(rb"^check_exception old: 0x(?P<old>[0-9a-f]{1,8}) new 0x[0-9a-f]+")
_SERVICING = re.compile(rb"^Servicing hardware INT=0x(?P<vector>[0-9a-f]{2,8})\b")
_NONE = 0xFFFFFFFF
_IN_IDT: Final = 2
"""The bit of an error code that says that its index is one into the IDT (SDM, "Error Code")."""

SIGN: Final = re.compile(
    rb"^\s*\d{1,18}: v=[0-9a-f]{2} e=[0-9a-f]{4,8} i=[01] cpl=|^check_exception old: 0x[0-9a-f]",
    re.MULTILINE,
)
"""What is typical of the format."""


class QemuReader:
    """One row for each event that QEMU delivers; the register dump after it gives CR3.

    QEMU prints no time: `time` is the number of the event. An event that met another's
    delivery says of which: QEMU's own check says so for faults that make a double fault,
    an error code with its IDT bit for the others.
    """

    unit = "events"

    def __init__(self, counters: Counters, sink: Sink) -> None:
        self.unread: bytes | None = None
        self._counters = counters
        self._sink = sink
        self._sequence = 0
        self._serviced: int | None = None
        self._nested = False
        self._event: Event | None = None

    def take(self, piece: bytes) -> None:
        """Read whole lines."""
        lines = piece.split(b"\n")
        if not lines[-1]:
            lines.pop()
        foreign = 0
        for line in lines:
            # All but a few lines are register dumps.
            first = line[:1]
            if first in b" 0123456789" and b": v=" in line[:40]:
                self._begin(line.rstrip())
            elif first == b"c" and (check := _CHECK.match(line)):
                self._check(int(check["old"], 16))
            elif first == b"S" and (serviced := _SERVICING.match(line)):
                self._serviced = int(serviced["vector"], 16)
            elif first == b"T" and line.startswith(b"Triple fault"):
                self._triple()
            else:
                if first == b"C" and self._event is not None and (cr3 := _CR3.search(line)):
                    self._event.cr3 = int(cr3[1], 16)
                foreign += first not in b"\r"
        self._counters.lines += len(lines)
        self._counters.foreign += foreign

    def end(self) -> None:
        """No more lines."""
        if self._event is not None:
            self._sink(self._event)
        self._event = None

    def _check(self, old: int) -> None:
        # So QEMU begins an exception; what it serviced before was delivered without a line.
        self._serviced = None
        self._nested = old != _NONE
        if old == DF:
            self._triple()

    def _new(self, time: int, disposition: str) -> Event:
        self._sequence += 1
        return Event(self._sequence - 1, time, disposition, "QEMU")

    def _triple(self) -> None:
        # QEMU tells it twice if it logs resets as well (`-d int,cpu_reset`).
        if self._event is None or self._event.exit_reason is None:
            before = self._event
            self.end()
            self._event = self._new(self._sequence, "EXIT")
            self._event.exit_reason = "TRIPLE_FAULT"
            if before is not None:
                self._event.rip, self._event.cr3 = before.rip, before.cr3

    def _begin(self, line: bytes) -> None:
        match = _EVENT.match(line)
        body = _BODY.match(match["body"]) if match else None
        if match is None or body is None:
            self._counters.unreadable += match is not None
            self._counters.foreign += match is None
            self.unread = self.unread or line
            return
        before = self._event
        self.end()
        event = self._new(int(match["count"]), "DELIVER")
        event.vector = int(match["vector"], 16)
        event.type = self._type(event.vector, soft=body["soft"] == b"1")
        event.rip = int(body["rip"], 16)
        event.cpl = int(body["cpl"])
        if event.type == TYPE_HARDWARE_EXCEPTION:
            if ERROR_CODE_VECTORS >> event.vector & 1:
                event.error_code = int(body["code"], 16)
            if event.vector == PF and body["cr2"]:
                event.linear_address = int(body["cr2"], 16)
        if self._nested:
            event.depth = 1
        if before is not None and (self._nested or _met(event, before)):
            event.depth = min(before.depth + 1, 255)
            event.interrupted_vector = before.vector
            event.interrupted_type = before.type
            event.interrupted_error_code = before.error_code
        self._event = event
        self._serviced, self._nested = None, False

    def _type(self, vector: int, *, soft: bool) -> int:
        if soft:
            return TYPE_SOFTWARE_EXCEPTION if vector in {BP, OF} else TYPE_SOFTWARE_INTERRUPT
        if vector >= 32 or self._serviced == vector:
            return TYPE_EXTERNAL_INTERRUPT
        return TYPE_NMI if vector == NMI else TYPE_HARDWARE_EXCEPTION


def _met(event: Event, before: Event) -> bool:
    """Whether an event's error code says that it met the delivery of the one before."""
    code = event.error_code
    if code is None or event.vector == PF or before.vector is None:
        return False
    return bool(code & _IN_IDT) and code >> 3 == before.vector and event.rip == before.rip
