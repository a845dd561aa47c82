"""Breakpoints of DR0 to DR3 on data and ports: which accesses meet them."""

from itertools import product

import pytest

from tests.unit.core_guest import Guest
from trapgate.events import breakpoints as bp
from trapgate.sdm import state

LENGTHS = {0: 1, 1: 2, 2: 8, 3: 4}
"""Bytes by the LEN field of DR7 (SDM, "Debug Control Register (DR7)")."""
ENABLED = 1 << 12


def with_breakpoint(n: int, kind: int, field: int, address: int, enable: int = 1) -> Guest:
    guest = Guest()
    dr7 = 1 << 10 | enable << 2 * n | kind << 16 + 4 * n | field << 18 + 4 * n
    guest.set(GUEST_DR7=dr7, **{f"dr{n}": address})
    return guest


@pytest.mark.parametrize("n", range(4))
@pytest.mark.parametrize("field", LENGTHS)
def test_an_access_meets_a_breakpoint_if_they_share_a_byte(n: int, field: int) -> None:
    length = LENGTHS[field]
    for address, at, size in product((0x1000, 0x1003, 0x1FFF), range(-12, 12), (1, 2, 4, 8)):
        first = address + at
        guest = with_breakpoint(n, bp.WRITES, field, address)
        start = address // length * length
        shared = set(range(start, start + length)) & set(range(first, first + size))
        met = bp.breakpoints_met(guest.v, guest.r, 1 << bp.WRITES, first, size)
        assert met == (1 << n if shared else 0), (hex(address), at, size)


@pytest.mark.parametrize("enable", range(4))
@pytest.mark.parametrize("n", range(4))
def test_either_flag_enables_a_breakpoint(n: int, enable: int) -> None:
    for kind, kinds in product(range(4), range(16)):
        guest = with_breakpoint(n, kind, 0, 0x1000, enable)
        met = bp.breakpoints_met(guest.v, guest.r, kinds, 0x1000, 1)
        assert met == (1 << n if enable and kinds >> kind & 1 else 0), (kind, kinds)


def test_several_breakpoints_are_met_at_once() -> None:
    guest = Guest()
    guest.set(GUEST_DR7=1 << 10 | 0x55 | 0x3131 << 16, dr0=0x1000, dr1=0x1001, dr2=0x1000, dr3=0)
    assert bp.breakpoints_met(guest.v, guest.r, 1 << 1 | 1 << 3, 0x1000, 2) == 0b0111
    assert bp.breakpoints_met(guest.v, guest.r, 1 << 3, 0x1000, 2) == 0b0010


@pytest.mark.parametrize("kind", range(4))
def test_writes_and_reads_of_data(kind: int) -> None:
    for write in (False, True):
        guest = with_breakpoint(1, kind, 3, 0x1000)
        guest.set(GUEST_PENDING_DEBUG_EXCEPTIONS=1)
        bp.note_data(guest.v, guest.r, 0x1002, 4, write)
        met = kind == bp.ACCESSES or (kind == bp.WRITES and write)
        wanted = 1 | 2 | ENABLED if met else 1
        assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == wanted


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("debugging", [0, state.CR4_DE])
@pytest.mark.parametrize("enable", [0, 1, 2])
@pytest.mark.parametrize("n", range(4))
def test_ports_need_debugging_extensions(n: int, enable: int, debugging: int, kind: int) -> None:
    guest = with_breakpoint(n, kind, 1, 0x60, enable)
    guest.set(GUEST_CR4=debugging)
    assert bp.watches_ports(guest.v) == bool(enable and debugging)
    bp.note_ports(guest.v, guest.r, 0x61, 1)
    met = enable and debugging and kind == bp.PORTS
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == (ENABLED | 1 << n if met else 0)
    bp.note_ports(guest.v, guest.r, 0x62, 2)
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == (ENABLED | 1 << n if met else 0)


@pytest.mark.parametrize("trap", [0, state.RFLAGS_TF])
@pytest.mark.parametrize("branches", [0, state.DEBUGCTL_BTF])
@pytest.mark.parametrize("others", [False, True])
def test_single_steps_are_not_of_branches_alone(trap: int, branches: int, others: bool) -> None:
    guest = Guest()
    guest.set(
        GUEST_RFLAGS=2 | trap | others * state.RFLAGS_IF,
        GUEST_IA32_DEBUGCTL=branches | others * state.DEBUGCTL_LBR,
    )
    assert bp.single_steps(guest.v) == bool(trap and not branches)


@pytest.mark.parametrize("mask", [0xFFFF, 0xFFFF_FFFF, -1])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_words_on_a_stack(mask: int, size: int) -> None:
    base, sp = (0, 0x1_2345_6001) if mask == -1 else (0x8000_0011, (mask - size) & mask)
    wrap = (1 << 64) - 1 if mask == -1 else 0xFFFF_FFFF
    words = [(base + ((sp + size * n) & mask)) & wrap for n in range(3)]
    touched = {first + n for first in words for n in range(size)}
    for address in {first + n for first in words for n in range(-2, size + 2)}:
        guest = with_breakpoint(2, bp.WRITES, 0, address)
        bp.note_words(guest.v, guest.r, base, sp, mask, size, 3, True)
        met = guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] != 0
        assert met == (address in touched), hex(address)
        bp.note_words(guest.v, guest.r, base, sp, mask, size, 3, False)
        assert (guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] != 0) == met
    guest = with_breakpoint(2, bp.WRITES, 0, words[0])
    bp.note_words(guest.v, guest.r, base, sp, mask, size, 3, False)
    assert guest["GUEST_PENDING_DEBUG_EXCEPTIONS"] == 0
