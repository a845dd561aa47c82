"""Which control causes each exit, what turning it off would save, and what would be lost.

Exceptions have filters, which `replay` judges. Every other exit has a control of its own
(`control_table`), or none: those happen always. What a trace does not tell (which MSR, say)
is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trapgate.replay import accesses
from trapgate.replay.control_table import SWITCHED_MSRS, Control, Loss, control_of, msr_name
from trapgate.replay.exits import is_open, loss_of, lost_range
from trapgate.trace.document import Document, Paragraph, Part, Table
from trapgate.trace.frames import (
    count,
    facts_of,
    is_weighted,
    lost_events,
    polars,
    reading,
    scan,
    time_unit,
)
from trapgate.trace.schema import POSTED_INTERRUPTS
from trapgate.trace.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from polars import DataFrame, Expr

TOP: Final = 5


@dataclass(frozen=True)
class ControlLine:
    """A control's exits, the time they took (None if the trace has none), and what turning it
    off would save and lose. `details` are the commonest accesses; `reflected` exits belong
    to the hypervisor above and are not `savable`. Of the savable ones `lost` did what nobody
    does without them, and of `lost_untold` the trace does not tell whether that is so.
    """

    control: str
    reasons: tuple[str, ...]
    exits: int
    reflected: int
    savable: int
    lost: int
    lost_untold: int
    time: int | None
    savable_time: int | None
    lost_words: str
    unknown: str
    details: tuple[tuple[str, int], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ControlReport:
    """All exits of a trace by the control that causes them."""

    lines: tuple[ControlLine, ...]
    time_unit: str
    lost_events: int
    chosen: str = ""
    posted: str = ""
    """The interrupts of devices that went to the guest without an exit."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "time_unit": self.time_unit,
            "lost_events": self.lost_events,
            "chosen": self.chosen,
            "posted": self.posted,
            "controls": [line.as_json() for line in self.lines],
        }

    def document(self) -> Document:
        """A page about it, or a mail."""
        total = sum(line.exits for line in self.lines)
        asked = f" ({self.chosen})" if self.chosen else ""
        parts: list[Part] = [Paragraph(f"{total:,} exits{asked}; times in {self.time_unit}")]
        if self.lost_events:
            parts.append(Paragraph(f"the recorder lost {self.lost_events:,} events: in no count"))
        heads = ("control", "exits", "time", "off saves", "time saved", "lost", "L1's own")
        rows = tuple(
            (
                line.control,
                line.exits,
                line.time,
                line.savable,
                line.savable_time,
                lost_range(line.lost, line.lost_untold),
                line.reflected,
            )
            for line in self.lines
        )
        parts.append(Table(heads, rows, "exits by the control that causes them"))
        accessed = tuple((line.control, *one) for line in self.lines for one in line.details)
        if accessed:
            parts.append(Table(("control", "access", "exits"), accessed, "commonest accesses"))
        lost = tuple((line.control, line.lost_words) for line in self.lines)
        parts.append(Table(("control", "what goes without it"), lost, "what would be lost"))
        untold = tuple((line.control, line.unknown) for line in self.lines if line.unknown)
        if untold:
            parts.append(Table(("control", "what"), untold, "what this trace does not tell"))
        if self.posted:
            parts.append(Paragraph(f"posted to the guest without an exit: {self.posted}"))
        return Document("Exits by control", tuple(parts))

    def _repr_html_(self) -> str:
        """For a notebook."""
        return self.document().notebook()


def by_control(paths: Sequence[Path], chosen: Selection = EVERYTHING) -> ControlReport:
    """The `chosen` exits of traces by the control that causes them, the costliest first.

    Raises: TraceError for files that are not traces.
    """
    pl = polars()
    unit = time_unit(paths)
    with reading(paths):
        cells = (
            scan(paths, chosen)
            .filter(pl.col("disposition") == "EXIT")
            .group_by(
                accesses.word().alias("word"),
                accesses.detail().alias("detail"),
                _number(accesses.is_msr()).alias("msr"),
                _number(accesses.is_port()).alias("port"),
                pl.col("operand").is_null().alias("no operand"),
                pl.col("data").is_null().alias("no data"),
                pl.col("reflected").fill_null(value=False).alias("reflected"),
            )
            .agg(
                count(weighted=is_weighted(paths)).cast(pl.Int64).alias("count"),
                pl.col("latency").sum().cast(pl.Int64).alias("time"),
                pl.col("latency").count().cast(pl.Int64).alias("timed"),
            )
            .collect(engine="streaming")
        )
    posted = "; ".join(filter(None, (facts.get(POSTED_INTERRUPTS) for facts in facts_of(paths))))
    return ControlReport(tuple(_lines(cells)), unit, lost_events(paths), chosen.words(), posted)


def _number(which: Expr) -> Expr:
    pl = polars()
    number: Expr = pl.when(which).then(pl.col("operand")).otherwise(None)
    return number


def _lines(cells: DataFrame) -> list[ControlLine]:
    found: dict[str, list[dict[str, Any]]] = {}
    controls: dict[str, Control] = {}
    for row in cells.iter_rows(named=True):
        row["switched"] = row["msr"] in SWITCHED_MSRS
        if row["msr"] is not None:
            row["detail"] = msr_name(row["msr"])
        elif row["port"] is not None:
            row["detail"] = f"port {row['port']:#x}"
        control = control_of(row["word"], row["detail"] or "")
        controls[control.name] = control
        found.setdefault(control.name, []).append(row)
    second_stage = any(control_of("EPT_VIOLATION").name == name for name in found)
    lines = [_line(controls[name], rows, second_stage=second_stage) for name, rows in found.items()]
    return sorted(lines, key=lambda line: (-(line.time or 0), -line.exits, line.control))


def _line(control: Control, rows: list[dict[str, Any]], *, second_stage: bool) -> ControlLine:
    mine = [row for row in rows if not row["reflected"]]
    exits, kept = sum(row["count"] for row in rows), sum(row["count"] for row in mine)
    timed = any(row["timed"] for row in rows)
    losses = dict.fromkeys(Loss, 0)
    details: dict[str, int] = {}
    for row in mine:
        losses[loss_of(control, row, second_stage=second_stage)] += row["count"]
    for row in rows:
        if row["detail"] is not None:
            details[row["detail"]] = details.get(row["detail"], 0) + row["count"]
    top = sorted(details.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    return ControlLine(
        control=control.name,
        reasons=tuple(sorted({row["word"] for row in rows})),
        exits=exits,
        reflected=exits - kept,
        savable=kept if control.savable else 0,
        lost=losses[Loss.WORK] if control.savable else 0,
        lost_untold=losses[Loss.UNTOLD] if control.savable else 0,
        time=sum(row["time"] for row in rows) if timed else None,
        savable_time=sum(row["time"] for row in mine) * control.savable if timed else None,
        lost_words=control.lost,
        unknown=control.unknown if any(is_open(control, row) for row in rows) else "",
        details=tuple(top),
    )
