"""Loads, stores and calls at bare addresses, for compiled code only.

Each is a numba intrinsic: one machine instruction, or one call. Addresses and
values are 64-bit integers; narrower loads are zero-extended.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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


peek8, peek16, peek32, peek64 = (_load(width) for width in (8, 16, 32, 64))
poke8, poke16, poke32, poke64 = (_store(width) for width in (8, 16, 32, 64))


@intrinsic
def call(typingctx: Any, address: Any, arguments: Any) -> Any:
    """Call the C function at `address` with a tuple of integers; its result as an integer."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        count = len(arguments)
        pointer = builder.inttoptr(values[0], ir.FunctionType(word, [word] * count).as_pointer())
        unpacked = [builder.extract_value(values[1], n) for n in range(count)]
        return builder.call(pointer, unpacked)

    return types.int64(types.int64, types.UniTuple(types.int64, len(arguments))), codegen


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """`address` as a pointer to 64-bit integers, for `numba.carray`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())

    return types.CPointer(types.int64)(types.int64), codegen
