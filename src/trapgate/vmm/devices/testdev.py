"""What QEMU's pc-testdev shows to test guests: a word of memory, one page of it, interrupt lines.

kvm-unit-tests looks for it at these places. What else QEMU has there, a port (E4H) that flushes a
page of the host's, has no effect that a guest could see.
"""

from collections.abc import Sequence

from trapgate.vmm.devices.bus import Line, UntimedDevice
from trapgate.vmm.devices.polled import Wired

MEMORY_PAGE = 0xFF000
"""Number of the physical page that keeps what is stored there."""


class TestMemory(Wired, UntimedDevice):
    """Some bytes that keep what is written: four ports, or the physical page."""

    wide = True
    __test__ = False

    def __init__(self, ports: range) -> None:
        self.ports = ports
        self._data = bytearray(len(ports))

    def read(self, port: int, size: int, now: int) -> int:
        """The bytes there; beyond the last one, zeros."""
        start = port - self.ports.start
        return int.from_bytes(self._data[start : start + size], "little")

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Keep the bytes that have room."""
        start = port - self.ports.start
        data = value.to_bytes(size, "little")[: len(self._data) - start]
        self._data[start : start + len(data)] = data


class TestLines(Wired, UntimedDevice):
    """Ports 2000H and up: one for each interrupt line, high while something but 0 is in it."""

    wide = True
    __test__ = False

    def __init__(self, lines: Sequence[Line]) -> None:
        self.ports = range(0x2000, 0x2000 + len(lines))
        self._lines = tuple(lines)

    def read(self, port: int, size: int, now: int) -> int:
        """Nothing to read: zero."""
        return 0

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Drive the line of `port`."""
        self._lines[port - self.ports.start].set(value != 0)
