"""Self-mapped page tables: where an entry lies, and which entries a write would change.

The conditions of ¶74 and the classification of ¶75, for three paging modes:

* 32-bit paging: as the seed has it, for two levels of tables.
* 4-level paging: PTBASE is 512 GB aligned, and the PML4 entry that PTBASE[47:39] selects (the
  recursive slot) holds CR3's own frame.
* PAE paging: PTBASE is 8 MB aligned, and four directory entries, the first selected by
  PTBASE[31:21], hold the frames of the four directories.

What keeps a filter from being more than it should be is `entry_at`: docs/fault-filters.md
has the argument.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.decision.fault_filters import (
    FILTER_FIGURE_7,
    FILTER_FIGURE_8,
    FILTER_PARAGRAPH_80,
    FRAME,
    FRAME_64,
    LARGE,
    PRESENT,
    SPAN_64,
    WRITABLE,
    figure_7,
    figure_8,
    in_page_table,
    in_page_table_64,
    in_page_table_pae,
    is_pte,
    is_pte_64,
    is_pte_pae,
    paragraph_80,
)
from trapgate.paging.memory import load32, load64
from trapgate.sdm.cells import CRITERIA_TABLE_RULES, EPT_POINTER_IN_FORCE, FAULT_FILTER, PTBASE
from trapgate.sdm.pagefault import PFEC_P, PFEC_U, PFEC_W
from trapgate.sdm.state import (
    CR0_PG,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    EFER_LMA,
    RFLAGS_AC,
)

ABSENT = 0
"""No entry of the self-mapped tables that a filter may be asked about."""
PTE = 1
DIRECTORY = 2
"""A PDE, or in IA-32e mode an entry of any table above the last."""

_USER = 4
_POINTERS = 0xFFFFFFE0
"""The page-directory-pointer table in CR3."""
_EXECUTE_DISABLE = -(1 << 63)
"""Bit 63, as the core's signed cells have it."""


@core
def entry_size(cr4: int) -> int:
    """Bytes of a table entry."""
    return 8 if cr4 & CR4_PAE else 4


@core
def self_mapped(cr0: int, cr3: int, cr4: int, efer: int, mem: Memory, ptbase: int) -> bool:
    """The conditions of ¶74: PTBASE is aligned, and its directory entry holds CR3's frame.

    The entry must be a present one, and no large page: then the region shows the tables. Under
    PAE paging each directory has such an entry, one that is not there has none.
    """
    if cr0 & CR0_PG == 0:
        return False
    if cr4 & CR4_PAE == 0:
        if ptbase & ~0xFFC00000:
            return False
        entry = load32(mem, (cr3 & FRAME) + ((ptbase >> 22) << 2))
        return entry & PRESENT != 0 and (entry ^ cr3) & FRAME == 0 and not is_large(cr4, entry)
    if efer & EFER_LMA == 0:
        return self_mapped_pae(cr3, cr4, mem, ptbase)
    # Canonical: bits 63:47 are all alike.
    if ptbase & SPAN_64 or ((ptbase >> 47) + 1) >> 1 != 0:
        return False
    entry = load64(mem, (cr3 & FRAME_64) + (((ptbase >> 39) & 0x1FF) << 3))
    return entry & PRESENT != 0 and (entry ^ cr3) & FRAME_64 == 0 and not is_large(cr4, entry)


@core
def self_mapped_pae(cr3: int, cr4: int, mem: Memory, ptbase: int) -> bool:
    """The conditions for the four directories of PAE paging."""
    if ptbase & ~0xFF800000:
        return False
    pointers = cr3 & _POINTERS
    directory = load64(mem, pointers + ((ptbase >> 27) & 0x18))
    if directory & PRESENT == 0:
        return False
    slot = (directory & FRAME_64) + ((ptbase >> 18) & 0xFE0)
    for n in range(4):
        pointer = load64(mem, pointers + 8 * n)
        entry = load64(mem, slot + 8 * n)
        if (pointer ^ entry) & PRESENT:
            return False
        if entry & PRESENT and ((entry ^ pointer) & FRAME_64 or is_large(cr4, entry)):
            return False
    return True


@core
def may_be_filtered(v: Cells, error_code: int) -> bool:
    """Whether a page fault is of the kind that a fault filter may judge: a write that R/W stops.

    Under EPT none is: what `entry_at` follows are guest-physical addresses.
    """
    return bool(
        error_code | PFEC_U == PFEC_P | PFEC_W | PFEC_U
        and v[FAULT_FILTER] | v[PTBASE] | v[CRITERIA_TABLE_RULES] != 0
        and v[EPT_POINTER_IN_FORCE] == 0
    )


@core
def is_large(cr4: int, entry: int) -> bool:
    """Whether the entry, if it is one of a directory, maps a large page instead of a table."""
    return entry & LARGE != 0 and cr4 & (CR4_PSE | CR4_PAE) != 0


@core
def entry_at(
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    rflags: int,
    mem: Memory,
    ptbase: int,
    linear: int,
    user: int,
) -> tuple[int, int]:
    """Which table entry's page a write to `linear` means: (kind, physical address of `linear`).

    ABSENT unless the tables are self-mapped at `ptbase` (¶74), the address is theirs
    (¶75), every entry on its way is present and leads to a table, and the one thing that
    stops the write is R/W: of a user-mode access (`user` 1) U/S allows it, of a supervisor
    access SMAP does. A large page at the end of the way would mean that the address shows
    no table, but what the large page maps.
    """
    if not self_mapped(cr0, cr3, cr4, efer, mem, ptbase):
        return ABSENT, 0
    kind = PTE
    rights = WRITABLE | _USER
    table = cr3 & FRAME_64
    if cr4 & CR4_PAE == 0:
        linear &= 0xFFFFFFFF
        if not in_page_table(linear, ptbase):
            return ABSENT, 0
        if not is_pte(linear, ptbase):
            kind = DIRECTORY
        table &= FRAME
        for level in range(2):
            entry = load32(mem, table + ((linear >> (20 - 10 * level)) & 0xFFC))
            if entry & PRESENT == 0 or is_large(cr4, entry):
                return ABSENT, 0
            rights &= entry
            table = entry & FRAME
    else:
        first = 0
        if efer & EFER_LMA:
            if not in_page_table_64(linear, ptbase):
                return ABSENT, 0
            if not is_pte_64(linear, ptbase):
                kind = DIRECTORY
        else:
            first = 2
            linear &= 0xFFFFFFFF
            if not in_page_table_pae(linear, ptbase):
                return ABSENT, 0
            if not is_pte_pae(linear, ptbase):
                kind = DIRECTORY
            # `self_mapped` has found it present; it has no rights.
            table = load64(mem, (cr3 & _POINTERS) + ((linear >> 27) & 0x18)) & FRAME_64
        for level in range(first, 4):
            entry = load64(mem, table + ((linear >> (36 - 9 * level)) & 0xFF8))
            if entry & PRESENT == 0 or is_large(cr4, entry):
                return ABSENT, 0
            rights &= entry
            table = entry & FRAME_64
    if rights & WRITABLE or table >> 3 >= len(mem):
        return ABSENT, 0
    if user:
        if rights & _USER == 0:
            return ABSENT, 0
    elif rights & _USER and cr4 & CR4_SMAP and rflags & RFLAGS_AC == 0:
        return ABSENT, 0
    return kind, table | (linear & 0xFFF)


@core
def admits(fault_filter: int, cr4: int, kind: int, data: int, old: int) -> bool:
    """Whether the filter lets a write turn the entry `old` into `data`.

    `kind` is what `entry_at` says of it; both are whole entries.
    """
    if fault_filter == FILTER_FIGURE_7:
        return bool(figure_7(kind != ABSENT, kind == PTE, data))
    if fault_filter == FILTER_FIGURE_8:
        kept = FRAME
        denying = 0
        if cr4 & CR4_PAE:
            kept = FRAME_64 | LARGE
            denying = _EXECUTE_DISABLE
        elif cr4 & CR4_PSE:
            kept |= LARGE
        return bool(figure_8(kind != ABSENT, kind == PTE, data, old, kept, denying))
    if fault_filter == FILTER_PARAGRAPH_80:
        return bool(paragraph_80(kind != ABSENT, kind != ABSENT, data))
    return False


@core
def refused_entry(
    fault_filter: int, cr4: int, kind: int, mem: Memory, physical: int, size: int, data: int
) -> int:
    """The first entry that the filter forbids a write to change: its physical address, or -1.

    The write is of `size` bytes (1 to 8) at `physical`, little endian, all of them in the
    page that `kind` was found for. Each entry that it touches is judged whole, as it lies
    there and as it would be.
    """
    width = entry_size(cr4)
    at = physical & ~(width - 1)
    while at < physical + size:
        old = entry_of(mem, at, width)
        if not admits(fault_filter, cr4, kind, merged(old, at - physical, width, size, data), old):
            return at
        at += width
    return -1


@core
@inlined
def entry_of(mem: Memory, at: int, width: int) -> int:
    """The entry of `width` bytes at physical address `at`."""
    return load64(mem, at) if width == 8 else load32(mem, at)


@core
@inlined
def merged(old: int, ahead: int, width: int, size: int, data: int) -> int:
    """The entry `old` of `width` bytes with the bytes of a write put in.

    The entry begins `ahead` bytes after the write does (negative: before); `data` has
    `size` bytes.
    """
    if ahead == 0 and size >= width:
        return data if width == 8 else data & 0xFFFFFFFF
    new = old
    for n in range(width):
        if 0 <= ahead + n < size:
            byte = (data >> (8 * (ahead + n))) & 0xFF
            byte ^= (new >> (8 * n)) & 0xFF
            if n == 7 and byte > 0x7F:
                byte -= 0x100
            new ^= byte << (8 * n)
    return new
