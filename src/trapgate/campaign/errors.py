"""What can be wrong with a campaign; each says in a line what, where, and how to mend it."""

from __future__ import annotations

from trapgate.errors import TrapgateError


class CampaignError(TrapgateError):
    """A campaign cannot be run, or its results cannot be read; the message says what to change."""


class PlanError(CampaignError):
    """A plan asks for what there is not; mend the file.

    `field` is where in the plan, `path` the file it was read from; both may be empty.
    """

    def __init__(self, problem: str, field: str = "", path: str = "") -> None:
        self.problem = " ".join(problem.split())
        self.field = field
        self.path = path
        super().__init__(self.problem, field, path)

    def __str__(self) -> str:
        """File, field and problem on one line."""
        return ": ".join(part for part in (self.path, self.field, self.problem) if part)


class ClassError(CampaignError):
    """The function of a plan's class of outcomes has failed."""
