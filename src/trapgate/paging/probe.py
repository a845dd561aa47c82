"""Where a page walk ends, found without changing anything: no accessed or dirty flag is set."""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.paging.alias import aliased
from trapgate.paging.memory import load32, load64
from trapgate.sdm.cells import GUEST_CR0, GUEST_CR3, GUEST_CR4, GUEST_IA32_EFER, GUEST_PDPTE0
from trapgate.sdm.state import CR0_PG, CR4_PAE, CR4_PSE, EFER_LMA

_PRESENT = 1
_LARGE = 0x80
_FRAME = 0x000F_FFFF_FFFF_F000
_NOT_MAPPED = -1


@core
def probe(v: Cells, mem: Memory, linear: int) -> tuple[int, int, int, int]:
    """The last entry of the walk for `linear`: (level, its address, the entry, physical address).

    `level` is 1 for a PTE up to 4 for a PML4E, and 0 if paging is off, when there is no entry.
    The physical address is that of `linear`, or -1 if the entry is not present. Rights play no
    part. The guest's tables are taken to be in RAM, so this is not for guests under EPT.
    """
    if v[GUEST_CR0] & CR0_PG == 0:
        return 0, _NOT_MAPPED, 0, linear & 0xFFFF_FFFF
    table = v[GUEST_CR3]
    if v[GUEST_CR4] & CR4_PAE == 0:
        return _probe_two_levels(v, mem, linear & 0xFFFF_FFFF, table & 0xFFFF_F000)
    level = 4
    table &= _FRAME
    if v[GUEST_IA32_EFER] & EFER_LMA == 0:
        level = 3
        # Its four entries were loaded with CR3.
        table = v[GUEST_CR3] & 0xFFFF_FFE0
        linear &= 0xFFFF_FFFF
    while True:
        shift = 3 + 9 * level
        at = table + (((linear >> shift) & 0x1FF) << 3)
        loaded = level == 3 and v[GUEST_IA32_EFER] & EFER_LMA == 0
        entry = v[GUEST_PDPTE0 + ((linear >> 30) & 3)] if loaded else load64(mem, aliased(v, at))
        if entry & _PRESENT == 0:
            return level, at, entry, _NOT_MAPPED
        is_page = level == 1 or (entry & _LARGE != 0 and level in (2, 3))
        if is_page and not loaded:
            offset = (1 << shift) - 1
            return level, at, entry, (entry & _FRAME & ~offset) | (linear & offset)
        table = entry & _FRAME
        level -= 1


@core
def _probe_two_levels(v: Cells, mem: Memory, linear: int, table: int) -> tuple[int, int, int, int]:
    at = table + ((linear >> 20) & 0xFFC)
    entry = load32(mem, aliased(v, at))
    if entry & _PRESENT == 0:
        return 2, at, entry, _NOT_MAPPED
    if entry & _LARGE and v[GUEST_CR4] & CR4_PSE:
        # Bits 20:13 of a 4-MB page's entry are bits 39:32 of the address (PSE-36).
        frame = (entry & 0xFFC0_0000) | ((entry & 0x1F_E000) << 19)
        return 2, at, entry, frame | (linear & 0x3F_FFFF)
    at = (entry & 0xFFFF_F000) + ((linear >> 10) & 0xFFC)
    entry = load32(mem, aliased(v, at))
    if entry & _PRESENT == 0:
        return 1, at, entry, _NOT_MAPPED
    return 1, at, entry, (entry & 0xFFFF_F000) | (linear & 0xFFF)
