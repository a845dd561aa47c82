"""Which instructions store more than eight bytes: all of them must be allowed, or none is stored.

And those that read what their own store, should it fault, has changed: RCL and RCR.
"""

from trapgate.compiler.dialect import core

NOT_WHOLE = 0
CHANGES_CARRY = -1
"""Besides a number of bytes: no such store; RCL or RCR of memory."""

_PAGE = 0xFFF
FXSAVE_AREA, XSAVE_AREA = 512, 576
"""How many bytes FXSAVE stores, and XSAVE at most."""
_X87_ENVIRONMENT, _X87_STATE = 28, 108
_SMALLER = 14
"""How much smaller these are with operands of 16 bits."""


@core
def may_store_whole(byte: int) -> bool:
    """Whether a one-byte opcode is one of those that `whole_store` knows; it has a ModR/M byte."""
    return byte in (0xC0, 0xC1) or 0xD0 <= byte <= 0xD3 or byte & 0xF8 == 0xD8


@core
def may_store_whole_vector(opcode: int) -> bool:
    """The same of 0FH `opcode` and `whole_vector_store`."""
    return opcode in (0x11, 0x29, 0x2B, 0x7F, 0xAE, 0xE7)


@core
def whole_store(byte: int, form: int, wide: bool) -> int:
    """What a one-byte opcode with this ModR/M byte stores, in bytes.

    Those are FBSTP, FSTP of 80 bits, FNSTENV, FNSAVE; RCL and RCR. `wide`: operands have 32 bits.
    """
    field = (form >> 3) & 7
    if form >= 0xC0:
        return NOT_WHOLE
    if (byte in (0xC0, 0xC1) or 0xD0 <= byte <= 0xD3) and field in (2, 3):
        return CHANGES_CARRY
    if (byte == 0xDB and field == 7) or (byte == 0xDF and field == 6):
        return 10
    size = NOT_WHOLE
    if byte == 0xD9 and field == 6:
        size = _X87_ENVIRONMENT
    elif byte == 0xDD and field == 6:
        size = _X87_STATE
    return size - _SMALLER if size != NOT_WHOLE and not wide else size


@core
def whole_vector_store(opcode: int, form: int, repeat: int, operand_size: bool) -> int:
    """The same of 0FH `opcode`: stores of SSE registers, FXSAVE, XSAVE.

    `repeat` is the last of F2H and F3H among the prefixes, or 0; `operand_size`: 66H is among them.
    """
    if form >= 0xC0:
        return NOT_WHOLE
    if opcode == 0xAE:
        field = (form >> 3) & 7
        return FXSAVE_AREA if field == 0 else (XSAVE_AREA if field == 4 else NOT_WHOLE)
    if opcode in (0x11, 0x29, 0x2B):
        return 16 if repeat == 0 else NOT_WHOLE
    if opcode == 0x7F:
        return 16 if repeat == 0xF3 or (repeat == 0 and operand_size) else NOT_WHOLE
    return 16 if opcode == 0xE7 and repeat == 0 and operand_size else NOT_WHOLE
