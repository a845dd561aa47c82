"""What becomes of an event: delivered through every kind of gate, or exited."""

import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest, descriptor
from trapgate.events import delivery
from trapgate.events.ivt import is_redirected
from trapgate.events.journal import (
    HEAD_COUNTS,
    HEAD_DATA,
    HEAD_ENTRY,
    HEAD_OLD_VALUE,
    HEAD_SEQUENCE,
)
from trapgate.paging.apic_access import APIC_ACCESS, apic_access
from trapgate.paging.ept import EPT_MISCONFIGURATION, EPT_VIOLATION, LOG_FULL
from trapgate.sdm import state

EXCEPTION, TRIPLE = 0, 2
EXTERNAL, NMI, HARDWARE, INT_N, INT1, INT3 = 0, 2, 3, 4, 5, 6
RF, IF, TF, NT, VM, AC = 1 << 16, 1 << 9, 1 << 8, 1 << 14, 1 << 17, 1 << 18


def handler(vector: int) -> int:
    return g.HANDLERS + 16 * vector


def unchanged(guest: Guest) -> dict[str, int]:
    names = ("GUEST_RIP", "GUEST_RSP", "GUEST_CS_SELECTOR", "GUEST_SS_SELECTOR")
    return {name: guest[name] for name in names}


# Frames and new state


def test_same_ring_without_error_code() -> None:
    guest = Guest()
    guest.set(GUEST_RFLAGS=2 | IF | TF | NT)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RIP"] == handler(6)
    assert guest["GUEST_RSP"] == g.STACK - 12
    assert guest.frame(3) == [g.CODE, g.CODE0, 2 | IF | TF | NT | RF]
    assert guest["GUEST_RFLAGS"] == 2


def test_same_ring_with_error_code() -> None:
    guest = Guest()
    assert guest.raise_event(13, error_code=0x28) == 0
    assert guest.frame(4) == [0x28, g.CODE, g.CODE0, 2 | RF]


def test_trap_gates_leave_interrupts_on() -> None:
    guest = Guest()
    guest.gate(0x80, access=0xEF)
    guest.set(GUEST_RFLAGS=2 | IF)
    assert guest.raise_event(0x80, INT_N, length=2) == 0
    assert guest["GUEST_RFLAGS"] == 2 | IF


@pytest.mark.parametrize("kind", [INT_N, INT1, INT3])
def test_software_events_return_behind_the_instruction(kind: int) -> None:
    guest = Guest()
    guest.set(GUEST_RFLAGS=2 | RF)
    assert guest.raise_event(3, kind, length=2) == 0
    assert guest.frame(3) == [g.CODE + 2, g.CODE0, 2]


def test_from_ring_3() -> None:
    guest = Guest(ring=3)
    guest.set(GUEST_RSP=0x4800)
    assert guest.raise_event(14, error_code=4, address=0x1234) == 0
    assert guest["GUEST_RSP"] == g.TSS_STACK - 24
    assert guest.frame(6) == [4, g.CODE, g.CODE3, 2 | RF, 0x4800, g.DATA3]
    assert guest["GUEST_CS_SELECTOR"] == g.CODE0
    assert guest["GUEST_SS_SELECTOR"] == g.DATA0
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == 0xC093
    assert guest["cr2"] == 0x1234


def test_conforming_handlers_keep_the_ring() -> None:
    guest = Guest(ring=3)
    guest.gate(6, selector=g.CONFORMING)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_CS_SELECTOR"] == g.CONFORMING | 3
    assert guest["GUEST_RSP"] == g.STACK - 12


def test_sixteen_bit_gates_push_words() -> None:
    guest = Guest()
    guest.gate(13, access=0xE6)
    assert guest.raise_event(13, error_code=0x77) == 0
    assert guest["GUEST_RSP"] == g.STACK - 8
    assert guest.words(guest["GUEST_RSP"], 4, 2) == [0x77, g.CODE, g.CODE0, 2]


def test_sixteen_bit_task_state_segment() -> None:
    guest = Guest(ring=3)
    guest.set(GUEST_TR_ACCESS_RIGHTS=0x83, GUEST_TR_LIMIT=0x2B)
    guest.write(g.TSS + 2, (0x5800).to_bytes(2, "little") + g.DATA0.to_bytes(2, "little"))
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RSP"] == 0x5800 - 20


def test_long_mode_aligns_and_pushes_the_stack() -> None:
    guest = Guest(bits=64)
    guest.set(GUEST_RSP=g.STACK - 8)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RSP"] == g.STACK - 16 - 40
    assert guest.frame(5, 8) == [g.CODE, g.LONG0, 2 | RF, g.STACK - 8, g.DATA0]
    assert guest["GUEST_SS_SELECTOR"] == g.DATA0


def test_long_mode_from_ring_3_nulls_ss() -> None:
    guest = Guest(bits=64, ring=3)
    assert guest.raise_event(13, error_code=8) == 0
    assert guest["GUEST_RSP"] == g.TSS_STACK - 48
    assert guest["GUEST_SS_SELECTOR"] == 0
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == state.AR_UNUSABLE
    assert guest.frame(6, 8) == [8, g.CODE, g.LONG3, 2 | RF, g.STACK, g.DATA3]


@pytest.mark.parametrize("ring", [0, 3])
def test_interrupt_stack_table(ring: int) -> None:
    guest = Guest(bits=64, ring=ring)
    guest.gate(8, ist=1)
    assert guest.raise_event(8, error_code=0) == 0
    assert guest["GUEST_RSP"] == g.IST_STACK - 48


def test_real_mode() -> None:
    guest = Guest()
    guest.set(GUEST_CR0=0x10, GUEST_IDTR_BASE=0, GUEST_IDTR_LIMIT=0x3FF, GUEST_RSP=0x100)
    guest.segment("CS", 0x1000, 0x9B, base=0x10000, limit=0xFFFF)
    guest.segment("SS", 0x2000, 0x93, base=0x20000, limit=0xFFFF)
    guest.set(GUEST_RIP=0x1234, GUEST_RFLAGS=2 | IF | AC)
    guest.write(13 * 4, bytes.fromhex("78563000"))
    assert guest.raise_event(13, error_code=0) == 0
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_CS_BASE"]) == (0x30, 0x300)
    assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (0x5678, 0xFA)
    assert guest.words(0x200FA, 3, 2) == [0x1234, 0x1000, 2 | IF]
    assert guest["GUEST_RFLAGS"] == 2


def test_real_mode_without_vectors_shuts_down() -> None:
    guest = Guest()
    guest.set(GUEST_CR0=0x10, GUEST_IDTR_LIMIT=0)
    assert guest.raise_event(6) == 1
    assert guest["EXIT_REASON"] == TRIPLE


def test_exits_from_real_mode_have_no_error_code() -> None:
    guest = Guest()
    guest.set(GUEST_CR0=0x10, EXCEPTION_BITMAP=1 << 13)
    assert guest.raise_event(13, error_code=0) == 1
    assert guest.interruption() == (13, HARDWARE, None)


def virtual_8086() -> Guest:
    guest = Guest(ring=3)
    guest.set(GUEST_RFLAGS=2 | VM | 3 << 12, GUEST_RIP=0x12, GUEST_RSP=0x3456)
    for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS")):
        guest.segment(name, 0x1000 + n, 0xF3, base=0x10000 + 16 * n, limit=0xFFFF)
    return guest


def test_from_virtual_8086_mode() -> None:
    guest = virtual_8086()
    assert guest.raise_event(13, error_code=0) == 0
    assert guest["GUEST_RSP"] == g.TSS_STACK - 40
    assert guest.frame(10) == [
        0,
        0x12,
        0x1001,
        2 | VM | 3 << 12 | RF,
        0x3456,
        0x1002,
        0x1000,
        0x1003,
        0x1004,
        0x1005,
    ]
    assert guest["GUEST_RFLAGS"] == 2 | 3 << 12
    assert guest["GUEST_DS_SELECTOR"] == guest["GUEST_GS_SELECTOR"] == 0
    assert guest["GUEST_FS_ACCESS_RIGHTS"] == state.AR_UNUSABLE


def test_virtual_8086_mode_must_enter_ring_0() -> None:
    guest = virtual_8086()
    guest.gate(6, selector=g.CODE3)
    guest.set(EXCEPTION_BITMAP=1 << 13)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (13, HARDWARE, 0x18 | 1)


def test_int_n_in_virtual_8086_mode_needs_iopl_3() -> None:
    guest = virtual_8086()
    guest.set(GUEST_RFLAGS=2 | VM)
    assert guest.raise_event(0x80, INT_N, length=2) == 0
    assert guest["GUEST_RIP"] == handler(13)
    assert guest.frame(2) == [0, 0x12]


# INT n in virtual-8086 mode with CR4.VME: the redirection bitmap below the I/O map at TSS + 88H.

VIF, IOPL_3 = 1 << 19, 3 << 12
REDIRECTION, IO_MAP = 0x68, 0x88


def redirecting(flags: int, bitmap: bytes = bytes(32)) -> Guest:
    """In virtual-8086 mode, with vectors 80H and 21H of the 8086's own at 0; RFLAGS `flags`."""
    guest = virtual_8086()
    guest.set(GUEST_RFLAGS=2 | VM | flags, GUEST_CR4=state.CR4_VME, GUEST_TR_LIMIT=IO_MAP)
    guest.write(g.TSS + 102, IO_MAP.to_bytes(2, "little"))
    guest.write(g.TSS + REDIRECTION, bitmap)
    for vector in (0x21, 0x80):
        guest.write(vector * 4, (0x1200 + vector).to_bytes(2, "little") + b"\x34\x05")
    return guest


@pytest.mark.parametrize("vector", [0x21, 0x80])
@pytest.mark.parametrize(
    ("flags", "pushed", "left"),
    [
        (IOPL_3 | IF, IOPL_3 | IF, IOPL_3),
        (IOPL_3 | TF, IOPL_3 | TF, IOPL_3),
        (IF | VIF, IOPL_3 | IF, IF),
        (IF, IOPL_3, IF),
    ],
)
def test_int_n_redirected_to_the_8086_program(
    vector: int, flags: int, pushed: int, left: int
) -> None:
    guest = redirecting(flags)
    assert guest.raise_event(vector, INT_N, length=2) == 0
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_CS_BASE"]) == (0x534, 0x5340)
    assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (0x1200 + vector, 0x3450)
    assert guest.words(0x10020 + 0x3450, 3, 2) == [0x14, 0x1001, 2 | pushed]
    assert guest["GUEST_RFLAGS"] == 2 | VM | left


@pytest.mark.parametrize(("flags", "vector"), [(IOPL_3, 0x80), (VIF, 13)])
def test_int_n_with_its_redirection_bit_goes_through_the_idt(flags: int, vector: int) -> None:
    guest = redirecting(flags, bytes(16) + b"\x01" + bytes(15))
    assert guest.raise_event(0x80, INT_N, length=2) == 0
    assert guest["GUEST_RIP"] == handler(vector)
    assert guest["GUEST_RFLAGS"] & VM == 0


def test_int_n_outside_virtual_8086_mode_is_not_redirected() -> None:
    guest = redirecting(IOPL_3)
    assert is_redirected(guest.v, guest.mem, 0x80, INT_N)[0]
    guest.set(GUEST_RFLAGS=2 | IOPL_3)
    assert not is_redirected(guest.v, guest.mem, 0x80, INT_N)[0]


def test_a_redirected_injection_clears_rf() -> None:
    guest = redirecting(IOPL_3 | RF)
    assert guest.raise_event(0x80, INT_N, length=2, injected=1) == 0
    assert guest["GUEST_RFLAGS"] == 2 | VM | IOPL_3


@pytest.mark.parametrize("kind", [EXTERNAL, HARDWARE, INT3])
def test_nothing_but_int_n_is_redirected(kind: int) -> None:
    guest = redirecting(IOPL_3)
    assert guest.raise_event(0x80 if kind == EXTERNAL else 3, kind, length=1) == 0
    assert guest["GUEST_RFLAGS"] & VM == 0


@pytest.mark.parametrize("limit", [102, REDIRECTION + 0x10])
def test_a_redirection_bitmap_beyond_the_limit_is_a_general_protection_fault(limit: int) -> None:
    guest = redirecting(IOPL_3)
    guest.set(GUEST_TR_LIMIT=limit)
    assert guest.raise_event(0x80, INT_N, length=2) == 0
    assert guest["GUEST_RIP"] == handler(13)
    assert guest.frame(2) == [0, 0x12]


def test_fresh_descriptors_become_accessed() -> None:
    guest = Guest()
    guest.gate(6, selector=g.FRESH_CODE)
    assert guest.raise_event(6) == 0
    assert guest.ram[g.GDT + g.FRESH_CODE + 5] == 0x9B
    assert guest["GUEST_CS_ACCESS_RIGHTS"] == 0xC09B


def test_local_descriptor_table() -> None:
    guest = Guest()
    guest.gate(6, selector=0x0C)
    guest.set(GUEST_LDTR_BASE=0x4000, GUEST_LDTR_LIMIT=0xF, GUEST_LDTR_ACCESS_RIGHTS=0x82)
    guest.write(0x4008, descriptor(0x9B).to_bytes(8, "little"))
    assert guest.raise_event(6) == 0
    assert guest["GUEST_CS_SELECTOR"] == 0x0C


def test_frame_across_two_pages() -> None:
    guest = Guest(bits=64)
    guest.set(GUEST_RSP=0x5010)
    assert guest.raise_event(13, error_code=1) == 0
    assert guest.frame(6, 8) == [1, g.CODE, g.LONG0, 2 | RF, 0x5010, g.DATA0]


def test_unaligned_frame_across_two_pages() -> None:
    guest = Guest()
    guest.set(GUEST_RSP=0x5006)
    assert guest.raise_event(13, error_code=1) == 0
    assert guest.frame(4) == [1, g.CODE, g.CODE0, 2 | RF]


def test_expand_down_stack() -> None:
    guest = Guest()
    guest.segment("SS", g.DATA0, 0xC097, limit=g.STACK - 12 - 1)
    assert guest.raise_event(6) == 0
    guest = Guest()
    guest.segment("SS", g.DATA0, 0xC097, limit=g.STACK - 12)
    guest.set(EXCEPTION_BITMAP=1 << 12)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (12, HARDWARE, 1)


def test_stack_that_wraps_around() -> None:
    guest = Guest()
    guest.segment("SS", g.DATA0, 0x0093, base=0x10000, limit=0xFFFF)
    guest.set(GUEST_RSP=0xABCD_0004)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RSP"] == 0xABCD_FFF8
    assert guest.words(0x1FFF8, 2) == [g.CODE, g.CODE0]
    assert guest.words(0x10000, 1) == [2 | RF]


# What else a delivery changes


def test_blocking_by_sti_and_mov_ss_ends_and_nmi_blocks() -> None:
    guest = Guest()
    guest.set(GUEST_INTERRUPTIBILITY_STATE=state.BLOCKING_BY_MOV_SS, GUEST_ACTIVITY_STATE=1)
    assert guest.raise_event(2, NMI) == 0
    assert guest["GUEST_INTERRUPTIBILITY_STATE"] == state.BLOCKING_BY_NMI
    assert guest["GUEST_ACTIVITY_STATE"] == 0


def test_debug_exceptions_update_dr6_and_dr7() -> None:
    guest = Guest()
    guest.set(GUEST_DR7=0x2400, dr6=0xFFFF0FF3, GUEST_IA32_DEBUGCTL=3)
    guest.set(EOI_EXIT_BITMAP_0=1 << 20)  # which has nothing to do with it
    assert guest.raise_event(1, address=0x4004) == 0
    assert guest["dr6"] == 0xFFFF4FF4
    assert guest["GUEST_DR7"] == 0x400
    # SDM, "Monitoring Branches, Exceptions, and Interrupts" and "Single-Stepping on Branches".
    assert guest["GUEST_IA32_DEBUGCTL"] == 0
    assert guest.frame(3)[2] == 2, "a trap does not set RF"


def test_debug_exceptions_that_exit_leave_dr6() -> None:
    guest = Guest()
    guest.set(GUEST_DR7=0x2400, EXCEPTION_BITMAP=2)
    assert guest.raise_event(1, address=0x2000) == 1
    assert guest["EXIT_QUALIFICATION"] == 0x2000
    assert guest["dr6"] == state.DR6_FIXED_1
    assert guest["GUEST_DR7"] == 0x2400


def test_injected_events_are_not_decided_and_leave_registers() -> None:
    guest = Guest()
    guest.set(EXCEPTION_BITMAP=-1, cr2=0x77)
    assert guest.raise_event(14, error_code=2, address=0x9999, injected=1) == 0
    assert guest["cr2"] == 0x77
    assert guest.frame(4) == [2, g.CODE, g.CODE0, 2]


# Exits


def test_page_fault_exit() -> None:
    guest = Guest()
    guest.set(EXCEPTION_BITMAP=1 << 14, cr2=0x77)
    before = unchanged(guest)
    assert guest.raise_event(14, error_code=6, address=0xFFFF_1234) == 1
    assert guest["EXIT_REASON"] == EXCEPTION
    assert guest.interruption() == (14, HARDWARE, 6)
    assert guest.idt_vectoring() is None
    assert guest["EXIT_QUALIFICATION"] == 0xFFFF_1234
    assert guest["cr2"] == 0x77
    assert guest["GUEST_RFLAGS"] == 2 | RF
    assert unchanged(guest) == before


def test_breakpoint_exit_has_a_length() -> None:
    guest = Guest()
    guest.set(EXCEPTION_BITMAP=1 << 3)
    assert guest.raise_event(3, INT3, length=1) == 1
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == 1
    assert guest["GUEST_RIP"] == g.CODE


@pytest.mark.parametrize("acknowledge", [0, 1 << 15])
def test_external_interrupt_exit(acknowledge: int) -> None:
    guest = Guest()
    guest.set(PIN_BASED_CONTROLS=0x17, VM_EXIT_CONTROLS=guest["VM_EXIT_CONTROLS"] | acknowledge)
    assert guest.raise_event(0x31, EXTERNAL) == 1
    assert guest["EXIT_REASON"] == 1
    assert guest.interruption() == ((0x31, EXTERNAL, None) if acknowledge else None)


def test_nmi_exit_blocks_nothing() -> None:
    guest = Guest()
    guest.set(PIN_BASED_CONTROLS=0x1E)
    assert guest.raise_event(2, NMI) == 1
    assert guest.interruption() == (2, NMI, None)
    assert guest["GUEST_INTERRUPTIBILITY_STATE"] == 0


# The journal, and completion


def test_journal_is_a_ring_and_counts() -> None:
    guest = Guest()
    for _ in range(40):
        guest.set(GUEST_RSP=g.STACK)
        guest.raise_event(6)
    assert guest.head[HEAD_SEQUENCE] == 40
    assert sorted(row[0] for row in guest.journal()) == list(range(8, 40))
    first = HEAD_COUNTS + (HARDWARE * 256 + 6) * 3
    assert list(guest.head[first : first + 3]) == [0, 40, 0]
    assert guest.head[HEAD_COUNTS:].sum() == 40


def test_completed_faults_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "decide_event", lambda *_: (2, 1))
    guest = Guest()
    before = guest.v.copy()
    assert guest.raise_event(14, error_code=2, address=5) == 2
    assert (guest.v == before).all()
    assert guest.journal()[0][12] == 2
    assert guest.journal()[0][15] == 0


@pytest.mark.parametrize(("entry", "kind"), [(0, 0), (0x1234550, 0), (0x1234551, 1), (0x16, 2)])
def test_criteria_see_the_data_of_a_write_that_was_refused(
    monkeypatch: pytest.MonkeyPatch, entry: int, kind: int
) -> None:
    seen = []

    def decide(*given: int) -> tuple[int, int]:
        seen.append(given[-3:])
        return 1, 0

    monkeypatch.setattr(delivery, "decide_event", decide)
    guest = Guest()
    guest.head[[HEAD_ENTRY, HEAD_OLD_VALUE, HEAD_DATA]] = entry, 0x222, 0x333
    assert guest.raise_event(14, error_code=2) == 0
    assert seen == [(kind, 0x222, 0x333)]


# What an event is before it is delivered


@pytest.mark.parametrize("iopl", range(4))
@pytest.mark.parametrize("flags", [VM, 0])
@pytest.mark.parametrize("kind", [INT_N, INT3, EXTERNAL])
def test_only_int_n_in_virtual_8086_mode_asks_for_iopl_3(iopl: int, flags: int, kind: int) -> None:
    guest = virtual_8086() if flags else Guest(ring=3)
    guest.set(GUEST_RFLAGS=2 | flags | iopl << 12)
    assert guest.raise_event(0x80, kind, length=2) == 0
    sensitive = flags and kind == INT_N and iopl != 3
    assert guest["GUEST_RIP"] == handler(13 if sensitive else 0x80)
    row = guest.journal()[0]
    assert row[3:6] == ([13, HARDWARE, 0] if sensitive else [0x80, kind, -1])


def test_an_injected_int_n_is_not_sensitive_to_iopl() -> None:
    guest = virtual_8086()
    guest.set(GUEST_RFLAGS=2 | VM)
    assert guest.raise_event(0x80, INT_N, length=2, injected=1) == 0
    assert guest["GUEST_RIP"] == handler(0x80)


def test_the_general_protection_fault_of_iopl_may_exit() -> None:
    guest = virtual_8086()
    guest.set(GUEST_RFLAGS=2 | VM, EXCEPTION_BITMAP=1 << 13)
    assert guest.raise_event(0x80, INT_N, length=2) == 1
    assert guest.interruption() == (13, HARDWARE, 0)
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == 0
    assert guest["GUEST_RFLAGS"] & RF


@pytest.mark.parametrize(("mode", "code"), [("real", None), ("protected", 0x77)])
def test_error_codes_of_the_mode(mode: str, code: int | None) -> None:
    guest = Guest()
    guest.set(EXCEPTION_BITMAP=1 << 12)
    if mode == "real":
        guest.set(GUEST_CR0=0x10)
    assert guest.raise_event(12, error_code=0x77) == 1
    assert guest.interruption() == (12, HARDWARE, code)
    assert guest.journal()[0][5] == (-1 if code is None else code)


def test_a_double_fault_in_real_mode_has_no_error_code() -> None:
    # The vector table ends below vector 13, and a stack of one word holds no frame.
    guest = Guest()
    guest.set(GUEST_CR0=0x10, GUEST_IDTR_BASE=0, GUEST_IDTR_LIMIT=9 * 4 - 1)
    guest.set(EXCEPTION_BITMAP=1 << 8)
    assert guest.raise_event(13, error_code=0) == 1
    assert guest.interruption() == (8, HARDWARE, None)
    assert [row[5] for row in guest.journal()] == [-1, -1, -1]


# Nested faults


def test_addresses_outside_long_mode_have_32_bits() -> None:
    guest = Guest()
    guest.page(absent=(0,))
    guest.set(GUEST_IDTR_BASE=0xFFFF_FFF0, EXCEPTION_BITMAP=1 << 14)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (14, HARDWARE, 0)
    assert guest["EXIT_QUALIFICATION"] == 0x20
    guest.set(EXCEPTION_BITMAP=1 << 8)
    assert guest.raise_event(6) == 1
    assert guest["cr2"] == 0x60, "that of vector 14, which met the same"


def test_addresses_in_long_mode_have_64_bits() -> None:
    guest = Guest(bits=64)
    guest.set(GUEST_RSP=-(1 << 46), EXCEPTION_BITMAP=1 << 14)
    assert guest.raise_event(6) == 1
    assert guest["EXIT_QUALIFICATION"] == -(1 << 46) - 8


@pytest.mark.parametrize(
    ("kind", "length"), [(EXTERNAL, 0), (HARDWARE, 0), (INT_N, 2), (INT1, 2), (INT3, 2)]
)
def test_the_length_and_the_event_of_a_broken_delivery(kind: int, length: int) -> None:
    guest = Guest()
    code = 0x40 if kind == HARDWARE else -1
    vector = 12 if kind == HARDWARE else 0x30
    guest.gate(vector, access=0x6E)
    guest.set(EXCEPTION_BITMAP=1 << 11)
    assert guest.raise_event(vector, kind, code, length=2) == 1
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == length
    assert guest.idt_vectoring() == (vector, kind, None if code < 0 else code)
    assert guest.interruption() == (11, HARDWARE, vector * 8 + 2 + (kind not in (INT_N, INT3)))
    assert guest["EXIT_QUALIFICATION"] == 0
    assert guest["EXIT_REASON"] == 0


def test_a_nested_fault_that_stays_pushes_the_frame_of_the_handler() -> None:
    guest = Guest(ring=3)
    guest.gate(0x30, access=0x6E)
    guest.set(GUEST_RFLAGS=2 | RF)
    assert guest.raise_event(0x30, INT_N, length=2) == 0
    assert guest["GUEST_RIP"] == handler(11)
    assert guest.frame(4) == [0x30 * 8 + 2, g.CODE, g.CODE3, 2 | RF]
    rows = [(row[3], row[4], row[12], row[14]) for row in guest.journal()]
    assert rows == [(0x30, INT_N, 1, 0), (11, HARDWARE, 1, 1)]


def test_an_exit_before_escalation_leaves_the_outer_event_counted_as_delivered() -> None:
    guest = Guest()
    guest.gate(13, access=0x6E)
    guest.set(EXCEPTION_BITMAP=1 << 11)
    assert guest.raise_event(13, error_code=0) == 1
    assert [(row[3], row[12]) for row in guest.journal()] == [(13, 1), (11, 0)]


def test_a_triple_fault_says_nothing_of_lengths() -> None:
    guest = Guest()
    guest.set(GUEST_IDTR_LIMIT=0)
    assert guest.raise_event(3, INT3, length=1) == 1
    assert guest["EXIT_REASON"] == TRIPLE
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == 0
    assert guest["EXIT_QUALIFICATION"] == 0
    last = guest.journal()[-1]
    assert (last[3], last[12], last[13]) == (13, 0, 15)


@pytest.mark.parametrize(("kind", "length"), [(HARDWARE, 0), (INT_N, 2), (EXTERNAL, 0)])
def test_task_gates_report_the_instruction_and_the_event(kind: int, length: int) -> None:
    guest = Guest()
    guest.gate(0x30, access=0xE5, selector=g.FREE_TSS)
    guest.gate(10, access=0xE5, selector=g.FREE_TSS)
    vector, code = (10, 0x28) if kind == HARDWARE else (0x30, -1)
    assert guest.raise_event(vector, kind, code, length=2) == 1
    assert guest["EXIT_REASON"] == 9
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == length
    assert guest.idt_vectoring() == (vector, kind, None if code < 0 else code)
    last = guest.journal()[-1]
    assert (last[3], last[12], last[13]) == (vector, 0, 14)


# Registers


@pytest.mark.parametrize(
    ("vector", "kind", "before", "after"),
    [
        (6, HARDWARE, 0, RF),
        (14, HARDWARE, 0, RF),
        (1, HARDWARE, 0, 0),
        (1, HARDWARE, RF, RF),
        (0x30, EXTERNAL, 0, 0),
        (0x30, EXTERNAL, RF, RF),
        (2, NMI, RF, RF),
        (3, INT_N, RF, 0),
        (1, INT1, RF, 0),
        (3, INT3, RF, 0),
    ],
)
def test_the_resume_flag_in_the_frame(vector: int, kind: int, before: int, after: int) -> None:
    guest = Guest()
    guest.set(GUEST_RFLAGS=2 | before)
    assert guest.raise_event(vector, kind, length=1) == 0
    assert guest.frame(3)[2] == 2 | after
    guest.set(GUEST_RFLAGS=2 | before)
    assert guest.raise_event(vector, kind, length=1, injected=1) == 0
    assert guest.frame(3)[2] == 2 | before


@pytest.mark.parametrize(
    ("vector", "kind", "dr6", "dr7"),
    [
        (1, HARDWARE, 0xFFFF_4FF1, 0x400),
        (1, INT1, 0xFFFF_0FF8, 0x400),
        (1, INT_N, 0xFFFF_0FF8, 0x2400),
        (3, INT3, 0xFFFF_0FF8, 0x2400),
        (6, HARDWARE, 0xFFFF_0FF8, 0x2400),
    ],
)
def test_debug_registers(vector: int, kind: int, dr6: int, dr7: int) -> None:
    guest = Guest()
    guest.set(GUEST_DR7=0x2400, dr6=0xFFFF_0FF8, GUEST_IA32_DEBUGCTL=3, cr2=0x77)
    assert guest.raise_event(vector, kind, address=0x4001, length=1) == 0
    assert guest["dr6"] == dr6
    assert guest["GUEST_DR7"] == dr7
    assert guest["GUEST_IA32_DEBUGCTL"] == (0 if dr7 == 0x400 else 3)
    assert guest["cr2"] == 0x77


@pytest.mark.parametrize("kind", [INT_N, EXTERNAL])
def test_vector_14_is_no_page_fault_of_itself(kind: int) -> None:
    guest = Guest()
    guest.set(cr2=0x77)
    assert guest.raise_event(14, kind, address=0x1234, length=2) == 0
    assert guest["cr2"] == 0x77
    assert guest.journal()[0][9] == 0


@pytest.mark.parametrize(
    ("vector", "kind", "qualification"),
    [(14, HARDWARE, 0x1234), (1, HARDWARE, 0x1234), (13, HARDWARE, 0), (1, INT1, 0), (3, INT3, 0)],
)
def test_qualifications(vector: int, kind: int, qualification: int) -> None:
    guest = Guest()
    guest.set(EXCEPTION_BITMAP=0xFFFF_FFFF)
    assert guest.raise_event(vector, kind, address=0x1234, length=1) == 1
    assert guest["EXIT_QUALIFICATION"] == qualification
    assert guest.journal()[0][9] == (0x1234 if vector == 14 else 0)
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == (0 if kind == HARDWARE else 1)


@pytest.mark.parametrize(("kind", "vector"), [(HARDWARE, 6), (EXTERNAL, 0x30), (NMI, 2)])
def test_what_blocks_afterwards(kind: int, vector: int) -> None:
    guest = Guest()
    guest.set(GUEST_INTERRUPTIBILITY_STATE=state.BLOCKING_BY_STI | state.BLOCKING_BY_SMI)
    guest.set(GUEST_ACTIVITY_STATE=1)
    assert guest.raise_event(vector, kind) == 0
    blocked = state.BLOCKING_BY_SMI | (state.BLOCKING_BY_NMI if kind == NMI else 0)
    assert guest["GUEST_INTERRUPTIBILITY_STATE"] == blocked
    assert guest["GUEST_ACTIVITY_STATE"] == 0


# EPT violations and misconfigurations on the way


def ept_guest() -> Guest:
    """Its first 2 MB are mapped one to one by an EPT at 30000H, as pages of 4 KB."""
    guest = Guest(bits=64)
    guest.write(0x30000, (0x31007).to_bytes(8, "little"))
    guest.write(0x31000, (0x32007).to_bytes(8, "little"))
    guest.write(0x32000, (0x33007).to_bytes(8, "little"))
    for n in range(512):
        guest.write(0x33000 + 8 * n, (n << 12 | 7 | 6 << 3).to_bytes(8, "little"))
    guest.set(EPT_POINTER_IN_FORCE=0x3001E)
    return guest


def test_events_are_delivered_through_ept() -> None:
    guest = ept_guest()
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RIP"] == handler(6)


@pytest.mark.parametrize(("kind", "length"), [(HARDWARE, 0), (INT_N, 2)])
def test_an_ept_violation_during_delivery(kind: int, length: int) -> None:
    guest = ept_guest()
    guest.write(0x33000 + 8 * 4, bytes(8))  # the stack's page
    guest.set(EXCEPTION_BITMAP=0xFFFF_FFFF & ~(1 << 13))
    assert (
        guest.raise_event(
            13 if kind == HARDWARE else 0x30, kind, 8 if length == 0 else -1, length=2
        )
        == 1
    )
    assert guest["EXIT_REASON"] == 48
    # A write, and the linear address, whose translation was done.
    assert guest["EXIT_QUALIFICATION"] & 0x1BF == 0x182
    assert guest["GUEST_LINEAR_ADDRESS"] == g.STACK - 8
    assert guest["GUEST_PHYSICAL_ADDRESS"] & ~0xFFF == 0x4000
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == length
    assert guest.interruption() is None
    if kind == HARDWARE:
        assert guest.idt_vectoring() == (13, HARDWARE, 8)
    else:
        assert guest.idt_vectoring() == (0x30, INT_N, None)
    row = guest.journal()[-1]
    assert (row[12], row[13]) == (0, 21)


def test_an_ept_misconfiguration_of_an_instruction() -> None:
    from trapgate.paging.walk import WRITE, walk

    guest = ept_guest()
    guest.write(0x33000 + 8 * 4, (0x4000 | 2).to_bytes(8, "little"))  # writable, not readable
    _, error, _, _ = walk(guest.v, 2, guest.mem, 0x4008, WRITE, 0)
    assert error >= EPT_VIOLATION
    guest.set(GUEST_LINEAR_ADDRESS=0x99)
    assert guest.raise_event(14, error_code=error, address=0x4008) == 1
    assert guest["EXIT_REASON"] == 49
    assert guest["EXIT_QUALIFICATION"] == 0
    assert guest["GUEST_LINEAR_ADDRESS"] == 0
    assert guest["GUEST_RFLAGS"] & RF
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == 0
    assert guest.idt_vectoring() is None
    assert guest.journal() == []


def test_an_ept_violation_in_real_mode_stays_one() -> None:
    from trapgate.paging.walk import WRITE, walk

    guest = ept_guest()
    guest.set(GUEST_CR0=0x10, GUEST_IA32_EFER=0)
    guest.write(0x33000 + 8 * 4, bytes(8))
    _, error, _, _ = walk(guest.v, 2, guest.mem, 0x4008, WRITE, 0)
    assert guest.raise_event(14, error_code=error, address=0x4008) == 1
    assert guest["EXIT_REASON"] == 48
    assert guest["GUEST_LINEAR_ADDRESS"] == 0x4008


# Real mode and redirected INT n, at their limits


def real_mode() -> Guest:
    guest = Guest()
    guest.set(GUEST_CR0=0x10, GUEST_IDTR_BASE=0x900, GUEST_RSP=0xABCD_0100, GUEST_RIP=0x1234)
    guest.segment("CS", 0x1000, 0x9B, base=0x10000, limit=0xFFFF)
    guest.segment("SS", 0x2000, 0x93, base=0x20000, limit=0xFFFF)
    guest.write(0x900 + 6 * 4, bytes.fromhex("78563412"))
    return guest


@pytest.mark.parametrize(("limit", "good"), [(27, True), (26, False)])
def test_the_limit_of_the_vector_table(limit: int, good: bool) -> None:
    guest = real_mode()
    guest.set(GUEST_IDTR_LIMIT=limit, EXCEPTION_BITMAP=1 << 13)
    assert guest.raise_event(6) == (0 if good else 1)
    if good:
        assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_CS_BASE"]) == (0x1234, 0x12340)
        assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (0x5678, 0xABCD_00FA)
    else:
        assert guest.interruption() == (13, HARDWARE, None)


@pytest.mark.parametrize("length", [0, 2])
def test_real_mode_flags_and_return_addresses(length: int) -> None:
    guest = real_mode()
    flags = 2 | IF | TF | AC | RF | NT
    guest.set(GUEST_IDTR_LIMIT=0x3FF, GUEST_RFLAGS=flags)
    kind = INT_N if length else EXTERNAL
    assert guest.raise_event(6, kind, length=length) == 0
    assert guest["GUEST_RFLAGS"] == 2 | NT
    assert guest.words(0x200FA, 3, 2) == [0x1234 + length, 0x1000, flags & 0xFFFF]


def test_real_mode_stacks() -> None:
    guest = real_mode()
    guest.set(GUEST_IDTR_LIMIT=0x3FF, EXCEPTION_BITMAP=1 << 12 | 1 << 14)
    guest.set(GUEST_SS_LIMIT=0xFE)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (12, HARDWARE, None)
    guest.set(GUEST_SS_LIMIT=0xFF)
    assert guest.raise_event(6) == 0
    guest.set(GUEST_RSP=0xABCD_0002, GUEST_SS_LIMIT=0xFFFF)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RSP"] == 0xABCD_FFFC
    assert guest.words(0x2FFFC, 2, 2) == [0x5678, 0x1234]
    guest.segment("SS", 0x2000, 0x4093, base=0x20000)
    guest.set(GUEST_RSP=0x1_0004)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RSP"] == 0xFFFE


def test_page_faults_of_redirected_interrupts() -> None:
    for absent, fault, code in (
        ((3,), g.TSS + 102, 0),
        ((0,), 0x80 * 4, 0),
        ((0x13,), 0x13474, 6),
    ):
        for flags in (IOPL_3, 0):
            guest = redirecting(flags)
            guest.page(absent=absent)
            guest.set(EXCEPTION_BITMAP=1 << 14)
            assert guest.raise_event(0x80, INT_N, length=2) == 1
            assert guest.interruption() == (14, HARDWARE, code)
            assert guest["EXIT_QUALIFICATION"] == fault
            assert guest.idt_vectoring() == (0x80, INT_N, None)


def test_the_redirection_bitmap_in_a_page_of_its_own() -> None:
    guest = redirecting(IOPL_3)
    guest.set(GUEST_TR_LIMIT=0x1FFF)
    guest.write(g.TSS + 102, (0x1100).to_bytes(2, "little"))
    guest.page(absent=(4,))
    guest.set(EXCEPTION_BITMAP=1 << 14)
    assert guest.raise_event(0x80, INT_N, length=2) == 1
    assert guest["EXIT_QUALIFICATION"] == g.TSS + 0x1100 - 32 + 16


@pytest.mark.parametrize(
    ("io_map", "limit", "vector", "good"),
    [
        (0x20, 0x88, 0, True),
        (0x1F, 0x88, 0, False),
        (0x88, 0x88 - 32 + 17, 0x80, True),
        (0x88, 0x88 - 32 + 16, 0x80, False),
        (0x88, 103, 0, False),
        (0x60, 103, 0x80, True),
        (0x60, 102, 0x80, False),
    ],
)
def test_where_the_redirection_bitmap_ends(
    io_map: int, limit: int, vector: int, good: bool
) -> None:
    guest = redirecting(IOPL_3)
    guest.write(g.TSS, bytes(0x68))
    guest.write(g.TSS + 102, io_map.to_bytes(2, "little"))
    guest.set(GUEST_TR_LIMIT=limit, EXCEPTION_BITMAP=1 << 13)
    assert guest.raise_event(vector, INT_N, length=2) == (0 if good else 1)
    if not good:
        assert guest.interruption() == (13, HARDWARE, 0)


@pytest.mark.parametrize("vector", [0, 1, 15, 16, 0x21, 0xFF])
def test_each_vector_has_its_bit(vector: int) -> None:
    for own in (vector, vector ^ 1, vector ^ 16):
        bits = bytearray(32)
        bits[own // 8] = 1 << own % 8
        guest = redirecting(IOPL_3, bytes(bits))
        assert guest.raise_event(vector, INT_N, length=2) == 0
        assert (guest["GUEST_RFLAGS"] & VM == 0) == (own == vector)


def test_a_redirected_interrupts_stack_and_flags() -> None:
    guest = redirecting(IOPL_3 | IF | TF | RF | NT | AC)
    guest.set(GUEST_RSP=4)
    assert guest.raise_event(0x80, INT_N, length=2) == 0
    assert guest["GUEST_RSP"] == 0xFFFE
    assert guest["GUEST_RFLAGS"] == 2 | VM | IOPL_3 | NT | AC
    guest = redirecting(IOPL_3)
    guest.set(GUEST_SS_LIMIT=0x3454, EXCEPTION_BITMAP=1 << 12)
    assert guest.raise_event(0x80, INT_N, length=2) == 1
    assert guest.interruption() == (12, HARDWARE, 0)


# Vector 0 is a vector like any other


@pytest.mark.parametrize("kind", [HARDWARE, INT_N])
def test_a_broken_delivery_of_vector_0(kind: int) -> None:
    guest = Guest()
    guest.gate(0, access=0x6E)
    guest.set(EXCEPTION_BITMAP=1 << 11)
    assert guest.raise_event(0, kind, length=2) == 1
    assert guest.idt_vectoring() == (0, kind, None)
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == (2 if kind == INT_N else 0)
    guest.set(EXCEPTION_BITMAP=0)
    assert guest.raise_event(0, kind, length=2) == 0
    assert guest["GUEST_RIP"] == handler(8 if kind == HARDWARE else 11)


@pytest.mark.parametrize("kind", [HARDWARE, INT_N])
def test_an_ept_violation_while_vector_0_is_delivered(kind: int) -> None:
    guest = ept_guest()
    guest.write(0x33000 + 8 * 4, bytes(8))
    assert guest.raise_event(0, kind, length=2) == 1
    assert guest["EXIT_REASON"] == 48
    assert guest.idt_vectoring() == (0, kind, None)
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == (2 if kind == INT_N else 0)
    assert guest["GUEST_RFLAGS"] == (2 | RF if kind == HARDWARE else 2)
    assert guest.journal()[-1][12] == 0


def test_an_ept_violation_of_an_instruction() -> None:
    guest = ept_guest()
    guest.set(GUEST_RIP=0x8000)
    from trapgate.paging.walk import WRITE, walk

    guest.write(0x33000 + 8 * 4, bytes(8))
    _, error, _, _ = walk(guest.v, 2, guest.mem, 0x4008, WRITE, 0)
    assert guest.raise_event(14, error_code=error, address=0x4008, length=3) == 1
    assert guest["GUEST_RFLAGS"] == 2 | RF
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == 0
    assert guest["GUEST_PHYSICAL_ADDRESS"] == 0x4008


@pytest.mark.parametrize(
    ("error", "reason", "address"),
    [
        (EPT_MISCONFIGURATION | 0x4008 << 16, 49, 0x4008),
        (EPT_VIOLATION | 0x4008 << 16, 48, 0x4008),
        (LOG_FULL, 62, 0),
    ],
)
def test_a_full_log_has_no_guest_physical_address(error: int, reason: int, address: int) -> None:
    guest = Guest(bits=64)
    error_of_a_log = LOG_FULL | 0x4008 << 16 if error == LOG_FULL else error
    assert guest.raise_event(14, error_code=error_of_a_log, address=0x77) == 1
    assert guest["EXIT_REASON"] == reason
    assert guest["GUEST_PHYSICAL_ADDRESS"] == address


@pytest.mark.parametrize("access", [0, 1, 2])
def test_an_access_to_the_apic_page(access: int) -> None:
    guest = Guest(bits=64)
    error = apic_access(access, 0xFEE0_0350)
    assert guest.raise_event(14, error_code=error, address=0x9350, length=3) == 1
    assert guest["EXIT_REASON"] == 44
    assert guest["EXIT_QUALIFICATION"] == access << 12 | 0x350
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == 3
    assert guest["GUEST_PHYSICAL_ADDRESS"] == 0
    assert guest["GUEST_RFLAGS"] == 2 | RF
    assert guest.idt_vectoring() is None


@pytest.mark.parametrize(("kind", "length"), [(HARDWARE, 0), (INT_N, 2)])
def test_an_access_to_the_apic_page_during_delivery(
    monkeypatch: pytest.MonkeyPatch, kind: int, length: int
) -> None:
    error = apic_access(1, 0xFEE0_0350)
    monkeypatch.setattr(delivery, "deliver", lambda *_: (14, error, 0x9350))
    guest = Guest(bits=64)
    assert guest.raise_event(0, kind, length=2) == 1
    assert guest["EXIT_REASON"] == 44
    assert guest["EXIT_QUALIFICATION"] == 3 << 12 | 0x350
    assert guest["VM_EXIT_INSTRUCTION_LENGTH"] == length
    assert guest.idt_vectoring() == (0, kind, None)


# Injected events


def test_a_fault_while_an_injected_event_is_delivered_is_a_fresh_one() -> None:
    guest = Guest()
    guest.gate(13, access=0x6E)
    guest.set(EXCEPTION_BITMAP=1 << 13 | 1 << 11)
    assert guest.raise_event(13, error_code=8, injected=1) == 1
    assert guest.interruption() == (11, HARDWARE, 13 * 8 + 3)
    rows = [(row[3], row[12], row[13], row[14], row[15]) for row in guest.journal()]
    assert rows == [(13, 1, 13, 0, 1), (11, 0, 0, 1, 0)]


def test_addresses_of_nested_page_faults_are_whole() -> None:
    guest = Guest()
    guest.page()
    guest.set(GUEST_IDTR_BASE=0x8000_0001, EXCEPTION_BITMAP=1 << 14)
    assert guest.raise_event(6) == 1
    assert guest["EXIT_QUALIFICATION"] == 0x8000_0031


# Wide stacks in real mode


def test_real_mode_with_a_32_bit_stack_anywhere() -> None:
    guest = real_mode()
    guest.set(GUEST_IDTR_LIMIT=0x3FF, GUEST_RSP=0xFFFF_FFFF_8000_5001)
    guest.segment("SS", 0x2000, 0x4093, base=0x8000_0000)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RSP"] == 0x8000_5001 - 6
    assert guest.words(0x5001 - 6, 3, 2) == [0x1234, 0x1000, 2]


def test_real_mode_with_an_odd_stack_and_a_far_handler() -> None:
    guest = real_mode()
    guest.write(0x900 + 6 * 4, bytes.fromhex("9bf9bd0f"))
    guest.set(GUEST_IDTR_LIMIT=0x3FF, GUEST_RSP=0x4567_9001)
    assert guest.raise_event(6) == 0
    assert guest["GUEST_RSP"] == 0x4567_9001 - 6
    assert guest.words(0x2_9001 - 6, 3, 2) == [0x1234, 0x1000, 2]
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_RIP"]) == (0xFBD, 0xF99B)
    guest.write(0x900 + 6 * 4, bytes.fromhex("000001f0"))
    assert guest.raise_event(6) == 0
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_CS_BASE"]) == (0xF001, 0xF0010)


@pytest.mark.parametrize("limit", [0xF9, 0xFA, 0xFC, 0xFE])
def test_real_mode_stacks_that_end_within_the_frame(limit: int) -> None:
    guest = real_mode()
    guest.segment("SS", 0x2000, 0x97, base=0x20000, limit=limit)
    guest.set(GUEST_IDTR_LIMIT=0x3FF, EXCEPTION_BITMAP=1 << 12)
    # Expand down: what lies above the limit is the stack.
    assert guest.raise_event(6) == (0 if limit < 0xFA else 1)


# NMIs that an IRET has unblocked, and what MOV SS has held back


@pytest.mark.parametrize(
    ("vector", "kind", "vectoring", "told"),
    [
        (13, HARDWARE, 0, True),
        (0, HARDWARE, 0, True),
        (8, HARDWARE, 0, False),
        (2, NMI, 0, False),
        (3, INT3, 0, False),
        (13, HARDWARE, 1 << 31 | 6, False),
    ],
)
@pytest.mark.parametrize("reason", [0, 1, 48, 49])
def test_an_exit_tells_of_the_iret_that_unblocked_nmis(
    vector: int, kind: int, vectoring: int, told: bool, reason: int
) -> None:
    for code in (EPT_VIOLATION, APIC_ACCESS - 1, APIC_ACCESS, EPT_VIOLATION - 1, -1):
        guest = Guest()
        guest.set(
            EXIT_REASON=reason,
            EXIT_QUALIFICATION=0x181,
            VM_EXIT_INTERRUPTION_INFORMATION=1 << 31 | 0x30D,
            IDT_VECTORING_INFORMATION=vectoring,
        )
        delivery.report_unblocking(guest.v, vector, kind, code)
        by_event = told and reason == 0
        by_ept = told and reason != 0 and code in (EPT_VIOLATION, APIC_ACCESS - 1)
        info = guest["VM_EXIT_INTERRUPTION_INFORMATION"]
        assert info == 1 << 31 | 0x30D | by_event << 12
        assert guest["EXIT_QUALIFICATION"] == 0x181 | by_ept << 12


@pytest.mark.parametrize(("injected", "kept"), [(0, 0), (1, 5)])
def test_pending_debug_exceptions_are_lost_with_a_fresh_event(injected: int, kept: int) -> None:
    guest = Guest()
    guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=5)
    assert guest.raise_event(6, injected=injected) == 0
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == kept


# Addresses of tables that are not canonical

BEYOND = 1 << 47
"""The first address that is not canonical; the page below it is mapped."""


def at_the_edge(ring: int = 0) -> Guest:
    guest = Guest(bits=64, ring=ring)
    guest.write(0x10000 + 255 * 8, (0x11027).to_bytes(8, "little"))
    guest.write(0x11000 + 511 * 8, (0x12027).to_bytes(8, "little"))
    guest.write(0x12000 + 511 * 8, (0x000E7).to_bytes(8, "little"))
    guest.set(EXCEPTION_BITMAP=1 << 10 | 1 << 13, cr2=0x1234)
    return guest


@pytest.mark.parametrize("base", [BEYOND - 6 * 16, BEYOND - 6 * 16 - 8, BEYOND - 6 * 16 - 1])
def test_a_gate_at_no_canonical_address_is_a_general_protection_fault(base: int) -> None:
    guest = at_the_edge()
    guest.set(GUEST_IDTR_BASE=base)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (13, HARDWARE, 6 * 8 + 2 + 1)
    assert guest.idt_vectoring() == (6, HARDWARE, None)
    assert (guest["EXIT_QUALIFICATION"], guest["cr2"]) == (0, 0x1234)
    assert [row[3:6] for row in guest.journal()] == [[6, HARDWARE, -1], [13, HARDWARE, 0x33]]


def test_a_descriptor_at_no_canonical_address_is_a_general_protection_fault() -> None:
    guest = at_the_edge()
    guest.gate(6, selector=0xFFFB)
    guest.set(GUEST_GDTR_BASE=BEYOND - 0xFFF8, GUEST_GDTR_LIMIT=0xFFFF)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (13, HARDWARE, 0xFFF9)


@pytest.mark.parametrize(("ist", "offset"), [(0, 4), (1, 36)])
def test_a_stack_at_no_canonical_address_is_an_invalid_tss(ist: int, offset: int) -> None:
    guest = at_the_edge(ring=3)
    guest.gate(6, ist=ist)
    guest.set(GUEST_TR_BASE=BEYOND - offset)
    assert guest.raise_event(6) == 1
    assert guest.interruption() == (10, HARDWARE, g.BUSY_TSS | 1)
    # Below the edge it is read.
    guest.set(GUEST_TR_BASE=BEYOND - offset - 8)
    guest.raise_event(6)
    assert guest.interruption() != (10, HARDWARE, g.BUSY_TSS | 1)


# Breakpoints on the frame of a handler

MET = 1 << 12 | 1
"""Of the pending debug exceptions: breakpoint 0, which is enabled."""


def meets(guest: Guest, address: int) -> bool:
    """Whether the delivery of an event writes this byte, by a breakpoint of one byte."""
    guest.set(GUEST_DR7=1 << 16 | 1 << 10 | 1, dr0=address)
    before = guest.v.copy(), guest.mem.copy()
    assert guest.raise_event(6) == 0
    pending = guest["GUEST_PENDING_DEBUG_EXCEPTIONS"]
    assert pending in (0, MET)
    guest.v[:], guest.mem[:] = before
    return pending == MET


@pytest.mark.parametrize("ring", [0, 3])
@pytest.mark.parametrize("bits", [32, 64])
def test_breakpoints_on_each_byte_of_the_frame(bits: int, ring: int) -> None:
    guest = Guest(bits=bits, ring=ring)
    length = 40 if bits == 64 else 20 if ring else 12
    top = g.TSS_STACK if ring else g.STACK
    if bits == 64:
        guest.set(GUEST_SS_BASE=0x10)
    else:
        base = 0x20 if ring == 0 else 0
        guest.set(GUEST_SS_BASE=base)
        top += base
    met = [address for address in range(top - 64, top + 64) if meets(guest, address)]
    assert met == list(range(top - length, top))


@pytest.mark.parametrize("rsp", [0x9000_5001, 0x5001, 0x9000_5000])
def test_breakpoints_on_a_frame_anywhere(rsp: int) -> None:
    guest = Guest()
    guest.set(GUEST_RSP=rsp)
    assert meets(guest, rsp - 12)
    assert not meets(guest, rsp - 13)
    assert meets(guest, rsp - 1)
    assert not meets(guest, rsp)
    guest.segment("SS", g.DATA0, 0x93, base=0x1_0000, limit=0xFFFF)
    guest.set(GUEST_RSP=rsp + 0x8000)
    low = 0x1_0000 + (rsp + 0x8000 & 0xFFFF)
    assert meets(guest, low - 12)
    assert not meets(guest, low - 13)
    assert not meets(guest, low)


def test_breakpoints_on_a_frame_in_real_mode() -> None:
    guest = Guest()
    guest.set(GUEST_CR0=0x10, GUEST_IDTR_BASE=0, GUEST_IDTR_LIMIT=0x3FF)
    guest.segment("SS", 0x2000, 0x93, base=0x2_0000, limit=0xFFFF)
    guest.set(GUEST_RSP=0x101)
    met = [address for address in range(0x2_00E0, 0x2_0120) if meets(guest, address)]
    assert met == list(range(0x2_00FB, 0x2_0101))


@pytest.mark.parametrize("enable", [0, 1, 2, 4, 0x80, 0x100, 0x200])
def test_only_breakpoints_that_are_enabled_are_met(enable: int) -> None:
    guest = Guest()
    guest.set(GUEST_DR7=0x1111 << 16 | 1 << 10 | enable)
    guest.set(**{f"dr{n}": g.STACK - 4 for n in range(4)})
    assert guest.raise_event(6) == 0
    causes = {0x1: 1, 0x2: 1, 0x4: 2, 0x80: 8}.get(enable, 0)
    wanted = causes | 1 << 12 if causes else 0
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == wanted
