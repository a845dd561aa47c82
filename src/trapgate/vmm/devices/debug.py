"""Ports for tests and firmware: debug exit, debug console, POST codes."""

from collections.abc import Callable

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.bus import EventSink, MachineEvent, MachineEventKind, UntimedDevice
from trapgate.vmm.devices.clock import INSTRUCTIONS_PER_MICROSECOND
from trapgate.vmm.devices.polled import PolledPorts, Wired


class DebugExit(Wired, UntimedDevice):
    """Ends the machine with exit status `value << 1 | 1`, as QEMU's isa-debug-exit does."""

    wide = True

    def __init__(self, events: EventSink, port: int = 0xF4) -> None:
        self.ports = range(port, port + 4)
        self._events = events

    def read(self, port: int, size: int, now: int) -> int:
        """Nothing to read: zero."""
        return 0

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """End the machine; the exit status is kept to the 8 bits a process can return."""
        status = (value << 1 | 1) & 0xFF
        event = MachineEvent(MachineEventKind.DEBUG_EXIT, f"debug exit port {port:#x}", status)
        self._events.signal(event)


class DebugConsole(Wired, UntimedDevice):
    """Port E9h: every byte written goes to the sink; reads answer E9h, as Bochs does.

    `ports` may take them for it, if the sink is COM1's.
    """

    def __init__(
        self, emit: Callable[[int], None], port: int = 0xE9, ports: PolledPorts | None = None
    ) -> None:
        self.ports = (port,)
        self._emit = emit
        if ports is not None:
            slot = ports.slot(port, is_in=False, kind=polled.SEND)
            slot[polled.PARTNER] = slot.number
        self._answer = 0xE9

    def read(self, port: int, size: int, now: int) -> int:
        """Tell the guest that the console is there."""
        return self._answer

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Send one byte to the sink."""
        self._emit(value)


class PostPort(Wired, UntimedDevice):
    """Port 80h: remembers the last power-on self-test code.

    Guests write it to wait, so a write tells `wait` of a microsecond that passes.
    """

    ports = (0x80,)

    def __init__(self, wait: Callable[[int], None], ports: PolledPorts | None = None) -> None:
        self._wait = wait
        ports = PolledPorts() if ports is None else ports
        self._slot = ports.slot(
            *self.ports, is_in=False, kind=polled.KEEP, wait=INSTRUCTIONS_PER_MICROSECOND
        )

    @property
    def code(self) -> int:
        """The last code written."""
        return self._slot[polled.VALUE]

    def read(self, port: int, size: int, now: int) -> int:
        """The last code written."""
        return self.code

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Remember a code, and let a microsecond pass."""
        self._slot[polled.VALUE] = value
        self._wait(1)
