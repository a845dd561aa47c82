"""ARPL (SDM, "ARPL"), of which the engine writes the operand back even if it has not changed.

Processors do not: on a page that is not writable it is a page fault only if the RPL is too low.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.intercepts import GO_ON
from trapgate.operands.encoding import decode_operand, operand_offset, register_value
from trapgate.sdm.cells import GUEST_RFLAGS
from trapgate.sdm.state import RFLAGS_ZF
from trapgate.vmx.operand import operand_linear, read_operand, write_operand

ARPL = 0x63
"""The opcode, which in 64-bit mode is MOVSXD's, and #UD in real-address and virtual-8086 mode."""


@core
def adjust_rpl(v: Cells, r: Cells, mem: Memory, x: Cells, word: int, start: int) -> tuple[int, int]:
    """Carry out ARPL of a selector in memory, after `start` prefix bytes: (outcome, length)."""
    length, information, displacement = decode_operand(v, mem, word, start, 0, start + 1)
    offset = operand_offset(v, r, information, displacement)
    outcome, linear = operand_linear(v, (information >> 15) & 7, offset, 2, 1)
    if outcome != GO_ON:
        return outcome, length
    outcome, selector = read_operand(x, v, mem, linear, 2)
    if outcome != GO_ON:
        return outcome, length
    rpl = register_value(v, r, (information >> 28) & 7) & 3
    flags = v[GUEST_RFLAGS] & ~RFLAGS_ZF
    if selector & 3 < rpl:
        outcome = write_operand(x, v, mem, linear, 2, selector & 0xFFFC | rpl)
        flags |= RFLAGS_ZF
    if outcome == GO_ON:
        v[GUEST_RFLAGS] = flags
    return outcome, length
