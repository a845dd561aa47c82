"""The instructions of GDTR, IDTR, LDTR and TR: 0FH 00H and 0FH 01H with reg 0 to 3.

Loads are carried out here; stores only as far as "descriptor-table exiting" is concerned.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.exits import vm_exit
from trapgate.instructions.intercepts import (
    EXITED,
    GO_ON,
    RAISE_FAULT,
    RAISE_GP,
    RAISE_UD,
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
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_RFLAGS,
    VM_EXIT_INSTRUCTION_INFORMATION,
)
from trapgate.sdm.controls import SECONDARY_DESCRIPTOR_TABLE_EXITING
from trapgate.sdm.reasons import REASON_GDTR_OR_IDTR_ACCESS, REASON_LDTR_OR_TR_ACCESS
from trapgate.sdm.state import AR_DB, CR0_PE, RFLAGS_VM
from trapgate.sdm.vmx import FAULT_ADDRESS, FAULT_ERROR, FAULT_VECTOR
from trapgate.vmx.operand import (
    operand_linear,
    read_operand,
)

NO_TABLE_INSTRUCTION = -1
"""Another one of 0FH 00H or 0FH 01H, or a store that does not exit."""


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
    exits = secondary_controls(v) & SECONDARY_DESCRIPTOR_TABLE_EXITING != 0
    if field < 2 and not exits:
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
    if exits:
        reason = REASON_LDTR_OR_TR_ACCESS
        if second == 1:
            reason = REASON_GDTR_OR_IDTR_ACCESS
            if in_64_bit_mode(v) or not small:
                information = information | 1 << 11
        vm_exit(v, reason, displacement, length)
        v[VM_EXIT_INSTRUCTION_INFORMATION] = information | field << 28
        return EXITED, length
    if second == 0 and information & INFO_REGISTER:
        selector = register_value(v, r, (information >> 3) & 0xF) & 0xFFFF
        return load_segment(v, mem, x, selector, field), length
    span = 2
    if second == 1:
        span = 10 if in_64_bit_mode(v) else 6
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
