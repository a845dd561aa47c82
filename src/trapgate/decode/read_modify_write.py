"""Which instructions read their memory operand in order to write it.

The processor checks such an access once, as a write: the page-fault error code has W
set even where the page could not be read either (SDM, "Page-Fault Exceptions"; each
instruction's "Operation"). An engine that does the load first reports a read.
"""

from trapgate.compiler.dialect import core, inlined
from trapgate.operands.encoding import prefix_length


@core
def stores_once(word: int, long: bool) -> bool:
    """Whether the instruction, in 64-bit code if `long`, is a common one with a single store.

    Where that is so, one store is all that it does to memory: MOV, MOVS and STOS (one
    iteration), and what writes what it reads. CMPXCHG16B stores twice.
    """
    start = prefix_length(word, long)
    if start > 5:
        return False
    opcode = (word >> (8 * start)) & 0xFF
    if opcode in (0x88, 0x89, 0xA2, 0xA3, 0xA4, 0xA5, 0xAA, 0xAB, 0xC6, 0xC7):
        return True
    if long and opcode == 0x0F and (word >> (8 * start + 8)) & 0xFF == 0xC7:
        return False
    return opcode_writes_what_it_reads(word, start)


@core
def repeats(word: int, long: bool) -> bool:
    """Whether the instruction is a string store with a repeat prefix."""
    start = prefix_length(word, long)
    repeated = False
    for n in range(start):
        byte = (word >> (8 * n)) & 0xFF
        repeated = repeated or byte in (0xF2, 0xF3)
    opcode = (word >> (8 * start)) & 0xFF
    return repeated and opcode in (0xA4, 0xA5, 0xAA, 0xAB)


@core
@inlined
def opcode_writes_what_it_reads(word: int, start: int) -> bool:
    """Whether the instruction in `word`, after `start` bytes of prefixes, does so, if it has such
    an operand.
    """
    if start > 5:
        return False
    opcode = (word >> (8 * start)) & 0xFF
    after = (word >> (8 * start + 8)) & 0xFF
    if opcode == 0x0F:
        return (fields_of_two_bytes(after) >> ((word >> (8 * start + 19)) & 7)) & 1 != 0
    return (fields_of_one_byte(opcode) >> (after >> 3 & 7)) & 1 != 0


@core
@inlined
def fields_of_one_byte(opcode: int) -> int:
    """With which middle fields of the ModR/M byte a one-byte opcode does so, a bit each."""
    if opcode < 0x38:
        # ADD, OR, ADC, SBB, AND, SUB, XOR r/m, r.
        return 0xFF if opcode & 6 == 0 else 0
    if 0x80 <= opcode <= 0x83:
        return 0x7F
    if opcode in (0x86, 0x87, 0xC0, 0xC1) or 0xD0 <= opcode <= 0xD3:
        return 0xFF
    if opcode in (0xF6, 0xF7):
        return 1 << 2 | 1 << 3
    return 3 if opcode in (0xFE, 0xFF) else 0


@core
def fields_of_two_bytes(opcode: int) -> int:
    """The same for opcodes after 0FH."""
    if opcode in (0xA4, 0xA5, 0xAC, 0xAD, 0xAB, 0xB3, 0xBB):
        # SHLD, SHRD, BTS, BTR, BTC.
        return 0xFF
    if opcode == 0xBA:
        return 7 << 5
    if opcode in (0xB0, 0xB1, 0xC0, 0xC1):
        # CMPXCHG, XADD.
        return 0xFF
    return 1 << 1 if opcode == 0xC7 else 0
