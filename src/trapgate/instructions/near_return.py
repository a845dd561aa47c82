"""RET within a segment (SDM, "RET"), for those that the engine gets wrong.

It takes the number of bytes to release as signed.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.descriptors import NO_FAULT
from trapgate.events.stack import probe_words, stack_holds, word_at, words_are_canonical
from trapgate.instructions.effects import address_is_canonical
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.sdm.cells import (
    GUEST_CS_LIMIT,
    GUEST_RIP,
    GUEST_RSP,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_BASE,
    GUEST_SS_LIMIT,
)
from trapgate.sdm.state import AR_DB
from trapgate.sdm.vectors import GP, PF, SS

RET_AND_RELEASE = 0xC2
"""The opcode with the number of bytes to release after it, 16 bits."""


@core
def near_return(v: Cells, mem: Memory, size: int, release: int) -> tuple[int, int, int]:
    """RET with operands of `size` bytes (2, 4 or 8) that releases `release` bytes of parameters.

    Returns (NO_FAULT, 0, 0), or (vector, error code, linear address of a page fault) with
    nothing changed.
    """
    long = in_64_bit_mode(v)
    sp = v[GUEST_RSP]
    base = 0
    mask = -1
    if long:
        if not words_are_canonical(sp, size):
            return SS, 0, 0
    else:
        base = v[GUEST_SS_BASE]
        rights = v[GUEST_SS_ACCESS_RIGHTS]
        mask = 0xFFFF_FFFF if rights & AR_DB else 0xFFFF
        sp &= mask
        if not stack_holds(v[GUEST_SS_LIMIT], rights, sp, size, 1):
            return SS, 0, 0
    user = 1 if privilege_level(v) == 3 else 0
    physical, error, address = probe_words(v, mem, base, sp, mask, size, 1, user)
    if error >= 0:
        return PF, error, address
    target = word_at(v, mem, physical, base, sp, mask, size, user, 0)
    if long:
        if not address_is_canonical(target):
            return GP, 0, 0
    elif target > v[GUEST_CS_LIMIT]:
        return GP, 0, 0
    v[GUEST_RIP] = target
    v[GUEST_RSP] = (v[GUEST_RSP] & ~mask) | ((sp + size + release) & mask)
    return NO_FAULT, 0, 0
