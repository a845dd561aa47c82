"""Does a VMCS do what a SPEC wishes? A proof, or a counterexample."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trapgate.criteria.difference import Compared, wishes_broken
from trapgate.criteria.errors import ProofError
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.codes import Layout, vector_label
from trapgate.criteria.problems.filters import filter_in
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.proofs.proof import counterexample
from trapgate.criteria.proofs.tasks import Task, tasks_of
from trapgate.criteria.terms.fault_terms import in_words
from trapgate.criteria.wishes.spec import DELIVER, EXIT, Spec
from trapgate.trace.document import Document, Paragraph, Table
from trapgate.vmcs.vmcs import Vmcs


@dataclass(frozen=True)
class Verdict(Compared):
    """What is true of one vector.

    `missed` is a code that must exit and does not, `needless` one that exits and should
    not, each None if there is none; the counts are of all such codes. A vector without
    an error code has code 0 for itself. `wishes` are the lines of the wishes broken. Under a
    criteria table `faults` tells of whole faults, one for each counterexample, and counts are 1.
    """

    vector: int
    layout: Layout | None
    missed: int | None
    needless: int | None
    missed_count: int
    needless_count: int
    wishes: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """#PF for 14, and so on."""
        return vector_label(self.vector)

    def named(self, code: int | None) -> str:
        """A code for a table; empty for None."""
        if code is None:
            return ""
        return "always" if self.layout is None else f"{code:#x} ({self.layout.describe(code)})"

    def line(self) -> str:
        """In words."""
        name = self.name
        if self.exact:
            return f"{name}: holds"
        told = []
        for code, words, count in (
            (self.missed, "must exit and does not", self.missed_count),
            (self.needless, "should not exit and does", self.needless_count),
        ):
            if code is None:
                continue
            if self.layout is None:
                told.append(f"it {words}")
            else:
                more = f" (one of {count})" if count > 1 else ""
                told.append(f"{code:#x} ({self.layout.describe(code)}) {words}{more}")
        where = f" [wished in line {', '.join(map(str, self.wishes))}]" if self.wishes else ""
        seen = f"; {'; '.join(self.faults)}" if self.faults else ""
        return f"{name}: counterexample: {'; '.join(told)}{seen}{where}"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "vector": self.vector,
            "name": self.name,
            "sound": self.sound,
            "exact": self.exact,
            "missed": None if self.missed is None else f"{self.missed:#x}",
            "missed_count": self.missed_count,
            "needless": None if self.needless is None else f"{self.needless:#x}",
            "needless_count": self.needless_count,
            "lines": list(self.wishes),
            **({"faults": list(self.faults)} if self.faults else {}),
        }


class Verdicts(list[Verdict], Paged):
    """The verdicts on several vectors; a notebook shows them as one table."""

    def page(self) -> Document:
        """Whether fields do what is wished, a counterexample each if not."""
        rows = tuple(
            (
                one.name,
                "holds" if one.exact else "sound, not exact" if one.sound else "does not hold",
                *(one.named(one.missed), one.missed_count),
                *(one.named(one.needless), one.needless_count),
                ", ".join(map(str, one.wishes)),
                "; ".join(one.faults),
            )
            for one in self
        )
        heads = (
            *("vector", "verdict", "must exit and does not", "codes"),
            *("should not exit and does", "codes", "lines of wishes", "a fault"),
        )
        does = "what is wished" if all(one.exact for one in self) else "something else"
        table = Table(heads, rows, "proved by z3 and by trying all codes")
        return Document(
            "Fields checked against wishes", (Paragraph(f"The fields do {does}."), table)
        )


def check(spec: Spec, vmcs: Vmcs, *, timeout: float | None = None) -> Verdicts:
    """The verdicts on `vmcs`, a vector of `spec` each; by z3 and by trying all codes.

    Raises:
        UndecidedError: z3 has no answer within `timeout` seconds.
        MissingSolverError: z3-solver is not installed.
    """
    deadline = Deadline(timeout)
    return Verdicts(_with_lines(verdict_on(task, vmcs, deadline), spec) for task in tasks_of(spec))


def _with_lines(verdict: Verdict, spec: Spec) -> Verdict:
    """With the lines of the wishes that are broken."""
    found = [code for code in (verdict.missed, verdict.needless) if code is not None]
    if verdict.layout is None or not found:
        return verdict
    broken = np.array(found, dtype=np.int64)
    wishes = spec.vectors[verdict.vector].wishes
    lines = {wish.line for wish in wishes if wish.line and wish.names(broken).any()}
    return replace(verdict, wishes=tuple(sorted(lines)))


def _verdict_on_table(task: Task, vmcs: Vmcs, deadline: Deadline) -> Verdict:
    """The verdict where a criteria table decides first: of all that faults tell, by z3 alone."""
    must, spare = task.must, task.spare
    if task.layout is None:
        truth = z3_module().BoolVal
        goal = int(task.goals[0])
        must, spare = (lambda _: truth(goal == EXIT)), (lambda _: truth(goal == DELIVER))
    broken = wishes_broken(vmcs, task.vector, must, spare, deadline=deadline)
    asked = frozenset(c.value.name for rule in vmcs.criteria_table for c in rule.clauses)
    missed, needless = (None if fault is None else fault.get("code", 0) for fault in broken)
    counts = int(missed is not None), int(needless is not None)
    faults = tuple(in_words(fault, asked) for fault in broken if fault)
    return Verdict(task.vector, task.layout, missed, needless, *counts, faults=faults)


def verdict_on(task: Task, vmcs: Vmcs, deadline: Deadline) -> Verdict:
    """Whether `vmcs` does what `task` asks; raises as `check`."""
    if vmcs.criteria_table:
        return _verdict_on_table(task, vmcs, deadline)
    filter_ = filter_in(vmcs, task.vector)
    if task.layout is None:
        goal = int(task.goals[0])
        missed = 0 if goal == EXIT and not filter_.control else None
        needless = 0 if goal == DELIVER and filter_.control else None
        counts = int(missed is not None), int(needless is not None)
        return Verdict(task.vector, None, missed, needless, *counts)
    codes = task.codes()
    exits = filter_.exits(codes)
    tried_missed = codes[(task.goals == EXIT) & ~exits]
    tried_needless = codes[(task.goals == DELIVER) & exits]

    def misses(code: Any) -> Any:
        return z3_module().And(task.must(code), z3_module().Not(filter_.term(code)))

    def overshoots(code: Any) -> Any:
        return z3_module().And(task.spare(code), filter_.term(code))

    missed = counterexample(misses, task.layout, deadline)
    needless = counterexample(overshoots, task.layout, deadline)
    for one, tried in ((missed, tried_missed), (needless, tried_needless)):
        if (one is None) != (len(tried) == 0) or (one is not None and one not in tried):
            raise ProofError("z3 and the trial of all codes disagree; please report this")
    if missed is not None:
        missed = int(tried_missed[0])  # the least is the easiest to read
    if needless is not None:
        needless = int(tried_needless[0])
    return Verdict(
        task.vector,
        task.layout,
        missed,
        needless,
        len(tried_missed),
        len(tried_needless),
    )
