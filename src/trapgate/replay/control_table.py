"""The controls that cause exits, one a row: which exits, what is lost without them.

Source: SDM, "VM-Execution Control Fields" and "Instructions That Cause VM Exits"; the words
for exits are KVM's, of Intel's and of AMD's hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase
from functools import cache
from typing import Final

from trapgate.sdm.controls import PinControl, PrimaryControl, SecondaryControl
from trapgate.sdm.fields import Field


class Loss(IntEnum):
    """What becomes of the work that a VMM did at exits that do not happen any more."""

    NOTHING = 0
    """Nobody misses it but for time: it was the guest's idling, or hardware does it."""
    WORK = 1
    """Nobody does it."""
    UNTOLD = 2
    """The trace does not tell whether somebody needed it."""
    SHADOW = 3
    """Shadow page tables need it; where the second stage is in use, nobody does."""


Switch = tuple[Field, int]


@dataclass(frozen=True)
class Control:
    """A control: which exits it causes, what goes when it is off, what cannot be told.

    `reasons` are patterns of "word detail" (`DETAIL`); a star stands for anything. `switches`
    are the bits that turn exits on, any of which does (other rules are `exits`'). `needs` is
    the column without which `unknown` is so; empty: always.
    """

    name: str
    reasons: tuple[str, ...]
    lost: str
    loss: Loss = Loss.WORK
    switches: tuple[Switch, ...] = ()
    unknown: str = ""
    needs: str = ""
    savable: bool = True


def _pin(bit: PinControl) -> tuple[Switch, ...]:
    return ((Field.PIN_BASED_CONTROLS, int(bit)),)


def _primary(*bits: PrimaryControl) -> tuple[Switch, ...]:
    return tuple((Field.PRIMARY_PROCESSOR_BASED_CONTROLS, int(bit)) for bit in bits)


def _secondary(bit: SecondaryControl) -> tuple[Switch, ...]:
    return ((Field.SECONDARY_PROCESSOR_BASED_CONTROLS, int(bit)),)


EXCEPTIONS: Final = "exception bitmap, page-fault mask and match"
PAUSE: Final = "PAUSE exiting, PAUSE-loop exiting"
TPR: Final = "TPR threshold"
PORTS: Final = "I/O bitmaps, unconditional I/O exiting"
MSRS: Final = "MSR bitmaps"
CR0: Final = "CR0 guest/host mask and read shadow"
CR4: Final = "CR4 guest/host mask and read shadow"
CR3_LOAD: Final = "CR3-load exiting, CR3-target values"
ABSENT: Final = "EPT entries: pages that are not there"
PROTECTED: Final = "EPT entries: write protection"

CONTROLS: Final = (
    Control(
        EXCEPTIONS,
        (
            *("EXCEPTION_NMI", "* excp", "EXIT_EXCP_*"),
            # What our own traces say: which criterion it was.
            *("CONTROL_BIT", "FIGURE_*", "EXCHANGED", "WITHOUT_CONTROL", "MATCH_EXITS"),
            *("ANY_OR_MATCH", "COMPARISON", "MEMBER", "FAULT_FILTER_ALONE", "CRITERIA_TABLE"),
        ),
        "the exceptions of those vectors and codes, which --policy judges one by one",
        Loss.UNTOLD,
    ),
    Control(
        "external-interrupt exiting",
        ("EXTERNAL_INTERRUPT", "EXTERNAL_INTERRUPT_EXITING", "interrupt", "EXIT_INTR"),
        "the host's interrupts: the guest would take them",
        unknown="which of them devices could post to the guest: record kvm_pi_irte_update",
        savable=False,
    ),
    Control(
        "NMI exiting",
        ("NMI_EXITING", "nmi", "EXIT_NMI"),
        "the host's NMIs: the guest would take them",
        savable=False,
    ),
    Control(
        "interrupt-window exiting",
        ("INTERRUPT_WINDOW", "vintr", "EXIT_VINTR"),
        "the moment at which a waiting interrupt can be injected (virtual-interrupt delivery "
        "needs none)",
        switches=_primary(PrimaryControl.INTERRUPT_WINDOW_EXITING),
    ),
    Control(
        "NMI-window exiting",
        ("NMI_WINDOW",),
        "the moment at which a waiting NMI can be injected",
        switches=_primary(PrimaryControl.NMI_WINDOW_EXITING),
    ),
    Control(
        "HLT exiting",
        ("HLT", "hlt", "idle_hlt", "EXIT_HLT"),
        "the processor, while the guest idles: others cannot run on it",
        Loss.NOTHING,
        _primary(PrimaryControl.HLT_EXITING),
    ),
    Control(
        "MWAIT exiting",
        ("MWAIT_INSTRUCTION", "mwait", "EXIT_MWAIT*"),
        "the processor, while the guest idles, and how deep it sleeps",
        Loss.NOTHING,
        _primary(PrimaryControl.MWAIT_EXITING),
    ),
    Control(
        "MONITOR exiting",
        ("MONITOR_INSTRUCTION", "monitor", "EXIT_MONITOR"),
        "nothing but that the guest finds the instruction",
        Loss.NOTHING,
        _primary(PrimaryControl.MONITOR_EXITING),
    ),
    Control(
        PAUSE,
        ("PAUSE_INSTRUCTION", "pause", "EXIT_PAUSE"),
        "lock holders that are preempted: the guest spins. A larger PLE_Window or a smaller "
        "PLE_Gap saves part of it",
        Loss.NOTHING,
        unknown="how long each loop would have been, and the window in force unless "
        "kvm_ple_window_update is recorded",
    ),
    Control(
        "INVLPG exiting",
        ("INVLPG", "invlpg", "INVPCID", "invpcid", "EXIT_INVLPG", "EXIT_INVPCID"),
        "shadow page tables: with EPT nothing needs it",
        Loss.SHADOW,
        _primary(PrimaryControl.INVLPG_EXITING),
    ),
    Control(
        "RDTSC exiting",
        ("RDTSC", "RDTSCP", "rdtsc", "rdtscp", "EXIT_RDTSC*"),
        "a TSC that the VMM makes up; TSC offsetting and scaling keep most of it",
        Loss.NOTHING,
        _primary(PrimaryControl.RDTSC_EXITING),
    ),
    Control(
        "RDPMC exiting",
        ("RDPMC", "rdpmc", "EXIT_RDPMC"),
        "performance counters that the VMM makes up",
        switches=_primary(PrimaryControl.RDPMC_EXITING),
    ),
    Control(
        TPR,
        ("TPR_BELOW_THRESHOLD",),
        "interrupts that wait for a lower task priority",
        unknown="the guest's TPR and the threshold in force",
    ),
    Control(
        "VMX-preemption timer",
        ("PREEMPTION_TIMER",),
        "the deadline that it was set for; a host timer costs an exit, too",
        switches=_pin(PinControl.PREEMPTION_TIMER),
        unknown="the deadlines: whether an exit for another reason came in time",
    ),
    Control(
        PORTS,
        ("IO_INSTRUCTION*", "io", "io port*", "EXIT_IOIO*"),
        "the devices behind those ports: the guest would reach the host's",
        unknown="which ports",
        needs="operand",
    ),
    Control(
        MSRS,
        ("MSR_READ*", "MSR_WRITE*", "msr", "msr MSR*", "EXIT_MSR*"),
        "what the VMM does at those MSRs, except those that VM entry and exit switch (APIC "
        "registers need APIC-register virtualization)",
        Loss.UNTOLD,
        unknown="which MSRs: record kvm_msr besides",
        needs="operand",
    ),
    Control(
        CR0,
        (
            *("CR_ACCESS MOV to CR0", "CR_ACCESS CLTS", "CR_ACCESS LMSW", "*write_cr0*"),
            *("cr0_sel_write*", "EXIT_WRITE_CR0*", "EXIT_CR0_SEL_WRITE*"),
        ),
        "what the VMM does at those bits: a lazy FPU, paging modes, caches",
        Loss.UNTOLD,
        unknown="the values written, hence the bits that changed: record kvm_cr besides",
        needs="data",
    ),
    Control(
        CR4,
        ("CR_ACCESS MOV to CR4", "*write_cr4*", "EXIT_WRITE_CR4*"),
        "what the VMM does at those bits: features that it hides",
        Loss.UNTOLD,
        unknown="the values written, hence the bits that changed: record kvm_cr besides",
        needs="data",
    ),
    Control(
        CR3_LOAD,
        ("CR_ACCESS MOV to CR3", "*write_cr3*", "EXIT_WRITE_CR3*"),
        "shadow page tables: with EPT nothing needs it",
        Loss.SHADOW,
        unknown="the values written, hence which targets would do: record kvm_cr besides",
        needs="data",
    ),
    Control(
        "CR3-store exiting",
        ("CR_ACCESS MOV from CR3", "*read_cr3*", "EXIT_READ_CR3*"),
        "the guest's CR3, where shadow page tables have another",
        Loss.SHADOW,
        _primary(PrimaryControl.CR3_STORE_EXITING),
    ),
    Control(
        "CR8-load exiting",
        ("CR_ACCESS MOV to CR8", "*write_cr8*", "EXIT_WRITE_CR8*"),
        "the task priority; a TPR shadow keeps it",
        switches=_primary(PrimaryControl.CR8_LOAD_EXITING),
    ),
    Control(
        "CR8-store exiting",
        ("CR_ACCESS MOV from CR8", "*read_cr8*", "EXIT_READ_CR8*"),
        "the task priority; a TPR shadow keeps it",
        switches=_primary(PrimaryControl.CR8_STORE_EXITING),
    ),
    Control(
        "MOV-DR exiting",
        ("DR_ACCESS", "read_dr*", "write_dr*", "EXIT_READ_DR*", "EXIT_WRITE_DR*"),
        "debug registers that the VMM keeps",
        switches=_primary(PrimaryControl.MOV_DR_EXITING),
    ),
    Control(
        PROTECTED,
        (
            *("EPT_VIOLATION write to r*", "npf write to present page*"),
            "EXIT_NPF write to present page*",
        ),
        "dirty logging, and tables and pages that the VMM watches: PML saves the logging",
        unknown="what the pages are protected for",
    ),
    Control(
        ABSENT,
        ("EPT", "EPT_VIOLATION*", "npf*", "EXIT_NPF*"),
        "pages that are filled late, and devices behind pages: huge pages save first touches",
        unknown="what the pages are for",
    ),
    Control(
        "EPT misconfiguration as a mark of MMIO",
        ("EPT_MISCONFIG",),
        "emulated devices; ioeventfd and virtio make them fewer",
        savable=False,
    ),
    Control(
        "descriptor-table exiting",
        ("GDTR_IDTR", "LDTR_TR", "*_gdtr", "*_idtr", "*_ldtr", "read_tr", "write_tr"),
        "UMIP's emulation",
        switches=_secondary(SecondaryControl.DESCRIPTOR_TABLE_EXITING),
    ),
    Control(
        "WBINVD exiting",
        ("WBINVD", "wbinvd", "EXIT_WBINVD"),
        "caches of devices that do not snoop",
        switches=_secondary(SecondaryControl.WBINVD_EXITING),
    ),
    Control(
        "virtualize APIC accesses",
        ("APIC_ACCESS",),
        "the local APIC's side effects that hardware does not carry out",
        switches=_secondary(SecondaryControl.VIRTUALIZE_APIC_ACCESSES),
    ),
    Control(
        "virtual APIC: writes and end of interrupt",
        ("APIC_WRITE", "EOI_INDUCED", "avic_*"),
        "the local APIC's side effects that hardware does not carry out",
    ),
    Control("enable PML", ("PML_FULL",), "dirty logging: write protection costs an exit a page"),
    Control(
        "monitor trap flag",
        ("MONITOR_TRAP_FLAG",),
        "single steps",
        switches=_primary(PrimaryControl.MONITOR_TRAP_FLAG),
    ),
    Control(
        "RDRAND exiting",
        ("RDRAND",),
        "random numbers that the VMM makes up",
        switches=_secondary(SecondaryControl.RDRAND_EXITING),
    ),
    Control(
        "RDSEED exiting",
        ("RDSEED",),
        "random numbers that the VMM makes up",
        switches=_secondary(SecondaryControl.RDSEED_EXITING),
    ),
)
"""In this order: the first whose pattern fits causes the exit."""

ALWAYS: Final = Control("none: always exits", (), "nothing: no control turns it off", savable=False)

SWITCHED_MSRS: Final = {
    0x174: "IA32_SYSENTER_CS",
    0x175: "IA32_SYSENTER_ESP",
    0x176: "IA32_SYSENTER_EIP",
    0xC0000100: "IA32_FS_BASE",
    0xC0000101: "IA32_GS_BASE",
}
"""MSRs that VM entry and exit switch whatever the controls (SDM, "Guest Register State")."""

_MSR_NAMES: Final = SWITCHED_MSRS | {
    0x10: "IA32_TIME_STAMP_COUNTER",
    0x1B: "IA32_APIC_BASE",
    0x3B: "IA32_TSC_ADJUST",
    0x48: "IA32_SPEC_CTRL",
    0x49: "IA32_PRED_CMD",
    0x6E0: "IA32_TSC_DEADLINE",
    0x808: "x2APIC TPR",
    0x80B: "x2APIC EOI",
    0x830: "x2APIC ICR",
    0x838: "x2APIC initial count",
    0x1D9: "IA32_DEBUGCTL",
    0x277: "IA32_PAT",
    0xC0000080: "IA32_EFER",
    0xC0000102: "IA32_KERNEL_GS_BASE",
    0xC0000103: "IA32_TSC_AUX",
}


def msr_name(index: int) -> str:
    """`MSR 0x6e0 (IA32_TSC_DEADLINE)`, without the name if it is not a common one."""
    name = _MSR_NAMES.get(index)
    return f"MSR {index:#x}" + (f" ({name})" if name else "")


@cache
def control_of(word: str, detail: str = "") -> Control:
    """The control that causes exits for a reason, by the host's word and what is accessed."""
    full = f"{word} {detail}".rstrip()
    for control in CONTROLS:
        if any(fnmatchcase(full, pattern) for pattern in control.reasons):
            return control
    # "FAILED_VMENTRY" and its kin are after a word.
    first = word.partition(" ")[0]
    return control_of(first, detail) if first != word else ALWAYS
