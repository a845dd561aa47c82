"""Two 8237A DMA controllers and their page registers (Intel 8237A data sheet; IBM PC/AT).

Transfers are made at once, when the device has or wants the data. Only what the registers say
about addresses counts: all modes move as "single" does, and memory to memory there is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from trapgate.vmm.devices.bus import UntimedDevice
from trapgate.vmm.devices.guest_memory import GuestMemory

_PAGES: Final = {0x87: 0, 0x83: 1, 0x81: 2, 0x82: 3, 0x8B: 5, 0x89: 6, 0x8A: 7}
"""Ports of the page registers, and their channels."""
_FREE_PAGES: Final = (0x84, 0x85, 0x86, 0x88, 0x8C, 0x8D, 0x8E, 0x8F)
"""Those of no channel, which keep what is written."""
_STATUS, _MASK_ONE, _MODE, _FLIP_FLOP, _RESET, _CLEAR_MASK, _MASK_ALL = (
    *(8, 10, 11, 12, 13, 14, 15),
)
_DOWN, _AGAIN = 1 << 5, 1 << 4
"""In a channel's mode: addresses go down; at the end everything begins again."""
_TO_MEMORY, _FROM_MEMORY = 1, 2
"""The kind of transfer, bits 3:2 of the mode."""


@dataclass
class _Channel:
    base_address: int = 0
    base_count: int = 0
    address: int = 0
    count: int = 0
    page: int = 0
    mode: int = 0
    is_masked: bool = True
    is_done: bool = False


class DmaControllers(UntimedDevice):
    """Channels 0 to 3 (bytes) and 4 to 7 (words), over the guest's `memory`."""

    ports = (*range(0x10), *range(0xC0, 0xE0), *_PAGES, *_FREE_PAGES)

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._channels = [_Channel() for _ in range(8)]
        self._upper_byte = [False, False]
        self._free = bytearray(16)

    def read(self, port: int, size: int, now: int) -> int:
        """A page, the current address or count of a channel, or which have come to their ends."""
        if port in _PAGES:
            return self._channels[_PAGES[port]].page
        if port in _FREE_PAGES:
            return self._free[port & 15]
        controller, register = _split(port)
        if register < 8:
            channel = self._channels[4 * controller + (register >> 1)]
            value = channel.count if register & 1 else channel.address
            return value >> 8 if self._flip(controller) else value & 0xFF
        if register != _STATUS:
            return 0
        status = 0
        for n, channel in enumerate(self._channels[4 * controller : 4 * controller + 4]):
            status |= channel.is_done << n
            channel.is_done = False
        return status

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """A page, a channel's address, count or mode, or masks."""
        if port in _PAGES:
            self._channels[_PAGES[port]].page = value
            return
        if port in _FREE_PAGES:
            self._free[port & 15] = value
            return
        controller, register = _split(port)
        channels = self._channels[4 * controller : 4 * controller + 4]
        if register < 8:
            self._count_or_address(channels[register >> 1], register, value, controller)
        elif register == _MASK_ONE:
            channels[value & 3].is_masked = bool(value & 4)
        elif register == _MODE:
            channels[value & 3].mode = value & 0xFC
        elif register == _FLIP_FLOP:
            self._upper_byte[controller] = False
        elif register in (_RESET, _CLEAR_MASK, _MASK_ALL):
            for n, channel in enumerate(channels):
                channel.is_masked = register == _RESET or (
                    register == _MASK_ALL and bool(value >> n & 1)
                )
                channel.is_done = channel.is_done and register != _RESET
            if register == _RESET:
                self._upper_byte[controller] = False

    def _flip(self, controller: int) -> bool:
        """Whether the upper byte is meant now."""
        upper = self._upper_byte[controller]
        self._upper_byte[controller] = not upper
        return upper

    def _count_or_address(
        self, channel: _Channel, register: int, value: int, controller: int
    ) -> None:
        upper = self._flip(controller)
        old = channel.base_count if register & 1 else channel.base_address
        new = old & 0xFF | value << 8 if upper else old & 0xFF00 | value
        if register & 1:
            channel.base_count = channel.count = new
        else:
            channel.base_address = channel.address = new

    def to_memory(self, number: int, data: bytes) -> tuple[int, bool]:
        """A device hands out `data` on a channel of bytes: how many are taken, and whether it ends.

        A channel that is masked, or does not go this way, takes nothing.
        """
        channel = self._channels[number]
        if channel.is_masked or channel.mode >> 2 & 3 not in (0, _TO_MEMORY):
            return 0, False
        count = min(len(data), channel.count + 1)
        if channel.mode >> 2 & 3 == _TO_MEMORY:
            for at, first, length in self._pieces(channel, count):
                piece = data[first : first + length]
                self._memory.write(at, piece[::-1] if channel.mode & _DOWN else piece)
        return count, self._advance(channel, count)

    def from_memory(self, number: int, most: int) -> tuple[bytes, bool]:
        """A device takes up to `most` bytes on a channel of bytes: them, and whether it ends."""
        channel = self._channels[number]
        if channel.is_masked or channel.mode >> 2 & 3 != _FROM_MEMORY:
            return b"", False
        count = min(most, channel.count + 1)
        data = b""
        for at, _, length in self._pieces(channel, count):
            piece = self._memory.read(at, length)
            data += piece[::-1] if channel.mode & _DOWN else piece
        return data, self._advance(channel, count)

    def _pieces(self, channel: _Channel, count: int) -> list[tuple[int, int, int]]:
        """Where `count` bytes lie: address, which byte is there first, how many.

        Addresses do not leave their 64 KiB.
        """
        found, done = [], 0
        while done < count:
            if channel.mode & _DOWN:
                last = channel.address - done & 0xFFFF
                length = min(count - done, last + 1)
                at = last - length + 1
            else:
                at = channel.address + done & 0xFFFF
                length = min(count - done, 0x10000 - at)
            found.append((channel.page << 16 | at, done, length))
            done += length
        return found

    def _advance(self, channel: _Channel, count: int) -> bool:
        """`count` bytes have moved: whether the channel has come to its end (TC)."""
        step = -count if channel.mode & _DOWN else count
        channel.address = channel.address + step & 0xFFFF
        channel.count = channel.count - count & 0xFFFF
        if channel.count != 0xFFFF or count == 0:
            return False
        channel.is_done = True
        if channel.mode & _AGAIN:
            channel.address, channel.count = channel.base_address, channel.base_count
        else:
            channel.is_masked = True
        return True


def _split(port: int) -> tuple[int, int]:
    """Controller and register of a port; the second one's ports are two apart."""
    return (1, port - 0xC0 >> 1) if port >= 0xC0 else (0, port)
