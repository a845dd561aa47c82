"""The types that values of the dialect have, and values as operands of LLVM's language."""

from collections.abc import Iterable, Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple, get_args, get_origin

from trapgate.compiler.dialect import Cells, Memory, Rows


class CType(NamedTuple):
    """A type of C, for functions that C calls: its LLVM type, and how it becomes 64 bits."""

    llvm: str
    signed: bool = False


VOID = CType("void")
INT64 = CType("i64")
UINT64 = CType("i64")
INT32 = CType("i32", signed=True)
UINT32 = CType("i32")
BOOLEAN = CType("i8")
BOUND = CType("bound")
"""No argument of C's: the number that a callback is bound to (`library.Callback.bind`)."""
RETURN_ADDRESS = CType("return address")
"""No argument of C's: where the caller goes on."""


class Kind(NamedTuple):
    """The type of a value: one operand of LLVM, of type `llvm`, or several, of kinds `parts`.

    LLVM sees only the single operands: what is together in an operand of its own it takes apart
    again and again, and a parameter that nobody uses it drops only if it stands alone.
    """

    name: str
    llvm: str
    parts: "tuple[Kind, ...]" = ()
    is_array: bool = False

    @property
    def elements(self) -> "tuple[Kind, ...]":
        """The kinds of a tuple's elements."""
        return () if self.is_array else self.parts

    @property
    def operands(self) -> "tuple[Kind, ...]":
        """The kinds of all its operands."""
        if not self.parts:
            return (self,)
        return tuple(kind for part in self.parts for kind in part.operands)


INT = Kind("int", "i64")
BOOL = Kind("bool", "i1")
POINTER = Kind("pointer", "ptr")
"""Of an array's first cell; no variable has this kind."""
CELLS = Kind("Cells", "", (POINTER, INT), is_array=True)
"""An array: where it begins, and how many cells it has."""
MEMORY = Kind("Memory", "", (POINTER, INT, POINTER), is_array=True)
"""Physical memory: an array, and the cells in which its stores are watched; see `raw.watched`."""
ROWS = Kind("Rows", "", (POINTER, INT, INT), is_array=True)
"""An array of two dimensions: the same, and how many cells a row has."""
NOTHING = Kind("None", "void")
ANY = Kind("Any", "")


def tuple_of(kinds: Iterable[Kind]) -> Kind:
    """The kind of a tuple of values of these kinds."""
    parts = tuple(kinds)
    return Kind(f"tuple[{', '.join(part.name for part in parts)}]", "", parts)


class Value(NamedTuple):
    """An LLVM operand and its kind, or the values of which one of several operands consists."""

    text: str
    kind: Kind
    parts: "tuple[Value, ...]" = ()

    @property
    def operands(self) -> "tuple[Value, ...]":
        """Its single operands, in order."""
        if not self.kind.parts:
            return (self,)
        return tuple(one for part in self.parts for one in part.operands)

    @property
    def number(self) -> int | None:
        """The number that it is; None if that is known only when the code runs."""
        return int(self.text) if self.text.lstrip("-").isdigit() else None


def together(values: Sequence[Value]) -> Value:
    """A tuple of these values."""
    return Value("", tuple_of(value.kind for value in values), tuple(values))


def composed(kind: Kind, operands: Iterator[Value]) -> Value:
    """A value of this kind from its operands."""
    if not kind.parts:
        return next(operands)
    return Value("", kind, tuple(composed(part, operands) for part in kind.parts))


def returned(kind: Kind) -> str:
    """The LLVM type in which a function returns a value of this kind."""
    if not kind.parts:
        return kind.llvm
    return f"{{{', '.join(one.llvm for one in kind.operands)}}}"


def received(kinds: Iterable[Kind]) -> tuple[list[Value], str]:
    """A function's parameters of these kinds, and how they are declared."""
    operands: list[Value] = []

    def one(kind: Kind) -> Value:
        operands.append(Value(f"%a{len(operands)}", kind))
        return operands[-1]

    values = [composed(kind, map(one, kind.operands)) for kind in kinds]
    return values, ", ".join(f"{value.kind.llvm} {value.text}" for value in operands)


TRUE = Value("1", BOOL)
FALSE = Value("0", BOOL)


def integer(number: int) -> Value:
    """A constant, cut to 64 bits as all results are."""
    return Value(str(((number + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)), INT)


KINDS: dict[object, Kind] = {
    int: INT,
    bool: BOOL,
    Cells: CELLS,
    Memory: MEMORY,
    Rows: ROWS,
    None: NOTHING,
    Any: ANY,
}
"""What annotations mean."""


def kinds_of(function: FunctionType) -> tuple[dict[str, Kind], Kind]:
    """The kinds of parameters and result. KeyError for one that is not of the dialect."""
    kinds = {name: _kind_of(annotation) for name, annotation in function.__annotations__.items()}
    result = kinds.pop("return")
    return kinds, result


def _kind_of(annotation: object) -> Kind:
    if get_origin(annotation) is tuple:
        return tuple_of(_kind_of(part) for part in get_args(annotation))
    return KINDS[annotation]
