"""The virtual-APIC page: the local APIC of a guest, as far as the processor keeps it itself.

SDM, "APIC Virtualization and Virtual Interrupts". VTPR stands for the TPR wherever "use TPR
shadow" says so; "APIC-register virtualization" and "virtual-interrupt delivery" take further
registers from the page. A write may be followed by an exit, after the instruction: functions
here answer with that exit as one number, its reason in bits 15:0 and its qualification above, or 0.
"""

from trapgate.compiler.dialect import Cells, Memory, core
from trapgate.instructions.intercepts import secondary_controls
from trapgate.paging.memory import load32, load64, store8, store32, store64
from trapgate.sdm import cells as f
from trapgate.sdm import controls as ct
from trapgate.sdm.reasons import (
    REASON_APIC_WRITE,
    REASON_TPR_BELOW_THRESHOLD,
    REASON_VIRTUALIZED_EOI,
)

VTPR, VPPR, VEOI, VISR, VIRR = 0x80, 0xA0, 0xB0, 0x100, 0x200
VICR, VICR_HIGH, VSELF_IPI = 0x300, 0x310, 0x3F0
"""Offsets of registers in the page."""
X2APIC_MSRS = 0x800
_MSR_TPR, _MSR_EOI, _MSR_SELF_IPI = 0x808, 0x80B, 0x83F
_REGISTER = 0xFF0
_QUALIFICATION = 16
_SELF_SHORTHAND, _SHORTHAND = 1 << 18, 3 << 18
_NOT_A_PLAIN_IPI = 0xFFF0_0000 | 3 << 16 | 0xF << 12 | 7 << 8
"""Of ICR: reserved bits, delivery status, trigger mode, delivery modes but fixed."""
_READABLE = 1 << 0x02 | 1 << 0x03 | 1 << 0x08 | 1 << 0x0B | 1 << 0x0D | 1 << 0x0E | 1 << 0x0F
_READABLE |= 0x1FF_FFFF << 0x10 | 0xFF << 0x30 | 1 << 0x38 | 1 << 0x3E
"""With APIC-register virtualization: the registers that can be read, by offset / 16."""
_WRITABLE = 1 << 0x02 | 1 << 0x08 | 1 << 0x0B | 1 << 0x0D | 1 << 0x0E | 1 << 0x0F | 1 << 0x28
_WRITABLE |= 0xFF << 0x30 | 1 << 0x38 | 1 << 0x3E
_NOTIFICATION = 1 << 0
"""Outstanding notification: bit 256 of a posted-interrupt descriptor."""


@core
def has_tpr_shadow(v: Cells) -> bool:
    """Whether MOV CR8 and what else is virtualized is about VTPR."""
    return bool(v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_TPR_SHADOW)


@core
def delivers_interrupts(v: Cells) -> bool:
    """Virtual-interrupt delivery."""
    return bool(secondary_controls(v) & ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY)


@core
def virtual_register(v: Cells, mem: Memory, offset: int) -> int:
    """The 32 bits of a register, unsigned."""
    return int(load32(mem, v[f.VIRTUAL_APIC_ADDRESS] + offset))


@core
def set_virtual_register(v: Cells, mem: Memory, offset: int, value: int) -> None:
    """Write 32 bits."""
    store32(mem, v[f.VIRTUAL_APIC_ADDRESS] + offset, value & 0xFFFF_FFFF)


@core
def virtual_tpr(v: Cells, mem: Memory) -> int:
    """Bits 7:0 of VTPR."""
    return virtual_register(v, mem, VTPR) & 0xFF


# Virtual interrupts: a bit a vector in VIRR (requested) and VISR (in service), and the highest of
# each in the guest interrupt status, RVI and SVI.


@core
def set_vector(v: Cells, mem: Memory, base: int, vector: int, value: int) -> None:
    """Set or clear a vector's bit in VIRR or VISR."""
    offset = base + ((vector >> 5) << 4)
    bit = 1 << (vector & 31)
    word = virtual_register(v, mem, offset)
    set_virtual_register(v, mem, offset, word | bit if value else word & ~bit)


@core
def highest_vector(v: Cells, mem: Memory, base: int) -> int:
    """The highest vector whose bit is set in VIRR or VISR, or 0."""
    for n in range(8):
        word = virtual_register(v, mem, base + ((7 - n) << 4))
        if word != 0:
            vector = (7 - n) << 5
            while word > 1:
                word >>= 1
                vector += 1
            return vector
    return 0


@core
def rvi_of(v: Cells) -> int:
    """RVI."""
    return int(v[f.GUEST_INTERRUPT_STATUS]) & 0xFF


@core
def svi_of(v: Cells) -> int:
    """SVI."""
    return (int(v[f.GUEST_INTERRUPT_STATUS]) >> 8) & 0xFF


@core
def set_interrupt_status(v: Cells, rvi: int, svi: int) -> None:
    """Write RVI and SVI."""
    v[f.GUEST_INTERRUPT_STATUS] = rvi | svi << 8


@core
def virtualize_ppr(v: Cells, mem: Memory) -> None:
    """SDM, "PPR Virtualization"."""
    task = virtual_tpr(v, mem)
    served = svi_of(v)
    value = task if task >> 4 >= served >> 4 else served & 0xF0
    set_virtual_register(v, mem, VPPR, value)


@core
def has_virtual_interrupt(v: Cells, mem: Memory) -> bool:
    """Whether one is recognized (SDM, "Evaluation of Pending Virtual Interrupts")."""
    if not delivers_interrupts(v):
        return False
    if v[f.PRIMARY_PROCESSOR_BASED_CONTROLS] & ct.PRIMARY_INTERRUPT_WINDOW_EXITING:
        return False
    return bool(rvi_of(v) >> 4 > (virtual_register(v, mem, VPPR) >> 4) & 0xF)


@core
def take_virtual_interrupt(v: Cells, mem: Memory) -> int:
    """The vector of the one that is delivered (SDM, "Virtual-Interrupt Delivery")."""
    vector = rvi_of(v)
    set_vector(v, mem, VISR, vector, 1)
    set_virtual_register(v, mem, VPPR, vector & 0xF0)
    set_vector(v, mem, VIRR, vector, 0)
    set_interrupt_status(v, highest_vector(v, mem, VIRR), vector)
    return vector


@core
def post_interrupts(v: Cells, mem: Memory) -> None:
    """SDM, "Posted-Interrupt Processing", from the step on that clears outstanding notification."""
    descriptor = v[f.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS]
    word = load64(mem, descriptor + 32)
    store64(mem, descriptor + 32, word & ~_NOTIFICATION)
    for n in range(8):
        posted = load32(mem, descriptor + 4 * n)
        if posted != 0:
            store32(mem, descriptor + 4 * n, 0)
            offset = VIRR + (n << 4)
            set_virtual_register(v, mem, offset, virtual_register(v, mem, offset) | posted)
    set_interrupt_status(v, max(rvi_of(v), highest_vector(v, mem, VIRR)), svi_of(v))


# What follows a write.


@core
def is_below_threshold(v: Cells, mem: Memory) -> bool:
    """Whether the class of VTPR is below the TPR threshold."""
    return bool(virtual_tpr(v, mem) >> 4 < v[f.TPR_THRESHOLD] & 0xF)


@core
def virtualize_tpr(v: Cells, mem: Memory) -> int:
    """SDM, "TPR Virtualization"."""
    if delivers_interrupts(v):
        virtualize_ppr(v, mem)
        return 0
    return REASON_TPR_BELOW_THRESHOLD if is_below_threshold(v, mem) else 0


@core
def write_tpr(v: Cells, mem: Memory, value: int) -> int:
    """VTPR is `value`, 8 bits; the bytes above become 0."""
    set_virtual_register(v, mem, VTPR, value & 0xFF)
    return virtualize_tpr(v, mem)


@core
def virtualize_eoi(v: Cells, mem: Memory) -> int:
    """SDM, "EOI Virtualization"."""
    vector = svi_of(v)
    set_vector(v, mem, VISR, vector, 0)
    set_interrupt_status(v, rvi_of(v), highest_vector(v, mem, VISR))
    virtualize_ppr(v, mem)
    if (v[f.EOI_EXIT_BITMAP_0 + (vector >> 6)] >> (vector & 63)) & 1:
        return REASON_VIRTUALIZED_EOI | vector << _QUALIFICATION
    return 0


@core
def virtualize_self_ipi(v: Cells, mem: Memory, vector: int) -> int:
    """SDM, "Self-IPI Virtualization"."""
    set_vector(v, mem, VIRR, vector, 1)
    set_interrupt_status(v, max(rvi_of(v), vector), svi_of(v))
    return 0


@core
def emulate_apic_write(v: Cells, mem: Memory, offset: int) -> int:
    """SDM, "APIC-Write Emulation", of the register at `offset`."""
    value = virtual_register(v, mem, offset)
    if offset == VTPR:
        return write_tpr(v, mem, value)
    if offset == VICR_HIGH:
        set_virtual_register(v, mem, offset, value & 0xFF00_0000)
        return 0
    if delivers_interrupts(v):
        if offset == VEOI:
            set_virtual_register(v, mem, offset, 0)
            return virtualize_eoi(v, mem)
        to_self = value & _SHORTHAND == _SELF_SHORTHAND
        if offset == VICR and to_self and value & _NOT_A_PLAIN_IPI == 0 and value & 0xF0:
            return virtualize_self_ipi(v, mem, value & 0xFF)
    return REASON_APIC_WRITE | offset << _QUALIFICATION


# Accesses to the APIC-access page.


@core
def is_virtualized_access(v: Cells, offset: int, size: int, write: int) -> bool:
    """Whether an access to the APIC-access page is one to the virtual-APIC page instead.

    SDM, "Virtualizing Memory-Mapped APIC Accesses": 32 bits at most, within the low four
    bytes of the register. Else it is an APIC-access exit.
    """
    if not has_tpr_shadow(v) or (offset & 0xF) + size > 4:
        return False
    register = offset & _REGISTER
    secondary = secondary_controls(v)
    if secondary & ct.SECONDARY_APIC_REGISTER_VIRTUALIZATION:
        if register >= 0x400:
            return False
        known = _WRITABLE if write else _READABLE
        return bool((known >> (register >> 4)) & 1)
    if register == VTPR:
        return True
    return register in (VEOI, VICR) and bool(secondary & ct.SECONDARY_VIRTUAL_INTERRUPT_DELIVERY)


@core
def read_virtual(v: Cells, mem: Memory, offset: int, size: int) -> int:
    """`size` bytes of the virtual-APIC page at `offset`, zero-extended."""
    word = virtual_register(v, mem, offset & _REGISTER)
    return (word >> (8 * (offset & 0xF))) & ((1 << (8 * size)) - 1)


@core
def write_virtual(v: Cells, mem: Memory, offset: int, size: int, value: int) -> int:
    """Store `size` bytes at `offset`; the exit that follows the instruction, or 0."""
    for n in range(size):
        store8(mem, v[f.VIRTUAL_APIC_ADDRESS] + offset + n, (value >> (8 * n)) & 0xFF)
    return emulate_apic_write(v, mem, offset & _REGISTER)


# MSRs of x2APIC mode.


@core
def virtualizes_read(v: Cells, index: int) -> bool:
    """Whether RDMSR of `index` reads the page (SDM, "Virtualizing MSR-Based APIC Accesses")."""
    secondary = secondary_controls(v)
    if secondary & ct.SECONDARY_VIRTUALIZE_X2APIC == 0 or not has_tpr_shadow(v):
        return False
    if secondary & ct.SECONDARY_APIC_REGISTER_VIRTUALIZATION:
        return X2APIC_MSRS <= index < X2APIC_MSRS + 0x100
    return index == _MSR_TPR


@core
def read_msr_of_page(v: Cells, mem: Memory, index: int) -> int:
    """What it gives, 64 bits."""
    return int(load64(mem, v[f.VIRTUAL_APIC_ADDRESS] + ((index & 0xFF) << 4)))


@core
def virtualizes_write(v: Cells, index: int) -> bool:
    """Whether WRMSR of `index` writes it."""
    secondary = secondary_controls(v)
    if secondary & ct.SECONDARY_VIRTUALIZE_X2APIC == 0 or not has_tpr_shadow(v):
        return False
    if index == _MSR_TPR:
        return True
    return index in (_MSR_EOI, _MSR_SELF_IPI) and delivers_interrupts(v)


@core
def fits_msr_of_page(index: int, value: int) -> bool:
    """Whether it can be written with 64 bits `value`; else #GP."""
    return value == 0 if index == _MSR_EOI else value & ~0xFF == 0


@core
def write_msr_of_page(v: Cells, mem: Memory, index: int, value: int) -> int:
    """Write it; the exit that follows the instruction, or 0."""
    offset = (index & 0xFF) << 4
    set_virtual_register(v, mem, offset, value)
    if index == _MSR_TPR:
        return virtualize_tpr(v, mem)
    if index == _MSR_EOI:
        return virtualize_eoi(v, mem)
    if value & 0xF0 == 0:
        return REASON_APIC_WRITE | offset << _QUALIFICATION
    return virtualize_self_ipi(v, mem, value)
