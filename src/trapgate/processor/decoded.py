"""Instructions that the compiled core leaves to Python: those with a memory operand, far branches.

They are rare, so a whole decoder (iced-x86) reads them; what they do is `intercepts`'
and `effects`' business, as for the others.
"""

from __future__ import annotations

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

from trapgate.compiler.dialect import Cells
from trapgate.decode.execute import advance, end_instruction
from trapgate.events.breakpoints import note_data, note_ports, note_words, single_steps
from trapgate.events.descriptors import NO_FAULT
from trapgate.instructions import intercepts as ix
from trapgate.instructions import task_switch
from trapgate.instructions.effects import (
    load_machine_status,
    read_cr,
)
from trapgate.instructions.far_transfers import far_jump_real, far_return_real
from trapgate.operands.mode import in_8086_mode
from trapgate.processor.logical import LogicalProcessor, signed
from trapgate.processor.operand import (
    INPUT_STRINGS,
    STRING_WIDTHS,
    Operand,
    OperandFaultError,
    string_operands,
)
from trapgate.sdm import cells as f
from trapgate.sdm.state import (
    AR_DB,
    DR6_BREAKPOINTS,
    PENDING_BS,
)

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_LEAF_REGISTERS = (Register.EAX, Register.EBX, Register.ECX, Register.EDX)
_TASK_SWITCHES = {
    Mnemonic.JMP: ix.TASK_BY_JMP,
    Mnemonic.CALL: ix.TASK_BY_CALL,
    Mnemonic.IRET: ix.TASK_BY_IRET,
    Mnemonic.IRETD: ix.TASK_BY_IRET,
}
_FAR_BRANCHES = {Mnemonic.JMP, Mnemonic.RETF}


def assist(processor: LogicalProcessor, v: Cells) -> bool:
    """Carry out the instruction at RIP, or raise what it raises; whether that was a VM exit."""
    guest = Operand(processor, v)
    instruction = guest.decode()
    stepping = single_steps(v)
    try:
        if in_8086_mode(v) and instruction.mnemonic in _FAR_BRANCHES:
            far, code, address = _branch_far(guest, instruction)
            if far != NO_FAULT:
                return processor.raise_fault(far, code, address)
            end_instruction(v)
            outcome = NEXT_ALREADY
        elif instruction.mnemonic in _TASK_SWITCHES:
            fault = _switch_tasks(guest, instruction)
            return True if fault is None else processor.raise_fault(*fault)
        else:
            outcome = _carry_out(processor, guest, instruction)
    except OperandFaultError as wrong:
        return processor.raise_fault(wrong.vector, wrong.error_code, wrong.address)
    if outcome in (ix.GO_ON, NEXT_ALREADY):
        if outcome == ix.GO_ON:
            advance(v, instruction.len)
        causes = int(v[f.GUEST_PENDING_DEBUG_EXCEPTIONS]) & DR6_BREAKPOINTS
        if stepping:
            causes |= PENDING_BS
        if not causes:
            return False
        v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
        return processor.raise_fault(1, -1, causes)
    if outcome == ix.EXITED:
        return True
    if outcome in (ix.RAISE_GP, ix.RAISE_SS):
        return processor.raise_fault(13 if outcome == ix.RAISE_GP else 12, 0)
    if outcome == ix.RAISE_PF:
        _, error_code, address = ix.io_permission(v, guest.mem, guest.register(Register.DX), 1)
        return processor.raise_fault(14, int(error_code), int(address))
    return processor.raise_fault(6, -1)


def _carry_out(processor: LogicalProcessor, guest: Operand, instruction: iced.Instruction) -> int:
    v = guest.v
    mnemonic = instruction.mnemonic
    length = instruction.len
    if mnemonic == Mnemonic.CPUID:
        # The core has asked whether it exits.
        leaf, subleaf = guest.register(Register.EAX), guest.register(Register.ECX)
        answer = processor.cpuid(leaf, subleaf)
        for register, value in zip(_LEAF_REGISTERS, answer, strict=True):
            guest.set_register(register, value)
        return ix.GO_ON
    if mnemonic == Mnemonic.INVLPG:
        linear = guest.linear(instruction)
        outcome = ix.intercept_invlpg(v, signed(linear), length)
        if outcome == ix.GO_ON:
            processor.engine.flush_translations()
        return outcome
    if mnemonic == Mnemonic.LMSW:
        linear = guest.accessible(instruction, 2, write=False)
        source = guest.read(linear, 2)
        outcome = ix.intercept_lmsw(v, source, 1, linear, length)
        if outcome == ix.GO_ON:
            load_machine_status(v, source)
            note_data(v, guest.r, signed(linear), 2, False)
        return outcome
    if mnemonic == Mnemonic.SMSW:
        value = int(read_cr(v, guest.r, 0)) & _MASK
        if instruction.op0_kind == OpKind.REGISTER:
            guest.set_register(instruction.op0_register, value)
        else:
            linear = guest.accessible(instruction, 2, write=True)
            guest.write(linear, 2, value)
            note_data(v, guest.r, signed(linear), 2, True)
        return ix.GO_ON
    if mnemonic in STRING_WIDTHS:
        return _string_io(processor, guest, instruction)
    return ix.RAISE_UD


def _branch_far(guest: Operand, instruction: iced.Instruction) -> task_switch.Fault:
    """A far JMP or RET in real-address or virtual-8086 mode; NO_FAULT is one of its faults."""
    v, mem = guest.v, guest.mem
    if instruction.mnemonic == Mnemonic.RETF:
        size = 4 if instruction.code in (iced.Code.RETFD, iced.Code.RETFD_IMM16) else 2
        release = instruction.immediate(0) if instruction.op_count else 0
        mask = 0xFFFF_FFFF if v[f.GUEST_SS_ACCESS_RIGHTS] & AR_DB else 0xFFFF
        sp = int(v[f.GUEST_RSP]) & mask
        fault = far_return_real(v, mem, size, release)
        if fault[0] == NO_FAULT:
            note_words(v, guest.r, int(v[f.GUEST_SS_BASE]), sp, mask, size, 2, False)
        return fault
    if instruction.op0_kind == OpKind.FAR_BRANCH32:
        return far_jump_real(v, instruction.far_branch_selector, instruction.far_branch32)
    if instruction.op0_kind == OpKind.FAR_BRANCH16:
        return far_jump_real(v, instruction.far_branch_selector, instruction.far_branch16)
    size = iced.MemorySizeExt.size(instruction.memory_size) - 2
    linear = guest.accessible(instruction, size + 2, write=False)
    offset = guest.read(linear, size)
    fault = far_jump_real(v, guest.read(guest.wrap(linear + size), 2), offset)
    if fault[0] == NO_FAULT:
        note_data(v, guest.r, signed(linear), size + 2, False)
    return fault


def _switch_tasks(guest: Operand, instruction: iced.Instruction) -> task_switch.Fault | None:
    """A far JMP or CALL, or an IRET, that would switch tasks; its fault, None if it exits."""
    v, mem, length = guest.v, guest.mem, instruction.len
    source = _TASK_SWITCHES[instruction.mnemonic]
    if source == ix.TASK_BY_IRET:
        return task_switch.return_to_previous_task(v, mem, length)
    if instruction.op0_kind == OpKind.MEMORY:
        offset = iced.MemorySizeExt.size(instruction.memory_size) - 2
        selector = guest.read(guest.wrap(guest.linear(instruction) + offset), 2)
    else:
        selector = instruction.far_branch_selector
    return task_switch.jump_or_call(v, mem, selector, source, length)


def _string_io(processor: LogicalProcessor, guest: Operand, instruction: iced.Instruction) -> int:
    """One iteration of INS or OUTS; with REP, RIP stays until RCX is 0."""
    v = guest.v
    size = STRING_WIDTHS[instruction.mnemonic]
    port = guest.register(Register.DX)
    is_in = 1 if instruction.mnemonic in INPUT_STRINGS else 0
    rep = 1 if instruction.has_rep_prefix or instruction.has_repne_prefix else 0
    address_size, pointer, counter = string_operands(instruction)
    if rep and guest.register(counter) == 0:
        return ix.GO_ON
    outcome, _, _ = ix.io_permission(v, guest.mem, port, size)
    if outcome != ix.GO_ON:
        return int(outcome)
    segment = guest.segment(instruction)
    linear = guest.register(pointer)
    if not guest.long or segment >= 4:
        linear += int(v[f.GUEST_ES_BASE + segment])
    linear = guest.wrap(linear)
    outcome = ix.intercept_io(v, guest.mem, port, size, is_in, 1, rep, 0, instruction.len)
    if outcome != ix.GO_ON:
        ix.record_string_io(v, signed(linear), address_size, segment)
        return outcome
    if v is processor.x86_vmm.vmcs:
        # The x86 VMM lets its guest have the port: it is the platform's. What memory may
        # raise is that VMM's business still.
        guest.check_string(instruction)
        for place in (linear, guest.wrap(linear + size - 1)):
            guest.physical(place, is_in)
        guest.check_alignment(linear, size)
        outcome = _string_io(processor, Operand(processor, processor.move_to_vmcs0()), instruction)
        if outcome != ix.EXITED:
            processor.move_from_vmcs0()
        return outcome
    guest.string_step(
        instruction, linear, (lambda: (1 << 8 * size) - 1) if is_in else None, lambda _: None
    )
    note_ports(v, guest.r, port, size)
    note_data(v, guest.r, signed(linear), size, bool(is_in))
    return NEXT_ALREADY


NEXT_ALREADY = -1
"""The instruction was carried out and RIP has moved (or stays, for the next iteration)."""
