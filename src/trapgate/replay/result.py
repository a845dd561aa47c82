"""What a replay found: counts of each policy, and the time that it would have saved."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import Any, Final

from trapgate.replay.exits import ReasonOutcome, lost_range
from trapgate.trace.document import Document, Heading, Paragraph, Part, Table
from trapgate.trace.html import bars, table

SHOWN: Final = 30
"""Outcomes of a replay that a notebook shows."""

Z: Final = 1.96
"""Standard deviations to each side of an interval that holds 95 % of a normal distribution."""


@dataclass(frozen=True)
class CostModel:
    """What one exit costs where a trace has no latencies, in nanoseconds.

    The defaults are an assumption, not a measurement: some 0.8 us for the bare round trip
    through a VMM, 1.5 us with a short handler, 6 us with one that goes far.
    """

    low: int = 800
    typical: int = 1500
    high: int = 6000

    def __post_init__(self) -> None:
        """Refuse costs that are out of order."""
        if not 0 <= self.low <= self.typical <= self.high:
            raise ValueError(f"costs {self}; give 0 <= low <= typical <= high")


@dataclass(frozen=True)
class TimeSaved:
    """Time that a policy would have saved: an estimate within [`low`, `high`]; less than 0
    is time lost.

    `basis` is `latencies` (those of the trace's own exits) or `cost model`. By latencies,
    exits that the policy saves count with their own; those without one, and those that it
    adds, with the mean of recorded exits of their vector (of all exceptions, if it has
    none). The interval holds 95 % of what runs like this one would show, if exits came
    independently: plus and minus 1.96 times the root of the sum of squared latencies.
    Both count a saved exit as costing nothing; the guest's own handler would have run
    with or without it.
    """

    estimate: float
    low: float
    high: float
    unit: str
    basis: str

    @property
    def of_two_recordings(self) -> tuple[float, float]:
        """The interval of the difference that a second recording shows: as wide as that of two
        independent ones, root 2 times.
        """
        spread = math.sqrt(2) * (self.high - self.low) / 2
        middle = (self.high + self.low) / 2
        return middle - spread, middle + spread

    @property
    def words(self) -> str:
        """What kind of interval it is."""
        if self.basis == "latencies":
            return (
                "by the trace's own latencies; the interval holds 95 % of what runs like this one "
                "show, if exits come independently (--bursts if not); two recordings differ by "
                "1.41 times as much"
            )
        if self.basis == "cost model":
            return (
                "by the cost model (--cost), for the trace has no latencies; the interval is that "
                "of the model's costs, which are assumed"
            )
        return "by latencies where the trace has them, else by the cost model (--cost)"

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        low, high = self.of_two_recordings
        return asdict(self) | {"interval": self.words, "of_two_recordings": [low, high]}


@dataclass(frozen=True)
class Outcome:
    """What one policy would have done.

    Of all `rows`, `judged` ones are `exits`, `deliveries` (the guest gets the fault, or carries
    the instruction out) or `completions`; `unjudged` ones lack what the policy asks for, and
    `unjudged_exits` of them exited; `outside` ones it does not speak of (injected events,
    interrupts and exits whose control it does not set), and
    `outside_exits` of them exited and still do. `recorded_exits` counts exits among judged
    rows; `saved` and `added` are the differences: exits less `recorded_exits` is `added`
    less `saved`. `reasons` has what it does to exits that are not exceptions.
    """

    policy: str
    summary: str
    rows: int
    judged: int
    exits: int
    deliveries: int
    completions: int
    unjudged: int
    outside: int
    outside_exits: int
    recorded_exits: int
    saved: int
    added: int
    time: TimeSaved
    lost: int | None = None
    """Of the faults that had to keep exiting (where any had to), those that do not."""
    missing: tuple[str, ...] = ()
    """What rules of the criteria table ask for and no trace has, in sentences."""
    unjudged_exits: int = 0
    reasons: tuple[ReasonOutcome, ...] = ()

    @property
    def saved_range(self) -> tuple[int, int]:
        """The fewest and the most exits that may be saved: each unjudged one may, or may not."""
        return self.saved, self.saved + self.unjudged_exits

    @property
    def saved_words(self) -> str:
        """`1,200`, or `1,200 to 1,500` where exits are unjudged."""
        return " to ".join(f"{end:,}" for end in dict.fromkeys(self.saved_range))

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        more = {"saved_range": list(self.saved_range), "time": self.time.as_json()}
        return asdict(self) | more


@dataclass(frozen=True)
class Replay:
    """The outcomes of several policies on the same traces.

    `lost` events the recorder says that it lost: nobody knows what they were. `chosen` says
    in words which events were judged, if not all.
    """

    traces: tuple[str, ...]
    time_unit: str
    outcomes: tuple[Outcome, ...]
    lost: int = 0
    chosen: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "traces": list(self.traces),
            "time_unit": self.time_unit,
            "lost": self.lost,
            "chosen": self.chosen,
            "policies": [outcome.as_json() for outcome in self.outcomes],
        }

    def document(self) -> Document:
        """The comparison as a document, for a page or a mail."""
        first = self.outcomes[0]
        said = f"{first.rows:,} events; {first.recorded_exits:,} recorded exits of judged events"
        parts: list[Part] = [Paragraph(said + (f"; only {self.chosen}" if self.chosen else ""))]
        if self.lost:
            parts.append(Paragraph(f"the recorder lost {self.lost:,} events: in no count"))
        heads = ("policy", "exits", "delivered", "completed", "unjudged", "saved", "added")
        rows = tuple(
            (
                one.policy,
                one.exits,
                one.deliveries,
                one.completions,
                one.unjudged,
                one.saved if one.unjudged_exits == 0 else one.saved_words,
                one.added,
                f"{one.time.estimate:,.0f} ({one.time.low:,.0f} to {one.time.high:,.0f})",
            )
            for one in self.outcomes[:SHOWN]
        )
        time = f"time saved ({first.time.unit}, 95 %, by {first.time.basis})"
        parts += [Table((*heads, time), rows, "policies beside the recorded run")]
        parts.append(Paragraph(f"Time {first.time.words}."))
        parts += [Paragraph(f"{one.policy}: {one.summary}") for one in self.outcomes[:SHOWN]]
        for one in self.outcomes[:SHOWN]:
            parts += reason_parts(one)
        parts += [
            Paragraph(f"{one.policy}: {words}")
            for one in self.outcomes[:SHOWN]
            for words in one.missing
        ]
        return Document(f"Policies on {', '.join(self.traces)}", tuple(parts))

    def _repr_html_(self) -> str:
        """A table of the outcomes, and a chart of the exits."""
        shown = self.outcomes[:SHOWN]
        if not shown:
            return "<p>no policy</p>"
        rows = [
            (
                outcome.policy,
                f"{outcome.exits:,}",
                f"{outcome.deliveries:,}",
                f"{outcome.completions:,}",
                f"{outcome.unjudged:,}",
                outcome.saved_words,
                f"{outcome.added:,}",
                f"{outcome.time.estimate:,.0f} {outcome.time.unit}",
                f"{outcome.time.low:,.0f} to {outcome.time.high:,.0f}",
            )
            for outcome in shown
        ]
        heads = ("policy", "exits", "delivered", "completed", "unjudged", "saved", "added")
        chart = [("recorded", shown[0].recorded_exits)]
        chart += [(outcome.policy, outcome.exits) for outcome in shown]
        more = len(self.outcomes) - len(shown)
        return (
            f"<h4>Replay of {escape(', '.join(self.traces))}</h4>"
            + table((*heads, "time saved", f"interval, by {shown[0].time.basis}"), rows)
            + (f"<p>{more:,} more</p>" if more else "")
            + "".join(Document("", tuple(reason_parts(one))).html(level=4) for one in shown)
            + bars(chart, "exits of judged events")
        )


@dataclass(frozen=True)
class Sums:
    """Exits, those with a latency, the latencies' sum and the sum of their squares."""

    count: int = 0
    timed: int = 0
    time: int = 0
    squared: int = 0

    def __add__(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(
            self.count + other.count,
            self.timed + other.timed,
            self.time + other.time,
            self.squared + other.squared,
        )


def time_saved(
    saved: dict[int, Sums],
    added: dict[int, int],
    recorded: dict[int, Sums],
    *,
    unit: str,
    model: CostModel,
) -> TimeSaved:
    """The time saved, from the saved, added and all recorded exits of each vector."""
    count = sum(sums.count for sums in saved.values()) - sum(added.values())
    everything = sum(recorded.values(), Sums())
    if not everything.timed:
        low, high = sorted((count * model.low, count * model.high))
        return TimeSaved(float(count * model.typical), low, high, "ns", "cost model")
    # What is known is added up in integers, so that the order cannot matter.
    known, squares = 0, 0
    estimate = variance = 0.0
    for vector in sorted(saved.keys() | added.keys()):
        own = recorded.get(vector, Sums())
        sample = own if own.timed else everything
        mean, square = sample.time / sample.timed, sample.squared / sample.timed
        exits = saved.get(vector, Sums())
        guessed = exits.count - exits.timed
        more = added.get(vector, 0)
        known += exits.time
        squares += exits.squared
        estimate += (guessed - more) * mean
        variance += (guessed + more) * square
    estimate += known
    variance += squares
    spread = Z * math.sqrt(variance)
    return TimeSaved(estimate, estimate - spread, estimate + spread, unit, "latencies")


REASON_HEADS: Final = ("reason", "control", "exits", "saved", "lost", "unjudged", "time saved")


def reason_row(one: ReasonOutcome) -> tuple[str | int | None, ...]:
    """A row below `REASON_HEADS`."""
    lost = lost_range(one.lost, one.lost_untold)
    return one.reason, one.control, one.recorded, one.saved, lost, one.unjudged, one.time


def reason_parts(outcome: Outcome) -> list[Part]:
    """What a policy does to exits that are not exceptions, by their reasons."""
    if not outcome.reasons:
        return []
    rows = tuple(map(reason_row, outcome.reasons))
    caption = "exits other than exceptions; lost: work of the VMM that would be left undone"
    return [
        Heading(f"{outcome.policy}: exits by reason"),
        Table(REASON_HEADS, rows, caption),
        *map(Paragraph, reason_notes(outcome)),
    ]


def reason_notes(outcome: Outcome) -> list[str]:
    """What is lost by each control, and what the trace does not tell, in sentences."""
    lost = {one.control: one.lost_words for one in outcome.reasons if one.saved}
    unknown = {one.control: one.unknown for one in outcome.reasons if one.unknown}
    return [
        *(f"without {control} goes: {words}" for control, words in lost.items()),
        *(f"{control}: the trace does not tell {words}" for control, words in unknown.items()),
    ]


def with_exits(
    outcome: Outcome, reasons: tuple[ReasonOutcome, ...], unit: str, model: CostModel
) -> Outcome:
    """An outcome together with what the policy does to exits that are not exceptions."""
    if not reasons:
        return outcome
    recorded = sum(one.recorded for one in reasons)
    saved = sum(one.saved for one in reasons)
    unjudged = sum(one.unjudged for one in reasons)
    sums = {
        number: Sums(one.saved, one.timed, one.time or 0, one.squared)
        for number, one in enumerate(reasons)
    }
    # An exit without a latency counts with the mean of those of its reason.
    means = {number: replace(one, count=one.timed) for number, one in sums.items()}
    time = time_saved(sums, {}, means, unit=unit, model=model)
    if outcome.saved or outcome.added:
        time = _together(outcome.time, time) if saved else outcome.time
    return replace(
        outcome,
        judged=outcome.judged + recorded - unjudged,
        exits=outcome.exits + recorded - unjudged - saved,
        deliveries=outcome.deliveries + saved,
        unjudged=outcome.unjudged + unjudged,
        unjudged_exits=outcome.unjudged_exits + unjudged,
        outside=outcome.outside - recorded,
        outside_exits=outcome.outside_exits - recorded,
        recorded_exits=outcome.recorded_exits + recorded - unjudged,
        saved=outcome.saved + saved,
        time=time,
        reasons=reasons,
    )


def _together(one: TimeSaved, other: TimeSaved) -> TimeSaved:
    """Two times saved; those by latencies are independent, a cost model's are not."""
    estimate = one.estimate + other.estimate
    if one.basis == other.basis == "latencies":
        spread = math.hypot(one.high - one.estimate, other.high - other.estimate)
        return TimeSaved(estimate, estimate - spread, estimate + spread, one.unit, one.basis)
    basis = one.basis if one.basis == other.basis else "latencies and cost model"
    return TimeSaved(estimate, one.low + other.low, one.high + other.high, one.unit, basis)
