"""From points to the rows of a trace: whatever the recording's form, the rest is the same."""

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trapgate.trace.imports import pairing
from trapgate.trace.imports import rows as trace_rows
from trapgate.trace.imports.exits import ACCESS_WORDS, Column, Meaning, meaning
from trapgate.trace.imports.pairing import (
    BY,
    BY_INJECTION,
    LATENCY,
    LEVEL,
    R_PROCESS,
    R_SLOT,
    R_THREAD,
    R_TIME,
    R_VCPU,
    REFLECTED,
    ROW,
    SEQUENCE,
    STATE,
)
from trapgate.trace.imports.points import (
    ADDRESS,
    HAS,
    IS_WRITE,
    KIND,
    NOTHING,
    POSTED,
    PROCESS,
    SLOT,
    THREAD,
    VCPU,
)
from trapgate.trace.imports.reasons import Reasons
from trapgate.trace.imports.rows import Counters, RowWriter
from trapgate.trace.schema import HOST_SCHEMA

Cells = NDArray[np.int64]

_REASON_WORDS: Final = ("KVM_EXIT", "KVM_NESTED_EXIT", "KVM_INJECTION", "KVM_REINJECTION")
_VCPUS: Final = 1 << 40
"""Where a thread is not told its vCPU stands for it, by a number above those of all threads."""


class Assembler:
    """Takes points in order, and writes rows; memory is that of the threads there are."""

    def __init__(self, counters: Counters, writer: RowWriter) -> None:
        self.reasons = Reasons()
        self.timed = False
        self._counters = counters
        self._writer = writer
        self._threads: dict[int, int] = {-1: 0}
        self._processes: dict[int, int] = {}
        self._states = np.zeros(STATE, np.int64)
        self._states[[pairing.LAST_VCPU, pairing.LAST_CPU]] = -1
        self._known = np.zeros(pairing.KNOWN, np.int64)
        self._known[pairing.SLOTS] = 1
        self._cpus: Cells = np.full(pairing.CPUS, -1, np.int64)
        self._rows: list[Cells] = []
        self._waiting = 0

    def take(self, points: Cells) -> None:
        """Points in order (n x POINT); the reasons of exits are numbers of `reasons`."""
        if not len(points):
            return
        self._note_posted(points)
        self._place(points)
        room = len(points) + (len(self._threads) + 1) * 5
        out = np.empty(room * ROW, np.int64)
        count = pairing.pair(
            points.reshape(-1), len(points), self._states, self._known, self._cpus, out
        )
        self._keep(out[: count * ROW].reshape(-1, ROW).copy())

    def end(self) -> None:
        """No more points: exits that still wait have no latency."""
        out = np.empty(((len(self._threads) + 1) * 5) * ROW, np.int64)
        count = pairing.finish(self._states, self._known, out)
        self._keep(out[: count * ROW].reshape(-1, ROW))
        self._flush()
        known, counters = self._known, self._counters
        counters.unpaired += int(known[pairing.UNPAIRED])
        counters.lost += int(known[pairing.LOST])
        counters.gaps += int(known[pairing.GAPS])
        counters.foreign += int(known[pairing.STRAY])
        counters.backwards += int(known[pairing.BACKWARDS])
        counters.unreadable += int(known[pairing.UNREAD])
        counters.untimed += int(known[pairing.UNTIMED_POINTS])

    def _note_posted(self, points: Cells) -> None:
        """Keep which interrupts of devices go to the guest without an exit: no events of it."""
        mine = points[:, KIND] == POSTED
        if not mine.any():
            return
        on = mine & (points[:, HAS] & IS_WRITE != 0)
        for vcpu, vector in np.unique(points[on][:, [VCPU, ADDRESS]], axis=0).tolist():
            self._counters.posted.add((vcpu, vector))
        points[mine, KIND] = NOTHING

    def _place(self, points: Cells) -> None:
        """Number the threads and the processes of points."""
        thread, vcpu = points[:, THREAD], points[:, VCPU]
        key = np.where(thread >= 0, thread, np.where(vcpu >= 0, vcpu + _VCPUS, -1))
        points[:, SLOT] = _numbered(key, self._threads)
        points[:, SLOT][key < 0] = -1
        missing = len(self._threads) * STATE - len(self._states)
        if missing > 0:
            more = np.zeros((missing // STATE, STATE), np.int64)
            more[:, [pairing.LAST_VCPU, pairing.LAST_CPU]] = -1
            self._states = np.concatenate([self._states, more.reshape(-1)])
        self._known[pairing.SLOTS] = len(self._threads)
        process = points[:, PROCESS]
        told = process >= 0
        numbers = np.zeros(len(points), np.int64)
        if told.any():
            numbers[told] = _numbered(process[told], self._processes)
        points[:, PROCESS] = numbers

    def _keep(self, out: Cells) -> None:
        if not len(out):
            return
        self._rows.append(out)
        self._waiting += len(out)
        if self._waiting >= trace_rows.ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        rows = np.concatenate(self._rows)
        self._rows, self._waiting = [], 0
        rows = rows[np.argsort(rows[:, SEQUENCE], kind="stable")]
        states = self._states.reshape(-1, STATE)
        # Older kernels name the vCPU at its entries only, and the first may be far.
        vcpu = states[rows[:, R_SLOT], pairing.LAST_VCPU]
        rows[:, R_VCPU] = np.where(rows[:, R_VCPU] >= 0, rows[:, R_VCPU], vcpu)
        if not self.timed:
            rows[:, R_TIME] = rows[:, SEQUENCE]
        told = meaning(rows, self.reasons)
        self._counters.vectorless += int((told.code_missing & ~told.vector.known).sum())
        self._writer.write(_batch(rows, told, self.reasons))


def _numbered(keys: Cells, numbers: dict[int, int]) -> Cells:
    """The numbers of keys, in the order of their first appearance; new ones are added."""
    found, first, back = np.unique(keys, return_index=True, return_inverse=True)
    for at in np.argsort(first).tolist():
        numbers.setdefault(int(found[at]), len(numbers))
    return np.array([numbers[key] for key in found.tolist()], np.int64)[back]


def _batch(rows: Cells, told: Meaning, reasons: Reasons) -> pa.RecordBatch:
    """A row group from rows and what they mean."""
    count = len(rows)
    injected = rows[:, BY] >= BY_INJECTION
    always = np.ones(count, np.bool_)
    none = Column(np.zeros(count, np.int64), ~always)
    columns: dict[str, pa.Array] = {
        "disposition": _words(Column(injected.astype(np.int64), always), ["EXIT", "DELIVER"], 8),
        "reason": _words(Column(rows[:, BY], always), list(_REASON_WORDS), 8),
        "exit_reason": _words(
            Column(rows[:, pairing.R_REASON], rows[:, pairing.R_REASON] >= 0), reasons.words, 16
        ),
        "access": _words(told.access, ACCESS_WORDS, 16),
        "injected": pa.array(injected),
        "reflected": pa.array(always, mask=rows[:, REFLECTED] == 0),
        "code_missing": pa.array(always, mask=~told.code_missing),
    }
    numbers: dict[str, Column] = {
        "sequence": Column(rows[:, SEQUENCE], always),
        "time": Column(rows[:, R_TIME], always),
        "vm": Column(rows[:, R_PROCESS], always),
        "vmcs": Column(none.values, always),
        "depth": Column(told.depth, always),
        "vcpu": Column(rows[:, R_VCPU], rows[:, R_VCPU] >= 0),
        "thread": Column(rows[:, R_THREAD], rows[:, R_THREAD] >= 0),
        "latency": Column(rows[:, LATENCY], rows[:, LATENCY] >= 0),
        "level": Column(rows[:, LEVEL], rows[:, LEVEL] >= 0),
    }
    for field in HOST_SCHEMA:
        if field.name not in columns:
            told_column: Column = getattr(told, field.name, none)
            columns[field.name] = _numbers(numbers.get(field.name, told_column), field.type)
    return pa.RecordBatch.from_arrays(
        [columns[name] for name in HOST_SCHEMA.names], schema=HOST_SCHEMA
    )


def _numbers(column: Column, kind: pa.DataType) -> pa.Array:
    values = column.values.astype(kind.to_pandas_dtype())
    return pa.array(values, kind, mask=None if column.known.all() else ~column.known)


def _words(column: Column, words: list[str], width: int) -> pa.Array:
    """Names by numbers; only those that occur are kept, in the order of first use."""
    values = np.where(column.known, column.values, -1)
    found, first, back = np.unique(values, return_index=True, return_inverse=True)
    order = [n for n in np.argsort(first).tolist() if found[n] >= 0]
    place = np.zeros(len(found), np.int64)
    place[order] = range(len(order))
    indices = place[back].astype(np.int8 if width == 8 else np.int16)
    names = pa.array([words[int(found[n])] for n in order], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(indices, mask=~column.known), names)
