"""The bundled images: a small 32-bit kernel that causes many page faults, and a VMM for it.

Their source is in `guests/` of the repository, `guests/README.md` describes them, and a test
rebuilds them and compares the bytes. The kernel is a multiboot 1 ELF, loaded at 1 MiB; it needs
8 MiB of memory, a 16550 at 3F8H, and, unless its command line has `timer=off`, PICs and a PIT.

The VMM is x86 code too, and needs a processor with VMX: a multiboot 1 ELF that runs a 32-bit
multiboot kernel, its module, on shadow page tables, and prints counts at the end.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "EXIT_PORT",
    "HYPERVISOR_PATH",
    "IMAGE_PATH",
    "MAP_PATH",
    "POLICIES",
    "WORKLOADS",
    "HypervisorOutput",
    "Policy",
    "Workload",
    "command_line",
    "hypervisor",
    "hypervisor_output",
    "image",
]

IMAGE_PATH: Final = Path(__file__).with_name("guest.elf")
"""Where the guest's built image is."""

MAP_PATH: Final = Path(__file__).with_name("guest.map")
"""Where its functions are, as a System.map: the kernel's, and those of the user program."""

HYPERVISOR_PATH: Final = Path(__file__).with_name("hypervisor.elf")
"""Where the VMM's is."""

EXIT_PORT: Final = 0xF4
"""I/O port to which the guest writes one byte to leave: 0 success, 1 a workload failed or
the command line was wrong, 2 panic."""

SCALE_LIMIT: Final = 10_000


class Workload(NamedTuple):
    """One of the guest's workloads: its name on the command line, and what it does."""

    name: str
    summary: str


WORKLOADS: Final = (
    Workload("demand", "demand paging: fault in, use and unmap 4 MiB, again and again"),
    Workload("fork", "copy-on-write fork: two children at a time write to shared pages"),
    Workload("storm", "map and unmap small regions all over 256 MiB"),
    Workload("protect", "a garbage collector's write barrier: protect all, unprotect on fault"),
    Workload("aging", "a clock that clears accessed and dirty bits behind a working set"),
    Workload("swap", "swap-out by age to a disk in memory, swap-in on fault"),
    Workload("faults", "each exception from ring 3 and ring 0, checked by its handler"),
)
"""The workloads in the order in which the guest runs them, whatever the order asked for."""


class Policy(NamedTuple):
    """What exits to the VMM: the name for `policy=` on its command line, and the meaning."""

    name: str
    meaning: str


POLICIES: Final = (
    Policy("all", "every exception exits"),
    Policy("pf", "every page fault exits"),
    Policy("match", "only those with P = 1 exit"),
)
"""The VMM's policies, from most to fewest exits."""

_OWN_LINE: Final = re.compile(rb"^hypervisor: (.*)\n", re.MULTILINE)
_COUNT: Final = re.compile(r"(\d+) (\D.*)")


class HypervisorOutput(NamedTuple):
    """A serial port's output, taken apart: the guest's own, and the VMM's lines and counts."""

    guest: bytes
    lines: tuple[str, ...]
    counts: Mapping[str, int]


def hypervisor() -> bytes:
    """The VMM's image: a multiboot 1 ELF, 32-bit, linked and loaded at 1 MiB."""
    return HYPERVISOR_PATH.read_bytes()


def hypervisor_output(output: bytes) -> HypervisorOutput:
    """Tell the lines of the VMM, which begin with `hypervisor: `, from those of its guest."""
    lines = tuple(line.decode("ascii", "replace") for line in _OWN_LINE.findall(output))
    counts = (_COUNT.fullmatch(line) for line in lines)
    return HypervisorOutput(
        _OWN_LINE.sub(b"", output),
        lines,
        {count[2]: int(count[1]) for count in counts if count},
    )


def image() -> bytes:
    """The guest's image: a multiboot 1 ELF, 32-bit, linked and loaded at 1 MiB."""
    return IMAGE_PATH.read_bytes()


def command_line(*workloads: str, scale: int = 1, timer: bool = True) -> str:
    """The kernel command line that runs these workloads, all of them if none is named.

    `scale` multiplies the rounds of each workload. Without `timer` the guest leaves the
    PIT alone and masks all interrupts; what it prints of its workloads stays the same.

    Raises:
        ValueError: a name that is not a workload, or a scale outside 1 to 10,000.
    """
    names = [workload.name for workload in WORKLOADS]
    for name in workloads:
        if name not in names:
            raise ValueError(f"unknown workload {name!r}: choose from {', '.join(names)}")
    if not 1 <= scale <= SCALE_LIMIT:
        raise ValueError(f"scale {scale} is out of range: choose from 1 to {SCALE_LIMIT}")
    words = [f"workload={','.join(workloads or ['all'])}", f"scale={scale}"]
    return " ".join(words if timer else [*words, "timer=off"])
