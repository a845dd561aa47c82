"""The stack frame that event delivery pushes: room, addresses, rights, writing.

A frame is up to ten words of one size pushed downwards from a stack pointer. All of
it is checked before any of it is written, so that a delivery that faults leaves no
half of a frame. SDM, "Exception- or Interrupt-Handler Procedures" and, for 64-bit
mode, "64-Bit Mode Stack Frame".
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.events.stack import each_word_fits, probe_each
from trapgate.paging.memory import store8, store_plainly, store_sized
from trapgate.paging.walk import WRITE, locate, walk
from trapgate.sdm.cells import GUEST_RFLAGS
from trapgate.sdm.state import AR_EXPAND_DOWN, AR_UNUSABLE

_CANONICAL_HALF = 1 << 47


@core
def stack_has_room(limit: int, rights: int, sp: int, size: int, count: int) -> bool:
    """Whether `count` words of `size` bytes fit below `sp` in this stack segment.

    `limit` is the segment's in bytes (as GUEST_SS_LIMIT), `rights` its access rights;
    `sp` is 16 or 32 bits wide as the segment's B flag says.
    """
    if rights & AR_UNUSABLE:
        return False
    if rights & AR_EXPAND_DOWN == 0 and sp >= size * count:
        return sp - 1 <= limit
    # It wraps around, or the segment expands down: look at each word.
    return each_word_fits(limit, rights, sp - size, size, -size, count)


@core
def stack_is_canonical(sp: int, length: int) -> bool:
    """Whether all of the `length` bytes below `sp` are at canonical addresses (48 bits)."""
    return -_CANONICAL_HALF + length <= sp <= _CANONICAL_HALF


@core
def probe_frame(
    v: Cells, mem: Memory, base: int, sp: int, mask: int, size: int, count: int, user: int
) -> tuple[int, int, int]:
    """Translate the frame of `count` words of `size` bytes below `sp` for writing.

    `base` is the stack segment's, `mask` wraps the stack pointer (-1 in 64-bit mode),
    `user` is 1 if the new CPL is 3. Returns (physical address of the lowest word, -1,
    0) if the frame lies within one page, (-1, -1, 0) if it does not but all of it can
    be written, (0, page-fault error code, faulting linear address) otherwise.
    """
    rflags = v[GUEST_RFLAGS]
    length = size * count
    linear_mask = -1 if mask == -1 else 0xFFFF_FFFF
    # 64-bit stack pointers were found canonical before, so this cannot overflow.
    top = (base + sp) & linear_mask
    if (mask == -1 or sp >= length) and ((top - 1) & 0xFFF) + 1 >= length:
        lowest = (top - length) & linear_mask
        physical, error = locate(v, rflags, mem, lowest, WRITE, user)
        if error < 0:
            return physical, -1, 0
        # The first word pushed is the one that faults.
        first = (top - size) & linear_mask
        _, error, _, _ = walk(v, rflags, mem, first, WRITE, user)
        return 0, error, first
    return probe_each(v, mem, base, sp - size, mask, size, -size, count, WRITE, user)


@core
def push_word(
    v: Cells,
    mem: Memory,
    physical: int,
    base: int,
    sp: int,
    mask: int,
    size: int,
    user: int,
    n: int,
    value: int,
) -> None:
    """Write the `n`th word (from 0) of a frame that `probe_frame` has found writable.

    `physical` is where the word just below `sp` would lie less the frame's own offset:
    the frame's lowest physical address plus its length, or -1 for a frame on two pages.
    """
    if physical >= 0:
        store_sized(mem, physical - size * (n + 1), size, value)
        return
    linear_mask = -1 if mask == -1 else 0xFFFF_FFFF
    first = base + ((sp - size * (n + 1)) & mask)
    for byte in range(size):
        linear = (first + byte) & linear_mask
        at, _, _, _ = walk(v, v[GUEST_RFLAGS], mem, linear, WRITE, user)
        store8(mem, at, value >> (8 * byte))


@core
def store_frame(
    mem: Memory,
    lowest: int,
    size: int,
    switched: bool,
    ss: int,
    rsp: int,
    rflags: int,
    cs: int,
    rip: int,
    error_code: int,
) -> None:
    """Write a whole frame, its lowest word at physical `lowest`, where `stores_plainly` is true.

    With SS and RSP if `switched`, and with `error_code` unless that is -1.
    """
    if size == 4:
        _store_words(mem, lowest, 4, switched, ss, rsp, rflags, cs, rip, error_code)
    elif size == 8:
        _store_words(mem, lowest, 8, switched, ss, rsp, rflags, cs, rip, error_code)
    else:
        _store_words(mem, lowest, 2, switched, ss, rsp, rflags, cs, rip, error_code)


@core
@inlined
def _store_words(
    mem: Memory,
    lowest: int,
    size: int,
    switched: bool,
    ss: int,
    rsp: int,
    rflags: int,
    cs: int,
    rip: int,
    error_code: int,
) -> None:
    at = lowest
    if error_code >= 0:
        store_plainly(mem, at, size, error_code)
        at += size
    store_plainly(mem, at, size, rip)
    store_plainly(mem, at + size, size, cs)
    store_plainly(mem, at + 2 * size, size, rflags)
    if switched:
        store_plainly(mem, at + 3 * size, size, rsp)
        store_plainly(mem, at + 4 * size, size, ss)
