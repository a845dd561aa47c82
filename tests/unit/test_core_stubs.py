"""Stubs and callbacks in machine code: what they know of their caller, and where they go on."""

import ctypes
from collections.abc import Callable

import pytest

from trapgate.compiler.kinds import BOOLEAN, BOUND, INT32, INT64, RETURN_ADDRESS, UINT32, VOID
from trapgate.compiler.library import Callback, Library, Stub
from trapgate.compiler.raw import (
    call,
    cells,
    go_on,
    memory,
    peek8,
    peek16,
    peek32,
    peek64,
    poke8,
    poke16,
    poke32,
    poke64,
    return_address,
    table,
    watched,
)
from trapgate.compiler.routine import DialectError

LIBRARY = Library()


@LIBRARY.callback(INT64, INT64, INT64, BOUND)
def with_number(left: int, right: int, number: int) -> int:
    return left * 100 + right * 10 + number


@LIBRARY.callback(INT64, INT64, BOUND)
def with_another(left: int, number: int) -> int:
    return left - number


@LIBRARY.callback(INT64, RETURN_ADDRESS)
def caller(back: int) -> int:
    return back


@LIBRARY.callback(INT64, INT64, INT64)
def difference(left: int, right: int) -> int:
    return left - right


@LIBRARY.stub
def turned(function: int, left: int) -> None:
    """Elsewhere unless `left` is 0."""
    if left != 0:
        go_on(function, (left, function))


@LIBRARY.stub
def turned_by(cell: int, left: int) -> None:
    go_on(peek64(cell), (left, 1))


@LIBRARY.stub
def turned_early(cell: int, function: int) -> None:
    """Stores only where it does not go on elsewhere."""
    if function != 0:
        go_on(function, (1, cell))
    poke64(cell, 7)


@LIBRARY.entry
def doubled(number: int) -> int:
    return 2 * number


@LIBRARY.callback(INT64, INT64)
def asks_an_entry(number: int) -> int:
    return doubled(number) + 1


@LIBRARY.stub
def counted(cell: int, function: int) -> None:
    """Counts, and lets another stub do the rest."""
    poke64(cell, peek64(cell) + 1)
    go_on(slow, (cell, function))


@LIBRARY.stub
def slow(cell: int, function: int) -> None:
    poke64(cell, peek64(cell) + 10 * call(function, (4,)))


@LIBRARY.stub
def tells_caller(cell: int) -> None:
    poke64(cell, return_address())


@LIBRARY.stub
def tells_its_caller(cell: int) -> None:
    """The stub that it goes on at has the same caller."""
    poke64(cell + 8, return_address())
    go_on(tells_caller, (cell,))


@LIBRARY.callback(INT32, INT32, UINT32, BOOLEAN)
def narrow(signed: int, unsigned: int, chosen: bool) -> int:
    return (signed if chosen else unsigned) >> 1


@LIBRARY.callback(BOOLEAN, INT64)
def is_odd(number: int) -> bool:
    return number & 1 != 0


@LIBRARY.callback(VOID, INT64)
def moves(address: int) -> None:
    """Each width once: loaded from `address`, stored behind it, with higher bits to drop."""
    poke8(address + 8, peek8(address) + 0x100)
    poke16(address + 10, peek16(address) + 0x10000)
    poke32(address + 12, peek32(address) + (1 << 32))
    poke64(address + 16, peek64(address))


@LIBRARY.callback(INT64, INT64, INT64, INT64)
def in_cells(address: int, count: int, n: int) -> int:
    v = cells(address, count)
    return int(v[n]) * 100 + len(v)


@LIBRARY.callback(INT64, INT64, INT64, INT64)
def in_a_table(address: int, row: int, n: int) -> int:
    rows = table(address, 2, 3)
    return int(rows[row][n]) * 100 + len(rows[row])


@LIBRARY.callback(INT64, INT64, INT64, INT64)
def in_memory(address: int, count: int, watch: int) -> int:
    """The last cell, how many there are, and whether somebody watches; who does is told."""
    mem = memory(address, count, watch)
    seen = watched(mem)
    if len(seen) > 5:
        seen[1] = 77
    return int(mem[count - 1]) * 1000 + len(mem) * 10 + (len(seen) > 0)


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    """For each test, so that each sees what the compiler does now."""
    vars(LIBRARY).pop("code", None)
    for made in globals().values():
        if isinstance(made, Callback | Stub):
            vars(made).pop("address", None)


def c(address: int, count: int) -> Callable[..., int]:
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count)(address)


def test_a_callback_is_bound_to_a_number_of_its_own() -> None:
    assert c(with_number.bind(7), 2)(1, 2) == 127
    assert c(with_another.bind(-1), 1)(1) == 2
    assert c(with_number.address, 2)(1, 2) == 127
    assert c(with_number.bind(8), 2)(1, 2) == 128


def test_a_stub_goes_on_where_it_is_told() -> None:
    stub = c(turned.address, 2)
    assert stub(difference.address, 5) == 5 - difference.address
    stub(difference.address, 0)
    cell = ctypes.c_int64(difference.address)
    assert c(turned_by.address, 2)(ctypes.addressof(cell), 5) == 4


def test_nothing_of_a_stub_comes_after_it_has_gone_on() -> None:
    cell = ctypes.c_int64(5)
    stub, where = c(turned_early.address, 2), ctypes.addressof(cell)
    assert stub(where, difference.address) == 1 - where
    assert cell.value == 5
    stub(where, 0)
    assert cell.value == 7


def test_compiled_functions_call_what_python_calls() -> None:
    assert c(asks_an_entry.address, 1)(4) == 9


def test_a_stub_goes_on_at_another_stub() -> None:
    cell = ctypes.c_int64(5)
    same = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda number: number)
    where = ctypes.cast(same, ctypes.c_void_p).value
    c(counted.address, 2)(ctypes.addressof(cell), where)
    assert cell.value == 46


def test_what_a_stub_goes_on_at_has_its_caller() -> None:
    cells = (ctypes.c_int64 * 2)()
    c(tells_its_caller.address, 1)(ctypes.addressof(cells))
    assert cells[0] == cells[1] != 0
    # All are called by one place of ctypes'.
    assert c(caller.address, 0)() == cells[0]


def test_types_of_c_are_widened_and_cut() -> None:
    narrowed = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.c_uint32, ctypes.c_uint8)
    function = narrowed(narrow.address)
    assert function(-4, 6, 1) == -2
    assert function(-4, 0xFFFFFFFC, 0) == 0x7FFFFFFE
    assert function(-4, 0xFFFFFFFC, 2) == -2  # any number but 0 is true
    odd = ctypes.CFUNCTYPE(ctypes.c_uint8, ctypes.c_int64)(is_odd.address)
    assert [odd(number) for number in (2, 3, -1)] == [0, 1, 1]


def test_loads_and_stores_of_each_width() -> None:
    held = (ctypes.c_uint8 * 24)(*range(0xF1, 0xF9))
    c(moves.address, 1)(ctypes.addressof(held))
    assert bytes(held) == bytes.fromhex("f1f2f3f4f5f6f7f8 f100 f1f2 f1f2f3f4 f1f2f3f4f5f6f7f8")


def test_arrays_over_memory() -> None:
    held = (ctypes.c_int64 * 6)(1, 2, 3, 4, 5, 6)
    seen = (ctypes.c_int64 * 2)()
    where = ctypes.addressof(held)
    assert c(in_cells.address, 3)(where, 6, 4) == 506
    assert c(in_a_table.address, 3)(where, 1, 2) == 603
    assert c(in_memory.address, 3)(where, 4, 0) == 4040
    assert c(in_memory.address, 3)(where, 5, ctypes.addressof(seen)) == 5051
    assert list(seen) == [0, 77]


WRONG = Library()


@WRONG.callback(VOID, INT64)
def no_stub(function: int) -> None:
    go_on(function, (1,))


OTHER = Library()


@OTHER.stub
def loses_an_argument(function: int, left: int) -> None:
    go_on(function, (left,))


ANOTHER = Library()


@ANOTHER.callback(INT64)
def no_stub_either() -> int:
    return return_address()


@pytest.mark.parametrize(
    ("library", "words"),
    [
        (WRONG, "mark the function with @stub"),
        (OTHER, "as many arguments as it has itself"),
        (ANOTHER, "mark the function with @stub"),
    ],
)
def test_what_is_for_stubs_only(library: Library, words: str) -> None:
    with pytest.raises(DialectError, match=words):
        library.made()
