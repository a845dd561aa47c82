"""What can become of a run, and how it is told: by the end, the output and the state.

The first that holds counts. Ends come before output, and output before state: a guest that
panics is not asked what its memory looks like.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from trapgate.campaign.errors import ClassError
from trapgate.vmm.actions import End

NO_EFFECT: Final = "no effect"
LATENT: Final = "latent"
HANDLED: Final = "handled"
SILENT: Final = "silent corruption"
DETECTED: Final = "detected"
OTHER_END: Final = "other end"
HANG: Final = "hang"
TRIPLE_FAULT: Final = "triple fault"
ENTRY_FAILURE: Final = "VM-entry failure"
STOPPED: Final = "stopped by the VMM"
NOT_APPLIED: Final = "not applied"
ERROR: Final = "error"

MEANINGS: Final = {
    NO_EFFECT: "output, end and state at the end are the golden run's",
    LATENT: "output and end are the golden run's, state at the end is not",
    HANDLED: "output and end are as in the golden run, but the guest took further faults",
    SILENT: "the same end with different output, undetected",
    DETECTED: "the output has what the plan says guests print when they notice",
    OTHER_END: "the guest ended in another way",
    HANG: "the budget was used up",
    TRIPLE_FAULT: "the guest shut down",
    ENTRY_FAILURE: "the checks at VM entry refused the state",
    STOPPED: "the VMM stopped the guest, and said why",
    NOT_APPLIED: "at that moment there was nothing to put the fault into",
    ERROR: "Trapgate failed: never the guest's doing",
}
"""Every outcome in the order of harm, and what it means."""
OUTCOMES: Final = tuple(MEANINGS)
HARMLESS: Final = frozenset({NO_EFFECT, HANDLED, LATENT, NOT_APPLIED})
"""Outcomes of runs that did what they should."""

_BY_END = {
    End.ENTRY_FAILED: ENTRY_FAILURE,
    End.TRIPLE_FAULT: TRIPLE_FAULT,
    End.REFUSED: STOPPED,
    End.STOPPED_BY_VMM: STOPPED,
    End.UNHANDLED: STOPPED,
    End.VMX_ABORT: STOPPED,
}
ENDS: Final = (*(end.value for end in End), "golden end", "budget", "")
"""How runs end: as machines do, at the golden run's end, or by the budget."""


@dataclass(frozen=True)
class UserClass:
    """A class of the plan's: all conditions that are given must hold.

    `of` are outcomes that it takes from, `end` ends of machines, `status` their exit status,
    `output` patterns one of which the output has, `handled` faults one of which the guest took
    and the golden run did not. `function` is asked last, and may be anything in Python.
    """

    name: str
    of: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    status: int | None = None
    output: tuple[re.Pattern[bytes], ...] = ()
    handled: tuple[str, ...] = ()
    function: Callable[[Ending], object] | None = None


class Ending(NamedTuple):
    """How a run ended, as far as its outcome depends on it.

    `end` is one of ENDS. `output` is what was printed since the golden run's beginning,
    `extra` the faults that the guest took and the golden run did not. `same_end`, `same_output`
    and `same_state` compare with the golden run.
    """

    end: str
    status: int
    message: str
    output: bytes
    extra: tuple[str, ...]
    same_end: bool
    same_output: bool
    same_state: bool
    time: int | None = None
    """The virtual time of the end, where the run itself did not get there."""


_OUTCOME_OF_END = {end.value: outcome for end, outcome in _BY_END.items()} | {"budget": HANG}


def classify(
    ending: Ending, detected: Sequence[re.Pattern[bytes]], classes: Sequence[UserClass]
) -> str:
    """The outcome of a run, or the name of the first of the plan's `classes` that takes it.

    Raises ClassError if a class's function fails.
    """
    outcome = _outcome(ending, detected)
    for one in classes:
        if _belongs_to(one, ending, outcome):
            return one.name
    return outcome


def _outcome(ending: Ending, detected: Sequence[re.Pattern[bytes]]) -> str:
    stopped = _OUTCOME_OF_END.get(ending.end)
    if stopped is not None and stopped != HANG and not ending.same_end:
        return stopped
    if not ending.same_output and any(one.search(ending.output) for one in detected):
        return DETECTED
    if not ending.same_end:
        return stopped or OTHER_END
    if not ending.same_output:
        return SILENT
    if ending.extra:
        return HANDLED
    return NO_EFFECT if ending.same_state else LATENT


def _belongs_to(one: UserClass, ending: Ending, outcome: str) -> bool:
    return (
        (not one.of or outcome in one.of)
        and (not one.end or ending.end in one.end)
        and (one.status is None or one.status == ending.status)
        and (not one.output or any(p.search(ending.output) for p in one.output))
        and (not one.handled or not set(one.handled).isdisjoint(ending.extra))
        and (one.function is None or _call_user_function(one.name, one.function, ending))
    )


def _call_user_function(name: str, function: Callable[[Ending], object], ending: Ending) -> bool:
    try:
        return bool(function(ending))
    except Exception as error:  # whatever a plan's own function may raise
        words = f"{type(error).__name__}: {error}"
        raise ClassError(f"the function of class {name!r} failed ({words}); correct it") from error
