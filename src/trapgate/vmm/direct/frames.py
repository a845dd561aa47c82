"""Machine memory, frame by frame: whose it is.

A frame is 4 KiB. Under direct paging (¶70) guests name frames by their machine addresses.
"""

import numpy as np

from trapgate.errors import TrapgateError

FRAME_SIZE = 4096
NOBODY = -1
VMM = 0
"""Owners; VMs are numbered from 1."""


class FrameError(TrapgateError):
    """Frames were asked for that are not there or not free; give the host more memory."""


class Frames:
    """The frames of a host, and the `owner` of each."""

    def __init__(self, count: int) -> None:
        self.owner = np.full(count, NOBODY, np.int16)

    def __len__(self) -> int:
        return len(self.owner)

    def give(self, owner: int, first: int, count: int) -> None:
        """Make `count` free frames from number `first` on `owner`'s.

        Raises FrameError if there is one that does not exist or is not free.
        """
        chosen = slice(first, first + count)
        if first < 0 or first + count > len(self) or (self.owner[chosen] != NOBODY).any():
            raise FrameError(
                f"frames {first:#x}-{first + count - 1:#x} are not all free in a host of "
                f"{len(self):#x}; choose others, or give the host more memory"
            )
        self.owner[chosen] = owner
