"""The options --save and --load: machines that continue in another process."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trapgate.cli.board import board
from trapgate.cli.terminal import fail

if TYPE_CHECKING:
    from trapgate.vmm.actions import Stop
    from trapgate.vmm.devices.board import Board
    from trapgate.vmm.machine import VirtualMachine
    from trapgate.vmm.moments import Moment
    from trapgate.vmm.saved_machine import SavedMachine

_LATER = 1_000
"""Instructions until the next attempt, where a machine cannot be saved just now."""


class Saving:
    """What --save FILE[@WHEN] asks for."""

    def __init__(self, text: str, find: Callable[[str], int]) -> None:
        from trapgate.vmm.moments import MomentError, parse_moment

        name, _, when = text.partition("@")
        if not name:
            raise fail("--save: no file; write FILE or FILE@WHEN")
        self.path = Path(name)
        if not self.path.parent.is_dir():
            raise fail(f"--save: {self.path.parent} is not a directory; create it first")
        if self.path.is_dir():
            raise fail(f"--save: {self.path} is a directory; name a file in it")
        try:
            self._when: Moment | None = parse_moment(when, find) if when else None
        except MomentError as error:
            raise fail(f"--save: {error}") from None
        self._done = False

    def plan(self, vm: VirtualMachine) -> None:
        """Plan the saving of a machine at the moment, if one was given."""
        if not vm.can_be_restored or len(vm.cpus) > 1:
            what = "several processors" if len(vm.cpus) > 1 else "direct paging"
            raise fail(f"--save: a machine with {what} cannot be saved; leave out one of the two")
        if self._when is not None:
            vm.at(self._when, self._save)

    def _save(self, vm: VirtualMachine) -> None:
        from trapgate.vmm.snapshots.state_values import BusyError

        try:
            vm.save(self.path)
        except BusyError:
            vm.at(vm.processor.time + _LATER, self._save)
            return
        self._done = True
        print(f"trapgate: saved {self.path} at {vm.processor.time:,} instructions", file=sys.stderr)

    def end(self, vm: VirtualMachine, stop: Stop) -> bool:
        """The run has ended; whether the machine has been saved, then or before."""
        if self._when is None and stop.can_continue:
            self._save(vm)
        if not self._done:
            why = "the moment never came" if self._when is not None else stop.message
            print(f"trapgate: --save: not saved: {why}", file=sys.stderr)
        return self._done


def open_saved(path: Path, engine: str, others: Mapping[str, bool]) -> SavedMachine:
    """The snapshot in a file; ends the command if `others`, by name, were given and cannot be.

    Raises SnapshotError.
    """
    from trapgate.vmm.saved_machine import SavedMachine

    for option, given in others.items():
        if given:
            raise fail(
                f"{option}: the machine that --load continues has started already; leave it out"
            )
    saved = SavedMachine(path)
    if engine not in ("auto", saved.engine):
        raise fail(f"--engine: {path} was made on the {saved.engine} engine; leave it out")
    return saved


def plugged_in(saved: SavedMachine, disks: list[str], cds: list[str], floppies: list[str]) -> Board:
    """The board for a machine that was saved."""
    real, own = saved.firmware
    given = board(disks, cds, floppies, None, saved.memory, kernel=not own)
    return replace(given, firmware=real, testdev=saved.testdev)
