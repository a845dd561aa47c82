"""QEMU's log of interrupts and exceptions (`-d int`)."""

import re

from trapgate.sdm.interruption import (
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.vectors import BP, DF, ERROR_CODE_VECTORS, NMI, OF, PF
from trapgate.trace.imports.rows import Counters, Event, Sink

_EVENT = re.compile(r"^\s*(?P<count>\d{1,18}): v=(?P<vector>[0-9a-f]{2})\b(?P<body>.*)$")
_BODY = re.compile(
    r"^ e=(?P<code>[0-9a-f]{4,8}) i=(?P<soft>[01]) cpl=(?P<cpl>[0-3]) "
    r"IP=[0-9a-f]{4}:(?P<rip>[0-9a-f]{8,16}) pc=[0-9a-f]{8,16} SP=[0-9a-f]{4}:[0-9a-f]{8,16}"
    r"(?: CR2=(?P<cr2>[0-9a-f]{8,16})| .*)$"
)
_CR3 = re.compile(r"\bCR3=([0-9a-f]{8,16})\b")
_CHECK = re.compile(r"^check_exception old: 0x(?P<old>[0-9a-f]{1,8}) new 0x[0-9a-f]+")
_SERVICING = re.compile(r"^Servicing hardware INT=0x[0-9a-f]{2}")
_NONE = 0xFFFFFFFF


def recognise(line: str) -> str | None:
    """The name of the format if `line` is typical of it."""
    match = _EVENT.match(line)
    known = _BODY.match(match["body"]) if match else _CHECK.match(line)
    return "qemu" if known else None


class QemuReader:
    """One row for each event that QEMU delivers; the register dump after it gives CR3.

    QEMU prints no time: `time` is the number of the event.
    """

    unit = "events"

    def __init__(self, counters: Counters, sink: Sink) -> None:
        self._counters = counters
        self._sink = sink
        self._sequence = 0
        self._hardware = False
        self._nested = False
        self._event: Event | None = None

    def line(self, line: str) -> bool:
        """Take a line; False if it begins an event but cannot be read."""
        if match := _EVENT.match(line):
            return self._begin(match)
        if check := _CHECK.match(line):
            old = int(check["old"], 16)
            self._nested = old != _NONE
            if old == DF:
                self._triple()
        elif _SERVICING.match(line):
            self._hardware = True
        elif line.startswith("Triple fault"):
            self._triple()
        else:
            if self._event is not None and (cr3 := _CR3.search(line)):
                self._event.cr3 = int(cr3[1], 16)
            self._counters.foreign += 1
        return True

    def end(self) -> None:
        """No more lines."""
        if self._event is not None:
            self._sink(self._event)
        self._event = None

    def _new(self, time: int, disposition: str) -> Event:
        self._sequence += 1
        return Event(self._sequence - 1, time, disposition, "QEMU")

    def _triple(self) -> None:
        # QEMU tells it twice if it logs resets as well (`-d int,cpu_reset`).
        if self._event is None or self._event.exit_reason is None:
            self.end()
            self._event = self._new(self._sequence, "EXIT")
            self._event.exit_reason = "TRIPLE_FAULT"

    def _begin(self, match: re.Match[str]) -> bool:
        body = _BODY.match(match["body"])
        if body is None:
            return False
        self.end()
        event = self._new(int(match["count"]), "DELIVER")
        event.vector = int(match["vector"], 16)
        event.type = self._type(event.vector, soft=body["soft"] == "1")
        event.rip = int(body["rip"], 16)
        event.cpl = int(body["cpl"])
        event.depth = int(self._nested)
        if event.type == TYPE_HARDWARE_EXCEPTION:
            if ERROR_CODE_VECTORS >> event.vector & 1:
                event.error_code = int(body["code"], 16)
            if event.vector == PF and body["cr2"]:
                event.linear_address = int(body["cr2"], 16)
        self._event = event
        self._hardware = self._nested = False
        return True

    def _type(self, vector: int, *, soft: bool) -> int:
        if soft:
            return TYPE_SOFTWARE_EXCEPTION if vector in {BP, OF} else TYPE_SOFTWARE_INTERRUPT
        if vector >= 32 or self._hardware:
            return TYPE_EXTERNAL_INTERRUPT
        return TYPE_NMI if vector == NMI else TYPE_HARDWARE_EXCEPTION
