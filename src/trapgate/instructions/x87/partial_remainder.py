"""FPREM and FPREM1 on numbers as they are taken apart: exact, as the SDM has it.

Mantissas have 64 bits with the integer bit set, so that here they are negative; a number is its
mantissa times 2 to the power of its exponent. SDM, "FPREM", "FPREM1".
"""

from trapgate.compiler.dialect import core

_HALF = 0xFFFF_FFFF


@core
def halves_less(high: int, low: int, minus_high: int, minus_low: int) -> tuple[int, int]:
    """The difference of two numbers of 64 bits without sign, in halves; it is not negative."""
    low -= minus_low
    if low < 0:
        low += _HALF + 1
        high -= 1
    return high - minus_high, low


@core
def halves_reach(high: int, low: int, other_high: int, other_low: int) -> bool:
    """Whether the first number is as great as the second one, or greater."""
    return high > other_high or (high == other_high and low >= other_low)


@core
def halves_joined(high: int, low: int) -> int:
    """The 64 bits of two halves."""
    return ((high ^ 0x8000_0000) - 0x8000_0000) << 32 | low


@core
def partial_remainder(
    dividend: int, exponent: int, divisor: int, other_exponent: int, nearest: bool
) -> tuple[int, int, bool, int, bool]:
    """The remainder of a division, or what is left of the dividend after some of its steps.

    `nearest` is FPREM1's: the quotient is rounded to the nearest even number, not towards 0.
    Returns (mantissa, not normalised, and 0 if nothing remains; exponent; whether the remainder has
    the other sign than the dividend; the quotient's low bits; whether steps are left to be done).
    """
    distance = exponent - other_exponent
    high, low = (dividend >> 32) & _HALF, dividend & _HALF
    by_high, by_low = (divisor >> 32) & _HALF, divisor & _HALF
    if distance < 0:
        # It is less than the divisor, perhaps more than half of it.
        if nearest and distance == -1 and not halves_reach(by_high, by_low, high, low):
            high, low = halves_less(2 * by_high, 2 * by_low, high, low)
            return halves_joined(high + (low >> 32), low & _HALF), exponent, True, 1, False
        return dividend, exponent, False, 0, False
    steps = distance
    if distance > 63:
        # A number from 32 to 63; processors do not tell which.
        steps = (distance & 31) | 32
    quotient = 0
    for n in range(steps + 1):
        if n != 0:
            high = high << 1 | low >> 31
            low = (low << 1) & _HALF
            quotient = (quotient << 1) & 7
        if halves_reach(high, low, by_high, by_low):
            high, low = halves_less(high, low, by_high, by_low)
            quotient |= 1
    scale = other_exponent + distance - steps
    if distance > 63:
        return halves_joined(high, low), scale, False, 0, True
    beyond_high, beyond_low = halves_less(by_high, by_low, high, low)
    odd = quotient & 1 != 0
    if nearest and halves_reach(high, low, beyond_high, beyond_low):
        even = high == beyond_high and low == beyond_low
        if odd or not even:
            return halves_joined(beyond_high, beyond_low), scale, True, quotient + 1, False
    return halves_joined(high, low), scale, False, quotient, False
