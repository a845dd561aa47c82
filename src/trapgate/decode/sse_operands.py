"""What prefixes mean to SSE instructions, and which of their memory operands must be aligned.

SDM, volume 2, "Instruction Prefixes" and "Instructions Exception Specification", types 1, 2 and 4:
operands of 16 bytes in memory are aligned to 16 bytes or raise #GP(0), but for those of
MOVUPS, MOVUPD, MOVDQU, LDDQU and of the instructions on strings (PCMPESTRI and its like).
"""

from collections.abc import Iterable

import numpy as np

from trapgate.compiler.dialect import Cells, core

_NONE, _66, _F3, _F2 = 1, 2, 4, 8
_PACKED = _NONE | _66
"""Of an instruction whose other forms are scalar."""

_38, _3A = 0x100, 0x200


def _table(rows: Iterable[tuple[Iterable[int], int]]) -> Cells:
    """A cell for each opcode of 0FH, 0FH 38H and 0FH 3AH: the prefixes it is aligned after."""
    table = np.zeros(0x300, np.int64)
    for opcodes, prefixes in rows:
        for opcode in opcodes:
            table[opcode] |= prefixes
    return table


_ALIGNED = _table(
    (
        ((0x14, 0x15, 0x28, 0x29, 0x2B), _PACKED),  # UNPCK, MOVAPS, MOVNTPS
        ((0x12, 0x16), _F3),  # MOVSLDUP, MOVSHDUP
        ((0x2C, 0x2D), _66),  # CVTTPD2PI, CVTPD2PI
        ((0x51, *range(0x54, 0x5A), *range(0x5C, 0x60)), _PACKED),  # arithmetic
        ((0x52, 0x53), _NONE),  # RSQRTPS, RCPPS
        ((0x5A,), _66),  # CVTPD2PS
        ((0x5B,), _PACKED | _F3),  # CVTDQ2PS and back
        (range(0x60, 0x6E), _66),
        ((0x6F, 0x7F, 0xE7), _66),  # MOVDQA, MOVNTDQ
        ((0x70,), _66 | _F3 | _F2),  # PSHUFD, PSHUFHW, PSHUFLW
        ((0x74, 0x75, 0x76), _66),  # PCMPEQ
        ((0x7C, 0x7D, 0xD0), _66 | _F2),  # HADD, HSUB, ADDSUB
        ((0xC2, 0xC6), _PACKED),  # CMPPS, SHUFPS
        ((*range(0xD1, 0xD6), *range(0xD8, 0xE6)), _66),
        ((0xE6,), _66 | _F2),  # CVTTPD2DQ, CVTPD2DQ
        ((*range(0xE8, 0xF0), *range(0xF1, 0xF7), *range(0xF8, 0xFF)), _66),
        ((_38 | n for n in (*range(0x0C), 0x10, 0x14, 0x15, 0x17)), _66),
        ((_38 | n for n in (0x1C, 0x1D, 0x1E, *range(0x28, 0x2C))), _66),
        ((_38 | n for n in range(0x37, 0x42)), _66),
        ((_3A | n for n in (0x08, 0x09, *range(0x0C, 0x10), 0x40, 0x41, 0x42)), _66),
    )
)


@core
def has_aligned_operand(escape: int, opcode: int, repeat: int, operand_size: bool) -> bool:
    """Whether an operand in memory of the instruction must be aligned to 16 bytes.

    `escape` is 38H or 3AH where that is between 0FH and `opcode`, else 0; `repeat` the last of
    F2H and F3H among the prefixes, or 0; `operand_size`: 66H is among them.
    """
    prefix = _NONE
    if repeat == 0xF3:
        prefix = _F3
    elif repeat == 0xF2:
        prefix = _F2
    elif operand_size:
        prefix = _66
    place = opcode
    if escape == 0x38:
        place = opcode | _38
    elif escape == 0x3A:
        place = opcode | _3A
    return int(_ALIGNED[place]) & prefix != 0


@core
def is_chosen_by_prefix(opcode: int) -> bool:
    """Whether 66H, F2H and F3H before 0FH `opcode` choose among instructions.

    The last of F2H and F3H does then, and 66H counts only without them.
    """
    return bool(
        0x10 <= opcode <= 0x17
        or 0x28 <= opcode <= 0x2F
        or 0x50 <= opcode <= 0x7F
        or opcode in (0xC2, 0xC4, 0xC5, 0xC6)
        or opcode >= 0xD0
    )


@core
def mmx_destination(escape: int, opcode: int, form: int) -> int:
    """The MMX register that an instruction of `uses_mmx_registers` writes; -1 if it writes none.

    `form` is its ModR/M byte.
    """
    if escape != 0:
        return (form >> 3) & 7
    if opcode in (0x2A, 0x77, 0x7E, 0xC5, 0xD7, 0xE7, 0xF7):
        # CVTPI2PS, EMMS, MOVD from one, PEXTRW, PMOVMSKB, MOVNTQ, MASKMOVQ.
        return -1
    if opcode in (0x71, 0x72, 0x73):
        return form & 7
    if opcode == 0x7F:
        return form & 7 if form >= 0xC0 else -1
    return (form >> 3) & 7


@core
def uses_mmx_registers(escape: int, opcode: int, repeat: int, operand_size: bool) -> bool:
    """Whether 0FH (`escape` 38H, 3AH or 0) `opcode` uses a register of MMX, and so waits for #MF.

    `repeat` is the last of F2H and F3H among the prefixes, or 0; `operand_size`: 66H is there.
    """
    if escape == 0 and opcode in (0x2A, 0x2C, 0x2D):
        # Conversions of MMX registers; with F2H or F3H of general ones.
        return repeat == 0
    if escape == 0 and opcode == 0xD6:
        return repeat != 0
    if repeat != 0 or operand_size:
        return False
    if escape == 0x38:
        return bool(opcode <= 0x0B or 0x1C <= opcode <= 0x1E)
    if escape == 0x3A:
        return opcode == 0x0F
    return bool(
        0x60 <= opcode <= 0x6B
        or (0x6E <= opcode <= 0x77)
        or opcode in (0x7E, 0x7F, 0xC4, 0xC5)
        or (0xD1 <= opcode <= 0xFE and opcode not in (0xE6, 0xF0))
    )
