"""A guest that wants out: random edits of page tables, by every way there is to them."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.direct.fast_model import (
    FILTERS,
    ORDERS,
    PS,
    PTBASE,
    SELF,
    Completes,
    Model,
    P,
    Space,
    U,
    W,
)

POOL = 6
"""Frames of each VM's that the game is about: its first, third, and so on, so that the first
could be a 4-MByte page's, and the second its bits 12 and 13."""
SLOTS = (0, 1, 2, SELF, 1023)
INDEXES = (0, 1, 2, 3, 5, SELF, 1023)
DIRECTORY = PTBASE | SELF << 12

vms = st.integers(0, 1)
numbers = st.integers(0, POOL - 1)
slots = st.sampled_from(SLOTS)
indexes = st.sampled_from(INDEXES)
low_bits = st.one_of(
    st.sampled_from((0, P, P | W, P | W | U, P | U, PS | P | W, PS | P | W | U)),
    st.integers(0, 0xFFF),
)
users = st.sampled_from((False, False, False, True))


def pool(vm: int, n: int) -> int:
    """The `n`th frame of the pool of VM `vm` (from 0)."""
    return (vm + 1 << 10) + (n if n < 4 else 0x3FE + n - 4)


@st.composite
def frames(draw: st.DrawFn) -> Callable[[int], int]:
    """A frame, given the VM that asks: mostly of its own pool, else anybody's."""
    kind = draw(st.sampled_from(("own", "own", "own", "own", "other", "vmm", "beyond")))
    n = draw(numbers)
    return lambda vm: {
        "own": pool(vm, n),
        "other": pool(1 - vm, n),
        "vmm": n,
        "beyond": 0xC00 + n,
    }[kind]


@st.composite
def entries(draw: st.DrawFn) -> Callable[[int], int]:
    """An entry, given the VM that makes it."""
    frame, low = draw(frames()), draw(low_bits)
    return lambda vm: frame(vm) << 12 | low


@st.composite
def places(draw: st.DrawFn) -> int:
    """A linear address that a guest might edit at: the window, its directory, or anywhere."""
    kind = draw(st.sampled_from(("pte", "pte", "pte", "pde", "pde", "page", "page")))
    slot, index = draw(slots), draw(indexes)
    if kind == "pte":
        return PTBASE | slot << 12 | index << 2
    if kind == "pde":
        return DIRECTORY | slot << 2
    page = draw(st.one_of(st.integers(0, POOL - 1), st.just(slot << 10 | index)))
    return page << 12 | draw(st.sampled_from((0, 4, SELF * 4)))


class HostileGuests(RuleBasedStateMachine):
    """Two VMs; the first is filtered by `filters`, the second by whatever is drawn."""

    filters: dict[str, Completes] = FILTERS

    @initialize(
        chosen=st.data(),
        order=st.sampled_from(ORDERS),
        transfer=st.sampled_from(((1, 0, 0), (1, 3, 3), (1, 7, 3), (0, 0, 0))),
        pse=st.sampled_from((True, True, False)),
    )
    def begin(
        self, chosen: st.DataObject, order: str, transfer: tuple[int, int, int], pse: bool
    ) -> None:
        self.model = Model()
        for vm in (0, 1):
            names = self.filters if vm == 0 else FILTERS
            name = chosen.draw(st.sampled_from(sorted(names)))
            self.model.add(names[name], order, *(transfer if vm == 0 else (1, 0, 0)))
            self.boot(vm, pse)

    def boot(self, vm: int, pse: bool) -> None:
        """A directory (pool 0) with itself, and a table (1) that maps the pool at linear 0.

        Page n of it is frame n: writable data, or a read-only table.
        """
        model, s = self.model, self.model.spaces[vm]
        directory, table = pool(vm, 0), pool(vm, 1)
        words = model.memory
        words[directory << 10] = table << 12 | P | W | U
        words[directory << 10 | SELF] = directory << 12 | P | W
        for n in range(POOL):
            words[table << 10 | n] = pool(vm, n) << 12 | P | (W if n > 1 else 0) | U * (n > 2)
        s.tables.large_pages = s.pse = pse
        assert model.load_cr3(s, directory << 12)

    def space(self, vm: int) -> Space:
        return self.model.spaces[vm]

    @rule(vm=vms, at=places(), entry=entries(), user=users)
    def store(self, vm: int, at: int, entry: Callable[[int], int], user: bool) -> None:
        self.model.write(self.space(vm), at, entry(vm).to_bytes(4, "little"), user)

    @rule(vm=vms, at=places(), flip=st.sampled_from((1, 2, 3, 4, 0x60, 0x80, 0x80, 0x82)))
    def read_modify_write(self, vm: int, at: int, flip: int) -> None:
        """LOCK XOR, as it is with BTS and BTR: an entry changes in a bit or two."""
        before = self.model.read(self.space(vm), at)
        if before is not None:
            self.model.write(self.space(vm), at, (before ^ flip).to_bytes(4, "little"))

    @rule(
        vm=vms,
        at=places(),
        entry=entries(),
        shift=st.integers(0, 3),
        width=st.sampled_from((1, 2, 8)),
    )
    def odd_store(
        self, vm: int, at: int, entry: Callable[[int], int], shift: int, width: int
    ) -> None:
        data = (entry(vm) | entry(vm) + 0x1000 << 32).to_bytes(8, "little")[:width]
        self.model.write(self.space(vm), at - shift & 0xFFFF_FFFF, data)

    @rule(vm=vms, slot=slots, page=numbers, through_window=st.booleans())
    def flip_page_size(self, vm: int, slot: int, page: int, through_window: bool) -> None:
        """Make a page table a 4-MByte page, or the other way round, by one bit of a PDE."""
        at = (DIRECTORY if through_window else page << 12) | slot << 2
        self.read_modify_write(vm, at, PS)

    @rule(vm=vms, at=places(), user=users)
    def look(self, vm: int, at: int, user: bool) -> None:
        self.model.read(self.space(vm), at, user)

    @rule(vm=vms, at=places())
    def invlpg(self, vm: int, at: int) -> None:
        self.model.invlpg(self.space(vm), at)

    @rule(vm=vms, frame=frames())
    def load_cr3(self, vm: int, frame: Callable[[int], int]) -> None:
        self.model.load_cr3(self.space(vm), frame(vm) << 12)

    @rule(vm=vms, wanted=st.booleans())
    def set_pse(self, vm: int, wanted: bool) -> None:
        self.model.set_pse(self.space(vm), wanted)

    @rule(
        vm=vms,
        n=numbers,
        contents=st.lists(st.tuples(indexes, entries()), max_size=4),
        itself=st.booleans(),
        leave_mapped=st.booleans(),
        then=st.sampled_from(("nothing", "table", "directory")),
        slot=slots,
    )
    def prepare(
        self,
        vm: int,
        n: int,
        contents: list[tuple[int, Callable[[int], int]]],
        itself: bool,
        leave_mapped: bool,
        then: str,
        slot: int,
    ) -> None:
        """As a kernel does: map a frame, fill it, unmap it (or not), and put it to use."""
        model, s, frame = self.model, self.space(vm), pool(vm, n)
        passing = 5
        self.entry(s, PTBASE | passing << 2, frame << 12 | P | W)
        model.invlpg(s, passing << 12)
        for index, entry in contents:
            self.entry(s, passing << 12 | index << 2, entry(vm))
        if itself:
            self.entry(s, passing << 12 | SELF << 2, frame << 12 | P | W)
            self.entry(s, passing << 12, pool(vm, 1) << 12 | P | W | U)
        if not leave_mapped:
            self.entry(s, PTBASE | passing << 2, 0)
        if then == "table":
            self.entry(s, DIRECTORY | slot << 2, frame << 12 | P | W | U)
        elif then == "directory":
            model.load_cr3(s, frame << 12)

    def entry(self, s: Space, at: int, value: int) -> None:
        self.model.write(s, at, value.to_bytes(4, "little"))
        self.model.check()

    @invariant()
    def nobody_is_out(self) -> None:
        if hasattr(self, "model"):
            self.model.check()
