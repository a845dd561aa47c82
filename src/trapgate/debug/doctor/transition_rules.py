"""SDM, "VM-Exit Control Fields" and "VM-Entry Control Fields" of the checks on VMX controls."""

from trapgate.debug.doctor.bits import CR4_FRED, ENTRY_LOAD_CET, EXIT_SECONDARY_CONTROLS
from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.execution_rules import reserved
from trapgate.debug.doctor.processor import MSR_VMX_EXIT_CTLS2, ForeignProcessor
from trapgate.debug.doctor.rules import (
    CONTROLS_FAIL,
    Group,
    Rule,
    entry_has,
    exit_has,
    needs,
    unrestricted,
)
from trapgate.sdm import controls as ct
from trapgate.sdm import state as st
from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_ENTRY_RESERVED,
    INFO_VALID,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
    TYPE_OTHER_EVENT,
    TYPE_RESERVED,
    TYPE_SOFTWARE_EXCEPTION,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.vectors import CP, ERROR_CODE_VECTORS, NMI

_PIN = "PIN_BASED_CONTROLS"
_PRIMARY = "PRIMARY_PROCESSOR_BASED_CONTROLS"
_SECONDARY = "SECONDARY_PROCESSOR_BASED_CONTROLS"
_EXIT = "VM_EXIT_CONTROLS"
_ENTRY = "VM_ENTRY_CONTROLS"
_INFO = "VM_ENTRY_INTERRUPTION_INFORMATION"
_ALL = (1 << 64) - 1
_NESTED_EXCEPTION = 1 << 13
_SYSTEM_CALLS = 2
"""With FRED the type of other events has vectors 1 and 2, SYSCALL and SYSENTER."""
_WITH_CODE = ERROR_CODE_VECTORS & ~(1 << CP)


def _msr_area(which: str, name: str) -> tuple[Rule, Rule]:
    address, count = f"{which}_ADDRESS", f"{which}_COUNT"
    return (
        Rule(
            f"{name}-address",
            (address, count),
            "must be 16-byte aligned and within the physical-address width if its count is not 0",
            lambda p, cpu: (
                p[count] == 0 or (p[address] & 15 == 0 and p[address] >> cpu.physical_limit == 0)
            ),
            "a virtual address was written, or a count that was never written",
            lambda value, cpu: value & ((1 << cpu.physical_limit) - 16),
        ),
        Rule(
            f"{name}-end",
            (address, count),
            "the area, 16 bytes for each MSR, must end below the physical-address width",
            lambda p, cpu: (
                p[count] == 0 or (p[address] + 16 * p[count] - 1) >> cpu.physical_limit == 0
            ),
            "a count that was never written",
        ),
    )


EXIT = Group(
    "VM-Exit Control Fields",
    CONTROLS_FAIL,
    (
        *reserved("exit-controls", _EXIT),
        needs(
            "save-timer-without-timer",
            (_EXIT, _PIN),
            '"save VMX-preemption timer value" must be 0 if "activate VMX-preemption timer" is 0',
            lambda p: exit_has(p, ct.EXIT_SAVE_PREEMPTION_TIMER),
            lambda p: bool(p[_PIN] & ct.PIN_PREEMPTION_TIMER),
            "the timer was switched off in the pin-based controls alone",
        ),
        Rule(
            "secondary-exit-controls",
            ("SECONDARY_VM_EXIT_CONTROLS", _EXIT),
            "must have no bit that IA32_VMX_EXIT_CTLS2 does not allow",
            lambda p, cpu: (
                not exit_has(p, EXIT_SECONDARY_CONTROLS)
                or not p["SECONDARY_VM_EXIT_CONTROLS"] & ~cpu.msrs.get(MSR_VMX_EXIT_CTLS2, _ALL)
            ),
            "bits were set without a look at the capability MSR",
            lambda value, cpu: value & cpu.msrs.get(MSR_VMX_EXIT_CTLS2, _ALL),
        ),
        *_msr_area("VM_EXIT_MSR_STORE", "exit-store"),
        *_msr_area("VM_EXIT_MSR_LOAD", "exit-load"),
    ),
)


def injects(p: DumpedVmcs) -> bool:
    """Whether the VM entry injects an event."""
    return bool(p[_INFO] & INFO_VALID)


def kind(p: DumpedVmcs) -> int:
    """The interruption type of the injected event."""
    return p[_INFO] >> 8 & 7


def vector(p: DumpedVmcs) -> int:
    """The vector of the injected event."""
    return p[_INFO] & 0xFF


def _fred(p: DumpedVmcs) -> bool:
    return bool(p.values.get("GUEST_CR4", 0) & CR4_FRED)


def _reserved_bits(p: DumpedVmcs, cpu: ForeignProcessor) -> int:
    """Reserved bits of the injected event: with FRED an exception may be nested (bit 13)."""
    nested = kind(p) == TYPE_HARDWARE_EXCEPTION and (cpu.basic(58) or _fred(p))
    return p[_INFO] & INFO_ENTRY_RESERVED & ~(_NESTED_EXCEPTION if nested else 0)


def _right_vector(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    if not injects(p):
        return True
    other = _SYSTEM_CALLS if kind(p) == TYPE_OTHER_EVENT and _fred(p) else 0
    most = {TYPE_NMI: NMI, TYPE_HARDWARE_EXCEPTION: 31, TYPE_OTHER_EVENT: other}.get(kind(p), 255)
    return vector(p) <= most and (kind(p) != TYPE_NMI or vector(p) == NMI)


def wants_code(p: DumpedVmcs) -> bool:
    """Whether the injected event has to bring an error code."""
    if kind(p) != TYPE_HARDWARE_EXCEPTION or not _WITH_CODE >> vector(p) & 1:
        return False
    return not (unrestricted(p) and not p["GUEST_CR0"] & st.CR0_PE)


def _right_code_bit(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    if not injects(p) or cpu.basic(56):  # with which software chooses
        return True
    shadow_stacks = cpu.control(_ENTRY)[1] & ENTRY_LOAD_CET
    if kind(p) == TYPE_HARDWARE_EXCEPTION and vector(p) == CP and shadow_stacks:
        return True
    return wants_code(p) == bool(p[_INFO] & INFO_DELIVER_ERROR_CODE)


def _right_length(p: DumpedVmcs, cpu: ForeignProcessor) -> bool:
    if not injects(p) or not TYPE_SOFTWARE_INTERRUPT <= kind(p) <= TYPE_SOFTWARE_EXCEPTION:
        return True
    return (0 if cpu.misc(30) else 1) <= p["VM_ENTRY_INSTRUCTION_LENGTH"] <= 15


ENTRY = Group(
    "VM-Entry Control Fields",
    CONTROLS_FAIL,
    (
        *reserved("entry-controls", _ENTRY),
        Rule(
            "entry-to-smm-outside",
            (_ENTRY,),
            '"entry to SMM" and "deactivate dual-monitor treatment" must be 0 outside SMM',
            lambda p, cpu: (
                not entry_has(p, ct.ENTRY_ENTRY_TO_SMM | ct.ENTRY_DEACTIVATE_DUAL_MONITOR)
            ),
            "the controls were set to all that the capability MSR allows",
            lambda value, cpu: value & ~(ct.ENTRY_ENTRY_TO_SMM | ct.ENTRY_DEACTIVATE_DUAL_MONITOR),
        ),
        Rule(
            "injected-type",
            (_INFO,),
            "interruption type (bits 10:8) must not be 1, and 7 only with monitor trap flag",
            lambda p, cpu: (
                not injects(p)
                or (
                    kind(p) != TYPE_RESERVED
                    and (
                        kind(p) != TYPE_OTHER_EVENT
                        or bool(cpu.control(_PRIMARY)[1] & ct.PRIMARY_MONITOR_TRAP_FLAG)
                    )
                )
            ),
            "the field was put together from the wrong bits",
        ),
        Rule(
            "injected-vector",
            (_INFO,),
            "the vector must be 2 for an NMI, at most 31 for an exception, 0 for another event",
            _right_vector,
            "an interrupt was injected with the type of an exception",
        ),
        Rule(
            "injected-deliver-code",
            (_INFO, "GUEST_CR0", _SECONDARY),
            "deliver error code (bit 11) must be 1 just for #DF, #TS, #NP, #SS, #GP, #PF, #AC as "
            "hardware exceptions in protected mode",
            _right_code_bit,
            "an exception was reflected without its error code, or one was injected in real mode",
            lambda value, cpu: value ^ INFO_DELIVER_ERROR_CODE,
        ),
        Rule(
            "injected-reserved",
            (_INFO,),
            "bits 30:12 must be 0",
            lambda p, cpu: not injects(p) or _reserved_bits(p, cpu) == 0,
            "the VM-exit interruption information was copied with its bit 12 (NMI unblocking)",
            lambda value, cpu: value & ~INFO_ENTRY_RESERVED,
        ),
        Rule(
            "injected-error-code",
            ("VM_ENTRY_EXCEPTION_ERROR_CODE", _INFO),
            "bits 31:16 must be 0 (31:15 where there is no SGX) if an error code is delivered",
            lambda p, cpu: (
                not injects(p)
                or not p[_INFO] & INFO_DELIVER_ERROR_CODE
                or p["VM_ENTRY_EXCEPTION_ERROR_CODE"] >> 16 == 0
            ),
            "bits of the VMM's own in a page fault's code (KVM's PFERR_GUEST_PAGE..., an RMP or "
            "EPT bit) were not masked off",
            lambda value, cpu: value & 0xFFFF,
        ),
        Rule(
            "injected-length",
            ("VM_ENTRY_INSTRUCTION_LENGTH", _INFO),
            "must be 1 to 15 for a software interrupt or exception (0 too if IA32_VMX_MISC bit 30)",
            _right_length,
            "the length of the instruction that is injected again was not copied from the exit",
            lambda value, cpu: 1,
        ),
        *_msr_area("VM_ENTRY_MSR_LOAD", "entry-load"),
    ),
)
