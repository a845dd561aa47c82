"""Loads, stores and calls at bare addresses, for compiled code only.

Each is an instruction or two, or one call: `trapgate.compiler.expressions` knows them by
their names. Addresses and values are 64-bit integers; narrower loads are zero-extended.
"""

import ctypes
import weakref
from typing import Final, NoReturn

import numpy as np

from trapgate.compiler.dialect import Cells, Memory, Rows


def _compiled_only() -> NoReturn:
    raise NotImplementedError("there are bare addresses in compiled code only")


def peek8(address: int) -> int:
    """Load 8 bits."""
    _compiled_only()


def peek16(address: int) -> int:
    """Load 16 bits."""
    _compiled_only()


def peek32(address: int) -> int:
    """Load 32 bits."""
    _compiled_only()


def peek64(address: int) -> int:
    """Load 64 bits."""
    _compiled_only()


def poke8(address: int, value: int) -> None:
    """Store the low 8 bits of `value`."""
    _compiled_only()


def poke16(address: int, value: int) -> None:
    """Store the low 16 bits of `value`."""
    _compiled_only()


def poke32(address: int, value: int) -> None:
    """Store the low 32 bits of `value`."""
    _compiled_only()


def poke64(address: int, value: int) -> None:
    """Store `value`."""
    _compiled_only()


def call(address: int, arguments: tuple[int, ...]) -> int:
    """Call the C function at an address with a tuple of integers; its result as an integer."""
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(arguments))
    return int(kind(int(address))(*map(int, arguments)))


def add_doubles(first: int, second: int) -> int:
    """Add two numbers of double precision, given by their bits; all these round to nearest."""
    _compiled_only()


def subtract_doubles(first: int, second: int) -> int:
    """Subtract the second from the first."""
    _compiled_only()


def multiply_doubles(first: int, second: int) -> int:
    """Multiply them."""
    _compiled_only()


def divide_doubles(first: int, second: int) -> int:
    """Divide the first by the second."""
    _compiled_only()


def add_singles(first: int, second: int) -> int:
    """Likewise with single precision, in the low 32 bits; the others of the result are 0."""
    _compiled_only()


def subtract_singles(first: int, second: int) -> int:
    """Subtract."""
    _compiled_only()


def multiply_singles(first: int, second: int) -> int:
    """Multiply."""
    _compiled_only()


def divide_singles(first: int, second: int) -> int:
    """Divide."""
    _compiled_only()


class Continuation:
    """A stub where another can go on; `symbol` is its name in machine code."""

    def __init__(self, symbol: str) -> None:
        self.symbol: Final = symbol


def return_address() -> int:
    """In a stub: where its caller goes on."""
    _compiled_only()


def go_on(function: object, arguments: tuple[int, ...]) -> None:
    """End a stub: go on at a C function, or at another stub, as if its caller had called that."""
    _compiled_only()


def cells(address: int, count: int) -> Cells:
    """An array over memory, which somebody else keeps alive."""
    _compiled_only()


def memory(address: int, count: int, watch: int) -> Memory:
    """The same for physical memory, whose stores are watched in the cells at `watch`."""
    _compiled_only()


def peek_in(mem: Memory, place: int, bits: int) -> int:
    """The 8, 16, 32 or 64 bits from byte `place` of physical memory on, all of which it has.

    How many they are is written where this is called. Less than 64 are zero-extended.
    """
    place = int(place)
    shift = (place & 7) << 3
    word = int(mem[place >> 3]) >> shift
    if shift + bits > 64:
        word = word & ((1 << (64 - shift)) - 1) | int(mem[(place >> 3) + 1]) << (64 - shift)
    return _signed(word) if bits == 64 else word & ((1 << bits) - 1)


def poke_in(mem: Memory, place: int, bits: int, value: int) -> None:
    """Change 8, 16 or 32 bits from byte `place` of physical memory on to the low ones of `value`.

    As with `peek_in`, memory has all of them.
    """
    place = int(place)
    shift = (place & 7) << 3
    mask = ((1 << bits) - 1) << shift
    new = int(value) << shift & mask
    mem[place >> 3] = _signed(int(mem[place >> 3]) & ~mask | new)
    if shift + bits > 64:
        cell = (place >> 3) + 1
        mem[cell] = _signed(int(mem[cell]) & ~(mask >> 64) | new >> 64)


def _signed(word: int) -> int:
    """The low 64 bits of a number as two's complement."""
    return (word & (1 << 64) - 1 ^ 1 << 63) - (1 << 63)


def watch(mem: Memory, cells: Cells) -> None:
    """Let `cells` be where stores to `mem` are watched, for interpreted functions too."""
    _watches[id(mem)] = weakref.ref(mem), cells


def watched(mem: Memory) -> Cells:
    """The cells in which stores to physical memory are watched; none if nobody watches."""
    found = _watches.get(id(mem))
    return found[1] if found is not None and found[0]() is mem else _NONE


_watches: dict[int, tuple[weakref.ref[Cells], Cells]] = {}
_NONE: Cells = np.zeros(0, np.int64)


def table(address: int, count: int, width: int) -> Rows:
    """The same with two dimensions."""
    _compiled_only()
