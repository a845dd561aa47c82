"""Profile-guided filters: from a trace in which the VMM marked the exits that it needed.

An exit is marked by a Boolean column of the trace (`needed`, unless told otherwise). Without such
a column an exit counts as not needed if the VMM only reflected it: the next event of the same
virtual processor injects the same vector at the same RIP. Real hosts do not record the RIP of an
injection, so for their traces it may be anywhere.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trapgate.criteria.answer import Definition
from trapgate.criteria.covers.schemes import limits_of
from trapgate.criteria.define import compiled
from trapgate.criteria.errors import CriteriaError
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.codes import (
    Truths,
    demand_within,
    has_error_code,
    layout_of,
    vector_label,
)
from trapgate.criteria.problems.filters import Filter, filter_in
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.proofs.tasks import Goals, Task, task_of_goals
from trapgate.criteria.wishes.spec import DELIVER, EXIT, FREE
from trapgate.criteria.wishes.trace_faults import Faults, read_faults
from trapgate.errors import suggestion
from trapgate.sdm.vectors import TABLE
from trapgate.trace import Trace
from trapgate.trace.document import Document, Paragraph, Table
from trapgate.trace.frames import lost_events
from trapgate.trace.schema import CRITERIA
from trapgate.vmcs.vmcs import Vmcs

Unseen = Literal["exit", "deliver", "free"]
"""What becomes of error codes that the trace does not show."""

UNSEEN: dict[str, int] = {"exit": EXIT, "deliver": DELIVER, "free": FREE}


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

    @classmethod
    def of(cls, faults: Faults, after: Truths) -> "Effect":
        """The effect on `faults`, of which those in `after` would have exited."""
        count = faults.count
        return cls(
            faults.total,
            int(count[faults.exited].sum()),
            int(count[after].sum()),
            int(count[faults.needed].sum()),
            int(count[faults.needed & ~after].sum()),
        )

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


class Tested:
    """What was learned from a part of a trace (`trained`), and tested on the rest, `held_out`.

    `held_out` is None if nothing was held out. `mark` is the column that marked needed exits,
    empty if they were inferred; `unseen` is what becomes of what the learned part does not show.
    """

    mark: str
    trained: Effect
    held_out: Effect | None
    unseen: Unseen

    @property
    def whole(self) -> Effect:
        """The effect on the whole trace."""
        return self.trained if self.held_out is None else self.trained + self.held_out

    def effects(self) -> list[str]:
        """The effects in words."""
        told = [f"learned on:  {self.trained.line()}"]
        if self.held_out is not None:
            told += [f"held out:    {self.held_out.line()}", f"whole trace: {self.whole.line()}"]
        return told

    def effects_document(self) -> dict[str, Any]:
        """The effects for JSON, and how they were found."""
        return {
            "mark": self.mark or "inferred: reflected if the same vector is injected next",
            "unseen": self.unseen,
            "trained": self.trained.document(),
            "held_out": None if self.held_out is None else self.held_out.document(),
            "whole": self.whole.document(),
        }


@dataclass(frozen=True)
class Learned(Tested, Paged):
    """The filter that keeps what was needed, and its effect; `unseen` is about error codes."""

    definition: Definition
    mark: str
    trained: Effect
    held_out: Effect | None
    unseen: Unseen

    def lines(self) -> list[str]:
        """The effect in words, the fields apart."""
        source = f"column {self.mark}" if self.mark else "inferred from injections"
        return [
            f"needed exits: {source}",
            f"what the trace does not show: {self.unseen} (--unseen)",
            *self.effects(),
        ]

    def page(self) -> Document:
        """The effect on the trace, and the fields."""
        effects = [("learned on", self.trained)]
        if self.held_out is not None:
            effects += [("held out", self.held_out), ("whole trace", self.whole)]
        rows = tuple(
            (
                *(name, one.faults, one.exits_before, one.exits_after, one.saved, one.needed),
                one.missed,
            )
            for name, one in effects
        )
        heads = (
            *("part", "faults", "exits before", "exits after", "saved", "needed"),
            "needed, missed",
        )
        source = f"the column {self.mark}" if self.mark else "injections that follow"
        told = (
            f"Needed exits are known by {source}. Codes that the trace does not show: "
            f"{self.unseen}."
        )
        parts = (Table(heads, rows, "effect on the trace"), Paragraph(told))
        return Document("Fields learned from a trace", (*parts, *self.definition.page().parts))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **self.definition.document(),
            **self.effects_document(),
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
        TraceError: the file is not a trace.
        CriteriaError: there is no such column, or nothing to learn from.
        InexpressibleError, UndecidedError, MissingSolverError: as `define`.
    """
    if not 0 <= hold_out < 1:
        raise CriteriaError("give 0 or more, and less than 1", field="hold-out")
    if unseen not in UNSEEN:
        raise CriteriaError(f"{unseen!r}: {suggestion(unseen, UNSEEN)}", field="unseen")
    first, rest, column, unknown = read_faults(path, mark, hold_out)
    if not first.total:
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
    lost = lost_events([path])
    if lost:
        gone = f"the recorder lost {lost:,} events: what they asked for is in no count"
        definition = replace(definition, notes=(*definition.notes, gone))
    if unknown:
        missing = f"{unknown} faults are left out: the trace does not tell their error codes"
        definition = replace(definition, notes=(*definition.notes, missing))
    filters = {answer.vector: answer.filter for answer in definition.answers}
    others = Filter("", unseen == "exit")
    learned = Learned(
        definition,
        column,
        _effect(first, filters, others),
        _effect(rest, filters, others) if rest.total else None,
        unseen,
    )
    return _not_worse(learned, first, rest, path)


def _not_worse(learned: Learned, first: Faults, rest: Faults, path: Path) -> Learned:
    """The criteria that were in force, where those learned would exit more often."""
    whole = learned.whole
    with Trace(path) as trace:
        text = trace.run.get(CRITERIA)
    if text is None:
        note = "the trace does not say which criteria were in force"
        if whole.exits_after > whole.exits_before:
            note += "; these exit more often than the recorded run did: keep the old ones"
        return _noted(learned, note)
    if whole.exits_after <= whole.exits_before:
        return learned
    recorded = Vmcs.from_toml(text)
    filters = {
        answer.vector: filter_in(recorded, answer.vector) for answer in learned.definition.answers
    }
    others = Filter("", False)
    fresh = Vmcs(recorded.profile)
    held = {
        field: recorded[field.name]
        for field in recorded
        if field in learned.definition.fields or recorded[field.name] != fresh[field.name]
    }
    kept = replace(
        learned,
        trained=_effect(first, filters, others),
        held_out=_effect(rest, filters, others) if rest.total else None,
        # What is said of each vector is about what was learned.
        definition=replace(learned.definition, fields=held, profile=recorded.profile, answers=()),
    )
    return _noted(
        kept,
        "nothing learned is better than the criteria that were in force, so these are they "
        f"({whole.exits_after - whole.exits_before} more exits with what was learned)",
    )


def _noted(learned: Learned, note: str) -> Learned:
    definition = learned.definition
    return replace(learned, definition=replace(definition, notes=(*definition.notes, note)))


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
        seen, back = np.unique(faults.code[mine], return_inverse=True)
        numbers = np.zeros(len(seen), np.int64)
        np.add.at(numbers, back, faults.count[mine])
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
    after = np.zeros(len(faults.count), dtype=np.bool_)
    known = {int(row.vector) for row in TABLE}
    for vector in np.unique(faults.vector).tolist():
        rule = filters.get(vector, others if vector in known else Filter("", False))
        mine = faults.vector == vector
        if rule.scheme:
            after[mine] = rule.exits(faults.code[mine])
        else:
            after[mine] = rule.control
    return Effect.of(faults, after)
