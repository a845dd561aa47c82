"""Where the registers that no VMCS field holds lie in a register file.

VM entries and VM exits leave these alone (SDM, "Guest-State Area" lists what they
do load and save), so a logical processor has one file of them: an array of 64-bit
integers, a cell a register. RSP's cell only mirrors GUEST_RSP's place in the
encoding of general registers; its value lives in the VMCS.
"""

GENERAL = (
    *("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI"),
    *(f"R{n}" for n in range(8, 16)),
)
"""General registers in the order of their encoding in instructions."""

OTHER = (
    "CR2",
    "DR0",
    "DR1",
    "DR2",
    "DR3",
    "DR6",
    "STAR",
    "LSTAR",
    "CSTAR",
    "FMASK",
    "KERNEL_GS_BASE",
    "TSC_AUX",
    "CR8",
    "LBR_SELECT",
    "LBR_TOS",
    "LER_FROM",
    "LER_TO",
    *(f"LBR_FROM_{n}" for n in range(16)),
    *(f"LBR_TO_{n}" for n in range(16)),
    "XCR0",
)
"""LBR_* are the last-branch records of the processor's model, which nothing records."""

NAMES = GENERAL + OTHER

(RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15) = range(16)
(
    CR2,
    DR0,
    DR1,
    DR2,
    DR3,
    DR6,
    STAR,
    LSTAR,
    CSTAR,
    FMASK,
    KERNEL_GS_BASE,
    TSC_AUX,
    CR8,
    LBR_SELECT,
    LBR_TOS,
    LER_FROM,
    LER_TO,
    LBR_FROM_0,
) = range(16, 34)
LBR_TO_0 = LBR_FROM_0 + 16
XCR0 = LBR_TO_0 + 16
