"""FBSTP, of which the engine's helper knows neither -0 nor the indefinite number. Compiled only.

SDM, "FBSTP", its table of results.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, peek8, peek16, poke8
from trapgate.engine import emission as em
from trapgate.engine import layout as at
from trapgate.engine import machine as mc
from trapgate.engine.x87_registers import register_of
from trapgate.engine.x87_rounding import converted

AS_STORED, INDEFINITE, NEGATIVE_ZERO = range(3)
"""What X87_DECIMAL may hold."""
_INVALID = 1
_SIGN = 0x8000
_LARGEST = 999_999_999_999_999_999
_INDEFINITE_LOW, _INDEFINITE_HIGH = -(1 << 62), 0xFFFF
_MINUS = 0x8000


@jit
def round_decimal(m: Cells, env: int) -> None:
    """Before FBSTP: it rounds as FIST of 64 bits does; what is not to be stored as it is?"""
    value = converted(env, cells(m[mc.TRANSLATOR], em.CELLS)[em.TO_INTEGER], 64)
    invalid = peek8(env + at.X87_FLAGS) & _INVALID != 0
    poke8(env + at.X87_FLAGS, 0)
    if invalid or value > _LARGEST or value < -_LARGEST:
        m[mc.X87_DECIMAL] = INDEFINITE
    elif value == 0 and peek16(register_of(env, 0) + 8) & _SIGN:
        m[mc.X87_DECIMAL] = NEGATIVE_ZERO


@jit
def finish_decimal(m: Cells, t: Cells, env: int, address: int, back: int) -> None:
    """Behind it: store what it is, where the engine has stored something else."""
    if m[mc.X87_DECIMAL] == INDEFINITE:
        call(t[em.STORE_DATA_64], (env, address, _INDEFINITE_LOW, back))
        call(t[em.STORE_DATA_16], (env, address + 8, _INDEFINITE_HIGH, back))
    elif m[mc.X87_DECIMAL] == NEGATIVE_ZERO:
        call(t[em.STORE_DATA_16], (env, address + 8, _MINUS, back))
