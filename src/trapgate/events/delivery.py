"""What becomes of an event: VM exit, delivery, nested faults, double and triple fault.

Each fault is first put to `decide_event` as itself. Only if it stays in the guest is it
combined with the event whose delivery it broke off. What comes of that is decided and
delivered in its turn, until a handler is entered, something exits or the guest shuts down.
SDM, "VM Exits Caused by Events During Event Delivery" (chapter on VM exits) and "Interrupt 8 -
Double Fault Exception"; second seed, claims 8 and 9.
"""

from trapgate.compiler.dialect import Cells, Memory, Rows, core
from trapgate.decision.decide import (
    COMPLETE,
    DELIVER,
    EXIT,
    REASON_EPT,
    REASON_INJECTED,
    REASON_TASK_GATE,
    REASON_TRIPLE_FAULT,
    decide_event,
)
from trapgate.decision.entry_facts import KIND
from trapgate.events.breakpoints import note_words
from trapgate.events.exits import record_idt_vectoring, record_interruption, vm_exit
from trapgate.events.idt import DELIVERED, TASK_GATE, deliver
from trapgate.events.ivt import is_redirected
from trapgate.events.journal import (
    HEAD_DATA,
    HEAD_ENTRY,
    HEAD_OLD_VALUE,
    change_disposition,
    record,
)
from trapgate.operands.mode import in_64_bit_mode
from trapgate.paging.apic_access import APIC_ACCESS, access_qualification
from trapgate.paging.ept import (
    EPT_VIOLATION,
    LINEAR_VALID,
    LOG_FULL,
    UNBLOCKED_BY_IRET,
    ept_address,
    ept_exit_reason,
    ept_qualification,
)
from trapgate.paging.walk import REFUSED, REFUSED_VECTOR
from trapgate.sdm.cells import (
    EXIT_QUALIFICATION,
    EXIT_REASON,
    GUEST_ACTIVITY_STATE,
    GUEST_CR0,
    GUEST_DR7,
    GUEST_IA32_DEBUGCTL,
    GUEST_IA32_EFER,
    GUEST_INTERRUPTIBILITY_STATE,
    GUEST_LINEAR_ADDRESS,
    GUEST_PENDING_DEBUG_EXCEPTIONS,
    GUEST_PHYSICAL_ADDRESS,
    GUEST_RFLAGS,
    GUEST_RSP,
    GUEST_SS_ACCESS_RIGHTS,
    GUEST_SS_BASE,
    IDT_VECTORING_INFORMATION,
    VM_EXIT_CONTROLS,
    VM_EXIT_INTERRUPTION_INFORMATION,
)
from trapgate.sdm.controls import EXIT_ACKNOWLEDGE_INTERRUPT
from trapgate.sdm.interruption import (
    INFO_NMI_UNBLOCKING,
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_PRIVILEGED_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.reasons import (
    REASON_APIC_ACCESS,
    REASON_EXCEPTION_OR_NMI,
    REASON_EXTERNAL_INTERRUPT,
    REASON_TASK_SWITCH,
)
from trapgate.sdm.reasons import REASON_TRIPLE_FAULT as EXIT_TRIPLE_FAULT
from trapgate.sdm.registers import CR2, DR6
from trapgate.sdm.state import (
    ACTIVITY_ACTIVE,
    AR_DB,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    CR0_PE,
    DEBUGCTL_DEFINED,
    DR6_BREAKPOINTS,
    DR7_GD,
    EFER_LMA,
    RFLAGS_IOPL,
    RFLAGS_RF,
    RFLAGS_VM,
)
from trapgate.sdm.vectors import CONTRIBUTORY_VECTORS, DB, DF, GP, PAGE_FAULT_VECTORS, PF

COMBINE_SERIALLY = 0
COMBINE_DOUBLE_FAULT = 1
COMBINE_SHUTDOWN = 2

_TASK_SWITCH_BY_GATE = 3 << 30
_DR7_ENABLED = 0xFF


@core
def combine(first: int, first_kind: int, second: int) -> int:
    """What the fault `second` (a vector) makes of the event it met during delivery.

    `first` and `first_kind` are that event's vector and interruption type. Returns
    COMBINE_SERIALLY, COMBINE_DOUBLE_FAULT or COMBINE_SHUTDOWN. SDM, "Interrupt 8 -
    Double Fault Exception", table of the conditions.
    """
    # Interrupts, NMIs and what instructions raise on purpose are benign whatever their vector.
    if first_kind != TYPE_HARDWARE_EXCEPTION or first > 31:
        return COMBINE_SERIALLY
    contributory = (CONTRIBUTORY_VECTORS >> second) & 1
    page_fault = (PAGE_FAULT_VECTORS >> second) & 1
    if contributory == 0 and page_fault == 0:
        return COMBINE_SERIALLY
    if first == DF:
        return COMBINE_SHUTDOWN
    if (PAGE_FAULT_VECTORS >> first) & 1:
        return COMBINE_DOUBLE_FAULT
    if (CONTRIBUTORY_VECTORS >> first) & 1 and contributory:
        return COMBINE_DOUBLE_FAULT
    return COMBINE_SERIALLY


@core
def raise_event(
    v: Cells,
    r: Cells,
    mem: Memory,
    rows: Rows,
    head: Cells,
    vector: int,
    kind: int,
    error_code: int,
    address: int,
    length: int,
    injected: int,
) -> int:
    """Arbitrate one event and carry the outcome out; returns 0 delivered, 1 exited, 2 completed.

    `v` is the VMCS, whose guest-state area is the guest's state, `r` the register
    file, `mem` physical memory, `rows` and `head` the journal. `kind` is the
    interruption type, `error_code` is -1 if the event has none. `address` is the
    linear address of a page fault, or for #DB the DR6 bits that are to be set
    (3:0, 13, 14). `length` is the instruction's in bytes for the types 4, 5 and 6, whose
    RIP is still that of the instruction. With `injected` 1 the event comes from a VM
    entry: it is put to no criterion and leaves CR2, DR6, DR7 and RF alone (SDM,
    "Vectored-Event Injection"). A page fault whose error code is one of `ept`'s is none, but
    an exit for an EPT violation or misconfiguration, which nothing can filter; and one whose error
    code is a refusal (`walk.REFUSED`) is the exception that this tells.

    A delivery that fails changes nothing but what the event itself did before: CR2 of
    a page fault that stays in the guest, DR6 of a debug exception, RF, and blocking
    by NMI. Breakpoints that the frame of a delivered event meets are left pending
    (GUEST_PENDING_DEBUG_EXCEPTIONS): their trap comes next, by `vmx.entry.take_pending_debug`.
    NMI unblocking due to IRET is left to the caller, who knows the instruction
    (`report_unblocking`).
    """
    if v[GUEST_CR0] & CR0_PE == 0 and error_code < EPT_VIOLATION:
        # Real-address mode knows no error codes (SDM, "Information for VM Exits Due to
        # Vectored Events").
        error_code = -1
    if (
        kind == TYPE_SOFTWARE_INTERRUPT
        and injected == 0
        and v[GUEST_RFLAGS] & RFLAGS_VM
        and v[GUEST_RFLAGS] & RFLAGS_IOPL != RFLAGS_IOPL
    ):
        redirected, wrong, _, _ = is_redirected(v, mem, vector, kind)
        if not redirected and wrong != PF:
            # INT n in virtual-8086 mode is sensitive to IOPL; it is not a delivery yet.
            vector = GP
            kind = TYPE_HARDWARE_EXCEPTION
            error_code = 0

    # The event being delivered when the current one came up: none, at first.
    outer = -1
    outer_kind = 0
    outer_error = -1
    depth = 0
    while True:
        if error_code >= REFUSED:
            if error_code >= EPT_VIOLATION:
                _exit_for_ept(v, error_code, address, length, outer, outer_kind, outer_error)
                if outer >= 0:
                    change_disposition(rows, head, outer, outer_kind, EXIT, REASON_EPT)
                return 1
            vector = (error_code >> REFUSED_VECTOR) & 0x1F
            error_code &= 0xFFFF
            address = 0
        fresh = injected == 0 or depth > 0
        row_address = address if vector == PF and kind == TYPE_HARDWARE_EXCEPTION else 0
        disposition, reason = DELIVER, REASON_INJECTED
        if fresh:
            # A write to a page table that was judged and refused has left its data.
            disposition, reason = decide_event(
                v,
                r,
                mem,
                vector,
                kind,
                error_code,
                address,
                length,
                depth,
                outer,
                head[HEAD_ENTRY] & KIND,
                head[HEAD_OLD_VALUE],
                head[HEAD_DATA],
            )
        if disposition == COMPLETE:
            record(v, rows, head, vector, kind, error_code, row_address, COMPLETE, reason, depth, 0)
            return 2
        if fresh and kind == TYPE_HARDWARE_EXCEPTION and vector != DB:
            # Faults set RF in the image they push or, at an exit, in what is saved. The
            # #DB of a trap does not, nor does that of a breakpoint or of DR7.GD.
            v[GUEST_RFLAGS] = v[GUEST_RFLAGS] | RFLAGS_RF
        elif fresh and TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION:
            # The instruction had begun, and with it RF was cleared.
            v[GUEST_RFLAGS] = v[GUEST_RFLAGS] & ~RFLAGS_RF
        is_injected = 1 if not fresh else 0
        record(
            v,
            rows,
            head,
            vector,
            kind,
            error_code,
            row_address,
            disposition,
            reason,
            depth,
            is_injected,
        )
        if disposition == EXIT:
            _exit_for(v, vector, kind, error_code, address, length, outer, outer_kind, outer_error)
            return 1

        v[GUEST_ACTIVITY_STATE] = ACTIVITY_ACTIVE
        if kind == TYPE_NMI:
            v[GUEST_INTERRUPTIBILITY_STATE] = v[GUEST_INTERRUPTIBILITY_STATE] | BLOCKING_BY_NMI
        if fresh:
            _before_delivery(v, r, vector, kind, address)
        if outer >= 0:
            outcome = combine(outer, outer_kind, vector)
            if outcome == COMBINE_SHUTDOWN:
                vm_exit(v, EXIT_TRIPLE_FAULT, 0, 0)
                change_disposition(rows, head, vector, kind, EXIT, REASON_TRIPLE_FAULT)
                return 1
            if outcome == COMBINE_DOUBLE_FAULT:
                outer = -1
                vector = DF
                kind = TYPE_HARDWARE_EXCEPTION
                error_code = 0
                if v[GUEST_CR0] & CR0_PE == 0:
                    error_code = -1
                address = 0
                depth += 1
                continue

        fault, fault_error, fault_address = deliver(v, mem, vector, kind, error_code, length)
        if fault == DELIVERED:
            v[GUEST_INTERRUPTIBILITY_STATE] = v[GUEST_INTERRUPTIBILITY_STATE] & ~(
                BLOCKING_BY_STI | BLOCKING_BY_MOV_SS
            )
            if injected == 0:
                # What MOV SS has held back is lost where the next instruction does not end.
                v[GUEST_PENDING_DEBUG_EXCEPTIONS] = 0
            if v[GUEST_DR7] & _DR7_ENABLED:
                # A delivered event has a frame of words in the place of fault and address.
                _note_frame(v, r, fault_error, fault_address)
            return 0
        if fault == TASK_GATE:
            vm_exit(
                v,
                REASON_TASK_SWITCH,
                _TASK_SWITCH_BY_GATE | fault_error,
                _length_of(kind, length),
            )
            record_idt_vectoring(v, vector, kind, error_code)
            change_disposition(rows, head, vector, kind, EXIT, REASON_TASK_GATE)
            return 1
        outer = vector
        outer_kind = kind
        outer_error = error_code
        vector = fault
        kind = TYPE_HARDWARE_EXCEPTION
        error_code = fault_error
        address = fault_address
        if v[GUEST_IA32_EFER] & EFER_LMA == 0:
            address = fault_address & 0xFFFF_FFFF
        depth += 1


@core
def _note_frame(v: Cells, r: Cells, size: int, count: int) -> None:
    """Compare the frame of a handler that has been entered with data breakpoints.

    `count` words of `size` bytes, on the handler's stack. The SDM makes no exception of them in
    "Data Memory and I/O Breakpoint Exception Conditions".
    """
    base = 0
    mask = -1
    if not in_64_bit_mode(v):
        base = v[GUEST_SS_BASE]
        mask = 0xFFFF_FFFF if v[GUEST_SS_ACCESS_RIGHTS] & AR_DB else 0xFFFF
    note_words(v, r, base, v[GUEST_RSP], mask, size, count, True)


@core
def report_unblocking(v: Cells, vector: int, kind: int, error_code: int) -> None:
    """Say that the exit of this event interrupted an IRET that had unblocked NMIs.

    SDM, "Information for VM Exits Due to Vectored Events" and "Exit Qualification for EPT
    Violations". Not for a double fault, nor where the event met another's delivery.
    """
    if kind != TYPE_HARDWARE_EXCEPTION or vector == DF or v[IDT_VECTORING_INFORMATION] != 0:
        return
    if v[EXIT_REASON] == REASON_EXCEPTION_OR_NMI:
        v[VM_EXIT_INTERRUPTION_INFORMATION] = (
            v[VM_EXIT_INTERRUPTION_INFORMATION] | INFO_NMI_UNBLOCKING
        )
    elif EPT_VIOLATION <= error_code < APIC_ACCESS:
        v[EXIT_QUALIFICATION] = v[EXIT_QUALIFICATION] | UNBLOCKED_BY_IRET


@core
def _length_of(kind: int, length: int) -> int:
    """The instruction length that an exit reports: only software events have one."""
    if TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION:
        return length
    return 0


@core
def _exit_for(
    v: Cells,
    vector: int,
    kind: int,
    error_code: int,
    address: int,
    length: int,
    outer: int,
    outer_kind: int,
    outer_error: int,
) -> None:
    """The VM exit of an event, perhaps one that broke off the delivery of `outer`."""
    qualification = 0
    if kind == TYPE_HARDWARE_EXCEPTION and vector in (PF, DB):
        qualification = address
    reason = REASON_EXCEPTION_OR_NMI
    if kind == TYPE_EXTERNAL_INTERRUPT:
        reason = REASON_EXTERNAL_INTERRUPT
    reported = _length_of(kind, length)
    if outer >= 0:
        reported = _length_of(outer_kind, length)
    vm_exit(v, reason, qualification, reported)
    if kind != TYPE_EXTERNAL_INTERRUPT or v[VM_EXIT_CONTROLS] & EXIT_ACKNOWLEDGE_INTERRUPT:
        record_interruption(v, vector, kind, error_code)
    if outer >= 0:
        record_idt_vectoring(v, outer, outer_kind, outer_error)


@core
def _exit_for_ept(
    v: Cells,
    error: int,
    address: int,
    length: int,
    outer: int,
    outer_kind: int,
    outer_error: int,
) -> None:
    """The VM exit that an error code of EPT asks for; `address` is the linear address.

    Or that of an access to the APIC-access page.
    """
    qualification = ept_qualification(error)
    if outer < 0:
        # The instruction will be executed again.
        v[GUEST_RFLAGS] = v[GUEST_RFLAGS] | RFLAGS_RF
    reported = _length_of(outer_kind, length) if outer >= 0 else 0
    if error & APIC_ACCESS:
        if outer < 0:
            reported = length
        vm_exit(v, REASON_APIC_ACCESS, access_qualification(error, outer >= 0), reported)
    else:
        vm_exit(v, ept_exit_reason(error), qualification, reported)
        if error & LOG_FULL != LOG_FULL:
            v[GUEST_PHYSICAL_ADDRESS] = ept_address(error)
        if qualification & LINEAR_VALID:
            v[GUEST_LINEAR_ADDRESS] = address
    if outer >= 0:
        record_idt_vectoring(v, outer, outer_kind, outer_error)


@core
def _before_delivery(v: Cells, r: Cells, vector: int, kind: int, address: int) -> None:
    """The registers that tell the guest about its exception, set once it stays in the guest."""
    if kind == TYPE_HARDWARE_EXCEPTION and vector == PF:
        r[CR2] = address
    elif vector == DB and kind in (TYPE_HARDWARE_EXCEPTION, TYPE_PRIVILEGED_SOFTWARE_EXCEPTION):
        if kind == TYPE_HARDWARE_EXCEPTION:
            r[DR6] = (r[DR6] & ~DR6_BREAKPOINTS) | address
        v[GUEST_DR7] = v[GUEST_DR7] & ~DR7_GD
        v[GUEST_IA32_DEBUGCTL] = v[GUEST_IA32_DEBUGCTL] & ~DEBUGCTL_DEFINED
