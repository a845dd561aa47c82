"""Exceptions that guest code raises, under a VMM that is x86 code, in 32-bit and 64-bit mode.

Each vector with its bit in the exception bitmap 0 and 1; page faults with every error
code that can be reached, under 64 settings of mask, match and bit. What the SDM says of
each event stands in `test_vector_dispositions.TRIGGERS`.
"""

from functools import cache

import pytest

from tests.conformance import tiny_guest as tg
from tests.conformance.test_vector_dispositions import (
    FAULT,
    PF,
    TRIGGERS,
    Trigger,
    expected_rip,
)
from tests.conformance.vmx.guests import Case, Event, Exit, run

pytestmark = pytest.mark.conformance

UNDER = {32: ("p32", "pae"), 64: ("p32", "pae", "l64")}
VMCALL, EXCEPTION = 18, 0
RUNS = [
    pytest.param(bits, mode, number, id=f"{bits}-{mode}-{trigger.vector}-{trigger.name}")
    for bits, modes in UNDER.items()
    for mode in modes
    for number, trigger in enumerate(TRIGGERS)
    if mode in trigger.modes
]


@cache
def with_bit(bits: int, mode: str, bit: int) -> dict[int, Exit]:
    """By number of the trigger, its exit if its own bit is `bit`."""
    numbers = [n for n, trigger in enumerate(TRIGGERS) if mode in trigger.modes]
    cases = [
        Case(TRIGGERS[n].guest(mode), {"EXCEPTION_BITMAP": bit << TRIGGERS[n].vector})
        for n in numbers
    ]
    return dict(zip(numbers, run(bits, mode, cases), strict=True))


def event_of(trigger: Trigger) -> Event:
    return Event(trigger.vector, trigger.kind, trigger.error)


@pytest.mark.parametrize(("bits", "mode", "number"), RUNS)
def test_bit_0_the_guest_handles_it(bits: int, mode: str, number: int) -> None:
    trigger, found = TRIGGERS[number], with_bit(bits, mode, 0)[number]
    assert (found.verdict, found.reason) == ("exit", VMCALL)
    assert found.rip == tg.handler(trigger.vector)
    assert found.interruption is None
    assert found.idt_vectoring is None
    if trigger.vector == PF:
        assert found.cr2 == trigger.qualification


@pytest.mark.parametrize(("bits", "mode", "number"), RUNS)
def test_bit_1_the_vmm_gets_it(bits: int, mode: str, number: int) -> None:
    trigger, found = TRIGGERS[number], with_bit(bits, mode, 1)[number]
    assert (found.verdict, found.reason) == ("exit", EXCEPTION)
    assert found.interruption == event_of(trigger)
    outer = trigger.outer
    assert found.idt_vectoring == (outer and Event(outer.vector, outer.type, outer.error_code))
    assert found.rip == expected_rip(trigger) + (trigger.saved if trigger.kind == FAULT else 0)
    assert found.qualification == trigger.qualification
    if trigger.length:
        assert found.length == trigger.length


def reachable(mode: str) -> dict[int, Trigger]:
    """A page fault of this mode for each error code."""
    return {
        t.error: t for t in TRIGGERS if t.vector == PF and mode in t.modes and t.error is not None
    }


def settings(code: int) -> list[tuple[int, int, int]]:
    """64 settings of (mask, match, bit) to put a code to: matching, nearly matching and not."""
    masks = (0, 1, 2, 4, 0b111, 0x1F, 0xFFFF_FFFF, code)
    return [
        (mask, match, bit)
        for mask in masks
        for match in (code & mask, 0, code ^ 1, 0x1F)
        for bit in (0, 1)
    ]


@pytest.mark.parametrize("mode", ["p32", "pae", "l64"])
def test_page_faults_under_every_setting(mode: str) -> None:
    """Figure 3: the bit as it is if the code matches, and inverted if it does not."""
    tried = [(code, *setting) for code in reachable(mode) for setting in settings(code)]
    cases = [
        Case(
            reachable(mode)[code].guest(mode),
            {
                "EXCEPTION_BITMAP": bit << PF,
                "PAGE_FAULT_ERROR_CODE_MASK": mask,
                "PAGE_FAULT_ERROR_CODE_MATCH": match,
            },
        )
        for code, mask, match, bit in tried
    ]
    found = run(64, mode, cases)
    assert len(found) == 64 * len(reachable(mode))
    for (code, mask, match, bit), exit_ in zip(tried, found, strict=True):
        exits = bool(bit) == ((code & mask) == match)
        assert exit_.reason == (EXCEPTION if exits else VMCALL), (code, mask, match, bit, exit_)
        if exits:
            assert exit_.interruption == Event(PF, FAULT, code)
            assert exit_.qualification == reachable(mode)[code].qualification
        else:
            assert exit_.rip == tg.handler(PF)


def test_that_every_reachable_code_is_there() -> None:
    """Without protection keys, shadow stacks and SGX: P, W/R, U/S, RSVD, I/D as they combine."""
    assert set(reachable("p32")) >= {0, 2, 3, 4, 5, 7, 9}
    for mode in ("pae", "l64"):
        assert set(reachable(mode)) >= {0, 2, 3, 4, 5, 7, 9, 0x0F, 0x10, 0x11, 0x15}
