"""An instruction's view of the guest: registers, segments, memory through its page tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

from trapgate.compiler.dialect import Cells
from trapgate.decode.execute import advance
from trapgate.instructions import intercepts as ix
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.memory import load_operand, store_operand
from trapgate.processor.logical import LogicalProcessor, signed
from trapgate.sdm import cells as f
from trapgate.sdm import registers
from trapgate.sdm.state import (
    CR0_AM,
    RFLAGS_AC,
    RFLAGS_DF,
)
from trapgate.sdm.vectors import AC, GP, PF, SS
from trapgate.vmx.operand import operand_linear

_ES, _SS, _DS = 0, 2, 3
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_SEGMENTS = {
    Register.ES: _ES,
    Register.CS: 1,
    Register.SS: _SS,
    Register.DS: _DS,
    Register.FS: 4,
    Register.GS: 5,
}
INPUT_STRINGS = {Mnemonic.INSB, Mnemonic.INSW, Mnemonic.INSD}
STRING_WIDTHS = {
    Mnemonic.INSB: 1,
    Mnemonic.INSW: 2,
    Mnemonic.INSD: 4,
    Mnemonic.OUTSB: 1,
    Mnemonic.OUTSW: 2,
    Mnemonic.OUTSD: 4,
}
_STACK_BASES = {Register.ESP, Register.EBP, Register.RSP, Register.RBP}
_HIGH_BYTES = {Register.AH, Register.CH, Register.DH, Register.BH}


class OperandFaultError(Exception):
    """A memory operand is out of reach: vector, error code, and of a page fault the address."""

    def __init__(self, vector: int, error_code: int, address: int = 0) -> None:
        super().__init__()
        self.vector = vector
        self.error_code = error_code
        self.address = address


class PageFaultError(OperandFaultError):
    """One that its page does not allow: error code and linear address."""

    def __init__(self, error_code: int, address: int) -> None:
        super().__init__(PF, error_code, address)


class Operand:
    """The guest as an instruction's operands see it."""

    def __init__(self, processor: LogicalProcessor, v: Cells) -> None:
        self.v = v
        self.r = processor.registers.cells
        self.mem = processor.memory.cells
        self._engine = processor.engine
        self.long = in_64_bit_mode(v)
        self.bits = 64 if self.long else 32 if v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 14 else 16

    def walk(self, linear: int, access: int, user: int) -> tuple[int, int]:
        """Where a linear address, signed, leads: the physical one, and the error code or -1."""
        return self._engine.walk(self.v, int(self.v[f.GUEST_RFLAGS]), linear, access, user)

    def entry_written(self, linear: int, user: int) -> tuple[int, int]:
        """Which table entry a write to a linear address, signed, means (`frame_filters`)."""
        return self._engine.entry_written(self.v, linear, user)

    def physical(self, linear: int, access: int) -> int:
        """Where a linear address lies, for an access of kind `access` (1 write, 2 fetch)."""
        v = self.v
        user = 1 if privilege_level(v) == 3 else 0
        place = signed(linear)
        physical, code = self.walk(place, access, user)
        if code >= 0:
            raise PageFaultError(code, place)
        return physical

    def read(self, linear: int, size: int, access: int = 0) -> int:
        """`size` bytes at a linear address."""
        if linear & 0xFFF <= 0x1000 - size:
            at = self.physical(linear, access)
            first, last = at >> 3, at + size - 1 >> 3
            if last < len(self.mem):
                found = self.mem[first : last + 1].tobytes()[at & 7 : (at & 7) + size]
                return int.from_bytes(found, "little")
            if size <= 8:
                return int(load_operand(self.mem, at, size)) & _MASK
        value = 0
        for n in range(size):
            at = self.physical(self.wrap(linear + n), access)
            value |= int(load_operand(self.mem, at, 1)) << (8 * n)
        return value

    def write_places(self, linear: int, size: int) -> list[int]:
        """Where each byte of a store lies. Raises PageFaultError."""
        return [self.physical(self.wrap(linear + n), 1) for n in range(size)]

    def write(self, linear: int, size: int, value: int) -> None:
        """Store `size` bytes at a linear address."""
        places = self.write_places(linear, size)
        if places[-1] - places[0] == size - 1 and size in (1, 2, 4, 8):
            store_operand(self.mem, places[0], size, value)
            return
        for n, at in enumerate(places):
            store_operand(self.mem, at, 1, value >> (8 * n) & 0xFF)

    def wrap(self, linear: int) -> int:
        """A linear address as wide as the mode makes it."""
        return linear & (_MASK if self.long else 0xFFFF_FFFF)

    def code(self, linear: int, size: int) -> bytes:
        """Up to `size` bytes of code at a linear address: as many as can be fetched."""
        found = b""
        while len(found) < size:
            start = self.wrap(linear + len(found))
            count = min(size - len(found), 0x1000 - start % 0x1000)
            try:
                at = self.physical(start, 2)
            except PageFaultError:
                break
            words = self.mem[at >> 3 : (at + count + 7) >> 3].tobytes()
            found += words[at & 7 :][:count].ljust(count, b"\xff")
        return found

    def decode(self) -> iced.Instruction:
        """The instruction at RIP."""
        rip = int(self.v[f.GUEST_RIP])
        base = 0 if self.long else int(self.v[f.GUEST_CS_BASE])
        return iced.Decoder(self.bits, self.code(base + rip, 15), ip=rip & _MASK).decode()

    def register(self, register: int) -> int:
        """A general register, whatever its width."""
        if register == Register.NONE:
            return 0
        if register in (Register.RIP, Register.EIP):
            return 0
        info = _info(register)
        number = int(info.full_register) - int(Register.RAX)
        value = self.v[f.GUEST_RSP] if number == registers.RSP else self.r[number]
        if register in _HIGH_BYTES:
            value >>= 8
        return int(value) & ((1 << (8 * int(info.size))) - 1)

    def set_register(self, register: int, value: int) -> None:
        """Write a general register; 32-bit writes clear the upper half."""
        info = _info(register)
        number = int(info.full_register) - int(Register.RAX)
        kept = 0
        window = (1 << (8 * info.size)) - 1
        shift = 8 if register in _HIGH_BYTES else 0
        if info.size < 4:
            old = int(self.v[f.GUEST_RSP] if number == registers.RSP else self.r[number])
            kept = old & ~(window << shift)
        new = (kept | (value & window) << shift) & _MASK
        new -= (new >> 63) << 64
        if number == registers.RSP:
            self.v[f.GUEST_RSP] = new
        self.r[number] = new

    def string_step(
        self,
        instruction: iced.Instruction,
        linear: int,
        source: Callable[[], int] | None,
        sink: Callable[[int], None],
    ) -> None:
        """One iteration of INS (from `source`) or OUTS (to `sink`), RIP included.

        With REP, RIP stays until the counter is 0. Raises OperandFaultError if memory cannot be
        reached: then nothing has happened.
        """
        v = self.v
        size = STRING_WIDTHS[instruction.mnemonic]
        _, pointer, counter = string_operands(instruction)
        self.check_string(instruction)
        if source is None:
            value = self.read(linear, size)
            self.check_alignment(linear, size)
            sink(value)
        else:
            self.write_places(linear, size)
            self.check_alignment(linear, size)
            self.write(linear, size, source())
        step = -size if v[f.GUEST_RFLAGS] & 1 << 10 else size
        self.set_register(pointer, self.register(pointer) + step)
        if instruction.has_rep_prefix or instruction.has_repne_prefix:
            self.set_register(counter, self.register(counter) - 1)
            if self.register(counter) != 0:
                return
        advance(v, instruction.len)

    def check_string(self, instruction: iced.Instruction, count: int = 1) -> None:
        """Whether its segment lets INS or OUTS reach `count` elements; else OperandFaultError."""
        size = count * STRING_WIDTHS[instruction.mnemonic]
        is_in = instruction.mnemonic in INPUT_STRINGS
        offset = self.register(string_operands(instruction)[1])
        self._check(self.segment(instruction), offset, size, write=is_in)

    def check_alignment(self, linear: int, size: int) -> None:
        """Raise #AC if alignment is checked and not that of `size` bytes."""
        if linear & size - 1 and checks_alignment(self.v):
            raise OperandFaultError(AC, 0)

    def _check(self, segment: int, offset: int, size: int, *, write: bool) -> None:
        """Raise OperandFaultError if a segment has no `size` bytes there for such an access."""
        if not is_allowed(self.v, segment, offset, size, write=write):
            raise OperandFaultError(SS if segment == _SS else GP, 0)

    def string_block(
        self, instruction: iced.Instruction, linear: int, most: int
    ) -> tuple[int, int, int] | None:
        """Iterations of REP INS or OUTS within a page of RAM: address, size, and how many.

        The address is physical, the size in bytes; `most` are allowed. None where each iteration
        has to be looked at alone: downwards, at the end of a page or segment, or outside RAM.
        """
        v = self.v
        if v[f.GUEST_RFLAGS] & RFLAGS_DF:
            return None
        size = STRING_WIDTHS[instruction.mnemonic]
        address_size, pointer, counter = string_operands(instruction)
        room = 0x1000 - (linear & 0xFFF)
        if address_size < 2:
            room = min(room, (1 << (16 << address_size)) - self.register(pointer))
        count = min(self.register(counter), room // size, most)
        if count < 2:
            return None
        try:
            self.check_string(instruction, count)
            physical = self.physical(linear, 1 if instruction.mnemonic in INPUT_STRINGS else 0)
            self.check_alignment(linear, size)
        except OperandFaultError:
            return None
        if physical + count * size > 8 * len(self.mem):
            return None
        return physical, size, count

    def count_iterations(self, instruction: iced.Instruction, size: int, count: int) -> None:
        """Complete `count` iterations of REP INS or OUTS of `size` bytes, RIP included."""
        _, pointer, counter = string_operands(instruction)
        self.set_register(pointer, self.register(pointer) + count * size)
        left = self.register(counter) - count
        self.set_register(counter, left)
        if left == 0:
            advance(self.v, instruction.len)

    def linear(self, instruction: iced.Instruction) -> int:
        """The linear address of the memory operand."""
        segment = self.segment(instruction)
        base = 0 if self.long and segment <= _DS else int(self.v[f.GUEST_ES_BASE + segment])
        return self.wrap(self._offset(instruction) + base)

    def accessible(self, instruction: iced.Instruction, size: int, *, write: bool) -> int:
        """The linear address of a memory operand that its segment allows, or OperandFaultError."""
        self._check(self.segment(instruction), self._offset(instruction), size, write=write)
        return self.linear(instruction)

    def _offset(self, instruction: iced.Instruction) -> int:
        """The effective address of the memory operand."""
        width = (1 << (8 * _address_size(instruction, self.bits))) - 1
        offset = (
            self.register(instruction.memory_base)
            + self.register(instruction.memory_index) * instruction.memory_index_scale
            + int(instruction.memory_displacement)
        )
        return int(offset & width)

    def segment(self, instruction: iced.Instruction) -> int:
        """The memory operand's segment; in 64-bit mode ES, CS, SS and DS prefixes are ignored."""
        if instruction.mnemonic in INPUT_STRINGS:
            return _ES
        segment = _SEGMENTS.get(instruction.memory_segment, _DS)
        if self.long and segment <= _DS:
            return _SS if instruction.memory_base in _STACK_BASES else _DS
        return segment


def checks_alignment(v: Cells) -> bool:
    """Whether accesses that are not aligned raise #AC (SDM, "Alignment Check Exception (#AC)")."""
    wanted = v[f.GUEST_RFLAGS] & RFLAGS_AC and v[f.GUEST_CR0] & CR0_AM
    return bool(wanted) and privilege_level(v) == 3


def is_allowed(v: Cells, segment: int, offset: int, size: int, *, write: bool) -> bool:
    """Whether a segment allows an access (SDM, "Limit Checking", "Type Checking").

    In 64-bit mode that its addresses are canonical; `offset` is unsigned.
    """
    return operand_linear(v, segment, signed(offset), size, int(write))[0] == ix.GO_ON


@cache
def _info(register: int) -> iced.RegisterInfo:
    return iced.RegisterInfo(register)


def _address_size(instruction: iced.Instruction, bits: int) -> int:
    for register in (instruction.memory_base, instruction.memory_index):
        if register not in (Register.NONE, Register.RIP, Register.EIP):
            return int(_info(register).size)
    return (
        {16: 2, 32: 4, 64: 8}[bits]
        if not instruction.memory_displ_size
        else max(instruction.memory_displ_size, 2)
    )


def string_operands(instruction: iced.Instruction) -> tuple[int, int, int]:
    """The address size of INS or OUTS as exits report it, the pointer and the counter."""
    is_in = instruction.mnemonic in INPUT_STRINGS
    return _STRING_OPERANDS[instruction.op0_kind if is_in else instruction.op1_kind]


_STRING_OPERANDS = {
    OpKind.MEMORY_ESDI: (0, Register.DI, Register.CX),
    OpKind.MEMORY_ESEDI: (1, Register.EDI, Register.ECX),
    OpKind.MEMORY_ESRDI: (2, Register.RDI, Register.RCX),
    OpKind.MEMORY_SEG_SI: (0, Register.SI, Register.CX),
    OpKind.MEMORY_SEG_ESI: (1, Register.ESI, Register.ECX),
    OpKind.MEMORY_SEG_RSI: (2, Register.RSI, Register.RCX),
}
