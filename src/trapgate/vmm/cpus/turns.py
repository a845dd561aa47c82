"""Turns of a machine's processors, which share one engine and one clock.

A turn ends when the processor halts or waits for a start-up IPI, after a number of instructions,
or early, with a PAUSE loop. Turns of equal lengths would end at the same places of a loop again
and again and hide races, so the lengths are drawn: a number of the seed's is a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

from trapgate.sdm.state import ACTIVITY_ACTIVE
from trapgate.vmm.cpus.cpu import Cpu

TURN = 100_000
"""Instructions of a turn, on average: less costs time, more lets others wait for locks."""
PLE_GAP, PLE_WINDOW = 128, 512
"""Of PAUSE-loop exiting, in instructions; some hundred times round a loop that spins."""
_NEVER = 1 << 62
_MULTIPLIER, _INCREMENT = 6364136223846793005, 1442695040888963407
_MASK = (1 << 64) - 1


class Turns:
    """The order of turns is round-robin; their lengths lie between 1 and twice `length`.

    `seed` is what they are drawn from.
    """

    def __init__(self, cpus: Sequence[Cpu], seed: int) -> None:
        self.length = TURN
        """Instructions of a turn, on average."""
        self._cpus = cpus
        self._random = seed & _MASK
        self.end = _NEVER
        """The virtual time at which the turn ends; far off while no other processor can run."""

    @property
    def shared(self) -> bool:
        """Whether another processor waits for its turn."""
        return self.end != _NEVER

    def rest(self) -> None:
        """Begin anew: only one processor has something to do."""
        self.end = _NEVER

    def give_up(self) -> None:
        """The processor whose turn it is has nothing to do but wait for others."""
        if self.shared:
            self.end = 0

    def next(self, running: Cpu, now: int) -> Cpu | None:
        """Which processor runs from virtual time `now` on; None if all wait."""
        active = running.activity == ACTIVITY_ACTIVE
        if active and self.shared and now < self.end:
            return running
        start = running.number + 1
        ready = [cpu for cpu in (*self._cpus[start:], *self._cpus[: start - 1]) if cpu.can_run(now)]
        goes_on = active or running.can_run(now)
        if not ready:
            self.end = _NEVER
            return running if goes_on else None
        if goes_on and not self.shared:
            # It was alone; its turn begins to count.
            self.end = now + self._draw()
            return running
        self.end = now + self._draw() if goes_on or len(ready) > 1 else _NEVER
        return ready[0]

    def _draw(self) -> int:
        self._random = (self._random * _MULTIPLIER + _INCREMENT) & _MASK
        return 1 + (self._random >> 33) % (2 * self.length)
