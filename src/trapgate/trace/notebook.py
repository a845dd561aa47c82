"""Tables and bar charts as HTML, for notebooks; and a trace as such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from trapgate.sdm.vectors import ROWS

if TYPE_CHECKING:
    from trapgate.trace.reader import Trace

ROWS_SHOWN = 8
COUNTED = 1_000_000
"""Rows that are counted for a chart; a longer trace says so."""

_WIDTH, _BAR = 260, 16


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bars(values: Sequence[tuple[str, int]], title: str) -> str:
    """Horizontal bars as SVG; the text takes the notebook's own colour."""
    most = max((value for _, value in values), default=0) or 1
    parts = []
    for number, (label, value) in enumerate(values):
        top = number * (_BAR + 4)
        length = max(1, _WIDTH * value // most) if value else 0
        text = f'y="{top + 12}" font-size="12" fill="currentColor"'
        parts.append(
            f'<text x="150" {text} text-anchor="end">{escape(label[:24])}</text>'
            f'<rect x="156" y="{top}" width="{length}" height="{_BAR}" fill="#4a7fbf"/>'
            f'<text x="{162 + length}" {text}>{value:,}</text>'
        )
    height = len(values) * (_BAR + 4)
    return (
        f'<svg role="img" aria-label="{escape(title)}" width="{_WIDTH + 260}" height="{height}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def trace_html(trace: Trace) -> str:
    """Facts, events by vector, and the first rows of a trace."""
    counts: Counter[str] = Counter()
    counted = 0
    for batch in trace.batches(["vector", "disposition"]):
        pairs = zip(*(batch.column(name).to_pylist() for name in (0, 1)), strict=True)
        for (vector, disposition), count in Counter(pairs).items():
            counts[f"{_label(vector)} {disposition.lower()}"] += count
        counted += batch.num_rows
        if counted >= COUNTED:
            break
    shown = next(trace.batches(rows=ROWS_SHOWN), None)
    rows = [] if shown is None else shown.to_pylist()
    columns = [name for name in trace.schema.names if any(row[name] is not None for row in rows)]
    facts = [
        ("rows", f"{len(trace):,}"),
        ("version", trace.version),
        ("times in", trace.time_unit),
        ("complete", "yes" if trace.complete else "no"),
        *trace.run.items(),
    ]
    note = "" if counted >= len(trace) else f"<p>chart: the first {counted:,} rows</p>"
    return (
        f"<h4>Trace {escape(trace.path.name)}</h4>{table(('fact', 'value'), facts)}"
        f"{bars(counts.most_common(20), 'events by vector and disposition')}{note}"
        + table(columns, [[row[name] for name in columns] for row in rows])
    )


def _label(vector: int | None) -> str:
    if vector is None:
        return "other"
    return f"#{ROWS[vector].vector.name}" if vector in ROWS else f"vector {vector}"
