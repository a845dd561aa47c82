"""Machine code that CPython calls: it looks at the arguments, and makes Python's result."""

from collections.abc import Sequence

from trapgate.compiler.expressions import Expressions
from trapgate.compiler.kinds import BOOL, CELLS, INT, MEMORY, NOTHING, ROWS, Kind, Value
from trapgate.compiler.module import Module
from trapgate.compiler.python_call import FUNCTIONS, HEAD, OBJECTS, TABLE
from trapgate.compiler.routine import Routine
from trapgate.compiler.text import Code

_OB_TYPE = HEAD - 8
_DATA, _ND, _DIMENSIONS, _DESCR, _FLAGS = (HEAD + 8 * n for n in (0, 1, 2, 5, 6))
"""Fields of PyArrayObject, which NumPy promises to keep."""
_CARRAY = 0x501
"""Flags of an array that is contiguous, aligned and writable."""
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
        body = Expressions(self.module, code, self.wanted, {})
        result = body.call_routine(self.wanted, arguments, self.wanted.tree)
        if result.parts:
            whole = self.ask("ptr", "PyTuple_New", f"i64 {len(result.parts)}").text
            self.demand(f"icmp ne ptr {whole}, null", self.failed)
            for n, part in enumerate(result.parts):
                made = self.made(part).text
                self.ask("i32", "PyTuple_SetItem", f"ptr {whole}, i64 {n}, ptr {made}")
        elif result.kind in (INT, BOOL):
            whole = self.made(result).text
        else:
            assert result.kind is NOTHING
            whole = self.object("None")
            self.code.put(f"call void {self.function('Py_IncRef')}(ptr {whole})")
        code.end(f"ret ptr {whole}")
        code.label(self.refused)
        words = self.module.string(_COMPLAINT)
        error = self.object("TypeError")
        code.put(f"call void {self.function('PyErr_SetString')}(ptr {error}, ptr {words})")
        code.jump(self.failed)
        code.label(self.failed)
        code.end("ret ptr null")
        attributes = self.module.attributes(self.wanted)
        self.module.put(code, symbol, "ptr", "ptr %a0, ptr %a1, i64 %a2", attributes=attributes)

    def load(self, kind: str, base: str, offset: int) -> str:
        place = self.code.let(f"getelementptr i8, ptr {base}, i64 {offset}").text
        return self.code.let(f"load {kind}, ptr {place}").text

    def function(self, name: str) -> str:
        return self.load("ptr", "%a0", TABLE + 8 * FUNCTIONS.index(name))

    def object(self, name: str) -> str:
        return self.load("ptr", "%a0", TABLE + 8 * (len(FUNCTIONS) + list(OBJECTS).index(name)))

    def ask(self, result: str, name: str, arguments: str) -> Value:
        return self.code.let(f"call {result} {self.function(name)}({arguments})")

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
            f"icmp eq ptr {self.load('ptr', given, _OB_TYPE)}, {self.object('ndarray')}",
            f"icmp eq i32 {self.load('i32', given, _ND)}, {dimensions}",
            f"icmp eq ptr {self.load('ptr', given, _DESCR)}, {self.object('int64')}",
        ):
            self.demand(comparison, self.refused)
        flags = self.code.let(f"and i32 {self.load('i32', given, _FLAGS)}, {_CARRAY}").text
        self.demand(f"icmp eq i32 {flags}, {_CARRAY}", self.refused)
        shape = self.load("ptr", given, _DIMENSIONS)
        lengths = [self.load("i64", shape, 8 * n) for n in range(dimensions)]
        start = self.load("ptr", given, _DATA)
        if kind is MEMORY:  # from Python it has no watch with it
            return self.code.memory(start, lengths[0], "null")
        return self.code.array(kind, start, *lengths)
