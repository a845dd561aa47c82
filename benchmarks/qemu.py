"""The peer QEMU, emulating without hardware help (`-accel tcg`)."""

import functools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.guests import Loop, multiboot_guest
from benchmarks.measure import SkipSide

_PROGRAM = "qemu-system-x86_64"
_PATIENCE = 120.0
_QUIET = ("-accel", "tcg", "-m", "256", "-display", "none", "-monitor", "none", "-no-reboot")

# What isa-debug-exit makes of a 0 written to its port.
_EXITED = 1


@functools.cache
def version() -> str:
    """QEMU's version as it names itself; SkipSide if it is not here."""
    if shutil.which(_PROGRAM) is None:
        raise SkipSide("not installed")
    done = subprocess.run([_PROGRAM, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0].removeprefix("QEMU emulator version ")


def seconds_of(loop: Loop, *, user: bool = False) -> float:
    """Wall seconds from QEMU's start until the loop's guest ends the machine."""
    version()
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "guest.elf")
        image.write_bytes(multiboot_guest(loop, user=user))
        began = time.perf_counter()
        try:
            done = subprocess.run(
                [
                    *(_PROGRAM, *_QUIET, "-serial", "none", "-kernel", str(image)),
                    *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
                ],
                capture_output=True,
                text=True,
                check=False,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise SkipSide(f"no end within {_PATIENCE:.0f} s") from None
        if done.returncode != _EXITED:
            raise SkipSide((done.stderr.splitlines() or ["the guest failed"])[0])
        return time.perf_counter() - began


def seconds_to(text: bytes, kernel: Path, initrd: Path, append: str) -> float:
    """Wall seconds from QEMU's start until the serial console has shown `text`."""
    version()
    began = time.perf_counter()
    with subprocess.Popen(
        [
            *(_PROGRAM, *_QUIET, "-serial", "stdio", "-kernel", str(kernel)),
            *("-initrd", str(initrd), "-append", append),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as machine:
        assert machine.stdout is not None
        seen = b""
        try:
            while text not in seen:
                more = os.read(machine.stdout.fileno(), 4096)
                if not more or time.perf_counter() - began > _PATIENCE:
                    raise SkipSide("the guest did not get there")
                seen = seen[-len(text) :] + more
            return time.perf_counter() - began
        finally:
            machine.kill()
