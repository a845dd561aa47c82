"""Looks for the smallest change of a VMCS that passes the checks.

Every candidate is tried on the checks themselves: a right value that a rule knows, a single bit
turned over, or 0, in a field that a failing rule looks at. What changes fewer fields, then fewer
bits, is smaller.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs, fits
from trapgate.debug.doctor.examine import GROUPS, failing
from trapgate.debug.doctor.fields import width
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.rules import Rule
from trapgate.debug.doctor.words import decoded
from trapgate.sdm.event_words import hexadecimal

_MOST_STEPS = 400
"""States looked at before the search contents itself with the best so far."""

_RULES: dict[str, tuple[int, Rule]] = {
    rule.name: (order, rule)
    for order, rule in enumerate(rule for group in GROUPS for rule in group.rules)
}


@dataclass(frozen=True)
class Repair:
    """Changes, field to new value, and the names of the rules that still fail after them."""

    before: DumpedVmcs
    changes: dict[str, int]
    left: frozenset[str]

    @property
    def sentences(self) -> Iterator[str]:
        """One line for each field."""
        for name, value in self.changes.items():
            old = self.before.values.get(name, 0)
            meaning = decoded(name, value)
            yield (
                f"{name}: {hexadecimal(old)} -> {hexadecimal(value)}"
                + (f" ({meaning})" if meaning else "")
            )


def repair(dumped: DumpedVmcs, processor: ForeignProcessor | None = None) -> Repair:
    """The smallest change that was found after which no check fails (see `Repair.left`)."""
    cpu = processor or ForeignProcessor()
    order = count()
    start: dict[str, int] = {}
    best = (failing(dumped, cpu), start)
    queue: list[tuple[int, int, int, int, dict[str, int], set[str]]] = []
    heappush(queue, (len(best[0]), 0, 0, next(order), start, best[0]))
    seen = {()}
    for _ in range(_MOST_STEPS):
        if not queue:
            break
        _, _, _, _, changes, left = heappop(queue)
        if len(left) < len(best[0]):
            best = (left, changes)
        if not left:
            break
        rule = min((_RULES[name] for name in left), key=lambda row: row[0])[1]
        for name, value in _candidates(rule, dumped.changed(changes), cpu):
            more = {**changes, name: value}
            key = tuple(sorted(more.items()))
            if key in seen:
                continue
            seen.add(key)  # type: ignore[arg-type]
            rest = failing(dumped.changed(more), cpu)
            if rule.name in rest:
                continue
            bits = sum((dumped.values[n] ^ v).bit_count() for n, v in more.items())
            heappush(queue, (len(rest) + len(more), len(more), bits, next(order), more, rest))
    left, changes = best
    return Repair(dumped, changes, frozenset(left))


def _candidates(rule: Rule, dumped: DumpedVmcs, cpu: ForeignProcessor) -> Iterator[tuple[str, int]]:
    """Fields of the rule with other values that may be right."""
    first = rule.fields[0]
    if rule.mend and first in dumped:
        value = rule.mend(dumped[first], cpu)
        if fits(first, value):
            yield first, value
    for name in rule.fields:
        if name not in dumped or name in dumped.assumed:
            continue
        value = dumped[name]
        yield from ((name, value ^ 1 << bit) for bit in range(min(width(name), 32)))
        if value:
            yield name, 0
