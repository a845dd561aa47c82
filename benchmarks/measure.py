"""Benchmarks, their sides, and how they are measured.

A benchmark is one piece of work; a side is somebody who does it: Trapgate on one of its
paths, or a peer. All sides run in the same call, in turns, so that a noisy machine is
noisy for all of them. A side that cannot run here is skipped and says why.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

OURS = "trapgate"
"""Names of Trapgate's own sides begin so; the others are peers."""

Side = Callable[[], float]
"""Does the work once and returns the result in the benchmark's unit; may raise `SkipSide`."""


class SkipSide(Exception):  # noqa: N818 (not an error: a word on why a side has no number)
    """The side cannot run here; the message is a word on why."""


@dataclass
class Benchmark:
    """One piece of work. `unit` is that of its results, `goal` what is wanted of Trapgate."""

    name: str
    what: str
    unit: str
    better: Literal["lower", "higher"]
    goal: str
    sides: dict[str, Side] = field(default_factory=dict)

    def side(self, name: str) -> Callable[[Side], Side]:
        """A decorator that adds a side, in the order of the table."""

        def add(side: Side) -> Side:
            if name in self.sides:
                raise ValueError(f"{self.name} has a side {name} already")
            self.sides[name] = side
            return side

        return add


@dataclass(frozen=True)
class Outcome:
    """What one side of a benchmark did: its results, or why it has none."""

    side: str
    results: tuple[float, ...] = ()
    skipped: str | None = None

    @property
    def median(self) -> float | None:
        """The median of the results; None if the side was skipped."""
        return statistics.median(self.results) if self.results else None


def measure(benchmark: Benchmark, *, runs: int, warm_up: int = 1) -> list[Outcome]:
    """Run all sides in turns: `warm_up` rounds that do not count, then `runs` that do."""
    results: dict[str, list[float]] = {name: [] for name in benchmark.sides}
    skipped: dict[str, str] = {}
    for turn in range(warm_up + runs):
        for name, side in benchmark.sides.items():
            if name in skipped:
                continue
            try:
                result = side()
            except SkipSide as why:
                skipped[name] = str(why)
                continue
            except Exception as error:  # noqa: BLE001 (the other sides still have their say)
                skipped[name] = f"failed, {type(error).__name__}: {error}"
                continue
            if turn >= warm_up:
                results[name].append(result)
    return [
        Outcome(name, skipped=skipped[name])
        if name in skipped
        else Outcome(name, tuple(results[name]))
        for name in benchmark.sides
    ]


def ratios(outcomes: list[Outcome]) -> dict[str, dict[str, float]]:
    """For each of Trapgate's sides, the median over the turns of its result by each peer's.

    Results of one turn are compared with each other, for the machine may drift from turn to
    turn by more than the sides differ: tight loops have been seen to halve their speed.
    """
    return {
        ours.side: {
            peer.side: statistics.median(
                mine / theirs for mine, theirs in zip(ours.results, peer.results, strict=True)
            )
            for peer in outcomes
            if not peer.side.startswith(OURS) and peer.results
        }
        for ours in outcomes
        if ours.side.startswith(OURS) and ours.results
    }


def rate(work: Callable[[int], float], few: int, many: int) -> float:
    """Units of work a second, from the seconds that `few` and `many` of them take.

    The difference leaves out start-up, whatever it costs.

    Raises: SkipSide if the difference drowns in noise.
    """
    before = work(few)
    difference = work(many) - before
    if difference <= 0:
        raise SkipSide(f"too noisy: {many} took no longer than {few}")
    return (many - few) / difference
