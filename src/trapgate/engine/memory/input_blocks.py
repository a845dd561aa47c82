"""Repeated INS from ports whose next bytes the VMM has given beforehand (`polled_ports`, BLOCK).

Compiled only. As many iterations as stay within a page are done at once. Wherever something else
than moving bytes to RAM might come of one, nothing is done, and Python looks at each.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import cells, memory
from trapgate.decode.execute import advance
from trapgate.engine import machine as mc
from trapgate.instructions import polled_ports as polled
from trapgate.instructions.intercepts import io_exits
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.memory import store_sized
from trapgate.paging.walk import WRITE, walk
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg
from trapgate.sdm import vmx
from trapgate.sdm.state import AR_DB, RFLAGS_DF, RFLAGS_IOPL_SHIFT, RFLAGS_TF, RFLAGS_VM

_INSB = 0x6C
_REP, _REPNE, _OPERAND_SIZE, _ADDRESS_SIZE = 0xF3, 0xF2, 0x66, 0x67
_UNUSABLE, _WRITABLE_UPWARDS = 1 << 16, 0x2
_KIND = 0xE
"""Of a data segment's type: what it is, but for whether it was accessed."""
_VIDEO, _HIGH_MEMORY = 0xA0000, 0x100000
"""Between them stores may have to go elsewhere, or nowhere."""


@jit
def has_prefix(word: int, count: int, prefix: int) -> bool:
    """Whether one of the first `count` bytes of `word` is a prefix."""
    found = False
    for n in range(count):
        found = found or (word >> (8 * n)) & 0xFF == prefix
    return found


@jit
def may_take_blocks(m: Cells, v: Cells) -> bool:
    """Whether an iteration has no other effects than moving bytes, by the guest's state."""
    flags = v[f.GUEST_RFLAGS]
    return bool(
        m[mc.PORTS] != 0
        and m[mc.V] == m[mc.HOST]
        and cells(m[mc.X], vmx.LENGTH)[vmx.LENT] == 0
        and m[mc.STEPPING] | m[mc.CHECKS] | m[mc.EXTRA] | m[mc.STUCK] == 0
        and flags & (RFLAGS_TF | RFLAGS_VM | RFLAGS_DF) == 0
        and v[f.GUEST_DR7] & 0xFF == 0
        and v[f.CRITERIA_TABLE_INSTRUCTIONS] == 0
        and privilege_level(v) <= (flags >> RFLAGS_IOPL_SHIFT) & 3
    )


@jit
def room_upwards(v: Cells, offset: int, linear: int, address_bits: int) -> int:
    """How many bytes from an offset in ES on lie in its segment and on one page."""
    room = 0x1000 - (linear & 0xFFF)
    if in_64_bit_mode(v):
        return room if linear >> 47 in (0, -1) else 0
    rights = v[f.GUEST_ES_ACCESS_RIGHTS]
    if rights & _UNUSABLE != 0 or rights & _KIND != _WRITABLE_UPWARDS:
        return 0
    room = min(room, v[f.GUEST_ES_LIMIT] + 1 - offset)
    return int(min(room, 0x10000 - offset) if address_bits == 16 else room)


@jit
def takes_block(m: Cells, v: Cells, r: Cells, word: int, start: int) -> bool:
    """Carry out iterations of REP INS; False: none, and nothing has happened.

    `word` are the first bytes of the instruction, `start` of them prefixes.
    """
    repeats = has_prefix(word, start, _REP) or has_prefix(word, start, _REPNE)
    if not repeats or not may_take_blocks(m, v):
        return False
    long = in_64_bit_mode(v)
    bits = 64 if long else 32 if v[f.GUEST_CS_ACCESS_RIGHTS] & AR_DB else 16
    size = 1
    if (word >> (8 * start)) & 0xFF != _INSB:
        size = 2 if (bits == 16) != has_prefix(word, start, _OPERAND_SIZE) else 4
    if has_prefix(word, start, _ADDRESS_SIZE):
        bits = 16 if bits == 32 else 32
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    p = cells(m[mc.PORTS], polled.LENGTH)
    port = r[reg.RDX] & 0xFFFF
    slot = polled.slot_of(p, polled.access(port, size, True), 0, 0)
    if slot < 0 or p[slot + polled.KIND] != polled.BLOCK or not io_exits(v, mem, port, size):
        return False
    mask = -1 if bits == 64 else (1 << bits) - 1
    offset, left = r[reg.RDI] & mask, r[reg.RCX] & mask
    linear = offset if long else (v[f.GUEST_ES_BASE] + offset) & 0xFFFF_FFFF
    count = min(
        room_upwards(v, offset, linear, bits) // size, polled.block_bytes_left(p, slot) // size
    )
    time = min(m[mc.TIMER_END], m[mc.NESTED_TIMER_END], m[mc.BUDGET_END]) - m[mc.TIME]
    count = min(count, time)
    if 0 <= left < count:
        count = left
    if count < 1:
        return False
    user = 1 if privilege_level(v) == 3 else 0
    physical, error, _, _ = walk(v, v[f.GUEST_RFLAGS], mem, linear, WRITE, user)
    end = physical + count * size
    if error >= 0 or end > 8 * m[mc.MEM_CELLS] or (end > _VIDEO and physical < _HIGH_MEMORY):
        return False
    for n in range(count):
        store_sized(mem, physical + n * size, size, polled.take_block_bytes(p, slot))
    p[polled.ANSWERED] += 1
    # The instruction has been counted, which is one iteration.
    p[polled.SKIPPED] += count - 1
    m[mc.TIME] += count - 1
    # With addresses of 32 bits the upper halves become 0, with 16 they stay.
    kept = 0xFFFF if bits == 16 else -1
    r[reg.RDI] = r[reg.RDI] & ~kept | (offset + count * size) & mask
    r[reg.RCX] = r[reg.RCX] & ~kept | (left - count) & mask
    if left == count:
        advance(v, start + 1)
    return True
