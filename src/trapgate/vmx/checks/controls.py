"""The checks of VM entry on controls: VM-instruction error 7 if one fails.

SDM, "Checks on VMX Controls", in its order. `current` tells whose VMCS it is: the
physical address of the current VMCS of a VMM that is x86 code, -1 for a VMM in Python.
"""

from trapgate.compiler.dialect import Cells, Memory, core, inlined
from trapgate.decision.criteria_table import check_table
from trapgate.decision.decide import check_extension_fields
from trapgate.instructions.intercepts import secondary_controls
from trapgate.instructions.virtual_apic import has_tpr_shadow, is_below_threshold
from trapgate.paging.ept import MODE_BASED_EXECUTE
from trapgate.paging.memory import MAXPHYADDR
from trapgate.sdm import checks as ck
from trapgate.sdm import controls as ct
from trapgate.sdm.cells import (
    APIC_ACCESS_ADDRESS,
    CR3_TARGET_COUNT,
    EPT_POINTER,
    FAILED_RULE,
    GUEST_CR0,
    IO_BITMAP_A_ADDRESS,
    IO_BITMAP_B_ADDRESS,
    MSR_BITMAP_ADDRESS,
    PIN_BASED_CONTROLS,
    PML_ADDRESS,
    POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
    POSTED_INTERRUPT_NOTIFICATION_VECTOR,
    PRIMARY_PROCESSOR_BASED_CONTROLS,
    SECONDARY_PROCESSOR_BASED_CONTROLS,
    TPR_THRESHOLD,
    VIRTUAL_APIC_ADDRESS,
    VIRTUAL_PROCESSOR_IDENTIFIER,
    VM_ENTRY_CONTROLS,
    VM_ENTRY_EXCEPTION_ERROR_CODE,
    VM_ENTRY_INSTRUCTION_LENGTH,
    VM_ENTRY_INTERRUPTION_INFORMATION,
    VM_ENTRY_MSR_LOAD_ADDRESS,
    VM_ENTRY_MSR_LOAD_COUNT,
    VM_EXIT_CONTROLS,
    VM_EXIT_MSR_LOAD_ADDRESS,
    VM_EXIT_MSR_LOAD_COUNT,
    VM_EXIT_MSR_STORE_ADDRESS,
    VM_EXIT_MSR_STORE_COUNT,
    VMREAD_BITMAP_ADDRESS,
    VMWRITE_BITMAP_ADDRESS,
)
from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_ENTRY_RESERVED,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_OTHER_EVENT,
    TYPE_RESERVED,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.state import CR0_PE
from trapgate.sdm.vectors import CP, ERROR_CODE_VECTORS, NMI

_NEEDS_SHADOW = (
    ct.SECONDARY_VIRTUALIZE_X2APIC
    | ct.SECONDARY_APIC_REGISTER_VIRTUALIZATION
    | ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY
)
_CODE_AT_ENTRY = ERROR_CODE_VECTORS & ~(1 << CP)
# Without CET, #CP is a vector like any other reserved one.


@core
def check_controls(v: Cells, current: int, secondary_may: int) -> int:
    """Check the control fields of VMCS `v`: 0, or the number of the first check that failed.

    `secondary_may` are the secondary processor-based controls that may be 1.
    """
    check = _check_execution_controls(v, current, secondary_may)
    if check == 0:
        check = _check_exit_controls(v, current)
    if check == 0:
        check = _check_entry_controls(v, current)
    if check == 0:
        check = check_extension_fields(v)
    if check == 0:
        check, place = check_table(v)
        v[FAILED_RULE] = place
    return check


@core
def within(value: int, must: int, may: int) -> bool:
    """Whether a control has the bits that must be 1, and none that may not."""
    return value & must == must and value & ~may == 0


@core
def page_address(address: int) -> bool:
    """Whether a physical address is a page's, and within the physical-address width."""
    return address & 0xFFF == 0 and address >> MAXPHYADDR == 0


@core
@inlined
def unrestricted_guest(v: Cells) -> bool:
    """Whether the guest may run without paging or in real-address mode."""
    return bool(
        v[PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_SECONDARY_CONTROLS != 0
        and v[SECONDARY_PROCESSOR_BASED_CONTROLS] & ct.SECONDARY_UNRESTRICTED_GUEST != 0
    )


@core
def ept_pointer(v: Cells) -> int:
    """The EPT pointer that VMCS `v` asks for, with MODE_BASED_EXECUTE; 0 without "enable EPT"."""
    if v[PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_SECONDARY_CONTROLS == 0:
        return 0
    if v[SECONDARY_PROCESSOR_BASED_CONTROLS] & ct.SECONDARY_EPT == 0:
        return 0
    pointer = int(v[EPT_POINTER])
    if v[SECONDARY_PROCESSOR_BASED_CONTROLS] & ct.SECONDARY_MODE_BASED_EXECUTE:
        pointer |= MODE_BASED_EXECUTE
    return pointer


@core
def check_ept_pointer(pointer: int) -> int:
    """Check an EPT pointer: 0, or the number of the first check that failed."""
    if pointer & 7 not in (0, 6):
        return ck.EPT_MEMORY_TYPE
    if (pointer >> 3) & 7 != 3:
        return ck.EPT_WALK_LENGTH
    if pointer & 0xF80 or pointer >> MAXPHYADDR != 0:
        return ck.EPT_RESERVED
    return 0


@core
def _check_execution_controls(v: Cells, current: int, secondary_may: int) -> int:
    """SDM, "VM-Execution Control Fields" (of the checks)."""
    pin = v[PIN_BASED_CONTROLS]
    primary = v[PRIMARY_PROCESSOR_BASED_CONTROLS]
    # Without "activate secondary controls" they are not looked at, and count as 0.
    secondary = 0
    if primary & ct.PRIMARY_SECONDARY_CONTROLS:
        secondary = v[SECONDARY_PROCESSOR_BASED_CONTROLS]
    if not within(pin, ct.PIN_ALLOWED_0, ct.PIN_ALLOWED_1):
        return ck.PIN_CONTROLS
    if not within(primary, ct.PRIMARY_ALLOWED_0, ct.PRIMARY_ALLOWED_1):
        return ck.PRIMARY_CONTROLS
    if not within(secondary, ct.SECONDARY_ALLOWED_0, secondary_may):
        return ck.SECONDARY_CONTROLS
    if v[CR3_TARGET_COUNT] > 4:
        return ck.CR3_TARGETS
    if primary & ct.PRIMARY_USE_IO_BITMAPS:
        if not page_address(v[IO_BITMAP_A_ADDRESS]):
            return ck.IO_BITMAP_A
        if not page_address(v[IO_BITMAP_B_ADDRESS]):
            return ck.IO_BITMAP_B
    if primary & ct.PRIMARY_USE_MSR_BITMAPS and not page_address(v[MSR_BITMAP_ADDRESS]):
        return ck.MSR_BITMAP
    check = _check_apic_virtualization(v, pin, primary, secondary)
    if check != 0:
        return check
    if pin & ct.PIN_VIRTUAL_NMIS and pin & ct.PIN_NMI_EXITING == 0:
        return ck.VIRTUAL_NMIS
    if primary & ct.PRIMARY_NMI_WINDOW_EXITING and pin & ct.PIN_VIRTUAL_NMIS == 0:
        return ck.NMI_WINDOW
    if secondary & ct.SECONDARY_VPID and v[VIRTUAL_PROCESSOR_IDENTIFIER] == 0:
        return ck.VPID_ZERO
    return _check_ept(v, current, secondary)


@core
def _check_ept(v: Cells, current: int, secondary: int) -> int:
    """The checks of the same section on EPT, what builds on it, and VMCS shadowing."""
    if secondary & ct.SECONDARY_EPT:
        check = check_ept_pointer(v[EPT_POINTER])
        if check != 0:
            return check
        if secondary & ct.SECONDARY_PML and not page_address(v[PML_ADDRESS]):
            return ck.PML_PAGE
    else:
        if secondary & ct.SECONDARY_PML:
            return ck.PML_WITHOUT_EPT
        if secondary & ct.SECONDARY_MODE_BASED_EXECUTE:
            return ck.MODE_BASED_WITHOUT_EPT
        # To a VMM in Python "unrestricted guest" needs no EPT: its guest's memory is the VM's own.
        if secondary & ct.SECONDARY_UNRESTRICTED_GUEST and current >= 0:
            return ck.UNRESTRICTED_WITHOUT_EPT
    if secondary & ct.SECONDARY_VMCS_SHADOWING:
        if not page_address(v[VMREAD_BITMAP_ADDRESS]):
            return ck.VMREAD_BITMAP
        if not page_address(v[VMWRITE_BITMAP_ADDRESS]):
            return ck.VMWRITE_BITMAP
    return 0


@core
def _check_apic_virtualization(v: Cells, pin: int, primary: int, secondary: int) -> int:
    """The checks of the same section on the virtual-APIC page and the APIC-access page."""
    delivers = secondary & ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY
    if primary & ct.PRIMARY_TPR_SHADOW:
        if not page_address(v[VIRTUAL_APIC_ADDRESS]):
            return ck.VIRTUAL_APIC_PAGE
        if delivers == 0 and v[TPR_THRESHOLD] >> 4 != 0:
            return ck.THRESHOLD_RESERVED
    elif secondary & _NEEDS_SHADOW:
        return ck.APIC_WITHOUT_SHADOW
    if delivers and pin & ct.PIN_EXTERNAL_INTERRUPT_EXITING == 0:
        return ck.DELIVERY_WITHOUT_EXITING
    if pin & ct.PIN_POSTED_INTERRUPTS:
        if delivers == 0 or v[VM_EXIT_CONTROLS] & ct.EXIT_ACKNOWLEDGE_INTERRUPT == 0:
            return ck.POSTING_CONTROLS
        if v[POSTED_INTERRUPT_NOTIFICATION_VECTOR] >> 8 != 0:
            return ck.POSTED_VECTOR
        descriptor = v[POSTED_INTERRUPT_DESCRIPTOR_ADDRESS]
        if descriptor & 0x3F or descriptor >> MAXPHYADDR != 0:
            return ck.POSTED_DESCRIPTOR
    if secondary & ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES:
        if not page_address(v[APIC_ACCESS_ADDRESS]):
            return ck.APIC_ACCESS_PAGE
        if secondary & ct.SECONDARY_VIRTUALIZE_X2APIC:
            return ck.X2APIC_WITH_ACCESSES
    return 0


@core
def apic_access_page(v: Cells) -> int:
    """1 + the address of the page whose accesses the VMCS makes exits; 0 for none."""
    if secondary_controls(v) & ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES == 0:
        return 0
    return int(v[APIC_ACCESS_ADDRESS]) | 1


@core
def modification_log(v: Cells) -> int:
    """1 + the address of the page-modification log that the VMCS asks for; 0 for none."""
    if secondary_controls(v) & ct.SECONDARY_PML == 0:
        return 0
    return int(v[PML_ADDRESS]) | 1


@core
def check_threshold(v: Cells, mem: Memory) -> int:
    """Whether the task priority may be what it is, with accesses that are not virtualized.

    The only check of controls that looks into memory.
    """
    looked_at = ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES | ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY
    if has_tpr_shadow(v) and secondary_controls(v) & looked_at == 0 and is_below_threshold(v, mem):
        return ck.THRESHOLD_ABOVE
    return 0


@core
def _check_exit_controls(v: Cells, current: int) -> int:
    """SDM, "VM-Exit Control Fields" (of the checks)."""
    controls = v[VM_EXIT_CONTROLS]
    if not within(controls, ct.EXIT_ALLOWED_0, ct.EXIT_ALLOWED_1):
        return ck.EXIT_CONTROLS
    timer = v[PIN_BASED_CONTROLS] & ct.PIN_PREEMPTION_TIMER
    if controls & ct.EXIT_SAVE_PREEMPTION_TIMER and timer == 0:
        return ck.SAVE_TIMER
    stored = v[VM_EXIT_MSR_STORE_COUNT]
    loaded = v[VM_EXIT_MSR_LOAD_COUNT]
    if current < 0 and stored != 0:
        return ck.EXIT_STORE_COUNT
    if current < 0 and loaded != 0:
        return ck.EXIT_LOAD_COUNT
    if not _area_begins_well(v[VM_EXIT_MSR_STORE_ADDRESS], stored):
        return ck.EXIT_STORE_ADDRESS
    if not _area_ends_well(v[VM_EXIT_MSR_STORE_ADDRESS], stored):
        return ck.EXIT_STORE_END
    if not _area_begins_well(v[VM_EXIT_MSR_LOAD_ADDRESS], loaded):
        return ck.EXIT_LOAD_ADDRESS
    if not _area_ends_well(v[VM_EXIT_MSR_LOAD_ADDRESS], loaded):
        return ck.EXIT_LOAD_END
    return 0


@core
@inlined
def _area_begins_well(address: int, count: int) -> bool:
    return count == 0 or (address & 0xF == 0 and address >> MAXPHYADDR == 0)


@core
@inlined
def _area_ends_well(address: int, count: int) -> bool:
    """Whether the last byte is within the physical-address width; the address itself is."""
    return count == 0 or (address + count * 16 - 1) >> MAXPHYADDR == 0


@core
def _check_entry_controls(v: Cells, current: int) -> int:
    """SDM, "VM-Entry Control Fields" (of the checks)."""
    if not within(v[VM_ENTRY_CONTROLS], ct.ENTRY_ALLOWED_0, ct.ENTRY_ALLOWED_1):
        return ck.ENTRY_CONTROLS
    check = _check_injection(v)
    if check != 0:
        return check
    loaded = v[VM_ENTRY_MSR_LOAD_COUNT]
    if current < 0 and loaded != 0:
        return ck.ENTRY_LOAD_COUNT
    if not _area_begins_well(v[VM_ENTRY_MSR_LOAD_ADDRESS], loaded):
        return ck.ENTRY_LOAD_ADDRESS
    if not _area_ends_well(v[VM_ENTRY_MSR_LOAD_ADDRESS], loaded):
        return ck.ENTRY_LOAD_END
    return 0


@core
def _check_injection(v: Cells) -> int:
    """Whether the three event-injection fields are consistent."""
    info = v[VM_ENTRY_INTERRUPTION_INFORMATION]
    if info & INFO_VALID == 0:
        return 0
    vector = info & INFO_VECTOR_MASK
    kind = (info >> INFO_TYPE_SHIFT) & INFO_TYPE_MASK
    # A pending MTF exit may be injected, for this processor has the control of that name.
    if kind == TYPE_RESERVED:
        return ck.INJECTED_TYPE
    if (
        (kind == TYPE_NMI and vector != NMI)
        or (kind == TYPE_HARDWARE_EXCEPTION and vector > 31)
        or (kind == TYPE_OTHER_EVENT and vector != 0)
    ):
        return ck.INJECTED_VECTOR
    wants_code = (
        kind == TYPE_HARDWARE_EXCEPTION
        and (_CODE_AT_ENTRY >> vector) & 1 != 0
        and (not unrestricted_guest(v) or v[GUEST_CR0] & CR0_PE != 0)
    )
    if wants_code != (info & INFO_DELIVER_ERROR_CODE != 0):
        return ck.INJECTED_DELIVER_CODE
    if info & INFO_ENTRY_RESERVED:
        return ck.INJECTED_RESERVED
    if wants_code and v[VM_ENTRY_EXCEPTION_ERROR_CODE] >> 16 != 0:
        return ck.INJECTED_ERROR_CODE
    length = v[VM_ENTRY_INSTRUCTION_LENGTH]
    if TYPE_SOFTWARE_INTERRUPT <= kind <= TYPE_SOFTWARE_EXCEPTION and not 1 <= length <= 15:
        return ck.INJECTED_LENGTH
    return 0
