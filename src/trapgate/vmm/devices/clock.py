"""Virtual time: how many instructions make a microsecond.

All devices, and the time-stamp counter, count the same thing: guest instructions.
This module alone says what an instruction is worth, so that the PIT, the RTC and
the time-stamp counter never disagree, and a run is the same however fast the host is.
"""

from dataclasses import dataclass

INSTRUCTIONS_PER_MICROSECOND = 1000
"""Default speed of the virtual processor: one instruction a nanosecond."""

PIT_HERTZ = 1_193_182
"""Input clock of the 8254, in ticks a second."""

RTC_HERTZ = 32_768
"""Input clock of the real-time clock, in ticks a second."""

PM_TIMER_HERTZ = 3_579_545
"""Input clock of ACPI's power-management timer, in ticks a second."""


@dataclass(frozen=True, slots=True)
class VirtualClock:
    """Turn instructions into the time units of devices, and back, in integers.

    `instructions_per_microsecond` is at least 1. Raises ValueError if it is not.
    """

    instructions_per_microsecond: int = INSTRUCTIONS_PER_MICROSECOND

    def __post_init__(self) -> None:
        if self.instructions_per_microsecond < 1:
            raise ValueError("instructions_per_microsecond must be at least 1")

    @property
    def hertz(self) -> int:
        """Instructions a virtual second; the frequency of the time-stamp counter."""
        return self.instructions_per_microsecond * 1_000_000

    def microseconds(self, count: int) -> int:
        """How many instructions `count` microseconds are."""
        return count * self.instructions_per_microsecond

    def ticks(self, now: int, hertz: int) -> int:
        """How many ticks of a clock of `hertz` have passed at instruction `now`."""
        return now * hertz // self.hertz

    def instant(self, tick: int, hertz: int) -> int:
        """The first instruction at which `ticks` answers at least `tick`."""
        return -(-tick * self.hertz // hertz)
