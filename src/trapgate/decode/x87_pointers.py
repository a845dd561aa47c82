"""What x87 instructions do with FOP, FIP and FDP, and which operand they would point to.

SDM, volume 1, "x87 FPU Instruction and Data (Operand) Pointers", "Last Instruction Opcode".
"""

from trapgate.compiler.dialect import core

SEGMENT = 7
"""Bits 2:0 of what `x87_pointers` says: the operand's segment register, 0 ES to 5 GS."""
IN_MEMORY = 1 << 3
ACTION_SHIFT = 4
ACTION = 7 << ACTION_SHIFT
OPCODE_SHIFT = 8
OPCODE = 0x7FF
WIDE = 1 << 20
"""Operands have 32 bits; of FXSAVE and its like, REX.W."""

(
    POINTS,
    CLEARS,
    STORES_ENVIRONMENT,
    STORES_STATE,
    LOADS_ENVIRONMENT,
    STORES_IMAGE,
    LOADS_IMAGE,
) = range(7)
"""The action: the pointers point to the instruction if it computes; FNINIT; FNSTENV; FNSAVE;
FLDENV and FRSTOR; FXSAVE and XSAVE; FXRSTOR and XRSTOR."""
EXTENDED = 1 << 21
"""Of the latter two: XSAVE or XRSTOR."""

_ES, _CS, _SS, _DS, _FS, _GS = range(6)


@core
def overriding_segment(prefix: int) -> int:
    """The segment register that a prefix byte names; -1 if none."""
    if prefix == 0x64:
        return _FS
    if prefix == 0x65:
        return _GS
    if prefix in (0x26, 0x2E, 0x36, 0x3E):
        return (prefix >> 3) & 3
    return -1


@core
def default_segment(form: int, sib: int, rex: int, short: bool) -> int:
    """The segment register of the operand that a ModR/M byte names; `short`: 16-bit addresses.

    `sib` is the byte after it, `rex` the REX prefix or 0.
    """
    mod = form >> 6
    base = form & 7
    if short:
        return _SS if base in (2, 3) or (base == 6 and mod != 0) else _DS
    if base == 4:
        base = sib & 7
        if base == 4:
            return _DS if rex & 1 else _SS
    return _SS if base == 5 and mod != 0 and rex & 1 == 0 else _DS


@core
def x87_action(opcode: int, form: int) -> int:
    """The action of an instruction with an opcode of D8H to DFH and this ModR/M byte."""
    field = (form >> 3) & 7
    if opcode == 0xDB and form == 0xE3:
        return CLEARS
    if form >= 0xC0 or opcode not in (0xD9, 0xDD):
        return POINTS
    if field == 6:
        return STORES_ENVIRONMENT if opcode == 0xD9 else STORES_STATE
    return LOADS_ENVIRONMENT if field == 4 else POINTS


@core
def image_action(form: int) -> int:
    """The same of 0FH AEH: FXSAVE, FXRSTOR, XSAVE, XRSTOR; POINTS for others, which do not."""
    field = (form >> 3) & 7
    if form >= 0xC0:
        return POINTS
    if field in (0, 4):
        return STORES_IMAGE
    return LOADS_IMAGE if field in (1, 5) else POINTS
