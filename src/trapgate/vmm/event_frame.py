"""The journal's last events as a Polars frame, with words for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from trapgate.compiler.dialect import Cells
from trapgate.decision.decide import Disposition, Reason
from trapgate.events import journal as j
from trapgate.sdm.event_words import event_words
from trapgate.sdm.vectors import PF

if TYPE_CHECKING:
    from polars import DataFrame

_MASK = (1 << 64) - 1


def event_frame(latest_first: Iterable[Cells]) -> DataFrame:
    """A frame of rows of the journal, the earliest first. Raises: MissingExtraError."""
    from trapgate.trace.frames import polars

    rows = [_row(row) for row in latest_first]
    pl = polars()
    schema = {
        "time": pl.UInt64,
        "vcpu": pl.UInt32,
        "name": pl.String,
        "vector": pl.UInt8,
        "error_code": pl.UInt32,
        "address": pl.UInt64,
        "rip": pl.UInt64,
        "cpl": pl.UInt8,
        "cr3": pl.UInt64,
        "disposition": pl.String,
        "reason": pl.String,
        "depth": pl.UInt8,
        "injected": pl.Boolean,
    }
    frame: DataFrame = pl.DataFrame(rows[::-1], schema=schema, orient="row")
    return frame


def _row(row: Cells) -> tuple[object, ...]:
    vector, kind, code = (int(row[n]) for n in (j.ROW_VECTOR, j.ROW_TYPE, j.ROW_ERROR_CODE))
    return (
        int(row[j.ROW_TIME]),
        int(row[j.ROW_CPU]),
        event_words(vector, kind, code),
        vector,
        code if code >= 0 else None,
        int(row[j.ROW_ADDRESS]) & _MASK if vector == PF else None,
        int(row[j.ROW_RIP]) & _MASK,
        int(row[j.ROW_CPL]),
        int(row[j.ROW_CR3]) & _MASK,
        Disposition(int(row[j.ROW_DISPOSITION])).name,
        Reason(int(row[j.ROW_REASON])).name,
        int(row[j.ROW_DEPTH]),
        bool(row[j.ROW_INJECTED]),
    )
