"""Numbers of 150 bits after the point, for what must be more exact than an x87 register.

A number is the first LIMBS of some cells: the integer part, then 30 bits in each. So products of
limbs and their sums fit in a cell. None is negative, except where it says so.
"""

from collections.abc import Iterable

import numpy as np

from trapgate.compiler.dialect import Cells, core, inlined

LIMBS = 6
BITS = 30
POINT = BITS * (LIMBS - 1)
"""Bits after the point."""
_LOW = (1 << BITS) - 1
_LAST = LIMBS - 1


def table(numbers: Iterable[int]) -> Cells:
    """Constants, one after the other, from integers that are them times 2 to the power of POINT."""
    limbs = [
        number >> POINT if n == 0 else number >> (POINT - BITS * n) & _LOW
        for number in numbers
        for n in range(LIMBS)
    ]
    return np.array(limbs, np.int64)


@core
@inlined
def carry(number: Cells) -> None:
    """Normalise all limbs but the integer part to 30 bits, if they are too great or negative."""
    for n in range(_LAST):
        k = _LAST - n
        number[k - 1] += number[k] >> BITS
        number[k] &= _LOW


@core
def copy(into: Cells, number: Cells) -> None:
    """Set the first number to the second."""
    for n in range(LIMBS):
        into[n] = number[n]


@core
@inlined
def add(number: Cells, other: Cells) -> None:
    """Add another number to one."""
    for n in range(LIMBS):
        number[n] += other[n]
    carry(number)


@core
def subtract(number: Cells, other: Cells) -> None:
    """Subtract another number, that is not greater, from one."""
    for n in range(LIMBS):
        number[n] -= other[n]
    carry(number)


@core
def is_less(number: Cells, other: Cells) -> bool:
    """Whether a number is less than another one."""
    for n in range(LIMBS):
        if number[n] != other[n]:
            return bool(number[n] < other[n])
    return False


@core
@inlined
def subtract_from(number: Cells, other: Cells) -> None:
    """Subtract a number from another one; the result replaces it."""
    for n in range(LIMBS):
        number[n] = other[n] - number[n]
    carry(number)


@core
def multiply(number: Cells, other: Cells) -> None:
    """Multiply a number; less than 2 ** -117 is lost."""
    a, b, c, d, e, f = number[0], number[1], number[2], number[3], number[4], number[5]
    u, v, w, x, y, z = other[0], other[1], other[2], other[3], other[4], other[5]
    column = a * z + b * y + c * x + d * w + e * v + f * u
    number[5] = column & _LOW
    column = (column >> BITS) + a * y + b * x + c * w + d * v + e * u
    number[4] = column & _LOW
    column = (column >> BITS) + a * x + b * w + c * v + d * u
    number[3] = column & _LOW
    column = (column >> BITS) + a * w + b * v + c * u
    number[2] = column & _LOW
    column = (column >> BITS) + a * v + b * u
    number[1] = column & _LOW
    number[0] = (column >> BITS) + a * u


@core
def is_zero(number: Cells) -> bool:
    """Whether a number is 0."""
    met = 0
    for n in range(LIMBS):
        met |= number[n]
    return met == 0


@core
@inlined
def shift_left(number: Cells, count: int) -> None:
    """Multiply by 2 ** `count`, 30 at most."""
    for n in range(LIMBS):
        number[n] = number[n] << count
    carry(number)


@core
def shift_right(number: Cells, count: int) -> None:
    """Divide by 2 ** `count`. If bits are lost the last one that is left is set."""
    a, b, c, d, e, f = number[0], number[1], number[2], number[3], number[4], number[5]
    lost = 0
    limbs = count // BITS
    rest = count - BITS * limbs
    for _ in range(min(limbs, LIMBS)):
        lost |= f
        a, b, c, d, e, f = 0, a, b, c, d, e
    lost |= f & ((1 << rest) - 1)
    number[0] = a >> rest
    number[1] = (b >> rest) | (a << (BITS - rest)) & _LOW
    number[2] = (c >> rest) | (b << (BITS - rest)) & _LOW
    number[3] = (d >> rest) | (c << (BITS - rest)) & _LOW
    number[4] = (e >> rest) | (d << (BITS - rest)) & _LOW
    number[5] = (f >> rest) | (e << (BITS - rest)) & _LOW | int(lost != 0)


@core
def normalise(number: Cells) -> int:
    """Shift a number that is not 0 to between 1 and 2: by what power of 2 it is then multiplied."""
    power = 0
    while number[0] == 0 and number[1] == 0:
        for n in range(1, _LAST):
            number[n] = number[n + 1]
        number[_LAST] = 0
        power -= BITS
    if number[0] == 0:
        count = 1
        while number[1] >> (BITS - count) == 0:
            count += 1
        shift_left(number, count)
        return power - count
    while number[0] > 1:
        shift_right(number, 1)
        power += 1
    return power


@core
def divide(number: Cells, divisor: Cells) -> None:
    """Divide a number, less than 4, by one between 1 and 2; less than 2 ** -148 is lost."""
    by = divisor[0] << BITS | divisor[1]
    # What remains, times 2 ** 30 for each digit found. A digit may be one too great; the next then
    # is negative.
    first, second, third = number[0], number[1], number[2]
    fourth, fifth, sixth = number[3], number[4], number[5]
    for n in range(LIMBS):
        digit = ((first << BITS) + second) // by
        number[n] = digit
        sixth -= digit * divisor[5]
        fifth += (sixth >> BITS) - digit * divisor[4]
        fourth += (fifth >> BITS) - digit * divisor[3]
        third += (fourth >> BITS) - digit * divisor[2]
        second += (third >> BITS) - digit * divisor[1]
        first = ((first - digit * divisor[0]) << BITS) + second
        second, third, fourth = third & _LOW, fourth & _LOW, fifth & _LOW
        fifth, sixth = sixth & _LOW, 0
    carry(number)


@core
def from_mantissa(number: Cells, mantissa: int) -> None:
    """Set a number to a register's mantissa, between 1 and 2, from its 64 bits."""
    number[0] = 1
    number[1] = (mantissa >> 33) & _LOW
    number[2] = (mantissa >> 3) & _LOW
    number[3] = (mantissa & 7) << (BITS - 3)
    number[4] = number[5] = 0


@core
def series(into: Cells, coefficients: Cells, count: int, argument: Cells, alternates: bool) -> None:
    """The sum of a power series, by Horner's rule; `alternates`: every other term is negative."""
    copy(into, coefficients[LIMBS * (count - 1) :])
    for n in range(1, count):
        multiply(into, argument)
        term = coefficients[LIMBS * (count - 1 - n) :]
        if alternates:
            subtract_from(into, term)
        else:
            add(into, term)
