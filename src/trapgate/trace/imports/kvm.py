"""KVM's trace points as text: `trace-cmd report`, ftrace's `trace` file, `perf script`.

Text comes in pieces of whole lines; `scan` makes points of them, `Assembler` events.
"""

import re
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.trace.imports import points, scan
from trapgate.trace.imports.assembler import Assembler
from trapgate.trace.imports.points import (
    ADDRESS,
    CPU,
    GAP,
    HAS,
    IS_SVM,
    KIND,
    LENGTH,
    NOTE,
    NOTHING,
    POINT,
    REASON,
    START,
)
from trapgate.trace.imports.rows import Counters

Cells = NDArray[np.int64]

_NAMES = b"|".join(name.encode() for name in sorted(points.EVENT_KINDS, reverse=True))
SIGN: Final = re.compile(rb"^# tracer:|(?:^|[\s:>])(?:" + _NAMES + rb")(?::|[ \t])", re.MULTILINE)
"""What is typical of the format."""

_LOST = re.compile(
    rb"^\s*CPU:\s*(?P<cpu>\d{1,5})\s+\[(?:LOST\s+)?(?P<count>\d{1,18})?\s*EVENTS(?: DROPPED)?\]"
)
_PERF_LOST = re.compile(
    rb"\bPERF_RECORD_LOST(?:_SAMPLES)?\b.{0,80}?\blost:?\s+(?P<count>\d{1,18})\b"
)
_ENTRIES = re.compile(rb"^# entries-in-buffer/entries-written:\s*(\d{1,18})/(\d{1,18})\b")
_FTRACE_HEAD = re.compile(rb"\(\s*(?:\d{1,9}|-+)\)\s+\[|\s\d{1,15}us[+!#*@$]?\s*:")


def format_of(line: bytes) -> str:
    """The name of the format of a line in which `SIGN` is."""
    if line.startswith(b"# tracer:"):
        return "ftrace"
    if b"kvm:kvm_" in line:
        return "perf-script"
    return "ftrace" if _FTRACE_HEAD.search(line) else "trace-cmd"


class KvmText:
    """Reads pieces of text."""

    def __init__(self, counters: Counters, assembler: Assembler) -> None:
        self.unread: bytes | None = None
        self._counters = counters
        self._assembler = assembler
        self._digests: dict[int, int] = {}
        self._ticks = False
        self._points: Cells = np.empty(0, np.int64)

    @property
    def unit(self) -> str:
        """What times count."""
        if not self._assembler.timed:
            return "events"
        return "ticks" if self._ticks else "ns"

    def take(self, piece: bytes) -> None:
        """Read whole lines."""
        text = np.frombuffer(piece, np.uint8).astype(np.int64)
        room = (len(piece) // 16 + 1) * POINT
        if len(self._points) < room:
            self._points = np.empty(room, np.int64)
        counts = np.zeros(points.COUNTS, np.int64)
        found = scan.scan(text, len(text), self._points, counts)
        self._counters.lines += int(counts[points.LINES])
        self._counters.foreign += int(counts[points.FOREIGN])
        self._counters.unreadable += int(counts[points.UNREADABLE])
        if self.unread is None and counts[points.FIRST_UNREAD_LENGTH]:
            start = int(counts[points.FIRST_UNREAD])
            self.unread = piece[start : start + int(counts[points.FIRST_UNREAD_LENGTH])]
        self._ticks |= bool(counts[points.TICKS])
        self._assembler.timed |= bool(counts[points.TIMES])
        told = self._points[: found * POINT].reshape(-1, POINT)
        self._notes(told, piece)
        self._reasons(told, piece)
        self._assembler.take(told)

    def end(self) -> None:
        """No more text."""
        self._assembler.end()

    def _notes(self, told: Cells, piece: bytes) -> None:
        for at in np.flatnonzero(told[:, KIND] == NOTE).tolist():
            point = told[at]
            line = piece[int(point[START]) : int(point[START] + point[LENGTH])][:400]
            point[KIND] = GAP
            point[ADDRESS] = 0
            if lost := _LOST.match(line):
                point[ADDRESS], point[CPU] = int(lost["count"] or 0), int(lost["cpu"])
            elif lost := _PERF_LOST.search(line):
                point[ADDRESS] = int(lost["count"])
            elif (entries := _ENTRIES.match(line)) and int(entries[2]) > int(entries[1]):
                point[ADDRESS] = int(entries[2]) - int(entries[1])
            else:
                point[KIND] = NOTHING
                self._counters.foreign += 1

    def _reasons(self, told: Cells, piece: bytes) -> None:
        """Put the numbers of reasons in the place of their digests."""
        with_reason = np.flatnonzero(told[:, LENGTH] * (told[:, KIND] < NOTE))
        if not len(with_reason):
            return
        digests, first, back = np.unique(
            told[with_reason, REASON], return_index=True, return_inverse=True
        )
        for digest, at in zip(digests.tolist(), with_reason[first].tolist(), strict=True):
            if digest not in self._digests:
                start, length = int(told[at, START]), int(told[at, LENGTH])
                word = piece[start : start + length].decode("ascii", "replace")
                svm = bool(told[at, HAS] & IS_SVM)
                self._digests[digest] = self._assembler.reasons.number(word, svm=svm)
        numbers = np.array([self._digests[digest] for digest in digests.tolist()], np.int64)
        told[with_reason, REASON] = numbers[back]
