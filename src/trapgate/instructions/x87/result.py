"""A result of more than 64 bits as an x87 register takes it: rounded, and within its range.

SDM, volume 1, "Rounding", "Numeric Overflow Exception (#O)", "Numeric Underflow Exception (#U)".
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.instructions.x87.extended_numbers import LARGEST, SIGN, WRAPPED
from trapgate.instructions.x87.partial_remainder import halves_joined
from trapgate.instructions.x87.wide_numbers import shift_right

OVERFLOW, UNDERFLOW, PRECISION = 8, 0x10, 0x20
"""Flags of the status word."""
_NEAREST, _DOWN, _UP = range(3)
_TOP = 1 << 31
_HALF = 1 << 26
_INTEGER = -(1 << 63)


@core
def rounded_mantissa(
    number: Cells, negative: bool, inexact: bool, rounding: int
) -> tuple[int, int, bool, bool]:
    """(Upper half, lower half, whether that was rounded up, whether it is inexact) of 64 bits.

    The number is less than 2; its mantissa has 63 bits after the point. The upper half may come
    out with 33 bits. `rounding` is the control word's RC.
    """
    high = number[0] << 31 | number[1] << 1 | number[2] >> 29
    low = (number[2] & 0x1FFF_FFFF) << 3 | number[3] >> 27
    half = number[3] & _HALF != 0
    more = number[3] & (_HALF - 1) | number[4] | number[5] != 0 or inexact
    if rounding == _NEAREST:
        up = half and (more or low & 1 != 0)
    elif rounding in (_DOWN, _UP):
        up = (half or more) and negative == (rounding == _DOWN)
    else:
        up = False
    if up:
        low += 1
        high += low >> 32
        low &= 0xFFFF_FFFF
    return high, low, up, half or more


@core
def rounded(
    number: Cells, exponent: int, negative: bool, inexact: bool, control: int
) -> tuple[int, int, int, bool]:
    """What a register gets of a number between 1 and 2 times 2 to the power of an exponent.

    That is biased. `inexact`: more bits were lost before. (Sign and exponent, mantissa, flags,
    whether the number was rounded up, for C1.)
    """
    rounding = (control >> 10) & 3
    high, low, up, lost = rounded_mantissa(number, negative, inexact, rounding)
    sign = SIGN if negative else 0
    above = exponent + (high >> 32)
    met = PRECISION if lost else 0
    if above >= LARGEST:
        met |= OVERFLOW
        if control & OVERFLOW:
            if rounding == _NEAREST or (
                rounding in (_DOWN, _UP) and negative == (rounding == _DOWN)
            ):
                return sign | LARGEST, _INTEGER, met | PRECISION, True
            return sign | LARGEST - 1, -1, met | PRECISION, False
        above -= WRAPPED
    elif above < 1 and control & UNDERFLOW == 0:
        met |= UNDERFLOW
        above += WRAPPED
    elif exponent < 1:
        tiny = above < 1
        shift_right(number, 1 - exponent)
        high, low, up, lost = rounded_mantissa(number, negative, inexact, rounding)
        met = PRECISION if lost else 0
        if tiny and lost:
            met |= UNDERFLOW
        return sign | high >> 31, halves_joined(high, low), met, up
    if high >> 32:
        high = _TOP
    return sign | above, halves_joined(high, low), met, up
