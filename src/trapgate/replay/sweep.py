"""A whole family of policies in one pass: all masks and matches over some bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import AllOf, Names, opposite, parse
from trapgate.decision.criteria_rules import Action
from trapgate.replay.policy import Policy
from trapgate.replay.replay import Tally, demand_rows, here, judged
from trapgate.replay.result import CostModel, Outcome, Replay
from trapgate.replay.tally import Asked, filters_of
from trapgate.sdm.pagefault import PageFaultCode
from trapgate.sdm.vectors import PF
from trapgate.trace.frames import lost_events, time_unit
from trapgate.trace.selection import EVERYTHING, Selection

MOST_BITS: Final = 8
MOST_CONDITIONS: Final = 4
_AT_ONCE: Final = 256
_TABLES_AT_ONCE: Final = 3
"""A tally has room for four filters and tables; the base may have a filter."""


@dataclass(frozen=True)
class Family:
    """All page-fault masks and matches over `bits` (of an error code), on top of `base`.

    A bit that is not masked does not matter, so there are 3 to the number of bits; with
    `both` polarities (bit 14 of the exception bitmap set, and clear), twice as many.
    """

    bits: int
    base: Policy
    both: bool = False

    def __post_init__(self) -> None:
        """Refuse families that are too large, and bits that are none."""
        if not 0 < self.bits < 1 << 32:
            raise ValueError(f"bits {self.bits:#x}; give some of an error code's 32")
        if self.bits.bit_count() > MOST_BITS:
            raise ValueError(
                f"{self.bits.bit_count()} bits make too many policies; give at most {MOST_BITS}"
            )

    def __iter__(self) -> Iterator[Policy]:
        """Every policy of the family, named by its bits."""
        numbers = [bit for bit in range(32) if self.bits >> bit & 1]
        for control in (True, False) if self.both else (True,):
            for states in product((None, 0, 1), repeat=len(numbers)):
                mask = match = 0
                for bit, state in zip(numbers, states, strict=True):
                    if state is not None:
                        mask |= 1 << bit
                        match |= state << bit
                yield self._policy(control, mask, match)

    def _policy(self, control: bool, mask: int, match: int) -> Policy:
        vmcs = self.base.vmcs.copy()
        bitmap = vmcs["EXCEPTION_BITMAP"] & ~(1 << PF)
        vmcs["EXCEPTION_BITMAP"] = bitmap | control << PF
        vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = mask
        vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = match
        return Policy(
            _name(control, mask, match),
            vmcs,
            self.base.judges_interrupts,
            self.base.fault_filter,
            self.base.order,
            self.base.ptbase,
        )


@dataclass(frozen=True)
class ConditionFamily:
    """All conjunctions of some conditions and their opposites, on page faults on top of `base`.

    Each condition holds, or does not, or does not matter: 3 to their number of criteria tables. Of
    page faults exits what a table's conjunction holds for, and nothing else.
    """

    conditions: tuple[str, ...]
    base: Policy
    names: Names | None = None

    def __post_init__(self) -> None:
        """Refuse families that are too large. Raises ConditionError for what is not a condition."""
        if not 0 < len(self.conditions) <= MOST_CONDITIONS:
            raise ValueError(f"give 1 to {MOST_CONDITIONS} conditions")
        if self.base.vmcs.profile == "vt-x":
            raise ValueError('VT-x has no criteria table; use profile "extended" in the policy')
        for text in self.conditions:
            parse(text, self.names)

    def __iter__(self) -> Iterator[Policy]:
        """Every policy of the family, named by its conditions, the plainest first."""
        read = [parse(text, self.names) for text in self.conditions]
        page_fault = parse("vector == PF and type == hardware_exception")
        (rest,) = rules_for(page_fault, Action.DELIVER)
        states = product((None, True, False), repeat=len(read))
        for state in sorted(states, key=lambda one: sum(each is not None for each in one)):
            used = [(n, holds) for n, holds in enumerate(state) if holds is not None]
            parts = [read[n] if holds else opposite(read[n]) for n, holds in used]
            told = [f"{'' if holds else 'not '}({self.conditions[n]})" for n, holds in used]
            vmcs = self.base.vmcs.copy()
            vmcs.criteria_table = (
                *rules_for(AllOf((page_fault, *parts)), Action.EXIT),
                rest,
                *self.base.rules,
            )
            yield replace(self.base, name=f"exit on {' and '.join(told) or 'all'}", vmcs=vmcs)


def _name(control: bool, mask: int, match: int) -> str:
    parts = [f"{'' if match & flag else '!'}{flag.name}" for flag in PageFaultCode if mask & flag]
    rest = mask & ~sum(PageFaultCode)
    parts += [f"{'' if match >> b & 1 else '!'}bit{b}" for b in range(32) if rest >> b & 1]
    shown = " ".join(parts)
    if control:
        return f"exit on {shown or 'all'}"
    return f"exit unless {shown}" if shown else "no exit"


def sweep(
    traces: Sequence[Path],
    family: Family | ConditionFamily,
    *,
    keep: tuple[int, int] | None = None,
    model: CostModel | None = None,
    tallied: Tally | None = None,
    chosen: Selection = EVERYTHING,
) -> Replay:
    """Every policy of `family` on `traces`, best first.

    Rows are read once, or of a family of conditions once for each four policies. Best is what
    saves most time; of equals, the simplest mask or the fewest clauses. With `keep` (mask, match),
    policies that let a recorded page fault with such an error code go to the guest come
    last, however much they save. Raises as `replay.replay`.
    """
    unit = time_unit(traces)
    members = list(family)
    count = tallied or partial(here, chosen=chosen)
    at_once = _TABLES_AT_ONCE if isinstance(family, ConditionFamily) else _AT_ONCE
    pairs: list[Asked] | None = None
    outcomes: list[Outcome] = []
    for start in range(0, len(members), at_once):
        part = members[start : start + at_once]
        asked = filters_of(part)
        if asked != pairs:
            pairs, kinds = asked, count(traces, asked)
        outcomes += judged(kinds, part, pairs, unit=unit, model=model, keep=keep)
    demand_rows(outcomes[0].rows, traces)
    bits = [
        policy.vmcs["PAGE_FAULT_ERROR_CODE_MASK"].bit_count()
        + sum(len(rule.clauses) for rule in policy.rules)
        for policy in members
    ]
    order = sorted(
        range(len(members)),
        key=lambda n: (outcomes[n].lost or 0, -outcomes[n].time.estimate, bits[n], n),
    )
    ranked = tuple(outcomes[number] for number in order)
    return Replay(tuple(map(str, traces)), unit, ranked, lost_events(traces), chosen.words())
