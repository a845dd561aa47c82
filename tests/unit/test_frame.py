"""The stack frame of an event: does it fit, where does it lie, which faults does it meet."""

from itertools import product

import pytest

from tests.unit.core_guest import Guest
from trapgate.events.frame import (
    probe_frame,
    push_word,
    stack_has_room,
    stack_is_canonical,
    store_frame,
)
from trapgate.sdm import state

UP, DOWN, WIDE = 0x93, 0x97, 0x4000
MASK_16, MASK_32 = 0xFFFF, 0xFFFF_FFFF


def fits(limit: int, rights: int, sp: int, size: int, count: int) -> bool:
    """Each byte of each word on its own (SDM, "Limit Checking")."""
    top = MASK_32 if rights & WIDE else MASK_16
    for n in range(1, count + 1):
        first = (sp - size * n) % (top + 1)
        for offset in range(first, first + size):
            if offset > top or (offset <= limit if rights & 4 else offset > limit):
                return False
    return True


@pytest.mark.parametrize("rights", [UP, DOWN, UP | WIDE, DOWN | WIDE])
@pytest.mark.parametrize(("size", "count"), [(2, 3), (2, 10), (4, 3), (4, 4), (4, 10)])
def test_room_is_that_of_every_byte(rights: int, size: int, count: int) -> None:
    top = MASK_32 if rights & WIDE else MASK_16
    length = size * count
    near = [n for edge in (0, length, 0x1000) for n in range(max(edge - size, 0), edge + size + 1)]
    stacks = {*near, *(top - n for n in range(size + 1))}
    limits = {0, 1, length - 1, length, 0xFFF, 0x1000, 0xFFFE, 0xFFFF, MASK_32 - 1, MASK_32}
    limits |= {
        0x1000 - length - 1,
        0x1000 - length,
        0x1000 - length + 1,
        top - size,
        top - size + 1,
    }
    answers = set()
    for limit, sp in product(sorted(limits), sorted(stacks)):
        answer = bool(stack_has_room(limit, rights, sp, size, count))
        assert answer == fits(limit, rights, sp, size, count), (limit, sp)
        answers.add(answer)
    assert answers == {True, False}


def test_an_unusable_stack_has_no_room() -> None:
    assert stack_has_room(MASK_32, UP, 0x1000, 4, 3)
    assert not stack_has_room(MASK_32, UP | state.AR_UNUSABLE, 0x1000, 4, 3)


@pytest.mark.parametrize(
    ("sp", "canonical"),
    [
        (1 << 47, True),
        ((1 << 47) + 1, False),
        (-(1 << 47) + 40, True),
        (-(1 << 47) + 39, False),
        (0, True),
    ],
)
def test_canonical_frames(sp: int, canonical: bool) -> None:
    assert stack_is_canonical(sp, 40) == canonical


def probe(
    guest: Guest, base: int, sp: int, mask: int, size: int, count: int, user: int = 0
) -> tuple[int, int, int]:
    found: tuple[int, int, int] = probe_frame(guest.v, guest.mem, base, sp, mask, size, count, user)
    return found


def push(guest: Guest, base: int, sp: int, mask: int, size: int, values: list[int]) -> None:
    count = len(values)
    physical, error, _ = probe(guest, base, sp, mask, size, count)
    assert error == -1
    if physical >= 0:
        physical += size * count
    for n, value in enumerate(values):
        push_word(guest.v, guest.mem, physical, base, sp, mask, size, 0, n, value)


WORDS = [0x1112_1314, 0x2122_2324, 0x3132_3334]


@pytest.mark.parametrize("base", [0, 0x8000, 0x10003])
@pytest.mark.parametrize("sp", [0x2000, 0x2006, 0x2FFF, 0x3000, 0x300C])
@pytest.mark.parametrize("size", [2, 4])
def test_words_lie_below_the_stack_pointer(base: int, sp: int, size: int) -> None:
    guest = Guest()
    guest.write(base + sp, b"\xee")
    guest.write(base + sp - size * 3 - 1, b"\xdd")
    push(guest, base, sp, MASK_32, size, WORDS)
    kept = (1 << 8 * size) - 1
    assert guest.words(base + sp - size * 3, 3, size) == [word & kept for word in WORDS[::-1]]
    assert guest.ram[base + sp] == 0xEE
    assert guest.ram[base + sp - size * 3 - 1] == 0xDD


@pytest.mark.parametrize("sp", [0, 2, 4, 6, 8, 10, 12])
@pytest.mark.parametrize("base", [0x10000, 0x10FFE])
def test_a_16_bit_stack_wraps_within_its_64_kilobytes(sp: int, base: int) -> None:
    guest = Guest()
    push(guest, base, sp, MASK_16, 2, WORDS)
    for n, word in enumerate(WORDS):
        at = base + ((sp - 2 * (n + 1)) & MASK_16)
        assert guest.words(at, 1, 2) == [word & 0xFFFF]


def test_rights_are_those_of_the_pages_behind_the_wrap() -> None:
    for absent, answer in ((0xF, (-1, -1, 0)), (0x10, (0, 2, 0x10000)), (0x1F, (0, 2, 0x1FFFE))):
        guest = Guest()
        guest.page(absent=(absent,))
        assert probe(guest, 0x10000, 2, MASK_16, 2, 3) == answer


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("switched", [False, True])
@pytest.mark.parametrize("error_code", [-1, 0x18])
def test_a_frame_in_one_go_is_that_of_its_words(size: int, switched: bool, error_code: int) -> None:
    ss, rsp, rflags, cs, rip = words = [0x23, 0x1122_3344_5566_7788, 0x10246, 0x1B, -0x7FFF_FFFE]
    pushed = words[0 if switched else 2 :] + [error_code] * (error_code >= 0)
    whole, single = Guest(bits=64), Guest(bits=64)
    push(single, 0, 0x5008, -1, size, pushed)
    lowest = 0x5008 - size * len(pushed)
    store_frame(whole.mem, lowest, size, switched, ss, rsp, rflags, cs, rip, error_code)
    assert bytes(whole.ram) == bytes(single.ram)


def test_64_bit_words() -> None:
    guest = Guest(bits=64)
    for sp in (0x5000, 0x5010, 0x5004):
        push(guest, 0, sp, -1, 8, [0x1122_3344_5566_7788, -2, 3])
        assert guest.words(sp - 24, 3, 8) == [3, (1 << 64) - 2, 0x1122_3344_5566_7788]


def test_frames_in_one_page_are_written_where_they_were_found() -> None:
    guest = Guest()
    guest.page()
    guest.write(0x21000 + 4 * 5, (0x9067).to_bytes(4, "little"))
    assert probe(guest, 0, 0x6000, MASK_32, 4, 3) == (0x9FF4, -1, 0)
    assert probe(guest, 0x400, 0x5C00, MASK_32, 4, 3) == (0x9FF4, -1, 0)
    assert probe(guest, 0, 0x600A, MASK_32, 4, 3) == (-1, -1, 0)
    assert probe(guest, 0, 0x500C, MASK_32, 4, 3) == (0x9000, -1, 0)
    assert probe(guest, 0, 0x500B, MASK_32, 4, 3) == (-1, -1, 0)


def test_a_frame_on_two_pages_goes_to_both() -> None:
    guest = Guest()
    guest.page()
    guest.write(0x21000 + 4 * 4, (0x9067).to_bytes(4, "little"))
    guest.write(0x21000 + 4 * 5, (0xC067).to_bytes(4, "little"))
    push(guest, 0, 0x5006, MASK_32, 4, WORDS)
    data = b"".join(word.to_bytes(4, "little") for word in WORDS[::-1])
    assert bytes(guest.ram[0x9FFA:0xA000]) == data[:6]
    assert bytes(guest.ram[0xC000:0xC006]) == data[6:]


@pytest.mark.parametrize(
    ("sp", "fault"),
    [
        # Within the absent page 5: the word pushed first.
        (0x6000, 0x5FFC),
        (0x500C, 0x5008),
        # From page 6 down into it: the first word that reaches it, at its own first byte
        # or where it enters the page.
        (0x6004, 0x5FFC),
        (0x6008, 0x5FFC),
        (0x6006, 0x5FFE),
        # From it down into page 4.
        (0x5004, 0x5000),
        (0x5006, 0x5002),
        (0x5002, 0x5000),
    ],
)
@pytest.mark.parametrize("user", [0, 1])
def test_the_fault_is_that_of_the_first_word_pushed(sp: int, fault: int, user: int) -> None:
    guest = Guest()
    guest.page(absent=(5,))
    assert probe(guest, 0, sp, MASK_32, 4, 3, user) == (0, 2 | user << 2, fault)


@pytest.mark.parametrize("sp", [0x5800, 0x5006])
def test_read_only_stacks(sp: int) -> None:
    guest = Guest()
    guest.page(read_only=(5,))
    assert probe(guest, 0, sp, MASK_32, 4, 3) == (0, 3, sp - 4)
    assert probe(guest, 0, 0x5000, MASK_32, 4, 3) == (0x4FF4, -1, 0)


def test_linear_addresses_wrap_at_4_gigabytes() -> None:
    guest = Guest()
    guest.page(absent=(0x3F,))
    # SS base 0xFFFF_F000 and SP 0x2000 mean linear address 1000H.
    assert probe(guest, 0xFFFF_F000, 0x2000, MASK_32, 4, 3) == (0xFF4, -1, 0)
    push(guest, 0xFFFF_F000, 0x2006, MASK_32, 4, WORDS)
    assert guest.words(0x1006 - 12, 3) == WORDS[::-1]
    # Bit 31 is not lost: there are no tables for the upper half.
    assert probe(guest, 0x8000_0000, 0x2000, MASK_32, 4, 3) == (0, 2, 0x8000_1FFC)
    # Below linear address 0 comes the last page, of which there is none.
    assert probe(guest, 0, 0x1_0000_0002 & MASK_32, MASK_32, 2, 3) == (0, 2, 0xFFFF_FFFE)
    assert probe(guest, 0xFFFF_FF00, 0x106, MASK_32, 4, 3) == (0, 2, 0xFFFF_FFFE)


def test_smap_and_rflags_count() -> None:
    guest = Guest()
    guest.page()
    guest.set(GUEST_CR4=state.CR4_SMAP)
    assert probe(guest, 0, 0x6000, MASK_32, 4, 3) == (0, 3, 0x5FFC)
    assert probe(guest, 0, 0x5006, MASK_32, 4, 3) == (0, 3, 0x5002)
    guest.set(GUEST_RFLAGS=2 | state.RFLAGS_AC)
    assert probe(guest, 0, 0x6000, MASK_32, 4, 3) == (0x5FF4, -1, 0)
    push(guest, 0, 0x5006, MASK_32, 4, WORDS)
    assert guest.words(0x5006 - 12, 3) == WORDS[::-1]


@pytest.mark.parametrize("user", [0, 1])
def test_a_frame_on_two_pages_is_written_with_the_rights_of_a_write(user: int) -> None:
    guest = Guest()
    guest.page()
    for n in (4, 5):
        guest.write(0x21000 + 4 * n, (n << 12 | 7).to_bytes(4, "little"))
    push_word(guest.v, guest.mem, -1, 0, 0x5002, MASK_32, 4, user, 0, WORDS[0])
    assert guest.words(0x4FFE, 1) == WORDS[:1]
    assert [entry & 0x60 for entry in guest.words(0x21010, 2)] == [0x60, 0x60], "accessed and dirty"


def test_a_64_bit_frame_on_two_pages_in_the_upper_half() -> None:
    guest = Guest(bits=64)
    # The lowest 2 MB once more at the top of all addresses, and at 4 GB - 2 MB something else.
    guest.write(0x10000 + 8 * 511, (0x11027).to_bytes(8, "little"))
    guest.write(0x11000 + 8 * 511, (0x12027).to_bytes(8, "little"))
    guest.write(0x12000 + 8 * 511, (0x000E7).to_bytes(8, "little"))
    push(guest, 0, -0x200000 + 0x5004, -1, 8, [0x1112_1314_1516_1718, 0x2122_2324_2526_2728])
    assert guest.words(0x5004 - 16, 2, 8) == [0x2122_2324_2526_2728, 0x1112_1314_1516_1718]


def test_a_32_bit_frame_on_two_pages_in_the_upper_half() -> None:
    guest = Guest()
    guest.page()
    guest.write(0x20000 + 4 * 512, (0x21027).to_bytes(4, "little"))
    guest.write(0x20000, bytes(4))
    push(guest, 0x8000_0000, 0x5006, MASK_32, 4, WORDS)
    assert guest.words(0x5006 - 12, 3) == WORDS[::-1]
