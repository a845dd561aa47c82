"""A processor of a few lines for direct paging: filters, orders, and a TLB of the worst kind.

It executes single accesses, not instructions. Its TLB and its cache of directory entries keep
everything until they are told to forget it, and are used before memory is: whoever relies on
a translation being forgotten early, or kept long, fails here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.direct.hostile import PS, PTBASE, SELF, P, U, W
from tests.direct.walk_everything import Words, violations
from trapgate.decision import fault_filters as pt
from trapgate.decision.decide import Disposition
from trapgate.vmm.direct.frames import FRAME_SIZE, VMM, Frames
from trapgate.vmm.direct.links import Refusal
from trapgate.vmm.direct.tables import GuestTables, Layout

FRAMES = 3 << 10
"""4 MiB of the VMM's, and 4 MiB of each of two VMs'."""
A, D = 0x20, 0x40
PLAYED = range(8), range(0x3F8, 0x400)
"""Frames of each VM's that the game is about."""
SPLITS = 2
"""Tables of the VMM's for each VM, so that they do not suffice."""


@dataclass(frozen=True)
class Attempt:
    """What a filter is asked about: one entry's worth of a write that page protection stopped."""

    code: int
    address: int
    data: int
    old: int
    kept: int
    readable: bool
    """Whether the same access could read there: then it was R/W that stopped it."""


Completes = Callable[[Attempt], bool]


def none(attempt: Attempt) -> bool:
    return False


def figure_7(a: Attempt) -> bool:
    write = a.readable and bool(pt.stopped_write(a.code))
    return bool(pt.figure_7(write, bool(pt.is_pte(a.address, PTBASE)), a.data))


def figure_8(a: Attempt) -> bool:
    write = a.readable and bool(pt.stopped_write(a.code))
    pte = bool(pt.is_pte(a.address, PTBASE))
    return bool(pt.figure_8(write, pte, a.data, a.old, a.kept, 0))


def paragraph_80(a: Attempt) -> bool:
    write = a.readable and bool(pt.stopped_write(a.code))
    return bool(pt.paragraph_80(write, bool(pt.in_page_table(a.address, PTBASE)), a.data))


COMPLETES: dict[str, Completes] = {
    "none": none,
    "figure 7": figure_7,
    "figure 8": figure_8,
    "paragraph 80": paragraph_80,
}


@dataclass
class Space:
    """One VM: its filter, its registers, what the processor has cached for it."""

    number: int
    tables: GuestTables
    completes: Completes
    order: str
    bitmap: int
    mask: int
    match: int
    cr3: int = 0
    pse: bool = False
    tlb: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Page number to (frame, rights): P, W, U and D of the translation."""
    directory_cache: dict[int, int] = field(default_factory=dict)

    def forget(self) -> None:
        self.tlb.clear()
        self.directory_cache.clear()


class Model:
    """Two VMs in one memory; `step`s are the methods, `check` looks at everything."""

    bases, vmms, beyond = (1 << 10, 2 << 10), 0, FRAMES

    def __init__(self, more: dict[str, Completes] | None = None) -> None:
        self.memory: Words = np.zeros(FRAMES * 1024, np.uint32)
        self.written = self.memory.copy()
        """What the guests wrote, whatever the VMM has made of it."""
        self.frames = Frames(FRAMES)
        self.frames.give(VMM, 0, 1024)
        self.spaces: list[Space] = []
        self._completes = COMPLETES | (more or {})
        self.completed = self.refused = self.carried_out = self.exits = 0

    def start(
        self, vm: int, name: str, order: str, transfer: tuple[int, int, int], pse: bool, cr3: int
    ) -> None:
        number, base = vm + 1, self.bases[vm]
        self.frames.give(number, base, 1024)
        layout = Layout(base, 1024, FRAMES, FRAMES, 0x300 + 8 * vm, SPLITS, 0x200 + 8 * vm)
        tables = GuestTables(self.memory.view(np.uint8), layout)
        tables.unseen = name != "none"
        tables.set_large_pages(pse)
        self.written[base << 10 : base + 1024 << 10] = self.memory[base << 10 : base + 1024 << 10]
        space = Space(number, tables, self._completes[name], order, *transfer, pse=pse)
        self.spaces.append(space)
        assert self.load_cr3(vm, cr3)

    # What the guest does.

    def load_cr3(self, vm: int, cr3: int) -> bool:
        """MOV to CR3, which exits."""
        s = self.spaces[vm]
        if s.tables.load_cr3(cr3) is not None:
            self.refused += 1
            self._after_exit(s)
            return False
        s.cr3 = cr3
        s.forget()
        self._after_exit(s)
        return True

    def set_pse(self, vm: int, wanted: bool) -> bool:
        """MOV to CR4, which exits and flushes."""
        s = self.spaces[vm]
        if s.tables.set_large_pages(wanted) is not None:
            self._after_exit(s)
            return False
        s.pse = wanted
        s.forget()
        self._after_exit(s)
        return True

    def invlpg(self, vm: int, linear: int) -> None:
        s = self.spaces[vm]
        s.tlb.pop(linear >> 12, None)
        s.directory_cache.clear()

    def read(self, vm: int, linear: int, user: bool = False) -> int | None:
        """Load a doubleword; None if that faults for good."""
        s = self.spaces[vm]
        got = self._translate(s, linear, U * user, 0)
        if isinstance(got, int):
            code = got & 0xF
            if self._where(s, code, linear, 0, 0) is Disposition.COMPLETE:
                raise AssertionError(f"a read at {linear:#x} with error code {code} completes")
            return None
        return int(self.memory[got[0] >> 2])

    def write(self, vm: int, linear: int, data: bytes, user: bool = False) -> None:
        """Store up to 8 bytes, perhaps on two pages; all of it or nothing."""
        s = self.spaces[vm]
        pieces = []
        for start, part in split(linear, data):
            got = self._translate(s, start, U * user, W)
            pieces.append((start, part, got))
        stopped = [piece for piece in pieces if isinstance(piece[2], int)]
        if not stopped:
            for _, part, place in pieces:
                assert not isinstance(place, int)
                self._store(place[0], part)
            return
        fates = {
            self._judge(s, start, part, got) for start, part, got in stopped if isinstance(got, int)
        }
        if fates == {Disposition.COMPLETE}:
            self.completed += 1
            for start, part, _ in pieces:
                place = self._translate(s, start, U * user, 0)
                assert not isinstance(place, int), "a write completes where not even a read could"
                self._store(place[0], part)
        elif Disposition.EXIT in fates:
            self._exit(s, pieces, user)

    def flip(self, vm: int, linear: int, bits: int) -> None:
        before = self.read(vm, linear)
        if before is not None:
            self.write(vm, linear, (before ^ bits).to_bytes(4, "little"))

    def replace(self, vm: int, linear: int, code: bytes) -> int | None:
        """This processor has no code."""
        return None

    # What the processor does.

    def _walk(self, s: Space, linear: int) -> tuple[int, int, int]:
        """The (frame, rights, address of the last entry) of a page, from cache or memory."""
        slot = linear >> 22
        pde = s.directory_cache.get(slot, 0)
        at = s.cr3 >> 12 << 10 | slot
        if not pde & P:
            pde = int(self.memory[at])
            if not pde & P:
                return 0, 0, 0
            s.directory_cache[slot] = pde
        if pde & PS and s.pse:
            frame = pde >> 12 & ~0x3FF | linear >> 12 & 0x3FF
            return frame, pde & (P | W | U), at
        below = pde >> 12 << 10 | linear >> 12 & 0x3FF
        assert below < len(self.memory), f"the processor walks a table outside memory, {pde:#x}"
        pte = int(self.memory[below])
        if not pde & pte & P:
            return 0, 0, 0
        self.memory[at] |= A
        return pte >> 12, pde & pte & (P | W | U), below

    def _translate(self, s: Space, linear: int, user: int, write: int) -> tuple[int, int] | int:
        """(Physical address, rights), or the page-fault error code."""
        page = linear >> 12
        if page not in s.tlb or write & ~s.tlb[page][1] or user & ~s.tlb[page][1]:
            # Before it faults, a processor looks at memory again.
            cached = s.tlb.pop(page, None)
            frame, rights, at = self._walk(s, linear)
            if not rights & P:
                if cached is not None:
                    s.tlb[page] = cached
                return write | user
            assert frame < FRAMES, f"the guest maps frame {frame:#x}, which does not exist"
            self.memory[at] |= A
            s.tlb[page] = (frame, rights)
            if write & ~rights or user & ~rights:
                return P | write | user
            if write:
                self.memory[at] |= D
        frame, rights = s.tlb[page]
        return frame << 12 | linear & 0xFFF, rights

    def _store(self, physical: int, data: bytes) -> None:
        for memory in (self.memory, self.written):
            memory.view(np.uint8)[physical : physical + len(data)] = np.frombuffer(data, np.uint8)

    def _judge(self, s: Space, linear: int, data: bytes, code: int) -> Disposition:
        """Where a write that faulted goes; `data` lies on one page."""
        if not code & P:
            # There is no entry's worth of old data to be found; what comes is what comes.
            return self._where(s, code, linear, int.from_bytes(data[:4], "little"), 0)
        place = self._translate(s, linear & ~3, 0, 0)
        assert not isinstance(place, int)
        first, count = place[0] >> 2, ((linear & 3) + len(data) + 3) // 4
        before = self.memory[first : first + count]
        words = bytearray(before.tobytes())
        words[linear & 3 : (linear & 3) + len(data)] = data
        fates = {
            self._where(
                s,
                code,
                (linear & ~3) + 4 * n,
                int.from_bytes(words[4 * n : 4 * n + 4], "little"),
                int(before[n]),
            )
            for n in range(count)
        }
        fates.discard(Disposition.COMPLETE)
        return min(fates, default=Disposition.COMPLETE)

    def _where(self, s: Space, code: int, address: int, data: int, old: int) -> Disposition:
        """Figure 6, or the order of ¶60, ¶66 or ¶67, for one entry."""
        exits = bool(s.bitmap) == ((code & s.mask) == s.match)
        transfer = Disposition.EXIT if exits else Disposition.DELIVER
        pde = int(self.memory[s.cr3 >> 12 << 10 | SELF])
        kept = 0xFFFF_F000 | (PS if s.pse else 0)
        holds = pde & P and pde >> 12 == s.cr3 >> 12  # ¶74
        readable = not isinstance(self._translate(s, address, code & U, 0), int)
        attempt = Attempt(code, address, data, old, kept, readable)
        passes = bool(holds) and s.completes(attempt)
        if s.order == "paragraph 66":
            return Disposition.COMPLETE if passes else Disposition.EXIT
        if s.order == "paragraph 67" and exits:
            return Disposition.EXIT
        return Disposition.COMPLETE if passes else transfer

    # What the VMM does.

    def _exit(
        self, s: Space, pieces: list[tuple[int, bytes, tuple[int, int] | int]], user: bool
    ) -> None:
        """A page fault on a write exits. Half of those to tables are taken for a new use."""
        linear, data = pieces[0][0], b"".join(part for _, part, _ in pieces)
        frame = s.tables.look_up(linear).frame
        self.exits += 1
        if s.tables.is_table(frame) and self.exits & 1 and s.tables.drop_roots_to(frame):
            self._after_exit(s)
            return
        places = [s.tables.look_up(start) for start, _, _ in pieces]
        outcome = s.tables.store(linear, data, write_protect=True, user=user)
        if outcome is None:
            self.carried_out += 1
            for (start, part, _), place in zip(pieces, places, strict=True):
                at = place.frame << 12 | start & 0xFFF
                self.written.view(np.uint8)[at : at + len(part)] = np.frombuffer(part, np.uint8)
        elif isinstance(outcome, Refusal):
            self.refused += 1
            s.tables.drop_roots_to(frame)
        self._after_exit(s)

    def _after_exit(self, s: Space) -> None:
        s.tables.settle(s.forget, lambda address, size: None)

    # What the test does.

    def check(self) -> None:
        """Walk everything."""
        owner = self.frames.owner.copy()
        spaces, caches = [], []
        cached_tables: set[int] = set()
        for s in self.spaces:
            owner[s.tables.stand_ins()] = s.number
            live = set(np.flatnonzero(s.tables.links.counts[1::4]).tolist())
            if s.cr3:
                live.add(s.cr3 >> 12)
            spaces.append((s.number, sorted(live), s.pse))
            caches += [(s.number, frame, bool(rights & W)) for frame, rights in s.tlb.values()]
            small = [e for e in s.directory_cache.values() if not (e & PS and s.pse)]
            cached_tables |= {entry >> 12 for entry in small}
            caches += [(s.number, entry >> 12, False) for entry in small]
        wrong = violations(self.memory, owner, spaces, caches, cached_tables)
        assert not wrong, wrong
        for s in self.spaces:
            self.compare(s)

    def compare(self, s: Space) -> None:
        """What the guest wrote is in memory, but for R/W of entries that would be its way out.

        A filter completes what it finds in memory, so a guest with one may have lost more.
        """
        base = self.bases[s.number - 1]
        replaced = {word for word, _ in s.tables.replaced()}
        assert all(s.tables.is_table(word >> 10) for word in replaced), "data is replaced"
        for first in (base + part.start for part in PLAYED):
            own = slice(first << 10, first + 8 << 10)
            there, wrote = self.memory[own], self.written[own]
            for n in np.flatnonzero((there ^ wrote) & ~np.uint32(A | D)).tolist():
                if (first << 10) + n not in replaced:
                    self._demand_reason(s, (first << 10) + n)

    def _demand_reason(self, s: Space, word: int) -> None:
        """An entry may differ from what the guest wrote by R/W, if that would be a way out."""
        there, wrote = int(self.memory[word]), int(self.written[word])
        assert (wrote ^ there) & ~(A | D) == wrote & W == W, f"word {word:#x} is changed"
        assert s.tables.is_table(word >> 10), f"R/W in {word >> 10:#x}, which is data, is withheld"
        assert s.pse or s.tables.is_table(there >> 12), f"R/W for {there >> 12:#x} is withheld"


def split(linear: int, data: bytes) -> list[tuple[int, bytes]]:
    """A store as the one or two pages that it touches see it."""
    room = FRAME_SIZE - (linear & 0xFFF)
    if len(data) <= room:
        return [(linear, data)]
    return [(linear, data[:room]), (linear + room, data[room:])]
