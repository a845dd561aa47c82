"""Trapgate's exceptions: misuse by a caller, or a broken engine. A guest's fault is a value.

Each says in one line what is wrong, where, and how to mend it.
"""

from collections.abc import Iterable
from difflib import get_close_matches

_MANY_NAMES = 24


def suggestion(name: str, known: Iterable[str]) -> str:
    """A remedy for a wrong name: the nearest known one, or all of them if they are few."""
    folded = {one.lower(): one for one in known}
    close = get_close_matches(name[:64].lower(), folded, n=1, cutoff=0.5)
    if close:
        return f"did you mean {folded[close[0]]}?"
    names = list(folded.values())
    if len(names) <= _MANY_NAMES:
        return f"use one of {', '.join(names)}"
    return f"there are {len(names):,}, such as {', '.join(names[:3])}"


class TrapgateError(Exception):
    """Something was asked that cannot be done, or an engine is broken.

    Never a guest's doing: a guest's fault is a value. Each subclass says what caused it and
    what to do, in one line.
    """


class EngineError(TrapgateError):
    """The execution engine failed or is not what was measured; use `engine="portable"`."""


class FieldError(TrapgateError):
    """Something is wrong with a field, or with a file that has it; the subclasses say what.

    `field` is the name concerned, `path` the file it was read from; both may be empty.
    """

    def __init__(self, problem: str, field: str = "", path: str = "") -> None:
        """`problem` is what is wrong and what to do about it, on one line."""
        self.problem = " ".join(problem.split())
        self.field = field
        self.path = path
        super().__init__(self.problem, field, path)

    def __str__(self) -> str:
        """File, field and problem on one line."""
        return ": ".join(part for part in (self.path, self.field, self.problem) if part)


class VmcsError(FieldError):
    """Something is wrong with a VMCS; the subclasses say what."""


class UnknownFieldError(VmcsError, KeyError):
    """No VMCS field (or control, or exception) has this name or encoding; mend the name."""

    __str__ = VmcsError.__str__


class FieldValueError(VmcsError, ValueError):
    """The value does not fit the field or its type; give an unsigned integer of its width."""


class ReadOnlyFieldError(VmcsError):
    """The field holds VM-exit information, which only the processor writes; don't set it."""


class ExtensionError(VmcsError):
    """The field is an extension and the profile has none; use the profile "extended"."""


class VmcsFileError(VmcsError):
    """The VMCS file cannot be read or is not what a VMCS file looks like; mend the file."""
