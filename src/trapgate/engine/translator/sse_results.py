"""Sums, differences, products and quotients of SSE that need none of the engine's arithmetic.

Compiled only; Linux wheels. The engine computes with integers, or has the host compute and looks
at operands and results in a roundabout way. Here the host computes where results are rounded to
nearest and the flag that tells of inexact ones is set already, which is soon so; no operand may be
denormal, and no result a NaN, infinite or near the least normal number. Nothing is left to be told
then, and the result is the same on all hosts. All others go the engine's way (`sse_arithmetic`).
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import (
    add_doubles,
    add_singles,
    call,
    divide_doubles,
    divide_singles,
    multiply_doubles,
    multiply_singles,
    peek16,
    peek32,
    peek64,
    poke32,
    poke64,
    subtract_doubles,
    subtract_singles,
)
from trapgate.decode.sse_arithmetic import DIVIDES, DOUBLE, ELEMENTS, NO_ARITHMETIC, PROPAGATES
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.translator.sse_arithmetic import source_to_take

_OPERATION_SHIFT = 24
_ADDS, _SUBTRACTS, _MULTIPLIES, _DIVIDES = range(4)
"""Above what `decode.sse_arithmetic` says."""
_PRECISION = 1 << 5
_MASKS_SHIFT = 7
_SIZE_OF_DOUBLE = (1 << 63) - 1
_SIZE_OF_SINGLE = 0x7FFF_FFFF
_NOT_HERE = -1
"""No result: neither a number of single precision, nor one of double that is accepted."""


@jit
def only_results_count(env: int) -> bool:
    """Whether results are rounded to nearest, and none is the first inexact one."""
    state = peek16(env + at.SSE_ROUNDING)
    mxcsr = peek32(env + at.MXCSR)
    # While the exception is not masked each must be told.
    told = state >> 8 | mxcsr & mxcsr >> _MASKS_SHIFT
    return state & 0xFF == 0 and told & _PRECISION != 0


@jit
def result_of_doubles(operation: int, first: int, second: int) -> int:
    """The result, or _NOT_HERE."""
    exact = operation <= _SUBTRACTS
    if (first >> 52) & 0x7FF == 0:
        if first & _SIZE_OF_DOUBLE != 0:
            return _NOT_HERE
        exact = True
    if (second >> 52) & 0x7FF == 0:
        if second & _SIZE_OF_DOUBLE != 0:
            return _NOT_HERE
        exact = True
    if operation == _ADDS:
        found = add_doubles(first, second)
    elif operation == _MULTIPLIES:
        found = multiply_doubles(first, second)
    elif operation == _SUBTRACTS:
        found = subtract_doubles(first, second)
    else:
        found = divide_doubles(first, second)
    exponent = (found >> 52) & 0x7FF
    if 2 <= exponent < 0x7FF or (exact and found & _SIZE_OF_DOUBLE == 0):
        return found
    return _NOT_HERE


@jit
def result_of_singles(operation: int, first: int, second: int) -> int:
    """The same of the lower 32 bits."""
    exact = operation <= _SUBTRACTS
    if (first >> 23) & 0xFF == 0:
        if first & _SIZE_OF_SINGLE != 0:
            return _NOT_HERE
        exact = True
    if (second >> 23) & 0xFF == 0:
        if second & _SIZE_OF_SINGLE != 0:
            return _NOT_HERE
        exact = True
    if operation == _ADDS:
        found = add_singles(first, second)
    elif operation == _MULTIPLIES:
        found = multiply_singles(first, second)
    elif operation == _SUBTRACTS:
        found = subtract_singles(first, second)
    else:
        found = divide_singles(first, second)
    exponent = (found >> 23) & 0xFF
    if 2 <= exponent < 0xFF or (exact and found & _SIZE_OF_SINGLE == 0):
        return found
    return _NOT_HERE


@jit
def is_computed(first: int, second: int, kind: int) -> bool:
    """Whether the host has computed all elements, and the destination has them."""
    operation = kind >> _OPERATION_SHIFT
    count = kind & ELEMENTS
    if kind & DOUBLE:
        low = result_of_doubles(operation, peek64(first), peek64(second))
        if low == _NOT_HERE:
            return False
        if count == 2:
            high = result_of_doubles(operation, peek64(first + 8), peek64(second + 8))
            if high == _NOT_HERE:
                return False
            poke64(first + 8, high)
        poke64(first, low)
        return True
    lowest = result_of_singles(operation, peek32(first), peek32(second))
    if lowest == _NOT_HERE:
        return False
    if count == 4:
        lower = result_of_singles(operation, peek32(first + 4), peek32(second + 4))
        higher = result_of_singles(operation, peek32(first + 8), peek32(second + 8))
        highest = result_of_singles(operation, peek32(first + 12), peek32(second + 12))
        if _NOT_HERE in (lower, higher, highest):
            return False
        poke32(first + 4, lower)
        poke32(first + 8, higher)
        poke32(first + 12, highest)
    poke32(first, lowest)
    return True


@callback(VOID, *[INT64] * 4)
def on_arithmetic(env: int, first: int, second: int, entry: int) -> None:
    """In the place of a helper of RESULTS: `entry` is where that and its kind stand."""
    kind = peek64(entry + 8)
    if only_results_count(env) and is_computed(first, second, kind):
        return
    call(peek64(entry), (env, first, source_to_take(env, first, second, kind)))


@jit
def entry_of(t: Cells, function: int) -> int:
    """Where a helper of the engine's and its kind stand; 0 if it is none of RESULTS."""
    for pair in range(em.RESULT_PAIRS):
        if function == t[em.RESULTS + 2 * pair]:
            return t[em.RESULTS + 2 * pair :].ctypes.data
    return 0


@jit
def emit_arithmetic(t: Cells, m: Cells, context: int, arguments: int, entry: int) -> None:
    """Emit the call of `on_arithmetic` in place of a helper with these arguments."""
    m[mc.ARITHMETIC] = NO_ARITHMETIC
    for n in range(3):
        m[mc.PAIR + n] = peek64(arguments + 8 * n)
    where = em.new_constant(t, context, entry)
    m[mc.PAIR_4] = context + where
    em.emit_prepared_call(t, m, context, t[em.RESULT_CODE], 4, 0)
    em.release(t, context, where)


_FORMS = {"ss": 1, "sd": 1 | DOUBLE, "ps": 4, "pd": 2 | DOUBLE}
RESULTS = {
    f"helper_{name}{form}": operation << _OPERATION_SHIFT | elements | kind | PROPAGATES
    for operation, (name, kind) in enumerate({"add": 0, "sub": 0, "mul": 0, "div": DIVIDES}.items())
    for form, elements in _FORMS.items()
}
"""The engine's helpers, and what they do: `decode.sse_arithmetic`, and the operation."""
