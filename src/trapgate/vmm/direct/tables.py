"""Direct paging: one VM's page tables, used by the processor as they are (¶70, ¶76).

The guest's 32-bit tables of two levels hold machine addresses, and R/W is 0 in every entry that
would let the guest write to one of them, so each edit that no fault filter completes comes here.
It is carried out if it keeps this true of every table:

- a present entry leads to frames of this VM's own or to devices, and nowhere else;
- an entry of a directory leads to a page table or to a 4-MByte page;
- no way through the tables lets the guest write to a table.

For the first two edits are validated (`links`), for the last R/W is withheld (`withholding`), and
given back when the frame is a table no more. A frame is a table as long as a directory leads to
it, and a directory since CR3 was loaded with it, until the guest uses it for something else.

A fault filter completes edits that only take mappings and rights away. The VMM does not see them,
so it counts again (`recount`) before a count makes it keep a frame a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate.compiler.dialect import Cells, Rows
from trapgate.paging import frame_map as fm
from trapgate.vmm.direct import linking, withholding
from trapgate.vmm.direct.frames import FRAME_SIZE
from trapgate.vmm.direct.linking import PS, P
from trapgate.vmm.direct.links import TWO_LEVELS, Bytes, Links, Refusal, Root
from trapgate.vmm.direct.withholding import U, W
from trapgate.vmm.loaders.layout import RAM_HOLE

Words = NDArray[np.uint32]

ENTRIES = 1024
ACCESSED_AND_DIRTY = 0x60
_LINEAR = 0xFFFF_FFFF
_LONGEST = 16
"""Bytes: no instruction that tables are edited by stores more."""


class Fault(NamedTuple):
    """A page fault that is the guest's own: the linear address and the error code."""

    address: int
    error_code: int


class Leaf(NamedTuple):
    """Where an address leads: which word of memory says so last, the frame, P, W and U.

    `memory` are the rights that the processor finds, `guest` those that the guest has set. Both
    are 0 where nothing is mapped.
    """

    word: int
    frame: int
    memory: int
    guest: int


_NOWHERE = Leaf(0, 0, 0, 0)


class Layout(NamedTuple):
    """Where in machine memory what belongs to one VM is: numbers of frames.

    It has `own` of its own from `first` on. All below `guests` are some VM's, all up to `all`
    exist. Of the VMM's, `splits` from `tables` on stand in for 4-MByte pages of the guest's, and
    a byte for each that exists begins at `frame_map`.
    """

    first: int
    own: int
    guests: int
    all: int
    tables: int
    splits: int
    frame_map: int


class GuestTables:
    """What a VM maps, in `memory`, of which it has what `layout` says.

    `unseen` says whether filters may take entries away without an exit. Whoever asks for
    something here, granted or refused, has to `settle` it with the processor before the guest
    runs on.
    """

    def __init__(self, memory: Bytes, layout: Layout) -> None:
        self.unseen = False
        self.large_pages = False
        self.directory: int | None = None
        """What CR3 leads to, while the guest pages."""
        start = layout.frame_map * FRAME_SIZE
        frame_map = memory[start : start + layout.all]
        frame_map[:] = fm.FOREIGN
        frame_map[layout.first : layout.first + layout.own] = fm.OWN
        self.links = Links(memory, start, layout.all, layout.guests, devices=RAM_HOLE // FRAME_SIZE)
        self._memory = memory
        self._word = memoryview(memory.data).cast("I")
        self._own = range(layout.first, layout.first + layout.own)
        # As long as its longest row, which has a bit for each of a table's entries.
        book: Rows = np.zeros((withholding.BOOK_ROWS, layout.all * 16), np.int64)
        self._withheld: Cells = book[withholding.WITHHELD]
        self._held: Cells = book[withholding.HELD][: (layout.all >> 6) + 1]
        self._changed: Cells = book[withholding.CHANGED][: len(self._held)]
        self._news: Cells = book[withholding.CHANGED][-1:]
        self._bits, self._altered = memoryview(self._withheld.data), memoryview(self._held.data)
        self._splits: Cells = book[withholding.SPLITS][: 2 * layout.splits]
        own = slice(layout.tables * FRAME_SIZE, (layout.tables + layout.splits) * FRAME_SIZE)
        self._vmms = memory[own]
        state, mem, counts = self.links.arrays
        state[linking.VMMS_TABLES], state[linking.SPLIT_TABLES] = layout.tables, layout.splits
        self._shown = state, mem, book
        self._reviewed = state, mem, counts, book
        self._turns = 0
        self._asked = 0
        """As many of `links.turns` as have been looked at, and told of."""
        self._stored: list[tuple[int, int]] = []
        """Address and size of what was stored for the guest, of which there may be code."""

    def keep(self) -> Callable[[], None]:
        """What is known of the tables now: a way back to that, the guest's memory aside."""
        links = self.links.keep()
        mine = {
            name: getattr(self, name)
            for name in ("unseen", "large_pages", "directory", "_turns", "_asked")
        }
        stored = list(self._stored)
        arrays: list[NDArray[Any]] = [
            *(self._withheld, self._held, self._changed, self._news, self._splits, self._vmms)
        ]
        then = [array.copy() for array in arrays]

        def back() -> None:
            links()
            for name, value in mine.items():
                setattr(self, name, value)
            self._stored = list(stored)
            for array, content in zip(arrays, then, strict=True):
                array[:] = content

        return back

    def settle(self, flush: Callable[[], None], forget: Callable[[int, int], None]) -> None:
        """Flush translations and drop translated code of stored places, as far as needed."""
        self._review()
        self.links.settle(flush, forget)
        if self._news[0]:
            for frame in np.flatnonzero(
                np.unpackbits(self._changed.view(np.uint8), bitorder="little")
            ):
                forget(int(frame) * FRAME_SIZE, FRAME_SIZE)
            self._changed[:] = self._news[:] = 0
        for address, size in self._stored:
            forget(address, size)
        self._stored.clear()

    def _review(self) -> None:
        """Withhold and give back, if frames have become tables or are none any more."""
        if self.links.turns != self._turns:
            self._turns = self.links.turns
            withholding.review(*self._reviewed)

    # What the VMM asks for. Each gives None if it is done, or else why not.

    @property
    def roots(self) -> set[Root]:
        """The directories, as roots, that CR3 may be loaded with."""
        return self.links.roots

    def has_turned(self) -> bool:
        """Whether frames have become tables or ceased to be some, since this was last asked."""
        before, self._asked = self._asked, self.links.turns
        return before != self._asked

    def stand_ins(self) -> list[int]:
        """The frames of the VMM's tables that stand in for 4-MByte pages, in use or not."""
        first = int(self.links.arrays[0][linking.VMMS_TABLES])
        return list(range(first, first + len(self._splits) // 2))

    def replaced(self) -> list[tuple[int, int]]:
        """The words of memory that lead to those in use, and what the guest wrote there."""
        places, entries = self._splits[::2].tolist(), self._splits[1::2].tolist()
        return [(place - 1, entry) for place, entry in zip(places, entries, strict=True) if place]

    def load_cr3(self, cr3: int) -> Refusal | None:
        """Make the directory at `cr3` the current one."""
        frame = cr3 >> 12
        refusal = self.links.load_root((frame,))
        if refusal is None:
            self.directory = frame
        self._review()
        return refusal

    def forget_all(self) -> None:
        """Make all tables data again: the guest has no paging, or has ended."""
        self.directory = None
        for root in tuple(self.links.roots):
            self.links.drop_root(root)
        self.links.recount()
        self._review()

    def set_large_pages(self, wanted: bool) -> Refusal | None:
        """CR4.PSE: what bit 7 of a directory's entry means, so all is validated anew."""
        if wanted == self.large_pages and self.links.mode.levels:
            return None
        directory = self.directory
        refusal = self._change_mode(wanted, directory)
        if refusal is not None:
            back = self._change_mode(not wanted, directory)
            assert back is None, back
        return refusal

    def _change_mode(self, large_pages: bool, directory: int | None) -> Refusal | None:
        self.forget_all()
        self.large_pages = large_pages
        self.links.set_mode(TWO_LEVELS._replace(large_pages=large_pages))
        return None if directory is None else self.load_cr3(directory << 12)

    def is_table(self, frame: int) -> bool:
        """Whether the frame is a page table or page directory."""
        return self.links.is_table(frame)

    def drop_roots_to(self, frame: int) -> bool:
        """Drop directories that are not loaded and lead to `frame`; is it data now?

        That is always safe, for a directory is validated when it is loaded again.
        """
        if self.directory is None:
            return not self.is_table(frame)
        loaded = (self.directory,)
        if self.unseen:
            self.links.recount()
        gone = not self.is_table(frame) or (
            not self.links.reaches(loaded, frame) and self.links.drop_roots_to(frame, loaded)
        )
        self._review()
        return gone

    def look_up(self, linear: int) -> Leaf:
        """Where the current directory leads."""
        if self.directory is None:
            return _NOWHERE
        upper = self.directory << 10 | linear >> 22
        pde = self._word[upper]
        rights = pde | self._withheld_at(upper)
        if not pde & P:
            return _NOWHERE
        if pde & PS and self.large_pages:
            frame = pde >> 12 & ~0x3FF | linear >> 12 & 0x3FF
            return Leaf(upper, frame, pde & (P | W | U), rights & (P | W | U))
        lower = pde >> 12 << 10 | linear >> 12 & 0x3FF
        pte = self._word[lower]
        if not pte & P:
            return _NOWHERE
        rights &= pte | self._withheld_at(lower)
        return Leaf(lower, pte >> 12, pde & pte & (P | W | U), rights & (P | W | U))

    def _withheld_at(self, word: int) -> int:
        """R/W of an entry, if it is withheld."""
        return self._bits[word >> 6] >> (word & 63) << 1 & W

    def shown(self, frame: int, linear: int) -> Callable[[], None] | None:
        """Let entries that an instruction may read at `linear`, in a table, be what the guest
        wrote; the way back, if they are otherwise.
        """
        if frame not in self._own or not self._is_altered(frame) or not self.is_table(frame):
            return None
        first = linear >> 2 & ENTRIES - 1
        there = frame, first, min(_LONGEST // 4, ENTRIES - first)
        withholding.show(*self._shown, *there)
        return lambda: withholding.review_some(*self._reviewed, *there)

    def _is_altered(self, frame: int) -> bool:
        """Whether a table may hold other entries than the guest wrote."""
        return bool(self._altered[frame >> 6] >> (frame & 63) & 1)

    def store(
        self, linear: int, data: bytes, *, write_protect: bool, user: bool = False
    ) -> Refusal | Fault | None:
        """Carry out a store at `linear`, all of it or nothing.

        `write_protect` is the guest's own idea of CR0.WP. The processor would set accessed
        and dirty bits, so they are set.
        """
        wanted = P | W * (write_protect or user) | U * user
        room = FRAME_SIZE - (linear & FRAME_SIZE - 1)
        parts = [(linear, data)]
        if len(data) > room:
            parts = [(linear, data[:room]), (linear + room & _LINEAR, data[room:])]
        leaves = [self.look_up(start) for start, _ in parts]
        for (start, _), leaf in zip(parts, leaves, strict=True):
            if wanted & ~leaf.guest:
                return Fault(start, leaf.guest & P | W | U * user)
            if leaf.frame not in self._own:
                return Refusal(f"frame {leaf.frame:#x} is not the guest's")
        done: list[tuple[int, bytes]] = []
        for (start, part), leaf in zip(parts, leaves, strict=True):
            address = leaf.frame << 12 | start & FRAME_SIZE - 1
            before = self._memory[address : address + len(part)].tobytes() if parts[1:] else b""
            refusal = self._store(address, part)
            if refusal is not None:
                for at, old in reversed(done):
                    back = self._store(at, old)
                    assert back is None, back
                return refusal
            done.append((address, before))
        for leaf in leaves:
            entry = self._word[leaf.word]
            if entry & P and entry & ACCESSED_AND_DIRTY != ACCESSED_AND_DIRTY:
                self._word[leaf.word] |= ACCESSED_AND_DIRTY
                self._stored.append((leaf.word << 2, 4))
        return None

    def _store(self, address: int, data: bytes) -> Refusal | None:
        """Store within a frame of the guest's."""
        if self.is_table(address >> 12):
            return self.edit(address, data)
        self._memory[address : address + len(data)] = np.frombuffer(data, np.uint8)
        self._stored.append((address, len(data)))
        return None

    def edit(self, address: int, data: bytes) -> Refusal | None:
        """Store `data` at a machine address inside one table of this VM's."""
        frame, words = address >> 12, range(address >> 2, (address + len(data) - 1 >> 2) + 1)
        there = frame, words.start & ENTRIES - 1, len(words)
        altered = self._is_altered(frame)
        if altered:
            withholding.show(*self._shown, *there)
        refusal = self.links.store(address, data)
        if altered or any(self._word[word] & W for word in words):
            withholding.review_some(*self._reviewed, *there)
            if refusal is None:
                for word in words:
                    if self._withheld_at(word):
                        # Perhaps what it leads to is a table of the past.
                        self.drop_roots_to(self._word[word] >> 12)
        self._review()
        return refusal
