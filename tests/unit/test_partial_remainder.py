"""FPREM and FPREM1: the remainder against fractions."""

import random
from fractions import Fraction

import pytest

from trapgate.instructions.x87.partial_remainder import partial_remainder

WORD = 1 << 64


def signed(mantissa: int) -> int:
    return mantissa - WORD


def mantissas(chance: random.Random) -> int:
    """One with the integer bit set, often at an end."""
    ends = (1 << 63, WORD - 1, 3 << 62, (1 << 63) + 1)
    return chance.choice((*ends, chance.getrandbits(63) | 1 << 63))


@pytest.mark.parametrize("nearest", [False, True])
def test_it_is_the_remainder(nearest: bool) -> None:
    chance = random.Random(nearest)
    for _ in range(3000):
        a, b = mantissas(chance), mantissas(chance)
        exponent = chance.randrange(-3, 64)
        dividend, divisor = Fraction(a) * Fraction(2) ** exponent, Fraction(b)
        quotient = round(dividend / divisor) if nearest else dividend // divisor
        expected = dividend - quotient * divisor
        rest, scale, turned, low, incomplete = partial_remainder(
            signed(a), exponent, signed(b), 0, nearest
        )
        found = Fraction(rest % WORD) * Fraction(2) ** scale
        assert not incomplete
        assert (-found if turned else found) == expected
        assert low % 8 == quotient % 8


def test_a_great_distance_takes_several_steps() -> None:
    chance = random.Random(3)
    for _ in range(300):
        a, b = mantissas(chance), mantissas(chance)
        exponent = chance.randrange(64, 400)
        left, dividend = exponent, a
        while True:
            answer = partial_remainder(signed(dividend), left, signed(b), 0, False)
            rest, scale, _, _, incomplete = answer
            rest %= WORD
            if not incomplete:
                break
            assert scale <= left - 32 + 1
            if rest == 0:
                scale = 0
                break
            shift = 64 - rest.bit_length()
            dividend, left = rest << shift, scale - shift
        assert Fraction(rest) * Fraction(2) ** scale == Fraction(a) * Fraction(2) ** exponent % b
