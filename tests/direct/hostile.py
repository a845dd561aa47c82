"""A guest that wants out: random edits of page tables, by every way there is to them."""

from __future__ import annotations

from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.direct.walk_everything import Words

P, W, U, PS = 1, 2, 4, 0x80
PTBASE = 0xC000_0000
SELF = PTBASE >> 22
FILTERS = ("none", "figure 7", "figure 8", "paragraph 80")
ORDERS = ("figure 6", "paragraph 60", "paragraph 66", "paragraph 67")

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
OWN, OTHER, VMMS, BEYOND = range(4)
frames = st.tuples(st.sampled_from((OWN, OWN, OWN, OWN, OTHER, VMMS, BEYOND)), numbers)
"""Whose, and the how manieth."""
entries = st.tuples(frames, low_bits)
Frame = tuple[int, int]
Entry = tuple[Frame, int]


class Machines(Protocol):
    """What the game is played with: two VMs in one memory."""

    memory: Words
    bases: tuple[int, int]
    """The first frame of each VM."""
    vmms: int
    """The first frame of the VMM's."""
    beyond: int
    """The first frame that does not exist."""

    def start(
        self, vm: int, name: str, order: str, transfer: tuple[int, int, int], pse: bool, cr3: int
    ) -> None:
        """Let VM `vm` begin, with paging on."""

    def load_cr3(self, vm: int, cr3: int) -> object: ...
    def set_pse(self, vm: int, wanted: bool) -> object: ...
    def invlpg(self, vm: int, linear: int) -> object: ...
    def read(self, vm: int, linear: int, user: bool = False) -> int | None: ...
    def write(self, vm: int, linear: int, data: bytes, user: bool = False) -> object: ...
    def flip(self, vm: int, linear: int, bits: int) -> object:
        """XOR of a doubleword, locked."""

    def replace(self, vm: int, linear: int, code: bytes) -> int | None:
        """Without CR0.WP, overwrite code and call it; EAX, or None if that came to nothing."""

    def check(self) -> None:
        """Walk everything."""


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
    """Two VMs; the first is filtered by one of `filters`, the second by whatever is drawn."""

    filters: tuple[str, ...] = FILTERS
    orders: tuple[str, ...] = ORDERS
    page_sizes: tuple[bool, ...] = (True, True, False)
    """CR4.PSE to begin with."""

    def machines(self) -> Machines:
        raise NotImplementedError

    @initialize(
        chosen=st.data(),
        transfer=st.sampled_from(((1, 0, 0), (1, 3, 3), (1, 7, 3), (0, 0, 0))),
    )
    def begin(self, chosen: st.DataObject, transfer: tuple[int, int, int]) -> None:
        self.model = self.machines()
        order = chosen.draw(st.sampled_from(self.orders))
        pse = chosen.draw(st.sampled_from(self.page_sizes))
        for vm in (0, 1):
            name = chosen.draw(st.sampled_from(self.filters if vm == 0 else FILTERS))
            self.build(vm)
            criteria = transfer if vm == 0 else (1, 0, 0)
            self.model.start(vm, name, order, criteria, pse, self.pool(vm, 0) << 12)

    def pool(self, vm: int, n: int) -> int:
        """The `n`th frame of the pool of VM `vm`."""
        return self.model.bases[vm] + (n if n < 4 else 0x3F8 + n - 4)

    def build(self, vm: int) -> None:
        """A directory (pool 0) with itself, and a table (1) that maps the pool at linear 0.

        Page n of it is frame n, as writable as a kernel maps all of its memory.
        """
        words = self.model.memory
        directory, table = self.pool(vm, 0), self.pool(vm, 1)
        words[directory << 10] = table << 12 | P | W | U
        words[directory << 10 | SELF] = directory << 12 | P | W
        for n in range(POOL):
            words[table << 10 | n] = self.pool(vm, n) << 12 | P | W | U * (n > 2)

    def frame(self, vm: int, which: Frame) -> int:
        kind, n = which
        if kind == OWN:
            return self.pool(vm, n)
        if kind == OTHER:
            return self.pool(1 - vm, n)
        return n + (self.model.vmms if kind == VMMS else self.model.beyond)

    def value(self, vm: int, entry: Entry) -> int:
        return self.frame(vm, entry[0]) << 12 | entry[1]

    @rule(vm=vms, at=places(), entry=entries, user=users)
    def store(self, vm: int, at: int, entry: Entry, user: bool) -> None:
        self.model.write(vm, at, self.value(vm, entry).to_bytes(4, "little"), user)

    @rule(vm=vms, at=places(), flip=st.sampled_from((1, 2, 3, 4, 0x60, 0x80, 0x80, 0x82)))
    def read_modify_write(self, vm: int, at: int, flip: int) -> None:
        """As with BTS and BTR: an entry changes in a bit or two."""
        self.model.flip(vm, at, flip)

    @rule(
        vm=vms,
        at=places(),
        entry=entries,
        shift=st.integers(0, 3),
        width=st.sampled_from((1, 2, 8)),
    )
    def odd_store(self, vm: int, at: int, entry: Entry, shift: int, width: int) -> None:
        data = (self.value(vm, entry) | self.value(vm, entry) + 0x1000 << 32).to_bytes(8, "little")[
            :width
        ]
        self.model.write(vm, at - shift & 0xFFFF_FFFF, data)

    @rule(vm=vms, slot=slots, index=indexes, entry=entries)
    def plant(self, vm: int, slot: int, index: int, entry: Entry) -> None:
        """The frame first, as if it were a disk address, and P afterwards."""
        at = PTBASE | slot << 12 | index << 2
        self.entry(vm, at, self.value(vm, entry) & ~P)
        self.model.flip(vm, at, P)

    @rule(vm=vms, slot=slots, page=numbers, through_window=st.booleans())
    def flip_page_size(self, vm: int, slot: int, page: int, through_window: bool) -> None:
        """Make a page table a 4-MByte page, or the other way round, by one bit of a PDE."""
        at = (DIRECTORY if through_window else page << 12) | slot << 2
        self.read_modify_write(vm, at, PS)

    @rule(vm=vms, at=places(), user=users)
    def look(self, vm: int, at: int, user: bool) -> None:
        self.model.read(vm, at, user)

    @rule(vm=vms, at=places())
    def invlpg(self, vm: int, at: int) -> None:
        self.model.invlpg(vm, at)

    @rule(vm=vms, frame=frames)
    def load_cr3(self, vm: int, frame: Frame) -> None:
        self.model.load_cr3(vm, self.frame(vm, frame) << 12)

    @rule(vm=vms, wanted=st.booleans())
    def set_pse(self, vm: int, wanted: bool) -> None:
        self.model.set_pse(vm, wanted)

    @rule(
        vm=vms,
        n=numbers,
        contents=st.lists(st.tuples(indexes, entries), max_size=4),
        itself=st.booleans(),
        leave_mapped=st.booleans(),
        then=st.sampled_from(("nothing", "table", "directory")),
        slot=slots,
    )
    def prepare(
        self,
        vm: int,
        n: int,
        contents: list[tuple[int, Entry]],
        itself: bool,
        leave_mapped: bool,
        then: str,
        slot: int,
    ) -> None:
        """As a kernel does: map a frame, fill it, unmap it (or not), and put it to use."""
        model, frame = self.model, self.pool(vm, n)
        passing = 5
        self.entry(vm, PTBASE | passing << 2, frame << 12 | P | W)
        model.invlpg(vm, passing << 12)
        for index, entry in contents:
            self.entry(vm, passing << 12 | index << 2, self.value(vm, entry))
        if itself:
            self.entry(vm, passing << 12 | SELF << 2, frame << 12 | P | W)
            self.entry(vm, passing << 12, self.pool(vm, 1) << 12 | P | W | U)
        if not leave_mapped:
            self.entry(vm, PTBASE | passing << 2, 0)
        if then == "table":
            self.entry(vm, DIRECTORY | slot << 2, frame << 12 | P | W | U)
        elif then == "directory":
            model.load_cr3(vm, frame << 12)

    @rule(
        vm=vms,
        pair=st.permutations((2, 3, 4)),
        evil=entries,
        by=st.sampled_from(("CR3", "CR3", "CR4", "nothing")),
        slot=slots,
    )
    def write_by_the_old_translation(
        self, vm: int, pair: list[int], evil: Entry, by: str, slot: int
    ) -> None:
        """A frame, unmapped without INVLPG, is made a table by what is then refused."""
        model, passing, other = self.model, 5, 6
        frame, directory = self.pool(vm, pair[0]), self.pool(vm, pair[1])
        for page, of in ((passing, frame), (other, directory)):
            self.entry(vm, PTBASE | page << 2, of << 12 | P | W)
            model.invlpg(vm, page << 12)
            self.entry(vm, page << 12, 0)
        self.entry(vm, other << 12, frame << 12 | P | W | U)
        self.entry(vm, other << 12 | 4, self.value(vm, evil))
        for page in (passing, other, pair[0], pair[1]):
            self.entry(vm, PTBASE | page << 2, 0)
        if by == "CR3":
            model.load_cr3(vm, directory << 12)
        elif by == "CR4":
            model.set_pse(vm, False)
        self.entry(vm, passing << 12, self.value(vm, evil))
        self.entry(vm, DIRECTORY | slot << 2, frame << 12 | P | W | U)
        model.read(vm, slot << 22)

    @rule(vm=vms, at=places(), values=st.lists(st.integers(0, 0xFFFF), min_size=2, max_size=4))
    def replace_code(self, vm: int, at: int, values: list[int]) -> None:
        """Code anywhere, in tables too, where its bytes are entries that are not present."""
        at &= ~7
        for value in values:
            # mov eax, value << 8; ret
            code = b"\xb8\0" + value.to_bytes(2, "little") + b"\0\xc3\0\0"
            found = self.model.replace(vm, at, code)
            assert found in (None, value << 8), "old code"
            self.model.check()

    def entry(self, vm: int, at: int, value: int) -> None:
        self.model.write(vm, at, value.to_bytes(4, "little"))
        self.model.check()

    @invariant()
    def nobody_is_out(self) -> None:
        if hasattr(self, "model"):
            self.model.check()
