"""The core's machine code: marks for the functions that belong to it, and functions for tests.

Core functions and what the engine adds to them are one library, and so one module for LLVM.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from trapgate.compiler.dialect import CORE
from trapgate.compiler.kinds import ANY, BOOL, INT, Kind, kinds_of
from trapgate.compiler.library import Entry, Library

if TYPE_CHECKING:
    from trapgate.compiler.image import Placed
    from trapgate.compiler.llvm import Linked

HOT = Path(__file__).with_name("hot_functions.txt")
"""What training runs spend their time in; written by tools/profile-core (docs/adr/0027)."""

LIBRARY = Library("core", CORE, whole="trapgate.engine.program", hot=HOT)
"""All core functions, and all that the engine marks."""

jit = LIBRARY.inside
"""Mark a function of the engine's own, for other compiled functions to call."""
jit_for_python = LIBRARY.entry
"""Compile a function of the engine's own, for Python to call, too."""
stub = LIBRARY.stub
"""Mark a function that translated code calls, and that may go on elsewhere."""
callback = LIBRARY.callback
"""Compile a function that C calls, with these types; its `address` is for Unicorn."""


def is_kept() -> bool:
    """Whether `machine_code` has nothing to compile."""
    return LIBRARY.is_kept


def machine_code() -> "Placed | Linked":
    """All marked functions in machine code, from where it is kept or made now."""
    return LIBRARY.code


def bound(twin: Callable[..., int], *numbers: int) -> Callable[..., int]:
    """The quickest way to call a compiled function again and again with the same first numbers."""
    entry: Any = twin
    return functools.partial(entry.built_in, *numbers)


class _Anything:
    """A function with parameters of type `Any`: an `Entry` for each mix of types."""

    def __init__(self, function: FunctionType) -> None:
        self._function = function
        self._entries: dict[tuple[Kind, ...], Entry] = {}

    def __call__(self, *arguments: Any) -> Any:
        kinds = tuple(BOOL if isinstance(one, bool | np.bool_) else INT for one in arguments)
        if kinds not in self._entries:
            self._entries[kinds] = Library(core=CORE).enter(self._function, kinds)
        return self._entries[kinds](*arguments)


def alone(function: Callable[..., Any], *others: Callable[..., Any]) -> Entry | _Anything:
    """Machine code of a function and of `others` that it calls, for Python to call; not kept."""
    assert isinstance(function, FunctionType)
    kinds = tuple(kinds_of(function)[0].values())
    if ANY in kinds:
        return _Anything(function)
    library = Library(core=CORE)
    for other in others:
        library.inside(other)
    return library.enter(function, kinds)


def alone_together(functions: Iterable[FunctionType]) -> list[Entry]:
    """Machine code of several functions, made at once, for Python to call; not kept."""
    library = Library(core=CORE)
    return [library.enter(one, tuple(kinds_of(one)[0].values())) for one in functions]
