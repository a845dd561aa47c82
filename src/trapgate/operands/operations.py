"""What operations make of operands: cut to their size, extended, shifted, combined."""

from trapgate.compiler.dialect import Cells, core
from trapgate.operands.store_forms import (
    ADC,
    ADD,
    AND,
    CLEAR_BIT,
    COMPARE_EXCHANGE,
    COMPARE_EXCHANGE_8,
    NEGATE,
    OR,
    ROTATE_RIGHT,
    SBB,
    SET_BIT,
    SHIFT_LEFT,
    SHIFT_RIGHT,
    SHIFT_SIGNED,
    SUB,
    XOR,
)
from trapgate.sdm.registers import RAX, RBX, RCX, RDX

_LOW = 0xFFFF_FFFF


@core
def wrap_64(value: int) -> int:
    """A value modulo 2^64, with sign, as the cells have it."""
    high = (value >> 32) & _LOW
    return ((high ^ 0x8000_0000) - 0x8000_0000) << 32 | value & _LOW


@core
def cut(value: int, size: int) -> int:
    """The low bytes of a value; eight of them are two's complement."""
    return wrap_64(value) if size >= 8 else value & ((1 << (8 * size)) - 1)


@core
def extended(value: int, size: int) -> int:
    """The low bytes of a value, extended by their sign."""
    sign = 1 << (8 * min(size, 4) - 1)
    return wrap_64(value) if size >= 8 else (cut(value, size) ^ sign) - sign


@core
def flag_condition(rflags: int, condition: int) -> int:
    """1 if a condition of Jcc and SETcc, by its number, holds, else 0."""
    carry = rflags & 1
    parity = (rflags >> 2) & 1
    zero = (rflags >> 6) & 1
    sign = (rflags >> 7) & 1
    overflow = (rflags >> 11) & 1
    which = condition >> 1
    value = overflow
    if which == 1:
        value = carry
    elif which == 2:
        value = zero
    elif which == 3:
        value = carry | zero
    elif which == 4:
        value = sign
    elif which == 5:
        value = parity
    elif which == 6:
        value = sign ^ overflow
    elif which == 7:
        value = (sign ^ overflow) | zero
    return value ^ (condition & 1)


@core
def swapped(value: int, size: int) -> int:
    """The bytes of a value in the other order."""
    result = 0
    for n in range(size):
        result = wrap_64(result << 8) | (value >> (8 * n)) & 0xFF
    return result


@core
def shifted(operation: int, old: int, count: int, size: int) -> int:
    """What a shift or rotation makes of `size` bytes."""
    bits = 8 * size
    count &= 0x3F if size == 8 else 0x1F
    if operation == SHIFT_LEFT:
        return old << count
    if operation == SHIFT_SIGNED:
        return extended(old, size) >> count
    if operation != SHIFT_RIGHT:
        count &= bits - 1
        if operation == ROTATE_RIGHT:
            count = (bits - count) & (bits - 1)
    if count == 0:
        return old
    if operation == SHIFT_RIGHT:
        return (old >> count) & ((1 << (64 - count)) - 1)
    # The bits that leave at the top come back at the bottom.
    return old << count | (old >> (bits - count)) & ((1 << count) - 1)


@core
def combined(r: Cells, operation: int, old: int, source: int, size: int, carry: int) -> int:
    """What an operation stores that reads its operand; not cut to `size` bytes."""
    if operation == COMPARE_EXCHANGE:
        return source if cut(int(r[RAX]), size) == old else old
    if operation == COMPARE_EXCHANGE_8:
        expected = wrap_64((int(r[RDX]) & _LOW) << 32) | int(r[RAX]) & _LOW
        return (int(r[RCX]) & _LOW) << 32 | int(r[RBX]) & _LOW if expected == old else old
    if operation == ADD:
        return old + source
    if operation == ADC:
        return old + source + carry
    if operation == SBB:
        return old - source - carry
    if operation == SUB:
        return old - source
    if operation == OR:
        return old | source
    if operation == AND:
        return old & source
    if operation == XOR:
        return old ^ source
    if operation == NEGATE:
        return -old
    if operation < SET_BIT:
        return shifted(operation, old, source, size)
    bit = 1 << (source & (8 * size - 1))
    if operation == SET_BIT:
        return old | bit
    return old & ~bit if operation == CLEAR_BIT else old ^ bit
