"""FSCALE, FXTRACT and FXAM, of which the engine's helpers get special values wrong. Compiled only.

SDM, the tables on these pages.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.compiler.kinds import BOUND, INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import (
    call,
    cells,
    peek8,
    peek16,
    peek32,
    peek64,
    poke8,
    poke16,
    poke32,
)
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.registers import (
    EXTENDED_PRECISION,
    PRECISION,
    STATUS,
    TOP,
    register_of,
    tag_of,
)
from trapgate.engine.x87.remainder import put_invalid
from trapgate.engine.x87.rounding import (
    DOWN,
    OVERFLOW,
    UNDERFLOW,
    UP,
    clear_exceptions_met,
    compute,
    machine_of,
    scaling_exponent,
    write_register,
)
from trapgate.instructions.x87.extended_numbers import (
    EXPONENT_OF_1,
    FINITE,
    INFINITE,
    LARGEST,
    OTHER,
    SIGN,
    ZERO,
    examined,
    normalised,
    number_kind,
)

_ZERO_DIVIDE = 4
_C1 = 0x200
_CONDITIONS = 0x4700
_INFINITE_MANTISSA = -(1 << 63)
_BEYOND_ALL = 1 << 16
"""A power of 2 by which every number overflows or vanishes."""


@core
def whole_part(exponent: int, mantissa: int) -> int:
    """A number of this biased exponent without its fraction, or _BEYOND_ALL if it is greater."""
    distance = exponent - EXPONENT_OF_1
    if distance < 0:
        return 0
    if distance > 15:
        return _BEYOND_ALL
    return ((mantissa >> 1) & (1 << 63) - 1) >> (62 - distance)


@core
def of_integer(value: int) -> tuple[int, int]:
    """(Sign and exponent, mantissa) of an integer of at most 32 bits."""
    if value == 0:
        return 0, 0
    exponent, mantissa = normalised(EXPONENT_OF_1 + 63, max(value, -value))
    return exponent | (SIGN if value < 0 else 0), mantissa


@jit
def raise_flags(env: int, flags: int) -> None:
    """The instruction has met these."""
    poke8(env + at.X87_FLAGS, peek8(env + at.X87_FLAGS) | flags)


@jit
def translator_of(env: int) -> Cells:
    """The cells of `emission`."""
    return cells(machine_of(env)[mc.TRANSLATOR], em.CELLS)


@jit
def scale_by(env: int, helper: int, power: int) -> None:
    """ST(0) times 2 to this power, which ST(1) becomes."""
    high, low = of_integer(power)
    write_register(register_of(env, 1), high, low)
    precision = peek8(env + PRECISION)
    poke8(env + PRECISION, EXTENDED_PRECISION)
    compute(env, register_of(env, 0), helper, 0)
    poke8(env + PRECISION, precision)


@callback(VOID, INT64, BOUND)
def on_scale(env: int, helper: int) -> None:
    """helper_fscale: ST(0) times 2 to the power of ST(1), of which the fraction is cut off.

    The control word's precision is for addition, multiplication and their like only.
    """
    top, other = register_of(env, 0), register_of(env, 1)
    high, low = peek16(top + 8), peek64(top)
    power_high, power_low = peek16(other + 8), peek64(other)
    kind, power = number_kind(high, low), number_kind(power_high, power_low)
    grows = power_high & SIGN == 0
    if OTHER in (kind, power):
        t = translator_of(env)
        call(t[em.TAKE_OPERAND], (env, 1))
        call(t[em.ADD_OPERAND], (env,))
    elif power == INFINITE:
        if kind == (ZERO if grows else INFINITE):
            put_invalid(env, top)
        elif grows:
            write_register(top, high & SIGN | LARGEST, _INFINITE_MANTISSA)
        else:
            write_register(top, high & SIGN, 0)
    elif kind == FINITE:
        steps = whole_part(power_high & LARGEST, power_low)
        steps = steps if grows else -steps
        scale_by(env, helper, steps)
        by = scaling_exponent(env, top)
        if by != 0:
            met = OVERFLOW if by < 0 else UNDERFLOW
            write_register(top, high, low)
            clear_exceptions_met(env)
            scale_by(env, helper, steps + by)
            if peek8(env + at.X87_FLAGS) & (OVERFLOW | UNDERFLOW):
                # Massively so.
                write_register(
                    top, high & SIGN | (LARGEST if grows else 0), _INFINITE_MANTISSA if grows else 0
                )
                machine_of(env)[mc.X87_ROUNDED] = UP if grows else DOWN
            raise_flags(env, met)
        write_register(other, power_high, power_low)


@callback(VOID, INT64)
def on_extract(env: int) -> None:
    """helper_fxtract: ST(0) becomes its exponent, and its significand is pushed."""
    top = register_of(env, 0)
    high, low = peek16(top + 8), peek64(top)
    kind = number_kind(high, low)
    if kind == OTHER:
        t = translator_of(env)
        call(t[em.TAKE_OPERAND], (env, 0))
        call(t[em.ADD_OPERAND], (env,))
        high, low = peek16(top + 8), peek64(top)
    elif kind == ZERO:
        raise_flags(env, _ZERO_DIVIDE)
        write_register(top, SIGN | LARGEST, _INFINITE_MANTISSA)
    elif kind == INFINITE:
        write_register(top, LARGEST, _INFINITE_MANTISSA)
    else:
        exponent, low = normalised(max(high & LARGEST, 1), low)
        of_high, of_low = of_integer(exponent - EXPONENT_OF_1)
        write_register(top, of_high, of_low)
        high = high & SIGN | EXPONENT_OF_1
    poke32(env + TOP, (peek32(env + TOP) - 1) & 7)
    poke8(tag_of(env, 0), 0)
    write_register(register_of(env, 0), high, low)


@callback(VOID, INT64)
def on_examine(env: int) -> None:
    """helper_fxam_ST0: what ST(0) is, an empty register among it, and its sign."""
    place = register_of(env, 0)
    high = peek16(place + 8)
    found = examined(high, peek64(place), peek8(tag_of(env, 0)) != 0)
    found |= _C1 if high & SIGN else 0
    poke16(env + STATUS, peek16(env + STATUS) & ~_CONDITIONS | found)
