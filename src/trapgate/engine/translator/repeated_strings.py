"""Repeated MOVS and STOS: what of them stays within a page is moved at once (native path only).

The engine gives such an instruction a block of its own, which leads back to itself. Where that
block begins, iterations that could only move bytes between pages of RAM are carried out, all but
the last of the instruction's; then the block makes one, with whatever may come of it: faults,
exits, a page's first store, the end. So the clock, which counts iterations, and interrupts between
two of them are what they would be. Compiled only.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit, stub
from trapgate.compiler.raw import (
    call,
    cells,
    go_on,
    peek8,
    peek16,
    peek32,
    peek64,
    poke8,
    poke16,
    poke32,
    poke64,
)
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.translator.careful_blocks import (
    is_asked_to_exit,
    late_block_begins,
    leave_before,
)
from trapgate.engine.translator.translator_errata import code_byte
from trapgate.operands.encoding import is_prefix, segment_of_prefix
from trapgate.sdm.state import RFLAGS_AC, RFLAGS_RF, RFLAGS_TF

# What is known of the instruction where it is translated: bits 1:0 the logarithm of its
# elements' size, and
_MOVES = 4
_SEGMENT = 3
"""... from bit 3 on the segment that is loaded from, and"""
_ADDRESS = 6
"""... from bit 6 on the logarithm of the size of its addresses, in bytes."""

_FEWEST = 8
"""So many iterations have to be left for it to be worth a look."""
_ES, _DS, _FS = 0, 3, 4
_RAX, _RCX, _RSI, _RDI = 0, 8, 48, 56
_LOW = 0xFFFF_FFFF
_LOADS, _STORES = 0, 1
"""The engine's numbers of accesses."""


@jit
def repeated_string(reader: int, env: int, start: int, flags: int) -> int:
    """What the instruction at a linear address is, if REP MOVS or STOS; else 0.

    `flags` are those of its block, `reader` the engine's function for bytes of code.
    """
    if flags & (RFLAGS_TF | RFLAGS_RF | at.HF_INHIBIT_IRQ):
        return 0
    long = flags & at.HF_CS64 != 0
    wide = flags & at.HF_CS32 != 0
    segment = _DS
    repeats = narrow = other_address = False
    rex = 0
    n = 0
    byte = code_byte(reader, env, start)
    while n < 15 and is_prefix(byte, long):
        segment = segment_of_prefix(byte, segment, long)
        rex = byte if byte & 0xF0 == 0x40 else 0
        repeats = repeats or byte in (0xF2, 0xF3)
        narrow = narrow or byte == 0x66
        other_address = other_address or byte == 0x67
        n += 1
        byte = code_byte(reader, env, start + n)
    if not repeats or byte not in (0xA4, 0xA5, 0xAA, 0xAB):
        return 0
    size = 0
    if byte & 1:
        size = 3 if long and rex & 8 else 2 if (wide or long) != narrow else 1
    address = 2 if wide != other_address else 1
    if long:
        address = 2 if other_address else 3
    return size | (_MOVES if byte < 0xAA else 0) | segment << _SEGMENT | address << _ADDRESS


@jit
def linear_of(env: int, segment: int, offset: int) -> int:
    """The linear address of an offset."""
    base = peek64(env + at.SEGMENTS + at.SEGMENT_SIZE * segment + at.BASE)
    if peek32(env + at.HFLAGS) & at.HF_CS64:
        return int(offset + base if segment >= _FS else offset)
    return int(base + offset) & _LOW


@jit
def room_at(m: Cells, segment: int, offset: int, linear: int, what: int, access: int) -> int:
    """How many elements from an offset on lie in its page and segment, and within its width."""
    size = what & 3
    room = (0x1000 - (linear & 0xFFF)) >> size
    width = what >> _ADDRESS
    if width < 3:
        room = min(room, ((1 << (8 << width)) - offset) >> size)
    if peek32(m[mc.ENV] + at.HFLAGS) & at.HF_CS64:
        return room
    low = m[mc.SEGMENT_LOWS + segment]
    bound = m[mc.SEGMENT_BOUNDS + 8 * segment + 4 * access + size]
    if not 0 <= offset - low < bound:
        return 0
    return int(min(room, 1 + ((bound - 1 - (offset - low)) >> size)))


@jit
def translation_index(env: int) -> int:
    """The engine's number of translations that the current privilege level uses."""
    flags = peek32(env + at.HFLAGS)
    if flags & 3 == 3:
        return 1
    return 0 if flags & at.HF_SMAP and peek64(env + at.EFLAGS) & RFLAGS_AC == 0 else 2


@jit
def host_of(m: Cells, linear: int, access: int) -> int:
    """Where the host has the RAM of a linear address, if any access may go there; else 0.

    Pages with code, of devices, and to be noted at a store are none of that.
    """
    env = m[mc.ENV]
    return call(m[mc.TLB_HOST], (env, linear, access, translation_index(env)))


@jit
def fill(target: int, count: int, size: int, value: int) -> None:
    """Store `count` elements of 1 << `size` bytes."""
    if size == 0:
        value = (value & 0xFF) * 0x0101010101010101
    elif size == 1:
        value = (value & 0xFFFF) * 0x0001000100010001
    elif size == 2:
        value = (value & _LOW) * 0x0000000100000001
    length = count << size
    for n in range(length >> 3):
        poke64(target + 8 * n, value)
    for n in range(length & ~7, length):
        poke8(target + n, value >> (8 * (n & 7)))


@jit
def move(target: int, source: int, count: int, size: int) -> None:
    """Move `count` elements of 1 << `size` bytes upwards, one after the other.

    A target shortly after its source is filled with what has been stored before.
    """
    length = count << size
    if 0 < target - source < 8:
        for n in range(count):
            if size == 0:
                poke8(target + n, peek8(source + n))
            elif size == 1:
                poke16(target + 2 * n, peek16(source + 2 * n))
            elif size == 2:
                poke32(target + 4 * n, peek32(source + 4 * n))
            else:
                poke64(target + 8 * n, peek64(source + 8 * n))
        return
    for n in range(length >> 3):
        poke64(target + 8 * n, peek64(source + 8 * n))
    for n in range(length & ~7, length):
        poke8(target + n, peek8(source + n))


@jit
def advance_register(env: int, register: int, distance: int, width: int) -> None:
    """Add to as much of a register as addresses of this width use."""
    value = peek64(env + at.REGS + register)
    if width == 1:
        value = value & ~0xFFFF | (value + distance) & 0xFFFF
    else:
        value = (value + distance) & _LOW if width == 2 else value + distance
    poke64(env + at.REGS + register, value)


@jit
def repeat(m: Cells, what: int) -> int:
    """Carry out iterations, and return how many."""
    env = m[mc.ENV]
    width = what >> _ADDRESS
    mask = -1 if width == 3 else (1 << (8 << width)) - 1
    left = peek64(env + at.REGS + _RCX) & mask
    count = m[mc.DEADLINE] - m[mc.TIME] - 1
    if left >= 0:
        count = min(count, left - 1)
    if count < _FEWEST or peek32(env + at.DF) != 1 or m[mc.STEPPING] != 0:
        return 0
    size = what & 3
    offset = peek64(env + at.REGS + _RDI) & mask
    linear = linear_of(env, _ES, offset)
    count = min(count, room_at(m, _ES, offset, linear, what, _STORES))
    source = 0
    m[mc.PROBE_CHANGED_CODE] = 0
    if what & _MOVES:
        segment = (what >> _SEGMENT) & 7
        offset = peek64(env + at.REGS + _RSI) & mask
        origin = linear_of(env, segment, offset)
        count = min(count, room_at(m, segment, offset, origin, what, _LOADS))
        if count < _FEWEST:
            return 0
        source = host_of(m, origin, _LOADS)
        if source == 0:
            return 0
    if count < _FEWEST:
        return 0
    target = host_of(m, linear, _STORES)
    if target == 0 or m[mc.PROBE_CHANGED_CODE] != 0:
        return 0
    if what & _MOVES:
        move(target, source, count, size)
        advance_register(env, _RSI, count << size, width)
    else:
        fill(target, count, size, peek64(env + at.REGS + _RAX))
    advance_register(env, _RDI, count << size, width)
    advance_register(env, _RCX, -count, width)
    return int(count)


@stub
def string_block_begins(machine: int, what: int) -> None:
    """Begin a block that is nothing but a repeated string instruction (`repeated_string`)."""
    m = cells(machine, mc.CELLS)
    if m[mc.TIME] >= m[mc.DEADLINE]:
        go_on(late_block_begins, (machine, 1))
    if is_asked_to_exit(m):
        leave_before(m, 1)
        go_on(m[mc.CHECK_EXIT], (m[mc.UC], 0))
    m[mc.TIME] += 1 + repeat(m, what)
