"""C1 of the x87 status word: whether an inexact result was rounded up.

Compiled only; Linux wheels. SDM, volume 1, "x87 FPU Status Register". The engine's arithmetic does
not tell. So what has become inexact is computed once more, rounded towards 0: where that gives
another result, its magnitude was rounded up.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT32, INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek8, peek16, peek64, poke8, poke16, poke64
from trapgate.engine import emission as em
from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.engine.x87_registers import ROUNDING, TO_ZERO, register_of

DOWN, UP, AS_IT_IS = range(3)
"""What X87_ROUNDED may hold: C1 is to be cleared, set, or left to the engine."""
_INEXACT = 0x20


@jit
def machine_of(env: int) -> Cells:
    """The cells of the machine whose CPU state this is."""
    return cells(peek64(env + at.MACHINE), mc.CELLS)


@jit
def may_be_rounded_up(env: int) -> bool:
    """Whether what was computed last is inexact, and was not rounded towards 0."""
    return peek8(env + at.X87_FLAGS) & _INEXACT != 0 and peek8(env + ROUNDING) != TO_ZERO


@jit
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
def compute(env: int, place: int, helper: int, argument: int) -> None:
    """Let a helper compute the register at `place`."""
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


@callback(VOID, INT64, INT32, INT64)
def on_rounding(env: int, number: int, helper: int) -> None:
    """In the place of a helper that computes ST(`number`)."""
    compute(env, register_of(env, number), helper, number)


@jit
def rounds(t: Cells, function: int) -> bool:
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


_TWO_OPERANDS = ("fadd", "fsub", "fsubr", "fmul", "fdiv", "fdivr")

HELPERS = (
    *(f"helper_{name}_{where}" for name in _TWO_OPERANDS for where in ("ST0_FT0", "STN_ST0")),
    *("helper_fsqrt", "helper_frndint"),
)
"""The engine's, whose results may be rounded: of ST(0), or of the register of a given number."""
