"""The test bench: a machine at the golden run's beginning, to which it goes back for each run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate import guests
from trapgate.campaign.errors import PlanError
from trapgate.campaign.faults import FAULTS
from trapgate.campaign.plan import BUNDLED, Guest, Plan, Point
from trapgate.campaign.symbols import symbols_of
from trapgate.events.journal import COUNTS, DISPOSITIONS, HEAD_COUNTS, TYPES, VECTORS
from trapgate.sdm import cells as f
from trapgate.sdm.event_words import event_name
from trapgate.trace.symbols import Symbols
from trapgate.vmm.actions import End, Stop
from trapgate.vmm.cpus.cpu import Cpu
from trapgate.vmm.devices.board import Board
from trapgate.vmm.loaders import GuestImage, load_guest, parse_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.moments import AtAddress, AtOutput
from trapgate.vmm.saved_machine import SavedMachine

JOURNAL: Final = 2048
"""Events that a bench's machine remembers: a snapshot has a copy of them."""
_WORTH = 2_000_000
"""Instructions that a snapshot has to spare runs, all together."""
_LONGEST_BEGINNING = 100_000_000_000
_FAULTS = list(FAULTS)
_FIRST_FAULT = min(_FAULTS)


def make_machine(guest: Guest) -> VirtualMachine:
    """The machine of a plan with its guest loaded. Raises what the loaders raise."""
    from trapgate.vmcs.file import read_settings
    from trapgate.vmm.ui.console import input_bytes

    vm = _machine_class(guest)(
        guest.memory, engine=guest.engine, seed=guest.seed, board=_board(guest)
    )
    image = _image(guest)
    if image is None:
        vm.boot()
    else:
        vm.load(image)
    if guest.vmcs is not None:
        vm.apply(read_settings(guest.vmcs))
    if guest.keys:
        vm.type(input_bytes(guest.keys))
    return vm


def _machine_class(guest: Guest) -> Callable[..., VirtualMachine]:
    """What makes a plan's machine: a guest whose edit of its tables is refused is stopped."""
    if guest.paging == "direct":
        if guest.protect == "frames":
            from trapgate.vmm.direct.protected import ProtectedMachine

            return ProtectedMachine
        from trapgate.vmm.direct.machine import DirectMachine

        return partial(DirectMachine, on_refusal="stop")
    return partial(VirtualMachine, journal=JOURNAL)


def _board(guest: Guest) -> Board:
    """What is plugged in. Raises DiskImageError."""
    from trapgate.vmm.devices.storage import open_image
    from trapgate.vmm.firmware.tables import files_beside

    bios = guest.bios
    return Board(
        disks=tuple(open_image(str(one)) for one in guest.disks),
        cds=tuple(open_image(str(one), read_only=True) for one in guest.cds),
        floppies=tuple(open_image(str(one)) for one in guest.floppies),
        firmware=bios is not None,
        bios=not guest.kernel and bios is None,
        files={} if bios is None else files_beside(bios, guest.memory, guest.processors),
        processors=guest.processors,
    )


def _image(guest: Guest) -> GuestImage | None:
    """What is loaded into memory; None if the built-in BIOS loads it from a drive."""
    if guest.kernel == BUNDLED:
        return parse_guest(
            guests.image(),
            file="guest.elf",
            memory=guest.memory,
            append=guest.append,
            processors=guest.processors,
        )
    if guest.bios is not None:
        from trapgate.vmm.loaders.bios import load_bios

        return load_bios(guest.bios)
    if not guest.kernel:
        return None
    return load_guest(
        Path(guest.kernel),
        memory=guest.memory,
        append=guest.append,
        initrd=guest.initrd,
        modules=list(guest.modules),
        processors=guest.processors,
    )


@dataclass(frozen=True)
class Halt:
    """Why a bench stopped running: at the point that was asked for, by itself, or by the budget."""

    end: str
    status: int = 0
    message: str = ""


AT_POINT: Final = Halt("golden end")
OUT_OF_BUDGET: Final = Halt("budget")
_THERE: Final = Stop(End.UNTIL, "the point that was waited for")


class Counts(NamedTuple):
    """How often each event had happened: `Bench.counts` then, and those of faults as bytes."""

    counts: NDArray[np.int64]
    of_faults: bytes


def _stop_there(vm: VirtualMachine) -> None:
    vm.stopped = _THERE


class Bench:
    """A machine at the beginning of the plan's golden run; `saved` is a file with it there, if any.

    Raises PlanError if that is never reached, SnapshotError if the file is none of this machine.
    """

    def __init__(self, plan: Plan, saved: Path | None = None) -> None:
        self.plan = plan
        self.vm = make_machine(plan.guest)
        self.symbols: Symbols | None = symbols_of(plan.guest)
        self.start = 0
        """The virtual time of the beginning, in instructions."""
        self.printed = 0
        if saved is not None:
            SavedMachine(saved).restore(self.vm)
        else:
            self._begin(plan.begin)
        self._wait_for(plan.end)
        self.start = self.vm.processor.time
        self.printed = len(self.vm.output)
        self.snapshot = self._near = self.vm.snapshot()
        self.vm.restore(self.snapshot)
        self._counts = self.vm.processor.head[HEAD_COUNTS : HEAD_COUNTS + COUNTS]

    @property
    def output(self) -> bytes:
        """What was printed since the beginning."""
        return bytes(self.vm.output[self.printed :])

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each event happened: by type, vector and disposition."""
        return self._counts.reshape(TYPES, VECTORS, DISPOSITIONS)

    def approach(self, moment: int, runs: int) -> None:
        """Begin `runs` runs to this moment and later ones there, if that is worth a snapshot."""
        self._near = self.snapshot
        if (moment - self.start) * runs > _WORTH and self.go_to(moment):
            self._near = self.vm.snapshot()

    def go_to(self, moment: int) -> bool:
        """From the beginning to virtual time `moment`; False if the machine stops before."""
        vm = self.vm
        vm.restore(self._near if self._near.time <= moment else self.snapshot)
        left = moment - vm.processor.time
        return left <= 0 or vm.step(left) is None

    def run_to(self, limit: int) -> Halt:
        """Run to the golden run's end, or to virtual time `limit`: the end, if that is a time."""
        at_limit = AT_POINT if self.plan.end.kind == "instructions" else OUT_OF_BUDGET
        return self.run_towards(limit) or at_limit

    def run_towards(self, limit: int) -> Halt | None:
        """Run to the golden run's end, or to virtual time `limit` on the way there, which is None.

        What comes to it for the n-th time is counted from the golden run's beginning.
        """
        stopped = self.vm.step(limit - self.vm.processor.time)
        if stopped is None:
            return None
        if stopped is _THERE:
            return AT_POINT
        return Halt(stopped.end.value, stopped.status, stopped.message)

    def _begin(self, begin: Point) -> None:
        vm = self.vm
        self._wait_for(begin)
        stopped = vm.step(begin.count if begin.kind == "instructions" else _LONGEST_BEGINNING)
        if stopped is _THERE:
            vm.stopped = None
        elif stopped is not None or begin.kind != "instructions":
            why = stopped.message if stopped is not None else "its budget is used up"
            raise PlanError(
                f"the guest never comes to {begin} ({why}); let the golden run begin earlier",
                "golden.begin",
                self.plan.path,
            )

    def _wait_for(self, point: Point) -> None:
        """Let the machine stop at a point, if no count of instructions and no end of its own."""
        if point.kind in {"rip", "symbol"}:
            self.vm.at(AtAddress(self.address_of(point), point.time), _stop_there)
        elif point.kind == "output":
            self.vm.at(AtOutput(point.text, point.time), _stop_there)

    def address_of(self, point: Point) -> int:
        """The linear address of a point. Raises PlanError for a symbol that there is not."""
        if point.kind == "rip":
            return point.count
        if self.symbols is None or point.text not in self.symbols.names:
            from trapgate.errors import suggestion

            names = [] if self.symbols is None else self.symbols.names
            raise PlanError(
                f"no symbol {point.text!r}; "
                + (suggestion(point.text, names) if names else "give guest.symbols"),
                "golden",
                self.plan.path,
            )
        return int(self.symbols.starts[self.symbols.names.index(point.text)])

    def counted(self) -> Counts:
        """The counts of events so far."""
        counts = self.counts
        return Counts(counts.copy(), counts[_FIRST_FAULT:].tobytes())

    def extra_faults(self, golden: Counts) -> tuple[str, ...]:
        """Faults that happened more often than `golden` counts, by name."""
        counts = self.counts
        if counts[_FIRST_FAULT:].tobytes() == golden.of_faults:
            return ()
        more = (counts[_FAULTS] - golden.counts[_FAULTS]).sum(axis=2) > 0
        return tuple(
            event_name(int(vector), _FAULTS[int(kind)]) for kind, vector in np.argwhere(more)
        )

    def registers(self) -> bytes:
        """General registers, RIP and RFLAGS of all processors."""
        return b"".join(map(_registers, self.vm.cpus))


def _registers(cpu: Cpu) -> bytes:
    words = cpu.vmcs.words
    v = (words[f.GUEST_RSP], words[f.GUEST_RIP], words[f.GUEST_RFLAGS])
    cells = cpu.own.registers.cells[:16].copy()
    cells[4] = 0  # RSP's is the VMCS's
    return cells.tobytes() + repr(v).encode()
