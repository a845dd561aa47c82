"""A window of guest-physical addresses that lies elsewhere in the machine's memory.

An extension of ours, for guests under a frame map that name frames from 0 on and are not alone: an
address below ALIAS_LENGTH means the byte ALIAS_BASE after it. Tables, CR3 and what they lead to
are guest-physical, and so are the frames that the map and the filters know; the window lies below
all of them. Addresses beyond it are the machine's own. With the whole of a guest's memory in it
the guest need not know where it is; with the first megabyte alone a kernel that takes the memory
that it is told of finds its low memory, too.

Nothing here keeps a guest in: the map does, which says of each frame beyond whose it is.
"""

from trapgate.compiler.dialect import Cells, core, inlined
from trapgate.sdm.cells import ALIAS_BASE, ALIAS_LENGTH


@core
@inlined
def aliased(v: Cells, address: int) -> int:
    """The machine address of a guest-physical one."""
    if 0 <= address < v[ALIAS_LENGTH]:
        return int(address + v[ALIAS_BASE])
    return address


@core
def unaliased(v: Cells, physical: int) -> int:
    """The guest-physical address of which `aliased` has made a machine address."""
    offset = physical - v[ALIAS_BASE]
    if 0 <= offset < v[ALIAS_LENGTH]:
        return int(offset)
    return physical
