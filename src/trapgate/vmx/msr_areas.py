"""The VM-entry MSR-load area, and the VM-exit MSR-store and MSR-load areas.

SDM, "VM-Exit Controls for MSRs", "Loading MSRs" and "Saving MSRs". An entry is 16 bytes: the
MSR's index, 32 reserved bits, its value.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.effects import address_is_canonical
from trapgate.instructions.intercepts import GO_ON
from trapgate.instructions.msrs import read_msr, register_cell_of_msr, vmcs_cell_of_msr, write_msr
from trapgate.paging.memory import load32, load64, store64
from trapgate.sdm.event_words import hexadecimal
from trapgate.sdm.state import MSR_EFER, MSR_FS_BASE, MSR_GS_BASE, MSR_TSC

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


_MASK = (1 << 64) - 1


def first_not_stored(v: Cells, r: Cells, mem: Memory, address: int, count: int) -> int:
    """As `store_msrs`, but nothing is stored."""
    for number in range(min(count, MOST)):
        entry = address + 16 * number
        index = load32(mem, entry)
        there = index == MSR_TSC or read_msr(v, r, index, 0)[0] == GO_ON
        if load32(mem, entry + 4) != 0 or index >> 8 == 8 or not there:
            return number + 1
    return MOST + 1 if count > MOST else 0


def why_not(mem: Memory, address: int, number: int, *, stored: bool = False) -> str:
    """Why entry `number`, from 1, of the area at `address` is not loaded, or `stored`; in words."""
    if number > MOST:
        return f"an area has at most {MOST} entries here (IA32_VMX_MISC, bits 27:25)"
    entry = address + 16 * (number - 1)
    index, reserved = int(load32(mem, entry)), int(load32(mem, entry + 4))
    value = int(load64(mem, entry + 8)) & _MASK
    return (
        f"entry {number} at {hexadecimal(entry)} is MSR {hexadecimal(index)}, value "
        f"{hexadecimal(value)}: {_problem(index, reserved, value, stored=stored)}"
    )


def _problem(index: int, reserved: int, value: int, *, stored: bool) -> str:
    cells = vmcs_cell_of_msr(index), register_cell_of_msr(index)
    known = index in (MSR_EFER, MSR_TSC) or max(cells) >= 0
    if reserved:
        problem = f"bits 63:32 of the entry are {hexadecimal(reserved)} and must be 0"
    elif index >> 8 == 8:
        problem = "MSRs of the x2APIC are neither loaded nor stored so"
    elif index in (MSR_FS_BASE, MSR_GS_BASE) and not stored:
        problem = "the bases of FS and GS are in fields of their own, and not loaded so"
    elif not known:
        problem = f"{'RDMSR' if stored else 'WRMSR'} faults, since there is no such MSR here"
    elif not address_is_canonical(value - (1 << 64) if value >> 63 else value):
        problem = "WRMSR faults: the address is not canonical, or bits are reserved"
    else:
        problem = "WRMSR of the value faults: it has bits, or a combination, that are reserved"
    return problem
