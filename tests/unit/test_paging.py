"""Page walks: every mode, right and flag, against what the SDM's "Paging" says."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from trapgate.compiler.dialect import Cells, Memory
from trapgate.paging import walk as paging
from trapgate.paging.memory import MAXPHYADDR
from trapgate.paging.walk import FETCH, READ, WRITE
from trapgate.sdm import cells
from trapgate.sdm.state import (
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_PAE,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_NXE,
    RFLAGS_AC,
)

P, W, U, RSVD, ID = 1, 2, 4, 8, 16
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
NX = -(1 << 63)
ALL = PRESENT | WRITABLE | USER
LINEAR = 0x0040_3ABC
"""Index 1 in a 32-bit page directory, 2 in a PAE one; page 3 of its table."""
HIGH = -0x8000_0000_0000 + LINEAR
"""The same in the upper half: index 256 of the PML4."""


@dataclass
class Paging:
    """Three modes over one memory: tables at 1000H (top) to 4000H (bottom), data at 9000H.

    PAE paging's pointers are registers, and there is one.
    """

    mode: str
    cr0: int = CR0_PE | CR0_PG | CR0_WP
    cr4: int = 0
    efer: int = 0
    rflags: int = 0
    cr3: int = 0x1000
    mem: Memory = field(default_factory=lambda: np.zeros(0x10000 // 8, np.int64))
    path: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.mode == "two-level":
            self.path = [0x1000 + 4, 0x4000 + 3 * 4]
            targets = [0x4000, 0x9000]
        else:
            self.cr4 |= CR4_PAE
            self.efer |= EFER_NXE
            self.path = [0x3000 + 2 * 8, 0x4000 + 3 * 8]
            targets = [0x4000, 0x9000]
            if self.mode != "pae":
                self.efer |= EFER_LMA
                self.path = [0x1000, 0x2000, *self.path]
                targets = [0x2000, 0x3000, *targets]
                self.mem[(0x1000 + 256 * 8) // 8] = 0x2000 | ALL
        for at, target in zip(self.path, targets, strict=True):
            self.put(at, target | ALL)

    def put(self, at: int, entry: int) -> None:
        size = np.int32 if self.mode == "two-level" else np.int64
        view = self.mem.view(size)
        view[at // view.itemsize] = entry

    def entry(self, level: int) -> int:
        view = self.mem.view(np.uint32 if self.mode == "two-level" else np.int64)
        return int(view[self.path[level] // view.itemsize])

    def change(self, level: int, *, on: int = 0, off: int = 0) -> None:
        self.put(self.path[level], self.entry(level) & ~off | on)

    def walk(
        self, access: int = READ, user: int = 0, linear: int = LINEAR
    ) -> tuple[int, int, int, int]:
        return paging.walk(self.v, self.rflags, self.mem, linear, access, user)

    @property
    def v(self) -> Cells:
        v = np.zeros(len(cells.ENCODINGS), np.int64)
        v[cells.GUEST_CR0], v[cells.GUEST_CR3] = self.cr0, self.cr3
        v[cells.GUEST_CR4], v[cells.GUEST_IA32_EFER] = self.cr4, self.efer
        v[cells.GUEST_RFLAGS] = self.rflags
        v[cells.GUEST_PDPTE0] = 0x3000 | PRESENT
        return v


MODES = ["two-level", "pae", "four-level"]


def test_without_paging_linear_is_physical() -> None:
    machine = Paging("two-level", cr0=CR0_PE)
    assert machine.walk(linear=0x1_2345_6789) == (0x2345_6789, -1, 7, 0x1000)


@pytest.mark.parametrize("mode", MODES)
def test_reads_and_sets_accessed_flags_only(mode: str) -> None:
    machine = Paging(mode)
    # The page is clean, so a TLB entry made of a read may not let a write through.
    assert machine.walk() == (0x9ABC, -1, 1 | 4, 0x1000)
    for level in range(len(machine.path)):
        assert machine.entry(level) & (ACCESSED | DIRTY) == ACCESSED


@pytest.mark.parametrize("mode", MODES)
def test_writes_and_sets_the_dirty_flag_of_the_page(mode: str) -> None:
    machine = Paging(mode)
    assert machine.walk(WRITE, 1) == (0x9ABC, -1, 7, 0x1000)
    flags = [machine.entry(n) & (ACCESSED | DIRTY) for n in range(len(machine.path))]
    assert flags == [ACCESSED] * (len(flags) - 1) + [ACCESSED | DIRTY]
    assert machine.walk(READ)[2] == 7


def test_the_upper_half() -> None:
    assert Paging("four-level").walk(linear=HIGH)[:2] == (0x9ABC, -1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("access", [READ, WRITE, FETCH])
@pytest.mark.parametrize("user", [0, 1])
def test_not_present_at_each_level(mode: str, access: int, user: int) -> None:
    for level in range(len(Paging(mode).path)):
        machine = Paging(mode)
        machine.change(level, off=PRESENT)
        before = machine.mem.copy()
        code = W * (access == WRITE) | U * user | ID * (access == FETCH and mode != "two-level")
        assert machine.walk(access, user)[1] == code
        assert (machine.mem == before).all(), "a walk that fails sets no flag"


@pytest.mark.parametrize("mode", MODES)
def test_supervisor_pages_are_not_the_users(mode: str) -> None:
    for level in range(len(Paging(mode).path)):
        machine = Paging(mode)
        machine.change(level, off=USER)
        assert machine.walk(READ, 1)[1] == P | U
        assert machine.walk(WRITE, 1)[1] == P | W | U
        assert machine.walk(WRITE, 0)[1] == -1


@pytest.mark.parametrize("mode", MODES)
def test_read_only_pages(mode: str) -> None:
    for level in range(len(Paging(mode).path)):
        machine = Paging(mode)
        machine.change(level, off=WRITABLE)
        assert machine.walk(WRITE, 1)[1] == P | W | U
        assert machine.walk(WRITE, 0)[1] == P | W
        assert machine.walk(READ, 1)[1:3] == (-1, 1 | 4)
        machine.cr0 &= ~CR0_WP
        assert machine.walk(WRITE, 0)[1] == -1
        assert machine.walk(WRITE, 1)[1] == P | W | U


@pytest.mark.parametrize("mode", ["pae", "four-level"])
def test_execute_disable(mode: str) -> None:
    for level in range(len(Paging(mode).path)):
        machine = Paging(mode)
        machine.change(level, on=NX)
        assert machine.walk(FETCH, 1)[1] == P | U | ID
        assert machine.walk(FETCH, 0)[1] == P | ID
        assert machine.walk(READ, 1)[1:3] == (-1, 1)
        machine.efer &= ~EFER_NXE
        assert machine.walk(READ, 0)[1] == P | RSVD, "without NXE the bit is reserved"


@pytest.mark.parametrize("mode", ["pae", "four-level"])
def test_reserved_bits(mode: str) -> None:
    for level in range(len(Paging(mode).path)):
        for bit in (MAXPHYADDR, 51):
            machine = Paging(mode)
            machine.change(level, on=1 << bit)
            assert machine.walk(WRITE, 1)[1] == P | W | U | RSVD
            assert machine.walk(FETCH, 0)[1] == P | RSVD | ID
        machine = Paging(mode)
        machine.change(level, on=1 << 52)
        assert (machine.walk()[1] == -1) == (mode == "four-level"), "bits 62:52 are software's"


def test_reserved_page_size_in_the_top_table() -> None:
    machine = Paging("four-level")
    machine.change(0, on=LARGE)
    assert machine.walk()[1] == P | RSVD


@pytest.mark.parametrize(
    ("mode", "level", "size"),
    [
        ("two-level", 0, 0x40_0000),
        ("pae", 0, 0x20_0000),
        ("four-level", 2, 0x20_0000),
        ("four-level", 1, 0x4000_0000),
    ],
)
def test_large_pages(mode: str, level: int, size: int) -> None:
    machine = Paging(mode, cr4=CR4_PSE)
    machine.put(machine.path[level], 3 * size & 0xFFFF_FFFF | ALL | LARGE)
    assert machine.walk(WRITE) == (3 * size & 0xFFFF_FFFF | LINEAR & size - 1, -1, 7, size)
    assert machine.entry(level) & (ACCESSED | DIRTY) == ACCESSED | DIRTY
    # The lowest address bit that such a page has no use for is reserved.
    bit = size >> 1 if mode == "two-level" else 1 << 13
    machine.change(level, on=bit)
    assert machine.walk()[1] == P | RSVD


def test_four_megabyte_pages_reach_beyond_four_gigabytes() -> None:
    machine = Paging("two-level", cr4=CR4_PSE)
    machine.put(machine.path[0], 0x40_0000 | 0xA5 << 13 | ALL | LARGE)
    assert machine.walk()[0] == 0xA5_0000_0000 | 0x40_0000 | LINEAR & 0x3F_FFFF


def test_page_size_without_pse_means_nothing() -> None:
    machine = Paging("two-level")
    machine.change(0, on=LARGE)
    assert machine.walk() == (0x9ABC, -1, 5, 0x1000)


@pytest.mark.parametrize("mode", MODES)
def test_smep(mode: str) -> None:
    machine = Paging(mode, cr4=CR4_SMEP)
    assert machine.walk(FETCH, 0)[1] == P | ID
    assert machine.walk(FETCH, 1)[1] == -1
    machine.change(0, off=USER)
    assert machine.walk(FETCH, 0)[1] == -1
    machine.change(0, off=PRESENT)
    assert machine.walk(FETCH, 0)[1] == ID, "SMEP makes error codes tell fetches"


@pytest.mark.parametrize("mode", MODES)
def test_smap(mode: str) -> None:
    machine = Paging(mode, cr4=CR4_SMAP)
    assert machine.walk(READ, 0)[1] == P
    assert machine.walk(WRITE, 0)[1] == P | W
    assert machine.walk(READ, 1)[1] == -1
    assert machine.walk(FETCH, 0)[1] == -1
    machine.rflags = RFLAGS_AC
    assert machine.walk(READ, 0)[1] == -1
    machine.rflags = 0
    machine.change(0, off=USER)
    assert machine.walk(WRITE, 0)[1] == -1


def test_tables_outside_memory_read_as_ones() -> None:
    assert Paging("four-level", cr3=0xFF_FFFF_F000).walk()[1] == P | RSVD
    # All ones in 32-bit paging is a page at the top, which nothing backs either.
    assert Paging("two-level", cr3=0xFFFF_F000).walk()[:2] == (0xFFFF_FABC, -1)


def test_translate_takes_the_guests_registers() -> None:
    machine = Paging("four-level")
    v = machine.v
    assert paging.translate(v, machine.mem, LINEAR, WRITE, 1) == (0x9ABC, -1)
    assert paging.translate(v, machine.mem, LINEAR + 0x1000, WRITE, 1) == (0, W | U)


def test_system_reads_ignore_the_ac_flag() -> None:
    machine = Paging("pae", cr4=CR4_SMAP, rflags=RFLAGS_AC)
    v = machine.v
    assert paging.translate(v, machine.mem, LINEAR, READ, 0) == (0x9ABC, -1)
    assert paging.read_system(v, machine.mem, LINEAR, 8, 0) == (0, P, LINEAR)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_system_reads_across_pages(size: int) -> None:
    machine = Paging("four-level")
    machine.put(machine.path[-1] + 8, 0x7000 | ALL)
    ram = machine.mem.view(np.uint8)
    ram[0x9FFF] = 0x11
    ram[0x7000:0x7007] = [0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]
    v = machine.v
    start = (LINEAR | 0xFFF) - 0
    want = int.from_bytes(bytes.fromhex("1122334455667788")[:size], "little", signed=size == 8)
    assert paging.read_system(v, machine.mem, start, size, 0) == (want, -1, 0)
    machine.put(machine.path[-1] + 8, 0)
    assert paging.read_system(v, machine.mem, start, size, 0) == (0, 0, start + 1)
