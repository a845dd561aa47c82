"""What an instruction that stopped at a read-only page would have stored.

A VMM that carries out edits of page tables (¶70) has to know the data. The exit says where
the fault was; the instruction says the rest. Here are the instructions that kernels store to
page tables with; `decode_write` gives None for others, and the VMM refuses those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

from trapgate.processor.operand import Operand
from trapgate.sdm import cells as f

_CF, _PF, _AF, _ZF, _SF, _OF, _DF = 1, 4, 0x10, 0x40, 0x80, 0x800, 0x400
_TF, _SINGLE_STEP = 1 << 8, 1 << 14
_ARITHMETIC = _CF | _PF | _AF | _ZF | _SF | _OF
_LONGEST = 15
_REMEMBERED = 4096


@dataclass(slots=True)
class Write:
    """What is left of an instruction once its store is known.

    `data` goes to the linear address `linear`. Then `registers` (iced's numbers) get their
    values and RFLAGS its bits `changed` from `flags`. RIP moves on by `length` bytes.
    """

    linear: int
    data: bytes
    length: int
    registers: list[tuple[int, int]] = field(default_factory=list)
    flags: int = 0
    changed: int = 0

    def finish(self, guest: Operand) -> None:
        """Do everything but the store."""
        for register, value in self.registers:
            guest.set_register(register, value)
        v = guest.v
        v[f.GUEST_RFLAGS] = v[f.GUEST_RFLAGS] & ~(self.changed | 1 << 16) | self.flags
        rip = int(v[f.GUEST_RIP]) + self.length
        v[f.GUEST_RIP] = rip if guest.long else rip & 0xFFFF_FFFF
        v[f.GUEST_INTERRUPTIBILITY_STATE] &= ~3
        if v[f.GUEST_RFLAGS] & _TF:
            v[f.GUEST_PENDING_DEBUG_EXCEPTIONS] |= _SINGLE_STEP


def decode_write(guest: Operand, instruction: iced.Instruction) -> Write | None:
    """The store that `instruction`, at RIP, is about to make; None if it is not known here."""
    make = _MAKERS.get(instruction.mnemonic)
    if make is None:
        return None
    return make(guest, instruction)


_decoded: dict[tuple[int, int, bytes], iced.Instruction] = {}


def instruction_at_rip(guest: Operand) -> iced.Instruction:
    """The instruction at RIP; kernels edit their tables in few places, so these are remembered."""
    # Only in 64-bit code does it matter where the instruction is.
    rip = guest.wrap(int(guest.v[f.GUEST_RIP])) if guest.long else 0
    start = rip if guest.long else int(guest.v[f.GUEST_CS_BASE] + guest.v[f.GUEST_RIP])
    code = guest.code(guest.wrap(start), _LONGEST)
    key = guest.bits, rip, code
    found = _decoded.get(key)
    if found is None:
        if len(_decoded) >= _REMEMBERED:
            _decoded.clear()
        found = _decoded[key] = iced.Decoder(guest.bits, code, ip=rip).decode()
    return found


_MEMORY = OpKind.MEMORY
Maker = Callable[[Operand, iced.Instruction], "Write | None"]


def _size(instruction: iced.Instruction) -> int:
    return int(iced.MemorySizeExt.size(instruction.memory_size))


def _source(guest: Operand, instruction: iced.Instruction, operand: int) -> int:
    """A register's or immediate's value, or a segment register's selector."""
    if instruction.op_kind(operand) == OpKind.REGISTER:
        register = instruction.op_register(operand)
        if register in _SEGMENTS:
            return int(guest.v[f.GUEST_ES_SELECTOR + _SEGMENTS[register]])
        return guest.register(register)
    return int(instruction.immediate(operand))


def _store(instruction: iced.Instruction, linear: int, size: int, value: int, **rest: int) -> Write:
    data = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    return Write(linear, data, instruction.len, **rest)  # type: ignore[arg-type]


def _to_memory(instruction: iced.Instruction) -> bool:
    return bool(instruction.op0_kind == _MEMORY)


def _move(guest: Operand, instruction: iced.Instruction) -> Write | None:
    if not _to_memory(instruction):
        return None
    value = _source(guest, instruction, 1)
    return _store(instruction, guest.linear(instruction), _size(instruction), value)


def _exchange(guest: Operand, instruction: iced.Instruction) -> Write | None:
    """XCHG and XADD: the register gets what was in memory."""
    operand = 1 if _to_memory(instruction) else 0
    if instruction.op_kind(1 - operand) != _MEMORY:
        return None
    linear, size = guest.linear(instruction), _size(instruction)
    register = instruction.op_register(operand)
    old, value = guest.read(linear, size), guest.register(register)
    flags = changed = 0
    if instruction.mnemonic == Mnemonic.XADD:
        value, flags = _sum(old, value, 0, size)
        changed = _ARITHMETIC
    write = _store(instruction, linear, size, value, flags=flags, changed=changed)
    write.registers.append((register, old))
    return write


def _compare_exchange(guest: Operand, instruction: iced.Instruction) -> Write | None:
    if not _to_memory(instruction):
        return None
    linear, size = guest.linear(instruction), _size(instruction)
    accumulator = {1: Register.AL, 2: Register.AX, 4: Register.EAX, 8: Register.RAX}[size]
    old = guest.read(linear, size)
    _, flags = _difference(guest.register(accumulator), old, 0, size)
    equal = guest.register(accumulator) == old
    value = guest.register(instruction.op_register(1)) if equal else old
    write = _store(instruction, linear, size, value, flags=flags, changed=_ARITHMETIC)
    if not equal:
        write.registers.append((accumulator, old))
    return write


def _compare_exchange_8(guest: Operand, instruction: iced.Instruction) -> Write | None:
    linear = guest.linear(instruction)
    old = guest.read(linear, 8)
    expected = guest.register(Register.EDX) << 32 | guest.register(Register.EAX)
    equal = old == expected
    new = guest.register(Register.ECX) << 32 | guest.register(Register.EBX)
    write = _store(instruction, linear, 8, new if equal else old, flags=_ZF * equal, changed=_ZF)
    if not equal:
        write.registers += [(Register.EAX, old & 0xFFFF_FFFF), (Register.EDX, old >> 32)]
    return write


def _modify(guest: Operand, instruction: iced.Instruction) -> Write | None:
    """Two operands, or one: the result goes to memory, the flags say what became of it."""
    if not _to_memory(instruction):
        return None
    linear, size = guest.linear(instruction), _size(instruction)
    old = guest.read(linear, size)
    source = _source(guest, instruction, 1) if instruction.op_count > 1 else 1
    carry = int(guest.v[f.GUEST_RFLAGS]) & _CF
    value, flags, changed = _ARITHMETIC_OPERATIONS[instruction.mnemonic](
        old, source & (1 << 8 * size) - 1, carry, size
    )
    return _store(instruction, linear, size, value, flags=flags, changed=changed)


def _bit(guest: Operand, instruction: iced.Instruction) -> Write | None:
    """BTS, BTR, BTC: a register's bit offset reaches beyond the operand."""
    if not _to_memory(instruction):
        return None
    linear, size = guest.linear(instruction), _size(instruction)
    offset = _source(guest, instruction, 1)
    if instruction.op1_kind == OpKind.REGISTER:
        offset -= offset >> 8 * size - 1 << 8 * size
        linear = guest.wrap(linear + (offset >> (4 if size == 2 else 5)) * size)
    bit = 1 << offset % (8 * size)
    old = guest.read(linear, size)
    value = {
        Mnemonic.BTS: old | bit,
        Mnemonic.BTR: old & ~bit,
        Mnemonic.BTC: old ^ bit,
    }[instruction.mnemonic]
    return _store(instruction, linear, size, value, flags=_CF * bool(old & bit), changed=_CF)


_STRINGS = {
    Mnemonic.STOSB: 1,
    Mnemonic.STOSW: 2,
    Mnemonic.STOSD: 4,
    Mnemonic.STOSQ: 8,
    Mnemonic.MOVSQ: 8,
    Mnemonic.MOVSB: 1,
    Mnemonic.MOVSW: 2,
    Mnemonic.MOVSD: 4,
}
_STRING_REGISTERS = {
    OpKind.MEMORY_ESRDI: (Register.RDI, Register.RSI, Register.RCX),
    OpKind.MEMORY_ESEDI: (Register.EDI, Register.ESI, Register.ECX),
    OpKind.MEMORY_ESDI: (Register.DI, Register.SI, Register.CX),
}
"""Destination, source and counter, by the address size."""


def _string(guest: Operand, instruction: iced.Instruction) -> Write | None:
    """One iteration of STOS or MOVS; with REP, RIP stays until the counter is 0."""
    if instruction.op0_kind not in _STRING_REGISTERS:
        return None
    target, source, counter = _STRING_REGISTERS[instruction.op0_kind]
    size = _STRINGS[instruction.mnemonic]
    step = -size if guest.v[f.GUEST_RFLAGS] & _DF else size
    linear = guest.wrap(guest.register(target) + _base(guest, 0))
    moves: list[tuple[int, int]] = [(target, guest.register(target) + step)]
    if instruction.op1_kind == OpKind.REGISTER:
        value = guest.register(instruction.op1_register)
    else:
        base = _base(guest, _SEGMENTS[instruction.memory_segment])
        value = guest.read(guest.wrap(guest.register(source) + base), size)
        moves.append((source, guest.register(source) + step))
    write = _store(instruction, linear, size, value)
    write.registers += moves
    if instruction.has_rep_prefix or instruction.has_repne_prefix:
        left = guest.register(counter) - 1
        write.registers.append((counter, left))
        if left:
            write.length = 0
    return write


def _base(guest: Operand, n: int) -> int:
    """The base of a segment: only those of FS and GS count in 64-bit mode."""
    return 0 if guest.long and n < 4 else int(guest.v[f.GUEST_ES_BASE + n])


_SEGMENTS = {
    Register.ES: 0,
    Register.CS: 1,
    Register.SS: 2,
    Register.DS: 3,
    Register.FS: 4,
    Register.GS: 5,
}


def _push(guest: Operand, instruction: iced.Instruction) -> Write | None:
    """PUSH of 32 bits, on a 32-bit stack."""
    if instruction.code not in _PUSHES or not guest.v[f.GUEST_SS_ACCESS_RIGHTS] & 1 << 14:
        return None
    if instruction.op0_kind == _MEMORY:
        value = guest.read(guest.linear(instruction), 4)
    else:
        value = _source(guest, instruction, 0)
    top = guest.register(Register.ESP) - 4 & 0xFFFF_FFFF
    write = _store(instruction, guest.wrap(top + int(guest.v[f.GUEST_SS_BASE])), 4, value)
    write.registers.append((Register.ESP, top))
    return write


_PUSHES = {
    iced.Code.PUSH_R32,
    iced.Code.PUSH_RM32,
    iced.Code.PUSHD_IMM32,
    iced.Code.PUSHD_IMM8,
}


def _flags_of(result: int, size: int) -> int:
    """ZF, SF and PF."""
    flags = 0 if result else _ZF
    if result >> 8 * size - 1:
        flags |= _SF
    if not (result & 0xFF).bit_count() & 1:
        flags |= _PF
    return flags


def _sum(a: int, b: int, carry: int, size: int) -> tuple[int, int]:
    bits = 8 * size
    total = a + b + carry
    result = total & (1 << bits) - 1
    flags = _flags_of(result, size) | (_CF if total >> bits else 0)
    flags |= _AF if (a ^ b ^ result) & 0x10 else 0
    flags |= _OF if ((a ^ result) & (b ^ result)) >> bits - 1 else 0
    return result, flags


def _difference(a: int, b: int, borrow: int, size: int) -> tuple[int, int]:
    bits = 8 * size
    result = (a - b - borrow) & (1 << bits) - 1
    flags = _flags_of(result, size) | (_CF if a < b + borrow else 0)
    flags |= _AF if (a ^ b ^ result) & 0x10 else 0
    flags |= _OF if ((a ^ b) & (a ^ result)) >> bits - 1 else 0
    return result, flags


Operation = Callable[[int, int, int, int], tuple[int, int, int]]


def _with(
    operation: Callable[[int, int, int, int], tuple[int, int]],
    *,
    uses_carry: bool = False,
    changed: int = _ARITHMETIC,
) -> Operation:
    def operate(a: int, b: int, carry: int, size: int) -> tuple[int, int, int]:
        value, flags = operation(a, b, carry if uses_carry else 0, size)
        return value, flags & changed, changed

    return operate


def _logic(operation: Callable[[int, int], int]) -> Operation:
    def operate(a: int, b: int, carry: int, size: int) -> tuple[int, int, int]:
        value = operation(a, b)
        return value, _flags_of(value, size), _ARITHMETIC & ~_AF

    return operate


_ARITHMETIC_OPERATIONS: dict[int, Operation] = {
    Mnemonic.ADD: _with(_sum),
    Mnemonic.ADC: _with(_sum, uses_carry=True),
    Mnemonic.SUB: _with(_difference),
    Mnemonic.SBB: _with(_difference, uses_carry=True),
    Mnemonic.INC: _with(_sum, changed=_ARITHMETIC & ~_CF),
    Mnemonic.DEC: _with(_difference, changed=_ARITHMETIC & ~_CF),
    Mnemonic.NEG: _with(lambda a, b, carry, size: _difference(0, a, 0, size)),
    Mnemonic.NOT: lambda a, b, carry, size: (~a & (1 << 8 * size) - 1, 0, 0),
    Mnemonic.AND: _logic(lambda a, b: a & b),
    Mnemonic.OR: _logic(lambda a, b: a | b),
    Mnemonic.XOR: _logic(lambda a, b: a ^ b),
}

_MAKERS: dict[int, Maker] = {
    Mnemonic.MOV: _move,
    Mnemonic.MOVNTI: _move,
    Mnemonic.XCHG: _exchange,
    Mnemonic.XADD: _exchange,
    Mnemonic.CMPXCHG: _compare_exchange,
    Mnemonic.CMPXCHG8B: _compare_exchange_8,
    Mnemonic.BTS: _bit,
    Mnemonic.BTR: _bit,
    Mnemonic.BTC: _bit,
    Mnemonic.PUSH: _push,
    **dict.fromkeys(_ARITHMETIC_OPERATIONS, _modify),
    **dict.fromkeys(_STRINGS, _string),
}
