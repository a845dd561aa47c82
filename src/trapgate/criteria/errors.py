"""What can be wrong with a wish, a filter or an answer: one line with file, line and remedy."""

from collections.abc import Iterable, Sequence

from trapgate.errors import TrapgateError


class CriteriaError(TrapgateError):
    """Wishes or fields cannot be used; the subclasses say what is wrong and how to mend it.

    `path` is the file, `line` its line (0 if unknown), `field` the key or name concerned.
    """

    def __init__(self, problem: str, *, path: str = "", line: int = 0, field: str = "") -> None:
        self.problem = " ".join(problem.split())
        self.path = path
        self.line = line
        self.field = field
        super().__init__(self.problem)

    def __str__(self) -> str:
        """File and line, field and problem on one line."""
        place = f"{self.path or 'line'}:{self.line}" if self.line else self.path
        return ": ".join(part for part in (place, self.field, self.problem) if part)


class SpecError(CriteriaError):
    """A SPEC cannot be read or asks for what is not known; mend the line."""


class ContradictionError(SpecError):
    """The same error codes must both exit and be delivered; change one of the two wishes.

    `codes` are the error codes in conflict, `lines` the lines of the wishes.
    """

    def __init__(
        self, problem: str, codes: Sequence[int], lines: Sequence[int], **place: object
    ) -> None:
        super().__init__(problem, **place)  # type: ignore[arg-type]
        self.codes = tuple(codes)
        self.lines = tuple(lines)


class UnknownSchemeError(CriteriaError, KeyError):
    """No scheme or operator has this name; use the one that the message suggests."""

    __str__ = CriteriaError.__str__


class InexpressibleError(CriteriaError):
    """No value of the scheme's fields makes all exit that must; choose another scheme.

    `core` holds error codes that already cannot be had together: leave out any of them
    and it could be done.
    """

    def __init__(self, problem: str, core: Sequence[int], **place: object) -> None:
        super().__init__(problem, **place)  # type: ignore[arg-type]
        self.core = tuple(core)


class UndecidedError(CriteriaError):
    """The time allowed ran out: the answer is unknown. Allow more time, or ask for less."""


class ProofError(CriteriaError):
    """An answer failed its own verification: a defect in this program; please report it."""


class MissingSolverError(CriteriaError):
    """A solver is not installed; install the extra that the message names."""


def listed(codes: Iterable[int], most: int = 8) -> str:
    """Error codes for a message: the first few in hexadecimal, and how many more."""
    all_of_them = list(codes)
    shown = ", ".join(f"{int(code):#x}" for code in all_of_them[:most])
    more = len(all_of_them) - most
    return f"{shown} and {more} more" if more > 0 else shown
