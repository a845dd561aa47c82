"""From linear to physical addresses: the page walk, its rights and its faults.

SDM, chapter "Paging": no paging, 32-bit paging (with 4-MByte pages and PSE-36),
PAE paging and 4-level paging. A walk that succeeds sets the accessed flags it
passed and, for a write, the dirty flag; one that fails sets none. In PAE paging
the four page-directory-pointer entries are read from memory at CR3 on each walk
instead of once at MOV to CR3: software that edits them without reloading CR3 sees
the edit at once. Protection keys, shadow stacks, 57-bit addresses and global pages
have no part here. Whether a linear address is canonical is the caller's business.
"""

from trapgate.core import Cells, core
from trapgate.memory import load8, load16, load32, load64, store32, store64
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_CR3,
    GUEST_CR4,
    GUEST_IA32_EFER,
    GUEST_RFLAGS,
)
from trapgate.sdm.pagefault import PFEC_ID, PFEC_RSVD, PFEC_U
from trapgate.sdm.state import (
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    RFLAGS_AC,
)

MAXPHYADDR = 40
"""Width of physical addresses in bits; entry bits from here to bit 51 are reserved."""

READ = 0
WRITE = 1
FETCH = 2

SUPERVISOR = 0
USER = 1

PROT_READ = 1
PROT_WRITE = 2
PROT_EXECUTE = 4

_P = 1
_RW = 2
_US = 4
_A = 0x20
_D = 0x40
_PS = 0x80

_FRAME = (1 << MAXPHYADDR) - 0x1000
_ABOVE = (1 << 52) - (1 << MAXPHYADDR)
_FRAME_2M = (1 << MAXPHYADDR) - 0x20_0000
_FRAME_1G = (1 << MAXPHYADDR) - 0x4000_0000


@core
def canonical(address: int) -> bool:
    """Whether a 64-bit address is canonical for 48-bit linear addresses."""
    return -(1 << 47) <= address < 1 << 47


@core
def pat_is_legal(value: int) -> bool:
    """Whether every byte is a memory type: 0, 1, 4, 5, 6 or 7."""
    for n in range(8):
        entry = (value >> (8 * n)) & 0xFF
        if entry > 7 or entry in (2, 3):
            return False
    return True


@core
def walk(
    cr0: int,
    cr3: int,
    cr4: int,
    efer: int,
    rflags: int,
    mem: Cells,
    linear: int,
    access: int,
    user: int,
) -> tuple[int, int, int, int]:
    """Translate `linear` for one access; the registers are given, not looked up.

    `access` is READ, WRITE or FETCH, `user` is 1 for a user-mode access. Returns
    (physical address, page-fault error code or -1, protection, page size in bytes).
    The protection is what a TLB entry made of this walk may allow to accesses of
    the same mode: PROT_READ, PROT_WRITE only if the page is dirty by now, so that
    the first write walks again, and PROT_EXECUTE. An implicit supervisor access
    (to a descriptor table or a TSS) passes `rflags` 0, which makes SMAP apply
    whatever RFLAGS.AC is. SDM, sections "Access Rights" and "Page-Fault Exceptions".
    """
    if cr0 & CR0_PG == 0:
        return linear & 0xFFFF_FFFF, -1, 7, 0x1000

    write = access & WRITE
    code = (write << 1) | (user << 2)
    if access & FETCH and (cr4 & CR4_SMEP or (cr4 & CR4_PAE and efer & EFER_NXE)):
        code |= PFEC_ID

    if cr4 & CR4_PAE == 0:
        return _walk_two_level(cr0, cr3, cr4, rflags, mem, linear & 0xFFFF_FFFF, access, code)

    # Bit 63, an entry's sign here, is execute-disable with NXE and reserved without.
    no_execute_legal = efer & EFER_NXE != 0

    size = 0x1000
    at3 = -1
    at4 = -1
    entry3 = 0
    entry4 = 0
    rights = _RW | _US
    no_execute = False
    if efer & EFER_LMA:
        at4 = (cr3 & _FRAME) | ((linear >> 36) & 0xFF8)
        entry4 = load64(mem, at4)
        if entry4 & _P == 0:
            return 0, code, 0, 0
        if entry4 & (_ABOVE | _PS) or (entry4 < 0 and not no_execute_legal):
            return 0, code | PFEC_RSVD | _P, 0, 0
        rights &= entry4
        no_execute = entry4 < 0
        at3 = (entry4 & _FRAME) | ((linear >> 27) & 0xFF8)
        entry3 = load64(mem, at3)
        if entry3 & _P == 0:
            return 0, code, 0, 0
        wrong = _ABOVE
        if entry3 & _PS:
            wrong |= 0x3FFF_E000
        if entry3 & wrong or (entry3 < 0 and not no_execute_legal):
            return 0, code | PFEC_RSVD | _P, 0, 0
        rights &= entry3
        no_execute = no_execute or entry3 < 0
        if entry3 & _PS:
            size = 0x4000_0000
        table = entry3 & _FRAME
    else:
        linear &= 0xFFFF_FFFF
        pointer = load64(mem, (cr3 & 0xFFFF_FFE0) | ((linear >> 27) & 0x18))
        if pointer & _P == 0:
            return 0, code, 0, 0
        table = pointer & _FRAME

    at = at3
    entry = entry3
    at2 = -1
    entry2 = 0
    if size == 0x1000:
        at = table | ((linear >> 18) & 0xFF8)
        entry = load64(mem, at)
        if entry & _P == 0:
            return 0, code, 0, 0
        wrong = _ABOVE
        if entry & _PS:
            wrong |= 0x1F_E000
            size = 0x20_0000
        if efer & EFER_LMA == 0:
            wrong |= 0x7FF0_0000_0000_0000
        if entry & wrong or (entry < 0 and not no_execute_legal):
            return 0, code | PFEC_RSVD | _P, 0, 0
        rights &= entry
        no_execute = no_execute or entry < 0
        if size == 0x1000:
            at2 = at
            entry2 = entry
            at = (entry & _FRAME) | ((linear >> 9) & 0xFF8)
            entry = load64(mem, at)
            if entry & _P == 0:
                return 0, code, 0, 0
            wrong = _ABOVE
            if efer & EFER_LMA == 0:
                wrong |= 0x7FF0_0000_0000_0000
            if entry & wrong or (entry < 0 and not no_execute_legal):
                return 0, code | PFEC_RSVD | _P, 0, 0
            rights &= entry
            no_execute = no_execute or entry < 0

    prot = _protection(cr0, cr4, rflags, rights, code & PFEC_U)
    if no_execute:
        prot &= ~PROT_EXECUTE
    needed = PROT_READ
    if access & FETCH:
        needed = PROT_EXECUTE
    elif write:
        needed = PROT_WRITE
    if prot & needed == 0:
        return 0, code | _P, 0, 0

    # Every level's accessed flag, the last level's dirty flag; mostly set already.
    if at4 >= 0 and entry4 & _A == 0:
        store64(mem, at4, entry4 | _A)
    if at3 >= 0 and at != at3 and entry3 & _A == 0:
        store64(mem, at3, entry3 | _A)
    if at2 >= 0 and entry2 & _A == 0:
        store64(mem, at2, entry2 | _A)
    marked = entry | _A
    if write:
        marked |= _D
    if marked != entry:
        store64(mem, at, marked)
    if marked & _D == 0:
        prot &= ~PROT_WRITE
    if size == 0x1000:
        return (entry & _FRAME) | (linear & 0xFFF), -1, prot, size
    if size == 0x20_0000:
        return (entry & _FRAME_2M) | (linear & 0x1F_FFFF), -1, prot, size
    return (entry & _FRAME_1G) | (linear & 0x3FFF_FFFF), -1, prot, size


@core
def _walk_two_level(
    cr0: int, cr3: int, cr4: int, rflags: int, mem: Cells, linear: int, access: int, code: int
) -> tuple[int, int, int, int]:
    """The walk of 32-bit paging: SDM, section "32-Bit Paging"."""
    at2 = (cr3 & 0xFFFF_F000) | ((linear >> 20) & 0xFFC)
    entry2 = load32(mem, at2)
    if entry2 & _P == 0:
        return 0, code, 0, 0
    large = entry2 & _PS != 0 and cr4 & CR4_PSE != 0
    at = at2
    entry = entry2
    if large:
        if entry2 & 0x20_0000:
            return 0, code | PFEC_RSVD | _P, 0, 0
        rights = entry2
    else:
        at = (entry2 & 0xFFFF_F000) | ((linear >> 10) & 0xFFC)
        entry = load32(mem, at)
        if entry & _P == 0:
            return 0, code, 0, 0
        rights = entry2 & entry

    prot = _protection(cr0, cr4, rflags, rights, code & PFEC_U)
    write = access & WRITE
    needed = PROT_READ
    if access & FETCH:
        needed = PROT_EXECUTE
    elif write:
        needed = PROT_WRITE
    if prot & needed == 0:
        return 0, code | _P, 0, 0

    if at != at2 and entry2 & _A == 0:
        store32(mem, at2, entry2 | _A)
    marked = entry | _A
    if write:
        marked |= _D
    if marked != entry:
        store32(mem, at, marked)
    if marked & _D == 0:
        prot &= ~PROT_WRITE
    if large:
        high = ((entry >> 13) & 0xFF) << 32
        return high | (entry & 0xFFC0_0000) | (linear & 0x3F_FFFF), -1, prot, 0x40_0000
    return (entry & 0xFFFF_F000) | (linear & 0xFFF), -1, prot, 0x1000


@core
def _protection(cr0: int, cr4: int, rflags: int, rights: int, user: int) -> int:
    """What a page with these combined R/W and U/S flags allows, NX and D aside."""
    if user:
        if rights & _US == 0:
            return 0
        if rights & _RW:
            return 7
        return PROT_READ | PROT_EXECUTE
    prot = 7
    if rights & _RW == 0 and cr0 & CR0_WP:
        prot = PROT_READ | PROT_EXECUTE
    if rights & _US:
        if cr4 & CR4_SMEP:
            prot &= ~PROT_EXECUTE
        if cr4 & CR4_SMAP and rflags & RFLAGS_AC == 0:
            prot &= PROT_EXECUTE
    return prot


@core
def read_system(v: Cells, mem: Cells, linear: int, size: int) -> tuple[int, int, int]:
    """Read `size` bytes (2, 4 or 8) of a descriptor table or TSS: implicit supervisor access.

    Returns (value, -1, 0), or (0, page-fault error code, faulting linear address).
    Narrow values are zero-extended. SDM, section "Access Rights".
    """
    physical, error, _, _ = walk(
        v[GUEST_CR0], v[GUEST_CR3], v[GUEST_CR4], v[GUEST_IA32_EFER], 0, mem, linear, READ, 0
    )
    if error >= 0:
        return 0, error, linear
    if (linear & 0xFFF) + size <= 0x1000:
        if size == 8:
            return load64(mem, physical), -1, 0
        if size == 4:
            return load32(mem, physical), -1, 0
        return load16(mem, physical), -1, 0
    # It straddles two pages: the second need not follow the first physically.
    onward = (linear | 0xFFF) + 1
    second, error, _, _ = walk(
        v[GUEST_CR0], v[GUEST_CR3], v[GUEST_CR4], v[GUEST_IA32_EFER], 0, mem, onward, READ, 0
    )
    if error >= 0:
        return 0, error, onward
    value = 0
    for n in range(size):
        byte = load8(mem, physical + n)
        if linear + n >= onward:
            byte = load8(mem, second + linear + n - onward)
        if n == 7 and byte > 0x7F:
            byte -= 0x100
        value |= byte << (8 * n)
    return value, -1, 0


@core
def translate(v: Cells, mem: Cells, linear: int, access: int, user: int) -> tuple[int, int]:
    """Translate `linear` under the guest registers in VMCS `v`, an explicit access.

    Returns (physical address, -1), or (0, page-fault error code).
    """
    physical, error, _, _ = walk(
        v[GUEST_CR0],
        v[GUEST_CR3],
        v[GUEST_CR4],
        v[GUEST_IA32_EFER],
        v[GUEST_RFLAGS],
        mem,
        linear,
        access,
        user,
    )
    return physical, error
