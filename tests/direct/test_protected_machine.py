"""Direct paging by a frame map, natively: guests of a few lines, and Debian's kernels."""

import io
from struct import pack

import numpy as np
import pytest

from benchmarks.suite import LINUX
from tests.direct.protected_model import ADDRESS, PS, P
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action
from trapgate.decision.decide import Disposition, Reason
from trapgate.decision.fault_filters import (
    EMPTY_TABLE,
    FILTERS,
    KNOWN_TABLE,
    NO_LINK,
    ORDER_PARAGRAPH_67,
    OWN_FRAME,
    OWN_TABLE,
)
from trapgate.paging import frame_map as fm
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.state import CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR0_WP, CR4_PSE
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import End
from trapgate.vmm.direct.mapped_memory import ProtectedHost
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.direct.refusals import DirectPagingError
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.loaders.image import GuestImage, GuestKind, Segment
from trapgate.vmm.loaders.state import gdt, long_mode, protected_mode
from trapgate.vmm.ui.console import Console

MEMORY = 16 << 20
X, Y = 0x30_0000, 0x40_0000
PML4, PDPT, PD, PD_2 = 0x20_0000, 0x20_1000, 0x20_2000, 0x20_3000
RAX_X = b"\xb8" + pack("<I", X)
RAX_PD_2 = b"\xb8" + pack("<I", PD_2 + 16)
RCX_PD_2 = b"\xb9" + pack("<I", PD_2)
LINKED = (
    RAX_X
    + bytes.fromhex("48c7400801000000")  # mov qword [X+8], 1: data, by a translation that stays
    + bytes.fromhex("48c70000000000")  # mov qword [X], 0
    + b"\xb9" + pack("<I", PDPT) + bytes.fromhex("48c7410807302000")  # PDPT[1] = PD_2 | 7
    + RCX_PD_2 + bytes.fromhex("48c70107003000")  # PD_2[0] = X | 7: a last-level table
)  # fmt: skip
HLT = b"\xf4"


def machine(
    code: bytes,
    fault_filter: str = "none",
    frame_filters: int = 0,
    host: ProtectedHost | None = None,
) -> ProtectedMachine:
    """A guest in 64-bit mode, whose first gigabyte is mapped by 2-MB pages."""
    vm = ProtectedMachine(MEMORY, host=host)
    tables = bytearray(0x3000)
    for at, entry in ((0, PDPT | 7), (0x1000, PD | 7)):
        tables[at : at + 8] = entry.to_bytes(8, "little")
    for n in range(512):
        tables[0x2000 + 8 * n : 0x2008 + 8 * n] = (n << 21 | 0x87).to_bytes(8, "little")
    vm.vmcs["FAULT_FILTER"] = FILTERS[fault_filter]
    vm.vmcs["FRAME_FILTERS"] = frame_filters
    fields = {**long_mode(0x10_0000, 0x18_0000, 0x1000, PML4), "GUEST_CR4": 0x220}
    segments = (Segment(0x1000, gdt(64)), Segment(0x10_0000, code), Segment(PML4, bytes(tables)))
    vm.load(GuestImage(GuestKind.FLAT, 64, segments, fields, {}, "a few lines"))
    return vm


def words(vm: ProtectedMachine, at: int) -> list[int]:
    found: list[int] = vm.processor.memory.cells.view(np.uint64)[vm.base + at >> 3 :][:512].tolist()
    return found


def counts(vm: ProtectedMachine) -> tuple[int, int]:
    """Page faults that exited, and that were completed."""
    summary = vm.summary()
    return summary.count(Disposition.EXIT, PF), summary.count(Disposition.COMPLETE, PF)


USES = (
    bytes.fromhex("48c70007004000")  # X[0] = Y | 7: stopped, though an old translation allows it
    + b"\xba" + pack("<I", 0x4000_0000) + bytes.fromhex("488b1a")  # a load through it
    + bytes.fromhex("48c70234120000")  # a store through it
    + bytes.fromhex("488b30")  # rsi = X[0]
    + bytes.fromhex("c6400110")  # one byte of it
    + bytes.fromhex("f0810800020000")  # lock or dword [X], 200H
    + bytes.fromhex("488b38")  # rdi = X[0]
    + RCX_PD_2 + bytes.fromhex("48c70100000000")  # PD_2[0] = 0: X is data
    + bytes.fromhex("48c70005000000")  # not stopped
    + bytes.fromhex("0f20dd0f22dd")  # MOV to CR3 of a root
    + HLT
)  # fmt: skip


@pytest.mark.parametrize(
    ("fault_filter", "frame_filters", "expected"),
    [
        ("none", 0, (6, 0)),
        ("figure-7", 0, (6, 0)),
        ("figure-8", 0, (5, 1)),
        ("none", OWN_FRAME, (3, 3)),
        ("figure-8", OWN_FRAME | NO_LINK, (3, 3)),
        ("paragraph-80", OWN_FRAME, (2, 4)),
        ("none", OWN_FRAME | EMPTY_TABLE, (1, 6)),
        ("none", OWN_TABLE, (1, 2)),
        ("figure-8", OWN_TABLE | EMPTY_TABLE, (0, 3)),
    ],
)
def test_a_table_is_protected_while_it_is_linked(
    fault_filter: str, frame_filters: int, expected: tuple[int, int]
) -> None:
    vm = machine(LINKED + USES, fault_filter, frame_filters)
    stop = vm.run(timeout=20)
    assert "halted" in stop.message, stop
    registers = vm.processor.registers
    assert registers.rsi == Y | 0x67  # A and D, which the processor has set
    assert registers.rdi == 0x40_1000 | 0x267
    assert words(vm, Y)[0] == 0x1234
    if fault_filter == "paragraph-80":
        # The VMM has not seen the link go: the last store exits once more, and is let go.
        assert counts(vm)[0] >= expected[0]
    else:
        assert counts(vm) == expected
    assert words(vm, X)[0] == 5
    assert sum(vm.completed) == counts(vm)[1]
    assert ExitReason.CONTROL_REGISTER_ACCESS not in vm.summary().exits


@pytest.mark.parametrize("fault_filter", ["none", "figure-8", "paragraph-80"])
def test_an_edit_that_exits_leaves_the_other_roots_alone(fault_filter: str) -> None:
    """Of a last-level table that both roots lead to: each root is validated once."""
    other = 0x21_0000
    code = (
        LINKED
        + b"\xba" + pack("<I", other) + bytes.fromhex("48c70207102000")  # other[0] = PDPT | 7
        + bytes.fromhex("0f20dd 0f22da 0f22dd")  # there and back
        + bytes.fromhex("48c70007004000")  # X[0] = Y | 7
        + bytes.fromhex("0f22da 0f22dd")
        + HLT
    )  # fmt: skip
    vm = machine(code, fault_filter)
    assert "halted" in vm.run(timeout=20).message
    assert words(vm, X)[0] == Y | 7
    assert vm.summary().exits[ExitReason.CONTROL_REGISTER_ACCESS] == 1
    assert vm.links.roots == {(PML4 >> 12,), (other >> 12,)}
    look(vm)


UNLINKED = (
    LINKED + RAX_X + bytes.fromhex("48c70007004000 48c7400807104000")  # X[0] and X[1]
    + RCX_PD_2 + bytes.fromhex("48c70100000000")  # PD_2[0] = 0
    + b"\xbf" + pack("<I", X)
)  # fmt: skip
"""X is a last-level table with two entries, and led to no more, which only ¶80 knows."""


def test_what_clears_a_known_table_is_one_write() -> None:
    """REP STOS of any width, over the table's end or within, and of what is no clearing."""
    filters = "paragraph-80", OWN_FRAME | NO_LINK | KNOWN_TABLE
    for repeated, count, value, exits in (
        ("f3aa", 0x1800, 0, 2),
        ("f3ab", 0x600, 0, 2),
        ("f348ab", 0x300, 0, 2),
        ("f348ab", 0x20, 0, 2),
        ("f3aa", 0x803, 0, 3),  # three bytes of an entry
        ("f348ab", 0x200, 0x500_0007, 3),  # not the guest's own
        ("f3aa", 0x1000, 7, 3),
        ("fdf348ab", 1, 0, 3),  # downwards
    ):
        fill = bytes.fromhex(repeated)
        code = UNLINKED + b"\xb9" + pack("<I", count) + b"\xb8" + pack("<I", value) + fill + HLT
        ends = []
        for fault_filter, frame_filters in (("none", 0), filters):
            vm = machine(code, fault_filter, frame_filters)
            vm.processor.memory.write(X + 0x10, b"\x22" * 0x2FF0)
            assert "halted" in vm.run(timeout=20).message
            r = vm.processor.registers
            memory = vm.processor.memory.read(X, 0x3000)
            ends.append((memory, r.rdi, r.rcx, vm.vmcs["GUEST_RIP"], vm.processor.time))
        assert ends[0][:-1] == ends[1][:-1], (repeated, count)
        assert ends[0][-1] == ends[1][-1] or exits == 3, (repeated, count)
        assert counts(vm)[0] == exits, (repeated, count, counts(vm))


@pytest.mark.parametrize(
    ("fault_filter", "frame_filters", "expected"),
    [
        ("paragraph-80", OWN_FRAME | NO_LINK, (3, 3)),
        ("figure-7", OWN_FRAME | NO_LINK | KNOWN_TABLE, (4, 2)),
        ("paragraph-80", OWN_FRAME | NO_LINK | KNOWN_TABLE | EMPTY_TABLE, (2, 4)),
    ],
)
def test_what_clears_a_table_that_need_not_be_known_exits(
    fault_filter: str, frame_filters: int, expected: tuple[int, int]
) -> None:
    code = UNLINKED + b"\xb9" + pack("<I", 0x200) + bytes.fromhex("31c0 f348ab") + HLT
    vm = machine(code, fault_filter, frame_filters)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm) == expected
    writes = vm.summary().table_writes
    assert writes is not None
    assert writes.exited["reused"] == 1


CLEARS = "paragraph-80", OWN_FRAME | NO_LINK | KNOWN_TABLE


def test_a_known_table_is_not_cleared_where_the_guests_own_rights_forbid() -> None:
    """By a 2-MB page without R/W, with CR0.WP: the fault is the guest's, at the first store."""
    # PD_2[2] = 20_0000H | 81H; rdi = X, by way of it; rep stosq.
    reads = RCX_PD_2 + bytes.fromhex("48c7411081002000") + b"\xbf" + pack("<I", 0x4050_0000)
    fill = b"\xb9" + pack("<I", 0x200) + bytes.fromhex("31c0 f348ab")
    vm = machine(UNLINKED + reads + fill + HLT, *CLEARS)
    vm.vmcs["GUEST_CR0"] |= CR0_WP
    assert "triple fault" in vm.run(timeout=20).message
    assert words(vm, X)[:2] == [Y | 7, (Y + 0x1000) | 7]
    assert vm.processor.registers.rdi == 0x4050_0000
    assert vm.vmcs["GUEST_RIP"] == 0x10_0000 + len(UNLINKED + reads + fill) - 3


@pytest.mark.parametrize("store", ["48c70207004000", "480912", "48ab"], ids=["mov", "or", "stos"])
def test_the_guests_own_rights_come_before_a_filter(store: str) -> None:
    """The table is mapped without R/W, with CR0.WP: what own-frame would complete is a fault."""
    # PD_2[2] = 20_0000H | 81H; rdx = rdi = X, by way of it.
    reads = RCX_PD_2 + bytes.fromhex("48c7411081002000")
    reads += b"\xba" + pack("<I", 0x4050_0000) + b"\xbf" + pack("<I", 0x4050_0000)
    code = LINKED + reads + bytes.fromhex("31c0" + store) + HLT
    vm = machine(code, "none", OWN_FRAME)
    vm.vmcs["GUEST_CR0"] |= CR0_WP
    assert "triple fault" in vm.run(timeout=20).message
    assert words(vm, X)[:2] == [0, 1]
    assert counts(vm)[1] == 0
    assert vm.processor.registers.cr2 == 0x4050_0000


@pytest.mark.parametrize(("store", "count"), [("f348ab", 0x201), ("f3ab", 0x402)])
def test_a_store_that_only_ends_in_a_known_table_clears_none(store: str, count: int) -> None:
    """RDI is below the fault's address, the table's first byte."""
    start = X - 4 if store == "f348ab" else X - 2
    code = UNLINKED + b"\xbf" + pack("<I", start) + b"\xb9" + pack("<I", count)
    ends = []
    for filters in (("none", 0), CLEARS):
        vm = machine(code + bytes.fromhex("31c0" + store) + HLT, *filters)
        vm.processor.memory.write(X - 0x10, b"\x22" * 0x10)
        vm.processor.memory.write(X + 0x10, b"\x22" * 0x1FF0)
        assert "halted" in vm.run(timeout=20).message
        r = vm.processor.registers
        ends.append((vm.processor.memory.read(X - 0x10, 0x2000), r.rdi, r.rcx))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("store", ["ffc7 f3aa", "83c704 f348ab", "f348a5"])
def test_what_begins_within_an_entry_or_is_no_stos_clears_no_known_table(store: str) -> None:
    """From X + 1, from X + 4, and zeros that REP MOVSQ copies."""
    code = UNLINKED + b"\xb9" + pack("<I", 0x20) + bytes.fromhex("31c0" + store) + HLT
    vm = machine(code, *CLEARS)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm)[0] == 3
    writes = vm.summary().table_writes
    assert writes is not None
    assert writes.exited["reused"] == 1


DIRECTORY, LOW_TABLE = 0x20_0000, 0x8000
IN_32_BITS = (
    b"\xb8" + pack("<I", LOW_TABLE) + b"\xc7\x00" + pack("<I", Y | 7)  # its entry 0
    + b"\xb9" + pack("<I", DIRECTORY)
    + b"\xc7\x81" + pack("<2I", 0x400, LOW_TABLE | 7)  # directory[256]
    + b"\xc7\x81" + pack("<2I", 0x400, 0)  # and 0 again, which only ¶80 knows
)  # fmt: skip


@pytest.mark.parametrize(
    ("base", "limit", "access_rights", "message", "completed"),
    [
        (0, 0xFFFF_FFFF, 0xC093, "halted", 2),
        (0x10_0000, 0xFFFF_FFFF, 0xC093, "halted", 1),
        (0, LOW_TABLE + 0xFFF, 0x4093, "halted", 2),
        (0, LOW_TABLE + 0xFF, 0x4093, "triple fault", 1),
    ],
)
def test_a_known_table_is_cleared_at_once_as_far_as_its_segment_goes(
    base: int, limit: int, access_rights: int, message: str, completed: int
) -> None:
    """REP STOSD in 32 bits, by ES: flat, with a base, and with a limit within the table (#GP)."""
    code = IN_32_BITS + b"\xbf" + pack("<I", (LOW_TABLE - base) & 0xFFFF_FFFF)
    code += b"\xb9" + pack("<I", 0x400) + bytes.fromhex("31c0 f3ab") + HLT
    segment = {
        "GUEST_ES_BASE": base,
        "GUEST_ES_LIMIT": limit,
        "GUEST_ES_ACCESS_RIGHTS": access_rights,
    }
    ends = []
    for filters in (("none", 0), CLEARS):
        vm = machine_in_32_bits(code, filters, segment)
        assert message in vm.run(timeout=20).message
        r = vm.processor.registers
        memory = vm.processor.memory.read(LOW_TABLE, 0x2000)
        ends.append((memory, r.rdi, r.rcx, vm.vmcs["GUEST_RIP"]))
    assert ends[0] == ends[1]
    assert vm.completed[Reason.FAULT_FILTER_PARAGRAPH_80 & 15] == completed


def machine_in_32_bits(
    code: bytes, filters: tuple[str, int], changes: dict[str, int]
) -> ProtectedMachine:
    """A guest on 32-bit paging, whose first 16 MB are mapped by 4-MB pages."""
    vm = ProtectedMachine(MEMORY)
    vm.vmcs["FAULT_FILTER"] = FILTERS[filters[0]]
    vm.vmcs["FRAME_FILTERS"] = filters[1]
    fields = {
        **protected_mode(0x10_0000, 0x18_0000, 0x1000),
        "GUEST_CR0": CR0_PE | CR0_ET | CR0_NE | CR0_PG,
        "GUEST_CR3": DIRECTORY,
        "GUEST_CR4": CR4_PSE,
        **changes,
    }
    pages = pack("<4I", *(n << 22 | 0x87 for n in range(4)))
    segments = (Segment(0x1000, gdt(32)), Segment(0x10_0000, code), Segment(DIRECTORY, pages))
    vm.load(GuestImage(GuestKind.FLAT, 32, segments, fields, {}, "a few lines"))
    vm.processor.memory.write(LOW_TABLE + 0x10, b"\x22" * 0x1FF0)
    return vm


def test_16_bit_code_clears_words() -> None:
    """400H of them, by DI and CX."""
    code = IN_32_BITS + b"\xbf" + pack("<I", LOW_TABLE) + b"\xb9" + pack("<I", 0x400)
    code += bytes.fromhex("31c0") + HLT
    vm = machine_in_32_bits(code + bytes.fromhex("f3ab") + HLT, CLEARS, {})
    assert "halted" in vm.run(timeout=20).message
    vm.vmcs["GUEST_CS_ACCESS_RIGHTS"] = 0x809B
    vm.vmcs["GUEST_RIP"] = 0x10_0000 + len(code)
    vm.vmcs["GUEST_ACTIVITY_STATE"] = 0
    vm.stopped = None
    assert "halted" in vm.run(timeout=20).message
    r = vm.processor.registers
    assert vm.processor.memory.read(LOW_TABLE, 0x1000) == bytes(0x800) + b"\x22" * 0x800
    assert (r.rdi, r.rcx) == (LOW_TABLE + 0x800, 0)


def same_end(code: bytes, tail: bytes = b"") -> ProtectedMachine:
    """The machine after the code, whatever is cleared at once; `tail` lies within the table."""
    ends = []
    for filters in (("none", 0), CLEARS):
        vm = machine(code, *filters)
        vm.processor.memory.write(X + 0x800, tail)
        message = vm.run(timeout=20).message
        r = vm.processor.registers
        state = r.rdi, r.rcx, r.dr6, vm.vmcs["GUEST_RIP"], vm.processor.memory.read(X, 0x1000)
        ends.append((message, state))
    assert ends[0] == ends[1]
    return vm


def test_a_data_breakpoint_within_a_known_table_stops_what_clears_it() -> None:
    """DR0 = X + 80H, eight bytes, writes: #DB behind the 17th store, as the VMM is told."""
    watch = b"\xb8" + pack("<I", X + 0x80) + bytes.fromhex("0f23c0")
    watch += b"\xb8" + pack("<I", 0x90401) + bytes.fromhex("0f23f8")
    fill = b"\xb9" + pack("<I", 0x200) + bytes.fromhex("31c0 f348ab")
    vm = same_end(UNLINKED + watch + fill + HLT)
    assert (vm.processor.registers.rdi, vm.processor.registers.rcx) == (X + 0x88, 0x200 - 17)


@pytest.mark.parametrize("filters", [("none", 0), ("paragraph-80", 0), ("none", OWN_FRAME)])
def test_code_within_a_table_changes_what_comes_next(filters: tuple[str, int]) -> None:
    """Entries that are not present, and instructions: MOV [RDX], RBX and, behind it, MOV RAX, 1."""
    slot, hlt = X + 0x808, bytes.fromhex("f490909090909090")
    store = bytes.fromhex("48891a9090909090 48c7c00100000090") + hlt
    code = LINKED + b"\xba" + pack("<I", slot) + b"\x48\xbb" + bytes.fromhex("48c7c00200000090")
    code += b"\xb9" + pack("<I", X + 0x800) + bytes.fromhex("ffe1")
    vm = machine(code, *filters)
    vm.processor.memory.write(X + 0x800, store)
    assert "halted" in vm.run(timeout=20).message
    assert vm.processor.registers.rax == 2
    assert vm.links.levels_of(X >> 12) == {1}


def test_code_within_a_known_table_clears_itself_one_by_one() -> None:
    """The REP STOS lies in the table, so what it is changes while it runs."""
    fill = b"\xb9" + pack("<I", 0x200) + bytes.fromhex("31c0 f348ab 90 90 f4")
    to = b"\xba" + pack("<I", X + 0x800) + bytes.fromhex("ffe2")
    same_end(UNLINKED + to, fill)


def test_what_clears_two_tables_is_two_writes() -> None:
    # PD_2[1] = X + 1000H | 7: the frame behind X is a table, too.
    both = UNLINKED + RCX_PD_2 + bytes.fromhex("48c7410807103000")
    completed = []
    for count in (0x200, 0x400):
        code = both + b"\xb9" + pack("<I", count) + bytes.fromhex("31c0 f348ab") + HLT
        vm = machine(code, "paragraph-80", OWN_FRAME | NO_LINK | KNOWN_TABLE)
        assert "halted" in vm.run(timeout=20).message
        completed.append(counts(vm)[1])
    assert completed[1] == completed[0] + 1


def test_a_criteria_table_is_asked_before_a_known_table_is_cleared() -> None:
    code = UNLINKED + b"\xb9" + pack("<I", 0x200) + bytes.fromhex("31c0 f348ab") + HLT
    vm = machine(code, "paragraph-80", OWN_FRAME | NO_LINK | KNOWN_TABLE)
    vm.vmcs.criteria_table = rules_for(parse("vector == PF and code & 0x4000 != 0"), Action.EXIT)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm)[1] == 0


def test_the_order_of_paragraph_67_is_kept_where_a_known_table_is_cleared() -> None:
    """What would exit does, whatever the filter says."""
    code = UNLINKED + b"\xb9" + pack("<I", 0x200) + bytes.fromhex("31c0 f348ab") + HLT
    vm = machine(code, *CLEARS)
    vm.vmcs["FAULT_FILTER_ORDER"] = ORDER_PARAGRAPH_67
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm)[1] == 0
    assert words(vm, X) == [0] * 512


def test_a_table_of_two_levels_is_not_cleared_unseen() -> None:
    # PDPT[2] = X | 7: a last-level table, and one of level 2.
    code = LINKED + b"\xb9" + pack("<I", PDPT) + bytes.fromhex("48c7411007003000")
    code += b"\xbf" + pack("<I", X) + b"\xb9" + pack("<I", 0x200)
    vm = machine(code + bytes.fromhex("31c0 f348ab") + HLT, *CLEARS)
    assert "halted" in vm.run(timeout=20).message
    assert vm.links.levels_of(X >> 12) == {1, 2}
    assert vm.completed[Reason.FAULT_FILTER_PARAGRAPH_80 & 15] == 0


def test_a_repeated_store_to_the_loaded_root_may_complete() -> None:
    code = b"\xbf" + pack("<I", PML4 + 0x800) + b"\xb9" + pack("<I", 4)
    vm = machine(code + bytes.fromhex("31c0 f348ab") + HLT, "paragraph-80", 0)
    assert "halted" in vm.run(timeout=20).message
    exits, completed = counts(vm)
    assert exits == 0
    assert completed > 0


def test_a_known_table_may_be_linked_again_without_an_exit() -> None:
    """At its level, and while it is a table and nothing else."""
    code = UNLINKED + RCX_PD_2 + bytes.fromhex("48c70107003000") + HLT
    for frame_filters, completed in ((OWN_FRAME, 0), (OWN_FRAME | KNOWN_TABLE, 1)):
        vm = machine(code, "paragraph-80", frame_filters)
        assert "halted" in vm.run(timeout=20).message
        assert vm.completed[Reason.KNOWN_TABLE & 15] == completed
        assert vm.links.levels_of(X >> 12) == {1}
        look(vm)
    # PDPT[2] = X: a table of the last level, where one of the level above belongs.
    code = UNLINKED + b"\xb9" + pack("<I", PDPT) + bytes.fromhex("48c7411007003000") + HLT
    vm = machine(code, "paragraph-80", OWN_FRAME | KNOWN_TABLE)
    assert "halted" in vm.run(timeout=20).message
    assert vm.completed[Reason.KNOWN_TABLE & 15] == 0
    assert vm.links.levels_of(X >> 12) == {2}
    look(vm)


EMPTY = (
    b"\xb9" + pack("<I", PDPT) + bytes.fromhex("48c7410807302000")  # PDPT[1] = PD_2 | 7
    + RCX_PD_2 + RAX_X + bytes.fromhex("48c70000000000")  # X[0] = 0, by a translation that stays
    + bytes.fromhex("48c70107003000")  # PD_2[0] = X | 7
    + bytes.fromhex("48c70007004000")  # X[0] = Y | 7: stopped, though an old translation allows it
    + bytes.fromhex("48c70000000000")  # X[0] = 0
)  # fmt: skip
GONE = bytes.fromhex("48c70100000000 48c70008000000")  # PD_2[0] = 0, X[0] = 8: data once more


def test_an_empty_frame_becomes_a_table_and_data_again_without_an_exit() -> None:
    filters = "none", OWN_FRAME | EMPTY_TABLE
    vm = machine(EMPTY + HLT, *filters)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm) == (0, 4)
    assert vm.completed[Reason.EMPTY_TABLE & 15] == 2
    assert [vm.links.levels_of(at >> 12) for at in (PD_2, X)] == [{2}, {1}]
    look(vm)
    vm = machine(EMPTY + GONE + HLT, *filters)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm) == (0, 5)
    assert [vm.links.levels_of(at >> 12) for at in (PD_2, X)] == [{2}, set()]
    # Its last link goes while it has an entry, and its next store is none of a table.
    filled = bytes.fromhex("48c70007004000 48c70100000000 48c70007000001") + HLT
    vm = machine(EMPTY + filled, *filters)
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm) == (1, 6)
    assert not vm.links.is_table(X >> 12)
    # By an instruction that has to be tried: MOVUPS, of two entries at once.
    pair = b"\xbb" + pack("<I", Y) + bytes.fromhex("0f1003 0f1101")
    vm = machine(EMPTY + pair + HLT, *filters)
    vm.processor.memory.write(Y, pack("<2Q", 0, (Y + 0x1000) | 7))
    assert "halted" in vm.run(timeout=20).message
    assert counts(vm) == (0, 5)
    levels = [vm.links.levels_of(at >> 12) for at in (PD_2, X, Y + 0x1000)]
    assert levels == [{2}, set(), {1}]
    look(vm)


@pytest.mark.parametrize("n", [0, 255, 511])
def test_a_frame_with_a_present_entry_is_not_empty(n: int) -> None:
    for filters, exits in ((OWN_FRAME | EMPTY_TABLE, 1), (OWN_TABLE | EMPTY_TABLE, 0)):
        vm = machine(EMPTY + HLT, "none", filters)
        vm.processor.memory.write(X + 8 * (n or 1), b"\x01")
        assert "halted" in vm.run(timeout=20).message
        assert counts(vm)[0] == exits


def test_more_links_than_are_counted_keep_a_table() -> None:
    """Three hundred links come, and all but one go: the processor has lost count, and keeps it."""
    code = (
        EMPTY
        + bytes.fromhex("be07003000 bb2c010000")  # esi = X | 7, ebx = 300
        + bytes.fromhex("4883c108 488931 ffcb 75f5")  # PD_2[n] = esi, upwards
        + bytes.fromhex("31f6 bb2c010000")
        + bytes.fromhex("488931 4883e908 ffcb 75f5")  # and away again
        + HLT
    )
    vm = machine(code, "none", OWN_FRAME | EMPTY_TABLE)
    assert "halted" in vm.run(timeout=20).message
    assert vm.links.is_table(X >> 12)
    assert counts(vm)[0] == 0
    look(vm)


def test_a_root_that_is_dropped_keeps_what_is_linked_unseen() -> None:
    vm = machine(HLT, "none", OWN_FRAME | KNOWN_TABLE)
    assert "halted" in vm.run(timeout=20).message
    other = X >> 12
    links = vm.links
    assert links.load_root((other,)) is None
    # A filter has let this entry come to lead to a known table.
    vm.processor.memory.write(X, pack("<Q", PDPT | 7))
    links.drop_root((PML4 >> 12,))
    assert links.is_table(PDPT >> 12)
    assert links.levels_of(PD >> 12) == {2}


def test_upper_entries_that_lead_to_no_other_table_may_change() -> None:
    # PD_2[1] = a 2-MB page, PD_2[1] = 0, PD_2[0] |= 200H, PDPT[2] = not present.
    code = bytes.fromhex("48c7410883006000 48c7410800000000 f0810900020000")
    code = LINKED + code + b"\xb9" + pack("<I", PDPT) + bytes.fromhex("48c7411000100000") + HLT
    for frame_filters, expected in ((OWN_FRAME, (6, 0)), (OWN_FRAME | NO_LINK, (2, 4))):
        vm = machine(code, "figure-8", frame_filters)
        assert "halted" in vm.run(timeout=20).message
        assert counts(vm) == expected


def test_what_is_not_the_guests_cannot_even_be_read() -> None:
    """By a 2-MB page of the guest's own."""
    vm = machine(b"\xb8" + pack("<I", MEMORY) + b"\x8b\x00" + HLT)
    stop = vm.run(timeout=20)
    assert stop.end is End.REFUSED
    assert "not the guest's" in stop.message


@pytest.mark.parametrize("relative", [False, True])
def test_a_refused_edit_stops_the_guest(relative: bool) -> None:
    """PD_2[1] = the VMM's frame, to an address in a register or relative to RIP."""
    code = LINKED + bytes.fromhex("48b90700000100000000") + b"\xb8" + pack("<I", PD_2 + 8)
    if relative:
        end = 0x10_0000 + len(code) + 7
        code += b"\x48\x89\x0d" + pack("<i", PD_2 + 8 - end)
    else:
        code += b"\x48\x89\x08"
    vm = machine(code + HLT, "figure-8", OWN_FRAME | NO_LINK)
    stop = vm.run(timeout=20)
    assert stop.end is End.REFUSED
    assert "is not the guest's" in stop.message
    assert words(vm, PD_2)[1] == 0


def test_an_entry_that_leads_elsewhere_may_stand_but_not_be_used() -> None:
    """The filters leave its table alone, until it has none any more."""
    load = b"\x48\xb9" + pack("<Q", MEMORY | 7)
    code = (
        LINKED
        + load + bytes.fromhex("48894808")  # X[1] = the VMM's frame
        + bytes.fromhex("48c7401007004000")  # X[2] = Y | 7: an exit
        + bytes.fromhex("48c7400800000000")  # X[1] = 0: an exit
        + bytes.fromhex("48c7401807004000")  # X[3] = Y | 7: completed
        + load + bytes.fromhex("48894808")
        + b"\xba" + pack("<I", 0x4000_3000) + bytes.fromhex("488b1a")  # by X[3]
        + b"\xba" + pack("<I", 0x4000_1000) + bytes.fromhex("488b1a")  # by X[1]
        + HLT
    )  # fmt: skip
    vm = machine(code, "figure-8", OWN_FRAME | NO_LINK)
    stop = vm.run(timeout=20)
    assert stop.end is End.REFUSED
    assert f"frame {MEMORY >> 12:#x} is not the guest's" in stop.message
    assert [word & ~0x60 for word in words(vm, X)[:4]] == [0, MEMORY | 7, Y | 7, Y | 7]
    assert vm.counts.edits == 6  # two links of LINKED's, and four here
    assert sum(vm.completed) == 1


def test_stores_of_every_width_and_kind() -> None:
    """MOVUPS, a push, a store across two pages of which one is a table, CMPXCHG8B."""
    code = (
        LINKED
        + bytes.fromhex("0f57c0 0f114010")  # movups [X+16], xmm0
        + b"\xbc" + pack("<I", X + 0x100) + b"\x6a\x00"  # push 0
        + b"\xbb" + pack("<I", X - 4) + bytes.fromhex("48c70300000000")  # across
        + bytes.fromhex("31d2 31db 4831c9") + RAX_X + bytes.fromhex("4889c7 31c0 0fc70f")
        + HLT
    )  # fmt: skip
    vm = machine(code, "figure-8", OWN_FRAME | NO_LINK)
    stop = vm.run(timeout=20)
    assert "halted" in stop.message, stop
    assert vm.counts.refused == 0


@pytest.mark.parametrize(
    ("name", "code", "stored"),
    [
        ("movups", "66480f6ec1 0f1100", {2: Y | 7, 3: 0}),
        ("movq", "66480f6ec1 660fd600", {2: Y | 7}),
        ("push", "488d6008 51", {2: Y | 7}),
        ("cmpxchg16b", "4889c7 31c031d2 4889cb31c9 480fc70f", {2: Y | 7, 3: 0}),
        ("pop", "bc00001800 51 488f00", {2: Y | 7}),
        ("xlock", "f0480fc108", {2: Y | 7}),
    ],
)
def test_edits_by_instructions_that_kernels_do_not_edit_by(
    name: str, code: str, stored: dict[int, int]
) -> None:
    """They are tried: with an entry that may stand, and with one that may not."""
    for target, end in ((Y, "halted"), (MEMORY, "not the guest's")):
        load = RAX_PD_2 + b"\x48\xb9" + pack("<Q", target | 7)
        vm = machine(LINKED + load + bytes.fromhex(code) + HLT)
        stop = vm.run(timeout=20)
        assert end in stop.message, (name, stop)
        expected = {n: value if target == Y else 0 for n, value in stored.items()}
        assert {n: words(vm, PD_2)[n] for n in stored} == expected, name


def test_an_instruction_that_was_tried_and_refused_is_as_if_it_never_was() -> None:
    load = RAX_PD_2 + b"\x48\xb9" + pack("<Q", MEMORY | 7)
    vm = machine(LINKED + load + bytes.fromhex("488d6008 51") + HLT)
    assert vm.run(timeout=20).end is End.REFUSED
    assert vm.vmcs["GUEST_RSP"] == PD_2 + 24
    at = vm.vmcs["GUEST_RIP"]
    assert vm.processor.memory.read(at, 1) == b"\x51"


@pytest.mark.parametrize(
    ("frame_filters", "expected"), [(0, (1, 0)), (OWN_FRAME, (0, 1)), (NO_LINK, (1, 0))]
)
def test_user_mode_may_store_to_tables_that_its_kernel_lets_it(
    frame_filters: int, expected: tuple[int, int]
) -> None:
    """X[2] = Y | 7 at ring 3, where HLT is #GP, and there is no handler."""
    vm = machine(LINKED + HLT, "none", frame_filters)
    assert "halted" in vm.run(timeout=20).message
    before = counts(vm)
    code = RAX_X + bytes.fromhex("48c7401007004000") + HLT
    vm.processor.memory.write(0x11_0000, code)
    vm.vmcs["GUEST_RIP"] = 0x11_0000
    for name, rights in (("CS", 0xA0FB), ("SS", 0xC0F3)):
        vm.vmcs[f"GUEST_{name}_SELECTOR"] |= 3
        vm.vmcs[f"GUEST_{name}_ACCESS_RIGHTS"] = rights
    vm.vmcs["GUEST_ACTIVITY_STATE"] = 0
    vm.stopped = None
    assert "triple fault" in vm.run(timeout=20).message
    assert words(vm, X)[2] == Y | 7
    after = counts(vm)
    assert (after[0] - before[0], after[1] - before[1]) == expected


def test_a_page_of_a_gigabyte_is_no_link_and_no_way_around() -> None:
    # PDPT[2] = 1-GB page at 0; data by it; then X[2] by it, which is a table.
    code = (
        LINKED
        + b"\xb9" + pack("<I", PDPT) + bytes.fromhex("48c7411087000000")
        + b"\xbb" + pack("<I", 0x8000_0000 + Y) + bytes.fromhex("48c70334120000")
        + b"\xbb" + pack("<I", 0x8000_0000 + X) + bytes.fromhex("48c7431007004000")
        + b"\xbb" + pack("<I", 0x8000_0000 + MEMORY) + bytes.fromhex("488b13")
        + HLT
    )  # fmt: skip
    vm = machine(code, "none", NO_LINK)
    stop = vm.run(timeout=20)
    assert stop.end is End.REFUSED
    assert "is not the guest's" in stop.message
    assert words(vm, Y)[0] == 0x1234
    assert words(vm, X)[2] == Y | 7
    # Two links, X[2] and the last load exit; the page of a gigabyte completes.
    assert counts(vm) == (4, 1)
    assert vm.links.levels_of(0) == set()


def test_code_in_a_table() -> None:
    """It is executed where it lies, and an edit that the VMM carries out changes it."""
    # X[2]: mov eax, 5 << 8; ret: not present. Called, changed by the VMM's hand, called again.
    entry = bytes.fromhex("b800050000c30000")
    patch = bytes.fromhex("b800070000c30000")
    load = b"\x48\xb9"
    code = (
        LINKED
        + b"\xbc" + pack("<I", 0x18_0000)
        + load + entry + bytes.fromhex("48894810") + b"\xbd" + pack("<I", X + 16) + b"\xff\xd5"
        + b"\x89\xc3" + RAX_X
        + load + patch + bytes.fromhex("48894810") + b"\xff\xd5" + HLT
    )  # fmt: skip
    for frame_filters in (0, OWN_FRAME):
        vm = machine(code, "none", frame_filters)
        assert "halted" in vm.run(timeout=20).message
        registers = vm.processor.registers
        assert (registers.rbx, registers.rax) == (0x500, 0x700)


def test_what_follows_a_snapshot_follows_it_again() -> None:
    """Halfway through the edits: tables, links and map go back with memory."""
    vm = machine(LINKED + USES, "figure-8", OWN_FRAME)
    vm.step(8)
    assert vm.links.levels_of(X >> 12) == {1}
    ends = []
    before = vm.snapshot()
    links = len(vm.links), vm.links.counts.tobytes()
    for _ in range(3):
        assert (len(vm.links), vm.links.counts.tobytes()) == links
        vm.step(100)
        assert vm.stopped is not None
        state = vm.processor.registers.rsi, words(vm, X)[0], vm.counts.edits, len(vm.links)
        ends.append((vm.stopped.message, *state, counts(vm), dict(vm.exits_by_level)))
        vm.restore(before)
        look(vm)
    assert len(set(map(str, ends))) == 1
    assert "halted" in ends[0][0]


def test_memory_and_engine_that_do_not_fit() -> None:
    with pytest.raises(DirectPagingError, match="4 GB"):
        ProtectedMachine(4 << 30)
    with pytest.raises(DirectPagingError, match="native"):
        ProtectedMachine(MEMORY, engine="portable")


def look(vm: ProtectedMachine) -> None:
    """The invariant, from nothing but memory, CR3, and the map."""
    size, everything = vm.memory, vm.processor.memory.cells.view(np.uint8)
    frame_map = everything[vm.base + size :]
    levels, width = vm.links.mode.levels, vm.links.mode.width
    entry = np.uint64 if width == 8 else np.uint32
    whole = everything[vm.base :].view(entry).reshape(-1, 4096 // width)
    tables = {frame for root in {vm._root(), *vm.links.roots} for frame in root}
    is_open = vm.vmcs["FRAME_FILTERS"] & OWN_TABLE
    for level in range(levels, 0, -1):
        frames = sorted(tables)
        if level == 1 and is_open:
            assert all(frame_map[frame] & fm.OWN for frame in frames)
            break
        assert all(frame_map[frame] & fm.TABLE for frame in frames)
        if level == 1:
            # What one without LEAF leads to, the walk looks at.
            frames = [frame for frame in frames if frame_map[frame] & fm.LEAF]
        entries = whole[frames].ravel().astype(np.int64)
        entries = entries[entries & P == P]
        if level > 1:
            entries = entries[entries & PS == 0]
        tables = set(np.unique((entries & ADDRESS) >> 12).tolist())
        assert all(frame < size >> 12 for frame in tables) or level == 1 or is_open
        assert not any(size >> 12 <= frame < vm.processor.memory.size >> 12 for frame in tables)


@pytest.mark.linux
@pytest.mark.parametrize(
    "name",
    ["amd64", *(pytest.param(name, marks=pytest.mark.slow) for name in ("686", "686-pae"))],
)
def test_debian_boots_unmodified(name: str) -> None:
    initrd = f"initrd-{'amd64' if name == 'amd64' else 'i386'}.cpio"
    if not (LINUX / f"vmlinuz-{name}").exists():
        pytest.skip("run tools/fetch-linux")
    output = io.BytesIO()
    vm = ProtectedMachine(256 << 20, console=Console(output, until="# $"))
    vm.vmcs["FAULT_FILTER"] = FILTERS["figure-8"]
    vm.load(
        load_guest(
            LINUX / f"vmlinuz-{name}",
            memory=256 << 20,
            append="console=ttyS0 pti=on",
            initrd=LINUX / initrd,
        )
    )
    while vm.stopped is None:
        vm.step(20_000_000)
        if vm.links.mode.levels:
            look(vm)
    assert vm.stopped.end is End.UNTIL, vm.stopped
    exits, completed = counts(vm)
    # Last-level tables are open: only writes to upper ones are stopped.
    assert completed > 100
    assert exits < 50
    assert vm.counts.refused == 0
