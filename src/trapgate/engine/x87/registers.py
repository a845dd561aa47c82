"""Where the engine keeps the x87 state, and its register stack. Compiled only."""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit
from trapgate.compiler.raw import peek32
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at

TOP = at.FPU + 4
STATUS = at.FPU + 8
CONTROL = at.FPU + 10
TAGS = at.FPU + 12
"""A byte for each register: 1 if it is empty."""
REGISTERS = at.FPU + 24
"""16 bytes each."""
ROUNDING = at.X87_FLAGS - 1
"""How the engine's arithmetic rounds: a byte."""
TO_ZERO = 3
PRECISION = at.X87_FLAGS + 1
"""To how many bits of a register: 32, 64 or 80."""
EXTENDED_PRECISION = 80


@jit
def state_of(m: Cells) -> int:
    """The live CPU state, on both paths."""
    return int(m[mc.CPU]) + at.CPU_SIZE


@jit
@inlined
def register_of(env: int, number: int) -> int:
    """The address of ST(`number`)."""
    return env + REGISTERS + 16 * ((peek32(env + TOP) + number) & 7)


@jit
@inlined
def tag_of(env: int, number: int) -> int:
    """The address of its tag."""
    return env + TAGS + ((peek32(env + TOP) + number) & 7)
