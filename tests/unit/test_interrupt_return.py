"""IRET in the core: each check of the SDM's pseudocode, and what it loads."""

from typing import Any

import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest, descriptor
from trapgate.events.descriptors import NO_FAULT
from trapgate.events.idt import TASK_GATE
from trapgate.instructions.interrupt_return import interrupt_return
from trapgate.sdm import state

GP, NP, SS = 13, 11, 12
SPARE, SPARE_STACK = 0x60, 0x68
"""Free places in the GDT."""
TARGET = 0x9000
DONE = (NO_FAULT, 0, 0)
NT, VM, IF, TF, RF, IOPL, ID = 1 << 14, 1 << 17, 1 << 9, 1 << 8, 1 << 16, 3 << 12, 1 << 21


def guest_with(*words: int, size: int = 4, bits: int = 32, ring: int = 0, **fields: Any) -> Guest:
    """A guest whose stack begins with these words."""
    guest = Guest(bits=bits, ring=ring)
    guest.set(GUEST_GDTR_LIMIT=0xFF, GUEST_RSP=0x4F00, **fields)
    put(guest, *words, size=size)
    return guest


def put(guest: Guest, *words: int, size: int = 4) -> None:
    data = b"".join((word & (1 << 8 * size) - 1).to_bytes(size, "little") for word in words)
    guest.write(0x4F00, data)


def iret(guest: Guest, size: int = 4) -> tuple[int, int, int]:
    """IRET, which changes nothing if it faults."""
    before = guest.v.copy()
    answer = tuple(int(n) for n in interrupt_return(guest.v, guest.mem, size))
    assert len(answer) == 3
    if answer[0] != NO_FAULT:
        assert (guest.v == before).all()
    return answer


def spare(guest: Guest, place: int, access: int, flags: int = 0xC, limit: int = 0xFFFFF) -> None:
    made = descriptor(access, flags=flags, limit=limit)
    guest.write(g.GDT + place, made.to_bytes(8, "little"))


def test_to_the_same_ring() -> None:
    guest = guest_with(TARGET, g.CODE0, 0x202 | ID | IOPL)
    assert iret(guest) == DONE
    assert guest["GUEST_RIP"] == TARGET
    assert guest["GUEST_RSP"] == 0x4F00 + 12
    assert guest["GUEST_RFLAGS"] == 0x202 | ID | IOPL
    assert guest["GUEST_SS_SELECTOR"] == g.DATA0


def test_with_16_bit_operands_the_upper_flags_stay() -> None:
    guest = guest_with(TARGET, g.CODE0, 0x302, size=2, GUEST_RFLAGS=2 | ID)
    assert iret(guest, 2) == DONE
    assert guest["GUEST_RFLAGS"] == 0x302 | ID
    assert guest["GUEST_RSP"] == 0x4F00 + 6


def test_to_an_outer_ring() -> None:
    guest = guest_with(TARGET, g.CODE3, 0x202, 0x6F00, g.DATA3)
    guest.segment("FS", g.DATA0, 0xC093, base=0x1234)
    guest.segment("GS", g.DATA3, 0xC0F3, base=0x5678)
    assert iret(guest) == DONE
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_SS_SELECTOR"]) == (g.CODE3, g.DATA3)
    assert guest["GUEST_RSP"] == 0x6F00
    assert guest["GUEST_FS_SELECTOR"] == 0
    assert guest["GUEST_FS_ACCESS_RIGHTS"] & state.AR_UNUSABLE
    assert guest["GUEST_FS_BASE"] == 0x1234, "Intel's processors leave the base"
    assert guest["GUEST_GS_SELECTOR"] == g.DATA3
    assert guest["GUEST_SS_ACCESS_RIGHTS"] >> 5 & 3 == 3


def test_to_an_outer_ring_with_a_16_bit_stack() -> None:
    guest = guest_with(TARGET, g.CODE3, 0x202, 0x1234_6F00, SPARE_STACK | 3)
    spare(guest, SPARE_STACK, 0xF3, flags=0)
    guest.set(GUEST_RSP=0x4F00)
    assert iret(guest) == DONE
    assert guest["GUEST_RSP"] == 0x6F00


CODE_FAULTS = [
    ("null", 3, None, (GP, 0)),
    ("beyond the GDT", 0x1F8, None, (GP, 0x1F8)),
    ("no LDT", 0x0C, None, (GP, 0x0C)),
    ("data", g.DATA0, None, (GP, g.DATA0)),
    ("a system segment", g.BUSY_TSS, None, (GP, g.BUSY_TSS)),
    ("DPL above RPL", SPARE, 0xFB, (GP, SPARE)),
    ("DPL below RPL", SPARE | 3, 0x9B, (GP, SPARE)),
    ("conforming, DPL above RPL", SPARE | 1, 0xDF, (GP, SPARE)),
    ("absent", SPARE, 0x1B, (NP, SPARE)),
]


@pytest.mark.parametrize(("selector", "access", "fault"), [case[1:] for case in CODE_FAULTS])
def test_code_segments(selector: int, access: int | None, fault: tuple[int, int]) -> None:
    guest = guest_with(TARGET, selector, 0x202, 0x6F00, g.DATA3)
    if access is not None:
        spare(guest, SPARE, access)
    assert iret(guest)[:2] == fault


def test_inner_ring_is_refused() -> None:
    assert iret(guest_with(TARGET, g.CODE0, 0x202, ring=3))[:2] == (GP, g.CODE0)


def test_a_conforming_segment_of_an_inner_ring() -> None:
    guest = guest_with(TARGET, g.CONFORMING | 3, 0x202, 0x6F00, g.DATA3)
    assert iret(guest) == DONE
    assert guest["GUEST_CS_SELECTOR"] == g.CONFORMING | 3


def test_the_target_must_be_within_the_limit() -> None:
    guest = guest_with(0x1_0000, SPARE, 0x202)
    spare(guest, SPARE, 0x9B, flags=4, limit=0xFFFF)
    assert iret(guest) == (GP, 0, 0)


STACK_FAULTS = [
    ("null", 3, None, (GP, 0)),
    ("beyond the GDT", 0x1FB, None, (GP, 0x1F8)),
    ("another RPL", g.DATA3 & ~3, None, (GP, g.DATA3 & ~3)),
    ("read-only", SPARE_STACK | 3, 0xF1, (GP, SPARE_STACK)),
    ("code", g.CODE3, None, (GP, g.CODE3 & ~3)),
    ("another DPL", g.DATA0 | 3, None, (GP, g.DATA0)),
    ("absent", SPARE_STACK | 3, 0x73, (SS, SPARE_STACK)),
]


@pytest.mark.parametrize(("selector", "access", "fault"), [case[1:] for case in STACK_FAULTS])
def test_stack_segments_of_an_outer_ring(
    selector: int, access: int | None, fault: tuple[int, int]
) -> None:
    guest = guest_with(TARGET, g.CODE3, 0x202, 0x6F00, selector)
    if access is not None:
        spare(guest, SPARE_STACK, access)
    assert iret(guest)[:2] == fault


@pytest.mark.parametrize("room", range(12))
def test_the_stack_must_hold_three_words(room: int) -> None:
    guest = guest_with(TARGET, g.CODE0, 0x202, GUEST_SS_LIMIT=0x4F00 + room - 1)
    assert iret(guest) == (SS, 0, 0)


@pytest.mark.parametrize("room", range(12, 20))
def test_the_stack_must_hold_five_words_for_an_outer_ring(room: int) -> None:
    guest = guest_with(TARGET, g.CODE3, 0x202, 0x6F00, g.DATA3, GUEST_SS_LIMIT=0x4F00 + room - 1)
    assert iret(guest) == (SS, 0, 0)


@pytest.mark.parametrize(("ring", "iopl", "loaded"), [(0, 0, IF | IOPL), (3, 0, 0), (3, 3, IF)])
def test_who_may_change_if_and_iopl(ring: int, iopl: int, loaded: int) -> None:
    code = g.CODE3 if ring else g.CODE0
    guest = guest_with(TARGET, code, 2 | IF | IOPL, ring=ring, GUEST_RFLAGS=2 | iopl << 12)
    assert iret(guest) == DONE
    assert guest["GUEST_RFLAGS"] == 2 | iopl << 12 | loaded


def test_nested_task() -> None:
    assert iret(guest_with(GUEST_RFLAGS=2 | NT))[0] == TASK_GATE
    assert iret(guest_with(bits=64, GUEST_RFLAGS=2 | NT), 8) == (GP, 0, 0)


# Virtual-8086 mode.

FRAME_8086 = (0x100, 0x2000, VM | 2, 0x8000, 0x3000, 0x4000, 0x5000, 0x6000, 0x7000)


def test_to_virtual_8086_mode() -> None:
    guest = guest_with(*FRAME_8086)
    assert iret(guest) == DONE
    found = {name: guest[f"GUEST_{name}_BASE"] for name in ("CS", "SS", "ES", "DS", "FS", "GS")}
    assert found == {
        "CS": 0x20000,
        "SS": 0x30000,
        "ES": 0x40000,
        "DS": 0x50000,
        "FS": 0x60000,
        "GS": 0x70000,
    }
    assert guest["GUEST_RFLAGS"] & VM
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == 0xF3
    assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (0x100, 0x8000)


def test_to_virtual_8086_mode_beyond_64_kb() -> None:
    assert iret(guest_with(0x10000, *FRAME_8086[1:])) == (GP, 0, 0)


def test_to_virtual_8086_mode_from_a_short_stack() -> None:
    assert iret(guest_with(*FRAME_8086, GUEST_SS_LIMIT=0x4F00 + 34)) == (SS, 0, 0)


def test_outer_rings_cannot_set_vm() -> None:
    guest = guest_with(TARGET, g.CODE3, VM | 2, ring=3)
    assert iret(guest) == DONE
    assert guest["GUEST_RFLAGS"] & VM == 0


def guest_8086(*words: int, size: int, flags: int, **fields: Any) -> Guest:
    guest = guest_with(*words, size=size, GUEST_RFLAGS=VM | flags, **fields)
    for name in ("CS", "SS", "ES", "DS", "FS", "GS"):
        guest.segment(name, 0, 0xF3, limit=0xFFFF)
    return guest


def test_within_virtual_8086_mode() -> None:
    guest = guest_8086(0x100, 0x200, 0x3302, size=2, flags=IOPL | 2)
    assert iret(guest, 2) == DONE
    assert (guest["GUEST_CS_BASE"], guest["GUEST_RIP"]) == (0x2000, 0x100)
    assert guest["GUEST_RFLAGS"] == VM | IOPL | 0x302
    assert iret(guest_8086(0x100, 0x200, 2, size=2, flags=2), 2) == (GP, 0, 0)


def test_within_virtual_8086_mode_with_virtual_interrupts() -> None:
    extended = {"GUEST_CR4": state.CR4_VME}
    guest = guest_8086(0x100, 0x200, 0x202, size=2, flags=2, **extended)
    assert iret(guest, 2) == DONE
    assert guest["GUEST_RFLAGS"] == VM | state.RFLAGS_VIF | 2
    for flags, popped in ((2 | state.RFLAGS_VIP, 0x202), (2, 2 | TF)):
        trapped = guest_8086(0x100, 0x200, popped, size=2, flags=flags, **extended)
        assert iret(trapped, 2) == (GP, 0, 0)
    assert iret(guest_8086(0x100, 0x200, 2, size=4, flags=2, **extended), 4) == (GP, 0, 0)


def test_in_real_address_mode() -> None:
    guest = guest_with(0x100, 0x200, 0x3302, size=2, GUEST_CR0=0x20)
    assert iret(guest, 2) == DONE
    assert (guest["GUEST_CS_BASE"], guest["GUEST_RFLAGS"]) == (0x2000, 0x3302)
    short = guest_with(0x1_0000, 0x200, 2, GUEST_CR0=0x20, GUEST_CS_LIMIT=0xFFFF)
    assert iret(short) == (GP, 0, 0)


# IA-32e mode.


def test_in_64_bit_mode_rsp_and_ss_are_always_popped() -> None:
    guest = guest_with(TARGET, g.LONG0, 0x202, 0x6F08, g.DATA0, size=8, bits=64)
    assert iret(guest, 8) == DONE
    assert (guest["GUEST_RSP"], guest["GUEST_SS_SELECTOR"]) == (0x6F08, g.DATA0)


def test_a_null_stack_segment_for_64_bit_code() -> None:
    guest = guest_with(TARGET, g.LONG0, 0x202, 0x6F08, 0, size=8, bits=64)
    assert iret(guest, 8) == DONE
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == state.AR_UNUSABLE
    outer = guest_with(TARGET, g.LONG3, 0x202, 0x6F08, 0, size=8, bits=64)
    assert iret(outer, 8) == (GP, 0, 0)
    compatible = guest_with(TARGET, g.CODE0, 0x202, 0x6F08, 0, size=8, bits=64)
    assert iret(compatible, 8) == (GP, 0, 0)


@pytest.mark.parametrize("target", [1 << 47, -(1 << 47) - 1, 1 << 63])
@pytest.mark.parametrize("code", [g.LONG0, g.LONG3])
def test_a_non_canonical_target(target: int, code: int) -> None:
    stack = g.DATA3 if code & 3 else g.DATA0
    guest = guest_with(target, code, 0x202, 0x6F08, stack, size=8, bits=64)
    assert iret(guest, 8) == (GP, 0, 0)


def test_a_non_canonical_stack() -> None:
    guest = guest_with(bits=64)
    guest.set(GUEST_RSP=(1 << 47) - 16)
    assert iret(guest, 8) == (SS, 0, 0)


def test_code_that_is_both_64_and_32_bit_is_none() -> None:
    guest = guest_with(TARGET, SPARE, 0x202, 0x6F08, g.DATA0, size=8, bits=64)
    spare(guest, SPARE, 0x9B, flags=0xE)
    assert iret(guest, 8)[:2] == (GP, SPARE)


def test_to_compatibility_mode() -> None:
    guest = guest_with(TARGET, g.CODE3, 0x202, 0x6F08, g.DATA3, size=8, bits=64)
    assert iret(guest, 8) == DONE
    assert guest["GUEST_CS_ACCESS_RIGHTS"] & state.AR_L == 0
    # VM cannot be set there.
    virtual = guest_with(TARGET, g.LONG0, VM | 2, 0x6F08, g.DATA0, size=8, bits=64)
    assert iret(virtual, 8) == DONE
    assert virtual["GUEST_RFLAGS"] & VM == 0


def test_the_accessed_flag_is_set() -> None:
    guest = guest_with(TARGET, g.FRESH_CODE, 0x202)
    assert iret(guest) == DONE
    assert guest.words(g.GDT + g.FRESH_CODE + 5, 1, 1) == [0x9B]


def test_a_frame_on_two_pages_of_which_one_is_absent() -> None:
    guest = guest_with(bits=64)
    # Page tables at 13000H and 14000H: the page at 5000H is not there.
    guest.write(0x12000, (0x13027).to_bytes(8, "little"))
    for page in range(64):
        guest.write(
            0x13000 + 8 * page, (page << 12 | (0 if page == 5 else 0x67)).to_bytes(8, "little")
        )
    guest.set(GUEST_RSP=0x5000 - 16)
    assert iret(guest, 8) == (14, 0, 0x5000)
