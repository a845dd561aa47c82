"""Paging structures under a frame map: which frames are tables, at which levels, led to how often.

Guests keep their tables as they wrote them; the map (`paging.frame_map`) stops every write to one,
and each that no filter completes comes here. What has to stay true of every table:

- an entry of an upper table leads to a large page or to a table, which is one here, too;
- in a last-level table with LEAF in the map, where filters complete, entries lead to frames of
  the guest's own, at any rights. In another, which was filled before it was linked, say, the
  walk stops what leads elsewhere (FOREIGN) as it does for large pages.

A link is an entry of an upper table that leads to a table, or the VMM's word that a root may be
loaded. A frame is a table as long as something links it. It may be one of several levels at once,
by self-mapping, so links count for a frame and a level (`linking`).

A filter that lets links go unseen (¶80) leaves counts too high, never too low; `recount` mends
that. Where links also come unseen, to tables that are known, nothing is let go but by `recount`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate.compiler.dialect import Cells
from trapgate.decision.frame_filters import ALL_STALE
from trapgate.paging import frame_map as fm
from trapgate.vmm.direct import linking
from trapgate.vmm.direct.frames import FRAME_SIZE

Bytes = NDArray[np.uint8]

Root = tuple[int, ...]
"""What CR3 leads to: one frame, or with PAE paging up to four page directories."""

_LEVELS = 4
_NOWHERE: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something that the guest wants of its page tables is not done."""

    reason: str


class Mode(NamedTuple):
    """A paging mode: of how many levels its tables are, in what entries.

    `width` is an entry's in bytes; `large_pages` says whether bit 7 of an upper entry means one.
    With `pointers` the root is not a table but four pointers in registers.
    """

    levels: int
    width: int
    large_pages: bool = True
    pointers: bool = False


UNPAGED = Mode(0, 8)
TWO_LEVELS = Mode(2, 4)
PAE = Mode(2, 8, pointers=True)
FOUR_LEVELS = Mode(4, 8)


class Links:
    """The tables of one guest, whose memory is the first `frames` frames of `memory`.

    The frame map, a byte a frame for `map_frames`, is at `map_address` in `memory`, and is kept
    true; `devices` is `linking.DEVICES`. Levels are
    counted from a last-level table, 1, up to `mode.levels`. What changes has to be settled with
    the processor before the guest runs on (`settle`).
    """

    def __init__(
        self,
        memory: Bytes,
        map_address: int,
        map_frames: int,
        frames: int,
        *,
        devices: int = 0,
    ) -> None:
        self.mode = UNPAGED
        self.roots: set[Root] = set()
        self.counts: Cells = np.zeros(frames * _LEVELS, np.int64)
        self._fresh: Cells = np.zeros_like(self.counts)
        self._memory = memory
        self._cells: Cells = memory.view(np.int64)
        self._map: Bytes = memory[map_address : map_address + map_frames]
        self._frames = frames
        self._state: Cells = np.zeros(linking.STATE_CELLS, np.int64)
        self._state[: linking.FRAMES + 1] = map_address, map_frames, frames
        self._state[linking.DEVICES] = devices
        self._tables = self._state, self._cells, self.counts
        self._stored: list[tuple[int, int]] = []
        self._processor_counts = False
        self._told: Cells = np.zeros((frames + 7) // 8 * 2, np.int64)
        self._is_told = False
        """Whether the processor may have changed links since it was told of them."""

    def __len__(self) -> int:
        """How many frames are tables."""
        return int(np.count_nonzero(self._map[: self._frames] & fm.TABLE))

    def levels_of(self, frame: int) -> frozenset[int]:
        """At which levels a frame is a table."""
        self._catch_up()
        if frame >= self._frames or not self._map[frame] & fm.TABLE:
            return _NOWHERE
        counts = self.counts[frame * _LEVELS : (frame + 1) * _LEVELS].tolist()
        return frozenset(level for level, count in enumerate(counts, 1) if count)

    def is_table(self, frame: int) -> bool:
        """Whether a frame is a table."""
        return frame < self._frames and bool(self._map[frame] & fm.TABLE)

    def is_foreign(self, frame: int) -> bool:
        """Whether a frame is none of the guest's."""
        return frame >= len(self._map) or not self._map[frame] & fm.OWN

    @property
    def arrays(self) -> tuple[Cells, Cells, Cells]:
        """What compiled functions work on: `state`, `mem` and `counts`, see `linking`."""
        return self._tables

    @property
    def turns(self) -> int:
        """How often a frame has become a table of some level, or has ceased to be one."""
        return int(self._state[linking.LINKED] + self._state[linking.RELEASED])

    def keep(self) -> Callable[[], None]:
        """What is known of the tables now, the map included: a way back to that."""
        self._catch_up()
        mode, roots, stored = self.mode, set(self.roots), list(self._stored)
        arrays: tuple[NDArray[Any], ...] = (
            self.counts,
            self._state,
            self._map[: self._frames],
        )
        then = [array.copy() for array in arrays]

        def back() -> None:
            self.mode, self._is_told = mode, False
            self.roots, self._stored = set(roots), list(stored)
            for array, content in zip(arrays, then, strict=True):
                array[:] = content

        return back

    def allow_unseen_links(self, unseen: bool) -> None:
        """Say whether a filter lets entries come to lead to known tables."""
        if bool(self._state[linking.UNSEEN]) != unseen:
            self._state[linking.UNSEEN] = unseen
            self.recount()

    def let_processor_count(self, counts: bool) -> None:
        """Say whether the processor carries what filters complete over to the map."""
        if self._processor_counts != counts:
            self._catch_up()
            self._processor_counts = counts

    def _catch_up(self) -> None:
        """Learn what the processor has changed."""
        if not self._is_told:
            return
        self._is_told = False
        if not linking.catch_up(*self._tables, self._told):
            self.recount()

    def unprotect_last_level(self, is_open: bool) -> bool:
        """Say whether a filter lets any frame be a table of the last level; has that changed?

        Then no root is validated any more.
        """
        if bool(self._state[linking.OPEN]) == is_open:
            return False
        for root in tuple(self.roots):
            self.drop_root(root)
        self.recount()
        self._state[linking.OPEN] = is_open
        return True

    def settle(
        self,
        flush: Callable[[], None],
        forget: Callable[[int, int], None],
        forget_tables: Callable[[], None] | None = None,
    ) -> None:
        """Flush translations and drop translated code of stored places, as far as needed.

        `forget_tables` is called if all that has to go is what the processor caches of paging
        structures; without it `flush` is.
        """
        stale, self._state[linking.STALE] = int(self._state[linking.STALE]), 0
        if stale == ALL_STALE or (stale and forget_tables is None):
            flush()
        elif stale and forget_tables is not None:
            forget_tables()
        for address, size in self._stored:
            forget(address, size)
        self._stored.clear()
        if self._processor_counts and not self._is_told:
            linking.publish(*self._tables, self._told)
            self._is_told = True

    # What the VMM asks for. Each gives None if it is done, or else why not.

    def set_mode(self, mode: Mode) -> None:
        """Another paging mode: no table is one any more."""
        self._catch_up()
        if mode == self.mode:
            return
        for root in tuple(self.roots):
            self.drop_root(root)
        if len(self):
            self.recount()
        self.mode = mode
        self._state[linking.LEVELS : linking.POINTERS + 1] = mode

    def load_root(self, root: Root) -> Refusal | None:
        """Make `root` valid for CR3: everything that it leads to is validated."""
        self._catch_up()
        if root in self.roots:
            return None
        for n, frame in enumerate(root):
            if not linking.link_root(*self._tables, frame):
                refusal = self._refusal()
                self._unlink(root[: n + 1])
                return refusal
        self.roots.add(root)
        self._mark(root)
        return None

    def drop_root(self, root: Root) -> None:
        """Make `root` invalid for CR3: it is validated again before it is loaded."""
        self._catch_up()
        self.roots.remove(root)
        self._mark(root)
        if not self._state[linking.UNSEEN]:
            self._unlink(root)

    def drop_roots_to(self, frame: int, loaded: Root, *, recount: bool = False) -> bool:
        """Drop roots, except the loaded one, that lead to `frame`; is it data now?

        That is always safe, for a root is validated when it is loaded again. `recount` says
        that counts may be too high.
        """
        # With PAE paging the processor loads what it finds to be directories of other roots.
        refusal = self.load_root(loaded)
        assert refusal is None, refusal
        if (frame,) in self.roots and (frame,) != loaded:
            self.drop_root((frame,))
        if recount and self.is_table(frame):
            self.recount()
        if self.is_table(frame):
            for root in sorted(self.roots - {loaded}):
                if self.reaches(root, frame):
                    self.drop_root(root)
            if self._state[linking.UNSEEN]:
                self.recount()
        return not self.is_table(frame)

    def roots_in_use(self) -> set[Root]:
        """The roots with a present entry in their lower half, which is user mode's."""
        parts = [(root, frame) for root in self.roots for frame in root[: (len(root) + 1) // 2]]
        half = 1 if self.mode.pointers else 2
        used = np.array([frame for _, frame in parts], np.int64)
        linking.find_used(self._state, self._cells, used, half)
        return {root for (root, _), found in zip(parts, used.tolist(), strict=True) if found}

    def store(self, physical: int, data: bytes) -> Refusal | None:
        """Store `data` within one table: all of it, or nothing."""
        self._catch_up()
        frame, start = physical // FRAME_SIZE, physical % FRAME_SIZE
        width = self.mode.width
        first, last = start // width, (start + len(data) - 1) // width
        entries = slice(frame * FRAME_SIZE + first * width, frame * FRAME_SIZE + (last + 1) * width)
        old = self._memory[entries].copy()
        before = old.view(np.int64 if width == 8 else np.uint32).astype(np.int64)
        self._memory[physical : physical + len(data)] = np.frombuffer(data, np.uint8)
        if not linking.edit(*self._tables, frame, first, before):
            self._memory[entries] = old
            return self._refusal()
        self._stored.append((physical, len(data)))
        several, self._state[linking.SEVERAL] = int(self._state[linking.SEVERAL]), 0
        if self._state[linking.UNSEEN] and several:
            # The other level may be one that the table had before. That it has it no more can be
            # said of all tables or of none: one that is known may lead to it at that level.
            self.recount()
        return None

    def recount(self) -> None:
        """Count links anew, from the roots: a filter may have let some go unseen."""
        self._catch_up()
        self._tally(frame for root in self.roots for frame in root)
        linking.replace(*self._tables, self._fresh)

    def reaches(self, root: Root, frame: int) -> bool:
        """Whether a root leads to `frame` as a table."""
        self._tally(root)
        return bool(self._fresh[frame * _LEVELS : (frame + 1) * _LEVELS].any())

    # Parts of these.

    def _tally(self, tops: Iterable[int]) -> None:
        """Count all links from these top tables on, in `_fresh`."""
        frames = np.fromiter(tops, np.int64)
        linking.tally_roots(self._state, self._cells, self._fresh, frames)

    def _unlink(self, root: Root) -> None:
        for frame in root:
            linking.unlink_root(*self._tables, frame)

    def _mark(self, root: Root) -> None:
        """Record in the map whether CR3 may be loaded with a root that is one frame."""
        if self.mode.pointers:
            return
        (frame,) = root
        if root in self.roots:
            self._map[frame] |= fm.ROOT
        else:
            self._map[frame] &= ~fm.ROOT & 0xFF

    def _refusal(self) -> Refusal:
        """What may not be, in words."""
        level, frame = self._state[linking.REFUSED : linking.REFUSED_FRAME + 1].tolist()
        if level == linking.MAPPED:
            return Refusal(f"frame {frame:#x} is not the guest's")
        return Refusal(f"frame {frame:#x}, a table of level {level}, is not the guest's")
