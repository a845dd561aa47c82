"""SDM, "VM-Execution Control Fields" of the checks on VMX controls."""

from collections.abc import Callable

from trapgate.debug.doctor.bits import (
    ENTRY_LOAD_RTIT_CTL,
    EXIT_CLEAR_RTIT_CTL,
    SECONDARY_PASID_TRANSLATION,
    SECONDARY_PT_GUEST_PHYSICAL,
    SECONDARY_SUB_PAGE_WRITE,
    SECONDARY_TSC_SCALING,
    SECONDARY_VIRTUALIZATION_EXCEPTION,
    TERTIARY_GUEST_PAGING_VERIFICATION,
    TERTIARY_HLAT,
    TERTIARY_IPI_VIRTUALIZATION,
    TERTIARY_PAGING_WRITE,
)
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.processor import ForeignProcessor
from trapgate.debug.doctor.rules import (
    CONTROLS_FAIL,
    Group,
    Rule,
    aligned,
    entry_has,
    ept,
    exit_has,
    needs,
    primary,
    secondary,
    tertiary,
    unrestricted,
)
from trapgate.sdm import controls as ct

_PIN = "PIN_BASED_CONTROLS"
_PRIMARY = "PRIMARY_PROCESSOR_BASED_CONTROLS"
_SECONDARY = "SECONDARY_PROCESSOR_BASED_CONTROLS"
_TERTIARY = "TERTIARY_PROCESSOR_BASED_CONTROLS"
_EXIT = "VM_EXIT_CONTROLS"
_ENTRY = "VM_ENTRY_CONTROLS"

_FORGOT_MSR = (
    "the value was not adjusted by the capability MSR: or in its low half, and with its high half"
)

_EPT_OFF = "EPT was switched off (ept=0, or an L1 without it), and what builds on it stayed on"


def reserved(name: str, field: str, *, when_activated: bool = False) -> tuple[Rule, Rule]:
    """The rules that a control field has the bits it must have, and none that it may not."""

    def in_force(p: DumpedVmcs) -> int | None:
        if when_activated and not primary(p) & ct.PRIMARY_SECONDARY_CONTROLS:
            return None
        return p[field]

    def ones(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
        value = in_force(p)
        return value is None or value & cpu.control(field)[0] == cpu.control(field)[0]

    def zeros(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
        value = in_force(p)
        return value is None or value & ~cpu.control(field)[1] == 0

    return (
        Rule(
            f"{name}-must-be-1",
            (field,),
            "must have the bits that the processor demands (on every processor so far: "
            "those of the default1 class that no TRUE capability MSR allows to be 0)",
            ones,
            _FORGOT_MSR,
            lambda value, cpu: value | cpu.control(field)[0],
        ),
        Rule(
            f"{name}-may-be-1",
            (field,),
            "must not have bits that the processor's capability MSR does not allow",
            zeros,
            _FORGOT_MSR + "; or the dump comes from another processor",
            lambda value, cpu: value & cpu.control(field)[1],
        ),
    )


def _bit(reader: Callable[[DumpedVmcs], int], bit: int) -> Callable[[DumpedVmcs], bool]:
    return lambda p: bool(reader(p) & bit)


def _pin(p: DumpedVmcs) -> int:
    return p[_PIN]


def _tpr_shadow(p: DumpedVmcs) -> bool:
    return bool(primary(p) & ct.PRIMARY_TPR_SHADOW)


def _vid(p: DumpedVmcs) -> bool:
    return bool(secondary(p) & ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY)


def _posted(p: DumpedVmcs) -> bool:
    return bool(_pin(p) & ct.PIN_POSTED_INTERRUPTS)


_EPT_TYPES = {0: 8, 6: 14}
_EPT_LENGTHS = {3: 6, 4: 7}
"""Values of the EPT pointer's parts, and the bits of IA32_VMX_EPT_VPID_CAP that allow them."""


def _ept_type(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    kind = p["EPT_POINTER"] & 7 if ept(p) else 0
    return not ept(p) or (kind in _EPT_TYPES and cpu.ept(_EPT_TYPES[kind]) is not False)


def _ept_length(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    length = p["EPT_POINTER"] >> 3 & 7 if ept(p) else 3
    return not ept(p) or (length in _EPT_LENGTHS and cpu.ept(_EPT_LENGTHS[length]) is not False)


def _last_pid(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    if not tertiary(p) & TERTIARY_IPI_VIRTUALIZATION:
        return True
    last = p["PID_POINTER_TABLE_ADDRESS"] + 8 * p["LAST_PID_POINTER_INDEX"]
    return last >> cpu.physical_limit == 0


def _ept_reserved(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    if not ept(p):
        return True
    reserved = 0xF00
    reserved |= (cpu.ept(21) is False) << 6  # accessed and dirty flags
    reserved |= (cpu.ept(23) is False) << 7  # access rights of supervisor shadow-stack pages
    return p["EPT_POINTER"] & reserved == 0 and p["EPT_POINTER"] >> cpu.physical_limit == 0


_APIC_FEATURES = (
    ct.SECONDARY_VIRTUALIZE_X2APIC
    | ct.SECONDARY_APIC_REGISTER_VIRTUALIZATION
    | ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY
)

EXECUTION = Group(
    "VM-Execution Control Fields",
    CONTROLS_FAIL,
    (
        *reserved("pin-controls", _PIN),
        *reserved("primary-controls", _PRIMARY),
        *reserved("secondary-controls", _SECONDARY, when_activated=True),
        Rule(
            "cr3-target-count",
            ("CR3_TARGET_COUNT",),
            "must not be greater than IA32_VMX_MISC bits 24:16, 4 of every processor so far",
            lambda p, cpu: p["CR3_TARGET_COUNT"] <= cpu.cr3_targets,
            "the field was never written",
            lambda value, cpu: 0,
        ),
        *(
            aligned(
                f"io-bitmap-{x}",
                f"IO_BITMAP_{x.upper()}_ADDRESS",
                12,
                _bit(primary, ct.PRIMARY_USE_IO_BITMAPS),
            )
            for x in "ab"
        ),
        aligned("msr-bitmap", "MSR_BITMAP_ADDRESS", 12, _bit(primary, ct.PRIMARY_USE_MSR_BITMAPS)),
        aligned("virtual-apic-address", "VIRTUAL_APIC_ADDRESS", 12, _tpr_shadow),
        Rule(
            "tpr-threshold-reserved",
            ("TPR_THRESHOLD", _PRIMARY, _SECONDARY),
            'bits 31:4 must be 0 if "use TPR shadow" is 1 and "virtual-interrupt delivery" is 0',
            lambda p, cpu: not _tpr_shadow(p) or _vid(p) or p["TPR_THRESHOLD"] >> 4 == 0,
            "the threshold is a priority class, bits 7:4 of the TPR moved to bits 3:0",
            lambda value, cpu: value & 0xF,
        ),
        needs(
            "apic-features-without-tpr-shadow",
            (_SECONDARY, _PRIMARY),
            '"virtualize x2APIC mode", "APIC-register virtualization" and "virtual-interrupt '
            'delivery" must be 0 if "use TPR shadow" is 0',
            _bit(secondary, _APIC_FEATURES),
            _tpr_shadow,
            "APIC virtualization was switched off by half (APICv inhibited, or x2APIC disabled)",
        ),
        needs(
            "virtual-nmis-without-exiting",
            (_PIN,),
            '"virtual NMIs" must be 0 if "NMI exiting" is 0',
            _bit(_pin, ct.PIN_VIRTUAL_NMIS),
            _bit(_pin, ct.PIN_NMI_EXITING),
            "NMI exiting was switched off alone, for a debugger or an L1 that does not want it",
        ),
        needs(
            "nmi-window-without-virtual-nmis",
            (_PRIMARY, _PIN),
            '"NMI-window exiting" must be 0 if "virtual NMIs" is 0',
            _bit(primary, ct.PRIMARY_NMI_WINDOW_EXITING),
            _bit(_pin, ct.PIN_VIRTUAL_NMIS),
            "an NMI window was asked for on a processor, or by an L1, without virtual NMIs",
        ),
        aligned(
            "apic-access-address",
            "APIC_ACCESS_ADDRESS",
            12,
            _bit(secondary, ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES),
        ),
        needs(
            "x2apic-and-apic-accesses",
            (_SECONDARY,),
            '"virtualize x2APIC mode" and "virtualize APIC accesses" must not both be 1',
            _bit(secondary, ct.SECONDARY_VIRTUALIZE_X2APIC),
            lambda p: not secondary(p) & ct.SECONDARY_VIRTUALIZE_APIC_ACCESSES,
            "the guest changed its APIC's mode, and only one of the two controls followed",
        ),
        needs(
            "interrupt-delivery-without-exiting",
            (_PIN, _SECONDARY),
            '"external-interrupt exiting" must be 1 if "virtual-interrupt delivery" is 1',
            _vid,
            _bit(_pin, ct.PIN_EXTERNAL_INTERRUPT_EXITING),
            "APICv was switched on while external interrupts were left to the guest",
        ),
        needs(
            "posted-interrupts-without-delivery",
            (_PIN, _SECONDARY),
            '"virtual-interrupt delivery" must be 1 if "process posted interrupts" is 1',
            _posted,
            _vid,
            "APICv was inhibited, and posted interrupts stayed on",
        ),
        needs(
            "posted-interrupts-without-acknowledge",
            (_EXIT, _PIN),
            '"acknowledge interrupt on exit" must be 1 if "process posted interrupts" is 1',
            _posted,
            lambda p: exit_has(p, ct.EXIT_ACKNOWLEDGE_INTERRUPT),
            "posted interrupts were switched on without the VM-exit control that goes with them",
        ),
        Rule(
            "posted-interrupt-vector",
            ("POSTED_INTERRUPT_NOTIFICATION_VECTOR", _PIN),
            'must be a vector, bits 15:8 being 0, if "process posted interrupts" is 1',
            lambda p, cpu: not _posted(p) or p["POSTED_INTERRUPT_NOTIFICATION_VECTOR"] < 256,
            "a value that was never written",
            lambda value, cpu: value & 0xFF,
        ),
        aligned("posted-interrupt-descriptor", "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS", 6, _posted),
        Rule(
            "vpid-zero",
            ("VIRTUAL_PROCESSOR_IDENTIFIER", _SECONDARY),
            'must not be 0 if "enable VPID" is 1',
            lambda p, cpu: (
                not secondary(p) & ct.SECONDARY_VPID or p["VIRTUAL_PROCESSOR_IDENTIFIER"] != 0
            ),
            "no VPID was allocated; 0 is the VMM's own",
            lambda value, cpu: 1,
        ),
        Rule(
            "ept-memory-type",
            ("EPT_POINTER", _SECONDARY),
            "bits 2:0 must be 0 (uncacheable) or 6 (write-back)",
            _ept_type,
            "the address was written without memory type and walk length",
            lambda value, cpu: value & ~7 | 6,
        ),
        Rule(
            "ept-walk-length",
            ("EPT_POINTER", _SECONDARY),
            "bits 5:3 must be 3 for a walk of four levels (4 for five, where there are five)",
            _ept_length,
            "the field holds the number of levels less one",
            lambda value, cpu: value & ~0x38 | 0x18,
        ),
        Rule(
            "ept-reserved",
            ("EPT_POINTER", _SECONDARY),
            "bits 11:8 and those beyond the physical-address width must be 0, bit 6 without "
            "accessed and dirty flags, bit 7 without supervisor shadow-stack control",
            _ept_reserved,
            "a virtual address was written",
            lambda value, cpu: value & ((1 << cpu.physical_limit) - 1) & ~0xF00,
        ),
        needs(
            "pml-without-ept",
            (_SECONDARY,),
            '"enable EPT" must be 1 if "enable PML" is 1',
            _bit(secondary, ct.SECONDARY_PML),
            ept,
            _EPT_OFF,
        ),
        aligned("pml-address", "PML_ADDRESS", 12, _bit(secondary, ct.SECONDARY_PML)),
        needs(
            "unrestricted-guest-without-ept",
            (_SECONDARY,),
            '"enable EPT" must be 1 if "unrestricted guest" is 1',
            unrestricted,
            ept,
            _EPT_OFF,
        ),
        needs(
            "mode-based-execute-without-ept",
            (_SECONDARY,),
            '"enable EPT" must be 1 if "mode-based execute control for EPT" is 1',
            _bit(secondary, ct.SECONDARY_MODE_BASED_EXECUTE),
            ept,
            _EPT_OFF,
        ),
        needs(
            "sub-page-write-without-ept",
            (_SECONDARY,),
            '"enable EPT" must be 1 if "sub-page write permissions for EPT" is 1',
            _bit(secondary, SECONDARY_SUB_PAGE_WRITE),
            ept,
            _EPT_OFF,
        ),
        aligned(
            "sub-page-permission-table",
            "SUB_PAGE_PERMISSION_TABLE_POINTER",
            12,
            _bit(secondary, SECONDARY_SUB_PAGE_WRITE),
        ),
        needs(
            "vm-functions-eptp-switching-without-ept",
            ("VM_FUNCTION_CONTROLS", _SECONDARY),
            '"EPTP switching" (bit 0) needs "enable EPT"',
            lambda p: (
                bool(secondary(p) & ct.SECONDARY_VM_FUNCTIONS)
                and bool(p["VM_FUNCTION_CONTROLS"] & 1)
            ),
            ept,
            _EPT_OFF,
        ),
        Rule(
            "vm-functions-reserved",
            ("VM_FUNCTION_CONTROLS", _SECONDARY),
            "must have no bit that IA32_VMX_VMFUNC does not allow",
            lambda p, cpu: (
                not secondary(p) & ct.SECONDARY_VM_FUNCTIONS
                or p["VM_FUNCTION_CONTROLS"] & ~cpu.msrs.get(0x491, (1 << 64) - 1) == 0
            ),
            "bits were set without a look at the capability MSR",
            lambda value, cpu: value & cpu.msrs.get(0x491, 0),
        ),
        aligned(
            "eptp-list",
            "EPTP_LIST_ADDRESS",
            12,
            lambda p: (
                bool(secondary(p) & ct.SECONDARY_VM_FUNCTIONS)
                and bool(p["VM_FUNCTION_CONTROLS"] & 1)
            ),
        ),
        *(
            aligned(
                f"{x}-bitmap",
                f"{x.upper()}_BITMAP_ADDRESS",
                12,
                _bit(secondary, ct.SECONDARY_VMCS_SHADOWING),
            )
            for x in ("vmread", "vmwrite")
        ),
        aligned(
            "virtualization-exception-address",
            "VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS",
            12,
            _bit(secondary, SECONDARY_VIRTUALIZATION_EXCEPTION),
        ),
        needs(
            "trace-addresses-without-ept",
            (_SECONDARY,),
            '"Intel PT uses guest physical addresses" needs "enable EPT"',
            _bit(secondary, SECONDARY_PT_GUEST_PHYSICAL),
            ept,
            _EPT_OFF,
        ),
        needs(
            "trace-addresses-without-rtit-ctl",
            (_ENTRY, _EXIT, _SECONDARY),
            '"load IA32_RTIT_CTL" and "clear IA32_RTIT_CTL" must both be 1 if "Intel PT uses '
            'guest physical addresses" is 1',
            _bit(secondary, SECONDARY_PT_GUEST_PHYSICAL),
            lambda p: entry_has(p, ENTRY_LOAD_RTIT_CTL) and exit_has(p, EXIT_CLEAR_RTIT_CTL),
            "the three controls of Intel PT go together, and one was set alone",
        ),
        Rule(
            "tsc-multiplier-zero",
            ("TSC_MULTIPLIER", _SECONDARY),
            'must not be 0 if "use TSC scaling" is 1',
            lambda p, cpu: not secondary(p) & SECONDARY_TSC_SCALING or p["TSC_MULTIPLIER"] != 0,
            "the field was never written; 2^48 is a ratio of 1",
            lambda value, cpu: 1 << 48,
        ),
        needs(
            "tertiary-hlat-without-ept",
            (_TERTIARY, _SECONDARY),
            '"enable HLAT", "EPT paging-write control" and "guest-paging verification" need '
            '"enable EPT"',
            _bit(
                tertiary, TERTIARY_HLAT | TERTIARY_PAGING_WRITE | TERTIARY_GUEST_PAGING_VERIFICATION
            ),
            ept,
            _EPT_OFF,
        ),
        Rule(
            "hlat-pointer",
            ("HLAT_POINTER", _TERTIARY),
            "bits 2:0, 11:5 and those beyond the physical-address width must be 0",
            lambda p, cpu: (
                not tertiary(p) & TERTIARY_HLAT
                or (p["HLAT_POINTER"] & 0xFE7 == 0 and p["HLAT_POINTER"] >> cpu.physical_limit == 0)
            ),
            "a virtual address, or an EPT pointer with its memory type and walk length",
            lambda value, cpu: value & ~0xFE7 & ((1 << cpu.physical_limit) - 1),
        ),
        Rule(
            "tertiary-reserved",
            (_TERTIARY, _PRIMARY),
            "must have no bit that IA32_VMX_PROCBASED_CTLS3 does not allow",
            lambda p, cpu: tertiary(p) & ~cpu.msrs.get(0x492, (1 << 64) - 1) == 0,
            _FORGOT_MSR,
            lambda value, cpu: value & cpu.msrs.get(0x492, 0),
        ),
        needs(
            "ipi-virtualization-without-tpr-shadow",
            (_TERTIARY, _PRIMARY),
            '"IPI virtualization" needs "use TPR shadow"',
            _bit(tertiary, TERTIARY_IPI_VIRTUALIZATION),
            _tpr_shadow,
            "APIC virtualization was switched off by half, and this control stayed on",
        ),
        aligned(
            "pid-pointer-table",
            "PID_POINTER_TABLE_ADDRESS",
            3,
            _bit(tertiary, TERTIARY_IPI_VIRTUALIZATION),
        ),
        Rule(
            "pid-pointer-last",
            ("LAST_PID_POINTER_INDEX", "PID_POINTER_TABLE_ADDRESS"),
            "the table's last entry, 8 bytes each, must lie within the physical-address width",
            _last_pid,
            "a table at the end of the address space, or an index that was never written",
            lambda value, cpu: 0,
        ),
        *(
            aligned(
                f"{x}-pasid-directory",
                f"{x.upper()}_PASID_DIRECTORY_ADDRESS",
                12,
                _bit(secondary, SECONDARY_PASID_TRANSLATION),
            )
            for x in ("low", "high")
        ),
    ),
)
