"""The checks of VM entry: a number for each, and what it says to a human.

Core functions answer with the number of the first check that failed, 0 if none did
(`trapgate.vmx.checks`); `trapgate.vmcs.explain` turns a
number into words. The hundreds are the SDM's section, so that numbers stay when
checks are added. A check that is made of each segment register has ten numbers, the
last digit being the register's in the order ES, CS, SS, DS, FS, GS, LDTR, TR.
"""

from collections.abc import Iterator
from typing import NamedTuple

PIN_CONTROLS = 101
PRIMARY_CONTROLS = 102
SECONDARY_CONTROLS = 103
CR3_TARGETS = 104
IO_BITMAP_A = 105
IO_BITMAP_B = 106
MSR_BITMAP = 107
VIRTUAL_NMIS = 108
NMI_WINDOW = 109
VPID_ZERO = 110
EPT_MEMORY_TYPE = 111
EPT_WALK_LENGTH = 112
EPT_RESERVED = 113
UNRESTRICTED_WITHOUT_EPT = 114
VIRTUAL_APIC_PAGE = 115
THRESHOLD_RESERVED = 116
THRESHOLD_ABOVE = 117
APIC_WITHOUT_SHADOW = 118
APIC_ACCESS_PAGE = 119
X2APIC_WITH_ACCESSES = 120
DELIVERY_WITHOUT_EXITING = 121
POSTING_CONTROLS = 122
POSTED_VECTOR = 123
POSTED_DESCRIPTOR = 124

EXIT_CONTROLS = 201
SAVE_TIMER = 202
EXIT_STORE_ADDRESS = 203
EXIT_STORE_END = 204
EXIT_LOAD_ADDRESS = 205
EXIT_LOAD_END = 206
EXIT_STORE_COUNT = 207
EXIT_LOAD_COUNT = 208

ENTRY_CONTROLS = 301
INJECTED_TYPE = 302
INJECTED_VECTOR = 303
INJECTED_DELIVER_CODE = 304
INJECTED_RESERVED = 305
INJECTED_ERROR_CODE = 306
INJECTED_LENGTH = 307
ENTRY_LOAD_ADDRESS = 308
ENTRY_LOAD_END = 309
ENTRY_LOAD_COUNT = 310

EXTENSION_RESERVED = 351
EXTENSION_CRITERION = 352
EXTENSION_OPERATOR = 353
EXTENSION_VECTORS = 354
EXTENSION_MEMBERS = 355
EXTENSION_CODE_FIELD = 356
EXTENSION_FILTER = 357
EXTENSION_FILTER_ORDER = 358
TABLE_ADDRESS = 359
TABLE_LENGTH = 360
TABLE_RULES = 361
TABLE_END = 362
TABLE_RULE = 363
TABLE_CLAUSE = 364
TABLE_VALUE = 365
TABLE_BITMAP = 366
TABLE_COMPLETES = 367
FRAME_MAP = 368
FRAME_FILTERS = 369

LAST_OF_CONTROLS = 399
"""Checks up to here fail with VM-instruction error 7."""

HOST_CR0 = 401
HOST_CR4 = 402
HOST_CR3 = 403
HOST_SYSENTER_ESP = 404
HOST_SYSENTER_EIP = 405
HOST_PAT = 406
HOST_EFER_RESERVED = 407
HOST_EFER_MODE = 408

HOST_SELECTOR = 510
"""And six more: ES, CS, SS, DS, FS, GS, TR."""
HOST_CS_NULL = 521
HOST_TR_NULL = 522
HOST_SS_NULL = 523
HOST_FS_BASE = 531
HOST_GS_BASE = 532
HOST_GDTR_BASE = 533
HOST_IDTR_BASE = 534
HOST_TR_BASE = 535

LONG_GUEST_OUTSIDE = 601
LONG_HOST_OUTSIDE = 602
LEGACY_HOST_INSIDE = 603
HOST_PAE = 604
HOST_RIP_CANONICAL = 605
HOST_RIP_HIGH = 606
HOST_PCIDE = 607

LAST_OF_HOST = 699
"""Checks from 401 up to here fail with VM-instruction error 8; those above with exit reason 33."""

GUEST_CR0 = 701
GUEST_CR0_PG = 702
GUEST_CR4 = 703
GUEST_DEBUGCTL = 704
GUEST_LONG_PG = 705
GUEST_LONG_PAE = 706
GUEST_CR3 = 707
GUEST_DR7 = 708
GUEST_SYSENTER_ESP = 709
GUEST_SYSENTER_EIP = 710
GUEST_PAT = 711
GUEST_EFER_RESERVED = 712
GUEST_EFER_LMA = 713
GUEST_EFER_LME = 714
GUEST_LEGACY_PCIDE = 715

SELECTOR_TI = 800
SELECTOR_RPL = 810
V8086_BASE = 820
BASE = 830
V8086_LIMIT = 840
V8086_RIGHTS = 850
TYPE = 860
CODE_OR_SYSTEM = 870
DPL = 880
PRESENT = 890
RIGHTS_RESERVED = 900
DEFAULT_SIZE = 910
GRANULARITY_SMALL = 920
GRANULARITY_LARGE = 930
UNUSABLE = 940

GUEST_GDTR_BASE = 1001
GUEST_IDTR_BASE = 1002
GUEST_GDTR_LIMIT = 1003
GUEST_IDTR_LIMIT = 1004

GUEST_RIP_HIGH = 1101
GUEST_RIP_CANONICAL = 1102
GUEST_RFLAGS_RESERVED = 1103
GUEST_RFLAGS_VM = 1104
GUEST_RFLAGS_IF = 1105

ACTIVITY_UNKNOWN = 1201
ACTIVITY_HLT_DPL = 1202
ACTIVITY_BLOCKED = 1203
ACTIVITY_INJECTION = 1204
BLOCKING_RESERVED = 1211
BLOCKING_STI_AND_SS = 1212
BLOCKING_STI_WITHOUT_IF = 1213
BLOCKING_INTERRUPT = 1214
BLOCKING_NMI_BY_SS = 1215
BLOCKING_SMI = 1216
BLOCKING_NMI_BY_STI = 1217
BLOCKING_VIRTUAL_NMI = 1218
PENDING_RESERVED = 1221
PENDING_BS_MISSING = 1222
PENDING_BS_SURPLUS = 1223
LINK_ADDRESS = 1231
LINK_REVISION = 1232
LINK_CURRENT = 1233

PDPTE = 1300
"""And three more, for the other page-directory-pointer-table entries."""
PDPTE_FIELD = 1310
"""The same under EPT, where fields hold them."""

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

    `section` is a title in the SDM; empty for what is no rule of the SDM's.
    """

    number: int
    fields: tuple[str, ...]
    rule: str

    @property
    def section(self) -> str:
        """The title of the SDM's section that has the check."""
        if EXTENSION_RESERVED <= self.number <= LAST_OF_CONTROLS:
            return ""
        return _SECTIONS[self.number // 100]


_CANONICAL = "must be canonical: bits 63:47 all alike"
_PAGE = "must be the physical address of a page: bits 11:0 and bits 63:40 are 0"
_MSR_AREA = "must be a multiple of 16, with bits 63:40 0, when the area's count is not 0"
_MSR_END = "the area (16 bytes for each MSR) must end below the physical-address width, 2^40"
_NO_AREA = "must be 0: a VMM in Python switches MSRs itself"
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
    (PIN_CONTROLS, (_PIN,), "reserved bits must be as IA32_VMX_(TRUE_)PINBASED_CTLS says"),
    (PRIMARY_CONTROLS, (_PRIMARY,), "reserved bits must be as IA32_VMX_(TRUE_)PROCBASED_CTLS says"),
    (SECONDARY_CONTROLS, (_SECONDARY,), "reserved bits must be as IA32_VMX_PROCBASED_CTLS2 says"),
    (CR3_TARGETS, ("CR3_TARGET_COUNT",), "must not be greater than 4"),
    (IO_BITMAP_A, ("IO_BITMAP_A_ADDRESS",), _PAGE),
    (IO_BITMAP_B, ("IO_BITMAP_B_ADDRESS",), _PAGE),
    (MSR_BITMAP, ("MSR_BITMAP_ADDRESS",), _PAGE),
    (VIRTUAL_NMIS, (_PIN,), '"virtual NMIs" must be 0 if "NMI exiting" is 0'),
    (NMI_WINDOW, (_PRIMARY, _PIN), '"NMI-window exiting" must be 0 if "virtual NMIs" is 0'),
    (VPID_ZERO, ("VIRTUAL_PROCESSOR_IDENTIFIER",), 'must not be 0 if "enable VPID" is 1'),
    (EPT_MEMORY_TYPE, ("EPT_POINTER",), "bits 2:0 must be 0 (uncacheable) or 6 (write-back)"),
    (EPT_WALK_LENGTH, ("EPT_POINTER",), "bits 5:3 must be 3: a page walk of four levels"),
    (EPT_RESERVED, ("EPT_POINTER",), "bits 11:7 and bits 63:40 must be 0"),
    (UNRESTRICTED_WITHOUT_EPT, (_SECONDARY,), '"unrestricted guest" needs "enable EPT"'),
    (VIRTUAL_APIC_PAGE, ("VIRTUAL_APIC_ADDRESS",), _PAGE),
    (THRESHOLD_RESERVED, ("TPR_THRESHOLD",), "bits 31:4 must be 0"),
    (
        THRESHOLD_ABOVE,
        ("TPR_THRESHOLD", "VIRTUAL_APIC_ADDRESS"),
        'without "virtualize APIC accesses" bits 3:0 must not be greater than bits 7:4 of VTPR',
    ),
    (
        APIC_WITHOUT_SHADOW,
        (_SECONDARY, _PRIMARY),
        'virtualization of x2APIC mode, registers and interrupts needs "use TPR shadow"',
    ),
    (APIC_ACCESS_PAGE, ("APIC_ACCESS_ADDRESS",), _PAGE),
    (
        X2APIC_WITH_ACCESSES,
        (_SECONDARY,),
        '"virtualize x2APIC mode" and "virtualize APIC accesses" must not both be 1',
    ),
    (
        DELIVERY_WITHOUT_EXITING,
        (_SECONDARY, _PIN),
        '"virtual-interrupt delivery" needs "external-interrupt exiting"',
    ),
    (
        POSTING_CONTROLS,
        (_PIN, _SECONDARY, _EXIT),
        '"process posted interrupts" needs virtual-interrupt delivery and "acknowledge interrupt"',
    ),
    (POSTED_VECTOR, ("POSTED_INTERRUPT_NOTIFICATION_VECTOR",), "bits 15:8 must be 0"),
    (
        POSTED_DESCRIPTOR,
        ("POSTED_INTERRUPT_DESCRIPTOR_ADDRESS",),
        "bits 5:0 and bits 63:40 must be 0",
    ),
    (EXIT_CONTROLS, (_EXIT,), "reserved bits must be as IA32_VMX_(TRUE_)EXIT_CTLS says"),
    (
        SAVE_TIMER,
        (_EXIT, _PIN),
        '"save VMX-preemption timer value" needs "activate VMX-preemption timer"',
    ),
    (EXIT_STORE_ADDRESS, ("VM_EXIT_MSR_STORE_ADDRESS", "VM_EXIT_MSR_STORE_COUNT"), _MSR_AREA),
    (EXIT_STORE_END, ("VM_EXIT_MSR_STORE_ADDRESS", "VM_EXIT_MSR_STORE_COUNT"), _MSR_END),
    (EXIT_LOAD_ADDRESS, ("VM_EXIT_MSR_LOAD_ADDRESS", "VM_EXIT_MSR_LOAD_COUNT"), _MSR_AREA),
    (EXIT_LOAD_END, ("VM_EXIT_MSR_LOAD_ADDRESS", "VM_EXIT_MSR_LOAD_COUNT"), _MSR_END),
    (EXIT_STORE_COUNT, ("VM_EXIT_MSR_STORE_COUNT",), _NO_AREA),
    (EXIT_LOAD_COUNT, ("VM_EXIT_MSR_LOAD_COUNT",), _NO_AREA),
    (ENTRY_CONTROLS, (_ENTRY,), "reserved bits must be as IA32_VMX_(TRUE_)ENTRY_CTLS says"),
    (INJECTED_TYPE, (_INFO,), "interruption type 1 is reserved, and 7 without monitor trap flag"),
    (
        INJECTED_VECTOR,
        (_INFO,),
        "the vector must be 2 for an NMI, at most 31 for an exception, 0 for another event",
    ),
    (
        INJECTED_DELIVER_CODE,
        (_INFO, "GUEST_CR0", _SECONDARY),
        "deliver error code (bit 11) must be 1 just for #DF, #TS, #NP, #SS, #GP, #PF, #AC",
    ),
    (INJECTED_RESERVED, (_INFO,), "bits 30:12 must be 0"),
    (INJECTED_ERROR_CODE, ("VM_ENTRY_EXCEPTION_ERROR_CODE", _INFO), "bits 31:16 must be 0"),
    (
        INJECTED_LENGTH,
        ("VM_ENTRY_INSTRUCTION_LENGTH", _INFO),
        "must be 1 to 15 for a software interrupt or exception",
    ),
    (ENTRY_LOAD_ADDRESS, ("VM_ENTRY_MSR_LOAD_ADDRESS", "VM_ENTRY_MSR_LOAD_COUNT"), _MSR_AREA),
    (ENTRY_LOAD_END, ("VM_ENTRY_MSR_LOAD_ADDRESS", "VM_ENTRY_MSR_LOAD_COUNT"), _MSR_END),
    (ENTRY_LOAD_COUNT, ("VM_ENTRY_MSR_LOAD_COUNT",), _NO_AREA),
    (
        EXTENSION_RESERVED,
        ("EXIT_THROUGH_IDT",),
        "bits 30:8 must be 0, and without bit 31 the vector too",
    ),
    (EXTENSION_FILTER, ("FAULT_FILTER",), "there is no such fault filter"),
    (EXTENSION_FILTER_ORDER, ("FAULT_FILTER_ORDER",), "there is no such order of criteria"),
    (
        TABLE_ADDRESS,
        ("CRITERIA_TABLE_ADDRESS", "CRITERIA_TABLE_LENGTH"),
        "the table must lie in memory, at a multiple of 8",
    ),
    (
        TABLE_LENGTH,
        ("CRITERIA_TABLE_LENGTH",),
        "must be a multiple of 8 and at most 16384 bytes",
    ),
    (TABLE_RULES, ("CRITERIA_TABLE_RULES",), "must be 1 to 64 for a table, and 0 without one"),
    (TABLE_END, ("CRITERIA_TABLE_LENGTH", "FAILED_RULE"), "the table ends within this rule"),
    (TABLE_RULE, ("FAILED_RULE",), "there is no such action, or reserved bits of the rule are 1"),
    (
        TABLE_CLAUSE,
        ("FAILED_RULE",),
        "there is no such operator, or what is reserved in the clause is not 0",
    ),
    (TABLE_VALUE, ("FAILED_RULE",), "no value of the fault information has this clause's number"),
    (
        TABLE_BITMAP,
        ("FAILED_RULE", "CRITERIA_TABLE_LENGTH"),
        "the clause's bitmap must lie in the table, at a multiple of 8",
    ),
    (
        TABLE_COMPLETES,
        ("FAILED_RULE",),
        "a rule that completes needs a clause over table_entry or an entry's bits",
    ),
    (
        FRAME_MAP,
        ("FRAME_MAP_ADDRESS", "FRAME_MAP_LENGTH"),
        "the map must lie at a multiple of 4096 below 1 TB and have at most 2^28 bytes",
    ),
    (
        FRAME_FILTERS,
        ("FRAME_FILTERS", "FRAME_MAP_LENGTH"),
        "bits 31:2 must be 0, and all of them without a frame map",
    ),
    (EXTENSION_CRITERION, ("TRANSFER_CRITERION",), "there is no such control-transfer criterion"),
    (EXTENSION_OPERATOR, ("COMPARISON_OPERATOR",), "there is no such comparison operator"),
    (
        EXTENSION_VECTORS,
        ("TRANSFER_CRITERION_VECTORS",),
        "only vectors that have an error code can be given a criterion",
    ),
    (EXTENSION_MEMBERS, ("MEMBERS_USED",), "there are eight members: bits 31:8 must be 0"),
    (
        EXTENSION_CODE_FIELD,
        ("ERROR_CODE_FIELD_WIDTH", "ERROR_CODE_FIELD_SHIFT"),
        "the field must lie within the 32 bits of an error code",
    ),
    (HOST_CR0, ("HOST_CR0",), "must be as IA32_VMX_CR0_FIXED0 and FIXED1 say (PE, NE, PG are 1)"),
    (HOST_CR4, ("HOST_CR4",), "must be as IA32_VMX_CR4_FIXED0 and FIXED1 say (VMXE is 1)"),
    (HOST_CR3, ("HOST_CR3",), "bits 63:40, beyond the physical-address width, must be 0"),
    (HOST_SYSENTER_ESP, ("HOST_IA32_SYSENTER_ESP",), _CANONICAL),
    (HOST_SYSENTER_EIP, ("HOST_IA32_SYSENTER_EIP",), _CANONICAL),
    (HOST_PAT, ("HOST_IA32_PAT",), _PAT),
    (HOST_EFER_RESERVED, ("HOST_IA32_EFER",), _EFER),
    (
        HOST_EFER_MODE,
        ("HOST_IA32_EFER", _EXIT),
        'LMA and LME must each equal the "host address-space size" VM-exit control',
    ),
    *(
        (HOST_SELECTOR + n, (f"HOST_{name}_SELECTOR",), "RPL and TI (bits 2:0) must be 0")
        for n, name in enumerate(("ES", "CS", "SS", "DS", "FS", "GS", "TR"))
    ),
    (HOST_CS_NULL, ("HOST_CS_SELECTOR",), "must not be 0"),
    (HOST_TR_NULL, ("HOST_TR_SELECTOR",), "must not be 0"),
    (
        HOST_SS_NULL,
        ("HOST_SS_SELECTOR", _EXIT),
        'must not be 0 if the "host address-space size" VM-exit control is 0',
    ),
    *(
        (number, (f"HOST_{name}_BASE",), _CANONICAL)
        for number, name in (
            (HOST_FS_BASE, "FS"),
            (HOST_GS_BASE, "GS"),
            (HOST_GDTR_BASE, "GDTR"),
            (HOST_IDTR_BASE, "IDTR"),
            (HOST_TR_BASE, "TR"),
        )
    ),
    (
        LONG_GUEST_OUTSIDE,
        (_ENTRY,),
        '"IA-32e mode guest" must be 0 for a VMM that is outside IA-32e mode',
    ),
    (
        LONG_HOST_OUTSIDE,
        (_EXIT,),
        '"host address-space size" must be 0 for a VMM that is outside IA-32e mode',
    ),
    (
        LEGACY_HOST_INSIDE,
        (_EXIT,),
        '"host address-space size" must be 1 for a VMM that is in IA-32e mode',
    ),
    (HOST_PAE, ("HOST_CR4", _EXIT), 'PAE must be 1 if "host address-space size" is 1'),
    (HOST_RIP_CANONICAL, ("HOST_RIP",), _CANONICAL),
    (
        HOST_RIP_HIGH,
        ("HOST_RIP", _EXIT),
        'bits 63:32 must be 0 if "host address-space size" is 0',
    ),
    (HOST_PCIDE, ("HOST_CR4", _EXIT), 'PCIDE must be 0 if "host address-space size" is 0'),
    (
        GUEST_CR0,
        ("GUEST_CR0", _SECONDARY),
        "must be as IA32_VMX_CR0_FIXED0 and FIXED1 say (PE, NE, PG are 1)",
    ),
    (GUEST_CR0_PG, ("GUEST_CR0",), "PG needs PE"),
    (GUEST_CR4, ("GUEST_CR4",), "must be as IA32_VMX_CR4_FIXED0 and FIXED1 say (VMXE is 1)"),
    (GUEST_DEBUGCTL, ("GUEST_IA32_DEBUGCTL", _ENTRY), "only LBR and BTF (bits 1:0) exist"),
    (GUEST_LONG_PG, ("GUEST_CR0", _ENTRY), 'PG must be 1 if "IA-32e mode guest" is 1'),
    (GUEST_LONG_PAE, ("GUEST_CR4", _ENTRY), 'PAE must be 1 if "IA-32e mode guest" is 1'),
    (GUEST_CR3, ("GUEST_CR3",), "bits 63:40, beyond the physical-address width, must be 0"),
    (GUEST_DR7, ("GUEST_DR7", _ENTRY), 'bits 63:32 must be 0 if "load debug controls" is 1'),
    (GUEST_SYSENTER_ESP, ("GUEST_IA32_SYSENTER_ESP",), _CANONICAL),
    (GUEST_SYSENTER_EIP, ("GUEST_IA32_SYSENTER_EIP",), _CANONICAL),
    (GUEST_PAT, ("GUEST_IA32_PAT",), _PAT),
    (GUEST_EFER_RESERVED, ("GUEST_IA32_EFER",), _EFER),
    (
        GUEST_EFER_LMA,
        ("GUEST_IA32_EFER", _ENTRY),
        'LMA (bit 10) must equal the "IA-32e mode guest" VM-entry control',
    ),
    (
        GUEST_EFER_LME,
        ("GUEST_IA32_EFER", "GUEST_CR0"),
        "LME (bit 8) must equal LMA (bit 10) if CR0.PG is 1",
    ),
    (GUEST_LEGACY_PCIDE, ("GUEST_CR4", _ENTRY), 'PCIDE must be 0 if "IA-32e mode guest" is 0'),
    (GUEST_GDTR_BASE, ("GUEST_GDTR_BASE",), _CANONICAL),
    (GUEST_IDTR_BASE, ("GUEST_IDTR_BASE",), _CANONICAL),
    (GUEST_GDTR_LIMIT, ("GUEST_GDTR_LIMIT",), "bits 31:16 must be 0"),
    (GUEST_IDTR_LIMIT, ("GUEST_IDTR_LIMIT",), "bits 31:16 must be 0"),
    (
        GUEST_RIP_HIGH,
        ("GUEST_RIP", _ENTRY, "GUEST_CS_ACCESS_RIGHTS"),
        "bits 63:32 must be 0 outside 64-bit mode",
    ),
    (GUEST_RIP_CANONICAL, ("GUEST_RIP",), "bits 63:48 must all be alike in 64-bit mode"),
    (
        GUEST_RFLAGS_RESERVED,
        ("GUEST_RFLAGS",),
        "bits 63:22, 15, 5 and 3 must be 0 and bit 1 must be 1",
    ),
    (
        GUEST_RFLAGS_VM,
        ("GUEST_RFLAGS", _ENTRY, "GUEST_CR0"),
        'VM (bit 17) must be 0 if "IA-32e mode guest" is 1 or CR0.PE is 0',
    ),
    (
        GUEST_RFLAGS_IF,
        ("GUEST_RFLAGS", _INFO),
        "IF (bit 9) must be 1 if an external interrupt is injected",
    ),
    (
        ACTIVITY_UNKNOWN,
        (_ACTIVITY,),
        "must be 0 (active), 1 (HLT), 2 (shutdown) or 3 (wait-for-SIPI)",
    ),
    (
        ACTIVITY_HLT_DPL,
        (_ACTIVITY, "GUEST_SS_ACCESS_RIGHTS"),
        "must not be HLT if the DPL of SS is not 0",
    ),
    (
        ACTIVITY_BLOCKED,
        (_ACTIVITY, _BLOCKING),
        "must be active if there is blocking by STI or by MOV SS",
    ),
    (
        ACTIVITY_INJECTION,
        (_ACTIVITY, _INFO),
        _AWAKENING,
    ),
    (BLOCKING_RESERVED, (_BLOCKING,), "bits 31:4 must be 0"),
    (BLOCKING_STI_AND_SS, (_BLOCKING,), "cannot be blocking by STI and by MOV SS at once"),
    (
        BLOCKING_STI_WITHOUT_IF,
        (_BLOCKING, "GUEST_RFLAGS"),
        "blocking by STI (bit 0) must be 0 if RFLAGS.IF is 0",
    ),
    (
        BLOCKING_INTERRUPT,
        (_BLOCKING, _INFO),
        "blocking by STI and by MOV SS must be 0 if an external interrupt is injected",
    ),
    (
        BLOCKING_NMI_BY_SS,
        (_BLOCKING, _INFO),
        "blocking by MOV SS (bit 1) must be 0 if an NMI is injected",
    ),
    (BLOCKING_SMI, (_BLOCKING,), "blocking by SMI (bit 2) must be 0 outside SMM"),
    (
        BLOCKING_NMI_BY_STI,
        (_BLOCKING, _INFO),
        "blocking by STI (bit 0) must be 0 if an NMI is injected, on this processor",
    ),
    (
        BLOCKING_VIRTUAL_NMI,
        (_BLOCKING, _INFO, _PIN),
        'blocking by NMI (bit 3) must be 0 if an NMI is injected and "virtual NMIs" is 1',
    ),
    (PENDING_RESERVED, (_PENDING,), "bits 63:15, 13 and 11:4 must be 0"),
    (
        PENDING_BS_MISSING,
        (_PENDING, *_STEPPING),
        f"BS (bit 14) must be 1 if RFLAGS.TF is 1 and DEBUGCTL.BTF is 0, {_WAITING}",
    ),
    (
        PENDING_BS_SURPLUS,
        (_PENDING, *_STEPPING),
        f"BS (bit 14) must be 0 if RFLAGS.TF is 0 or DEBUGCTL.BTF is 1, {_WAITING}",
    ),
    (
        LINK_ADDRESS,
        ("VMCS_LINK_POINTER",),
        "must be all ones, or the physical address of a page: bits 11:0 and bits 63:40 are 0",
    ),
    (
        LINK_REVISION,
        ("VMCS_LINK_POINTER",),
        "must be all ones, or the address of a VMCS with the right revision identifier",
    ),
    (LINK_CURRENT, ("VMCS_LINK_POINTER",), "must not be the current-VMCS pointer"),
    *(
        (
            PDPTE + n,
            ("GUEST_CR3", "GUEST_CR4"),
            f"the PDPTE {n} that CR3 leads to is present with one of bits 63:40, 8:5, 2:1 set",
        )
        for n in range(4)
    ),
    *(
        (
            PDPTE_FIELD + n,
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
            yield SELECTOR_TI + n, (selector, rights), "TI (bit 2) must be 0"
        else:
            yield V8086_BASE + n, (base, selector), "must be the selector times 16 (RFLAGS.VM is 1)"
            yield V8086_LIMIT + n, (limit,), "must be FFFFH (RFLAGS.VM is 1)"
            yield V8086_RIGHTS + n, (rights,), "must be F3H (RFLAGS.VM is 1)"
            dpl = _DPLS.get(name, "must not be less than the selector's RPL if type 0-11")
            yield DPL + n, (rights, selector), f"DPL (bits 6:5) {dpl}"
        yield BASE + n, (base, rights), _BASES.get(name, _CANONICAL)
        accessed = "must be accessed (bit 0), and readable (bit 1) if code (bit 3), if usable"
        yield TYPE + n, (rights,), f"type (bits 3:0) {_TYPES.get(name, accessed)}"
        yield CODE_OR_SYSTEM + n, (rights,), f"S (bit 4) must be {0 if system else 1}"
        yield PRESENT + n, (rights,), "P (bit 7) must be 1"
        yield RIGHTS_RESERVED + n, (rights,), "bits 31:17 and 11:8 must be 0"
        yield (
            GRANULARITY_SMALL + n,
            (rights, limit),
            "G (bit 15) must be 0 if any of the limit's bits 11:0 is 0",
        )
        yield (
            GRANULARITY_LARGE + n,
            (rights, limit),
            "G (bit 15) must be 1 if any of the limit's bits 31:20 is 1",
        )
    yield (
        SELECTOR_RPL + 2,
        ("GUEST_SS_SELECTOR", "GUEST_CS_SELECTOR"),
        "RPL (bits 1:0) must equal that of CS",
    )
    yield (
        DEFAULT_SIZE + 1,
        ("GUEST_CS_ACCESS_RIGHTS", _ENTRY),
        'D/B (bit 14) must be 0 if L (bit 13) and "IA-32e mode guest" are 1',
    )
    yield UNUSABLE + 7, ("GUEST_TR_ACCESS_RIGHTS",), "TR must be usable: bit 16 must be 0"


CHECKS: dict[int, Check] = {row[0]: Check(*row) for row in (*_ROWS, *_segment_rows())}
"""Every check by its number."""
