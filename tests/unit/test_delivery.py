"""What becomes of an event: delivered through every kind of gate, or exited."""

import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest, descriptor
from trapgate.events import delivery
from trapgate.events.journal import HEAD_COUNTS, HEAD_SEQUENCE
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
    assert guest.raise_event(1, address=0x4004) == 0
    assert guest["dr6"] == 0xFFFF4FF4
    assert guest["GUEST_DR7"] == 0x400
    assert guest["GUEST_IA32_DEBUGCTL"] == 2
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
    assert list(guest.head[HEAD_COUNTS + 18 : HEAD_COUNTS + 21]) == [0, 40, 0]


def test_completed_faults_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "decide_event", lambda *_: (2, 1))
    guest = Guest()
    before = guest.v.copy()
    assert guest.raise_event(14, error_code=2, address=5) == 2
    assert (guest.v == before).all()
    assert guest.journal()[0][12] == 2
