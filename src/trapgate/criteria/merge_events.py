"""Merging what criteria tables decide beside exceptions: interrupts, instructions, platform events.

Of two tables the first rules that match decide. So a table of all pairs of their rules, in that
order, knows both decisions, and exits where one of them does. What can go without a difference
goes, one rule after the other; what remains need not be the smallest table.
"""

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import product
from math import prod
from typing import Any, Final

from trapgate.criteria.errors import CriteriaError
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.terms.fault_terms import EXCEPTION_TYPES, FaultTerms, fault_terms
from trapgate.criteria.terms.instruction_terms import (
    BY_MORE,
    BY_PRIMARY,
    BY_SECONDARY,
    instruction_terms,
)
from trapgate.criteria.terms.search import Search
from trapgate.criteria.terms.table_backends import rule_in, table_in, terms
from trapgate.decision.criteria_rules import MOST_RULES, Action, Clause, Operator, Rule
from trapgate.decision.fault_values import BY_NAME
from trapgate.sdm import controls as ct
from trapgate.vmcs.vmcs import Vmcs

_MOST_PAIRS: Final = 1024
_NO_EXCEPTION: Final = Clause(
    BY_NAME["type"],
    Operator.IN_BITMAP,
    bitmap=bytes([1 << 0 | 1 << 2 | 1 << 4]),
)
_PINS: Final = ct.PIN_EXTERNAL_INTERRUPT_EXITING | ct.PIN_NMI_EXITING


def add_events(vmcs: Vmcs, several: Sequence[Vmcs], deadline: Deadline) -> None:
    """Let the merged `vmcs` make what is not an exception exit where one of `several` would.

    Its table gets more rules, and it gets the controls that speak of the same events: those that
    are one bit each, and bitmaps, masks and CR3-target values if all have the same. Raises
    CriteriaError if there are too many rules.
    """
    for one in several:
        vmcs["PIN_BASED_CONTROLS"] |= one["PIN_BASED_CONTROLS"] & _PINS
    faults = [_rules_of(one, about_instructions=False) for one in several]
    rules = [*vmcs.criteria_table, *_interrupts(faults, deadline)]
    asked = [_rules_of(one, about_instructions=True) for one in several]
    if any(asked):
        _add_controls(vmcs, several)
        everything = z3_module().BoolVal(True)
        rules += _without_needless(_pairs(asked), instruction_terms(), everything, deadline)
    if len(rules) > MOST_RULES:
        raise CriteriaError(
            f"merged they take {len(rules)} rules, and a table has at most {MOST_RULES}",
            field="rules",
        )
    vmcs.criteria_table = tuple(rules)


def _rules_of(vmcs: Vmcs, *, about_instructions: bool) -> list[Rule]:
    return [one for one in vmcs.criteria_table if one.about_instructions == about_instructions]


def _pairs(tables: Sequence[Sequence[Rule]]) -> list[Rule]:
    """A table that exits where one of `tables` does; NEXT is one's own for each of them."""
    if prod(len(table) + 1 for table in tables) > _MOST_PAIRS:
        raise CriteriaError("their tables have too many rules to be merged", field="rules")
    merged = []
    for chosen in product(*([*table, Rule(Action.NEXT)] for table in tables)):
        actions = {rule.action for rule in chosen}
        action = Action.NEXT
        if Action.EXIT in actions:
            action = Action.EXIT
        elif actions == {Action.DELIVER}:
            action = Action.DELIVER
        clauses = dict.fromkeys(clause for rule in chosen for clause in rule.clauses)
        merged.append(Rule(action, tuple(clauses)))
    return merged


def _interrupts(tables: Sequence[Sequence[Rule]], deadline: Deadline) -> Iterator[Rule]:
    """Rules about interrupts, NMIs and INT n, and nothing else."""
    z3 = z3_module()
    events = fault_terms([rule for table in tables for rule in table])
    kind = events.values["type"]
    interrupt = z3.And([kind != int(one) for one in EXCEPTION_TYPES])
    search = Search(events, deadline)
    for rule in _without_needless(_pairs(tables), events, interrupt, deadline):
        matches = rule_in(rule, events.fetch, terms())
        if search.find(z3.And(matches, z3.Not(interrupt))) is None:
            yield rule
        else:
            yield Rule(rule.action, (_NO_EXCEPTION, *rule.clauses))


def _without_needless(
    rules: Sequence[Rule], events: FaultTerms, about: Any, deadline: Deadline
) -> list[Rule]:
    """The rules that make a difference to the events that a term is about."""
    z3 = z3_module()
    world = terms()
    search = Search(events, deadline)

    def action(table: Sequence[Rule]) -> Any:
        return table_in(table, events.fetch, world, world.number(Action.NEXT))

    def possible(rule: Rule) -> bool:
        return search.find(z3.And(about, rule_in(rule, events.fetch, world))) is not None

    kept = [rule for rule in rules if possible(rule)]
    for rule in reversed(kept.copy()):
        fewer = [one for one in kept if one is not rule]
        if search.find(z3.And(about, action(kept) != action(fewer))) is None:
            kept = fewer
    return kept


def _add_controls(vmcs: Vmcs, several: Sequence[Vmcs]) -> None:
    """The controls that say which instructions exit, where no rule does."""
    primary = reduce(int.__or__, BY_PRIMARY.values())
    secondary = reduce(int.__or__, BY_SECONDARY.values())
    for one in several:
        vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= (
            one["PRIMARY_PROCESSOR_BASED_CONTROLS"] & primary
        )
        if one["PRIMARY_PROCESSOR_BASED_CONTROLS"] & ct.PRIMARY_SECONDARY_CONTROLS:
            vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"] |= (
                one["SECONDARY_PROCESSOR_BASED_CONTROLS"] & secondary
            )
    if vmcs["SECONDARY_PROCESSOR_BASED_CONTROLS"]:
        vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= ct.PRIMARY_SECONDARY_CONTROLS
    for bits, names in BY_MORE.values():
        told = [
            (one["PRIMARY_PROCESSOR_BASED_CONTROLS"] & bits, [one[name] for name in names])
            for one in several
        ]
        if all(one == told[0] for one in told):
            vmcs["PRIMARY_PROCESSOR_BASED_CONTROLS"] |= told[0][0]
            for name, value in zip(names, told[0][1], strict=True):
                vmcs[name] = value
