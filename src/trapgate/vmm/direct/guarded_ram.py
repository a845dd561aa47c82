"""A guest's memory as bus masters and our own firmware reach it, past the processor's page walk.

They are the VMM's devices, so it is the VMM that looks where they store: never outside of the
guest's memory, and to a table only what may be in it.
"""

from __future__ import annotations

from collections.abc import Callable

from trapgate.vmm.direct.frames import FRAME_SIZE
from trapgate.vmm.direct.links import Links, Refusal
from trapgate.vmm.direct.mapped_memory import GuestRange


class GuardedRam:
    """The guest's memory `own`, whose tables `links` knows.

    `drop_roots_to` says whether a table that is stored to may be data from now on; one that stays
    is edited. What may not be in it is dropped, and the first such store is `refusal`.
    """

    def __init__(self, own: GuestRange, links: Links, drop_roots_to: Callable[[int], bool]) -> None:
        self.refusal: Refusal | None = None
        self._memory = own
        self._size = own.size
        self._links = links
        self._drop_roots_to = drop_roots_to

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes; all ones where the guest has no memory."""
        there = max(0, min(count, self._size - address))
        found = self._memory.read(address, there) if there else b""
        return found.ljust(count, b"\xff")

    def write(self, address: int, data: bytes) -> None:
        """Store, frame by frame; dropped where the guest has no memory."""
        data = data[: max(0, self._size - address)]
        while data:
            count = FRAME_SIZE - address % FRAME_SIZE
            self._write(address, data[:count])
            address, data = address + count, data[count:]

    def _write(self, address: int, data: bytes) -> None:
        frame = address // FRAME_SIZE
        if not self._links.is_table(frame) or self._drop_roots_to(frame):
            self._memory.write(address, data)
            return
        refusal = self._links.store(address, data)
        if self.refusal is None:
            self.refusal = refusal
