"""What the engine's SSE arithmetic does not know: denormal operands, which NaN, flush to zero.

Compiled only; Linux wheels. Translated code calls `on_sse_arithmetic` before the helper that
computes, which gets the source that this answers. SDM, volume 1, "SIMD Floating-Point Exception
Conditions", "Rules for Handling NaNs", "Flush-To-Zero", "Denormals-Are-Zeros". A NaN, an invalid
operation and a division by 0 come before a denormal operand, for each pair of elements by itself.
"""

from trapgate.compiler.dialect import Cells, core, inlined
from trapgate.compiler.kinds import INT64
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import cells, peek8, peek32, peek64, poke8, poke32, poke64
from trapgate.decode.sse_arithmetic import (
    ACROSS,
    CHOOSES,
    DIVIDES,
    DOUBLE,
    ELEMENTS,
    IMMEDIATE_SHIFT,
    IN_PLACE,
    MASKED,
    PROPAGATES,
    SOURCE_ALONE,
    TAKES_ROOT,
)
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at

FLAGS = 0x3F
"""Of MXCSR: the exceptions."""
INVALID = 1
DENORMAL = 2
"""Flags in MXCSR, and among those of the engine's arithmetic, which does not use the second one."""
_UNDERFLOW_AND_PRECISION = 0x30
_FLUSHED = 0x80
"""Of the engine's flags: a result was flushed to zero."""
ARE_ZEROS = 1 << 6
_UNDERFLOW_MASK = 1 << 11
_FLUSH = 1 << 15

ORDINARY, ZERO, TINY, NEGATIVE_TINY, QUIET, SIGNALLING = range(6)
"""What an operand may be: all else, a zero, a denormal of either sign, a NaN."""


@core
def class_of(bits: int, double: bool) -> int:
    """Which of these a value is; of single precision if not `double`."""
    if double:
        exponent = (bits >> 52) & 0x7FF
        fraction = bits & 0xF_FFFF_FFFF_FFFF
        largest = 0x7FF
        quiet = 1 << 51
        sign = (bits >> 63) & 1
    else:
        exponent = (bits >> 23) & 0xFF
        fraction = bits & 0x7F_FFFF
        largest = 0xFF
        quiet = 1 << 22
        sign = (bits >> 31) & 1
    if exponent == largest and fraction != 0:
        return QUIET if fraction & quiet else SIGNALLING
    if exponent != 0:
        return ORDINARY
    if fraction == 0:
        return ZERO
    return NEGATIVE_TINY if sign else TINY


@core
def meets_denormal(first: int, second: int, kind: int) -> bool:
    """Whether operands of these classes, destination and source, raise the exception."""
    if kind & SOURCE_ALONE:
        return second == TINY or (second == NEGATIVE_TINY and kind & TAKES_ROOT == 0)
    if first >= QUIET or second >= QUIET:
        return False
    if kind & DIVIDES and second == ZERO:
        return False
    return first in (TINY, NEGATIVE_TINY) or second in (TINY, NEGATIVE_TINY)


@inlined
@core
def is_usual_double(bits: int) -> bool:
    """Whether a value is a zero or a normal number: nothing to look at more closely."""
    return ((bits >> 52) + 1) & 0x7FE != 0 or bits & (1 << 63) - 1 == 0


@inlined
@core
def is_usual_single(bits: int) -> bool:
    """The same of the lower 32 bits."""
    return ((bits >> 23) + 1) & 0xFE != 0 or bits & 0x7FFF_FFFF == 0


@jit
def is_usual(operand: int, kind: int) -> bool:
    """Whether all elements at an address are, which is soon found out."""
    low = peek64(operand)
    count = kind & ELEMENTS
    if kind & DOUBLE:
        return is_usual_double(low) and (count == 1 or is_usual_double(peek64(operand + 8)))
    if count == 1:
        return is_usual_single(low)
    if not is_usual_single(low) or not is_usual_single(low >> 32):
        return False
    if count == 2:
        return True
    high = peek64(operand + 8)
    return is_usual_single(high) and is_usual_single(high >> 32)


@core
def flags_met(flags: int) -> int:
    """Flags of the engine's arithmetic as those of MXCSR."""
    return flags & FLAGS | (_UNDERFLOW_AND_PRECISION if flags & _FLUSHED else 0)


@jit
def element_at(operand: int, number: int, double: bool) -> int:
    """An element of the operand at an address."""
    return peek64(operand + 8 * number) if double else peek32(operand + 4 * number)


@jit
def put_element(operand: int, number: int, double: bool, bits: int) -> None:
    """Replace it."""
    if double:
        poke64(operand + 8 * number, bits)
    else:
        poke32(operand + 4 * number, bits)


@jit
def sign_alone(bits: int, double: bool) -> int:
    """A zero of the same sign."""
    return bits & (-(1 << 63) if double else 0x8000_0000)


@jit
def choose_element(
    env: int, first: int, n: int, second: int, k: int, kind: int, zeros: bool, copy: int
) -> bool:
    """Look at element `n` of one operand and `k` of another that meet; whether `copy` is needed.

    That is the place of a copy of the second operand, in which elements may be replaced.
    """
    double = kind & DOUBLE != 0
    one, other = element_at(first, n, double), element_at(second, k, double)
    a, b = class_of(one, double), class_of(other, double)
    if a == ORDINARY and b == ORDINARY:
        return False
    if kind & PROPAGATES and a >= QUIET and b >= QUIET:
        # The result is the first one; the engine would compare them.
        if b == SIGNALLING:
            poke8(env + at.SSE_FLAGS, peek8(env + at.SSE_FLAGS) | INVALID)
        put_element(copy, k, double, one)
        return True
    if zeros and kind & CHOOSES:
        # What is chosen is stored as it is.
        if a in (TINY, NEGATIVE_TINY):
            put_element(first, n, double, sign_alone(one, double))
        if b in (TINY, NEGATIVE_TINY):
            put_element(copy, k, double, sign_alone(other, double))
            return True
    elif not zeros and meets_denormal(a, b, kind):
        poke8(env + at.SSE_FLAGS, peek8(env + at.SSE_FLAGS) | DENORMAL)
    return False


@jit
def copied(m: Cells, operand: int) -> int:
    """Copy the operand at an address; where the copy is."""
    copy = int(m[mc.SELF]) + 8 * mc.VECTOR
    poke64(copy, peek64(operand))
    poke64(copy + 8, peek64(operand + 8))
    return copy


@jit
def choose_elements(m: Cells, env: int, first: int, second: int, kind: int, zeros: bool) -> int:
    """Look at all elements that meet; the address of the second operand as it is to be taken."""
    copy = copied(m, second)
    replaced = False
    count = kind & ELEMENTS
    if kind & ACROSS:
        # The destination is the first operand, and all of it is written.
        for n in range(count >> 1):
            choose_element(env, first, 2 * n, first, 2 * n + 1, kind, zeros, first)
            if choose_element(env, second, 2 * n, second, 2 * n + 1, kind, zeros, copy):
                replaced = True
        return copy if replaced else second
    for n in range(count):
        takes_part = kind & MASKED == 0 or (kind >> (IMMEDIATE_SHIFT + 4 + n)) & 1 != 0
        if takes_part and choose_element(env, first, n, second, n, kind, zeros, copy):
            replaced = True
    return copy if replaced else second


@jit
def source_to_take(env: int, first: int, second: int, kind: int) -> int:
    """Before arithmetic on the registers at `first`, the destination, and `second`.

    Returns where the helper is to find the source. `kind`: see `decode.sse_arithmetic`.
    """
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    if kind & IN_PLACE:
        return copied(m, second) if first == second else second
    mxcsr = peek32(env + at.MXCSR)
    # Results are flushed only while underflow is masked; the engine flushes those of the x87.
    flushes = mxcsr & (_FLUSH | _UNDERFLOW_MASK) == _FLUSH | _UNDERFLOW_MASK
    poke8(env + at.SSE_FLUSHES, 1 if flushes else 0)
    if is_usual(second, kind) and (kind & SOURCE_ALONE != 0 or is_usual(first, kind)):
        return second
    return choose_elements(m, env, first, second, kind, mxcsr & ARE_ZEROS != 0)


@callback(INT64, *[INT64] * 4)
def on_sse_arithmetic(env: int, first: int, second: int, kind: int) -> int:
    """See `source_to_take`."""
    return source_to_take(env, first, second, kind)
