"""Machine memory, frame by frame: whose it is, what it is used for, and how often.

A frame is 4 KiB. Under direct paging (¶70) guests name frames by their machine addresses, so
this is the table that says what a guest may map, and how.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trapgate.errors import TrapgateError

FRAME_SIZE = 4096
NOBODY = -1
VMM = 0
"""Owners; VMs are numbered from 1."""


class FrameType(IntEnum):
    """What a frame is used for. Only data may be mapped writable."""

    FREE = 0
    """Nobody's yet."""
    DATA = 1
    PAGE_TABLE = 2
    PAGE_DIRECTORY = 3


FREE, DATA, PAGE_TABLE, PAGE_DIRECTORY = range(4)


class FrameError(TrapgateError):
    """Frames were asked for that are not there or not free; give the host more memory."""


class Frames:
    """The frames of a host: `owner`, `type`, `references` and `writable` of each.

    `references` counts what uses the frame as its type: present directory entries for a
    page table, CR3 for a directory. `writable` counts mappings that let a guest write to
    it. Both count what the VMM has seen: a fault filter lets a guest take mappings away
    unseen, never add one, so both may be too high and are never too low.
    """

    def __init__(self, count: int) -> None:
        self.owner = np.full(count, NOBODY, np.int16)
        self.type = np.full(count, FREE, np.uint8)
        self.references = np.zeros(count, np.int32)
        self.writable = np.zeros(count, np.int32)

    def __len__(self) -> int:
        return len(self.owner)

    def arrays(self) -> list[NDArray[Any]]:
        """All four, in place."""
        return [self.owner, self.type, self.references, self.writable]

    def give(self, owner: int, first: int, count: int) -> None:
        """Make `count` free frames from number `first` on data of `owner`'s.

        Raises FrameError if there is one that does not exist or is not free.
        """
        chosen = slice(first, first + count)
        if first < 0 or first + count > len(self) or (self.owner[chosen] != NOBODY).any():
            raise FrameError(
                f"frames {first:#x}-{first + count - 1:#x} are not all free in a host of "
                f"{len(self):#x}; choose others, or give the host more memory"
            )
        self.owner[chosen] = owner
        self.type[chosen] = DATA

    def free(self, owner: int) -> None:
        """Take back all of `owner`'s frames."""
        chosen = self.owner == owner
        self.owner[chosen] = NOBODY
        self.type[chosen] = FREE
        self.references[chosen] = 0
        self.writable[chosen] = 0
