"""`python -m benchmarks.direct_figure FILE.json... OUT.svg`: the exits that each filter leaves.

The numbers are those that `benchmarks.direct_paging --json` wrote. A panel a guest, a group a
workload, a bar a filter: which part of the exits without a filter is left, on a logarithmic scale.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

_COLOURS = {
    "figure 7": "#b9c6d8",
    "figure 8": "#7f9cc0",
    "¶80": "#e0b27a",
    "own-frame": "#3f6ea8",
    "and no-link": "#1d4a80",
    "and ¶80": "#c97a3a",
    "and own-table": "#a3431f",
}
_BAR, _GAP, _HEIGHT, _LEFT, _TOP = 8, 14, 150, 54, 46
_DECADES = 4


def panel(guest: str, costs: Sequence[dict[str, Any]], top: int) -> Iterator[str]:
    """The elements of one guest's panel, whose upper edge is at `top`."""
    base = top + _HEIGHT
    yield f'<text x="{_LEFT}" y="{top - 8}" font-weight="bold">{escape(guest)}</text>'
    for decade in range(_DECADES + 1):
        y = top + _HEIGHT * decade / _DECADES
        label = f"{100 / 10**decade:g} %"
        yield f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + 660}" y2="{y}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{label}</text>'
    x = _LEFT + 6
    for workload in dict.fromkeys(cost["workload"] for cost in costs):
        here = {c["setting"]: c for c in costs if c["workload"] == workload}
        for name, colour in _COLOURS.items():
            if name not in here:
                continue
            cost = here[name]
            part = cost["exits"] / max(here["no filter"]["exits"], 1)
            shown = max(0.0, 1 + math.log10(max(part, 1e-9)) / _DECADES) * _HEIGHT
            tip = f"{workload}, {name}: {cost['exits']:,} exits, {cost['completed']:,} completed"
            yield (
                f'<rect x="{x}" y="{base - shown:.1f}" width="{_BAR - 1}" height="{shown:.1f}" '
                f'fill="{colour}"><title>{escape(tip)}</title></rect>'
            )
            x += _BAR
        middle = x - _BAR * len(_COLOURS) / 2
        yield f'<text x="{middle}" y="{base + 14}" text-anchor="middle">{escape(workload)}</text>'
        x += _GAP


def figure(costs: Sequence[dict[str, Any]]) -> str:
    """All panels, one below the other, with a legend."""
    parts: list[str] = []
    names = list(dict.fromkeys(cost["guest"] for cost in costs))
    for n, name in enumerate(names):
        top = _TOP + 24 + n * (_HEIGHT + 56)
        parts += panel(name, [cost for cost in costs if cost["guest"] == name], top)
    x = _LEFT
    for name, colour in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="10" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="19">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    height = _TOP + 24 + len(names) * (_HEIGHT + 56)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 730 {height}" '
        'font-family="sans-serif" font-size="11">'
        f'<rect width="730" height="{height}" fill="#fff"/>' + "".join(parts) + "</svg>\n"
    )


def main() -> None:
    """Read the numbers, write the picture."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    *sources, out = map(Path, sys.argv[1:])
    costs = [cost for source in sources for cost in json.loads(source.read_text())]
    out.write_text(figure(costs), encoding="utf-8")


if __name__ == "__main__":
    main()
