"""How many bytes an instruction has, undefined ones included: as many must be fetched before it is
decoded (SDM, "Priority Among Concurrent Events"; volume 2, appendix "Opcode Map").

Opcodes that no processor has given a format end with themselves.
"""

from collections.abc import Iterable

import numpy as np

from trapgate.compiler.dialect import Cells, core
from trapgate.decode.register_forms import bytes_of_operand
from trapgate.operands.encoding import is_prefix

MOST = 15
"""Bytes of the longest instruction."""

_MODRM = 1
_BYTE, _WORD, _FULL, _WIDE, _ENTER, _FAR, _OFFSET = (n << 1 for n in range(1, 8))
"""What follows: one byte; two; two or four; eight with REX.W; three; a far pointer; an offset."""


def _table(rows: Iterable[tuple[Iterable[int], int]]) -> Cells:
    table = np.zeros(256, np.int64)
    for opcodes, form in rows:
        for opcode in opcodes:
            table[opcode] |= form
    return table


_ONE_BYTE = _table(
    (
        ((row + n for row in range(0, 0x40, 8) for n in range(4)), _MODRM),
        ((row + 4 for row in range(0, 0x40, 8)), _BYTE),
        ((row + 5 for row in range(0, 0x40, 8)), _FULL),
        ((0x62, 0x63, 0x69, 0x6B, *range(0x80, 0x90)), _MODRM),
        ((0x68, 0x69, 0x81, 0xA9, 0xC7, 0xE8, 0xE9), _FULL),
        ((0x6A, 0x6B, *range(0x70, 0x80), 0x80, 0x82, 0x83, 0xA8, 0xC0, 0xC1, 0xC6), _BYTE),
        (range(0xA0, 0xA4), _OFFSET),
        (range(0xB0, 0xB8), _BYTE),
        (range(0xB8, 0xC0), _WIDE),
        ((0xC0, 0xC1, 0xC4, 0xC5, 0xC6, 0xC7, *range(0xD0, 0xD4), *range(0xD8, 0xE0)), _MODRM),
        ((0xC2, 0xCA), _WORD),
        ((0xC8,), _ENTER),
        ((0xCD, 0xD4, 0xD5, *range(0xE0, 0xE8), 0xEB), _BYTE),
        ((0x9A, 0xEA), _FAR),
        ((0xF6, 0xF7, 0xFE, 0xFF), _MODRM),
    )
)
_TWO_BYTES = _table(
    (
        ((0x00, 0x01, 0x02, 0x03, 0x0D, *range(0x10, 0x24), *range(0x28, 0x30)), _MODRM),
        ((*range(0x40, 0x77), 0x78, 0x79, *range(0x7C, 0x80), *range(0x90, 0xA0)), _MODRM),
        ((0xA3, 0xA4, 0xA5, *range(0xAB, 0xC8), *range(0xD0, 0x100)), _MODRM),
        ((0x70, 0x71, 0x72, 0x73, 0xA4, 0xAC, 0xBA, 0xC2, 0xC4, 0xC5, 0xC6), _BYTE),
        (range(0x80, 0x90), _FULL),
    )
)


@core
def code_at(low: int, high: int, n: int) -> int:
    """Byte `n` of sixteen, of which `low` are the first eight."""
    if n < 8:
        return (low >> (8 * n)) & 0xFF
    return (high >> (8 * (n & 7))) & 0xFF


@core
def length_of(low: int, high: int, long: bool, wide: bool) -> int:
    """The length of the instruction that begins with these sixteen bytes, MOST at most.

    `long`: in 64-bit code; `wide`: in other code whose operands have 32 bits by default.
    """
    size = 4 if wide or long else 2
    other_address = False
    rex = 0
    n = 0
    byte = code_at(low, high, 0)
    while n < MOST and is_prefix(byte, long):
        # REX counts right before the opcode only.
        rex = byte if byte & 0xF0 == 0x40 else 0
        if byte == 0x66:
            size = 2 if wide or long else 4
        elif byte == 0x67:
            other_address = True
        n += 1
        byte = code_at(low, high, n)
    short = other_address == wide and not long
    n += 1
    form = int(_ONE_BYTE[byte])
    branches = byte in (0xE8, 0xE9)
    registers = False
    if long and byte in (0x62, 0x9A, 0xC4, 0xC5, 0xD4, 0xD5, 0xEA):
        # Not in 64-bit mode.
        form = 0
    elif byte == 0x0F:
        byte = code_at(low, high, n)
        n += 1
        form = int(_TWO_BYTES[byte])
        branches = byte & 0xF0 == 0x80
        # MOV CR and MOV DR, whatever mod says.
        registers = byte & 0xFC == 0x20
        if byte in (0x38, 0x3A):
            n += 1
            form = _MODRM if byte == 0x38 else _MODRM | _BYTE
    elif byte in (0xF6, 0xF7) and code_at(low, high, n) & 0x30 == 0:
        # TEST.
        form |= _BYTE if byte == 0xF6 else _FULL
    if rex & 8 or (long and branches):
        size = 4
    if form & _MODRM:
        if not registers:
            modrm = code_at(low, high, n)
            n += bytes_of_operand(modrm, code_at(low, high, n + 1), short)
        n += 1
    address = 2 if short else 4
    if long and not other_address:
        address = 8
    return min(n + bytes_of_constant(form & ~_MODRM, rex, size, address), MOST)


@core
def bytes_of_constant(form: int, rex: int, size: int, address: int) -> int:
    """How many bytes end the instruction, for operands and addresses of such sizes."""
    if form == _BYTE:
        return 1
    if form == _WORD:
        return 2
    if form == _FULL:
        return size
    if form == _WIDE:
        return 8 if rex & 8 else size
    if form == _ENTER:
        return 3
    if form == _FAR:
        return 2 + size
    return address if form == _OFFSET else 0
