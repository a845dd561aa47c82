"""What an instruction is about to access, and whether segments and alignment allow it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import iced_x86 as iced
from iced_x86 import CodeSize, MemorySize, Mnemonic, OpAccess, OpKind, Register

from trapgate.compiler.dialect import Cells
from trapgate.decode.sse_operands import has_aligned_operand
from trapgate.processor.logical import signed
from trapgate.processor.operand import Operand, checks_alignment, is_allowed
from trapgate.sdm import cells as f

_SS = 2
_SEGMENTS = {
    Register.ES: 0,
    Register.CS: 1,
    Register.SS: _SS,
    Register.DS: 3,
    Register.FS: 4,
    Register.GS: 5,
}
WIDTHS = {CodeSize.CODE16: 16, CodeSize.CODE32: 32, CodeSize.CODE64: 64}
_READS = {OpAccess.READ, OpAccess.COND_READ, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}
_WRITES = {OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE}
_STACK_POINTERS = {Register.SP, Register.ESP, Register.RSP}
_STACK_BASES = {*_STACK_POINTERS, Register.BP, Register.EBP, Register.RBP}
_BIT_STRINGS = {Mnemonic.BT, Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC}
COUNTERS = {16: Register.CX, 32: Register.ECX, 64: Register.RCX}
_ALIGNMENTS = {
    MemorySize.SEG_PTR16: 2,
    MemorySize.SEG_PTR32: 4,
    MemorySize.SEG_PTR64: 8,
    MemorySize.FLOAT80: 8,
    MemorySize.BCD: 8,
    MemorySize.FWORD6: 4,
    MemorySize.FWORD10: 4,
    MemorySize.FPU_ENV14: 2,
    MemorySize.FPU_ENV28: 4,
    MemorySize.FPU_STATE94: 2,
    MemorySize.FPU_STATE108: 4,
}
"""SDM, table "Alignment Requirements by Data Type", where it is not the size; in bytes."""
FACTORY = iced.InstructionInfoFactory()


class Access(NamedTuple):
    """One access to memory: segment number, offset in it, linear address, size in bytes."""

    segment: int
    offset: int
    linear: int
    size: int
    kind: int
    read: bool
    write: bool


def code_address(guest: Operand) -> int:
    """The linear address of the instruction at RIP."""
    base = 0 if guest.long else int(guest.v[f.GUEST_CS_BASE])
    return guest.wrap(int(guest.v[f.GUEST_RIP]) + base)


def accesses_of(guest: Operand, instruction: iced.Instruction) -> Iterator[Access]:
    """What the instruction is about to access, a repeated one in its next iteration."""
    if instruction.is_invalid:
        return
    for used in FACTORY.info(instruction).used_memory():
        read, write = used.access in _READS, used.access in _WRITES
        if not read and not write:
            continue
        size = iced.MemorySizeInfo(used.memory_size).size
        kind = used.memory_size
        width = WIDTHS.get(used.address_size, guest.bits)
        if not size:
            if guest.register(COUNTERS[width]) == 0:
                continue
            kind = instruction.memory_size
            size = iced.MemorySizeInfo(kind).size
        offset = used.displacement + guest.register(used.index) * used.scale
        if used.base in _STACK_POINTERS and used.base != instruction.memory_base:
            width = _stack_width(guest)
            offset += int(guest.v[f.GUEST_RSP])
        else:
            offset += guest.register(used.base)
        if instruction.mnemonic in _BIT_STRINGS and instruction.op1_kind == OpKind.REGISTER:
            offset += _bit_string_offset(guest, instruction, size)
        segment = _SEGMENTS.get(used.segment, 3)
        if guest.long and segment < 4:
            # The overrides of CS, DS, ES and SS mean nothing in 64-bit mode.
            segment = _SS if used.base in _STACK_BASES else 3
        offset &= (1 << width) - 1
        base = 0
        if not guest.long or segment >= 4:
            base = int(guest.v[f.GUEST_ES_BASE + segment])
        yield Access(segment, offset, guest.wrap(offset + base), size, kind, read, write)


def _stack_width(guest: Operand) -> int:
    """The width of the stack pointer, in bits."""
    if guest.long:
        return 64
    return 32 if guest.v[f.GUEST_SS_ACCESS_RIGHTS] & 1 << 14 else 16


def _bit_string_offset(guest: Operand, instruction: iced.Instruction, size: int) -> int:
    """How far from the operand's address the bit lies that a register selects, in bytes."""
    bits = 8 * size
    index = guest.register(instruction.op1_register)
    index -= (index >> (bits - 1)) << bits
    return index // bits * size


def ends_beyond_limit(guest: Operand, instruction: iced.Instruction) -> bool:
    """Whether some byte of the instruction lies beyond the limit of CS."""
    end = (int(guest.v[f.GUEST_RIP]) & 0xFFFF_FFFF) + instruction.len - 1
    return not guest.long and end > int(guest.v[f.GUEST_CS_LIMIT]) & 0xFFFF_FFFF


def _is_aligned_by_itself(guest: Operand, instruction: iced.Instruction) -> bool:
    """Whether its operand must be a multiple of 16 bytes, or raise #GP."""
    if instruction.mnemonic == Mnemonic.CMPXCHG16B:
        return True
    if iced.MemorySizeInfo(instruction.memory_size).size != 16:
        return False
    code = guest.code(code_address(guest), instruction.len)
    start = code.index(0x0F)
    repeat = [byte for byte in code[:start] if byte in (0xF2, 0xF3)]
    escape = code[start + 1] if code[start + 1] in (0x38, 0x3A) else 0
    opcode = code[start + 2] if escape else code[start + 1]
    return has_aligned_operand(escape, opcode, repeat[-1] if repeat else 0, 0x66 in code[:start])


def allows(v: Cells, access: Access) -> bool:
    """Whether the access's segment allows it."""
    return is_allowed(v, access.segment, access.offset, access.size, write=access.write)


def is_misaligned(guest: Operand, instruction: iced.Instruction, accesses: list[Access]) -> bool:
    """Whether an access raises #AC (SDM, "Alignment Check Exception (#AC)").

    What its segment, its privilege level, or an SSE instruction on aligned operands does not allow
    is #GP or #SS instead, and the engine will find it.
    """
    v = guest.v
    if not checks_alignment(v):
        return False
    if not guest.long and not all(allows(v, access) for access in accesses):
        return False
    if instruction.is_privileged or ends_beyond_limit(guest, instruction):
        return False
    if _is_aligned_by_itself(guest, instruction):
        return False
    return any(access.linear & _alignment(access) - 1 for access in accesses)


def _alignment(access: Access) -> int:
    if access.kind in _ALIGNMENTS:
        return _ALIGNMENTS[access.kind]
    if access.size == 16:
        # Of what may be unaligned (SDM, "MOVUPS"); the rest has raised #GP.
        return 8
    return access.size if access.size in (2, 4, 8) else 1


def is_mapped(guest: Operand, access: Access) -> bool:
    """Whether page tables allow the access to user mode."""
    for linear in (access.linear, guest.wrap(access.linear + access.size - 1)):
        kind = 1 if access.write else 0
        _, code = guest.walk(signed(linear), kind, 1)
        if code >= 0:
            return False
    return True
