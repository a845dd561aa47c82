"""A page for any answer (a definition, a merge, a check, a comparison): one file, opens offline."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from pathlib import Path

from trapgate.trace.document import Document
from trapgate.trace.draft import draft


def answer_page(document: Document, out: Path) -> int:
    """Write the page `out`; its size in bytes. It has no script and asks for nothing.

    Raises: TraceError if it cannot be written.
    """
    page = answer_html(document).encode()
    with draft(out, "page") as temporary:
        temporary.write_bytes(page)
    return len(page)


def answer_html(document: Document) -> str:
    """The page as text."""
    style = (files("trapgate.report") / "page.css").read_text(encoding="utf-8")
    title = escape(document.title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{style}</style>\n'
        f"</head>\n<body>\n<header><h1>{title}</h1></header>\n"
        f'<main class="answer"><section>{document.html()}</section></main>\n</body>\n</html>\n'
    )
