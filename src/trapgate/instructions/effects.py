"""What sensitive instructions do to the guest when they do not exit.

Source: SDM, "Changes to Instruction Behavior in VMX Non-Root Operation" and the
instruction reference. The functions act on the VMCS `v` and registers `r` and leave
RIP alone; they answer GO_ON or the fault to raise, as in `intercepts`.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.instructions.intercepts import (
    GO_ON,
    RAISE_DB,
    RAISE_GP,
    RAISE_UD,
    secondary_controls,
)
from trapgate.operands.mode import in_64_bit_mode, privilege_level
from trapgate.paging.memory import MAXPHYADDR
from trapgate.sdm.cells import (
    CR0_GUEST_HOST_MASK,
    CR0_READ_SHADOW,
    CR4_GUEST_HOST_MASK,
    CR4_READ_SHADOW,
    GUEST_ACTIVITY_STATE,
    GUEST_CR0,
    GUEST_CR3,
    GUEST_CR4,
    GUEST_CS_ACCESS_RIGHTS,
    GUEST_DR7,
    GUEST_IA32_EFER,
    GUEST_TR_ACCESS_RIGHTS,
    PRIMARY_PROCESSOR_BASED_CONTROLS,
    TSC_OFFSET,
)
from trapgate.sdm.controls import PRIMARY_TSC_OFFSETTING, SECONDARY_UNRESTRICTED_GUEST
from trapgate.sdm.registers import (
    CR2,
    CR8,
    DR0,
    DR6,
    XCR0,
)
from trapgate.sdm.state import (
    ACTIVITY_HLT,
    AR_L,
    AR_TYPE,
    CR0_CD,
    CR0_DEFINED,
    CR0_ET,
    CR0_NE,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_TS,
    CR4_DE,
    CR4_IMPLEMENTED,
    CR4_PAE,
    CR4_PCIDE,
    CR4_VMXE,
    DR6_FIXED_1,
    DR7_FIXED_1,
    DR7_GD,
    EFER_LMA,
    EFER_LME,
    XCR0_IMPLEMENTED,
    XCR0_X87,
)

_DR6_WRITABLE = 0xE00F
_DR7_WRITABLE = 0xFFFF23FF


@core
def address_is_canonical(address: int) -> bool:
    """Whether bits 63:47 of a linear address are equal."""
    top = address >> 47
    return bool(top in (0, -1))


@core
def write_xcr(r: Cells, index: int, value: int) -> int:
    """XSETBV of EDX:EAX to the register of ECX: GO_ON or RAISE_GP. There is XCR0."""
    if index & 0xFFFF_FFFF or value & XCR0_X87 == 0 or value & ~XCR0_IMPLEMENTED:
        return RAISE_GP
    r[XCR0] = value
    return GO_ON


@core
def cr0_seen(v: Cells) -> int:
    """CR0 as MOV and SMSW show it: host-owned bits come from the shadow."""
    mask = v[CR0_GUEST_HOST_MASK]
    return int((v[GUEST_CR0] & ~mask) | (v[CR0_READ_SHADOW] & mask))


@core
def cr4_seen(v: Cells) -> int:
    """CR4 as MOV shows it: host-owned bits come from the shadow."""
    mask = v[CR4_GUEST_HOST_MASK]
    return int((v[GUEST_CR4] & ~mask) | (v[CR4_READ_SHADOW] & mask))


@core
def read_cr(v: Cells, r: Cells, number: int) -> int:
    """What MOV from the control register (0, 2, 3, 4 or 8) gives."""
    if number == 0:
        return cr0_seen(v)
    if number == 2:
        return int(r[CR2])
    if number == 3:
        return int(v[GUEST_CR3])
    if number == 4:
        return cr4_seen(v)
    return int(r[CR8] & 0xF)


@core
def write_cr(v: Cells, r: Cells, number: int, value: int) -> int:
    """MOV to CR0, CR2, CR3, CR4 or CR8; RAISE_GP for what the register cannot hold."""
    if number == 0:
        return write_cr0(v, value)
    if number == 3:
        return write_cr3(v, value)
    if number == 4:
        return write_cr4(v, value)
    if number == 2:
        r[CR2] = value
        return GO_ON
    if (value & ~0xF) != 0:
        return RAISE_GP
    r[CR8] = value
    return GO_ON


@core
def write_cr0(v: Cells, value: int) -> int:
    """MOV to CR0: host-owned bits stay; EFER.LMA follows PG where LME is 1.

    PE and PG can be cleared only under "unrestricted guest", NE never: VMX fixes them.
    """
    if (value >> 32) != 0:
        return RAISE_GP
    old = v[GUEST_CR0]
    mask = v[CR0_GUEST_HOST_MASK]
    new = ((old & mask) | (value & ~mask)) & CR0_DEFINED | CR0_ET
    if (new & CR0_NW) != 0 and (new & CR0_CD) == 0:
        return RAISE_GP
    if (new & CR0_PG) != 0 and (new & CR0_PE) == 0:
        return RAISE_GP
    fixed = CR0_NE
    if (secondary_controls(v) & SECONDARY_UNRESTRICTED_GUEST) == 0:
        fixed = CR0_NE | CR0_PE | CR0_PG
    if (new & fixed) != fixed:
        return RAISE_GP
    efer = v[GUEST_IA32_EFER]
    if (new & CR0_PG) != 0 and (old & CR0_PG) == 0 and (efer & EFER_LME) != 0:
        if (v[GUEST_CR4] & CR4_PAE) == 0 or (v[GUEST_CS_ACCESS_RIGHTS] & AR_L) != 0:
            return RAISE_GP
        # A busy 16-bit TSS has no place in IA-32e mode.
        if (v[GUEST_TR_ACCESS_RIGHTS] & AR_TYPE) == 3:
            return RAISE_GP
        v[GUEST_IA32_EFER] = efer | EFER_LMA
    elif (new & CR0_PG) == 0 and (old & CR0_PG) != 0:
        if in_64_bit_mode(v) or (v[GUEST_CR4] & CR4_PCIDE) != 0:
            return RAISE_GP
        v[GUEST_IA32_EFER] = efer & ~EFER_LMA
    v[GUEST_CR0] = new
    return GO_ON


@core
def write_cr3(v: Cells, value: int) -> int:
    """MOV to CR3; bits from MAXPHYADDR up are reserved."""
    if (value >> MAXPHYADDR) != 0:
        return RAISE_GP
    v[GUEST_CR3] = value
    return GO_ON


@core
def write_cr4(v: Cells, value: int) -> int:
    """MOV to CR4: host-owned bits stay; VMXE cannot be cleared, nor PAE in IA-32e mode."""
    mask = v[CR4_GUEST_HOST_MASK]
    new = (v[GUEST_CR4] & mask) | (value & ~mask)
    if (new & ~CR4_IMPLEMENTED) != 0 or (new & CR4_VMXE) == 0:
        return RAISE_GP
    if (new & CR4_PAE) == 0 and (v[GUEST_IA32_EFER] & EFER_LMA) != 0:
        return RAISE_GP
    if (new & ~v[GUEST_CR4] & CR4_PCIDE) != 0 and (
        (v[GUEST_IA32_EFER] & EFER_LMA) == 0 or (v[GUEST_CR3] & 0xFFF) != 0
    ):
        return RAISE_GP
    v[GUEST_CR4] = new
    return GO_ON


@core
def clear_task_switched(v: Cells) -> None:
    """CLTS: clears CR0.TS, unless the host owns it."""
    v[GUEST_CR0] = v[GUEST_CR0] & ~(CR0_TS & ~v[CR0_GUEST_HOST_MASK])


@core
def load_machine_status(v: Cells, source: int) -> None:
    """LMSW: loads bits 3:0 that the guest owns; PE is only ever set."""
    mask = v[CR0_GUEST_HOST_MASK]
    old = v[GUEST_CR0]
    loaded = 0xE & ~mask
    v[GUEST_CR0] = (old & ~loaded) | (source & loaded) | (source & CR0_PE & ~mask)


@core
def debug_register(v: Cells, number: int) -> tuple[int, int]:
    """Which debug register a MOV means, or the fault: (GO_ON or RAISE_*, number)."""
    if number > 7:
        return RAISE_UD, 0
    if number in (4, 5):
        if (v[GUEST_CR4] & CR4_DE) != 0:
            return RAISE_UD, 0
        number += 2
    if privilege_level(v) != 0:
        return RAISE_GP, 0
    if (v[GUEST_DR7] & DR7_GD) != 0:
        return RAISE_DB, 0
    return GO_ON, number


@core
def read_dr(v: Cells, r: Cells, number: int) -> tuple[int, int]:
    """MOV from a debug register: (GO_ON or RAISE_*, value)."""
    outcome, which = debug_register(v, number)
    if outcome != GO_ON:
        return outcome, 0
    if which == 7:
        return GO_ON, v[GUEST_DR7] | DR7_FIXED_1
    if which == 6:
        return GO_ON, r[DR6] | DR6_FIXED_1
    return GO_ON, r[DR0 + which]


@core
def write_dr(v: Cells, r: Cells, number: int, value: int) -> int:
    """MOV to a debug register; bits 63:32 of DR6 and DR7 must be 0."""
    outcome, which = debug_register(v, number)
    if outcome != GO_ON:
        return outcome
    if which >= 6 and (value >> 32) != 0:
        return RAISE_GP
    if which == 7:
        v[GUEST_DR7] = value & _DR7_WRITABLE | DR7_FIXED_1
    elif which == 6:
        r[DR6] = value & _DR6_WRITABLE | DR6_FIXED_1
    else:
        r[DR0 + which] = value
    return GO_ON


@core
def time_stamp(v: Cells, time: int) -> int:
    """What RDTSC shows at virtual time `time`: with "use TSC offsetting", TSC_OFFSET added."""
    if (v[PRIMARY_PROCESSOR_BASED_CONTROLS] & PRIMARY_TSC_OFFSETTING) != 0:
        return int(time + v[TSC_OFFSET])
    return time


@core
def halt(v: Cells) -> None:
    """HLT: the activity state becomes HLT; the caller has moved RIP past the instruction."""
    v[GUEST_ACTIVITY_STATE] = ACTIVITY_HLT
