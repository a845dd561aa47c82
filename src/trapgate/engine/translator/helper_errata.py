"""Helpers of the engine's that compute something else than a processor, and what mends them.

Compiled only; Linux wheels. SDM, volume 2: RCPPS and RSQRTPS raise no exceptions, take denormals
for zeros and flush results to zero; ROUNDPS and its like can be told not to raise precision;
lengths of PCMPESTRI and PCMPESTRM have 64 bits with REX.W, and saturate; DPPS adds in pairs.
CMPXCHG of 32 bits in 64-bit mode leaves alone all 64 bits of what it does not write. POPF may let
interrupts in that wait.

A callback has one helper that it is bound to, so each helper has one of its own.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.compiler.kinds import BOUND, INT64, UINT32, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek8, peek32, peek64, poke8, poke32, poke64
from trapgate.decode.sse_arithmetic import DOUBLE, PROPAGATES
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.guest.state import look_for_interrupts
from trapgate.engine.library import layout as at
from trapgate.engine.translator.sse_arithmetic import (
    ARE_ZEROS,
    choose_elements,
    element_at,
    put_element,
)

_RAX, _RDX = 0, 2
_QUIETLY = 8
"""In the immediate byte of ROUNDPS: do not raise precision."""
_PRECISION = 1 << 5
_WIDE = 0x100
"""Above the immediate byte of PCMPESTRI: REX.W is there."""
_MOST = 16
_SIGN = 1 << 31
_FRACTION = (1 << 23) - 1
_EXPONENT = 0xFF << 23


@core
def approximation(source: int, result: int) -> int:
    """RCPSS or RSQRTSS of a single-precision `source`, of which `result` was computed exactly."""
    sign = source & _SIGN
    if source & _EXPONENT == 0:
        return sign | _EXPONENT
    if result & _EXPONENT == 0:
        return sign
    return result


@jit
def approximate(env: int, destination: int, source: int, helper: int, count: int) -> None:
    """RCPPS or RSQRTPS of the `count` lowest elements, by the engine's `helper`."""
    met = peek8(env + at.SSE_FLAGS)
    low, high = peek64(source), peek64(source + 8)
    call(helper, (env, destination, source))
    poke8(env + at.SSE_FLAGS, met)
    for n in range(count):
        word = low if n < 2 else high
        bits = (word >> (32 * (n & 1))) & 0xFFFF_FFFF
        place = destination + 4 * n
        poke32(place, approximation(bits, peek32(place)))


@callback(VOID, INT64, INT64, INT64, BOUND)
def on_rcpps(env: int, destination: int, source: int, helper: int) -> None:
    """RCPPS."""
    approximate(env, destination, source, helper, 4)


@callback(VOID, INT64, INT64, INT64, BOUND)
def on_rsqrtps(env: int, destination: int, source: int, helper: int) -> None:
    """RSQRTPS."""
    approximate(env, destination, source, helper, 4)


@callback(VOID, INT64, INT64, INT64, BOUND)
def on_rcpss(env: int, destination: int, source: int, helper: int) -> None:
    """RCPSS."""
    approximate(env, destination, source, helper, 1)


@callback(VOID, INT64, INT64, INT64, BOUND)
def on_rsqrtss(env: int, destination: int, source: int, helper: int) -> None:
    """RSQRTSS."""
    approximate(env, destination, source, helper, 1)


@jit
def round_elements(env: int, destination: int, source: int, how: int, helper: int) -> None:
    """Round by the engine's `helper`; `how` is the immediate byte."""
    met = peek8(env + at.SSE_FLAGS)
    call(helper, (env, destination, source, how))
    if how & _QUIETLY and met & _PRECISION == 0:
        poke8(env + at.SSE_FLAGS, peek8(env + at.SSE_FLAGS) & ~_PRECISION)


@callback(VOID, INT64, INT64, INT64, UINT32, BOUND)
def on_roundps(env: int, destination: int, source: int, how: int, helper: int) -> None:
    """ROUNDPS."""
    round_elements(env, destination, source, how, helper)


@callback(VOID, INT64, INT64, INT64, UINT32, BOUND)
def on_roundpd(env: int, destination: int, source: int, how: int, helper: int) -> None:
    """ROUNDPD."""
    round_elements(env, destination, source, how, helper)


@callback(VOID, INT64, INT64, INT64, UINT32, BOUND)
def on_roundss(env: int, destination: int, source: int, how: int, helper: int) -> None:
    """ROUNDSS."""
    round_elements(env, destination, source, how, helper)


@callback(VOID, INT64, INT64, INT64, UINT32, BOUND)
def on_roundsd(env: int, destination: int, source: int, how: int, helper: int) -> None:
    """ROUNDSD."""
    round_elements(env, destination, source, how, helper)


@jit
def copy_selected(place: int, operand: int, how: int, double: bool) -> None:
    """Copy an operand of two doubles or four singles; 0 for elements that `how` leaves out."""
    for n in range(2 if double else 4):
        taken = (how >> (4 + n)) & 1 != 0
        put_element(place, n, double, element_at(operand, n, double) if taken else 0)


@jit
def copy_exchanged(place: int, operand: int, distance: int, double: bool) -> None:
    """Copy an operand with elements exchanged that are 1 or 2 apart."""
    for n in range(2 if double else 4):
        put_element(place, n, double, element_at(operand, n ^ distance, double))


@jit
def add_elements(m: Cells, env: int, helper: int, first: int, second: int, elements: int) -> None:
    """ADDPS or ADDPD of registers at these addresses, the first of which it changes."""
    zeros = peek32(env + at.MXCSR) & ARE_ZEROS != 0
    second = choose_elements(m, env, first, second, elements | PROPAGATES, zeros)
    call(helper, (env, first, second))


@jit
def add_products(env: int, first: int, second: int, how: int, double: bool) -> None:
    """The dot product, as the SDM adds it: of two pairs first. `how` is the immediate byte.

    Each element gets a sum of its own, which counts if several products are NaNs: of two that are
    added the first continues. Of DPPS that is a neighbour's product, then the element's own sum; of
    DPPD its own product. So processors have it.
    """
    m = cells(peek64(env + at.MACHINE), mc.CELLS)
    t = cells(m[mc.TRANSLATOR], em.CELLS)
    sums = int(m[mc.SELF]) + 8 * mc.PRODUCTS
    others = sums + 16
    copy_selected(sums, first, how, double)
    copy_selected(others, second, how, double)
    if double:
        call(t[em.MULTIPLY_DOUBLES], (env, sums, others))
        copy_exchanged(others, sums, 1, True)
        add_elements(m, env, t[em.ADD_DOUBLES], sums, others, 2 | DOUBLE)
    else:
        call(t[em.MULTIPLY_SINGLES], (env, others, sums))
        copy_exchanged(sums, others, 1, False)
        add_elements(m, env, t[em.ADD_SINGLES], sums, others, 4)
        copy_exchanged(others, sums, 2, False)
        add_elements(m, env, t[em.ADD_SINGLES], sums, others, 4)
    for n in range(2 if double else 4):
        taken = (how >> n) & 1 != 0
        put_element(first, n, double, element_at(sums, n, double) if taken else 0)


@callback(VOID, INT64, INT64, INT64, UINT32)
def on_dpps(env: int, first: int, second: int, how: int) -> None:
    """DPPS."""
    add_products(env, first, second, how, False)


@callback(VOID, INT64, INT64, INT64, UINT32)
def on_dppd(env: int, first: int, second: int, how: int) -> None:
    """DPPD."""
    add_products(env, first, second, how, True)


@core
def length_of_string(register: int, wide: bool) -> int:
    """What a length in RAX or RDX counts for: its absolute value, 16 at most."""
    length = register if wide else register << 32 >> 32
    if length < 0:
        # Of the most negative one there is none.
        return _MOST if length < -_MOST else -length
    return min(length, _MOST)


@jit
def compare_strings(env: int, first: int, second: int, how: int, helper: int) -> None:
    """Compare by the engine's `helper` with lengths that it takes as they are; `how`: see _WIDE."""
    rax, rdx = peek64(env + at.REGS + 8 * _RAX), peek64(env + at.REGS + 8 * _RDX)
    poke64(env + at.REGS + 8 * _RAX, length_of_string(rax, how & _WIDE != 0))
    poke64(env + at.REGS + 8 * _RDX, length_of_string(rdx, how & _WIDE != 0))
    call(helper, (env, first, second, how))
    poke64(env + at.REGS + 8 * _RAX, rax)
    poke64(env + at.REGS + 8 * _RDX, rdx)


@callback(VOID, INT64, INT64, INT64, UINT32, BOUND)
def on_pcmpestri(env: int, first: int, second: int, how: int, helper: int) -> None:
    """PCMPESTRI."""
    compare_strings(env, first, second, how, helper)


@callback(VOID, INT64, INT64, INT64, UINT32, BOUND)
def on_pcmpestrm(env: int, first: int, second: int, how: int, helper: int) -> None:
    """PCMPESTRM."""
    compare_strings(env, first, second, how, helper)


@callback(VOID, INT64, INT64, UINT32, BOUND)
def on_write_flags(env: int, flags: int, written: int, helper: int) -> None:
    """POPF."""
    call(helper, (env, flags, written))
    look_for_interrupts(cells(peek64(env + at.MACHINE), mc.CELLS))


@jit
def registers_of(m: Cells) -> int:
    """Where the general registers are."""
    return int(m[mc.CPU]) + at.CPU_SIZE + at.REGS


@callback(VOID, INT64, INT64)
def on_exchange_begins(machine: int, destination: int) -> None:
    """Before CMPXCHG of 32 bits with a register, or -1 for memory, as its destination."""
    m = cells(machine, mc.CELLS)
    registers = registers_of(m)
    m[mc.ACCUMULATOR] = peek64(registers + 8 * _RAX)
    if destination >= 0:
        m[mc.KEPT_EXCHANGED] = peek64(registers + 8 * destination)


@callback(VOID, INT64, INT64)
def on_exchange_ends(machine: int, destination: int) -> None:
    """After it: only one of the two has been written."""
    m = cells(machine, mc.CELLS)
    registers = registers_of(m)
    if peek64(registers - at.REGS + at.CC_DST) & 0xFFFF_FFFF == 0:
        if destination != _RAX:
            poke64(registers + 8 * _RAX, m[mc.ACCUMULATOR])
    elif destination >= 0:
        poke64(registers + 8 * destination, m[mc.KEPT_EXCHANGED])


HELPERS_MENDED = {
    "helper_rcpps": on_rcpps,
    "helper_rsqrtps": on_rsqrtps,
    "helper_rcpss": on_rcpss,
    "helper_rsqrtss": on_rsqrtss,
    "helper_roundps_xmm": on_roundps,
    "helper_roundpd_xmm": on_roundpd,
    "helper_roundss_xmm": on_roundss,
    "helper_roundsd_xmm": on_roundsd,
    "helper_pcmpestri_xmm": on_pcmpestri,
    "helper_pcmpestrm_xmm": on_pcmpestrm,
    "helper_write_eflags": on_write_flags,
}
"""The engine's helpers, and what is called instead, which calls them."""

HELPERS_REPLACED = {"helper_dpps_xmm": on_dpps, "helper_dppd_xmm": on_dppd}
"""The same, without calling them."""
