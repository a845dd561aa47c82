"""Faults during the delivery of an event: as themselves, doubled, tripled; task gates."""

import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest, descriptor
from trapgate.events import delivery
from trapgate.sdm.vectors import TABLE, FaultClass

EXCEPTION, TRIPLE, TASK_SWITCH = 0, 2, 9
EXTERNAL, NMI, HARDWARE, INT_N, INT1, INT3 = 0, 2, 3, 4, 5, 6
RF = 1 << 16


def handler(vector: int) -> int:
    return g.HANDLERS + 16 * vector


def unchanged(guest: Guest) -> dict[str, int]:
    names = ("GUEST_RIP", "GUEST_RSP", "GUEST_CS_SELECTOR", "GUEST_SS_SELECTOR")
    return {name: guest[name] for name in names}


NESTED = [
    ("limit", {"GUEST_IDTR_LIMIT": 6 * 8 + 6}, (13, 6 * 8 + 2 + 1)),
    ("type", {"access": 0x8C}, (13, 6 * 8 + 2 + 1)),
    ("absent", {"access": 0x6E}, (11, 6 * 8 + 2 + 1)),
    ("null", {"selector": 3}, (13, 1)),
    ("beyond", {"selector": 0xF8}, (13, 0xF8 | 1)),
    ("no-ldt", {"selector": 0x0C}, (13, 0x0C | 1)),
    ("data", {"selector": g.DATA0}, (13, g.DATA0 | 1)),
    ("outer", {"selector": g.CODE3}, (13, 0x18 | 1)),
    ("tss", {"selector": g.BUSY_TSS}, (13, g.BUSY_TSS | 1)),
    ("stack", {"GUEST_SS_LIMIT": g.STACK - 2}, (12, 1)),
]


@pytest.mark.parametrize(("form", "fault"), [case[1:] for case in NESTED], ids=str)
def test_nested_fault_is_decided_as_itself(form: dict[str, int], fault: tuple[int, int]) -> None:
    guest = Guest()
    fields = {name: value for name, value in form.items() if name.startswith("GUEST")}
    guest.set(EXCEPTION_BITMAP=1 << fault[0], **fields)
    guest.gate(6, **{name: value for name, value in form.items() if name not in fields})
    before = unchanged(guest)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (fault[0], HARDWARE, fault[1])
    assert guest.idt_vectoring() == (6, HARDWARE, None)
    assert unchanged(guest) == before


TSS_FAULTS = [
    ({"GUEST_TR_LIMIT": 8}, None, (10, g.BUSY_TSS | 1)),
    ({}, 0, (10, 1)),
    ({}, 0xF8, (10, 0xF8 | 1)),
    ({}, g.DATA3, (10, 0x20 | 1)),
    ({}, g.CODE0, (10, g.CODE0 | 1)),
    ({}, g.DATA0 | 1, (10, g.DATA0 | 1)),
]


@pytest.mark.parametrize(("fields", "ss", "fault"), TSS_FAULTS, ids=str)
def test_stack_of_the_inner_ring(
    fields: dict[str, int], ss: int | None, fault: tuple[int, int]
) -> None:
    guest = Guest(ring=3)
    guest.set(EXCEPTION_BITMAP=1 << 10, **fields)
    if ss is not None:
        guest.write(g.TSS + 8, ss.to_bytes(2, "little"))
    before = unchanged(guest)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (fault[0], HARDWARE, fault[1])
    assert unchanged(guest) == before


def test_absent_stack_segment() -> None:
    guest = Guest(ring=3)
    guest.write(g.GDT + g.DATA0, descriptor(0x13).to_bytes(8, "little"))
    guest.set(EXCEPTION_BITMAP=1 << 12)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (12, HARDWARE, g.DATA0 | 1)


@pytest.mark.parametrize(
    ("kind", "ext"), [(EXTERNAL, 1), (NMI, 1), (HARDWARE, 1), (INT_N, 0), (INT1, 1), (INT3, 0)]
)
def test_ext_bit(kind: int, ext: int) -> None:
    vector = 2 if kind == NMI else 6
    guest = Guest()
    guest.set(EXCEPTION_BITMAP=1 << 11)
    guest.gate(vector, access=0x6E)
    assert guest.raise_event(vector, kind, length=1) == 1
    assert guest.interruption() == (11, HARDWARE, vector * 8 + 2 + ext)
    assert guest.idt_vectoring() == (vector, kind, None)


@pytest.mark.parametrize(
    ("kind", "refused"), [(EXTERNAL, False), (HARDWARE, False), (INT_N, True), (INT1, False)]
)
def test_gate_privilege_is_for_software_events(kind: int, refused: bool) -> None:
    guest = Guest(ring=3)
    guest.gate(6, access=0x8E)
    assert guest.raise_event(6, kind, length=1) == 0
    assert guest["GUEST_RIP"] == handler(13 if refused else 6)


def test_length_is_that_of_the_event_being_delivered() -> None:
    guest = Guest()
    guest.gate(0x80, access=0x6E)
    guest.set(EXCEPTION_BITMAP=1 << 11)
    assert guest.raise_event(0x80, INT_N, length=2) == 1
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == 2
    assert guest.idt_vectoring() == (0x80, INT_N, None)


def test_long_mode_stack_must_be_canonical() -> None:
    for rsp in (1 << 47, -(1 << 47), -(1 << 63)):
        guest = Guest(bits=64)
        guest.set(GUEST_RSP=rsp, EXCEPTION_BITMAP=1 << 12 | 1 << 14)
        assert guest.raise_event(6) == 1
        vector = 14 if rsp == 1 << 47 else 12
        assert guest["VM_EXIT_INTERRUPTION_INFORMATION"] & 0xFF == vector


def test_long_mode_handler_must_be_canonical_and_64_bit() -> None:
    guest = Guest(bits=64)
    guest.set(EXCEPTION_BITMAP=1 << 13)
    guest.gate(6, offset=1 << 47)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (13, HARDWARE, 1)
    guest.gate(6, selector=g.CODE0)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (13, HARDWARE, g.CODE0 | 1)


def test_page_fault_on_the_stack_is_a_supervisor_write() -> None:
    guest = Guest(bits=64, ring=3)
    guest.write(g.TSS + 4, (0x20_1000).to_bytes(8, "little"))
    guest.set(EXCEPTION_BITMAP=1 << 14)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (14, HARDWARE, 2)
    assert guest["EXIT_QUALIFICATION"] == 0x20_1000 - 8


def test_cr2_of_a_nested_page_fault_that_stays() -> None:
    guest = Guest(bits=64)
    guest.set(GUEST_RSP=0x20_1000, EXCEPTION_BITMAP=1 << 8)
    assert guest.raise_event(14, error_code=0, address=0x1111) == 1
    assert guest.interruption() == (8, HARDWARE, 0)
    assert guest.idt_vectoring() is None
    assert guest["cr2"] == 0x20_1000 - 8


# Double and triple faults


def test_combinations() -> None:
    kinds = {row.vector: row.fault_class for row in TABLE}
    table = {
        (FaultClass.CONTRIBUTORY, FaultClass.CONTRIBUTORY): delivery.COMBINE_DOUBLE_FAULT,
        (FaultClass.PAGE_FAULT, FaultClass.CONTRIBUTORY): delivery.COMBINE_DOUBLE_FAULT,
        (FaultClass.PAGE_FAULT, FaultClass.PAGE_FAULT): delivery.COMBINE_DOUBLE_FAULT,
        (FaultClass.DOUBLE_FAULT, FaultClass.CONTRIBUTORY): delivery.COMBINE_SHUTDOWN,
        (FaultClass.DOUBLE_FAULT, FaultClass.PAGE_FAULT): delivery.COMBINE_SHUTDOWN,
    }
    for first in range(32):
        for second in range(32):
            pair = (
                kinds.get(first, FaultClass.BENIGN),  # type: ignore[call-overload]
                kinds.get(second, FaultClass.BENIGN),  # type: ignore[call-overload]
            )
            want = table.get(pair, delivery.COMBINE_SERIALLY)
            assert delivery.combine(first, HARDWARE, second) == want
            for kind in (EXTERNAL, NMI, INT_N, INT1, INT3):
                assert delivery.combine(first, kind, second) == delivery.COMBINE_SERIALLY


def test_double_fault_is_delivered_with_error_code_0() -> None:
    guest = Guest()
    guest.gate(13, access=0x6E)
    assert guest.raise_event(13, error_code=0x40) == 0
    assert guest["GUEST_RIP"] == handler(8)
    assert guest.frame(4) == [0, g.CODE, g.CODE0, 2 | RF]


def test_interrupt_13_is_no_contributory_exception() -> None:
    guest = Guest()
    guest.gate(13, access=0x6E)
    assert guest.raise_event(13, INT_N, length=2) == 0
    assert guest["GUEST_RIP"] == handler(11)
    assert guest.frame(2) == [13 * 8 + 2, g.CODE]


def test_fault_while_a_double_fault_is_delivered_exits_as_itself() -> None:
    guest = Guest()
    guest.gate(11, access=0x6E)
    guest.gate(8, access=0xEC)
    guest.set(EXCEPTION_BITMAP=1 << 13)
    assert guest.raise_event(11, error_code=0) == 1
    assert guest["EXIT_REASON"] == EXCEPTION
    assert guest.interruption() == (13, HARDWARE, 8 * 8 + 3)
    assert guest.idt_vectoring() == (8, HARDWARE, 0)


def test_fault_while_a_double_fault_is_delivered_shuts_down() -> None:
    guest = Guest()
    guest.gate(11, access=0x6E)
    guest.gate(8, access=0x6E)
    assert guest.raise_event(11, error_code=0) == 1
    assert guest["EXIT_REASON"] == TRIPLE
    assert guest.interruption() is None
    assert guest.idt_vectoring() is None


def test_triple_fault_is_journalled_as_a_chain() -> None:
    guest = Guest()
    guest.gate(14, access=0x6E)
    guest.gate(8, access=0x6E)
    before = unchanged(guest)
    assert guest.raise_event(14, error_code=2, address=0x1234) == 1
    assert guest["EXIT_REASON"] == TRIPLE
    assert unchanged(guest) == before
    chain = [(row[3], row[5], row[9], row[12], row[14]) for row in guest.journal()]
    assert chain == [
        (14, 2, 0x1234, 1, 0),
        (11, 14 * 8 + 3, 0, 1, 1),
        (8, 0, 0, 1, 2),
        (11, 8 * 8 + 3, 0, 0, 3),
    ]
    assert [row[0] for row in guest.journal()] == [0, 1, 2, 3]


# Task gates


def test_task_gates_exit() -> None:
    guest = Guest()
    guest.gate(6, access=0xE5, selector=g.FREE_TSS)
    before = unchanged(guest)
    assert guest.raise_event(6) == 1
    assert guest["EXIT_REASON"] == TASK_SWITCH
    assert guest["EXIT_QUALIFICATION"] == 3 << 30 | g.FREE_TSS
    assert guest.idt_vectoring() == (6, HARDWARE, None)
    assert guest.interruption() is None
    assert unchanged(guest) == before
    assert guest.journal()[-1][12] == 0


@pytest.mark.parametrize(
    ("selector", "fault"),
    [
        (g.FREE_TSS | 4, (13, g.FREE_TSS | 4 | 1)),
        (0xF8, (13, 0xF8 | 1)),
        (g.BUSY_TSS, (13, g.BUSY_TSS | 1)),
        (g.CODE0, (13, g.CODE0 | 1)),
        (g.CODE16_TSS, (10, g.CODE16_TSS | 1)),
    ],
)
def test_checks_before_a_task_switch(selector: int, fault: tuple[int, int]) -> None:
    guest = Guest()
    guest.gate(6, access=0xE5, selector=selector)
    guest.set(EXCEPTION_BITMAP=1 << 10 | 1 << 13)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (fault[0], HARDWARE, fault[1])


def test_no_task_gates_in_long_mode() -> None:
    guest = Guest(bits=64)
    guest.gate(6, access=0xE5, selector=g.FREE_TSS)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RIP"] == handler(13)
