"""What reaches memory past the page walk, or before there is one, under a frame map."""

from struct import pack

import numpy as np
import pytest

from tests.direct.protected_model import P
from tests.direct.test_protected_machine import HLT, LINKED, MEMORY, PD_2, X, Y, machine, words
from trapgate.decision.fault_filters import NO_LINK, OWN_FRAME
from trapgate.engine import machine as stops
from trapgate.paging import frame_map as fm
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.storage import Memory
from trapgate.vmm.direct.links import PAE
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.direct.refusals import DirectPagingError
from trapgate.vmm.loaders.image import GuestImage, GuestKind, Segment
from trapgate.vmm.loaders.state import gdt, protected_mode

RAX_X = b"\xb8" + pack("<I", X)


def unpaged(code: bytes, tables: dict[int, bytes] | None = None) -> ProtectedMachine:
    """A guest in 32-bit protected mode without paging."""
    vm = ProtectedMachine(MEMORY)
    segments = [Segment(0x1000, gdt(32)), Segment(0x10_0000, code)]
    segments += [Segment(at, data) for at, data in (tables or {}).items()]
    fields = protected_mode(0x10_0000, 0x18_0000, 0x1000)
    vm.load(GuestImage(GuestKind.FLAT, 32, tuple(segments), fields, {}, "a few lines"))
    return vm


@pytest.mark.parametrize("store", [b"\xc6\x00\x11", b"\x8a\x00"], ids=["store", "load"])
def test_without_paging_a_guest_reaches_its_own_memory_and_no_other(store: bytes) -> None:
    """The frame map itself is what lies behind it."""
    vm = unpaged(b"\xb8" + pack("<I", MEMORY) + store + HLT)
    stop = vm.run(timeout=20)
    assert stop.end is End.REFUSED, stop
    assert "not the guest's" in stop.message
    assert vm.processor.memory.read(MEMORY, 2) == bytes((fm.OWN, fm.OWN))


def test_devices_pages_are_reached_without_paging() -> None:
    vm = unpaged(b"\xa1\x30\x00\xe0\xfe" + HLT)  # mov eax, [FEE00030H]
    assert "halted" in vm.run(timeout=20).message
    assert vm.processor.registers.rax & 0xFF == 0x14


def linked_machine() -> ProtectedMachine:
    """A machine whose frame X is a last-level table, halted."""
    vm = machine(LINKED + HLT + HLT, "figure-8", OWN_FRAME | NO_LINK)
    assert "halted" in vm.run(timeout=20).message
    assert vm.links.levels_of(X >> 12) == {1}
    return vm


def test_a_bus_master_may_store_to_a_table_what_may_stand_in_it() -> None:
    vm = linked_machine()
    vm.ram.write(X - 8, pack("<3Q", 1, Y | 7, 0))
    assert words(vm, X)[:2] == [Y | 7, 0]
    assert words(vm, X - 8)[0] == 1
    assert vm.ram.read(X, 8) == pack("<Q", Y | 7)
    vm.stopped = None
    assert "halted" in vm.run(timeout=5).message


def test_a_bus_master_cannot_store_an_entry_that_leads_elsewhere() -> None:
    vm = linked_machine()
    before = words(vm, PD_2)
    vm.ram.write(PD_2 + 8, pack("<Q", MEMORY | 7))
    assert words(vm, PD_2) == before
    vm.stopped = None
    stop = vm.run(timeout=5)
    assert stop.end is End.REFUSED
    assert "is not the guest's" in stop.message


def test_a_bus_master_reaches_the_guests_memory_only() -> None:
    vm = linked_machine()
    vm.ram.write(MEMORY - 2, b"\x11\x22\xff\xff")
    assert vm.ram.read(MEMORY - 2, 4) == b"\x11\x22\xff\xff"
    assert vm.processor.memory.read(MEMORY, 2) == bytes((fm.OWN, fm.OWN))
    assert vm.ram.read(MEMORY + 4, 2) == b"\xff\xff"


def test_a_table_of_a_root_that_is_not_loaded_becomes_data_by_dma() -> None:
    vm = linked_machine()
    root = 0x50_0000
    vm.processor.memory.write(root, pack("<Q", (root + 0x1000) | 7))
    assert vm.links.load_root((root >> 12,)) is None
    vm.ram.write(root + 0x1000, b"anything!")
    assert not vm.links.levels_of(root >> 12)
    assert vm.processor.memory.read(root + 0x1000, 9) == b"anything!"


def test_a_closed_a20_gate_stops_a_guest_that_pages() -> None:
    """Address line 20 is behind the page walk: what the map says would not be what is reached."""
    code = bytes.fromhex("66ba9200 b000 ee") + HLT  # out 92H, 0; the next is a megabyte below
    stop = machine(code).run(timeout=20)
    assert stop.end is End.REFUSED
    assert "address line 20" in stop.message
    assert unpaged(code).run(timeout=20).end is not End.REFUSED


def test_a_task_switch_to_a_directory_that_cannot_stand_is_refused() -> None:
    vm = linked_machine()
    before = vm.vmcs["GUEST_CR3"]
    stop = vm.take_cr3(MEMORY)
    assert stop is not None
    assert stop.end is End.REFUSED
    assert vm.vmcs["GUEST_CR3"] == before


@pytest.mark.parametrize(("ins", "before"), [("6c", 0), ("6d", 0), ("6d", 2)])
def test_ins_to_a_table_is_refused(ins: str, before: int) -> None:
    """Of one byte, of four, and of four of which two are in the page below."""
    # mov rdi, X - before; mov dx, 3F8H
    code = LINKED + b"\xbf" + pack("<I", X - before) + bytes.fromhex("66baf803" + ins) + HLT
    stop = machine(code, "figure-8", OWN_FRAME | NO_LINK).run(timeout=20)
    assert stop.end is End.REFUSED
    assert "INS" in stop.message


@pytest.mark.parametrize("before", [0, 2])
def test_outs_from_a_foreign_frame_is_refused(before: int) -> None:
    # mov rsi, the end of memory - before; mov dx, 3F8H; outsd
    code = b"\xbe" + pack("<I", MEMORY - before) + bytes.fromhex("66baf803 6f") + HLT
    stop = machine(code, "figure-8", OWN_FRAME | NO_LINK).run(timeout=20)
    assert stop.end is End.REFUSED
    assert "OUTS" in stop.message


def test_a_screen_opens_no_window_past_the_vmm() -> None:
    """Planar modes and banks would show one guest's device, or another frame, behind the map."""
    for vm in (ProtectedMachine(16 << 20), DirectMachine(16 << 20)):
        for port, value in ((0x3C4, 4), (0x3C5, 6), (0x3CE, 6), (0x3CF, 5)):
            vm.devices.write(port, 1, value, 0)
        assert vm.devices.vga.is_planar
        assert vm.processor.engine.cells[stops.WINDOWS] == 0


_DRIVE = (Memory(bytes(1 << 20)),)


@pytest.mark.parametrize("board", [Board(disks=_DRIVE), Board(cds=_DRIVE), Board(floppies=_DRIVE)])
def test_entries_have_no_drives(board: Board) -> None:
    with pytest.raises(DirectPagingError, match="no drives"):
        DirectMachine(16 << 20, board=board)


def test_a_machine_has_drives() -> None:
    vm = ProtectedMachine(MEMORY, board=Board(disks=(Memory(b"\xf4".ljust(512, b"\0")),)))
    assert vm.devices.read(0x1F7, 1, 0) == 0x50


# PAE paging outside IA-32e mode.

POINTERS, OTHER_POINTERS, DIRECTORY, TABLE = 0x20_0020, 0x20_0040, 0x20_1000, 0x20_2000
PAE_TABLES = {
    POINTERS: pack("<4Q", DIRECTORY | 1, 0, 0, 0),
    OTHER_POINTERS: pack("<4Q", DIRECTORY | 1, DIRECTORY | 1, 0, 0),
    # Identity by 2-MB pages, but the first 2 MB by a table that maps 1-2 MB and the tables.
    DIRECTORY: b"".join(pack("<Q", n << 21 | 0x83) for n in range(8)),
    TABLE: b"".join(pack("<Q", n << 12 | 3) for n in range(512)),
}
PAGING_ON = (
    bytes.fromhex("b820000000 0f22e0")  # CR4.PAE
    + b"\xb8" + pack("<I", POINTERS) + bytes.fromhex("0f22d8")
    + bytes.fromhex("0f20c0 0d00000080 0f22c0")  # CR0.PG
)  # fmt: skip


def mov(address: int, low: int) -> bytes:
    """MOV of 32 bits to an address."""
    return b"\xc7\x05" + pack("<II", address, low)


def test_pae_paging_by_registers_that_hold_the_pointers() -> None:
    code = (
        PAGING_ON
        + mov(X, 5)
        + mov(DIRECTORY + 8 * 3, TABLE | 3)  # a link: 6-8 MB
        + mov(TABLE + 8, Y | 3)  # a last-level entry
        + mov(0x60_1000, 0x1234)  # by it
        + mov(POINTERS, 0)  # data, and no walk reads it
        + mov(X + 8, 6)
        + b"\xb8" + pack("<I", OTHER_POINTERS) + bytes.fromhex("0f22d8")  # no new directory
        + mov(0x4000_0000 + X + 16, 7)  # by the second pointer
        + HLT
    )  # fmt: skip
    vm = unpaged(code, PAE_TABLES)
    vm.vmcs["FRAME_FILTERS"] = OWN_FRAME | NO_LINK
    stop = vm.run(timeout=20)
    assert "halted" in stop.message, stop
    assert vm.links.mode is PAE
    assert words(vm, X)[:3] == [5, 6, 7]
    assert words(vm, Y)[0] == 0x1234
    assert sum(vm.completed) == 1
    assert vm.counts.edits == 1
    # CR4, CR0 with the first pointers, and CR3 while paging is off: the last load does not exit.
    assert vm.summary().exits[ExitReason.CONTROL_REGISTER_ACCESS] == 3
    levels = [vm.links.levels_of(at >> 12) for at in (POINTERS, DIRECTORY, TABLE)]
    assert levels == [set(), {2}, {1}]


@pytest.mark.parametrize(
    ("pointers", "message"),
    [
        ((DIRECTORY | 3, 0, 0, 0), "triple fault"),  # a reserved bit: #GP(0), and no IDT
        ((MEMORY | 1, 0, 0, 0), "not the guest's"),
    ],
)
def test_pointers_that_cannot_be_loaded(pointers: tuple[int, ...], message: str) -> None:
    code = PAGING_ON + b"\xb8" + pack("<I", X) + bytes.fromhex("0f22d8") + HLT
    vm = unpaged(code, {**PAE_TABLES, X: pack("<4Q", *pointers)})
    assert message in vm.run(timeout=20).message
    assert (vm.vmcs["GUEST_PDPTE0"], vm.vmcs["GUEST_CR3"]) == (DIRECTORY | P, POINTERS)


def test_pointers_in_the_vmms_memory_are_not_read() -> None:
    vm = unpaged(PAGING_ON.replace(pack("<I", POINTERS), pack("<I", MEMORY)) + HLT, PAE_TABLES)
    stop = vm.run(timeout=20)
    assert stop.end is End.REFUSED
    assert not vm.vmcs["GUEST_CR0"] & 1 << 31  # it stands before MOV to CR0
    assert vm.processor.memory.read(vm.vmcs["GUEST_RIP"], 3) == b"\x0f\x22\xc0"
    assert np.all(vm.vmcs.cells != 0x1010101010101010)
