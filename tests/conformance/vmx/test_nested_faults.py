"""Faults while an event is delivered, under a VMM that is x86 code, up to the triple fault.

`judge` is the double-fault table and the order of decisions, from the SDM's text
("Interrupt 8 - Double Fault Exception", "Information for VM Exits That Occur During Event
Delivery"): a fault is put to the exception bitmap as itself, then combined.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from struct import pack

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.tiny_guest import Tiny
from tests.conformance.vmx.guests import Case, Event, Exit, run

pytestmark = pytest.mark.conformance

FAULT, SOFTWARE = 3, 6
DE, BP, UD, DF, TS, NP, SS, GP, PF = 0, 3, 6, 8, 10, 11, 12, 13, 14
EXCEPTION, TRIPLE_FAULT, VMCALL = 0, 2, 18
CONTRIBUTORY = {0, 10, 11, 12, 13}


@dataclass(frozen=True)
class First:
    """Code that raises an event."""

    event: Event
    code: bytes
    rip: int


FIRST = {
    "#DE": First(Event(DE, FAULT, None), b"\x31\xc9\xf7\xf1", 2),
    "#BP": First(Event(BP, SOFTWARE, None), b"\xcc", 0),
    "#UD": First(Event(UD, FAULT, None), b"\x0f\x0b", 0),
    "#GP": First(Event(GP, FAULT, tg.BEYOND_GDT), b"\x66\xb8\x00\x10\x8e\xd8", 4),
    "#PF": First(Event(PF, FAULT, 4), b"\xbb" + pack("<I", tg.ABSENT) + b"\x8b\x03", 5),
}
"""All from ring 3, so that each delivery takes a stack from the TSS."""


@dataclass(frozen=True)
class Breakage:
    """What is wrong with the guest; `fault` gives the second event for the first."""

    fault: Callable[[Event], Event | None]
    modes: tuple[str, ...] = ("p32", "pae", "l64")
    memory: Callable[[str, int], dict[int, bytes]] = field(default=lambda mode, vector: {})
    fields: dict[str, int] = field(default_factory=dict)


def ext(event: Event) -> int:
    """The EXT bit: 0 while a software interrupt or exception is delivered."""
    return 0 if event.kind == SOFTWARE else 1


def gate_at(mode: str, vector: int) -> int:
    return tg.IDT + vector * (16 if mode == "l64" else 8)


def absent_gate(vectors: tuple[int, ...]) -> Breakage:
    """Gates that are not present: those of `vectors`, or of all if there are none."""
    return Breakage(
        lambda event: (
            Event(NP, FAULT, event.vector * 8 + 2 + ext(event))
            if event.vector in vectors or not vectors
            else None
        ),
        memory=lambda mode, vector: {gate_at(mode, n) + 5: b"\x6e" for n in (vectors or range(32))},
    )


def wrong_gate(event: Event) -> Event | None:
    return Event(GP, FAULT, event.vector * 8 + 2 + ext(event))


LEGACY = ("p32", "pae")
BREAKAGES = {
    "gate not present, all": absent_gate(()),
    "gate not present, first": Breakage(
        lambda event: None,  # replaced below: depends on the first vector
    ),
    "no interrupt gate, all": Breakage(
        wrong_gate, memory=lambda mode, vector: {gate_at(mode, n) + 5: b"\xe0" for n in range(32)}
    ),
    "IDT limit 0": Breakage(wrong_gate, fields={"GUEST_IDTR_LIMIT": 0}),
    "TSS too short": Breakage(
        lambda event: Event(TS, FAULT, tg.TASK | ext(event)), fields={"GUEST_TR_LIMIT": 3}
    ),
    "stack selector null": Breakage(
        lambda event: Event(TS, FAULT, ext(event)),
        modes=LEGACY,
        memory=lambda mode, vector: {tg.TSS + 8: pack("<I", 0)},
    ),
    "stack segment of ring 3": Breakage(
        lambda event: Event(TS, FAULT, tg.DATA_3 & ~3 | ext(event)),
        modes=LEGACY,
        memory=lambda mode, vector: {tg.TSS + 8: pack("<I", tg.DATA_3)},
    ),
    "stack segment not present": Breakage(
        lambda event: Event(SS, FAULT, tg.ABSENT_STACK | ext(event)),
        modes=LEGACY,
        memory=lambda mode, vector: {tg.TSS + 8: pack("<I", tg.ABSENT_STACK)},
    ),
    "stack not canonical": Breakage(
        lambda event: Event(SS, FAULT, ext(event)),
        modes=("l64",),
        memory=lambda mode, vector: {tg.TSS + 4: pack("<Q", 1 << 47 | 0x1000)},
    ),
    "page fault on the stack": Breakage(
        lambda event: Event(PF, FAULT, 2),
        memory=lambda mode, vector: {tg.TSS + 4: pack("<I", tg.ABSENT + 0x800)},
    ),
    "page fault on the IDT": Breakage(
        lambda event: Event(PF, FAULT, 0), fields={"GUEST_IDTR_BASE": tg.ABSENT}
    ),
}


def judge(
    first: Event, breaks: Callable[[Event], Event | None], bitmap: int
) -> tuple[int, Event | None, Event | None]:
    """(exit reason, interruption, IDT-vectoring); a delivery is a VMCALL exit and its event."""
    delivering = first
    # A double fault that exits, and a triple fault, do not count as exits during delivery.
    while True:
        fault = breaks(delivering)
        if fault is None:
            return VMCALL, delivering, None
        if bitmap >> fault.vector & 1:
            return EXCEPTION, fault, delivering
        if delivering.vector == DF:
            return TRIPLE_FAULT, None, None
        both = delivering.vector in CONTRIBUTORY and fault.vector in CONTRIBUTORY
        if delivering.kind == FAULT and (
            both or (delivering.vector == PF and fault.vector in CONTRIBUTORY | {PF})
        ):
            double = Event(DF, FAULT, 0)
            if bitmap >> DF & 1:
                return EXCEPTION, double, None
            delivering = double
        else:
            delivering = fault


def breakage_of(name: str, first: First) -> Breakage:
    if name == "gate not present, first":
        return absent_gate((first.event.vector,))
    return BREAKAGES[name]


CASES = [
    (first, name, bitmap)
    for first in FIRST
    for name in BREAKAGES
    for bitmap in ("", "second", "#DF", "second and #DF")
]


def bitmap_of(first: First, breakage: Breakage, which: str) -> int:
    """The bits of the second vector and of #DF; never that of the first event."""
    second = breakage.fault(first.event)
    assert second is not None
    bits = (1 << second.vector) * ("second" in which) | (1 << DF) * ("#DF" in which)
    return bits & ~(1 << first.event.vector)


@pytest.mark.parametrize(("bits", "mode"), [(32, "p32"), (32, "pae"), (64, "p32"), (64, "l64")])
def test_nested_faults(bits: int, mode: str) -> None:
    chosen = []
    cases = []
    for title, name, which in CASES:
        first = FIRST[title]
        breakage = breakage_of(name, first)
        if mode not in breakage.modes:
            continue
        guest = Tiny(
            mode, 3, first.code, breakage.memory(mode, first.event.vector), dict(breakage.fields)
        )
        bitmap = bitmap_of(first, breakage, which)
        chosen.append((title, name, which, first, breakage, bitmap))
        cases.append(Case(guest, {"EXCEPTION_BITMAP": bitmap}))
    reasons = set()
    for (title, name, which, first, breakage, bitmap), found in zip(
        chosen, run(bits, mode, cases), strict=True
    ):
        where = (title, name, which, found)
        reason, interruption, vectoring = judge(first.event, breakage.fault, bitmap)
        reasons.add(reason)
        assert (found.verdict, found.reason) == ("exit", reason), where
        if reason == VMCALL:
            assert interruption is not None
            assert found.rip == tg.handler(interruption.vector), where
            continue
        assert (found.interruption, found.idt_vectoring) == (interruption, vectoring), where
        assert_state(found, first, where)
    assert reasons == {EXCEPTION, TRIPLE_FAULT, VMCALL}


def assert_state(found: Exit, first: First, where: object) -> None:
    """The guest is as it was before the first event: the exit comes in place of its delivery."""
    assert found.rip == tg.CODE + first.rip, where
    if found.interruption is not None and found.interruption.vector == PF:
        assert tg.ABSENT <= found.qualification < tg.ABSENT + 0x1000, where
