"""FPREM and FPREM1 in place of the engine's helpers, which compute with 53 bits. Compiled only."""

from trapgate.compiler.dialect import Cells, core
from trapgate.compiler.kinds import BOUND, INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek8, peek16, peek64, poke8, poke16, poke64
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.registers import STATUS, register_of
from trapgate.engine.x87.rounding import AS_IT_IS, UNDERFLOW, is_unmasked
from trapgate.instructions.x87.extended_numbers import (
    FINITE,
    INFINITE,
    LARGEST,
    OTHER,
    SIGN,
    WRAPPED,
    ZERO,
    normalised,
    number_kind,
    packed,
)
from trapgate.instructions.x87.partial_remainder import partial_remainder

INVALID = 1
_DENORMAL = 2
_C0, _C1, _C2, _C3 = 0x100, 0x200, 0x400, 0x4000
_INDEFINITE = -(1 << 62)


@core
def conditions(quotient: int, incomplete: bool) -> int:
    """C0 to C3 of the status word: the quotient's low bits, and whether steps are left."""
    found = _C2 if incomplete else 0
    found |= _C0 if quotient & 4 else 0
    found |= _C3 if quotient & 2 else 0
    return found | (_C1 if quotient & 1 else 0)


@jit
def put_invalid(env: int, place: int) -> None:
    """An invalid operation: its flag, and the indefinite NaN in the register at `place`."""
    poke64(place, _INDEFINITE)
    poke16(place + 8, 0xFFFF)
    poke8(env + at.X87_FLAGS, peek8(env + at.X87_FLAGS) | INVALID)


@jit
def take_remainder(env: int, t: Cells, nearest: bool) -> None:
    """ST(0) becomes what remains of it, divided by ST(1)."""
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    top, other = register_of(env, 0), register_of(env, 1)
    high, low = peek16(top + 8), peek64(top)
    other_high, other_low = peek16(other + 8), peek64(other)
    kind, other_kind = number_kind(high, low), number_kind(other_high, other_low)
    found = 0
    changed = _C0 | _C1 | _C2 | _C3
    m[mc.X87_ROUNDED] = AS_IT_IS
    if OTHER in (kind, other_kind):
        # Which NaN it is, and what is invalid, addition finds out.
        call(t[em.TAKE_OPERAND], (env, 1))
        call(t[em.ADD_OPERAND], (env,))
        changed = _C1 | _C2
    elif kind == INFINITE or other_kind == ZERO:
        put_invalid(env, top)
        changed = _C1 | _C2
    elif m[mc.X87_DENORMAL] == 1 and is_unmasked(env, _DENORMAL):
        changed = _C1 | _C2
    elif kind == FINITE and other_kind == FINITE:
        exponent, mantissa = normalised(max(high & LARGEST, 1), low)
        other_exponent, divisor = normalised(max(other_high & LARGEST, 1), other_low)
        rest, scale, turned, quotient, incomplete = partial_remainder(
            mantissa, exponent, divisor, other_exponent, nearest
        )
        biased, mantissa = packed(scale, rest)
        if biased == 0 and mantissa != 0 and is_unmasked(env, UNDERFLOW):
            biased, mantissa = packed(scale + WRAPPED, rest)
            poke8(env + at.X87_FLAGS, UNDERFLOW)
        sign = high & SIGN
        if turned:
            sign = sign ^ SIGN
        poke64(top, mantissa)
        poke16(top + 8, sign | biased)
        found = conditions(quotient, incomplete)
    poke16(env + STATUS, peek16(env + STATUS) & ~changed | found)


@callback(VOID, INT64, BOUND)
def on_fprem(env: int, translator: int) -> None:
    """helper_fprem."""
    take_remainder(env, cells(translator, em.CELLS), False)


@callback(VOID, INT64, BOUND)
def on_fprem1(env: int, translator: int) -> None:
    """helper_fprem1."""
    take_remainder(env, cells(translator, em.CELLS), True)


REMAINDERS = {"helper_fprem": on_fprem, "helper_fprem1": on_fprem1}
"""The engine's helpers, and what is called instead, bound to the translator's cells."""
