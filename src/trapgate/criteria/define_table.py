"""From wishes over all that faults tell to the cheapest criteria that grant them (¶86-87).

```toml
default = "deliver"             # what no wish names: "deliver", "exit" or "free"

[[wishes]]                      # the first that matches counts
when = "vector == PF and cpl == 3 and below_stack <= 64"
then = "deliver"                # or "exit", "free"
```

VT-x's fields come first, if they can tell the faults apart; then the extensions' fields; then a
criteria table of which no rule and no clause can be left out (block 906), within what the hardware
has (block 904). If nothing is exact, the best sound fields: what must exit does. Wishes are about
exceptions. What is found is proved of all exceptions that may happen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from trapgate.criteria.answer import Definition
from trapgate.criteria.codes import Codes, Truths, has_error_code, layout_of
from trapgate.criteria.define import compiled
from trapgate.criteria.errors import InexpressibleError, ProofError, SpecError, UnknownSchemeError
from trapgate.criteria.fault_terms import EXCEPTION_TYPES, FaultTerms, fault_terms, in_words
from trapgate.criteria.problem import Deadline
from trapgate.criteria.solvers import z3_module
from trapgate.criteria.spec import DELIVER, EXIT, FREE
from trapgate.criteria.table_worlds import arrays, clause_in, table_in, terms
from trapgate.criteria.tables import Search
from trapgate.criteria.tasks import Task, Weights, task_of_goals
from trapgate.decision import fault_values as fv
from trapgate.decision.conditions import ConditionError, Names, parse, rules_for
from trapgate.decision.criteria_rules import MOST_RULES, Action, Clause, Rule
from trapgate.decision.fault_values import FaultValue
from trapgate.errors import suggestion
from trapgate.sdm.interruption import (
    TYPE_HARDWARE_EXCEPTION,
    TYPE_SOFTWARE_EXCEPTION,
)
from trapgate.sdm.vectors import BP, DB, OF, PF, TABLE, Vector
from trapgate.tomlfile import demand_known, parse_toml, read_toml
from trapgate.vmcs.vmcs import Vmcs

SCHEMES_OF_WISHES: Final = ("", "vt-x", "auto", "table")
_GOALS: Final = {"exit": Action.EXIT, "deliver": Action.DELIVER, "free": Action.NEXT}
_GOAL_NUMBERS: Final = {Action.EXIT: EXIT, Action.DELIVER: DELIVER, Action.NEXT: FREE}
_EXCEPTIONS: Final = tuple(int(row.vector) for row in TABLE if row.vector != Vector.NMI)
_BY_CODE: Final = (fv.VECTOR, fv.ERROR_CODE, fv.PAGE_FAULT_CODE, fv.SELECTOR_INDEX)
_OF_PAGE_FAULTS: Final = frozenset(
    (fv.ADDRESS, fv.PAGE, fv.PAGE_OFFSET, fv.BELOW_STACK, *range(fv.WALK_LEVEL, fv.VALUES_END))
)


@dataclass(frozen=True)
class FaultWishes:
    """Wishes in their order: `rules` whose action is EXIT, DELIVER, or NEXT for "free"."""

    rules: tuple[Rule, ...]
    default: Action = Action.DELIVER
    path: str = ""


@dataclass(frozen=True)
class Granted:
    """The criteria found: a VMCS, and how it grants the wishes.

    `means` is "vt-x", "extended" or "table". `exact` says that nothing else exits; if not,
    `needless` tells of a fault that does. `definition` has the fields' own answers, where there
    are no rules.
    """

    vmcs: Vmcs
    means: str
    exact: bool
    needless: str = ""
    definition: Definition | None = None

    def toml(self) -> str:
        """A VMCS file."""
        return self.vmcs.to_toml()

    def lines(self) -> list[str]:
        """In words."""
        rules = self.vmcs.criteria_table
        clauses = sum(len(rule.clauses) for rule in rules)
        how = {
            "vt-x": "VT-x's fields alone",
            "extended": "the extensions' fields",
            "table": f"a criteria table of {_counted(len(rules), 'rule')} "
            f"and {_counted(clauses, 'clause')}",
        }[self.means]
        if self.exact:
            return [f"exact, by {how}"]
        return [f"sound, not exact, by {how}; exits needlessly: {self.needless}"]

    def _repr_html_(self) -> str:
        """For a notebook."""
        from trapgate.criteria.documents import of_granted

        return of_granted(self).notebook()

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "means": self.means,
            "exact": self.exact,
            "needless": self.needless,
            "rules": len(self.vmcs.criteria_table),
            "toml": self.toml(),
        }


def read_wishes(path: Path) -> FaultWishes:
    """The wishes in a file. Raises SpecError, also for a condition that cannot be read."""
    return parse_wishes(read_toml(path, partial(SpecError, path=str(path))), str(path))


def parse_wishes(text: str, path: str = "") -> FaultWishes:
    """The wishes in TOML `text`; raises as `read_wishes`."""
    wrong = partial(SpecError, path=path)
    document = parse_toml(text, wrong)

    def unknown(problem: str, field: str) -> SpecError:
        return wrong(problem, field=field)

    demand_known(document, ("wishes", "default"), unknown)
    default = document.get("default", "deliver")
    entries = document.get("wishes", [])
    if default not in _GOALS:
        raise wrong(f"{default!r}: {suggestion(str(default), _GOALS)}", field="default")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise wrong("must be a list of tables; write [[wishes]]", field="wishes")
    rules: list[Rule] = []
    for number, entry in enumerate(entries):
        where = f"wishes[{number}]"
        demand_known(entry, ("when", "then"), unknown)
        when, then = entry.get("when", "all"), entry.get("then")
        if then not in _GOALS:
            raise wrong(f"{then!r}: {suggestion(str(then), _GOALS)}", field=f"{where}.then")
        if not isinstance(when, str):
            raise wrong(f"{when!r} is no condition in quotes", field=f"{where}.when")
        try:
            rules += rules_for(parse(when, Names()), _GOALS[then])
        except ConditionError as error:
            raise wrong(str(error), field=f"{where}.when") from None
    return FaultWishes(tuple(rules), _GOALS[default], path)


def define_criteria(
    wishes: FaultWishes,
    scheme: str = "",
    *,
    rules: int = MOST_RULES,
    weights: Weights | None = None,
    timeout: float | None = None,
) -> Granted:
    """The cheapest criteria that grant `wishes`; if none does, the best sound ones.

    `scheme` is "vt-x", "auto" (all fields), "table", or empty for all three in this order.
    `rules` is how many rules the hardware takes. `weights` counts error codes, by vector.

    Raises: InexpressibleError: no sound ones either. UndecidedError, MissingSolverError,
    UnknownSchemeError.
    """
    if scheme not in SCHEMES_OF_WISHES:
        known = [name for name in SCHEMES_OF_WISHES if name]
        raise UnknownSchemeError(
            f"no scheme {scheme!r} for such wishes; {suggestion(scheme, known)}"
        )
    deadline = Deadline(timeout)
    proof = _Proof(wishes, deadline)
    tasks = _tasks(wishes, weights)
    others = "exit" if wishes.default is Action.EXIT else "deliver"
    best: Granted | None = None
    refused: InexpressibleError | None = None
    for name in ("vt-x", "auto"):
        if scheme not in ("", name):
            continue
        try:
            definition = compiled(tasks, name, others=others, deadline=deadline, path=wishes.path)
        except InexpressibleError as error:
            refused = error
            continue
        found = proof.granted(Vmcs.from_toml(definition.toml()), definition.profile)
        found = replace(found, definition=definition)
        if found.exact:
            return found
        if best is None or best.definition is None or definition.weight < best.definition.weight:
            best = found
    if scheme in ("", "table"):
        table = proof.table()
        if table is not None and len(table.criteria_table) <= rules:
            return proof.granted(table, "table")
    if best is None:
        raise refused or InexpressibleError(
            f"no table of {rules} rules grants these wishes; allow more, or fields",
            (),
            path=wishes.path,
        )
    return best


class _Proof:
    """What was wished, as terms over one fault, and searches for what breaks it."""

    def __init__(self, wishes: FaultWishes, deadline: Deadline) -> None:
        z3 = z3_module()
        self._wishes = wishes
        self._fault: FaultTerms = fault_terms(wishes.rules)
        self._search = Search(self._fault, deadline)
        kind = self._fault.values["type"]
        self._exception = z3.Or([kind == int(one) for one in EXCEPTION_TYPES])
        world = terms()
        self._wished = table_in(
            wishes.rules, self._fault.fetch, world, world.number(wishes.default)
        )

    def missed(self, vmcs: Vmcs) -> dict[str, int] | None:
        """An exception that must exit and does not."""
        z3 = z3_module()
        must = self._wished == Action.EXIT.value
        return self._search.find(z3.And(self._exception, must, z3.Not(self._fault.exits(vmcs))))

    def needless(self, vmcs: Vmcs) -> dict[str, int] | None:
        """One that should be delivered and exits."""
        z3 = z3_module()
        spare = self._wished == Action.DELIVER.value
        return self._search.find(z3.And(self._exception, spare, self._fault.exits(vmcs)))

    def meddles(self, vmcs: Vmcs) -> dict[str, int] | None:
        """An interrupt of which the table decides, about which nothing was wished."""
        z3 = z3_module()
        decides = self._fault.action(vmcs) != Action.NEXT.value
        return self._search.find(z3.And(z3.Not(self._exception), decides))

    def granted(self, vmcs: Vmcs, means: str) -> Granted:
        """The answer that a VMCS is. Raises ProofError if it is not even sound."""
        if self.missed(vmcs) is not None:
            raise ProofError("the criteria found let a fault out; please report this")
        needless = self.needless(vmcs)
        asked = frozenset(c.value.name for rule in self._wishes.rules for c in rule.clauses)
        told = in_words(needless, asked) if needless else ""
        return Granted(vmcs, means, needless is None, told)

    def table(self) -> Vmcs | None:
        """The VMCS with the smallest table found, of which nothing can be left out."""
        found: list[Vmcs] = []
        for bitmap in (0, sum(1 << vector for vector in _EXCEPTIONS)):
            wished = list(self._wishes.rules)
            plain = Action.EXIT if bitmap else Action.DELIVER
            if self._wishes.default not in (plain, Action.NEXT):
                wished.append(Rule(self._wishes.default))
            wished = [part for rule in wished for part in _of_exceptions(rule)]
            small = self._smallest(wished, bitmap)
            if len(small) <= MOST_RULES:
                found.append(_with_table(small, bitmap))
        return min(found, key=_size, default=None)

    def _exact(self, rules: Sequence[Rule], bitmap: int) -> bool:
        if len(rules) > MOST_RULES:
            return False
        vmcs = _with_table(rules, bitmap)
        broken = (self.missed, self.needless, self.meddles)
        return all(search(vmcs) is None for search in broken)

    def _smallest(self, wished: list[Rule], bitmap: int) -> list[Rule]:
        """Without each rule, then each clause, that makes no difference to the wishes."""
        rules = wished
        number = len(rules) - 1
        while number >= 0:
            fewer = rules[:number] + rules[number + 1 :]
            if self._exact(fewer, bitmap):
                rules = fewer
            number -= 1
        for number in range(len(rules)):
            place = len(rules[number].clauses) - 1
            while place >= 0:
                clauses = rules[number].clauses
                shorter = Rule(rules[number].action, clauses[:place] + clauses[place + 1 :])
                fewer = [*rules[:number], shorter, *rules[number + 1 :]]
                if self._exact(fewer, bitmap):
                    rules = fewer
                place -= 1
        return rules


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _of_exceptions(rule: Rule) -> Iterator[Rule]:
    """The same rule for exceptions alone: those of the hardware, and those of instructions."""
    for kind in ("type == hardware_exception", "5 <= type <= 6"):
        (restricted,) = rules_for(parse(kind), rule.action)
        yield Rule(rule.action, (*rule.clauses, *restricted.clauses))


def _with_table(rules: Sequence[Rule], bitmap: int) -> Vmcs:
    vmcs = Vmcs()
    vmcs["EXCEPTION_BITMAP"] = bitmap
    vmcs.criteria_table = tuple(rules)
    return vmcs


def _size(vmcs: Vmcs) -> tuple[int, int]:
    rules = vmcs.criteria_table
    return len(rules), sum(len(rule.clauses) for rule in rules)


def _tasks(wishes: FaultWishes, weights: Weights | None) -> list[Task]:
    """What fields can do about the wishes: a task a vector.

    A code of which some faults must exit is one that must.
    """
    tasks = []
    usual = _GOAL_NUMBERS[wishes.default]
    for vector in _EXCEPTIONS:
        layout = layout_of(vector) if has_error_code(vector) else None
        codes = np.zeros(1, np.int64) if layout is None else layout.codes()
        exits, delivers = _possible(wishes, vector, codes)
        if layout is not None:
            occurs = np.asarray(layout.occurs(codes), np.bool_)
            exits, delivers = exits & occurs, delivers & occurs
        goals = np.where(exits, EXIT, np.where(delivers, DELIVER, FREE)).astype(np.uint8)
        if layout is not None and (goals != usual).any():
            tasks.append(task_of_goals(vector, layout, goals, weights))
        elif layout is None and goals[0] != usual:
            tasks.append(Task(vector, None, goals, _nothing, _nothing))
    return tasks


def _nothing(_code: Any) -> Any:
    return z3_module().BoolVal(False)


def _possible(wishes: FaultWishes, vector: int, codes: Codes) -> tuple[Truths, Truths]:
    """Codes of which a fault might have to exit, and of which one might have to be delivered.

    A clause over what the code does not tell may hold or not.
    """
    exits = np.zeros(len(codes), np.bool_)
    delivers = np.zeros(len(codes), np.bool_)
    alive = np.ones(len(codes), np.bool_)
    for rule in wishes.rules:
        possible = np.ones(len(codes), np.bool_)
        certain = possible
        for clause in rule.clauses:
            known = _known(clause, vector, codes)
            if known is None:
                certain = np.zeros(len(codes), np.bool_)
            else:
                possible = possible & known
        if rule.action is Action.EXIT:
            exits |= alive & possible
        elif rule.action is Action.DELIVER:
            delivers |= alive & possible
        alive &= ~(possible & certain)
    if wishes.default is Action.EXIT:
        exits |= alive
    elif wishes.default is Action.DELIVER:
        delivers |= alive
    return exits, delivers


def _known(clause: Clause, vector: int, codes: Codes) -> Truths | None:
    """Where a clause holds for faults of a vector, by their code; None if that does not tell."""
    what = clause.value.number
    nothing = np.zeros(len(codes), np.bool_)
    if what in _OF_PAGE_FAULTS and vector != PF:
        return nothing
    if what == fv.EVENT_TYPE and vector == DB:
        return None
    if what not in (*_BY_CODE, fv.EVENT_TYPE):
        return None
    coded = has_error_code(vector)
    software = vector in (BP, OF)
    values = {
        fv.VECTOR: (True, vector),
        fv.EVENT_TYPE: (True, TYPE_SOFTWARE_EXCEPTION if software else TYPE_HARDWARE_EXCEPTION),
        fv.ERROR_CODE: (coded, codes),
        fv.PAGE_FAULT_CODE: (vector == PF, codes),
        fv.SELECTOR_INDEX: (coded and 10 <= vector <= 13, codes >> 3 & 0x1FFF),
    }

    def fetch(value: FaultValue) -> tuple[Any, Any]:
        present, found = values[value.number]
        shape = np.broadcast_to(np.asarray(found, np.uint64), codes.shape)
        return np.full(codes.shape, present), shape

    return np.asarray(clause_in(clause, fetch, arrays()), np.bool_)
