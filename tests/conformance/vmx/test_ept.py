"""EPT: which accesses of a guest exit, as what, and what is said about them.

Whole guests under a VMM of x86 code, a boot for each mode of the guest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from struct import pack

import pytest

from tests.conformance import tiny_guest as tiny
from tests.conformance.tiny_guest import Tiny
from tests.conformance.vmx import ept_guests as eg
from tests.conformance.vmx import guests
from tests.conformance.vmx import harness as h
from tests.conformance.vmx.ept_guests import (
    ACCESSES,
    FAR,
    LINEAR,
    LINEAR_VALID,
    MISCONFIGURATION,
    TRANSLATED,
    VIOLATION,
    VMCALL,
    Entries,
)
from tests.conformance.vmx.guests import Case, Event, Exit

pytestmark = [pytest.mark.conformance, pytest.mark.native]

MODES = ("r16", "p32", "pae", "l64")
PAGED = ("p32", "pae", "l64")
PRIMARY, SECONDARY = "PRIMARY_PROCESSOR_BASED_CONTROLS", "SECONDARY_PROCESSOR_BASED_CONTROLS"
Wanted = tuple[int, int, int, int]
"""Exit reason, qualification, guest-physical and guest-linear address."""


@dataclass(frozen=True)
class Row:
    """A guest under EPT, and its exit; `event` is what was being delivered."""

    mode: str
    name: str
    wanted: Wanted
    entries: Entries = field(default_factory=Entries)
    code: bytes = b""
    memory: Mapping[int, bytes] = field(default_factory=dict)
    fields: Mapping[str, int] = field(default_factory=dict)
    ring: int = 0
    event: Event | None = None
    pointer: int = eg.POINTER
    secondary: int = 0
    rip: int | None = None

    @property
    def guest(self) -> Tiny:
        """The guest, with the structures in its memory."""
        fields = dict(self.fields)
        if self.mode == "pae":
            fields = {"GUEST_PDPTE0": tiny.TABLES + 0x2000 | 1} | fields
        memory = self.entries.memory() | eg.marked(self.mode) | dict(self.memory)
        return Tiny(self.mode, self.ring, self.code, memory, fields)

    @property
    def case(self) -> Case:
        """The same for a batch."""
        controls = h.guest_fields(64, self.guest)
        return Case(
            self.guest,
            {
                PRIMARY: controls[PRIMARY] | 1 << 31,
                SECONDARY: 1 << 1 | self.secondary,
                "EPT_POINTER": self.pointer,
            },
        )


def accesses() -> Iterator[Row]:
    """Every kind of access to a page with every set of rights, given at every level."""
    for mode in PAGED:
        for shift, far in FAR.items():
            if mode == "p32" and far >> 32:
                continue
            for access, wanted in ACCESSES.items():
                for rights in range(8):
                    yield Row(
                        mode,
                        f"{access}, rights {rights} at bit {shift}",
                        eg.outcome(wanted, rights, far, LINEAR),
                        eg.chain(shift, rights),
                        eg.instruction(access, LINEAR, mode == "l64"),
                        eg.mapping(mode, LINEAR, far | 0x67) | {eg.TARGET: tiny.VMCALL},
                    )


def walks() -> Iterator[Row]:
    """Guest tables in pages that the walk may not read, or may not write."""
    for mode in PAGED:
        long = mode == "l64"
        for table in eg.tables_of(mode):
            at = eg.entry_of(mode, table, tiny.CODE)
            for rights in (0, 4):
                told = LINEAR_VALID | rights << 3 | 1
                yield Row(
                    mode,
                    f"table {table:#x}, rights {rights}",
                    (VIOLATION, told, at, tiny.CODE),
                    Entries({table: table | eg.WB | rights}),
                )
            yield Row(
                mode,
                f"table {table:#x} is misconfigured",
                (MISCONFIGURATION, 0, at, 0),
                Entries({table: table | eg.WB | 2}),
            )
            read_only = Entries({table: table | eg.WB | 1})
            yield Row(
                mode,
                f"table {table:#x} is read-only",
                (VMCALL, 0, 0, 0),
                read_only,
                eg.instruction("write", tiny.DATA, long),
            )
        last = eg.tables_of(mode)[-1]
        told = LINEAR_VALID | 1 << 3 | 3  # a read and a write
        for access, entry in (("read", 7), ("write", 7), ("write", 0x27)):
            yield Row(
                mode,
                f"{access} that has to set flags, entry {entry:#x}",
                (VIOLATION, told, eg.entry_of(mode, last, LINEAR), LINEAR),
                Entries({last: last | eg.WB | 1}),
                eg.instruction(access, LINEAR, long),
                eg.mapping(mode, LINEAR, LINEAR | entry),
            )
        yield Row(
            mode,
            "a page fault comes before what EPT says of the page",
            (VMCALL, 0, 0, 0),
            Entries({tiny.READ_ONLY: 0}),
            eg.instruction("write", tiny.READ_ONLY, long),
        )


def misconfigurations() -> Iterator[Row]:
    """Settings that are none, in each kind of entry."""
    mode = "l64"
    far = FAR[21]
    page = eg.TARGET
    bad = [("type", page | 7 | kind << 3) for kind in (2, 3, 7)]
    bad += [("address", page | eg.PAGE | 1 << bit) for bit in (40, 51)]
    bad += [("write-only", page | eg.WB | 2), ("write and execute", page | eg.WB | 6)]
    for what, entry in bad:
        yield Row(
            mode,
            f"{what}: {entry:#x}",
            (MISCONFIGURATION, 0, FAR[12] + 8, 0),
            Entries({FAR[12]: entry}),
            eg.instruction("read", LINEAR + 8, long=True),
            eg.mapping(mode, LINEAR, FAR[12] | 0x67),
        )
    for what, place, entry in (
        ("table with bit 3", eg.PD, eg.PT_2 | 7 | 1 << 3),
        ("table with bit 6", eg.PD, eg.PT_2 | 7 | 1 << 6),
        ("table too high", eg.PD, eg.PT_2 | 7 | 1 << 40),
        ("large page not aligned", eg.PD, 1 << 12 | eg.PAGE | eg.LARGE),
        ("large page of type 2", eg.PD, 7 | 2 << 3 | eg.LARGE),
    ):
        yield Row(
            mode,
            what,
            (MISCONFIGURATION, 0, far, 0),
            Entries(others={place + 8 * (far >> 21): entry, eg.PT_2: page | eg.PAGE}),
            eg.instruction("read", LINEAR, long=True),
            eg.mapping(mode, LINEAR, far | 0x67),
        )
    for what, far, place, entry in (
        ("PDPTE, page not aligned", FAR[30], eg.PDPT + 8, 1 << 21 | eg.PAGE | eg.LARGE),
        ("PDPTE with bit 4", FAR[30], eg.PDPT + 8, eg.PD | 7 | 1 << 4),
        ("PML4E with bit 7", FAR[39], eg.PML4 + 8, eg.PDPT | 7 | eg.LARGE),
        ("PML4E with bit 3", FAR[39], eg.PML4 + 8, eg.PDPT | 7 | 1 << 3),
    ):
        yield Row(
            mode,
            what,
            (MISCONFIGURATION, 0, far, 0),
            Entries(others={place: entry}),
            eg.instruction("read", LINEAR, long=True),
            eg.mapping(mode, LINEAR, far | 0x67),
        )
    # What software may use as it likes, and reserved bits of what is not present.
    for what, entry in (
        ("ignored bits", page | eg.PAGE | 1 << 6 | 0xF00 | 0xFFF << 52),
        ("not present", 0xFF << 40 | 2 << 3),
    ):
        present = entry & 7
        yield Row(
            mode,
            what,
            eg.outcome(eg.READ, present, FAR[12], LINEAR),
            Entries({FAR[12]: entry}),
            eg.instruction("read", LINEAR, long=True),
            eg.mapping(mode, LINEAR, FAR[12] | 0x67),
        )


def large_pages() -> Iterator[Row]:
    """A large page of EPT, with a guest's small one, and the other way round."""
    code = b"\x48\xb8" + pack("<Q", LINEAR + 0x18) + b"\xff\xe0"
    for shift, place in ((21, eg.PD + 8 * 2), (30, eg.PDPT + 8)):
        far = FAR[shift]
        offset = eg.TARGET & (1 << shift) - 1
        for rights in (7, 1):
            wanted = eg.outcome(eg.EXECUTE, rights, far + offset + 0x18, LINEAR + 0x18)
            yield Row(
                "l64",
                f"page of bit {shift}, rights {rights}",
                wanted,
                Entries(others={place: rights | eg.WB | eg.LARGE}),
                code,
                eg.mapping("l64", LINEAR, far + offset | 0x67) | {eg.TARGET + 0x18: tiny.VMCALL},
            )
    # The guest's page of 2 MBytes: one of its small parts is not there.
    part = tiny.DATA
    yield Row(
        "l64",
        "guest's large page over small ones",
        (VIOLATION, LINEAR_VALID | TRANSLATED | 1, part, (2 << 20) + part),
        Entries({part: 0}),
        eg.instruction("read", (2 << 20) + part - 8, long=True)
        + eg.instruction("read", (2 << 20) + part, long=True),
        {tiny.TABLES + 0x2008: pack("<Q", 0xE7)},
    )


def deliveries() -> Iterator[Row]:
    """What event delivery reads and writes: IDT, GDT, TSS and stack."""
    breakpoint_ = Event(3, 6, None)
    for mode in PAGED:
        step = 16 if mode == "l64" else 8
        word = 8 if mode == "l64" else 4
        code_segment = tiny.CODE_64 if mode == "l64" else tiny.CODE_32
        gate = tiny.IDT + 3 * step
        stack_word = tiny.TSS + (4 if mode == "l64" else 8)
        data = LINEAR_VALID | TRANSLATED
        rows = [
            ("IDT", tiny.IDT, 0, gate, data | 1),
            ("GDT", tiny.GDT, 0, tiny.GDT + code_segment, data | 1),
            ("stack", tiny.STACK - 0x1000, 0, tiny.STACK - word, data | 2),
            ("read-only stack", tiny.STACK - 0x1000, 1, tiny.STACK - word, data | 1 << 3 | 2),
        ]
        for ring in (0, 3):
            for what, page, rights, address, told in rows:
                yield Row(
                    mode,
                    f"INT3 in ring {ring}, {what}",
                    (VIOLATION, told, address, address),
                    Entries({page: page | eg.WB | rights}),
                    b"\xcc",
                    ring=ring,
                    event=breakpoint_,
                )
        yield Row(
            mode,
            "INT3 in ring 3, TSS",
            (VIOLATION, data | 1, stack_word, stack_word),
            Entries({tiny.TSS: tiny.TSS | eg.WB}),
            b"\xcc",
            ring=3,
            event=breakpoint_,
        )
        yield Row(
            mode,
            "a page fault, IDT misconfigured",
            (MISCONFIGURATION, 0, tiny.IDT + 14 * step, 0),
            Entries({tiny.IDT: tiny.IDT | eg.WB | 2}),
            eg.instruction("read", tiny.ABSENT, mode == "l64"),
            event=Event(14, 3, 0),
        )
        yield Row(
            mode,
            "an injected NMI, handler's page",
            (VIOLATION, data | 4, tiny.handler(2), tiny.handler(2)),
            Entries({tiny.HANDLERS: tiny.HANDLERS | eg.WB}),
            fields={"VM_ENTRY_INTERRUPTION_INFORMATION": 1 << 31 | 2 << 8 | 2},
        )
        yield Row(
            mode,
            "an injected NMI, stack",
            (VIOLATION, data | 2, tiny.STACK - word, tiny.STACK - word),
            Entries({tiny.STACK - 0x1000: 0}),
            fields={"VM_ENTRY_INTERRUPTION_INFORMATION": 1 << 31 | 2 << 8 | 2},
            event=Event(2, 2, None),
        )
        load_ds = b"\xb8" + pack("<I", tiny.DATA_0) + b"\x8e\xd8"
        yield Row(
            mode,
            "MOV DS",
            (VIOLATION, data | 1, tiny.GDT + tiny.DATA_0, tiny.GDT + tiny.DATA_0),
            Entries({tiny.GDT: 0}),
            load_ds,
        )


def unrestricted() -> Iterator[Row]:
    """Real-address mode, and protected mode without paging."""
    place = 0xF000
    read = b"\xa1" + pack("<H", place)
    enter_protected = bytes.fromhex("0f20c0 0c01 0f22c0")
    leave_protected = bytes.fromhex("0f20c0 24fe 0f22c0")
    data = LINEAR_VALID | TRANSLATED
    absent = Entries({place: 0})
    ran = (VMCALL, 0, 0, 0)
    faulted = (VIOLATION, data | 1, place, place)
    real: list[tuple[str, bytes, Entries, Wanted, Event | None, int | None]] = [
        ("runs", read, Entries(), ran, None, 3),
        ("data", read, absent, faulted, None, 0),
        ("data, after a while in protected mode", enter_protected + leave_protected + read, absent,
         faulted, None, 16),
        ("protected mode without paging", enter_protected + read, absent, faulted, None, 8),
        ("#UD goes through the IVT", b"\x0f\x0b", Entries(), ran, None, tiny.handler(6)),
        ("IVT", b"\xcc", Entries({0: 0}), (VIOLATION, data | 1, 12, 12), Event(3, 6, None), 0),
        ("stack", b"\xcc", Entries({tiny.STACK - 0x1000: tiny.STACK - 0x1000 | eg.WB | 5}),
         (VIOLATION, data | 5 << 3 | 2, tiny.STACK - 2, tiny.STACK - 2), Event(3, 6, None), 0),
        ("IVT misconfigured, INT 3CH", b"\xcd\x3c", Entries({0: 2}),
         (MISCONFIGURATION, 0, 0xF0, 0), Event(0x3C, 4, None), 0),
    ]  # fmt: skip
    for name, code, entries, wanted, event, rip in real:
        yield Row(
            "r16",
            name,
            wanted,
            entries,
            code,
            fields={"GUEST_CS_ACCESS_RIGHTS": 0x9B, "GUEST_CS_LIMIT": 0xFFFF},
            event=event,
            secondary=eg.UNRESTRICTED,
            rip=rip,
        )
    unpaged = {"GUEST_CR0": 0x31}
    yield Row(
        "p32",
        "without paging",
        (VIOLATION, data | 2, tiny.DATA, tiny.DATA),
        Entries({tiny.DATA: 0}),
        eg.instruction("write", tiny.DATA, long=False),
        fields=unpaged,
        secondary=eg.UNRESTRICTED,
    )
    yield Row(
        "p32",
        "paging is switched on",
        ran,
        Entries(),
        bytes.fromhex("0f20c0 0d00000080 0f22c0") + eg.instruction("read", tiny.ABSENT, long=False),
        fields=unpaged,
        secondary=eg.UNRESTRICTED,
        rip=tiny.handler(14),
    )


def pointers() -> Iterator[Row]:
    """The four page-directory pointers of PAE paging are registers, loaded with CR3."""
    table, good = 0x33000, tiny.TABLES + 0x2000 | 1
    load_cr3 = b"\xb8" + pack("<I", table) + b"\x0f\x22\xd8"
    toggle_pge = bytes.fromhex("0f20e0 3480 0f22e0")
    toggle_wp = bytes.fromhex("0f20c0 3500000100 0f22c0")
    second = b"\xa1" + pack("<I", (1 << 30) + tiny.DATA)
    ran = (VMCALL, 0, 0, 0)
    four = pack("<QQQQ", good, good, 0, 0)
    end = tiny.CODE + len(load_cr3 + second)
    rows: list[tuple[str, bytes, dict[int, bytes], int, Wanted]] = [
        ("from the VMCS, not from memory", b"", {tiny.TABLES: bytes(32)}, tiny.CODE, ran),
        ("an edit in memory", second, {tiny.TABLES: four}, tiny.handler(14), ran),
        ("MOV CR3", load_cr3 + second, {table: four}, end, ran),
        ("MOV CR3, reserved bit", load_cr3, {table: pack("<Q", 3)}, tiny.handler(13), ran),
        ("MOV CR4, PGE", toggle_pge + second, {tiny.TABLES: four},
         tiny.CODE + len(toggle_pge + second), ran),
        ("MOV CR0, WP", toggle_wp + second, {tiny.TABLES: four}, tiny.handler(14), ran),
    ]  # fmt: skip
    for name, code, memory, rip, wanted in rows:
        yield Row("pae", f"pointers, {name}", wanted, code=code, memory=memory, rip=rip)
    for rights, reason in ((0, VIOLATION), (4, VIOLATION), (2, MISCONFIGURATION)):
        told = (rights << 3 | 1) * (reason == VIOLATION)
        yield Row(
            "pae",
            f"pointers, MOV CR3, rights {rights}",
            (reason, told, table, 0),
            Entries({table: table | eg.WB | rights}),
            load_cr3,
            {table: four},
            rip=tiny.CODE + 5,
        )


def with_flags() -> Iterator[Row]:
    """With accessed and dirty flags for EPT, walks of guest tables count as writes."""
    for mode in PAGED:
        for table in eg.tables_of(mode):
            at = eg.entry_of(mode, table, tiny.CODE)
            yield Row(
                mode,
                f"flags, table {table:#x} is read-only",
                (VIOLATION, LINEAR_VALID | 1 << 3 | 3, at, tiny.CODE),
                Entries({table: table | eg.WB | 1}),
                pointer=eg.POINTER | eg.FLAGS,
            )


def mode_based() -> Iterator[Row]:
    """Every kind of access to pages of user and supervisor mode, with every set of rights."""
    for mode, shift in (("p32", 12), ("pae", 12), ("l64", 12), ("l64", 21)):
        far = FAR[shift]
        for access, wanted in ACCESSES.items():
            for rights in (*range(8), *range(eg.USER, eg.USER + 8)):
                for user in (False, True):
                    page = eg.mapping(mode, LINEAR, far | (0x67 if user else 0x63))
                    yield Row(
                        mode,
                        f"by mode, {access}, rights {rights:#x} at bit {shift}, user {user}",
                        eg.mode_based_outcome(wanted, rights, far, user=user),
                        code=eg.instruction(access, LINEAR, mode == "l64"),
                        memory=eg.mode_based(shift, rights) | page | {eg.TARGET: tiny.VMCALL},
                        secondary=eg.MODE_BASED,
                    )
    # Without paging all linear addresses are those of user mode.
    code = bytes.fromhex("b8") + pack("<I", FAR[12]) + bytes.fromhex("ffe0")
    for rights in (7, eg.USER | 1):
        ran = (VMCALL, 0, 0, 0)
        told = LINEAR_VALID | TRANSLATED | 7 << 3 | 4
        yield Row(
            "p32",
            f"by mode, without paging, rights {rights:#x}",
            (VIOLATION, told, FAR[12], FAR[12]) if rights == 7 else ran,
            code=code,
            memory=eg.mode_based(12, rights) | {eg.TARGET: tiny.VMCALL},
            fields={"GUEST_CR0": 0x31},
            secondary=eg.MODE_BASED | eg.UNRESTRICTED,
        )


ROWS = [
    *unrestricted(),
    *pointers(),
    *with_flags(),
    *accesses(),
    *walks(),
    *misconfigurations(),
    *large_pages(),
    *mode_based(),
    *deliveries(),
]


def of(mode: str, mode_based: int = 0) -> list[Row]:
    """The rows of a boot."""
    return [row for row in ROWS if (row.mode, row.secondary & eg.MODE_BASED) == (mode, mode_based)]


def plain(mode: str, mode_based: int) -> Tiny:
    """A guest whose physical addresses are what they seem."""
    memory = eg.mode_based(12, 7 | eg.USER) if mode_based else {}
    return Row(mode, "", (0, 0, 0, 0), memory=memory).guest


@cache
def exits(mode: str, mode_based: int) -> dict[str, Exit]:
    """By name of the row."""
    rows = of(mode, mode_based)
    found = guests.run(64, mode, (row.case for row in rows), plain(mode, mode_based))
    return {row.name: done for row, done in zip(rows, found, strict=True)}


def told(done: Exit) -> Wanted:
    """What an exit says that is not undefined."""
    if done.reason == VIOLATION:
        linear = done.linear if done.qualification & LINEAR_VALID else 0
        return done.reason, done.qualification, done.physical, linear
    if done.reason == MISCONFIGURATION:
        return done.reason, 0, done.physical, 0
    return done.reason, 0, 0, 0


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{row.mode}-{row.name}") for row in ROWS])
def test_exit(row: Row) -> None:
    done = exits(row.mode, row.secondary & eg.MODE_BASED)[row.name]
    assert done.verdict == "exit", done
    assert told(done) == row.wanted, done
    assert done.idt_vectoring == row.event
    assert row.rip is None or done.rip == row.rip


def test_no_row_has_the_name_of_another() -> None:
    for mode in MODES:
        rows = [row for row in ROWS if row.mode == mode]
        assert len({row.name for row in rows}) == len(rows)
