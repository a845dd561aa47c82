"""Machine code of the core functions, made by LLVM from their one source.

Functions are marked here, `trapgate.compiler.translate` translates all that are marked into
one module, and `trapgate.compiler.image` makes machine code of it when some of it is needed
for the first time. The code is kept in a file, in a folder named after a digest of the
sources and of what else it depends on.
"""

import functools
import hashlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from trapgate.compiler import image as images
from trapgate.compiler import python_call as pythoncall
from trapgate.compiler.dialect import CORE, F
from trapgate.compiler.image import Image, Jit
from trapgate.compiler.kinds import ANY, BOOL, INT, CType, Kind, kinds_of
from trapgate.compiler.translate import Module, routine

PROCESSOR = "x86-64-v2"
"""LLVM's name of the processor that images are for; code for the very host is no faster."""

_FILE = "core.image"

_MARKED: set[FunctionType] = set()
_ENTRIES: "dict[str, Entry | Callback]" = {}


@functools.cache
def cache_folder() -> Path:
    """Where compiled code of these very sources is kept (`XDG_CACHE_HOME`, or ~/.cache)."""
    digest = hashlib.sha256()
    for source in sorted(_sources()):
        digest.update(source.read_bytes())
    for fact in (importlib.metadata.version("llvmlite"), *_processor()):
        digest.update(fact.encode())
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "trapgate" / digest.hexdigest()[:16]


def _sources() -> set[Path]:
    """The files on which machine code depends: those of the rooms of all marked functions,
    the compiler's own, and the vocabulary's, whose constants stand in the code.
    """
    here = Path(__file__).resolve().parent
    files = {Path(inspect.getfile(one)) for one in (*CORE.values(), *_MARKED)}
    rooms = {file.parent for file in files} | {here, here.parent / "sdm"}
    return {source for room in rooms for source in room.glob("*.py")}


def _processor() -> tuple[str, str]:
    """LLVM's names of the processor and its features that the code is for."""
    if images.IS_LINKED_HERE:
        return PROCESSOR, ""
    from llvmlite import binding

    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()


def is_kept() -> bool:
    """Whether `machine_code` has nothing to compile."""
    return (cache_folder() / _FILE).is_file()


@functools.cache
def machine_code() -> Image | Jit:
    """All marked functions in machine code, from the cache or made now."""
    file = cache_folder() / _FILE
    found = images.load(file)
    if found is None:
        images.save(file, _made(_ENTRIES.values()))
        found = images.load(file)
        assert found is not None
    return found


def _made(entries: "Iterable[Entry | Callback]") -> bytes:
    module = Module(_is_dialect)
    for entry in entries:
        entry.export(module)
    return images.optimised(module.text(), *_processor())


def _is_dialect(function: object) -> bool:
    return function in _MARKED or CORE.get(getattr(function, "__name__", "")) is function


class Callback:
    """A compiled function that C calls."""

    def __init__(self, function: FunctionType, returns: CType, takes: Sequence[CType]) -> None:
        self.function = function
        self._types = returns, takes
        self._symbol = f"c {function.__module__}.{function.__name__}"

    def export(self, module: Module) -> None:
        """Have it in a module."""
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

    def export(self, module: Module) -> None:
        """Have it in a module."""
        pythoncall.export(module, routine(self.function), self._symbol, self._kinds)

    @functools.cached_property
    def built_in(self) -> Callable[..., Any]:
        """The function itself, as Python's own."""
        code = images.placed(_made([self])) if self._alone else machine_code()
        return pythoncall.built_in(self.function.__name__, code.address(self._symbol))

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
