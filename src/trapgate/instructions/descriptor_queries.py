"""LAR, LSL, VERR and VERW: what a selector's descriptor says (SDM, their entries).

Reading the descriptor is an implicit supervisor access: SMAP applies whatever RFLAGS.AC is.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.descriptors import (
    NO_FAULT,
    limit_of,
    privilege_of,
    read_descriptor,
    rights_of,
)
from trapgate.operands.mode import privilege_level
from trapgate.sdm.cells import GUEST_IA32_EFER
from trapgate.sdm.state import AR_CODE, AR_CONFORMING, AR_S, AR_TYPE, AR_WRITABLE, EFER_LMA

LAR, LSL, VERR, VERW = range(4)
"""The questions."""
INVISIBLE = -1
"""Stands where the rights or the limit would: ZF becomes 0."""

# System descriptors that have rights or a limit to tell, by type: SDM, tables of LAR and LSL.
_WITH_RIGHTS, _WITH_RIGHTS_LONG = 0x1A3E, 0x1A04
_WITH_LIMIT, _WITH_LIMIT_LONG = 0x0A0E, 0x0A04

_RIGHTS = 0x00F0_FF00
_ABSENT = -2
"""No vector: the selector is beyond its table."""


@core
def descriptor_query(
    v: Cells, mem: Memory, question: int, selector: int
) -> tuple[int, int, int, int]:
    """LAR, LSL, VERR or VERW of `selector` (16 bits).

    (NO_FAULT, 0, 0, answer), or (vector, error code, linear address, INVISIBLE) of a page fault.
    The answer is the second doubleword of the descriptor, masked, the limit in bytes (32 bits),
    1 if the segment can be read or written from here, or INVISIBLE.
    """
    long = v[GUEST_IA32_EFER] & EFER_LMA != 0
    types = 0
    if question == LAR:
        types = _WITH_RIGHTS_LONG if long else _WITH_RIGHTS
    elif question == LSL:
        types = _WITH_LIMIT_LONG if long else _WITH_LIMIT
    fault, error, address, descriptor = _visible(v, mem, selector, types)
    # Bit 1 of the type says that data is writable, and that code is readable.
    kind = rights_of(descriptor) & (AR_CODE | AR_WRITABLE)
    visible = descriptor != 0
    if question == VERR:
        visible = visible and kind != AR_CODE
    elif question == VERW:
        visible = visible and kind == AR_WRITABLE
    answer = 1
    if not visible:
        answer = INVISIBLE
    elif question == LAR:
        answer = (descriptor >> 32) & _RIGHTS
    elif question == LSL:
        answer = limit_of(descriptor)
    return fault, error, address, answer


@core
def _visible(v: Cells, mem: Memory, selector: int, types: int) -> tuple[int, int, int, int]:
    """The descriptor, or 0 if there is none, or not for this privilege or of these `types`.

    `types` has a bit for each type of system descriptor that counts.
    """
    if selector & 0xFFFC == 0:
        return NO_FAULT, 0, 0, 0
    fault, error, linear, descriptor = read_descriptor(v, mem, selector, _ABSENT, 0)
    if fault == _ABSENT:
        return NO_FAULT, 0, 0, 0
    if fault != NO_FAULT:
        return fault, error, linear, 0
    rights = rights_of(descriptor)
    if rights & AR_S == 0 and (types >> (rights & AR_TYPE)) & 1 == 0:
        return NO_FAULT, 0, 0, 0
    always = AR_S | AR_CODE | AR_CONFORMING
    if rights & always != always and privilege_of(descriptor) < max(
        selector & 3, privilege_level(v)
    ):
        return NO_FAULT, 0, 0, 0
    return NO_FAULT, 0, 0, descriptor
