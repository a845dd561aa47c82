"""The guest's physical memory, as bus masters and firmware of our own reach it."""

from typing import Protocol


class GuestMemory(Protocol):
    """Physical memory of the guest."""

    def read(self, address: int, count: int) -> bytes:
        """`count` bytes; all ones where there is no memory."""

    def write(self, address: int, data: bytes) -> None:
        """Store; dropped where there is no memory."""
