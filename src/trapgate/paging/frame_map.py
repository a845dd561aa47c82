"""The frame map: a byte a frame, in the VMM's memory, that each page walk of the guest's consults.

An extension of ours, for direct paging (¶70) of guests that know nothing of it. A walk that would
let the guest write to a frame with TABLE is a page fault with PFEC_MAP in its error code, whatever
the guest's own entries say, and one that ends in a FOREIGN frame is, whatever the access. The
guest's rights come first, with their own codes. AMD's reverse map table (APM volume 2, "SEV-SNP")
works alike.

What the bytes mean to the filters is in `decision.frame_filters`.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.paging.memory import load8, store8
from trapgate.sdm.cells import FRAME_MAP_ADDRESS, FRAME_MAP_LENGTH

TABLE = 1 << 0
"""A paging structure that is in use."""
LEAF = 1 << 1
"""One of the last level, and of no other, all of whose entries lead to the guest's own frames."""
ROOT = 1 << 2
"""One that MOV to CR3 may load without a VM exit, or a page directory that a pointer of PAE paging
may lead to when it is loaded with CR3."""
MIXED = 1 << 3
"""One of the last level and of an upper one at once, by self-mapping."""
OWN = 1 << 4
"""A frame of the guest's own."""
FOREIGN = 1 << 5
"""A frame that the guest may not reach, by large pages."""

LEVEL = 6
"""The first of two bits: one less than the level of a table of one upper level alone, else 0."""

MOST_LINKS = 255
"""A frame to which as many links lead has so many or more: nobody counts any further."""

MOST_FRAMES = 1 << 28
"""A map of more is none: 40 bits of physical address have no more."""


@core
def has_frame_map(v: Cells) -> bool:
    """Whether a frame map is in force for the guest."""
    return bool(v[FRAME_MAP_LENGTH] != 0)


@core
@inlined
def frame_byte(v: Cells, mem: Memory, physical: int) -> int:
    """The map's byte of the frame of a physical address. What it does not hold is foreign."""
    frame = physical >> 12
    if frame < 0 or frame >= v[FRAME_MAP_LENGTH]:
        return FOREIGN
    return load8(mem, v[FRAME_MAP_ADDRESS] + frame)


@core
def set_frame_byte(v: Cells, mem: Memory, physical: int, byte: int) -> None:
    """Write the map's byte of the frame of a physical address, which the map holds."""
    store8(mem, v[FRAME_MAP_ADDRESS] + (physical >> 12), byte)


@core
def links_of(v: Cells, mem: Memory, physical: int) -> int:
    """How many links lead to a frame that the map holds, by the bytes after the map."""
    return load8(mem, v[FRAME_MAP_ADDRESS] + v[FRAME_MAP_LENGTH] + (physical >> 12))


@core
def set_links(v: Cells, mem: Memory, physical: int, links: int) -> None:
    """Say how many links lead to a frame that the map holds."""
    store8(mem, v[FRAME_MAP_ADDRESS] + v[FRAME_MAP_LENGTH] + (physical >> 12), links)
