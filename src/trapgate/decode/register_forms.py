"""Forms of instructions in which REX, an immediate byte or a register means less than it seems.

SDM, volume 2, "REX Prefixes": MMX registers are eight, whatever REX.R and REX.B say. LAHF and
SAHF use AH with any REX. REX.R does not extend what is not a register, as in MOV of a constant.
CMPPS and its like look at three bits of their immediate byte. CVTPI2PD of memory uses no MMX
register, CMPXCHG writes one of its operands.
"""

from trapgate.compiler.dialect import core

_REX_W, _REX_R, _REX_B = 8, 4, 1
_CMPXCHG = 0xB1
_IGNORED = 0x3E
"""A prefix without effect in 64-bit mode: DS."""


@core
def rex_of_one_byte(opcode: int, rex: int) -> int:
    """What to take for the `rex` before a one-byte opcode: none before LAHF and SAHF."""
    if opcode in (0x9E, 0x9F):
        return _IGNORED
    # MOV of a constant, whose ModR/M byte names one register.
    return rex & ~_REX_R if opcode in (0xC6, 0xC7) else rex


@core
def rex_of_mmx(form: int, rex: int) -> int:
    """What to take for the `rex` of an instruction on MMX registers with this ModR/M byte."""
    return rex & ~(_REX_R | _REX_B) if form >= 0xC0 else rex & ~_REX_R


@core
def spares_x87(escape: int, opcode: int, operand_size: bool, form: int) -> bool:
    """Whether an instruction between SSE and MMX registers is CVTPI2PD of memory."""
    return escape == 0 and opcode == 0x2A and operand_size and form < 0xC0


@core
def has_predicate(opcode: int) -> bool:
    """Whether 0FH `opcode` ends with a byte that says how to compare (CMPPS, CMPSD ...)."""
    return opcode == 0xC2


@core
def is_narrow_exchange(opcode: int, rex: int, operand_size: bool) -> bool:
    """Whether 0FH `opcode` is CMPXCHG of 32 bits, in 64-bit mode."""
    return opcode == _CMPXCHG and rex & _REX_W == 0 and not operand_size


@core
def register_exchanged(form: int, rex: int) -> int:
    """The destination's number in CMPXCHG with this ModR/M byte; -1 if it is in memory."""
    return form & 7 | (rex & _REX_B) << 3 if form >= 0xC0 else -1


@core
def bytes_of_operand(form: int, sib: int, short: bool) -> int:
    """How many bytes SIB and displacement have after the ModR/M byte `form`.

    `sib` is the byte that follows; `short`: addresses have 16 bits.
    """
    mod = form >> 6
    base = form & 7
    if mod == 3:
        return 0
    if short:
        return 2 if mod == 2 or (mod == 0 and base == 6) else mod
    scaled = 0
    if base == 4:
        scaled = 1
        base = sib & 7
    if mod == 1:
        return scaled + 1
    return scaled + 4 if mod == 2 or base == 5 else scaled
