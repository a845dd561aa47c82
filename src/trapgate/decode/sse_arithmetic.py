"""What SSE instructions do that take their operands for floating-point numbers.

Those that know of denormal operands: SDM, volume 1, "Denormal-Operand Exception (#D)", and volume
2, "SIMD Floating-Point Exceptions" of each instruction. What an instruction does is one number, a
sum of the bits here.
"""

from trapgate.compiler.dialect import core

NO_ARITHMETIC = 0
DOUBLE = 8
"""Elements of 64 bits, not 32. Bits 2:0 are how many of them an operand has."""
ELEMENTS = 7
SOURCE_ALONE = 1 << 4
"""The destination is only written."""
DIVIDES = 1 << 5
"""A divisor of 0 is another exception."""
TAKES_ROOT = 1 << 6
"""... and so is a negative operand."""
ACROSS = 1 << 7
"""Elements 2n and 2n + 1 of the same operand meet, not those of two operands."""
MASKED = 1 << 8
"""Bits 7:4 of an immediate byte say which elements take part. The byte is in bits 23:16."""
IMMEDIATE_SHIFT = 16
PROPAGATES = 1 << 9
"""Of two NaNs that meet the result is one."""
CHOOSES = 1 << 10
"""The result is one of the operands."""
IN_PLACE = 1 << 11
"""No arithmetic of floating-point numbers; the engine writes results before it has read all."""


@core
def sse_arithmetic(escape: int, opcode: int, repeat: int, operand_size: bool) -> int:
    """What 0FH (`escape` 3AH or 38H, or 0) `opcode` does; NO_ARITHMETIC if nothing of the kind.

    `repeat` is the last of F2H and F3H among the prefixes, or 0; `operand_size`: 66H is among them.
    """
    scalar = repeat != 0
    double = repeat == 0xF2 or (repeat == 0 and operand_size)
    packed = 2 | DOUBLE if double else 4
    elements = (1 | DOUBLE if double else 1) if scalar else packed
    if escape == 0x3A:
        # DPPS and DPPD.
        if operand_size and repeat == 0 and opcode in (0x40, 0x41):
            return MASKED | PROPAGATES | (4 if opcode == 0x40 else 2 | DOUBLE)
        return NO_ARITHMETIC
    if escape != 0:
        # PHADDW to PHADDSW, PHSUBW to PHSUBSW.
        return IN_PLACE if 1 <= opcode <= 7 and opcode != 4 else NO_ARITHMETIC
    if opcode in (0x58, 0x59, 0x5C):
        return elements | PROPAGATES
    if opcode in (0x5D, 0x5F):
        return elements | CHOOSES
    if opcode == 0xC2:
        return elements
    if opcode == 0x5E:
        return elements | DIVIDES | PROPAGATES
    if opcode == 0x51:
        return elements | SOURCE_ALONE | TAKES_ROOT
    if opcode == 0x5A:
        # CVTPS2PD takes the lower two of four.
        return SOURCE_ALONE | (2 if elements == 4 else elements)
    if opcode in (0x2E, 0x2F) and repeat == 0:
        return 1 | DOUBLE if operand_size else 1
    if opcode in (0x7C, 0x7D, 0xD0) and (repeat == 0xF2 or double):
        # Of these F2H means single precision.
        elements = PROPAGATES | (4 if repeat == 0xF2 else 2 | DOUBLE)
        return elements if opcode == 0xD0 else elements | ACROSS
    return NO_ARITHMETIC
