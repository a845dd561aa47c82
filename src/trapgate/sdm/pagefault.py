"""Bits of a page fault's error code.

Source: SDM, "Page-Fault Exceptions" (figure of the error code); the seed knows bits
3:0 (¶30). `PFEC_*` are the same numbers for core functions.
"""

from enum import IntFlag


class PageFaultCode(IntFlag):
    """A page fault's error code, 32 bits."""

    P = 1 << 0
    """Page-level protection violation (0: not-present page)."""
    W = 1 << 1
    """The access was a write."""
    U = 1 << 2
    """The access came from user mode."""
    RSVD = 1 << 3
    """A reserved bit was set in a paging structure."""
    ID = 1 << 4
    """Instruction fetch."""
    PK = 1 << 5
    """Protection key."""
    SS = 1 << 6
    """Shadow-stack access."""
    HLAT = 1 << 7
    """HLAT paging."""
    MAP = 1 << 14
    """The frame map, an extension of ours (`paging.frame_map`)."""
    SGX = 1 << 15
    """SGX access control."""


PFEC_P = 1 << 0
PFEC_W = 1 << 1
PFEC_U = 1 << 2
PFEC_RSVD = 1 << 3
PFEC_ID = 1 << 4
PFEC_PK = 1 << 5
PFEC_SS = 1 << 6
PFEC_HLAT = 1 << 7
PFEC_MAP = 1 << 14
PFEC_SGX = 1 << 15
