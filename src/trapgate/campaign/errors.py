"""What can be wrong with a campaign; each says in a line what, where, and how to mend it."""

from __future__ import annotations

from trapgate.errors import FieldError, TrapgateError


class CampaignError(TrapgateError):
    """A campaign cannot be run, or its results cannot be read; the message says what to change."""


class PlanError(CampaignError, FieldError):
    """A plan asks for what there is not; mend the file. `field` is where in the plan."""


class ClassError(CampaignError):
    """The function of a plan's class of outcomes has failed."""
