"""Loading segment registers (SDM, "MOV", "POP", "LDS/LES/LFS/LGS/LSS").

In protected mode; in real-address and virtual-8086 mode a load cannot fail. Each function
returns (NO_FAULT, 0, 0), all done, or (vector, error code, linear address of a page fault),
nothing changed.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.descriptors import (
    NO_FAULT,
    mark_accessed,
    privilege_of,
    put_null_stack,
    put_segment,
    read_descriptor,
    rights_of,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.sdm.cells import (
    GUEST_ES_ACCESS_RIGHTS,
    GUEST_ES_BASE,
    GUEST_ES_LIMIT,
    GUEST_ES_SELECTOR,
)
from trapgate.sdm.state import (
    AR_CODE,
    AR_CONFORMING,
    AR_P,
    AR_S,
    AR_UNUSABLE,
    AR_WRITABLE,
)
from trapgate.sdm.vectors import GP, NP, PF, SS

_SS = 2
_READABLE = AR_WRITABLE
"""The same bit of a code segment's type."""


@core
def load_segment_register(v: Cells, mem: Memory, n: int, selector: int) -> tuple[int, int, int]:
    """Load segment register `n` (0 ES, 2 SS, 3 DS, 4 FS, 5 GS; not CS)."""
    if n == _SS:
        return _load_stack_segment(v, mem, selector)
    if selector & 0xFFFC == 0:
        v[GUEST_ES_SELECTOR + n] = selector
        v[GUEST_ES_BASE + n] = 0
        v[GUEST_ES_LIMIT + n] = 0
        v[GUEST_ES_ACCESS_RIGHTS + n] = AR_UNUSABLE
        return NO_FAULT, 0, 0
    named = selector & 0xFFFC
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear
    rights = rights_of(descriptor)
    if rights & AR_S == 0 or rights & (AR_CODE | _READABLE) == AR_CODE:
        return GP, named, 0
    if rights & (AR_CODE | AR_CONFORMING) != AR_CODE | AR_CONFORMING and privilege_of(
        descriptor
    ) < max(selector & 3, privilege_level(v)):
        return GP, named, 0
    if rights & AR_P == 0:
        return NP, named, 0
    error = mark_accessed(v, mem, descriptor, linear)
    if error >= 0:
        return PF, error, linear + 5
    put_segment(v, n, selector, descriptor)
    return NO_FAULT, 0, 0


@core
def _load_stack_segment(v: Cells, mem: Memory, selector: int) -> tuple[int, int, int]:
    cpl = privilege_level(v)
    if selector & 0xFFFC == 0:
        if not in_64_bit_mode(v) or cpl == 3 or selector != cpl:
            return GP, 0, 0
        put_null_stack(v, selector, cpl)
        return NO_FAULT, 0, 0
    named = selector & 0xFFFC
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, GP, named)
    if fault != NO_FAULT:
        return fault, error, linear
    rights = rights_of(descriptor)
    writable_data = rights & (AR_S | AR_CODE | AR_WRITABLE) == AR_S | AR_WRITABLE
    if selector & 3 != cpl or not writable_data or privilege_of(descriptor) != cpl:
        return GP, named, 0
    if rights & AR_P == 0:
        return SS, named, 0
    error = mark_accessed(v, mem, descriptor, linear)
    if error >= 0:
        return PF, error, linear + 5
    put_segment(v, _SS, selector, descriptor)
    return NO_FAULT, 0, 0
