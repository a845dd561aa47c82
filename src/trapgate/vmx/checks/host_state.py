"""The checks of VM entry on the host-state area: VM-instruction error 8 if one fails.

SDM, "Checks on Host Control Registers, MSRs, and SSP", "Checks on Host Segment and
Descriptor-Table Registers", "Checks Related to Address-Space Size". Only a VMM that is
x86 code has a host state; one in Python has none that could be wrong.
"""

from trapgate.compiler.dialect import Cells, core
from trapgate.paging.memory import MAXPHYADDR
from trapgate.paging.walk import canonical, pat_is_legal
from trapgate.sdm import checks as ck
from trapgate.sdm import state as st
from trapgate.sdm import vmx
from trapgate.sdm.cells import (
    HOST_CR0,
    HOST_CR3,
    HOST_CR4,
    HOST_CS_SELECTOR,
    HOST_ES_SELECTOR,
    HOST_FS_BASE,
    HOST_GDTR_BASE,
    HOST_GS_BASE,
    HOST_IA32_EFER,
    HOST_IA32_PAT,
    HOST_IA32_PERF_GLOBAL_CTRL,
    HOST_IA32_SYSENTER_EIP,
    HOST_IA32_SYSENTER_ESP,
    HOST_IDTR_BASE,
    HOST_RIP,
    HOST_SS_SELECTOR,
    HOST_TR_BASE,
    HOST_TR_SELECTOR,
    VM_ENTRY_CONTROLS,
    VM_EXIT_CONTROLS,
)
from trapgate.sdm.controls import (
    ENTRY_IA32E_MODE_GUEST,
    EXIT_HOST_ADDRESS_SPACE_SIZE,
    EXIT_LOAD_EFER,
    EXIT_LOAD_PAT,
    EXIT_LOAD_PERF_GLOBAL_CTRL,
)


@core
def check_host_state(v: Cells, long: bool) -> int:
    """Check the host-state area of VMCS `v`: 0, or the number of the first check that failed.

    `long` says that the VMM is in IA-32e mode now (IA32_EFER.LMA).
    """
    check = _check_host_registers(v)
    if check == 0:
        check = _check_host_segments(v)
    if check == 0:
        check = _check_address_space_size(v, long)
    return check


@core
def _check_host_registers(v: Cells) -> int:
    cr0 = v[HOST_CR0]
    cr4 = v[HOST_CR4]
    if cr0 & vmx.CR0_FIXED_0 != vmx.CR0_FIXED_0 or cr0 & ~vmx.CR0_FIXED_1:
        return ck.HOST_CR0
    if cr4 & vmx.CR4_FIXED_0 != vmx.CR4_FIXED_0 or cr4 & ~st.CR4_IMPLEMENTED:
        return ck.HOST_CR4
    if v[HOST_CR3] >> MAXPHYADDR != 0:
        return ck.HOST_CR3
    if not canonical(v[HOST_IA32_SYSENTER_ESP]):
        return ck.HOST_SYSENTER_ESP
    if not canonical(v[HOST_IA32_SYSENTER_EIP]):
        return ck.HOST_SYSENTER_EIP
    controls = v[VM_EXIT_CONTROLS]
    counting = v[HOST_IA32_PERF_GLOBAL_CTRL]
    if controls & EXIT_LOAD_PERF_GLOBAL_CTRL and counting & ~st.PERF_GLOBAL_CTRL_DEFINED:
        return ck.HOST_PERF_GLOBAL_CTRL
    if controls & EXIT_LOAD_PAT and not pat_is_legal(v[HOST_IA32_PAT]):
        return ck.HOST_PAT
    if controls & EXIT_LOAD_EFER:
        efer = v[HOST_IA32_EFER]
        if efer & ~st.EFER_DEFINED:
            return ck.HOST_EFER_RESERVED
        both = 0
        if controls & EXIT_HOST_ADDRESS_SPACE_SIZE:
            both = st.EFER_LMA | st.EFER_LME
        if efer & (st.EFER_LMA | st.EFER_LME) != both:
            return ck.HOST_EFER_MODE
    return 0


@core
def _check_host_segments(v: Cells) -> int:
    for n in range(7):
        if v[HOST_ES_SELECTOR + n] & 7:
            return ck.HOST_SELECTOR + n
    if v[HOST_CS_SELECTOR] == 0:
        return ck.HOST_CS_NULL
    if v[HOST_TR_SELECTOR] == 0:
        return ck.HOST_TR_NULL
    if v[HOST_SS_SELECTOR] == 0 and v[VM_EXIT_CONTROLS] & EXIT_HOST_ADDRESS_SPACE_SIZE == 0:
        return ck.HOST_SS_NULL
    if not canonical(v[HOST_FS_BASE]):
        return ck.HOST_FS_BASE
    if not canonical(v[HOST_GS_BASE]):
        return ck.HOST_GS_BASE
    if not canonical(v[HOST_GDTR_BASE]):
        return ck.HOST_GDTR_BASE
    if not canonical(v[HOST_IDTR_BASE]):
        return ck.HOST_IDTR_BASE
    if not canonical(v[HOST_TR_BASE]):
        return ck.HOST_TR_BASE
    return 0


@core
def _check_address_space_size(v: Cells, long: bool) -> int:
    long_guest = v[VM_ENTRY_CONTROLS] & ENTRY_IA32E_MODE_GUEST != 0
    long_host = v[VM_EXIT_CONTROLS] & EXIT_HOST_ADDRESS_SPACE_SIZE != 0
    if not long and long_guest:
        return ck.LONG_GUEST_OUTSIDE
    if not long and long_host:
        return ck.LONG_HOST_OUTSIDE
    if long and not long_host:
        return ck.LEGACY_HOST_INSIDE
    if long_host:
        if v[HOST_CR4] & st.CR4_PAE == 0:
            return ck.HOST_PAE
        if not canonical(v[HOST_RIP]):
            return ck.HOST_RIP_CANONICAL
        return 0
    # A 64-bit guest cannot have come this far.
    if v[HOST_CR4] & st.CR4_PCIDE:
        return ck.HOST_PCIDE
    if v[HOST_RIP] >> 32 != 0:
        return ck.HOST_RIP_HIGH
    return 0
