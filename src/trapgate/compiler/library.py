"""Functions that are compiled together: marked, translated, and called by Python and C.

When machine code of one is needed for the first time, the image of all is taken from where it
is kept (`cache`), or else they are translated into one module (`module`), compiled (`llvm`),
linked (`elf`) and kept. Then it is placed in memory (`image`).
"""

import ctypes
import functools
import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final

from trapgate.compiler import cache, llvm, python_call, raw
from trapgate.compiler.dialect import F
from trapgate.compiler.image import Image, Placed
from trapgate.compiler.kinds import CType, Kind, kinds_of
from trapgate.compiler.target import IS_LINUX_X86_64

if TYPE_CHECKING:
    from trapgate.compiler.module import Module

CHECKED = "TRAPGATE_CHECKED"
"""The environment variable that asks for a checked build: its code looks whether each index,
shift count and divisor is in range, and ends the process with file and line if not.
"""

EACH_ALONE = "TRAPGATE_EACH_ALONE"
"""The environment variable that asks for a build in which no function is put into its callers,
so that a profile shows each by its name (tools/profile-core)."""

NAMED: "dict[str, Library]" = {}
"""The libraries whose images are kept, and go into wheels."""

_ROOM = Path(__file__).resolve().parent
_PACKAGE = _ROOM.parent
_VOCABULARY = _PACKAGE / "sdm"


class Library:
    """Functions with one image; its file is named after the library, or it has no `name`.

    `whole` names the module that imports all modules which mark functions of the library: it is
    imported before the image is looked for, so that no function can be too late for it.
    `constants` are modules of other rooms whose constants stand in the code. `hot` is a file that
    names the functions to be compiled well, one in each line; without it all are.
    """

    def __init__(
        self,
        name: str = "",
        core: Mapping[str, FunctionType] | None = None,
        *,
        whole: str = "",
        constants: Sequence[ModuleType] = (),
        hot: Path | None = None,
    ) -> None:
        self.name: Final = name
        self._hot = hot
        self._constants = constants
        self._whole = whole
        self._core = {} if core is None else core
        self._functions: set[FunctionType] = set()
        self._entries: list[Entry | Callback | Stub] = []
        if name:
            assert name not in NAMED, name
            NAMED[name] = self

    def inside(self, function: F) -> F:
        """Mark a function for others of the library to call; it stays the same function."""
        assert isinstance(function, FunctionType)
        self._functions.add(function)
        return function

    def entry(self, function: F) -> F:
        """Mark a function for Python to call: what comes back is its machine code.

        `interpreted` gives the function itself.
        """
        twin: Any = self.enter(function, tuple(kinds_of(self._marked(function))[0].values()))
        return twin  # type: ignore[no-any-return]

    def enter(self, function: Callable[..., object], kinds: Sequence[Kind]) -> "Entry":
        """The same, for arguments of these kinds."""
        made = Entry(self, self._marked(function), kinds)
        self._add(made)
        return made

    def callback(
        self, returns: CType, *takes: CType
    ) -> Callable[[Callable[..., object]], "Callback"]:
        """Mark a function that C calls, with these types; its `address` is for C."""

        def make(function: Callable[..., object]) -> Callback:
            made = Callback(self, self._marked(function), returns, takes)
            self._add(made)
            return made

        return make

    def stub(self, function: Callable[..., object]) -> "Stub":
        """Mark a function that translated code calls, and that may go on elsewhere (`raw.go_on`).

        Its parameters are integers.
        """
        made = Stub(self, self._marked(function))
        self._add(made)
        return made

    def _marked(self, function: Callable[..., object]) -> FunctionType:
        assert isinstance(function, FunctionType)
        return self.inside(function)

    def _add(self, made: "Entry | Callback | Stub") -> None:
        assert "code" not in self.__dict__, f"{made.symbol} is too late for the machine code"
        assert made.symbol not in {entry.symbol for entry in self._entries}, made.symbol
        self._entries.append(made)

    def has(self, function: object) -> bool:
        """Whether a function is one of the library's, or of the core if that belongs to it."""
        name = getattr(function, "__name__", "")
        return function in self._functions or self._core.get(name) is function

    @property
    def functions(self) -> set[FunctionType]:
        """All of it, the core included if that belongs to it."""
        return {*self._core.values(), *self._functions}

    @functools.cached_property
    def code(self) -> "Placed | llvm.Linked":
        """All of it in machine code, from where it is kept or made now."""
        self._complete()
        image = self._kept
        if image is None:
            image = self.made()
            if self.name:
                cache.save(self._kind, f"{self.key} {llvm.version()}", image)
        return Placed(image) if IS_LINUX_X86_64 else llvm.Linked(image.code)

    def _complete(self) -> None:
        if self._whole:
            import_module(self._whole)

    @property
    def is_kept(self) -> bool:
        """Whether `code` has nothing to compile."""
        return self._kept is not None

    @functools.cached_property
    def _kept(self) -> Image | None:
        if not self.name:
            return None
        shipped = cache.shipped(self._kind, self.key)
        if shipped is not None:
            return shipped
        return cache.load(self._kind, f"{self.key} {llvm.version()}")

    @property
    def _kind(self) -> str:
        forms = {CHECKED: "checked", EACH_ALONE: "each-alone"}
        return "-".join([self.name, *(forms[one] for one in forms if os.environ.get(one))])

    def made(self) -> Image:
        """All of it, compiled now."""
        # What compiles is imported only where there is something to compile.
        from trapgate.compiler import elf
        from trapgate.compiler.module import Module

        module = Module(
            self.has,
            checked=bool(os.environ.get(CHECKED)),
            hot=None if self._hot is None else frozenset(self._hot.read_text().split()),
            each_alone=bool(os.environ.get(EACH_ALONE)),
        )
        with _no_collection():  # it would look at all syntax trees again and again
            for entry in self._entries:
                entry.export(module)
            text = module.text()
        made = llvm.object_files(text)
        return elf.linked(*made) if IS_LINUX_X86_64 else Image(made[0], {}, None)

    def ship(self) -> bytes:
        """What a wheel has in `cache.shipped_file(name)`: never a checked build."""
        return self.made().packed(self.key)

    @functools.cached_property
    def key(self) -> str:
        """What machine code is made from: sources, target, and how Python lays out objects."""
        self._complete()
        digest = hashlib.sha256()
        for source in sorted(self.sources(), key=str):
            content = source.read_bytes()
            digest.update(f"{source.parent.name}/{source.name} {len(content)}\n".encode() + content)
        digest.update(repr((*llvm.processor(), python_call.LAYOUT)).encode())
        return digest.hexdigest()

    def sources(self) -> set[Path]:
        """The files on which machine code depends: those of the rooms of all functions, of
        `whole` and the rooms within, the compiler's own, the vocabulary's, `constants` and `hot`.
        """
        files = {one.__code__.co_filename for one in self.functions}
        folders = {os.path.dirname(file) for file in files}  # noqa: PTH120
        rooms = {Path(folder).resolve() for folder in folders}
        rooms = {room for room in rooms if _PACKAGE in (room, *room.parents)}
        constants = {Path(str(module.__file__)).resolve() for module in self._constants}
        rooms |= {_ROOM, _VOCABULARY}
        found = constants | ({self._hot} if self._hot else set())
        found |= {file for room in rooms for file in room.glob("*.py")}
        if self._whole:
            whole = Path(str(import_module(self._whole).__file__)).resolve()
            found |= set(whole.parent.rglob("*.py"))
        return found


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's collector of reference cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Callback:
    """A compiled function that C calls."""

    def __init__(
        self, library: Library, function: FunctionType, returns: CType, takes: Sequence[CType]
    ) -> None:
        self.function: Final = function
        self.symbol: Final = f"c {function.__module__}.{function.__name__}"
        self._library = library
        self._types = returns, takes

    def export(self, module: "Module") -> None:
        """Have it in a module."""
        from trapgate.compiler.routine import routine

        module.for_c(routine(self.function), self.symbol, *self._types)

    @functools.cached_property
    def address(self) -> int:
        """Where its machine code is."""
        return self._library.code.address(self.symbol)

    def bind(self, value: int) -> int:
        """Let its parameter of type BOUND be `value`, in the whole process; where its code is."""
        bind = self._library.code.address(f"bind {self.symbol}")
        ctypes.CFUNCTYPE(None, ctypes.c_int64)(bind)(value)
        return self.address


class Stub(raw.Continuation):
    """A compiled function that may go on at another one, as if its caller had called that."""

    def __init__(self, library: Library, function: FunctionType) -> None:
        super().__init__(f"stub {function.__module__}.{function.__name__}")
        self.function: Final = function
        self._library = library

    def export(self, module: "Module") -> None:
        """Have it in a module."""
        from trapgate.compiler.routine import routine

        module.stub(routine(self.function), self.symbol)

    @functools.cached_property
    def address(self) -> int:
        """Where its machine code is."""
        return self._library.code.address(self.symbol)


class Entry:
    """A compiled function that Python calls."""

    def __init__(self, library: Library, function: FunctionType, kinds: Sequence[Kind]) -> None:
        self.function: Final = function
        self.symbol: Final = f"python {function.__module__}.{function.__name__}"
        self._library = library
        self._kinds = tuple(kinds)

    def export(self, module: "Module") -> None:
        """Have it in a module."""
        from trapgate.compiler import python_export
        from trapgate.compiler.routine import routine

        python_export.export(module, routine(self.function), self.symbol, self._kinds)

    @functools.cached_property
    def built_in(self) -> Callable[..., Any]:
        """The function itself, as Python's own."""
        address = self._library.code.address(self.symbol)
        return python_call.built_in(self.function.__name__, address)

    def __call__(self, *arguments: Any) -> Any:
        """Call it; booleans and integers come back as such, a tuple as a tuple."""
        return self.built_in(*arguments)


def interpreted(twin: F) -> F:
    """The function of which `twin` is the machine code: the reference."""
    entry: Any = twin
    function: F = entry.function
    return function
