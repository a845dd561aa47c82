"""Stubs and callbacks in machine code: what they know of their caller, and where they go on."""

import ctypes
from collections.abc import Callable

import pytest

from trapgate.compiler.kinds import BOUND, INT64, RETURN_ADDRESS, VOID
from trapgate.compiler.library import Library
from trapgate.compiler.raw import call, go_on, peek64, poke64, return_address
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
