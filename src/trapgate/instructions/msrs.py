"""MSRs that software reads and writes: where each is kept, and what it can hold.

SDM, "RDMSR" and "WRMSR".
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.instructions.effects import address_is_canonical, time_stamp
from trapgate.instructions.intercepts import (
    GO_ON,
    RAISE_GP,
)
from trapgate.paging.walk import pat_is_legal
from trapgate.sdm.cells import (
    GUEST_CR0,
    GUEST_FS_BASE,
    GUEST_GS_BASE,
    GUEST_IA32_DEBUGCTL,
    GUEST_IA32_EFER,
    GUEST_IA32_PAT,
    GUEST_IA32_PERF_GLOBAL_CTRL,
    GUEST_IA32_SYSENTER_CS,
    GUEST_IA32_SYSENTER_EIP,
    GUEST_IA32_SYSENTER_ESP,
)
from trapgate.sdm.registers import (
    CSTAR,
    FMASK,
    KERNEL_GS_BASE,
    LBR_FROM_0,
    LBR_SELECT,
    LBR_TO_0,
    LBR_TOS,
    LER_FROM,
    LER_TO,
    LSTAR,
    STAR,
    TSC_AUX,
)
from trapgate.sdm.state import (
    CR0_PG,
    DEBUGCTL_DEFINED,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    MSR_CSTAR,
    MSR_DEBUGCTL,
    MSR_EFER,
    MSR_FMASK,
    MSR_FS_BASE,
    MSR_GS_BASE,
    MSR_KERNEL_GS_BASE,
    MSR_LBR_FROM,
    MSR_LBR_FROM_CORE,
    MSR_LBR_SELECT,
    MSR_LBR_TO,
    MSR_LBR_TO_CORE,
    MSR_LBR_TOS,
    MSR_LER_FROM,
    MSR_LER_TO,
    MSR_LSTAR,
    MSR_PAT,
    MSR_PERF_GLOBAL_CTRL,
    MSR_PRED_CMD,
    MSR_SPEC_CTRL,
    MSR_STAR,
    MSR_SYSENTER_CS,
    MSR_SYSENTER_EIP,
    MSR_SYSENTER_ESP,
    MSR_TSC,
    MSR_TSC_AUX,
    PERF_GLOBAL_CTRL_DEFINED,
)


@core
def read_msr(v: Cells, r: Cells, index: int, time: int) -> tuple[int, int]:
    """RDMSR of `index`: (GO_ON, value), or (RAISE_GP, 0) for an MSR that is not here."""
    if index == MSR_TSC:
        return GO_ON, time_stamp(v, time)
    if index == MSR_EFER:
        return GO_ON, v[GUEST_IA32_EFER]
    cell = vmcs_cell_of_msr(index)
    if cell >= 0:
        return GO_ON, v[cell]
    cell = register_cell_of_msr(index)
    if cell >= 0:
        return GO_ON, r[cell]
    return RAISE_GP, 0


@core
def vmcs_cell_of_msr(index: int) -> int:
    """The guest-state cell that holds the MSR; -1 if none does."""
    if index == MSR_SYSENTER_CS:
        return GUEST_IA32_SYSENTER_CS
    if index == MSR_SYSENTER_ESP:
        return GUEST_IA32_SYSENTER_ESP
    if index == MSR_SYSENTER_EIP:
        return GUEST_IA32_SYSENTER_EIP
    if index == MSR_FS_BASE:
        return GUEST_FS_BASE
    if index == MSR_GS_BASE:
        return GUEST_GS_BASE
    if index == MSR_PAT:
        return GUEST_IA32_PAT
    if index == MSR_DEBUGCTL:
        return GUEST_IA32_DEBUGCTL
    if index == MSR_PERF_GLOBAL_CTRL:
        return GUEST_IA32_PERF_GLOBAL_CTRL
    return -1


@core
def register_cell_of_msr(index: int) -> int:
    """The cell of the register file that holds the MSR; -1 if none does."""
    if index == MSR_STAR:
        return STAR
    if index == MSR_LSTAR:
        return LSTAR
    if index == MSR_CSTAR:
        return CSTAR
    if index == MSR_FMASK:
        return FMASK
    if index == MSR_KERNEL_GS_BASE:
        return KERNEL_GS_BASE
    if index == MSR_TSC_AUX:
        return TSC_AUX
    return branch_record_of_msr(index)


@core
def branch_record_of_msr(index: int) -> int:
    """The cell of the register file that holds an MSR of the last-branch records; -1 if none."""
    if index == MSR_LBR_SELECT:
        return LBR_SELECT
    if index == MSR_LBR_TOS:
        return LBR_TOS
    if index == MSR_LER_FROM:
        return LER_FROM
    if index == MSR_LER_TO:
        return LER_TO
    if index in (MSR_SPEC_CTRL, MSR_PRED_CMD):
        return -1
    if index & ~0xF in (MSR_LBR_FROM, MSR_LBR_FROM_CORE):
        return LBR_FROM_0 + (index & 0xF)
    if index & ~0xF in (MSR_LBR_TO, MSR_LBR_TO_CORE):
        return LBR_TO_0 + (index & 0xF)
    return -1


@core
def write_msr(v: Cells, r: Cells, index: int, value: int) -> int:
    """WRMSR of the 64-bit `value`; RAISE_GP if the MSR is not here or cannot hold it.

    IA32_TSC is read-only: virtual time is the processor's, a VMM moves it by TSC_OFFSET.
    """
    if index == MSR_EFER:
        return write_efer(v, value)
    holds_address = index in (
        MSR_SYSENTER_ESP,
        MSR_SYSENTER_EIP,
        MSR_FS_BASE,
        MSR_GS_BASE,
        MSR_LSTAR,
        MSR_CSTAR,
        MSR_KERNEL_GS_BASE,
    )
    if holds_address and not address_is_canonical(value):
        return RAISE_GP
    if index == MSR_PAT and not pat_is_legal(value):
        return RAISE_GP
    if index == MSR_DEBUGCTL and (value & ~DEBUGCTL_DEFINED) != 0:
        return RAISE_GP
    if index == MSR_PERF_GLOBAL_CTRL and (value & ~PERF_GLOBAL_CTRL_DEFINED) != 0:
        return RAISE_GP
    if index == MSR_FMASK:
        # Bits 63:32 mask nothing. Processors ignore them; kernels write all ones.
        value &= 0xFFFFFFFF
    if index == MSR_TSC_AUX and (value >> 32) != 0:
        return RAISE_GP
    cell = vmcs_cell_of_msr(index)
    if cell >= 0:
        # IA32_SYSENTER_CS is a field of 32 bits.
        v[cell] = value & 0xFFFFFFFF if index == MSR_SYSENTER_CS else value
        return GO_ON
    cell = register_cell_of_msr(index)
    if cell < 0 or value & ~writable_bits(cell) != 0:
        return RAISE_GP
    if cell >= LER_FROM and not address_is_canonical(value):
        return RAISE_GP
    r[cell] = value
    return GO_ON


@core
def writable_bits(cell: int) -> int:
    """The bits that WRMSR may set in an MSR that a cell of the register file holds."""
    if cell == LBR_SELECT:
        return 0x1FF
    return 0xF if cell == LBR_TOS else -1


@core
def write_efer(v: Cells, value: int) -> int:
    """WRMSR to IA32_EFER: LMA stays, LME cannot change while paging is on."""
    old = v[GUEST_IA32_EFER]
    if (value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)) != 0:
        return RAISE_GP
    if ((value ^ old) & EFER_LME) != 0 and (v[GUEST_CR0] & CR0_PG) != 0:
        return RAISE_GP
    v[GUEST_IA32_EFER] = (value & ~EFER_LMA) | (old & EFER_LMA)
    return GO_ON
