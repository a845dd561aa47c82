"""The transcendental functions of the x87, to more than 100 bits, on numbers taken apart.

Each leaves a number between 1 and 2 in the first LIMBS of some cells, WORK in all, and returns by
what power of 2 it is to be multiplied, its sign, and what else its caller must know. Rounded, it is
the right result but for one in 2 ** 50; the SDM promises an error of less than one unit in the last
place (volume 1, "Transcendental Instruction Accuracy"). All constants are computed here.

A mantissa has 64 bits with the integer bit set, and so is negative here; exponents are not biased.
"""

from collections.abc import Iterator

from trapgate.compiler.dialect import Cells, core
from trapgate.instructions.x87.wide_numbers import (
    LIMBS,
    POINT,
    add,
    carry,
    copy,
    divide,
    from_mantissa,
    is_less,
    is_zero,
    multiply,
    normalise,
    series,
    shift_left,
    shift_right,
    subtract,
    subtract_from,
    table,
)

WORK = 5 * LIMBS

_EXTRA = 64
_ONE = 1 << (POINT + _EXTRA)
"""1, as integers are here before they become constants."""


def _constants(*numbers: int) -> Cells:
    return table(number >> _EXTRA for number in numbers)


def _arctangents(numerator: int, denominator: int) -> Iterator[int]:
    """The terms of the series for the arctangent of a fraction."""
    power, n = _ONE * numerator // denominator, 0
    while power:
        yield power // (2 * n + 1) * (-1) ** n
        power, n = power * numerator**2 // denominator**2, n + 1


def _arctangent(numerator: int, denominator: int) -> int:
    return sum(_arctangents(numerator, denominator))


def _factorials(count: int) -> list[int]:
    """1 divided by the factorial of each number."""
    found = [_ONE]
    for n in range(1, count):
        found.append(found[-1] // n)
    return found


_STEPS = 16
"""Angles whose tangents are multiples of 1 / 16 are constants."""
_PI = 16 * _arctangent(1, 5) - 4 * _arctangent(1, 239)
_LN_2 = 2 * sum(abs(term) for term in _arctangents(1, 3))

_TERMS = 18
_SINE = _constants(*_factorials(2 * _TERMS)[1::2])
_COSINE = _constants(*_factorials(2 * _TERMS)[0::2])
_POWERS = 30
_POWER = _constants(
    *(_LN_2**n // _ONE ** (n - 1) * f // _ONE for n, f in enumerate(_factorials(_POWERS + 1)) if n)
)
_LOGARITHMS = 30
_LOGARITHM = _constants(*(2 * _ONE**2 // _LN_2 // (2 * n + 1) for n in range(_LOGARITHMS)))
_ARCTANGENTS = 14
_ARCTANGENT = _constants(*(_ONE // (2 * n + 1) for n in range(_ARCTANGENTS)))
_STEP = [0]
for _n in range(_STEPS):
    # The difference of two angles has a tangent that is known.
    _STEP.append(_STEP[-1] + _arctangent(_STEPS, _STEPS**2 + _n * (_n + 1)))
_STEP_ANGLE = _constants(*_STEP)
_HALF_CIRCLE = _constants(_PI)
_QUARTER_CIRCLE = _constants(_PI >> 1)
_QUARTER = table([0xC90FDAA22168C234C << (POINT - 67)])
_EIGHTH = table([0xC90FDAA22168C234C << (POINT - 68)])
"""A quarter and an eighth of a circle as processors have them to reduce angles by (SDM, volume 1,
"Approximation of Pi"): pi with 66 bits."""
_LARGEST_POWER = 62
"""Of 2, that angles may have."""
_UNIT = table([1 << POINT])
_ROOT = 0x1A827999
"""The root of 2: 30 bits after the point."""

SINE, COSINE, TANGENT = range(3)


@core
def reduce_angle(angle: Cells, exponent: int) -> tuple[int, int, bool]:
    """Let an angle times 2 ** `exponent` be its distance from the nearest multiple of 90 degrees.

    (The distance's exponent, the multiple's number of which two bits count, whether the angle is
    less.)
    """
    if exponent < -1:
        return exponent, 0, False
    if exponent < 0:
        shift_right(angle, 1)
    quarters = 0
    for n in range(min(max(exponent, 0), _LARGEST_POWER) + 1):
        if n != 0:
            shift_left(angle, 1)
            quarters = (quarters << 1) & 3
        if not is_less(angle, _QUARTER):
            subtract(angle, _QUARTER)
            quarters += 1
    before = is_less(_EIGHTH, angle)
    if before:
        subtract_from(angle, _QUARTER)
        quarters += 1
    return normalise(angle), quarters, before


@core
def take_sine(angle: Cells, exponent: int, work: Cells) -> None:
    """Replace an angle by its sine, both to be multiplied by 2 ** `exponent`."""
    square, sine = work, work[LIMBS:]
    copy(square, angle)
    shift_right(square, -exponent)
    multiply(square, square)
    series(sine, _SINE, _TERMS, square, True)
    multiply(angle, sine)


@core
def take_cosine(angle: Cells, exponent: int, work: Cells) -> None:
    """Replace an angle times 2 ** `exponent` by its cosine."""
    shift_right(angle, -exponent)
    copy(work, angle)
    multiply(work, work)
    series(angle, _COSINE, _TERMS, work, True)


@core
def trigonometric(w: Cells, mantissa: int, exponent: int, function: int) -> tuple[int, bool]:
    """The SINE, COSINE or TANGENT of a number less than 2 ** 63: (exponent, whether negative).

    They are never exact. Where no term but the first counts the last bit here says which side of it
    the result is on.
    """
    from_mantissa(w, mantissa)
    exponent, quarters, before = reduce_angle(w, exponent)
    odd = quarters & 1 != 0
    if function == TANGENT:
        cosine = w[LIMBS:]
        copy(cosine, w)
        take_cosine(cosine, exponent, w[2 * LIMBS :])
        take_sine(w, exponent, w[2 * LIMBS :])
        exponent += normalise(w)
        lower = normalise(cosine)
        if odd:
            divide(cosine, w)
            copy(w, cosine)
            exponent = -exponent
            lower = -lower
        else:
            divide(w, cosine)
            w[LIMBS - 1] += 1
        return exponent - lower + normalise(w), odd != before
    if odd == (function == SINE):
        take_cosine(w, exponent, w[LIMBS:])
        exponent = 0
        before = False
    else:
        take_sine(w, exponent, w[LIMBS:])
    w[LIMBS - 1] -= 1
    carry(w)
    if function == COSINE:
        quarters += 1
    return exponent + normalise(w), before != (quarters & 2 != 0)


@core
def power_less_1(w: Cells, mantissa: int, exponent: int, negative: bool) -> int:
    """2 to the power of a number from -1 to 1, less 1: its exponent. Its sign is that number's."""
    from_mantissa(w, mantissa)
    argument = w[LIMBS:]
    copy(argument, w)
    shift_right(argument, -exponent)
    series(w[2 * LIMBS :], _POWER, _POWERS, argument, negative)
    multiply(w, w[2 * LIMBS :])
    return exponent + normalise(w)


@core
def arctangent(
    w: Cells, mantissa: int, exponent: int, by: int, by_exponent: int, behind: bool
) -> int:
    """The angle whose tangent is a quotient, or 180 degrees less that (`behind`): its exponent."""
    less = exponent < by_exponent or (exponent == by_exponent and mantissa <= by)
    angle, other, work = w, w[LIMBS:], w[2 * LIMBS :]
    from_mantissa(angle, mantissa if less else by)
    from_mantissa(other, by if less else mantissa)
    scale = by_exponent - exponent
    if not less:
        scale = -scale
    step = 0
    turned = False
    if scale < 6:
        # The tangent of the difference to a known angle, of which the tangent is step / 16.
        shift_right(angle, scale)
        step = (angle[0] << 34 | angle[1] << 4) + (other[0] << 29 | other[1] >> 1)
        step = step // (other[0] << 30 | other[1])
        copy(work, angle)
        turned = rotate(angle, other, work, step)
        if is_zero(angle):
            scale = 0
        else:
            scale = -normalise(angle)
        scale += normalise(other)
    divide(angle, other)
    exponent = -scale
    if not is_zero(angle):
        exponent += normalise(angle)
    square, factor = w[LIMBS:], work
    copy(square, angle)
    shift_right(square, -exponent)
    multiply(square, square)
    series(factor, _ARCTANGENT, _ARCTANGENTS, square, True)
    multiply(angle, factor)
    if step == 0 and less and not behind:
        angle[LIMBS - 1] -= 1
        carry(angle)
        return exponent + normalise(angle)
    shift_right(angle, -exponent)
    known = _STEP_ANGLE[LIMBS * step :]
    if turned:
        subtract_from(angle, known)
    else:
        add(angle, known)
    if not less:
        subtract_from(angle, _QUARTER_CIRCLE)
    if behind:
        subtract_from(angle, _HALF_CIRCLE)
    return normalise(angle)


@core
def rotate(angle: Cells, other: Cells, copied: Cells, step: int) -> bool:
    """Numerator and denominator of (fraction - step / 16) / (1 + fraction * step / 16).

    All times 16. The fraction's parts are in `angle` and `other`, `copied` is as the first. Whether
    the result is negative; it is made positive.
    """
    for n in range(LIMBS):
        angle[n] = 16 * copied[n] - step * other[n]
        other[n] = 16 * other[n] + step * copied[n]
    carry(angle)
    carry(other)
    if angle[0] >= 0:
        return False
    for n in range(LIMBS):
        angle[n] = -angle[n]
    carry(angle)
    return True


@core
def logarithm_of_quotient(w: Cells, scale: int) -> int:
    """Twice the hyperbolic arctangent, to base 2, of w times 2 ** `scale` through w[LIMBS:].

    Its exponent; the second number is between 1 and 2.
    """
    divide(w, w[LIMBS:])
    scale += normalise(w)
    square, factor = w[LIMBS:], w[2 * LIMBS :]
    copy(square, w)
    shift_right(square, -scale)
    multiply(square, square)
    series(factor, _LOGARITHM, _LOGARITHMS, square, False)
    multiply(w, factor)
    return scale + normalise(w)


@core
def logarithm(w: Cells, exponent: int) -> tuple[int, bool, bool]:
    """The logarithm to base 2 of w, between 1 and 2, times 2 ** `exponent`.

    (Its exponent, whether it is negative, whether it is an integer; 0 stays 0.)
    """
    if is_zero_behind(w):
        w[0] = max(exponent, -exponent)
        return (0 if exponent == 0 else normalise(w)), exponent < 0, True
    # Of the same number a power of 2 times greater the logarithm is near 0.
    upper = w[1] >= _ROOT
    other = w[LIMBS:]
    copy(other, w)
    other[0] += 2 if upper else 1
    w[0] -= 2 if upper else 1
    if upper:
        exponent += 1
        for n in range(LIMBS):
            w[n] = -w[n]
        carry(w)
    scale = normalise(w)
    scale = logarithm_of_quotient(w, scale - normalise(other))
    if exponent == 0:
        return scale, upper, False
    shift_right(w, -scale)
    negative = exponent < 0
    if negative != upper:
        for n in range(LIMBS):
            w[n] = -w[n]
    w[0] += max(exponent, -exponent)
    carry(w)
    return normalise(w), negative, False


@core
def is_zero_behind(number: Cells) -> bool:
    """Whether a number has an integer part only."""
    met = 0
    for n in range(1, LIMBS):
        met |= number[n]
    return met == 0


@core
def logarithm_of_1_and(w: Cells, exponent: int, negative: bool) -> int:
    """The logarithm to base 2 of 1 and w times 2 ** `exponent`, less than 1 / 4: its exponent.

    Its sign is that of the number; `negative` if that is.
    """
    other = w[LIMBS:]
    copy(other, w)
    shift_right(other, -exponent)
    if negative:
        for n in range(LIMBS):
            other[n] = -other[n]
    other[0] += 2
    carry(other)
    return logarithm_of_quotient(w, exponent - normalise(other))


@core
def add_1(w: Cells, exponent: int, negative: bool) -> int:
    """Add w times 2 ** `exponent` to 1, or take it from 1, which is greater: the exponent."""
    unit = w[LIMBS:]
    copy(unit, _UNIT)
    if exponent >= 0:
        shift_right(unit, exponent)
    else:
        shift_right(w, -exponent)
        exponent = 0
    if negative:
        subtract_from(w, unit)
    else:
        add(w, unit)
    return exponent + normalise(w)


@core
def times_mantissa(w: Cells, mantissa: int) -> int:
    """Multiply by a register's mantissa; what to add to the exponent."""
    factor = w[LIMBS:]
    from_mantissa(factor, mantissa)
    multiply(w, factor)
    return normalise(w)
