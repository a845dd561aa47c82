"""What the journal keeps of a write to a table entry, beside the data: one cell of bits.

It is all that the fault filters look up, so that `replay` can put a recorded write to others.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.decision.fault_filters import FRAME, FRAME_64
from trapgate.decision.frame_filters import is_empty, table_led_to
from trapgate.decision.self_map import DIRECTORY, entry_size
from trapgate.paging.alias import unaliased
from trapgate.paging.frame_map import OWN, frame_byte, has_frame_map
from trapgate.sdm.cells import GUEST_CR4
from trapgate.sdm.state import CR4_PAE, CR4_PSE

KIND = 3
"""PTE or DIRECTORY (`self_map`); ABSENT if the data are not known."""
WIDE = 1 << 2
"""Entries have eight bytes."""
LARGE_PAGES = 1 << 3
"""PS means a large page."""
BY_MAP = 1 << 4
"""A frame map was in force: the further bits say what it held."""
EMPTY_FRAME = 1 << 5
"""The new value leads an upper entry to a frame of the guest's own that is not a table, and which
holds no present entry."""
REPEATED = 1 << 6
"""A repeated string store, not to the loaded root."""
TABLE_BYTE = 8
FRAME_BYTE = 16
"""The first bits of the map's bytes of the table, and of the frame that the new value names."""


@core
def entry_facts(v: Cells, mem: Memory, kind: int, physical: int, new: int) -> int:
    """What is so before a write makes `new` of the entry at the machine address `physical`."""
    cr4 = v[GUEST_CR4]
    facts = kind
    if entry_size(cr4) == 8:
        facts |= WIDE
    if cr4 & (CR4_PAE | CR4_PSE):
        facts |= LARGE_PAGES
    if not has_frame_map(v):
        return facts
    byte = frame_byte(v, mem, new & (FRAME_64 if cr4 & CR4_PAE else FRAME))
    facts |= BY_MAP | byte << FRAME_BYTE | frame_byte(v, mem, unaliased(v, physical)) << TABLE_BYTE
    table = table_led_to(cr4, new)
    if kind == DIRECTORY and byte == OWN and table >= 0 and is_empty(v, mem, table):
        facts |= EMPTY_FRAME
    return facts


@core
def facts_of_refused(v: Cells, mem: Memory, physical: int, repeated: int) -> int:
    """What is so of a write to the table at the machine address `physical` that no filter judges.

    `repeated` is REPEATED or 0. Nothing is (0) without a frame map, or if no table is there.
    """
    if not has_frame_map(v) or physical == 0:
        return 0
    return BY_MAP | repeated | frame_byte(v, mem, unaliased(v, physical)) << TABLE_BYTE
