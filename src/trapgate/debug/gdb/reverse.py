"""Backwards: to the instruction before, or to the last stop, by going back and executing again.

From a snapshot before the present the machine runs to the present, and the stops on its way are
counted. The last one is then reached by running from the snapshot again past all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from trapgate.debug.gdb.past import NEVER, KeptSnapshot, Moment, Past
from trapgate.debug.gdb.stops import STEPPED, Stopped, Stops
from trapgate.errors import TrapgateError
from trapgate.paging.memory import WRITTEN_PAGE
from trapgate.vmm.machine import VirtualMachine

_CLOSE = 8
"""So many instructions before the present they begin to be executed one at a time."""
_NEAR = 20_000
"""So far before the present a snapshot is left behind for the next step back."""
_PARTS = 16
_NO_MOMENT = Moment(NEVER, b"")
_SHORT = 2_000
"""Instructions that are executed one at a time to find an access."""


class NoWayBackError(TrapgateError):
    """The machine cannot go back from where it is; the message says why."""


class SearchInterruptedError(TrapgateError):
    """gdb wanted the search to end; the machine stands somewhere in its past."""


@dataclass(slots=True)
class _Search:
    """How many stops there are on the way to `until`, and the last: single steps, or all others.

    An access in front of `until` is one, and a stop at it only if that is `including`.
    """

    until: Moment
    steps: bool
    including: bool
    count: int = 0
    over: bool = False
    last: Stopped = STEPPED
    moment: Moment = _NO_MOMENT


class Reverse:
    """The way back for a machine with a `past` and `stops`.

    `physical` translates a linear address as the guest stands (None: nowhere); `interrupted` says
    whether gdb wants an end of it.
    """

    def __init__(
        self,
        past: Past,
        stops: Stops,
        physical: Callable[[int], int | None],
        interrupted: Callable[[], bool],
    ) -> None:
        self._past, self._stops = past, stops
        self._vm: VirtualMachine = past.vm
        self._physical, self._interrupted = physical, interrupted
        self._search: _Search | None = None
        self._left = 0
        self._steps = False
        self._broken_off = False
        self._arrival: Stopped | None = None
        self._start: tuple[KeptSnapshot, int]

    # On the way.

    @property
    def searching(self) -> bool:
        """Whether the machine runs to find out what stops it on its way."""
        return self._search is not None

    @property
    def over(self) -> bool:
        """Whether the search has come to its end, and the machine need not run on."""
        if self._search is None:
            return False
        self._broken_off |= self._interrupted()
        return self._search.over or self._broken_off

    def passes(self, why: Stopped) -> bool:
        """The guest would stop here: whether it continues."""
        search, step = self._search, why is STEPPED
        if search is not None:
            now = self._past.moment()
            there = now == search.until
            behind = now.time > search.until.time or (
                there and not search.including and not why.is_access
            )
            if step == search.steps and not behind:
                search.count += 1
                search.last, search.moment = why, now
            search.over |= behind or there
            return True
        if self._left and step != self._steps:
            return True
        self._left = max(self._left - 1, 0)
        return self._left > 0

    def arrival(self, why: Stopped) -> Stopped:
        """What to say of a stop: on the way back a step may lead in front of an access."""
        arrival, self._arrival = self._arrival or why, None
        return arrival

    def give_up(self) -> None:
        """The machine stops before it is where it was to go."""
        self._left = 0
        self._arrival = None

    # Where to.

    def step(self, *, in_exit: bool) -> bool:
        """Go to the instruction before; whether the machine has to run to be there.

        `in_exit` says that the guest is in the middle of an instruction that exits, which the
        clock may have counted. Raises NoWayBackError; BrokenOffError.
        """
        self._check()
        return self._step(self._past.before(), self._past.moment(), in_exit=in_exit)

    def _step(self, latest: int, until: Moment, *, in_exit: bool = False) -> bool:
        """To the instruction before `until`, which lies after the snapshot of number `latest`."""
        now = (until, replace(until, time=until.time - 1)) if in_exit else (until,)
        for number in range(latest, -1, -1):
            start = self._close_to(number, until)
            if start.moment not in now:
                search = self._count(start, number, until, steps=True)
                self._past.restore(start, number)
                # The first of `count` + 1 moments is where the snapshot is.
                return self._go(search.count - (search.moment in now), steps=True)
            until = self._past.kept[number].reached
        return self._to_the_beginning()

    def go_on(self) -> bool:
        """Go to the last stop before; whether the machine has to run to be there.

        Raises NoWayBackError at the beginning of what is remembered; BrokenOffError.
        """
        self._check()
        until, including = self._past.moment(), False
        for number in range(self._past.before(), -1, -1):
            kept = self._past.kept[number]
            found = self._last(kept, number, until, including=including)
            if found is not None:
                start, search = found
                if search.last.is_access:
                    self._arrival = search.last
                    return self._step(number, search.moment)
                self._past.restore(start, number)
                return self._go(search.count, steps=False)
            until, including = kept.reached, kept.changed
        return self._to_the_beginning()

    def _check(self) -> None:
        if self._past.refusal:
            raise NoWayBackError(self._past.refusal)
        self._past.leave_present()

    def _go(self, count: int, *, steps: bool) -> bool:
        self._stops.catches.moved()
        if count:
            self._stops.arm(step=steps, passing=False)
        self._left, self._steps = count, steps
        return count > 0

    def _to_the_beginning(self) -> bool:
        if self._past.kept:
            self._past.restore(self._past.kept[0], 0)
            self._stops.catches.moved()
        raise NoWayBackError("")

    # Looking for it.

    def _arm(self, start: KeptSnapshot, number: int, *, step: bool, watch: bool = True) -> None:
        """Restore a snapshot, ready to be stopped."""
        self._start = start, number
        self._past.restore(start, number)
        self._stops.catches.moved()
        self._stops.arm(step=step, watch=watch, passing=False)

    def _advance(self, until: int, search: _Search) -> _Search:
        """Run the machine to a virtual time or the search's end; what it found."""
        self._search = search
        self._past.silent = True
        try:
            self._vm.step(until - self._vm.processor.time)
        finally:
            self._past.silent = False
            self._search = None
            self._vm.stopped = None
            self._stops.rest()
        if self._broken_off:
            self._broken_off = False
            self._arm(*self._start, step=False, watch=False)
            raise SearchInterruptedError("")
        return search

    def _run(self, until: int) -> int:
        """On to a virtual time at full speed; what would have stopped the guest, accesses aside."""
        return self._advance(until, _Search(_NO_MOMENT, steps=False, including=False)).count

    def _count(
        self,
        start: KeptSnapshot,
        number: int,
        until: Moment,
        *,
        steps: bool,
        including: bool = False,
    ) -> _Search:
        """How many stops there are from a snapshot to a moment."""
        self._arm(start, number, step=steps)
        return self._advance(until.time + 1, _Search(until, steps, including))

    def _close_to(self, number: int, until: Moment) -> KeptSnapshot:
        """A snapshot a few instructions before a moment, if there are as many since that one."""
        start = self._past.kept[number]
        for distance in (_NEAR, _CLOSE):
            if until.time - start.time > 2 * distance and self._runs_close(
                start, number, until.time, distance
            ):
                start = self._past.insert(number + 1) if distance == _NEAR else self._past.here()
        return start

    def _runs_close(self, start: KeptSnapshot, number: int, until: int, distance: int) -> bool:
        """Run from a snapshot to `distance` before `until`; False if there is no such moment.

        While the guest halts the clock jumps, and the moment wanted is the last one before that.
        """

        def reaches(wanted: int) -> bool:
            self._arm(start, number, step=False, watch=False)
            self._run(wanted)
            return self._vm.processor.time < until

        low, high = start.time, until - distance
        if reaches(high):
            return True
        while high - low > _CLOSE:
            middle = (low + high) // 2
            low, high = (middle, high) if reaches(middle) else (low, middle)
        return low > start.time and reaches(low)

    def _last(
        self, start: KeptSnapshot, number: int, until: Moment, *, including: bool
    ) -> tuple[KeptSnapshot, _Search] | None:
        """From where to pass how many stops to come to the last one; None if there is none."""
        if not self._stops.only_writes or until.time - start.time <= _SHORT:
            search = self._count(start, number, until, steps=False, including=including)
            return (start, search) if search.count else None
        parts: list[tuple[KeptSnapshot, Moment]] = []
        self._past.restore(start, number)
        length = max(-(-(until.time - start.time) // _PARTS), 1)
        while self._vm.processor.time < until.time:
            start, pages = self._past.here(), self._watched_pages()
            self._arm(start, number, step=False, watch=False)
            count = self._run(min(start.time + length, until.time))
            pages |= self._watched_pages()
            last = self._vm.processor.time >= until.time
            if count or last or self._written(pages):
                parts.append((start, until if last else self._past.moment()))
        for part, end in reversed(parts):
            found = self._last(part, number, end, including=including and end == until)
            if found is not None:
                return found
        return None

    def _watched_pages(self) -> set[int | None]:
        return {
            None if at is None else at >> 12
            for _, address, length in self._stops.data
            for at in (self._physical(address), self._physical(address + length - 1))
        }

    def _written(self, pages: set[int | None]) -> bool:
        cells = self._vm.processor.engine.page_cells
        return any(
            page is None or page >= len(cells) or cells[page] & WRITTEN_PAGE for page in pages
        )
