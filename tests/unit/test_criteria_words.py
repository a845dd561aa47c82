"""The criteria table word by word: each value, each operator, and every bound of the checks."""

from typing import Any

import numpy as np
import pytest

from tests.unit.core_guest import CODE, Guest, signed
from trapgate.decision import clauses as cl
from trapgate.decision import criteria_table as ct
from trapgate.decision import fault_values as fv
from trapgate.paging import frame_map as fm
from trapgate.sdm import cells as f
from trapgate.sdm import checks as ck
from trapgate.sdm.state import CR4_PAE

ONES, SIGN = -1, -(1 << 63)
EDGES = [
    0,
    1,
    2,
    3,
    5,
    (1 << 31) - 1,
    1 << 31,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 2,
    (1 << 64) - 1,
]


def clause(
    what: int, operator: int = 0, operand: int = 0, limit: int = 0, mask: int = -1, no: bool = False
) -> tuple[int, ...]:
    return what | operator << 8 | no << 12, signed(mask), signed(operand), signed(limit)


def rule(action: int, *of: tuple[int, ...]) -> list[int]:
    return [action | len(of) << 8, *(word for one in of for word in one)]


def put(v: Any, rules: list[list[int]], bits: list[int] | None = None) -> Any:
    """The cells of a VMCS with that table, and a bitmap behind its rules."""
    words = [word for one in rules for word in one] + [signed(word) for word in bits or []]
    cells = np.zeros(f.LENGTH, np.int64)
    cells[: f.TABLE_START] = v[: f.TABLE_START]
    cells[f.TABLE_START : f.TABLE_START + len(words)] = words
    cells[f.CRITERIA_TABLE_LENGTH] = 8 * len(words)
    cells[f.CRITERIA_TABLE_RULES] = len(rules)
    return cells


def checked(*rules: list[int], bits: list[int] | None = None) -> Any:
    return put(np.zeros(f.LENGTH, np.int64), list(rules), bits)


# Operators


def holds(word: int, value: int, operand: int, limit: int = 0, v: Any = None) -> bool:
    cells = np.zeros(f.LENGTH, np.int64) if v is None else v
    answers = [
        bool(ct.clause_holds(cells, w, signed(value), signed(operand), signed(limit)))
        for w in (word, word | ct.NEGATED)
    ]
    assert answers[0] is not answers[1]
    return answers[0]


@pytest.mark.parametrize("operand", EDGES)
@pytest.mark.parametrize("value", EDGES)
def test_operators_are_unsigned(value: int, operand: int) -> None:
    other = 0x5A << 16 | 0xFF  # the value's number and the higher bits do not say the operator
    for operator, wanted in (
        (ct.EQUAL, value == operand),
        (ct.BELOW, value < operand),
        (ct.BELOW_OR_EQUAL, value <= operand),
        (ct.ANY_BIT, value & operand != 0),
        (ct.ALL_BITS, value & operand == operand),
    ):
        assert holds(operator << 8 | other, value, operand) is wanted, operator
    for limit in EDGES:
        within = operand <= value <= limit
        assert holds(ct.IN_RANGE << 8, value, operand, limit) is within
        answer = cl.in_range(signed(value), signed(operand), signed(limit), ONES, SIGN)
        assert bool(answer) is within
    assert bool(cl.below_64(signed(value), signed(operand), ONES, SIGN)) is (value < operand)
    assert bool(cl.is_equal(value, operand)) is (value == operand)
    assert bool(cl.any_bit(value, operand)) is (value & operand != 0)
    assert bool(cl.all_bits(value, operand)) is (value & operand == operand)
    assert cl.masked(value, operand) == value & operand


@pytest.mark.parametrize("limit", [0, 1, 63, 64, 65, 700, 1023, 1024])
def test_a_bitmap_answers_for_each_value_below_its_limit(limit: int) -> None:
    bits = [0x9E3779B97F4A7C15 * (n + 1) & (1 << 64) - 1 for n in range(16)]
    v = checked(rule(ct.RULE_EXIT), [0], bits=bits)
    for value in [*range(1100), 1 << 20, 1 << 63, (1 << 64) - 1]:
        wanted = value < limit and bool(bits[value >> 6] >> (value & 63) & 1)
        assert holds(ct.IN_BITMAP << 8, value, 16, limit, v) is wanted, value


def test_words_outside_of_the_table_are_0() -> None:
    v = np.full(f.LENGTH, 99, np.int64)
    v[f.CRITERIA_TABLE_LENGTH] = 24
    v[f.TABLE_START : f.TABLE_START + 3] = 5, 6, 7
    got = {at: ct.table_word(v, at) for at in (-8, -1, 0, 8, 16, 24, 32, 4096)}
    assert got == {-8: 0, -1: 0, 0: 5, 8: 6, 16: 7, 24: 0, 32: 0, 4096: 0}
    v[f.CRITERIA_TABLE_LENGTH] = 20
    assert [ct.table_word(v, at) for at in (8, 16)] == [6, 0]


# Values

HARD, SOFT_INT, PRIVILEGED, SOFT = 3, 4, 5, 6
NONE = (False, 0)
NOTHING = -1


def value(what: int, vector: int = 14, kind: int = HARD, v: Any = None, **told: int) -> Any:
    """A value that costs no walk, or (False, 0)."""
    cells = np.zeros(f.LENGTH, np.int64) if v is None else v
    names = ("error_code", "address", "length", "depth", "outer")
    fault = {"error_code": -1, "outer": -1} | told
    present, found = ct.fault_value(cells, what, vector, kind, *(fault.get(n, 0) for n in names))
    return (True, int(found)) if present else NONE


def test_what_every_fault_has() -> None:
    assert [value(fv.VECTOR, n) for n in (0, 13, 255)] == [(True, 0), (True, 13), (True, 255)]
    assert [value(fv.EVENT_TYPE, 3, n) for n in (0, 3, 6)] == [(True, 0), (True, 3), (True, 6)]
    assert [value(fv.DEPTH, depth=n) for n in range(3)] == [(True, 0), (True, 1), (True, 2)]


@pytest.mark.parametrize("code", [NOTHING, 0, 1, 7, 0xFFFF, 0xFFFF_FFFF])
@pytest.mark.parametrize("kind", range(8))
def test_values_that_only_some_faults_have(kind: int, code: int) -> None:
    for vector in range(20):
        got = {
            n: value(n, vector, kind, error_code=code, address=-2, length=3)
            for n in (fv.ERROR_CODE, fv.PAGE_FAULT_CODE, fv.SELECTOR_INDEX, fv.INSTRUCTION_LENGTH)
        }
        told = (True, code) if code >= 0 else NONE
        selects = kind == HARD and vector in (10, 11, 12, 13) and code >= 0
        assert got == {
            fv.ERROR_CODE: told,
            fv.PAGE_FAULT_CODE: told if vector == 14 and kind == HARD else NONE,
            fv.SELECTOR_INDEX: (True, code >> 3 & 0x1FFF) if selects else NONE,
            fv.INSTRUCTION_LENGTH: (True, 3) if kind in (4, 5, 6) else NONE,
        }
        v = np.zeros(f.LENGTH, np.int64)
        v[f.GUEST_RSP] = 0x1000
        for what, wanted in (
            (fv.ADDRESS, -2),
            (fv.PAGE, 0xF_FFFF_FFFF_FFFF),
            (fv.PAGE_OFFSET, 0xFFE),
            (fv.BELOW_STACK, 0x1002),
        ):
            found = value(what, vector, kind, v, error_code=code, address=-2)
            assert found == ((True, wanted) if vector == 14 and kind == HARD else NONE)


def test_parts_of_an_address() -> None:
    assert value(fv.PAGE, address=0x7654_3210_9ABC) == (True, 0x7_6543_2109)
    assert value(fv.PAGE_OFFSET, address=0x7654_3210_9ABC) == (True, 0xABC)
    assert value(fv.PAGE_OFFSET, address=0x1001) == (True, 1)


@pytest.mark.parametrize(
    ("outer", "found"), [(-1, NONE), (0, (True, 0)), (1, (True, 1)), (31, (True, 31))]
)
def test_the_interrupted_vector(outer: int, found: tuple[bool, int]) -> None:
    assert value(fv.INTERRUPTED_VECTOR, outer=outer) == found


def test_each_value_of_the_state_is_its_own_cell() -> None:
    cells = {
        fv.RIP: f.GUEST_RIP,
        fv.RSP: f.GUEST_RSP,
        fv.RFLAGS: f.GUEST_RFLAGS,
        fv.CR0: f.GUEST_CR0,
        fv.CR3: f.GUEST_CR3,
        fv.CR4: f.GUEST_CR4,
        fv.EFER: f.GUEST_IA32_EFER,
    }
    v = np.arange(1 << 20, (1 << 20) + f.LENGTH)
    assert {what: value(what, v=v) for what in cells} == {
        what: (True, (1 << 20) + cell) for what, cell in cells.items()
    }
    for ring in range(4):
        v[:] = 0
        v[f.GUEST_SS_ACCESS_RIGHTS] = 0xC093 | ring << 5
        assert value(fv.CPL, v=v) == (True, ring)
        v[:] = 1 << 5  # MODE: of these flags none
        v[f.GUEST_SS_ACCESS_RIGHTS] = 0x1_FF9F | ring << 5
        assert value(fv.CPL, v=v) == (True, ring)
        assert value(fv.MODE, v=v) == (True, fv.MODE_REAL)


# What costs a walk, or a look at the instruction


def found(guest: Guest, what: int, wanted: int | None, kind_of_entry: int = 0, **told: int) -> bool:
    """Whether the fault has that value, asked by rules; None: it has none."""
    fault = {"vector": 14, "kind": HARD, "error_code": 2, "outer": -1} | told
    names = ("vector", "kind", "error_code", "address", "length", "depth", "outer")
    arguments = [*(fault.get(name, 0) for name in names), kind_of_entry]
    arguments += [signed(told.get("old", 0)), signed(told.get("new", 0))]

    def first(*rules: list[int]) -> tuple[int, int]:
        v = put(guest.v, list(rules))
        action, number = ct.decide_by_table(v, guest.r, guest.mem, *arguments)
        return int(action), int(number)

    there = first(rule(ct.RULE_EXIT, clause(what, mask=0))) == (ct.RULE_EXIT, 0)
    if wanted is None:
        return not there
    return there and first(
        rule(ct.RULE_EXIT, clause(what, operand=wanted ^ 1)),
        rule(ct.RULE_DELIVER, clause(what, operand=wanted), clause(what, operand=wanted)),
    ) == (ct.RULE_DELIVER, 1)


WALKED = (fv.WALK_LEVEL, fv.ENTRY_ADDRESS, fv.ENTRY, fv.PAGE_ADDRESS, fv.FRAME_NUMBER)
MAP = 0x3_0000


def mapped(guest: Guest) -> Guest:
    guest.set(FRAME_MAP_ADDRESS=MAP, FRAME_MAP_LENGTH=64)
    guest.ram[MAP : MAP + 64] = range(100, 164)
    return guest


@pytest.mark.parametrize("page", [0, 1, 5, 6])
def test_values_of_a_walk(page: int) -> None:
    guest = Guest()
    guest.page(absent=(6,))
    entry = page << 12 | (0x60 if page == 6 else 0x67)
    address = page << 12 | 0x123
    there: list[int | None] = [None, None] if page == 6 else [address, page]
    wanted = [1, 0x21000 + 4 * page, entry, *there]
    for what, one in zip(WALKED, wanted, strict=True):
        assert found(guest, what, one, address=address), what
        for told in ({"vector": 13}, {"kind": SOFT_INT}, {"vector": 13, "kind": SOFT}):
            assert found(guest, what, None, address=address, **told)
    assert found(guest, fv.FRAME_TYPE, None, address=address)
    mapped(guest)
    assert found(guest, fv.FRAME_TYPE, None if page == 6 else 100 + page, address=address)
    if page == 0:
        for what, one in ((fv.PAGE_ADDRESS, 0), (fv.FRAME_NUMBER, 0), (fv.FRAME_TYPE, 100)):
            assert found(guest, what, one, address=0)
    guest.set(EPT_POINTER_IN_FORCE=1)
    assert all(found(guest, what, None, address=address) for what in (*WALKED, fv.FRAME_TYPE))


def test_values_of_a_walk_of_four_levels() -> None:
    guest = mapped(Guest(bits=64))
    guest.write(0x12008, (0x0060_0000_0000_00E7).to_bytes(8, "little"))
    wanted = [2, 0x12008, 0x0060_0000_0000_00E7, 0x3456, 3]
    for what, one in zip(WALKED, wanted, strict=True):
        assert found(guest, what, one, address=0x20_3456)
    assert found(guest, fv.FRAME_TYPE, 103, address=0x20_3456)
    assert found(guest, fv.WALK_LEVEL, 4, address=1 << 40)
    assert found(guest, fv.ENTRY_ADDRESS, 0x10010, address=1 << 40)
    assert found(guest, fv.ENTRY, 0, address=1 << 40)


def test_without_paging_there_is_no_walk() -> None:
    guest = mapped(Guest())
    assert all(found(guest, what, None, address=0x5123) for what in (*WALKED, fv.FRAME_TYPE))


def test_the_data_of_a_write() -> None:
    guest = Guest()
    guest.write(CODE, b"\x88\x03")  # MOV [EBX], AL
    guest.set(rax=0x1234)
    assert found(guest, fv.DATA, 0x34)
    assert found(guest, fv.DATA_SIZE, 1)
    for told in (
        {"outer": 0},
        {"outer": 1},
        {"outer": 13},
        {"error_code": 0},
        {"error_code": 0x10},
        {"error_code": 0x12},
        {"vector": 13},
        {"kind": SOFT_INT},
    ):
        assert found(guest, fv.DATA, None, **told), told
        assert found(guest, fv.DATA_SIZE, None, **told), told
    for code in (2, 3, 6, 7):
        assert found(guest, fv.DATA, 0x34, error_code=code)
    guest.write(CODE, b"\xd9\x1b")  # FSTP m32: a size, and data of x87
    assert found(guest, fv.DATA, None)
    assert found(guest, fv.DATA_SIZE, 4)
    guest.write(CODE, b"\x8b\x03")  # MOV EAX, [EBX] stores nothing
    assert found(guest, fv.DATA, None)
    assert found(guest, fv.DATA_SIZE, None)


ENTRIES = range(fv.TABLE_ENTRY, fv.REASON)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("pae", [0, CR4_PAE])
def test_a_write_to_a_table_entry(pae: int, kind: int) -> None:
    old, new = 0x8000_0001_2345_6063, 0x0FF0_0003_0000_5067
    guest = mapped(Guest())
    guest.set(GUEST_CR4=pae)
    frame = 0x3_0000_5000 if pae else 0x5000
    wanted = {
        fv.TABLE_ENTRY: kind,
        fv.OLD_ENTRY: old,
        fv.NEW_ENTRY: new,
        fv.SET_BITS: new & ~old,
        fv.CLEARED_BITS: old & ~new,
        fv.NEW_FRAME_NUMBER: frame >> 12,
        fv.NEW_FRAME_TYPE: fm.FOREIGN if pae else 105,
    }
    for what in ENTRIES:
        assert found(guest, what, signed(wanted[what]), kind, old=old, new=new), what
        assert found(guest, what, None, 0, old=old, new=new), what
    for what in range(fv.REASON, fv.VALUES_END):
        assert found(guest, what, None, kind, old=old, new=new), what
    for what in (fv.NEW_FRAME_NUMBER, fv.NEW_FRAME_TYPE):
        assert found(guest, what, None, kind, new=new ^ 1), what
    assert found(guest, fv.CLEARED_BITS, 1, kind, old=1)
    assert found(guest, fv.NEW_FRAME_NUMBER, 0xF_FFFF, kind, new=0xFFFF_FFFF)
    guest.set(FRAME_MAP_LENGTH=0)
    assert found(guest, fv.NEW_FRAME_TYPE, None, kind, new=new)
    assert found(guest, fv.NEW_FRAME_NUMBER, frame >> 12, kind, new=new)


# Rules


YES, NO = clause(fv.VECTOR, operand=13), clause(fv.VECTOR, operand=12)


def decided(*rules: list[int], bits: list[int] | None = None) -> tuple[int, int]:
    guest = Guest()
    v = put(guest.v, list(rules), bits)
    action, number = ct.decide_by_table(v, guest.r, guest.mem, 13, HARD, 0, 0, 0, 0, -1, 0, 0, 0)
    return int(action), int(number)


def test_the_first_rule_whose_clauses_all_hold() -> None:
    assert decided() == (ct.NEXT, -1)
    assert decided(rule(ct.RULE_EXIT, NO)) == (ct.NEXT, -1)
    assert decided(rule(ct.RULE_EXIT, NO, YES), rule(2, YES, NO), rule(3, YES)) == (3, 2)
    assert decided(rule(2, YES), rule(1, YES)) == (2, 0)
    assert decided(rule(1, NO), rule(0), rule(2)) == (0, 1)
    assert decided(rule(1, *[YES] * 5, NO), rule(2, *[YES] * 5)) == (2, 1)


def test_rules_of_the_most_clauses_and_the_most_rules() -> None:
    for count in (127, 128, 255):
        assert decided(rule(1, *[YES] * (count - 1), NO), rule(2, *[YES] * count)) == (2, 1)
    assert decided(*[rule(1, NO)] * 63, rule(2, YES)) == (2, 63)


def test_a_clause_sees_what_its_mask_leaves() -> None:
    assert decided(rule(1, clause(fv.VECTOR, operand=5, mask=7))) == (1, 0)
    assert decided(rule(1, clause(fv.VECTOR, operand=13, mask=7))) == (0, -1)
    for limit, wanted in ((13, 0), (14, 1)):
        one = clause(fv.VECTOR, ct.IN_BITMAP, 40, limit)
        assert decided(rule(1, one), bits=[1 << 13])[0] == wanted
        one = clause(fv.VECTOR, ct.IN_RANGE, 13, limit)
        assert decided(rule(1, one)) == (1, 0)
    assert decided(rule(1, clause(fv.VECTOR, ct.IN_RANGE, 12, 12))) == (0, -1)
    absent = clause(fv.INTERRUPTED_VECTOR, mask=0, no=True)
    assert decided(rule(1, absent)) == (0, -1)  # a value that is absent has no opposite


# Loading


@pytest.mark.parametrize(
    ("address", "length", "loaded"),
    [
        (0, 8, 1),
        (8, 16, 2),
        (8, 9, 2),
        (8, 1, 1),
        (56, 8, 1),
        (48, 16, 2),
        (0, 64, 8),
        (56, 1, 1),
        (56, 9, None),
        (56, 16, None),
        (0, 65, None),
        (64, 8, None),
        (1 << 40, 8, None),
        (1, 8, None),
        (2, 8, None),
        (4, 8, None),
        (4, 1, None),
        (-8, 16, None),
        (-8, 8, None),
        (1 << 63, 8, None),
        ((1 << 63) - 8, 16, None),
        ((1 << 63) - 8, ct.TABLE_BYTES, None),
        (0, ct.TABLE_BYTES, None),
        (3, 0, 0),
        (3, -8, 0),
        (3, ct.TABLE_BYTES + 1, 0),
        (3, 1 << 40, 0),
        (3, ct.TABLE_BYTES, None),
    ],
)
def test_a_table_is_loaded_if_it_is_within_memory(
    address: int, length: int, loaded: int | None
) -> None:
    v = np.full(f.LENGTH, 99, np.int64)
    v[f.CRITERIA_TABLE_ADDRESS], v[f.CRITERIA_TABLE_LENGTH] = signed(address), length
    mem = np.arange(500, 508)
    assert bool(ct.load_table(v, mem)) is (loaded is not None)
    count = loaded or 0
    at = address >> 3 if count else 0
    assert v[f.TABLE_START : f.TABLE_START + count].tolist() == mem[at : at + count].tolist()
    assert (v[f.TABLE_START + count :] == 99).all()


def test_the_longest_table_is_loaded() -> None:
    v = np.zeros(f.LENGTH, np.int64)
    v[f.CRITERIA_TABLE_LENGTH] = ct.TABLE_BYTES
    v[f.CRITERIA_TABLE_ADDRESS] = 8
    mem = np.arange(1000, 1001 + f.TABLE_CELLS)
    assert ct.load_table(v, mem)
    assert (v[f.TABLE_START :] == mem[1:]).all()


# The checks of VM entry


def failed(v: Any) -> tuple[int, int, int]:
    """The check, the place, and whether rules are about instructions."""
    v[f.CRITERIA_TABLE_INSTRUCTIONS] = 5
    check, place = ct.check_table(v)
    return int(check), int(place), int(v[f.CRITERIA_TABLE_INSTRUCTIONS])


GOOD = (0, 0, 0)


@pytest.mark.parametrize(
    ("length", "rules", "wanted"),
    [
        (0, 0, 0),
        (0, 1, ck.TABLE_RULES),
        (0, -1, ck.TABLE_RULES),
        (8, 0, ck.TABLE_RULES),
        (8, -1, ck.TABLE_RULES),
        (8, 1, 0),
        (-8, 1, ck.TABLE_LENGTH),
        (1, 1, ck.TABLE_LENGTH),
        (9, 1, ck.TABLE_LENGTH),
        (10, 1, ck.TABLE_LENGTH),
        (12, 1, ck.TABLE_LENGTH),
        (16, 2, 0),
        (512, 64, 0),
        (520, 65, ck.TABLE_RULES),
        (520, 1 << 40, ck.TABLE_RULES),
        (ct.TABLE_BYTES, 64, 0),
        (ct.TABLE_BYTES + 8, 64, ck.TABLE_LENGTH),
    ],
)
def test_lengths_and_counts(length: int, rules: int, wanted: int) -> None:
    v = np.zeros(f.LENGTH, np.int64)
    v[f.TABLE_START : f.TABLE_START + 64] = ct.RULE_EXIT
    v[f.CRITERIA_TABLE_LENGTH], v[f.CRITERIA_TABLE_RULES] = length, rules
    assert failed(v) == (wanted, 0, 0)


FULL = 8 * ct.TABLE_BYTES
"""Bits of a bitmap as long as the longest table."""


@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize(
    ("word", "operand", "limit", "check"),
    [
        (fv.VECTOR, 9, 0, 0),
        (fv.VECTOR | 1 << 12, 9, 0, 0),
        (fv.VECTOR | 1 << 13, 9, 0, ck.TABLE_CLAUSE),
        (fv.VECTOR | 1 << 62, 9, 0, ck.TABLE_CLAUSE),
        (fv.VECTOR | 1 << 63, 9, 0, ck.TABLE_CLAUSE),
        (fv.VECTOR | 7 << 8, 9, 0, ck.TABLE_CLAUSE),
        (fv.VECTOR | 8 << 8, 9, 0, ck.TABLE_CLAUSE),
        (fv.VECTOR | 15 << 8, 9, 0, ck.TABLE_CLAUSE),
        (fv.NEW_FRAME_TYPE, 9, 0, 0),
        (fv.VALUES_END, 9, 0, ck.TABLE_VALUE),
        (fv.VALUES_END + 1, 9, 0, ck.TABLE_VALUE),
        (0x80, 9, 0, ck.TABLE_VALUE),
        (0xFF, 9, 0, ck.TABLE_VALUE),
        *((fv.VECTOR | n << 8, 9, limit, bad)
          for n in (0, 1, 2, 4, 5)
          for limit, bad in ((1, ck.TABLE_CLAUSE), (-1, ck.TABLE_CLAUSE), (0, 0))),
        (fv.VECTOR | 3 << 8, 9, 12, 0),
        (fv.VECTOR | 3 << 8, 12, 9, 0),
        *((fv.VECTOR | 6 << 8, operand, limit, 0 if good else ck.TABLE_BITMAP)
          for operand, limit, good in (
              (0, 0, True), (0, 1, True), (0, FULL, True), (0, FULL + 1, False),
              (8, FULL, False), (8, FULL - 64, True), (8, FULL - 63, False),
              (ct.TABLE_BYTES, 0, True), (ct.TABLE_BYTES, 1, False),
              (ct.TABLE_BYTES + 8, 0, False),
              (ct.TABLE_BYTES - 8, 1, True), (ct.TABLE_BYTES - 8, 64, True),
              (ct.TABLE_BYTES - 8, 65, False), (ct.TABLE_BYTES - 16, 65, True),
              (1, 8, False), (2, 8, False), (4, 8, False), (-8, 8, False), (8, -1, False),
              (8, -64, False), ((1 << 63) - 8, 0, False), ((1 << 63) - 8, 65, False),
              (0, (1 << 63) - 1, False),
          )),
    ],
)  # fmt: skip
def test_clauses(word: int, operand: int, limit: int, check: int, before: int) -> None:
    one = (signed(word), -1, operand, limit)
    v = checked(rule(ct.RULE_EXIT), rule(ct.RULE_DELIVER, *[YES] * before, one, YES))
    v[f.CRITERIA_TABLE_LENGTH] = ct.TABLE_BYTES
    assert failed(v) == (check, 1 << 16 | before if check else 0, 0)


@pytest.mark.parametrize(
    ("head", "check"),
    [
        (0, 0),
        (3, ck.TABLE_COMPLETES),
        (4, ck.TABLE_RULE),
        (5, ck.TABLE_RULE),
        (0x80, ck.TABLE_RULE),
        (0xFF, ck.TABLE_RULE),
        (1 | 1 << 16, ck.TABLE_RULE),
        (1 | 1 << 63, ck.TABLE_RULE),
        (1 | 1 << 62, ck.TABLE_RULE),
        (1 | 128 << 8, 0),
        (1 | 255 << 8, 0),
    ],
)
def test_heads_of_rules(head: int, check: int) -> None:
    v = checked(rule(ct.RULE_EXIT, YES), [signed(head)])
    v[f.CRITERIA_TABLE_LENGTH] = ct.TABLE_BYTES
    assert failed(v) == (check, 1 << 16 if check else 0, 0)


@pytest.mark.parametrize("count", [0, 1, 2, 128, 255])
def test_a_table_ends_behind_its_last_rule(count: int) -> None:
    for less, check in ((0, 0), (8, ck.TABLE_END), (32 * count + 8, ck.TABLE_END)):
        v = checked(rule(ct.RULE_EXIT, YES), rule(ct.RULE_EXIT, *[YES] * count))
        v[f.CRITERIA_TABLE_LENGTH] -= less
        assert failed(v) == (check, 1 << 16 if check else 0, 0)
    v = checked(rule(ct.RULE_EXIT, *[YES] * count), rule(ct.RULE_EXIT), [7])
    assert failed(v) == (ck.TABLE_RULE, 2 << 16, 0)


WRITE, PORT = clause(fv.TABLE_ENTRY, operand=2), clause(fv.PORT, operand=0x60)


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([rule(3, WRITE)], GOOD),
        ([rule(3, YES, WRITE, YES)], GOOD),
        ([rule(3, clause(fv.NEW_FRAME_TYPE))], GOOD),
        ([rule(3, clause(fv.DATA_SIZE))], (ck.TABLE_COMPLETES, 0, 0)),
        ([rule(3, YES)], (ck.TABLE_COMPLETES, 0, 0)),
        ([rule(3)], (ck.TABLE_COMPLETES, 0, 0)),
        ([rule(3, WRITE), rule(3, YES)], (ck.TABLE_COMPLETES, 1 << 16, 0)),
        ([rule(3, PORT)], (ck.TABLE_COMPLETES, 0, 0)),
        ([rule(3, WRITE, PORT)], (ck.TABLE_COMPLETES, 0, 0)),
        ([rule(3, PORT, WRITE)], (ck.TABLE_COMPLETES, 0, 0)),
        ([rule(3, WRITE), rule(2, PORT)], (0, 0, 1)),
        ([rule(2, PORT), rule(3, WRITE)], (0, 0, 1)),
        ([rule(2, PORT), rule(2, YES)], (0, 0, 1)),
        ([rule(2, PORT, YES)], (0, 0, 1)),
        ([rule(1, clause(fv.REASON))], (0, 0, 1)),
        ([rule(1, clause(fv.STARTUP_VECTOR))], (0, 0, 1)),
        ([rule(1, clause(fv.NEW_FRAME_TYPE))], GOOD),
        ([rule(2, PORT), [4]], (ck.TABLE_RULE, 1 << 16, 1)),
    ],
)
def test_what_rules_may_complete(rules: list[list[int]], wanted: tuple[int, int, int]) -> None:
    assert failed(checked(*rules)) == wanted
