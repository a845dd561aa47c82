"""x87 stores to memory: FST, FIST, FISTTP, FBSTP. An unmasked exception leaves memory as it is.

Compiled only; Linux wheels. SDM, volume 1, "x87 FPU Floating-Point Exception Conditions": that is
so of invalid operations, overflow and underflow; a result that is only inexact is stored. Neither
are page faults and segment limits met then. So in place of the store that would follow the
conversion translated code calls `on_x87_store`; nor is the register popped, see `x87.exceptions`.
"""

from trapgate.compiler.dialect import Cells, core, inlined
from trapgate.compiler.kinds import BOUND, INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek8, peek16, peek64, poke8
from trapgate.engine import emission as em
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.x87.exceptions import BEFORE_THE_STORE, exceptions_met
from trapgate.engine.x87.registers import CONTROL, register_of, state_of
from trapgate.engine.x87.rounding import DOWN, converted, machine_of

_INVALID = 1
_UNDERFLOW = 0x10
_SIGN = 0x8000
_DIGITS = 18
_LARGEST_DECIMAL = 10**_DIGITS - 1
_INDEFINITE_LOW, _INDEFINITE_HIGH = -(1 << 62), 0xFFFF


@jit
@inlined
def is_refused(m: Cells, env: int) -> bool:
    """Whether an unmasked exception keeps the store from being made."""
    return exceptions_met(m, env) & BEFORE_THE_STORE & ~peek16(env + CONTROL) != 0


@callback(VOID, *[INT64] * 4, RETURN_ADDRESS)
def on_x87_store(machine: int, address: int, value: int, store: int, back: int) -> None:
    """In place of a store at a linear address; `store` is the cell of the engine's function."""
    m = cells(machine, mc.CELLS)
    env = state_of(m)
    if not is_refused(m, env):
        call(cells(m[mc.TRANSLATOR], em.CELLS)[store], (env, address, value, back))


@jit
def emit_store(t: Cells, m: Cells, context: int, value: int, address: int, log: int) -> None:
    """Emit its call for 1 << `log` bytes, 2 at least; `value`: the temporary with them."""
    machine = em.new_constant(t, context, m[mc.SELF])
    store = em.new_constant(t, context, em.STORE_DATA_16 + log - 1)
    m[mc.PAIR] = context + machine
    m[mc.PAIR_2] = context + address
    m[mc.PAIR_3] = context + value
    m[mc.PAIR_4] = context + store
    em.emit_prepared_call(t, m, context, t[em.X87_STORE], 4, 0)
    em.release(t, context, machine)
    em.release(t, context, store)


@jit
def put_80(t: Cells, env: int, address: int, low: int, high: int, back: int) -> None:
    """Store ten bytes at a linear address."""
    call(t[em.STORE_DATA_64], (env, address, low, back))
    call(t[em.STORE_DATA_16], (env, address + 8, high, back))


@callback(VOID, INT64, INT64, BOUND, RETURN_ADDRESS)
def on_store_of_80(env: int, address: int, translator: int, back: int) -> None:
    """helper_fstt_ST0: FSTP of all of a register."""
    if not is_refused(machine_of(env), env):
        place = register_of(env, 0)
        put_80(cells(translator, em.CELLS), env, address, peek64(place), peek16(place + 8), back)


@jit
@inlined
def within_16_bits(env: int, value: int) -> int:
    """A value converted to 32 bits, or the indefinite integer of 16 where it does not fit."""
    value = value << 32 >> 32
    if value != value << 48 >> 48 or peek8(env + at.X87_FLAGS) & _INVALID:
        poke8(env + at.X87_FLAGS, _INVALID)
        machine_of(env)[mc.X87_ROUNDED] = DOWN
        return -0x8000
    return value


@callback(INT64, INT64, BOUND)
def on_store_of_16(env: int, helper: int) -> int:
    """FIST of 16 bits, by the conversion to 32."""
    return within_16_bits(env, converted(env, helper, 32))


@callback(INT64, INT64, BOUND)
def on_truncation_to_16(env: int, helper: int) -> int:
    """FISTTP of 16 bits."""
    return within_16_bits(env, call(helper, (env,)))


@callback(INT64, INT64, BOUND)
def on_store_of_integer(env: int, helper: int) -> int:
    """FIST of 32 bits; their upper half means nothing."""
    return converted(env, helper, 32)


@callback(INT64, INT64, BOUND)
def on_store_of_long_integer(env: int, helper: int) -> int:
    """FIST of 64 bits."""
    return converted(env, helper, 64)


@callback(INT64, INT64, BOUND)
def on_truncation_to_32(env: int, helper: int) -> int:
    """FISTTP of 32 bits: the indefinite integer where the value does not fit."""
    value = call(helper, (env,))
    return 0x8000_0000 if peek8(env + at.X87_FLAGS) & _INVALID else value


@callback(INT64, INT64, BOUND)
def on_truncation_to_64(env: int, helper: int) -> int:
    """FISTTP of 64 bits."""
    value = call(helper, (env,))
    return -(1 << 63) if peek8(env + at.X87_FLAGS) & _INVALID else value


@jit
def note_tiny(env: int, tiny: bool) -> None:
    """Note a denormal result: unmasked, underflow needs no loss of accuracy."""
    if tiny and peek16(env + CONTROL) & _UNDERFLOW == 0:
        poke8(env + at.X87_FLAGS, peek8(env + at.X87_FLAGS) | _UNDERFLOW)


@callback(INT64, INT64, BOUND)
def on_store_of_32(env: int, helper: int) -> int:
    """FST of 32 bits: a signalling NaN, the only invalid operand, becomes a quiet one."""
    value = converted(env, helper, 32)
    note_tiny(env, value & 0x7F80_0000 == 0 and value & 0x7F_FFFF != 0)
    return value | 1 << 22 if peek8(env + at.X87_FLAGS) & _INVALID else value


@callback(INT64, INT64, BOUND)
def on_store_of_64(env: int, helper: int) -> int:
    """FST of 64 bits."""
    value = converted(env, helper, 64)
    note_tiny(env, value & 0x7FF << 52 == 0 and value & (1 << 52) - 1 != 0)
    return value | 1 << 51 if peek8(env + at.X87_FLAGS) & _INVALID else value


@core
def decimal(value: int) -> tuple[int, int]:
    """(Low 64, high 8 bits) of a number of at most 18 digits, without its sign, four bits each."""
    value = max(value, -value)
    low = high = 0
    for n in range(_DIGITS):
        digit = value % 10
        value = value // 10
        if n < 16:
            low |= digit << (4 * n)
        else:
            high |= digit << (4 * n - 64)
    return low, high


@callback(VOID, INT64, INT64, BOUND, RETURN_ADDRESS)
def on_store_of_decimal(env: int, address: int, translator: int, back: int) -> None:
    """helper_fbst_ST0: FBSTP, which rounds as FIST of 64 bits does."""
    t = cells(translator, em.CELLS)
    m = machine_of(env)
    value = converted(env, t[em.TO_INTEGER], 64)
    low, high = decimal(value)
    high |= peek16(register_of(env, 0) + 8) & _SIGN
    if peek8(env + at.X87_FLAGS) & _INVALID or not -_LARGEST_DECIMAL <= value <= _LARGEST_DECIMAL:
        poke8(env + at.X87_FLAGS, _INVALID)
        m[mc.X87_ROUNDED] = DOWN
        low, high = _INDEFINITE_LOW, _INDEFINITE_HIGH
    if not is_refused(m, env):
        put_80(t, env, address, low, high, back)


CONVERSIONS = {
    "helper_fist_ST0": (on_store_of_16, "helper_fistl_ST0"),
    "helper_fistl_ST0": (on_store_of_integer, "helper_fistl_ST0"),
    "helper_fistll_ST0": (on_store_of_long_integer, "helper_fistll_ST0"),
    "helper_fistt_ST0": (on_truncation_to_16, "helper_fisttl_ST0"),
    "helper_fisttl_ST0": (on_truncation_to_32, "helper_fisttl_ST0"),
    "helper_fisttll_ST0": (on_truncation_to_64, "helper_fisttll_ST0"),
    "helper_fsts_ST0": (on_store_of_32, "helper_fsts_ST0"),
    "helper_fstl_ST0": (on_store_of_64, "helper_fstl_ST0"),
}
"""Helpers of the engine's that convert what is to be stored, what is called instead, and what this
calls. An invalid operation has other results than the engine's."""

STORES_OF_80 = {"helper_fstt_ST0": on_store_of_80, "helper_fbst_ST0": on_store_of_decimal}
"""Its helpers that store ten bytes, and what is called instead, bound to the translator's cells."""
