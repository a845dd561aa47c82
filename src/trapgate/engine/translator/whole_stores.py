"""Stores of more than eight bytes: allowed as a whole, or nothing of them is stored.

Compiled only; Linux wheels. The engine makes several stores of them, one after the other, so that
the first would be done where the second faults. Translated code calls `on_whole_store` before the
first. It has something to do only where the operand lies on two pages. RCL and RCR are like them:
they have changed CF, which they begin with, when their store faults. `decode.whole_stores` knows
which instructions these are.
"""

from trapgate.compiler.dialect import Cells
from trapgate.compiler.kinds import INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, memory, peek32, peek64, poke32
from trapgate.decode.whole_stores import FXSAVE_AREA, XSAVE_AREA
from trapgate.engine import machine as mc
from trapgate.engine.guest.clock import execute_again
from trapgate.engine.guest.state import save_paging
from trapgate.engine.library import layout as at
from trapgate.engine.memory.coherence import forget_stale_code
from trapgate.engine.translator.checked_accesses import is_poison
from trapgate.engine.translator.control_flow import raise_from_helper
from trapgate.paging.apic_access import APIC_ACCESS
from trapgate.paging.walk import READ, WRITE, canonical, walk
from trapgate.sdm.vectors import GP, PF

_PAGE = 0xFFF


@jit
def meets(m: Cells, env: int, v: Cells, linear: int, access: int) -> int:
    """What an access at a linear address meets: -1, or the error of a walk."""
    mem = memory(m[mc.MEM], m[mc.MEM_CELLS], m[mc.WATCH])
    user = 1 if peek32(env + at.HFLAGS) & 3 == 3 else 0
    _, error, _, _ = walk(v, peek64(env + at.EFLAGS), mem, linear, access, user)
    # Of the APIC-access page the access itself will tell.
    return error if error < APIC_ACCESS else -1


@jit
def raise_non_canonical(m: Cells, env: int, back: int) -> None:
    """Leave the block: whether it is #GP or #SS is found out as for all others."""
    m[mc.FAULT_KIND] = mc.FAULT_NON_CANONICAL
    poke32(env + at.ERROR_CODE, 0)
    poke32(m[mc.EXCEPTION_INDEX], at.EXCP_VMEXIT + at.SVM_EXCEPTION + GP)
    call(m[mc.CPU_LOOP_EXIT_RESTORE], (m[mc.CPU], back))


@jit
def demand_writable(m: Cells, linear: int, address: int, back: int) -> None:
    """Raise what a store at `linear` meets, unless there is nothing at `address` for it either.

    Where the operand begins on a page that cannot even be read, the engine will find that out.
    """
    env = m[mc.CPU] + at.CPU_SIZE
    long = peek32(env + at.HFLAGS) & at.HF_CS64 != 0
    if long and not canonical(address):
        return
    if long and not canonical(linear):
        raise_non_canonical(m, env, back)
        return
    v = cells(m[mc.V], m[mc.V_CELLS])
    save_paging(env, v)
    error = meets(m, env, v, linear, WRITE)
    if error >= 0 and (linear == address or meets(m, env, v, address, READ) < 0):
        raise_from_helper(m, env, PF, error, linear, back)
        return
    if forget_stale_code(m):
        # The flags that a walk sets in entries lay in translated code.
        execute_again(m, m[mc.CPU], back, 1)


@jit
def second_page(m: Cells, address: int, size: int) -> int:
    """Where the second page begins of an operand that lies on two."""
    last = (address + size - 1) & ~_PAGE
    if peek32(m[mc.CPU] + at.CPU_SIZE + at.HFLAGS) & at.HF_CS64 == 0:
        return last & 0xFFFF_FFFF
    return last


@callback(VOID, INT64, INT64, INT64, RETURN_ADDRESS)
def on_whole_store(machine: int, address: int, size: int, back: int) -> None:
    """Before a store of `size` bytes at a linear address."""
    if (address & _PAGE) + size <= _PAGE + 1:
        return
    if (size == XSAVE_AREA and address & 63 != 0) or (size == FXSAVE_AREA and address & 15 != 0):
        # #GP before any page fault, which the engine's helpers raise.
        return
    m = cells(machine, mc.CELLS)
    demand_writable(m, second_page(m, address, size), address, back)


@callback(VOID, INT64, INT64, INT64, RETURN_ADDRESS)
def on_store_to_come(machine: int, address: int, size: int, back: int) -> None:
    """Before the load of an instruction that stores there later: that store may fault."""
    m = cells(machine, mc.CELLS)
    if is_poison(address):
        return
    demand_writable(m, address, address, back)
    if (address & _PAGE) + size > _PAGE + 1:
        demand_writable(m, second_page(m, address, size), address, back)
