"""The bytes of the instruction at RIP, as the core's decoders take them. Compiled only."""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit
from trapgate.compiler.raw import memory
from trapgate.decode.length import MOST, length_of
from trapgate.decode.read_modify_write import opcode_writes_what_it_reads
from trapgate.engine import machine as mc
from trapgate.operands.encoding import prefix_length
from trapgate.paging.memory import load8, load64
from trapgate.paging.walk import locate
from trapgate.sdm import cells as f

NOTHING_THERE = 0
"""The first byte of `instruction` where it cannot be read; none that comes here begins with it."""

_IDLE_PREFIXES = 6
"""With so many prefixes the opcode need not be among eight bytes, and some say nothing new."""


@jit
@inlined
def is_long(v: Cells) -> bool:
    """Whether the guest executes 64-bit code."""
    return bool(v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 and v[f.GUEST_IA32_EFER] & 1 << 10)


@jit
@inlined
def linear_rip(v: Cells) -> int:
    """The linear address of the next instruction."""
    rip = int(v[f.GUEST_RIP])
    return rip if is_long(v) else int(v[f.GUEST_CS_BASE] + rip) & 0xFFFFFFFF


@jit
def fetch_from(m: Cells, v: Cells, linear: int, count: int) -> tuple[int, int]:
    """Up to eight bytes of code from a linear address: see `fetch`."""
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    user = 1 if (v[f.GUEST_SS_ACCESS_RIGHTS] >> 5) & 3 == 3 else 0
    word = 0
    page = -1
    physical = 0
    for n in range(count):
        here = linear + n
        if here >> 12 != page:
            physical, code = locate(v, v[f.GUEST_RFLAGS], mem, here, 2, user)
            if code >= 0:
                return word, n
            page = here >> 12
            physical &= ~0xFFF
            if count == 8 and n == 0 and page == (here + 7) >> 12:
                return load64(mem, physical | (here & 0xFFF)), 8
        word |= load8(mem, physical | (here & 0xFFF)) << (8 * n)
    return word, count


@jit
def fetch(m: Cells, v: Cells, count: int) -> tuple[int, int]:
    """Up to eight bytes of code at RIP, little endian, and how many of them are readable."""
    return fetch_from(m, v, linear_rip(v), count)


@jit
def missing_byte(m: Cells, v: Cells) -> int:
    """Which byte of the instruction at RIP cannot be fetched, -1 if all can.

    The engine has seen UD2 in its place, and so at most two of its bytes.
    """
    linear = linear_rip(v)
    rip = int(v[f.GUEST_RIP])
    left = MOST
    if not is_long(v):
        left = min((int(v[f.GUEST_CS_LIMIT]) & 0xFFFF_FFFF) - rip + 1, MOST)
    if left == MOST and linear & 0xFFF <= 0x1000 - MOST:
        return -1
    low, count = fetch_from(m, v, linear, 8)
    high = 0
    if count == 8:
        high, more = fetch_from(m, v, linear + 8, 8)
        count += more
    wide = v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 14 != 0
    left = min(left, count)
    return left if length_of(low, high, is_long(v), wide) > left else -1


@jit
def instruction(m: Cells, v: Cells) -> int:
    """Eight bytes of the instruction at RIP, without prefixes that say nothing new.

    Without those no sensitive instruction needs more. EXTRA is how many were left out.
    """
    word, _ = fetch(m, v, 8)
    return without_idle_prefixes(m, v, word)


@jit
def without_idle_prefixes(m: Cells, v: Cells, word: int) -> int:
    """`instruction` if its first eight bytes are `word`."""
    m[mc.EXTRA] = 0
    long = v[f.GUEST_CS_ACCESS_RIGHTS] & 1 << 13 != 0
    if prefix_length(word, long) < _IDLE_PREFIXES:
        return word
    linear = linear_rip(v)
    lock = repeat = segment = operand = address = rex = 0
    n = 0
    while n < 15:
        if n == 8:
            word, _ = fetch_from(m, v, linear + 8, 8)
        byte = (word >> (8 * (n & 7))) & 0xFF
        if long and byte & 0xF0 == 0x40:
            rex = byte
            n += 1
            continue
        if byte == 0xF0:
            lock = byte
        elif byte in (0xF2, 0xF3):
            repeat = byte
        elif byte in (0x64, 0x65):
            segment = byte
        elif byte in (0x26, 0x2E, 0x36, 0x3E):
            # In 64-bit mode those of FS and GS count, whatever follows.
            segment = segment if long else byte
        elif byte == 0x66:
            operand = byte
        elif byte == 0x67:
            address = byte
        else:
            break
        # REX counts right before the opcode only.
        rex = 0
        n += 1
    short = 0
    kept = 0
    for prefix in (lock, repeat, segment, operand, address, rex):
        if prefix != 0:
            short |= prefix << (8 * kept)
            kept += 1
    rest, _ = fetch_from(m, v, linear + n, 8 - kept)
    m[mc.EXTRA] = n - kept
    return short | rest << (8 * kept)


@jit
def operand_of(m: Cells, v: Cells) -> int:
    """What the instruction at RIP does with its operand in memory: OPERAND_*.

    Translated code is made from one instruction, so this is found out once for each place in it.
    """
    place = m[mc.PLACE] if m[mc.NATIVE] != 0 else 0
    if place != 0 and m[place + mc.PLACE_OPERAND] != 0:
        return int(m[place + mc.PLACE_OPERAND])
    return decode_operand(m, v, place)


@jit
def decode_operand(m: Cells, v: Cells, place: int) -> int:
    """`operand_of`, by the instruction's bytes."""
    word, count = fetch(m, v, 8)
    if count == 0:
        return mc.OPERAND_OTHER
    start = prefix_length(word, is_long(v))
    if start >= _IDLE_PREFIXES:
        word = without_idle_prefixes(m, v, word)
        start = prefix_length(word, is_long(v))
    operand = mc.OPERAND_OTHER
    if (word >> (8 * start)) & 0xFC == 0x6C:
        operand = mc.OPERAND_OF_PORT
    elif opcode_writes_what_it_reads(word, start):
        operand = mc.OPERAND_CHANGES
    if place != 0:
        m[place + mc.PLACE_OPERAND] = operand
    return operand
