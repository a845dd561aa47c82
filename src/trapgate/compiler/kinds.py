"""The types that values of the dialect have, and values as operands of LLVM's language."""

from collections.abc import Iterable
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
    """The type of a value. A tuple has its elements' kinds as `parts`."""

    name: str
    llvm: str
    parts: "tuple[Kind, ...]" = ()


INT = Kind("int", "i64")
BOOL = Kind("bool", "i1")
CELLS = Kind("Cells", "{ptr, i64}")
"""An array: where it begins, and how many cells it has."""
MEMORY = Kind("Memory", "{ptr, i64, ptr}")
"""Physical memory: an array, and the cells in which its stores are watched; see `raw.watched`."""
ROWS = Kind("Rows", "{ptr, i64, i64}")
"""An array of two dimensions: the same, and how many cells a row has."""
NOTHING = Kind("None", "void")
ANY = Kind("Any", "")


def tuple_of(kinds: Iterable[Kind]) -> Kind:
    """The kind of a tuple of values of these kinds."""
    parts = tuple(kinds)
    name = f"tuple[{', '.join(part.name for part in parts)}]"
    return Kind(name, f"{{{', '.join(part.llvm for part in parts)}}}", parts)


class Value(NamedTuple):
    """An LLVM operand and its kind."""

    text: str
    kind: Kind

    @property
    def number(self) -> int | None:
        """The number that it is; None if that is known only when the code runs."""
        return int(self.text) if self.text.lstrip("-").isdigit() else None


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
