"""Breakpoints on I/O ports (SDM, "Debug Control Register (DR7)")."""

from trapgate.compiler.dialect import Cells, core
from trapgate.sdm.cells import GUEST_CR4, GUEST_DR7, GUEST_PENDING_DEBUG_EXCEPTIONS
from trapgate.sdm.registers import DR0
from trapgate.sdm.state import CR4_DE, PENDING_ENABLED_BREAKPOINT

_IO = 2
"""R/W field of DR7."""


@core
def watches_ports(v: Cells) -> bool:
    """Whether a breakpoint on I/O may be enabled: cheap, and right if it says no."""
    return bool(v[GUEST_DR7] & 0xFF != 0 and v[GUEST_CR4] & CR4_DE != 0)


@core
def io_breakpoints(v: Cells, r: Cells, port: int, size: int) -> int:
    """Which breakpoints an access to `size` ports from `port` on meets, as bits 3:0 of DR6."""
    causes = 0
    if not watches_ports(v):
        return causes
    dr7 = int(v[GUEST_DR7])
    for n in range(4):
        if (dr7 >> (2 * n)) & 3 == 0 or (dr7 >> (16 + 4 * n)) & 3 != _IO:
            continue
        field = (dr7 >> (18 + 4 * n)) & 3
        length = 8 if field == 2 else field + 1
        start = int(r[DR0 + n]) & ~(length - 1)
        if port < start + length and start < port + size:
            causes = causes | 1 << n
    return causes


@core
def note_io(v: Cells, r: Cells, port: int, size: int) -> None:
    """An access to ports is done: what it has met is a trap behind the instruction."""
    causes = io_breakpoints(v, r, port, size)
    if causes != 0:
        held = v[GUEST_PENDING_DEBUG_EXCEPTIONS]
        v[GUEST_PENDING_DEBUG_EXCEPTIONS] = held | causes | PENDING_ENABLED_BREAKPOINT
