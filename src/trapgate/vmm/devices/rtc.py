"""The MC146818 real-time clock with its CMOS memory (ports 70h and 71h).

The clock starts at a configured instant, not the host's, and runs on virtual time:
two runs of a guest see the same date at the same instruction.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.bus import Line
from trapgate.vmm.devices.clock import INSTRUCTIONS_PER_MICROSECOND, RTC_HERTZ, VirtualClock
from trapgate.vmm.devices.polled import PolledPorts

DEFAULT_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
"""Date and time at instruction 0."""

_SECONDS, _SECONDS_ALARM, _MINUTES, _MINUTES_ALARM, _HOURS, _HOURS_ALARM = range(6)
_WEEKDAY, _DAY, _MONTH, _YEAR = range(6, 10)
_CENTURY = 0x32
_SHUTDOWN = 0x0F
_TIME_REGISTERS = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)

_SET = 0x80
_PERIODIC = 0x40
_ALARM = 0x20
_UPDATE = 0x10
_BINARY = 0x04
_HOURS_24 = 0x02

_UPDATE_MICROSECONDS = 2228  # how long "update in progress" shows before each second
_DAY_SECONDS = 86_400
_ANY = 0xC0  # an alarm register with both top bits set matches anything


class CmosRtc:
    """Clock, alarm, periodic interrupt (IRQ8) and 128 bytes of CMOS memory.

    `memory` is the guest's RAM in bytes; firmware's memory-size bytes tell it.
    """

    wide = False
    ports = (0x70, 0x71)

    def __init__(
        self,
        line: Line,
        clock: VirtualClock,
        memory: int,
        epoch: datetime = DEFAULT_EPOCH,
        ports: PolledPorts | None = None,
    ) -> None:
        ports = PolledPorts() if ports is None else ports
        wait = INSTRUCTIONS_PER_MICROSECOND  # its accesses are slow (`bus.SlowDevice`)
        self._select = ports.slot(0x70, is_in=False, kind=polled.KEEP, wait=wait)
        self._update_slot = ports.slot(0x71, is_in=True, wait=wait, second=clock.hertz)
        self._update_slot[polled.PARTNER] = self._select.number
        self._update_slot[polled.UNTIL] = clock.hertz - clock.microseconds(_UPDATE_MICROSECONDS)
        self._line = line
        self._clock = clock
        self._epoch = epoch.replace(microsecond=0, tzinfo=UTC)
        self._cells = bytearray(128)
        self._offset = 0  # seconds by which the guest has set the clock
        self._frozen: dict[int, int] | None = None
        self._flags = 0
        self._seen = 0
        self._next_alarm: int | None = None
        self._cells[0x0A] = 0x26
        self._cells[0x0B] = _HOURS_24
        self._cells[0x0D] = 0x80
        self._describe_memory(memory)
        self._update_slots()

    @property
    def nmi_masked(self) -> bool:
        """Whether the guest wants no NMIs; nothing comes of it."""
        return bool(self._select[polled.VALUE] & 0x80)

    @property
    def _index(self) -> int:
        return self._select[polled.VALUE] & 0x7F

    def _update_slots(self) -> None:
        """Say what the next read of register A will find; of the seconds it is known when read."""
        self._update_slot[polled.START] = -1
        self._update_slot[polled.KIND] = polled.ASK if self._frozen is not None else polled.UPDATING
        self._update_slot[polled.VALUE] = self._cells[0x0A]

    def read(self, port: int, size: int, now: int) -> int:
        """Read the selected cell; the index port itself reads as all ones."""
        if port == 0x70:
            return 0xFF
        index = self._index
        if index == 0x0A:
            return self._cells[0x0A] | (0x80 if self._updating(now) else 0)
        if index == 0x0C:
            self.advance(now)
            flags, self._flags = self._flags, 0
            self._update()
            return flags
        if index in _TIME_REGISTERS:
            if self._frozen is not None:
                return self._frozen[index]
            value = self._time_registers(now)[index]
            if index == _SECONDS:
                self._update_slot[polled.START] = self._clock.ticks(now, 1)
                self._update_slot[polled.RELOAD] = value
            return value
        return self._cells[index]

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Select a cell (bit 7: mask NMI), or write the selected one."""
        if port == 0x70:
            self._select[polled.VALUE] = value
            return
        index = self._index
        self.advance(now)
        if index in _TIME_REGISTERS:
            registers = self._frozen or self._time_registers(now)
            registers[index] = value
            if self._frozen is None:
                self._set_time(registers, now)
        elif index == 0x0A:
            self._cells[index] = value & 0x7F
        elif index == 0x0B:
            self._control(value, now)
        elif index not in (0x0C, 0x0D):
            self._cells[index] = value
        if index in (_SECONDS_ALARM, _MINUTES_ALARM, _HOURS_ALARM):
            self._plan_alarm(now)
        self._update_slots()

    @property
    def alarm(self) -> int | None:
        """The instruction at which the alarm comes, if its interrupt is enabled."""
        if self._next_alarm is None or not self._cells[0x0B] & _ALARM:
            return None
        return self._clock.instant(self._next_alarm, 1)

    @property
    def shutdown_code(self) -> int:
        """What firmware looks at after a reset: why there was one."""
        return self._cells[_SHUTDOWN]

    @shutdown_code.setter
    def shutdown_code(self, value: int) -> None:
        self._cells[_SHUTDOWN] = value

    def kept(self) -> tuple[bytes, int]:
        """What the battery keeps: memory, and by how many seconds the clock was set."""
        return bytes(self._cells), self._offset

    def keep(self, kept: tuple[bytes, int]) -> None:
        """Restore that after a reset, which disables its interrupts."""
        cells, self._offset = kept
        self._cells[:] = cells
        self._cells[0x0B] &= ~(_PERIODIC | _ALARM | _UPDATE)
        self._update_slots()

    def next_deadline(self, now: int) -> int | None:
        """When the next enabled interrupt comes; flags nobody waits for need no wake-up."""
        enabled = self._cells[0x0B]
        if not enabled & (_PERIODIC | _ALARM | _UPDATE) or self._flags & 0x80:
            return None
        deadlines = []
        period = self._period()
        if enabled & _PERIODIC and period:
            tick = self._clock.ticks(now, RTC_HERTZ)
            deadlines.append(self._clock.instant((tick // period + 1) * period, RTC_HERTZ))
        if self._frozen is None:
            if enabled & _UPDATE:
                deadlines.append(self._clock.instant(self._clock.ticks(now, 1) + 1, 1))
            if enabled & _ALARM and self._next_alarm is not None:
                deadlines.append(self._clock.instant(self._next_alarm, 1))
        return max(min(deadlines), now + 1) if deadlines else None

    def advance(self, now: int) -> None:
        """Set the flags of what has happened since the last time, and drive IRQ8."""
        since, self._seen = self._seen, now
        if since == now:
            return
        period = self._period()
        if period:
            before = self._clock.ticks(since, RTC_HERTZ) // period
            if self._clock.ticks(now, RTC_HERTZ) // period != before:
                self._flags |= _PERIODIC
        if self._frozen is None:
            second = self._clock.ticks(now, 1)
            if second != self._clock.ticks(since, 1):
                self._flags |= _UPDATE
            if self._next_alarm is not None and second >= self._next_alarm:
                self._flags |= _ALARM
                self._plan_alarm(now)
        self._update()

    def describe_floppies(self, kinds: Sequence[int]) -> None:
        """Tell of one or two floppy drives by their types."""
        first, second, *_ = *kinds, 0, 0
        self._cells[0x10] = first << 4 | second
        self._cells[0x14] |= 1 | len(kinds) - 1 << 6

    def _describe_memory(self, memory: int) -> None:
        cells = self._cells
        base = min(memory >> 10, 640)
        extended = min(max((memory >> 10) - 1024, 0), 0xFFFF)
        above_16m = min(max((memory >> 16) - 256, 0), 0xFFFF)
        above_4g = max((memory >> 16) - 0x10000, 0)
        cells[0x14] |= 0x06  # a numeric coprocessor and a PS/2 port
        for low, value in ((0x15, base), (0x17, extended), (0x30, extended), (0x34, above_16m)):
            cells[low], cells[low + 1] = value & 0xFF, value >> 8
        cells[0x5B:0x5E] = min(above_4g, 0xFFFFFF).to_bytes(3, "little")

    def _period(self) -> int:
        """The periodic interrupt's period in ticks of 32768 Hz, 0 if it is off."""
        rate = self._cells[0x0A] & 0x0F
        if rate == 0:
            return 0
        return 1 << (rate + 6 if rate < 3 else rate - 1)

    def _updating(self, now: int) -> bool:
        if self._frozen is not None:
            return False
        second = self._clock.hertz
        return now % second >= second - self._clock.microseconds(_UPDATE_MICROSECONDS)

    def _update(self) -> None:
        if self._flags & self._cells[0x0B] & (_PERIODIC | _ALARM | _UPDATE):
            self._flags |= 0x80
        self._line.set(bool(self._flags & 0x80))

    def _control(self, value: int, now: int) -> None:
        registers = self._frozen
        if value & _SET:
            value &= ~_UPDATE
            if registers is None:
                self._frozen = self._time_registers(now)
            self._cells[0x0B] = value
        else:
            # The guest may change the number format and the time in one go.
            self._cells[0x0B] = value
            if registers is not None:
                self._frozen = None
                self._set_time(registers, now)
        self._plan_alarm(now)
        self._update()

    def _now(self, now: int) -> datetime:
        seconds = self._clock.ticks(now, 1) + self._offset
        try:
            return self._epoch + timedelta(seconds=seconds)
        except OverflowError:
            return self._epoch

    def _encode(self, value: int) -> int:
        if self._cells[0x0B] & _BINARY:
            return value
        return value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        if self._cells[0x0B] & _BINARY:
            return value
        return (value >> 4) * 10 + (value & 0x0F)

    def _encode_hour(self, hour: int) -> int:
        if self._cells[0x0B] & _HOURS_24:
            return self._encode(hour)
        return self._encode((hour - 1) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self._cells[0x0B] & _HOURS_24:
            return self._decode(value)
        return self._decode(value & 0x7F) % 12 + (12 if value & 0x80 else 0)

    def _time_registers(self, now: int) -> dict[int, int]:
        time = self._now(now)
        return {
            _SECONDS: self._encode(time.second),
            _MINUTES: self._encode(time.minute),
            _HOURS: self._encode_hour(time.hour),
            _WEEKDAY: self._encode(time.isoweekday() % 7 + 1),
            _DAY: self._encode(time.day),
            _MONTH: self._encode(time.month),
            _YEAR: self._encode(time.year % 100),
            _CENTURY: self._encode(time.year // 100),
        }

    def _set_time(self, registers: dict[int, int], now: int) -> None:
        try:
            time = datetime(
                self._decode(registers[_CENTURY]) * 100 + self._decode(registers[_YEAR]),
                self._decode(registers[_MONTH]),
                self._decode(registers[_DAY]),
                self._decode_hour(registers[_HOURS]),
                self._decode(registers[_MINUTES]),
                self._decode(registers[_SECONDS]),
                tzinfo=UTC,
            )
        except ValueError:
            return  # no such date: the clock continues as it was
        passed = self._clock.ticks(now, 1)
        self._offset = int((time - self._epoch).total_seconds()) - passed
        self._plan_alarm(now)

    def _plan_alarm(self, now: int) -> None:
        """Find the virtual second, after the present one, at which the alarm matches."""
        cells = self._cells
        wanted = (
            None if cells[_HOURS_ALARM] >= _ANY else self._decode_hour(cells[_HOURS_ALARM]),
            None if cells[_MINUTES_ALARM] >= _ANY else self._decode(cells[_MINUTES_ALARM]),
            None if cells[_SECONDS_ALARM] >= _ANY else self._decode(cells[_SECONDS_ALARM]),
        )
        time = self._now(now)
        present = (time.hour * 60 + time.minute) * 60 + time.second
        delay = _until(wanted, present)
        self._next_alarm = None if delay is None else self._clock.ticks(now, 1) + delay


def _until(wanted: tuple[int | None, int | None, int | None], present: int) -> int | None:
    """Seconds from second-of-day `present` to the next match of hour, minute, second."""
    hours = range(24) if wanted[0] is None else (wanted[0],)
    minutes = range(60) if wanted[1] is None else (wanted[1],)
    seconds = range(60) if wanted[2] is None else (wanted[2],)
    if max(hours) > 23 or max(minutes) > 59 or max(seconds) > 59:
        return None
    # All matches of the earliest minutes suffice: the first after now, or tomorrow's first.
    best: int | None = None
    for hour in hours:
        for minute in minutes:
            start = (hour * 60 + minute) * 60
            if start + 59 <= present:
                start += _DAY_SECONDS
            if best is not None and start >= best:
                continue
            for second in seconds:
                moment = start + second
                if moment <= present:
                    moment += _DAY_SECONDS
                if best is None or moment < best:
                    best = moment
    return None if best is None else best - present
