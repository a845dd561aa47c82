"""Merging VMCSs of which some have criteria tables: one that exits whenever one of them would.

The fields are merged as ever. Over them comes the smallest table that makes up for what fields
cannot say: found, and proved, as for wishes (`table_search`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, Final

from trapgate.criteria import pages
from trapgate.criteria.define_table import counted
from trapgate.criteria.difference import compare_exits
from trapgate.criteria.errors import ProofError, UndecidedError
from trapgate.criteria.merge import Party, merge
from trapgate.criteria.merge_events import add_events
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.proofs.tasks import Weights
from trapgate.criteria.rule_tables.clause_candidates import ALL_OPERATORS, OF_EXCEPTIONS
from trapgate.criteria.rule_tables.table_search import Example, Goal, Limits, TableSearch
from trapgate.criteria.terms.fault_terms import EXCEPTION_TYPES, FaultTerms, fault_terms, in_words
from trapgate.criteria.terms.instruction_terms import instruction_in_words, instruction_terms
from trapgate.criteria.terms.search import Search
from trapgate.decision.criteria_rules import Action, Clause, Operator, Rule
from trapgate.decision.fault_values import BY_NAME
from trapgate.sdm.vectors import PF
from trapgate.trace.document import Document
from trapgate.vmcs.vmcs import Vmcs

MOST_RULES: Final = 6
"""Rules that a merged table is looked for with, unless told otherwise."""


@dataclass(frozen=True)
class Share:
    """Faults that the same parties asked for: an example, and whether it exits."""

    asked: tuple[str, ...]
    example: str
    exits: bool

    def line(self) -> str:
        """In words."""
        who = " and ".join(self.asked) or "nobody"
        if not self.exits:
            return f"  asked by {who}: e.g. {self.example}; does not exit"
        whom = who if self.asked else "inject it into the guest"
        return f"  asked by {who}: e.g. {self.example}; {'give it to ' * bool(self.asked)}{whom}"


@dataclass(frozen=True)
class MergedTables(Paged):
    """A VMCS that serves all parties: `exact` if nothing exits that nobody wants.

    `smallest` says that no smaller table beside such fields is exact, whatever the exception
    bitmap if that is the only one; `notes` say what was left out.
    """

    vmcs: Vmcs
    exact: bool
    smallest: bool
    needless: str
    shares: tuple[Share, ...]
    notes: tuple[str, ...] = ()

    def toml(self) -> str:
        """A VMCS file."""
        return self.vmcs.to_toml()

    def lines(self) -> list[str]:
        """In words."""
        rules = self.vmcs.criteria_table
        count = sum(len(rule.clauses) for rule in rules)
        size = f"{counted(len(rules), 'rule')} and {counted(count, 'clause')}"
        told = f"sound, not exact, by a criteria table of {size}; needlessly exits: {self.needless}"
        if self.exact:
            told = f"exact, by fields and a criteria table of {size}"
        proved = ["no smaller table beside such fields is exact (proved)"] if self.smallest else []
        asked = ["who asked, and what to reflect:", *(share.line() for share in self.shares)]
        return [told, *proved, *self.notes, *asked]

    def page(self) -> Document:
        """Fields and a criteria table that serve several VMCSs."""
        parts = (*pages.paragraphs(self.lines()), *pages.file(self.toml()))
        return Document("Merged criteria tables", parts)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "exact": self.exact,
            "smallest": self.smallest,
            "needless": self.needless,
            "notes": list(self.notes),
            "shares": [vars(share) for share in self.shares],
            "toml": self.toml(),
        }


def merge_tables(
    parties: Sequence[Party],
    scheme: str = "vt-x",
    *,
    rules: int = MOST_RULES,
    clauses: int | None = None,
    operators: Collection[Operator] = ALL_OPERATORS,
    weights: Weights | None = None,
    timeout: float | None = None,
) -> MergedTables:
    """Fields of `scheme` and a table of at most `rules` rules that serve all parties.

    `clauses` (of all rules together) and `operators` are what the hardware takes. If nothing is
    exact within that, it is the best sound table for exceptions; `merge_events` adds the rest.

    Raises: UndecidedError, also if not even a sound table is within the limits; as `merge`.
    """
    deadline = Deadline(timeout)
    base = _fields(parties, scheme, weights, deadline)
    goal = _goal(parties)
    # Where the bitmap alone is not at its initial value, the table may choose it.
    search = TableSearch(goal, deadline, None if _is_bitmap_alone(base) else base)
    limits = Limits(rules, rules * 255 if clauses is None else clauses, operators)
    found = search.smallest(limits)
    exact = found is not None
    if found is None:
        sound = search.best(limits, lambda _: 1)
        if sound is None:
            raise UndecidedError(
                f"no table of {rules} rules serves all of them; allow more with --rules"
            )
        found, _ = sound
    if search.missed(found) is not None:
        raise ProofError("the merged criteria let a fault out; please report this")
    alone = len(found.criteria_table)
    asking = [party.vmcs for party in parties]
    add_events(found, asking, deadline)
    difference = compare_exits(asking, found, timeout=deadline.left())
    return MergedTables(
        found,
        difference.exact,
        exact and len(found.criteria_table) == alone,
        difference.needless_text,
        tuple(_shares(parties, found, goal.fault, deadline)),
        (f"loses {difference.missed_text}: its fields are not merged",) * (not difference.sound),
    )


def _fields(
    parties: Sequence[Party], scheme: str, weights: Weights | None, deadline: Deadline
) -> Vmcs:
    """The parties' fields, merged without regard to their tables."""
    stripped = []
    for party in parties:
        vmcs = party.vmcs.copy()
        if vmcs.criteria_table:
            vmcs.criteria_table = ()
        stripped.append(Party(party.name, vmcs))
    merged = merge(stripped, scheme, weights=weights, timeout=deadline.left())
    return Vmcs.from_toml(merged.definition.toml(), profile="extended")


def _is_bitmap_alone(vmcs: Vmcs) -> bool:
    fresh = Vmcs()
    fresh["EXCEPTION_BITMAP"] = vmcs["EXCEPTION_BITMAP"]
    return fresh == vmcs


def _goal(parties: Sequence[Party]) -> Goal:
    z3 = z3_module()
    rules = [
        rule
        for party in parties
        for rule in party.vmcs.criteria_table
        if not rule.about_instructions
    ]
    # What the fields tell apart, for where they could not be merged exactly.
    masks = {
        (party.vmcs["PAGE_FAULT_ERROR_CODE_MASK"], party.vmcs["PAGE_FAULT_ERROR_CODE_MATCH"])
        for party in parties
    }
    code = BY_NAME["page_fault_code"]
    filters = [Clause(code, Operator.EQUAL, match, mask=mask) for mask, match in masks if mask]
    spoken_of = Clause(BY_NAME["vector"], Operator.EQUAL, PF)
    rules += [Rule(Action.NEXT, (clause,)) for clause in (*filters, spoken_of, *OF_EXCEPTIONS)]
    fault = fault_terms(rules)
    anybody = z3.Or([fault.exits(party.vmcs) for party in parties])
    search = TableSearch(
        Goal(fault, anybody, z3.Not(anybody), lambda _: Action.NEXT, tuple(rules)), Deadline()
    )

    def wanted(example: Example) -> Action:
        asked = any(search.exits(party.vmcs, example) for party in parties)
        return Action.EXIT if asked else Action.DELIVER

    return Goal(fault, anybody, z3.Not(anybody), wanted, tuple(rules))


def _shares(
    parties: Sequence[Party], merged: Vmcs, fault: FaultTerms, deadline: Deadline
) -> Iterator[Share]:
    """For each set of parties an event that these and no others asked for, if there is one.

    An exception; and an interrupt, an instruction or a platform event, where tables decide.
    """
    z3 = z3_module()
    exception = z3.Or([fault.values["type"] == int(kind) for kind in EXCEPTION_TYPES])
    yield from _shares_of(parties, merged, fault, exception, deadline)
    worlds = [(fault, z3.Not(exception))]
    if any(rule.about_instructions for rule in merged.criteria_table):
        worlds.append((instruction_terms(), z3.BoolVal(True)))
    for events, about in worlds:
        decided = z3.Or([events.action(party.vmcs) != Action.NEXT.value for party in parties])
        yield from _shares_of(parties, merged, events, z3.And(about, decided), deadline)


def _shares_of(
    parties: Sequence[Party], merged: Vmcs, events: FaultTerms, about: Any, deadline: Deadline
) -> Iterator[Share]:
    z3 = z3_module()
    search = Search(events, deadline)
    tell = instruction_in_words if events.instructions else in_words
    asks = {party.name: events.exits(party.vmcs) for party in parties}
    names = list(asks)
    for some in chain.from_iterable(combinations(names, n) for n in range(len(names) + 1)):
        these = [asks[name] if name in some else z3.Not(asks[name]) for name in names]
        example = search.find(z3.And(about, events.exits(merged), *these))
        if example is not None:
            yield Share(some, tell(example), exits=True)
