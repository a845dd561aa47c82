"""Prefixes, the ModR/M byte and what follows: where an instruction's operand in memory lies.

SDM, volume 2, "Instruction Format", and the table "Format of the VM-Exit Instruction-
Information Field as Used for VMREAD and VMWRITE", whose layout holds everything about an
operand but its displacement.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.memory import load8
from trapgate.paging.walk import FETCH, translate
from trapgate.sdm.cells import GUEST_CS_ACCESS_RIGHTS, GUEST_CS_BASE, GUEST_RIP, GUEST_RSP
from trapgate.sdm.registers import RBP, RBX, RDI, RSI, RSP
from trapgate.sdm.state import AR_DB

_LOW = 0xFFFF_FFFF
_SS, _DS = 2, 3

INFO_REGISTER = 1 << 10
"""The operand is a register, and its number lies in bits 6:3."""
INFO_NO_INDEX = 1 << 22
INFO_NO_BASE = 1 << 27


@core
@inlined
def is_prefix(byte: int, long: bool) -> bool:
    """Whether a byte is a prefix; REX is one in 64-bit code (`long`)."""
    legacy = byte in (0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65)
    return legacy or (long and byte & 0xF0 == 0x40)


@core
def prefix_length(word: int, long: bool) -> int:
    """How many prefix bytes (REX included if `long`) start the code in `word`."""
    n = 0
    while n < 6:
        if not is_prefix((word >> (8 * n)) & 0xFF, long):
            break
        n += 1
    return n


@core
@inlined
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
@inlined
def segment_of_prefix(byte: int, segment: int, long: bool) -> int:
    """The segment that a prefix chooses, in 64-bit code FS or GS; `segment` if it chooses none."""
    if byte in (0x26, 0x2E, 0x36, 0x3E) and not long:
        return (byte >> 3) & 3
    return byte - 0x60 if byte in (0x64, 0x65) else segment


@core
@inlined
def segment_of_prefixes(word: int, count: int, long: bool) -> int:
    """The segment that the last override among `count` prefix bytes names; -1 if none.

    In 64-bit code (`long`) the overrides of ES, CS, SS and DS are ignored, wherever they stand.
    """
    segment = -1
    for n in range(count):
        segment = segment_of_prefix((word >> (8 * n)) & 0xFF, segment, long)
    return segment


@core
@inlined
def has_prefix(word: int, count: int, wanted: int) -> bool:
    """Whether `wanted` is among the first `count` bytes."""
    found = False
    for n in range(count):
        found = found or (word >> (8 * n)) & 0xFF == wanted
    return found


@core
def last_repeat(word: int, count: int) -> int:
    """The last of F2H and F3H among the first `count` bytes, or 0."""
    repeat = 0
    for n in range(count):
        byte = (word >> (8 * n)) & 0xFF
        if byte in (0xF2, 0xF3):
            repeat = byte
    return repeat


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
    segment = segment_of_prefixes(word, prefixes, long)
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
def set_register(v: Cells, r: Cells, number: int, value: int) -> None:
    """Write the general register of that encoding, all 64 bits."""
    if number == RSP:
        v[GUEST_RSP] = value
    r[number] = value


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
