"""Which entries of the page tables a walk looks at, and where it ends."""

from __future__ import annotations

from trapgate.sdm import cells as f
from trapgate.sdm.state import CR0_PG, CR4_PAE, CR4_PSE, EFER_LMA
from trapgate.vmm.machine import VirtualMachine

_FRAME_32 = 0xFFFF_F000
_FRAME_64 = 0x000F_FFFF_FFFF_F000
_PRESENT = 1
_LARGE = 0x80


def levels_of(vm: VirtualMachine) -> int:
    """How many levels the guest's page tables have; 0 without paging. SDM, "Paging Modes"."""
    v = vm.vmcs.words
    if not v[f.GUEST_CR0] & CR0_PG:
        return 0
    if not v[f.GUEST_CR4] & CR4_PAE:
        return 2
    return 4 if v[f.GUEST_IA32_EFER] & EFER_LMA else 3


def walk_of(vm: VirtualMachine, linear: int) -> tuple[list[tuple[int, int]], int]:
    """The entries of the walk for a linear address, and the physical address or -1.

    Each entry is its physical address and its size in bytes, the topmost first. Nothing is
    changed, and rights play no part. A walk that leaves memory ends there. SDM, "Paging".
    """
    levels = levels_of(vm)
    if levels == 0:
        return [], linear & 0xFFFF_FFFF
    v, memory = vm.vmcs.words, vm.processor.memory
    bits, size, frame = (10, 4, _FRAME_32) if levels == 2 else (9, 8, _FRAME_64)
    if levels < 4:
        linear &= 0xFFFF_FFFF
    has_large_pages = levels > 2 or v[f.GUEST_CR4] & CR4_PSE
    table = v[f.GUEST_CR3] & (0xFFFF_FFE0 if levels == 3 else frame)
    entries: list[tuple[int, int]] = []
    for level in range(levels, 0, -1):
        shift = 12 + bits * (level - 1)
        at = table + (linear >> shift & (1 << bits) - 1) * size
        if at + size > memory.size:
            break
        entries.append((at, size))
        entry = int.from_bytes(memory.read(at, size), "little")
        if not entry & _PRESENT:
            break
        below = (1 << shift) - 1
        if level == 1:
            return entries, entry & frame | linear & below
        if entry & _LARGE and has_large_pages and (level == 2 or (levels == 4 and level == 3)):
            high = (entry & 0x1F_E000) << 19 if levels == 2 else 0  # SDM, PSE-36
            return entries, entry & frame & ~below | high | linear & below
        table = entry & frame
    return entries, -1
