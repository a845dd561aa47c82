"""Exceptions of a trace, counted: by code, by what happened and by what was needed.

Memory does not grow with the trace: it is read in batches, and equal faults are one row.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trapgate.criteria.errors import CriteriaError
from trapgate.errors import suggestion
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.vectors import VECTORS_WITH_ERROR_CODE, Vector
from trapgate.trace import Trace

MARK = "needed"
BATCH = 65536
"""Rows that are read at a time."""

_COLUMNS = ("vm", "vector", "type", "error_code", "rip", "disposition", "reason", "injected")
_KINDS = (
    InterruptionType.HARDWARE_EXCEPTION,
    InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
    InterruptionType.SOFTWARE_EXCEPTION,
)
_NONE = -1
"""Stands for null: an event that is not a fault has no vector, say."""

_Cells = NDArray[np.int64]
_Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Faults:
    """Exceptions of a trace that a filter decides about, equal ones counted together.

    `code` is -1 where there is none; `exited` says what happened, `needed` what should,
    `count` how often. `more` has further columns of the trace by their names, as signed
    64-bit cells.
    """

    vector: _Cells
    code: _Cells
    exited: _Flags
    needed: _Flags
    count: _Cells
    more: Mapping[str, _Cells] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The number of faults."""
        return int(self.count.sum())


def read_faults(
    path: Path,
    mark: str = "",
    hold_out: float = 0.0,
    *,
    own: bool = False,
    more: Sequence[str] = (),
) -> tuple[Faults, Faults, str, int]:
    """The exceptions of a trace, but for the last `hold_out` of them; these; the column that
    marks the needed ones (empty: inferred); and how many exceptions are left out because the
    trace does not tell their error codes. With `own` exits that were given to the hypervisor
    above are left out. Memory does not grow with the trace, but for the
    different faults that `more` columns tell apart.

    Raises:
        TraceError: the file is not a trace.
        CriteriaError: the column `mark` is missing or not Boolean.
    """
    with Trace(path) as trace:
        names = trace.schema.names
        column = mark or (MARK if MARK in names else "")
        if column and column not in names:
            raise CriteriaError(
                f"no such column; {suggestion(column, names)}", path=str(path), field=column
            )
        if column and not pa.types.is_boolean(trace.schema.field(column).type):
            raise CriteriaError(
                "is not Boolean; mark needed exits with true", path=str(path), field=column
            )
        optional = {"vcpu", "thread", "weight", *(["reflected"] if own else [])} & set(names)
        wanted = sorted({*_COLUMNS, *optional, *more, *({column} if column else ())})
        total = sum(
            int(_rows(batch, column)["ruled"].sum()) for batch in trace.batches(wanted, rows=BATCH)
        )
        split = total - int(total * hold_out)
        parts = _Counted(more), _Counted(more)
        unknown = seen = 0
        carried: dict[str, NDArray[Any]] | None = None
        for batch in trace.batches(wanted, rows=BATCH):
            rows = _rows(batch, column) | {name: _signed(batch, name) for name in more}
            unknown += int(rows["lacking"].sum())
            # The number of each among the faults, by which it is learned from or held out.
            rows["number"] = seen + np.cumsum(rows["ruled"])
            seen += int(rows["ruled"].sum())
            if carried is not None:
                rows = {name: np.concatenate([carried[name], rows[name]]) for name in rows}
            carried = None if column else _last_of_tracks(rows)
            _count(rows, parts, split, infer=not column, final=carried is None)
        if carried is not None:
            _count(carried, parts, split, infer=True, final=True)
    return parts[0].faults(), parts[1].faults(), column, unknown


def weights_in(path: Path) -> Mapping[int, Mapping[int, int]]:
    """How often each error code of each vector occurs in a trace; raises TraceError.

    Code -1 counts the faults that have none, or none that the trace tells.
    """
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    with Trace(path) as trace:
        weighted = ["weight"] if "weight" in trace.schema.names else []
        for batch in trace.batches(["vector", "error_code", "type", "injected", *weighted]):
            vector, code = _cells(batch, "vector", _NONE), _cells(batch, "error_code", _NONE)
            kind, injected = _cells(batch, "type", _NONE), _cells(batch, "injected", False)
            known, lacking = _ruled(vector, code, kind, injected)
            mine = known | lacking
            pairs, back = np.unique(
                np.stack([vector[mine], code[mine]]), axis=1, return_inverse=True
            )
            weight = _cells(batch, "weight", 1)[mine] if weighted else np.ones(mine.sum(), np.int64)
            numbers = np.zeros(pairs.shape[1], np.int64)
            np.add.at(numbers, back.reshape(-1), weight)
            for one, seen, number in zip(*pairs.tolist(), numbers.tolist(), strict=True):
                counts[one][seen] += number
    return counts


class _Counted(Counter[tuple[int, ...]]):
    """Faults counted by vector, code, whether they exited, whether that was needed, and more."""

    def __init__(self, more: Sequence[str] = ()) -> None:
        super().__init__()
        self.more = more

    def faults(self) -> Faults:
        """As columns, sorted."""
        keys = sorted(self)
        columns = list(zip(*keys, strict=True)) or [() for _ in range(4 + len(self.more))]
        return Faults(
            np.array(columns[0], np.int64),
            np.array(columns[1], np.int64),
            np.array(columns[2], np.bool_),
            np.array(columns[3], np.bool_),
            np.array([self[key] for key in keys], np.int64),
            {name: np.array(columns[4 + n], np.int64) for n, name in enumerate(self.more)},
        )


def _rows(batch: pa.RecordBatch, column: str) -> dict[str, NDArray[Any]]:
    """What is asked of each event, as arrays."""
    vector, code = _cells(batch, "vector", _NONE), _cells(batch, "error_code", _NONE)
    injected = _cells(batch, "injected", False)
    ruled, lacking = _ruled(vector, code, _cells(batch, "type", _NONE), injected)
    found = set(batch.schema.names)
    if "reflected" in found:  # asked for by who leaves them out
        ruled &= ~_cells(batch, "reflected", False)
    zeros = np.zeros(batch.num_rows, np.int64)
    again = batch["reason"].cast(pa.string()).fill_null("").to_numpy(zero_copy_only=False)
    return {
        "vector": vector,
        "code": code,
        "injected": injected & (again != "KVM_REINJECTION"),
        "ruled": ruled,
        "lacking": lacking,
        "exited": batch["disposition"]
        .cast(pa.string())
        .fill_null("")
        .to_numpy(zero_copy_only=False)
        == "EXIT",
        "marked": _cells(batch, column, False) if column else np.zeros(len(zeros), np.bool_),
        "rip": batch["rip"].fill_null(0).to_numpy(zero_copy_only=False),
        "told": batch["rip"].is_valid().to_numpy(zero_copy_only=False),
        "vm": _cells(batch, "vm", _NONE),
        "vcpu": _cells(batch, "vcpu", _NONE) if "vcpu" in found else zeros,
        "thread": _cells(batch, "thread", _NONE) if "thread" in found else zeros,
        "weight": _cells(batch, "weight", 1) if "weight" in found else zeros + 1,
        "number": zeros,
    }


def _cells(table: pa.Table | pa.RecordBatch, name: str, null: int | bool) -> NDArray[Any]:
    """A column as 64-bit integers, or truths; `null` stands for null."""
    kind = pa.bool_() if isinstance(null, bool) else pa.int64()
    cells: NDArray[Any] = table[name].cast(kind).fill_null(null).to_numpy(zero_copy_only=False)
    return cells


def _signed(batch: pa.RecordBatch, name: str) -> NDArray[np.int64]:
    """A column of unsigned numbers as signed cells; 0 stands for null."""
    unsigned: NDArray[np.uint64] = (
        batch[name].cast(pa.uint64()).fill_null(0).to_numpy(zero_copy_only=False)
    )
    return unsigned.view(np.int64)


def _ruled(vector: _Cells, code: _Cells, kind: _Cells, injected: _Flags) -> tuple[_Flags, _Flags]:
    """Which events the exception bitmap and its filters decide; and those that lack a code."""
    exception = np.isin(kind, [int(one) for one in _KINDS]) & ~injected
    exception &= (vector >= 0) & (vector < 32) & (vector != Vector.NMI)
    lacking = exception & np.isin(vector, VECTORS_WITH_ERROR_CODE) & (code < 0)
    return exception & ~lacking, lacking


def _by_track(rows: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """The order in which each virtual processor's events stand together."""
    order: NDArray[np.int64] = np.lexsort((rows["thread"], rows["vcpu"], rows["vm"]))
    return order


def _same_track(rows: dict[str, NDArray[Any]], now: _Cells, then: _Cells) -> _Flags:
    same: _Flags = np.ones(len(now), np.bool_)
    for name in ("vm", "vcpu", "thread"):
        same &= rows[name][now] == rows[name][then]
    return same


def _last_of_tracks(rows: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The last event of each virtual processor: what follows it is not known yet."""
    order = _by_track(rows)
    last = np.ones(len(order), np.bool_)
    last[:-1] = ~_same_track(rows, order[:-1], order[1:])
    return {name: cells[order[last]] for name, cells in rows.items()}


def _count(
    rows: dict[str, NDArray[Any]],
    parts: tuple[_Counted, _Counted],
    split: int,
    *,
    infer: bool,
    final: bool,
) -> None:
    """Count the faults whose successor is known (all, if `final`) in the part they are in."""
    wanted = rows["ruled"].copy()
    needed = rows["exited"] & rows["marked"]
    if infer:
        order = _by_track(rows)
        now, then = order[:-1], order[1:]
        same = _same_track(rows, now, then)
        if not final:
            last = np.ones(len(order), np.bool_)
            last[:-1] = ~same
            wanted[order[last]] = False
        answered = same & (rows["vector"][now] == rows["vector"][then])
        answered &= (rows["rip"][now] == rows["rip"][then]) | ~rows["told"][then]
        reflected = np.zeros(len(order), np.bool_)
        reflected[now] = answered & rows["injected"][then] & ~rows["injected"][now]
        needed = rows["exited"] & ~reflected
    for part, mine in zip(
        parts, (wanted & (rows["number"] <= split), wanted & (rows["number"] > split)), strict=True
    ):
        more = [rows[name] for name in part.more]
        table = np.stack(
            [cells[mine].astype(np.int64) for cells in
             (rows["vector"], rows["code"], rows["exited"], needed, *more)]
        )  # fmt: skip
        keys, back = np.unique(table, axis=1, return_inverse=True)
        sums = np.zeros(keys.shape[1], np.int64)
        np.add.at(sums, back.reshape(-1), rows["weight"][mine])
        for key, count in zip(keys.T.tolist(), sums.tolist(), strict=True):
            part[tuple(key)] += count
