"""Accesses to the APIC-access page of the guest that runs, one by one (native only).

The MMU's refill lets the page stand for one whose loads and stores come here. An access to a
register that is virtualized continues; any other is undone, and is an exit (SDM, "Virtualizing
Memory-Mapped APIC Accesses").
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import jit
from trapgate.compiler.raw import call, cells, memory, peek64, poke32
from trapgate.engine import machine as mc
from trapgate.engine.core_calls import look_ahead
from trapgate.engine.guest.clock import begin_device_access
from trapgate.engine.library import layout as at
from trapgate.instructions.virtual_apic import (
    is_virtualized_access,
    read_virtual,
    write_virtual,
)
from trapgate.paging.apic_access import DATA_READ, DATA_WRITE, apic_access


@jit
def leave_for_access(m: Cells, offset: int, access: int) -> None:
    """Leave the instruction before it has done anything, as for a page fault."""
    m[mc.FAULT_ADDRESS] = 0
    m[mc.FAULT_CODE] = apic_access(access, offset)
    m[mc.FAULT_KIND] = 0
    poke32(m[mc.ENV] + at.ERROR_CODE, 0)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + 0x40 + 14)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], peek64(m[mc.CPU] + at.IO_PC)))


@jit
def read_apic_page(m: Cells, offset: int, size: int) -> int:
    """A load of `size` bytes at `offset` of the page."""
    v = cells(m[mc.V], m[mc.V_CELLS])
    if not is_virtualized_access(v, offset, size, 0):
        leave_for_access(m, offset, DATA_READ)
    return read_virtual(v, memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH]), offset, size)


@jit
def write_apic_page(m: Cells, offset: int, size: int, value: int) -> None:
    """A store; the exit that it leads to, if any, comes after the instruction."""
    v = cells(m[mc.V], m[mc.V_CELLS])
    if not is_virtualized_access(v, offset, size, 1):
        leave_for_access(m, offset, DATA_WRITE)
    begin_device_access(m)
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    due = write_virtual(v, mem, offset, size, value)
    if due != 0:
        # The way out is that of the preemption timer, which gets its end back there.
        m[mc.APIC_EXIT] = due
        m[mc.KEPT_TIMER_END] = m[mc.NESTED_TIMER_END]
        m[mc.NESTED_TIMER_END] = m[mc.TIME]
        m[mc.DEADLINE] = 0
    else:
        look_ahead(m)
