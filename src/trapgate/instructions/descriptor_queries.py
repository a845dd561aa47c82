"""LAR, LSL, VERR and VERW: what a selector's descriptor says (SDM, their entries).

Each function returns (NO_FAULT, 0, 0, answer), or (vector, error code, linear address, 0) of a
page fault. Reading the descriptor is an implicit supervisor access: SMAP applies whatever
RFLAGS.AC is.
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

INVISIBLE = -1
"""Stands where the rights or the limit would: ZF becomes 0."""

# System descriptors that have rights or a limit to tell, by type: SDM, tables of LAR and LSL.
_WITH_RIGHTS, _WITH_RIGHTS_LONG = 0x1A3E, 0x1A04
_WITH_LIMIT, _WITH_LIMIT_LONG = 0x0A0E, 0x0A04

_RIGHTS = 0x00F0_FF00
_ABSENT = -2
"""No vector: the selector is beyond its table."""


@core
def access_rights(v: Cells, mem: Memory, selector: int) -> tuple[int, int, int, int]:
    """LAR of `selector` (16 bits): the second doubleword of the descriptor, masked."""
    types = _WITH_RIGHTS_LONG if v[GUEST_IA32_EFER] & EFER_LMA else _WITH_RIGHTS
    fault, error, address, descriptor = _visible(v, mem, selector, types)
    answer = INVISIBLE if descriptor == 0 else (descriptor >> 32) & _RIGHTS
    return fault, error, address, answer


@core
def segment_limit(v: Cells, mem: Memory, selector: int) -> tuple[int, int, int, int]:
    """LSL of `selector` (16 bits): the limit in bytes (32 bits)."""
    types = _WITH_LIMIT_LONG if v[GUEST_IA32_EFER] & EFER_LMA else _WITH_LIMIT
    fault, error, address, descriptor = _visible(v, mem, selector, types)
    answer = INVISIBLE if descriptor == 0 else limit_of(descriptor)
    return fault, error, address, answer


@core
def can_be_read(v: Cells, mem: Memory, selector: int) -> tuple[int, int, int, int]:
    """VERR of `selector` (16 bits): 1 if the segment is readable from here, else 0."""
    fault, error, address, descriptor = _visible(v, mem, selector, 0)
    kind = rights_of(descriptor) & (AR_CODE | AR_WRITABLE)
    # Bit 1 of the type says that data is writable, and that code is readable.
    answer = 1 if descriptor != 0 and kind != AR_CODE else 0
    return fault, error, address, answer


@core
def can_be_written(v: Cells, mem: Memory, selector: int) -> tuple[int, int, int, int]:
    """VERW of `selector` (16 bits): 1 if the segment is writable from here, else 0."""
    fault, error, address, descriptor = _visible(v, mem, selector, 0)
    kind = rights_of(descriptor) & (AR_CODE | AR_WRITABLE)
    return fault, error, address, 1 if kind == AR_WRITABLE else 0


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
