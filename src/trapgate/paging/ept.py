"""From guest-physical to physical addresses: the walk of the EPT paging structures.

SDM, chapter "VMX Support for Address Translation", section "The Extended Page Table Mechanism
(EPT)". An access that the structures do not allow, or cannot describe, is a fault like a page
fault, and travels as one: as an error code, but one above all page faults'. `delivery` makes
the VM exit of it. In one integer it holds the kind (bits 61:60), the guest-physical address
(bits 55:16) and the exit qualification (bits 15:0).

With page-modification logging the first write to a page that is not dirty yet is noted in the log
(SDM, "Page-Modification Logging"). A full log is a fault of a third kind, before anything changed.

The rights in an entry, those of an access and those that a qualification reports all have the
same bits: 0 read, 1 write, 2 execute. With mode-based execute control bit 2 is about linear
addresses of supervisor mode, and bit 10 of an entry about those of user mode.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.paging.memory import MAXPHYADDR, load64, store64
from trapgate.sdm.cells import EPT_POINTER_IN_FORCE, PML_ADDRESS_IN_FORCE, PML_INDEX
from trapgate.sdm.reasons import (
    REASON_EPT_MISCONFIGURATION,
    REASON_EPT_VIOLATION,
    REASON_PAGE_MODIFICATION_LOG_FULL,
)

EPT_VIOLATION = 1 << 60
EPT_MISCONFIGURATION = 1 << 61
LOG_FULL = EPT_VIOLATION | EPT_MISCONFIGURATION
"""The page-modification log has no room: no address, and no qualification."""

LOG_ENTRIES = 512
"""Of a page-modification log, 64 bits each, filled from the last one down."""

RIGHT_READ = 1
RIGHT_WRITE = 2
RIGHT_EXECUTE = 4
RIGHT_EXECUTE_USER = 1 << 10

EPTP_ACCESSED_DIRTY = 1 << 6
"""Of an EPT pointer: accessed and dirty flags are kept."""

MODE_BASED_EXECUTE = 1 << 56
"""Of the EPT pointer in force, not of the field: "mode-based execute control for EPT"."""

LINEAR_VALID = 1 << 7
"""Of a qualification: the access comes from that to a linear address."""
TRANSLATED = 1 << 8
"""Of a qualification: to what that address translates to, not to a paging-structure entry."""
UNBLOCKED_BY_IRET = 1 << 12
"""Of a qualification: NMI unblocking due to IRET."""

_A = 1 << 8
_D = 1 << 9
_PS = 1 << 7
_FRAME = (1 << MAXPHYADDR) - 0x1000
_ABOVE = (1 << 52) - (1 << MAXPHYADDR)
_RESERVED_TYPES = 1 << 2 | 1 << 3 | 1 << 7
"""Memory types (bits 5:3 of an entry that maps a page) that are none."""


@core
def through_ept(
    v: Cells, mem: Memory, address: int, wanted: int, told: int
) -> tuple[int, int, int, int]:
    """Translate the guest-physical `address` for an access that needs the rights `wanted`.

    The EPT pointer is the one in force in VMCS `v`, `told` what else the qualification of a
    violation says. Returns (physical address, -1, rights, size of the page in bytes) or (0, error
    code, 0, 0). The rights are those that a cached translation may have: with dirty flags, no
    writes before the page is dirty. Accessed flags above the last level are set on the way, as a
    processor sets them.
    """
    ept = v[EPT_POINTER_IN_FORCE]
    marks = ept & EPTP_ACCESSED_DIRTY
    table = ept & _FRAME
    present = RIGHT_READ | RIGHT_WRITE | RIGHT_EXECUTE
    if ept & MODE_BASED_EXECUTE:
        present |= RIGHT_EXECUTE_USER
    rights = present
    shift = 39
    while True:
        at = table | (((address >> shift) & 0x1FF) << 3)
        entry = load64(mem, at)
        rights &= entry
        if entry & present == 0:
            break
        leaf = shift == 12 or (shift < 39 and entry & _PS != 0)
        if is_misconfigured(entry, shift, leaf):
            return 0, EPT_MISCONFIGURATION | address << 16, 0, 0
        if leaf:
            break
        if marks and entry & _A == 0:
            store64(mem, at, entry | _A)
        table = entry & _FRAME
        shift -= 9
    if rights & wanted != wanted:
        # Bit 10 of the rights is bit 6 of the qualification, and a fetch is bit 2 of it anyway.
        told |= (rights & 7) << 3 | rights >> 10 << 6 | wanted & 7 | wanted >> 10 << 2
        return 0, EPT_VIOLATION | address << 16 | told, 0, 0
    if marks:
        marked = entry | _A
        if wanted & RIGHT_WRITE:
            marked |= _D
        if (marked & ~entry) & _D and not log_write(v, mem, address):
            return 0, LOG_FULL, 0, 0
        if marked != entry:
            store64(mem, at, marked)
        if marked & _D == 0:
            rights &= ~RIGHT_WRITE
    span = 1 << shift
    return (entry & _FRAME & -span) | (address & (span - 1)), -1, rights, span


@core
def log_write(v: Cells, mem: Memory, address: int) -> bool:
    """Note in the page-modification log, if there is one, that `address` is written to.

    False if the log is full, and then nothing is noted.
    """
    log = v[PML_ADDRESS_IN_FORCE]
    if log == 0:
        return True
    index = v[PML_INDEX]
    if index >= LOG_ENTRIES:
        return False
    store64(mem, (log & _FRAME) + 8 * index, address & ~0xFFF)
    v[PML_INDEX] = (index - 1) & 0xFFFF
    return True


@core
def is_misconfigured(entry: int, shift: int, leaf: bool) -> bool:
    """Whether an entry that is present has a setting that is none.

    `shift` is how far the address bits are shifted that select it, `leaf` whether it maps a
    page. SDM, "EPT Misconfigurations".
    """
    if entry & (RIGHT_READ | RIGHT_WRITE) == RIGHT_WRITE or entry & _ABOVE:
        return True
    if not leaf:
        return bool(entry & (0xF8 if shift == 39 else 0x78))
    return bool((_RESERVED_TYPES >> ((entry >> 3) & 7)) & 1 or entry & ((1 << shift) - 0x1000))


@core
def ept_exit_reason(error: int) -> int:
    """The basic exit reason of an error code of EPT."""
    if error & LOG_FULL == LOG_FULL:
        return REASON_PAGE_MODIFICATION_LOG_FULL
    return REASON_EPT_VIOLATION if error & EPT_VIOLATION else REASON_EPT_MISCONFIGURATION


@core
def ept_qualification(error: int) -> int:
    """The exit qualification that an error code of EPT holds."""
    return error & 0xFFFF


@core
def ept_address(error: int) -> int:
    """The guest-physical address that an error code of EPT holds."""
    return (error >> 16) & ((1 << MAXPHYADDR) - 1)
