"""Options that give an answer as Markdown or as a page."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trapgate.cli.terminal import fail

if TYPE_CHECKING:
    from trapgate.trace.document import Document

MarkdownOption = Annotated[
    bool, typer.Option("--markdown", help="Print the answer as Markdown, for a mail.")
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Write the answer as a page that opens offline.")
]


def shown(document: Callable[[], Document] | None, *, markdown: bool, html: Path | None) -> bool:
    """Show an answer as it is asked for; False if it is not asked for so.

    Raises: TraceError if the page cannot be written.
    """
    if not markdown and html is None:
        return False
    if document is None:
        raise fail("this answer has no page: leave --markdown and --html out")
    made = document()
    if html is not None:
        from trapgate.report.answer import answer_page

        size = answer_page(made, html)
        print(f"{html}: {size:,} bytes", file=sys.stderr)
    if markdown:
        print(made.markdown(), end="")
    return True
