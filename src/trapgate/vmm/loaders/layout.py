"""Where things lie in a guest's memory: the map it is told of, and what is still free."""

from bisect import insort

from trapgate.vmm import firmware
from trapgate.vmm.firmware.bios_image import EXTENDED_DATA, without_services
from trapgate.vmm.loaders.image import (
    COMMAND_LINE_LIMIT,
    MEGABYTE,
    PAGE,
    GuestImageError,
    Segment,
    mebibytes,
)

LOW_MEMORY_END = EXTENDED_DATA << 4
"""End of conventional memory: the extended BIOS data area begins here."""

STACK_TOP = 0x9F000
"""Where the stack of a guest starts that has not set up one of its own."""

RAM_HOLE = 0xE000_0000
"""RAM above this and below 4 GB is not reported: devices live there on a PC."""

RAM = 1
RESERVED = 2

FRAME_BUFFER = 8 << 20
"""Bytes at the top of RAM that are the screen's where our own BIOS has graphics modes."""
_LEAST_WITH_FRAME_BUFFER = 64 << 20


def _top(memory: int) -> int:
    return min(memory, RAM_HOLE)


def frame_buffer(memory: int) -> tuple[int, int]:
    """Address and size of the frame buffer at the top of `memory` bytes: no size in little."""
    size = FRAME_BUFFER if memory >= _LEAST_WITH_FRAME_BUFFER else 0
    return _top(memory) - size, size


def memory_map(memory: int, video: int = 0) -> list[tuple[int, int, int]]:
    """The map of a machine of `memory` bytes: (start, length, RAM or RESERVED).

    `video` bytes at the top are the screen's.
    """
    entries = [
        (0, LOW_MEMORY_END, RAM),
        (LOW_MEMORY_END, 0xA0000 - LOW_MEMORY_END, RESERVED),
        (0xF0000, 0x10000, RESERVED),
    ]
    if _top(memory) > MEGABYTE:
        entries.append((MEGABYTE, _top(memory) - MEGABYTE - video, RAM))
    if video:
        entries.append((_top(memory) - video, video, RESERVED))
    if memory > 1 << 32:
        entries.append((1 << 32, memory - (1 << 32), RAM))
    return entries


class Layout:
    """The memory of a machine while `file` is being placed in it; it has `memory` bytes.

    All addresses are the guest's own. Only `map` says where they are in the machine.
    """

    def __init__(self, file: str, memory: int, base: int = 0, processors: int = 1) -> None:
        self.file = file
        self.memory = memory
        self.base = base
        self.processors = processors
        self._taken: list[tuple[int, int, str]] = []
        if memory < MEGABYTE:
            raise GuestImageError(
                file, "--memory", f"{memory} bytes are too few; give it at least 1M"
            )

    @property
    def top(self) -> int:
        """End of the RAM below the hole that a guest is told of."""
        return _top(self.memory)

    @property
    def end(self) -> int:
        """End of the highest range claimed."""
        return max((end for _, end, _ in self._taken), default=0)

    def map(self) -> list[tuple[int, int, int]]:
        """The memory map, as firmware would report it: (start, length, RAM or RESERVED)."""
        entries = memory_map(self.memory)
        return [(self.base + start, length, kind) for start, length, kind in entries]

    def claim(self, start: int, size: int, field: str) -> None:
        """Take `size` bytes at `start`. Raises GuestImageError if they are not there or taken."""
        if not size:
            return
        end = start + size
        if end > self.memory:
            remedy = (
                f"give the guest --memory {mebibytes(end)} or more"
                if end <= 1 << 36
                else "link it to run at physical addresses that exist"
            )
            raise GuestImageError(
                self.file,
                field,
                f"{size:#x} bytes at {start:#x} lie beyond the guest's "
                f"{mebibytes(self.memory)} of memory; {remedy}",
            )
        position = self._position(start)
        for neighbour in self._taken[max(position - 1, 0) : position + 1]:
            if start < neighbour[1] and neighbour[0] < end:
                raise GuestImageError(
                    self.file,
                    field,
                    f"{start:#x}-{end - 1:#x} overlaps {neighbour[2]} at "
                    f"{neighbour[0]:#x}-{neighbour[1] - 1:#x}; relink the guest",
                )
        insort(self._taken, (start, end, field))

    def place(self, size: int, field: str) -> int:
        """Take `size` bytes on free pages: conventional memory first, else the lowest fit."""
        size = -(-size // PAGE) * PAGE
        start = self._gap(PAGE, STACK_TOP - PAGE, size)
        if start is None:
            start = self._gap(MEGABYTE, self.top, size)
        if start is None:
            raise self._no_room(size, field)
        self.claim(start, size, field)
        return start

    def place_high(self, size: int, field: str, limit: int) -> int:
        """Take `size` bytes on pages as high as possible, above all else and below `limit`."""
        start = (min(self.top, limit) - size) & -PAGE
        if start < max(self.end, MEGABYTE):
            raise self._no_room(size, field)
        self.claim(start, size, field)
        return start

    def place_after(self, size: int, field: str) -> int:
        """Take `size` bytes on the pages after all that is taken, at 1 MB or above."""
        start = max(-(-self.end // PAGE) * PAGE, MEGABYTE)
        if start + size > self.top:
            raise self._no_room(size, field)
        self.claim(start, size, field)
        return start

    def bios_data(self) -> list[Segment]:
        """Firmware's data and tables that kernels look for, unless the guest itself lies there."""
        segments = []
        parts = without_services() | {firmware.AREA: firmware.bios_area(self.processors)}
        for start, data in parts.items():
            if self._gap(start, start + len(data), len(data)) == start:
                self.claim(start, len(data), "BIOS data area")
                segments.append(Segment(start, data))
        return segments

    def _position(self, start: int) -> int:
        low, high = 0, len(self._taken)
        while low < high:
            middle = (low + high) // 2
            if self._taken[middle][0] < start:
                low = middle + 1
            else:
                high = middle
        return low

    def _gap(self, start: int, end: int, size: int) -> int | None:
        """The lowest free page-aligned start of `size` bytes in `start`..`end`."""
        for taken_start, taken_end, _ in self._taken:
            if taken_end <= start:
                continue
            if taken_start >= start + size:
                break
            start = -(-taken_end // PAGE) * PAGE
        return start if start + size <= end else None

    def _no_room(self, size: int, field: str) -> GuestImageError:
        needed = mebibytes(max(self.end, MEGABYTE) + size + PAGE)
        if self.top < self.memory or needed == mebibytes(self.memory):
            remedy = "use a smaller one"
        else:
            remedy = f"give the guest --memory {needed} or more"
        return GuestImageError(
            self.file,
            field,
            f"{size:#x} bytes find no room in the guest's {mebibytes(self.memory)} of memory; "
            f"{remedy}",
        )


def command_line(file: str, append: str, limit: int = COMMAND_LINE_LIMIT) -> bytes:
    """The command line as bytes without its final zero. Raises GuestImageError if it can't be."""
    data = append.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise GuestImageError(file, "--append", "contains a zero byte; leave it out")
    if len(data) > limit:
        raise GuestImageError(
            file,
            "--append",
            f"{len(data)} bytes are too long; this guest takes at most {limit}",
        )
    return data
