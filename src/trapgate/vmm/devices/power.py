"""ACPI's fixed hardware: the PM1 event and control registers and the power-management timer.

ACPI Specification, "ACPI Hardware Specification". The machine is always in ACPI mode
(SCI_EN reads as 1); it knows two sleeping states: S3, from which the CMOS clock's alarm, the power
button and keys wake it, and S5: off.
"""

from trapgate.instructions import polled_ports as polled
from trapgate.vmm.devices.bus import EventSink, Line, MachineEvent, MachineEventKind
from trapgate.vmm.devices.clock import (
    INSTRUCTIONS_PER_MICROSECOND,
    PM_TIMER_HERTZ,
    VirtualClock,
)
from trapgate.vmm.devices.polled import PolledPorts

PM1_EVENT, PM1_CONTROL, PM_TIMER = 0x600, 0x604, 0x608
"""Ports: two words of status and enables, one word of control, a double word of timer."""
OFF = 5
"""SLP_TYP of S5, as the DSDT's \\_S5 says."""
SUSPENDED = 1
"""SLP_TYP of S3."""

_STATUS, _ENABLE = PM1_EVENT, PM1_EVENT + 2
_TIMER_STATUS = 1
_ENABLES = 0x521  # timer, global lock, power button, clock alarm; the last only wakes
_BUTTON, _ALARM, _WOKEN = 1 << 8, 1 << 10, 1 << 15
_SCI_ENABLED = 1
_SLEEP = 1 << 13
_TIMER_BITS = 0xFF_FFFF
_TIMER_HALF = 1 << 23
"""Ticks between two changes of the timer's highest bit, each of which sets its status."""


class PowerManagement:
    """PM1a and the 24-bit timer of 3.579545 MHz; `line` is the SCI, level-triggered."""

    wide = True
    ports = range(PM1_EVENT, PM_TIMER + 4)

    def __init__(
        self,
        line: Line,
        events: EventSink,
        clock: VirtualClock,
        ports: PolledPorts | None = None,
    ) -> None:
        self._line = line
        self._events = events
        self._clock = clock
        self._status = 0
        self._enable = 0
        self._control = _SCI_ENABLED
        self._half = 0
        self.asleep = False
        """Whether the machine sleeps, or has not come up again yet."""
        self.woken = False
        """Whether something has ended its sleep."""
        if ports is not None:
            # Its accesses are slow (`bus.SlowDevice`).
            timer = ports.slot(
                PM_TIMER,
                is_in=True,
                size=4,
                kind=polled.CLOCK,
                wait=INSTRUCTIONS_PER_MICROSECOND,
                hertz=PM_TIMER_HERTZ,
                second=clock.hertz,
            )
            timer[polled.VALUE] = _TIMER_BITS

    def read(self, port: int, size: int, now: int) -> int:
        """Read `size` bytes from the twelve; they are laid out as in memory."""
        self.advance(now)
        image = (
            self._status
            | self._enable << 16
            | self._control << 32
            | (self._ticks(now) & _TIMER_BITS) << 64
        )
        return image >> 8 * (port - PM1_EVENT) & (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int, now: int) -> None:
        """Write words: status (ones clear), enables, control; narrower writes are in vain."""
        self.advance(now)
        if size == 4 and port == _STATUS:
            self.write(_STATUS, 2, value & 0xFFFF, now)
            self.write(_ENABLE, 2, value >> 16, now)
        elif size < 2:
            return
        elif port == _STATUS:
            self._status &= ~value
        elif port == _ENABLE:
            self._enable = value & _ENABLES
        elif port == PM1_CONTROL:
            self._control = value & 0x1C02 | _SCI_ENABLED
            if value & _SLEEP and value >> 10 & 7 == OFF:
                self._events.signal(MachineEvent(MachineEventKind.POWER_OFF, "ACPI, S5"))
            elif value & _SLEEP and value >> 10 & 7 == SUSPENDED:
                self.asleep = True
                self._events.signal(MachineEvent(MachineEventKind.SLEEP, "ACPI, S3"))
        self._update()

    @property
    def wakes_by_alarm(self) -> bool:
        """Whether the CMOS clock's alarm ends a sleep."""
        return bool(self._enable & _ALARM)

    def alarm_expired(self) -> None:
        """The alarm has come."""
        self._wake(_ALARM)

    def press_button(self) -> None:
        """Somebody presses the power button: a sleep's end; otherwise an interrupt, if enabled."""
        self._status |= _BUTTON
        self._wake(_BUTTON)
        self._update()

    def call(self) -> None:
        """Something else than the fixed hardware asks for the end of a sleep: a key, say."""
        self._wake(0)

    def come_up(self) -> None:
        """The sleep is over."""
        self.asleep = self.woken = False

    def _wake(self, cause: int) -> None:
        if self.asleep:
            self.woken = True
            self._status |= cause | _WOKEN
            self._control = _SCI_ENABLED
            self._update()

    def next_deadline(self, now: int) -> int | None:
        """When the timer's highest bit changes, if somebody wants an interrupt for it."""
        if not self._enable & _TIMER_STATUS or self._status & _TIMER_STATUS:
            return None
        tick = (self._ticks(now) // _TIMER_HALF + 1) * _TIMER_HALF
        return max(self._clock.instant(tick, PM_TIMER_HERTZ), now + 1)

    def advance(self, now: int) -> None:
        """Set the timer's status if its highest bit has changed, and drive the SCI."""
        half = self._ticks(now) // _TIMER_HALF
        if half != self._half:
            self._half = half
            self._status |= _TIMER_STATUS
        self._update()

    def _ticks(self, now: int) -> int:
        return self._clock.ticks(now, PM_TIMER_HERTZ)

    def _update(self) -> None:
        self._line.set(bool(self._status & self._enable))
