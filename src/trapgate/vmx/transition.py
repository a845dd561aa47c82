"""VM entry by an x86 VMM, and the VM exit back to it.

SDM, "VM Entries" and "VM Exits". `host` is VMCS 0, whose guest-state area holds the x86 VMM's
own state; `n` is its current VMCS, whose guest-state area is its guest's state while that runs;
`x` is the VMX state of the processor.
"""

from trapgate.compiler.dialect import Cells, Memory, Rows, core
from trapgate.decision.criteria_table import load_table
from trapgate.events.exits import vm_exit
from trapgate.events.idt import DELIVERED, deliver
from trapgate.events.journal import HEAD_CURRENT, HEAD_LEVEL
from trapgate.paging.walk import load_pointers, uses_pae_paging
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.sdm import vmx
from trapgate.sdm.checks import TABLE_ADDRESS
from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
)
from trapgate.sdm.reasons import (
    ERROR_ENTRY_CONTROL_FIELDS,
    ERROR_ENTRY_HOST_STATE,
    REASON_ENTRY_FAILURE,
    REASON_ENTRY_FAILURE_GUEST_STATE,
    REASON_ENTRY_FAILURE_MSR_LOADING,
    REASON_EXCEPTION_OR_NMI,
    REASON_VMLAUNCH,
)
from trapgate.vmx.checks.controls import check_controls, check_threshold
from trapgate.vmx.checks.guest_state import check_guest_state, qualification_of
from trapgate.vmx.checks.host_state import check_host_state
from trapgate.vmx.entry import (
    EXITED,
    FAILED,
    begin,
    evaluate_virtual_interrupts,
    put_ept_in_force,
    set_long_mode,
)
from trapgate.vmx.msr_areas import load_msrs, store_msrs
from trapgate.vmx.region import record_abort

_CODE_64 = 0xA09B
_CODE_32 = 0xC09B
_DATA = 0xC093
_UNUSABLE = 1 << 16
_BUSY_TSS = 0x8B
_KEPT_IN_CR0 = st.CR0_ET | st.CR0_NW | st.CR0_CD
"""Bits that neither VM entries nor VM exits change (SDM, "Loading Guest Control Registers")."""


@core
def enter_guest(
    x: Cells, host: Cells, n: Cells, r: Cells, mem: Memory, rows: Rows, head: Cells
) -> int:
    """VM entry with the current VMCS: RUNS, EXITED, or FAILED (x[ERROR] and flags say why).

    After EXITED the exit's information lies in `n`, and `leave_guest` has to be called.
    """
    x[vmx.ERROR] = ERROR_ENTRY_CONTROL_FIELDS
    check = TABLE_ADDRESS
    if load_table(n, mem):
        check = check_controls(n, x[vmx.CURRENT], x[vmx.SECONDARY_ALLOWED])
    if check == 0:
        check = check_threshold(n, mem)
    if check == 0:
        x[vmx.ERROR] = ERROR_ENTRY_HOST_STATE
        check = check_host_state(n, host[f.GUEST_IA32_EFER] & st.EFER_LMA != 0)
    if check != 0:
        n[f.FAILED_CHECK] = check
        return FAILED
    x[vmx.ENTRIES] += 1
    keep_unsaved(x, n)
    check = check_guest_state(n, mem, x[vmx.CURRENT])
    if check != 0:
        n[f.FAILED_CHECK] = check
        reason = REASON_ENTRY_FAILURE | REASON_ENTRY_FAILURE_GUEST_STATE
        vm_exit(n, reason, qualification_of(check), 0)
        x[vmx.FAILURES] += 1
        x[vmx.ERROR] = vmx.NO_ERROR
        return EXITED
    x[vmx.ROOT_CR0] = host[f.GUEST_CR0]
    x[vmx.ROOT_CR4] = host[f.GUEST_CR4]
    x[vmx.ROOT_BLOCKING] = host[f.GUEST_INTERRUPTIBILITY_STATE] & st.BLOCKING_BY_NMI
    load_unloaded(host, n)
    put_ept_in_force(n)
    evaluate_virtual_interrupts(n, mem)
    x[vmx.MODE] = vmx.MODE_NON_ROOT
    x[vmx.LATEST_PAUSE] = vmx.NEVER
    head[HEAD_CURRENT] = x[vmx.CURRENT]
    head[HEAD_LEVEL] = 1
    failed = load_msrs(n, r, mem, n[f.VM_ENTRY_MSR_LOAD_ADDRESS], n[f.VM_ENTRY_MSR_LOAD_COUNT])
    if failed != 0:
        vm_exit(n, REASON_ENTRY_FAILURE | REASON_ENTRY_FAILURE_MSR_LOADING, failed, 0)
        x[vmx.FAILURES] += 1
        x[vmx.ERROR] = vmx.NO_ERROR
        return EXITED
    if x[vmx.INSTRUCTION] == REASON_VMLAUNCH:
        x[vmx.LAUNCHED] = vmx.LAUNCHED_STATE
    return begin(n, r, mem, rows, head)


@core
def keep_unsaved(x: Cells, n: Cells) -> None:
    """Remember what the VMM wrote to fields that an exit may have to leave alone."""
    x[vmx.KEPT_DEBUGCTL] = n[f.GUEST_IA32_DEBUGCTL]
    x[vmx.KEPT_DR7] = n[f.GUEST_DR7]
    x[vmx.KEPT_PAT] = n[f.GUEST_IA32_PAT]
    x[vmx.KEPT_EFER] = n[f.GUEST_IA32_EFER]
    x[vmx.KEPT_PERF_GLOBAL_CTRL] = n[f.GUEST_IA32_PERF_GLOBAL_CTRL]


@core
def restore_unsaved(x: Cells, n: Cells) -> None:
    """Give fields that the exit controls do not save what the VMM wrote to them."""
    controls = n[f.VM_EXIT_CONTROLS]
    if controls & ct.EXIT_SAVE_DEBUG_CONTROLS == 0:
        n[f.GUEST_IA32_DEBUGCTL] = x[vmx.KEPT_DEBUGCTL]
        n[f.GUEST_DR7] = x[vmx.KEPT_DR7]
    if controls & ct.EXIT_SAVE_PAT == 0:
        n[f.GUEST_IA32_PAT] = x[vmx.KEPT_PAT]
    if controls & ct.EXIT_SAVE_EFER == 0:
        n[f.GUEST_IA32_EFER] = x[vmx.KEPT_EFER]
    if controls & ct.EXIT_SAVE_PERF_GLOBAL_CTRL == 0:
        n[f.GUEST_IA32_PERF_GLOBAL_CTRL] = x[vmx.KEPT_PERF_GLOBAL_CTRL]


@core
def load_unloaded(host: Cells, n: Cells) -> None:
    """What the entry controls do not load stays as the VMM has it."""
    controls = n[f.VM_ENTRY_CONTROLS]
    if controls & ct.ENTRY_LOAD_DEBUG_CONTROLS == 0:
        n[f.GUEST_IA32_DEBUGCTL] = host[f.GUEST_IA32_DEBUGCTL]
        n[f.GUEST_DR7] = host[f.GUEST_DR7]
    if controls & ct.ENTRY_LOAD_PAT == 0:
        n[f.GUEST_IA32_PAT] = host[f.GUEST_IA32_PAT]
    if controls & ct.ENTRY_LOAD_PERF_GLOBAL_CTRL == 0:
        n[f.GUEST_IA32_PERF_GLOBAL_CTRL] = host[f.GUEST_IA32_PERF_GLOBAL_CTRL]
    if controls & ct.ENTRY_LOAD_EFER == 0:
        n[f.GUEST_IA32_EFER] = host[f.GUEST_IA32_EFER]
    set_long_mode(n)
    n[f.GUEST_CR0] = (n[f.GUEST_CR0] & ~_KEPT_IN_CR0) | (host[f.GUEST_CR0] & _KEPT_IN_CR0)


@core
def leave_guest(
    x: Cells, host: Cells, n: Cells, r: Cells, mem: Memory, head: Cells, time: int, timer: int
) -> int:
    """The VM exit that `n` records: back to the x86 VMM. 0, or a VMX-abort code.

    `time` is the time-stamp counter as `host` sees it, `timer` what is left of the
    VMX-preemption timer. Afterwards `host`'s guest-state area is the state to run.
    """
    reason = n[f.EXIT_REASON]
    basic = reason & 0xFFFF
    x[vmx.EXITS + min(basic, vmx.EXIT_REASONS - 1)] += 1
    loaded = x[vmx.MODE] == vmx.MODE_NON_ROOT
    x[vmx.MODE] = vmx.MODE_ROOT
    head[HEAD_CURRENT] = vmx.NONE
    head[HEAD_LEVEL] = 0
    efer = n[f.GUEST_IA32_EFER] if loaded else host[f.GUEST_IA32_EFER]
    pat = n[f.GUEST_IA32_PAT] if loaded else host[f.GUEST_IA32_PAT]
    counting = n[f.GUEST_IA32_PERF_GLOBAL_CTRL] if loaded else host[f.GUEST_IA32_PERF_GLOBAL_CTRL]
    cr0 = n[f.GUEST_CR0] if loaded else host[f.GUEST_CR0]
    blocking = leaves_blocked(x, n) if loaded else host[f.GUEST_INTERRUPTIBILITY_STATE]
    abort = 0
    if reason & REASON_ENTRY_FAILURE == 0:
        if n[f.VM_EXIT_CONTROLS] & ct.EXIT_SAVE_PREEMPTION_TIMER:
            n[f.VMX_PREEMPTION_TIMER_VALUE] = timer
        address = n[f.VM_EXIT_MSR_STORE_ADDRESS]
        if store_msrs(n, r, mem, address, n[f.VM_EXIT_MSR_STORE_COUNT], time) != 0:
            abort = vmx.ABORT_SAVING_MSRS
    if loaded:
        if reason & REASON_ENTRY_FAILURE == 0:
            restore_unsaved(x, n)
        else:
            restore_all(x, n)
    load_host_state(x, host, n, efer, pat, counting, cr0)
    host[f.GUEST_INTERRUPTIBILITY_STATE] = blocking & st.BLOCKING_BY_NMI
    if abort == 0 and uses_pae_paging(host) and load_pointers(host, mem) >= 0:
        abort = vmx.ABORT_HOST_PDPTE
    if abort == 0:
        address = n[f.VM_EXIT_MSR_LOAD_ADDRESS]
        if load_msrs(host, r, mem, address, n[f.VM_EXIT_MSR_LOAD_COUNT]) != 0:
            abort = vmx.ABORT_LOADING_MSRS
    if abort == 0 and n[f.EXIT_THROUGH_IDT] != 0 and not exit_through_idt(host, n, mem):
        abort = vmx.ABORT_HOST_IDT
    if abort != 0:
        x[vmx.ABORT] = abort
        record_abort(mem, x[vmx.CURRENT], abort)
    return abort


@core
def exit_through_idt(host: Cells, n: Cells, mem: Memory) -> bool:
    """¶26: enter the x86 VMM through the gate of a vector; False if the host cannot take it.

    An exception that exits has its own vector and its error code, every other exit the
    vector of the field. The frame returns to HOST_RIP. All exit information is as usual.
    """
    vector = n[f.EXIT_THROUGH_IDT] & vmx.THROUGH_IDT_VECTOR
    error_code = -1
    info = n[f.VM_EXIT_INTERRUPTION_INFORMATION]
    if n[f.EXIT_REASON] == REASON_EXCEPTION_OR_NMI and info & INFO_VALID:
        vector = info & INFO_VECTOR_MASK
        if info & INFO_DELIVER_ERROR_CODE:
            error_code = n[f.VM_EXIT_INTERRUPTION_ERROR_CODE]
    # As a hardware exception: no gate's privilege level is in its way.
    fault, _, _ = deliver(host, mem, vector, TYPE_HARDWARE_EXCEPTION, error_code, 0)
    return bool(fault == DELIVERED)


@core
def restore_all(x: Cells, n: Cells) -> None:
    """A failed VM entry saves nothing: every field is as the VMM wrote it."""
    n[f.GUEST_IA32_DEBUGCTL] = x[vmx.KEPT_DEBUGCTL]
    n[f.GUEST_DR7] = x[vmx.KEPT_DR7]
    n[f.GUEST_IA32_PAT] = x[vmx.KEPT_PAT]
    n[f.GUEST_IA32_EFER] = x[vmx.KEPT_EFER]
    n[f.GUEST_IA32_PERF_GLOBAL_CTRL] = x[vmx.KEPT_PERF_GLOBAL_CTRL]


@core
def leaves_blocked(x: Cells, n: Cells) -> int:
    """Blocking by NMI after an exit: as before, and by an NMI that exits."""
    blocking = n[f.GUEST_INTERRUPTIBILITY_STATE]
    if n[f.PIN_BASED_CONTROLS] & ct.PIN_VIRTUAL_NMIS:
        # The field tells of virtual NMIs then.
        blocking = x[vmx.ROOT_BLOCKING]
    info = n[f.VM_EXIT_INTERRUPTION_INFORMATION]
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    if n[f.EXIT_REASON] == REASON_EXCEPTION_OR_NMI and info & INFO_VALID and kind == TYPE_NMI:
        blocking = blocking | st.BLOCKING_BY_NMI
    return int(blocking)


@core
def load_host_state(
    x: Cells, host: Cells, n: Cells, efer: int, pat: int, counting: int, cr0: int
) -> None:
    """SDM, "Loading Host State": into `host`, whose guest the x86 VMM is.

    `efer`, `pat`, `counting` (IA32_PERF_GLOBAL_CTRL) and `cr0` are what the registers hold before.
    """
    controls = n[f.VM_EXIT_CONTROLS]
    long = controls & ct.EXIT_HOST_ADDRESS_SPACE_SIZE != 0
    new_cr0 = (n[f.HOST_CR0] & ~_KEPT_IN_CR0) | (cr0 & _KEPT_IN_CR0)
    # What the VMM in Python owns of these registers stays as it keeps it.
    mask = host[f.CR0_GUEST_HOST_MASK]
    host[f.GUEST_CR0] = (new_cr0 & ~mask) | (x[vmx.ROOT_CR0] & mask)
    host[f.CR0_READ_SHADOW] = new_cr0
    host[f.GUEST_CR3] = n[f.HOST_CR3]
    mask = host[f.CR4_GUEST_HOST_MASK]
    host[f.GUEST_CR4] = (n[f.HOST_CR4] & ~mask) | (x[vmx.ROOT_CR4] & mask)
    host[f.CR4_READ_SHADOW] = n[f.HOST_CR4]
    if controls & ct.EXIT_LOAD_EFER:
        efer = n[f.HOST_IA32_EFER]
    efer = efer & ~(st.EFER_LMA | st.EFER_LME)
    if long:
        efer = efer | st.EFER_LMA | st.EFER_LME
    host[f.GUEST_IA32_EFER] = efer
    host[f.GUEST_IA32_PAT] = n[f.HOST_IA32_PAT] if controls & ct.EXIT_LOAD_PAT else pat
    if controls & ct.EXIT_LOAD_PERF_GLOBAL_CTRL:
        counting = n[f.HOST_IA32_PERF_GLOBAL_CTRL]
    host[f.GUEST_IA32_PERF_GLOBAL_CTRL] = counting
    host[f.GUEST_DR7] = st.DR7_FIXED_1
    host[f.GUEST_IA32_DEBUGCTL] = 0
    host[f.GUEST_IA32_SYSENTER_CS] = n[f.HOST_IA32_SYSENTER_CS]
    host[f.GUEST_IA32_SYSENTER_ESP] = n[f.HOST_IA32_SYSENTER_ESP]
    host[f.GUEST_IA32_SYSENTER_EIP] = n[f.HOST_IA32_SYSENTER_EIP]
    for k in range(6):
        selector = n[f.HOST_ES_SELECTOR + k]
        host[f.GUEST_ES_SELECTOR + k] = selector
        host[f.GUEST_ES_BASE + k] = 0
        host[f.GUEST_ES_LIMIT + k] = 0xFFFF_FFFF
        host[f.GUEST_ES_ACCESS_RIGHTS + k] = _DATA if selector != 0 else _DATA | _UNUSABLE
    host[f.GUEST_CS_ACCESS_RIGHTS] = _CODE_64 if long else _CODE_32
    host[f.GUEST_FS_BASE] = n[f.HOST_FS_BASE]
    host[f.GUEST_GS_BASE] = n[f.HOST_GS_BASE]
    host[f.GUEST_TR_SELECTOR] = n[f.HOST_TR_SELECTOR]
    host[f.GUEST_TR_BASE] = n[f.HOST_TR_BASE]
    host[f.GUEST_TR_LIMIT] = 0x67
    host[f.GUEST_TR_ACCESS_RIGHTS] = _BUSY_TSS
    host[f.GUEST_LDTR_SELECTOR] = 0
    host[f.GUEST_LDTR_BASE] = 0
    host[f.GUEST_LDTR_LIMIT] = 0
    host[f.GUEST_LDTR_ACCESS_RIGHTS] = _UNUSABLE
    host[f.GUEST_GDTR_BASE] = n[f.HOST_GDTR_BASE]
    host[f.GUEST_GDTR_LIMIT] = 0xFFFF
    host[f.GUEST_IDTR_BASE] = n[f.HOST_IDTR_BASE]
    host[f.GUEST_IDTR_LIMIT] = 0xFFFF
    host[f.GUEST_RIP] = n[f.HOST_RIP]
    host[f.GUEST_RSP] = n[f.HOST_RSP] if long else n[f.HOST_RSP] & 0xFFFF_FFFF
    host[f.GUEST_RFLAGS] = st.RFLAGS_FIXED_1
    host[f.GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
    # It may have come with the guest's state, when that was moved to VMCS 0.
    host[f.EPT_POINTER_IN_FORCE] = host[f.APIC_ACCESS_PAGE_IN_FORCE] = 0
    host[f.PML_ADDRESS_IN_FORCE] = 0
    host[f.GUEST_ACTIVITY_STATE] = st.ACTIVITY_ACTIVE


@core
def copy_guest_state(source: Cells, target: Cells) -> None:
    """Lend or give back the state of the running guest: the whole guest-state area.

    But the interrupt status: interrupts are posted to a guest also while it is served.
    With it goes what its physical addresses mean.
    """
    target[f.EPT_POINTER_IN_FORCE] = source[f.EPT_POINTER_IN_FORCE]
    target[f.APIC_ACCESS_PAGE_IN_FORCE] = source[f.APIC_ACCESS_PAGE_IN_FORCE]
    target[f.PML_ADDRESS_IN_FORCE] = source[f.PML_ADDRESS_IN_FORCE]
    target[f.PML_INDEX] = source[f.PML_INDEX]
    for cell in range(f.GUEST_ES_SELECTOR, f.GUEST_TR_SELECTOR + 1):
        target[cell] = source[cell]
    for cell in range(f.GUEST_IA32_DEBUGCTL, f.GUEST_PDPTE3 + 1):
        target[cell] = source[cell]
    for cell in range(f.GUEST_ES_LIMIT, f.GUEST_IA32_SYSENTER_CS + 1):
        target[cell] = source[cell]
    for cell in range(f.GUEST_CR0, f.GUEST_IA32_SYSENTER_EIP + 1):
        target[cell] = source[cell]
