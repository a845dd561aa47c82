"""PCI by configuration mechanism 1: ports CF8H and CFCH, and the functions behind them.

The bridges are those of a plain i440FX machine (Intel 82441FX, 82371SB data sheets; PCI Local
Bus Specification, "Configuration Space"). Port CF9H resets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from trapgate.vmm.devices.bus import EventSink, MachineEvent, MachineEventKind, UntimedDevice, Wires
from trapgate.vmm.devices.polled import Wired

_SUBSYSTEM = 0x1100_1AF4
"""QEMU's; firmware knows by that of the host bridge that fw_cfg is there."""
_COMMAND = 0x04
_BASE_ADDRESSES = 0x10
_IO_SPACE, _MEMORY_SPACE = 1, 2
_IO, _PREFETCHABLE = 1, 8
"""Kinds of base address registers: ports, and memory of 32-bit addresses."""

_PAM = 0x59
"""The first of the host bridge's programmable-attribute-map registers."""


@dataclass(frozen=True)
class IoRegion:
    """A base address register for `size` ports (a power of two, at least 4).

    `moved` is told where they are from now on, or None if they are not decoded.
    """

    size: int
    moved: Callable[[int | None], None]


@dataclass(frozen=True)
class MemoryRegion:
    """A base address register for `size` bytes of memory (a power of two, pages).

    `moved` is told where they are from now on, or None if they are not decoded.
    """

    size: int
    moved: Callable[[int | None], None]


class Function(Wired):
    """One function: 256 bytes of configuration space, and which of their bits can be written.

    `identity` is device and vendor, `kind` class code and revision, both 32 bits as they lie at
    0 and 8. `regions` are its base address registers by number.
    """

    def __init__(
        self,
        identity: int,
        kind: int,
        *,
        header: int = 0,
        regions: Mapping[int, IoRegion | MemoryRegion] | None = None,
    ) -> None:
        self.space = bytearray(256)
        self._writable = bytearray(256)
        self._regions = Wires(regions or {})
        self._where: dict[int, int | None] = dict.fromkeys(self._regions)
        self.put(0x00, identity, 4)
        self.put(0x08, kind, 4)
        self.put(0x0E, header, 1)
        self.put(0x2C, _SUBSYSTEM, 4)
        self.put(_COMMAND, 0, 2, 0x0507)
        self.put(0x0C, 0, 2, 0xFFFF)
        self.put(0x3C, 0, 1, 0xFF)
        for number, region in self._regions.items():
            kind = _IO if isinstance(region, IoRegion) else _PREFETCHABLE
            self.put(_BASE_ADDRESSES + 4 * number, kind, 4, (1 << 32) - region.size)

    def put(self, at: int, value: int, size: int, writable: int = 0) -> None:
        """Set `size` bytes at `at` to `value`, of which the guest may change bits `writable`."""
        self.space[at : at + size] = value.to_bytes(size, "little")
        self._writable[at : at + size] = writable.to_bytes(size, "little")

    def read(self, at: int, size: int) -> int:
        """What `size` bytes at `at` hold; bytes beyond the space are all ones."""
        data = bytes(self.space[at : at + size]).ljust(size, b"\xff")
        return int.from_bytes(data, "little")

    def write(self, at: int, size: int, value: int) -> None:
        """The guest writes `size` bytes at `at`."""
        for n in range(min(size, 256 - at)):
            mask = self._writable[at + n]
            self.space[at + n] = self.space[at + n] & ~mask | value >> 8 * n & mask
        self._decode()

    def _decode(self) -> None:
        for number, region in self._regions.items():
            base = self.read(_BASE_ADDRESSES + 4 * number, 4) & -region.size
            is_io = isinstance(region, IoRegion)
            enabled = self.space[_COMMAND] & (_IO_SPACE if is_io else _MEMORY_SPACE)
            most = (0x10000 if is_io else 1 << 32) - region.size
            # All ones is what sizing writes, and 0 what nobody has placed yet.
            place = base if enabled and 0 < base < most + is_io else None
            if place != self._where[number]:
                self._where[number] = place
                region.moved(place)


class PciHost(UntimedDevice):
    """Configuration mechanism 1 for bus 0, and the reset port CF9H.

    `functions` are found by device (0 to 31) and function number (0 to 7).
    """

    wide = True
    ports = range(0xCF8, 0xD00)

    def __init__(self, functions: Mapping[tuple[int, int], Function], events: EventSink) -> None:
        self._functions = functions
        self._address = 0
        self._events = events

    def _selected(self) -> Function | None:
        address = self._address
        if not address >> 31 or address >> 16 & 0xFF:
            return None
        return self._functions.get((address >> 11 & 0x1F, address >> 8 & 7))

    def read(self, port: int, size: int, now: int) -> int:
        """The address register, or data of the function that it selects."""
        ones = (1 << 8 * size) - 1
        if port < 0xCFC:
            return self._address if port == 0xCF8 and size == 4 else ones
        function = self._selected()
        if function is None:
            return ones
        return function.read(self._address & 0xFC | port & 3, size)

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """The address register, data, or a reset."""
        if port == 0xCF8 and size == 4:
            self._address = value & 0x80FF_FFFC
        elif port == 0xCF9 and size == 1:
            if value & 4:
                self._events.signal(MachineEvent(MachineEventKind.RESET, "reset port cf9h"))
        elif port >= 0xCFC:
            function = self._selected()
            if function is not None:
                function.write(self._address & 0xFC | port & 3, size, value)


class HostBridge(Function):
    """The i440FX. Its attribute maps say that firmware lies in RAM already.

    `protect` is told where stores go nowhere: a bit for each 16 KiB from C0000H on.
    """

    def __init__(self, protect: Callable[[int], None]) -> None:
        super().__init__(0x1237_8086, 0x0600_0002)
        self._protect = protect
        self.put(_COMMAND, 0x0006, 2)
        self.put(_PAM, 0x10, 1, 0x30)
        self.put(_PAM + 1, 0x3333_3333_3333, 6, 0x3333_3333_3333)
        self.put(0x72, 0x02, 1, 0xFF)

    def write(self, at: int, size: int, value: int) -> None:
        """The guest writes; the attribute maps take effect at once."""
        super().write(at, size, value)
        if at + size > _PAM and at <= _PAM + 6:
            self._protect(_read_only(bytes(self.space[_PAM : _PAM + 7])))


def _read_only(attributes: bytes) -> int:
    """The attribute maps as a bit for each 16 KiB from C0000H that cannot be written."""
    segments = 0 if attributes[0] & 0x20 else 0xF000
    for n in range(12):
        if not attributes[1 + n // 2] >> 4 * (n & 1) & 2:
            segments |= 1 << n
    return segments


def isa_bridge() -> Function:
    """The PIIX3: interrupt routing registers, and nothing is routed."""
    function = Function(0x7000_8086, 0x0601_0000, header=0x80)
    function.put(_COMMAND, 0x0007, 2)
    function.put(0x60, 0x8080_8080, 4, 0x8F8F_8F8F)
    return function
