"""A post-mortem as HTML: a page of its own, or a part of one for notebooks. Opens offline."""

from html import escape
from pathlib import Path

from trapgate.debug.postmortem.postmortem import PostMortem
from trapgate.errors import TrapgateError
from trapgate.trace.html import table

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222;background:#fff}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}}"
    "h1{font-size:1.3rem}"
    ".remedy{border-left:.3rem solid #4a7fbf;padding:.2rem .8rem;margin:.5rem 0}"
    "li{margin:.4rem 0}code,td,pre{font-family:ui-monospace,monospace;font-size:.85rem}"
    "td,th{text-align:left;padding:0 1rem 0 0;overflow-wrap:anywhere}"
)


def body(post_mortem: PostMortem) -> str:
    """The post-mortem as a part of a page."""
    parts = [f"<h1>{escape(post_mortem.end)}: {escape(post_mortem.headline)}</h1>"]
    parts += [
        f'<p class="remedy">What probably helps: {escape(words)}</p>'
        for words in post_mortem.remedies
    ]
    parts += _list("Before that:", post_mortem.before)
    parts.append("<ol>")
    for scene in post_mortem.scenes:
        lines = "".join(f"<li>{escape(line)}</li>" for line in scene.lines)
        parts.append(f"<li>{escape(scene.title)}{f'<ul>{lines}</ul>' if lines else ''}</li>")
    parts.append("</ol>")
    parts.append(
        table(
            ("register", "value"),
            [(n, f"{value:X}H") for n, value in post_mortem.registers.items()],
        )
    )
    parts += _list("The last branches:", post_mortem.branches)
    if post_mortem.output:
        parts.append(
            f"<p>The guest's last words:</p><pre>{escape(chr(10).join(post_mortem.output))}</pre>"
        )
    return "".join(parts)


def _list(title: str, lines: tuple[str, ...]) -> list[str]:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return [f"<p>{title}</p><ul>{items}</ul>"] if lines else []


def write(post_mortem: PostMortem, path: Path, title: str) -> int:
    """Write a page; its size in bytes. Raises TrapgateError if it cannot be written."""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{escape(title)}: {escape(post_mortem.end)}</title>'
        f"<style>{_STYLE}</style><body>{body(post_mortem)}</body></html>\n"
    )
    try:
        return path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise TrapgateError(
            f"{path}: cannot be written ({error.strerror}); give --report a path that can"
        ) from None
