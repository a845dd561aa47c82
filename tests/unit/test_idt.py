"""One delivery through the IDT, step by step: gate, code segment, inner stack, new state."""

from itertools import product

import numpy as np
import pytest

from tests.unit import core_guest as g
from tests.unit.core_guest import Guest, descriptor
from trapgate.compiler.dialect import Cells
from trapgate.compiler.raw import watch
from trapgate.events import idt
from trapgate.events.descriptors import (
    NO_FAULT,
    base_of,
    limit_of,
    mark_accessed,
    read_descriptor,
)
from trapgate.paging.memory import (
    WATCH_COUNT,
    WATCH_PAGES,
    WATCH_TRANSLATES,
    WATCHED_PAGE,
    watch_length,
)
from trapgate.paging.translations import kind_of, remember
from trapgate.paging.walk import READ
from trapgate.sdm import state

EXTERNAL, NMI, HARDWARE, INT_N, INT1, INT3 = 0, 2, 3, 4, 5, 6
DF, TS, NP, SS, GP, PF = 8, 10, 11, 12, 13, 14
DELIVERED, TASK_GATE = -1, -2
RF, IF, TF, NT, VM, AC = 1 << 16, 1 << 9, 1 << 8, 1 << 14, 1 << 17, 1 << 18
FREE = 0x60
"""A place in the GDT that tests put a descriptor of their own into."""


def handler(vector: int) -> int:
    return g.HANDLERS + 16 * vector


def deliver(
    guest: Guest, vector: int = 6, kind: int = HARDWARE, code: int = -1, length: int = 0
) -> tuple[int, int, int]:
    """What `idt.deliver` answers, but for the size of the frame."""
    found, error, address = idt.deliver(guest.v, guest.mem, vector, kind, code, length)
    return (found, 0, 0) if found == DELIVERED else (found, error, address)


def with_descriptor(guest: Guest, value: int, selector: int = FREE) -> Guest:
    """Put a descriptor into the GDT, and let vector 6 lead to it."""
    guest.write(g.GDT + (selector & ~7), value.to_bytes(8, "little"))
    guest.gate(6, selector=selector)
    return guest


# Gates


def judged(kind: int, cpl: int, access: int, long: bool, code: int) -> tuple[int, int]:
    """SDM, "Exception- and Interrupt-Handler Procedures", in plain words."""
    names = {0xE: "interrupt", 0xF: "trap"}
    if not long:
        names |= {5: "task", 6: "interrupt 16", 7: "trap 16"}
    if access & 0x1F not in names:
        return GP, code
    if kind in (INT_N, INT3) and access >> 5 & 3 < cpl:
        return GP, code
    return (-1, 0) if access >> 7 else (NP, code)


def test_gates_of_every_kind() -> None:
    for access, cpl, kind, long, ext in product(
        range(256), (0, 1, 3), (EXTERNAL, NMI, HARDWARE, INT_N, INT1, INT3), (False, True), (0, 1)
    ):
        found = idt._check_gate(0x41, kind, cpl, access << 40 | 0xFF << 32, long, ext)
        assert found == judged(kind, cpl, access, long, 0x41 * 8 + 2 + ext)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("vector", "kind", "ext"), [(6, HARDWARE, 1), (0x41, INT_N, 0)])
def test_the_limit_of_the_idt(bits: int, vector: int, kind: int, ext: int) -> None:
    guest = Guest(bits=bits)
    last = (vector + 1) * (16 if bits == 64 else 8) - 1
    guest.set(GUEST_IDTR_LIMIT=last)
    assert deliver(guest, vector, kind) == (DELIVERED, 0, 0)
    guest.set(GUEST_IDTR_LIMIT=last - 1)
    assert deliver(guest, vector, kind) == (GP, vector * 8 + 2 + ext, 0)


@pytest.mark.parametrize("size", [16, 32])
def test_the_offset_against_the_limit_of_the_code_segment(size: int) -> None:
    access = 0xE6 if size == 16 else 0xEE
    guest = with_descriptor(Guest(), descriptor(0x9B, limit=0x1000, flags=4))
    for offset, wanted in ((0xFFF, DELIVERED), (0x1000, DELIVERED), (0x1001, GP)):
        guest.gate(6, selector=FREE, offset=offset, access=access)
        found = deliver(guest)
        assert found == ((wanted, 0, 0) if wanted == DELIVERED else (GP, 1, 0))
        if wanted == DELIVERED:
            assert guest["GUEST_RIP"] == offset
    assert deliver(guest, 6, INT_N) == (GP, 0, 0)


def test_a_16_bit_gate_has_a_16_bit_offset() -> None:
    guest = Guest()
    guest.gate(6, offset=0x8765_4321, access=0xE6)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RIP"] == 0x4321
    guest.gate(6, offset=0x8765_4321)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RIP"] == 0x8765_4321


@pytest.mark.parametrize("offset", [0x1234_8765_4321, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000])
def test_a_64_bit_gate_has_a_64_bit_offset(offset: int) -> None:
    guest = Guest(bits=64)
    guest.gate(6, offset=offset)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RIP"] == g.signed(offset)


@pytest.mark.parametrize("offset", [1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63, 1 << 62])
@pytest.mark.parametrize(("kind", "ext"), [(HARDWARE, 1), (INT3, 0)])
def test_a_64_bit_offset_that_is_not_canonical(offset: int, kind: int, ext: int) -> None:
    guest = Guest(bits=64)
    guest.gate(6, offset=offset)
    assert deliver(guest, 6, kind) == (GP, ext, 0)


@pytest.mark.parametrize("base", [0x2FF0, 0x2FF8, 0x2FF4, 0x2FE0])
def test_64_bit_gates_anywhere(base: int) -> None:
    guest = Guest(bits=64)
    guest.write(base, g.gate(0x1_2345_6789, g.LONG0, long=True))
    guest.set(GUEST_IDTR_BASE=base - 6 * 16)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RIP"] == 0x1_2345_6789


# Remembered translations, and pages whose stores are noted


def watched(guest: Guest) -> Cells:
    """Let somebody watch the guest's memory, as an engine does, and let it remember."""
    cells = np.zeros(watch_length(g.SIZE >> 12), np.int64)
    watch(guest.mem, cells)
    cells[WATCH_TRANSLATES] = 1
    return cells


@pytest.mark.parametrize("offset", [0, 0xF00, 0xFA0 - 0x60, 0xFF0 - 0x60, 0xFF8 - 0x60])
def test_gates_are_read_by_translations_that_are_remembered(offset: int) -> None:
    guest = Guest(bits=64)
    watched(guest)
    # The IDT's first page has been at 30000H, and the page behind it is where it is.
    remember(guest.mem, g.IDT, kind_of(0, READ, 0), 0x30000)
    made = g.gate(0x1_2345_6789, g.LONG0, long=True)
    whole = offset <= 0xFF0 - 0x60
    guest.write(0x30000 + offset + 0x60, made if whole else made[:8])
    if not whole:
        guest.write(g.IDT + 0x1000, made[8:])
    guest.set(GUEST_IDTR_BASE=g.IDT + offset)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RIP"] == 0x1_2345_6789


@pytest.mark.parametrize("code", [-1, 0, 9])
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("ring", [0, 3])
def test_a_frame_in_a_page_whose_stores_are_noted(ring: int, bits: int, code: int) -> None:
    guests = []
    for watches in (False, True):
        guest = Guest(bits=bits, ring=ring)
        for top in (g.STACK, g.TSS_STACK):
            guest.write(top - 0x40, b"\xdd" * 0x40)
        if watches:
            cells = watched(guest)
            cells[WATCH_PAGES : WATCH_PAGES + (g.SIZE >> 12)] = WATCHED_PAGE
        assert deliver(guest, code=code) == (DELIVERED, 0, 0)
        guests.append(guest)
    plain, noted = guests
    assert plain.ram.tobytes() == noted.ram.tobytes()
    assert plain.v.tolist() == noted.v.tolist()
    first = noted["GUEST_RSP"]
    top = g.TSS_STACK if ring else g.STACK
    changed = set(cells[1 : 1 + cells[WATCH_COUNT]].tolist())
    assert set(range(first >> 3, (top + 7) >> 3)) <= changed


# Code segments


@pytest.mark.parametrize(
    ("selector", "code"), [(0, 1), (3, 1), (4, 5), (0x68, 0x69), (0x5F8, 0x5F9)]
)
def test_selectors_that_name_nothing(selector: int, code: int) -> None:
    guest = Guest()
    guest.gate(6, selector=selector)
    assert deliver(guest) == (GP, code, 0)
    assert deliver(guest, 6, INT_N) == (GP, code & ~1, 0)


def code_segment(access: int, cpl: int, selector: int) -> tuple[int, int] | int:
    """The fault, or the handler's CPL (SDM, "Protection of Exception- and Interrupt-Handlers")."""
    dpl = access >> 5 & 3
    if access & 0x18 != 0x18 or dpl > cpl:
        return GP, selector | 1
    if not access & 0x80:
        return NP, selector | 1
    return cpl if access & 4 else dpl


@pytest.mark.parametrize("ring", [0, 3])
def test_code_segments_of_every_kind(ring: int) -> None:
    seen = set()
    for access in range(256):
        guest = with_descriptor(Guest(ring=ring), descriptor(access))
        guest.write(g.TSS + 12, (0x6000).to_bytes(4, "little") + (0x71).to_bytes(2, "little"))
        guest.write(g.TSS + 20, (0x6000).to_bytes(4, "little") + (0x7A).to_bytes(2, "little"))
        guest.write(g.GDT + 0x70, descriptor(0xB3).to_bytes(8, "little"))
        guest.write(g.GDT + 0x78, descriptor(0xD3).to_bytes(8, "little"))
        guest.set(GUEST_GDTR_LIMIT=0x7F)
        wanted = code_segment(access, ring, FREE)
        found = deliver(guest)
        if isinstance(wanted, tuple):
            assert found == (*wanted, 0)
        else:
            assert found == (DELIVERED, 0, 0), hex(access)
            assert guest["GUEST_CS_SELECTOR"] == FREE | wanted
            assert guest["GUEST_SS_ACCESS_RIGHTS"] >> 5 & 3 == wanted
            assert guest["GUEST_CS_ACCESS_RIGHTS"] == 0xC000 | access | 1
            assert guest.ram[g.GDT + FREE + 5] == access | 1
            seen.add(wanted)
    assert seen == ({0} if ring == 0 else {0, 1, 2, 3})


@pytest.mark.parametrize(("flags", "good"), [(0xA, True), (0x8, False), (0xC, False), (0xE, False)])
def test_handlers_in_long_mode_are_64_bit(flags: int, good: bool) -> None:
    guest = with_descriptor(Guest(bits=64), descriptor(0x9B, flags=flags))
    assert deliver(guest) == ((DELIVERED, 0, 0) if good else (GP, FREE | 1, 0))


@pytest.mark.parametrize(
    ("access", "fault"), [(0x9B, DELIVERED), (0x9F, GP), (0xFB, GP), (0xFF, GP)]
)
def test_from_virtual_8086_mode_to_ring_0_only(access: int, fault: int) -> None:
    guest = with_descriptor(Guest(ring=3), descriptor(access))
    guest.set(GUEST_RFLAGS=2 | VM | 3 << 12)
    found = deliver(guest)
    assert found == ((DELIVERED, 0, 0) if fault == DELIVERED else (GP, FREE | 1, 0))


def test_the_code_segment_is_the_descriptors() -> None:
    made = descriptor(0x9A, base=0xFEDC_BA98, limit=0xABCDE, flags=0x5)
    guest = with_descriptor(Guest(), made)
    guest.gate(6, selector=FREE | 3, offset=0x100)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_CS_SELECTOR"] == FREE
    assert guest["GUEST_CS_BASE"] == 0xFEDC_BA98
    assert guest["GUEST_CS_LIMIT"] == 0xABCDE
    assert guest["GUEST_CS_ACCESS_RIGHTS"] == 0x509B


def test_limits_and_bases_of_descriptors() -> None:
    bases = (0, 1, 0x1_0000, 0x8000_0001, 0xFEDC_BA98)
    for base, limit in product(bases, (0, 0xFFFF, 0x1_0000, 0xABCDE)):
        made = descriptor(0x93, base=base, limit=limit, flags=4)
        assert (base_of(made), limit_of(made)) == (base, limit)
        made = descriptor(0x93, base=base, limit=limit, flags=12)
        made = made - (1 << 64) if made >> 63 else made
        assert (base_of(made), limit_of(made)) == (base, limit << 12 | 0xFFF)


# Descriptor tables


def test_reading_descriptors() -> None:
    guest = Guest()
    guest.set(GUEST_GDTR_LIMIT=0x17, GUEST_LDTR_BASE=0x4000, GUEST_LDTR_LIMIT=0xF)
    guest.write(0x4008, (0x1234).to_bytes(8, "little"))
    beyond = (TS, 0x7C, 0, 0)
    for selector, wanted in (
        (g.CODE0, (NO_FAULT, 0, g.GDT + 8, descriptor(0x9B))),
        (g.CODE0 | 3, (NO_FAULT, 0, g.GDT + 8, descriptor(0x9B))),
        (0x13, (NO_FAULT, 0, g.GDT + 16, descriptor(0x93))),
        (0x18, beyond),
        (0x0C, beyond),
    ):
        assert read_descriptor(guest.v, guest.mem, selector, TS, 0x7C) == wanted
    guest.set(GUEST_LDTR_ACCESS_RIGHTS=0x82)
    found = (NO_FAULT, 0, 0x4008, 0x1234)
    assert read_descriptor(guest.v, guest.mem, 0x0C, TS, 0x7C) == found
    assert read_descriptor(guest.v, guest.mem, 0x14, TS, 0x7C) == beyond
    guest.set(GUEST_GDTR_LIMIT=0x16)
    assert read_descriptor(guest.v, guest.mem, 0x10, TS, 0x7C) == beyond
    guest.page(absent=(1,))
    assert read_descriptor(guest.v, guest.mem, g.CODE0, TS, 0x7C) == (PF, 0, g.GDT + 8, 0)


@pytest.mark.parametrize("access", [0x9A, 0x92, 0xFE])
def test_marking_a_descriptor_accessed(access: int) -> None:
    guest = Guest()
    guest.write(0x4000, descriptor(access).to_bytes(8, "little"))
    assert mark_accessed(guest.v, guest.mem, descriptor(access), 0x4000) == -1
    assert guest.words(0x4000, 1, 8) == [descriptor(access | 1)]
    guest.page(read_only=(4,))
    assert mark_accessed(guest.v, guest.mem, descriptor(access), 0x4000) == 3
    assert mark_accessed(guest.v, guest.mem, descriptor(access | 1), 0x4000) == -1


# Page faults on the way


def test_page_faults_of_the_tables() -> None:
    guest = Guest(ring=3)
    guest.page(absent=(2,))
    assert deliver(guest) == (PF, 0, g.IDT + 6 * 8)
    guest.page(absent=(1,))
    assert deliver(guest) == (PF, 0, g.GDT + g.CODE0)
    guest.page(absent=(3,))
    assert deliver(guest) == (PF, 0, g.TSS + 8), "the selector is read first"
    guest.page()
    guest.set(GUEST_TR_BASE=0x3FF8)
    guest.write(0x4000, g.DATA0.to_bytes(2, "little"))
    guest.page(absent=(3,))
    assert deliver(guest) == (PF, 0, 0x3FFC)
    guest = Guest(ring=3)
    guest.page(absent=(5,))
    assert deliver(guest) == (PF, 2, g.TSS_STACK - 4)
    guest.page(read_only=(5,))
    assert deliver(guest, 14, HARDWARE, 4) == (PF, 3, g.TSS_STACK - 4)


def test_page_faults_of_descriptors_that_become_accessed() -> None:
    guest = with_descriptor(Guest(), descriptor(0x9A))
    guest.page(read_only=(1,))
    assert deliver(guest) == (PF, 3, g.GDT + FREE + 5)
    guest = Guest(ring=3)
    guest.write(g.GDT + g.DATA0, descriptor(0x92).to_bytes(8, "little"))
    guest.page(read_only=(1,))
    assert deliver(guest) == (PF, 3, g.GDT + g.DATA0 + 5)
    guest.page()
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest.ram[g.GDT + g.DATA0 + 5] == 0x93


def test_the_inner_stacks_descriptor_may_be_absent_from_memory() -> None:
    guest = Guest(ring=3)
    guest.set(GUEST_GDTR_BASE=0x3FF0 - 8)
    guest.write(0x3FF0 - 8 + g.CODE0, descriptor(0x9B).to_bytes(8, "little"))
    guest.write(0x3FF0 - 8 + g.DATA0, descriptor(0x93).to_bytes(8, "little"))
    assert deliver(guest) == (DELIVERED, 0, 0)
    guest = Guest(ring=3)
    guest.set(GUEST_GDTR_BASE=0x3FF0)
    guest.write(0x3FF0 + g.CODE0, descriptor(0x9B).to_bytes(8, "little"))
    guest.page(absent=(4,))
    assert deliver(guest) == (PF, 0, 0x3FF0 + g.DATA0)


def test_conforming_handlers_push_as_their_user() -> None:
    guest = Guest(ring=3)
    guest.gate(6, selector=g.CONFORMING)
    guest.page(absent=(4,))
    assert deliver(guest) == (PF, 6, g.STACK - 4)


def test_page_faults_in_long_mode() -> None:
    guest = Guest(bits=64)
    far = 0x40_0000
    guest.set(GUEST_IDTR_BASE=far)
    assert deliver(guest) == (PF, 0, far + 6 * 16)
    # A gate on two pages, of which the second is missing: its upper half.
    guest = Guest(bits=64)
    guest.set(GUEST_IDTR_BASE=0x20_0000 - 8 - 6 * 16)
    assert deliver(guest)[0] != DELIVERED
    guest.set(GUEST_IDTR_BASE=far - 8 - 6 * 16)
    assert deliver(guest) == (PF, 0, far - 8)
    guest = Guest(bits=64, ring=3)
    guest.set(GUEST_TR_BASE=far)
    assert deliver(guest) == (PF, 0, far + 4)
    guest.gate(6, ist=3)
    assert deliver(guest) == (PF, 0, far + 36 + 16)
    guest = Guest(bits=64)
    guest.set(GUEST_RSP=far)
    assert deliver(guest) == (PF, 2, far - 8)


# Inner stacks


def two_rings(ring: int, tss_limit: int = 0x67, *, wide: bool = True) -> Guest:
    """From ring 3 to a handler in ring 0, 1 or 2, each with a stack of its own."""
    guest = Guest(ring=3)
    guest.set(GUEST_GDTR_LIMIT=0x8F, GUEST_TR_LIMIT=tss_limit)
    for n in range(3):
        stack = (0x5000 + 0x800 * n, 0x70 + 8 * n + n)
        guest.write(g.GDT + (stack[1] & ~7), descriptor(0x93 | n << 5).to_bytes(8, "little"))
        if wide:
            guest.write(g.TSS + 4 + 8 * n, stack[0].to_bytes(4, "little"))
            guest.write(g.TSS + 8 + 8 * n, stack[1].to_bytes(2, "little"))
        else:
            guest.write(g.TSS + 2 + 4 * n, stack[0].to_bytes(2, "little"))
            guest.write(g.TSS + 4 + 4 * n, stack[1].to_bytes(2, "little"))
    if not wide:
        guest.set(GUEST_TR_ACCESS_RIGHTS=0x83)
    return with_descriptor(guest, descriptor(0x9B | ring << 5))


@pytest.mark.parametrize("ring", [0, 1, 2])
@pytest.mark.parametrize(("wide", "least"), [(True, (9, 17, 25)), (False, (5, 9, 13))])
def test_each_ring_has_its_stack(ring: int, wide: bool, least: tuple[int, int, int]) -> None:
    guest = two_rings(ring, least[ring], wide=wide)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RSP"] == 0x5000 + 0x800 * ring - 20
    assert guest["GUEST_SS_SELECTOR"] == 0x70 + 8 * ring + ring
    assert guest["GUEST_CS_SELECTOR"] == FREE | ring
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == 0xC093 | ring << 5
    guest = two_rings(ring, least[ring] - 1, wide=wide)
    guest.set(GUEST_TR_SELECTOR=0x2B)
    assert deliver(guest) == (TS, 0x28 | 1, 0)
    assert deliver(guest, 6, INT_N) == (TS, 0x28, 0)


@pytest.mark.parametrize("selector", [0, 1, 2, 3])
def test_null_stacks(selector: int) -> None:
    guest = Guest(ring=3)
    guest.write(g.TSS + 8, selector.to_bytes(2, "little"))
    assert deliver(guest) == (TS, 1, 0)
    assert deliver(guest, 6, INT_N) == (TS, 0, 0)


def test_stack_segments_of_every_kind() -> None:
    good = set()
    for access, rpl in product(range(256), (0, 1)):
        guest = with_descriptor(Guest(ring=3), descriptor(access, limit=0xFFFFF))
        guest.gate(6)
        guest.write(g.TSS + 8, (FREE | rpl).to_bytes(2, "little"))
        found = deliver(guest)
        if access & 0x1A != 0x12 or access & 0x60 or rpl:
            assert found == (TS, FREE | 1, 0)
        elif not access & 0x80:
            assert found == (SS, FREE | 1, 0)
        else:
            # Of those that expand down, nothing is left below a limit of 4 GB.
            assert found == ((SS, FREE | 1, 0) if access & 4 else (DELIVERED, 0, 0))
            assert guest.ram[g.GDT + FREE + 5] == access | 1
            good.add(access)
    assert good == {0x92, 0x93, 0x96, 0x97}


def test_the_new_stack_is_the_descriptors() -> None:
    made = descriptor(0x92, base=0x1_0003, limit=0xFFFF, flags=0x1)
    guest = with_descriptor(Guest(ring=3), made)
    guest.gate(6)
    guest.write(g.TSS + 4, (0xABCD_2000).to_bytes(4, "little") + FREE.to_bytes(2, "little"))
    guest.set(GUEST_RSP=0xFFFF_FFFF)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_SS_SELECTOR"] == FREE
    assert guest["GUEST_SS_BASE"] == 0x1_0003
    assert guest["GUEST_SS_LIMIT"] == 0xFFFF
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == 0x1093
    assert guest["GUEST_RSP"] == 0xABCD_2000 - 20
    frame = guest.words(0x1_0003 + 0x2000 - 20, 5)
    assert frame == [g.CODE, g.CODE3, 2, 0xFFFF_FFFF, g.DATA3]


@pytest.mark.parametrize(
    ("limit", "code", "good"),
    [(g.TSS_STACK - 1, -1, True), (g.TSS_STACK - 2, -1, False), (g.TSS_STACK - 2, 0, False)],
)
def test_the_new_stacks_limit(limit: int, code: int, good: bool) -> None:
    guest = with_descriptor(Guest(ring=3), descriptor(0x93, limit=limit, flags=4))
    guest.gate(6)
    guest.write(g.TSS + 8, FREE.to_bytes(2, "little"))
    assert deliver(guest, code=code) == ((DELIVERED, 0, 0) if good else (SS, FREE | 1, 0))
    assert deliver(Guest(ring=3), 6, INT_N) == (DELIVERED, 0, 0)


def test_room_for_exactly_the_frame_of_an_expand_down_stack() -> None:
    for code, count in ((-1, 5), (0, 6)):
        for spare in (0, 1):
            limit = g.TSS_STACK - 4 * count - spare
            guest = with_descriptor(Guest(ring=3), descriptor(0x97, limit=limit, flags=4))
            guest.gate(6)
            guest.write(g.TSS + 8, FREE.to_bytes(2, "little"))
            wanted = (DELIVERED, 0, 0) if spare else (SS, FREE | 1, 0)
            assert deliver(guest, code=code) == wanted


def test_the_old_stack_keeps_its_upper_half_and_wraps_at_64_kilobytes() -> None:
    guest = Guest()
    guest.segment("SS", g.DATA0, 0x93, base=0x1_0000, limit=0xFFFF)
    guest.set(GUEST_RSP=0xFFFF_0006)
    guest.gate(6, access=0xE6)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RSP"] == 0xFFFF_0000
    guest.set(GUEST_RSP=0xFFFF_0004)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RSP"] == 0xFFFF_FFFE
    assert guest.words(0x1_FFFE, 1, 2) == [handler(6)]


# 64-bit stacks


@pytest.mark.parametrize("ist", range(8))
def test_the_interrupt_stack_table(ist: int) -> None:
    guest = Guest(bits=64)
    for n in range(1, 8):
        guest.write(g.TSS + 28 + 8 * n, (0x5000 + 0x100 * n).to_bytes(8, "little"))
    guest.set(GUEST_TR_LIMIT=35 + 8 * ist if ist else 0)
    guest.gate(6, ist=ist)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RSP"] == (0x5000 + 0x100 * ist if ist else g.STACK) - 40
    assert guest["GUEST_SS_SELECTOR"] == g.DATA0
    if ist:
        guest.set(GUEST_TR_LIMIT=34 + 8 * ist, GUEST_TR_SELECTOR=0x2B)
        assert deliver(guest) == (TS, 0x29, 0)
        assert deliver(guest, 6, INT_N) == (TS, 0x28, 0)


@pytest.mark.parametrize("ring", [0, 1, 2])
def test_64_bit_stacks_of_inner_rings(ring: int) -> None:
    guest = with_descriptor(Guest(bits=64, ring=3), descriptor(0x9B | ring << 5, flags=0xA))
    guest.set(GUEST_TR_LIMIT=11 + 8 * ring, GUEST_SS_BASE=7, GUEST_SS_LIMIT=9)
    guest.write(g.TSS + 4 + 8 * ring, (0x5807).to_bytes(8, "little"))
    assert deliver(guest, code=9) == (DELIVERED, 0, 0)
    assert guest["GUEST_RSP"] == 0x5800 - 48
    assert guest.frame(6, 8) == [9, g.CODE, g.LONG3, 2, g.STACK, g.DATA3]
    assert guest["GUEST_SS_SELECTOR"] == ring
    assert guest["GUEST_SS_ACCESS_RIGHTS"] == state.AR_UNUSABLE | ring << 5
    assert (guest["GUEST_SS_BASE"], guest["GUEST_SS_LIMIT"]) == (0, 0xFFFF_FFFF)
    assert guest["GUEST_CS_SELECTOR"] == FREE | ring
    assert guest["GUEST_CS_ACCESS_RIGHTS"] == 0xA09B | ring << 5
    guest = with_descriptor(Guest(bits=64, ring=3), descriptor(0x9B | ring << 5, flags=0xA))
    guest.set(GUEST_TR_LIMIT=10 + 8 * ring)
    assert deliver(guest) == (TS, g.BUSY_TSS | 1, 0)


@pytest.mark.parametrize(("code", "count"), [(-1, 5), (0, 6)])
def test_64_bit_frames_must_be_canonical(code: int, count: int) -> None:
    guest = Guest(bits=64)
    lowest = -(1 << 47)
    for low, good in ((lowest + 8 * count + 15, True), (lowest + 8 * count - 1, False)):
        guest.set(GUEST_RSP=low)
        found = deliver(guest, code=code)
        assert found[0] == (PF if good else SS)
        if not good:
            assert found == (SS, 1, 0)
            assert deliver(guest, 6, INT_N, code) == (SS, 0, 0)


def test_a_64_bit_conforming_handler_pushes_as_its_user() -> None:
    guest = with_descriptor(Guest(bits=64, ring=3), descriptor(0x9F, flags=0xA))
    guest.set(GUEST_RSP=0x40_0000)
    assert deliver(guest) == (PF, 6, 0x40_0000 - 8)


# Flags


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(("access", "kept"), [(0xEE, AC), (0xEF, AC | IF)])
def test_flags_of_the_handler(bits: int, access: int, kept: int) -> None:
    guest = Guest(bits=bits)
    flags = 2 | IF | TF | NT | RF | AC
    guest.set(GUEST_RFLAGS=flags)
    guest.gate(6, access=access)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RFLAGS"] == 2 | kept
    assert guest.frame(3, bits // 8)[2] == flags


def test_a_software_event_returns_behind_its_instruction() -> None:
    for kind, length in ((EXTERNAL, 0), (NMI, 0), (HARDWARE, 0), (INT_N, 5), (INT1, 5), (INT3, 5)):
        for bits in (32, 64):
            guest = Guest(bits=bits)
            assert deliver(guest, 6, kind, length=5) == (DELIVERED, 0, 0)
            assert guest.frame(1, bits // 8) == [g.CODE + length]


# Virtual-8086 mode


def test_virtual_8086_mode_pushes_and_empties_the_data_segments() -> None:
    for code, count in ((-1, 9), (7, 10)):
        guest = Guest(ring=3)
        guest.set(GUEST_RFLAGS=2 | VM | 3 << 12, GUEST_RIP=0x12, GUEST_RSP=0x3456)
        for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS")):
            guest.segment(name, 0x1000 + n, 0xF3, base=0x10000 + 16 * n, limit=0xFFFF)
        assert deliver(guest, code=code) == (DELIVERED, 0, 0)
        assert guest["GUEST_RSP"] == g.TSS_STACK - 4 * count
        assert guest.frame(count)[-4:] == [0x1000, 0x1003, 0x1004, 0x1005]
        assert guest.frame(count)[-6:-4] == [0x3456, 0x1002]
        for name in ("ES", "DS", "FS", "GS"):
            assert guest[f"GUEST_{name}_SELECTOR"] == 0
            assert guest[f"GUEST_{name}_ACCESS_RIGHTS"] == state.AR_UNUSABLE
        assert guest["GUEST_SS_SELECTOR"] == g.DATA0
        assert guest["GUEST_SS_ACCESS_RIGHTS"] == 0xC093


# Task gates


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (descriptor(0x89, limit=0x67, flags=0), TASK_GATE),
        (descriptor(0x89, limit=0x66, flags=0), TS),
        (descriptor(0x81, limit=0x2B, flags=0), TASK_GATE),
        (descriptor(0x81, limit=0x2A, flags=0), TS),
        (descriptor(0x09, limit=0x67, flags=0), NP),
        (descriptor(0x8B, limit=0x67, flags=0), GP),
        (descriptor(0x83, limit=0x67, flags=0), GP),
        (descriptor(0x99, limit=0x67, flags=0), GP),
        (descriptor(0x82, limit=0x67, flags=0), GP),
        (descriptor(0xE9, limit=0x67, flags=0), TASK_GATE),
    ],
)
def test_the_tss_of_a_task_gate(value: int, fault: int) -> None:
    guest = with_descriptor(Guest(), value)
    guest.gate(6, access=0xE5, selector=FREE)
    wanted = (TASK_GATE, FREE, 0) if fault == TASK_GATE else (fault, FREE | 1, 0)
    assert deliver(guest) == wanted
    guest.gate(6, access=0xE5, selector=FREE | 3)
    wanted = (TASK_GATE, FREE | 3, 0) if fault == TASK_GATE else (fault, FREE, 0)
    assert deliver(guest, 6, INT_N) == wanted
    guest.page(absent=(1,))
    assert deliver(guest) == (PF, 0, g.GDT + FREE)


def test_a_return_needs_a_busy_tss() -> None:
    for access, busy, fault in ((0x8B, 2, TASK_GATE), (0x89, 2, TS), (0x83, 2, TASK_GATE)):
        guest = with_descriptor(Guest(), descriptor(access, limit=0x67, flags=0))
        found = idt.check_tss(guest.v, guest.mem, FREE, 0, busy, TS)
        assert found == (fault, FREE, 0)


# What a bit more or less would not show


def far_descriptor(guest: Guest, value: int, selector: int) -> None:
    """A descriptor behind the first half of the GDT, whose entry 0 is a good one."""
    guest.set(GUEST_GDTR_LIMIT=0xFFFF)
    guest.write(g.GDT, value.to_bytes(8, "little"))
    guest.write(g.GDT + (selector & 0xFFF8), value.to_bytes(8, "little"))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("selector", [0x8000, 0x8060, 0x8063])
def test_selectors_have_16_bits(bits: int, selector: int) -> None:
    guest = Guest(bits=bits)
    far_descriptor(guest, descriptor(0x9B, flags=0xA if bits == 64 else 0xC), selector)
    guest.gate(6, selector=selector)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_CS_SELECTOR"] == selector & ~3
    far_descriptor(guest, descriptor(0x1B, flags=0xA if bits == 64 else 0xC), selector)
    assert deliver(guest) == (NP, selector & ~3 | 1, 0)
    assert deliver(guest, 6, INT_N) == (NP, selector & ~3, 0)


@pytest.mark.parametrize("selector", [0, 1, 2, 3])
def test_a_null_selector_is_null_whatever_entry_0_holds(selector: int) -> None:
    guest = Guest()
    far_descriptor(guest, descriptor(0x9B), 0)
    guest.gate(6, selector=selector)
    assert deliver(guest) == (GP, 1, 0)
    guest = Guest(ring=3)
    far_descriptor(guest, descriptor(0x93), 0)
    guest.write(g.TSS + 8, selector.to_bytes(2, "little"))
    assert deliver(guest) == (TS, 1, 0)


def test_selectors_of_stacks_and_tasks_have_16_bits() -> None:
    guest = Guest(ring=3)
    for selector in (0x8000, 0x8060):
        far_descriptor(guest, descriptor(0x93), selector)
        guest.write(g.TSS + 8, selector.to_bytes(2, "little"))
        assert deliver(guest) == (DELIVERED, 0, 0)
        assert guest["GUEST_SS_SELECTOR"] == selector
        guest = Guest(ring=3)
        far_descriptor(guest, descriptor(0x13), selector)
        guest.write(g.TSS + 8, (selector | 1).to_bytes(2, "little"))
        assert deliver(guest, 6, INT_N) == (TS, selector, 0)
        guest.write(g.TSS + 8, selector.to_bytes(2, "little"))
        assert deliver(guest, 6, INT_N) == (SS, selector, 0)
        far_descriptor(guest, descriptor(0x93, limit=0, flags=4), selector)
        assert deliver(guest, 6, INT_N) == (SS, selector, 0)
        guest = Guest(ring=3)
    for bits in (32, 64):
        guest = Guest(bits=bits, ring=3)
        guest.set(GUEST_TR_SELECTOR=0x8029, GUEST_TR_LIMIT=0)
        assert deliver(guest, 6, INT_N) == (TS, 0x8028, 0)
    guest = Guest()
    guest.set(GUEST_GDTR_LIMIT=0x8FFF)
    guest.write(g.GDT + 0x8060, descriptor(0x89, limit=0x67, flags=0).to_bytes(8, "little"))
    guest.gate(6, access=0xE5, selector=0x8060)
    assert deliver(guest) == (TASK_GATE, 0x8060, 0)
    guest.gate(6, access=0xE5, selector=0x9060)
    assert deliver(guest) == (GP, 0x9061, 0)


@pytest.mark.parametrize("bits", [32, 64])
def test_the_privilege_level_is_not_that_of_conforming_code(bits: int) -> None:
    guest = Guest(bits=bits, ring=3)
    guest.set(GUEST_CS_ACCESS_RIGHTS=0xA09F if bits == 64 else 0xC09F)
    guest.gate(6, access=0x8E)
    assert deliver(guest, 6, INT_N) == (GP, 6 * 8 + 2, 0)


@pytest.mark.parametrize("access", [0xE5, 0xE6, 0xE7])
def test_long_mode_has_no_16_bit_gates(access: int) -> None:
    guest = Guest(bits=64)
    guest.gate(6, access=access)
    assert deliver(guest) == (GP, 6 * 8 + 3, 0)


@pytest.mark.parametrize("base", [0x2FF4, 0x2FF8])
def test_a_gate_on_two_pages_is_read_whole(base: int) -> None:
    guest = Guest(bits=64)
    guest.write(base, g.gate(0xFFFF_8123_4567_89AB, g.LONG0, long=True))
    guest.set(GUEST_IDTR_BASE=base - 6 * 16)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RIP"] == g.signed(0xFFFF_8123_4567_89AB)
    guest.set(GUEST_IDTR_BASE=0x20_0000 - 8 - 6 * 16)
    assert deliver(guest) == (PF, 0, 0x20_0000)


@pytest.mark.parametrize("bits", [32, 64])
def test_reserved_bits_of_a_gate_are_no_part_of_its_offset(bits: int) -> None:
    guest = Guest(bits=bits)
    guest.write(g.TSS + 28 + 8 * 7, g.IST_STACK.to_bytes(8, "little"))
    guest.gate(6, ist=7)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RIP"] == handler(6)


@pytest.mark.parametrize("bits", [32, 64])
def test_an_error_code_of_0_is_pushed(bits: int) -> None:
    guest = Guest(bits=bits)
    guest.write(g.STACK - 64, b"\xee" * 64)
    assert deliver(guest, 13, HARDWARE, 0) == (DELIVERED, 0, 0)
    assert guest.frame(2, bits // 8) == [0, g.CODE]


def test_a_stack_pointer_has_32_bits() -> None:
    guest = Guest()
    guest.segment("SS", g.DATA0, 0xC093, base=0x8000_0000)
    guest.set(GUEST_RSP=0xFFFF_FFFF_8000_5001)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RSP"] == 0x8000_5001 - 12
    assert guest.words(0x5001 - 12, 3) == [g.CODE, g.CODE0, 2]


def test_a_stack_pointer_has_16_bits() -> None:
    guest = Guest()
    guest.segment("SS", g.DATA0, 0x93, base=0x1_0000, limit=0xFFFF)
    guest.set(GUEST_RSP=0x4567_9001)
    assert deliver(guest) == (DELIVERED, 0, 0)
    assert guest["GUEST_RSP"] == 0x4567_9001 - 12
    assert guest.words(0x1_9001 - 12, 3) == [g.CODE, g.CODE0, 2]


def test_a_task_gate_needs_the_gdt() -> None:
    guest = Guest()
    guest.set(GUEST_LDTR_BASE=g.GDT, GUEST_LDTR_LIMIT=0xFF, GUEST_LDTR_ACCESS_RIGHTS=0x82)
    guest.gate(6, access=0xE5, selector=g.FREE_TSS | 4)
    assert deliver(guest) == (GP, g.FREE_TSS | 5, 0)
