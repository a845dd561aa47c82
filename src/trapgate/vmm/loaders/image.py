"""What a loader makes of a guest file: bytes in memory and a processor state."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from trapgate.errors import TrapgateError

PAGE = 4096
MEGABYTE = 1 << 20

COMMAND_LINE_LIMIT = 4095
"""Longest command line, in bytes, for guests whose format names no limit of its own."""


class GuestImageError(TrapgateError):
    """A guest file cannot be booted: it is damaged, no guest, or does not fit the machine.

    `file`, `field` and `problem` say where and what; `problem` ends with what to do.
    """

    def __init__(self, file: str, field: str, problem: str) -> None:
        """Name the `file`, the `field` of it or option, and the `problem` with its remedy."""
        self.file = file
        self.field = field
        self.problem = problem
        super().__init__(file, field, problem)

    def __str__(self) -> str:
        """File, field and problem on one line of printable characters."""
        line = f"{self.file}: {self.field}: {self.problem}"
        return "".join(c if c.isprintable() else "?" for c in line)


class GuestKind(Enum):
    """What a guest file turned out to be."""

    LINUX = "Linux bzImage"
    ELF = "ELF"
    MULTIBOOT = "multiboot"
    FLAT = "flat binary"
    BOOT_SECTOR = "boot sector"
    FIRMWARE = "firmware"


class Segment(NamedTuple):
    """`data` to be written to guest-physical `address`."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class GuestImage:
    """A guest ready to be entered.

    `segments` go into zeroed memory in their order and do not overlap. `fields` are the
    guest-state fields of the VMCS (SDM, "Guest-State Area") by name; `registers` the
    general registers by name. `bits` is the width of the code at the entry point: 16,
    32 or 64; VM entry to 64-bit code needs the control "IA-32e mode guest".
    """

    kind: GuestKind
    bits: int
    segments: tuple[Segment, ...]
    fields: Mapping[str, int]
    registers: Mapping[str, int]
    description: str

    @property
    def long_mode(self) -> bool:
        """Must the VM entry control "IA-32e mode guest" be set?"""
        return self.bits == 64

    @property
    def entry(self) -> int:
        """Linear address of the first instruction."""
        return self.fields["GUEST_CS_BASE"] + self.fields["GUEST_RIP"]


def guest_image(
    kind: GuestKind,
    bits: int,
    segments: Iterable[Segment],
    fields: dict[str, int],
    registers: dict[str, int],
    description: str,
) -> GuestImage:
    """A `GuestImage` whose mappings can't be changed; empty segments are left out."""
    return GuestImage(
        kind,
        bits,
        tuple(segment for segment in segments if segment.data),
        MappingProxyType(fields),
        MappingProxyType(registers),
        description,
    )


def mebibytes(count: int) -> str:
    """`count` bytes as --memory takes it, rounded up to whole mebibytes."""
    return f"{-(-count // MEGABYTE)}M"


def printable(name: str) -> str:
    """A file name fit for one line of output."""
    return "".join(c if c.isprintable() else "?" for c in name)
