"""Memory as it was: a copy of it, and back to that by the pages that were written since.

Who stores marks the page, in the same cells that keep translated code coherent (`coherence`). Where
the engine does not tell of its stores (other libraries than the Linux wheels') all pages are
taken for written. Going back drops the code that was translated from those pages, and all
entries of the TLB, so that the next store to each page is told again. All other code stays.
"""

from trapgate.compiler.program import bound, jit_for_python
from trapgate.compiler.raw import call, cells
from trapgate.engine import machine as mc
from trapgate.engine.coherence import CODE, forget_range, pages_of
from trapgate.engine.unicorn_engine import UnicornEngine
from trapgate.paging.memory import WRITTEN_PAGE

_CELLS = 512
"""Of a page."""


@jit_for_python
def restore_pages(machine: int, base: int) -> int:
    """Let the pages that are marked as written be as in the copy at `base`; how many those were."""
    m = cells(machine, mc.CELLS)
    pages = pages_of(m)
    count = 0
    for page in range(len(pages)):
        if pages[page] & WRITTEN_PAGE:
            if pages[page] & CODE:
                forget_range(m, page << 12, (page + 1) << 12)
            pages[page] &= ~WRITTEN_PAGE
            now = cells(m[mc.MEM] + (page << 12), _CELLS)
            then = cells(base + (page << 12), _CELLS)
            for cell in range(_CELLS):
                now[cell] = then[cell]
            count += 1
    if m[mc.TLB_FLUSH] != 0:
        call(m[mc.TLB_FLUSH], (m[mc.CPU],))
    return count


class MemoryCopy:
    """A copy of an engine's memory."""

    def __init__(self, engine: UnicornEngine) -> None:
        self._engine = engine
        self._memory = engine.memory.copy()
        self._restore = bound(
            restore_pages, int(engine.cells[mc.SELF]), int(self._memory.ctypes.data)
        )
        self._forget_marks()

    def _forget_marks(self) -> None:
        self._engine.page_cells[:] &= ~WRITTEN_PAGE
        self._engine.flush_translations()

    def restore(self) -> int:
        """Let memory be as it was; how many pages were copied."""
        engine = self._engine
        if not engine.cells[mc.CPU]:
            engine.page_cells[:] |= WRITTEN_PAGE | CODE
            engine.flush_translations()
        return int(self._restore())
