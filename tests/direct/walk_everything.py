"""The invariant of direct paging, checked by walking everything from nothing but memory.

Knows 32-bit paging from the SDM, and nothing of the package.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
ENTRIES = 1024
DEVICES = range(0xE_0000, 0x10_0000)
"""The frames that each VM has devices at."""


def present(memory: Words, frame: int) -> list[int]:
    """The entries of a table that have P set."""
    entries = memory[frame * ENTRIES : (frame + 1) * ENTRIES]
    found: list[int] = entries[entries & 1 != 0].tolist()
    return found


def mappings(memory: Words, directory: int, pse: bool) -> tuple[set[int], set[int], set[int]]:
    """The frames that `directory` uses as tables, those it maps, and those it maps writable."""
    frames = len(memory) // ENTRIES
    tables = {directory}
    mapped: set[int] = set()
    writable: set[int] = set()
    for pde in present(memory, directory):
        if pde & 0x80 and pse:
            first = pde >> 22 << 10 | (pde >> 13 & 0xFF) << 20
            seen = set(range(first, first + ENTRIES))
            mapped |= seen
            if pde & 2:
                writable |= seen
            continue
        below = pde >> 12
        tables.add(below)
        if below >= frames:
            continue
        for pte in present(memory, below):
            mapped.add(pte >> 12)
            if pde & pte & 2:
                writable.add(pte >> 12)
    return tables, mapped, writable


def violations(
    memory: Words,
    owner: NDArray[np.int16],
    spaces: Iterable[tuple[int, Sequence[int], bool]],
    caches: Iterable[tuple[int, int, bool]] = (),
    cached_tables: Iterable[int] = (),
) -> list[str]:
    """What is wrong; `spaces` are (VM, its live directories, CR4.PSE). The processor may still
    use `caches`, translations as (VM, frame, writable), and `cached_tables`, frames as tables.
    """
    wrong: list[str] = []
    tables: set[int] = set(cached_tables)
    reach: list[tuple[int, set[int], set[int]]] = []
    for vm, directories, pse in spaces:
        for directory in directories:
            used, mapped, writable = mappings(memory, directory, pse)
            tables |= used
            reach.append((vm, mapped | used, writable))
    reach += [(vm, {frame}, {frame} if w else set()) for vm, frame, w in caches]
    beyond = [f for f in tables if f >= len(owner)]
    if beyond:
        wrong.append(f"frames {sorted(beyond)[:4]} are tables, and no memory")
    for vm, mapped, writable in reach:
        foreign = [f for f in mapped if f not in DEVICES and (f >= len(owner) or owner[f] != vm)]
        if foreign:
            wrong.append(f"VM {vm} reaches frames {sorted(foreign)[:4]}, which are not its own")
        if writable & tables:
            wrong.append(f"VM {vm} can write to tables {sorted(writable & tables)[:4]}")
    return wrong
