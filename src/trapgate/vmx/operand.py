"""Operands of VMX instructions: the ModR/M byte and what follows, and access to memory.

SDM, volume 2, "Instruction Format", and the table "Format of the VM-Exit Instruction-
Information Field as Used for VMREAD and VMWRITE", whose layout holds everything about an
operand but its displacement.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.effects import in_64_bit_mode
from trapgate.instructions.intercepts import (
    GO_ON,
    RAISE_GP,
    RAISE_OPERAND_PF,
    RAISE_SS,
    privilege_level,
)
from trapgate.paging.memory import load8, load_operand, store_operand
from trapgate.paging.walk import FETCH, READ, WRITE, translate
from trapgate.sdm.cells import (
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_CS_BASE,
    GUEST_ES_ACCESS_RIGHTS,
    GUEST_ES_BASE,
    GUEST_ES_LIMIT,
    GUEST_IA32_EFER,
    GUEST_RIP,
    GUEST_RSP,
)
from trapgate.sdm.registers import RBP, RBX, RDI, RSI, RSP
from trapgate.sdm.state import (
    AR_CODE,
    AR_DB,
    AR_EXPAND_DOWN,
    AR_UNUSABLE,
    AR_WRITABLE,
    EFER_LMA,
)
from trapgate.sdm.vmx import FAULT_ADDRESS, FAULT_ERROR

_LOW = 0xFFFF_FFFF
_SS, _DS = 2, 3

INFO_REGISTER = 1 << 10
"""The operand is a register, and its number lies in bits 6:3."""
INFO_NO_INDEX = 1 << 22
INFO_NO_BASE = 1 << 27


@core
def code_byte(v: Cells, mem: Memory, word: int, n: int) -> int:
    """Byte `n` of the instruction at RIP, whose first eight bytes are `word`."""
    if n < 8:
        return (word >> (8 * n)) & 0xFF
    linear = int(v[GUEST_RIP]) + n
    if not in_64_bit_mode(v):
        linear = (linear + int(v[GUEST_CS_BASE])) & _LOW
    user = 1 if privilege_level(v) == 3 else 0
    physical, error = translate(v, mem, linear, FETCH, user)
    return load8(mem, physical) if error < 0 else 0


@core
def code_displacement(v: Cells, mem: Memory, word: int, n: int, size: int) -> int:
    """The signed displacement of `size` bytes (1, 2 or 4) at byte `n` of the instruction."""
    value = 0
    for k in range(size):
        value |= code_byte(v, mem, word, n + k) << (8 * k)
    sign = 1 << (8 * size - 1)
    return (value ^ sign) - sign


@core
def segment_of_prefixes(word: int, count: int) -> int:
    """The segment that the last override among `count` prefix bytes names; -1 if none."""
    segment = -1
    for n in range(count):
        byte = (word >> (8 * n)) & 0xFF
        if byte in (0x26, 0x2E, 0x36, 0x3E):
            segment = (byte >> 3) & 3
        elif byte in (0x64, 0x65):
            segment = byte - 0x60
    return segment


@core
def has_prefix(word: int, count: int, wanted: int) -> bool:
    """Whether `wanted` is among the first `count` bytes."""
    found = False
    for n in range(count):
        found = found or (word >> (8 * n)) & 0xFF == wanted
    return found


@core
def decode_operand(
    v: Cells, mem: Memory, word: int, prefixes: int, rex: int, at: int
) -> tuple[int, int, int]:
    """Decode the ModR/M byte at byte `at`: (where the operand ends, information, displacement).

    `information` is the VM-exit instruction information: scaling, address size, segment,
    index, base, or the register, and in bits 31:28 the other operand's register. A
    RIP-relative operand has its base invalid and RIP counted into the displacement.
    """
    long = in_64_bit_mode(v)
    modrm = code_byte(v, mem, word, at)
    mod = modrm >> 6
    rm = modrm & 7
    other = ((modrm >> 3) & 7) | (rex & 4) << 1
    if mod == 3:
        return at + 1, INFO_REGISTER | (rm | (rex & 1) << 3) << 3 | other << 28, 0

    address_size = 1 if v[GUEST_CS_ACCESS_RIGHTS] & AR_DB else 0
    if long:
        address_size = 2
    if has_prefix(word, prefixes, 0x67):
        address_size = 0 if address_size == 1 else 1
    base = -1
    index = -1
    scale = 0
    end = at + 1
    size = 0
    relative = False
    if address_size == 0:
        if rm in (0, 1, 7):
            base = RBX
        elif rm in (2, 3, 6):
            base = RBP
        if rm in (0, 2):
            index = RSI
        elif rm in (1, 3):
            index = RDI
        elif rm == 4:
            base = RSI
        elif rm == 5:
            base = RDI
        size = mod
        if mod == 0 and rm == 6:
            base = -1
            size = 2
    else:
        size = 4 if mod == 2 else mod
        if rm == 4:
            sib = code_byte(v, mem, word, end)
            end += 1
            scale = sib >> 6
            index = ((sib >> 3) & 7) | (rex & 2) << 2
            base = (sib & 7) | (rex & 1) << 3
            if index == 4:
                index = -1
            if sib & 7 == 5 and mod == 0:
                base = -1
                size = 4
        elif rm == 5 and mod == 0:
            size = 4
            relative = long
        else:
            base = rm | (rex & 1) << 3
    displacement = 0
    if size != 0:
        displacement = code_displacement(v, mem, word, end, size)
        end += size
    if relative:
        displacement += int(v[GUEST_RIP]) + end
    segment = segment_of_prefixes(word, prefixes)
    if long and segment < 4:
        # The other overrides are ignored in 64-bit mode.
        segment = -1
    if segment < 0:
        segment = _SS if base in (RSP, RBP) else _DS
    information = scale | address_size << 7 | segment << 15 | other << 28
    information |= index << 18 if index >= 0 else INFO_NO_INDEX
    information |= base << 23 if base >= 0 else INFO_NO_BASE
    return end, information, displacement


@core
def register_value(v: Cells, r: Cells, number: int) -> int:
    """The general register of that encoding."""
    return int(v[GUEST_RSP]) if number == RSP else int(r[number])


@core
def operand_offset(v: Cells, r: Cells, information: int, displacement: int) -> int:
    """The offset of a memory operand within its segment."""
    offset = displacement
    if information & INFO_NO_BASE == 0:
        offset += register_value(v, r, (information >> 23) & 0xF)
    if information & INFO_NO_INDEX == 0:
        offset += register_value(v, r, (information >> 18) & 0xF) << (information & 3)
    address_size = (information >> 7) & 7
    if address_size == 0:
        return offset & 0xFFFF
    return offset & _LOW if address_size == 1 else offset


@core
def operand_linear(v: Cells, segment: int, offset: int, size: int, write: int) -> tuple[int, int]:
    """(GO_ON, linear address) of `size` bytes at `offset` in a segment, or the fault, RAISE_*."""
    fault = RAISE_SS if segment == _SS else RAISE_GP
    base = int(v[GUEST_ES_BASE + segment])
    if in_64_bit_mode(v):
        linear = offset + base if segment > _DS else offset
        last = linear + size - 1
        if linear >> 47 not in (0, -1) or last >> 47 not in (0, -1):
            return fault, 0
        return GO_ON, linear
    rights = int(v[GUEST_ES_ACCESS_RIGHTS + segment])
    limit = int(v[GUEST_ES_LIMIT + segment])
    last = offset + size - 1
    if rights & AR_UNUSABLE:
        return fault, 0
    if write and (rights & AR_CODE or rights & AR_WRITABLE == 0):
        return fault, 0
    if rights & AR_CODE and rights & AR_WRITABLE == 0:
        # Execute-only code.
        return fault, 0
    if rights & AR_CODE == 0 and rights & AR_EXPAND_DOWN:
        top = _LOW if rights & AR_DB else 0xFFFF
        if offset <= limit or last > top:
            return fault, 0
    elif last > limit:
        return fault, 0
    return GO_ON, (offset + base) & _LOW


@core
def operand_pages(
    x: Cells, v: Cells, mem: Memory, linear: int, size: int, access: int
) -> tuple[int, int, int]:
    """(GO_ON, physical address of the first byte, of the last), or RAISE_OPERAND_PF."""
    user = 1 if privilege_level(v) == 3 else 0
    last = linear + size - 1
    if v[GUEST_IA32_EFER] & EFER_LMA == 0:
        last = last & _LOW
    first_physical, error = translate(v, mem, linear, access, user)
    if error < 0 and (linear ^ last) >> 12 == 0:
        return GO_ON, first_physical, first_physical + size - 1
    address = linear
    last_physical = 0
    if error < 0:
        address = last & ~0xFFF
        last_physical, error = translate(v, mem, last, access, user)
    if error < 0:
        return GO_ON, first_physical, last_physical
    x[FAULT_ERROR] = error
    x[FAULT_ADDRESS] = address
    return RAISE_OPERAND_PF, 0, 0


@core
def read_operand(x: Cells, v: Cells, mem: Memory, linear: int, size: int) -> tuple[int, int]:
    """(GO_ON, value of 2, 4 or 8 bytes at a linear address), or (RAISE_OPERAND_PF, 0)."""
    outcome, first, last = operand_pages(x, v, mem, linear, size, READ)
    if outcome != GO_ON:
        return outcome, 0
    if last - first == size - 1:
        return GO_ON, load_operand(mem, first, size)
    value = 0
    in_first = 0x1000 - (linear & 0xFFF)
    for k in range(size):
        at = first + k if k < in_first else last - (size - 1 - k)
        byte = load_operand(mem, at, 1)
        if k == 7 and byte > 0x7F:
            byte -= 0x100
        value |= byte << (8 * k)
    return GO_ON, value


@core
def write_operand(x: Cells, v: Cells, mem: Memory, linear: int, size: int, value: int) -> int:
    """Store 4 or 8 bytes at a linear address; GO_ON or RAISE_OPERAND_PF."""
    outcome, first, last = operand_pages(x, v, mem, linear, size, WRITE)
    if outcome != GO_ON:
        return outcome
    if last - first == size - 1:
        store_operand(mem, first, size, value)
        return GO_ON
    in_first = 0x1000 - (linear & 0xFFF)
    for k in range(size):
        at = first + k if k < in_first else last - (size - 1 - k)
        store_operand(mem, at, 1, (value >> (8 * k)) & 0xFF)
    return GO_ON
