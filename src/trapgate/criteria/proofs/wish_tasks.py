"""What fields can do about wishes over all that faults tell: a task a vector, by error codes."""

from typing import Any, Final

import numpy as np

from trapgate.criteria.problems.codes import Codes, Truths, has_error_code, layout_of
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.proofs.tasks import Task, Weights, task_of_goals
from trapgate.criteria.terms.table_backends import arrays, clause_in
from trapgate.criteria.wishes.fault_wishes import FaultWishes
from trapgate.criteria.wishes.spec import DELIVER, EXIT, FREE
from trapgate.decision import fault_values as fv
from trapgate.decision.criteria_rules import Action, Clause
from trapgate.decision.fault_values import FaultValue
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION, TYPE_SOFTWARE_EXCEPTION
from trapgate.sdm.vectors import BP, DB, OF, PF, TABLE, Vector

_GOAL_NUMBERS: Final = {Action.EXIT: EXIT, Action.DELIVER: DELIVER, Action.NEXT: FREE}
EXCEPTIONS: Final = tuple(int(row.vector) for row in TABLE if row.vector != Vector.NMI)
"""The vectors that the exception bitmap speaks of."""
_BY_CODE: Final = (fv.VECTOR, fv.ERROR_CODE, fv.PAGE_FAULT_CODE, fv.SELECTOR_INDEX)
_OF_PAGE_FAULTS: Final = frozenset(
    (fv.ADDRESS, fv.PAGE, fv.PAGE_OFFSET, fv.BELOW_STACK, *range(fv.WALK_LEVEL, fv.REASON))
)


def tasks_of(wishes: FaultWishes, weights: Weights | None) -> list[Task]:
    """What fields can do about the wishes: a task a vector.

    A code of which some faults must exit is one that must.
    """
    tasks = []
    usual = _GOAL_NUMBERS[wishes.default]
    for vector in EXCEPTIONS:
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
    if (what in _OF_PAGE_FAULTS and vector != PF) or clause.value in fv.OF_INSTRUCTIONS:
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
