"""Machines that share one processor and its memory: who has the processor, and what goes with it.

Each has a logical processor of its own, devices of its own, and the addresses that its VMM lets it
have. The clock is the host's: while others run, a guest finds that time has passed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.events.journal import COMPLETED, COUNTS, HEAD_COMPLETED, HEAD_COUNTS
from trapgate.processor.processor import Processor
from trapgate.sdm import cells as f
from trapgate.sdm.state import ACTIVITY_HLT
from trapgate.vmm.actions import RESUME, Action, End, Stop
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.snapshots.state import SnapshotError
from trapgate.vmm.summary import Summary

TURN = 1_000_000
"""Instructions of a machine's turn: a millisecond of virtual time."""
_BOARD = np.array((stops.READ_ONLY, stops.ADDRESS_OFF))
"""What the engine knows of the chip set."""
_COUNTED = (
    slice(HEAD_COUNTS, HEAD_COUNTS + COUNTS),
    slice(HEAD_COMPLETED, HEAD_COMPLETED + COMPLETED),
)
"""What the journal counts of a machine."""


class SharedProcessor:
    """A processor whose machines take turns on it."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.machines: list[SharingMachine] = []
        self.running: SharingMachine | None = None

    def enter(self, machine: SharingMachine) -> None:
        """Give the processor to `machine`, with its registers."""
        if self.running is machine:
            return
        if self.running is not None:
            self.running.leave_processor()
        machine.take_processor()
        self.running = machine

    def run(
        self,
        *,
        turn: int = TURN,
        max_instructions: int | None = None,
        timeout: float | None = None,
    ) -> list[Stop]:
        """Run all machines in turns of `turn` instructions, until each has stopped; how it did.

        `max_instructions` and `timeout` (seconds) are of all of them together. Who halts gives
        its turn away; while all do, time jumps to what wakes one.
        """
        processor = self.processor
        end = None if max_instructions is None else processor.time + max_instructions
        expires = None if timeout is None else time.monotonic() + timeout
        processor.expires = expires
        try:
            while running := [machine for machine in self.machines if machine.stopped is None]:
                awake = [machine for machine in running if machine.can_run]
                for machine in awake:
                    machine.take_turn(turn, end, expires)
                if not awake:
                    self._sleep(running, end, expires)
        except KeyboardInterrupt:
            for machine in self.machines:
                machine.stopped = machine.stopped or Stop(End.INTERRUPTED, "interrupted", 1)
        finally:
            processor.drain()
            for machine in self.machines:
                if machine.console is not None:
                    machine.console.flush()
        return [stop for machine in self.machines if (stop := machine.stopped) is not None]

    def _sleep(
        self, waiting: Sequence[SharingMachine], end: int | None, expires: float | None
    ) -> None:
        """All wait: let time pass until a device of one wants something."""
        now = self.processor.time
        deadlines = [
            deadline for machine in waiting if (deadline := machine.wakes(now)) is not None
        ]
        over = (end is not None and now >= end) or (
            expires is not None and time.monotonic() >= expires
        )
        if over or not deadlines:
            for machine in waiting:
                machine.wait_alone(end, expires)
        else:
            self.processor.skip_to(min(deadlines))


class SharingMachine(VirtualMachine):
    """A machine on a `SharedProcessor`; its VMM sees to it that it reaches no other's memory."""

    host: SharedProcessor

    def __init__(self, memory: int, host: SharedProcessor, **given: Any) -> None:
        super().__init__(memory, processor=host.processor, beside=bool(host.machines), **given)
        self.host = host
        self._kept: list[Cells] = [np.zeros(part.stop - part.start, np.int64) for part in _COUNTED]
        self._chip_set = np.zeros(len(_BOARD), np.int64)
        self._yields = False
        """Whether somebody gives the processor to others while the guest halts."""
        self._began = self._slept = self._executed = 0
        host.machines.append(self)
        if host.running is not None:
            # The new one has made itself known to the processor.
            host.running.own_processor()

    # Sharing the processor.

    def take_processor(self) -> None:
        """Load what no VMCS field holds."""
        processor = self.processor
        processor.turn_to(self.cpu.own)
        for part, kept in zip(_COUNTED, self._kept, strict=True):
            processor.head[part] = kept
        processor.engine.cells[_BOARD] = self._chip_set
        self.own_processor()
        self.let_ports_answer()
        self._began, self._slept = processor.time, processor.skipped

    def leave_processor(self) -> None:
        """Save what no VMCS field holds."""
        processor = self.processor
        self._kept = [processor.head[part].copy() for part in _COUNTED]
        self._chip_set = processor.engine.cells[_BOARD]
        self._executed += self._here()

    def _here(self) -> int:
        """Instructions executed since the machine got the processor."""
        processor = self.processor
        return processor.time - self._began - (processor.skipped - self._slept)

    def _counted(self, part: int) -> Cells:
        """What the journal has counted of this machine, of one of `_COUNTED`."""
        if self.host.running is self:
            here: Cells = self.processor.head[_COUNTED[part]]
            return here
        return self._kept[part]

    def _event_counts(self, level: int) -> Cells:
        return super()._event_counts(level) if level else self._counted(0)

    @property
    def completed(self) -> list[int]:
        """How many writes the filters let through, by the low four bits of the reason."""
        return [int(n) for n in self._counted(1)]

    def summary(self) -> Summary:
        """As for `VirtualMachine`; the instructions are those of this machine."""
        found = super().summary()
        if len(self.host.machines) == 1:
            return found
        executed = self._executed + (self._here() if self.host.running is self else 0)
        return replace(found, instructions=executed, halted=0)

    # Turns.

    @property
    def can_run(self) -> bool:
        """Whether the guest has something to do, or will with the next interrupt that waits."""
        now = self.processor.time
        self.devices.advance(now)
        return self.cpu.can_run(now)

    def wakes(self, now: int) -> int | None:
        """When a device may next wake the guest, which halts, in virtual time."""
        return self.devices.next_deadline(now) if self.cpu.takes_interrupts else None

    def take_turn(self, turn: int, end: int | None, expires: float | None) -> None:
        """Run for `turn` instructions, or until the guest halts or stops."""
        until = self.processor.time + turn
        started = time.perf_counter()
        self._device_due = 0
        self._yields = len(self.host.machines) > 1
        while (
            self.stopped is None
            and self.processor.time < until
            and self.cpu.can_run(self.processor.time)
        ):
            self._turn(end, expires, until)
        self._yields = False
        self._tally.seconds += time.perf_counter() - started

    def wait_alone(self, end: int | None, expires: float | None) -> None:
        """Halt with nobody else to give the turn to: a limit has come, or nothing wakes it."""
        waited = self.idle()
        if isinstance(waited, Stop):
            self._end(waited)
        else:
            self._turn(end, expires)

    def rest(self) -> Action:
        """The guest halts: another one may continue."""
        if not self._yields:
            return super().rest()
        self.vmcs.words[f.GUEST_ACTIVITY_STATE] = ACTIVITY_HLT
        return RESUME

    def _turn(self, end: int | None, expires: float | None, until: int | None = None) -> None:
        self.host.enter(self)
        super()._turn(end, expires, until)

    def demand_host_for_itself(self) -> None:
        """Raise SnapshotError for one of several machines: the others would not go back."""
        if len(self.host.machines) > 1:
            raise SnapshotError("the machines of a host share a processor and frames: no snapshot")
        self.host.enter(self)
