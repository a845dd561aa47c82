"""Repeated stores that clear what of a table lies in one page: one write to the filters.

A guest clears a whole table before it is one. Where the VMM lets its tables be known as such for
longer than they are linked, a processor asks the filters once for what a fast string store does to
a page. Compiled only.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import cells, memory, table
from trapgate.decision.decide import COMPLETE, decide_filtered
from trapgate.decision.entry_facts import REPEATED, entry_facts
from trapgate.decision.fault_filters import (
    BY_FAULT_FILTER,
    EMPTY_TABLE,
    FILTER_PARAGRAPH_80,
    KNOWN_TABLE,
)
from trapgate.decision.frame_filters import entry_written, is_stopped_table_write
from trapgate.decision.self_map import entry_of, entry_size
from trapgate.decode.execute import advance
from trapgate.engine import machine as mc
from trapgate.engine.guest.fetched_code import fetch, is_long
from trapgate.engine.memory.coherence import CODE, pages_of
from trapgate.events.journal import (
    HEAD_DATA,
    HEAD_ENTRY,
    HEAD_OLD_VALUE,
    HEAD_SEQUENCE,
    HEAD_TIME,
    ROW_WIDTH,
    record,
)
from trapgate.paging.memory import store32
from trapgate.paging.walk import WRITE, walk
from trapgate.sdm import cells as f
from trapgate.sdm import registers as reg
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION
from trapgate.sdm.state import RFLAGS_AC, RFLAGS_DF, RFLAGS_TF
from trapgate.sdm.vectors import PF

_LOW = 0xFFFF_FFFF
_CS_DB = 1 << 14


@jit
def stos_of(word: int, long: bool) -> tuple[int, int]:
    """REP STOS of 1, 4 or 8 bytes without further prefixes: (that size, the instruction's bytes).

    (0, 0) for any other instruction.
    """
    if word & 0xFF != 0xF3:
        return 0, 0
    wide = 4
    length = 2
    opcode = (word >> 8) & 0xFF
    if long and opcode & 0xF0 == 0x40:
        wide = 8 if opcode & 8 else 4
        length = 3
        opcode = (word >> 16) & 0xFF
    if opcode == 0xAA:
        return 1, length
    return (wide, length) if opcode == 0xAB else (0, 0)


@jit
def clears_table(m: Cells, v: Cells, r: Cells, code: int, address: int) -> bool:
    """Carry out a REP STOS of zeros to the table at `address`, as far as its page goes.

    False, and nothing has changed, if the instruction is another, or its fault goes elsewhere.
    """
    if (
        v[f.FRAME_FILTERS] & (KNOWN_TABLE | EMPTY_TABLE) != KNOWN_TABLE
        or v[f.FAULT_FILTER] != FILTER_PARAGRAPH_80
    ):
        return False
    if v[f.CRITERIA_TABLE_RULES] != 0 or not is_stopped_table_write(v, code):
        return False
    word, _ = fetch(m, v, 8)
    long = is_long(v)
    size, length = stos_of(word, long)
    if size == 0 or (not long and v[f.GUEST_CS_ACCESS_RIGHTS] & _CS_DB == 0):
        return False
    mask = -1 if long else _LOW
    value = r[reg.RAX] if size == 8 else r[reg.RAX] & ((1 << 8 * size) - 1)
    if value != 0 or address & 7 != 0:
        return False
    # Not by a segment with a base, nor for a store of which only the end is in the table.
    if r[reg.RDI] & mask != address:
        return False
    if not long and v[f.GUEST_ES_LIMIT] < address | 0xFFF:
        return False
    if v[f.GUEST_RFLAGS] & (RFLAGS_DF | RFLAGS_TF) or m[mc.STEPPING] != 0:
        return False
    left = r[reg.RCX] & mask
    count = (0x1000 - (address & 0xFFF)) // size
    if 0 <= left < count:
        count = left
    # Not beyond what wants to be seen to at its very instruction.
    count = min(count, min(m[mc.TIMER_END], m[mc.BUDGET_END]) - m[mc.TIME])
    width = entry_size(v[f.GUEST_CR4])
    if size < width:
        count -= count & (width // size - 1)
    if count <= 0:
        return False
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    user = (code >> 2) & 1
    kind, physical = entry_written(v, v[f.GUEST_RFLAGS], mem, address, user)
    if kind == 0 or pages_of(m)[physical >> 12] & CODE:
        return False
    disposition, reason = decide_filtered(v, code, BY_FAULT_FILTER)
    if disposition != COMPLETE:
        return False
    head = cells(m[mc.HEAD], m[mc.HEAD_CELLS])
    head[HEAD_ENTRY] = entry_facts(v, mem, kind, physical, 0) | REPEATED
    head[HEAD_DATA] = 0
    head[HEAD_OLD_VALUE] = entry_of(mem, physical, width)
    head[HEAD_TIME] = m[mc.TIME]
    # Accessed and dirty flags, as if the map were not there.
    frames = v[f.FRAME_MAP_LENGTH]
    v[f.FRAME_MAP_LENGTH] = 0
    walk(v, RFLAGS_AC, mem, address, WRITE, user)
    v[f.FRAME_MAP_LENGTH] = frames
    rows = table(m[mc.ROWS], m[mc.ROWS_CAPACITY], ROW_WIDTH)
    record(v, rows, head, PF, TYPE_HARDWARE_EXCEPTION, code, address, COMPLETE, reason, 0, 0)
    if head[HEAD_SEQUENCE] >= m[mc.JOURNAL_LIMIT]:
        m[mc.ATTENTION] |= mc.AT_ONCE
        m[mc.DEADLINE] = 0
    for n in range(count * size >> 2):
        store32(mem, physical + 4 * n, 0)
    r[reg.RDI] = (r[reg.RDI] + count * size) & mask
    r[reg.RCX] = (left - count) & mask
    # The first one was counted when it faulted.
    m[mc.TIME] += count - 1
    if left == count:
        # That nothing is left is found out once more.
        m[mc.TIME] += 1
        advance(v, length)
    m[mc.SWITCHED] |= mc.SWITCHED_REGISTERS
    return True
