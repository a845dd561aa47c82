"""A 16550A serial port, as a PC's COM1.

Transmission takes no time: the transmitter is always empty, and a byte written goes to
the sink at once. Reception is lossless: input waits in a queue until the guest shows
that it is listening, and then enters the FIFO. A guest listens when it has enabled the
receive interrupt, or when it keeps reading the line status without sending, which no
transmitting driver does since the first answer already says "ready to send". Input
given on the command line therefore survives the FIFO resets and the reads "for luck"
of a driver that starts.
"""

from collections import deque
from collections.abc import Callable

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.bus import Line
from trapgate.vmm.devices.clock import VirtualClock
from trapgate.vmm.devices.polled import PolledPorts

_RECEIVE_INTERRUPT = 0x01
_TRANSMIT_INTERRUPT = 0x02
_LINE_INTERRUPT = 0x04
_MODEM_INTERRUPT = 0x08

_DATA_READY = 0x01
_TRANSMITTER_EMPTY = 0x60

_FIFO_SIZE = 16
_TRIGGERS = (1, 4, 8, 14)
_LOOPBACK = 0x10
_CONNECTED = 0xB0  # DCD, DSR and CTS: somebody is at the other end

_POLLS = 4
"""Line-status reads in a row that tell a receiver from Linux' starting driver, which does two."""

BURST_MICROSECONDS = 100
"""Virtual time between two FIFO loads to a guest that receives by interrupt."""


class Uart16550:
    """A 16550A at eight ports from `base`.

    `emit` takes each byte sent. `line` is the interrupt request; it is not gated by
    OUT2, since some guests never set it and emulated PCs are kind to them. `ports` answer for it
    where they can: `taken` gives the bytes that were sent through them.
    """

    wide = False

    def __init__(
        self,
        emit: Callable[[int], None],
        line: Line,
        clock: VirtualClock,
        base: int = 0x3F8,
        ports: PolledPorts | None = None,
    ) -> None:
        self.ports = range(base, base + 8)
        self.incoming: deque[int] = deque()
        self._emit = emit
        self._line = line
        self._base = base
        self._burst = clock.microseconds(BURST_MICROSECONDS)
        self._fifo: deque[int] = deque()
        self._next_burst = 0
        self._interrupt_enable = 0
        self._fifo_enabled = False
        self._trigger = 1
        self._line_control = 0
        self._modem_control = 0
        self._modem_delta = 0
        self._modem_status = _CONNECTED
        self._scratch = 0
        self._divisor = 12
        self._overrun = False
        self._transmit_pending = False
        self._ports = ports = PolledPorts() if ports is None else ports
        self._status = ports.slot(base + 5, is_in=True)
        self._sender = ports.slot(base, is_in=False)
        self._sender[polled.PARTNER] = self._status.number
        self.update_slots()

    def update_slots(self) -> None:
        """Say what the next accesses will find."""
        reloads = self.incoming and not self._fifo
        self._status[polled.VALUE] = _TRANSMITTER_EMPTY | (_DATA_READY if self._fifo else 0)
        self._status[polled.KIND] = polled.ASK if self._overrun or reloads else polled.LATCH
        moves_line = self._interrupt_enable & _TRANSMIT_INTERRUPT and not self._transmit_pending
        asks = moves_line or self._line_control & 0x80 or self._modem_control & _LOOPBACK
        self._sender[polled.KIND] = polled.ASK if asks else polled.SEND

    def expect(self, expected: int) -> None:
        """Emit these bytes, a bit each, before the guest continues; others may come later."""
        self._ports.expect(expected)

    def taken(self) -> bytes:
        """The bytes that were sent since the last time without asking, here and by others."""
        if self._sender[polled.START]:
            self._sender[polled.START] = 0
            self._transmit_pending = True
        return self._ports.sent()

    def receive(self, data: bytes) -> None:
        """Queue bytes from the other end; the guest gets them when it listens."""
        self.incoming.extend(data)
        self.update_slots()

    @property
    def baud(self) -> int:
        """The line speed that the divisor latch asks for (it delays nothing)."""
        return 115_200 // (self._divisor or 0x10000)

    def read(self, port: int, size: int, now: int) -> int:
        """Read one of the eight registers."""
        value = self._read(port, now)
        self.update_slots()
        return value

    def _read(self, port: int, now: int) -> int:
        register = port - self._base
        if register == 5:
            self._status[polled.READS] += 1
            if self._status[polled.READS] >= _POLLS and self.incoming and not self._fifo:
                self._load()
            status = _TRANSMITTER_EMPTY
            if self._fifo:
                status |= _DATA_READY
            if self._overrun:
                self._overrun = False
                status |= 0x02
                self._update()
            return status
        if register == 0:
            if self._line_control & 0x80:
                return self._divisor & 0xFF
            return self._receive_byte(now)
        self._status[polled.READS] = 0
        if register == 1:
            if self._line_control & 0x80:
                return self._divisor >> 8
            return self._interrupt_enable
        if register == 2:
            return self._identify()
        if register == 3:
            return self._line_control
        if register == 4:
            return self._modem_control
        if register == 6:
            status = self._modem_status | self._modem_delta
            self._modem_delta = 0
            self._update()
            return status
        return self._scratch

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Write one of the eight registers."""
        self._write(port, value, now)
        self.update_slots()

    def _write(self, port: int, value: int, now: int) -> None:
        register = port - self._base
        if register != 0:
            self._status[polled.READS] = 0
        if register == 0:
            if self._status[polled.READS]:
                self._status[polled.READS] -= 1  # that read asked whether it may send
            if self._line_control & 0x80:
                self._divisor = (self._divisor & 0xFF00) | value
                return
            if self._modem_control & _LOOPBACK:
                self._loop(value)
            else:
                self._emit(value)
            self._transmit_pending = True
            if self._interrupt_enable:
                self._update()
        elif register == 1:
            if self._line_control & 0x80:
                self._divisor = (self._divisor & 0xFF) | (value << 8)
                return
            value &= 0x0F
            if value & _TRANSMIT_INTERRUPT & ~self._interrupt_enable:
                self._transmit_pending = True  # the transmitter is empty already
            self._interrupt_enable = value
            self.advance(now)
            self._update()
        elif register == 2:
            self._control_fifo(value)
        elif register == 3:
            self._line_control = value
        elif register == 4:
            self._modem_control = value & 0x1F
            self._set_modem_status()
        elif register == 7:
            self._scratch = value

    def next_deadline(self, now: int) -> int | None:
        """When the next bytes reach a guest that receives by interrupt."""
        if self.incoming and not self._fifo and self._interrupt_enable & _RECEIVE_INTERRUPT:
            return max(self._next_burst, now + 1)
        return None

    def advance(self, now: int) -> None:
        """Load the FIFO if the guest listens by interrupt and its time has come."""
        if (
            self.incoming
            and not self._fifo
            and self._interrupt_enable & _RECEIVE_INTERRUPT
            and now >= self._next_burst
        ):
            self._load()
            self.update_slots()

    def _load(self) -> None:
        # While looped back, the receiver is cut off from the line.
        if self._modem_control & _LOOPBACK:
            return
        room = _FIFO_SIZE if self._fifo_enabled else 1
        for _ in range(min(room, len(self.incoming))):
            self._fifo.append(self.incoming.popleft())
        self._update()

    def _receive_byte(self, now: int) -> int:
        if not self._fifo:
            return 0
        value = self._fifo.popleft()
        if not self._fifo:
            self._next_burst = now + self._burst
        self._update()
        return value

    def _loop(self, value: int) -> None:
        room = _FIFO_SIZE if self._fifo_enabled else 1
        if len(self._fifo) >= room:
            self._overrun = True
            if not self._fifo_enabled:
                self._fifo[0] = value
        else:
            self._fifo.append(value)
        self._update()

    def _cause(self) -> int:
        """The interrupt identification of the most urgent cause, 1 if there is none."""
        enabled = self._interrupt_enable
        if enabled & _LINE_INTERRUPT and self._overrun:
            return 0x06
        if enabled & _RECEIVE_INTERRUPT and self._fifo:
            # Below the trigger level the character timeout has expired: nothing more comes.
            return 0x04 if len(self._fifo) >= self._trigger else 0x0C
        if enabled & _TRANSMIT_INTERRUPT and self._transmit_pending:
            return 0x02
        if enabled & _MODEM_INTERRUPT and self._modem_delta:
            return 0x00
        return 0x01

    def _identify(self) -> int:
        cause = self._cause()
        if cause == 0x02:
            self._transmit_pending = False
            self._update()
        return cause | (0xC0 if self._fifo_enabled else 0)

    def _update(self) -> None:
        self._line.set(self._interrupt_enable != 0 and self._cause() != 0x01)

    def _control_fifo(self, value: int) -> None:
        enabled = bool(value & 0x01)
        if enabled != self._fifo_enabled or value & 0x02:
            if not self._modem_control & _LOOPBACK:
                # The other end repeats what a starting driver throws away unread.
                self.incoming.extendleft(reversed(self._fifo))
            self._fifo.clear()
        if value & 0x04 or enabled != self._fifo_enabled:
            self._transmit_pending = True
        self._fifo_enabled = enabled
        self._trigger = _TRIGGERS[value >> 6] if enabled else 1
        self._update()

    def _set_modem_status(self) -> None:
        before = self._modem_status
        if self._modem_control & _LOOPBACK:
            control = self._modem_control
            # DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
            self._modem_status = (
                (control & 0x01) << 5
                | (control & 0x02) << 3
                | (control & 0x04) << 4
                | (control & 0x08) << 4
            )
        else:
            self._modem_status = _CONNECTED
        changed = before ^ self._modem_status
        delta = changed >> 4 & 0x0B
        if before & 0x40 and not self._modem_status & 0x40:
            delta |= 0x04  # the trailing edge of the ring indicator
        self._modem_delta |= delta
        self._update()
