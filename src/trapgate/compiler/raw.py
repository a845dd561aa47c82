"""Loads, stores and calls at bare addresses, for compiled code only.

Each is one machine instruction, or one call: `trapgate.compiler.expressions` knows them by
their names. Addresses and values are 64-bit integers; narrower loads are zero-extended.
"""

from typing import NoReturn

from trapgate.compiler.dialect import Cells, Rows


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
    _compiled_only()


def cells(address: int, count: int) -> Cells:
    """An array over memory, which somebody else keeps alive."""
    _compiled_only()


def table(address: int, count: int, width: int) -> Rows:
    """The same with two dimensions."""
    _compiled_only()
