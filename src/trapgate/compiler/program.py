"""Machine code of the core functions, made by LLVM from their one source.

Functions are marked here. When machine code of one is needed for the first time, all that
are marked are loaded from the image that is kept (`cache`), or else translated into one module
(`module`), compiled (`llvm`), linked (`elf`), kept, and placed in memory (`image`).
"""

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from trapgate.compiler import cache, llvm, python_call
from trapgate.compiler.dialect import CORE, F
from trapgate.compiler.image import Image, Placed
from trapgate.compiler.kinds import ANY, BOOL, INT, CType, Kind, kinds_of
from trapgate.compiler.target import IS_LINUX_X86_64

if TYPE_CHECKING:
    from trapgate.compiler.module import Module

CHECKED = "TRAPGATE_CHECKED"
"""The environment variable that asks for a checked build: its code looks whether each index,
shift count and divisor is in range, and ends the process with file and line if not.
"""

_MARKED: set[FunctionType] = set()
_ENTRIES: "dict[str, Entry | Callback]" = {}


def is_checked() -> bool:
    """Whether a checked build is asked for."""
    return bool(os.environ.get(CHECKED))


def sources() -> set[Path]:
    """The files on which machine code depends: those of the rooms of all marked functions,
    the compiler's own, and the vocabulary's, whose constants stand in the code.
    """
    here = Path(__file__).resolve().parent
    files = {Path(inspect.getfile(one)).resolve() for one in (*CORE.values(), *_MARKED)}
    rooms = {file.parent for file in files if here.parent in file.parents}
    return {source for room in rooms | {here, here.parent / "sdm"} for source in room.glob("*.py")}


@functools.cache
def key() -> str:
    """What machine code is made from: sources, target, and how Python's objects are laid out."""
    digest = hashlib.sha256()
    for source in sorted(sources()):
        content = source.read_bytes()
        digest.update(f"{source.parent.name}/{source.name} {len(content)}\n".encode() + content)
    digest.update(repr((*llvm.processor(), python_call.LAYOUT, is_checked())).encode())
    return digest.hexdigest()


def _kind() -> str:
    return "checked" if is_checked() else "core"


@functools.cache
def _kept() -> Image | None:
    if not is_checked() and (found := cache.shipped(key())) is not None:
        return found
    return cache.load(_kind(), f"{key()} {llvm.version()}")


def is_kept() -> bool:
    """Whether `machine_code` has nothing to compile."""
    return _kept() is not None


@functools.cache
def machine_code() -> "Placed | llvm.Linked":
    """All marked functions in machine code, from the cache or made now."""
    image = _kept()
    if image is None:
        image = _made(_ENTRIES.values())
        cache.save(_kind(), f"{key()} {llvm.version()}", image)
    return _placed(image)


def ship(file: Path) -> None:
    """Write the image of all marked functions to a file, to go into a wheel as `cache.SHIPPED`."""
    file.write_bytes(_made(_ENTRIES.values()).packed(key()))


def _made(entries: "Iterable[Entry | Callback]") -> Image:
    # What compiles is imported only where there is something to compile.
    from trapgate.compiler import elf
    from trapgate.compiler.module import Module

    module = Module(_is_dialect, checked=is_checked())
    for entry in entries:
        entry.export(module)
    made = llvm.object_file(module.text())
    return elf.linked(made) if IS_LINUX_X86_64 else Image(made, {}, None)


def _placed(image: Image) -> "Placed | llvm.Linked":
    return Placed(image) if IS_LINUX_X86_64 else llvm.Linked(image.code)


def _is_dialect(function: object) -> bool:
    return function in _MARKED or CORE.get(getattr(function, "__name__", "")) is function


class Callback:
    """A compiled function that C calls."""

    def __init__(self, function: FunctionType, returns: CType, takes: Sequence[CType]) -> None:
        self.function = function
        self._types = returns, takes
        self._symbol = f"c {function.__module__}.{function.__name__}"

    def export(self, module: "Module") -> None:
        """Have it in a module."""
        from trapgate.compiler.routine import routine

        module.for_c(routine(self.function), self._symbol, *self._types)

    @functools.cached_property
    def address(self) -> int:
        """Where its machine code is."""
        return machine_code().address(self._symbol)


class Entry:
    """A compiled function that Python calls."""

    def __init__(self, function: FunctionType, kinds: Sequence[Kind], *, alone: bool) -> None:
        self.function = function
        self._kinds = tuple(kinds)
        self._alone = alone
        self._symbol = f"python {function.__module__}.{function.__name__}"

    def export(self, module: "Module") -> None:
        """Have it in a module."""
        from trapgate.compiler import python_export
        from trapgate.compiler.routine import routine

        python_export.export(module, routine(self.function), self._symbol, self._kinds)

    @functools.cached_property
    def built_in(self) -> Callable[..., Any]:
        """The function itself, as Python's own."""
        return self.take(_placed(_made([self])) if self._alone else machine_code())

    def take(self, code: "Placed | llvm.Linked") -> Callable[..., Any]:
        """Be the function that is in this code."""
        self.built_in = python_call.built_in(self.function.__name__, code.address(self._symbol))
        return self.built_in

    def __call__(self, *arguments: Any) -> Any:
        """Call it; booleans and integers come back as such, a tuple as a tuple."""
        return self.built_in(*arguments)


class _Anything:
    """A function with parameters of type `Any`: an `Entry` for each mix of types."""

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._entries: dict[tuple[Kind, ...], Entry] = {}

    def __call__(self, *arguments: Any) -> Any:
        kinds = tuple(BOOL if isinstance(one, bool | np.bool_) else INT for one in arguments)
        if kinds not in self._entries:
            self._entries[kinds] = Entry(self._function, kinds, alone=True)
        return self._entries[kinds](*arguments)


def alone(function: Callable[..., Any], *others: Callable[..., Any]) -> "Entry | _Anything":
    """Machine code of a function and of `others` that it calls, for Python to call; not kept."""
    for marked in (function, *others):
        assert isinstance(marked, FunctionType)
        _MARKED.add(marked)
    assert isinstance(function, FunctionType)
    kinds = tuple(kinds_of(function)[0].values())
    return _Anything(function) if ANY in kinds else Entry(function, kinds, alone=True)


def alone_together(functions: Iterable[Callable[..., Any]]) -> list[Entry]:
    """Machine code of several functions, made at once, for Python to call; not kept."""
    entries = []
    for function in functions:
        entry = alone(function)
        assert isinstance(entry, Entry)
        entries.append(entry)
    code = _placed(_made(entries))
    for entry in entries:
        entry.take(code)
    return entries


def jit(function: F) -> F:
    """Mark a function of the engine's own, for other compiled functions to call."""
    assert isinstance(function, FunctionType)
    _MARKED.add(function)
    return function


def jit_for_python(function: F) -> F:
    """Compile a function of the engine's own, for Python to call, too."""
    assert isinstance(function, FunctionType)
    _MARKED.add(function)
    twin: F = _enter(Entry(function, tuple(kinds_of(function)[0].values()), alone=False))
    return twin


def _enter(entry: Any) -> Any:
    """Have it in the machine code of all; names are unique across modules."""
    name = entry.function.__name__
    assert name not in _ENTRIES, name
    assert not machine_code.cache_info().currsize, f"{name} is too late for the machine code"
    _ENTRIES[name] = entry
    return entry


def bound(twin: Callable[..., int], *numbers: int) -> Callable[[], int]:
    """The quickest way to call a compiled function again and again with the same numbers."""
    entry: Any = twin
    return functools.partial(entry.built_in, *numbers)


def callback(returns: CType, *takes: CType) -> Callable[[Callable[..., object]], Callback]:
    """Compile a function that C calls, with these types; its `address` is for Unicorn."""

    def make(function: Callable[..., object]) -> Callback:
        assert isinstance(function, FunctionType)
        _MARKED.add(function)
        entry: Callback = _enter(Callback(function, returns, takes))
        return entry

    return make
