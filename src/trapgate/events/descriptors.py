"""Segment descriptors in the guest's GDT and LDT.

SDM, "Segment Descriptors". A descriptor is its eight bytes as one 64-bit integer;
bits 47:40 and 55:52 are, in the place of bits 7:0 and 15:12, the access rights of
the VMCS's guest-state area.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.paging.memory import store8
from trapgate.paging.walk import WRITE, read_system, walk
from trapgate.sdm.cells import (
    GUEST_GDTR_BASE,
    GUEST_GDTR_LIMIT,
    GUEST_LDTR_ACCESS_RIGHTS,
    GUEST_LDTR_BASE,
    GUEST_LDTR_LIMIT,
)
from trapgate.sdm.state import AR_UNUSABLE

IN_REACH = 0
OUT_OF_LIMITS = 1
FAULTED = 2


@core
def read_descriptor(v: Cells, mem: Memory, selector: int) -> tuple[int, int, int, int]:
    """Read a segment descriptor: (status, descriptor, its linear address, error code).

    With status FAULTED the address is the faulting one, the error code the page
    fault's.
    """
    if selector & 4:
        if v[GUEST_LDTR_ACCESS_RIGHTS] & AR_UNUSABLE:
            return OUT_OF_LIMITS, 0, 0, 0
        base = v[GUEST_LDTR_BASE]
        limit = v[GUEST_LDTR_LIMIT]
    else:
        base = v[GUEST_GDTR_BASE]
        limit = v[GUEST_GDTR_LIMIT]
    if (selector | 7) > limit:
        return OUT_OF_LIMITS, 0, 0, 0
    linear = base + (selector & 0xFFF8)
    descriptor, error, address = read_system(v, mem, linear, 8)
    if error >= 0:
        return FAULTED, 0, address, error
    return IN_REACH, descriptor, linear, 0


@core
def mark_accessed(v: Cells, mem: Memory, descriptor: int, linear: int) -> int:
    """Set a descriptor's accessed flag; returns -1 or a page-fault error code."""
    if descriptor & (1 << 40):
        return -1
    physical, error, _, _ = walk(v, 0, mem, linear + 5, WRITE, 0)
    if error < 0:
        store8(mem, physical, ((descriptor >> 40) & 0xFF) | 1)
    return error


@core
def limit_of(descriptor: int) -> int:
    """The limit in a segment descriptor, in bytes: the highest valid offset (32 bits)."""
    limit = (descriptor & 0xFFFF) | ((descriptor >> 32) & 0xF_0000)
    if descriptor & (1 << 55):
        limit = (limit << 12) | 0xFFF
    return limit


@core
def base_of(descriptor: int) -> int:
    """The base in a segment descriptor (32 bits)."""
    return ((descriptor >> 16) & 0xFF_FFFF) | ((descriptor >> 32) & 0xFF00_0000)
