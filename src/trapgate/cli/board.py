"""The PC of `trapgate run`: its drives and firmware from the options, and what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trapgate.cli.terminal import fail

if TYPE_CHECKING:
    from trapgate.vmm.devices.board import Board


def board(
    disks: list[str],
    cds: list[str],
    floppies: list[str],
    bios: Path | None,
    memory: int,
    *,
    processors: int = 1,
    kernel: bool = False,
    serial: bool = True,
    testdev: bool = False,
) -> Board:
    """The drives of the options, and what firmware is given if `bios` is to start.

    Without a `kernel` and without `bios` our own BIOS boots from the drives. `serial` has the
    firmware use COM1 as its console, beside the screen.
    """
    from trapgate.vmm.devices.board import MOST_DRIVES, MOST_FLOPPIES, Board
    from trapgate.vmm.devices.storage import open_image

    if len(disks) + len(cds) > MOST_DRIVES:
        raise fail(
            f"--disk: {len(disks) + len(cds)} drives; the two channels have room for "
            f"{MOST_DRIVES}, CD drives included"
        )
    if len(floppies) > MOST_FLOPPIES:
        raise fail(f"--floppy: {len(floppies)} drives; there is room for {MOST_FLOPPIES}")
    files: dict[str, bytes] = {}
    if bios is not None:
        from trapgate.vmm.firmware.tables import files_beside

        files = files_beside(bios, memory, processors, serial=serial)
    return Board(
        disks=tuple(open_image(disk) for disk in disks),
        cds=tuple(open_image(disc, read_only=True) for disc in cds),
        floppies=tuple(open_image(floppy) for floppy in floppies),
        firmware=bios is not None,
        bios=not kernel and bios is None,
        files=files,
        processors=processors,
        testdev=testdev,
    )
