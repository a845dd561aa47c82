"""Policies and replays as HTML, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from trapgate.sdm.vectors import ROWS
from trapgate.trace.notebook import bars, table

if TYPE_CHECKING:
    from trapgate.replay.policy import Policy
    from trapgate.replay.result import Replay

SHOWN = 30
"""Outcomes of a replay that are shown."""


def policy_html(policy: Policy) -> str:
    """The exceptions of a policy, and the criterion of each vector that has one."""
    rows = []
    for vector, row in ROWS.items():
        scheme = policy.scheme(vector)
        if scheme is None and not policy.control(vector):
            continue
        values = ""
        if scheme is not None:
            named = zip(scheme.fields_for(vector), policy.values(vector), strict=True)
            values = ", ".join(f"{name} = {value:#x}" for name, value in named)
        name = "bitmap" if scheme is None else scheme.name
        rows.append((f"#{row.vector.name}", int(policy.control(vector)), name, values))
    return f"<h4>Policy {escape(policy.name)}</h4>" + table(
        ("vector", "control bit", "criterion", "fields"), rows
    )


def replay_html(result: Replay) -> str:
    """A table of the outcomes, and a chart of the exits."""
    shown = result.outcomes[:SHOWN]
    if not shown:
        return "<p>no policy</p>"
    rows = [
        (
            outcome.policy,
            f"{outcome.exits:,}",
            f"{outcome.deliveries:,}",
            f"{outcome.completions:,}",
            f"{outcome.unjudged:,}",
            f"{outcome.saved:,}",
            f"{outcome.added:,}",
            f"{outcome.time.estimate:,.0f} {outcome.time.unit}",
            f"{outcome.time.low:,.0f} to {outcome.time.high:,.0f}",
        )
        for outcome in shown
    ]
    heads = ("policy", "exits", "delivered", "completed", "unjudged", "saved", "added")
    chart = [("recorded", shown[0].recorded_exits)]
    chart += [(outcome.policy, outcome.exits) for outcome in shown]
    more = len(result.outcomes) - len(shown)
    return (
        f"<h4>Replay of {escape(', '.join(result.traces))}</h4>"
        + table((*heads, "time saved", f"interval, by {shown[0].time.basis}"), rows)
        + (f"<p>{more:,} more</p>" if more else "")
        + bars(chart, "exits of judged events")
    )
