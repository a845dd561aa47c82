"""What another policy would have done to a recorded trace.

`policy` reads criteria from a VMCS file, `judge` applies the processor's rules to columns of a
trace, `tally` counts the verdicts, `result` holds the answer; `sweep` tries many policies, and
`controls` judges exits other than exceptions. It may import `criteria` and below, and never reaches
the engine. Begin with `replay.replay`.
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
