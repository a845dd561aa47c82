"""Far JMP, CALL and RET in the core, call gates included: each check, and what is pushed."""

from collections.abc import Callable

import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest, descriptor
from trapgate.events.descriptors import NO_FAULT
from trapgate.events.idt import TASK_GATE
from trapgate.instructions.far_transfers import far_call, far_call_real, far_jump, far_return

GP, NP, SS, TS = 13, 11, 12, 10
SPARE, GATE = 0x60, 0x70
"""Free places in the GDT."""
TARGET, NEXT = 0x9000, 0xA007
DONE = (NO_FAULT, 0, 0)

Transfer = Callable[[Guest, int, int], tuple[int, ...]]


def made(*, bits: int = 32, ring: int = 0, **fields: int) -> Guest:
    guest = Guest(bits=bits, ring=ring)
    guest.set(GUEST_GDTR_LIMIT=0xFF, **fields)
    return guest


def put(guest: Guest, place: int, access: int, flags: int = 0xC, limit: int = 0xFFFFF) -> None:
    value = descriptor(access, flags=flags, limit=limit)
    guest.write(g.GDT + place, value.to_bytes(8, "little"))


def put_gate(guest: Guest, selector: int, offset: int, access: int, *, words: int = 0) -> None:
    guest.write(g.GDT + GATE, g.gate(offset, selector, access=access, ist=words, long=guest.long))


def kept(guest: Guest, answer: tuple[int, ...], before: object) -> tuple[int, ...]:
    if answer[0] != NO_FAULT:
        assert (guest.v == before).all()
    return tuple(int(n) for n in answer)


def jump(guest: Guest, selector: int, offset: int = TARGET) -> tuple[int, ...]:
    before = guest.v.copy()
    return kept(guest, far_jump(guest.v, guest.mem, selector, offset), before)


def call(guest: Guest, selector: int, offset: int = TARGET) -> tuple[int, ...]:
    before = guest.v.copy()
    size = 8 if guest.long else 4
    return kept(guest, far_call(guest.v, guest.r, guest.mem, selector, offset, size, NEXT), before)


def ret(guest: Guest, release: int = 0) -> tuple[int, ...]:
    before = guest.v.copy()
    size = 8 if guest.long else 4
    return kept(guest, far_return(guest.v, guest.mem, size, release), before)


BOTH = pytest.mark.parametrize("transfer", [jump, call])


@BOTH
def test_to_a_code_segment(transfer: Transfer) -> None:
    guest = made()
    assert transfer(guest, g.FRESH_CODE, TARGET) == DONE
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_RIP"]) == (g.FRESH_CODE, TARGET)
    assert guest.words(g.GDT + g.FRESH_CODE + 5, 1, 1) == [0x9B], "accessed"
    if transfer is call:
        assert guest.frame(2) == [NEXT, g.CODE0]


CODE_FAULTS = [
    (0, 3, None, (GP, 0)),
    (0, 0x1F8, None, (GP, 0x1F8)),
    (0, 0x0C, None, (GP, 0x0C)),
    (0, g.DATA0, None, (GP, g.DATA0)),
    (0, g.CODE0 | 1, None, (GP, g.CODE0)),  # RPL above CPL
    (0, g.CODE3 & ~3, None, (GP, g.CODE3 & ~3)),  # DPL above CPL
    (3, g.CODE0, None, (GP, g.CODE0)),  # DPL below CPL
    (0, SPARE, 0xFF, (GP, SPARE)),  # conforming, DPL above CPL
    (0, SPARE, 0x1B, (NP, SPARE)),
    (0, SPARE, 0x82, (GP, SPARE)),  # an LDT
    (0, SPARE, 0x8E, (GP, SPARE)),  # an interrupt gate
]


@BOTH
@pytest.mark.parametrize(("ring", "selector", "access", "fault"), CODE_FAULTS)
def test_code_segments_that_are_refused(
    transfer: Transfer, ring: int, selector: int, access: int | None, fault: tuple[int, int]
) -> None:
    guest = made(ring=ring)
    if access is not None:
        put(guest, SPARE, access)
    assert transfer(guest, selector, TARGET)[:2] == fault


@BOTH
def test_a_conforming_segment_keeps_cpl(transfer: Transfer) -> None:
    guest = made(ring=3)
    assert transfer(guest, g.CONFORMING, TARGET) == DONE
    assert guest["GUEST_CS_SELECTOR"] == g.CONFORMING | 3


@BOTH
def test_targets_beyond_the_limit(transfer: Transfer) -> None:
    guest = made()
    put(guest, SPARE, 0x9B, flags=4, limit=0xFFFF)
    assert transfer(guest, SPARE, 0x1_0000) == (GP, 0, 0)


@BOTH
def test_targets_that_are_not_canonical(transfer: Transfer) -> None:
    assert transfer(made(bits=64), g.LONG0, 1 << 47) == (GP, 0, 0)


@BOTH
@pytest.mark.parametrize("target", [-(1 << 47), -1, -(1 << 63) + TARGET, 1 << 32])
def test_targets_beyond_the_limit_of_compatible_code(transfer: Transfer, target: int) -> None:
    # A target of 64 bits is unsigned (SDM, "JMP": "tempEIP is outside code segment limit").
    assert transfer(made(bits=64), g.CODE0, target) == (GP, 0, 0)


@BOTH
@pytest.mark.parametrize("kind", [1, 3, 5, 9, 11])
def test_tasks(transfer: Transfer, kind: int) -> None:
    """Their own checks are those of `task_switch`; in IA-32e mode there are no tasks."""
    guest = made()
    put(guest, SPARE, 0x80 | kind)
    assert transfer(guest, SPARE, 0)[0] == TASK_GATE
    long = made(bits=64)
    put(long, SPARE, 0x80 | kind)
    assert transfer(long, SPARE, 0)[:2] == (GP, SPARE)


@pytest.mark.parametrize("room", range(8))
def test_a_call_needs_room_on_the_stack(room: int) -> None:
    guest = made(GUEST_SS_LIMIT=g.STACK - 2)
    assert call(guest, g.CODE0) == (SS, 0, 0)
    down = made()
    down.segment("SS", g.DATA0, 0xC097, limit=g.STACK - 8 + room)
    assert call(down, g.CODE0) == (SS, 0, 0)


# Call gates.


@BOTH
def test_a_gate_to_the_same_ring(transfer: Transfer) -> None:
    guest = made()
    put_gate(guest, g.CODE0, TARGET, 0x8C)
    assert transfer(guest, GATE, 0x1234) == DONE
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_RIP"]) == (g.CODE0, TARGET)


def test_a_gate_of_a_16_bit_tss_pushes_two_bytes() -> None:
    guest = made()
    put_gate(guest, g.CODE0, 0xF_9000, 0x84)
    assert call(guest, GATE) == DONE
    assert guest["GUEST_RIP"] == 0x9000
    assert guest.frame(2, 2) == [NEXT, g.CODE0]


GATE_FAULTS = [
    (3, g.CODE0, 0x8C, (GP, GATE)),  # DPL below CPL
    (0, g.CODE0, 0x0C, (NP, GATE)),
    (0, 0, 0x8C, (GP, 0)),
    (0, 0x1F8, 0x8C, (GP, 0x1F8)),
    (0, g.DATA0, 0x8C, (GP, g.DATA0)),
    (0, g.CODE3, 0x8C, (GP, g.CODE3 & ~3)),  # code of an outer ring
    (0, SPARE, 0x8C, (NP, SPARE)),
]


@BOTH
@pytest.mark.parametrize(("ring", "selector", "access", "fault"), GATE_FAULTS)
def test_gates_that_are_refused(
    transfer: Transfer, ring: int, selector: int, access: int, fault: tuple[int, int]
) -> None:
    guest = made(ring=ring)
    put(guest, SPARE, 0x1B)
    put_gate(guest, selector, TARGET, access)
    assert transfer(guest, GATE, 0)[:2] == fault


def test_a_gates_rpl_counts() -> None:
    guest = made()
    put_gate(guest, g.CODE0, TARGET, 0x8C)
    assert call(guest, GATE | 1)[:2] == (GP, GATE)


def test_a_jump_through_a_gate_stays_in_its_ring() -> None:
    guest = made(ring=3)
    put_gate(guest, g.CODE0, TARGET, 0xEC)
    assert jump(guest, GATE | 3)[:2] == (GP, g.CODE0)


def test_a_call_to_an_inner_ring_copies_parameters() -> None:
    guest = made(ring=3)
    put_gate(guest, g.CODE0, TARGET, 0xEC, words=3)
    guest.write(g.STACK, b"".join(n.to_bytes(4, "little") for n in (11, 22, 33)))
    assert call(guest, GATE | 3) == DONE
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_SS_SELECTOR"]) == (g.CODE0, g.DATA0)
    assert guest["GUEST_RSP"] == g.TSS_STACK - 7 * 4
    assert guest.frame(7) == [NEXT, g.CODE3, 11, 22, 33, g.STACK, g.DATA3]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"GUEST_TR_LIMIT": 8}, (TS, g.BUSY_TSS)),
        ({"stack": 0}, (TS, 0)),
        ({"stack": 0x1F8}, (TS, 0x1F8)),
        ({"stack": g.DATA3}, (TS, g.DATA3 & ~3)),
        ({"stack": g.CODE0}, (TS, g.CODE0)),
        ({"access": 0x13}, (SS, SPARE)),
        ({"access": 0x93, "limit": 0}, (SS, SPARE)),
    ],
)
def test_the_stack_of_the_inner_ring(change: dict[str, int], fault: tuple[int, int]) -> None:
    guest = made(ring=3)
    put_gate(guest, g.CODE0, TARGET, 0xEC)
    access, limit = change.get("access"), change.get("limit", 0xFFFFF)
    if access is not None:
        put(guest, SPARE, access, flags=4, limit=limit)
    stack = change.get("stack", SPARE if access is not None else g.DATA0)
    guest.write(g.TSS + 8, stack.to_bytes(2, "little"))
    guest.set(**{name: value for name, value in change.items() if name.startswith("GUEST")})
    assert call(guest, GATE | 3)[:2] == fault


def test_a_call_to_an_inner_ring_in_ia32e_mode() -> None:
    guest = made(bits=64, ring=3)
    put_gate(guest, g.LONG0, TARGET, 0xEC)
    assert call(guest, GATE | 3) == DONE
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_SS_SELECTOR"]) == (g.LONG0, 0)
    assert guest.frame(4, 8) == [NEXT, g.LONG3, g.STACK, g.DATA3]
    # The code must be 64-bit code, the upper half of the gate no descriptor.
    put_gate(guest, g.CODE0, TARGET, 0xEC)
    assert call(guest, GATE | 3)[:2] == (GP, g.CODE0)
    put_gate(guest, g.LONG0, TARGET, 0xEC)
    guest.write(g.GDT + GATE + 13, b"\x0c")
    assert call(guest, GATE | 3)[:2] == (GP, GATE)


# Returns.


def test_return_to_the_same_ring() -> None:
    guest = made()
    assert call(guest, g.CODE0) == DONE
    assert ret(guest, 8) == DONE
    assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (NEXT, g.STACK + 8)


def test_return_from_a_gate() -> None:
    guest = made(ring=3)
    put_gate(guest, g.CODE0, TARGET, 0xEC, words=2)
    guest.segment("FS", g.DATA0, 0xC093, base=0x1234)
    assert call(guest, GATE | 3) == DONE
    assert ret(guest, 8) == DONE
    assert (guest["GUEST_CS_SELECTOR"], guest["GUEST_SS_SELECTOR"]) == (g.CODE3, g.DATA3)
    assert (guest["GUEST_RIP"], guest["GUEST_RSP"]) == (NEXT, g.STACK + 8)
    assert (guest["GUEST_FS_SELECTOR"], guest["GUEST_FS_BASE"]) == (0, 0x1234)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ((TARGET, 0), (GP, 0)),
        ((TARGET, 0x1F8), (GP, 0x1F8)),
        ((TARGET, g.DATA0), (GP, g.DATA0)),
        ((TARGET, SPARE), (NP, SPARE)),
        ((TARGET, g.CODE3, 0x6F00, 0), (GP, 0)),
        ((TARGET, g.CODE3, 0x6F00, g.DATA0), (GP, g.DATA0)),
    ],
)
def test_returns_that_are_refused(words: tuple[int, ...], fault: tuple[int, int]) -> None:
    guest = made(GUEST_RSP=0x4F00)
    put(guest, SPARE, 0x1B)
    guest.write(0x4F00, b"".join(word.to_bytes(4, "little") for word in words))
    assert ret(guest)[:2] == fault


@pytest.mark.parametrize(("room", "outer"), [(7, False), (15, True)])
def test_a_return_needs_its_words(room: int, *, outer: bool) -> None:
    guest = made(GUEST_RSP=0x4F00, GUEST_SS_LIMIT=0x4F00 + room - 1)
    words = (TARGET, g.CODE3 if outer else g.CODE0, 0x6F00, g.DATA3)
    guest.write(0x4F00, b"".join(word.to_bytes(4, "little") for word in words))
    assert ret(guest) == (SS, 0, 0)


def test_a_return_in_64_bit_mode_keeps_ss() -> None:
    guest = made(bits=64)
    assert call(guest, g.LONG0) == DONE
    assert guest.frame(2, 8) == [NEXT, g.LONG0]
    assert ret(guest) == DONE
    assert guest["GUEST_RSP"] == g.STACK
    guest.write(g.STACK, (1 << 47).to_bytes(8, "little") + g.LONG0.to_bytes(8, "little"))
    assert ret(guest) == (GP, 0, 0)
    guest.set(GUEST_RSP=(1 << 47) - 8)
    assert ret(guest) == (SS, 0, 0)


def test_a_call_in_real_address_mode() -> None:
    guest = made(GUEST_CR0=0x20)
    guest.segment("SS", 0, 0x93, limit=0xFFFF)
    answer = far_call_real(guest.v, guest.r, guest.mem, 0x1234, 0x56, 2, 0x107)
    assert answer == DONE
    assert (guest["GUEST_CS_BASE"], guest["GUEST_RIP"]) == (0x12340, 0x56)
    assert guest.frame(2, 2) == [0x107, g.CODE0]
    guest.set(GUEST_RSP=3)
    assert far_call_real(guest.v, guest.r, guest.mem, 0x1234, 0x56, 2, 0x107) == (SS, 0, 0)
    guest.set(GUEST_RSP=0x100, GUEST_CS_LIMIT=0xFFFF)
    assert far_call_real(guest.v, guest.r, guest.mem, 0x1234, 0x1_0000, 4, 0x107) == (GP, 0, 0)
