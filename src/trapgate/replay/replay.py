"""Replay: policies on recorded traces, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trapgate.decision.rules import figure_3
from trapgate.replay.exits import judge_exits
from trapgate.replay.judge import Columns, Verdict, exceptions, recorded_exit, verdict
from trapgate.replay.policy import Policy
from trapgate.replay.result import CostModel, Outcome, Replay, Sums, time_saved, with_exits
from trapgate.replay.tables import unjudgeable
from trapgate.replay.tally import SUMS, Asked, columns_for, filters_of, tally
from trapgate.sdm.vectors import PF
from trapgate.trace.frames import is_weighted, lost_events, polars, reading, scan, time_unit
from trapgate.trace.schema import TraceError
from trapgate.trace.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from polars import DataFrame, Expr, LazyFrame

HOST_UNITS: Final = ("ns", "ticks")
"""Units of time of traces that may have latencies."""

Tally = Callable[[Sequence[Path], Sequence[Asked]], Any]
"""Makes the tally of traces, for the filters given; where and how is its business."""


def replay(
    traces: Sequence[Path],
    policies: Sequence[Policy],
    *,
    model: CostModel | None = None,
    tallied: Tally | None = None,
    chosen: Selection = EVERYTHING,
) -> Replay:
    """What each of `policies` would have done to the events in `traces`.

    It is supposed that the guest takes the same faults: what a handler, or the VMM, would
    do differently under another policy is not simulated. `model` gives the cost of an exit
    where the traces have no latencies, `tallied` another way to count rows (a cluster).
    Larger than memory is normal. `chosen` says which events count.

    Raises: TraceError for files that are not traces, or empty, or of different kinds.
    """
    unit = time_unit(traces)
    alone = None
    if tallied is None and len(policies) == 1 and not is_weighted(traces):
        alone = _alone(traces, policies[0], unit, model or CostModel(), chosen)
    if alone is not None:
        outcomes = [alone]
    else:
        pairs = filters_of(policies)
        kinds = (tallied or partial(here, chosen=chosen))(traces, pairs)
        outcomes = judged(kinds, policies, pairs, unit=unit, model=model)
        demand_rows(outcomes[0].rows if outcomes else 1, traces)
    if any(policy.exits.judges_exits for policy in policies):
        found = judge_exits(traces, [policy.exits for policy in policies], chosen)
        outcomes = [
            with_exits(outcome, told, unit, model or CostModel())
            for outcome, told in zip(outcomes, found, strict=True)
        ]
    return Replay(
        tuple(map(str, traces)), unit, tuple(outcomes), lost_events(traces), chosen.words()
    )


def _alone(
    traces: Sequence[Path], policy: Policy, unit: str, model: CostModel, chosen: Selection
) -> Outcome | None:
    """The outcome of one policy, without a tally; None if its time takes one.

    That is so where latencies have to be guessed, by the means of their vectors.
    """
    with reading(traces):
        timed, untold = unit in HOST_UNITS, unit != "instructions"
        counted = direct(scan(traces, chosen), policy, timed=timed, codes_missing=untold)
    demand_rows(counted["rows"], traces)
    if unit not in HOST_UNITS or not counted["recorded_timed"]:
        return _outcome(policy, counted, unit, model)
    if counted["added"] or counted["saved"] != counted["saved_timed"]:
        return None
    saved = {
        -1: Sums(
            counted["saved"],
            counted["saved_timed"],
            counted["saved_time"],
            counted["saved_squared"],
        )
    }
    recorded = {-1: Sums(1, 1)}
    return _outcome(policy, counted, unit, model, times=(saved, {}), recorded=recorded)


def here(
    traces: Sequence[Path], pairs: Sequence[Asked], *, chosen: Selection = EVERYTHING
) -> DataFrame:
    """The tally, made in this process."""
    with reading(traces):
        return tally(scan(traces, chosen), pairs, weighted=is_weighted(traces))


def demand_rows(rows: int, traces: Sequence[Path]) -> None:
    """Raise TraceError if the traces have no rows."""
    if not rows:
        names = ", ".join(map(str, traces))
        raise TraceError(names, "no event in it", "give a trace of a run that had some")


def direct(
    lazy: LazyFrame, policy: Policy, *, timed: bool = False, codes_missing: bool | None = None
) -> dict[str, Any]:
    """The counts of one policy, straight from the rows.

    With `timed`, for traces of hosts, the latencies of saved exits, and their squares, are
    added up; with `codes_missing` (as `timed`, if not given) rows may lack what it asks for.
    """
    pl = polars()
    untold = timed if codes_missing is None else codes_missing
    said = verdict(policy, Columns(codes_missing=untold))
    # Each mask is worked out once, and only then combined and counted.
    masks = {"judged": said.judged, "exits": said.exits, "was": recorded_exit()}
    if policy.filters_writes or policy.rules or untold:
        masks |= {"unjudged": said.unjudged, "completes": said.completes}
    more: list[Expr] = []
    if untold:
        masks = {name: mask.fill_null(value=False) for name, mask in masks.items()}
    if timed:
        masks |= {"latency": pl.col("latency"), "recorded": exceptions() & recorded_exit()}
        latency = pl.col("latency").filter(pl.col("judged") & pl.col("was") & ~pl.col("exits"))
        wide = latency.cast(pl.Int128)
        more = [
            latency.count().alias("saved_timed"),
            latency.sum().alias("saved_time"),
            (wide * wide).sum().alias("saved_squared"),
            (pl.col("recorded") & pl.col("latency").is_not_null()).any().alias("recorded_timed"),
        ]
    columns = {name: pl.col(name) if name in masks else None for name in _MASKS}
    selected = lazy.select(mask.alias(name) for name, mask in masks.items()).select(
        pl.len().alias("rows"), *_measures(columns, lambda mask: mask.sum()), *more
    )
    return _derived(selected.collect(engine="streaming").row(0, named=True))


def judged(
    kinds: DataFrame,
    policies: Sequence[Policy],
    pairs: Sequence[Asked],
    *,
    unit: str,
    model: CostModel | None = None,
    keep: tuple[int, int] | None = None,
) -> list[Outcome]:
    """The outcomes of `policies` on a tally; `keep` are mask and match of page faults that
    should continue exiting.
    """
    pl = polars()
    count = pl.col("count")

    def weigh(mask: Expr) -> Expr:
        total: Expr = pl.when(mask).then(count).otherwise(0).sum()
        return total

    columns = columns_for(pairs)
    verdicts = [verdict(policy, columns) for policy in policies]
    expressions = [count.sum().alias("rows")]
    for number, said in enumerate(verdicts):
        expressions += _measures(_without_nulls(said), weigh, f"{number}.")
        if keep is not None:
            mask, match = (pl.lit(word, dtype=pl.UInt32) for word in keep)
            code = pl.col("error_code")
            wanted = figure_3(True, code.is_not_null(), code.fill_null(0), mask, match)
            fault = exceptions() & (pl.col("vector") == PF) & code.is_not_null()
            expressions.append(weigh(fault & wanted & ~said.exits).alias(f"{number}.lost"))
    found = kinds.select(expressions).row(0, named=True)
    timed = _by_vector(kinds, exceptions() & recorded_exit())
    times = _times(kinds, verdicts) if any(sums.timed for sums in timed.values()) else None
    outcomes = []
    for number, policy in enumerate(policies):
        own = _derived({name: found[f"{number}.{name}"] for name in _SUMS})
        own["rows"] = found["rows"]
        own["lost"] = found.get(f"{number}.lost")
        outcomes.append(
            _outcome(
                policy,
                own,
                unit,
                model or CostModel(),
                times=None if times is None else times[number],
                recorded=timed,
            )
        )
    return outcomes


_MASKS: Final = ("judged", "exits", "was", "unjudged", "completes")
_SUMS: Final = (*_MASKS, "judged_was", "exits_was", "unjudged_was")


def _without_nulls(said: Verdict) -> dict[str, Expr | None]:
    # Events that are not faults have no vector and no type: null, hence not judged.
    masks = (said.judged, said.exits, recorded_exit(), said.unjudged, said.completes)
    return {name: mask.fill_null(value=False) for name, mask in zip(_MASKS, masks, strict=True)}


def _measures(
    masks: Mapping[str, Expr | None], weigh: Callable[[Expr], Expr], prefix: str = ""
) -> list[Expr]:
    """Counts of masks, and of those that were exits; a mask that is None holds for no row."""
    pl = polars()
    was = masks["was"]
    assert was is not None
    sums = []
    for name in _SUMS:
        mask = masks[name.removesuffix("_was")] if name != "was" else was
        if mask is None:
            counted = pl.lit(0, pl.Int64)
        elif name.endswith("_was"):
            counted = weigh(mask & was)
        else:
            counted = weigh(mask)
        sums.append(counted.alias(prefix + name))
    return sums


def _derived(sums: dict[str, Any]) -> dict[str, Any]:
    return sums | {
        "completions": sums["completes"],
        "recorded_exits": sums["judged_was"],
        "saved": sums["judged_was"] - sums["exits_was"],
        "added": sums["exits"] - sums["exits_was"],
        "outside_exits": sums["was"] - sums["judged_was"] - sums["unjudged_was"],
    }


def _by_vector(kinds: DataFrame, mask: Expr) -> dict[int, Sums]:
    pl = polars()
    found = kinds.filter(mask).group_by("vector").agg([pl.col(name).sum() for name in SUMS])
    return {row[0]: Sums(*row[1:]) for row in found.rows()}


def _times(
    kinds: DataFrame, verdicts: Sequence[Verdict]
) -> list[tuple[dict[int, Sums], dict[int, int]]]:
    """For each policy its saved exits and the number of added ones, by vector."""
    pl = polars()
    was = recorded_exit()
    marked = kinds.select(
        pl.col("vector", *SUMS),
        *(
            (said.judged & was & ~said.exits).fill_null(value=False).alias(f"saved {number}")
            for number, said in enumerate(verdicts)
        ),
        *(
            (said.exits & ~was).fill_null(value=False).alias(f"added {number}")
            for number, said in enumerate(verdicts)
        ),
    )
    result = []
    rows = [(row[0], Sums(*row[1:5])) for row in marked.select("vector", *SUMS).rows()]
    for number in range(len(verdicts)):
        saved: dict[int, Sums] = {}
        added: dict[int, int] = {}
        flags = zip(marked[f"saved {number}"], marked[f"added {number}"], strict=True)
        for (vector, sums), (is_saved, is_added) in zip(rows, flags, strict=True):
            if is_saved:
                saved[vector] = saved.get(vector, Sums()) + sums
            if is_added:
                added[vector] = added.get(vector, 0) + sums.count
        result.append((saved, added))
    return result


def _outcome(
    policy: Policy,
    found: dict[str, Any],
    unit: str,
    model: CostModel,
    *,
    times: tuple[dict[int, Sums], dict[int, int]] | None = None,
    recorded: dict[int, Sums] | None = None,
) -> Outcome:
    if times is None:
        times = {-1: Sums(found["saved"])}, {-1: found["added"]}
    return Outcome(
        policy=policy.name,
        summary=policy.summary,
        rows=found["rows"],
        judged=found["judged"],
        exits=found["exits"],
        deliveries=found["judged"] - found["exits"] - found["completions"],
        completions=found["completions"],
        unjudged=found["unjudged"],
        unjudged_exits=found["unjudged_was"],
        outside=found["rows"] - found["judged"] - found["unjudged"],
        outside_exits=found["outside_exits"],
        recorded_exits=found["recorded_exits"],
        saved=found["saved"],
        added=found["added"],
        time=time_saved(*times, recorded or {}, unit=unit, model=model),
        lost=found.get("lost"),
        missing=tuple(unjudgeable(policy.rules)),
    )
