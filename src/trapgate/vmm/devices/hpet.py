"""The high-precision event timer at FED00000H (IA-PC HPET Specification 1.0a).

A 64-bit counter of 10 ns and three timers, each one-shot or periodic, 64 or 32 bits wide, edge- or
level-triggered, to pins 20 to 23 of the I/O APIC or by legacy replacement in the
place of the 8254 and the clock. No messages (FSB). Nothing ticks: see `pit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from trapgate.vmm.devices.bus import Line
from trapgate.vmm.devices.clock import VirtualClock

BASE_ADDRESS: Final = 0xFED0_0000
HERTZ: Final = 100_000_000
_FEMTOSECONDS = 10**15 // HERTZ
_TIMERS = 3
IDENTITY: Final = 0x8086_0000 | 1 << 15 | 1 << 13 | (_TIMERS - 1) << 8 | 1
"""Vendor, legacy replacement, a 64-bit counter, the timers, revision."""
_PINS: Final = 0x00F0_0000
"""I/O APIC pins that a timer can be routed to."""

_CAPABILITIES, _CONFIGURATION, _STATUS, _COUNTER = 0x000, 0x010, 0x020, 0x0F0
_FIRST_TIMER, _TIMER_SIZE = 0x100, 0x20
_ENABLE, _LEGACY = 1, 2
_LEVEL, _INTERRUPT, _PERIODIC, _SET_VALUE, _NARROW = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 8
_ROUTE_SHIFT, _ROUTE = 9, 0x1F << 9
_WRITABLE = _LEVEL | _INTERRUPT | _PERIODIC | _SET_VALUE | _NARROW | _ROUTE
_FIXED = _PINS << 32 | 1 << 5 | 1 << 4
"""What a timer can do: its pins, 64 bits, periodic interrupts."""
_ALL = (1 << 64) - 1


class LineGate:
    """A line that can be held low, whatever its driver does."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._level = self._held = False

    def set(self, level: bool) -> None:
        """Drive it."""
        self._level = level
        self._line.set(level and not self._held)

    def hold(self, *, held: bool) -> None:
        """Hold it low from now on, or let its driver set it."""
        self._held = held
        self._line.set(self._level and not held)


@dataclass
class _Timer:
    """One timer. `due` is the clock's tick at which its comparator matches next."""

    configuration: int = _FIXED
    comparator: int = _ALL
    period: int = 0
    due: int | None = None
    line: int | None = None
    """The pin that it holds high, level-triggered."""

    @property
    def span(self) -> int:
        """Ticks until the counter, as wide as the timer is, comes round."""
        return 1 << (32 if self.configuration & _NARROW else 64)


class Hpet:
    """The timer block. `pin` drives an I/O APIC pin; `legacy` are the lines of IRQ 0 and IRQ 8,
    `replaced` those of the 8254 and the clock, which are held low meanwhile.
    """

    ports = ()
    wide = True

    def __init__(
        self,
        clock: VirtualClock,
        pin: Callable[[int, bool], None],
        legacy: tuple[Line, Line],
        replaced: tuple[LineGate, LineGate],
    ) -> None:
        self._clock = clock
        self._pin = pin
        self._legacy = legacy
        self._replaced = replaced
        self._enabled = self._replaces = False
        self._counter = 0
        """The counter's value less the clock's tick if it counts; its value if not."""
        self._status = 0
        self._timers = tuple(_Timer() for _ in range(_TIMERS))

    def _tick(self, now: int) -> int:
        return self._clock.ticks(now, HERTZ)

    def counter(self, now: int) -> int:
        """The main counter, 64 bits."""
        return (self._counter + (self._tick(now) if self._enabled else 0)) & _ALL

    def read(self, offset: int, size: int, now: int) -> int:
        """Load `size` bytes at an offset into the page."""
        self.advance(now)
        value = self._register(offset & ~7, now)
        return value >> 8 * (offset & 7) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int, now: int) -> None:
        """Store `size` bytes at an offset into the page."""
        self.advance(now)
        at = offset & ~7
        mask = ((1 << 8 * size) - 1) << 8 * (offset & 7) & _ALL
        value = value << 8 * (offset & 7) & mask
        if at == _STATUS:
            self._clear(value)
            return
        self._store(at, self._register(at, now) & ~mask | value, now)

    def _register(self, at: int, now: int) -> int:
        if at == _CAPABILITIES:
            return _FEMTOSECONDS << 32 | IDENTITY
        if at == _CONFIGURATION:
            return self._enabled * _ENABLE | self._replaces * _LEGACY
        if at == _STATUS:
            return self._status
        if at == _COUNTER:
            return self.counter(now)
        number, place = divmod(at - _FIRST_TIMER, _TIMER_SIZE)
        if not 0 <= number < _TIMERS:
            return 0
        timer = self._timers[number]
        return {0: timer.configuration, 8: timer.comparator}.get(place, 0)

    def _store(self, at: int, value: int, now: int) -> None:
        if at == _CONFIGURATION:
            self._configure(value, now)
        elif at == _COUNTER:
            # Software is to stop it first; a counter that runs takes the value all the same.
            self._counter = (value - (self._tick(now) if self._enabled else 0)) & _ALL
            self._arm_all(now)
        number, place = divmod(at - _FIRST_TIMER, _TIMER_SIZE)
        if not 0 <= number < _TIMERS:
            return
        timer = self._timers[number]
        if place == 0:
            self._release(number)
            timer.configuration = value & _WRITABLE | _FIXED
            self._arm(timer, now)
        elif place == 8:
            self._compare(timer, value & timer.span - 1)
            self._arm(timer, now)

    def _compare(self, timer: _Timer, value: int) -> None:
        """A comparator is written: with a period it is that, too, or alone (section 2.3.9.2.2)."""
        periodic = timer.configuration & _PERIODIC
        if periodic:
            timer.period = value
        if not periodic or timer.configuration & _SET_VALUE:
            timer.comparator = value
        timer.configuration &= ~_SET_VALUE

    def _configure(self, value: int, now: int) -> None:
        counter = self.counter(now)
        self._enabled = bool(value & _ENABLE)
        self._counter = (counter - (self._tick(now) if self._enabled else 0)) & _ALL
        replaces = bool(value & _LEGACY)
        if replaces != self._replaces:
            for number in range(_TIMERS):
                self._release(number)
            self._replaces = replaces
            for gate in self._replaced:
                gate.hold(held=replaces)
        self._arm_all(now)

    def _arm_all(self, now: int) -> None:
        for timer in self._timers:
            self._arm(timer, now)

    def _arm(self, timer: _Timer, now: int) -> None:
        timer.due = None
        if self._enabled:
            left = (timer.comparator - self.counter(now)) % timer.span
            timer.due = self._tick(now) + (left or timer.span)

    def next_deadline(self, now: int) -> int | None:
        """When a timer that interrupts matches next."""
        due = [
            timer.due
            for timer in self._timers
            if timer.due is not None and timer.configuration & _INTERRUPT
        ]
        return max(self._clock.instant(min(due), HERTZ), now + 1) if due else None

    def advance(self, now: int) -> None:
        """Raise interrupts of timers whose comparators matched; once for all that were missed."""
        tick = self._tick(now)
        for number, timer in enumerate(self._timers):
            if timer.due is None or timer.due > tick:
                continue
            step = timer.period if timer.configuration & _PERIODIC else 0
            if step:
                missed = (tick - timer.due) // step + 1
                timer.comparator = (timer.comparator + missed * step) % timer.span
            else:
                step = timer.span
                missed = (tick - timer.due) // step + 1
            timer.due += missed * step
            if timer.configuration & _INTERRUPT:
                self._interrupt(number)

    def _interrupt(self, number: int) -> None:
        timer = self._timers[number]
        if self._replaces and number < len(self._legacy):
            self._legacy[number].set(True)
            self._legacy[number].set(False)
            return
        pin = (timer.configuration & _ROUTE) >> _ROUTE_SHIFT
        if not _PINS >> pin & 1:
            return
        self._pin(pin, True)
        if timer.configuration & _LEVEL:
            timer.line = pin
            self._status |= 1 << number
        else:
            self._pin(pin, False)

    def _clear(self, bits: int) -> None:
        for number in range(_TIMERS):
            if bits >> number & 1:
                self._release(number)

    def _release(self, number: int) -> None:
        timer = self._timers[number]
        self._status &= ~(1 << number)
        if timer.line is not None:
            self._pin(timer.line, False)
            timer.line = None
