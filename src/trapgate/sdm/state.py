"""Bits of control registers, EFER, RFLAGS, debug registers, access rights and guest state.

Source: SDM, "Control Registers", "Extended Feature Enable Register", "System Flags
and Fields in the EFLAGS Register", "Debug Registers", and for access rights,
interruptibility, activity and pending debug exceptions "Guest-State Area".
Plain integers, so that core functions may use them.
"""

CR0_PE = 1 << 0
CR0_MP = 1 << 1
CR0_EM = 1 << 2
CR0_TS = 1 << 3
CR0_ET = 1 << 4
CR0_NE = 1 << 5
CR0_WP = 1 << 16
CR0_AM = 1 << 18
CR0_NW = 1 << 29
CR0_CD = 1 << 30
CR0_PG = 1 << 31

CR0_DEFINED = 0xE005003F
"""Bits of CR0 that have a meaning; writes ignore the other low ones."""

CR4_VME = 1 << 0
CR4_PVI = 1 << 1
CR4_TSD = 1 << 2
CR4_DE = 1 << 3
CR4_PSE = 1 << 4
CR4_PAE = 1 << 5
CR4_MCE = 1 << 6
CR4_PGE = 1 << 7
CR4_PCE = 1 << 8
CR4_OSFXSR = 1 << 9
CR4_OSXMMEXCPT = 1 << 10
CR4_UMIP = 1 << 11
CR4_LA57 = 1 << 12
CR4_VMXE = 1 << 13
CR4_SMXE = 1 << 14
CR4_FSGSBASE = 1 << 16
CR4_PCIDE = 1 << 17
CR4_OSXSAVE = 1 << 18
CR4_SMEP = 1 << 20
CR4_SMAP = 1 << 21
CR4_PKE = 1 << 22
CR4_CET = 1 << 23

EFER_SCE = 1 << 0
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NXE = 1 << 11

EFER_DEFINED = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE

RFLAGS_CF = 1 << 0
RFLAGS_FIXED_1 = 1 << 1
RFLAGS_PF = 1 << 2
RFLAGS_AF = 1 << 4
RFLAGS_ZF = 1 << 6
RFLAGS_SF = 1 << 7
RFLAGS_TF = 1 << 8
RFLAGS_IF = 1 << 9
RFLAGS_DF = 1 << 10
RFLAGS_OF = 1 << 11
RFLAGS_NT = 1 << 14
RFLAGS_RF = 1 << 16
RFLAGS_VM = 1 << 17
RFLAGS_AC = 1 << 18
RFLAGS_VIF = 1 << 19
RFLAGS_VIP = 1 << 20
RFLAGS_ID = 1 << 21

RFLAGS_STATUS = RFLAGS_CF | RFLAGS_PF | RFLAGS_AF | RFLAGS_ZF | RFLAGS_SF | RFLAGS_OF
"""The flags of arithmetic."""

RFLAGS_IOPL_SHIFT = 12
RFLAGS_IOPL = 3 << 12
RFLAGS_RESERVED_LOW = (1 << 3) | (1 << 5) | (1 << 15)
"""Bits 3, 5 and 15: must be 0, as must bits 63:22."""

DR6_B0 = 1 << 0
DR6_B1 = 1 << 1
DR6_B2 = 1 << 2
DR6_B3 = 1 << 3
DR6_BREAKPOINTS = DR6_B0 | DR6_B1 | DR6_B2 | DR6_B3
DR6_BD = 1 << 13
DR6_BS = 1 << 14
DR6_BT = 1 << 15
DR6_RTM = 1 << 16

DR6_FIXED_1 = 0xFFFF0FF0
"""Bits that read as 1 (bit 16, RTM, included: no RTM here)."""

DR7_FIXED_1 = 1 << 10
DR7_GD = 1 << 13

AR_TYPE = 0xF
AR_ACCESSED = 1 << 0
AR_WRITABLE = 1 << 1
AR_EXPAND_DOWN = 1 << 2
AR_CONFORMING = 1 << 2
AR_CODE = 1 << 3
AR_S = 1 << 4
AR_DPL_SHIFT = 5
AR_DPL = 3 << 5
AR_P = 1 << 7
AR_AVL = 1 << 12
AR_L = 1 << 13
AR_DB = 1 << 14
AR_G = 1 << 15
AR_UNUSABLE = 1 << 16
AR_RESERVED = 0xFFFE0F00

BLOCKING_BY_STI = 1 << 0
BLOCKING_BY_MOV_SS = 1 << 1
BLOCKING_BY_SMI = 1 << 2
BLOCKING_BY_NMI = 1 << 3

ACTIVITY_ACTIVE = 0
ACTIVITY_HLT = 1
ACTIVITY_SHUTDOWN = 2
ACTIVITY_WAIT_FOR_SIPI = 3

PENDING_ENABLED_BREAKPOINT = 1 << 12
PENDING_BS = 1 << 14
PENDING_RTM = 1 << 16

MSR_TSC = 0x10
MSR_SPEC_CTRL = 0x48
MSR_PRED_CMD = 0x49
MSR_SYSENTER_CS = 0x174
MSR_SYSENTER_ESP = 0x175
MSR_SYSENTER_EIP = 0x176
MSR_LBR_SELECT = 0x1C8
MSR_LBR_TOS = 0x1C9
MSR_DEBUGCTL = 0x1D9
MSR_LER_FROM = 0x1DD
MSR_LER_TO = 0x1DE
MSR_PAT = 0x277
MSR_LBR_FROM = 0x680
MSR_LBR_TO = 0x6C0
"""MSRs of the last-branch records of model 1AH, 16 of each (SDM, volume 4, "MSRs in Processors
Based on Nehalem Microarchitecture")."""
MSR_LBR_FROM_CORE = 0x40
MSR_LBR_TO_CORE = 0x60
"""Where earlier processors have them, which some software tries first; the same registers here.
Two of the numbers are IA32_SPEC_CTRL's and IA32_PRED_CMD's by now, and CPUID shows neither."""
MSR_PERF_GLOBAL_CTRL = 0x38F
MSR_EFER = 0xC0000080
MSR_STAR = 0xC0000081
MSR_LSTAR = 0xC0000082
MSR_CSTAR = 0xC0000083
MSR_FMASK = 0xC0000084
MSR_FS_BASE = 0xC0000100
MSR_GS_BASE = 0xC0000101
MSR_KERNEL_GS_BASE = 0xC0000102
MSR_TSC_AUX = 0xC0000103

CR4_IMPLEMENTED = (
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
    | CR4_PCIDE
    | CR4_OSXSAVE
    | CR4_SMEP
    | CR4_SMAP
)
"""Bits of CR4 that may be 1; setting another is a #GP."""

XCR0_X87 = 1 << 0
XCR0_SSE = 1 << 1
XCR0_IMPLEMENTED = XCR0_X87 | XCR0_SSE
"""What XSAVE can save here: no AVX."""

DEBUGCTL_LBR = 1
DEBUGCTL_BTF = 2
DEBUGCTL_DEFINED = DEBUGCTL_LBR | DEBUGCTL_BTF
"""Bits of IA32_DEBUGCTL that are there: LBR and BTF."""

PERF_GLOBAL_CTRL_DEFINED = 0
"""Bits of IA32_PERF_GLOBAL_CTRL that are there: none, since there are no counters."""
