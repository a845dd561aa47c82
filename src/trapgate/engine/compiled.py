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
    "trapgate.ptfilter",
    "trapgate.rules",
    "trapgate.selfmap",
    "trapgate.exits",
    "trapgate.decide",
    "trapgate.memory",
    "trapgate.ept",
    "trapgate.paging",
    "trapgate.journal",
    "trapgate.delivery",
    "trapgate.entry",
    "trapgate.host_checks",
    "trapgate.intercepts",
    "trapgate.effects",
    "trapgate.vmx.region",
    "trapgate.vmx.operand",
    "trapgate.vmx.instructions",
    "trapgate.vmx.msr_areas",
    "trapgate.vmx.transition",
    "trapgate.execute",
    "trapgate.readmodifywrite",
)
"""The modules that define core functions."""

OUT_OF_LINE = frozenset(
    {
        "walk",
        "through_ept",
        "raise_event",
        "enter",
        "check_controls",
        "check_guest_state",
        "check_host_state",
        "decide_fault",
        "decide_filtered",
        "entry_at",
        "refused_entry",
        "transfer_by_extension",
        "execute",
        "execute_vmx",
        "begin",
        "enter_guest",
        "leave_guest",
        "decode_operand",
        "translate",
        "write_msr",
        "read_msr",
        "load_msrs",
        "store_msrs",
        "store_region",
        "load_region",
        "load_host_state",
        "copy_guest_state",
    }
)
"""Core functions that stay functions in machine code; the others become part of their callers."""

_twins: dict[str, Any] = {}
_callable: dict[str, Any] = {}


@functools.cache
def cache_folder() -> Path:
    """Where compiled code of these very sources is kept (`XDG_CACHE_HOME`, or ~/.cache)."""
    _import_core()
    here = Path(__file__).resolve().parent
    sources = {Path(function.__code__.co_filename) for function in CORE.values()}
    sources.update(here.glob("*.py"), (here.parent / "sdm").glob("*.py"))
    digest = hashlib.sha256()
    for source in sorted(sources):
        digest.update(source.read_bytes())
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "trapgate" / digest.hexdigest()[:16]


@functools.cache
def _import_core() -> None:
    for module in MODULES:
        importlib.import_module(module)


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
    """The compiled twin of the core function `name`, for Python to call; KeyError if none."""
    _import_core()
    if name not in _callable:
        _callable[name] = _link(CORE[name], python=True)
    return _callable[name]


def linked(name: str) -> Any:
    """The compiled twin of the core function `name`, for other compiled functions to call."""
    _import_core()
    if name not in _twins:
        _twins[name] = _link(CORE[name], python=False)
    return _twins[name]


def _link(function: Callable[..., object], *, python: bool) -> Any:
    assert isinstance(function, FunctionType)
    scope = dict(function.__globals__)
    for used in _names(function.__code__):
        if scope.get(used) is CORE.get(used) is not None:
            scope[used] = linked(used)
    name = f"{function.__name__}_for_python" if python else function.__name__
    twin = FunctionType(function.__code__, scope, name, function.__defaults__, function.__closure__)
    twin.__module__ = function.__module__
    # The cache tells functions apart by this name.
    twin.__qualname__ = name
    assert inspect.getsourcefile(twin)
    with cached_here():
        inline = function.__name__ not in OUT_OF_LINE
        return _make(twin, _arguments(function), inline=inline, python=python)


def _make(function: Any, arguments: Any, *, inline: bool, python: bool) -> Any:
    # Without the runtime numba does not count references to arrays, which costs more
    # than most of these functions; nothing here allocates. A wrapper for callers in
    # Python costs more to compile than many a function.
    options = {"forceinline": True} if inline else {}
    if not python:
        options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(arguments, cache=True, error_model="numpy", _nrt=False, **options)(function)


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
    """Compile a function of the engine's own, for other compiled functions to call.

    It has no wrapper for Python: called from Python it crashes the process.
    """
    with cached_here():
        twin: F = _make(function, _arguments(function), inline=False, python=False)
    return twin


def jit_for_python(function: F) -> F:
    """Compile a function of the engine's own, for Python to call."""
    with cached_here():
        twin: F = _make(function, _arguments(function), inline=False, python=True)
    return twin


def callback(returns: Any, *arguments: Any) -> Callable[[Callable[..., object]], Any]:
    """Compile a function that C calls, with numba types; its `address` is for Unicorn."""

    def make(function: Callable[..., object]) -> Any:
        with cached_here():
            return numba.cfunc(returns(*arguments), cache=True)(function)

    return make
