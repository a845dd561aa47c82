"""What each segment allows, in a form that translated code can compare with (`checked_accesses`).

Compiled only; native path. The limit, the direction, the type and the presence of a segment
are one comparison: an access is allowed if offset - lowest < bound, unsigned.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit
from trapgate.compiler.raw import peek32, peek64, poke32
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.sdm.state import (
    AR_CODE,
    AR_EXPAND_DOWN,
    AR_P,
    AR_WRITABLE,
    RFLAGS_VM,
)

_READABLE = AR_WRITABLE
"""The same bit of a code segment's type."""
_DB = 1 << 14
_MATTERS = (AR_CODE | AR_EXPAND_DOWN | AR_WRITABLE | AR_P | _DB) << 8
"""Of a segment's flags, what decides about accesses."""
_TYPED = 1 << 32
"""In what was seen of a segment, where the flags have a base: its type counts."""
_ES, _CS, _SS, _DS = 0, 1, 2, 3


@jit
def learn_segment(m: Cells, n: int, seen: int) -> None:
    """Note what segment `n` allows; `seen` is its limit, and its flags above it."""
    m[mc.SEGMENTS_SEEN + n] = seen
    limit = seen & 0xFFFFFFFF
    rights = seen >> 40
    low = 0
    span = limit + 1
    may_load = may_store = True
    if seen & _TYPED:
        if rights & AR_CODE:
            may_load = rights & _READABLE != 0
            may_store = False
        else:
            may_store = rights & AR_WRITABLE != 0
            if rights & AR_EXPAND_DOWN:
                low = limit + 1
                span = (0x100000000 if rights & _DB else 0x10000) - low
        if rights & AR_P == 0:
            may_load = may_store = False
    m[mc.SEGMENT_LOWS + n] = low
    for size in range(4):
        bound = max(span - (1 << size) + 1, 0)
        m[mc.SEGMENT_BOUNDS + 8 * n + size] = bound if may_load else 0
        m[mc.SEGMENT_BOUNDS + 8 * n + 4 + size] = bound if may_store else 0


@jit
@inlined
def is_flat(m: Cells, n: int) -> bool:
    """Whether everything is allowed in segment `n`."""
    unlimited = m[mc.SEGMENT_BOUNDS + 8 * n + 4] == 1 << 32
    return bool(unlimited and m[mc.SEGMENT_LOWS + n] == 0)


@jit
def look_at_segments(m: Cells, env: int) -> None:
    """Bring what is noted, and the translator's flags for it, up to date with the CPU state."""
    hflags = peek32(env + at.HFLAGS)
    if hflags & at.HF_CS64:
        return
    typed = 0
    if hflags & at.HF_PE and peek64(env + at.EFLAGS) & RFLAGS_VM == 0:
        typed = _TYPED
    moved = False
    for n in range(6):
        moved = look_at_segment(m, env, n, typed) or moved
    note_limits(m, env, hflags, moved)


@jit
def look_at_code_and_stack(m: Cells, env: int) -> None:
    """`look_at_segments` where no other segment has changed, nor the mode, which is protected."""
    hflags = peek32(env + at.HFLAGS)
    if hflags & at.HF_CS64:
        return
    moved = look_at_segment(m, env, _CS, _TYPED)
    moved = look_at_segment(m, env, _SS, _TYPED) or moved
    note_limits(m, env, hflags, moved)


@jit
def look_at_segment(m: Cells, env: int, n: int, typed: int) -> bool:
    """Bring what is noted of segment `n` up to date; whether it was not."""
    segment = env + at.SEGMENTS + at.SEGMENT_SIZE * n
    # Two loads: one would have to wait for the two stores that went before.
    seen = peek32(segment + at.LIMIT) | (peek32(segment + at.FLAGS) & _MATTERS) << 32 | typed
    if m[mc.SEGMENTS_SEEN + n] == seen:
        return False
    learn_segment(m, n, seen)
    return True


@jit
@inlined
def note_limits(m: Cells, env: int, hflags: int, moved: bool) -> None:
    """The translator's flags, after a look at the segments by which some may have `moved`."""
    # Within 64 KB 16-bit code can pass the limit at the end only, which a block's place tells.
    reach = 0xFFFFFFFF if hflags & at.HF_CS32 else 0xFFFF
    code_is_limited = m[mc.SEGMENTS_SEEN + _CS] & 0xFFFFFFFF < reach
    if not moved and code_is_limited == (hflags & at.HF_CODE_LIMITED != 0):
        return
    flags = hflags & ~(at.HF_LIMITED | at.HF_CODE_LIMITED)
    if not (is_flat(m, _ES) and is_flat(m, _SS) and is_flat(m, _DS)):
        flags |= at.HF_LIMITED
    if code_is_limited:
        flags |= at.HF_LIMITED | at.HF_CODE_LIMITED
    poke32(env + at.HFLAGS, flags)


@jit
def accesses_checked(flags: int) -> int:
    """Which accesses of a block with these flags are checked: ACCESSES_*."""
    if flags & at.HF_CS64:
        return mc.ACCESSES_UNCHECKED
    if flags & at.HF_PE == 0 or flags & RFLAGS_VM or flags & at.HF_CS32 == 0:
        return mc.ACCESSES_ALL
    if flags & at.HF_LIMITED:
        return mc.ACCESSES_ALL
    return mc.ACCESSES_OF_CS_FS_GS
