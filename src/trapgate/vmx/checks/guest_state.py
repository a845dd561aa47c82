"""The checks of VM entry on the guest-state area: exit reason 33 if one fails.

SDM, "Checks on the Guest State Area", in its order. `current` tells whose VMCS it is:
the physical address of the current VMCS of a VMM that is x86 code, -1 for a VMM in
Python, which need not set CR0.NE and CR4.VMXE, nor hide them from its guest.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.instructions.intercepts import secondary_controls
from trapgate.paging.frame_map import has_frame_map
from trapgate.paging.memory import MAXPHYADDR, load32, load64
from trapgate.paging.walk import LINEAR_ADDRESS_BITS, canonical, pat_is_legal, pointer_is_legal
from trapgate.sdm import checks as ck
from trapgate.sdm import state as st
from trapgate.sdm import vmx
from trapgate.sdm.cells import (
    GUEST_ACTIVITY_STATE,
    GUEST_CR0,
    GUEST_CR3,
    GUEST_CR4,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_DR7,
    GUEST_GDTR_BASE,
    GUEST_GDTR_LIMIT,
    GUEST_IA32_DEBUGCTL,
    GUEST_IA32_EFER,
    GUEST_IA32_PAT,
    GUEST_IA32_PERF_GLOBAL_CTRL,
    GUEST_IA32_SYSENTER_EIP,
    GUEST_IA32_SYSENTER_ESP,
    GUEST_IDTR_BASE,
    GUEST_IDTR_LIMIT,
    GUEST_INTERRUPTIBILITY_STATE,
    GUEST_PDPTE0,
    GUEST_PENDING_DEBUG_EXCEPTIONS,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_SS_ACCESS_RIGHTS,
    PIN_BASED_CONTROLS,
    VM_ENTRY_CONTROLS,
    VM_ENTRY_INTERRUPTION_INFORMATION,
    VMCS_LINK_POINTER,
)
from trapgate.sdm.controls import (
    ENTRY_IA32E_MODE_GUEST,
    ENTRY_LOAD_DEBUG_CONTROLS,
    ENTRY_LOAD_EFER,
    ENTRY_LOAD_PAT,
    ENTRY_LOAD_PERF_GLOBAL_CTRL,
    PIN_VIRTUAL_NMIS,
    SECONDARY_VMCS_SHADOWING,
)
from trapgate.sdm.interruption import (
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_OTHER_EVENT,
)
from trapgate.sdm.vectors import DB, MC
from trapgate.vmx.checks.controls import ept_pointer, page_address, unrestricted_guest
from trapgate.vmx.checks.segments import check_segments

QUALIFICATION_NONE = 0
QUALIFICATION_PDPTE = 2
QUALIFICATION_NMI_UNDER_STI = 3
QUALIFICATION_LINK_POINTER = 4

_PENDING_DEFINED = 0xF | st.PENDING_ENABLED_BREAKPOINT | st.PENDING_BS
_BY_STI_OR_SS = st.BLOCKING_BY_STI | st.BLOCKING_BY_MOV_SS
_BLOCKING_DEFINED = _BY_STI_OR_SS | st.BLOCKING_BY_SMI | st.BLOCKING_BY_NMI


@core
def check_guest_state(v: Cells, mem: Memory, current: int) -> int:
    """Check the guest-state area of VMCS `v`: 0, or the number of the first check that failed."""
    check = _check_control_registers(v, current)
    if check == 0:
        check = check_segments(v, unrestricted_guest(v))
    if check == 0:
        check = _check_tables(v)
    if check == 0:
        check = _check_rip_and_rflags(v)
    if check == 0:
        check = _check_activity(v)
    if check == 0:
        check = _check_interruptibility(v)
    if check in (0, ck.BLOCKING_NMI_BY_STI):
        # What a processor may do without speaks last.
        pending = _check_pending_debug(v)
        check = check if pending == 0 else pending
    if check == 0:
        check = _check_link_pointer(v, mem, current)
    if check == 0:
        check = _check_page_directory_pointers(v, mem)
    return check


@core
def qualification_of(check: int) -> int:
    """The exit qualification of a VM entry that fails because of a guest-state `check`.

    SDM, "VM-Entry Failures During or After Loading Guest State".
    """
    if check >= ck.PDPTE:
        return QUALIFICATION_PDPTE
    if check == ck.BLOCKING_NMI_BY_STI:
        return QUALIFICATION_NMI_UNDER_STI
    if check in (ck.LINK_ADDRESS, ck.LINK_REVISION, ck.LINK_CURRENT):
        return QUALIFICATION_LINK_POINTER
    return QUALIFICATION_NONE


@core
def _check_control_registers(v: Cells, current: int) -> int:
    cr0 = v[GUEST_CR0]
    cr4 = v[GUEST_CR4]
    entry_controls = v[VM_ENTRY_CONTROLS]
    long = entry_controls & ENTRY_IA32E_MODE_GUEST != 0
    cr0_fixed_0 = vmx.CR0_FIXED_0
    cr4_fixed_0 = vmx.CR4_FIXED_0
    if current < 0:
        cr0_fixed_0 = cr0_fixed_0 & ~st.CR0_NE
        cr4_fixed_0 = 0
    if unrestricted_guest(v):
        cr0_fixed_0 = cr0_fixed_0 & ~(st.CR0_PE | st.CR0_PG)
    if cr0 & cr0_fixed_0 != cr0_fixed_0 or cr0 & ~vmx.CR0_FIXED_1:
        return ck.GUEST_CR0
    if cr0 & st.CR0_PG and cr0 & st.CR0_PE == 0:
        return ck.GUEST_CR0_PG
    if cr4 & cr4_fixed_0 != cr4_fixed_0 or cr4 & ~st.CR4_IMPLEMENTED:
        return ck.GUEST_CR4
    debug = entry_controls & ENTRY_LOAD_DEBUG_CONTROLS != 0
    if debug and v[GUEST_IA32_DEBUGCTL] & ~st.DEBUGCTL_DEFINED:
        return ck.GUEST_DEBUGCTL
    if long and cr0 & st.CR0_PG == 0:
        return ck.GUEST_LONG_PG
    if long and cr4 & st.CR4_PAE == 0:
        return ck.GUEST_LONG_PAE
    if not long and cr4 & st.CR4_PCIDE:
        return ck.GUEST_LEGACY_PCIDE
    if v[GUEST_CR3] >> MAXPHYADDR != 0:
        return ck.GUEST_CR3
    if debug and v[GUEST_DR7] >> 32 != 0:
        return ck.GUEST_DR7
    if not canonical(v[GUEST_IA32_SYSENTER_ESP]):
        return ck.GUEST_SYSENTER_ESP
    if not canonical(v[GUEST_IA32_SYSENTER_EIP]):
        return ck.GUEST_SYSENTER_EIP
    counting = v[GUEST_IA32_PERF_GLOBAL_CTRL]
    if entry_controls & ENTRY_LOAD_PERF_GLOBAL_CTRL and counting & ~st.PERF_GLOBAL_CTRL_DEFINED:
        return ck.GUEST_PERF_GLOBAL_CTRL
    if entry_controls & ENTRY_LOAD_PAT and not pat_is_legal(v[GUEST_IA32_PAT]):
        return ck.GUEST_PAT
    if entry_controls & ENTRY_LOAD_EFER:
        efer = v[GUEST_IA32_EFER]
        lma = efer & st.EFER_LMA != 0
        if efer & ~st.EFER_DEFINED:
            return ck.GUEST_EFER_RESERVED
        if lma != long:
            return ck.GUEST_EFER_LMA
        if cr0 & st.CR0_PG and lma != (efer & st.EFER_LME != 0):
            return ck.GUEST_EFER_LME
    return 0


@core
def _check_tables(v: Cells) -> int:
    """SDM, "Checks on Guest Descriptor-Table Registers"."""
    if not canonical(v[GUEST_GDTR_BASE]):
        return ck.GUEST_GDTR_BASE
    if not canonical(v[GUEST_IDTR_BASE]):
        return ck.GUEST_IDTR_BASE
    if v[GUEST_GDTR_LIMIT] >> 16 != 0:
        return ck.GUEST_GDTR_LIMIT
    if v[GUEST_IDTR_LIMIT] >> 16 != 0:
        return ck.GUEST_IDTR_LIMIT
    return 0


@core
def _check_rip_and_rflags(v: Cells) -> int:
    long = v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST != 0
    if long and v[GUEST_CS_ACCESS_RIGHTS] & st.AR_L:
        # Bits 63:48 alike, which is not canonical yet: an exit may have left RIP one byte after
        # the lower half of the address space.
        if v[GUEST_RIP] >> LINEAR_ADDRESS_BITS not in (0, -1):
            return ck.GUEST_RIP_CANONICAL
    elif v[GUEST_RIP] >> 32 != 0:
        return ck.GUEST_RIP_HIGH
    rflags = v[GUEST_RFLAGS]
    reserved = rflags >> 22 != 0 or rflags & st.RFLAGS_RESERVED_LOW != 0
    if reserved or rflags & st.RFLAGS_FIXED_1 == 0:
        return ck.GUEST_RFLAGS_RESERVED
    if rflags & st.RFLAGS_VM and (long or v[GUEST_CR0] & st.CR0_PE == 0):
        return ck.GUEST_RFLAGS_VM
    if _injects(v, TYPE_EXTERNAL_INTERRUPT) and rflags & st.RFLAGS_IF == 0:
        return ck.GUEST_RFLAGS_IF
    return 0


@core
@inlined
def _injects(v: Cells, wanted: int) -> bool:
    """Whether the VM entry injects an event of that type."""
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    return bool(info & INFO_VALID != 0 and kind == wanted)


@core
def _check_activity(v: Cells) -> int:
    """SDM, "Checks on Guest Non-Register State", activity state."""
    activity = v[GUEST_ACTIVITY_STATE]
    if activity == st.ACTIVITY_ACTIVE:
        return 0
    if activity < 0 or activity > st.ACTIVITY_WAIT_FOR_SIPI:
        return ck.ACTIVITY_UNKNOWN
    if activity == st.ACTIVITY_HLT and v[GUEST_SS_ACCESS_RIGHTS] & st.AR_DPL:
        return ck.ACTIVITY_HLT_DPL
    if v[GUEST_INTERRUPTIBILITY_STATE] & _BY_STI_OR_SS:
        return ck.ACTIVITY_BLOCKED
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    if info & INFO_VALID == 0:
        return 0
    vector = info & INFO_VECTOR_MASK
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    machine_check = kind == TYPE_HARDWARE_EXCEPTION and vector == MC
    awakes = False
    if activity == st.ACTIVITY_HLT:
        debug = kind == TYPE_HARDWARE_EXCEPTION and vector == DB
        signal = kind in (TYPE_EXTERNAL_INTERRUPT, TYPE_NMI, TYPE_OTHER_EVENT)
        awakes = signal or debug or machine_check
    elif activity == st.ACTIVITY_SHUTDOWN:
        awakes = kind == TYPE_NMI or machine_check
    return 0 if awakes else ck.ACTIVITY_INJECTION


@core
def _check_interruptibility(v: Cells) -> int:
    """SDM, "Checks on Guest Non-Register State", interruptibility state."""
    state = v[GUEST_INTERRUPTIBILITY_STATE]
    sti = state & st.BLOCKING_BY_STI != 0
    mov_ss = state & st.BLOCKING_BY_MOV_SS != 0
    if state & ~_BLOCKING_DEFINED:
        return ck.BLOCKING_RESERVED
    if sti and mov_ss:
        return ck.BLOCKING_STI_AND_SS
    if sti and v[GUEST_RFLAGS] & st.RFLAGS_IF == 0:
        return ck.BLOCKING_STI_WITHOUT_IF
    if (sti or mov_ss) and _injects(v, TYPE_EXTERNAL_INTERRUPT):
        return ck.BLOCKING_INTERRUPT
    nmi = _injects(v, TYPE_NMI)
    if mov_ss and nmi:
        return ck.BLOCKING_NMI_BY_SS
    if state & st.BLOCKING_BY_SMI:
        return ck.BLOCKING_SMI
    if nmi and state & st.BLOCKING_BY_NMI and v[PIN_BASED_CONTROLS] & PIN_VIRTUAL_NMIS:
        return ck.BLOCKING_VIRTUAL_NMI
    # The last, because a processor may do without it.
    if sti and nmi:
        return ck.BLOCKING_NMI_BY_STI
    return 0


@core
def _check_pending_debug(v: Cells) -> int:
    """SDM, "Checks on Guest Non-Register State", pending debug exceptions."""
    pending = v[GUEST_PENDING_DEBUG_EXCEPTIONS]
    if pending & ~_PENDING_DEFINED:
        return ck.PENDING_RESERVED
    blocked = v[GUEST_INTERRUPTIBILITY_STATE] & _BY_STI_OR_SS
    if blocked == 0 and v[GUEST_ACTIVITY_STATE] != st.ACTIVITY_HLT:
        return 0
    single = v[GUEST_RFLAGS] & st.RFLAGS_TF != 0 and v[GUEST_IA32_DEBUGCTL] & st.DEBUGCTL_BTF == 0
    if single and pending & st.PENDING_BS == 0:
        return ck.PENDING_BS_MISSING
    if not single and pending & st.PENDING_BS:
        return ck.PENDING_BS_SURPLUS
    return 0


@core
def _check_link_pointer(v: Cells, mem: Memory, current: int) -> int:
    """SDM, "Checks on Guest Non-Register State", VMCS link pointer.

    To a VMM in Python no region of memory is a VMCS.
    """
    link = v[VMCS_LINK_POINTER]
    if link == -1:
        return 0
    if not page_address(link):
        return ck.LINK_ADDRESS
    # Bit 31 of the identifier, set in a shadow VMCS, has to be as the control is.
    wanted = vmx.REVISION
    if secondary_controls(v) & SECONDARY_VMCS_SHADOWING:
        wanted |= vmx.SHADOW_INDICATOR
    if current < 0 or load32(mem, link) != wanted:
        return ck.LINK_REVISION
    if link == current:
        return ck.LINK_CURRENT
    return 0


@core
def _check_page_directory_pointers(v: Cells, mem: Memory) -> int:
    """SDM, "Checks on Guest Page-Directory-Pointer-Table Entries"."""
    pae = v[GUEST_CR0] & st.CR0_PG != 0 and v[GUEST_CR4] & st.CR4_PAE != 0
    if not pae or v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST:
        return 0
    in_fields = ept_pointer(v) != 0 or has_frame_map(v)
    for n in range(4):
        if in_fields:
            if not pointer_is_legal(v[GUEST_PDPTE0 + n]):
                return ck.PDPTE_FIELD + n
        elif not pointer_is_legal(load64(mem, (v[GUEST_CR3] & 0xFFFF_FFE0) + 8 * n)):
            return ck.PDPTE + n
    return 0
