"""One machine under a debugger: a VMM around its own, which stops it and takes it back."""

from __future__ import annotations

from typing import Protocol

from trapgate.debug.gdb.catches import Pending
from trapgate.debug.gdb.past import Moment, Past
from trapgate.debug.gdb.reverse import NoWayBackError, Reverse, SearchInterruptedError
from trapgate.debug.gdb.stops import INTERRUPT, STEPPED, Stopped, Stops
from trapgate.debug.postmortem.view import view_of
from trapgate.decision.conditions import Names
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import RESUME, Action, End, Inject, StateReplaced, Stop
from trapgate.vmm.cpus.cpu import Cpu
from trapgate.vmm.exits.platform import Platform
from trapgate.vmm.exits.vmm import Vmm
from trapgate.vmm.machine import VirtualMachine

_MASK = (1 << 64) - 1
_CLEAN = ExitReason.PREEMPTION_TIMER
"""The exit at which the guest is between two instructions, and the VMM has nothing to do."""
_BETWEEN = (_CLEAN, ExitReason.MONITOR_TRAP_FLAG)


class Waiter(Protocol):
    """A debugger, as a machine sees it while it runs."""

    attention: bool
    """Something has come from gdb that a running guest must heed."""

    @property
    def attached(self) -> bool:
        """Whether a gdb is there."""

    def handle_interrupt(self, debuggee: Debuggee) -> None:
        """Something came from gdb while this machine ran."""

    def stop(self, debuggee: Debuggee, why: Stopped) -> None:
        """Wait until gdb lets the guests continue."""

    def interrupts(self) -> bool:
        """Whether gdb wants to interrupt what runs, while the guest is not stopped."""


class Debuggee(Vmm):
    """The VMM of `vm` from now on; what it does itself, it asks `waiter` and the one before it."""

    def __init__(self, vm: VirtualMachine, waiter: Waiter, names: Names | None) -> None:
        self.vm = vm
        self._inner = vm.vmm
        super().__init__(self._inner.handlers, vectors=self._inner.vectors)
        self._waiter = waiter
        self.stops = Stops(vm, names)
        self.past = Past(vm)
        self._reverse = Reverse(self.past, self.stops, self._physical_address, waiter.interrupts)
        self._busy = False
        self._moved = False
        self._in_exit = False
        """The guest is in a VM exit that is not carried out yet."""
        self._before: Moment | None = None
        vm.vmm = self

    def has_default_handler(self, reason: ExitReason) -> bool:
        """As the VMM before, unless gdb looks at exits."""
        return self._inner.has_default_handler(reason) and not self.stops.looks_at_exits

    def handle(self, vmexit: VmExit, vm: Platform) -> Action:
        """What the machine's own VMM wants, after whatever gdb wanted."""
        triple = vmexit.reason is ExitReason.TRIPLE_FAULT
        if not (self._waiter.attention or self._busy or triple):
            if vm.processor.time >= self.past.due and vmexit.reason is _CLEAN:
                self.past.keep()
            return self._inner.handle(vmexit, vm)
        catches = self.stops.catches
        pending = catches.caught(vmexit)
        self._in_exit = vmexit.reason not in _BETWEEN
        self._look(vmexit, pending)
        if self.vm.stopped is not None:
            return self.vm.stopped
        if self._has_moved():
            return StateReplaced()
        if self._reverse.over:
            return Stop(End.STOPPED_BY_VMM, "gdb looks for something in the past")
        self.stops.go_past(vmexit)
        if vmexit.reason is ExitReason.MONITOR_TRAP_FLAG:
            if catches.stepping:
                catches.trapped()
                self.past.changes(self._before)
            return RESUME
        if vm.processor.time >= self.past.due and vmexit.reason is _CLEAN:
            self.past.keep()
        self._before = None if pending is None else self.past.moment()
        action = catches.action(pending)
        if action is not None and not catches.stepping:
            self.past.changes(self._before)
        action = action or self._inner.handle(vmexit, vm)
        if isinstance(action, Inject) and catches.injections and not self.stops.stepping:
            self._stop_and_wait(Stopped(words=f"about to inject {action.event}"))
            if self._has_moved():
                return StateReplaced()
        self.stops.carried_out(vmexit, action)
        return action

    def _has_moved(self) -> bool:
        """Whether the machine is at another time than when it exited."""
        moved, self._moved = self._moved, False
        return moved

    def _look(self, vmexit: VmExit, pending: Pending | None) -> None:
        """Stop if there is a reason to."""
        why = self.stops.why(vmexit, pending)
        if vmexit.reason is ExitReason.TRIPLE_FAULT and not self._waiter.attached:
            return
        if why is not None:
            self._stop_and_wait(why)
        elif self._waiter.attention and not self._reverse.searching:
            self._waiter.handle_interrupt(self)

    def _stop_and_wait(self, why: Stopped) -> None:
        """There is a reason to stop: do, but on the way to somewhere else."""
        if not self._reverse.passes(why):
            self._waiter.stop(self, self._reverse.arrival(why))

    # For who debugs.

    def wait_for_gdb(self) -> None:
        """The guest stands."""
        self.stops.rest()
        self._reverse.give_up()

    def resume(self, *, step: bool, cpu: Cpu | None = None) -> None:
        """The guest is about to run, for a step of processor `cpu` or until something happens."""
        self.past.begin()
        self.past.leave()
        self.stops.arm(step=step, cpu=cpu)
        self._busy = self.stops.any
        self.vm.let_ports_answer()

    def back(self, *, step: bool) -> Stopped | None:
        """Go back; where the machine stands then, None if it has to run to be there."""
        self._busy = True
        why = STEPPED
        try:
            if self._reverse.step(in_exit=self._in_exit) if step else self._reverse.go_on():
                self.vm.let_ports_answer()
                return None
        except NoWayBackError as error:
            why = Stopped(detail="replaylog:begin;", words=str(error))
        except SearchInterruptedError:
            why = Stopped(INTERRUPT)
        finally:
            self._moved |= self.past.restored
            self._in_exit &= not self.past.restored
            self.past.restored = False
        return self._reverse.arrival(why)

    def detach(self) -> None:
        """Nobody debugs it any more."""
        self.stops.clear()
        self.past.end()
        self._busy = False
        self.vm.let_ports_answer()

    def _physical_address(self, linear: int) -> int | None:
        return view_of(self.vm).walk(linear & _MASK).physical
