"""Moments of a run: a count of instructions, or what the guest comes to, for the n-th time.

A machine waits for them (`VirtualMachine.at`) and costs nothing more meanwhile but where it has to
look: breakpoints are in translated code, and a fault stops the engine only while one is awaited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

from trapgate.decision.decide import COMPLETE
from trapgate.errors import TrapgateError
from trapgate.events.journal import (
    HEAD_SEQUENCE,
    ROW_DISPOSITION,
    ROW_INJECTED,
    ROW_TYPE,
    ROW_VECTOR,
    ROW_VM,
)
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmExit
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import ROWS, Vector

_OWNER = "moments"
"""Whose breakpoints these are, to the engine."""
_WINDOW = 4096
"""How many bytes of output an expression is looked for in."""
_EXCEPTIONS = (
    InterruptionType.HARDWARE_EXCEPTION,
    InterruptionType.PRIVILEGED_SOFTWARE_EXCEPTION,
    InterruptionType.SOFTWARE_EXCEPTION,
)
_LARGEST_TIME = 1 << 62


class MomentError(TrapgateError):
    """A moment is not written as one; the message says what to write."""


@dataclass(frozen=True, slots=True)
class AtAddress:
    """Before the instruction at a linear address, for the `time`-th time."""

    address: int
    time: int = 1


@dataclass(frozen=True, slots=True)
class AtExit:
    """After a VM exit of this reason, when the VMM has dealt with it."""

    reason: ExitReason
    time: int = 1


@dataclass(frozen=True, slots=True)
class AtFault:
    """When the guest has taken an exception of this vector: before its handler's first instruction.

    Or, if the exception exits, after that. Those that the VMM injects do not count.
    """

    vector: int
    time: int = 1


@dataclass(frozen=True, slots=True)
class AtOutput:
    """After the byte of output with which a regular expression matches.

    Raises MomentError for what is none.
    """

    expression: str
    time: int = 1

    def __post_init__(self) -> None:
        try:
            re.compile(self.expression.encode("utf-8", "surrogateescape"))
        except (re.error, OverflowError, RecursionError) as error:
            raise MomentError(
                f"{self.expression!r} is not a regular expression ({error}); correct it"
            ) from None


Moment = int | AtAddress | AtExit | AtFault | AtOutput
"""An `int` counts the instructions since the machine began."""
Action = TypeVar("Action")
"""What is done then; a `Watch` only hands it on."""


class _Waiting(Generic[Action]):
    """What is done at a moment that no count of instructions tells."""

    def __init__(self, moment: AtAddress | AtExit | AtFault | AtOutput, action: Action) -> None:
        self.moment = moment
        self.action = action
        self.left = moment.time
        self.recent = bytearray()
        if isinstance(moment, AtOutput):
            expression = moment.expression.encode("utf-8", "surrogateescape")
            self.search = re.compile(expression).search

    def comes(self) -> bool:
        """Note that it has come; whether that was the last time to wait for."""
        self.left -= 1
        return self.left == 0


@dataclass(frozen=True, slots=True)
class WatchState(Generic[Action]):
    """What a `Watch` waited for, how often each was still to come, and what it had seen."""

    sequence: int
    waiting: list[tuple[_Waiting[Action], int, bytes]]


class Watch(Generic[Action]):
    """What a machine waits for. `plan` is told what is to be done now."""

    def __init__(self, processor: Processor, number: int, plan: Callable[[Action], None]) -> None:
        self._processor = processor
        self._number = number
        self._plan = plan
        self._waiting: list[_Waiting[Action]] = []
        self.waits = False
        """Whether there is anything to look for."""
        self._sequence = 0

    @property
    def byte_by_byte(self) -> bool:
        """Whether each byte of output is to be seen before the guest continues."""
        return self.waits and any(isinstance(one.moment, AtOutput) for one in self._waiting)

    def wants(self, reason: ExitReason) -> bool:
        """Whether exits of this reason are to be seen."""
        return any(
            isinstance(one.moment, AtExit) and one.moment.reason is reason for one in self._waiting
        )

    def add(self, moment: AtAddress | AtExit | AtFault | AtOutput, action: Action) -> None:
        """Wait for one more moment."""
        self._set([*self._waiting, _Waiting(moment, action)])

    def _set(self, waiting: list[_Waiting[Action]]) -> None:
        """Wait for these from now on."""
        self._waiting = waiting
        self.waits = bool(waiting)
        self._sequence = int(self._processor.head[HEAD_SEQUENCE])
        self._processor.stops_at_events = any(isinstance(one.moment, AtFault) for one in waiting)
        self._processor.engine.set_breakpoints(self._addresses(), of=_OWNER)

    def _addresses(self) -> Collection[int]:
        return {one.moment.address for one in self._waiting if isinstance(one.moment, AtAddress)}

    def _have_come(self, came: list[_Waiting[Action]]) -> None:
        done = [one for one in came if one.comes()]
        if done:
            self._set([one for one in self._waiting if one not in done])
            for one in done:
                self._plan(one.action)

    def look(self, vmexit: VmExit) -> None:
        """The guest has exited: what has come?"""
        came = [
            one
            for one in self._waiting
            if isinstance(one.moment, AtExit) and one.moment.reason is vmexit.reason
        ]
        hit = self._processor.engine.take_breakpoint(_OWNER)
        if hit is not None:
            came += [
                one
                for one in self._waiting
                if isinstance(one.moment, AtAddress) and one.moment.address == hit
            ]
        vectors = self._faults()
        for one in self._waiting:
            if isinstance(one.moment, AtFault):
                came += [one] * vectors.count(one.moment.vector)
        self._have_come(came)

    def _faults(self) -> list[int]:
        """The vectors of the exceptions since the last look, the first first."""
        sequence = int(self._processor.head[HEAD_SEQUENCE])
        count, self._sequence = sequence - self._sequence, sequence
        if not count or not self._processor.stops_at_events:
            return []
        rows = list(zip(range(count), self._processor.last_events(), strict=False))
        return [
            int(row[ROW_VECTOR])
            for _, row in reversed(rows)
            if row[ROW_TYPE] in _EXCEPTIONS
            and not row[ROW_INJECTED]
            and row[ROW_DISPOSITION] != COMPLETE
            and row[ROW_VM] == self._number
        ]

    def see(self, data: bytes) -> None:
        """The guest has sent bytes."""
        for byte in data:
            came: list[_Waiting[Action]] = []
            for one in self._waiting:
                if isinstance(one.moment, AtOutput):
                    one.recent.append(byte)
                    if len(one.recent) > 2 * _WINDOW:
                        del one.recent[:-_WINDOW]
                    if one.search(one.recent, max(len(one.recent) - _WINDOW, 0)):
                        one.recent.clear()
                        came.append(one)
            self._have_come(came)

    def state(self) -> WatchState[Action]:
        """What is waited for now, for `restore`."""
        waiting = [(one, one.left, bytes(one.recent)) for one in self._waiting]
        return WatchState(self._sequence, waiting)

    def restore(self, state: WatchState[Action]) -> None:
        """Wait for what was waited for then."""
        if not (state.waiting or self._waiting):
            self._sequence = state.sequence
            return
        for one, left, recent in state.waiting:
            one.left = left
            one.recent[:] = recent
        wanted = [one for one, _, _ in state.waiting]
        if wanted != self._waiting:
            self._set(wanted)
        self._sequence = state.sequence


_FORM = re.compile(
    r"\s*(?:(?P<count>[0-9][0-9_]*)|(?P<kind>[a-z]+)\s*=\s*(?P<what>.*?)(?:\s*#(?P<time>[0-9]+))?)\s*",
    re.DOTALL,
)
_HOW = (
    "write 1000000 (instructions), rip=0x101234, symbol=NAME, exit=CPUID, fault=PF or "
    'output="REGEX", followed by #3 for the third time'
)


def parse_moment(text: str, find: Callable[[str], int] | None = None) -> Moment:
    """Read a moment: a count of instructions, or rip=, symbol=, exit=, fault= or output=, and #N.

    `find` gives the address of a symbol, and raises TrapgateError where there is none.

    Raises MomentError.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise MomentError(f"{text!r} is not a moment; {_HOW}")
    if form["count"] is not None:
        when = int(form["count"])
        if when >= _LARGEST_TIME:
            raise MomentError(f"{text!r}: no guest executes so many instructions")
        return when
    what, time = form["what"], int(form["time"] or 1)
    if not 1 <= time < _LARGEST_TIME:
        raise MomentError(f"{text!r}: the first time is #1")
    match form["kind"]:
        case "rip":
            return AtAddress(_address(text, what), time)
        case "symbol":
            if find is None:
                raise MomentError(
                    f"{text!r}: the guest has no symbols; give --symbols, or rip= and an address"
                )
            return AtAddress(find(what), time)
        case "exit":
            name = what.upper().replace(" ", "_")
            if name not in ExitReason.__members__:
                raise MomentError(f"{text!r}: no exit reason {what!r}; see the SDM's, as CPUID")
            return AtExit(ExitReason[name], time)
        case "fault":
            name = what.upper().removeprefix("#")
            if name not in Vector.__members__ or Vector[name] not in ROWS or name == "NMI":
                raise MomentError(f"{text!r}: no exception {what!r}; write one like PF, GP or UD")
            return AtFault(int(Vector[name]), time)
        case "output":
            quoted = len(what) > 1 and what[0] == what[-1] and what[0] in "\"'"
            return AtOutput(what[1:-1] if quoted else what, time)
    raise MomentError(f"{text!r} is not a moment; {_HOW}")


def _address(text: str, word: str) -> int:
    try:
        address = int(word, 0)
    except ValueError:
        raise MomentError(f"{text!r}: {word!r} is not an address") from None
    if not 0 <= address < 1 << 64:
        raise MomentError(f"{text!r}: {word} does not fit 64 bits")
    return address
