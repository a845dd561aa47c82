"""Loads, stores and calls at bare addresses, for compiled code only.

Each is a numba intrinsic: one machine instruction, or one call. Addresses and
values are 64-bit integers; narrower loads are zero-extended.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from trapgate.core import Cells

Peek = Callable[[int], int]
Poke = Callable[[int, int], None]


def _load(width: int) -> Any:
    def peek(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(width).as_pointer())
            value = builder.load(pointer, align=1)
            return value if width == 64 else builder.zext(value, ir.IntType(64))

        return types.int64(types.int64), codegen

    return intrinsic(peek)


def _store(width: int) -> Any:
    def poke(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(width).as_pointer())
            narrow = arguments[1]
            if width != 64:
                narrow = builder.trunc(narrow, ir.IntType(width))
            builder.store(narrow, pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return intrinsic(poke)


peek8: Peek = _load(8)
peek16: Peek = _load(16)
peek32: Peek = _load(32)
peek64: Peek = _load(64)
poke8: Poke = _store(8)
poke16: Poke = _store(16)
poke32: Poke = _store(32)
poke64: Poke = _store(64)


def _call(typingctx: Any, address: Any, arguments: Any) -> Any:

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        count = len(arguments)
        pointer = builder.inttoptr(values[0], ir.FunctionType(word, [word] * count).as_pointer())
        unpacked = [builder.extract_value(values[1], n) for n in range(count)]
        return builder.call(pointer, unpacked)

    return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), codegen


call: Callable[[int, tuple[int, ...]], int] = intrinsic(_call)
"""Call the C function at an address with a tuple of integers; its result as an integer."""


def _array(dimensions: int) -> Any:
    """An intrinsic that makes an array of 64-bit integers from an address and a shape."""

    def make(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, *shape = arguments
        array = make_array(signature.return_type)(context, builder)
        word = context.get_constant(types.intp, 8)
        strides = [word]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        populate_array(
            array,
            data=builder.inttoptr(address, array.data.type),
            shape=shape,
            strides=strides,
            itemsize=word,
            meminfo=None,
        )
        return array._getvalue()

    result = types.Array(types.int64, dimensions, "C")
    if dimensions == 1:

        def cells(typingctx: Any, address: Any, count: Any) -> Any:
            return result(types.int64, types.int64), make

        return intrinsic(cells)

    def table(typingctx: Any, address: Any, count: Any, width: Any) -> Any:
        return result(types.int64, types.int64, types.int64), make

    return intrinsic(table)


cells: Callable[[int, int], Cells] = _array(1)
"""`cells(address, count)`: an array over memory, which somebody else keeps alive."""
table: Callable[[int, int, int], Cells] = _array(2)
"""`table(address, count, width)`: the same with two dimensions."""
