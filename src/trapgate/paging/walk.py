"""From linear to physical addresses: the page walk, its rights and its faults.

SDM, chapter "Paging": no paging, 32-bit paging (with 4-MByte pages and PSE-36),
PAE paging and 4-level paging. A walk that succeeds sets the accessed flags it
passed and, for a write, the dirty flag; one that ends in a page fault sets none. With
an EPT pointer in force every address in the guest's tables, and the one that they lead to,
is guest-physical and goes through `ept`; without one it goes through `alias`. The four
page-directory pointers of PAE paging are those of the VMCS, loaded with CR3. Protection keys,
shadow stacks, 57-bit addresses and global pages have no part here. Whether a linear address is
canonical is the caller's business, except that of an entry of a descriptor table or TSS.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.paging.alias import aliased
from trapgate.paging.apic_access import apic_access
from trapgate.paging.ept import (
    EPTP_ACCESSED_DIRTY,
    LINEAR_VALID,
    MODE_BASED_EXECUTE,
    RIGHT_EXECUTE,
    RIGHT_EXECUTE_USER,
    RIGHT_READ,
    RIGHT_WRITE,
    TRANSLATED,
    through_ept,
)
from trapgate.paging.frame_map import FOREIGN, TABLE, frame_byte, has_frame_map
from trapgate.paging.memory import (
    MAXPHYADDR,
    load32,
    load64,
    load_across,
    load_sized,
    store32,
    store64,
)
from trapgate.paging.translations import kind_of, remember, remembered
from trapgate.sdm.cells import (
    APIC_ACCESS_PAGE_IN_FORCE,
    EPT_POINTER_IN_FORCE,
    GUEST_CR0,
    GUEST_CR3,
    GUEST_CR4,
    GUEST_IA32_EFER,
    GUEST_PDPTE0,
    GUEST_RFLAGS,
)
from trapgate.sdm.pagefault import PFEC_ID, PFEC_MAP, PFEC_RSVD, PFEC_U
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
from trapgate.sdm.vectors import GP, TS

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

LINEAR_ADDRESS_BITS = 48

REFUSED = 1 << 59
"""In an error, which is above all those of page faults then: it is another exception,"""
REFUSED_VECTOR = 16
"""... whose vector is from this bit on, and whose error code is below."""
REFUSED_GP = REFUSED | GP << REFUSED_VECTOR
REFUSED_TS = REFUSED | TS << REFUSED_VECTOR

NO_POINTERS = 0
"""The pointers of PAE paging cannot be loaded: #GP(0)."""

_POINTER_RESERVED = 0x1E6 | ~((1 << MAXPHYADDR) - 1)
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
    v: Cells, rflags: int, mem: Memory, linear: int, access: int, user: int
) -> tuple[int, int, int, int]:
    """Translate `linear` for one access, under the guest's control registers in VMCS `v`.

    `access` is READ, WRITE or FETCH, `user` is 1 for a user-mode access. Returns
    (physical address, error code or -1, protection, page size in bytes). The error
    code is a page fault's, or one of `ept`'s, which are greater. The protection is
    what a TLB entry made of this walk may allow to accesses of the same mode:
    PROT_READ, PROT_WRITE only if the page is dirty by now, so that the first write
    walks again, and PROT_EXECUTE. A frame map has the last word (`frame_map`). An implicit
    supervisor access (to a descriptor table or a TSS) passes `rflags` 0, which makes SMAP apply
    whatever RFLAGS.AC is. SDM, sections "Access Rights" and "Page-Fault Exceptions".
    """
    cr0 = v[GUEST_CR0]
    write = access & WRITE
    code = (write << 1) | (user << 2)
    if cr0 & CR0_PG == 0:
        physical = linear & 0xFFFF_FFFF
        prot = under_frame_map(v, mem, physical, write, 7)
        if prot < 0:
            return 0, code | _P | PFEC_MAP, 0, 0
        return at_guest_physical(v, mem, physical, access, prot, 0x1000, _US)

    cr3 = v[GUEST_CR3]
    cr4 = v[GUEST_CR4]
    efer = v[GUEST_IA32_EFER]
    if access & FETCH and (cr4 & CR4_SMEP or (cr4 & CR4_PAE and efer & EFER_NXE)):
        code |= PFEC_ID

    if cr4 & CR4_PAE == 0:
        return _walk_two_level(v, rflags, mem, linear & 0xFFFF_FFFF, access, code)

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
        entry4, error = read_entry(v, mem, at4, 8)
        if error >= 0:
            return 0, error, 0, 0
        if entry4 & _P == 0:
            return 0, code, 0, 0
        if entry4 & (_ABOVE | _PS) or (entry4 < 0 and not no_execute_legal):
            return 0, code | PFEC_RSVD | _P, 0, 0
        rights &= entry4
        no_execute = entry4 < 0
        at3 = (entry4 & _FRAME) | ((linear >> 27) & 0xFF8)
        entry3, error = read_entry(v, mem, at3, 8)
        if error >= 0:
            return 0, error, 0, 0
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
        pointer = v[GUEST_PDPTE0 + ((linear >> 30) & 3)]
        if pointer & _P == 0:
            return 0, code, 0, 0
        table = pointer & _FRAME

    at = at3
    entry = entry3
    at2 = -1
    entry2 = 0
    if size == 0x1000:
        at = table | ((linear >> 18) & 0xFF8)
        entry, error = read_entry(v, mem, at, 8)
        if error >= 0:
            return 0, error, 0, 0
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
            entry, error = read_entry(v, mem, at, 8)
            if error >= 0:
                return 0, error, 0, 0
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

    physical = (entry & _FRAME) | (linear & 0xFFF)
    if size == 0x20_0000:
        physical = (entry & _FRAME_2M) | (linear & 0x1F_FFFF)
    elif size == 0x4000_0000:
        physical = (entry & _FRAME_1G) | (linear & 0x3FFF_FFFF)
    prot = under_frame_map(v, mem, physical, write, prot)
    if prot < 0:
        return 0, code | _P | PFEC_MAP, 0, 0

    # Every level's accessed flag, the last level's dirty flag; mostly set already.
    error = -1
    if at4 >= 0 and entry4 & _A == 0:
        error = write_entry(v, mem, at4, 8, entry4 | _A)
    if error < 0 and at3 >= 0 and at != at3 and entry3 & _A == 0:
        error = write_entry(v, mem, at3, 8, entry3 | _A)
    if error < 0 and at2 >= 0 and entry2 & _A == 0:
        error = write_entry(v, mem, at2, 8, entry2 | _A)
    marked = entry | _A
    if write:
        marked |= _D
    if error < 0 and marked != entry:
        error = write_entry(v, mem, at, 8, marked)
    if error >= 0:
        return 0, error, 0, 0
    if marked & _D == 0:
        prot &= ~PROT_WRITE
    return at_guest_physical(v, mem, physical, access, prot, size, rights)


@core
def _walk_two_level(
    v: Cells, rflags: int, mem: Memory, linear: int, access: int, code: int
) -> tuple[int, int, int, int]:
    """The walk of 32-bit paging: SDM, section "32-Bit Paging"."""
    cr4 = v[GUEST_CR4]
    at2 = (v[GUEST_CR3] & 0xFFFF_F000) | ((linear >> 20) & 0xFFC)
    entry2, error = read_entry(v, mem, at2, 4)
    if error >= 0:
        return 0, error, 0, 0
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
        entry, error = read_entry(v, mem, at, 4)
        if error >= 0:
            return 0, error, 0, 0
        if entry & _P == 0:
            return 0, code, 0, 0
        rights = entry2 & entry

    prot = _protection(v[GUEST_CR0], cr4, rflags, rights, code & PFEC_U)
    write = access & WRITE
    needed = PROT_READ
    if access & FETCH:
        needed = PROT_EXECUTE
    elif write:
        needed = PROT_WRITE
    if prot & needed == 0:
        return 0, code | _P, 0, 0

    physical = (entry & 0xFFFF_F000) | (linear & 0xFFF)
    if large:
        high = ((entry >> 13) & 0xFF) << 32
        physical = high | (entry & 0xFFC0_0000) | (linear & 0x3F_FFFF)
    prot = under_frame_map(v, mem, physical, write, prot)
    if prot < 0:
        return 0, code | _P | PFEC_MAP, 0, 0

    if at != at2 and entry2 & _A == 0:
        error = write_entry(v, mem, at2, 4, entry2 | _A)
    marked = entry | _A
    if write:
        marked |= _D
    if error < 0 and marked != entry:
        error = write_entry(v, mem, at, 4, marked)
    if error >= 0:
        return 0, error, 0, 0
    if marked & _D == 0:
        prot &= ~PROT_WRITE
    size = 0x40_0000 if large else 0x1000
    return at_guest_physical(v, mem, physical, access, prot, size, rights)


@core
@inlined
def under_frame_map(v: Cells, mem: Memory, physical: int, write: int, prot: int) -> int:
    """What a frame map leaves of the protection `prot` of the page at `physical`.

    -1 if it stops the access itself. Under EPT no map is looked at.
    """
    if not has_frame_map(v) or v[EPT_POINTER_IN_FORCE] != 0:
        return prot
    byte = frame_byte(v, mem, physical)
    if byte & FOREIGN or (byte & TABLE and write):
        return -1
    return prot & ~PROT_WRITE if byte & TABLE else prot


@core
@inlined
def read_entry(v: Cells, mem: Memory, at: int, width: int) -> tuple[int, int]:
    """The paging-structure entry of `width` bytes at guest-physical `at`: (entry, -1 or error).

    With accessed and dirty flags for EPT this counts as a write (SDM, section of that name).
    """
    ept = v[EPT_POINTER_IN_FORCE]
    if ept != 0:
        wanted = RIGHT_READ
        if ept & EPTP_ACCESSED_DIRTY:
            wanted = RIGHT_READ | RIGHT_WRITE
        at, error, _, _ = through_ept(v, mem, at, wanted, LINEAR_VALID)
        if error >= 0:
            return 0, error
    else:
        at = aliased(v, at)
    return load64(mem, at) if width == 8 else load32(mem, at), -1


@core
def write_entry(v: Cells, mem: Memory, at: int, width: int, entry: int) -> int:
    """Set flags in the entry that `read_entry` has read: -1, or the error.

    Processors report it as a read and a write.
    """
    if v[EPT_POINTER_IN_FORCE] != 0:
        at, error, _, _ = through_ept(v, mem, at, RIGHT_READ | RIGHT_WRITE, LINEAR_VALID)
        if error >= 0:
            return error
    else:
        at = aliased(v, at)
    if width == 8:
        store64(mem, at, entry)
    else:
        store32(mem, at, entry)
    return -1


@core
def at_guest_physical(
    v: Cells, mem: Memory, address: int, access: int, prot: int, size: int, flags: int
) -> tuple[int, int, int, int]:
    """What `walk` answers where the guest's own tables, if any, lead to `address`.

    `prot` and `size` (bytes) are what they say of the page, `flags` the R/W and U/S flags that
    their entries have in common: with U/S, and without paging, it is a user-mode linear address.
    The rights of EPT have the bits of a protection: that of `access` is 1 << `access`.
    """
    physical = aliased(v, address)
    error = -1
    if v[EPT_POINTER_IN_FORCE] != 0:
        mode_based = v[EPT_POINTER_IN_FORCE] & MODE_BASED_EXECUTE and flags & _US
        wanted = RIGHT_EXECUTE_USER if mode_based and access == FETCH else 1 << access
        physical, error, rights, span = through_ept(
            v, mem, address, wanted, LINEAR_VALID | TRANSLATED
        )
        if mode_based:
            rights = rights & ~RIGHT_EXECUTE | rights >> 10 << 2
        prot &= rights
        size = min(size, span)
    page = v[APIC_ACCESS_PAGE_IN_FORCE]
    if page != 0 and error < 0 and physical & ~0xFFF == page - 1:
        return 0, apic_access(access, physical), 0, 0
    return physical, error, prot, size


@core
def uses_pae_paging(v: Cells) -> bool:
    """Whether the guest's paging mode is PAE paging, with its four pointers."""
    return bool(
        v[GUEST_CR0] & CR0_PG and v[GUEST_CR4] & CR4_PAE and v[GUEST_IA32_EFER] & EFER_LMA == 0
    )


@core
def pointer_is_legal(pointer: int) -> bool:
    """Whether a page-directory-pointer-table entry has no reserved bit set, or is not present."""
    return bool(pointer & _P == 0 or pointer & _POINTER_RESERVED == 0)


@core
def load_pointers(v: Cells, mem: Memory) -> int:
    """Load the four pointers of PAE paging from the table at CR3, through EPT if it is in force.

    -1, NO_POINTERS if one of them has a reserved bit set, or the error of reaching them; only
    -1 changes the fields. SDM, "Loading Page-Directory-Pointer-Table Entries".
    """
    table = v[GUEST_CR3] & 0xFFFF_FFE0
    if v[EPT_POINTER_IN_FORCE] != 0:
        table, error, _, _ = through_ept(v, mem, table, RIGHT_READ, 0)
        if error >= 0:
            return error
    else:
        table = aliased(v, table)
    for n in range(4):
        if not pointer_is_legal(load64(mem, table + 8 * n)):
            return NO_POINTERS
    for n in range(4):
        v[GUEST_PDPTE0 + n] = load64(mem, table + 8 * n)
    return -1


@core
@inlined
def load_pointers_of_entry(v: Cells, mem: Memory) -> None:
    """What a transition does about the pointers of PAE paging, whose table has been checked.

    They are those of the fields under EPT, and under a frame map, whose VMM has validated them.
    """
    if uses_pae_paging(v) and v[EPT_POINTER_IN_FORCE] == 0 and not has_frame_map(v):
        load_pointers(v, mem)


@core
@inlined
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
@inlined
def locate(
    v: Cells, rflags: int, mem: Memory, linear: int, access: int, user: int
) -> tuple[int, int]:
    """What `walk` answers first, by a translation that is remembered if there is one.

    (physical address, -1), or (0, error code).
    """
    physical = remembered(mem, linear, kind_of(rflags, access, user))
    if physical >= 0:
        return physical, -1
    return _walk_and_remember(v, rflags, mem, linear, access, user)


@core
def _walk_and_remember(
    v: Cells, rflags: int, mem: Memory, linear: int, access: int, user: int
) -> tuple[int, int]:
    physical, error, _, _ = walk(v, rflags, mem, linear, access, user)
    if error < 0:
        remember(mem, linear, kind_of(rflags, access, user), physical)
    return physical, error


@core
@inlined
def read_system(
    v: Cells, mem: Memory, linear: int, size: int, refusal: int
) -> tuple[int, int, int]:
    """Read `size` bytes (2, 4 or 8) of a descriptor table or TSS: implicit supervisor access.

    Returns (value, -1, 0), or (0, page-fault error code, faulting linear address).
    Narrow values are zero-extended. SDM, section "Access Rights". The error is `refusal` (see
    REFUSED) if the address is not canonical, as near the end of a table it may be in IA-32e mode.
    """
    physical = remembered(mem, linear, kind_of(0, READ, 0))
    if physical >= 0 and (linear & 0xFFF) + size <= 0x1000:
        return load_sized(mem, physical, size), -1, 0
    return _read_system_anywhere(v, mem, linear, size, refusal)


@core
def _read_system_anywhere(
    v: Cells, mem: Memory, linear: int, size: int, refusal: int
) -> tuple[int, int, int]:
    last = linear + size - 1
    if v[GUEST_IA32_EFER] & EFER_LMA and not (canonical(linear) and canonical(last)):
        return 0, refusal, linear
    physical, error = locate(v, 0, mem, linear, READ, 0)
    if error >= 0:
        return 0, error, linear
    second = -1
    if (linear & 0xFFF) + size > 0x1000:
        # It straddles two pages: the second need not follow the first physically.
        onward = (linear | 0xFFF) + 1
        second, error, _, _ = walk(v, 0, mem, onward, READ, 0)
        if error >= 0:
            return 0, error, onward
    return load_across(mem, physical, second, linear, size), -1, 0


@core
def translate(v: Cells, mem: Memory, linear: int, access: int, user: int) -> tuple[int, int]:
    """Translate `linear` under the guest registers in VMCS `v`, an explicit access.

    Returns (physical address, -1), or (0, page-fault error code).
    """
    physical, error, _, _ = walk(v, v[GUEST_RFLAGS], mem, linear, access, user)
    return physical, error
