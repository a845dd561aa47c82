"""Merging: the tightest fields that exit whenever one of several VMCSs would.

What a hypervisor needs that runs another one: both have their filters, one processor
has to serve both. Afterwards each exit belongs to whoever asked for it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trapgate.criteria.answer import Definition
from trapgate.criteria.covers.schemes import limits_of
from trapgate.criteria.covers.words import in_words, ranges
from trapgate.criteria.define import compiled
from trapgate.criteria.errors import CriteriaError
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.codes import (
    SEED_BITS,
    Codes,
    Layout,
    has_error_code,
    layout_of,
    plain_layout,
    vector_label,
)
from trapgate.criteria.problems.filters import filter_in
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.proofs.tasks import Goals, Task, Weights, weightless, weights_of
from trapgate.criteria.wishes.spec import DELIVER, EXIT, FREE
from trapgate.decision.rules import PAIR, SCHEMES
from trapgate.errors import suggestion
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import PF, TABLE, Vector
from trapgate.trace.document import Document, Heading, Table
from trapgate.vmcs.vmcs import Vmcs


@dataclass(frozen=True)
class Party:
    """Somebody whose filter is to be honoured: a name and a VMCS."""

    name: str
    vmcs: Vmcs


@dataclass(frozen=True)
class Share:
    """Codes of one vector that the same parties asked for.

    `codes` is empty for a vector without an error code. `exits` says whether they exit
    under the merged fields, `words` names the codes. What exits is to be reflected, as
    a VM exit, to all in `asked`; if nobody asked, to the guest, by event injection.
    """

    vector: int
    codes: tuple[int, ...]
    asked: tuple[str, ...]
    exits: bool
    words: str

    @property
    def name(self) -> str:
        """#PF for 14, and so on."""
        return vector_label(self.vector)

    @property
    def reflect(self) -> str:
        """What the VMM must do with such a fault."""
        if not self.exits:
            return "nothing: it does not exit"
        if not self.asked:
            return "inject it into the guest: nobody asked"
        return f"give the exit to {' and '.join(self.asked)}"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "vector": self.vector,
            "name": vector_label(self.vector),
            "codes": [f"{code:#x}" for code in self.codes],
            "words": self.words,
            "asked_by": list(self.asked),
            "exits": self.exits,
            "reflect_to": list(self.asked) or (["guest"] if self.exits else []),
        }


@dataclass(frozen=True)
class Merged(Paged):
    """The merged fields, and who asked for what."""

    definition: Definition
    shares: tuple[Share, ...]

    def lines(self) -> list[str]:
        """Which files asked for an exit, in words, without the fields."""
        told = ["who asked, and what to reflect:"]
        for share in self.shares:
            asked = " and ".join(share.asked) or "nobody"
            told.append(
                f"  {vector_label(share.vector)} {share.words}: asked by {asked}; {share.reflect}"
            )
        return told

    def page(self) -> Document:
        """The merged fields, and who asked for what."""
        page = self.definition.page("Filters of several hypervisors, merged")
        shares = tuple(
            (one.name, one.words, " and ".join(one.asked) or "nobody", one.reflect)
            for one in self.shares
        )
        heads = ("vector", "faults", "asked by", "what to do")
        table = Table(heads, shares, "who asked for what")
        return Document(page.title, (*page.parts, Heading("Who asked"), table))

    def definition_vmcs(self) -> Vmcs:
        """The merged fields in a VMCS."""
        return Vmcs.from_toml(self.definition.toml())

    def document(self) -> dict[str, Any]:
        """For JSON."""
        shares = [share.document() for share in self.shares]
        return {**self.definition.document(), "shares": shares}


def page_fault_layout(bits: str) -> Layout:
    """The layout that `sdm`, `seed` or a number of bits (1 to 16) stands for.

    Raises:
        CriteriaError: it is none of them.
    """
    layout = layout_of(PF)
    if bits == "sdm":
        return layout
    if bits == "seed":
        return Layout(SEED_BITS, layout.occurs)
    if bits.isdecimal():
        return plain_layout(int(bits))
    raise CriteriaError(f"{bits!r}: {suggestion(bits, ('sdm', 'seed'))}", field="bits")


def merge(
    parties: Sequence[Party],
    scheme: str = "vt-x",
    *,
    bits: str = "sdm",
    weights: Weights | None = None,
    fields: int | None = None,
    operators: Collection[str] | None = None,
    timeout: float | None = None,
) -> Merged:
    """The tightest fields of `scheme` that exit whenever a party's VMCS would.

    `bits` says which bits a page fault's error code may have: `sdm`, `seed` or a number.
    The rest as `define`. Only what rules exceptions is merged; a note names other fields
    that a party has set.

    Raises:
        CriteriaError: fewer than two parties, or two of one name.
        InexpressibleError, UndecidedError, MissingSolverError: as `define`.
    """
    tasks = merge_tasks(parties, bits, weights)
    definition = compiled(
        tasks,
        scheme,
        limits=limits_of(fields, operators),
        deadline=Deadline(timeout),
        idle_bits=idle_bits_of(parties),
        notes=[*_left_out(parties), *weightless(tasks, weights)],
    )
    shares = [share for task in tasks for share in _shares(parties, task, definition)]
    return Merged(definition, tuple(shares))


def merge_tasks(
    parties: Sequence[Party], bits: str = "sdm", weights: Weights | None = None
) -> list[Task]:
    """What `parties` ask for together, a task for each exception.

    Raises: CriteriaError: fewer than two parties, two of one name, or one with a criteria table.
    """
    if len(parties) < 2:
        raise CriteriaError("merging takes at least two VMCS files; name another")
    names = [party.name for party in parties]
    if len(set(names)) != len(names):
        raise CriteriaError(f"two files have one name ({', '.join(names)}); rename one")
    for party in parties:
        if party.vmcs.criteria_table:
            raise CriteriaError(
                f"{party.name} has a criteria table, and fields cannot stand for all of it; "
                "compare two files with `criteria check A B`",
                field="rules",
            )
    vectors = [int(row.vector) for row in TABLE if row.vector != Vector.NMI]
    layouts: dict[int, Layout | None] = {
        vector: layout_of(vector) if has_error_code(vector) else None for vector in vectors
    }
    layouts[PF] = page_fault_layout(bits)
    return [_task(parties, vector, layouts[vector], weights) for vector in vectors]


IDLE_BITS = 0xFFFFFFFF & ~sum(1 << row.vector for row in TABLE if row.vector != Vector.NMI)
"""Bits of the exception bitmap that rule no exception: those of NMIs and of reserved vectors."""


def idle_bits_of(parties: Sequence[Party]) -> int:
    """Those of `IDLE_BITS` that somebody has set; they survive a merge, as in any OR of bitmaps."""
    found = 0
    for party in parties:
        found |= party.vmcs["EXCEPTION_BITMAP"] & IDLE_BITS
    return found


_CRITERIA = {
    Field.EXCEPTION_BITMAP,
    Field.TRANSFER_CRITERION,
    Field.TRANSFER_CRITERION_VECTORS,
    Field.COMPARISON_OPERATOR,
    Field.ERROR_CODE_FIELD_WIDTH,
    Field.ERROR_CODE_FIELD_SHIFT,
    *(Field[name] for rule in SCHEMES.values() for v in PAIR for name in rule.fields_for(v)),
}


def _left_out(parties: Sequence[Party]) -> list[str]:
    told = []
    for party in parties:
        fresh = Vmcs(party.vmcs.profile)
        names = [
            field.name
            for field in party.vmcs
            if field not in _CRITERIA and party.vmcs[field] != fresh[field]
        ]
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            told.append(
                f"{party.name}: only what rules exceptions is merged, "
                f"not {', '.join(names[:4])}{more}"
            )
    return told


def _task(
    parties: Sequence[Party], vector: int, layout: Layout | None, weights: Weights | None
) -> Task:
    filters = [filter_in(party.vmcs, vector) for party in parties]

    def anybody(code: Any) -> Any:
        return z3_module().Or([one.term(code) for one in filters])

    if layout is None:
        wanted = any(one.control for one in filters)
        goal = np.array([EXIT if wanted else DELIVER], dtype=np.uint8)
        return Task(vector, None, goal, anybody, anybody)
    codes = layout.codes()
    occurs = np.asarray(layout.occurs(codes), dtype=np.bool_)
    exits = np.logical_or.reduce([one.exits(codes) for one in filters])
    goals: Goals = np.where(occurs, np.where(exits, EXIT, DELIVER), FREE).astype(np.uint8)

    def must(code: Any) -> Any:
        return z3_module().And(layout.occurs(code), anybody(code))

    def spare(code: Any) -> Any:
        z3 = z3_module()
        return z3.And(layout.occurs(code), z3.Not(anybody(code)))

    return Task(vector, layout, goals, must, spare, weights_of(vector, codes, weights))


def _shares(parties: Sequence[Party], task: Task, definition: Definition) -> list[Share]:
    merged = next(one.filter for one in definition.answers if one.vector == task.vector)
    filters = [filter_in(party.vmcs, task.vector) for party in parties]
    if task.layout is None:
        asked = tuple(
            party.name for party, one in zip(parties, filters, strict=True) if one.control
        )
        return [Share(task.vector, (), asked, True, "always")] if merged.control else []
    codes: Codes = task.codes()
    occurs = task.goals != FREE
    exits = merged.exits(codes)
    table = np.stack([one.exits(codes) for one in filters])
    keys = np.zeros(len(codes), dtype=np.int64)
    for number, row in enumerate(table):
        keys |= row.astype(np.int64) << number
    shares = []
    for key in np.unique(keys[occurs]).tolist():
        for goes in (True, False):
            chosen = (keys == key) & (exits == goes) & occurs
            if not chosen.any() or (not goes and not key):
                continue
            asked = tuple(party.name for number, party in enumerate(parties) if key >> number & 1)
            told = in_words(task.layout, chosen, occurs)
            words = "; or ".join(told) if 0 < len(told) <= 6 else ranges(codes[chosen], 12)
            shares.append(Share(task.vector, tuple(codes[chosen].tolist()), asked, goes, words))
    return shares
