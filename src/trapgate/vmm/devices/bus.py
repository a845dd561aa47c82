"""The I/O port space: which device answers which port.

Every IN and OUT of a guest is a VM exit that ends here, so the common case, one byte
at a claimed port, is one dictionary look-up and one call. Ports that nobody claims
read as all ones and swallow writes, as a PC's floating bus does.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from trapgate.vmm.devices.clock import VirtualClock
from trapgate.vmm.devices.polled import Wired

Reader = Callable[[int, int, int], int]
Writer = Callable[[int, int, int, int], None]
BlockReader = Callable[[int], bytes]
BlockWriter = Callable[[bytes, int], int]


class MachineEventKind(Enum):
    """What a device asks of the whole machine."""

    RESET = "reset"
    DEBUG_EXIT = "debug exit"
    POWER_OFF = "power off"
    SLEEP = "sleep"


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """A device's wish to end or restart the machine.

    `status` is the exit status a debug exit asks for (0 for others); `source` names
    the device and the port, for the summary.
    """

    kind: MachineEventKind
    source: str
    status: int = 0


class EventSink(Protocol):
    """Where a device leaves a machine event."""

    def signal(self, event: MachineEvent) -> None:
        """Leave `event` for whoever runs the machine."""


class Line(Protocol):
    """An interrupt request line as the device sees it."""

    def set(self, level: bool) -> None:
        """Drive the line high or low."""


class Device(Protocol):
    """Something that answers I/O ports.

    `now` is virtual time in instructions and never decreases. A device with `wide`
    set is given 2- and 4-byte accesses whole; for all others the bus splits them into
    bytes at consecutive ports, lowest first.
    """

    @property
    def ports(self) -> Iterable[int]:
        """The ports it answers."""

    @property
    def wide(self) -> bool:
        """Does it want 2- and 4-byte accesses whole?"""

    def read(self, port: int, size: int, now: int) -> int:
        """Answer IN: `size` bytes (1, 2, 4) from `port`, zero-extended."""

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Take OUT: `size` bytes (1, 2, 4) of `value` to `port`."""

    def next_deadline(self, now: int) -> int | None:
        """The instruction, later than `now`, at which an interrupt line may change by itself."""

    def advance(self, now: int) -> None:
        """Bring interrupt lines up to date with virtual time `now`."""


class UntimedDevice:
    """The half of `Device` that is empty for devices without a clock."""

    wide = False

    def next_deadline(self, now: int) -> int | None:
        """No deadline: nothing happens without an access."""
        return None

    def advance(self, now: int) -> None:
        """Nothing to do: time means nothing here."""


class SlowDevice(Wired):
    """A device each access to which takes a microsecond, as on a PC's slow bus.

    Guests poll clocks until a time has come. If only their instructions counted, a virtual
    second of polling would take millions of VM exits. `wait` lets microseconds pass.
    """

    def __init__(self, device: Device, wait: Callable[[int], None]) -> None:
        self.ports = tuple(device.ports)
        self.wide = device.wide
        self.next_deadline = device.next_deadline
        self.advance = device.advance
        self._device = device
        self._wait = wait

    def read(self, port: int, size: int, now: int) -> int:
        """Advance virtual time by a microsecond after the access."""
        self._wait(1)
        return self._device.read(port, size, now)

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Advance virtual time by a microsecond after the access."""
        self._wait(1)
        self._device.write(port, size, value, now)


class Wires(dict[Any, Any]):
    """Which port leads where. Never changes: whoever moves a wire makes others (`State`)."""


class Bus:
    """Route port accesses to devices, and collect their deadlines and machine events."""

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self.clock = VirtualClock() if clock is None else clock
        self.devices: tuple[Device, ...] = ()
        self.event: MachineEvent | None = None
        self._timed: tuple[Device, ...] = ()
        self._readers: dict[int, Reader] = Wires()
        self._writers: dict[int, Writer] = Wires()
        self._wide: frozenset[int] = frozenset()
        self._untimed: frozenset[int] = frozenset()
        self._blocks: dict[int, BlockReader] = Wires()
        self._block_writers: dict[int, BlockWriter] = Wires()

    def attach(self, device: Device) -> None:
        """Connect `device` to its ports. Raises ValueError if a port is taken."""
        ports = tuple(device.ports)
        for port in ports:
            if port in self._readers:
                raise ValueError(f"port {port:#x} is claimed twice")
        self._readers = Wires(self._readers | dict.fromkeys(ports, device.read))
        self._writers = Wires(self._writers | dict.fromkeys(ports, device.write))
        if device.wide:
            self._wide |= set(ports)
        self.devices += (device,)
        if isinstance(device, UntimedDevice):
            self._untimed |= set(ports)
        else:
            self._timed += (device,)

    def detach(self, device: Device) -> None:
        """Disconnect `device` from its ports."""
        gone = set(device.ports)
        self.devices = tuple(one for one in self.devices if one is not device)
        self._timed = tuple(one for one in self._timed if one is not device)
        self._readers = Wires({n: to for n, to in self._readers.items() if n not in gone})
        self._writers = Wires({n: to for n, to in self._writers.items() if n not in gone})
        self._wide -= gone
        self._untimed -= gone

    def is_free(self, ports: Iterable[int]) -> bool:
        """Whether nobody answers these ports."""
        return not any(port in self._readers for port in ports)

    def moves_no_deadline(self, port: int) -> bool:
        """Whether only devices without a clock answer there."""
        return port in self._untimed

    def read_blocks(self, port: int, reader: BlockReader) -> None:
        """Make repeated INS from `port` ask `reader` for many bytes at once."""
        self._blocks = Wires(self._blocks | {port: reader})

    def read_string(self, port: int, size: int, count: int, now: int) -> bytes:
        """What up to `count` INs of `size` bytes give, one after the other; at least one."""
        reader = self._blocks.get(port)
        if reader is not None:
            data = reader(size * count)
            if len(data) >= size:
                return data[: len(data) // size * size]
        return self.read(port, size, now).to_bytes(size, "little")

    def write_blocks(self, port: int, writer: BlockWriter) -> None:
        """Make repeated OUTS to `port` give `writer` many bytes at once, and their size.

        It returns how many bytes it has taken, whole elements.
        """
        self._block_writers = Wires(self._block_writers | {port: writer})

    def write_string(self, port: int, size: int, data: bytes, now: int) -> int:
        """OUTs of `size` bytes, one after the other; how many were carried out, at least one."""
        writer = self._block_writers.get(port)
        taken = 0 if writer is None else writer(data, size) // size
        if not taken:
            self.write(port, size, int.from_bytes(data[:size], "little"), now)
        return taken or 1

    def signal(self, event: MachineEvent) -> None:
        """Keep the first machine event; the VMM looks at `event` after each write."""
        if self.event is None:
            self.event = event

    def read(self, port: int, size: int, now: int) -> int:
        """IN of `size` bytes (1, 2 or 4) from `port` at instruction `now`."""
        if size == 1:
            reader = self._readers.get(port)
            return 0xFF if reader is None else reader(port, 1, now)
        if port in self._wide:
            return self._readers[port](port, size, now)
        value = 0
        for i in range(size):
            value |= self.read((port + i) & 0xFFFF, 1, now) << (8 * i)
        return value

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """OUT of `size` bytes (1, 2 or 4) of `value` to `port` at instruction `now`."""
        if size == 1:
            writer = self._writers.get(port)
            if writer is not None:
                writer(port, 1, value & 0xFF, now)
            return
        if port in self._wide:
            self._writers[port](port, size, value & ((1 << (8 * size)) - 1), now)
            return
        for i in range(size):
            self.write((port + i) & 0xFFFF, 1, value >> (8 * i), now)

    def next_deadline(self, now: int) -> int | None:
        """The earliest instruction, later than `now`, at which a device wants `advance`."""
        earliest: int | None = None
        for device in self._timed:
            deadline = device.next_deadline(now)
            if deadline is not None and (earliest is None or deadline < earliest):
                earliest = deadline
        return earliest

    def advance(self, now: int) -> None:
        """Bring all interrupt lines up to date with virtual time `now`."""
        for device in self._timed:
            device.advance(now)
