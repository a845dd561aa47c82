"""Machine code of one room's own functions, apart from the processor's core.

The core is one module, which every run of a guest needs. What other rooms want compiled
(reading hundreds of megabytes of text, say) is a library of its own: made when it is first
called, and kept in a file of its own.
"""

import functools
import hashlib
import importlib.metadata
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from trapgate.compiler import image as images
from trapgate.compiler import python_call
from trapgate.compiler.dialect import F
from trapgate.compiler.image import Image, Jit
from trapgate.compiler.kinds import kinds_of
from trapgate.compiler.program import PROCESSOR
from trapgate.compiler.translate import Module, routine


class Library:
    """Functions of the dialect that are compiled together; `name` names the file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._functions: set[FunctionType] = set()
        self._entries: list[Compiled] = []

    def inside(self, function: F) -> F:
        """Mark a function for others of the library to call; it stays the same function."""
        assert isinstance(function, FunctionType)
        self._functions.add(function)
        return function

    def entry(self, function: F) -> F:
        """Mark a function for Python to call: what comes back is its machine code.

        `interpreted` gives the function itself.
        """
        assert isinstance(function, FunctionType)
        self._functions.add(function)
        compiled: Any = Compiled(self, function)
        self._entries.append(compiled)
        twin: F = compiled
        return twin

    @functools.cached_property
    def code(self) -> Image | Jit:
        """All of it in machine code, from its file or made now."""
        file = self._file()
        found = images.load(file)
        if found is None:
            module = Module(self._functions.__contains__)
            for one in self._entries:
                kinds = tuple(kinds_of(one.function)[0].values())
                python_call.export(module, routine(one.function), one.symbol, kinds)
            made = images.optimised(module.text(), *_target())
            try:
                images.save(file, made)
            except OSError:  # a home that cannot be written to
                return images.placed(made)
            found = images.load(file)
            assert found is not None
        return found

    def _file(self) -> Path:
        digest = hashlib.sha256()
        sources = {Path(inspect.getfile(one)) for one in self._functions}
        sources |= set(Path(__file__).resolve().parent.glob("*.py"))
        sources |= set((Path(__file__).resolve().parent.parent / "sdm").glob("*.py"))
        for source in sorted(sources):
            digest.update(source.read_bytes())
        for fact in (importlib.metadata.version("llvmlite"), *_target()):
            digest.update(fact.encode())
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return Path(root) / "trapgate" / f"{self.name}-{digest.hexdigest()[:16]}.image"


class Compiled:
    """A function of a library; calling it calls its machine code."""

    def __init__(self, library: Library, function: FunctionType) -> None:
        self.function: Final = function
        self.symbol: Final = f"python {function.__module__}.{function.__name__}"
        self._library = library

    @functools.cached_property
    def _built_in(self) -> Callable[..., Any]:
        address = self._library.code.address(self.symbol)
        return python_call.built_in(self.function.__name__, address)

    def __call__(self, *arguments: Any) -> Any:
        """Call it; integers, booleans and tuples of them come back as such."""
        return self._built_in(*arguments)


def interpreted(twin: F) -> F:
    """The function of which `twin` is the machine code: the reference."""
    compiled: Any = twin
    function: F = compiled.function
    return function


def _target() -> tuple[str, str]:
    if images.IS_LINKED_HERE:
        return PROCESSOR, ""
    from llvmlite import binding

    return binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
