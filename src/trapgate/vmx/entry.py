"""VM entry: the checks, the injected event, and what happens before the first instruction.

SDM, "VM Entries"; the second seed throughout. The guest-state area is the guest's
state, so there is nothing to load; what remains is the order of things.
"""

from trapgate.compiler.dialect import Cells, Memory, Rows, core, inlined
from trapgate.decision.criteria_table import load_table
from trapgate.events.delivery import raise_event
from trapgate.events.exits import vm_exit
from trapgate.instructions.virtual_apic import (
    delivers_interrupts,
    has_tpr_shadow,
    is_below_threshold,
    virtualize_ppr,
)
from trapgate.paging.walk import load_pointers_of_entry
from trapgate.sdm.cells import (
    APIC_ACCESS_PAGE_IN_FORCE,
    CRITERIA_TABLE_ADDRESS,
    EPT_POINTER_IN_FORCE,
    FAILED_CHECK,
    GUEST_ACTIVITY_STATE,
    GUEST_IA32_EFER,
    GUEST_INTERRUPTIBILITY_STATE,
    GUEST_PENDING_DEBUG_EXCEPTIONS,
    GUEST_RFLAGS,
    PIN_BASED_CONTROLS,
    PML_ADDRESS_IN_FORCE,
    PRIMARY_PROCESSOR_BASED_CONTROLS,
    VM_ENTRY_CONTROLS,
    VM_ENTRY_EXCEPTION_ERROR_CODE,
    VM_ENTRY_INSTRUCTION_LENGTH,
    VM_ENTRY_INTERRUPTION_INFORMATION,
    VM_INSTRUCTION_ERROR,
    VMX_PREEMPTION_TIMER_VALUE,
)
from trapgate.sdm.checks import TABLE_ADDRESS
from trapgate.sdm.controls import (
    ENTRY_IA32E_MODE_GUEST,
    ENTRY_LOAD_EFER,
    PIN_PREEMPTION_TIMER,
    PRIMARY_INTERRUPT_WINDOW_EXITING,
    PRIMARY_MONITOR_TRAP_FLAG,
    PRIMARY_NMI_WINDOW_EXITING,
    SECONDARY_ALLOWED_1,
)
from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_OTHER_EVENT,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.reasons import (
    ERROR_ENTRY_CONTROL_FIELDS,
    REASON_ENTRY_FAILURE,
    REASON_ENTRY_FAILURE_GUEST_STATE,
    REASON_INTERRUPT_WINDOW,
    REASON_MONITOR_TRAP_FLAG,
    REASON_NMI_WINDOW,
    REASON_PREEMPTION_TIMER,
    REASON_TPR_BELOW_THRESHOLD,
)
from trapgate.sdm.registers import CR2
from trapgate.sdm.state import (
    ACTIVITY_ACTIVE,
    ACTIVITY_HLT,
    ACTIVITY_SHUTDOWN,
    ACTIVITY_WAIT_FOR_SIPI,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    EFER_LMA,
    EFER_LME,
    PENDING_BS,
    PENDING_ENABLED_BREAKPOINT,
    RFLAGS_IF,
)
from trapgate.sdm.vectors import DB
from trapgate.vmx.checks.controls import (
    apic_access_page,
    check_controls,
    check_threshold,
    ept_pointer,
    modification_log,
)
from trapgate.vmx.checks.guest_state import check_guest_state, qualification_of

RUNS = 0
EXITED = 1
FAILED = 2

_DR6_BITS = 0xF | PENDING_BS
_BREAKPOINTS = 4


@core
def enter(v: Cells, r: Cells, mem: Memory, rows: Rows, head: Cells) -> int:
    """Enter the guest of VMCS `v`.

    Returns RUNS (the guest is about to run, or waits in its activity state), EXITED (a
    VM exit is recorded, perhaps an entry failure with bit 31 of EXIT_REASON set) or
    FAILED (VMfailValid; VM_INSTRUCTION_ERROR says why). If a check failed, FAILED_CHECK
    has its number (`sdm.checks`). Nothing else has changed then.
    """
    # A VMM in Python puts its table after the fields itself, and names no address.
    is_there = v[CRITERIA_TABLE_ADDRESS] == 0 or load_table(v, mem)
    check = check_controls(v, -1, SECONDARY_ALLOWED_1) if is_there else TABLE_ADDRESS
    if check == 0:
        check = check_threshold(v, mem)
    if check != 0:
        v[VM_INSTRUCTION_ERROR] = ERROR_ENTRY_CONTROL_FIELDS
        v[FAILED_CHECK] = check
        return FAILED
    put_ept_in_force(v)
    check = check_guest_state(v, mem, -1)
    if check != 0:
        reason = REASON_ENTRY_FAILURE | REASON_ENTRY_FAILURE_GUEST_STATE
        vm_exit(v, reason, qualification_of(check), 0)
        v[FAILED_CHECK] = check
        return EXITED
    set_long_mode(v)
    return begin(v, r, mem, rows, head)


@core
@inlined
def put_ept_in_force(v: Cells) -> None:
    """Put EPT, APIC-access page and page-modification log in force as the controls say."""
    v[EPT_POINTER_IN_FORCE] = ept_pointer(v)
    v[APIC_ACCESS_PAGE_IN_FORCE] = apic_access_page(v)
    v[PML_ADDRESS_IN_FORCE] = modification_log(v)


@core
def evaluate_virtual_interrupts(v: Cells, mem: Memory) -> None:
    """VM entry virtualizes the PPR, which says whether a virtual interrupt is recognized."""
    if delivers_interrupts(v):
        virtualize_ppr(v, mem)


@core
def set_long_mode(v: Cells) -> None:
    """Without "load IA32_EFER" its LMA and LME follow "IA-32e mode guest"."""
    if v[VM_ENTRY_CONTROLS] & ENTRY_LOAD_EFER == 0:
        mode = 0
        if v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST:
            mode = EFER_LMA | EFER_LME
        v[GUEST_IA32_EFER] = (v[GUEST_IA32_EFER] & ~(EFER_LMA | EFER_LME)) | mode


@core
def begin(v: Cells, r: Cells, mem: Memory, rows: Rows, head: Cells) -> int:
    """What follows once the guest's state is loaded: RUNS, or EXITED before it could run."""
    load_pointers_of_entry(v, mem)
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    blocked_by_mov_ss = v[GUEST_INTERRUPTIBILITY_STATE] & BLOCKING_BY_MOV_SS != 0
    if info & INFO_VALID:
        if kind == TYPE_OTHER_EVENT:
            # The only such event is a pending monitor-trap-flag exit.
            vm_exit(v, REASON_MONITOR_TRAP_FLAG, 0, 0)
            return EXITED
        pending = v[GUEST_PENDING_DEBUG_EXCEPTIONS]
        survives = blocked_by_mov_ss and kind in (
            TYPE_SOFTWARE_INTERRUPT,
            TYPE_SOFTWARE_EXCEPTION,
        )
        if not survives:
            v[GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
        if inject(v, r, mem, rows, head) != 0:
            v[GUEST_PENDING_DEBUG_EXCEPTIONS] = pending
            return EXITED
        if v[PRIMARY_PROCESSOR_BASED_CONTROLS] & PRIMARY_MONITOR_TRAP_FLAG:
            vm_exit(v, REASON_MONITOR_TRAP_FLAG, 0, 0)
            return EXITED
    if take_pending_debug(v, r, mem, rows, head) != 0:
        return EXITED
    if is_due_below_threshold(v, mem):
        vm_exit(v, REASON_TPR_BELOW_THRESHOLD, 0, 0)
        return EXITED
    return exit_before_instruction(v)


@core
def is_due_below_threshold(v: Cells, mem: Memory) -> bool:
    """SDM, "VM Exits Induced by the TPR Threshold": only where a check has not refused it."""
    if delivers_interrupts(v):
        return False
    if v[APIC_ACCESS_PAGE_IN_FORCE] == 0 or v[GUEST_ACTIVITY_STATE] == ACTIVITY_WAIT_FOR_SIPI:
        return False
    return has_tpr_shadow(v) and is_below_threshold(v, mem)


@core
def inject(v: Cells, r: Cells, mem: Memory, rows: Rows, head: Cells) -> int:
    """Deliver the event in the VM-entry interruption-information field; 1 if that exits.

    SDM, "Vectored-Event Injection". No event can be blocked by STI or MOV SS
    afterwards, whether or not its delivery succeeds.
    """
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    vector = info & INFO_VECTOR_MASK
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    error_code = -1
    if info & INFO_DELIVER_ERROR_CODE:
        error_code = v[VM_ENTRY_EXCEPTION_ERROR_CODE]
    v[GUEST_INTERRUPTIBILITY_STATE] = v[GUEST_INTERRUPTIBILITY_STATE] & ~(
        BLOCKING_BY_STI | BLOCKING_BY_MOV_SS
    )
    v[VM_ENTRY_INTERRUPTION_INFORMATION] = info & ~INFO_VALID
    length = v[VM_ENTRY_INSTRUCTION_LENGTH]
    # A page fault is where the VMM has said in CR2; that is for the journal only.
    return raise_event(v, r, mem, rows, head, vector, kind, error_code, r[CR2], length, 1)


@core
def take_pending_debug(v: Cells, r: Cells, mem: Memory, rows: Rows, head: Cells) -> int:
    """Raise the debug exception that is pending between instructions, if any; 1 if that exits.

    SDM, "Delivery of Pending Debug Exceptions after VM Entry". While blocked by MOV SS
    it stays in the field, for the end of the next instruction. If the frame of #DB meets a
    breakpoint, that is pending next. A processor that finds each frame in the same place never
    gets out of this; here the fifth waits until the run may be stopped.
    """
    for _ in range(_BREAKPOINTS):
        if v[GUEST_INTERRUPTIBILITY_STATE] & BLOCKING_BY_MOV_SS:
            return 0
        pending = v[GUEST_PENDING_DEBUG_EXCEPTIONS]
        v[GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
        if v[GUEST_ACTIVITY_STATE] in (ACTIVITY_SHUTDOWN, ACTIVITY_WAIT_FOR_SIPI):
            return 0
        if pending & (PENDING_BS | PENDING_ENABLED_BREAKPOINT) == 0:
            return 0
        causes = pending & _DR6_BITS
        if raise_event(v, r, mem, rows, head, DB, TYPE_HARDWARE_EXCEPTION, -1, causes, 0, 0) != 0:
            return 1
    return 0


@core
def exit_before_instruction(v: Cells) -> int:
    """The exits that fall due before an instruction: preemption timer, NMI and interrupt window.

    SDM, "VM-Execution Control Fields" and "Other Causes of VM Exits". Returns EXITED or
    RUNS; whoever opens a window later (STI, IRET) asks again.
    """
    activity = v[GUEST_ACTIVITY_STATE]
    if activity == ACTIVITY_WAIT_FOR_SIPI:
        return RUNS
    if v[PIN_BASED_CONTROLS] & PIN_PREEMPTION_TIMER and v[VMX_PREEMPTION_TIMER_VALUE] == 0:
        vm_exit(v, REASON_PREEMPTION_TIMER, 0, 0)
        return EXITED
    blocking = v[GUEST_INTERRUPTIBILITY_STATE]
    primary = v[PRIMARY_PROCESSOR_BASED_CONTROLS]
    if (
        primary & PRIMARY_NMI_WINDOW_EXITING
        and blocking & (BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS | BLOCKING_BY_STI) == 0
    ):
        vm_exit(v, REASON_NMI_WINDOW, 0, 0)
        return EXITED
    if (
        primary & PRIMARY_INTERRUPT_WINDOW_EXITING
        and activity in (ACTIVITY_ACTIVE, ACTIVITY_HLT)
        and v[GUEST_RFLAGS] & RFLAGS_IF
        and blocking & (BLOCKING_BY_STI | BLOCKING_BY_MOV_SS) == 0
    ):
        vm_exit(v, REASON_INTERRUPT_WINDOW, 0, 0)
        return EXITED
    return RUNS
