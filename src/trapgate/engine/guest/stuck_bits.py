"""Bits of a general register that are stuck at 0 or at 1, whatever the guest writes there.

Translated code forces them before each instruction, `save` whenever the state is taken from the
engine, and a VM entry before it delivers anything. So no instruction and no event ever finds the
register otherwise, and the guest runs in whole blocks. Compiled only, native path.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import INT64, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import cells
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg


@jit
def force_bits(m: Cells, registers: Cells) -> None:
    """Apply the stuck bits to general registers, in the order of encodings."""
    number = m[mc.STUCK] - 1
    registers[number] = registers[number] & ~m[mc.STUCK_MASK] | m[mc.STUCK_VALUE]


@jit
@inlined
def force_saved_bits(m: Cells, v: Cells, r: Cells) -> None:
    """The same in a saved state, if there are any."""
    if m[mc.STUCK] != 0:
        r[reg.RSP] = v[f.GUEST_RSP]
        force_bits(m, r)
        v[f.GUEST_RSP] = r[reg.RSP]


@callback(VOID, INT64, INT64)
def on_stuck_bits(machine: int, env: int) -> None:
    """Before each instruction while there are stuck bits."""
    force_bits(cells(machine, mc.CELLS), cells(env + at.REGS, 16))
