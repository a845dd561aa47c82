"""Pages that work offline: style, script and data in one HTML file."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

_SHARED = "trapgate.report"


def fill(package: str, title: str, subject: str, data: dict[str, Any]) -> str:
    """A page about a `subject` ("trace"), its body, style and script the page.* of `package`.

    All pages have one head and one theme; the style of `package` comes after that of this one.
    """
    own = files(package)
    styles = [files(room) / "page.css" for room in dict.fromkeys((_SHARED, package))]
    page = (files(_SHARED) / "frame.html").read_text(encoding="utf-8")
    for name, content in (
        ("title", title),
        ("subject", subject),
        ("body", (own / "page.html").read_text(encoding="utf-8")),
        ("style", "".join(style.read_text(encoding="utf-8") for style in styles)),
        ("script", (own / "page.js").read_text(encoding="utf-8")),
        # A "<" in a string must not end the script element.
        ("data", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")),
    ):
        page = page.replace(f"/*{name}*/", content)
    return page
