"""What each check of VM entry says, and of which fields: its number's words (`checks`)."""

from collections.abc import Iterator
from typing import NamedTuple

from trapgate.sdm import checks as ck

_SECTIONS = {
    1: "VM-Execution Control Fields",
    2: "VM-Exit Control Fields",
    3: "VM-Entry Control Fields",
    4: "Checks on Host Control Registers, MSRs, and SSP",
    5: "Checks on Host Segment and Descriptor-Table Registers",
    6: "Checks Related to Address-Space Size",
    7: "Checks on Guest Control Registers, Debug Registers, and MSRs",
    8: "Checks on Guest Segment Registers",
    9: "Checks on Guest Segment Registers",
    10: "Checks on Guest Descriptor-Table Registers",
    11: "Checks on Guest RIP, RFLAGS, and SSP",
    12: "Checks on Guest Non-Register State",
    13: "Checks on Guest Page-Directory-Pointer-Table Entries",
}


class Check(NamedTuple):
    """One check: the VMCS fields that it looks at, the one at fault first, and its rule.

    `section` is a title in the SDM; empty for what is not a rule of the SDM's.
    """

    number: int
    fields: tuple[str, ...]
    rule: str

    @property
    def section(self) -> str:
        """The title of the SDM's section that has the check."""
        if ck.EXTENSION_RESERVED <= self.number <= ck.LAST_OF_CONTROLS:
            return ""
        return _SECTIONS[self.number // 100]


_CANONICAL = "must be canonical: bits 63:47 all alike"
_PAGE = "must be the physical address of a page: bits 11:0 and bits 63:40 are 0"
_MSR_AREA = "must be a multiple of 16, with bits 63:40 0, when the area's count is not 0"
_MSR_END = "the area (16 bytes for each MSR) must end below the physical-address width, 2^40"
_NO_AREA = "must be 0: a VMM in Python switches MSRs itself"
_NO_COUNTERS = "must be 0: the processor has no performance counters"
_PAT = "each byte must be a memory type: 0, 1, 4, 5, 6 or 7"
_EFER = "only SCE, LME, LMA and NXE (bits 0, 8, 10, 11) exist"
_INFO = "VM_ENTRY_INTERRUPTION_INFORMATION"
_BLOCKING = "GUEST_INTERRUPTIBILITY_STATE"
_ACTIVITY = "GUEST_ACTIVITY_STATE"
_PENDING = "GUEST_PENDING_DEBUG_EXCEPTIONS"
_STEPPING = ("GUEST_RFLAGS", "GUEST_IA32_DEBUGCTL", _BLOCKING, _ACTIVITY)
_WAITING = "under blocking by STI or MOV SS, or in HLT"
_AWAKENING = (
    "must be one that lets the injected event in: HLT external interrupts, NMIs, #DB, #MC and "
    "pending MTF; shutdown NMIs and #MC; wait-for-SIPI nothing"
)
_ENTRY = "VM_ENTRY_CONTROLS"
_EXIT = "VM_EXIT_CONTROLS"
_PIN = "PIN_BASED_CONTROLS"
_PRIMARY = "PRIMARY_PROCESSOR_BASED_CONTROLS"
_SECONDARY = "SECONDARY_PROCESSOR_BASED_CONTROLS"

_ROWS: tuple[tuple[int, tuple[str, ...], str], ...] = (
    (ck.PIN_CONTROLS, (_PIN,), "reserved bits must be as IA32_VMX_(TRUE_)PINBASED_CTLS says"),
    (
        ck.PRIMARY_CONTROLS,
        (_PRIMARY,),
        "reserved bits must be as IA32_VMX_(TRUE_)PROCBASED_CTLS says",
    ),
    (
        ck.SECONDARY_CONTROLS,
        (_SECONDARY,),
        "reserved bits must be as IA32_VMX_PROCBASED_CTLS2 says",
    ),
    (ck.CR3_TARGETS, ("CR3_TARGET_COUNT",), "must not be greater than 4"),
    (ck.IO_BITMAP_A, ("IO_BITMAP_A_ADDRESS",), _PAGE),
    (ck.IO_BITMAP_B, ("IO_BITMAP_B_ADDRESS",), _PAGE),
    (ck.MSR_BITMAP, ("MSR_BITMAP_ADDRESS",), _PAGE),
    (ck.VIRTUAL_NMIS, (_PIN,), '"virtual NMIs" must be 0 if "NMI exiting" is 0'),
    (ck.NMI_WINDOW, (_PRIMARY, _PIN), '"NMI-window exiting" must be 0 if "virtual NMIs" is 0'),
    (ck.VPID_ZERO, ("VIRTUAL_PROCESSOR_IDENTIFIER",), 'must not be 0 if "enable VPID" is 1'),
    (ck.EPT_MEMORY_TYPE, ("EPT_POINTER",), "bits 2:0 must be 0 (uncacheable) or 6 (write-back)"),
    (ck.EPT_WALK_LENGTH, ("EPT_POINTER",), "bits 5:3 must be 3: a page walk of four levels"),
    (ck.EPT_RESERVED, ("EPT_POINTER",), "bits 11:7 and bits 63:40 must be 0"),
    (ck.UNRESTRICTED_WITHOUT_EPT, (_SECONDARY,), '"unrestricted guest" needs "enable EPT"'),
    (ck.PML_WITHOUT_EPT, (_SECONDARY,), '"enable PML" needs "enable EPT"'),
    (
        ck.MODE_BASED_WITHOUT_EPT,
        (_SECONDARY,),
        '"mode-based execute control for EPT" needs "enable EPT"',
    ),
    (ck.PML_PAGE, ("PML_ADDRESS",), _PAGE),
    (ck.VMREAD_BITMAP, ("VMREAD_BITMAP_ADDRESS",), _PAGE),
    (ck.VMWRITE_BITMAP, ("VMWRITE_BITMAP_ADDRESS",), _PAGE),
    (ck.VIRTUAL_APIC_PAGE, ("VIRTUAL_APIC_ADDRESS",), _PAGE),
    (ck.THRESHOLD_RESERVED, ("TPR_THRESHOLD",), "bits 31:4 must be 0"),
    (
        ck.THRESHOLD_ABOVE,
        ("TPR_THRESHOLD", "VIRTUAL_APIC_ADDRESS"),
        'without "virtualize APIC accesses" bits 3:0 must not be greater than bits 7:4 of VTPR',
    ),
    (
        ck.APIC_WITHOUT_SHADOW,
        (_SECONDARY, _PRIMARY),
        'virtualization of x2APIC mode, registers and interrupts needs "use TPR shadow"',
    ),
    (ck.APIC_ACCESS_PAGE, ("APIC_ACCESS_ADDRESS",), _PAGE),
    (
        ck.X2APIC_WITH_ACCESSES,
        (_SECONDARY,),
        '"virtualize x2APIC mode" and "virtualize APIC accesses" must not both be 1',
    ),
    (
        ck.DELIVERY_WITHOUT_EXITING,
        (_SECONDARY, _PIN),
        '"virtual-interrupt delivery" needs "external-interrupt exiting"',
    ),
    (
        ck.POSTING_CONTROLS,
        (_PIN, _SECONDARY, _EXIT),
        '"process posted interrupts" needs virtual-interrupt delivery and "acknowledge interrupt"',
    ),
    (ck.POSTED_VECTOR, ("POSTED_INTERRUPT_NOTIFICATION_VECTOR",), "bits 15:8 must be 0"),
    (
        ck.POSTED_DESCRIPTOR,
        ("POSTED_INTERRUPT_DESCRIPTOR_ADDRESS",),
        "bits 5:0 and bits 63:40 must be 0",
    ),
    (ck.EXIT_CONTROLS, (_EXIT,), "reserved bits must be as IA32_VMX_(TRUE_)EXIT_CTLS says"),
    (
        ck.SAVE_TIMER,
        (_EXIT, _PIN),
        '"save VMX-preemption timer value" needs "activate VMX-preemption timer"',
    ),
    (ck.EXIT_STORE_ADDRESS, ("VM_EXIT_MSR_STORE_ADDRESS", "VM_EXIT_MSR_STORE_COUNT"), _MSR_AREA),
    (ck.EXIT_STORE_END, ("VM_EXIT_MSR_STORE_ADDRESS", "VM_EXIT_MSR_STORE_COUNT"), _MSR_END),
    (ck.EXIT_LOAD_ADDRESS, ("VM_EXIT_MSR_LOAD_ADDRESS", "VM_EXIT_MSR_LOAD_COUNT"), _MSR_AREA),
    (ck.EXIT_LOAD_END, ("VM_EXIT_MSR_LOAD_ADDRESS", "VM_EXIT_MSR_LOAD_COUNT"), _MSR_END),
    (ck.EXIT_STORE_COUNT, ("VM_EXIT_MSR_STORE_COUNT",), _NO_AREA),
    (ck.EXIT_LOAD_COUNT, ("VM_EXIT_MSR_LOAD_COUNT",), _NO_AREA),
    (ck.ENTRY_CONTROLS, (_ENTRY,), "reserved bits must be as IA32_VMX_(TRUE_)ENTRY_CTLS says"),
    (
        ck.INJECTED_TYPE,
        (_INFO,),
        "interruption type 1 is reserved, and 7 without monitor trap flag",
    ),
    (
        ck.INJECTED_VECTOR,
        (_INFO,),
        "the vector must be 2 for an NMI, at most 31 for an exception, 0 for another event",
    ),
    (
        ck.INJECTED_DELIVER_CODE,
        (_INFO, "GUEST_CR0", _SECONDARY),
        "deliver error code (bit 11) must be 1 just for #DF, #TS, #NP, #SS, #GP, #PF, #AC",
    ),
    (ck.INJECTED_RESERVED, (_INFO,), "bits 30:12 must be 0"),
    (ck.INJECTED_ERROR_CODE, ("VM_ENTRY_EXCEPTION_ERROR_CODE", _INFO), "bits 31:16 must be 0"),
    (
        ck.INJECTED_LENGTH,
        ("VM_ENTRY_INSTRUCTION_LENGTH", _INFO),
        "must be 1 to 15 for a software interrupt or exception",
    ),
    (ck.ENTRY_LOAD_ADDRESS, ("VM_ENTRY_MSR_LOAD_ADDRESS", "VM_ENTRY_MSR_LOAD_COUNT"), _MSR_AREA),
    (ck.ENTRY_LOAD_END, ("VM_ENTRY_MSR_LOAD_ADDRESS", "VM_ENTRY_MSR_LOAD_COUNT"), _MSR_END),
    (ck.ENTRY_LOAD_COUNT, ("VM_ENTRY_MSR_LOAD_COUNT",), _NO_AREA),
    (
        ck.EXTENSION_RESERVED,
        ("EXIT_THROUGH_IDT",),
        "bits 30:8 must be 0, and without bit 31 the vector too",
    ),
    (ck.EXTENSION_FILTER, ("FAULT_FILTER",), "there is no such fault filter"),
    (ck.EXTENSION_FILTER_ORDER, ("FAULT_FILTER_ORDER",), "there is no such order of criteria"),
    (
        ck.TABLE_ADDRESS,
        ("CRITERIA_TABLE_ADDRESS", "CRITERIA_TABLE_LENGTH"),
        "the table must lie in memory, at a multiple of 8",
    ),
    (
        ck.TABLE_LENGTH,
        ("CRITERIA_TABLE_LENGTH",),
        "must be a multiple of 8 and at most 16384 bytes",
    ),
    (ck.TABLE_RULES, ("CRITERIA_TABLE_RULES",), "must be 1 to 64 for a table, and 0 without one"),
    (ck.TABLE_END, ("CRITERIA_TABLE_LENGTH", "FAILED_RULE"), "the table ends within this rule"),
    (
        ck.TABLE_RULE,
        ("FAILED_RULE",),
        "there is no such action, or reserved bits of the rule are 1",
    ),
    (
        ck.TABLE_CLAUSE,
        ("FAILED_RULE",),
        "there is no such operator, or what is reserved in the clause is not 0",
    ),
    (
        ck.TABLE_VALUE,
        ("FAILED_RULE",),
        "no value of the fault information has this clause's number",
    ),
    (
        ck.TABLE_BITMAP,
        ("FAILED_RULE", "CRITERIA_TABLE_LENGTH"),
        "the clause's bitmap must lie in the table, at a multiple of 8",
    ),
    (
        ck.TABLE_COMPLETES,
        ("FAILED_RULE",),
        "a rule that completes needs a clause over table_entry or an entry's bits",
    ),
    (
        ck.FRAME_MAP,
        ("FRAME_MAP_ADDRESS", "FRAME_MAP_LENGTH"),
        "the map must lie at a multiple of 4096 below 1 TB and have at most 2^28 bytes",
    ),
    (
        ck.FRAME_FILTERS,
        ("FRAME_FILTERS", "FRAME_MAP_LENGTH"),
        "bits 31:5 must be 0, and all of them without a frame map",
    ),
    (
        ck.ALIAS,
        ("ALIAS_BASE", "ALIAS_LENGTH", "FRAME_MAP_LENGTH"),
        "below 1 TB; the base a multiple of 2 MiB, the length of 4096, and 0 without a frame map",
    ),
    (
        ck.EXTENSION_CRITERION,
        ("TRANSFER_CRITERION",),
        "there is no such control-transfer criterion",
    ),
    (ck.EXTENSION_OPERATOR, ("COMPARISON_OPERATOR",), "there is no such comparison operator"),
    (
        ck.EXTENSION_VECTORS,
        ("TRANSFER_CRITERION_VECTORS",),
        "only vectors that have an error code can be given a criterion",
    ),
    (ck.EXTENSION_MEMBERS, ("MEMBERS_USED",), "there are eight members: bits 31:8 must be 0"),
    (
        ck.EXTENSION_CODE_FIELD,
        ("ERROR_CODE_FIELD_WIDTH", "ERROR_CODE_FIELD_SHIFT"),
        "the field must lie within the 32 bits of an error code",
    ),
    (
        ck.HOST_CR0,
        ("HOST_CR0",),
        "must be as IA32_VMX_CR0_FIXED0 and FIXED1 say (PE, NE, PG are 1)",
    ),
    (ck.HOST_CR4, ("HOST_CR4",), "must be as IA32_VMX_CR4_FIXED0 and FIXED1 say (VMXE is 1)"),
    (ck.HOST_CR3, ("HOST_CR3",), "bits 63:40, beyond the physical-address width, must be 0"),
    (ck.HOST_SYSENTER_ESP, ("HOST_IA32_SYSENTER_ESP",), _CANONICAL),
    (ck.HOST_SYSENTER_EIP, ("HOST_IA32_SYSENTER_EIP",), _CANONICAL),
    (ck.HOST_PERF_GLOBAL_CTRL, ("HOST_IA32_PERF_GLOBAL_CTRL",), _NO_COUNTERS),
    (ck.HOST_PAT, ("HOST_IA32_PAT",), _PAT),
    (ck.HOST_EFER_RESERVED, ("HOST_IA32_EFER",), _EFER),
    (
        ck.HOST_EFER_MODE,
        ("HOST_IA32_EFER", _EXIT),
        'LMA and LME must each equal the "host address-space size" VM-exit control',
    ),
    *(
        (ck.HOST_SELECTOR + n, (f"HOST_{name}_SELECTOR",), "RPL and TI (bits 2:0) must be 0")
        for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS", "TR"))
    ),
    (ck.HOST_CS_NULL, ("HOST_CS_SELECTOR",), "must not be 0"),
    (ck.HOST_TR_NULL, ("HOST_TR_SELECTOR",), "must not be 0"),
    (
        ck.HOST_SS_NULL,
        ("HOST_SS_SELECTOR", _EXIT),
        'must not be 0 if the "host address-space size" VM-exit control is 0',
    ),
    *(
        (number, (f"HOST_{name}_BASE",), _CANONICAL)
        for number, name in (
            (ck.HOST_FS_BASE, "FS"),
            (ck.HOST_GS_BASE, "GS"),
            (ck.HOST_GDTR_BASE, "GDTR"),
            (ck.HOST_IDTR_BASE, "IDTR"),
            (ck.HOST_TR_BASE, "TR"),
        )
    ),
    (
        ck.LONG_GUEST_OUTSIDE,
        (_ENTRY,),
        '"IA-32e mode guest" must be 0 for a VMM that is outside IA-32e mode',
    ),
    (
        ck.LONG_HOST_OUTSIDE,
        (_EXIT,),
        '"host address-space size" must be 0 for a VMM that is outside IA-32e mode',
    ),
    (
        ck.LEGACY_HOST_INSIDE,
        (_EXIT,),
        '"host address-space size" must be 1 for a VMM that is in IA-32e mode',
    ),
    (ck.HOST_PAE, ("HOST_CR4", _EXIT), 'PAE must be 1 if "host address-space size" is 1'),
    (ck.HOST_RIP_CANONICAL, ("HOST_RIP",), _CANONICAL),
    (
        ck.HOST_RIP_HIGH,
        ("HOST_RIP", _EXIT),
        'bits 63:32 must be 0 if "host address-space size" is 0',
    ),
    (ck.HOST_PCIDE, ("HOST_CR4", _EXIT), 'PCIDE must be 0 if "host address-space size" is 0'),
    (
        ck.GUEST_CR0,
        ("GUEST_CR0", _SECONDARY),
        "must be as IA32_VMX_CR0_FIXED0 and FIXED1 say (PE, NE, PG are 1)",
    ),
    (ck.GUEST_CR0_PG, ("GUEST_CR0",), "PG needs PE"),
    (ck.GUEST_CR4, ("GUEST_CR4",), "must be as IA32_VMX_CR4_FIXED0 and FIXED1 say (VMXE is 1)"),
    (ck.GUEST_DEBUGCTL, ("GUEST_IA32_DEBUGCTL", _ENTRY), "only LBR and BTF (bits 1:0) exist"),
    (ck.GUEST_LONG_PG, ("GUEST_CR0", _ENTRY), 'PG must be 1 if "IA-32e mode guest" is 1'),
    (ck.GUEST_LONG_PAE, ("GUEST_CR4", _ENTRY), 'PAE must be 1 if "IA-32e mode guest" is 1'),
    (ck.GUEST_CR3, ("GUEST_CR3",), "bits 63:40, beyond the physical-address width, must be 0"),
    (ck.GUEST_DR7, ("GUEST_DR7", _ENTRY), 'bits 63:32 must be 0 if "load debug controls" is 1'),
    (ck.GUEST_SYSENTER_ESP, ("GUEST_IA32_SYSENTER_ESP",), _CANONICAL),
    (ck.GUEST_SYSENTER_EIP, ("GUEST_IA32_SYSENTER_EIP",), _CANONICAL),
    (ck.GUEST_PERF_GLOBAL_CTRL, ("GUEST_IA32_PERF_GLOBAL_CTRL",), _NO_COUNTERS),
    (ck.GUEST_PAT, ("GUEST_IA32_PAT",), _PAT),
    (ck.GUEST_EFER_RESERVED, ("GUEST_IA32_EFER",), _EFER),
    (
        ck.GUEST_EFER_LMA,
        ("GUEST_IA32_EFER", _ENTRY),
        'LMA (bit 10) must equal the "IA-32e mode guest" VM-entry control',
    ),
    (
        ck.GUEST_EFER_LME,
        ("GUEST_IA32_EFER", "GUEST_CR0"),
        "LME (bit 8) must equal LMA (bit 10) if CR0.PG is 1",
    ),
    (ck.GUEST_LEGACY_PCIDE, ("GUEST_CR4", _ENTRY), 'PCIDE must be 0 if "IA-32e mode guest" is 0'),
    (ck.GUEST_GDTR_BASE, ("GUEST_GDTR_BASE",), _CANONICAL),
    (ck.GUEST_IDTR_BASE, ("GUEST_IDTR_BASE",), _CANONICAL),
    (ck.GUEST_GDTR_LIMIT, ("GUEST_GDTR_LIMIT",), "bits 31:16 must be 0"),
    (ck.GUEST_IDTR_LIMIT, ("GUEST_IDTR_LIMIT",), "bits 31:16 must be 0"),
    (
        ck.GUEST_RIP_HIGH,
        ("GUEST_RIP", _ENTRY, "GUEST_CS_ACCESS_RIGHTS"),
        "bits 63:32 must be 0 outside 64-bit mode",
    ),
    (ck.GUEST_RIP_CANONICAL, ("GUEST_RIP",), "bits 63:48 must all be alike in 64-bit mode"),
    (
        ck.GUEST_RFLAGS_RESERVED,
        ("GUEST_RFLAGS",),
        "bits 63:22, 15, 5 and 3 must be 0 and bit 1 must be 1",
    ),
    (
        ck.GUEST_RFLAGS_VM,
        ("GUEST_RFLAGS", _ENTRY, "GUEST_CR0"),
        'VM (bit 17) must be 0 if "IA-32e mode guest" is 1 or CR0.PE is 0',
    ),
    (
        ck.GUEST_RFLAGS_IF,
        ("GUEST_RFLAGS", _INFO),
        "IF (bit 9) must be 1 if an external interrupt is injected",
    ),
    (
        ck.ACTIVITY_UNKNOWN,
        (_ACTIVITY,),
        "must be 0 (active), 1 (HLT), 2 (shutdown) or 3 (wait-for-SIPI)",
    ),
    (
        ck.ACTIVITY_HLT_DPL,
        (_ACTIVITY, "GUEST_SS_ACCESS_RIGHTS"),
        "must not be HLT if the DPL of SS is not 0",
    ),
    (
        ck.ACTIVITY_BLOCKED,
        (_ACTIVITY, _BLOCKING),
        "must be active if there is blocking by STI or by MOV SS",
    ),
    (
        ck.ACTIVITY_INJECTION,
        (_ACTIVITY, _INFO),
        _AWAKENING,
    ),
    (ck.BLOCKING_RESERVED, (_BLOCKING,), "bits 31:4 must be 0"),
    (ck.BLOCKING_STI_AND_SS, (_BLOCKING,), "cannot be blocking by STI and by MOV SS at once"),
    (
        ck.BLOCKING_STI_WITHOUT_IF,
        (_BLOCKING, "GUEST_RFLAGS"),
        "blocking by STI (bit 0) must be 0 if RFLAGS.IF is 0",
    ),
    (
        ck.BLOCKING_INTERRUPT,
        (_BLOCKING, _INFO),
        "blocking by STI and by MOV SS must be 0 if an external interrupt is injected",
    ),
    (
        ck.BLOCKING_NMI_BY_SS,
        (_BLOCKING, _INFO),
        "blocking by MOV SS (bit 1) must be 0 if an NMI is injected",
    ),
    (ck.BLOCKING_SMI, (_BLOCKING,), "blocking by SMI (bit 2) must be 0 outside SMM"),
    (
        ck.BLOCKING_NMI_BY_STI,
        (_BLOCKING, _INFO),
        "blocking by STI (bit 0) must be 0 if an NMI is injected, on this processor",
    ),
    (
        ck.BLOCKING_VIRTUAL_NMI,
        (_BLOCKING, _INFO, _PIN),
        'blocking by NMI (bit 3) must be 0 if an NMI is injected and "virtual NMIs" is 1',
    ),
    (ck.PENDING_RESERVED, (_PENDING,), "bits 63:15, 13 and 11:4 must be 0"),
    (
        ck.PENDING_BS_MISSING,
        (_PENDING, *_STEPPING),
        f"BS (bit 14) must be 1 if RFLAGS.TF is 1 and DEBUGCTL.BTF is 0, {_WAITING}",
    ),
    (
        ck.PENDING_BS_SURPLUS,
        (_PENDING, *_STEPPING),
        f"BS (bit 14) must be 0 if RFLAGS.TF is 0 or DEBUGCTL.BTF is 1, {_WAITING}",
    ),
    (
        ck.LINK_ADDRESS,
        ("VMCS_LINK_POINTER",),
        "must be all ones, or the physical address of a page: bits 11:0 and bits 63:40 are 0",
    ),
    (
        ck.LINK_REVISION,
        ("VMCS_LINK_POINTER",),
        (
            "must be all ones, or the address of a VMCS with the right revision identifier, bit 31 "
            "of which is 1 if and only if VMCS shadowing is"
        ),
    ),
    (ck.LINK_CURRENT, ("VMCS_LINK_POINTER",), "must not be the current-VMCS pointer"),
    *(
        (
            ck.PDPTE + n,
            ("GUEST_CR3", "GUEST_CR4"),
            f"the PDPTE {n} that CR3 leads to is present with one of bits 63:40, 8:5, 2:1 set",
        )
        for n in range(4)
    ),
    *(
        (
            ck.PDPTE_FIELD + n,
            (f"GUEST_PDPTE{n}", "GUEST_CR4", _SECONDARY),
            "is present with one of bits 63:40, 8:5, 2:1 set",
        )
        for n in range(4)
    ),
)

_SEGMENTS = ("ES", "CS", "SS", "DS", "FS", "GS", "LDTR", "TR")
_LEGACY_BASE = "bits 63:32 must be 0"
_BASES = {"CS": _LEGACY_BASE, **dict.fromkeys(("SS", "DS", "ES"), f"{_LEGACY_BASE} if usable")}
_TYPES = {
    "CS": 'must be 9, 11, 13 or 15 (accessed code), or 3 with "unrestricted guest"',
    "SS": "must be 3 or 7 (read/write, accessed data) if usable",
    "LDTR": "must be 2 (LDT) if usable",
    "TR": "must be 11 (busy 32-bit or 64-bit TSS), or 3 (busy 16-bit TSS) outside IA-32e mode",
}
_DPLS = {
    "CS": "must equal that of SS if nonconforming, not exceed it if conforming, be 0 if type 3",
    "SS": 'must equal the selector\'s RPL; with "unrestricted guest" be 0 in real mode or if '
    "the type of CS is 3",
}


def _segment_rows() -> Iterator[tuple[int, tuple[str, ...], str]]:
    for n, name in enumerate(_SEGMENTS):
        selector, base, limit, rights = (
            f"GUEST_{name}_{part}" for part in ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS")
        )
        system = name in ("LDTR", "TR")
        if system:
            yield ck.SELECTOR_TI + n, (selector, rights), "TI (bit 2) must be 0"
        else:
            yield (
                ck.V8086_BASE + n,
                (base, selector),
                "must be the selector times 16 (RFLAGS.VM is 1)",
            )
            yield ck.V8086_LIMIT + n, (limit,), "must be FFFFH (RFLAGS.VM is 1)"
            yield ck.V8086_RIGHTS + n, (rights,), "must be F3H (RFLAGS.VM is 1)"
            dpl = _DPLS.get(name, "must not be less than the selector's RPL if type 0-11")
            yield ck.DPL + n, (rights, selector), f"DPL (bits 6:5) {dpl}"
        yield ck.BASE + n, (base, rights), _BASES.get(name, _CANONICAL)
        accessed = "must be accessed (bit 0), and readable (bit 1) if code (bit 3), if usable"
        yield ck.TYPE + n, (rights,), f"type (bits 3:0) {_TYPES.get(name, accessed)}"
        yield ck.CODE_OR_SYSTEM + n, (rights,), f"S (bit 4) must be {0 if system else 1}"
        yield ck.PRESENT + n, (rights,), "P (bit 7) must be 1"
        yield ck.RIGHTS_RESERVED + n, (rights,), "bits 31:17 and 11:8 must be 0"
        yield (
            ck.GRANULARITY_SMALL + n,
            (rights, limit),
            "G (bit 15) must be 0 if any of the limit's bits 11:0 is 0",
        )
        yield (
            ck.GRANULARITY_LARGE + n,
            (rights, limit),
            "G (bit 15) must be 1 if any of the limit's bits 31:20 is 1",
        )
    yield (
        ck.SELECTOR_RPL + 2,
        ("GUEST_SS_SELECTOR", "GUEST_CS_SELECTOR"),
        "RPL (bits 1:0) must equal that of CS",
    )
    yield (
        ck.DEFAULT_SIZE + 1,
        ("GUEST_CS_ACCESS_RIGHTS", _ENTRY),
        'D/B (bit 14) must be 0 if L (bit 13) and "IA-32e mode guest" are 1',
    )
    yield ck.UNUSABLE + 7, ("GUEST_TR_ACCESS_RIGHTS",), "TR must be usable: bit 16 must be 0"


CHECKS: dict[int, Check] = {row[0]: Check(*row) for row in (*_ROWS, *_segment_rows())}
"""Every check by its number."""
