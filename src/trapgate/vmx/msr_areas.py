"""The VM-entry MSR-load area, and the VM-exit MSR-store and MSR-load areas.

SDM, "VM-Exit Controls for MSRs", "Loading MSRs" and "Saving MSRs". An entry is 16 bytes: the
MSR's index, 32 reserved bits, its value.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.effects import read_msr, write_msr
from trapgate.instructions.intercepts import GO_ON
from trapgate.paging.memory import load32, load64, store64
from trapgate.sdm.state import MSR_FS_BASE, MSR_GS_BASE, MSR_TSC

MOST = 512
"""Entries in an area: what IA32_VMX_MISC recommends (bits 27:25 are 0)."""


@core
def load_msrs(v: Cells, r: Cells, mem: Memory, address: int, count: int) -> int:
    """Load the MSRs of an area into the state in `v` and `r`: 0, or which entry failed, from 1."""
    for number in range(min(count, MOST)):
        entry = address + 16 * number
        index = load32(mem, entry)
        if load32(mem, entry + 4) != 0 or index in (MSR_FS_BASE, MSR_GS_BASE) or index >> 8 == 8:
            return number + 1
        # The time-stamp counter is virtual time, which nobody sets.
        if index != MSR_TSC and write_msr(v, r, index, load64(mem, entry + 8)) != GO_ON:
            return number + 1
    return MOST + 1 if count > MOST else 0


@core
def store_msrs(v: Cells, r: Cells, mem: Memory, address: int, count: int, time: int) -> int:
    """Store the MSRs that an area names: 0, or which entry failed, from 1.

    `time` is the time-stamp counter without the guest's offset, which does not count here.
    """
    for number in range(min(count, MOST)):
        entry = address + 16 * number
        index = load32(mem, entry)
        if load32(mem, entry + 4) != 0 or index >> 8 == 8:
            return number + 1
        outcome, value = (GO_ON, time) if index == MSR_TSC else read_msr(v, r, index, time)
        if outcome != GO_ON:
            return number + 1
        store64(mem, entry + 8, value)
    return MOST + 1 if count > MOST else 0
