"""How sure a time saved is if exits come in bursts: a block bootstrap.

The interval of `TimeSaved` supposes that exits come independently. Where they come in
bursts stretches of time vary more: the trace is cut into blocks of equal length, blocks are
drawn again and again with replacement, and the totals' spread is the interval (Kuensch, 1989).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from trapgate.replay.exit_policy import SAVED, judgement_of
from trapgate.replay.judge import Columns, recorded_exit, verdict
from trapgate.trace.frames import polars, reading, scan
from trapgate.trace.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from trapgate.replay.policy import Policy

BLOCKS: Final = 64
_DRAWS = 2000
_SEED = 20260


def burst_interval(
    paths: Sequence[Path], policy: Policy, chosen: Selection = EVERYTHING, blocks: int = BLOCKS
) -> tuple[float, float] | None:
    """The 95 % interval of the latencies that `policy` saves, in the traces' unit.

    None where nothing that it saves has a latency, or the trace is one instant.
    """
    pl = polars()
    with reading(paths):
        lazy = scan(paths, chosen)
        first, last = (
            lazy.select(pl.col("time").min(), pl.col("time").max().alias("last"))
            .collect(engine="streaming")
            .row(0)
        )
        if first is None or last == first:
            return None
        said = verdict(policy, Columns(codes_missing=True))
        saved = (said.judged & recorded_exit() & ~said.exits).fill_null(value=False)
        if policy.exits.judges_exits:
            other = recorded_exit() & ~pl.col("injected") & (judgement_of(policy.exits) == SAVED)
            saved = saved | other.fill_null(value=False)
        width = (last - first) // blocks + 1
        sums = (
            lazy.filter(saved & pl.col("latency").is_not_null())
            .group_by(((pl.col("time") - first) // width).alias("block"))
            .agg(pl.col("latency").sum().cast(pl.Int64).alias("time"))
            .collect(engine="streaming")
        )
    if not sums.height:
        return None
    totals = np.zeros(blocks)
    totals[sums["block"].to_numpy().astype(np.int64)] = sums["time"].to_numpy()
    drawn = np.random.default_rng(_SEED).integers(0, blocks, (_DRAWS, blocks))
    low, high = np.quantile(totals[drawn].sum(axis=1), (0.025, 0.975))
    return float(low), float(high)
