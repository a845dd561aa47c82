"""SYSCALL, SYSRET, SYSENTER and SYSEXIT in the core, and loads of segment registers."""

import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest, descriptor
from trapgate.events.descriptors import NO_FAULT
from trapgate.instructions.fast_calls import syscall, sysenter, sysexit, sysret
from trapgate.instructions.intercepts import GO_ON, RAISE_GP, RAISE_UD
from trapgate.instructions.segment_loads import load_segment_register
from trapgate.sdm import state

GP, NP, SS = 13, 11, 12
LSTAR = 0x9000
STAR = 0x08 << 32 | 0x13 << 48
SPARE = 0x60
DS, FS, STACK = 3, 4, 2
DONE = (NO_FAULT, 0, 0)


def made(*, bits: int = 64, ring: int = 0, **fields: int) -> Guest:
    guest = Guest(bits=bits, ring=ring)
    efer = state.EFER_SCE | (state.EFER_LMA | state.EFER_LME if bits == 64 else 0)
    known = {"GUEST_IA32_EFER": efer, "GUEST_GDTR_LIMIT": 0xFF}
    guest.set(star=STAR, lstar=LSTAR, fmask=0x200, **(known | fields))
    return guest


def shape(guest: Guest, name: str) -> tuple[int, int, int, int]:
    fields = ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")
    selector, base, limit, rights = (guest[f"GUEST_{name}_{field}"] for field in fields)
    return selector, base, limit, rights


def test_syscall() -> None:
    guest = made(ring=3, GUEST_RFLAGS=0x10302)
    assert syscall(guest.v, guest.r, 2) == GO_ON
    assert (guest["rcx"], guest["r11"]) == (g.CODE + 2, 0x302)
    assert (guest["GUEST_RIP"], guest["GUEST_RFLAGS"]) == (LSTAR, 0x102)
    assert shape(guest, "CS") == (0x08, 0, 0xFFFF_FFFF, 0xA09B)
    assert shape(guest, "SS") == (0x10, 0, 0xFFFF_FFFF, 0xC093)


@pytest.mark.parametrize(
    "guest", [made(bits=32), made(GUEST_IA32_EFER=state.EFER_LMA | state.EFER_LME)]
)
def test_syscall_is_undefined(guest: Guest) -> None:
    assert syscall(guest.v, guest.r, 2) == RAISE_UD
    assert sysret(guest.v, guest.r, True) == RAISE_UD


def test_sysret() -> None:
    guest = made(rcx=0x8000, r11=0x3_0246)
    assert sysret(guest.v, guest.r, True) == GO_ON
    assert (guest["GUEST_RIP"], guest["GUEST_RFLAGS"]) == (0x8000, 0x246)
    assert shape(guest, "CS") == (0x23, 0, 0xFFFF_FFFF, 0xA0FB)
    assert shape(guest, "SS") == (0x1B, 0, 0xFFFF_FFFF, 0xC0F3)
    narrow = made(rcx=0x1_2345_6789, r11=2)
    assert sysret(narrow.v, narrow.r, False) == GO_ON
    assert (narrow["GUEST_RIP"], narrow["GUEST_CS_SELECTOR"]) == (0x2345_6789, 0x13)
    assert narrow["GUEST_CS_ACCESS_RIGHTS"] == 0xC0FB


def test_sysret_faults_in_ring_0() -> None:
    guest = made(rcx=1 << 47)
    before = guest.v.copy()
    assert sysret(guest.v, guest.r, True) == RAISE_GP
    assert (guest.v == before).all()
    user = made(ring=3)
    assert sysret(user.v, user.r, True) == RAISE_GP


@pytest.mark.parametrize("bits", [32, 64])
def test_sysenter(bits: int) -> None:
    guest = made(
        bits=bits,
        ring=3,
        GUEST_RFLAGS=0x302,
        GUEST_IA32_SYSENTER_CS=0x0B,
        GUEST_IA32_SYSENTER_EIP=0x9000,
        GUEST_IA32_SYSENTER_ESP=0x6000,
    )
    assert sysenter(guest.v) == GO_ON
    assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (0x9000, 0x6000)
    assert guest["GUEST_RFLAGS"] == 0x102
    assert shape(guest, "CS") == (0x08, 0, 0xFFFF_FFFF, 0xA09B if bits == 64 else 0xC09B)
    assert shape(guest, "SS") == (0x10, 0, 0xFFFF_FFFF, 0xC093)


@pytest.mark.parametrize("selector", [0, 1, 2, 3, 0x10000])
def test_sysenter_and_sysexit_without_a_selector(selector: int) -> None:
    guest = made(GUEST_IA32_SYSENTER_CS=selector)
    assert sysenter(guest.v) == RAISE_GP
    assert sysexit(guest.v, guest.r, False) == RAISE_GP


def test_sysenter_needs_protection() -> None:
    guest = made(bits=32, GUEST_CR0=0x20, GUEST_IA32_SYSENTER_CS=8)
    assert sysenter(guest.v) == RAISE_GP


def test_sysexit() -> None:
    guest = made(bits=32, GUEST_IA32_SYSENTER_CS=0x08, rdx=0x8000, rcx=0x7000)
    assert sysexit(guest.v, guest.r, False) == GO_ON
    assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (0x8000, 0x7000)
    assert (shape(guest, "CS")[0], shape(guest, "SS")[0]) == (0x1B, 0x23)
    wide = made(GUEST_IA32_SYSENTER_CS=0x08, rdx=0x8000, rcx=0x7000)
    assert sysexit(wide.v, wide.r, True) == GO_ON
    assert (shape(wide, "CS")[0], shape(wide, "SS")[0]) == (0x2B, 0x33)
    assert wide["GUEST_CS_ACCESS_RIGHTS"] == 0xA0FB


@pytest.mark.parametrize("bad", ["rdx", "rcx"])
def test_sysexit_with_an_address_that_is_not_canonical(bad: str) -> None:
    guest = made(GUEST_IA32_SYSENTER_CS=0x08)
    guest.set(**{bad: 1 << 47})
    assert sysexit(guest.v, guest.r, True) == RAISE_GP
    user = made(ring=3, GUEST_IA32_SYSENTER_CS=0x08)
    assert sysexit(user.v, user.r, True) == RAISE_GP


# Segment registers.


def spare(guest: Guest, access: int, *, limit: int = 0xFFFFF, base: int = 0) -> None:
    made_of = descriptor(access, base=base, limit=limit)
    guest.write(g.GDT + SPARE, made_of.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("n", "selector", "access", "ring", "answer"),
    [
        (DS, SPARE, 0x92, 0, DONE),
        (DS, SPARE, 0x9A, 0, DONE),  # readable code
        (DS, SPARE, 0x98, 0, (GP, SPARE, 0)),
        (DS, SPARE, 0x12, 0, (NP, SPARE, 0)),
        (DS, SPARE, 0x82, 0, (GP, SPARE, 0)),
        (DS, SPARE | 3, 0x92, 0, (GP, SPARE, 0)),  # RPL above DPL
        (DS, SPARE, 0x92, 3, (GP, SPARE, 0)),  # CPL above DPL
        (DS, SPARE | 3, 0x9E, 3, DONE),  # conforming code
        (DS, 0x1F8, None, 0, (GP, 0x1F8, 0)),
        (DS, 0x0C, None, 0, (GP, 0x0C, 0)),
        (FS, 3, None, 0, DONE),
        (STACK, SPARE, 0x92, 0, DONE),
        (STACK, SPARE, 0x90, 0, (GP, SPARE, 0)),
        (STACK, SPARE, 0x9A, 0, (GP, SPARE, 0)),
        (STACK, SPARE, 0x12, 0, (SS, SPARE, 0)),
        (STACK, SPARE | 3, 0xF2, 0, (GP, SPARE, 0)),
        (STACK, SPARE, 0xF2, 0, (GP, SPARE, 0)),
        (STACK, 0x1F8, None, 0, (GP, 0x1F8, 0)),
        (STACK, 0, None, 0, (GP, 0, 0)),
    ],
)
def test_load_segment(
    n: int, selector: int, access: int | None, ring: int, answer: tuple[int, int, int]
) -> None:
    guest = made(bits=32, ring=ring)
    if access is not None:
        spare(guest, access, base=0x12345678)
    before = guest.v.copy()
    assert load_segment_register(guest.v, guest.mem, n, selector) == answer
    if answer != DONE:
        assert (guest.v == before).all()
    elif access is not None:
        name = {DS: "DS", STACK: "SS"}[n]
        assert shape(guest, name) == (selector, 0x12345678, 0xFFFF_FFFF, 0xC000 | access | 1)
        assert guest.words(g.GDT + SPARE + 5, 1, 1) == [access | 1]
    else:
        assert shape(guest, "FS") == (3, 0, 0, state.AR_UNUSABLE)


def test_a_null_stack_segment_in_64_bit_mode() -> None:
    guest = made()
    assert load_segment_register(guest.v, guest.mem, STACK, 0) == DONE
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == state.AR_UNUSABLE
    user = made(ring=3)
    assert load_segment_register(user.v, user.mem, STACK, 3) == (GP, 0, 0)
    assert load_segment_register(guest.v, guest.mem, STACK, 1) == (GP, 0, 0)
