"""The transcendental x87 instructions, of which the engine's helpers compute 53 bits.

Compiled only; Linux wheels. SDM, the pages of FSIN, FCOS, FSINCOS, FPTAN, FPATAN, F2XM1, FYL2X and
FYL2XP1, their tables of results. Where the SDM leaves a result open it is that of a processor.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import BOUND, INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek16, peek32, peek64, poke8, poke16, poke32
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.x87.exponents import raise_flags
from trapgate.engine.x87.registers import CONTROL, STATUS, TOP, register_of, tag_of
from trapgate.engine.x87.remainder import put_invalid
from trapgate.engine.x87.rounding import DOWN, UP, machine_of, write_register
from trapgate.instructions.x87 import transcendental as tr
from trapgate.instructions.x87.extended_numbers import (
    EXPONENT_OF_1,
    FINITE,
    INFINITE,
    LARGEST,
    OTHER,
    SIGN,
    ZERO,
    normalised,
    number_kind,
)
from trapgate.instructions.x87.result import PRECISION, UNDERFLOW, rounded
from trapgate.instructions.x87.wide_numbers import from_mantissa, is_zero

_ZERO_DIVIDE = 4
_C2 = 0x400
_1 = -(1 << 63)
"""The mantissa of 1, and of infinity."""
_ANGLES_END = 63
"""A power of 2: angles are less."""
_BEYOND_ALL = 1 << 18
"""The exponent of an infinity, and less that of a zero, where they count as numbers."""


@jit
def work_of(env: int) -> Cells:
    """Where to compute."""
    return machine_of(env)[mc.WORK :]


@jit
def parts_of(place: int) -> tuple[int, int]:
    """(Exponent, not biased; mantissa) of a register with a finite number that is not 0."""
    exponent, mantissa = normalised(max(peek16(place + 8) & LARGEST, 1), peek64(place))
    return exponent - EXPONENT_OF_1, mantissa


@jit
def finish(env: int, place: int, exponent: int, negative: bool, inexact: bool) -> None:
    """Round what has been computed into a register.

    Processors find all results inexact that are not 0, infinite or NaNs.
    """
    high, low, met, up = rounded(
        work_of(env), exponent + EXPONENT_OF_1, negative, inexact, peek16(env + CONTROL)
    )
    write_register(place, high, low)
    raise_flags(env, met | PRECISION | (UNDERFLOW if high & LARGEST == 0 else 0))
    machine_of(env)[mc.X87_ROUNDED] = UP if up else DOWN


@jit
def propagate(env: int, t: Cells, number: int) -> None:
    """ST(0) becomes the NaN that it and ST(`number`) make; addition finds out which."""
    call(t[em.TAKE_OPERAND], (env, number))
    call(t[em.ADD_OPERAND], (env,))


@jit
def push(env: int, high: int, low: int) -> None:
    """Push a value."""
    poke32(env + TOP, (peek32(env + TOP) - 1) & 7)
    poke8(tag_of(env, 0), 0)
    write_register(register_of(env, 0), high, low)


@jit
def pop(env: int) -> None:
    """Pop one."""
    poke8(tag_of(env, 0), 1)
    poke32(env + TOP, (peek32(env + TOP) + 1) & 7)


@jit
def take_angle(env: int, t: Cells, first: int, second: int) -> None:
    """ST(0) becomes a function of it, and another one is pushed, if there is one (not -1)."""
    place = register_of(env, 0)
    high, low = peek16(place + 8), peek64(place)
    negative = high & SIGN != 0
    kind = number_kind(high, low)
    status = peek16(env + STATUS) & ~_C2
    poke16(env + STATUS, status)
    if kind in (OTHER, INFINITE):
        if kind == OTHER:
            propagate(env, t, 0)
        else:
            put_invalid(env, place)
        if second >= 0:
            push(env, peek16(place + 8), peek64(place))
        return
    if kind == ZERO:
        if first == tr.COSINE:
            write_register(place, EXPONENT_OF_1, _1)
        if second >= 0:
            push(env, EXPONENT_OF_1, _1)
        return
    exponent, mantissa = parts_of(place)
    if exponent >= _ANGLES_END:
        poke16(env + STATUS, status | _C2)
        return
    scale, turned = tr.trigonometric(work_of(env), mantissa, exponent, first)
    finish(env, place, scale, turned != (negative and first != tr.COSINE), True)
    if second == tr.COSINE:
        push(env, 0, 0)
        scale, turned = tr.trigonometric(work_of(env), mantissa, exponent, tr.COSINE)
        finish(env, register_of(env, 0), scale, turned, True)
    elif second >= 0:
        push(env, EXPONENT_OF_1, _1)


@callback(VOID, INT64, BOUND)
def on_fsin(env: int, translator: int) -> None:
    """helper_fsin."""
    take_angle(env, cells(translator, em.CELLS), tr.SINE, -1)


@callback(VOID, INT64, BOUND)
def on_fcos(env: int, translator: int) -> None:
    """helper_fcos."""
    take_angle(env, cells(translator, em.CELLS), tr.COSINE, -1)


@callback(VOID, INT64, BOUND)
def on_fsincos(env: int, translator: int) -> None:
    """helper_fsincos."""
    take_angle(env, cells(translator, em.CELLS), tr.SINE, tr.COSINE)


@callback(VOID, INT64, BOUND)
def on_fptan(env: int, translator: int) -> None:
    """helper_fptan: the tangent, and 1 is pushed."""
    take_angle(env, cells(translator, em.CELLS), tr.TANGENT, tr.SINE)


@callback(VOID, INT64, BOUND)
def on_f2xm1(env: int, translator: int) -> None:
    """helper_f2xm1: 2 to the power of ST(0), less 1."""
    place = register_of(env, 0)
    high, low = peek16(place + 8), peek64(place)
    kind = number_kind(high, low)
    negative = high & SIGN != 0
    if kind == OTHER:
        propagate(env, cells(translator, em.CELLS), 0)
    elif kind == INFINITE:
        if negative:
            write_register(place, SIGN | EXPONENT_OF_1, _1)
    elif kind == FINITE:
        exponent, mantissa = parts_of(place)
        if exponent < 0:
            scale = tr.power_less_1(work_of(env), mantissa, exponent, negative)
            finish(env, place, scale, negative, True)
        else:
            # Of what is not from -1 to 1 processors make nothing else.
            raise_flags(env, PRECISION)
            if negative and exponent == 0 and mantissa == _1:
                write_register(place, SIGN | EXPONENT_OF_1 - 1, _1)


@jit
def as_number(place: int, zero: int) -> tuple[int, int]:
    """(Exponent, mantissa) of a register; an infinity is a great number, a zero one of `zero`."""
    kind = number_kind(peek16(place + 8), peek64(place))
    if kind == FINITE:
        return parts_of(place)
    return (zero if kind == ZERO else _BEYOND_ALL), _1


@callback(VOID, INT64, BOUND)
def on_fpatan(env: int, translator: int) -> None:
    """helper_fpatan: the angle of a point; ST(1) is its ordinate, ST(0) its abscissa."""
    top, other = register_of(env, 0), register_of(env, 1)
    behind = peek16(top + 8) & SIGN != 0
    sign = peek16(other + 8) & SIGN
    kind = number_kind(peek16(top + 8), peek64(top))
    other_kind = number_kind(peek16(other + 8), peek64(other))
    if OTHER in (kind, other_kind):
        propagate(env, cells(translator, em.CELLS), 1)
        write_register(other, peek16(top + 8), peek64(top))
    elif not behind and (other_kind == ZERO or (kind == INFINITE and other_kind == FINITE)):
        write_register(other, sign, 0)
    else:
        exponent, mantissa = as_number(other, -2 * _BEYOND_ALL)
        by_exponent, by = as_number(top, -_BEYOND_ALL)
        scale = tr.arctangent(work_of(env), mantissa, exponent, by, by_exponent, behind)
        finish(env, other, scale, sign != 0, True)
    pop(env)


@jit
def multiply_logarithm(env: int, place: int, exponent: int, negative: bool, exact: bool) -> None:
    """A register becomes itself times the logarithm that has been computed, `exact` if that is."""
    zero = exact and is_zero(work_of(env))
    high, low = peek16(place + 8), peek64(place)
    kind = number_kind(high, low)
    sign = (high & SIGN) ^ (SIGN if negative else 0)
    if kind == INFINITE:
        if zero:
            put_invalid(env, place)
        else:
            write_register(place, sign | LARGEST, _1)
    elif kind == ZERO or zero:
        write_register(place, sign, 0)
    else:
        own_exponent, mantissa = parts_of(place)
        exponent += own_exponent + tr.times_mantissa(work_of(env), mantissa)
        finish(env, place, exponent, sign != 0, not exact)


@jit
def take_logarithm(env: int, t: Cells, plus_1: bool) -> None:
    """ST(1) becomes itself times the logarithm of ST(0), or of 1 and that, and ST(0) is popped."""
    top, other = register_of(env, 0), register_of(env, 1)
    high, low = peek16(top + 8), peek64(top)
    negative = high & SIGN != 0
    kind = number_kind(high, low)
    other_high = peek16(other + 8)
    other_kind = number_kind(other_high, peek64(other))
    if OTHER in (kind, other_kind):
        propagate(env, t, 1)
        write_register(other, peek16(top + 8), peek64(top))
    elif kind == ZERO and plus_1:
        if other_kind == INFINITE:
            put_invalid(env, other)
        else:
            write_register(other, (other_high ^ high) & SIGN, 0)
    elif kind in (ZERO, INFINITE):
        if other_kind == ZERO or (kind == INFINITE and negative):
            put_invalid(env, other)
        else:
            if kind == ZERO and other_kind == FINITE:
                raise_flags(env, _ZERO_DIVIDE)
            sign = other_high & SIGN ^ (SIGN if kind == ZERO else 0)
            write_register(other, sign | LARGEST, _1)
    elif negative and not plus_1:
        put_invalid(env, other)
    else:
        exponent, mantissa = parts_of(top)
        w = work_of(env)
        from_mantissa(w, mantissa)
        if negative and exponent >= 0:
            # There is no such logarithm, but processors continue.
            if other_kind == FINITE:
                write_register(other, high, low)
                raise_flags(env, PRECISION)
            else:
                multiply_logarithm(env, other, 0, True, False)
        elif plus_1 and exponent < -2:
            scale = tr.logarithm_of_1_and(w, exponent, negative)
            multiply_logarithm(env, other, scale, negative, False)
        else:
            if plus_1:
                exponent = tr.add_1(w, exponent, negative)
            scale, below, exact = tr.logarithm(w, exponent)
            multiply_logarithm(env, other, scale, negative or below, exact)
    pop(env)


@callback(VOID, INT64, BOUND)
def on_fyl2x(env: int, translator: int) -> None:
    """helper_fyl2x."""
    take_logarithm(env, cells(translator, em.CELLS), False)


@callback(VOID, INT64, BOUND)
def on_fyl2xp1(env: int, translator: int) -> None:
    """helper_fyl2xp1."""
    take_logarithm(env, cells(translator, em.CELLS), True)


FUNCTIONS = {
    "helper_fsin": on_fsin,
    "helper_fcos": on_fcos,
    "helper_fsincos": on_fsincos,
    "helper_fptan": on_fptan,
    "helper_fpatan": on_fpatan,
    "helper_f2xm1": on_f2xm1,
    "helper_fyl2x": on_fyl2x,
    "helper_fyl2xp1": on_fyl2xp1,
}
"""The engine's helpers, and what is called instead, bound to the translator's cells."""
