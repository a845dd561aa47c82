"""The instructions of GDTR, IDTR, LDTR and TR: 0FH 00H and 0FH 01H with reg 0 to 3.

Loads are carried out here, stores only where they might exit: by "descriptor-table exiting" or a
criteria table.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.intercepts import (
    EXITED,
    GO_ON,
    RAISE_FAULT,
    RAISE_GP,
    RAISE_UD,
    exit_where,
    secondary_controls,
)
from trapgate.instructions.table_registers import (
    NO_FAULT,
    load_descriptor_table,
    load_system_segment,
)
from trapgate.operands.encoding import (
    INFO_REGISTER,
    decode_operand,
    has_prefix,
    operand_offset,
    register_value,
    set_register,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.walk import WRITE
from trapgate.sdm.cells import (
    CRITERIA_TABLE_INSTRUCTIONS,
    GUEST_CR0,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_GDTR_BASE,
    GUEST_GDTR_LIMIT,
    GUEST_IDTR_BASE,
    GUEST_IDTR_LIMIT,
    GUEST_LDTR_SELECTOR,
    GUEST_RFLAGS,
    GUEST_TR_SELECTOR,
    VM_EXIT_INSTRUCTION_INFORMATION,
)
from trapgate.sdm.controls import SECONDARY_DESCRIPTOR_TABLE_EXITING
from trapgate.sdm.reasons import REASON_GDTR_OR_IDTR_ACCESS, REASON_LDTR_OR_TR_ACCESS
from trapgate.sdm.state import AR_DB, CR0_PE, RFLAGS_VM
from trapgate.sdm.vmx import FAULT_ADDRESS, FAULT_ERROR, FAULT_VECTOR
from trapgate.vmx.operand import operand_linear, operand_pages, read_operand, write_operand

NO_TABLE_INSTRUCTION = -1
"""Another one of 0FH 00H or 0FH 01H, or a store that nothing can make exit."""


@core
def execute_table(
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
    """Exit for, or carry out, the instruction 0FH `second` `third`: (outcome, length).

    SDM, tables "Format of the VM-Exit Instruction-Information Field" for these instructions.
    """
    field = (third >> 3) & 7
    if field > 3 or (second == 1 and third >= 0xC0):
        return NO_TABLE_INSTRUCTION, 0
    usual = secondary_controls(v) & SECONDARY_DESCRIPTOR_TABLE_EXITING != 0
    if field < 2 and not usual and v[CRITERIA_TABLE_INSTRUCTIONS] == 0:
        return NO_TABLE_INSTRUCTION, 0
    if second == 0 and has_no_system_segments(v):
        return RAISE_UD, 0
    if field > 1 and privilege_level(v) != 0:
        return RAISE_GP, 0
    length, information, displacement = decode_operand(v, mem, word, start, rex, start + 2)
    information = information & 0xFFF_FFFF
    small = not in_64_bit_mode(v) and v[GUEST_CS_ACCESS_RIGHTS] & AR_DB == 0
    if has_prefix(word, start, 0x66):
        small = not small
    reason = REASON_GDTR_OR_IDTR_ACCESS if second == 1 else REASON_LDTR_OR_TR_ACCESS
    which = field if second == 1 else field + 4
    if exit_where(v, usual, reason, displacement, which, length) == EXITED:
        if second == 1 and (in_64_bit_mode(v) or not small):
            information = information | 1 << 11
        v[VM_EXIT_INSTRUCTION_INFORMATION] = information | field << 28
        return EXITED, length
    if field < 2:
        size = 8 if rex & 8 else 4
        size = 2 if small and size == 4 else size
        return store_table(v, r, mem, x, second, field, information, displacement, size), length
    if second == 0 and information & INFO_REGISTER:
        selector = register_value(v, r, (information >> 3) & 0xF) & 0xFFFF
        return load_segment(v, mem, x, selector, field), length
    span = operand_span(v, second)
    offset = operand_offset(v, r, information, displacement)
    outcome, linear = operand_linear(v, (information >> 15) & 7, offset, span, 0)
    if outcome != GO_ON:
        return outcome, length
    outcome, value = read_operand(x, v, mem, linear, 2)
    if outcome != GO_ON:
        return outcome, length
    if second == 0:
        return load_segment(v, mem, x, value, field), length
    outcome, base = read_operand(x, v, mem, linear + 2, span - 2)
    if outcome != GO_ON:
        return outcome, length
    if not in_64_bit_mode(v) and small:
        base = base & 0xFF_FFFF
    if not load_descriptor_table(v, field == 3, base, value):
        return RAISE_GP, length
    return GO_ON, length


@core
def store_table(
    v: Cells,
    r: Cells,
    mem: Memory,
    x: Cells,
    second: int,
    field: int,
    information: int,
    displacement: int,
    size: int,
) -> int:
    """SGDT, SIDT, SLDT or STR, where they were intercepted and do not exit; see `execute_table`.

    `size` is the operand's, which only a register has that SLDT or STR stores to.
    """
    value = v[GUEST_GDTR_LIMIT] if field == 0 else v[GUEST_IDTR_LIMIT]
    if second == 0:
        value = v[GUEST_LDTR_SELECTOR] if field == 0 else v[GUEST_TR_SELECTOR]
    value = int(value) & 0xFFFF
    if information & INFO_REGISTER:
        number = (information >> 3) & 0xF
        if size == 2:
            value |= register_value(v, r, number) & ~0xFFFF
        set_register(v, r, number, value)
        return GO_ON
    span = operand_span(v, second)
    offset = operand_offset(v, r, information, displacement)
    outcome, linear = operand_linear(v, (information >> 15) & 7, offset, span, 1)
    if outcome != GO_ON:
        return outcome
    # All of it can be written, or nothing is.
    outcome, _, _ = operand_pages(x, v, mem, linear, span, WRITE)
    if outcome == GO_ON:
        outcome = write_operand(x, v, mem, linear, 2, value)
    if outcome != GO_ON or second == 0:
        return outcome
    base = int(v[GUEST_GDTR_BASE]) if field == 0 else int(v[GUEST_IDTR_BASE])
    return write_operand(x, v, mem, linear + 2, span - 2, base)


@core
def operand_span(v: Cells, second: int) -> int:
    """Bytes of the operand in memory: a selector, or a limit and a base."""
    if second == 0:
        return 2
    return 10 if in_64_bit_mode(v) else 6


@core
def load_segment(v: Cells, mem: Memory, x: Cells, selector: int, field: int) -> int:
    """LLDT (`field` 2) or LTR (3)."""
    vector, error, address = load_system_segment(v, mem, selector, field == 3)
    if vector == NO_FAULT:
        return GO_ON
    x[FAULT_VECTOR] = vector
    x[FAULT_ERROR] = error
    x[FAULT_ADDRESS] = address
    return RAISE_FAULT


@core
def has_no_system_segments(v: Cells) -> bool:
    """Whether the mode has no LDT and no task register: real-address and virtual-8086 mode."""
    return bool(v[GUEST_CR0] & CR0_PE == 0 or v[GUEST_RFLAGS] & RFLAGS_VM != 0)
