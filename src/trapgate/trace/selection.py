"""Which events of a trace are asked about: by level, VM, vCPU, time and RIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapgate.trace.schema import TraceError

if TYPE_CHECKING:
    from polars import Expr, LazyFrame


@dataclass(frozen=True)
class Selection:
    """Conditions that all hold; what is empty or None asks for nothing.

    `levels` are 1 for a guest and 2 for a guest's guest; events that say no level (all but
    exits) are kept with level 1's. `time` and `rip` are from, included, and to, not
    included, each None where it is open; times are in the trace's unit, from its first event.
    """

    levels: tuple[int, ...] = ()
    vms: tuple[int, ...] = ()
    vcpus: tuple[int, ...] = ()
    time: tuple[int | None, int | None] = (None, None)
    rip: tuple[int | None, int | None] = (None, None)

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Selection()

    def words(self) -> str:
        """What is asked for, for a heading; empty if everything is."""
        parts = []
        for name, values in (("level", self.levels), ("VM", self.vms), ("vCPU", self.vcpus)):
            if values:
                parts.append(f"{name} {', '.join(map(str, values))}")
        for name, (low, high), form in (("time", self.time, "{:,}"), ("RIP", self.rip, "{:#x}")):
            if low is not None or high is not None:
                ends = ["" if end is None else form.format(end) for end in (low, high)]
                parts.append(f"{name} {ends[0]}..{ends[1]}")
        return "; ".join(parts)

    def of(self, lazy: LazyFrame) -> LazyFrame:
        """Only the rows that are asked about."""
        if self.is_all:
            return lazy
        import polars as pl

        conditions: list[Expr] = []
        if self.levels:
            conditions.append(pl.col("level").fill_null(1).is_in(self.levels))
        if self.vms:
            conditions.append(pl.col("vm").is_in(self.vms))
        if self.vcpus:
            conditions.append(pl.col("vcpu").is_in(self.vcpus))
        time = pl.col("time")
        if self.time != (None, None):
            first = lazy.select(time.min()).collect(engine="streaming").item() or 0
            low, high = self.time
            if low is not None:
                conditions.append(time >= first + low)
            if high is not None:
                conditions.append(time < first + high)
        low, high = self.rip
        if low is not None:
            conditions.append(pl.col("rip") >= pl.lit(low, dtype=pl.UInt64))
        if high is not None:
            conditions.append(pl.col("rip") < pl.lit(high, dtype=pl.UInt64))
        return lazy.filter(conditions)


EVERYTHING = Selection()


def stretch(text: str, name: str) -> tuple[int | None, int | None]:
    """`FROM:TO` as numbers, either of which may be left out; raises TraceError."""
    low, colon, high = text.partition(":")
    try:
        found = tuple(int(end, 0) if end.strip() else None for end in (low, high))
    except ValueError:
        found = ()
    if not colon or not found or any(end is not None and not 0 <= end < 1 << 64 for end in found):
        raise TraceError(name, f"{text!r} is not a range", "give FROM:TO; either may be left out")
    return found[0], found[1]
