"""Which instructions store, how many bytes, and where these come from: a table of the opcodes.

SDM, volume 2, the opcode maps and each instruction's "Operation".
"""

from typing import Final

import numpy as np

from trapgate.compiler.dialect import Cells

(
    UNKNOWN,
    REGISTER,
    IMMEDIATE,
    SIGNED_BYTE,
    PUSHED_OPERAND,
    RETURN_OPERAND,
    POPPED,
    SEGMENT,
    LOCAL_TABLE,
    TASK_REGISTER,
    FLAG,
    SWAPPED,
    ONE,
    ALL_ONES,
    COUNT,
    INPUT,
    ACCUMULATOR,
    STRING,
    PUSHED_REGISTER,
    PUSHED_IMMEDIATE,
    PUSHED_BYTE,
    PUSHED_FLAGS,
    PUSHED_SEGMENT,
    RETURN_RELATIVE,
) = range(1, 25)
"""Where the data come from: bits 7:0 of a form. From INPUT on there is no ModR/M byte."""

(
    STORE,
    ADD,
    OR,
    ADC,
    SBB,
    AND,
    SUB,
    XOR,
    NEGATE,
    COMPARE_EXCHANGE,
    COMPARE_EXCHANGE_8,
    ROTATE_LEFT,
    ROTATE_RIGHT,
    SHIFT_LEFT,
    SHIFT_RIGHT,
    SHIFT_SIGNED,
    SET_BIT,
    CLEAR_BIT,
    FLIP_BIT,
) = range(19)
"""What becomes of them and of what the operand holds: bits 15:8."""

_ALU = 1
OPERATION = 8
SIZE = 16
"""From here on the bytes, or with BY_PREFIX those without a prefix, and after 66H, F3H, F2H."""
SIZE_BITS = 10
BY_OPERAND_SIZE, BY_STACK, BY_PREFIX, ENVIRONMENT, LONGER, WIDER = (1 << n for n in range(56, 62))
"""The size is the operand's; a push's; chosen by a prefix; that of an x87 environment (or INS),
shorter with 16 bits; four bytes more in 64-bit mode; doubled by REX.W."""


def _form(source: int, size: int = 0, operation: int = STORE, how: int = 0) -> int:
    return source | operation << OPERATION | size << SIZE | how


def _both(source: int, operation: int = STORE) -> tuple[int, int]:
    """The forms of an opcode for bytes and of the next one."""
    return _form(source, 1, operation), _form(source, 0, operation, BY_OPERAND_SIZE)


def _sse(*sizes: int) -> int:
    return _form(UNKNOWN, how=BY_PREFIX) | sum(
        size << (SIZE + SIZE_BITS * n) for n, size in enumerate(sizes)
    )


def _forms() -> Cells:
    """The forms of what stores, by opcode and middle field of the next byte; 0 for all others.

    The opcodes after 0FH follow those of one byte.
    """
    table = np.zeros((2, 256, 8), np.int64)
    one, two = table
    for n in range(7):
        one[8 * n : 8 * n + 2] = np.array(_both(REGISTER, _ALU + n))[:, None]
        byte, word = _both(IMMEDIATE, _ALU + n)
        one[(0x80, 0x82), n] = byte
        one[0x81, n] = word
        one[0x83, n] = _form(SIGNED_BYTE, 0, _ALU + n, BY_OPERAND_SIZE)
    stack = BY_STACK
    for opcode in (0x06, 0x0E, 0x16, 0x1E):
        one[opcode] = _form(PUSHED_SEGMENT, how=stack)
    two[(0xA0, 0xA8), :] = _form(PUSHED_SEGMENT, how=stack)
    one[0x50:0x58] = _form(PUSHED_REGISTER, how=stack)
    one[0x68], one[0x6A] = _form(PUSHED_IMMEDIATE, how=stack), _form(PUSHED_BYTE, how=stack)
    one[0x8F, 0] = _form(POPPED, how=stack)
    one[0x9C], one[0xE8] = _form(PUSHED_FLAGS, how=stack), _form(RETURN_RELATIVE, how=stack)
    one[0xFF, 2], one[0xFF, 6] = (_form(n, how=stack) for n in (RETURN_OPERAND, PUSHED_OPERAND))
    for first, fields, source, operation in (
        (0x86, range(8), REGISTER, STORE),
        (0x88, range(8), REGISTER, STORE),
        (0xA2, range(8), ACCUMULATOR, STORE),
        (0xA4, range(8), STRING, STORE),
        (0xAA, range(8), ACCUMULATOR, STORE),
        (0xC6, (0,), IMMEDIATE, STORE),
        (0xF6, (2,), ALL_ONES, XOR),
        (0xF6, (3,), ALL_ONES, NEGATE),
        (0xFE, (0,), ONE, ADD),
        (0xFE, (1,), ONE, SUB),
        (0x1B0, range(8), REGISTER, COMPARE_EXCHANGE),
        (0x1C0, range(8), REGISTER, ADD),
    ):
        for n, form in enumerate(_both(source, operation)):
            table[first >> 8, (first & 0xFF) + n, list(fields)] = form
    # INS keeps its data to itself, and so do rotations through the carry.
    one[0x6C], one[0x6D] = _form(INPUT, 1), _form(INPUT, 4, how=ENVIRONMENT)
    shifts = (ROTATE_LEFT, ROTATE_RIGHT, -1, -1, SHIFT_LEFT, SHIFT_RIGHT, SHIFT_LEFT, SHIFT_SIGNED)
    for first, source in ((0xC0, SIGNED_BYTE), (0xD0, ONE), (0xD2, COUNT)):
        for field, operation in enumerate(shifts):
            known = operation >= 0
            forms = _both(source if known else UNKNOWN, operation if known else STORE)
            one[first : first + 2, field] = forms
    one[0x8C] = _form(SEGMENT, 2)
    two[0x00, 0], two[0x00, 1] = _form(LOCAL_TABLE, 2), _form(TASK_REGISTER, 2)
    two[0x01, (0, 1)] = _form(UNKNOWN, 6, how=LONGER)
    two[0x01, 4] = _form(UNKNOWN, 2)
    two[0x78] = _form(UNKNOWN, 4, how=LONGER)
    two[0x90:0xA0] = _form(FLAG, 1)
    two[(0xA4, 0xA5, 0xAC, 0xAD), :] = _form(UNKNOWN, how=BY_OPERAND_SIZE)
    for n, operation in enumerate((SET_BIT, CLEAR_BIT, FLIP_BIT)):
        two[0xAB + 8 * n] = _form(REGISTER, 0, operation, BY_OPERAND_SIZE)
        two[0xBA, 5 + n] = _form(SIGNED_BYTE, 0, operation, BY_OPERAND_SIZE)
    two[0xAE, 0], two[0xAE, 3] = _form(UNKNOWN, 512), _form(UNKNOWN, 4)
    two[0xC3] = _form(REGISTER, how=BY_OPERAND_SIZE)
    two[0xC7, 1] = _form(REGISTER, 8, COMPARE_EXCHANGE_8, WIDER)
    two[0xC7, 7] = _form(UNKNOWN, 8)
    # SSE's and MMX's; without a prefix and after 66H, F3H, F2H.
    for opcode, form in (
        (0x11, _sse(16, 16, 4, 8)),
        (0x13, _sse(8, 8)),
        (0x17, _sse(8, 8)),
        (0x29, _sse(16, 16)),
        (0x2B, _sse(16, 16)),
        (0x7E, _sse(4, 4) | WIDER),
        (0x7F, _sse(8, 16, 16)),
        (0xD6, _sse(0, 8)),
        (0xE7, _sse(8, 16)),
    ):
        two[opcode] = form
    for opcode, field, size in (
        *((0xD9, 2, 4), (0xD9, 3, 4), (0xD9, 7, 2)),
        *((0xDB, 1, 4), (0xDB, 2, 4), (0xDB, 3, 4), (0xDB, 7, 10)),
        *((0xDD, 1, 8), (0xDD, 2, 8), (0xDD, 3, 8), (0xDD, 7, 2)),
        *((0xDF, 1, 2), (0xDF, 2, 2), (0xDF, 3, 2), (0xDF, 6, 10), (0xDF, 7, 8)),
    ):
        one[opcode, field] = _form(UNKNOWN, size)
    one[0xD9, 6], one[0xDD, 6] = (_form(UNKNOWN, n, how=ENVIRONMENT) for n in (28, 108))
    return table.reshape(-1)


FORMS: Final = _forms()

MOVBE: Final = _form(SWAPPED, how=BY_OPERAND_SIZE)
EXTRACTS: Final = np.array([_sse(0, 1), _sse(0, 2), _sse(0, 4) | WIDER, _sse(0, 4)], np.int64)
"""PEXTRB, PEXTRW, PEXTRD (PEXTRQ) and EXTRACTPS: 0FH 3AH 14H to 17H."""
