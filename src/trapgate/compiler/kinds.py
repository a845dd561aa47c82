"""What machine code is made of: types, values, and the text of a function in LLVM's language."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, get_args, get_origin

from trapgate.compiler.dialect import Cells


@dataclass(frozen=True)
class CType:
    """A type of C, for functions that C calls: its LLVM type, and how it becomes 64 bits."""

    llvm: str
    signed: bool = False


VOID = CType("void")
INT64 = CType("i64")
UINT64 = CType("i64")
INT32 = CType("i32", signed=True)
UINT32 = CType("i32")
BOOLEAN = CType("i8")


@dataclass(frozen=True)
class Kind:
    """The type of a value. A tuple has its elements' kinds as `parts`."""

    name: str
    llvm: str
    parts: "tuple[Kind, ...]" = ()


INT = Kind("int", "i64")
BOOL = Kind("bool", "i1")
CELLS = Kind("Cells", "{ptr, i64}")
"""An array: where it begins, and how many cells it has."""
MEMORY = Kind("memory", "{ptr, i64, ptr}")
"""Physical memory: an array, and the cells in which its stores are watched; see `raw.watched`."""
ROWS = Kind("rows of Cells", "{ptr, i64, i64}")
"""An array of two dimensions: the same, and how many cells a row has."""
NOTHING = Kind("None", "void")
ANY = Kind("Any", "")


def tuple_of(kinds: Iterable[Kind]) -> Kind:
    """The kind of a tuple of values of these kinds."""
    parts = tuple(kinds)
    name = f"tuple[{', '.join(part.name for part in parts)}]"
    return Kind(name, f"{{{', '.join(part.llvm for part in parts)}}}", parts)


@dataclass(frozen=True)
class Value:
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


KINDS: dict[object, Kind] = {int: INT, bool: BOOL, Cells: CELLS, None: NOTHING, Any: ANY}


def kinds_of(function: FunctionType) -> tuple[dict[str, Kind], Kind]:
    """The kinds of parameters and result. KeyError for one that is not of the dialect."""
    kinds = {name: _kind_of(annotation) for name, annotation in function.__annotations__.items()}
    for name, kind in (("rows", ROWS), ("mem", MEMORY)):
        if name in kinds:
            kinds[name] = kind
    result = kinds.pop("return")
    return kinds, result


def _kind_of(annotation: object) -> Kind:
    if get_origin(annotation) is tuple:
        return tuple_of(_kind_of(part) for part in get_args(annotation))
    return KINDS[annotation]


class Code:
    """The text of one LLVM function as it grows."""

    def __init__(self) -> None:
        self.slots: list[str] = []
        self.lines: list[str] = []
        self.ended = False
        """Nothing gets here: what is put is dropped, up to a label that something goes to."""
        self._count = 0
        self._wanted: set[str] = set()

    def name(self) -> str:
        """A new name, for a value or a label."""
        self._count += 1
        return f"%v{self._count}"

    def put(self, line: str) -> None:
        """An instruction without a result."""
        if not self.ended:
            self.lines.append(line)

    def let(self, instruction: str, kind: Kind = INT) -> Value:
        """An instruction's result."""
        name = self.name()
        self.put(f"{name} = {instruction}")
        return Value(name, kind)

    def slot(self, kind: Kind) -> Value:
        """Memory for a variable, all zeros; `text` is its address."""
        name = self.name()
        self.slots += [
            f"{name} = alloca {kind.llvm}",
            f"store {kind.llvm} zeroinitializer, ptr {name}",
        ]
        return Value(name, kind)

    def load(self, slot: Value) -> Value:
        """What a slot holds."""
        return self.let(f"load {slot.kind.llvm}, ptr {slot.text}", slot.kind)

    def store(self, value: Value, slot: Value) -> None:
        """Change a slot."""
        self.put(f"store {value.kind.llvm} {value.text}, ptr {slot.text}")

    def pointer(self, address: str) -> str:
        """An address as LLVM wants it."""
        return self.let(f"inttoptr i64 {address} to ptr").text

    def array(self, kind: Kind, pointer: str, *lengths: str) -> Value:
        """An array from where it begins, and its lengths."""
        whole = self.let(f"insertvalue {kind.llvm} poison, ptr {pointer}, 0", kind)
        for n, length in enumerate(lengths, 1):
            whole = self.let(f"insertvalue {kind.llvm} {whole.text}, i64 {length}, {n}", kind)
        return whole

    def end(self, terminator: str, *targets: str) -> None:
        """End a block; labels are given by `targets`."""
        if not self.ended:
            self._wanted.update(targets)
        self.put(terminator)
        self.ended = True

    def jump(self, label: str) -> None:
        """Go on at `label`."""
        self.end(f"br label {label}", label)

    def branch(self, condition: Value, then: str, otherwise: str) -> None:
        """Go on at `then` if `condition` holds."""
        if condition.number is not None:
            self.jump(then if condition.number else otherwise)
        else:
            text = f"br i1 {condition.text}, label {then}, label {otherwise}"
            self.end(text, then, otherwise)

    def label(self, label: str) -> None:
        """Begin a block."""
        if not self.ended:
            self.jump(label)
        if label in self._wanted:
            self.ended = False
            self.put(f"{label[1:]}:")

    def body(self) -> str:
        """The whole text between the braces."""
        return "\n".join([*self.slots, *self.lines])
