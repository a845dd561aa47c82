"""What all commands share: where words go, and how errors look."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from trapgate.errors import TrapgateError

if TYPE_CHECKING:
    from rich.console import Console as Terminal

    from trapgate.vmm.summary import Summary


class EngineKind(StrEnum):
    """Which way into the engine."""

    auto = "auto"
    native = "native"
    portable = "portable"


EngineOption = Annotated[EngineKind, typer.Option(help="Which engine to use.")]
"""`--engine` of every command that runs guests."""

_LONGEST = 2000


class Protect(StrEnum):
    """What keeps a guest from writing to its page tables under direct paging."""

    frames = "frames"
    entries = "entries"


class Paging(StrEnum):
    """Whether the guest's page tables are its own, or guarded by the VMM."""

    direct = "direct"
    own = "own"


def fail(line: str) -> typer.Exit:
    """One line on standard error, and exit status 2."""
    line = " ".join(line.split())
    if len(line) > _LONGEST:  # somebody's name of a megabyte, say
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"
    print(f"trapgate: {line}", file=sys.stderr)
    return typer.Exit(2)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what a user can mend into one line and exit status 2."""
    try:
        yield
    except TrapgateError as error:
        raise fail(str(error)) from None


def name_portable_engine(summary: Summary) -> None:
    """One line for who asked for the best engine and got the slower one."""
    print(
        f"trapgate: no native engine here, the portable one is slower: {summary.why_not_native}",
        file=sys.stderr,
    )


def terminal(*, error: bool = False) -> Terminal:
    """Where tables go: colours only on a terminal, and words from files as they are."""
    from rich.console import Console as Terminal

    stream = sys.stderr if error else sys.stdout
    width = None if stream.isatty() else 110
    return Terminal(file=stream, highlight=False, markup=False, emoji=False, width=width)


def plain(word: object) -> str:
    """What a file says, without what could steer a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(word))


@contextmanager
def prepared() -> Iterator[None]:
    """Compile the core, and say so if that takes its time (the first run after an install)."""
    from trapgate.engine.program import is_kept, machine_code

    if not is_kept():
        note = terminal(error=True)
        with note.status("compiling the processor's core, once: some seconds"):
            machine_code()
    yield


def vector_name(vector: int) -> str:
    """#PF for 14, and so on."""
    from trapgate.sdm.vectors import ROWS

    return f"#{ROWS[vector].vector.name}" if vector in ROWS else f"vector {vector}"
