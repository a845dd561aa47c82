"""Repeated INS and OUTS at ports of which the VMM has said beforehand what they give and take.

Those are `polled_ports`' BLOCK, TAKE and SEND. Compiled only. As many iterations as stay within a
page are done at once. Wherever something else than moving bytes to or from RAM might come of one,
nothing is done, and Python looks at each.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import cells, memory
from trapgate.decode.execute import advance
from trapgate.engine import machine as mc
from trapgate.instructions import polled_ports as polled
from trapgate.instructions.intercepts import io_exits
from trapgate.operands.encoding import has_prefix, segment_of_prefixes
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.memory import load_sized, store_sized
from trapgate.paging.walk import READ, WRITE, walk
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg
from trapgate.sdm import vmx
from trapgate.sdm.state import AR_DB, RFLAGS_DF, RFLAGS_IOPL_SHIFT, RFLAGS_TF, RFLAGS_VM

_OUTS = 2
"""The bit of the opcode that OUTS has, and INS has not."""
_REP, _REPNE, _OPERAND_SIZE, _ADDRESS_SIZE = 0xF3, 0xF2, 0x66, 0x67
_ES, _DS, _FS = 0, 3, 4
_UNUSABLE, _WRITABLE_UPWARDS = 1 << 16, 0x2
_READABLE_CODE, _CONFORMING = 0xA, 0x4
_KIND = 0xE
"""Of a data segment's type: what it is, but for whether it was accessed."""
_VIDEO, _HIGH_MEMORY = 0xA0000, 0x100000
"""Between them accesses may have to go elsewhere, or nowhere."""


@jit
def may_take_blocks(m: Cells, v: Cells) -> bool:
    """Whether an iteration has no other effects than moving bytes, by the guest's state."""
    flags = v[f.GUEST_RFLAGS]
    return bool(
        m[mc.PORTS] != 0
        and m[mc.V] == m[mc.HOST]
        and cells(m[mc.X], vmx.LENGTH)[vmx.GUEST_IN_VMCS0] == 0
        and m[mc.STEPPING] | m[mc.CHECKS] | m[mc.EXTRA] | m[mc.STUCK] == 0
        and flags & (RFLAGS_TF | RFLAGS_VM | RFLAGS_DF) == 0
        and v[f.GUEST_DR7] & 0xFF == 0
        and v[f.CRITERIA_TABLE_INSTRUCTIONS] == 0
        and privilege_level(v) <= (flags >> RFLAGS_IOPL_SHIFT) & 3
    )


@jit
def room_upwards(
    v: Cells, segment: int, offset: int, linear: int, address_bits: int, stores: bool
) -> int:
    """How many bytes from an offset in a segment on lie in it and on one page."""
    room = 0x1000 - (linear & 0xFFF)
    if address_bits < 64:
        room = min(room, (1 << address_bits) - offset)
    if in_64_bit_mode(v):
        return room if linear >> 47 in (0, -1) else 0
    rights = v[f.GUEST_ES_ACCESS_RIGHTS + segment]
    kind = rights & _KIND
    allowed = kind == _WRITABLE_UPWARDS
    if not stores:
        allowed = allowed or kind in (0, _READABLE_CODE, _READABLE_CODE | _CONFORMING)
    if rights & _UNUSABLE != 0 or not allowed:
        return 0
    return int(min(room, (v[f.GUEST_ES_LIMIT + segment] & 0xFFFF_FFFF) + 1 - offset))


@jit
def moved(m: Cells, p: Cells, slot: int, physical: int, size: int, most: int) -> int:
    """Move elements between RAM and what the slot says of its port; how many, at most `most`."""
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    kind = p[slot + polled.KIND]
    count = 0
    while count < most:
        place = physical + count * size
        value = 0 if kind == polled.BLOCK else load_sized(mem, place, size)
        if polled.needs_vmm(p, slot, 0, value):
            break
        if kind == polled.BLOCK:
            store_sized(mem, place, size, polled.take_block_bytes(p, slot))
        elif kind == polled.TAKE:
            polled.put_block_bytes(p, slot, value)
        else:
            polled.store(p, slot, 0, value)
        count += 1
    if count != 0 and kind != polled.SEND:
        # All of them are what one exit would have brought about.
        p[polled.ANSWERED] += 1
    return count


@jit
def takes_block(m: Cells, v: Cells, r: Cells, word: int, start: int) -> bool:
    """Carry out iterations of REP INS or OUTS; False: none, and nothing has happened.

    `word` are the first bytes of the instruction, `start` of them prefixes.
    """
    repeats = has_prefix(word, start, _REP) or has_prefix(word, start, _REPNE)
    if not repeats or not may_take_blocks(m, v):
        return False
    long = in_64_bit_mode(v)
    bits = 64 if long else 32 if v[f.GUEST_CS_ACCESS_RIGHTS] & AR_DB else 16
    opcode = (word >> (8 * start)) & 0xFF
    is_in = opcode & _OUTS == 0
    size = 1
    if opcode & 1:
        size = 2 if (bits == 16) != has_prefix(word, start, _OPERAND_SIZE) else 4
    if has_prefix(word, start, _ADDRESS_SIZE):
        bits = 16 if bits == 32 else 32
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    p = cells(m[mc.PORTS], polled.LENGTH)
    port = r[reg.RDX] & 0xFFFF
    slot = polled.slot_about(p, polled.access(port, size, is_in))
    if slot < 0 or p[slot + polled.WAIT] != 0 or not io_exits(v, mem, port, size):
        return False
    if p[slot + polled.KIND] not in (polled.BLOCK, polled.TAKE, polled.SEND):
        return False
    mask = -1 if bits == 64 else (1 << bits) - 1
    segment, register = _ES, reg.RDI
    if not is_in:
        segment, register = segment_of_prefixes(word, start, long), reg.RSI
        segment = _DS if segment < 0 else segment
    offset, left = r[register] & mask, r[reg.RCX] & mask
    linear = offset
    if not long:
        linear = (v[f.GUEST_ES_BASE + segment] + offset) & 0xFFFF_FFFF
    elif segment >= _FS:
        linear = v[f.GUEST_ES_BASE + segment] + offset
    most = room_upwards(v, segment, offset, linear, bits, is_in) // size
    time = min(m[mc.TIMER_END], m[mc.NESTED_TIMER_END], m[mc.BUDGET_END]) - m[mc.TIME]
    most = min(most, time)
    if 0 <= left < most:
        most = left
    if most < 1:
        return False
    user = 1 if privilege_level(v) == 3 else 0
    access = WRITE if is_in else READ
    physical, error, _, _ = walk(v, v[f.GUEST_RFLAGS], mem, linear, access, user)
    end = physical + most * size
    if error >= 0 or end > 8 * m[mc.MEM_CELLS] or (end > _VIDEO and physical < _HIGH_MEMORY):
        return False
    count = moved(m, p, slot, physical, size, most)
    if count == 0:
        return False
    # The instruction has been counted, which is one iteration.
    m[mc.TIME] += count - 1
    # With addresses of 32 bits the upper halves become 0, with 16 they stay.
    kept = 0xFFFF if bits == 16 else -1
    r[register] = r[register] & ~kept | (offset + count * size) & mask
    r[reg.RCX] = r[reg.RCX] & ~kept | (left - count) & mask
    if left == count:
        advance(v, start + 1)
    return True
