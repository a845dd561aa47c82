"""What another policy would have done to a recorded trace."""

from trapgate.replay.policy import Policy
from trapgate.replay.replay import replay
from trapgate.replay.result import CostModel, Outcome, Replay, TimeSaved
from trapgate.replay.sweep import ConditionFamily, Family, sweep

__all__ = [
    "ConditionFamily",
    "CostModel",
    "Family",
    "Outcome",
    "Policy",
    "Replay",
    "TimeSaved",
    "replay",
    "sweep",
]
