"""Answers as documents: headings, paragraphs, tables, grids, listings; as HTML and Markdown.

An answer says what it consists of once; a page, a notebook and a mail show the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

Cell = str | int | float | None


@dataclass(frozen=True)
class Paragraph:
    """A line of text."""

    text: str


@dataclass(frozen=True)
class Heading:
    """The heading of a part."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; numbers stand to the right. `caption` is read out before it."""

    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


def without_empty(table: Table) -> Table:
    """The table without columns of which every cell is empty."""
    kept = [
        n for n in range(len(table.heads)) if any(row[n] not in (None, "") for row in table.rows)
    ]
    rows = tuple(tuple(row[n] for n in kept) for row in table.rows)
    return Table(tuple(table.heads[n] for n in kept), rows, table.caption)


@dataclass(frozen=True)
class Listing:
    """Text as it is, a file say."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Square:
    """A cell of a grid: a short word, a long one for those who ask, and its class."""

    short: str
    long: str
    kind: str


@dataclass(frozen=True)
class Grid:
    """A Karnaugh-like grid: neighbours differ in one bit."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Square, ...]], ...]


Part = Paragraph | Heading | Table | Listing | Grid


@dataclass(frozen=True)
class Document:
    """An answer: its title and its parts."""

    title: str
    parts: tuple[Part, ...] = field(default=())

    def html(self, *, level: int = 2) -> str:
        """The parts as HTML, headings from `level` on; without a page around them."""
        return "".join(_html(part, level) for part in self.parts)

    def notebook(self) -> str:
        """Title and parts, for a notebook."""
        return f"<h3>{escape(self.title)}</h3>{self.html(level=4)}"

    def _repr_html_(self) -> str:
        """For a notebook."""
        return self.notebook()

    def markdown(self) -> str:
        """Title and parts as Markdown, for a mail."""
        return "\n\n".join([f"# {_plain(self.title)}", *map(_markdown, self.parts)]) + "\n"


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.1f}"


def _html(part: Part, level: int) -> str:
    match part:
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Heading(text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Listing(text, _):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Table(heads, rows, caption):
            head = "".join(
                f'<th scope="col"{_side(rows, n)}>{escape(one)}</th>' for n, one in enumerate(heads)
            )
            body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
            told = f"<caption>{escape(caption)}</caption>" if caption else ""
            return (
                f"{_scrolled(caption or heads[0])}<table>{told}<thead><tr>{head}</tr></thead>"
                f"<tbody>{body}</tbody></table></div>"
            )
        case Grid(caption, columns, rows):
            head = "".join(f'<th scope="col">{escape(one)}</th>' for one in columns)
            lines = []
            for name, squares in rows:
                cells = "".join(
                    f'<td class="{escape(one.kind)}" title="{escape(one.long)}">'
                    f"{escape(one.short)}</td>"
                    for one in squares
                )
                lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
            return (
                f'{_scrolled(caption)}<table class="karnaugh"><caption>{escape(caption)}</caption>'
                f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
                "</table></div>"
            )


def _scrolled(name: str) -> str:
    """The beginning of what is moved sideways on a narrow screen, by keyboard, too."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">'


_NUMBERS: Final = re.compile(r"-?[\d,.]+%?(?: to -?[\d,.]+)?(?: \(-?[\d,.]+ to -?[\d,.]+\))?")
"""What stands to the right like a number: shares, ranges, estimates with an interval."""


def _is_number(cell: Cell) -> bool:
    if isinstance(cell, str):
        return _NUMBERS.fullmatch(cell) is not None
    return cell is not None


def _side(rows: Sequence[Sequence[Cell]], column: int) -> str:
    """A heading stands where its column stands."""
    return "" if any(_is_number(row[column]) for row in rows) else ' class="left"'


def _cell(cell: Cell) -> str:
    kind = "" if cell is None or _is_number(cell) else ' class="left"'
    return f"<td{kind}>{escape(_shown(cell))}</td>"


def _escaped(text: str) -> str:
    """Text that Markdown leaves as it is within a line."""
    return "".join(f"\\{sign}" if sign in "\\`*[]<>|" else sign for sign in text)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    shown = _escaped(text)
    return f"\\{shown}" if shown.startswith(("#", "-", "+")) else shown


def _markdown(part: Part) -> str:
    match part:
        case Paragraph(text):
            return _plain(text)
        case Heading(text):
            return f"## {_plain(text)}"
        case Listing(text, language):
            return f"```{language}\n{text.rstrip()}\n```"
        case Table(heads, rows, caption):
            right = [any(_is_number(row[n]) for row in rows) for n in range(len(heads))]
            return _markdown_table(heads, rows, caption, right)
        case Grid(caption, columns, rows):
            plain = [(name, *(one.short for one in squares)) for name, squares in rows]
            return _markdown_table(("", *columns), plain, caption, [False] * (len(columns) + 1))


def _markdown_table(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], caption: str, right: Sequence[bool]
) -> str:
    lines = [
        "| " + " | ".join(map(_escaped, heads)) + " |",
        "|" + "|".join("---:" if one else "---" for one in right) + "|",
        *("| " + " | ".join(_escaped(_shown(cell)) for cell in row) + " |" for row in rows),
    ]
    told = f"{_plain(caption)}\n\n" if caption else ""
    return told + "\n".join(lines)
