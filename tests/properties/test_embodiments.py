"""The embodiments with names, proved equal to the tables that stand for them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.unit.test_criteria_table import expected
from trapgate.criteria.terms.table_backends import Backend, arrays, table_in, terms
from trapgate.decision import embodiments
from trapgate.decision.criteria_rules import Action, Rule
from trapgate.decision.decide import Disposition, decide_fault, decide_filtered
from trapgate.decision.embodiments import TRANSFER
from trapgate.decision.fault_filters import (
    BY_FAULT_FILTER,
    ORDERS,
    figure_7,
    figure_8,
    paragraph_80,
)
from trapgate.decision.fault_values import FaultValue
from trapgate.decision.rules import SCHEMES
from trapgate.vmcs.vmcs import Vmcs

z3 = pytest.importorskip("z3")

FIELDS = {name: len(scheme.fields) for name, scheme in SCHEMES.items()}


def fetching(backend: Backend, known: dict[str, Any]) -> Callable[[FaultValue], tuple[Any, Any]]:
    """Values by name; those that are not known are absent."""
    absent = backend.inverse(backend.true)

    def fetch(value: FaultValue) -> tuple[Any, Any]:
        if value.name in known:
            return backend.true, known[value.name]
        return absent, backend.number(0)

    return fetch


def proved(claim: Any) -> bool:
    solver = z3.Solver()
    solver.add(z3.Not(claim))
    return bool(solver.check() == z3.unsat)


def narrow(name: str) -> Any:
    """An unsigned 32-bit number in 64 bits."""
    return z3.ZeroExt(32, z3.BitVec(name, 32))


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "member"])
def test_every_transfer_criterion_is_a_table_for_all_codes_and_fields(
    name: str, control: bool
) -> None:
    backend = terms()
    code = narrow("code")
    values = [narrow(f"field {n}") for n in range(FIELDS[name])]
    rules = TRANSFER[name](14, control, *values)
    fetch = fetching(backend, {"vector": backend.number(14), "code": code})
    action = table_in(rules, fetch, backend, backend.number(Action.NEXT))
    exits = SCHEMES[name].function(z3.BoolVal(control), z3.BoolVal(True), code, *values)
    assert proved(action == z3.If(exits, backend.number(1), backend.number(2)))
    # ¶43: without an error code the control bit decides.
    fetch = fetching(backend, {"vector": backend.number(14)})
    action = table_in(rules, fetch, backend, backend.number(Action.NEXT))
    assert proved(action == backend.number(1 if control else 2))
    # Other vectors are none of its business.
    fetch = fetching(backend, {"vector": backend.number(13), "code": code})
    assert proved(table_in(rules, fetch, backend, backend.number(Action.NEXT)) == backend.number(0))


@pytest.mark.parametrize("used", [0, 1, 0x80, 0xA5, 0xFF])
def test_members_are_a_table(used: int) -> None:
    backend = terms()
    code = narrow("code")
    values = [narrow(f"value {n}") for n in range(8)]
    rules = TRANSFER["member"](14, False, used, *values)
    fetch = fetching(backend, {"vector": backend.number(14), "code": code})
    action = table_in(rules, fetch, backend, backend.number(Action.NEXT))
    exits = SCHEMES["member"].function(
        z3.BoolVal(False), z3.BoolVal(True), code, backend.number(used), *values
    )
    assert proved(action == z3.If(exits, backend.number(1), backend.number(2)))


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "member"])
def test_three_bits_exhaustively_by_integers(name: str) -> None:
    scheme = SCHEMES[name]
    width = 2 if FIELDS[name] > 3 else 3
    space = list(np.ndindex(*[1 << width] * (FIELDS[name] + 1)))
    for control in (False, True):
        for code, *values in space:
            rules = TRANSFER[name](14, control, *values)
            action, _ = expected(list(rules), {"vector": 14, "code": code})
            exits = scheme.function(control, True, code, *values)
            assert action == (Action.EXIT if exits else Action.DELIVER), (code, values)


FILTERS = {
    "figure-7": (embodiments.figure_7(), False, False),
    "figure-8, 4 bytes": (embodiments.figure_8(wide=False, page_size=False), False, False),
    "figure-8, 4 bytes, PSE": (embodiments.figure_8(wide=False, page_size=True), False, True),
    "figure-8, 8 bytes": (embodiments.figure_8(wide=True, page_size=True), True, True),
    "paragraph-80": (embodiments.paragraph_80(), False, False),
}


def built_in(name: str, entry: Any, pte: Any, data: Any, old: Any, kept: Any, denying: Any) -> Any:
    if name == "figure-7":
        return figure_7(entry, pte, data)
    if name == "paragraph-80":
        return paragraph_80(entry, entry, data)
    return figure_8(entry, pte, data, old, kept, denying)


@pytest.mark.parametrize("name", FILTERS)
def test_every_fault_filter_is_a_table_for_all_entries(name: str) -> None:
    rules, wide, page_size = FILTERS[name]
    backend = terms()
    bits = 64 if wide else 32

    def entry(label: str) -> Any:
        return z3.BitVec(label, 64) if wide else z3.ZeroExt(32, z3.BitVec(label, bits))

    old, new, kind = entry("old"), entry("new"), z3.BitVec("kind", 64)
    kept = 0x000FFFFFFFFFF080 if wide else 0xFFFFF000 | (0x80 if page_size else 0)
    denying = 1 << 63 if wide else 0
    known = {"table_entry": kind, "old_entry": old, "new_entry": new}
    known |= {"set_bits": new & ~old, "cleared_bits": old & ~new}
    action = table_in(rules, fetching(backend, known), backend, backend.number(Action.NEXT))
    completes = built_in(
        name,
        z3.Or(kind == 1, kind == 2),
        kind == 1,
        new,
        old,
        backend.number(kept),
        backend.number(denying),
    )
    claim = (action == backend.number(Action.COMPLETE)) == completes
    assert proved(z3.Implies(z3.Or(kind == 1, kind == 2), claim))


def in_order(order: str, satisfied: Any, exits: Any) -> Any:
    """What the seed says becomes of a page fault, as a term."""
    by_criteria = z3.If(exits, z3.BitVecVal(Action.EXIT, 64), z3.BitVecVal(Action.DELIVER, 64))
    complete = z3.BitVecVal(Action.COMPLETE, 64)
    match order:
        case "figure-6":
            return z3.If(satisfied, complete, by_criteria)
        case "paragraph-60":
            return z3.If(z3.And(satisfied, exits), complete, by_criteria)
        case "paragraph-66":
            return z3.If(satisfied, complete, z3.BitVecVal(Action.EXIT, 64))
    return z3.If(z3.And(satisfied, z3.Not(exits)), complete, by_criteria)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["figure-7", "figure-8, 8 bytes", "paragraph-80"])
def test_every_order_of_filter_and_criteria_is_a_table(
    name: str, order: str, control: bool
) -> None:
    backend = terms()
    code, mask, match = narrow("code"), narrow("mask"), narrow("match")
    old, new, kind = (z3.BitVec(label, 64) for label in ("old", "new", "kind"))
    rules = embodiments.ordered(order, FILTERS[name][0], control, mask, match)
    known = {"vector": backend.number(14), "code": code}
    exits = SCHEMES["figure-3"].function(z3.BoolVal(control), z3.BoolVal(True), code, mask, match)
    # A page fault that no filter may judge has no table entry.
    action = table_in(rules, fetching(backend, known), backend, backend.number(Action.NEXT))
    assert proved(action == in_order(order, z3.BoolVal(False), exits))
    known |= {"table_entry": kind, "old_entry": old, "new_entry": new}
    known |= {"set_bits": new & ~old, "cleared_bits": old & ~new}
    action = table_in(rules, fetching(backend, known), backend, backend.number(Action.NEXT))
    satisfied = built_in(
        name,
        z3.Or(kind == 1, kind == 2),
        kind == 1,
        new,
        old,
        backend.number(0x000FFFFFFFFFF080),
        backend.number(1 << 63),
    )
    judged = z3.Or(kind == 1, kind == 2)
    assert proved(z3.Implies(judged, action == in_order(order, satisfied, exits)))


@pytest.mark.parametrize("order", ORDERS)
def test_orders_do_what_the_processor_does_for_all_small_fields(order: str) -> None:
    vmcs = Vmcs()
    vmcs["FAULT_FILTER"], vmcs["FAULT_FILTER_ORDER"] = 1, ORDERS[order]
    actions = {Disposition.EXIT: Action.EXIT, Disposition.DELIVER: Action.DELIVER}
    actions[Disposition.COMPLETE] = Action.COMPLETE
    for control in (False, True):
        vmcs["EXCEPTION_BITMAP"] = 1 << 14 if control else 0
        for code, mask, match in np.ndindex(8, 8, 8):
            vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = mask
            vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = match
            rules = embodiments.ordered(order, FILTERS["figure-7"][0], control, mask, match)
            for entry in (0, 1):
                fault = {"vector": 14, "code": code, "table_entry": 1, "new_entry": entry}
                action, _ = expected(list(rules), fault)
                if entry == 0:
                    disposition, _ = decide_filtered(vmcs.cells, code, BY_FAULT_FILTER)
                else:
                    disposition, _ = decide_fault(vmcs.cells, 14, 3, code)
                assert action == actions[Disposition(disposition)], (code, mask, match, entry)


def test_a_wrong_table_is_not_proved() -> None:
    backend = terms()
    code, mask, match = narrow("code"), narrow("mask"), narrow("match")
    rules = TRANSFER["exchanged"](14, True, mask, match)
    fetch = fetching(backend, {"vector": backend.number(14), "code": code})
    action = table_in(rules, fetch, backend, backend.number(Action.NEXT))
    exits = SCHEMES["figure-3"].function(z3.BoolVal(True), z3.BoolVal(True), code, mask, match)
    assert not proved(action == z3.If(exits, backend.number(1), backend.number(2)))


def test_arrays_say_what_integers_say() -> None:
    backend = arrays()
    rng = np.random.default_rng(14)
    codes = rng.integers(0, 1 << 16, 2000, np.uint64)
    rules: tuple[Rule, ...] = (
        *TRANSFER["figure-5"](14, True, 8, 0b11, 0b01)[:2],
        *TRANSFER["less"](14, True, 1 << 14),
    )
    fetch = fetching(backend, {"vector": np.full(2000, 14, np.uint64), "code": codes})
    got = table_in(rules, fetch, backend, np.zeros(2000, np.uint64))
    wanted = [expected(list(rules), {"vector": 14, "code": int(code)})[0] for code in codes]
    assert got.tolist() == wanted
