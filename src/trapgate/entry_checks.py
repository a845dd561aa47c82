"""The checks of VM entry on controls and on guest state.

SDM, "Checks on VMX Controls and Host-State Area" (without the host-state area: the
VMM is not x86 code here) and "Checking and Loading Guest State". The checks are those
of the features that exist; a control that does not exist fails its reserved-bit check.
"""

from trapgate.core import Cells, core
from trapgate.decide import extension_fields_valid
from trapgate.memory import load64
from trapgate.paging import MAXPHYADDR
from trapgate.sdm.cells import (
    CR3_TARGET_COUNT,
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
    GUEST_IA32_SYSENTER_EIP,
    GUEST_IA32_SYSENTER_ESP,
    GUEST_IDTR_BASE,
    GUEST_IDTR_LIMIT,
    GUEST_INTERRUPTIBILITY_STATE,
    GUEST_PENDING_DEBUG_EXCEPTIONS,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_SS_ACCESS_RIGHTS,
    IO_BITMAP_A_ADDRESS,
    IO_BITMAP_B_ADDRESS,
    MSR_BITMAP_ADDRESS,
    PIN_BASED_CONTROLS,
    PRIMARY_PROCESSOR_BASED_CONTROLS,
    SECONDARY_PROCESSOR_BASED_CONTROLS,
    VIRTUAL_PROCESSOR_IDENTIFIER,
    VM_ENTRY_CONTROLS,
    VM_ENTRY_EXCEPTION_ERROR_CODE,
    VM_ENTRY_INSTRUCTION_LENGTH,
    VM_ENTRY_INTERRUPTION_INFORMATION,
    VM_ENTRY_MSR_LOAD_COUNT,
    VM_EXIT_CONTROLS,
    VM_EXIT_MSR_LOAD_COUNT,
    VM_EXIT_MSR_STORE_COUNT,
    VMCS_LINK_POINTER,
)
from trapgate.sdm.controls import (
    ENTRY_ALLOWED_0,
    ENTRY_ALLOWED_1,
    ENTRY_IA32E_MODE_GUEST,
    ENTRY_LOAD_DEBUG_CONTROLS,
    ENTRY_LOAD_EFER,
    ENTRY_LOAD_PAT,
    EXIT_ALLOWED_0,
    EXIT_ALLOWED_1,
    EXIT_SAVE_PREEMPTION_TIMER,
    PIN_ALLOWED_0,
    PIN_ALLOWED_1,
    PIN_NMI_EXITING,
    PIN_PREEMPTION_TIMER,
    PIN_VIRTUAL_NMIS,
    PRIMARY_ALLOWED_0,
    PRIMARY_ALLOWED_1,
    PRIMARY_NMI_WINDOW_EXITING,
    PRIMARY_SECONDARY_CONTROLS,
    PRIMARY_USE_IO_BITMAPS,
    PRIMARY_USE_MSR_BITMAPS,
    SECONDARY_ALLOWED_0,
    SECONDARY_ALLOWED_1,
    SECONDARY_UNRESTRICTED_GUEST,
    SECONDARY_VPID,
)
from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_ENTRY_RESERVED,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_OTHER_EVENT,
    TYPE_RESERVED,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.reasons import ERROR_ENTRY_CONTROL_FIELDS
from trapgate.sdm.state import (
    ACTIVITY_ACTIVE,
    ACTIVITY_HLT,
    ACTIVITY_SHUTDOWN,
    ACTIVITY_WAIT_FOR_SIPI,
    AR_DPL,
    AR_L,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_SMI,
    BLOCKING_BY_STI,
    CR0_PE,
    CR0_PG,
    CR4_DE,
    CR4_FSGSBASE,
    CR4_MCE,
    CR4_OSFXSR,
    CR4_OSXMMEXCPT,
    CR4_OSXSAVE,
    CR4_PAE,
    CR4_PCE,
    CR4_PGE,
    CR4_PSE,
    CR4_PVI,
    CR4_SMAP,
    CR4_SMEP,
    CR4_TSD,
    CR4_VME,
    CR4_VMXE,
    EFER_DEFINED,
    EFER_LMA,
    EFER_LME,
    PENDING_BS,
    PENDING_ENABLED_BREAKPOINT,
    RFLAGS_FIXED_1,
    RFLAGS_IF,
    RFLAGS_RESERVED_LOW,
    RFLAGS_TF,
    RFLAGS_VM,
)
from trapgate.sdm.vectors import CP, DB, ERROR_CODE_VECTORS, MC, NMI
from trapgate.segment_checks import segments_valid

CR4_ALLOWED_1 = (
    CR4_VME
    | CR4_PVI
    | CR4_TSD
    | CR4_DE
    | CR4_PSE
    | CR4_PAE
    | CR4_MCE
    | CR4_PGE
    | CR4_PCE
    | CR4_OSFXSR
    | CR4_OSXMMEXCPT
    | CR4_VMXE
    | CR4_FSGSBASE
    | CR4_OSXSAVE
    | CR4_SMEP
    | CR4_SMAP
)
"""Bits of CR4 that may be 1; none must be (IA32_VMX_CR4_FIXED0 would be 0, so that a VMM
need not hide CR4.VMXE from its guest, nor CR0.NE)."""

QUALIFICATION_NONE = 0
QUALIFICATION_PDPTE = 2
QUALIFICATION_NMI_UNDER_STI = 3
QUALIFICATION_LINK_POINTER = 4

_CODE_AT_ENTRY = ERROR_CODE_VECTORS & ~(1 << CP)
# Without CET, #CP is a vector like any other reserved one.
_BTF = 2
_DEBUGCTL_DEFINED = 0xDFC3
_PENDING_DEFINED = 0xF | PENDING_ENABLED_BREAKPOINT | PENDING_BS


@core
def check_entry(v: Cells) -> int:
    """Check the control fields: 0, or the VM-instruction error number (VMfailValid)."""
    pin = v[PIN_BASED_CONTROLS]
    primary = v[PRIMARY_PROCESSOR_BASED_CONTROLS]
    exit_controls = v[VM_EXIT_CONTROLS]
    entry_controls = v[VM_ENTRY_CONTROLS]
    legal = (
        _within(pin, PIN_ALLOWED_0, PIN_ALLOWED_1)
        and _within(primary, PRIMARY_ALLOWED_0, PRIMARY_ALLOWED_1)
        and _within(exit_controls, EXIT_ALLOWED_0, EXIT_ALLOWED_1)
        and _within(entry_controls, ENTRY_ALLOWED_0, ENTRY_ALLOWED_1)
    )
    if primary & PRIMARY_SECONDARY_CONTROLS and not _within(
        v[SECONDARY_PROCESSOR_BASED_CONTROLS], SECONDARY_ALLOWED_0, SECONDARY_ALLOWED_1
    ):
        legal = False
    if pin & PIN_VIRTUAL_NMIS and pin & PIN_NMI_EXITING == 0:
        legal = False
    if primary & PRIMARY_NMI_WINDOW_EXITING and pin & PIN_VIRTUAL_NMIS == 0:
        legal = False
    if exit_controls & EXIT_SAVE_PREEMPTION_TIMER and pin & PIN_PREEMPTION_TIMER == 0:
        legal = False
    secondary = v[SECONDARY_PROCESSOR_BASED_CONTROLS]
    if primary & PRIMARY_SECONDARY_CONTROLS and secondary & SECONDARY_VPID:
        # VPID 0 is the host's.
        legal = legal and v[VIRTUAL_PROCESSOR_IDENTIFIER] != 0
    if v[CR3_TARGET_COUNT] > 4:
        legal = False
    if primary & PRIMARY_USE_IO_BITMAPS and not (
        _page_address(v[IO_BITMAP_A_ADDRESS]) and _page_address(v[IO_BITMAP_B_ADDRESS])
    ):
        legal = False
    if primary & PRIMARY_USE_MSR_BITMAPS and not _page_address(v[MSR_BITMAP_ADDRESS]):
        legal = False
    # No MSR areas: every MSR there is has its field, or is the VMM's to switch.
    if v[VM_EXIT_MSR_STORE_COUNT] | v[VM_EXIT_MSR_LOAD_COUNT] | v[VM_ENTRY_MSR_LOAD_COUNT]:
        legal = False
    if not injection_legal(v) or not extension_fields_valid(v):
        legal = False
    return 0 if legal else ERROR_ENTRY_CONTROL_FIELDS


@core
def _within(value: int, must: int, may: int) -> bool:
    return value & must == must and value & ~may == 0


@core
def _page_address(address: int) -> bool:
    return address & 0xFFF == 0 and address >> MAXPHYADDR == 0


@core
def unrestricted_guest(v: Cells) -> bool:
    """Whether the guest may run without paging or in real-address mode."""
    return bool(
        v[PRIMARY_PROCESSOR_BASED_CONTROLS] & PRIMARY_SECONDARY_CONTROLS != 0
        and v[SECONDARY_PROCESSOR_BASED_CONTROLS] & SECONDARY_UNRESTRICTED_GUEST != 0
    )


@core
def injection_legal(v: Cells) -> bool:
    """Whether the event-injection fields are consistent (SDM, "VM-Entry Control Fields")."""
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    if info & INFO_VALID == 0:
        return True
    vector = info & INFO_VECTOR_MASK
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    if kind == TYPE_RESERVED or info & INFO_ENTRY_RESERVED:
        return False
    if kind == TYPE_NMI and vector != NMI:
        return False
    if kind == TYPE_HARDWARE_EXCEPTION and vector > 31:
        return False
    if kind == TYPE_OTHER_EVENT and vector != 0:
        return False
    wants_code = (
        kind == TYPE_HARDWARE_EXCEPTION
        and (_CODE_AT_ENTRY >> vector) & 1 != 0
        and (not unrestricted_guest(v) or v[GUEST_CR0] & CR0_PE != 0)
    )
    if wants_code != (info & INFO_DELIVER_ERROR_CODE != 0):
        return False
    if wants_code and v[VM_ENTRY_EXCEPTION_ERROR_CODE] >> 16 != 0:
        return False
    if TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION:
        return bool(1 <= v[VM_ENTRY_INSTRUCTION_LENGTH] <= 15)
    return True


@core
def canonical(address: int) -> bool:
    """Whether a 64-bit address is canonical for 48-bit linear addresses."""
    return -(1 << 47) <= address < 1 << 47


@core
def check_guest_state(v: Cells, mem: Cells) -> int:
    """Check the guest-state area: -1 if all is well, or the exit qualification to report."""
    if not (
        _control_registers_valid(v)
        and segments_valid(v, unrestricted_guest(v))
        and _tables_and_flags_valid(v)
        and _activity_valid(v)
        and _pending_debug_valid(v)
    ):
        return QUALIFICATION_NONE
    blocking = _check_interruptibility(v)
    if blocking >= 0:
        return blocking
    # Without VMCS shadowing there is nothing that the link pointer could point to.
    if v[VMCS_LINK_POINTER] != -1:
        return QUALIFICATION_LINK_POINTER
    pae = v[GUEST_CR0] & CR0_PG and v[GUEST_CR4] & CR4_PAE
    if pae and v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST == 0:
        reserved = 0x1E6 | ~((1 << MAXPHYADDR) - 1)
        for n in range(4):
            entry = load64(mem, (v[GUEST_CR3] & 0xFFFF_FFE0) + 8 * n)
            if entry & 1 and entry & reserved:
                return QUALIFICATION_PDPTE
    return -1


@core
def _control_registers_valid(v: Cells) -> bool:
    """SDM, "Checks on Guest Control Registers, Debug Registers, and MSRs"."""
    cr0 = v[GUEST_CR0]
    cr4 = v[GUEST_CR4]
    entry_controls = v[VM_ENTRY_CONTROLS]
    long = entry_controls & ENTRY_IA32E_MODE_GUEST != 0
    if cr0 & ~0xFFFF_FFFF or cr4 & ~CR4_ALLOWED_1:
        return False
    if cr0 & CR0_PE == 0 and (cr0 & CR0_PG or not unrestricted_guest(v)):
        return False
    if cr0 & CR0_PG == 0 and (long or not unrestricted_guest(v)):
        return False
    if long and cr4 & CR4_PAE == 0:
        return False
    if v[GUEST_CR3] >> MAXPHYADDR != 0:
        return False
    if entry_controls & ENTRY_LOAD_DEBUG_CONTROLS and (
        v[GUEST_IA32_DEBUGCTL] & ~_DEBUGCTL_DEFINED or v[GUEST_DR7] >> 32 != 0
    ):
        return False
    if not canonical(v[GUEST_IA32_SYSENTER_ESP]) or not canonical(v[GUEST_IA32_SYSENTER_EIP]):
        return False
    if entry_controls & ENTRY_LOAD_PAT:
        for n in range(8):
            kind = (v[GUEST_IA32_PAT] >> (8 * n)) & 0xFF
            if kind > 7 or kind in (2, 3):
                return False
    if entry_controls & ENTRY_LOAD_EFER:
        efer = v[GUEST_IA32_EFER]
        lma = efer & EFER_LMA != 0
        if efer & ~EFER_DEFINED or lma != long:
            return False
        if cr0 & CR0_PG and lma != (efer & EFER_LME != 0):
            return False
    return True


@core
def _tables_and_flags_valid(v: Cells) -> bool:
    """SDM, "Checks on Guest Descriptor-Table Registers" and "... RIP and RFLAGS"."""
    if not canonical(v[GUEST_GDTR_BASE]) or not canonical(v[GUEST_IDTR_BASE]):
        return False
    if v[GUEST_GDTR_LIMIT] >> 16 != 0 or v[GUEST_IDTR_LIMIT] >> 16 != 0:
        return False
    long = v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST != 0
    if long and v[GUEST_CS_ACCESS_RIGHTS] & AR_L:
        if not canonical(v[GUEST_RIP]):
            return False
    elif v[GUEST_RIP] >> 32 != 0:
        return False
    rflags = v[GUEST_RFLAGS]
    if rflags >> 22 != 0 or rflags & RFLAGS_RESERVED_LOW or rflags & RFLAGS_FIXED_1 == 0:
        return False
    if rflags & RFLAGS_VM and (long or v[GUEST_CR0] & CR0_PE == 0):
        return False
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    external = info & INFO_VALID != 0 and kind == TYPE_EXTERNAL_INTERRUPT
    return bool(not external or rflags & RFLAGS_IF != 0)


@core
def _activity_valid(v: Cells) -> bool:
    """SDM, "Checks on Guest Non-Register State", activity state."""
    activity = v[GUEST_ACTIVITY_STATE]
    if activity == ACTIVITY_ACTIVE:
        return True
    if activity < 0 or activity > ACTIVITY_WAIT_FOR_SIPI:
        return False
    if activity == ACTIVITY_HLT and v[GUEST_SS_ACCESS_RIGHTS] & AR_DPL:
        return False
    if v[GUEST_INTERRUPTIBILITY_STATE] & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS):
        return False
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    if info & INFO_VALID == 0:
        return True
    vector = info & INFO_VECTOR_MASK
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    if activity == ACTIVITY_HLT:
        return kind in (TYPE_EXTERNAL_INTERRUPT, TYPE_NMI, TYPE_OTHER_EVENT) or (
            kind == TYPE_HARDWARE_EXCEPTION and vector in (DB, MC)
        )
    if activity == ACTIVITY_SHUTDOWN:
        return bool(kind == TYPE_NMI or (kind == TYPE_HARDWARE_EXCEPTION and vector == MC))
    return False


@core
def _check_interruptibility(v: Cells) -> int:
    """SDM, "Checks on Guest Non-Register State", interruptibility: -1 or a qualification."""
    state = v[GUEST_INTERRUPTIBILITY_STATE]
    sti = state & BLOCKING_BY_STI != 0
    mov_ss = state & BLOCKING_BY_MOV_SS != 0
    defined = BLOCKING_BY_STI | BLOCKING_BY_MOV_SS | BLOCKING_BY_SMI | BLOCKING_BY_NMI
    if state & ~defined or state & BLOCKING_BY_SMI or (sti and mov_ss):
        return QUALIFICATION_NONE
    if sti and v[GUEST_RFLAGS] & RFLAGS_IF == 0:
        return QUALIFICATION_NONE
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    if info & INFO_VALID == 0:
        return -1
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    if kind == TYPE_EXTERNAL_INTERRUPT and (sti or mov_ss):
        return QUALIFICATION_NONE
    if kind == TYPE_NMI:
        if mov_ss:
            return QUALIFICATION_NONE
        if state & BLOCKING_BY_NMI and v[PIN_BASED_CONTROLS] & PIN_VIRTUAL_NMIS:
            return QUALIFICATION_NONE
        if sti:
            return QUALIFICATION_NMI_UNDER_STI
    return -1


@core
def _pending_debug_valid(v: Cells) -> bool:
    """SDM, "Checks on Guest Non-Register State", pending debug exceptions."""
    pending = v[GUEST_PENDING_DEBUG_EXCEPTIONS]
    if pending & ~_PENDING_DEFINED:
        return False
    blocked = v[GUEST_INTERRUPTIBILITY_STATE] & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS)
    if blocked == 0 and v[GUEST_ACTIVITY_STATE] != ACTIVITY_HLT:
        return True
    stepping = v[GUEST_RFLAGS] & RFLAGS_TF != 0 and v[GUEST_IA32_DEBUGCTL] & _BTF == 0
    return bool(stepping == (pending & PENDING_BS != 0))
