"""What the dialect means, by interpretation: integers that wrap, arrays that check indexes.

The functions themselves are run, by Python, on these. Nothing here comes from the compiler.
"""

from collections.abc import Iterator
from typing import Any, Self, SupportsIndex, overload

_SIGN = 1 << 63
_MASK = (1 << 64) - 1
_PATIENCE = 100_000
"""Numbers that a function may compute before it is given up."""
_left = [0]


class UndefinedError(Exception):
    """Something that the dialect gives no meaning to: it must not be asked of compiled code."""


def begin() -> None:
    """Before each function: give it time."""
    _left[0] = _PATIENCE


def wrapped(number: int) -> int:
    """The 64-bit two's complement number of which `number` is a multiple of 2**64 away."""
    return (int(number) + _SIGN & _MASK) - _SIGN


def _count(count: int) -> int:
    if not 0 <= count < 64:
        raise UndefinedError(f"a shift by {count}")
    return int(count)


class Word(int):
    """An integer of 64 bits."""

    def __new__(cls, number: int) -> Self:
        _left[0] -= 1
        if _left[0] < 0:
            raise UndefinedError("this takes too long")
        return super().__new__(cls, wrapped(number))

    def __add__(self, other: int) -> "Word":
        return Word(int(self) + int(other))

    __radd__ = __add__

    def __sub__(self, other: int) -> "Word":
        return Word(int(self) - int(other))

    def __rsub__(self, other: int) -> "Word":
        return Word(int(other) - int(self))

    def __mul__(self, other: int) -> "Word":
        return Word(int(self) * int(other))

    __rmul__ = __mul__

    def __and__(self, other: int) -> "Word":
        return Word(int(self) & int(other))

    __rand__ = __and__

    def __or__(self, other: int) -> "Word":
        return Word(int(self) | int(other))

    __ror__ = __or__

    def __xor__(self, other: int) -> "Word":
        return Word(int(self) ^ int(other))

    __rxor__ = __xor__

    def __lshift__(self, other: int) -> "Word":
        return Word(int(self) << _count(other))

    def __rlshift__(self, other: int) -> "Word":
        return Word(int(other) << _count(self))

    def __rshift__(self, other: int) -> "Word":
        return Word(int(self) >> _count(other))

    def __rrshift__(self, other: int) -> "Word":
        return Word(int(other) >> _count(self))

    def __mod__(self, other: int) -> "Word":
        if other == 0:
            raise UndefinedError("modulo 0")
        return Word(int(self) % int(other))

    def __rmod__(self, other: int) -> "Word":
        return Word(other) % int(self)

    def __floordiv__(self, other: int) -> "Word":
        if other == 0:
            raise UndefinedError("modulo 0")
        return Word(int(self) // int(other))

    def __rfloordiv__(self, other: int) -> "Word":
        return Word(other) // int(self)

    def __neg__(self) -> "Word":
        return Word(-int(self))

    def __invert__(self) -> "Word":
        return Word(~int(self))


def counted(*bounds: int) -> Iterator[Word]:
    """`range`, of words."""
    for number in range(*bounds):
        yield Word(number)


class Array:
    """Cells, or rows of them: indexes count from 0 and are inside."""

    def __init__(self, cells: list[Any]) -> None:
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def _inside(self, index: SupportsIndex, end: int) -> int:
        at = index.__index__()
        if not 0 <= at < end:
            raise UndefinedError(f"index {at} of {end}")
        return at

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> "Array": ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Tail(self, self._inside(index.start, len(self) + 1))
        cell = self.cells[self._inside(index, len(self))]
        return cell if isinstance(cell, Array) else Word(cell)

    def __setitem__(self, index: int, value: int) -> None:
        self.cells[self._inside(index, len(self))] = wrapped(value)

    def __iter__(self) -> Iterator[Any]:
        raise UndefinedError("a loop over an array")


class _Tail(Array):
    """An array from one of another's cells on."""

    def __init__(self, whole: Array, start: int) -> None:
        super().__init__(whole.cells)
        self._whole, self._start = whole, start

    def __len__(self) -> int:
        return len(self._whole) - self._start

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Tail(self._whole, self._start + self._inside(index.start, len(self) + 1))
        return self._whole[self._start + self._inside(index, len(self))]

    def __setitem__(self, index: int, value: int) -> None:
        self._whole[self._start + self._inside(index, len(self))] = value
