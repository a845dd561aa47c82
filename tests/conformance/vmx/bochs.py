"""The harness on Bochs, as an outside opinion: `python -m tests.conformance.vmx.bochs`.

Debian's `bochs` has VMX in some of its processor models. The same scripts run on it and on
our processor; what differs is printed, with what Bochs is known to do otherwise.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conformance.vmx import harness as h

PROGRAM = "bochs"
REVISION = 0x2B
"""Bochs' VMCS revision identifier."""
PATIENCE = 100.0
_FLOPPY = 1440 << 10
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
com1: enabled=1, mode=file, dev={folder}/com1
display_library: term
clock: sync=none
log: {folder}/log
panic: action=fatal
"""


def installed() -> bool:
    """Whether Bochs and its ROMs are there."""
    return shutil.which(PROGRAM) is not None and all(rom.is_file() for rom in _ROMS)


def run(script: h.Script) -> h.Results:
    """Run a script on Bochs."""
    image = script.image(serial=True)
    sectors = (len(image) + 511) // 512
    if sectors > 1024:
        raise ValueError(f"the image has {len(image)} bytes; a boot takes {1024 * 512}")
    boot = bytearray(Path(__file__).with_name("boot.bin").read_bytes())
    boot[4:6] = sectors.to_bytes(2, "little")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "floppy").write_bytes((bytes(boot) + image).ljust(_FLOPPY, b"\0"))
        (folder / "pc").write_text(_PC.format(folder=folder, roms=_ROMS))
        (folder / "go").write_text("c\n")
        subprocess.run(
            [PROGRAM, "-q", "-f", f"{folder}/pc", "-rc", f"{folder}/go"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "TERM": "vt100"},
            check=False,
            timeout=PATIENCE,
        )
        log = (folder / "log").read_text(errors="replace")
        if "shutdown requested" not in log:
            raise RuntimeError("Bochs did not get to the end: " + log[-2000:])
        return h.Results((folder / "com1").read_bytes())


def compare_instructions(bits: int) -> list[str]:
    """Rows of `test_failure_modes` of which Bochs thinks otherwise."""
    from tests.conformance.vmx import test_failure_modes as modes

    script, places = modes.build(bits, REVISION)
    results = run(script)
    found = []
    for row, place, error in places:
        ran = results.ran(place)
        said: str | int = ran.verdict
        if ran.verdict == "fail" and error is not None:
            said = results[error]
        if said != row.answer:
            found.append(f"{bits}: {row.name} ({row.state}): {said}, expected {row.answer}")
    return found


if __name__ == "__main__":
    for width in (64, 32):
        print("\n".join(compare_instructions(width)) or f"{width}: no differences")
    sys.exit(0)
