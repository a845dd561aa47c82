"""Which breakpoints of DR0 to DR3 an access meets (SDM, "Debug Control Register (DR7)").

Causes are bits 3:0 of DR6. Breakpoints on execution are the engine's business, and those on data
that translated code accesses are `trapgate.processor.stepping`'s.
"""

from trapgate.compiler.dialect import Cells, core, inlined
from trapgate.sdm.cells import (
    GUEST_CR4,
    GUEST_DR7,
    GUEST_IA32_DEBUGCTL,
    GUEST_PENDING_DEBUG_EXCEPTIONS,
    GUEST_RFLAGS,
)
from trapgate.sdm.registers import DR0
from trapgate.sdm.state import CR4_DE, DEBUGCTL_BTF, PENDING_ENABLED_BREAKPOINT, RFLAGS_TF

EXECUTION, WRITES, PORTS, ACCESSES = range(4)
"""R/W fields of DR7."""


@core
@inlined
def single_steps(v: Cells) -> bool:
    """Whether an instruction that is not a branch is followed by a single-step trap."""
    return bool(v[GUEST_RFLAGS] & RFLAGS_TF != 0 and v[GUEST_IA32_DEBUGCTL] & DEBUGCTL_BTF == 0)


@core
def watches_ports(v: Cells) -> bool:
    """Whether a breakpoint on I/O may be enabled: cheap, and right if it says no."""
    return bool(v[GUEST_DR7] & 0xFF != 0 and v[GUEST_CR4] & CR4_DE != 0)


@core
def breakpoints_met(v: Cells, r: Cells, kinds: int, first: int, size: int) -> int:
    """The causes that `size` bytes or ports from `first` on are; `kinds`: a bit for each field."""
    causes = 0
    dr7 = int(v[GUEST_DR7])
    if dr7 & 0xFF == 0:
        return causes
    for n in range(4):
        if (dr7 >> (2 * n)) & 3 == 0 or (kinds >> ((dr7 >> (16 + 4 * n)) & 3)) & 1 == 0:
            continue
        field = (dr7 >> (18 + 4 * n)) & 3
        length = 8 if field == 2 else field + 1
        start = int(r[DR0 + n]) & ~(length - 1)
        if first < start + length and start < first + size:
            causes = causes | 1 << n
    return causes


@core
def hold_for_trap(v: Cells, causes: int) -> None:
    """Make causes pending for the trap after the instruction that is being carried out."""
    if causes != 0:
        held = v[GUEST_PENDING_DEBUG_EXCEPTIONS]
        v[GUEST_PENDING_DEBUG_EXCEPTIONS] = held | causes | PENDING_ENABLED_BREAKPOINT


@core
def note_ports(v: Cells, r: Cells, port: int, size: int) -> None:
    """An access to `size` ports from `port` on is done."""
    if watches_ports(v):
        hold_for_trap(v, breakpoints_met(v, r, 1 << PORTS, port, size))


@core
def note_words(
    v: Cells, r: Cells, base: int, sp: int, mask: int, size: int, count: int, write: bool
) -> None:
    """`count` words of `size` bytes on a stack are accessed, from `sp` upwards.

    `base` and `mask` as in `frame.probe_frame`.
    """
    if v[GUEST_DR7] & 0xFF == 0:
        return
    linear_mask = -1 if mask == -1 else 0xFFFF_FFFF
    for n in range(count):
        note_data(v, r, (base + ((sp + size * n) & mask)) & linear_mask, size, write)


@core
def note_data(v: Cells, r: Cells, linear: int, size: int, write: bool) -> None:
    """An access to memory is done."""
    kinds = 1 << ACCESSES
    if write:
        kinds = kinds | 1 << WRITES
    hold_for_trap(v, breakpoints_met(v, r, kinds, linear, size))
