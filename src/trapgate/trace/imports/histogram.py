"""Counts of exits that bpftrace kept in the kernel (`trapgate trace collect --tool bpftrace`)."""

import re
from typing import Final

from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
)
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, NMI
from trapgate.trace.imports import reasons
from trapgate.trace.imports.rows import Counters, Event, Sink

_LINE = re.compile(
    rb"^@exits\[(\d{1,2}), (\d{1,10}), (\d{1,10}), (\d{1,20}), ([12]), ([01])\]: (\d{1,18})\s*$"
)
_SVM = 2

SIGN: Final = re.compile(rb"^@exits\[\d+, ", re.MULTILINE)
"""What is typical of the format."""


class HistogramReader:
    """One row for each kind of exit, with its count as `weight`. There are no times."""

    unit = "events"

    def __init__(self, counters: Counters, sink: Sink) -> None:
        self.unread: bytes | None = None
        self._counters = counters
        self._sink = sink
        self._sequence = 0

    def take(self, piece: bytes) -> None:
        """Read whole lines."""
        for line in piece.splitlines():
            self._counters.lines += 1
            match = _LINE.match(line)
            if match is not None:
                self._sink(self._event(*map(int, match.groups())))
            elif line.startswith(b"@exits["):
                self._counters.unreadable += 1
                self.unread = self.unread or line
            else:
                self._counters.foreign += 1

    def end(self) -> None:
        """No more lines."""

    def _event(
        self, isa: int, reason: int, information: int, code: int, level: int, reflected: int, n: int
    ) -> Event:
        word = reasons.word_for(reason, svm=isa == _SVM)
        event = Event(self._sequence, self._sequence, "EXIT", "KVM_EXIT", exit_reason=word)
        self._sequence += 1
        event.level, event.weight = level, n
        event.reflected = True if reflected else None
        kind, vector = reasons.kind_of(word)
        if isa == _SVM:
            if kind == reasons.SVM_EXCEPTION and vector >= 0:
                event.vector, event.type = vector, TYPE_HARDWARE_EXCEPTION
                if ERROR_CODE_VECTORS >> vector & 1:
                    event.error_code = code & 0xFFFFFFFF
            elif kind == reasons.SVM_NMI:
                event.vector, event.type = int(NMI), TYPE_NMI
            elif kind == reasons.SVM_INTERRUPT:
                event.type = TYPE_EXTERNAL_INTERRUPT
        elif kind in {reasons.EXCEPTION, reasons.INTERRUPT} and information & INFO_VALID:
            event.vector = information & INFO_VECTOR_MASK
            event.type = information >> INFO_TYPE_SHIFT & INFO_TYPE_MASK
            if information & INFO_DELIVER_ERROR_CODE:
                event.error_code = code & 0xFFFFFFFF
        elif kind == reasons.EXCEPTION:
            event.code_missing = True
        return event
