"""Tables and bar charts as HTML, for notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

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
