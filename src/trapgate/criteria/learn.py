"""Profile-guided filters: from a trace in which the VMM marked the exits that it needed.

An exit is marked by a Boolean column of the trace (`needed`, unless told otherwise).
Without such a column an exit counts as reflected, not needed, if the VMM did with it
what no VMM need be there for: the next event of the same virtual processor is an
injection of the same vector at the same RIP (which a real host does not record: then
anywhere).
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trapgate.criteria.answer import Definition
from trapgate.criteria.codes import (
    demand_within,
    has_error_code,
    layout_of,
    vector_label,
)
from trapgate.criteria.define import compiled
from trapgate.criteria.errors import CriteriaError
from trapgate.criteria.filters import Filter
from trapgate.criteria.problem import Deadline
from trapgate.criteria.schemes import limits_of
from trapgate.criteria.spec import DELIVER, EXIT, FREE
from trapgate.criteria.tasks import Goals, Task, task_of_goals
from trapgate.errors import suggestion
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.vectors import TABLE, VECTORS_WITH_ERROR_CODE, Vector
from trapgate.trace import Trace

Unseen = Literal["exit", "deliver", "free"]
"""What becomes of error codes that the trace does not show."""

UNSEEN: dict[str, int] = {"exit": EXIT, "deliver": DELIVER, "free": FREE}
MARK = "needed"
_COLUMNS = ("vm", "vector", "type", "error_code", "rip", "disposition", "injected")
_KINDS = (
    InterruptionType.HARDWARE_EXCEPTION,
    InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
    InterruptionType.SOFTWARE_EXCEPTION,
)

_Cells = NDArray[np.int64]
_Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Faults:
    """Exceptions of a trace that a filter decides about, in order.

    `code` is -1 where there is none; `exited` says what happened, `needed` what should.
    """

    vector: _Cells
    code: _Cells
    exited: _Flags
    needed: _Flags

    def part(self, rows: slice) -> "Faults":
        """Only those rows."""
        return Faults(self.vector[rows], self.code[rows], self.exited[rows], self.needed[rows])

    def __len__(self) -> int:
        """The number of faults."""
        return len(self.vector)


@dataclass(frozen=True)
class Effect:
    """What the learned filter would have done to (part of) a trace.

    Of `faults`, `exits_before` exited and `exits_after` would have; `needed` exits were
    needed, of which `missed` would not have happened any more. Parts of a trace add up.
    """

    faults: int
    exits_before: int
    exits_after: int
    needed: int
    missed: int

    def __add__(self, other: "Effect") -> "Effect":
        """The effect on both parts."""
        return Effect(*(getattr(self, name) + getattr(other, name) for name in vars(self)))

    @property
    def saved(self) -> int:
        """Exits saved."""
        return self.exits_before - self.exits_after

    def line(self) -> str:
        """In words."""
        share = f" ({self.saved / self.exits_before:.1%})" if self.exits_before else ""
        told = (
            f"{self.faults} faults, {self.exits_before} exits, {self.needed} of them needed; "
            f"{self.exits_after} remain, {self.saved} saved{share}"
        )
        return told + (f"; {self.missed} needed exits MISSED" if self.missed else "")

    def document(self) -> dict[str, int]:
        """For JSON."""
        return {**vars(self), "saved": self.saved}


@dataclass(frozen=True)
class Learned:
    """The filter that keeps what was needed, and its effect on what it was learned from
    (`trained`), on the rest (`held_out`, None if nothing was held out), and on `whole`.

    `mark` is the column that marked needed exits, empty if they were inferred; `unseen` is
    what error codes do that the learned part of the trace does not show.
    """

    definition: Definition
    mark: str
    trained: Effect
    held_out: Effect | None
    unseen: Unseen

    @property
    def whole(self) -> Effect:
        """The effect on the whole trace."""
        return self.trained if self.held_out is None else self.trained + self.held_out

    def lines(self) -> list[str]:
        """The effect in words, the fields apart."""
        source = f"column {self.mark}" if self.mark else "inferred from injections"
        told = [
            f"needed exits: {source}",
            f"what the trace does not show: {self.unseen} (--unseen)",
            f"learned on:  {self.trained.line()}",
        ]
        if self.held_out is not None:
            told += [f"held out:    {self.held_out.line()}", f"whole trace: {self.whole.line()}"]
        return told

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.definition.document(),
            "mark": self.mark or "inferred: reflected if the same vector is injected next",
            "unseen": self.unseen,
            "trained": self.trained.document(),
            "held_out": None if self.held_out is None else self.held_out.document(),
            "whole": self.whole.document(),
        }


def learn(
    path: Path,
    scheme: str = "vt-x",
    *,
    mark: str = "",
    hold_out: float = 0.25,
    unseen: Unseen = "exit",
    fields: int | None = None,
    operators: Collection[str] | None = None,
    timeout: float | None = None,
) -> Learned:
    """Learn from the first part of the trace; the last `hold_out` of its faults tests it.

    `mark` names the Boolean column that marks needed exits; empty: `needed` if the trace
    has it, else they are inferred. `unseen` says what error codes do that the first part
    does not show, and vectors, too (`free` leaves these to the guest).

    Raises:
        TraceError: the file is no trace.
        CriteriaError: there is no such column, or nothing to learn from.
        InexpressibleError, UndecidedError, MissingSolverError: as `define`.
    """
    if not 0 <= hold_out < 1:
        raise CriteriaError("give 0 or more, and less than 1", field="hold-out")
    if unseen not in UNSEEN:
        raise CriteriaError(f"{unseen!r}: {suggestion(unseen, UNSEEN)}", field="unseen")
    faults, column, unknown = read_faults(path, mark)
    split = len(faults) - int(len(faults) * hold_out)
    first, rest = faults.part(slice(split)), faults.part(slice(split, None))
    if not len(first):
        raise CriteriaError("no exceptions to learn from; trace a guest", path=str(path))
    tasks = _tasks(first, UNSEEN[unseen], str(path))
    definition = compiled(
        tasks,
        scheme,
        others="exit" if unseen == "exit" else "deliver",
        limits=limits_of(fields, operators),
        deadline=Deadline(timeout),
        path=str(path),
    )
    if unknown:
        missing = f"{unknown} faults are left out: the trace does not tell their error codes"
        definition = replace(definition, notes=(*definition.notes, missing))
    filters = {answer.vector: answer.filter for answer in definition.answers}
    others = Filter("", unseen == "exit")
    return Learned(
        definition,
        column,
        _effect(first, filters, others),
        _effect(rest, filters, others) if len(rest) else None,
        unseen,
    )


def read_faults(path: Path, mark: str = "") -> tuple[Faults, str, int]:
    """The exceptions of a trace, the column that marks the needed ones (empty: inferred), and
    how many exceptions are left out because the trace does not tell their error codes.

    Raises:
        TraceError: the file is no trace.
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
        wanted = {*_COLUMNS, *({"vcpu"} & set(names)), *({column} if column else ())}
        table = trace.table(sorted(wanted))
    vector, code = _cells(table, "vector", _NONE), _cells(table, "error_code", _NONE)
    injected = _cells(table, "injected", False)
    exited = table["disposition"].cast(pa.string()).fill_null("").to_numpy() == "EXIT"
    needed = exited & (
        _cells(table, column, False) if column else ~_reflected(table, vector, injected)
    )
    ruled, unknown = _ruled(vector, code, _cells(table, "type", _NONE), injected)
    faults = Faults(vector[ruled], code[ruled], exited[ruled], needed[ruled])
    return faults, column, int(unknown.sum())


_NONE = -1
"""Stands for null: an event that is no fault has no vector, say."""


def _cells(table: pa.Table | pa.RecordBatch, name: str, null: int | bool) -> NDArray[Any]:
    """A column as 64-bit integers, or truths; `null` stands for null."""
    kind = pa.bool_() if isinstance(null, bool) else pa.int64()
    cells: NDArray[Any] = table[name].cast(kind).fill_null(null).to_numpy(zero_copy_only=False)
    return cells


def _ruled(vector: _Cells, code: _Cells, kind: _Cells, injected: _Flags) -> tuple[_Flags, _Flags]:
    """Which events the exception bitmap and its filters decide; and those that lack a code."""
    exception = np.isin(kind, [int(one) for one in _KINDS]) & ~injected
    exception &= (vector >= 0) & (vector < 32) & (vector != Vector.NMI)
    lacking = exception & np.isin(vector, VECTORS_WITH_ERROR_CODE) & (code < 0)
    return exception & ~lacking, lacking


def _reflected(table: pa.Table, vector: _Cells, injected: _Flags) -> _Flags:
    """Whether the next event of the same processor injects the same vector at the same RIP."""
    rip = table["rip"].fill_null(0).to_numpy()
    told = table["rip"].is_valid().to_numpy()
    vm = _cells(table, "vm", _NONE)
    vcpu = _cells(table, "vcpu", _NONE) if "vcpu" in table.column_names else np.zeros_like(vm)
    order = np.lexsort((vcpu, vm))
    now, then = order[:-1], order[1:]
    same = (vm[now] == vm[then]) & (vcpu[now] == vcpu[then]) & (vector[now] == vector[then])
    same &= (rip[now] == rip[then]) | ~told[then]
    reflected = np.zeros(len(vm), dtype=np.bool_)
    reflected[now] = same & injected[then] & ~injected[now]
    return reflected


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


def _tasks(faults: Faults, unseen: int, path: str) -> list[Task]:
    tasks = []
    for vector in np.unique(faults.vector).tolist():
        mine = faults.vector == vector
        if not has_error_code(vector):
            goal = EXIT if faults.needed[mine].any() else DELIVER
            goals: Goals = np.array([goal], dtype=np.uint8)
            layout = None
            tasks.append(_no_code(vector, goals))
            continue
        layout = layout_of(vector)
        codes = layout.codes()
        occurs = np.asarray(layout.occurs(codes), dtype=np.bool_)
        goals = np.where(occurs, unseen, FREE).astype(np.uint8)
        seen, numbers = np.unique(faults.code[mine], return_counts=True)
        for code in seen.tolist():
            demand_within(layout, code, path, field=vector_label(vector))
        place = np.searchsorted(codes, seen)
        goals[place] = DELIVER
        needed = np.unique(faults.code[mine & faults.needed])
        goals[np.searchsorted(codes, needed)] = EXIT
        weights = {vector: dict(zip(seen.tolist(), numbers.tolist(), strict=True))}
        tasks.append(task_of_goals(vector, layout, goals, weights))
    return tasks


def _no_code(vector: int, goals: Goals) -> Task:
    def nothing(code: Any) -> Any:
        return code != code  # noqa: PLR0124  false, as a term

    return Task(vector, None, goals, nothing, nothing)


def _effect(faults: Faults, filters: Mapping[int, Filter], others: Filter) -> Effect:
    after = np.zeros(len(faults), dtype=np.bool_)
    known = {int(row.vector) for row in TABLE}
    for vector in np.unique(faults.vector).tolist():
        rule = filters.get(vector, others if vector in known else Filter("", False))
        mine = faults.vector == vector
        if rule.scheme:
            after[mine] = rule.exits(faults.code[mine])
        else:
            after[mine] = rule.control
    return Effect(
        len(faults),
        int(faults.exited.sum()),
        int(after.sum()),
        int(faults.needed.sum()),
        int((faults.needed & ~after).sum()),
    )
