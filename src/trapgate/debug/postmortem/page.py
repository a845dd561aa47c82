"""A post-mortem as a page of its own, which opens offline."""

from html import escape
from pathlib import Path

from trapgate.debug.postmortem.postmortem import PostMortem
from trapgate.errors import TrapgateError

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}"
    "h1{font-size:1.3rem}"
    ".remedy{border-left:.3rem solid #4a7fbf;padding:.2rem .8rem;margin:.5rem 0}"
    "li{margin:.4rem 0}code,td,pre{font-family:ui-monospace,monospace;font-size:.85rem}"
    "td,th{text-align:left;padding:0 1rem 0 0;overflow-wrap:anywhere}"
)


def write(post_mortem: PostMortem, path: Path, title: str) -> int:
    """Write a page; its size in bytes. Raises TrapgateError if it cannot be written."""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}: {escape(post_mortem.end)}</title>'
        f"<style>{_STYLE}</style><body>{post_mortem.html()}</body></html>\n"
    )
    try:
        return path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TrapgateError(
            f"{path}: cannot be written ({error.strerror}); give --report a path that can"
        ) from None
