"""One fault filter, many interpreters: all agree with the boxes of figures 7 and 8 and ¶80.

`boxes` is the oracle. It takes numbers apart bit by bit, and imports nothing of ours.
"""

import ast
import inspect
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_rules import offences
from trapgate.decision import fault_filters

NAMES = ("figure-7", "figure-8", "paragraph-80")
BASE_32, BASE_64 = 0xC0000000, 0xFFFF_F680_0000_0000
"""Slot 768 of 1,024, and slot 493 of 512."""
XD = 1 << 63


class Write(NamedTuple):
    """A page fault's error code, where it was, the new entry and the old one."""

    code: int
    address: int
    data: int
    old: int


def field(number: int, high: int, low: int) -> int:
    return number >> low & (1 << high - low + 1) - 1


def boxes(name: str, width: int, ptbase: int, write: Write) -> bool:
    """Figures 7 and 8 box by box (706 to 820), with our two additions for 64-bit entries."""
    is_write = write.code in {0b011, 0b111}
    if width == 4:
        in_tables = field(write.address, 31, 22) == field(ptbase, 31, 22)
        is_pte = in_tables and field(write.address, 21, 12) != field(ptbase, 31, 22)
    else:
        in_tables = field(write.address, 63, 39) == field(ptbase, 63, 39)
        is_pte = in_tables and field(write.address, 38, 30) != field(ptbase, 47, 39)
    sets_p = field(write.data, 0, 0) == 1
    if name == "paragraph-80":
        return is_write and in_tables and not sets_p
    if not is_write or not is_pte:
        return False
    if not sets_p:
        return True
    if name == "figure-7" or field(write.old, 0, 0) == 0:
        return False
    top = 31 if width == 4 else 51
    if field(write.old, top, 12) != field(write.data, top, 12):
        return False
    if field(write.data, 1, 1) == 1 and field(write.old, 1, 1) == 0:
        return False
    if width == 8:
        if field(write.old, 7, 7) != field(write.data, 7, 7):
            return False
        if field(write.old, 63, 63) == 1 and field(write.data, 63, 63) == 0:
            return False
    return True


def verdict(name: str, width: int, ptbase: Any, xd: Any, write: Any) -> Any:
    """The same by the code under test; `xd` is bit 63 of the world's own kind."""
    code, address, data, old = write
    stopped = fault_filters.stopped_write(code)
    if width == 4:
        entry, pte = (
            fault_filters.in_page_table(address, ptbase),
            fault_filters.is_pte(address, ptbase),
        )
        kept, denying = fault_filters.FRAME, 0
    else:
        entry = fault_filters.in_page_table_64(address, ptbase)
        pte = fault_filters.is_pte_64(address, ptbase)
        kept, denying = fault_filters.FRAME_64 | fault_filters.LARGE, xd
    if name == "figure-7":
        return fault_filters.figure_7(stopped, pte, data)
    if name == "figure-8":
        return fault_filters.figure_8(stopped, pte, data, old, kept, denying)
    return fault_filters.paragraph_80(stopped, entry, data)


@st.composite
def writes(draw: st.DrawFn, width: int) -> Write:
    """Mostly writes that come near to completing: random numbers never do."""
    bits = 8 * width
    base = BASE_32 if width == 4 else BASE_64
    slot, page = (768, 12) if width == 4 else (493, 30)
    near = st.builds(
        lambda offset, directory: (
            base | (offset & ~(0x3FF << page if width == 4 else 0x1FF << page)) | slot << page
            if directory
            else base | offset
        ),
        st.integers(0, (1 << (22 if width == 4 else 39)) - 1),
        st.booleans(),
    )
    address = draw(st.one_of(near, near, st.integers(0, (1 << bits) - 1)))
    old = draw(st.integers(0, (1 << bits) - 1))
    flips = st.sampled_from([0, 1, 2, 4, 0x20, 0x80, 0x1000, 1 << bits - 1, 1 << bits - 12])
    data = old
    for _ in range(draw(st.integers(0, 3))):
        data ^= draw(flips)
    code = draw(st.sampled_from([0, 1, 2, 3, 3, 3, 5, 6, 7, 7, 11, 0x13, 0x23, 0x8003]))
    return Write(code, address, data, old)


every_filter = pytest.mark.parametrize("name", NAMES)
both_widths = pytest.mark.parametrize(("width", "base"), [(4, BASE_32), (8, BASE_64)])


def signed(number: int) -> int:
    return number - (number >> 63 << 64)


@every_filter
@both_widths
@settings(max_examples=200)
@given(data=st.data())
def test_integers_signed_or_not(name: str, width: int, base: int, data: st.DataObject) -> None:
    write = data.draw(writes(width))
    expected = boxes(name, width, base, write)
    assert verdict(name, width, base, XD, write) is expected
    cells = Write(*map(signed, write))
    assert verdict(name, width, signed(base), -XD, cells) is expected


@every_filter
@both_widths
@settings(max_examples=60)
@given(data=st.data())
def test_numpy(name: str, width: int, base: int, data: st.DataObject) -> None:
    rows = data.draw(st.lists(writes(width), min_size=1, max_size=20))
    expected = [boxes(name, width, base, row) for row in rows]
    unsigned = [np.array(column, np.uint64) for column in zip(*rows, strict=True)]
    got = verdict(name, width, np.uint64(base), np.uint64(XD), unsigned)
    assert got.tolist() == expected
    cells = [column.view(np.int64) for column in unsigned]
    got = verdict(name, width, np.int64(signed(base)), np.int64(-XD), cells)
    assert got.dtype == np.bool_
    assert got.tolist() == expected


@every_filter
@both_widths
@settings(max_examples=30)
@given(data=st.data())
def test_polars(name: str, width: int, base: int, data: st.DataObject) -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed")
    rows = data.draw(st.lists(writes(width), min_size=1, max_size=20))
    frame = pl.DataFrame(rows, schema=dict.fromkeys(Write._fields, pl.UInt64), orient="row")
    columns = [pl.col(column) for column in Write._fields]
    ptbase, xd = (pl.lit(number, dtype=pl.UInt64) for number in (base, XD))
    got = frame.select(says=verdict(name, width, ptbase, xd, columns))["says"].to_list()
    assert got == [boxes(name, width, base, row) for row in rows]


@every_filter
@both_widths
@settings(max_examples=20)
@given(data=st.data())
def test_z3_values(name: str, width: int, base: int, data: st.DataObject) -> None:
    z3 = pytest.importorskip("z3", reason="z3-solver is not installed")
    write = data.draw(writes(width))
    terms = Write(*(z3.BitVecVal(number, 8 * width) for number in write))
    value = z3.simplify(verdict(name, width, base, XD, terms))
    assert z3.is_true(value) or z3.is_false(value)
    assert z3.is_true(value) == boxes(name, width, base, write)


@every_filter
@both_widths
def test_z3_proves_each_filter_for_all_writes(name: str, width: int, base: int) -> None:
    z3 = pytest.importorskip("z3", reason="z3-solver is not installed")
    bits = 8 * width
    terms = Write(*(z3.BitVec(field_name, bits) for field_name in Write._fields))
    ptbase = z3.BitVec("ptbase", bits)
    offset = (1 << (22 if width == 4 else 39)) - 1

    def part(number: Any, high: int, low: int) -> Any:
        return z3.Extract(high, low, number)

    code, address, data, old = terms
    is_write = z3.Or(code == 3, code == 7)
    top, middle = (31, (21, 12)) if width == 4 else (63, (38, 30))
    low = 22 if width == 4 else 39
    in_tables = part(address, top, low) == part(ptbase, top, low)
    slot = part(ptbase, 31, 22) if width == 4 else part(ptbase, 47, 39)
    pte = z3.And(in_tables, part(address, *middle) != slot)
    clear = part(data, 0, 0) == 0
    frame = 31 if width == 4 else 51
    kept = z3.And(
        part(old, 0, 0) == 1,
        part(old, frame, 12) == part(data, frame, 12),
        z3.Or(part(data, 1, 1) == 0, part(old, 1, 1) == 1),
    )
    if width == 8:
        executes = z3.Or(part(old, 63, 63) == 0, part(data, 63, 63) == 1)
        kept = z3.And(kept, part(old, 7, 7) == part(data, 7, 7), executes)
    wanted = {
        "figure-7": z3.And(is_write, pte, clear),
        "figure-8": z3.And(is_write, pte, z3.Or(clear, kept)),
        "paragraph-80": z3.And(is_write, in_tables, clear),
    }[name]
    solver = z3.Solver()
    solver.add(ptbase & offset == 0, verdict(name, width, ptbase, XD, terms) != wanted)
    assert solver.check() == z3.unsat


@every_filter
@both_widths
def test_z3_proves_that_no_filter_adds_a_mapping(name: str, width: int, base: int) -> None:
    """docs/fault-filters.md, "Why it is safe": what a completed entry maps, it mapped before.

    As a page-table entry, and as an entry of a directory that is taken for one.
    """
    z3 = pytest.importorskip("z3", reason="z3-solver is not installed")
    bits = 8 * width
    terms = Write(*(z3.BitVec(field_name, bits) for field_name in Write._fields))
    _, _, data, old = terms
    entry = fault_filters.stopped_write(terms.code)
    if name == "figure-8":
        kept = fault_filters.LARGE | (fault_filters.FRAME if width == 4 else fault_filters.FRAME_64)
        says = fault_filters.figure_8(entry, entry, data, old, kept, XD if width == 8 else 0)
    elif name == "figure-7":
        says = fault_filters.figure_7(entry, entry, data)
    else:
        says = fault_filters.paragraph_80(entry, entry, data)

    def bit(number: Any, n: int) -> Any:
        return z3.Extract(n, n, number) == 1

    top = 31 if width == 4 else 51
    same = z3.And(
        bit(old, 0),
        z3.Extract(top, 12, old) == z3.Extract(top, 12, data),
        bit(old, 7) == bit(data, 7),
        z3.Implies(bit(data, 1), bit(old, 1)),
        z3.Implies(bit(old, 63), bit(data, 63)) if width == 8 else True,
    )
    solver = z3.Solver()
    solver.add(says, z3.Not(z3.Implies(bit(data, 0), same)))
    assert solver.check() == z3.unsat


@pytest.fixture(scope="module")
def compiled_admits() -> Any:
    from trapgate.compiler.program import alone
    from trapgate.decision.self_map import admits

    return alone(admits)


@every_filter
@both_widths
@settings(max_examples=60)
@given(data=st.data())
def test_machine_code(
    compiled_admits: Any, name: str, width: int, base: int, data: st.DataObject
) -> None:
    write = data.draw(writes(width))
    in_tables = boxes("paragraph-80", width, base, write._replace(code=3, data=0))
    pte = boxes("figure-7", width, base, write._replace(code=3, data=0))
    kind = 1 if pte else 2 if in_tables else 0
    expected = boxes(name, width, base, write._replace(code=3))
    cr4 = 0 if width == 4 else 1 << 5
    new, old = signed(write.data), signed(write.old)
    assert compiled_admits(NAMES.index(name) + 1, cr4, kind, new, old) == expected


def test_the_syntax_tree_of_the_filters_has_no_operator_that_lies() -> None:
    assert offences(ast.parse(inspect.getsource(fault_filters))) == []
