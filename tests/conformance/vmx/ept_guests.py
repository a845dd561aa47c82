"""Guests under EPT: the paging structures that a VMM would build for them, and their cases.

Linear addresses are guest-physical ones, and those are physical ones but where a case says
otherwise. Expectations are written from the SDM's text ("EPT Violations", "EPT
Misconfigurations", "Exit Qualification for EPT Violations"); nothing here imports the code
under test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from struct import pack

from tests.conformance import tiny_guest as tiny
from tests.conformance.tiny_guest import Tiny

VMCALL, VIOLATION, MISCONFIGURATION = 18, 48, 49
PML4, PDPT, PD, PT = 0x38000, 0x39000, 0x3A000, 0x3B000
PDPT_2, PD_2, PT_2 = 0x3C000, 0x3D000, 0x3E000
"""Those of the guest-physical addresses in FAR."""
POINTER = PML4 | 0x1E
"""Write-back, four levels."""
FLAGS = 1 << 6
"""Of an EPT pointer: accessed and dirty flags."""
UNRESTRICTED = 1 << 7
MODE_BASED = 1 << 22
USER = 1 << 10
"""With mode-based execute control the right to fetch from linear addresses of user mode."""
READ, WRITE, EXECUTE = 1, 2, 4
WB = 6 << 3
PAGE = 7 | WB
LARGE = 1 << 7
TARGET = 0x12000
"""The physical page behind the guest-physical pages of FAR."""
FAR = {12: 0x14000, 21: 0x400000, 30: 0x4000_0000, 39: 0x80_0000_0000}
"""By the lowest address bit that selects an entry: a page whose translation is not shared from
that level on."""
LINEAR = 0x15000
"""Where a guest's tables map it."""
LINEAR_VALID, TRANSLATED = 1 << 7, 1 << 8


@dataclass(frozen=True)
class Entries:
    """Changes to identity-mapping structures: guest-physical page to entry of the last level."""

    pages: Mapping[int, int] = field(default_factory=dict)
    others: Mapping[int, int] = field(default_factory=dict)
    """Physical address to 64 bits."""

    def memory(self) -> dict[int, bytes]:
        """The structures, by physical address."""
        last = [self.pages.get(page, page | PAGE) for page in range(0, 512 << 12, 4096)]
        memory = {
            PML4: pack("<Q", PDPT | 7),
            PDPT: pack("<Q", PD | 7),
            PD: pack("<Q", PT | 7),
            PT: b"".join(pack("<Q", entry) for entry in last),
        }
        return memory | {at: pack("<Q", entry) for at, entry in self.others.items()}


def chain(shift: int, rights: int) -> Entries:
    """Entries for FAR[shift] to TARGET, that of this level with `rights`, the others with all."""
    far = FAR[shift]
    if shift == 12:
        return Entries({far: TARGET | WB | rights})
    places = {
        39: {PML4 + 8 * (far >> 39): PDPT_2, PDPT_2: PD_2, PD_2: PT_2, PT_2: TARGET},
        30: {PDPT + 8 * (far >> 30): PD_2, PD_2: PT_2, PT_2: TARGET},
        21: {PD + 8 * (far >> 21): PT_2, PT_2: TARGET},
    }[shift]
    first = next(iter(places))
    return Entries(
        others={
            at: to | (rights if at == first else 7) | (WB if at == PT_2 else 0)
            for at, to in places.items()
        }
    )


def entry_size(mode: str) -> int:
    """Bytes of an entry of the guest's own tables."""
    return 4 if mode == "p32" else 8


def mapping(mode: str, linear: int, entry: int) -> dict[int, bytes]:
    """A change to the guest's page table: the entry of `linear`."""
    size = entry_size(mode)
    at = tiny.TABLES + 0x3000 + (linear >> 12) * size
    return {at: entry.to_bytes(size, "little")}


def marked(mode: str) -> dict[int, bytes]:
    """The guest's tables with all accessed and dirty flags set: walks need not write."""
    parts = dict(Tiny(mode).tables())
    size = entry_size(mode)
    found = {}
    for at, data in parts.items():
        if not tiny.TABLES <= at < tiny.HANDLERS or (mode == "pae" and at == tiny.TABLES):
            continue
        flags = 0x60 if at >= tiny.TABLES + 0x3000 else 0x20
        entries = (int.from_bytes(data[n : n + size], "little") for n in range(0, len(data), size))
        found[at] = b"".join((e | flags * (e & 1)).to_bytes(size, "little") for e in entries)
    return found


def tables_of(mode: str) -> list[int]:
    """The pages of the guest's tables that a walk reads, from the top."""
    top = {"p32": (0, 0x3000), "pae": (0x2000, 0x3000), "l64": (0, 0x1000, 0x2000, 0x3000)}
    return [tiny.TABLES + offset for offset in top[mode]]


def entry_of(mode: str, table: int, linear: int) -> int:
    """The guest-physical address of the entry in `table` that a walk for `linear` reads."""
    size = entry_size(mode)
    bits = 10 if size == 4 else 9
    level = (tiny.TABLES + 0x3000 - table) // 0x1000
    if mode == "p32":
        level = min(level, 1)
    return table + (linear >> 12 + bits * level & (1 << bits) - 1) * size


def instruction(access: str, linear: int, long: bool) -> bytes:
    """Code that makes one access to `linear`."""
    address = pack("<Q" if long else "<I", linear)
    if access == "read":
        return b"\xa1" + address
    if access == "write":
        return b"\xa3" + address
    load = (b"\x48\xb8" if long else b"\xb8") + address
    return load + (b"\x80\x00\x01" if access == "read-modify-write" else b"\xff\xe0")


ACCESSES = {"read": READ, "write": WRITE, "read-modify-write": WRITE, "fetch": EXECUTE}


def mode_based(shift: int, rights: int) -> dict[int, bytes]:
    """The memory of `chain`, with everything but its entry executable for user mode too."""
    far = FAR[shift]
    special = {12: PT, 21: PD}[shift] + 8 * (far >> shift)
    memory = {}
    for at, data in chain(shift, rights).memory().items():
        entries = [int.from_bytes(data[n : n + 8], "little") for n in range(0, len(data), 8)]
        memory[at] = b"".join(
            pack("<Q", entry | USER * (entry & 7 != 0 and at + 8 * n != special))
            for n, entry in enumerate(entries)
        )
    return memory


def mode_based_outcome(
    access: int, rights: int, address: int, *, user: bool
) -> tuple[int, int, int, int]:
    """`outcome` with mode-based execute control, at LINEAR, a user-mode address or not."""
    if rights & (READ | WRITE) == WRITE:
        return MISCONFIGURATION, 0, address, 0
    needed = USER if access == EXECUTE and user else access
    if rights & needed:
        return VMCALL, 0, 0, 0
    told = LINEAR_VALID | TRANSLATED | (rights & 7) << 3 | (rights & USER != 0) << 6 | access
    return VIOLATION, told, address, LINEAR


def outcome(wanted: int, rights: int, address: int, linear: int) -> tuple[int, int, int, int]:
    """(reason, qualification, guest-physical, guest-linear address) of an access that is last."""
    if rights & (READ | WRITE) == WRITE:
        return MISCONFIGURATION, 0, address, 0
    if rights & wanted == wanted:
        return VMCALL, 0, 0, 0
    return VIOLATION, LINEAR_VALID | TRANSLATED | rights << 3 | wanted, address, linear
