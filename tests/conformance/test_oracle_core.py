"""The oracle's cases on the core alone: what a VM entry, or a given fault, decides.

The whole processor replays every case elsewhere; here no engine stands between the
case and the code that decides it.
"""

from collections import Counter
from functools import cache

import pytest

from tests.conformance.core_machine import CoreMachine, Event
from tests.conformance.oracle_cases import BASE, Case, cases, compare, families, injected

pytestmark = pytest.mark.conformance

INJECTED = {
    "inject": 696,
    "inject_len": 560,
    "inject_rsvd": 4,
    "inject_blk": 212,
    "inject_act": 44,
    "inject_fl": 88,
    "inject_pend": 44,
    "inject_other": 64,
    "nest": 1985,
    "nmi": 106,
}
"""How many cases of each family inject something; so no loop below is empty."""

FAULTS = {"pfec": 1256, "vec": 184, "nest": 1607}
"""How many cases are decided by an instruction's fault, nothing injected."""

CALLS = "callex"
"""A CALL into a missing page has pushed its return address before it
faults, which no exit tells and only an engine does."""

SOFTWARE_INTERRUPTS = {
    "int0": 0,
    "int1": 1,
    "int2": 2,
    "intcd3": 3,
    "int8": 8,
    "int13": 13,
    "int14": 14,
    "int20": 0x20,
    "int80": 0x80,
    "intff": 0xFF,
}


@cache
def machine(form: str) -> CoreMachine:
    return CoreMachine(compile_it=form == "compiled")


@cache
def raised() -> dict[tuple[str, str], Event]:
    """The event behind each (mode, trigger): read off a case where it exits by itself."""
    found: dict[tuple[str, str], Event] = {}
    for case in cases():
        given, out = case["in"], case["out"]
        if given["entry_info"] or case["env"] != "none" or out["kind"] != "exit":
            continue
        if out["reason"] != 0 or out["idtv"] is not None or out["intr"]["vector"] == 8:
            continue
        code = out["intr"]["err"]
        found[case["mode"], case["trig"]] = Event(
            vector=out["intr"]["vector"],
            kind=out["intr"]["type"],
            error_code=-1 if code is None else code,
            address=out["qual"],
            length=out["ilen"] or 0,
            moved=out["rip"] - given["rip"],
            rsp=out["rsp"] if out["rsp"] != given["rsp"] else None,
            rcx=out.get("cx"),
        )
    return found


def event_of(case: Case) -> Event:
    software = SOFTWARE_INTERRUPTS.get(case["trig"].removesuffix("_u"))
    if software is not None:
        return Event(software, 4, -1, 0, 2)
    if case["env"] == "gdt_np" and case["trig"].startswith("np_ds"):
        # The instruction itself cannot read the descriptor of the selector it loads.
        return Event(14, 3, 0, BASE + 0x48, 0)
    return raised()[case["mode"], case["trig"]]


def test_the_data_is_whole() -> None:
    assert len(cases()) == 6930
    assert len({case["id"] for case in cases()}) == 6930
    counts = Counter(case["fam"] for case in cases() if case["in"]["entry_info"])
    assert counts == INJECTED


@pytest.mark.parametrize("form", ["interpreted", "compiled"])
@pytest.mark.parametrize("family", INJECTED)
def test_injected_events(family: str, form: str) -> None:
    core = machine(form)
    wrong = {
        case["id"]: found for case in injected(family) if (found := compare(case, core.run(case)))
    }
    assert wrong == {}


@pytest.mark.parametrize("form", ["interpreted", "compiled"])
@pytest.mark.parametrize("family", FAULTS)
def test_faults_of_instructions(family: str, form: str) -> None:
    core = machine(form)
    chosen = [
        case
        for case in families()[family]
        if not case["in"]["entry_info"]
        and case["out"]["kind"] != "nofault"
        and not case["trig"].startswith(CALLS)
    ]
    assert len(chosen) == FAULTS[family]
    wrong = {
        case["id"]: found
        for case in chosen
        if (found := compare(case, core.run(case, event_of(case))))
    }
    assert wrong == {}
