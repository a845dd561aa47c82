"""Accesses to the APIC-access page, which are exits: faults of a kind of their own.

SDM, "APIC-Access VM Exits". A walk that leads to that page ends with an error code above those of
page faults and of EPT, which `delivery` makes an exit of. It holds the qualification.
"""

from trapgate.compiler.dialect import core

APIC_ACCESS = 1 << 62
DATA_READ, DATA_WRITE, FETCH, DELIVERY = range(4)
"""Types of access, bits 15:12 of a qualification: those of a walk, and during event delivery."""
OF_WRITE = DATA_WRITE << 12


@core
def apic_access(access: int, physical: int) -> int:
    """The error code of an access (READ, WRITE or FETCH) to `physical` in the page."""
    return APIC_ACCESS | access << 12 | physical & 0xFFF


@core
def access_qualification(error: int, delivering: bool) -> int:
    """The exit qualification of such a code."""
    if delivering:
        return DELIVERY << 12 | error & 0xFFF
    return error & 0xFFFF
