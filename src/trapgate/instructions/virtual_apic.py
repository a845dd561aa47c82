"""The virtual-APIC page: the task priority of a guest that shares a local APIC with its VMM.

SDM, "APIC Virtualization and Virtual Interrupts". VTPR, at offset 80H of the page, stands for the
TPR wherever "use TPR shadow" says so. A write that leaves it below the TPR threshold exits,
behind the instruction.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.events.exits import vm_exit
from trapgate.instructions.intercepts import EXITED, GO_ON, secondary_controls
from trapgate.paging.memory import load8, load64, store8, store32
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import REASON_TPR_BELOW_THRESHOLD

VTPR = 0x80
"""Offset of the virtual task priority."""
MSR_X2APIC_TPR = 0x808
_REGISTER = 0xFF0


@core
def has_tpr_shadow(v: Cells) -> bool:
    """Whether MOV CR8 and what else is virtualized is about VTPR."""
    return bool(v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_TPR_SHADOW)


@core
def virtualizes_msr(v: Cells, index: int) -> bool:
    """Whether RDMSR and WRMSR of `index` are about VTPR: "virtualize x2APIC mode"."""
    return index == MSR_X2APIC_TPR and bool(
        secondary_controls(v) & ct.SECONDARY_VIRTUALIZE_X2APIC and has_tpr_shadow(v)
    )


@core
def virtual_tpr(v: Cells, mem: Memory) -> int:
    """Bits 7:0 of VTPR."""
    return int(load8(mem, v[f.VIRTUAL_APIC_ADDRESS] + VTPR))


@core
def set_virtual_tpr(v: Cells, mem: Memory, value: int) -> None:
    """VTPR is `value`, 8 bits; the bytes above become 0."""
    store32(mem, v[f.VIRTUAL_APIC_ADDRESS] + VTPR, value & 0xFF)


@core
def is_below_threshold(v: Cells, mem: Memory) -> bool:
    """Whether the class of VTPR is below the TPR threshold (SDM, "TPR Virtualization")."""
    return bool(virtual_tpr(v, mem) >> 4 < v[f.TPR_THRESHOLD] & 0xF)


@core
def exit_below_threshold(v: Cells, mem: Memory) -> int:
    """The exit behind an instruction that has written VTPR, if it is due: EXITED or GO_ON."""
    if not is_below_threshold(v, mem):
        return GO_ON
    vm_exit(v, REASON_TPR_BELOW_THRESHOLD, 0, 0)
    return EXITED


@core
def is_virtualized_access(v: Cells, offset: int, size: int) -> bool:
    """Whether an access to the APIC-access page is about VTPR instead of being an exit.

    SDM, "Virtualizing Reads from the APIC-Access Page": 32 bits at most, within the low four
    bytes of the register.
    """
    return has_tpr_shadow(v) and offset & _REGISTER == VTPR and (offset & 0xF) + size <= 4


@core
def read_virtual(v: Cells, mem: Memory, offset: int, size: int) -> int:
    """`size` bytes of the virtual-APIC page at `offset`, zero-extended."""
    word = load64(mem, v[f.VIRTUAL_APIC_ADDRESS] + (offset & _REGISTER))
    return (word >> (8 * (offset & 0xF))) & ((1 << (8 * size)) - 1)


@core
def write_virtual_tpr(v: Cells, mem: Memory, offset: int, size: int, value: int) -> None:
    """Store `size` bytes at `offset`, which lies in VTPR; what is above bits 7:0 is cleared."""
    for n in range(size):
        store8(mem, v[f.VIRTUAL_APIC_ADDRESS] + offset + n, (value >> (8 * n)) & 0xFF)
    set_virtual_tpr(v, mem, virtual_tpr(v, mem))
