"""The peer Bochs: the same loops from a floppy disk, and a small VMM of our own for VMCALL.

Bochs has VMX, so there the round trip goes from the guest to an x86 VMM and back. Debian's
Bochs has the debugger built in, which slows it down.
"""

import os
import shutil
import struct
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.guests import DIRECTORY, LOAD, STACK, TABLES, Loop, multiboot_guest
from benchmarks.measure import SkipSide

_PROGRAM = "bochs"
_PATIENCE = 120.0
_FLOPPY = 1440 << 10
_SEGMENT = 0x3000
_ROMS = tuple(
    Path("/usr/share/bochs", name) for name in ("BIOS-bochs-latest", "VGABIOS-lgpl-latest")
)

# Reads 24 sectors behind itself to 10000H, goes to flat protected mode, moves them to LOAD
# and jumps to the entry point, whose place these bytes are:
_ENTRY = b"\x44\x33\x22\x11"
_BOOT = bytes.fromhex(
    "fa31c08ed88ed0bc007cbe0100bb00108ec389f0b112f6f188e14188c680e601"
    "d0e888c5b2005331dbb80102cd135b72df83c3204683fe1975d6fae4920c02e6"
    "92660f0116947c0f20c00c010f22c066ea577c0000080066b810008ed88ec08e"
    "d0be00000100bf00001000b9000c0000fcf3a5b844332211ffe0669000000000"
    "00000000ffff0000009bcf00ffff00000093cf0017007c7c0000"
)

# LTR, CR0.NE, CR4.VMXE, IA32_FEATURE_CONTROL, VMXON, VMCLEAR, VMPTRLD, a VMWRITE for each
# pair of the list whose address is to be put at _LIST, VMLAUNCH. At _ON_EXIT: if the
# reason is 18 (VMCALL), add the instruction's length to GUEST_RIP and VMRESUME.
_VMM = bytes.fromhex(
    "66b828000f00d8b8310001800f22c0b8102000000f22e0b93a0000000f32a801"
    "750583c8050f30b9800400000f32a300001900a3001019006a006800001900f3"
    "0fc73424c7042400101900660fc734240fc73424be44332211ad85c0780889c2"
    "ad0f79d0ebf30f01c2eb25b8024400000f78c283fa127518b80c4400000f78c3"
    "b81e6800000f78c201da0f79c20f01c3f4ebfd"
)
_LIST = 0x55
_ON_EXIT = 0x6B

_PC = """\
megs: 32
romimage: file={roms[0]}
vgaromimage: file={roms[1]}
cpu: model=corei7_sandy_bridge_2600k, count=1, ips=50000000
floppya: 1_44={folder}/floppy, status=inserted
boot: floppy
display_library: term
clock: sync=none
log: {folder}/log
panic: action=fatal
"""


def _shut_down() -> bytes:
    # mov dx, 8900H; mov al, letter; out dx, al; ...: the BIOS' way to end Bochs. cli; hlt
    letters = b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in b"Shutdown")
    return b"\x66\xba\x00\x89" + letters + b"\xfa\xf4"


def _fields(guest: int, host: int) -> bytes:
    """Encodings and values of a VMCS for a guest that shares everything with its VMM."""
    fields = {
        0x4000: 0x16,
        0x4002: 0x0401E172,
        0x400C: 0x36DFF,
        0x4012: 0x11FF,
        **dict.fromkeys((0x4004, 0x4006, 0x4008, 0x400A, 0x400E, 0x4010, 0x4014, 0x4016), 0),
        0x2800: 0xFFFFFFFF,
        0x2801: 0xFFFFFFFF,
        0x2802: 0,
        0x2803: 0,
        # The guest's and the host's selectors, then the guest's limits and access rights.
        **dict(zip(range(0x800, 0x810, 2), (16, 8, 16, 16, 0, 0, 0, 40), strict=True)),
        **dict(zip(range(0xC00, 0xC0E, 2), (16, 8, 16, 16, 0, 0, 40), strict=True)),
        **dict.fromkeys(range(0x4800, 0x480E, 2), 0xFFFFFFFF),
        0x480E: 103,
        0x4810: 47,
        0x4812: 119,
        0x4814: 0xC093,
        0x4816: 0xC09B,
        0x4818: 0xC093,
        0x481A: 0xC093,
        0x481C: 0x10000,
        0x481E: 0x10000,
        0x4820: 0x10000,
        0x4822: 0x8B,
        **dict.fromkeys((0x4824, 0x4826, 0x482A, 0x4C00), 0),
        **dict.fromkeys(range(0x6000, 0x6008, 2), 0),
        **dict.fromkeys((*range(0x6806, 0x6816, 2), 0x6822, 0x6824, 0x6826), 0),
        **dict.fromkeys((0x6C06, 0x6C08, 0x6C10, 0x6C12), 0),
        **dict.fromkeys((0x6800, 0x6C00), 0x80010031),
        **dict.fromkeys((0x6802, 0x6C02), DIRECTORY),
        **dict.fromkeys((0x6804, 0x6C04), 0x2010),
        **dict.fromkeys((0x6814, 0x6C0A), TABLES + 0x200),
        **dict.fromkeys((0x6816, 0x6C0C), TABLES + 16),
        **dict.fromkeys((0x6818, 0x6C0E), TABLES + 64),
        0x681A: 0x400,
        0x681C: STACK,
        0x681E: guest,
        0x6820: 2,
        0x6C14: STACK - 0x1000,
        0x6C16: host,
    }
    pairs = b"".join(struct.pack("<II", *pair) for pair in fields.items())
    return pairs + b"\xff\xff\xff\xff"


def _under_vmm(loop: Loop, here: int) -> Loop:
    """Code at `here` that makes itself a VMM and runs `loop` as its guest."""
    listed = len(_fields(0, 0))
    fields = _fields(here + len(_VMM) + listed, here + _ON_EXIT)
    at = struct.pack("<I", here + len(_VMM))
    vmm = _VMM[:_LIST] + at + _VMM[_LIST + 4 :]
    return Loop(vmm + fields + loop.code, loop.instructions)


def floppy(loop: Loop, *, user: bool, vmm: bool) -> bytes:
    """A disk that boots, runs the loop and shuts Bochs down."""
    if vmm:
        empty = multiboot_guest(Loop(b"", 0), user=user)
        behind = empty.index(bytes.fromhex("31c0e6f4")) - (len(empty) - _SEGMENT)
        loop = _under_vmm(loop, LOAD + behind)
    image = multiboot_guest(Loop(loop.code + _shut_down(), 0), user=user)
    entry = image[24:28]
    return (_BOOT.replace(_ENTRY, entry).ljust(510, b"\0") + b"\x55\xaa" + image[-_SEGMENT:]).ljust(
        _FLOPPY, b"\0"
    )


def seconds_of(loop: Loop, *, user: bool = False, vmm: bool = False) -> float:
    """Wall seconds from Bochs' start until the loop's guest shuts it down."""
    if shutil.which(_PROGRAM) is None or not all(rom.is_file() for rom in _ROMS):
        raise SkipSide("not installed")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "floppy").write_bytes(floppy(loop, user=user, vmm=vmm))
        Path(folder, "pc").write_text(_PC.format(folder=folder, roms=_ROMS))
        Path(folder, "go").write_text("c\n")
        arguments = ["-q", "-f", f"{folder}/pc", "-rc", f"{folder}/go"]
        began = time.perf_counter()
        try:
            subprocess.run(
                [_PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env={**os.environ, "TERM": "vt100"},
                check=False,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise SkipSide(f"no end within {_PATIENCE:.0f} s") from None
        seconds = time.perf_counter() - began
        log = Path(folder, "log")
        if not log.is_file() or "shutdown requested" not in log.read_text(errors="replace"):
            raise SkipSide("the guest did not get to its end")
        return seconds
