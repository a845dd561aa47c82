"""The VMX state of a logical processor whose software may itself be a VMM, as an array of cells.

The processor has one such array, `x`, besides the VMCS in force, `v`. VMCS 0 is that of the
VMM in Python; the x86 VMM's current VMCS is copied into an array of cells of its own, `n`,
which is in force while its guest runs. Source: SDM, "VMX Operation", "Restrictions on VMX
Operation", "Virtual-Machine Control Structures"; the MSRs are those of the appendix "VMX
Capability Reporting Facility".
"""

(
    OFFERED,
    MODE,
    VMXON_POINTER,
    CURRENT,
    LAUNCHED,
    FEATURE_CONTROL,
    EXTENDED,
    GUEST_IN_VMCS0,
    KEPT_DEBUGCTL,
    KEPT_DR7,
    KEPT_PAT,
    KEPT_EFER,
    ROOT_CR0,
    ROOT_CR4,
    ROOT_BLOCKING,
    FAULT_ERROR,
    FAULT_ADDRESS,
    EXPLAINING,
    FAILED_RIP,
    OPERAND,
    ABORT,
    ENTRIES,
    INSTRUCTION,
    ERROR,
    FAILURES,
    ENTRY_LENGTH,
    FLUSH,
    SECONDARY_ALLOWED,
    FAULT_VECTOR,
    RANDOM,
    FIRST_PAUSE,
    LATEST_PAUSE,
    OPERAND_TYPE,
    OPERAND_REST,
    SHADOW,
    KEPT_PERF_GLOBAL_CTRL,
) = range(36)
"""What the cells of `x` hold.

OFFERED: 1 if the processor has VMX for its guest (CPUID.1:ECX.VMX). MODE: one of MODE_*.
VMXON_POINTER and CURRENT: physical addresses, -1 for none. LAUNCHED: the launch state of the
current VMCS. FEATURE_CONTROL: IA32_FEATURE_CONTROL. EXTENDED: 1 if the extension fields exist.
GUEST_IN_VMCS0: 1 while the guest state of `n` has been moved to VMCS 0, where the VMM in Python
works on it. KEPT_*: what the fields held that the entry did not load or the exit will not save.
ROOT_*: CR0 and CR4 as the VMM in Python keeps them, and blocking by NMI, in VMX root operation.
FAULT_*: error code and linear address of a page fault on an instruction's operand, and the vector
of other faults.
EXPLAINING: 1 if the run has to stop whenever a VMX instruction or a VM entry fails. FAILED_RIP:
RIP of the instruction that failed last or may yet fail. OPERAND: the physical address or the
field's encoding that a VMX instruction was given last, or the lower half of the descriptor of an
INVEPT or INVVPID, of which OPERAND_REST is the upper half, and OPERAND_TYPE the type. ABORT: the
VMX-abort indicator. ENTRIES: VM entries by the x86 VMM. INSTRUCTION and ERROR: the exit reason of
the VMX instruction that failed last, and its VM-instruction error (0 for what has none, NO_ERROR
for a VM entry that failed with an exit); FAILURES counts them. ENTRY_LENGTH: length in bytes of
the VMLAUNCH or VMRESUME that is being executed. FLUSH: 1 if cached translations have to go.
SECONDARY_ALLOWED: the secondary processor-based controls that an x86 VMM may set, which the
engine decides. RANDOM: the state of RDRAND, 32 bits. FIRST_PAUSE, LATEST_PAUSE: when the first
PAUSE of a loop of them was executed at CPL 0, and when the latest; NEVER for none since an x86
VMM's VM entry. SHADOW: 1 if the current VMCS is a shadow VMCS.
"""

EXITS = 36
"""From here on the VM exits to the x86 VMM, a cell for each basic exit reason."""
EXIT_REASONS = 70
LENGTH = EXITS + EXIT_REASONS

NO_ERROR = -1
"""What ERROR holds if the last failure was a VM exit that says how the entry failed."""

MODE_OFF = 0
MODE_ROOT = 1
MODE_NON_ROOT = 2

CLEAR = 0
LAUNCHED_STATE = 1

NEVER = -(1 << 62)

NONE = -1
"""No pointer: VMXON region or current VMCS (SDM writes FFFFFFFF_FFFFFFFFH)."""

REVISION = 0x5452_4701
SHADOW_INDICATOR = 1 << 31
"""In the revision identifier of a region: it is that of a shadow VMCS."""
"""The VMCS revision identifier, bits 30:0 of IA32_VMX_BASIC."""
REGION_SIZE = 4096

FEATURE_LOCKED = 1 << 0
FEATURE_VMX_OUTSIDE_SMX = 1 << 2

MSR_FEATURE_CONTROL = 0x3A
MSR_VMX_BASIC = 0x480
MSR_VMX_PINBASED_CTLS = 0x481
MSR_VMX_PROCBASED_CTLS = 0x482
MSR_VMX_EXIT_CTLS = 0x483
MSR_VMX_ENTRY_CTLS = 0x484
MSR_VMX_MISC = 0x485
MSR_VMX_CR0_FIXED0 = 0x486
MSR_VMX_CR0_FIXED1 = 0x487
MSR_VMX_CR4_FIXED0 = 0x488
MSR_VMX_CR4_FIXED1 = 0x489
MSR_VMX_VMCS_ENUM = 0x48A
MSR_VMX_PROCBASED_CTLS2 = 0x48B
MSR_VMX_EPT_VPID_CAP = 0x48C
MSR_VMX_TRUE_PINBASED_CTLS = 0x48D
MSR_VMX_TRUE_PROCBASED_CTLS = 0x48E
MSR_VMX_TRUE_EXIT_CTLS = 0x48F
MSR_VMX_TRUE_ENTRY_CTLS = 0x490
MSR_VMX_VMFUNC = 0x491
MSR_TRAPGATE_EXTENSIONS = 0x4B0
"""Ours: bit 0 says that the extension fields exist (profile "extended"), bits 23:16
how many rules a criteria table may have, bits 63:32 how many bytes. Not Intel's; read only after
checking CPUID leaf 40000000H."""

CR0_FIXED_0 = 0x8000_0021
"""PG, NE, PE: must be 1 in VMX operation (PG and PE not under "unrestricted guest")."""
CR0_FIXED_1 = 0xFFFF_FFFF
CR4_FIXED_0 = 0x2000

ABORT_SAVING_MSRS = 1
ABORT_HOST_PDPTE = 2
ABORT_CORRUPTED = 3
ABORT_LOADING_MSRS = 4
ABORT_MACHINE_CHECK = 5
ABORT_HOST_IA32E = 6
ABORT_HOST_IDT = 0x100
"""Ours: EXIT_THROUGH_IDT, and the host's IDT, gate or stack did not take the event."""

THROUGH_IDT = 1 << 31
"""EXIT_THROUGH_IDT: VM exits enter the x86 VMM through its IDT (¶26)."""
THROUGH_IDT_VECTOR = 0xFF
"""The vector for exits that no exception caused."""
