"""What a segment descriptor says, and what loading it puts into the guest-state area."""

from itertools import product

import pytest

from tests.unit.core_guest import Guest, descriptor, signed
from trapgate.events import descriptors as d
from trapgate.sdm import state

NAMES = ("ES", "CS", "SS", "DS", "FS", "GS")
FIELDS = ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")
FAR = descriptor(0xF2, base=0xFEDC_BA98, limit=0xABCDE, flags=0x5)


def segments(guest: Guest) -> dict[str, tuple[int, ...]]:
    return {name: tuple(guest[f"GUEST_{name}_{field}"] for field in FIELDS) for name in NAMES}


def marked() -> Guest:
    """Each field has a value of its own."""
    guest = Guest()
    for n, name in enumerate(NAMES):
        guest.segment(name, 0x100 + n, 0xC093 | n << 16, base=0x200 + n, limit=0x300 + n)
    return guest


@pytest.mark.parametrize("n", range(6))
def test_one_register_is_loaded(n: int) -> None:
    guest = marked()
    others = segments(guest)
    d.put_segment(guest.v, n, 0x63, FAR)
    assert segments(guest) == {**others, NAMES[n]: (0x63, 0xFEDC_BA98, 0xABCDE, 0x50F3)}
    d.put_flat_segment(guest.v, n, 0x1_8063, 0xC0F3)
    assert segments(guest) == {**others, NAMES[n]: (0x8063, 0, 0xFFFF_FFFF, 0xC0F3)}
    d.put_8086_segment(guest.v, n, 0x8765)
    assert segments(guest) == {**others, NAMES[n]: (0x8765, 0x87650, 0xFFFF, 0xF3)}


@pytest.mark.parametrize("privilege", range(4))
def test_a_null_stack_has_the_privilege_level(privilege: int) -> None:
    guest = marked()
    before = segments(guest)
    d.put_null_stack(guest.v, privilege, privilege)
    loaded = (privilege, 0, 0xFFFF_FFFF, state.AR_UNUSABLE | privilege << 5)
    assert segments(guest) == {**before, "SS": loaded}


@pytest.mark.parametrize("privilege", range(4))
def test_a_return_to_an_outer_ring_takes_inner_data_segments(privilege: int) -> None:
    for kind, dpl in product((0x3, 0x7, 0xB, 0xF), range(4)):
        guest = marked()
        rights = 0xC090 | kind | dpl << 5
        for n, name in enumerate(NAMES):
            guest.segment(name, 0x100 + n, rights, base=0x200 + n, limit=0x300 + n)
        before = segments(guest)
        d.withdraw_data_segments(guest.v, privilege)
        taken = kind != 0xF and dpl < privilege
        for name, (selector, base, limit, held) in segments(guest).items():
            if taken and name not in ("CS", "SS"):
                assert (selector, held) == (0, rights | state.AR_UNUSABLE)
                assert (base, limit) == before[name][1:3]
            else:
                assert (selector, base, limit, held) == before[name]


def test_code_for_far_transfers() -> None:
    for access, flags, long in product(range(256), range(16), (False, True)):
        guest = Guest(bits=64 if long else 32)
        made = signed(descriptor(access, flags=flags))
        rights = access | flags << 12
        code = access & 0x18 == 0x18
        wide = bool(flags & 2)
        assert d.rights_of(made) == rights
        assert d.privilege_of(made) == access >> 5 & 3
        assert d.is_code_for(guest.v, made) == (code and not (long and flags & 6 == 6))
        assert d.is_64_bit(guest.v, made) == (long and wide)
        if access:
            continue
        limit = 0xFFFF_FFFF if flags & 8 else 0xFFFFF
        for target in (0, limit, limit + 1, -1, 1 << 46, (1 << 47) - 1, 1 << 47, -(1 << 47)):
            canonical = -(1 << 47) <= target < 1 << 47
            legal = canonical if long and wide else 0 <= target <= limit
            assert d.target_is_legal(guest.v, made, target) == legal
        assert not d.target_is_legal(guest.v, made, -(1 << 47) - 1)
