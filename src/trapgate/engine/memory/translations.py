"""When the core may use translations that it remembers (`paging.translations`), native path only.

They are forgotten with the engine's own: both functions that drop translations of its are called
through slots, also by itself, and the slots lead here.
"""

from trapgate.compiler.dialect import Cells, inlined
from trapgate.compiler.kinds import BOUND, INT64, UINT32, VOID
from trapgate.compiler.program import callback, jit
from trapgate.compiler.raw import call, cells, peek64, poke64
from trapgate.engine import machine as mc
from trapgate.engine.library import layout as at
from trapgate.engine.memory.tlb import drop_all
from trapgate.paging.memory import WATCH_PAGES, WATCH_TRANSLATES
from trapgate.paging.translations import forget


@jit
@inlined
def use_translations(m: Cells) -> None:
    """From now on: the VMCS in force has just got its control registers from the engine."""
    poke64(m[mc.WATCH] + 8 * WATCH_TRANSLATES, m[mc.NATIVE] if m[mc.SWITCHED] == 0 else 0)


@jit
def walk_always(m: Cells) -> None:
    """From now on: the guest continues, or its control registers may change in the VMCS alone."""
    poke64(m[mc.WATCH] + 8 * WATCH_TRANSLATES, 0)


@jit
def forget_translations(cpu: int) -> None:
    """The engine with this CPU drops translations of its own."""
    machine = peek64(cpu + at.CPU_SIZE + at.MACHINE)
    if machine != 0:
        forget(cells(cells(machine, mc.CELLS)[mc.WATCH], WATCH_PAGES))


@callback(VOID, INT64, UINT32, BOUND)
def on_flush(cpu: int, indexes: int, flush: int) -> None:
    """tlb_flush_by_mmuidx: all pages of some modes."""
    forget_translations(cpu)
    drop_all(peek64(cpu + at.CPU_SIZE + at.MACHINE), cpu, indexes, flush)


@callback(VOID, INT64, INT64, UINT32, BOUND)
def on_flush_page(cpu: int, address: int, indexes: int, flush: int) -> None:
    """tlb_flush_page_by_mmuidx: one page in some modes."""
    forget_translations(cpu)
    call(flush, (cpu, address, indexes))


SLOTS = {"tlb_flush_by_mmuidx": on_flush, "tlb_flush_page_by_mmuidx": on_flush_page}
"""As `coherence.SLOTS`."""
