"""Compiled functions as functions of Python's own: no library stands between.

Machine code takes its arguments as CPython hands them to built-in functions
(`METH_FASTCALL`), looks at them, and makes the result. It has no address of anything
outside, so what it needs of CPython and NumPy is in a table, the function's `self`.
"""

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trapgate.compiler.kinds import BOOL, CELLS, INT, MEMORY, ROWS, Code, Kind, Value
from trapgate.compiler.translate import Body, Module, Routine

_FUNCTIONS = (
    "PyLong_AsLongLong",
    "PyLong_FromLongLong",
    "PyObject_IsTrue",
    "PyBool_FromLong",
    "PyTuple_New",
    "PyTuple_SetItem",
    "PyErr_Occurred",
    "PyErr_SetString",
)
_OBJECTS = (TypeError, np.ndarray, np.dtype(np.int64))
_TYPE_ERROR, _NDARRAY, _INT64 = range(len(_FUNCTIONS), len(_FUNCTIONS) + len(_OBJECTS))

_TABLE = bytes.__basicsize__ - 1
"""Where a bytes object has its bytes."""
_HEAD = object.__basicsize__
_OB_TYPE = _HEAD - 8
_DATA, _ND, _DIMENSIONS, _DESCR, _FLAGS = (_HEAD + 8 * n for n in (0, 1, 2, 5, 6))
"""Fields of PyArrayObject, which NumPy promises to keep."""
_CARRAY = 0x501
"""Flags of an array that is contiguous, aligned and writable."""
_FASTCALL = 0x80
_COMPLAINT = "the arguments are not those of this compiled function"


def export(module: Module, wanted: Routine, symbol: str, kinds: Sequence[Kind]) -> None:
    """Have `wanted` in `module` for Python, under `symbol`, for arguments of these kinds."""
    _Export(module, wanted, kinds).whole(symbol)


class _Export:
    def __init__(self, module: Module, wanted: Routine, kinds: Sequence[Kind]) -> None:
        self.module = module
        self.wanted = wanted
        self.kinds = kinds
        self.code = Code()
        self.refused, self.failed = self.code.name(), self.code.name()

    def whole(self, symbol: str) -> None:
        code = self.code
        self.demand(f"icmp eq i64 %a2, {len(self.kinds)}", self.refused)
        arguments = [self.argument(n, kind) for n, kind in enumerate(self.kinds)]
        body = Body(self.module, code, self.wanted, {})
        result = body.call_routine(self.wanted, arguments, self.wanted.tree)
        if result.kind.parts:
            parts = [body.part(result, n) for n in range(len(result.kind.parts))]
            whole = self.ask("ptr", "PyTuple_New", f"i64 {len(parts)}").text
            for n, part in enumerate(parts):
                made = self.made(part).text
                self.ask("i32", "PyTuple_SetItem", f"ptr {whole}, i64 {n}, ptr {made}")
        elif result.kind in (INT, BOOL):
            whole = self.made(result).text
        else:
            raise self.wanted.error(self.wanted.tree, "for Python it needs a result")
        code.end(f"ret ptr {whole}")
        code.label(self.refused)
        words = self.module.string(_COMPLAINT)
        error = self.entry(_TYPE_ERROR)
        text = (
            f"call void {self.entry(_FUNCTIONS.index('PyErr_SetString'))}(ptr {error}, ptr {words})"
        )
        code.put(text)
        code.jump(self.failed)
        code.label(self.failed)
        code.end("ret ptr null")
        self.module.put(code, symbol, "ptr", "ptr %a0, ptr %a1, i64 %a2")

    def load(self, kind: str, base: str, offset: int) -> str:
        place = self.code.let(f"getelementptr i8, ptr {base}, i64 {offset}").text
        return self.code.let(f"load {kind}, ptr {place}").text

    def entry(self, n: int) -> str:
        return self.load("ptr", "%a0", _TABLE + 8 * n)

    def ask(self, result: str, function: str, arguments: str) -> Value:
        address = self.entry(_FUNCTIONS.index(function))
        return self.code.let(f"call {result} {address}({arguments})")

    def demand(self, comparison: str, otherwise: str) -> None:
        onward = self.code.name()
        self.code.branch(self.code.let(comparison, BOOL), onward, otherwise)
        self.code.label(onward)

    def made(self, value: Value) -> Value:
        if value.kind is BOOL:
            wide = self.code.let(f"zext i1 {value.text} to i64")
            return self.ask("ptr", "PyBool_FromLong", f"i64 {wide.text}")
        return self.ask("ptr", "PyLong_FromLongLong", f"i64 {value.text}")

    def argument(self, n: int, kind: Kind) -> Value:
        given = self.load("ptr", "%a1", 8 * n)
        if kind in (CELLS, MEMORY, ROWS):
            return self.array(given, kind)
        if kind is BOOL:
            truth = self.ask("i32", "PyObject_IsTrue", f"ptr {given}").text
            self.demand(f"icmp ne i32 {truth}, -1", self.failed)
            return self.code.let(f"icmp ne i32 {truth}, 0", BOOL)
        number = self.ask("i64", "PyLong_AsLongLong", f"ptr {given}")
        # -1 is also what it answers where it raises.
        doubtful, onward = self.code.name(), self.code.name()
        is_doubtful = self.code.let(f"icmp eq i64 {number.text}, -1", BOOL)
        self.code.branch(is_doubtful, doubtful, onward)
        self.code.label(doubtful)
        raised = self.ask("ptr", "PyErr_Occurred", "").text
        self.demand(f"icmp eq ptr {raised}, null", self.failed)
        self.code.label(onward)
        return number

    def array(self, given: str, kind: Kind) -> Value:
        dimensions = 2 if kind is ROWS else 1
        for comparison in (
            f"icmp eq ptr {self.load('ptr', given, _OB_TYPE)}, {self.entry(_NDARRAY)}",
            f"icmp eq i32 {self.load('i32', given, _ND)}, {dimensions}",
            f"icmp eq ptr {self.load('ptr', given, _DESCR)}, {self.entry(_INT64)}",
        ):
            self.demand(comparison, self.refused)
        flags = self.code.let(f"and i32 {self.load('i32', given, _FLAGS)}, {_CARRAY}").text
        self.demand(f"icmp eq i32 {flags}, {_CARRAY}", self.refused)
        shape = self.load("ptr", given, _DIMENSIONS)
        lengths = [self.load("i64", shape, 8 * n) for n in range(dimensions)]
        array = self.code.array(kind, self.load("ptr", given, _DATA), *lengths)
        if kind is MEMORY:
            # Memory from Python has no watch with it.
            text = f"insertvalue {kind.llvm} {array.text}, ptr null, 2"
            array = self.code.let(text, kind)
        return array


class _Definition(ctypes.Structure):
    """PyMethodDef."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


_kept: list[_Definition] = []


@functools.cache
def _table() -> bytes:
    addresses = [
        ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _FUNCTIONS
    ]
    return struct.pack(f"{len(addresses) + len(_OBJECTS)}Q", *addresses, *map(id, _OBJECTS))


def built_in(name: str, address: int) -> Callable[..., Any]:
    """The function of Python's whose machine code, made by `export`, is at `address`."""
    definition = _Definition(name.encode(), address, _FASTCALL, None)
    _kept.append(definition)
    make = ctypes.pythonapi.PyCFunction_NewEx
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p]
    made: Callable[..., Any] = make(ctypes.addressof(definition), _table(), None)
    return made
