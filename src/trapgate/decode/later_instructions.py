"""Instructions that came after the engine's processor model, carried out by the core.

RDFSBASE and its sisters, INVPCID, CLFLUSHOPT (and CLFLUSH), RDRAND; POPCNT and CRC32 in 16-bit
code; and the #NM of XSAVE and XRSTOR. SDM, volume 2, the instructions' pages.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.decode.sixteen_bit_code import execute_in_16_bit_code, is_misread_in_16_bit_code
from trapgate.instructions.effects import address_is_canonical
from trapgate.instructions.intercepts import (
    EXITED,
    GO_ON,
    RAISE_FAULT,
    RAISE_GP,
    RAISE_UD,
    exit_where,
    secondary_controls,
)
from trapgate.operands.encoding import (
    code_byte,
    decode_operand,
    has_prefix,
    last_repeat,
    operand_offset,
    register_value,
    set_register,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.walk import READ
from trapgate.sdm.cells import (
    GUEST_CR4,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_FS_BASE,
    GUEST_GS_BASE,
    GUEST_RFLAGS,
    PRIMARY_PROCESSOR_BASED_CONTROLS,
    VM_EXIT_INSTRUCTION_INFORMATION,
)
from trapgate.sdm.controls import PRIMARY_INVLPG_EXITING, SECONDARY_INVPCID
from trapgate.sdm.reasons import REASON_INVPCID
from trapgate.sdm.state import (
    AR_DB,
    CR4_FSGSBASE,
    CR4_OSXSAVE,
    CR4_PCIDE,
    RFLAGS_AF,
    RFLAGS_CF,
    RFLAGS_OF,
    RFLAGS_PF,
    RFLAGS_SF,
    RFLAGS_VM,
    RFLAGS_ZF,
)
from trapgate.sdm.vectors import NM
from trapgate.sdm.vmx import FAULT_ERROR, FAULT_VECTOR, FLUSH, RANDOM
from trapgate.vmx.operand import (
    operand_linear,
    operand_pages,
    read_operand,
)

NO_LATER_INSTRUCTION = -1
_LOW = 0xFFFF_FFFF
_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF
_XSAVE, _XRSTOR, _CLFLUSH = 4, 5, 7
_RDRAND = 6


@core
def execute_later(
    v: Cells,
    r: Cells,
    mem: Memory,
    x: Cells,
    word: int,
    start: int,
    rex: int,
    second: int,
    third: int,
) -> tuple[int, int]:
    """Carry out the instruction 0FH `second` `third`, if it is one of these: (outcome, length)."""
    field = (third >> 3) & 7
    if is_misread_in_16_bit_code(second, third, last_repeat(word, start)):
        if in_64_bit_mode(v) or v[GUEST_CS_ACCESS_RIGHTS] & AR_DB:
            return RAISE_UD, 0
        return execute_in_16_bit_code(v, r, mem, x, word, start, second)
    if second == 0xAE and third >= 0xC0 and field < 4 and has_prefix(word, start, 0xF3):
        return access_base(v, r, rex, field, third & 7 | (rex & 1) << 3), start + 3
    if second == 0xAE and third < 0xC0 and field == _CLFLUSH:
        return flush_line(v, r, mem, x, word, start, rex)
    if second == 0xAE and third < 0xC0 and field in (_XSAVE, _XRSTOR):
        if v[GUEST_CR4] & CR4_OSXSAVE == 0:
            return RAISE_UD, 0
        # Only with CR0.TS do they come here.
        x[FAULT_VECTOR] = NM
        x[FAULT_ERROR] = -1
        return RAISE_FAULT, 0
    if second == 0xC7 and third >= 0xC0 and field == _RDRAND:
        if has_prefix(word, start, 0xF3) or has_prefix(word, start, 0xF2):
            return RAISE_UD, 0
        small = not in_64_bit_mode(v) and v[GUEST_CS_ACCESS_RIGHTS] & AR_DB == 0
        if has_prefix(word, start, 0x66):
            small = not small
        size = 2 if small else 4
        if rex & 8:
            size = 8
        set_random(v, r, x, third & 7 | (rex & 1) << 3, size)
        return GO_ON, start + 3
    if second == 0x38 and third == 0x82 and has_prefix(word, start, 0x66):
        return invalidate_by_pcid(v, r, mem, x, word, start, rex)
    return NO_LATER_INSTRUCTION, 0


@core
def access_base(v: Cells, r: Cells, rex: int, field: int, number: int) -> int:
    """RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE (`field` 0 to 3)."""
    if not in_64_bit_mode(v) or v[GUEST_CR4] & CR4_FSGSBASE == 0:
        return RAISE_UD
    base = GUEST_GS_BASE if field & 1 else GUEST_FS_BASE
    mask = -1 if rex & 8 else _LOW
    if field < 2:
        set_register(v, r, number, v[base] & mask)
        return GO_ON
    value = register_value(v, r, number) & mask
    if not address_is_canonical(value):
        return RAISE_GP
    v[base] = value
    return GO_ON


@core
def flush_line(
    v: Cells, r: Cells, mem: Memory, x: Cells, word: int, start: int, rex: int
) -> tuple[int, int]:
    """CLFLUSH and CLFLUSHOPT: there are no caches, but the operand is checked as a load's."""
    length, information, displacement = decode_operand(v, mem, word, start, rex, start + 2)
    offset = operand_offset(v, r, information, displacement)
    outcome, linear = operand_linear(v, (information >> 15) & 7, offset, 1, 0)
    if outcome == GO_ON:
        outcome, _, _ = operand_pages(x, v, mem, linear, 1, READ)
    return outcome, length


@core
def next_random(x: Cells) -> int:
    """Thirty-two bits that depend on nothing but the seed: xorshift, never 0."""
    state = x[RANDOM] & _LOW
    if state == 0:
        state = 0x2545_F491
    state = (state ^ (state << 13)) & _LOW
    state = state ^ (state >> 17)
    state = (state ^ (state << 5)) & _LOW
    x[RANDOM] = state
    return int(state)


@core
def set_random(v: Cells, r: Cells, x: Cells, number: int, size: int) -> None:
    """RDRAND of `size` bytes, which always succeeds."""
    value = next_random(x)
    if size == 8:
        high = (next_random(x) ^ 0x8000_0000) - 0x8000_0000
        value = value | high << 32
    elif size == 2:
        value = register_value(v, r, number) & ~0xFFFF | value & 0xFFFF
    set_register(v, r, number, value)
    v[GUEST_RFLAGS] = v[GUEST_RFLAGS] & ~_STATUS | RFLAGS_CF


@core
def invalidate_by_pcid(
    v: Cells, r: Cells, mem: Memory, x: Cells, word: int, start: int, rex: int
) -> tuple[int, int]:
    """INVPCID; translations have no tags, so that each type flushes everything."""
    if code_byte(v, mem, word, start + 3) >= 0xC0:
        return RAISE_UD, 0
    if secondary_controls(v) & SECONDARY_INVPCID == 0:
        return RAISE_UD, 0
    if privilege_level(v) != 0 or v[GUEST_RFLAGS] & RFLAGS_VM:
        return RAISE_GP, 0
    length, information, displacement = decode_operand(v, mem, word, start, rex, start + 3)
    kind = register_value(v, r, (information >> 28) & 0xF)
    if not in_64_bit_mode(v):
        kind = kind & _LOW
    usual = v[PRIMARY_PROCESSOR_BASED_CONTROLS] & PRIMARY_INVLPG_EXITING != 0
    if exit_where(v, usual, REASON_INVPCID, displacement, kind, length) == EXITED:
        v[VM_EXIT_INSTRUCTION_INFORMATION] = information
        return EXITED, length
    if kind < 0 or kind > 3:
        return RAISE_GP, length
    offset = operand_offset(v, r, information, displacement)
    outcome, linear = operand_linear(v, (information >> 15) & 7, offset, 16, 0)
    if outcome != GO_ON:
        return outcome, length
    outcome, pcid = read_operand(x, v, mem, linear, 8)
    if outcome != GO_ON:
        return outcome, length
    outcome, address = read_operand(x, v, mem, linear + 8, 8)
    if outcome != GO_ON:
        return outcome, length
    if kind < 2 and (pcid & ~0xFFF != 0 or (pcid != 0 and v[GUEST_CR4] & CR4_PCIDE == 0)):
        return RAISE_GP, length
    if kind == 0 and not address_is_canonical(address):
        return RAISE_GP, length
    x[FLUSH] = 1
    return GO_ON, length
