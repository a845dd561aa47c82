"""Machine code of the core functions, made by numba from their one source.

`compiled(name)` is the compiled twin of the core function of that name. The twin's
globals are the original's with every core function replaced by its twin, so nothing
is written twice and the pure modules never import numba. Compilation is lazy and
cached on disk, in a folder named after a digest of the sources: numba by itself
looks only at the file of the function, not at those it calls.
"""

import functools
import hashlib
import importlib
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numba
from numba import types
from numba.core import config

from trapgate.core import CORE, Cells, F

MODULES = (
    "trapgate.rules",
    "trapgate.exits",
    "trapgate.decide",
    "trapgate.memory",
    "trapgate.paging",
    "trapgate.delivery",
    "trapgate.entry",
    "trapgate.intercepts",
    "trapgate.effects",
    "trapgate.execute",
)
"""The modules that define core functions."""

_twins: dict[str, Any] = {}


@functools.cache
def cache_folder() -> Path:
    """Where compiled code of these very sources is kept (`XDG_CACHE_HOME`, or ~/.cache)."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        digest.update(source.read_bytes())
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "trapgate" / digest.hexdigest()[:16]


@contextmanager
def cached_here() -> Iterator[None]:
    """Functions decorated inside keep their machine code in `cache_folder()`."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())
    try:
        yield
    finally:
        config.CACHE_DIR = before


def compiled(name: str) -> Any:
    """The compiled twin of the core function `name`; KeyError if there is none."""
    if name not in _twins:
        for module in MODULES:
            importlib.import_module(module)
        _twins[name] = _link(CORE[name])
    return _twins[name]


def _link(function: Callable[..., object]) -> Any:
    assert isinstance(function, FunctionType)
    scope = dict(function.__globals__)
    for used in _names(function.__code__):
        if scope.get(used) is CORE.get(used) is not None:
            scope[used] = compiled(used)
    twin = FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, function.__closure__
    )
    twin.__module__ = function.__module__
    twin.__qualname__ = function.__qualname__
    assert inspect.getsourcefile(twin)
    with cached_here():
        return numba.njit(_arguments(function), cache=True, error_model="numpy")(twin)


def _arguments(function: Callable[..., object]) -> tuple[Any, ...] | None:
    """One signature for a function's machine code; None lets it take whatever it gets (rules).

    Without it numba makes a version for every mix of literals and integer widths.
    """
    kinds = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "rows":
            kinds.append(types.int64[:, ::1])
        elif parameter.annotation is Cells:
            kinds.append(types.int64[::1])
        elif parameter.annotation in (int, bool):
            kinds.append(types.int64 if parameter.annotation is int else types.boolean)
        else:
            return None
    return tuple(kinds)


def _names(code: CodeType) -> set[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*(_names(nested) for nested in inner))


def jit(function: F) -> F:
    """Compile a function of the engine's own, as `compiled` does core functions."""
    with cached_here():
        twin: F = numba.njit(_arguments(function), cache=True, error_model="numpy")(function)
    return twin


def callback(returns: Any, *arguments: Any) -> Callable[[Callable[..., object]], Any]:
    """Compile a function that C calls, with numba types; its `address` is for Unicorn."""

    def make(function: Callable[..., object]) -> Any:
        with cached_here():
            return numba.cfunc(returns(*arguments), cache=True)(function)

    return make
