"""The 8254 interval timer with port 61h.

Nothing ticks: a counter's value and output are computed from the virtual time at which
somebody looks. Rising edges of channel 0's output since the last look become one edge
on IRQ0, as they would be seen by an interrupt controller that nobody served meanwhile.
"""

from functools import partial

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.bus import Line
from trapgate.vmm.devices.clock import INSTRUCTIONS_PER_MICROSECOND, PIT_HERTZ, VirtualClock
from trapgate.vmm.devices.polled import PolledPorts, Slot

_FOREVER = 1 << 62
_LOW = 1
_HIGH = 2
_BOTH = 3


class Channel:
    """One counter of the 8254. All times are ticks of its 1.193182 MHz clock."""

    def __init__(self, slot: Slot | None = None) -> None:
        self._slot = PolledPorts().slot(0x40, is_in=True) if slot is None else slot
        self.mode = 0
        self.gate = True
        self.access = _BOTH
        self.bcd = False
        self._reload = 0x10000
        self._next_reload: int | None = None
        self._boundary = 0  # when `_next_reload` takes over
        self._start = 0
        self._held: int | None = 0  # ticks already counted, while counting is stopped
        self._loaded = False
        self._low_byte: int | None = None
        self._latch = None
        self._status: int | None = None
        self._second_read = False
        self._seen = 0

    @property
    def _latch(self) -> int | None:
        latch = self._slot[polled.VALUE]
        return None if latch < 0 else latch

    @_latch.setter
    def _latch(self, value: int | None) -> None:
        self._slot[polled.VALUE] = -1 if value is None else value

    @property
    def _second_read(self) -> bool:
        return bool(self._slot[polled.READS])

    @_second_read.setter
    def _second_read(self, value: bool) -> None:
        self._slot[polled.READS] = value

    def update_slots(self) -> None:
        """Say what the next reads will find, as long as nothing but time changes it."""
        counts = self._loaded and self._held is None and self._next_reload is None
        plain = self.access == _BOTH and not self.bcd and self._status is None
        slot = self._slot
        slot[polled.KIND] = polled.COUNTER if counts and plain else polled.ASK
        slot[polled.START], slot[polled.RELOAD] = self._start, self._reload
        slot[polled.MODE] = self.mode

    def steady_until(self, tick: int) -> int:
        """OUT stays as it is at `tick` until then, at least; `tick` where nobody knows."""
        if not self._loaded or self._held is not None:
            return _FOREVER
        if self._next_reload is not None:
            return tick
        passed = self._passed(tick)
        if self.mode in (0, 1):
            return self._start + self._reload if passed < self._reload else _FOREVER
        if self.mode == 3:
            phase, high = passed % self._reload, (self._reload + 1) // 2
            return tick + (high if phase < high else self._reload) - phase
        return tick

    def control(self, access: int, mode: int, bcd: bool, tick: int) -> None:
        """Write a control word: stop, and wait for a new count."""
        self.access = access
        self.mode = mode if mode < 6 else mode - 4
        self.bcd = bcd
        self._loaded = False
        self._held = 0
        self._next_reload = None
        self._low_byte = None
        self._latch = None
        self._status = None
        self._second_read = False
        self._seen = tick

    def write(self, value: int, tick: int) -> None:
        """Write one byte of the count."""
        if self.access == _LOW:
            self._load(value, tick)
        elif self.access == _HIGH:
            self._load(value << 8, tick)
        elif self._low_byte is None:
            self._low_byte = value
            if self.mode == 0:
                self._loaded = False  # the first byte stops the count
        else:
            count = value << 8 | self._low_byte
            self._low_byte = None
            self._load(count, tick)

    def read(self, tick: int) -> int:
        """Read the latched status, the latched count or the count, a byte at a time."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        value = self.count(tick) if self._latch is None else self._latch
        if self.access == _LOW:
            self._latch = None
            return value & 0xFF
        if self.access == _HIGH:
            self._latch = None
            return value >> 8
        if self._second_read:
            self._second_read = False
            self._latch = None
            return value >> 8
        self._second_read = True
        return value & 0xFF

    def latch_count(self, tick: int) -> None:
        """Hold the count for reading; a latch not yet read stays."""
        if self._latch is None:
            self._latch = self.count(tick)

    def latch_status(self, tick: int) -> None:
        """Hold the status byte: output, null count, access, mode, BCD."""
        if self._status is None:
            null = not self._loaded or self._next_reload is not None
            self._status = (
                self.output(tick) << 7
                | null << 6
                | self.access << 4
                | self.mode << 1
                | int(self.bcd)
            )

    def set_gate(self, level: bool, tick: int) -> None:
        """Drive the gate input: it stops modes 0, 2, 3, 4 and triggers modes 1, 2, 3, 5."""
        if level == self.gate:
            return
        self._settle(tick)
        self.gate = level
        if level:
            if self.mode in (0, 4):
                if self._held is not None:
                    self._start = tick - self._held
            else:
                self._start = tick
                self._apply_reload()
            self._held = None if self._loaded else 0
        elif self.mode in (0, 2, 3, 4) and self._held is None:
            self._held = tick - self._start
        self._seen = tick

    def count(self, tick: int) -> int:
        """The counting element (16 bits; four decimal digits in BCD mode)."""
        self._settle(tick)
        passed = self._passed(tick)
        modulus = 10_000 if self.bcd else 0x10000
        value = polled.counter_value(self.mode, self._reload, passed)
        value %= modulus
        return _to_bcd(value) if self.bcd else value

    def output(self, tick: int) -> bool:
        """The level of OUT."""
        self._settle(tick)
        passed = self._passed(tick)
        if self.mode == 0:
            return self._loaded and passed >= self._reload
        if not self._loaded or (self._held is not None and self.mode != 4):
            return True
        if self.mode == 1:
            return passed >= self._reload
        if self.mode == 2:
            return passed % self._reload != self._reload - 1
        if self.mode == 3:
            return passed % self._reload < (self._reload + 1) // 2
        return passed != self._reload

    def risen(self, tick: int) -> bool:
        """Has OUT gone from low to high since the last call?"""
        since, self._seen = self._seen, tick
        edge = self.next_edge(since)
        self._settle(tick)
        return edge is not None and edge <= tick

    def next_edge(self, tick: int) -> int | None:
        """The first tick after `tick` at which OUT rises, or None if it never does."""
        if not self._loaded or self._held is not None:
            return None
        start, reload = self._start, self._reload
        if self._next_reload is not None and tick >= self._boundary:
            start, reload = self._boundary, self._next_reload
        passed = max(tick - start, 0)
        if self.mode in (2, 3):
            if reload < 2:
                return None  # one is not a legal count here; OUT would never move
            return start + (passed // reload + 1) * reload
        last = self._reload + (1 if self.mode >= 4 else 0)
        return self._start + last if passed < last else None

    def _passed(self, tick: int) -> int:
        if self._held is not None:
            return self._held
        return max(tick - self._start, 0)

    def _load(self, count: int, tick: int) -> None:
        if self.bcd:
            count = _from_bcd(count)
        count = count or (10_000 if self.bcd else 0x10000)
        self._settle(tick)
        if self._loaded and self.mode in (1, 2, 3, 5):
            # The running cycle is finished with the old count.
            self._next_reload = count
            self._boundary = self._start + (self._passed(tick) // self._reload + 1) * self._reload
            return
        self._reload = count
        self._loaded = True
        self._start = tick
        self._seen = tick
        if self.mode in (1, 5):
            self._held = 0  # armed; the gate's rising edge starts it
        else:
            self._held = None if self.gate else 0

    def _settle(self, tick: int) -> None:
        """Take over a new count at the end of the running cycle (modes 2 and 3)."""
        if self._next_reload is None or self.mode not in (2, 3) or self._held is not None:
            return
        if tick >= self._boundary:
            self._start = self._boundary
            self._apply_reload()

    def _apply_reload(self) -> None:
        if self._next_reload is not None:
            self._reload = self._next_reload
            self._next_reload = None


class Pit8254:
    """The three channels (ports 40h-43h) and the gate and speaker port 61h."""

    wide = False
    ports = (0x40, 0x41, 0x42, 0x43, 0x61)

    def __init__(self, line: Line, clock: VirtualClock, ports: PolledPorts | None = None) -> None:
        ports = PolledPorts() if ports is None else ports
        slot = partial(
            ports.slot,
            wait=INSTRUCTIONS_PER_MICROSECOND,  # its accesses are slow (`bus.SlowDevice`)
            hertz=PIT_HERTZ,
            second=clock.hertz,
        )
        counters = [slot(0x40 + n, is_in=True) for n in range(3)]
        slot(0x43, is_in=False, kind=polled.COMMAND)[polled.PARTNER] = counters[0].number
        self._speaker_slot = slot(0x61, is_in=True, kind=polled.SPEAKER)
        self.channels = tuple(Channel(one) for one in counters)
        self._line = line
        self._clock = clock
        self._speaker = 0
        self.channels[2].gate = False

    def read(self, port: int, size: int, now: int) -> int:
        """Read a counter or port 61h; the control port can't be read."""
        value = self._read(port, now)
        self._update_slots(now)
        return value

    def _update_slots(self, now: int) -> None:
        """Say what the next reads will find."""
        for channel in self.channels:
            channel.update_slots()
        tick = self._clock.ticks(now, PIT_HERTZ)
        out = self.channels[2].output(tick)
        self._speaker_slot[polled.VALUE] = self._speaker | out << 5
        self._speaker_slot[polled.UNTIL] = self.channels[2].steady_until(tick)

    def _read(self, port: int, now: int) -> int:
        tick = self._clock.ticks(now, PIT_HERTZ)
        if port == 0x61:
            return (
                self._speaker
                | (tick // polled.REFRESH_TICKS & 1) << 4
                | self.channels[2].output(tick) << 5
            )
        if port == 0x43:
            return 0xFF
        if port == 0x40:
            self.advance(now)  # an edge must not be lost when a new count takes over
        return self.channels[port - 0x40].read(tick)

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Write a counter, a control word or port 61h."""
        self._write(port, value, now)
        self._update_slots(now)

    def _write(self, port: int, value: int, now: int) -> None:
        tick = self._clock.ticks(now, PIT_HERTZ)
        if port == 0x61:
            self._speaker = value & 0x0F
            self.channels[2].set_gate(bool(value & 1), tick)
            return
        self.advance(now)
        if port != 0x43:
            self.channels[port - 0x40].write(value, tick)
        elif value >> 6 == 3:
            self._read_back(value, tick)
        else:
            channel = self.channels[value >> 6]
            access = value >> 4 & 3
            if access == 0:
                channel.latch_count(tick)
            else:
                channel.control(access, value >> 1 & 7, bool(value & 1), tick)
        self._line.set(self.channels[0].output(tick))

    def next_deadline(self, now: int) -> int | None:
        """When channel 0 raises IRQ0 next."""
        edge = self.channels[0].next_edge(self._clock.ticks(now, PIT_HERTZ))
        return None if edge is None else max(self._clock.instant(edge, PIT_HERTZ), now + 1)

    def advance(self, now: int) -> None:
        """Give IRQ0 the edge that has come since the last time, if one has."""
        tick = self._clock.ticks(now, PIT_HERTZ)
        channel = self.channels[0]
        if channel.risen(tick):
            self._line.set(False)
            self._line.set(True)
        self._line.set(channel.output(tick))

    def _read_back(self, value: int, tick: int) -> None:
        for number, channel in enumerate(self.channels):
            if value >> (number + 1) & 1:
                if not value & 0x20:
                    channel.latch_count(tick)
                if not value & 0x10:
                    channel.latch_status(tick)


def _from_bcd(value: int) -> int:
    digits = (value >> 12, value >> 8 & 15, value >> 4 & 15, value & 15)
    return ((digits[0] * 10 + digits[1]) * 10 + digits[2]) * 10 + digits[3]


def _to_bcd(value: int) -> int:
    return value // 1000 << 12 | value // 100 % 10 << 8 | value // 10 % 10 << 4 | value % 10
