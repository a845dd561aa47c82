"""C1 of the x87 status word: whether an inexact result was rounded up.

Compiled only; Linux wheels. SDM, volume 1, "x87 FPU Status Register". The engine's arithmetic does
not tell. So what has become inexact is computed once more, rounded towards 0: where that gives
another result, its magnitude was rounded up.
"""

import numpy as np

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import INT32, INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek8, peek16, peek64, poke8, poke16, poke64
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.registers import CONTROL, ROUNDING, TO_ZERO, register_of
from trapgate.instructions.x87.extended_numbers import LARGEST, WRAPPED, scaled

DOWN, UP, AS_IT_IS = range(3)
"""What X87_ROUNDED may hold: C1 is to be cleared, set, or left to the engine."""
_INEXACT = 0x20
OVERFLOW, UNDERFLOW = 8, 0x10

_TWO_OPERANDS = ("fadd", "fsub", "fsubr", "fmul", "fdiv", "fdivr")
_SCALES = np.array((2, 2, 2, 2, 2, 2, 1, 1, 1, -1, -1, 1))
"""Of each of these, what its operands' exponents grow by where the result's grows by 2."""


@jit
def machine_of(env: int) -> Cells:
    """The cells of the machine whose CPU state this is."""
    return cells(peek64(env + at.MACHINE), mc.CELLS)


@jit
def may_be_rounded_up(env: int) -> bool:
    """Whether what was computed last is inexact, and was not rounded towards 0."""
    return peek8(env + at.X87_FLAGS) & _INEXACT != 0 and peek8(env + ROUNDING) != TO_ZERO


@jit
@inlined
def converted(env: int, helper: int, bits: int) -> int:
    """What a helper makes of ST(0), a number of so many bits; the rest means nothing."""
    value = call(helper, (env,))
    if may_be_rounded_up(env):
        flags, rounding = peek8(env + at.X87_FLAGS), peek8(env + ROUNDING)
        poke8(env + ROUNDING, TO_ZERO)
        other = call(helper, (env,))
        poke8(env + ROUNDING, rounding)
        poke8(env + at.X87_FLAGS, flags)
        if (value ^ other) << (64 - bits) != 0:
            machine_of(env)[mc.X87_ROUNDED] = UP
    return value


@jit
def write_register(place: int, high: int, low: int) -> None:
    """Write a register."""
    poke64(place, low)
    poke16(place + 8, high)


@jit
def is_unmasked(env: int, exceptions: int) -> bool:
    """Whether one of these exceptions is."""
    return peek16(env + CONTROL) & exceptions != exceptions


@jit
def scaling_exponent(env: int, place: int) -> int:
    """By which power of 2 the result at `place` is to be multiplied, as it is out of range.

    0 if it is not, or if what it has met is masked.
    """
    met = peek8(env + at.X87_FLAGS) & ~peek16(env + CONTROL)
    if met & OVERFLOW:
        return -WRAPPED
    tiny = peek16(place + 8) & LARGEST == 0 and peek64(place) != 0
    return WRAPPED if met & UNDERFLOW or (tiny and is_unmasked(env, UNDERFLOW)) else 0


@jit
def compute(env: int, place: int, helper: int, argument: int) -> None:
    """Compute the register at `place` by a helper."""
    low, high = peek64(place), peek16(place + 8)
    call(helper, (env, argument))
    if may_be_rounded_up(env):
        result_low, result_high = peek64(place), peek16(place + 8)
        flags, rounding = peek8(env + at.X87_FLAGS), peek8(env + ROUNDING)
        poke64(place, low)
        poke16(place + 8, high)
        poke8(env + ROUNDING, TO_ZERO)
        call(helper, (env, argument))
        if peek64(place) != result_low or peek16(place + 8) != result_high:
            machine_of(env)[mc.X87_ROUNDED] = UP
        poke8(env + ROUNDING, rounding)
        poke8(env + at.X87_FLAGS, flags)
        poke64(place, result_low)
        poke16(place + 8, result_high)


@jit
def clear_exceptions_met(env: int) -> None:
    """Forget what a computation has met."""
    poke8(env + at.X87_FLAGS, 0)
    machine_of(env)[mc.X87_ROUNDED] = DOWN


@jit
def compute_wrapped(env: int, place: int, helper: int, number: int) -> None:
    """The same where a result out of range is unmasked: of that the operands are scaled first."""
    t = cells(machine_of(env)[mc.TRANSLATOR], em.CELLS)
    which = 0
    while t[em.ROUNDING + which] != helper:
        which += 1
    other = env + at.FT0 if which & 1 == 0 else register_of(env, 0)
    high, low = peek16(place + 8), peek64(place)
    other_high, other_low = peek16(other + 8), peek64(other)
    compute(env, place, helper, number)
    by = scaling_exponent(env, place)
    if by == 0 or which >= len(_SCALES):
        return
    met = OVERFLOW if by < 0 else UNDERFLOW
    first = by * _SCALES[which >> 1 << 1] // 2
    second = by * _SCALES[which | 1] // 2
    scaled_high, scaled_low = scaled(high, low, first)
    write_register(place, scaled_high, scaled_low)
    if other != place:
        scaled_high, scaled_low = scaled(other_high, other_low, second)
        write_register(other, scaled_high, scaled_low)
    clear_exceptions_met(env)
    compute(env, place, helper, number)
    poke8(env + at.X87_FLAGS, peek8(env + at.X87_FLAGS) | met)
    if other != place:
        write_register(other, other_high, other_low)


@callback(VOID, INT64, INT32, INT64)
def on_rounding(env: int, number: int, helper: int) -> None:
    """In the place of a helper that computes ST(`number`)."""
    if is_unmasked(env, OVERFLOW | UNDERFLOW):
        compute_wrapped(env, register_of(env, number), helper, number)
    else:
        compute(env, register_of(env, number), helper, number)


@jit
def is_rounded_helper(t: Cells, function: int) -> bool:
    """Whether a helper is one of HELPERS."""
    found = False
    for n in range(em.ROUNDING_HELPERS):
        found = found or function == t[em.ROUNDING + n]
    return found


@jit
def emit_rounding(
    t: Cells, m: Cells, context: int, function: int, count: int, arguments: int
) -> None:
    """Emit the call of `on_rounding` instead. The helper takes the CPU state, perhaps a number."""
    helper = em.new_constant(t, context, function)
    top = em.new_constant(t, context, 0)
    m[mc.PAIR] = peek64(arguments)
    m[mc.PAIR_2] = peek64(arguments + 8) if count > 1 else context + top
    m[mc.PAIR_3] = context + helper
    em.emit_prepared_call(t, m, context, t[em.ROUNDING_CODE], 3, 0)
    em.release(t, context, helper)
    em.release(t, context, top)


HELPERS = (
    *(f"helper_{name}_{where}" for name in _TWO_OPERANDS for where in ("ST0_FT0", "STN_ST0")),
    *("helper_fsqrt", "helper_frndint"),
)
"""The engine's, whose results may be rounded: of ST(0), or of the register of a given number."""
