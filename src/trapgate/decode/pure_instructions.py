"""Which instructions do nothing but read and compute: what loops are made of that wait for a time.

SDM, volume 2, "Opcode Map". Where in doubt, an instruction is not one of them.
"""

from trapgate.compiler.dialect import core
from trapgate.decode.length import code_at
from trapgate.operands.encoding import is_prefix

NOT_PURE, PURE = -1, 0
"""Of an instruction; a branch has the distance from its end to its target instead."""


@core
def signed_at(low: int, high: int, n: int, size: int) -> int:
    """The signed number of 1, 2 or 4 bytes at byte `n` of an instruction."""
    value = 0
    for k in range(size):
        value |= code_at(low, high, n + k) << (8 * k)
    sign = 1 << (8 * size - 1)
    return (value ^ sign) - sign


@core
def reads_alone(opcode: int, form: int, long: bool, on_stack: bool) -> bool:
    """Whether an instruction of one byte stores nothing to memory, and continues after itself.

    `form` is its ModR/M byte, if it has one; `long`: in 64-bit code; `on_stack`: its operand lies
    at a place in the stack, where MOV may put a register aside.
    """
    in_register = form >> 6 == 3
    operation = (form >> 3) & 7
    if opcode < 0x40:
        # ADD, OR, ADC, SBB, AND, SUB, XOR, CMP: not to memory, nor PUSH, POP and prefixes.
        kind = opcode & 7
        return kind < 6 and (kind >= 2 or in_register or opcode >= 0x38)
    if opcode == 0x63:
        return long
    if opcode in (0x69, 0x6B, 0x84, 0x85, 0x8A, 0x8B, 0x8D, 0x90, 0x98, 0x99, 0xA8, 0xA9):
        return True
    if opcode in (0x80, 0x81, 0x83):
        return in_register or operation == 7
    if opcode in (0x88, 0x89):
        return in_register or on_stack
    if opcode in (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3):
        return in_register
    if opcode in (0xF6, 0xF7):
        return in_register or operation == 0
    if opcode in (0xFE, 0xFF):
        return in_register and operation < 2
    return opcode & 0xF0 == 0xB0


@core
def reads_alone_0f(opcode: int, form: int) -> bool:
    """The same for an instruction whose opcode follows 0FH."""
    in_register = form >> 6 == 3
    operation = (form >> 3) & 7
    if opcode == 0x01:
        return form == 0xF9
    if opcode == 0xAE:
        # LFENCE, MFENCE, SFENCE.
        return in_register and operation >= 5
    if opcode == 0xBA:
        return operation == 4
    if opcode & 0xF0 == 0x90 or opcode in (0xA4, 0xA5, 0xAC, 0xAD):
        return in_register
    return opcode & 0xF0 == 0x40 or opcode in (0x1F, 0x31, 0xA3, 0xAF, 0xB6, 0xB7, 0xBE, 0xBF)


@core
def step_of(low: int, high: int, length: int, long: bool, wide: bool) -> int:
    """What the instruction that begins with these bytes does: PURE, NOT_PURE, or a branch.

    `long` and `wide` as for `length_of`. No loop's branch leads one byte back.
    """
    rex = 0
    n = 0
    byte = code_at(low, high, 0)
    prefixed = False
    while n < length and is_prefix(byte, long):
        # Not LOCK; nor what makes addresses, operands of branches or a whole loop of it.
        if byte in (0xF0, 0xF2, 0x67, 0x66):
            return NOT_PURE
        prefixed = prefixed or byte == 0xF3
        rex = byte if byte & 0xF0 == 0x40 else 0
        n += 1
        byte = code_at(low, high, n)
    form = code_at(low, high, n + 1)
    if prefixed:
        return PURE if byte == 0x90 else NOT_PURE
    if byte & 0xF0 == 0x70 or byte == 0xEB:
        distance = signed_at(low, high, n + 1, 1)
    elif byte == 0xE9:
        distance = signed_at(low, high, n + 1, length - n - 1)
    elif byte != 0x0F:
        if byte & 0xF0 == 0x40 and not long:
            return PURE
        # [RSP], or with a displacement.
        by_rsp = form & 7 == 4 and code_at(low, high, n + 2) & 0x3F == 0x24 and rex & 3 == 0
        return PURE if reads_alone(byte, form, long, by_rsp and (long or wide)) else NOT_PURE
    elif form & 0xF0 == 0x80:
        distance = signed_at(low, high, n + 2, length - n - 2)
    else:
        return PURE if reads_alone_0f(form, code_at(low, high, n + 2)) else NOT_PURE
    if distance == PURE or (distance > 0 and byte in (0xEB, 0xE9)):
        return NOT_PURE
    return distance
