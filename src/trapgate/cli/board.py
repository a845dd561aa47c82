"""What `trapgate run` plugs into the PC: drives and firmware, from its options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trapgate.cli.terminal import fail

if TYPE_CHECKING:
    from trapgate.vmm.devices.board import Board

_FIRMWARE = (
    Path("/usr/share/seabios/bios-256k.bin"),
    Path("/usr/share/seabios/bios.bin"),
    Path("/usr/share/qemu/bios-256k.bin"),
)
"""Where Debian's packages put SeaBIOS."""
_VGA_FIRMWARE = "vgabios-isavga.bin"
_SERIAL_CONSOLE = 0x3F8
_MOST_DRIVES = 4


def firmware(bios: Path | None) -> Path:
    """The firmware to start: what is given, or SeaBIOS where a package has put it."""
    if bios is not None:
        return bios
    for path in _FIRMWARE:
        if path.is_file():
            return path
    raise fail(
        "--disk: booting from a disk wants a PC's firmware; install SeaBIOS (Debian's package "
        "seabios) or give --bios FILE"
    )


def board(
    disks: list[str], cds: list[str], bios: Path | None, memory: int, *, serial: bool
) -> Board:
    """The drives of the options, and what firmware is given if `bios` is to start.

    `serial` has the firmware use COM1 as its console, beside the screen.
    """
    from trapgate.vmm.devices.board import Board
    from trapgate.vmm.devices.storage import open_image

    if len(disks) + len(cds) > _MOST_DRIVES:
        raise fail(
            f"--disk: {len(disks) + len(cds)} drives; the two channels have room for "
            f"{_MOST_DRIVES}, CD drives included"
        )
    files: dict[str, bytes] = {}
    if bios is not None:
        from trapgate.vmm.firmware import tables

        files = tables.files(memory)
        if serial:
            files["etc/sercon-port"] = _SERIAL_CONSOLE.to_bytes(8, "little")
        screen = bios.parent / _VGA_FIRMWARE
        if screen.is_file():
            files["vgaroms/vgabios.bin"] = screen.read_bytes()
    return Board(
        disks=tuple(open_image(disk) for disk in disks),
        cds=tuple(open_image(disc, read_only=True) for disc in cds),
        firmware=bios is not None,
        files=files,
    )
