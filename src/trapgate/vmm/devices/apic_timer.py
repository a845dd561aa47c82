"""The timer of the local APIC (SDM, "APIC Timer"): one-shot, periodic and TSC-deadline.

Nothing ticks: the current count is computed from the virtual time at which somebody
looks. The timer's clock is the one that CPUID leaf 15H names, one tick an instruction.
"""

ONE_SHOT, PERIODIC, TSC_DEADLINE = range(3)
"""Timer modes, as bits 18:17 of the timer's local-vector-table entry have them."""


class ApicTimer:
    """The count-down timer. `now` is virtual time in instructions, counts are 32 bits wide."""

    def __init__(self) -> None:
        self.mode = ONE_SHOT
        self.initial = 0
        self.divide = 0
        self.tsc_deadline = 0
        self._end: int | None = None

    @property
    def _divisor(self) -> int:
        """2, 4, ... 128, 1 for bits 3, 1 and 0 of the divide configuration register."""
        exponent = (self.divide & 3 | self.divide >> 1 & 4) + 1 & 7
        return 1 << exponent

    def set_mode(self, mode: int) -> None:
        """Change the mode; to and from TSC-deadline the timer is disarmed, else it counts on."""
        if mode != self.mode and TSC_DEADLINE in (mode, self.mode):
            self._end = None
            self.initial = self.tsc_deadline = 0
        self.mode = mode

    def set_divide(self, value: int, now: int) -> None:
        """Write the divide configuration register; the count continues from where it is."""
        left = self.count(now)
        self.divide = value & 0xB
        if left:
            self._end = now + left * self._divisor

    def set_initial(self, count: int, now: int) -> None:
        """Write the initial count: start, or stop if it is 0; ignored in TSC-deadline mode."""
        if self.mode == TSC_DEADLINE:
            return
        self.initial = count
        self._end = now + count * self._divisor if count else None

    def set_deadline(self, deadline: int, tsc: int, now: int) -> None:
        """WRMSR to IA32_TSC_DEADLINE while the time-stamp counter is `tsc`; 0 disarms.

        Ignored in the other modes.
        """
        if self.mode != TSC_DEADLINE:
            return
        self.tsc_deadline = deadline
        self._end = now + max(deadline - tsc, 0) if deadline else None

    def count(self, now: int) -> int:
        """The current count."""
        if self._end is None or self.mode == TSC_DEADLINE:
            return 0
        return -(-max(self._end - now, 0) // self._divisor)

    def expired(self, now: int) -> bool:
        """Has it reached 0 since the last call? Then it is armed anew, or stands still."""
        end = self._end
        if end is None or now < end:
            return False
        if self.mode == PERIODIC and self.initial:
            period = self.initial * self._divisor
            self._end = end + ((now - end) // period + 1) * period
        else:
            self._end = None
            self.tsc_deadline = 0
        return True

    def next_deadline(self) -> int | None:
        """The instruction at which it reaches 0, or None if it stands still."""
        return self._end
