"""A machine's past: snapshots of it from time to time, and what was typed in between.

Runs are deterministic, so any moment is reached again from the snapshot before it. What a
machine gave away stays given: bytes on the console and rows of the trace are counted, and
are not given twice. What gdb itself changes (memory, registers, a fault that it skips) cannot be
executed again; the next snapshot is taken right after it, and no way leads across.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from trapgate.compiler.dialect import Cells
from trapgate.engine.written_pages import pool_of
from trapgate.sdm import cells as f
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.snapshots.snapshot import Snapshot
from trapgate.vmm.snapshots.state import SnapshotError
from trapgate.vmm.ui.console import Console

NEVER = 1 << 62
_FIRST_GAP = 1_000_000
"""Instructions from the first snapshot to the second."""
_COST = 0.02
"""Of the time that the guest runs, at most so much goes into snapshots."""
_SPEED = 50e6
"""Instructions a second, before it is known."""
_MOST = 24
_BYTES = 512 << 20
"""Of pages beyond those of the first snapshot."""
_STATE = (f.GUEST_RIP, f.GUEST_RSP, f.GUEST_CS_SELECTOR, f.GUEST_CR3)


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a run: the virtual time, and the registers, since events take no time."""

    time: int
    registers: bytes


@dataclass(slots=True)
class KeptSnapshot:
    """A snapshot at a `moment`, and what had been given away by then.

    The run before it came as far as `reached`: another moment only if gdb `changed` something.
    """

    snapshot: Snapshot
    moment: Moment
    reached: Moment
    changed: bool
    typed: int
    emitted: int
    rows: int

    @property
    def time(self) -> int:
        """The virtual time."""
        return self.snapshot.time


@dataclass(slots=True)
class _Typed:
    """Keys and when the guest got them: while it `waited` for them, or in between."""

    time: int
    keys: bytes
    waited: bool


class RecordedConsole(Console):
    """A console whose keys are remembered, and whose output is shown once."""

    def __init__(self, inner: Console, past: Past) -> None:
        self._inner = inner
        self._past = past

    @property
    def interactive(self) -> bool:
        """As the console."""
        return self._inner.interactive

    @property
    def expected(self) -> int:
        """As the console."""
        return self._inner.expected

    @property
    def found(self) -> bool:
        """As the console."""
        return self._inner.found

    @property
    def left(self) -> bool:
        """As the console."""
        return self._inner.left

    def emit(self, byte: int) -> None:
        """Show a byte, unless the guest has written it before."""
        if self._past.counts_output():
            self._inner.emit(byte)

    def flush(self) -> None:
        """As the console."""
        self._inner.flush()

    def take_button(self) -> bool:
        """Never: the power button is not among what can come in again."""
        self._inner.take_button()
        return False

    def poll(self) -> bytes:
        """Nothing: the keys come in by `VirtualMachine.at`, so that they can come in again."""
        if self._past.live:
            keys = self._inner.poll()
            if keys:
                self._past.type(keys)
        return b""

    def wait(self, seconds: float) -> bytes:
        """Keys for a guest that waits for them; in the past, those that it got then."""
        if not self._past.live:
            return self._past.keys_again()
        keys = self._inner.wait(seconds)
        if keys:
            self._past.waited(keys)
        return keys


@dataclass
class Past:
    """The past of `vm`, from `begin` to `end`."""

    vm: VirtualMachine
    kept: list[KeptSnapshot] = field(default_factory=list)
    due: int = NEVER
    """When the next snapshot is, in virtual time."""
    why_not: str = ""
    """Why there is no past, in words."""
    _typed: list[_Typed] = field(default_factory=list)
    _again: int = 0
    """How many of what was typed the guest has got, where it stands now."""
    _in_flight: int = 0
    _emitted: int = 0
    _given: int = 0
    _rows: int = 0
    _rows_given: int = 0
    _frontier: int = 0
    """How far the machine has come, in virtual time."""
    restored: bool = False
    """The machine was taken back since somebody cleared this."""
    silent: bool = False
    """The machine runs to find something: nothing is given away, and nothing typed."""
    _base: int = 0
    _begun: float = 0.0
    _last: float = 0.0
    _spent: float = 0.0
    """Seconds of processor time: when it began, after the last snapshot, for all of them."""
    _recording: bool = False
    _from: int = 0
    """The number of the snapshot that the machine came from to where it stands now."""
    _changing: bool = False
    """gdb has changed something, and the snapshot after that is not taken yet."""

    @property
    def live(self) -> bool:
        """Whether the machine is where nobody has been yet."""
        arrived = self.vm.processor.time >= self._frontier and self._again == len(self._typed)
        return arrived and not self.silent

    # The present.

    def begin(self) -> None:
        """Remember from now on; the first snapshot is taken before the next VM entry."""
        if self._recording:
            return
        self._recording = True
        self._begun = self._last = time.process_time()
        self._spent = 0.0
        if self.vm.console is not None and not isinstance(self.vm.console, RecordedConsole):
            self.vm.console = RecordedConsole(self.vm.console, self)
        processor = self.vm.processor
        sink = processor.sink
        if sink is not None:
            processor.drain()
            processor.trace_to(self._once(sink))
        self.changes()

    def end(self) -> None:
        """Remember no more, and forget."""
        self._recording = False
        self.kept.clear()
        self._typed.clear()
        self._again = self._from = 0
        self._changing = False
        self.due = NEVER

    def moment(self) -> Moment:
        """Now."""
        v = self.vm.vmcs.cells
        registers = self.vm.processor.registers.cells[:16].tobytes()
        return Moment(self.vm.processor.time, v[list(_STATE)].tobytes() + registers)

    def changes(self, reached: Moment | None = None) -> None:
        """Tell that gdb makes the machine what its past did not.

        A snapshot is taken before the next entry.

        `reached` is where it was before that, if it is not as it was any more.
        """
        if not self._recording or self._changing:
            return
        reached = reached or self.moment()
        self.forget_future()
        self._changing = True
        self.vm.at(0, lambda _: self._keep(reached, changed=True))

    def keep(self) -> None:
        """Take a snapshot if the machine is where nobody has been yet."""
        self.due = NEVER
        if self.live and not self._in_flight:
            self._keep(self.moment(), changed=False)
        else:
            self._plan()

    def _keep(self, reached: Moment, *, changed: bool) -> None:
        if not self._recording:
            return
        self._changing = False
        begun = time.process_time()
        try:
            kept = self.here()
        except SnapshotError as error:
            self.why_not = str(error)
            self.end()
            return
        kept.reached, kept.changed = reached, changed
        gap = kept.time - self.kept[-1].time if self.kept else 0
        self.kept.append(kept)
        self._thin()
        self._from = len(self.kept) - 1
        now = time.process_time()
        self._spent += now - begun
        speed = gap / (begun - self._last) if gap and begun > self._last else _SPEED
        self._last = now
        rest = self._spent / _COST - (now - self._begun)
        self._plan(max(_FIRST_GAP, int(rest * speed)))

    def _plan(self, gap: int = _FIRST_GAP) -> None:
        self.due = max(self.vm.processor.time, self._frontier) + gap

    def _thin(self) -> None:
        """Drop some of the older snapshots, so that there are never too many."""
        pool = pool_of(self.vm.processor.engine)
        if len(self.kept) == 1:
            self._base = pool.size
        while len(self.kept) > _MOST or (len(self.kept) > 2 and pool.size > self._base + _BYTES):
            now = self.kept[-1].time
            gaps = [
                ((self.kept[n + 1].time - self.kept[n - 1].time) / (now - self.kept[n - 1].time), n)
                for n in range(1, len(self.kept) - 1)
                if not self.kept[n].changed and self.kept[n - 1].time < now
            ]
            del self.kept[min(gaps)[1] if gaps else 0]

    # Back.

    def leave_present(self) -> None:
        """The machine is about to go back from where it is."""
        self._frontier = max(self._frontier, self.vm.processor.time)

    @property
    def refusal(self) -> str:
        """Why there is no way back from here, in words; empty if there is one."""
        if self.why_not:
            return self.why_not
        return "gdb has changed something; step first" if self._changing else ""

    def before(self) -> int:
        """The number of the last snapshot before where the machine stands; -1 if there is none."""
        now = self.vm.processor.time
        numbers = (n for n, one in enumerate(self.kept) if one.time < now or n <= self._from)
        return max(numbers, default=-1)

    def restore(self, kept: KeptSnapshot, number: int) -> None:
        """Take the machine to a snapshot between the one of that number and the next."""
        self.restored = True
        self.vm.restore(kept.snapshot)
        self._from = number
        self._again, self._emitted, self._rows = kept.typed, kept.emitted, kept.rows
        for one in self._typed[kept.typed :]:
            if not one.waited:
                self._schedule(one)

    def here(self) -> KeptSnapshot:
        """The machine as it is now, to come back to soon."""
        moment = self.moment()
        given = self._again, self._emitted, self._rows
        return KeptSnapshot(self.vm.snapshot(), moment, moment, False, *given)

    def insert(self, number: int) -> KeptSnapshot:
        """Keep the present under that number."""
        kept = self.here()
        if len(self.kept) < 2 * _MOST:
            self.kept.insert(number, kept)
        return kept

    def forget_future(self) -> None:
        """The run goes another way than it went: what lies ahead will never be."""
        if not self.live:
            now = self.vm.processor.time
            ahead = (n for n, one in enumerate(self.kept) if n > self._from and one.time >= now)
            del self.kept[next(ahead, len(self.kept)) :]
            self._forget(now, self._again, self._emitted, self._rows)

    def leave(self) -> None:
        """The guest continues from where it is, and nobody will change what gdb changed then."""
        ahead = (n for n, one in enumerate(self.kept) if n > self._from and one.changed)
        first = next(ahead, None)
        if first is not None:
            change = self.kept[first]
            del self.kept[first:]
            self._forget(change.time, change.typed, change.emitted, change.rows)

    def _forget(self, when: int, typed: int, emitted: int, rows: int) -> None:
        del self._typed[typed:]
        self._frontier = when
        self._given, self._rows_given = emitted, rows
        self._plan()

    # What is given away, and what is typed.

    def counts_output(self) -> bool:
        """The guest writes a byte: whether it is to be shown."""
        self._emitted += 1
        if self.silent:
            return False
        new = self._emitted > self._given
        self._given = max(self._given, self._emitted)
        return new

    def _once(self, sink: Callable[[Cells], None]) -> Callable[[Cells], None]:
        def give(rows: Cells) -> None:
            old = min(len(rows), max(0, self._rows_given - self._rows))
            self._rows += len(rows)
            if self.silent:
                return
            self._rows_given = max(self._rows_given, self._rows)
            if old < len(rows):
                sink(rows[old:])

        return give

    def type(self, keys: bytes) -> None:
        """Keys have come while the guest runs."""
        one = _Typed(self.vm.processor.time, keys, waited=False)
        self._in_flight += 1

        def deliver(vm: VirtualMachine) -> None:
            self._in_flight -= 1
            one.time = vm.processor.time
            self._typed.append(one)
            self._give(vm, one)

        self.vm.at(0, deliver)

    def _schedule(self, one: _Typed) -> None:
        self.vm.at(one.time, lambda vm: self._give(vm, one))

    def _give(self, vm: VirtualMachine, one: _Typed) -> None:
        self._again += 1
        vm.type(one.keys)
        vm.devices.advance(vm.processor.time)

    def waited(self, keys: bytes) -> None:
        """Keys that the guest has waited for; it has them."""
        self._typed.append(_Typed(self.vm.processor.time, keys, waited=True))
        self._again += 1

    def keys_again(self) -> bytes:
        """Keys that the guest got at this moment, waiting for them; none otherwise."""
        if self._again < len(self._typed):
            one = self._typed[self._again]
            if one.waited and one.time <= self.vm.processor.time:
                self._again += 1
                return one.keys
        return b""
