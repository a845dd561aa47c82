"""Paging structures under a frame map: which frames are tables, at which levels, led to how often.

Guests keep their tables as they wrote them; the map (`paging.frame_map`) stops every write to one,
and each that no filter completes comes here. What has to stay true of every table:

- an entry of a last-level table leads to a frame of the guest's own, at any rights;
- an entry of an upper table leads to a large page or to a table, which is one here, too.

A link is an entry of an upper table that leads to a table, or the VMM's word that a root may be
loaded. A frame is a table as long as something links it. It may be one of several levels at once,
by self-mapping, so links count for a frame and a level.

A filter that lets links go unseen (¶80) leaves counts too high, never too low; `recount` mends
that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate.paging import frame_map as fm
from trapgate.vmm.direct.frames import FRAME_SIZE
from trapgate.vmm.direct.tables import Refusal

Bytes = NDArray[np.uint8]
Entries = NDArray[np.uint32] | NDArray[np.uint64]

Root = tuple[int, ...]
"""What CR3 leads to: one frame, or with PAE paging up to four page directories."""

P, PS = 1, 0x80
ADDRESS = 0xFF_FFFF_F000
"""Bits of an entry that name a frame, of 40 bits of physical address."""
_LEAF = frozenset((1,))
_NOWHERE: frozenset[int] = frozenset()


class Mode(NamedTuple):
    """A paging mode: of how many levels its tables are, in what entries.

    `width` is an entry's in bytes; `large_pages` says whether bit 7 of an upper entry means one.
    With `pointers` the root is no table but four pointers in registers.
    """

    levels: int
    width: int
    large_pages: bool = True
    pointers: bool = False


UNPAGED = Mode(0, 8)
TWO_LEVELS = Mode(2, 4)
PAE = Mode(2, 8, pointers=True)
FOUR_LEVELS = Mode(4, 8)


class _RefusedError(Exception):
    """On the way out of several links at once."""


class Links:
    """The tables of one guest, whose memory is the first `frames` frames of `memory`.

    `frame_map` has a byte a frame, and is kept true. Levels are counted from a last-level table, 1,
    up to `mode.levels`. What changes has to be settled with the processor before the guest runs
    on (`settle`).
    """

    def __init__(self, memory: Bytes, frame_map: Bytes, frames: int) -> None:
        self.mode = UNPAGED
        self.roots: set[Root] = set()
        self.linked = self.released = 0
        """How many tables came and went."""
        self._memory = memory
        self._map = frame_map
        self._frames = frames
        self._narrow: Entries = memory.view(np.uint32).reshape(-1, FRAME_SIZE // 4)
        self._wide: Entries = memory.view(np.uint64).reshape(-1, FRAME_SIZE // 8)
        self._levels: dict[int, frozenset[int]] = {}
        self._count: dict[tuple[int, int], int] = {}
        self._made: list[tuple[int, int]] = []
        """Links since an edit or a load began, to be undone if it is refused."""
        self._stale = False
        self._stored: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._levels)

    def levels_of(self, frame: int) -> frozenset[int]:
        """At which levels a frame is a table."""
        return self._levels.get(frame, _NOWHERE)

    def is_foreign(self, frame: int) -> bool:
        """Whether a frame is none of the guest's."""
        return frame >= len(self._map) or not self._map[frame] & fm.OWN

    def settle(self, flush: Callable[[], None], forget: Callable[[int, int], None]) -> None:
        """Have translations flushed and code of stored places forgotten, as far as needed."""
        if self._stale:
            self._stale = False
            flush()
        for address, size in self._stored:
            forget(address, size)
        self._stored.clear()

    # What the VMM asks for. Each gives None if it is done, or else why not.

    def set_mode(self, mode: Mode) -> None:
        """Another paging mode: no table is one any more."""
        if mode == self.mode:
            return
        for root in tuple(self.roots):
            self.drop_root(root)
        self._recount_if_any_left()
        self.mode = mode

    def load_root(self, root: Root) -> Refusal | None:
        """Let CR3 lead to `root`: all that it leads to is validated."""
        if root in self.roots:
            return None
        self._made.clear()
        try:
            for frame in root:
                self._link(frame, self.mode.levels)
        except _RefusedError as refused:
            self._undo()
            return Refusal(str(refused))
        self.roots.add(root)
        for frame in root:
            self._mark(frame)
        return None

    def drop_root(self, root: Root) -> None:
        """Let CR3 lead to `root` no more: it is validated again before it does."""
        self.roots.remove(root)
        for frame in root:
            self._unlink(frame, self.mode.levels)
            self._mark(frame)

    def let_go(self, frame: int, loaded: Root, *, recount: bool = False) -> bool:
        """Let roots go, but the loaded one, as far as they lead to `frame`; is it data now?

        That is always safe, for a root is validated when it is loaded again. `recount` says
        that counts may be too high.
        """
        # With PAE paging the processor loads what it finds to be directories of other roots.
        refusal = self.load_root(loaded)
        assert refusal is None, refusal
        if (frame,) in self.roots and (frame,) != loaded:
            self.drop_root((frame,))
        if self.levels_of(frame) and recount:
            self.recount()
        if self.levels_of(frame):
            for root in sorted(self.roots - {loaded}):
                if self.reaches(root, frame):
                    self.drop_root(root)
        return not self.levels_of(frame)

    def store(self, physical: int, data: bytes) -> Refusal | None:
        """Store `data` within one table: all of it, or nothing."""
        frame, start = physical >> 12, physical & FRAME_SIZE - 1
        table = self._table(frame)
        width = table.itemsize
        first, last = start // width, (start + len(data) - 1) // width
        old = table[first : last + 1].copy()
        at_bytes = self._memory[physical : physical + len(data)]
        at_bytes[:] = np.frombuffer(data, np.uint8)
        pairs = zip(old.tolist(), table[first : last + 1].tolist(), strict=True)
        changes = [(before, after) for before, after in pairs if before != after]
        levels = sorted(self._levels[frame], reverse=True)
        # What comes is linked at all levels before what went is let go: else a table that
        # is its own would be counted wrongly on the way.
        self._made.clear()
        try:
            for before, after in changes:
                for level in levels:
                    self._come(level, before, after)
        except _RefusedError as refused:
            table[first : last + 1] = old
            self._undo()
            return Refusal(str(refused))
        self._stored.append((physical, len(data)))
        for before, after in changes:
            for level in levels:
                if level > 1 and before & P and not self._is_same(before, after):
                    self._go(level, before)
        return None

    def recount(self) -> None:
        """Count links anew, from the roots: a filter may have let some go unseen."""
        top = self.mode.levels
        found = dict(Counter((frame, top) for root in self.roots for frame in root))
        tables = sorted({frame for root in self.roots for frame in root})
        for level in range(top, 1, -1):
            frames, counts = np.unique(self._led_to(tables), return_counts=True)
            tables = frames.tolist()
            found.update(zip(((t, level - 1) for t in tables), counts.tolist(), strict=True))
        gone = self._count.keys() - found.keys()
        self._count = found
        for frame, level in gone:
            self._forget(frame, level)

    def reaches(self, root: Root, frame: int) -> bool:
        """Whether a root leads to `frame` as a table."""
        tables, seen = list(root), set(root)
        for _ in range(self.mode.levels - 1):
            tables = np.unique(self._led_to(tables)).tolist()
            seen.update(tables)
        return frame in seen

    # One link.

    def _link(self, frame: int, level: int) -> None:
        known = self._levels.get(frame, _NOWHERE)
        if level in known:
            self._count[frame, level] += 1
            self._made.append((frame, level))
            return
        if frame >= self._frames or not self._map[frame] & fm.OWN:
            raise _RefusedError(f"frame {frame:#x}, a table of level {level}, is not the guest's")
        self._levels[frame] = known | {level}
        self._count[frame, level] = 1
        self._made.append((frame, level))
        self._mark(frame)
        self._stale = True
        self.linked += 1
        present = self._present(frame)
        if level == 1:
            targets = self._targets(present)
            if len(targets):
                foreign = targets[(self._byte_of(targets) & fm.OWN) == 0]
                if len(foreign):
                    raise _RefusedError(
                        f"table {frame:#x} maps frame {int(foreign[0]):#x}, which is not the "
                        "guest's"
                    )
            return
        for entry in present.tolist():
            self._come(level, 0, entry)

    def _unlink(self, frame: int, level: int) -> None:
        self._count[frame, level] -= 1
        if self._count[frame, level]:
            return
        del self._count[frame, level]
        self._forget(frame, level)
        if level > 1:
            for entry in self._present(frame).tolist():
                self._go(level, entry)

    def _undo(self) -> None:
        """Take the latest links back, and only those."""
        for frame, level in reversed(self._made):
            self._count[frame, level] -= 1
            if not self._count[frame, level]:
                del self._count[frame, level]
                self._forget(frame, level)
        self._made.clear()

    def _forget(self, frame: int, level: int) -> None:
        left = self._levels[frame] - {level}
        if left:
            self._levels[frame] = left
        else:
            del self._levels[frame]
        self._mark(frame)
        self._stale = True
        self.released += 1

    def _recount_if_any_left(self) -> None:
        if self._levels:
            self.recount()

    def _come(self, level: int, before: int, after: int) -> None:
        """An entry of a table of `level` becomes `after`."""
        if not after & P:
            return
        if level == 1:
            target = (after & ADDRESS) >> 12
            if target >= len(self._map) or not self._map[target] & fm.OWN:
                raise _RefusedError(f"frame {target:#x} is not the guest's")
        elif not self._is_large(after) and not (before & P and self._is_same(before, after)):
            self._link((after & ADDRESS) >> 12, level - 1)

    def _go(self, level: int, before: int) -> None:
        """An entry of a table of `level` > 1, which was present, is no more what it was."""
        if not self._is_large(before):
            self._unlink((before & ADDRESS) >> 12, level - 1)

    def _is_large(self, entry: int) -> bool:
        return bool(entry & PS) and self.mode.large_pages

    @staticmethod
    def _is_same(before: int, after: int) -> bool:
        """Whether two entries of an upper table lead to the same."""
        return bool(after & P) and (before ^ after) & (ADDRESS | PS) == 0

    # Tables.

    def _mark(self, frame: int) -> None:
        """The map's byte of a frame, by what it is used for."""
        levels = self._levels.get(frame)
        byte = fm.OWN
        if levels is not None:
            byte |= fm.TABLE
            if levels == _LEAF:
                byte |= fm.LEAF
            elif 1 in levels:
                byte |= fm.MIXED
        if self._is_root(frame):
            byte |= fm.ROOT
        self._map[frame] = byte

    def _is_root(self, frame: int) -> bool:
        """Whether CR3, or one of its pointers, may lead to a frame."""
        if self.mode.pointers:
            return self.mode.levels in self.levels_of(frame)
        return (frame,) in self.roots

    def _table(self, frame: int) -> Entries:
        table: Entries = self._wide[frame] if self.mode.width == 8 else self._narrow[frame]
        return table

    def _present(self, frame: int) -> Entries:
        table = self._table(frame)
        found: Entries = table[table & P == P]
        return found

    def _targets(self, entries: Entries) -> NDArray[np.int64]:
        return (entries.astype(np.int64) & ADDRESS) >> 12

    def _byte_of(self, frames: NDArray[np.int64]) -> Bytes:
        return np.where(frames < len(self._map), self._map[frames % len(self._map)], fm.FOREIGN)

    def _led_to(self, tables: Iterable[int]) -> NDArray[np.int64]:
        """The tables that upper ones lead to, each as often as it is led to."""
        whole = self._wide if self.mode.width == 8 else self._narrow
        entries = whole[list(tables)].ravel()
        entries = entries[entries & P == P]
        if self.mode.large_pages:
            entries = entries[entries & PS == 0]
        return self._targets(entries)
