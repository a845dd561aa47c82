"""A hostile guest under a frame map, on a processor of a few lines that forgets nothing by itself.

Four levels of tables, or PAE paging's two below four pointers, pages of 4 KiB and large ones.
Its TLB and its paging-structure caches keep everything until they are told to forget. What
may not happen: a store to a table that neither the filters nor the VMM have let through, an
access to a frame of others, and a walk through a frame that is no table. Filters and VMM are
the package's; the walk and what is checked are not.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np

from trapgate.decision import frame_filters as ff
from trapgate.decision.fault_filters import EMPTY_TABLE, KNOWN_TABLE, NO_LINK, OWN_FRAME, OWN_TABLE
from trapgate.decision.self_map import ABSENT as NO_ENTRY
from trapgate.decision.self_map import DIRECTORY, PTE
from trapgate.paging import frame_map as fm
from trapgate.sdm import cells as f
from trapgate.sdm.fields import Field
from trapgate.vmm.direct.links import FOUR_LEVELS, Links, Mode, Root
from trapgate.vmm.direct.root_prediction import RootPredictor

P, W, A, D, PS = 1, 2, 0x20, 0x40, 0x80
ADDRESS = 0xFF_FFFF_F000
FRAMES, OWN = 48, 36
POINTERS = 9
"""A frame that begins with pointers of PAE paging."""
"""Frames, and how many of them are the guest's; the map lies in the last."""
LARGE = 4
"""Frames of a large page, by the model's own rule."""
PARAGRAPH_80 = 3
ABSENT, RESERVED, READ_ONLY, FOREIGN, PROTECTED = (
    "absent",
    "reserved",
    "read-only",
    "foreign",
    "map",
)


class Model:
    """One guest, and everything that it does from a seed."""

    def __init__(
        self,
        seed: int,
        fault_filter: int,
        frame_filters: int,
        mode: Mode = FOUR_LEVELS,
        *,
        tidy: bool = False,
        restless: bool = False,
    ) -> None:
        self.mode = mode
        self.tidy, self.restless = tidy, restless
        """Whether the guest gives each table one level, so that the processor counts all links;
        and whether it makes and loads many roots, in pairs, and empties their lower halves."""
        self.random = random.Random(seed)
        self.unseen = fault_filter == PARAGRAPH_80 or bool(
            frame_filters & (KNOWN_TABLE | EMPTY_TABLE)
        )
        self.open = bool(frame_filters & OWN_TABLE)
        self.counted = bool(frame_filters & EMPTY_TABLE)
        self.bytes = np.zeros(FRAMES * 4096, np.uint8)
        self.words = self.bytes.view(np.uint64).reshape(-1, 512)
        self.cells = self.bytes.view(np.int64)
        self.map = self.bytes[(FRAMES - 1) * 4096 :][:FRAMES]
        self.map[:OWN] = fm.OWN
        self.map[OWN:] = fm.FOREIGN
        self.v = np.zeros(len(Field), np.int64)
        self.v[f.GUEST_CR4] = 0x20
        self.v[f.FRAME_MAP_ADDRESS], self.v[f.FRAME_MAP_LENGTH] = (FRAMES - 1) * 4096, FRAMES
        self.v[f.FAULT_FILTER], self.v[f.FRAME_FILTERS] = fault_filter, frame_filters
        self.links = Links(self.bytes, (FRAMES - 1) * 4096, FRAMES, OWN)
        self.prediction = RootPredictor(self.links)
        self.tlb: dict[int, tuple[int, bool]] = {}
        self.caches: dict[tuple[int, int], int] = {}
        self.done: Counter[str] = Counter()
        # A self-mapped root, a way down to one table, and in it all frames of the guest's.
        words = self.words
        words[0][1] = 0 if tidy else 0 << 12 | P | W
        if mode is FOUR_LEVELS:
            words[0][0], words[1][0] = 1 << 12 | P | W, 2 << 12 | P | W
            words[2][0] = 3 << 12 | P | W
        else:
            words[0][0] = 3 << 12 | P | W
            words[POINTERS][:3] = 0 << 12 | P, 0 << 12 | P, 1 << 12 | P
        words[3][:OWN] = [n << 12 | P | W for n in range(OWN)]
        self.root: Root = ()
        """What CR3 leads to: each pointer's frame, or -1 for none."""
        self.links.let_processor_count(self.counted)
        self.links.allow_unseen_links(frame_filters & (KNOWN_TABLE | EMPTY_TABLE) == KNOWN_TABLE)
        self.links.unprotect_last_level(self.open)
        self.links.set_mode(mode)
        self.load_cr3(0 if mode is FOUR_LEVELS else POINTERS)
        self.settle()

    @property
    def loaded(self) -> Root:
        """The root as the VMM finds it in the processor."""
        return tuple(frame for frame in self.root if frame >= 0)

    def settle(self) -> None:
        self.links.settle(self.forget, lambda address, size: None, self.caches.clear)

    def forget(self) -> None:
        self.tlb.clear()
        self.caches.clear()

    # The processor.

    def translate(self, page: int, *, write: bool) -> tuple[int, str]:
        """The frame of a page, and why it cannot be accessed or nothing."""
        if page in self.tlb:
            frame, writable = self.tlb[page]
            if writable or not write:
                return frame, ""
            del self.tlb[page]
        level, table = self.mode.levels, self.root[page >> 18 & 3 if self.mode.pointers else 0]
        if table < 0:
            return 0, ABSENT
        for below in range(1, level):
            if (below, page >> 9 * below) in self.caches:
                level, table = below, self.caches[below, page >> 9 * below]
                break
        way = []
        rights = W
        while True:
            if level == 1 and self.open:
                assert table < OWN, f"a walk through {table}, which is not the guest's"
            else:
                assert self.map[table] & fm.TABLE, f"a walk through {table}, which is no table"
            n = page >> 9 * (level - 1) & 511
            entry = int(self.words[table][n])
            if not entry & P:
                return 0, ABSENT
            way.append((table, n))
            rights &= entry
            frame = (entry & ADDRESS) >> 12
            if level == 1 or (entry & PS and level == 2):
                break
            if entry & PS:
                return 0, RESERVED
            level, table = level - 1, frame
            self.caches[level, page >> 9 * level] = table
        if level == 2:
            frame = (frame & -LARGE) + (page & 511) % LARGE
        if write and not rights:
            return 0, READ_ONLY
        byte = int(self.map[frame]) if frame < FRAMES else fm.FOREIGN
        if byte & fm.FOREIGN:
            return 0, FOREIGN
        if write and byte & fm.TABLE:
            return frame, PROTECTED
        for table, n in way:
            self.words[table][n] |= np.uint64(A)
        table, n = way[-1]
        if write:
            self.words[table][n] |= np.uint64(D)
        dirty = bool(int(self.words[table][n]) & D)
        self.tlb[page] = frame, bool(rights) and dirty and not byte & fm.TABLE
        return frame, ""

    def write(self, page: int, n: int, value: int) -> None:
        """Store an entry."""
        frame, why = self.translate(page, write=True)
        if not why:
            assert self.map[frame] & fm.OWN, "a store to others"
            assert not self.map[frame] & fm.TABLE, "an unseen store to a table"
            self.words[frame][n] = value
        elif why == PROTECTED:
            why = self.judge(frame, n, value)
        self.done[why or "data"] += 1

    def judge(self, frame: int, n: int, value: int) -> str:
        """A store to a table: to the filters, and then to the VMM."""
        byte = int(self.map[frame])
        kind = NO_ENTRY if byte & fm.MIXED else PTE if byte & fm.LEAF else DIRECTORY
        old = int(self.words[frame][n])
        if self.tidy and kind == DIRECTORY and value & P and not self.is_tidy(byte, value):
            return "avoided"
        if kind != NO_ENTRY and ff.filter_of(self.v, self.cells, byte, kind, value, old):
            stale = ff.follow_links(self.v, self.cells, kind, frame << 12 | n << 3, 8, value)
            self.words[frame][n] = value
            if stale:
                self.caches.clear()
            if stale == ff.ALL_STALE:
                self.tlb.clear()
            return "completed"
        links = self.links
        if self.counted:
            links.levels_of(frame)
            assert links.counts.tolist() == self.counted_anew(), "the VMM's counts are not exact"
        chance = self.random.random()
        if self.unseen and chance < 0.3:
            links.recount()
        elif chance < 0.3 and (frame not in self.loaded or self.mode.pointers):
            self.prediction.reused(frame, self.loaded)
            links.drop_roots_to(frame, self.loaded)
        else:
            refusal = links.store(frame << 12 | n << 3, value.to_bytes(8, "little"))
            self.settle()
            return "edited" if refusal is None else "refused"
        self.settle()
        return "let go"

    def is_tidy(self, byte: int, value: int) -> bool:
        """Whether an entry of an upper table with this byte gives no table a second level."""
        to = (value & ADDRESS) >> 12
        below = int(self.map[to]) if to < FRAMES else 0
        level = byte >> fm.LEVEL
        wanted = fm.TABLE | fm.LEAF if level == 1 else fm.TABLE | (level - 1) << fm.LEVEL
        return not below & fm.TABLE or below & ~(fm.OWN | fm.ROOT) == wanted

    def counted_anew(self) -> list[int]:
        """Four cells a frame: how many links lead to it at each level, by nothing but memory."""
        counts = [0] * (4 * OWN)

        def count(frame: int, level: int) -> None:
            if level == 1 and self.open:
                return
            counts[frame * 4 + level - 1] += 1
            if counts[frame * 4 + level - 1] == 1 and level > 1:
                for entry in self.words[frame].tolist():
                    if entry & P and not entry & PS:
                        count((entry & ADDRESS) >> 12, level - 1)

        for root in self.links.roots:
            for frame in root:
                count(frame, self.mode.levels)
        return counts

    def load_cr3(self, frame: int) -> None:
        """MOV to CR3: without an exit if the map has it as a root."""
        root: Root = (frame,)
        if self.mode.pointers:
            words = self.words[frame][:4].tolist()
            root = tuple((word & ADDRESS) >> 12 if word & P else -1 for word in words)
        present = [frame for frame in root if frame >= 0]
        known = all(frame < FRAMES and self.map[frame] & fm.ROOT for frame in present)
        if not known and self.links.load_root(tuple(present)) is not None:
            self.settle()
            return
        self.root = root
        if not known:
            self.prediction.loaded(self.loaded)
        self.done["loaded"] += 1
        self.forget()
        self.settle()

    def step(self) -> None:
        """Something at random."""
        r = self.random
        if self.restless and r.random() < 0.4:
            self.try_roots()
            return
        small = r.choice((0, 0, 1, 2))
        page = r.choice(
            (
                r.randrange(OWN),
                r.randrange(OWN),
                small << 9 | r.randrange(4),
                small << 18 | r.choice((0, 1)) << 9 | r.randrange(4),
                1 << 27 | r.choice((0, 1)) << 18 | r.choice((0, 1)) << 9 | r.randrange(4),
            )
        )
        what = r.random()
        if what < 0.75:
            n = r.choice((0, 1, 2, 3, r.randrange(OWN), r.randrange(512)))
            target = r.choice((r.randrange(FRAMES), r.randrange(OWN), r.randrange(10))) << 12
            bits = r.choice((P | W, P | W, P, P | W | PS))
            value = r.choice((0, 0x1000, r.getrandbits(16), *[target | bits] * 4))
            if n or value & P or r.random() < 0.1:
                self.write(page, n, value)
        elif what < 0.9:
            frame, why = self.translate(page, write=False)
            assert why or self.map[frame] & fm.OWN, "a load from others"
        elif what < 0.95:
            # INVLPG.
            self.tlb.pop(page, None)
            self.caches.clear()
        else:
            usual = POINTERS if self.mode.pointers else 0
            frame = r.choice((usual, usual, r.randrange(OWN)))
            if not (self.tidy and self.map[frame] & (fm.TABLE | fm.ROOT) == fm.TABLE):
                self.load_cr3(frame)

    def try_roots(self) -> None:
        """Copy the first root to a frame of data or take user mode's part out of one; load one."""
        r = self.random
        frame = r.choice(
            (*range(10, 20), *(known ^ 1 for root in self.links.roots for known in root[:1]))
        )
        if self.mode.pointers:
            words = self.words[POINTERS][:4]
            directories = [known << 12 | P for root in self.links.roots for known in root]
            n, pointer = r.randrange(4), r.choice((0, 0, frame << 12 | P, *directories))
            if self.map[POINTERS] & fm.TABLE:
                self.judge(POINTERS, n, pointer)
            else:
                words[n] = pointer
            if frame < OWN and self.map[frame] & fm.TABLE:
                self.judge(frame, 0, 0)
            elif frame < OWN:
                self.words[frame][0] = 3 << 12 | P | W
            frame = POINTERS
        elif frame < OWN and not self.map[frame] & fm.TABLE:
            self.words[frame][:] = 0
            self.words[frame][r.choice((0, 0, 300))] = r.choice((0, 1 << 12 | P | W))
            self.words[frame][301] = 1 << 12 | P | W
        elif frame < OWN and r.random() < 0.3:
            self.judge(frame, 0, r.choice((0, 0x5000, 1 << 12 | P | W)))
            return
        if not self.map[POINTERS] & fm.TABLE or not self.mode.pointers:
            self.load_cr3(frame)

    def check(self) -> None:
        """Walk everything from the roots, by nothing but memory."""
        seen: set[tuple[int, int]] = set()
        links: Counter[int] = Counter()
        ahead = [
            (frame, self.mode.levels) for root in (*self.links.roots, self.loaded) for frame in root
        ]
        while ahead:
            frame, level = ahead.pop()
            if (frame, level) in seen:
                continue
            if level == 1 and self.open:
                assert frame < OWN, f"{frame} is a table, and not the guest's"
                continue
            seen.add((frame, level))
            assert self.map[frame] & fm.TABLE, f"{frame} is not protected"
            for entry in self.words[frame].tolist():
                to = (entry & ADDRESS) >> 12
                if not entry & P:
                    continue
                if level == 1:
                    leaf = self.map[frame] & fm.LEAF
                    assert to < OWN or not leaf, f"{frame} maps {to}, which is not the guest's"
                elif not entry & PS:
                    assert to < OWN, f"{frame} leads to {to}, which is not the guest's"
                    ahead.append((to, level - 1))
                    links[to] += 1 if level > 2 or not self.open else 0
        tables = {frame for frame, _ in seen}
        told = self.bytes[(FRAMES - 1) * 4096 :][FRAMES : 2 * FRAMES]
        assert not self.counted or all(told[to] >= min(links[to], 255) for to in tables), "links"
        marked = set(np.flatnonzero(self.map & fm.TABLE).tolist())
        assert tables == marked or (self.unseen and tables < marked), tables ^ marked
        for frame in tables:
            levels = {level for of, level in seen if of == frame}
            alone = int(self.map[frame]) >> fm.LEVEL
            assert not alone or levels == {alone + 1}, "a table of another level"
            assert not (self.map[frame] & fm.LEAF and levels != {1}), "a leaf that is none"
            assert bool(self.map[frame] & fm.MIXED) >= (1 in levels and len(levels) > 1), "mixed"

    def is_stuck(self) -> bool:
        """Has it taken its own tables away?"""
        return all(self.translate(page, write=False)[1] for page in range(OWN))


MODES = {
    "none": (0, 0),
    "figure 7": (1, 0),
    "figure 8": (2, 0),
    "paragraph 80": (PARAGRAPH_80, 0),
    "own-frame": (2, OWN_FRAME),
    "all": (PARAGRAPH_80, OWN_FRAME | NO_LINK),
    "known-table": (2, OWN_FRAME | NO_LINK | KNOWN_TABLE),
    "known-table and paragraph 80": (PARAGRAPH_80, OWN_FRAME | NO_LINK | KNOWN_TABLE),
    "own-table": (2, OWN_TABLE),
    "own-table and known": (PARAGRAPH_80, OWN_FRAME | NO_LINK | KNOWN_TABLE | OWN_TABLE),
    "empty-table": (2, OWN_FRAME | EMPTY_TABLE),
    "empty-table and paragraph 80": (PARAGRAPH_80, OWN_FRAME | NO_LINK | EMPTY_TABLE),
    "every filter": (PARAGRAPH_80, 31),
    "both": (2, OWN_FRAME | NO_LINK),
}


def play(
    seeds: Iterable[int],
    steps: int,
    modes: Collection[str],
    mode: Mode = FOUR_LEVELS,
    *,
    restless: bool = False,
) -> Counter[str]:
    """Let guests do their worst; what they did."""
    done: Counter[str] = Counter()
    for seed in seeds:
        for name in modes:
            counted = MODES[name][1] & EMPTY_TABLE
            tidy = bool(counted and seed % 2)
            model = Model(seed, *MODES[name], mode, tidy=tidy, restless=restless)
            for n in range(steps):
                model.step()
                model.check()
                if n % 50 == 49 and model.is_stuck():
                    break
            done += model.done
    return done
