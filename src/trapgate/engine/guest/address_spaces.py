"""Cached translations of an x86 VMM, and of its guest with a VPID, kept apart (native path).

The engine's TLB has no tags. So it has two sets of tables here, of which the engine uses one and
the other is parked: one for the x86 VMM and all that has no VPID, and one for a guest with a VPID.
A VM entry or VM exit exchanges them (SDM, "Operations that Need Not Invalidate Cached Mappings":
transitions with "enable VPID").

What is parked is dropped when it is taken, unless all of this is so: nothing has had all
translations dropped meanwhile, as INVVPID and INVEPT, whoever changes memory behind the guest's
back, and the first code on a page that was stored to do; and it is for the same VMCS, VPID, EPT
pointer and controls, the same CR3, and the same paging mode. The SDM asks for less.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, peek32, peek64, poke32
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.instructions.intercepts import secondary_controls
from trapgate.paging.memory import WATCH_PAGES, WATCHED_PAGE
from trapgate.paging.translations import forget
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import vmx
from trapgate.sdm.interruption import INFO_VECTOR_MASK
from trapgate.sdm.reasons import REASON_EPT_VIOLATION, REASON_EXCEPTION_OR_NMI
from trapgate.sdm.state import CR0_PG, CR4_PAE, EFER_LMA
from trapgate.sdm.vectors import PF

CR0_OF_PAGING = 0x80010001
CR4_OF_PAGING = 0x7210B0
EFER_OF_PAGING = 0xD00
"""Bits that translations depend on."""
_CELLS = -at.TLB_CHANGED - 16 >> 3
"""Of a set of tables."""
_VICTIMS_CELLS = (at.TLB_DESCRIPTION_SIZE - at.TLB_VICTIM >> 3) - 1
"""Of the entries that were displaced, in a description."""
ALLOCATED = tuple(
    place - at.TLB_CHANGED >> 3
    for mode in range(at.TLB_MODES)
    for place in (
        at.TLB_DESCRIPTIONS + at.TLB_DESCRIPTION_SIZE * (mode + 1) - 8,
        at.TLB_TABLES + at.TLB_TABLE_SIZE * mode + 8,
    )
)
"""Cells of it that hold addresses of memory that the engine has allocated."""
_FLUSH_TLB = 1 << 30 | 11
"""Unicorn's control of that name, to be written, without arguments."""


@jit
@inlined
def has_guest(m: Cells) -> bool:
    """Whether the state in force is that of an x86 VMM's guest."""
    return bool(m[mc.V] == m[mc.N] or cells(m[mc.X], vmx.LENGTH)[vmx.GUEST_IN_VMCS0] != 0)


@jit
def has_set_of_its_own(m: Cells) -> bool:
    """Whether the state in force is that of a guest with a VPID, and with no frame map."""
    n = cells(m[mc.N], m[mc.V_CELLS])
    return bool(
        has_guest(m) and secondary_controls(n) & ct.SECONDARY_VPID and n[f.FRAME_MAP_LENGTH] == 0
    )


@jit
def needs_other_set(m: Cells) -> bool:
    """Whether the state in force has translations of its own, and the engine uses others."""
    return bool(has_set_of_its_own(m) != (m[mc.SPACE] != 0))


@jit
@inlined
def describe(m: Cells, whose: int, cr0: int, cr3: int, cr4: int, efer: int, guest: bool) -> None:
    """Record in cells `whose` what translations are for: these registers, the guest of N or not.

    In PAE paging they depend on registers more; the first cell is 0 then.
    """
    x = cells(m[mc.X], vmx.LENGTH)
    n = cells(m[mc.N], m[mc.V_CELLS])
    pae = cr0 & CR0_PG and cr4 & CR4_PAE and efer & EFER_LMA == 0
    of = m[whose:]
    of[0] = 0 if pae else 1
    of[1] = cr0 & CR0_OF_PAGING
    of[2] = cr3
    of[3] = cr4 & CR4_OF_PAGING
    of[4] = efer & EFER_OF_PAGING
    of[5] = x[vmx.CURRENT] if guest else 0
    of[6] = n[f.VIRTUAL_PROCESSOR_IDENTIFIER] if guest else 0
    of[7] = n[f.EPT_POINTER_IN_FORCE] if guest else 0
    of[8] = n[f.SECONDARY_PROCESSOR_BASED_CONTROLS] if guest else 0
    of[9] = n[f.APIC_ACCESS_PAGE_IN_FORCE] if guest else 0
    of[10] = n[f.PML_ADDRESS_IN_FORCE] if guest else 0


@jit
def describe_departing(m: Cells, env: int) -> None:
    """Before another state is loaded into the engine, after a VM entry or VM exit."""
    if not needs_other_set(m):
        return
    cr0, cr3, cr4 = peek64(env + at.CR0), peek64(env + at.CR3), peek64(env + at.CR4)
    efer = peek64(env + at.EFER)
    describe(m, mc.DEPARTING, cr0, cr3, cr4, efer, m[mc.SPACE] != 0)


@jit
def drop_current(m: Cells) -> None:
    """Drop the translations of the set that the engine uses."""
    m[mc.PARKS] = 1
    call(m[mc.TLB_FLUSH], (m[mc.CPU],))
    m[mc.PARKS] = 0


@jit
@inlined
def exchange(one: Cells, other: Cells, count: int) -> None:
    """Exchange the first cells of two arrays."""
    for cell in range(count):
        first = one[cell]
        one[cell] = other[cell]
        other[cell] = first


@jit
def exchange_tables(m: Cells, env: int) -> None:
    """Park the set that the engine uses, and let it use the other."""
    parked = m[mc.PARKED_TABLES :]
    current = cells(env + at.TLB_CHANGED, _CELLS)
    m[mc.SPACE] ^= 1
    if parked[_CELLS - 1] == 0:
        # There is no other yet.
        for cell in range(_CELLS):
            parked[cell] = current[cell]
        call(m[mc.TLB_INIT], (m[mc.CPU],))
        m[mc.ENTRIES + mc.ENTRIES_CELLS * m[mc.SPACE]] = 0
        return
    exchange(parked, current, 1)
    for mode in range(at.TLB_MODES):
        place = at.TLB_DESCRIPTIONS + at.TLB_DESCRIPTION_SIZE * mode - at.TLB_CHANGED >> 3
        ours, others = current[place:], parked[place:]
        # Where no entry was displaced there are none among the victims.
        displaced = ours[at.TLB_DISPLACED >> 3] | others[at.TLB_DISPLACED >> 3]
        exchange(ours, others, at.TLB_VICTIM >> 3)
        if displaced != 0:
            exchange(ours[at.TLB_VICTIM >> 3 :], others[at.TLB_VICTIM >> 3 :], _VICTIMS_CELLS)
        last = (at.TLB_DESCRIPTION_SIZE >> 3) - 1
        exchange(ours[last:], others[last:], 1)
    tables = at.TLB_TABLES - at.TLB_CHANGED >> 3
    exchange(parked[tables:], current[tables:], 2 * at.TLB_MODES)


@jit
def stores_unseen(m: Cells, env: int) -> bool:
    """Whether an entry in use would store to translated code without asking (for `audit`)."""
    pages = cells(m[mc.WATCH] + 8 * WATCH_PAGES, m[mc.MEM_CELLS] >> 9)
    found = False
    for mode in range(at.TLB_MODES):
        table = env + at.TLB_TABLES + at.TLB_TABLE_SIZE * mode
        for n in range((peek64(table) >> at.TLB_ENTRY_SHIFT) + 1):
            entry = peek64(table + 8) + (n << at.TLB_ENTRY_SHIFT)
            page = peek64(entry + at.TLB_PHYSICAL) >> 12
            if peek64(entry + at.TLB_WRITE) & 0xFFF == 0 and 0 <= page < len(pages):
                found = found or pages[page] & WATCHED_PAGE != 0
    return found


@jit
def drop_faulting_page(m: Cells) -> None:
    """A page fault or an EPT violation has made the guest exit: the page's translations go.

    SDM, "Invalidation of TLBs and Paging-Structure Caches"; "Operations that Invalidate Cached
    Mappings".
    """
    n = cells(m[mc.N], m[mc.V_CELLS])
    reason = n[f.EXIT_REASON] & 0xFFFF
    if reason == REASON_EPT_VIOLATION:
        call(m[mc.TLB_FLUSH_PAGE], (m[mc.CPU], n[f.GUEST_LINEAR_ADDRESS]))
    fault = n[f.VM_EXIT_INTERRUPTION_INFORMATION] & INFO_VECTOR_MASK
    if reason == REASON_EXCEPTION_OR_NMI and fault == PF:
        call(m[mc.TLB_FLUSH_PAGE], (m[mc.CPU], n[f.EXIT_QUALIFICATION]))


@jit
def take_set(m: Cells, env: int) -> None:
    """Exchange the sets after a VM entry or VM exit."""
    v = cells(m[mc.V], m[mc.V_CELLS])
    arriving, departing, parked = m[mc.ARRIVING :], m[mc.DEPARTING :], m[mc.PARKED :]
    cr0, cr3, cr4 = v[f.GUEST_CR0], v[f.GUEST_CR3], v[f.GUEST_CR4]
    describe(m, mc.ARRIVING, cr0, cr3, cr4, v[f.GUEST_IA32_EFER], m[mc.SPACE] == 0)
    others = arriving[0] ^ 1
    for cell in range(mc.SPACE_CELLS):
        others |= arriving[cell] ^ parked[cell]
        parked[cell] = departing[cell]
    if m[mc.SPACE] != 0:
        drop_faulting_page(m)
        # A guest's are parked at its own VM exits only.
        if has_guest(m):
            parked[0] = 0
    exchange_tables(m, env)
    forget(cells(m[mc.WATCH], WATCH_PAGES))
    flags = peek32(env + at.HFLAGS) & ~at.HF_GUESTS_SET
    poke32(env + at.HFLAGS, flags | at.HF_GUESTS_SET * m[mc.SPACE])
    if others != 0:
        drop_current(m)
    elif m[mc.AUDIT] != 0 and stores_unseen(m, env):
        m[mc.LEFT_OVER] = 1


@jit
def renew_translations(m: Cells, env: int) -> None:
    """Some have become stale, or cells SWITCHED say what has."""
    switched = m[mc.SWITCHED]
    if m[mc.NATIVE] == 0:
        call(m[mc.UC_CTL], (m[mc.UC], _FLUSH_TLB))
    elif switched & mc.SWITCHED_TRANSLATIONS:
        call(m[mc.TLB_FLUSH], (m[mc.CPU],))
    elif switched & mc.SWITCHED_SPACE and needs_other_set(m):
        take_set(m, env)
    else:
        drop_current(m)
