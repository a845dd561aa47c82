"""Fault filters on a running processor: their orders, their conditions, the journal, the TLB."""

from struct import pack, unpack_from

import pytest

from tests.conformance.self_mapped_guest import (
    CODE,
    DATA,
    FOUR_LEVEL,
    PAE,
    ROOT,
    TWO_LEVEL,
    Bench,
    Layout,
    Outcome,
)
from trapgate.decision.decide import REASONS
from trapgate.decision.entry_facts import KIND
from trapgate.events.journal import (
    ROW_ADDRESS,
    ROW_CPL,
    ROW_CR3,
    ROW_DATA,
    ROW_DISPOSITION,
    ROW_ENTRY,
    ROW_ERROR_CODE,
    ROW_OLD_VALUE,
    ROW_REASON,
    ROW_RIP,
)

EXIT, DELIVER, COMPLETE = range(3)
STORE = bytes.fromhex("8907")
"""MOV [EDI], EAX."""
PRESENT = 0x123 << 12 | 0x67
CLEAN = 0x123 << 12 | 0x07
UNMAPPED = 0x123 << 12 | 0x66
OTHER = 0x124 << 12 | 0x67

both_engines = pytest.mark.parametrize("engine", ["native", "portable"])


def store(
    bench: Bench,
    value: int,
    *,
    linear: int | None = None,
    memory: dict[int, bytes] | None = None,
    code: bytes = STORE,
    fields: dict[str, int] | None = None,
    **named: int,
) -> Outcome:
    layout = bench.layout
    filler = PRESENT.to_bytes(layout.width, "little") * (0x1000 // layout.width)
    registers = {"rax": value, "rdi": layout.tables + 0x40 if linear is None else linear}
    parts = dict.fromkeys(layout.frames, filler) | (memory or {})
    changed = (fields or {}) | named
    return bench.run(code, writable=False, memory=parts, registers=registers, fields=changed)


def went(outcome: Outcome) -> int:
    """The disposition of the latest event."""
    return outcome.rows[-1][ROW_DISPOSITION]


FILTERS = [
    # new entry: what figure 7, figure 8 and ¶80 do about it in a PTE, and in a PDE
    (UNMAPPED, (COMPLETE, COMPLETE, COMPLETE), (EXIT, EXIT, COMPLETE)),
    (CLEAN, (EXIT, COMPLETE, EXIT), (EXIT, EXIT, EXIT)),
    (OTHER, (EXIT, EXIT, EXIT), (EXIT, EXIT, EXIT)),
]


@both_engines
def test_filters_and_kinds_of_tables(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine)
    # An entry of the directory that nothing needs.
    linear, directory = 0xC0300000 + 4 * 500, {ROOT + 4 * 500: pack("<I", PRESENT)}
    for value, pte, pde in FILTERS:
        for number in (1, 2, 3):
            assert went(store(bench, value, FAULT_FILTER=number)) == pte[number - 1]
            outcome = store(bench, value, linear=linear, memory=directory, FAULT_FILTER=number)
            assert went(outcome) == pde[number - 1]
            (now,) = unpack_from("<I", outcome.memory, ROOT + 4 * 500)
            assert now == (value if pde[number - 1] == COMPLETE else PRESENT)


@both_engines
def test_kinds_of_tables_under_pae(engine: str) -> None:
    bench = Bench(PAE, engine)
    entry = 0x9000 + 8 * 100
    linear, directory = 0xC0601000 + 8 * 100, {entry: pack("<Q", PRESENT)}
    for value, pte, pde in FILTERS:
        for number in (1, 2, 3):
            assert went(store(bench, value, FAULT_FILTER=number)) == pte[number - 1]
            outcome = store(bench, value, linear=linear, memory=directory, FAULT_FILTER=number)
            assert went(outcome) == pde[number - 1]
            (now,) = unpack_from("<Q", outcome.memory, entry)
            assert now == (value if pde[number - 1] == COMPLETE else PRESENT)
    # A slot that does not hold its directory, and none is asked any more.
    outcome = store(bench, UNMAPPED, memory={0xB008: pack("<Q", 0x8000 | 5)})
    assert went(outcome) == EXIT


@both_engines
def test_without_a_filter_nothing_completes_and_the_data_are_known(engine: str) -> None:
    outcome = store(Bench(TWO_LEVEL, engine), UNMAPPED, FAULT_FILTER=0)
    row = outcome.rows[-1]
    assert row[ROW_DISPOSITION] == EXIT
    assert (row[ROW_ENTRY] & KIND, row[ROW_DATA], row[ROW_OLD_VALUE]) == (1, UNMAPPED, PRESENT)
    # Without PTBASE nobody looks.
    outcome = store(Bench(TWO_LEVEL, engine), UNMAPPED, FAULT_FILTER=0, PTBASE=0)
    assert outcome.rows[-1][ROW_ENTRY] == 0


@both_engines
@pytest.mark.parametrize(
    "layout", [TWO_LEVEL, PAE, FOUR_LEVEL], ids=["two-level", "pae", "four-level"]
)
@pytest.mark.parametrize("ring", [0, 3])
def test_the_row_of_a_completed_write(layout: Layout, engine: str, ring: int) -> None:
    code = bytes.fromhex("90 90") + (b"\x48" if layout.bits == 64 else b"") + STORE
    outcome = store(Bench(layout, engine, ring=ring), CLEAN, code=code)
    assert outcome.exit.reason.name == "VMCALL"
    (row,) = outcome.rows
    assert row[ROW_DISPOSITION] == COMPLETE
    assert REASONS[row[ROW_REASON]] == "FAULT_FILTER_FIGURE_8"
    assert row[ROW_ADDRESS] & (1 << layout.bits) - 1 == layout.tables + 0x40
    assert (row[ROW_ENTRY] & KIND, row[ROW_DATA], row[ROW_OLD_VALUE]) == (1, CLEAN, PRESENT)
    assert (row[ROW_RIP], row[ROW_CPL], row[ROW_CR3]) == (CODE + 2, ring, ROOT)
    assert row[ROW_ERROR_CODE] == (7 if ring else 3)


ORDERS = [
    # order, control bit: a write that satisfies figure 8, and one that does not
    (0, 1, COMPLETE, EXIT),
    (0, 0, COMPLETE, DELIVER),
    (1, 1, COMPLETE, EXIT),
    (1, 0, DELIVER, DELIVER),
    (2, 1, COMPLETE, EXIT),
    (2, 0, COMPLETE, EXIT),
    (3, 1, EXIT, EXIT),
    (3, 0, COMPLETE, DELIVER),
]


@both_engines
def test_orders(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine)
    for order, control, satisfied, otherwise in ORDERS:
        for value, expected in ((CLEAN, satisfied), (OTHER, otherwise)):
            outcome = store(bench, value, FAULT_FILTER_ORDER=order, EXCEPTION_BITMAP=control << 14)
            # There is no IDT: what is delivered becomes a triple fault, later.
            assert outcome.rows[0][ROW_DISPOSITION] == expected, (order, control, value)
            assert outcome.rows[0][ROW_DATA] == value


CONDITIONS = [
    ("another frame", {ROOT + 4 * 768: pack("<I", 0x3005)}, {}),
    ("unaligned", {}, {"PTBASE": 0xC0001000}),
    ("elsewhere", {}, {"PTBASE": 0x80000000}),
    ("beyond 4 GB", {}, {"PTBASE": 0x1_C000_0000}),
]


@both_engines
@pytest.mark.parametrize(
    ("memory", "fields"), [c[1:] for c in CONDITIONS], ids=[c[0] for c in CONDITIONS]
)
def test_a_filter_whose_conditions_do_not_hold_is_never_satisfied(
    engine: str, memory: dict[int, bytes], fields: dict[str, int]
) -> None:
    bench = Bench(TWO_LEVEL, engine)
    assert went(store(bench, UNMAPPED)) == COMPLETE
    # Where the slot leads to another table, its page is a read-only one all the same.
    linear = None if fields else 0xC0000040
    assert went(store(bench, UNMAPPED, memory=memory, linear=linear, fields=fields)) == EXIT


@both_engines
def test_pae_has_no_slot(engine: str) -> None:
    """Four directories cannot map one another at one place."""
    pdpt = b"".join(pack("<Q", 0x10000 + 0x1000 * n | 1) for n in range(4))
    directories = {0x10000: pack("<Q", 0x87), 0x13000: pack("<Q", 0x13000 | 5)}
    outcome = store(
        Bench(TWO_LEVEL, engine),
        UNMAPPED,
        linear=0xC0000040,
        memory={0x20000: pdpt} | directories,
        GUEST_CR3=0x20000,
        GUEST_CR4=0x2620,
    )
    assert (went(outcome), outcome.rows[-1][ROW_ENTRY] & KIND) == (EXIT, 0)


@both_engines
def test_conditions_are_those_of_the_tables_that_the_guest_has_loaded(engine: str) -> None:
    """MOV CR3 to tables whose slot holds another frame, and back to those it had."""
    other = 0x20000
    tables = {
        other: pack("<I", 0x3000 | 7),
        other + 4: pack("<I", TWO_LEVEL.frames[0] | 7),
        # The old directory, through the slot of the new one.
        other + 4 * 768: pack("<I", ROOT | 5),
    }
    code = bytes.fromhex("0f22d9") + STORE
    bench = Bench(TWO_LEVEL, engine)
    there = {"rbx": 0}
    filler = PRESENT.to_bytes(4, "little") * 1024
    for target, expected in ((other, EXIT), (ROOT, COMPLETE)):
        registers = there | {"rcx": target, "rax": UNMAPPED, "rdi": TWO_LEVEL.tables + 0x40}
        memory = dict.fromkeys(TWO_LEVEL.frames, filler) | tables
        outcome = bench.run(code, writable=False, memory=memory, registers=registers)
        assert outcome.rows[-1][ROW_RIP] == CODE + 3
        assert went(outcome) == expected


@both_engines
@pytest.mark.parametrize("slot", [0x87, 0x85])
def test_a_read_only_large_page_is_not_filtered(engine: str, slot: int) -> None:
    """Through the slot, its first 4 KB look like a page table; they are the VMM's business."""
    bench = Bench(TWO_LEVEL, engine)
    outcome = store(bench, 0, memory={ROOT + 4: pack("<I", slot)}, linear=0xC0001040)
    assert went(outcome) == EXIT
    assert not any(outcome.memory[0x40:0x44])
    assert outcome.rows[-1][ROW_ENTRY] == 0


@both_engines
def test_a_supervisors_table_is_not_for_users(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine, ring=3)
    assert went(store(bench, UNMAPPED)) == COMPLETE
    slot = {TWO_LEVEL.self_entry: pack("<I", ROOT | 1)}
    outcome = store(bench, UNMAPPED, memory=slot)
    assert (went(outcome), outcome.rows[-1][ROW_ERROR_CODE]) == (EXIT, 7)


@both_engines
@pytest.mark.parametrize(
    "layout", [TWO_LEVEL, PAE, FOUR_LEVEL], ids=["two-level", "pae", "four-level"]
)
def test_an_old_translation_may_live_until_invlpg_and_no_longer(
    layout: Layout, engine: str
) -> None:
    """The guest maps a page, reads it, unmaps it by a completed write, flushes, reads again."""
    page = {TWO_LEVEL: 0x400000, PAE: 0x200000, FOUR_LEVEL: 1 << 39}[layout]
    wide = b"\x48" if layout.bits == 64 else b""
    code = (
        bytes.fromhex("8b1e")  # mov ebx, [esi]
        + wide
        + STORE
        + bytes.fromhex("0f013e 8b0e")  # invlpg [esi]; mov ecx, [esi]
    )
    first = (DATA | 7).to_bytes(layout.width, "little")
    memory = dict.fromkeys(layout.frames, first) | {DATA: pack("<I", 0x5EC0DE)}
    registers = {"rax": DATA | 6, "rdi": layout.tables, "rsi": page}
    outcome = Bench(layout, engine).run(code, writable=False, memory=memory, registers=registers)
    completed, fault = outcome.rows
    assert completed[ROW_DISPOSITION] == COMPLETE
    assert (fault[ROW_ADDRESS], fault[ROW_ERROR_CODE]) == (page, 0)
    assert outcome.registers["rbx"] == 0x5EC0DE


@both_engines
def test_write_protection_of_a_page_holds_from_the_next_translation_on(engine: str) -> None:
    """R/W to 0 by a completed write; after INVLPG a store to the page faults."""
    code = bytes.fromhex("881e") + STORE + bytes.fromhex("0f013e 881e")
    memory = dict.fromkeys(TWO_LEVEL.frames, pack("<I", DATA | 7))
    registers = {"rax": DATA | 0x65, "rdi": TWO_LEVEL.tables, "rsi": 0x400000, "rbx": 0x5A}
    outcome = Bench(TWO_LEVEL, engine).run(code, writable=False, memory=memory, registers=registers)
    completed, fault = outcome.rows
    assert completed[ROW_DISPOSITION] == COMPLETE
    assert (fault[ROW_ADDRESS], fault[ROW_ERROR_CODE]) == (0x400000, 3)


@both_engines
def test_code_in_a_page_of_tables_is_translated_anew(engine: str) -> None:
    """A routine lies among the entries; a completed write changes its immediate operand."""
    # MOV EBX, imm32; RET. The immediate is an entry that is not present.
    routine = TWO_LEVEL.frames[0] + 0x103

    def call(at: int) -> bytes:
        return b"\xe8" + pack("<i", routine - (CODE + at + 5))

    edit = bytes.fromhex("c705041100c0") + pack("<I", 0x20)
    code = call(0) + edit
    code += call(len(code))
    memory = {routine: b"\xbb" + pack("<I", 0x10) + b"\xc3"}
    outcome = Bench(TWO_LEVEL, engine).run(code, writable=False, memory=memory, registers={})
    assert outcome.exit.reason.name == "VMCALL", outcome.exit
    assert outcome.rows[-1][ROW_DISPOSITION] == COMPLETE
    assert outcome.registers["rbx"] == 0x20


@both_engines
def test_single_step_traps_behind_a_completed_write(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine)
    for code in (STORE, bytes.fromhex("f30f7f07")):
        registers = {"rax": UNMAPPED, "rdi": TWO_LEVEL.tables + 0x40, "rflags": 0x102}
        outcome = bench.run(code, writable=False, memory={}, registers=registers)
        completed, trap = outcome.rows
        assert completed[ROW_DISPOSITION] == COMPLETE
        assert trap[3] == 1
        assert outcome.fields["GUEST_RIP"] == CODE + len(code)


@both_engines
def test_two_vmcs_one_filtered(engine: str) -> None:
    """Filters belong to the VMCS, not to the processor."""
    bench = Bench(TWO_LEVEL, engine)
    for _ in range(2):
        assert went(store(bench, UNMAPPED)) == COMPLETE
        assert went(store(bench, UNMAPPED, FAULT_FILTER=0)) == EXIT


@pytest.mark.native
def test_the_journal_keeps_what_was_written_only_with_its_own_event() -> None:
    """A delivery that follows has no data of its own."""
    bench = Bench(TWO_LEVEL, "native")
    outcome = store(bench, OTHER, EXCEPTION_BITMAP=0)
    assert [row[ROW_ENTRY] & KIND for row in outcome.rows] == [1] + [0] * (len(outcome.rows) - 1)
    assert len(outcome.rows) > 1


@both_engines
def test_alignment_is_checked_where_the_page_would_have_been_writable(engine: str) -> None:
    bench = Bench(TWO_LEVEL, engine, ring=3)
    registers = {"rax": 0, "rdi": TWO_LEVEL.tables + 2, "rflags": 0x40002}
    outcome = bench.run(
        STORE, writable=False, memory={}, registers=registers, fields={"GUEST_CR0": 0x80050031}
    )
    assert [row[3] for row in outcome.rows] == [17]
    registers["rdi"] += 2
    outcome = bench.run(
        STORE, writable=False, memory={}, registers=registers, fields={"GUEST_CR0": 0x80050031}
    )
    assert outcome.rows[-1][ROW_DISPOSITION] == COMPLETE


@both_engines
@pytest.mark.parametrize("base", [0, 0x1000, 1 << 32 - 12])
def test_what_stores_more_than_once_is_judged_as_a_whole_wherever_its_segment_begins(
    engine: str, base: int
) -> None:
    """PUSHAD maps one page by EAX, which some store last of all, and unmaps seven."""
    rip = CODE - base & 0xFFFF_FFFF
    registers = dict.fromkeys(("rcx", "rdx", "rbx", "rbp", "rsi", "rdi"), UNMAPPED)
    registers |= {"rax": OTHER, "rsp": TWO_LEVEL.tables + 0x60}
    memory = dict.fromkeys(TWO_LEVEL.frames, pack("<I", PRESENT) * 0x400)
    memory |= {rip & 0xFFFFF: b"\x89"} if base == 0x1000 else {}
    outcome = Bench(TWO_LEVEL, engine).run(
        bytes.fromhex("89c0 60"),  # mov eax, eax; pushad
        writable=False,
        memory=memory,
        registers=registers,
        fields={"GUEST_CS_BASE": base, "GUEST_RIP": rip},
    )
    assert [(row[ROW_DISPOSITION], row[ROW_RIP]) for row in outcome.rows] == [(EXIT, rip + 2)]
    frame = TWO_LEVEL.frames[0]
    assert outcome.memory[frame : frame + 0x80] == pack("<I", PRESENT) * 0x20


@both_engines
def test_a_completed_write_sets_the_flags_of_what_translates_it(engine: str) -> None:
    """Of the directory's entry for the table, with CR0.WP, too; a fault sets none (SDM)."""
    at = TWO_LEVEL.self_entry - 4 * 768 + 4
    for value, flags in ((UNMAPPED, 0x60), (OTHER, 0)):
        entry = {at: pack("<I", TWO_LEVEL.frames[0] | 5)}
        outcome = store(Bench(TWO_LEVEL, engine), value, memory=entry, GUEST_CR0=0x80010031)
        (now,) = unpack_from("<I", outcome.memory, at)
        assert (went(outcome) == COMPLETE) == (value == UNMAPPED)
        assert now == TWO_LEVEL.frames[0] | 5 | flags


@both_engines
def test_of_two_entries_written_at_once_the_refused_one_is_told(engine: str) -> None:
    """CMPXCHG8B, aligned: the first would be unmapped, the second lead elsewhere."""
    registers = {"rax": PRESENT, "rdx": PRESENT, "rbx": UNMAPPED, "rcx": OTHER}
    outcome = Bench(TWO_LEVEL, engine).run(
        bytes.fromhex("0fc70f"),
        writable=False,
        memory=dict.fromkeys(TWO_LEVEL.frames, pack("<I", PRESENT) * 0x400),
        registers=registers | {"rdi": TWO_LEVEL.tables + 0x40},
        fields={},
    )
    row = outcome.rows[-1]
    assert (went(outcome), row[ROW_OLD_VALUE], row[ROW_DATA]) == (EXIT, PRESENT, OTHER)


@both_engines
def test_under_smap_a_users_table_is_the_supervisors_with_ac_alone(engine: str) -> None:
    """The error code is the same, whether R/W or SMAP stops a write (SDM, "Access Rights")."""
    bench = Bench(TWO_LEVEL, engine)
    went_by = []
    for rflags in (2, 0x40002):
        registers = {"rax": UNMAPPED, "rdi": TWO_LEVEL.tables + 0x40, "rflags": rflags}
        fields = {"GUEST_CR4": 0x20_2600}
        memory = dict.fromkeys(TWO_LEVEL.frames, pack("<I", PRESENT) * 0x400)
        outcome = bench.run(
            STORE, writable=False, memory=memory, registers=registers, fields=fields
        )
        went_by.append((went(outcome), outcome.rows[-1][ROW_ERROR_CODE]))
    assert went_by == [(EXIT, 3), (COMPLETE, 3)]


@both_engines
def test_a_refused_write_over_entries_of_its_own_way_leaves_them(engine: str) -> None:
    """Sixteen bytes into the directory, the entry of the slot the first of them."""
    bench = Bench(TWO_LEVEL, engine)
    before = pack("<4I", ROOT | 0x25, 0, PRESENT, OTHER)
    outcome = bench.run(
        bytes.fromhex("f30f7f07"),  # movdqu [edi], xmm0
        writable=False,
        memory={TWO_LEVEL.self_entry: before},
        registers={"rdi": 0xC0300000 + 4 * TWO_LEVEL.slot},
    )
    assert (went(outcome), outcome.rows[-1][ROW_ENTRY] & KIND) == (EXIT, 2)
    at = TWO_LEVEL.self_entry
    assert outcome.memory[at : at + 16] == before
