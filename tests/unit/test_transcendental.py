"""The functions of the x87 against decimal arithmetic of 90 digits, and how they are rounded."""

import random
from collections.abc import Iterator
from decimal import Decimal, getcontext, localcontext
from fractions import Fraction

import numpy as np
import pytest

from trapgate.instructions.x87 import transcendental as tr
from trapgate.instructions.x87.result import rounded
from trapgate.instructions.x87.wide_numbers import LIMBS, POINT, from_mantissa, is_zero

WORD = 1 << 64
PI = 0xC90FDAA22168C234C, 66
"""SDM, volume 1, "Approximation of Pi": the first, divided by 2 to the power of the second."""
BITS = 110
"""To how many bits the functions are right, at least."""


@pytest.fixture(autouse=True)
def _digits() -> Iterator[None]:
    with localcontext():
        getcontext().prec = 90
        yield


def mantissas(chance: random.Random) -> int:
    """One with the integer bit set, often at an end."""
    ends = (1 << 63, WORD - 1, 3 << 62, (1 << 63) + 1, 0xB504F333F9DE6484)
    return chance.choice((*ends, *[chance.getrandbits(63) | 1 << 63] * 5))


def number(mantissa: int, exponent: int) -> Decimal:
    return Decimal(mantissa) * Decimal(2) ** (exponent - 63)


def value(w: np.ndarray, exponent: int, negative: bool = False) -> Decimal:
    """What is in the cells, which is between 1 and 2 before the exponent counts."""
    whole = sum(int(w[n]) << (POINT - 30 * n) for n in range(LIMBS))
    assert 1 << POINT <= whole < 2 << POINT
    return Decimal(whole) * Decimal(2) ** (exponent - POINT) * (-1 if negative else 1)


def is_right(found: Decimal, expected: Decimal) -> bool:
    return abs(found - expected) <= abs(expected) * Decimal(2) ** -BITS


def series(x: Decimal, n: int) -> Decimal:
    """The series of the sine, from the first power of x on, or from the one (`n` 0) before."""
    found, term = Decimal(0), x if n else Decimal(1)
    while abs(term) > Decimal(10) ** -100:
        found += term
        term *= -x * x / ((n + 1) * (n + 2))
        n += 2
    return found


def arctangent(x: Decimal) -> Decimal:
    """By halving the angle three times."""
    for _ in range(3):
        x = x / (1 + (1 + x * x).sqrt())
    found, power, n = Decimal(0), x, 1
    while abs(power) > abs(x) * Decimal(10) ** -89:
        found += power / n
        power *= -x * x
        n += 2
    return 8 * found


def test_angles() -> None:
    chance = random.Random(1)
    right_angle = Decimal(PI[0]) / Decimal(2) ** (PI[1] + 1)
    for _ in range(250):
        mantissa = mantissas(chance)
        exponent = chance.choice((chance.randrange(-90, 63), *[chance.randrange(-3, 4)] * 2))
        x = number(mantissa, exponent)
        quarters = int(x / right_angle + Decimal("0.5"))
        rest = x - quarters * right_angle
        sine, cosine = series(rest, 1), series(rest, 0)
        for _ in range(quarters % 4):
            sine, cosine = cosine, -sine
        for function, expected in (
            (tr.SINE, sine),
            (tr.COSINE, cosine),
            (tr.TANGENT, sine / cosine),
        ):
            w = np.zeros(tr.WORK, np.int64)
            scale, negative = tr.trigonometric(w, mantissa - WORD, exponent, function)
            assert is_right(value(w, scale, negative), expected)


def test_powers() -> None:
    chance = random.Random(2)
    for _ in range(250):
        mantissa = mantissas(chance)
        exponent = chance.choice((-1, -2, -chance.randrange(1, 90)))
        negative = chance.random() < 0.5
        x = number(mantissa, exponent) * (-1 if negative else 1)
        w = np.zeros(tr.WORK, np.int64)
        scale = tr.power_less_1(w, mantissa - WORD, exponent, negative)
        assert is_right(value(w, scale, negative), (x * Decimal(2).ln()).exp() - 1)


def test_arctangents() -> None:
    chance = random.Random(3)
    right_angle = 2 * arctangent(Decimal(1))
    for _ in range(250):
        y, x = mantissas(chance), mantissas(chance)
        exponent = chance.choice((0, 1, -1, 4, -5, 6, -7, chance.randrange(-140, 140)))
        behind = chance.random() < 0.5
        # Of the smaller quotient, so that the digits are enough.
        first, second = number(y, exponent), number(x, 0)
        angle = arctangent(min(first, second) / max(first, second))
        angle = right_angle - angle if first > second else angle
        w = np.zeros(tr.WORK, np.int64)
        scale = tr.arctangent(w, y - WORD, exponent, x - WORD, 0, behind)
        assert is_right(value(w, scale), 2 * right_angle - angle if behind else angle)


def test_logarithms() -> None:
    chance = random.Random(4)
    for _ in range(250):
        mantissa = mantissas(chance)
        exponent = chance.choice((0, -1, 1, chance.randrange(-16445, 16384)))
        w = np.zeros(tr.WORK, np.int64)
        from_mantissa(w, mantissa - WORD)
        scale, negative, exact = tr.logarithm(w, exponent)
        expected = number(mantissa, exponent).ln() / Decimal(2).ln()
        assert exact == (mantissa == 1 << 63)
        if exact and exponent == 0:
            assert is_zero(w)
        else:
            assert is_right(value(w, scale, negative), expected)


def test_logarithms_of_1_and_a_number() -> None:
    chance = random.Random(5)
    for _ in range(250):
        mantissa = mantissas(chance)
        exponent = chance.choice((-2, -3, -chance.randrange(2, 90), chance.randrange(-2, 200)))
        negative = exponent < 0 and chance.random() < 0.5
        x = number(mantissa, exponent) * (-1 if negative else 1)
        expected = (1 + x).ln() / Decimal(2).ln()
        w = np.zeros(tr.WORK, np.int64)
        from_mantissa(w, mantissa - WORD)
        if exponent < -2:
            scale = tr.logarithm_of_1_and(w, exponent, negative)
        else:
            scale, below, _ = tr.logarithm(w, tr.add_1(w, exponent, negative))
            assert below == negative
        assert is_right(value(w, scale, negative), expected)


def to_step(exact: Fraction, step: Fraction, rounding: int, negative: bool) -> Fraction:
    """The multiple of `step` that a magnitude is rounded to, as RC says (`rounding`)."""
    below = exact // step * step
    if below == exact:
        return exact
    if rounding == 0:
        return Fraction(round(exact / step)) * step
    return below + step if rounding == (1 if negative else 2) else below


def test_results_are_rounded_as_the_control_word_says() -> None:
    """Within a register's range, too small and too great for it, masked and not."""
    chance = random.Random(6)
    for _ in range(1000):
        tail = chance.choice((0, 1, 1 << 86, (1 << 86) + 1, (1 << 86) - 1, chance.getrandbits(87)))
        whole = chance.choice((mantissas(chance), WORD - 1)) << 87 | tail
        negative, rounding = chance.random() < 0.5, chance.randrange(4)
        exponent = chance.choice((0, 1, -1, -62, -63, -64, -70, 16383, 0x7FFE, 0x7FFF))
        control = 0x340 | rounding << 10 | chance.choice((0x18, 0, 8, 0x10))
        w = np.array(
            [whole >> POINT, *(whole >> (POINT - 30 * n) & 0x3FFF_FFFF for n in range(1, 6))]
        )
        high, low, met, up = rounded(w, exponent, negative, False, control)
        assert high >> 15 == negative
        biased, mantissa = int(high) & 0x7FFF, int(low) % WORD
        # In units of the least denormal number.
        exact = Fraction(whole, 1 << POINT) * Fraction(2) ** (exponent + 62)
        free = to_step(exact, Fraction(2) ** (exponent - 1), rounding, negative)
        great, tiny = free >= Fraction(2) ** (0x7FFF + 62), free < Fraction(2) ** 63
        wraps = 0
        if great:
            assert met & 8
            if control & 8:
                outwards = rounding in (0, 1 if negative else 2)
                limit = (0x7FFF, 1 << 63) if outwards else (0x7FFE, WORD - 1)
                assert (biased, mantissa, up, met) == (*limit, outwards, 0x28)
                continue
            wraps = -24576
        elif tiny and control & 0x10 == 0:
            assert met & 0x10
            wraps = 24576
        elif tiny:
            free = to_step(exact, Fraction(1), rounding, negative)
            assert bool(met & 0x10) == (free != exact)
        assert (
            Fraction(mantissa) * Fraction(2) ** (max(biased, 1) - 1) == free * Fraction(2) ** wraps
        )
        assert bool(met & 0x20) == (free != exact)
        assert up == (free > exact)
        assert mantissa >> 63 == (biased != 0)
