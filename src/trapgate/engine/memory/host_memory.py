"""Memory of the host's for guests' memory and its copies, in huge pages where there are any."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np

from trapgate.compiler.dialect import Cells


def zeros(size: int) -> Cells:
    """Page-aligned bytes, all zeros; what is never touched costs nothing.

    A guest that clears its memory meets one of the host's page faults for each huge page, not
    each small one, and copies miss its TLB less often.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(mmap.mmap(-1, size), np.int64)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.int64)
