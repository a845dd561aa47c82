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
from trapgate.trace.imports.exits import access_words
from trapgate.trace.imports.rows import Counters, Event, Sink

_LINE = re.compile(
    rb"^@exits\[(\d{1,2}), (\d{1,10}), (\d{1,10}), (-?\d{1,20}), ([12]), ([01])"
    rb"(?:, (-?\d{1,20}), (-?\d{1,20}))?\]: (\d{1,18})\s*$"
)
_INJECTION = re.compile(rb"^@injections\[([03]), (\d{1,3}), (\d{1,10})\]: (\d{1,18})\s*$")
_LOST = re.compile(rb"^(?:Lost (\d{1,15}) events|.*(?:[Mm]ap full|map_update_elem))")
_FULL_REMARK = "a map was full, so kinds of exits lack: set BPFTRACE_MAP_KEYS_MAX and record again"
_SVM = 2
_MSRS = 1 << 32
"""What is not below is none: the exit had no kvm_msr."""

SIGN: Final = re.compile(rb"^@(?:exits|injections)\[\d+, ", re.MULTILINE)
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
            match, injection = _LINE.match(line), _INJECTION.match(line)
            if match is not None:
                self._sink(self._event(*(int(text or 0) for text in match.groups())))
            elif injection is not None and int(injection[2]) < 256:
                self._sink(self._injected(*map(int, injection.groups())))
            elif line.startswith((b"@exits[", b"@injections[")):
                self._counters.unreadable += 1
                self.unread = self.unread or line
            elif (lost := _LOST.match(line)) is not None:
                self._counters.lost += int(lost[1] or 0)
                self._counters.gaps += 1
                if _FULL_REMARK not in self._counters.remarks and lost[1] is None:
                    self._counters.remarks.append(_FULL_REMARK)
            else:
                self._counters.foreign += 1

    def end(self) -> None:
        """No more lines."""

    def _injected(self, kind: int, vector: int, code: int, n: int) -> Event:
        event = Event(self._sequence, self._sequence, "DELIVER", "KVM_INJECTION", injected=True)
        self._sequence += 1
        event.vector, event.type, event.weight = vector, kind, n
        if kind == TYPE_HARDWARE_EXCEPTION and ERROR_CODE_VECTORS >> min(vector, 32) & 1:
            event.error_code = code & 0xFFFFFFFF
        return event

    def _event(
        self,
        isa: int,
        reason: int,
        information: int,
        code: int,
        level: int,
        reflected: int,
        qualification: int,
        msr: int,
        n: int,
    ) -> Event:
        word = reasons.word_for(reason, svm=isa == _SVM)
        event = Event(self._sequence, self._sequence, "EXIT", "KVM_EXIT", exit_reason=word)
        self._sequence += 1
        event.level, event.weight = level, n
        event.reflected = True if reflected else None
        kind, vector = reasons.kind_of(word)
        self._accessed(event, kind, qualification, msr)
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

    def _accessed(self, event: Event, kind: int, qualification: int, msr: int) -> None:
        """What the exit is about: a port, a control register, an MSR, a page of some rights."""
        words = access_words(kind, qualification)
        if kind in {reasons.PORT, reasons.SVM_PORT}:
            event.operand = qualification >> 16 & 0xFFFF
        elif kind == reasons.REGISTER:
            event.operand = qualification & 15 if qualification >> 4 & 3 < 2 else 0
        elif kind in {reasons.MSR, reasons.SVM_MSR} and 0 <= msr < _MSRS:
            event.operand = msr
        elif words is None:
            return
        event.qualification, event.access = qualification, words
