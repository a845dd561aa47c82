"""The last branches of a guest before its end, like a processor's last-branch records.

Nothing is recorded while a guest runs. Runs are deterministic, so a second machine executes the
same run again, its last instructions one at a time.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile

from iced_x86 import (
    Decoder,
    FlowControl,
    FormatMnemonicOptions,
    Formatter,
    FormatterSyntax,
    Mnemonic,
)

from trapgate.debug.postmortem.delivery import handler_of
from trapgate.debug.postmortem.instruction import Namer
from trapgate.debug.postmortem.view import View, view_of
from trapgate.decision.decide import Disposition
from trapgate.events import journal as j
from trapgate.sdm.event_words import event_name, hexadecimal
from trapgate.vmm.machine import VirtualMachine

_MOST = 16
"""Branches that are shown, equal ones in a row counted once, as records of a processor."""
_LOOKED_AT = 4096, 65536
"""Instructions before the end that are executed one at a time, the second if the first show few.

Some tenths of a second; and for a long string instruction, each iteration of which is one, seconds.
"""
_FEW = 4
_LONGEST = 15


@dataclass(frozen=True)
class Branch:
    """A branch that was taken, `count` times in a row, from one linear address to another.

    `cause` is the instruction's mnemonic, or the event whose delivery it was; `at_least` says that
    nobody looked at what was before.
    """

    source: int
    target: int
    cause: str
    count: int = 1
    at_least: bool = False

    def is_like(self, other: "Branch") -> bool:
        """Whether it is the same branch, taken again."""
        mine, others = ((one.source, one.target, one.cause) for one in (self, other))
        return mine == others

    def words(self, names: Namer) -> str:
        """10003FH (kmain+1AH) -> 100043H (crash): call, 3 times."""
        places = (
            hexadecimal(address) + (f" ({name})" if (name := names(address)) else "")
            for address in (self.source, self.target)
        )
        times = f", {self.count:,} times" if self.count > 1 else ""
        times += " or more" if self.count > 1 and self.at_least else ""
        return f"{' -> '.join(places)}: {self.cause}{times}"


def last_branches(
    again: Callable[[], VirtualMachine], end: VirtualMachine
) -> tuple[Branch, ...] | None:
    """The last branches that `end` took, the latest last; None if the run cannot be repeated.

    `again` makes a machine at an earlier moment of the same run.
    """
    found = None
    for window in _LOOKED_AT:
        found = _within(window, again(), end)
        few = found is not None and sum(branch.count for branch in found) < _FEW
        if not few or end.processor.time <= window:
            break
    return found


def _within(window: int, again: VirtualMachine, end: VirtualMachine) -> tuple[Branch, ...] | None:
    until = end.processor.time
    before = max(until - window - again.processor.time, 0)
    again.step(before)
    found: deque[Branch] = deque(maxlen=_MOST)
    for branch in _to_the_end(again, until):
        latest = found[-1] if found else None
        if latest is not None and latest.is_like(branch):
            found[-1] = replace(latest, count=latest.count + 1)
        else:
            found.append(replace(branch, at_least=latest is None and before > 0))
    same = again.stopped == end.stopped and again.processor.time == until
    return tuple(found) if same else None


def _to_the_end(vm: VirtualMachine, until: int) -> Iterator[Branch]:
    formatter = Formatter(FormatterSyntax.INTEL)
    before = view_of(vm)
    here = _Instruction(before, before.code_address, formatter)
    while vm.stopped is None and vm.processor.time <= until:
        cpu, start = vm.cpu, before.code_address
        if here.at != start:
            here = _Instruction(before, start, formatter)
        sequence = int(vm.processor.head[j.HEAD_SEQUENCE])
        handler = None
        stop = vm.step(1)
        before = after = view_of(vm)
        if vm.cpu is not cpu:
            continue  # another processor's turn
        event = _delivered(vm, sequence)
        if event is not None and stop is None:
            vector, cause = event
            handler = handler_of(after, vector)
            if handler is not None:
                yield Branch(start, handler, cause)
                # An event that comes from outside takes no time, so its handler has begun.
                start = handler
                here = _Instruction(after, handler, formatter)
        target = after.code_address
        # An instruction that stays where it is may be a repeated one, or have died there.
        stays = target == start and (stop is not None or start == handler or not here.branches)
        if not stays and (target != here.behind or here.always):
            yield Branch(start, target, here.mnemonic)


_ALWAYS = (Mnemonic.JMP, Mnemonic.CALL, Mnemonic.RET, Mnemonic.RETF)


class _Instruction:
    """What may be about to branch: its address and mnemonic, where it does not lead if it does.

    Whether it is one that may branch, and one that always does.
    """

    def __init__(self, view: View, at: int, formatter: Formatter) -> None:
        data = next((d for n in (_LONGEST, 8, 4, 2, 1) if (d := view.linear(at, n))), b"")
        found = Decoder(view.bits, data, ip=at).decode() if data else None
        self.at, self.mnemonic, self.behind = at, "unknown", at
        self.branches = self.always = False
        if found is not None and not found.is_invalid:
            self.mnemonic = formatter.format_mnemonic(found, FormatMnemonicOptions.NO_PREFIXES)
            self.behind = at + found.len
            self.always = found.mnemonic in _ALWAYS
            self.branches = self.always or found.flow_control == FlowControl.CONDITIONAL_BRANCH


def _delivered(vm: VirtualMachine, sequence: int) -> tuple[int, str] | None:
    """The latest event since that number of the journal which the guest's handler got."""
    new = int(vm.processor.head[j.HEAD_SEQUENCE]) - sequence
    rows = takewhile(lambda row: row[j.ROW_SEQUENCE] >= sequence, vm.processor.last_events())
    for row in rows if new else ():
        if row[j.ROW_DISPOSITION] == Disposition.DELIVER:
            vector = int(row[j.ROW_VECTOR])
            return vector, event_name(vector, int(row[j.ROW_TYPE]))
    return None
