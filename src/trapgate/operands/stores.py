"""What the instruction at RIP stores: "the data to be written" (¶29, ¶31), and how many bytes.

For criteria over the data of a page fault by a write. Nothing faults, and nothing is stored but
the accessed flags of what the instruction reads. Three things limit what is found:

* An operand of more than eight bytes, and one that comes from a register of x87, MMX or SSE,
  has a size and no data. So have RCL, RCR, SHLD, SHRD, INS, SMSW, FXSAVE and VMREAD.
* The data of what reads its operand first needs that to be readable, and in RAM.
* What stores at several places (PUSHA, ENTER, far calls, XSAVE) or by the way (flags of
  descriptors), and what has more than five bytes of prefixes, is not told at all.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.compiler.raw import watched
from trapgate.operands.encoding import (
    INFO_REGISTER,
    code_byte,
    code_displacement,
    decode_operand,
    has_prefix,
    operand_offset,
    prefix_length,
    register_value,
    segment_of_prefixes,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.operands.operations import combined, cut, extended, flag_condition, swapped
from trapgate.operands.store_forms import (
    ACCUMULATOR,
    ALL_ONES,
    BY_OPERAND_SIZE,
    BY_PREFIX,
    BY_STACK,
    COUNT,
    ENVIRONMENT,
    EXTRACTS,
    FLAG,
    FORMS,
    IMMEDIATE,
    INPUT,
    LOCAL_TABLE,
    LONGER,
    MOVBE,
    OPERATION,
    POPPED,
    PUSHED_BYTE,
    PUSHED_FLAGS,
    PUSHED_IMMEDIATE,
    PUSHED_OPERAND,
    PUSHED_REGISTER,
    PUSHED_SEGMENT,
    REGISTER,
    RETURN_OPERAND,
    RETURN_RELATIVE,
    SEGMENT,
    SET_BIT,
    SIGNED_BYTE,
    SIZE,
    SIZE_BITS,
    STORE,
    SWAPPED,
    TASK_REGISTER,
    UNKNOWN,
    WIDER,
)
from trapgate.paging.memory import has_device, load_across
from trapgate.paging.walk import FETCH, READ, translate
from trapgate.sdm.cells import (
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_CS_BASE,
    GUEST_ES_BASE,
    GUEST_ES_SELECTOR,
    GUEST_LDTR_SELECTOR,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_BASE,
    GUEST_TR_SELECTOR,
)
from trapgate.sdm.registers import RAX, RCX, RSI
from trapgate.sdm.state import AR_DB

_LOW = 0xFFFF_FFFF
_DS = 3


@core
def first_bytes(v: Cells, mem: Memory) -> int:
    """The eight bytes of code at RIP, little endian; those that cannot be read are 0."""
    linear = int(v[GUEST_RIP])
    if not in_64_bit_mode(v):
        linear = (linear + int(v[GUEST_CS_BASE])) & _LOW
    first, error = translate(v, mem, linear, FETCH, user_mode(v))
    if error >= 0:
        return 0
    second = -1
    if linear & 0xFFF > 0xFF8:
        second, error = translate(v, mem, (linear | 0xFFF) + 1, FETCH, user_mode(v))
        if error >= 0:
            count = 0x1000 - (linear & 0xFFF)
            return load_across(mem, first, first, linear, 8) & ((1 << (8 * count)) - 1)
    return load_across(mem, first, second, linear, 8)


@core
def user_mode(v: Cells) -> int:
    """1 if accesses are the user's, else 0."""
    return 1 if privilege_level(v) == 3 else 0


@core
def read_data(v: Cells, mem: Memory, linear: int, size: int) -> tuple[bool, int]:
    """Whether 1 to 8 bytes of RAM are readable at a linear address, and what they hold."""
    first, error = translate(v, mem, linear, READ, user_mode(v))
    if error >= 0 or first >> 3 >= len(mem) or has_device(watched(mem), first):
        return False, 0
    second = -1
    if (linear & 0xFFF) + size > 0x1000:
        onward = (linear | 0xFFF) + 1
        if not in_64_bit_mode(v):
            onward &= _LOW
        second, error = translate(v, mem, onward, READ, user_mode(v))
        if error >= 0 or second >> 3 >= len(mem) or has_device(watched(mem), second):
            return False, 0
    return True, load_across(mem, first, second, linear, size)


@core
def linear_of(v: Cells, segment: int, offset: int) -> int:
    """The linear address of an offset in a segment; its limit is looked at elsewhere."""
    if in_64_bit_mode(v):
        return offset + int(v[GUEST_ES_BASE + segment]) if segment > _DS else offset
    return (offset + int(v[GUEST_ES_BASE + segment])) & _LOW


@core
def byte_register(v: Cells, r: Cells, number: int, rex: int) -> int:
    """The register of one byte with that encoding: AH to BH have no REX."""
    if rex == 0 and 4 <= number < 8:
        return (register_value(v, r, number - 4) >> 8) & 0xFF
    return register_value(v, r, number) & 0xFF


@core
def form_at(v: Cells, mem: Memory, word: int, start: int) -> tuple[int, int]:
    """The form of the instruction whose opcode is byte `start`, and where its ModR/M byte is."""
    opcode = code_byte(v, mem, word, start)
    second = code_byte(v, mem, word, start + 1)
    if opcode != 0x0F:
        return int(FORMS[opcode << 3 | (second >> 3) & 7]), start + 1
    third = code_byte(v, mem, word, start + 2)
    if second == 0x38:
        moves = third == 0xF1 and not has_prefix(word, start, 0xF2)
        return MOVBE if moves else 0, start + 3
    if second == 0x3A:
        return int(EXTRACTS[third & 3]) if 0x14 <= third <= 0x17 else 0, start + 3
    return int(FORMS[0x800 | second << 3 | (third >> 3) & 7]), start + 2


@core
def size_of(form: int, word: int, start: int, rex: int, long: bool, small: bool) -> int:
    """How many bytes an instruction of a form stores."""
    if form & BY_STACK:
        if long:
            return 2 if has_prefix(word, start, 0x66) else 8
        return 2 if small else 4
    if form & BY_OPERAND_SIZE:
        if rex & 8:
            return 8
        return 2 if small else 4
    place = SIZE
    if form & BY_PREFIX:
        if has_prefix(word, start, 0xF3):
            place += 2 * SIZE_BITS
        elif has_prefix(word, start, 0xF2):
            place += 3 * SIZE_BITS
        elif has_prefix(word, start, 0x66):
            place += SIZE_BITS
    size = (form >> place) & ((1 << SIZE_BITS) - 1)
    if form & ENVIRONMENT and small:
        size -= min(14, size >> 1)
    if form & LONGER and long:
        size += 4
    if form & WIDER and rex & 8:
        size += size
    return size


@core
def stored(v: Cells, r: Cells, mem: Memory) -> tuple[int, bool, int]:
    """What the instruction at RIP stores: (bytes, whether the data are known, the data).

    0 bytes if it stores nothing, or not what this module tells. `v` is the VMCS with the guest's
    state, `r` the other registers, `mem` memory. Eight bytes of data are two's complement.
    """
    long = in_64_bit_mode(v)
    word = first_bytes(v, mem)
    start = prefix_length(word, long)
    if start > 5:
        return 0, False, 0
    rex = (word >> (8 * (start - 1))) & 0xFF if long and start > 0 else 0
    if rex & 0xF0 != 0x40:
        rex = 0
    form, at = form_at(v, mem, word, start)
    source = form & 0xFF
    if source == 0:
        return 0, False, 0
    small = not long and v[GUEST_CS_ACCESS_RIGHTS] & AR_DB == 0
    if has_prefix(word, start, 0x66):
        small = not small
    size = size_of(form, word, start, rex, long, small)
    opcode = code_byte(v, mem, word, at - 1)
    if source >= INPUT:
        known, data = data_without_modrm(v, r, mem, word, start, source, size, opcode, rex)
        return size, known, cut(data, size)
    end, information, displacement = decode_operand(v, mem, word, start, rex, at)
    if source == RETURN_OPERAND:
        return size, True, cut(int(v[GUEST_RIP]) + end, size)
    is_register = information & INFO_REGISTER != 0
    if source == PUSHED_OPERAND and is_register:
        return size, True, cut(register_value(v, r, (information >> 3) & 0xF), size)
    if is_register:
        return 0, False, 0
    if source == UNKNOWN or size > 8:
        return size, False, 0
    operation = (form >> OPERATION) & 0xFF
    known, data = data_for_operand(v, r, mem, word, end, source, size, opcode, rex, information)
    if operation == STORE and source != PUSHED_OPERAND:
        return size, known, cut(data, size)
    if code_byte(v, mem, word, at) & 0xC7 == 5 and long:
        # An address relative to RIP counts from after the immediate operand.
        displacement += 1 if source == SIGNED_BYTE else 0
        displacement += min(size, 4) if source == IMMEDIATE else 0
    offset = operand_offset(v, r, information, displacement)
    if operation >= SET_BIT and source == REGISTER:
        # The bit's number counts from the operand on.
        offset += extended(data, size) // (8 * size) * size
        address_size = (information >> 7) & 7
        if address_size < 2:
            offset &= _LOW if address_size == 1 else 0xFFFF
    known, old = read_data(v, mem, linear_of(v, (information >> 15) & 7, offset), size)
    if source == PUSHED_OPERAND:
        return size, known, old
    return size, known, cut(combined(r, operation, old, data, size, int(v[GUEST_RFLAGS]) & 1), size)


@core
def data_for_operand(
    v: Cells,
    r: Cells,
    mem: Memory,
    word: int,
    end: int,
    source: int,
    size: int,
    opcode: int,
    rex: int,
    information: int,
) -> tuple[bool, int]:
    """Whether what goes to an operand in memory is known, and it; `end` is after that operand."""
    other = (information >> 28) & 0xF
    data = 1
    if source == REGISTER and size == 1:
        data = byte_register(v, r, other, rex)
    elif source == REGISTER:
        data = register_value(v, r, other)
    elif source == SWAPPED:
        data = swapped(register_value(v, r, other), size)
    elif source == IMMEDIATE:
        data = code_displacement(v, mem, word, end, min(size, 4))
    elif source == SIGNED_BYTE:
        data = code_displacement(v, mem, word, end, 1)
    elif source == SEGMENT:
        data = int(v[GUEST_ES_SELECTOR + min(other & 7, 5)])
    elif source == LOCAL_TABLE:
        data = int(v[GUEST_LDTR_SELECTOR])
    elif source == TASK_REGISTER:
        data = int(v[GUEST_TR_SELECTOR])
    elif source == FLAG:
        data = flag_condition(int(v[GUEST_RFLAGS]), opcode & 0xF)
    elif source == ALL_ONES:
        data = -1
    elif source == COUNT:
        data = int(r[RCX])
    elif source == POPPED:
        return top_of_stack(v, mem, size)
    return True, data


@core
def data_without_modrm(
    v: Cells,
    r: Cells,
    mem: Memory,
    word: int,
    start: int,
    source: int,
    size: int,
    opcode: int,
    rex: int,
) -> tuple[bool, int]:
    """Whether the data are known that an instruction without a ModR/M byte stores, and these."""
    if source == INPUT:
        return False, 0
    if source == ACCUMULATOR:
        return True, int(r[RAX])
    if source == PUSHED_REGISTER:
        return True, register_value(v, r, (opcode & 7) | (rex & 1) << 3)
    if source == PUSHED_BYTE:
        return True, code_displacement(v, mem, word, start + 1, 1)
    if source == PUSHED_IMMEDIATE:
        return True, code_displacement(v, mem, word, start + 1, min(size, 4))
    if source == PUSHED_FLAGS:
        return True, int(v[GUEST_RFLAGS]) & 0xFC_FFFF
    if source == PUSHED_SEGMENT:
        # ES, CS, SS and DS; after 0FH, FS and GS.
        segment = (opcode >> 3) & 3 if opcode < 0x80 else 4 + ((opcode >> 3) & 1)
        return True, int(v[GUEST_ES_SELECTOR + segment])
    long = in_64_bit_mode(v)
    if source == RETURN_RELATIVE:
        return True, int(v[GUEST_RIP]) + start + (5 if long or size == 4 else 3)
    segment = segment_of_prefixes(word, start, long)
    if segment < 0:
        segment = _DS
    wide = not long and v[GUEST_CS_ACCESS_RIGHTS] & AR_DB != 0
    offset = int(r[RSI])
    if has_prefix(word, start, 0x67):
        offset &= 0xFFFF if wide else _LOW
    elif not long:
        offset &= _LOW if wide else 0xFFFF
    return read_data(v, mem, linear_of(v, segment, offset), size)


@core
def top_of_stack(v: Cells, mem: Memory, size: int) -> tuple[bool, int]:
    """What lies on the stack."""
    linear = int(v[GUEST_RSP])
    if not in_64_bit_mode(v):
        wide = v[GUEST_SS_ACCESS_RIGHTS] & AR_DB
        linear = ((linear & (_LOW if wide else 0xFFFF)) + int(v[GUEST_SS_BASE])) & _LOW
    return read_data(v, mem, linear, size)
