"""Words that are popped from a stack: do they fit, where do they lie, which faults do they meet."""

from itertools import product

import pytest

from tests.unit.core_guest import Guest
from trapgate.events.stack import (
    each_word_fits,
    probe_words,
    stack_holds,
    word_at,
    words_are_canonical,
    words_share_page,
)
from trapgate.sdm import state

UP, DOWN, WIDE = 0x93, 0x97, 0x4000
MASK_16, MASK_32 = 0xFFFF, 0xFFFF_FFFF


def holds(limit: int, rights: int, sp: int, size: int, count: int) -> bool:
    """Each byte of each word on its own (SDM, "Limit Checking")."""
    top = MASK_32 if rights & WIDE else MASK_16
    for n in range(count):
        first = (sp + size * n) % (top + 1)
        for offset in range(first, first + size):
            if offset > top or (offset <= limit if rights & 4 else offset > limit):
                return False
    return True


@pytest.mark.parametrize("rights", [UP, DOWN, UP | WIDE, DOWN | WIDE])
@pytest.mark.parametrize(("size", "count"), [(2, 1), (2, 3), (4, 1), (4, 3), (4, 5)])
def test_words_lie_in_the_segment_with_every_byte(rights: int, size: int, count: int) -> None:
    top = MASK_32 if rights & WIDE else MASK_16
    length = size * count
    stacks = {0, 1, size, 0xFF0, 0x1000, MASK_16 - length, *(top - n for n in range(length + 2))}
    limits = {0, 1, size - 1, length - 1, length, 0xFFF, 0x1000, MASK_16 - 1, MASK_16}
    limits |= {0x1000 + length - 2, 0x1000 + length - 1, top - 1, top, MASK_32}
    answers = set()
    for limit, sp in product(sorted(limits), sorted(stacks)):
        wanted = holds(limit, rights, sp, size, count)
        assert bool(stack_holds(limit, rights, sp, size, count)) == wanted, (limit, sp)
        assert bool(each_word_fits(limit, rights, sp, size, size, count)) == wanted, (limit, sp)
        assert not stack_holds(limit, rights | state.AR_UNUSABLE, sp, size, count)
        answers.add(wanted)
    assert answers == {True, False}


@pytest.mark.parametrize("length", [8, 24, 40])
def test_canonical_words(length: int) -> None:
    edge = 1 << 47
    for sp, good in (
        (-edge, True),
        (-edge - 1, False),
        (edge - length, True),
        (edge - length + 1, False),
        (edge, False),
        # Across address 0 they are on both sides of what is addressed.
        (0, True),
        (1, True),
        (-1, False),
        (-length, True),
        (-length + 1, False),
        (-length - 1, True),
    ):
        assert bool(words_are_canonical(sp, length)) == good, sp


def probe(
    guest: Guest, base: int, sp: int, mask: int, size: int, count: int, user: int = 0
) -> tuple[int, int, int]:
    found: tuple[int, int, int] = probe_words(guest.v, guest.mem, base, sp, mask, size, count, user)
    return found


def pop(guest: Guest, base: int, sp: int, mask: int, size: int, count: int) -> list[int]:
    physical, error, _ = probe(guest, base, sp, mask, size, count)
    assert error == -1
    return [
        int(word_at(guest.v, guest.mem, physical, base, sp, mask, size, 0, n)) for n in range(count)
    ]


def paged() -> Guest:
    """Linear pages 4, 5 and 6 lie at 9000H, C000H and 7000H, each byte of them another one."""
    guest = Guest()
    guest.page()
    for page, at in ((4, 9), (5, 12), (6, 7)):
        guest.write(0x21000 + 4 * page, (at << 12 | 0x67).to_bytes(4, "little"))
        guest.write(at << 12, bytes(0xFF & (7 * n + at) for n in range(4096)))
    return guest


def byte_at(linear: int) -> int:
    return 0xFF & (7 * (linear & 0xFFF) + {4: 9, 5: 12, 6: 7}[linear >> 12])


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("sp", [0x4800, 0x4FE0, *range(0x4FE8, 0x5002), 0x5FFD, 0x5FF9])
@pytest.mark.parametrize("base", [0, 0x400])
def test_words_are_read_upwards_wherever_their_pages_lie(base: int, sp: int, size: int) -> None:
    guest = paged()
    got = pop(guest, base, sp - base, MASK_32, size, 3)
    for n, word in enumerate(got):
        first = sp + size * n
        data = bytes(byte_at(at) for at in range(first, first + size))
        assert word == int.from_bytes(data, "little", signed=size == 8), n
    # They lie in one page, or are found one by one.
    physical = probe(guest, base, sp - base, MASK_32, size, 3)[0]
    together = (sp & 0xFFF) + 3 * size <= 0x1000
    assert (physical >= 0) == together
    if together:
        assert physical == {4: 0x9000, 5: 0xC000, 6: 0x7000}[sp >> 12] | sp & 0xFFF


@pytest.mark.parametrize(
    ("value", "byte"), [(-1, 0xFF), (-(1 << 63), 0x80), ((1 << 63) - 1, 0x7F), (0x40 << 56, 0x40)]
)
def test_words_of_64_bits_have_a_sign(value: int, byte: int) -> None:
    guest = Guest(bits=64)
    # Small pages at 0 and 2 MB below the end, of which page 5 lies elsewhere.
    guest.write(0x13000, b"".join((n << 12 | 0x67).to_bytes(8, "little") for n in range(64)))
    guest.write(0x12000, (0x13067).to_bytes(8, "little"))
    guest.write(0x13000 + 8 * 5, (0xC067).to_bytes(8, "little"))
    for table, entry in ((0x10000, 0x11027), (0x11000, 0x12027), (0x12000, 0x13067)):
        guest.write(table + 511 * 8, entry.to_bytes(8, "little"))
    data = (value & (1 << 64) - 1).to_bytes(8, "little")
    assert data[7] == byte
    for ahead in range(1, 8):
        guest.write(0x5000 - ahead, data[:ahead])
        guest.write(0xC000, data[ahead:])
        for high in (0, -0x20_0000):
            assert pop(guest, 0, high + 0x5000 - ahead, -1, 8, 1) == [value]
    guest.write(0xC100, data)
    assert pop(guest, 0, 0x5100, -1, 8, 1) == [value]


@pytest.mark.parametrize("sp", [0xFFF8, 0xFFFA, 0xFFFC, 0xFFFE, 0xFFF6])
@pytest.mark.parametrize("base", [0x10000, 0x10802])
def test_a_16_bit_stack_wraps_within_its_64_kilobytes(sp: int, base: int) -> None:
    guest = Guest()
    words = [0x1234, 0x5678, 0x9ABC, 0xDEF0]
    for n, word in enumerate(words):
        guest.write(base + ((sp + 2 * n) & MASK_16), word.to_bytes(2, "little"))
    assert probe(guest, base, 0xFFF8, MASK_16, 2, 4)[0] == base + 0xFFF8
    assert probe(guest, base, 0xFFFA, MASK_16, 2, 4)[0] == -1
    assert pop(guest, base, sp, MASK_16, 2, 4) == words


def test_linear_addresses_wrap_at_4_gigabytes() -> None:
    guest = Guest()
    guest.page()
    guest.write(0x20000 + 4 * 0x3FF, (0x22027).to_bytes(4, "little"))
    guest.write(0x22000 + 4 * 0x3FF, (0x9067).to_bytes(4, "little"))
    guest.write(0x9FFC, bytes(range(1, 5)))
    guest.write(0, bytes(range(5, 9)))
    for base, sp in ((0xFFFF_0000, 0xFFFC), (0x8000_0000, 0x7FFF_FFFC), (0, 0xFFFF_FFFC)):
        assert pop(guest, base, sp, MASK_32, 4, 2) == [0x0403_0201, 0x0807_0605]
    assert pop(guest, 0xFFFF_FFF0, 0xE, MASK_32, 4, 1) == [0x0605_0403]
    assert probe(guest, 0xFFFF_FFF0, 0x14, MASK_32, 4, 1) == (4, -1, 0)
    # One page below the end there is none; and bit 31 and bit 0 of an address count.
    assert probe(guest, 0xFFFF_0000, 0xEFFC, MASK_32, 4, 1) == (0, 0, 0xFFFF_EFFC)
    assert probe(guest, 0xFFFF_0000, 0xEFFF, MASK_32, 2, 1) == (0, 0, 0xFFFF_EFFF)


def test_addresses_of_64_bits_do_not_wrap() -> None:
    guest = Guest(bits=64)
    assert probe(guest, 0, 0x5000, -1, 8, 5) == (0x5000, -1, 0)
    assert probe(guest, 0, 0x1_0000_5000, -1, 8, 1) == (0, 0, 0x1_0000_5000)
    assert probe(guest, 0, 0xFFFF_FFFC, -1, 8, 1)[2] == 0xFFFF_FFFC
    guest.write(0x10000 + 511 * 8, (0x11027).to_bytes(8, "little"))
    guest.write(0x11000 + 511 * 8, (0x12027).to_bytes(8, "little"))
    guest.write(0x12000 + 511 * 8, (0x000E7).to_bytes(8, "little"))
    assert probe(guest, 0, -0x20_0000 + 0x5000, -1, 8, 5) == (0x5000, -1, 0)
    # A stack pointer need not be aligned: two pages of 2 MB, of which the second is absent.
    assert probe(guest, 0, 0x20_0000 - 4, -1, 8, 1) == (0, 0, 0x20_0000)


@pytest.mark.parametrize(
    ("sp", "fault"),
    [
        (0x5000, 0x5000),
        (0x5FF4, 0x5FF4),
        # From page 4 up into the absent page 5: the first word that reaches it, at its own first
        # byte or where it enters the page.
        (0x4FF4, None),
        (0x4FF8, 0x5000),
        (0x4FF6, 0x5000),
        (0x4FFE, 0x5000),
        (0x4FFD, 0x5000),
        # From it up.
        (0x5FFC, 0x5FFC),
        (0x5FFE, 0x5FFE),
        (0x6000, None),
    ],
)
@pytest.mark.parametrize("user", [0, 1])
def test_the_fault_is_that_of_the_first_word(sp: int, fault: int | None, user: int) -> None:
    guest = Guest()
    guest.page(absent=(5,))
    if fault is None:
        assert probe(guest, 0, sp, MASK_32, 4, 3, user) == (sp, -1, 0)
    else:
        assert probe(guest, 0, sp, MASK_32, 4, 3, user) == (0, user << 2, fault)


@pytest.mark.parametrize("sp", [0x5000, 0x4FF8, 0x4FFE])
def test_words_are_only_read(sp: int) -> None:
    guest = Guest()
    guest.page(read_only=(4, 5))
    for n in (4, 5):
        guest.write(0x21000 + 4 * n, (n << 12 | 0x25).to_bytes(4, "little"))
    guest.write(sp, bytes(range(12)))
    assert pop(guest, 0, sp, MASK_32, 4, 3) == [0x0302_0100, 0x0706_0504, 0x0B0A_0908]
    assert guest.words(0x21000 + 16, 2) == [0x4025, 0x5025], "no dirty flag"


@pytest.mark.parametrize("sp", [0x5000, 0x4FF8, 0x4FFE])
@pytest.mark.parametrize("ac", [0, state.RFLAGS_AC])
def test_smap_asks_for_ac(sp: int, ac: int) -> None:
    guest = Guest()
    guest.page()
    guest.set(GUEST_CR4=state.CR4_SMAP, GUEST_RFLAGS=2 | ac)
    if ac:
        guest.write(sp, bytes(range(12)))
        assert pop(guest, 0, sp, MASK_32, 4, 3) == [0x0302_0100, 0x0706_0504, 0x0B0A_0908]
    else:
        assert probe(guest, 0, sp, MASK_32, 4, 3) == (0, 1, sp)


def test_rights_are_those_of_the_pages_behind_the_wrap() -> None:
    for absent, answer in ((0x20, (-1, -1, 0)), (0x10, (0, 0, 0x10000)), (0x1F, (0, 0, 0x1FFFE))):
        guest = Guest()
        guest.page(absent=(absent,))
        assert probe(guest, 0x10000, 0xFFFE, MASK_16, 2, 3) == answer


@pytest.mark.parametrize(
    ("physical", "sp", "mask", "length", "shared"),
    [
        (0x5000, 0, MASK_16, 0x1000, True),
        (0x5000, 0, MASK_16, 0x1001, False),
        (0x5FF4, 0x10, MASK_32, 12, True),
        (0x5FF5, 0x10, MASK_32, 12, False),
        (0x5801, 0x10, MASK_32, 0x7FF, True),
        (0x5801, 0x10, MASK_32, 0x800, False),
        (0, 0x10, MASK_32, 12, True),
        (-1, 0x10, MASK_32, 12, False),
        (-0x1000, 0x10, MASK_32, 12, False),
        (0x5000, 0xFFF4, MASK_16, 12, True),
        (0x5000, 0xFFF5, MASK_16, 12, False),
        (0x5000, 0xFFF5, MASK_32, 12, True),
    ],
)
def test_words_that_share_a_page(
    physical: int, sp: int, mask: int, length: int, shared: bool
) -> None:
    assert bool(words_share_page(physical, sp, mask, length)) == shared
