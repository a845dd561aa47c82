"""Whether the same faults exit under two VMCSs, of all that may happen; an example where not.

Everything is proved by z3 (`fault_terms`, `instruction_terms`), with the operators that the
processor runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trapgate.criteria import pages
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.codes import has_error_code
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.terms.fault_terms import EXCEPTION_TYPES, FaultTerms, fault_terms, in_words
from trapgate.criteria.terms.instruction_terms import instruction_in_words, instruction_terms
from trapgate.criteria.terms.search import Search
from trapgate.trace.document import Document
from trapgate.vmcs.vmcs import Vmcs


class Compared:
    """What exits, compared with what should: `missed` must and does not, `needless` the reverse.

    Each is one example, None if there is none.
    """

    missed: object | None
    needless: object | None

    @property
    def sound(self) -> bool:
        """Whether all exits that must."""
        return self.missed is None

    @property
    def exact(self) -> bool:
        """Whether nothing else exits either."""
        return self.sound and self.needless is None


@dataclass(frozen=True)
class Difference(Compared, Paged):
    """How two VMCSs differ: a fault that must exit and does not, one that should not and does.

    Each is None if there is none; the texts tell of them.
    """

    missed: dict[str, int] | None
    needless: dict[str, int] | None
    missed_text: str = ""
    needless_text: str = ""

    def lines(self) -> list[str]:
        """In words."""
        if self.exact:
            return ["holds: the same faults exit"]
        told = []
        if self.missed is not None:
            told.append(f"counterexample: must exit and does not: {self.missed_text}")
        if self.needless is not None:
            told.append(f"counterexample: should not exit and does: {self.needless_text}")
        return told

    def page(self) -> Document:
        """Whether the same faults exit under two VMCSs."""
        return Document("Fields checked against fields", tuple(pages.paragraphs(self.lines())))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {"sound": self.sound, "exact": self.exact, **vars(self)}


def wishes_broken(
    vmcs: Vmcs, vector: int, must: Any, spare: Any, *, deadline: Deadline
) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    """An exception of `vector` that must exit and does not, and one that should not and does.

    `must` and `spare` take its error code, a bit-vector of 32 bits, 0 if it has none. Raises as
    `read_table`.
    """
    z3 = z3_module()
    fault = fault_terms(vmcs.criteria_table)
    search = Search(fault, deadline)
    code = z3.If(fault.present["code"], z3.Extract(31, 0, fault.values["code"]), 0)
    kinds = [fault.values["type"] == int(kind) for kind in EXCEPTION_TYPES]
    ours = z3.And(fault.values["vector"] == vector, z3.Or(kinds))
    if has_error_code(vector):
        ours = z3.And(ours, fault.present["code"])
    exits = fault.exits(vmcs)
    return (
        search.find(z3.And(ours, must(code), z3.Not(exits))),
        search.find(z3.And(ours, spare(code), exits)),
    )


def compare_exits(
    wanted: Vmcs | Sequence[Vmcs], given: Vmcs, *, timeout: float | None = None
) -> Difference:
    """Whether `given` makes those faults exit that `wanted` does, of all that may happen.

    Of several VMCSs that are wanted it is those that one of them makes exit. All may have criteria
    tables; if one has a rule about instructions, these are compared too. Raises as `read_table`.
    """
    several = [wanted] if isinstance(wanted, Vmcs) else list(wanted)
    rules = [rule for vmcs in (*several, given) for rule in vmcs.criteria_table]
    deadline = Deadline(timeout)
    found = _compared(several, given, fault_terms(rules), in_words, deadline)
    if found.missed is None and any(rule.about_instructions for rule in rules):
        more = _compared(several, given, instruction_terms(), instruction_in_words, deadline)
        return more if more.missed is not None or found.exact else found
    return found


def _compared(
    wanted: Sequence[Vmcs],
    given: Vmcs,
    events: FaultTerms,
    tell: Callable[[dict[str, int], frozenset[str]], str],
    deadline: Deadline,
) -> Difference:
    z3 = z3_module()
    search = Search(events, deadline)
    must, does = z3.Or([events.exits(vmcs) for vmcs in wanted]), events.exits(given)
    asked = frozenset(
        clause.value.name
        for vmcs in (*wanted, given)
        for rule in vmcs.criteria_table
        for clause in rule.clauses
    )
    missed = search.find(z3.And(must, z3.Not(does)))
    needless = search.find(z3.And(does, z3.Not(must)))
    return Difference(
        missed,
        needless,
        tell(missed, asked) if missed else "",
        tell(needless, asked) if needless else "",
    )
