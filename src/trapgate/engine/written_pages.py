"""Memory as it was: copies of it that share their pages, and back to any of them.

Who stores marks the page, in the same cells that keep translated code coherent (`coherence`), and
logs its number (`paging.memory.note_page`). Where the engine does not tell of its stores (other
libraries than the Linux wheels') all pages are taken for written. A copy costs the pages that were
written since the one before; going back costs those that were written since and those in which the
two copies differ, drops the code that was translated from them, and all entries of the TLB, so that
the next store to each page is told again. All other code stays. Other arrays, which are small, are
copied with memory.
"""

import weakref
from collections.abc import Iterable, Mapping

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.compiler.program import bound, jit, jit_for_python
from trapgate.compiler.raw import call, cells
from trapgate.engine import machine as mc
from trapgate.engine.memory.coherence import CODE, forget_range, pages_of, watch_of
from trapgate.engine.memory.host_memory import zeros
from trapgate.engine.unicorn_engine import UnicornEngine
from trapgate.paging.memory import WATCH_PAGES, WATCH_WRITTEN, WRITTEN_PAGE, note_page

_CELLS = 512
"""Of a page."""
_LINES = _CELLS // 8
"""Of a page: what the host's caches hold together."""
_PAGE = 1 << 12
_CHUNK = 1024
"""Pages that the pool grows by: two huge pages of the host."""


@jit
def copy_cells(to: Cells, source: Cells) -> None:
    """Copy one array to another."""
    for n in range(len(source)):
        to[n] = source[n]


@jit
def are_different(one: Cells, other: Cells) -> bool:
    """Whether two pages do not hold the same."""
    differences = 0
    for cell in range(_CELLS):
        differences |= one[cell] ^ other[cell]
    return differences != 0


@jit
def copy_line(to: Cells, source: Cells, line: int) -> None:
    """Copy eight cells, which a line of the host's caches holds."""
    first = line << 3
    to[first] = source[first]
    to[first + 1] = source[first + 1]
    to[first + 2] = source[first + 2]
    to[first + 3] = source[first + 3]
    to[first + 4] = source[first + 4]
    to[first + 5] = source[first + 5]
    to[first + 6] = source[first + 6]
    to[first + 7] = source[first + 7]


@jit
def copy_abreast(m: Cells, contents: Cells, numbers: Cells, count: int) -> None:
    """Copy pages back to memory: four at a time, a line of each in turn.

    Neither these pages nor their translations need be in the host's caches. Four misses at a time
    take 0.6 times as long as one after the other; with more pages the host prefetches less.
    """
    memory = m[mc.MEM]
    fours = count >> 2
    for four in range(fours):
        pages = numbers[4 * four :]
        now_0 = cells(memory + (pages[0] << 12), _CELLS)
        now_1 = cells(memory + (pages[1] << 12), _CELLS)
        now_2 = cells(memory + (pages[2] << 12), _CELLS)
        now_3 = cells(memory + (pages[3] << 12), _CELLS)
        then_0 = cells(contents[pages[0]], _CELLS)
        then_1 = cells(contents[pages[1]], _CELLS)
        then_2 = cells(contents[pages[2]], _CELLS)
        then_3 = cells(contents[pages[3]], _CELLS)
        for line in range(_LINES):
            copy_line(now_0, then_0, line)
            copy_line(now_1, then_1, line)
            copy_line(now_2, then_2, line)
            copy_line(now_3, then_3, line)
    for n in range(4 * fours, count):
        copy_cells(cells(memory + (numbers[n] << 12), _CELLS), cells(contents[numbers[n]], _CELLS))


@jit
def copy_different(m: Cells, contents: Cells, numbers: Cells, count: int) -> int:
    """The same for those pages that do not hold it already, and drop all code; how many those were.

    Where nobody tells of stores: all pages are marked, and to drop one page's code is to drop all.
    """
    copied = 0
    for n in range(count):
        if differs(m, contents, numbers[n]):
            forget_range(m, numbers[n] << 12, (numbers[n] + 1) << 12)
            now = cells(m[mc.MEM] + (numbers[n] << 12), _CELLS)
            copy_cells(now, cells(contents[numbers[n]], _CELLS))
            copied += 1
    return copied


@jit_for_python
def restore_pages(
    machine: int, wanted: int, spans: int, count: int, other: int, others: int
) -> int:
    """Restore memory from a copy; how many pages were copied.

    `wanted` is the address of an array with the address of each page's content in that copy. At
    `spans` there are, for each of `count` other arrays, where it is, where its copy is, and how
    many cells. At `other` are the numbers of the `others` pages in which that copy and the one that
    memory was last the same as differ.
    """
    m = cells(machine, mc.CELLS)
    arrays = cells(spans, 3 * count)
    for n in range(count):
        span = arrays[3 * n :]
        copy_cells(cells(span[0], span[2]), cells(span[1], span[2]))
    pages = pages_of(m)
    watch = watch_of(m)
    contents = cells(wanted, len(pages))
    differing = cells(other, others)
    for n in range(others):
        note_page(watch, len(pages), differing[n])
    log = watch[WATCH_PAGES + len(pages) :]
    written = watch[WATCH_WRITTEN]
    watch[WATCH_WRITTEN] = 0
    copied: int = written
    if m[mc.CPU] == 0:
        for n in range(written):
            pages[log[n]] &= ~WRITTEN_PAGE
        copied = copy_different(m, contents, log, written)
    else:
        for n in range(written):
            page = log[n]
            pages[page] &= ~WRITTEN_PAGE
            if pages[page] & CODE:
                forget_range(m, page << 12, (page + 1) << 12)
        copy_abreast(m, contents, log, written)
    if m[mc.TLB_FLUSH] != 0:
        call(m[mc.TLB_FLUSH], (m[mc.CPU],))
    return copied


@jit_for_python
def differing_pages(machine: int, wanted: int, other: int, others: int) -> int:
    """How many pages of memory are not as a copy has them; addresses as for `restore_pages`."""
    m = cells(machine, mc.CELLS)
    pages = pages_of(m)
    watch = watch_of(m)
    contents = cells(wanted, len(pages))
    differing = cells(other, others)
    log = watch[WATCH_PAGES + len(pages) :]
    count = 0
    for n in range(watch[WATCH_WRITTEN]):
        count += int(differs(m, contents, log[n]))
    for n in range(others):
        if pages[differing[n]] & WRITTEN_PAGE == 0:
            count += int(differs(m, contents, differing[n]))
    return count


@jit
def differs(m: Cells, contents: Cells, page: int) -> bool:
    """Whether a page of memory does not hold what a copy has."""
    now = cells(m[mc.MEM] + (page << 12), _CELLS)
    return are_different(now, cells(contents[page], _CELLS))


@jit_for_python
def save_pages(machine: int, count: int, pages: int, places: int) -> int:
    """Copy pages of memory that are not all zeros to one place after another; how many those were.

    `pages` is the address of an array of `count` page numbers, of which those that were copied
    come to stand first; `places` of one of addresses.
    """
    m = cells(machine, mc.CELLS)
    numbers = cells(pages, count)
    contents = cells(places, count)
    copied = 0
    for n in range(count):
        now = cells(m[mc.MEM] + (numbers[n] << 12), _CELLS)
        ones = 0
        for cell in range(_CELLS):
            ones |= now[cell]
        if ones != 0:
            numbers[copied] = numbers[n]
            then = cells(contents[copied], _CELLS)
            for cell in range(_CELLS):
                then[cell] = now[cell]
            copied += 1
    return copied


class _Kept:
    """Numbers of a pool's pages, one a page of memory, which are theirs as long as this lives."""

    def __init__(self, pool: "PagePool", numbers: Cells) -> None:
        self.numbers = numbers
        self.addresses = pool.addresses[numbers]
        pool.use(numbers)
        weakref.finalize(self, pool.drop, numbers)


class PagePool:
    """Contents of pages for the copies of one engine's memory. Page 0 of the pool is all zeros."""

    def __init__(self, pages: int) -> None:
        self._chunks: list[Cells] = []
        self._uses = np.zeros(0, np.int64)
        self._free: list[int] = []
        self.addresses: Cells = np.zeros(0, np.int64)
        """Of each page's content."""
        self._grow()
        self._uses[self._free.pop()] = 1
        self.latest = _Kept(self, np.zeros(pages, np.int64))
        """What memory was last the same as, but for the pages that are marked."""

    @property
    def size(self) -> int:
        """Bytes that are in use."""
        return (len(self._uses) - len(self._free)) * _PAGE

    def take(self, changed: Cells, machine: int) -> None:
        """Memory is as `latest`, but for the pages `changed`, which are copied."""
        while len(self._free) < len(changed):
            self._grow()
        free = np.array(self._free[-len(changed) :] if len(changed) else [], np.int64)
        places, pages = self.addresses[free], changed.astype(np.int64)
        numbers = self.latest.numbers.copy()
        count = save_pages(machine, len(pages), pages.ctypes.data, places.ctypes.data)
        numbers[changed] = 0
        numbers[pages[:count]] = free[:count]
        del self._free[len(self._free) - len(free) :]
        self._free += free[count:].tolist()
        self.latest = _Kept(self, numbers)

    def _grow(self) -> None:
        chunk = zeros(_CHUNK * _PAGE).reshape(_CHUNK, _CELLS)
        first = len(self._uses)
        self._chunks.append(chunk)
        starts = np.arange(_CHUNK, dtype=np.int64) * _PAGE + chunk.ctypes.data
        self.addresses = np.concatenate((self.addresses, starts))
        self._uses = np.concatenate((self._uses, np.zeros(_CHUNK, np.int64)))
        self._free += range(first + _CHUNK - 1, first - 1, -1)

    def contents(self, numbers: Cells) -> Cells:
        """What pages of the pool hold."""
        found = np.empty((len(numbers), _CELLS), np.int64)
        for chunk in np.unique(numbers // _CHUNK):
            here = numbers // _CHUNK == chunk
            found[here] = self._chunks[chunk][numbers[here] % _CHUNK]
        return found

    def use(self, numbers: Cells) -> None:
        """One more has these pages."""
        self._uses += np.bincount(numbers, minlength=len(self._uses))

    def drop(self, numbers: Cells) -> None:
        """One has them no more; what nobody has is free."""
        self._uses -= np.bincount(numbers, minlength=len(self._uses))
        self._free += [int(one) for one in np.unique(numbers) if not self._uses[one]]


_POOLS: weakref.WeakKeyDictionary[UnicornEngine, PagePool] = weakref.WeakKeyDictionary()


def pool_of(engine: UnicornEngine) -> PagePool:
    """The pool of an engine's copies, which all share it."""
    pool = _POOLS.get(engine)
    if pool is None:
        pool = _POOLS[engine] = PagePool(len(engine.page_cells))
    return pool


class MemoryCopy:
    """A copy of an engine's memory, and of other `arrays` of 64-bit cells.

    Somebody else sees to the rest of those of which `beginnings` says, by their addresses, how many
    of the first cells go back with memory.
    """

    def __init__(
        self,
        engine: UnicornEngine,
        arrays: Iterable[Cells] = (),
        beginnings: Mapping[int, int] | None = None,
    ) -> None:
        self._engine = engine
        self._pool = pool_of(engine)
        self._mark_all()
        changed = np.sort(_written(engine))
        self._pool.take(changed, int(engine.cells[mc.SELF]))
        self._kept = self._pool.latest
        self._compared: weakref.ref[_Kept] | None = None
        self._differing: Cells = np.zeros(0, np.int64)
        self._others = 0, 0
        self._arrays = list(arrays)
        self.copies = [array.copy() for array in self._arrays]
        sizes = beginnings or {}
        spans = [
            (at := array.ctypes.data, copy.ctypes.data, sizes.get(at, array.size))
            for array, copy in zip(self._arrays, self.copies, strict=True)
        ]
        self._spans: Cells = np.array(spans, np.int64).reshape(-1)
        machine, wanted = int(engine.cells[mc.SELF]), self._kept.addresses.ctypes.data
        places = self._spans.ctypes.data
        self._restore = bound(restore_pages, machine, wanted, places, len(spans))
        self._count_differing = bound(differing_pages, machine, wanted)
        engine.page_cells[changed] &= ~WRITTEN_PAGE
        engine.watch_cells[WATCH_WRITTEN] = 0
        engine.flush_translations()

    @property
    def is_latest(self) -> bool:
        """Whether memory was not the same as another copy since it was the same as this one."""
        return self._pool.latest is self._kept

    def _differing_from_latest(self) -> tuple[int, int]:
        """Where the numbers are of the pages that another copy than the latest has, and how many.

        They are looked for once: a bench goes to and fro between the same two copies.
        """
        latest = self._pool.latest
        if self._compared is None or self._compared() is not latest:
            self._compared = weakref.ref(latest)
            self._differing = np.flatnonzero(latest.addresses != self._kept.addresses)
            self._others = self._differing.ctypes.data, len(self._differing)
        return self._others

    def _mark_all(self) -> None:
        """Take all pages for written, where nobody tells which ones were."""
        if not self._engine.cells[mc.CPU]:
            self._engine.page_cells[:] |= CODE
            _mark(self._engine, slice(None))

    def filled_pages(self) -> Cells:
        """The numbers of the pages that are not all zeros."""
        filled: Cells = np.flatnonzero(self._kept.numbers)
        return filled

    def contents(self, pages: Cells) -> Cells:
        """What some pages hold, 512 cells each."""
        return self._pool.contents(self._kept.numbers[pages])

    def differences(self) -> int:
        """How many pages of memory are not now as they were."""
        self._mark_all()
        return int(self._count_differing(*self._differing_from_latest()))

    def restore(self) -> int:
        """Restore memory; how many pages were copied."""
        self._mark_all()
        if not self._engine.cells[mc.CPU]:
            self._engine.flush_translations()
        if self.is_latest:
            return int(self._restore(0, 0))
        others = self._differing_from_latest()
        self._pool.latest = self._kept
        return int(self._restore(*others))


def _written(engine: UnicornEngine) -> Cells:
    """The log of pages that were written."""
    log = engine.watch_cells[WATCH_PAGES + engine.page_cells.size :]
    return log[: engine.watch_cells[WATCH_WRITTEN]]


def _mark(engine: UnicornEngine, pages: Cells | slice) -> None:
    """Mark pages as written, and log them."""
    engine.page_cells[pages] |= WRITTEN_PAGE
    marked = np.flatnonzero(engine.page_cells & WRITTEN_PAGE)
    engine.watch_cells[WATCH_WRITTEN] = len(marked)
    _written(engine)[:] = marked


def fill(engine: UnicornEngine, pages: Cells, contents: Cells) -> None:
    """Write these cells to some pages of an engine's memory, and drop their translated code."""
    engine.memory.reshape(-1, _CELLS)[pages] = contents
    _mark(engine, pages)


def clear(engine: UnicornEngine) -> None:
    """Clear all memory, and drop all translated code. Pages of zeros are not touched."""
    memory = engine.memory.reshape(-1, _CELLS)
    for first in range(0, len(memory), _CHUNK):
        some = memory[first : first + _CHUNK]
        if some.any():
            some[:] = 0
    _mark(engine, slice(None))
    engine.forget_code(0, memory.nbytes)
