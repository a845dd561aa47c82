"""POPCNT and CRC32 in 16-bit code, of which the engine takes the operand to have 32 bits.

SDM, volume 2, "POPCNT - Return the Count of Number of Bits Set to 1", "CRC32 - Accumulate CRC32
Value": in 16-bit code 66H makes it 32 bits, as it does for other instructions.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.intercepts import GO_ON
from trapgate.operands.encoding import (
    INFO_REGISTER,
    decode_operand,
    has_prefix,
    operand_offset,
    register_value,
    set_register,
)
from trapgate.sdm.cells import GUEST_RFLAGS
from trapgate.sdm.state import (
    RFLAGS_AF,
    RFLAGS_CF,
    RFLAGS_OF,
    RFLAGS_PF,
    RFLAGS_SF,
    RFLAGS_ZF,
)
from trapgate.vmx.operand import operand_linear, read_operand

_LOW = 0xFFFF_FFFF
_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF
_CASTAGNOLI = 0x82F6_3B78
"""The polynomial 11EDC6F41H without its highest bit, bits in reverse."""


@core
def is_misread_in_16_bit_code(second: int, third: int, repeat: int) -> bool:
    """Whether 0FH `second` `third` is one of these; `repeat` is the last of F2H and F3H, or 0."""
    if second == 0xB8:
        return repeat == 0xF3
    return second == 0x38 and third == 0xF1 and repeat == 0xF2


@core
def count_of_bits(value: int) -> int:
    """How many bits of a number from 0 on are 1."""
    count = 0
    while value != 0:
        value &= value - 1
        count += 1
    return count


@core
def crc32_with(crc: int, value: int, size: int) -> int:
    """The checksum `crc` with `size` more bytes."""
    crc ^= value
    for _ in range(8 * size):
        crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc


@core
def execute_in_16_bit_code(
    v: Cells, r: Cells, mem: Memory, x: Cells, word: int, start: int, second: int
) -> tuple[int, int]:
    """Carry out the one with `start` prefix bytes in `word`: (outcome, length)."""
    size = 4 if has_prefix(word, start, 0x66) else 2
    mask = _LOW if size == 4 else 0xFFFF
    form_at = start + 2 if second == 0xB8 else start + 3
    length, information, displacement = decode_operand(v, mem, word, start, 0, form_at)
    number = (information >> 28) & 7
    if information & INFO_REGISTER:
        value = register_value(v, r, (information >> 3) & 7)
    else:
        offset = operand_offset(v, r, information, displacement)
        outcome, linear = operand_linear(v, (information >> 15) & 7, offset, size, 0)
        if outcome != GO_ON:
            return outcome, length
        outcome, value = read_operand(x, v, mem, linear, size)
        if outcome != GO_ON:
            return outcome, length
    value &= mask
    old = register_value(v, r, number)
    if second == 0xB8:
        result = old & ~mask | count_of_bits(value)
        v[GUEST_RFLAGS] = v[GUEST_RFLAGS] & ~_STATUS | (RFLAGS_ZF if value == 0 else 0)
    else:
        result = crc32_with(old & _LOW, value, size)
    set_register(v, r, number, result & _LOW)
    return GO_ON, length
