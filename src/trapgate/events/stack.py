"""Words on the guest's stack that an instruction pops: room, addresses, rights, reading.

The counterpart of `frame`. SDM, "IRET", "RET", "Stack Segment Limits".
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.paging.memory import load8, load_sized
from trapgate.paging.walk import READ, locate, walk
from trapgate.sdm.cells import GUEST_RFLAGS
from trapgate.sdm.state import AR_DB, AR_EXPAND_DOWN, AR_UNUSABLE

_CANONICAL_HALF = 1 << 47


@core
def each_word_fits(limit: int, rights: int, sp: int, size: int, step: int, count: int) -> bool:
    """Whether `count` words lie within the segment, the first at `sp`, each `step` from the last.

    `limit` and `rights` as in `frame.stack_has_room`; the stack pointer wraps as B says.
    """
    mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
    for n in range(count):
        first = (sp + step * n) & mask
        last = first + size - 1
        if last > mask:
            return False
        if rights & AR_EXPAND_DOWN:
            if first <= limit:
                return False
        elif last > limit:
            return False
    return True


@core
def stack_holds(limit: int, rights: int, sp: int, size: int, count: int) -> bool:
    """Whether `count` words of `size` bytes from `sp` upwards lie within this stack segment.

    The parameters are those of `frame.stack_has_room`.
    """
    if rights & AR_UNUSABLE:
        return False
    mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
    if rights & AR_EXPAND_DOWN == 0 and sp + size * count - 1 <= min(limit, mask):
        return True
    return each_word_fits(limit, rights, sp, size, size, count)


@core
def words_are_canonical(sp: int, length: int) -> bool:
    """Whether all of the `length` bytes from `sp` upwards are at canonical addresses (48 bits)."""
    return -_CANONICAL_HALF <= sp <= _CANONICAL_HALF - length and (sp < 0) == (sp + length - 1 < 0)


@core
def probe_each(
    v: Cells,
    mem: Memory,
    base: int,
    sp: int,
    mask: int,
    size: int,
    step: int,
    count: int,
    access: int,
    user: int,
) -> tuple[int, int, int]:
    """Translate `count` words of `size` bytes, the first at `sp`, each `step` from the one before.

    (-1, -1, 0) if all of them can be accessed, else (0, page-fault error code, faulting linear
    address) of the first that cannot.
    """
    rflags = v[GUEST_RFLAGS]
    linear_mask = -1 if mask == -1 else 0xFFFF_FFFF
    for n in range(count):
        first = (base + ((sp + step * n) & mask)) & linear_mask
        _, error, _, _ = walk(v, rflags, mem, first, access, user)
        if error >= 0:
            return 0, error, first
        last = (first + size - 1) & linear_mask
        if (first ^ last) & ~0xFFF:
            onward = last & ~0xFFF
            _, error, _, _ = walk(v, rflags, mem, onward, access, user)
            if error >= 0:
                return 0, error, onward
    return -1, -1, 0


@core
def probe_words(
    v: Cells, mem: Memory, base: int, sp: int, mask: int, size: int, count: int, user: int
) -> tuple[int, int, int]:
    """Translate `count` words of `size` bytes from `sp` upwards for reading.

    `base`, `mask` and `user` as in `frame.probe_frame`. Returns (physical address of the
    first word, -1, 0) if they lie within one page, (-1, -1, 0) if they do not but all of them can
    be read, (0, page-fault error code, faulting linear address) otherwise.
    """
    rflags = v[GUEST_RFLAGS]
    length = size * count
    linear_mask = -1 if mask == -1 else 0xFFFF_FFFF
    first = (base + sp) & linear_mask
    if (mask == -1 or sp + length - 1 <= mask) and (first & 0xFFF) + length <= 0x1000:
        physical, error = locate(v, rflags, mem, first, READ, user)
        if error >= 0:
            return 0, error, first
        return physical, -1, 0
    return probe_each(v, mem, base, sp, mask, size, size, count, READ, user)


@core
def words_share_page(physical: int, sp: int, mask: int, length: int) -> bool:
    """Whether `length` bytes from `sp` upwards lie in the page of the first word.

    `physical` is what `probe_words` has answered for fewer words; `mask` as there, not -1.
    """
    return physical >= 0 and (physical & 0xFFF) + length <= 0x1000 and sp + length - 1 <= mask


@core
@inlined
def word_at(
    v: Cells,
    mem: Memory,
    physical: int,
    base: int,
    sp: int,
    mask: int,
    size: int,
    user: int,
    n: int,
) -> int:
    """The `n`th word (from 0) from `sp` upwards, of those that `probe_words` has found readable.

    `physical` is what that answered. Words of 2 and 4 bytes are zero-extended.
    """
    if physical >= 0:
        return load_sized(mem, physical + size * n, size)
    return _word_across(v, mem, base + ((sp + size * n) & mask), mask, size, user)


@core
def _word_across(v: Cells, mem: Memory, first: int, mask: int, size: int, user: int) -> int:
    linear_mask = -1 if mask == -1 else 0xFFFF_FFFF
    value = 0
    for byte in range(size):
        linear = (first + byte) & linear_mask
        at, _, _, _ = walk(v, v[GUEST_RFLAGS], mem, linear, READ, user)
        part = load8(mem, at)
        if byte == 7 and part > 0x7F:
            part -= 0x100
        value |= part << (8 * byte)
    return value
