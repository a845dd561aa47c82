"""Is a given vmcs02 sound for the hypervisors below it, and what does it lose or add?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trapgate.criteria.check import Verdict, verdict_on
from trapgate.criteria.merge import Party, idle_bits_of, merge_tasks
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.filters import filter_in
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.wishes.spec import EXIT
from trapgate.trace.document import Document, Paragraph, Part, Table
from trapgate.vmcs.vmcs import Vmcs


@dataclass(frozen=True)
class Vmcs02Verdict:
    """What is true of one vector: `losers` wanted the code that `verdict` says is missed."""

    verdict: Verdict
    losers: tuple[str, ...]

    def lines(self) -> list[str]:
        """In words."""
        one = self.verdict
        if one.exact:
            return [f"{one.name}: sound, nothing superfluous"]
        told = [f"{one.name}: {'sound' if one.sound else 'unsound'}"]
        if one.missed is not None:
            told.append(
                f"  loses {_named(one, one.missed, one.missed_count)}, "
                f"wanted by {' and '.join(self.losers)}"
            )
        if one.needless is not None:
            named = _named(one, one.needless, one.needless_count)
            told.append(f"  superfluous: {named}, wanted by nobody: inject it into the guest")
        return told

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.verdict.document(), "lost_by": list(self.losers)}


def _named(one: Verdict, code: int, count: int) -> str:
    if one.layout is None:
        return "every such fault"
    more = f" (one of {count} codes)" if count > 1 else ""
    return f"{code:#x} ({one.layout.describe(code)}){more}"


@dataclass(frozen=True)
class Vmcs02Check(Paged):
    """The verdicts on a vmcs02, and bits of the exception bitmap that it lacks."""

    verdicts: tuple[Vmcs02Verdict, ...]
    missing_bits: int

    @property
    def sound(self) -> bool:
        """Whether no exit is lost that anybody wants."""
        return all(one.verdict.sound for one in self.verdicts) and not self.missing_bits

    def lines(self) -> list[str]:
        """In words; vectors about which nobody has a wish are left out."""
        told = [line for one in self.verdicts for line in one.lines()]
        if self.missing_bits:
            told.append(
                f"EXCEPTION_BITMAP lacks {self.missing_bits:#x}: bits for no exception of today's, "
                "which a source has set"
            )
        return [*told, f"vmcs02 is {'sound' if self.sound else 'unsound'}"]

    def page(self) -> Document:
        """Whether a vmcs02 is sound, what it loses and what is superfluous."""
        rows = tuple(
            (
                one.verdict.name,
                "sound" if one.verdict.sound else "unsound",
                *(one.verdict.named(one.verdict.missed), one.verdict.missed_count),
                " and ".join(one.losers),
                *(one.verdict.named(one.verdict.needless), one.verdict.needless_count),
            )
            for one in self.verdicts
        )
        heads = ("vector", "verdict", "loses", "codes lost", "wanted by", "superfluous", "codes")
        parts: list[Part] = [
            Paragraph(f"vmcs02 is {'sound' if self.sound else 'unsound'}"),
            Table(heads, rows, "verdicts, an example each"),
        ]
        if self.missing_bits:
            parts.append(Paragraph(f"EXCEPTION_BITMAP lacks {self.missing_bits:#x}"))
        return Document("A vmcs02 checked", tuple(parts))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "holds": self.sound,
            "vectors": [one.document() for one in self.verdicts],
            "missing_bitmap_bits": f"{self.missing_bits:#x}",
        }


def check_vmcs02(
    parties: Sequence[Party], vmcs02: Vmcs, *, bits: str = "sdm", timeout: float | None = None
) -> Vmcs02Check:
    """Whether what exits for any of `parties` exits under `vmcs02`; by z3 and by all codes.

    `bits` as in `merge`.

    Raises:
        CriteriaError: two parties of one name.
        UndecidedError: z3 has no answer within `timeout` seconds.
        MissingSolverError: z3-solver is not installed.
    """
    deadline = Deadline(timeout)
    found = []
    for task in merge_tasks(parties, bits):
        verdict = verdict_on(task, vmcs02, deadline)
        wishes = [(one.name, filter_in(one.vmcs, task.vector)) for one in parties]
        if verdict.exact and not (task.goals == EXIT).any():
            continue
        code = verdict.missed
        losers = [
            name
            for name, one in wishes
            if code is not None and (one.control if task.layout is None else one.exits_one(code))
        ]
        found.append(Vmcs02Verdict(verdict, tuple(losers)))
    missing = idle_bits_of(parties) & ~vmcs02["EXCEPTION_BITMAP"]
    return Vmcs02Check(tuple(found), missing)
