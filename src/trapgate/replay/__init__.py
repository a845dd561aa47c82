"""What another policy would have done to a recorded trace.

`policy` is a policy and `judge` decides by it, with a trace's columns; `filters` finds the writes to
tables that would complete, `controls` what each other exit is caused by; `tally` counts, `result`
tells. It imports `criteria`, `trace` and below, and never an engine. Begin with `replay`.
"""

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
