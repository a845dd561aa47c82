"""The peer Bochs: the same loops, and multiboot kernels, from a floppy disk.

Bochs has VMX, so there a round trip goes from the guest to an x86 VMM and back. Debian's
Bochs has the debugger built in, which slows it down.
"""

import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.floppy import disk
from benchmarks.guests import Loop, multiboot_guest
from benchmarks.measure import SkipSide

_PROGRAM = "bochs"
_PATIENCE = 120.0
MEMORY = 32 << 20
"""RAM of its machine, in bytes."""
_SEGMENT = 0x3000
_ROMS = tuple(
    Path("/usr/share/bochs", name) for name in ("BIOS-bochs-latest", "VGABIOS-lgpl-latest")
)

_PC = """\
megs: 32
romimage: file={roms[0]}
vgaromimage: file={roms[1]}
cpu: model=corei7_sandy_bridge_2600k, count=1, ips=50000000
floppya: 1_44={folder}/floppy, status=inserted
boot: floppy
display_library: term
# The speaker opens a sound device otherwise, and where there is none Bochs ends.
sound: driver=dummy
com1: enabled=1, mode=file, dev={folder}/serial
clock: sync=none
log: {folder}/log
panic: action=fatal
"""


def _shut_down() -> bytes:
    # mov dx, 8900H; mov al, letter; out dx, al; ...: the BIOS' way to end Bochs. cli; hlt
    letters = b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in b"Shutdown")
    return b"\x66\xba\x00\x89" + letters + b"\xfa\xf4"


def loop_disk(loop: Loop, *, user: bool = False) -> bytes:
    """A disk that boots, runs the loop and shuts Bochs down."""
    image = multiboot_guest(Loop(loop.code + _shut_down(), 0), user=user)
    (entry,) = struct.unpack_from("<I", image, 24)
    return disk(image[-_SEGMENT:], entry)


def installed() -> bool:
    """Whether Bochs and its ROMs are there."""
    return shutil.which(_PROGRAM) is not None and all(rom.is_file() for rom in _ROMS)


def run(contents: bytes, *, patience: float = _PATIENCE) -> tuple[float, bytes]:
    """Boot a floppy disk: wall seconds until its guest shuts Bochs down, and what it sent to COM1.

    Raises: SkipSide if Bochs or what it needs is not here, or the guest did not end, in
    `patience` seconds.
    """
    if not installed():
        raise SkipSide("not installed")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "floppy").write_bytes(contents)
        Path(folder, "pc").write_text(_PC.format(folder=folder, roms=_ROMS))
        Path(folder, "go").write_text("c\n")
        arguments = ["-q", "-f", f"{folder}/pc", "-rc", f"{folder}/go"]
        began = time.perf_counter()
        try:
            done = subprocess.run(
                [_PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**os.environ, "TERM": "vt100"},
                check=False,
                timeout=patience,
            )
        except subprocess.TimeoutExpired:
            raise SkipSide(f"no end within {patience:.0f} s") from None
        seconds = time.perf_counter() - began
        log, serial = Path(folder, "log"), Path(folder, "serial")
        told = log.read_text(errors="replace") if log.is_file() else ""
        if "shutdown requested" not in told:
            last = _last_words(done.stderr.decode(errors="replace"))
            raise SkipSide(last) from RuntimeError(told[-2000:])
        return seconds, serial.read_bytes() if serial.is_file() else b""


def _last_words(errors: str) -> str:
    """Why Bochs ended, by what it says when it gives up."""
    _, found, rest = errors.partition("Bochs is exiting with the following message:\n")
    return rest.splitlines()[0] if found and rest else "the guest did not get to its end"


def seconds_of(loop: Loop, *, user: bool = False) -> float:
    """Wall seconds from Bochs' start until the loop's guest shuts it down."""
    return run(loop_disk(loop, user=user))[0]
