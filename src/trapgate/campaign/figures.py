"""Figures of a campaign for papers: the page's pictures as Altair charts, as PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from trapgate.campaign.errors import CampaignError
from trapgate.campaign.outcomes import OUTCOMES
from trapgate.campaign.page.data import page_data
from trapgate.campaign.results import Results
from trapgate.errors import suggestion
from trapgate.trace.draft import draft
from trapgate.trace.frames import optional

SUFFIXES: Final = (".png", ".svg", ".pdf")
"""What figures are written as."""
_COLOURS: Final = (
    *("#c9d3de", "#93a5b8", "#7bb38f", "#e2a100", "#3b7fc4", "#7d5ba6"),
    *("#b25d2a", "#b3261e", "#d0648f", "#00838f", "#e0e0e0", "#000000"),
)
"""Of the usual outcomes, in their order: the page's."""
_WIDTH = 480
_ROW = 16


def _altair() -> Any:
    optional("vl_convert", "figures", "writing figures")
    return optional("altair", "figures", "drawing figures")


def _colours(data: Mapping[str, Any]) -> Any:
    """The scale of outcomes; a plan's own classes take up the colours from the fourth on."""
    usual = dict(zip(OUTCOMES, _COLOURS, strict=True))
    names: list[str] = data["outcomes"]
    colours = [usual.get(name, _COLOURS[3 + n % 7]) for n, name in enumerate(names)]
    return _altair().Scale(domain=names, range=colours)


def _cells(data: Mapping[str, Any], across: str) -> list[dict[str, Any]]:
    columns = data["labels"].get(across)
    rows = data["labels"]["target"]
    return [
        {
            "column": round(data["begin"] + column * data["step"])
            if columns is None
            else columns[column],
            "target": rows[row],
            "outcome": data["outcomes"][outcome],
            "rank": outcome,
            "points": points,
        }
        for column, row, outcome, _, points, _ in data["heat"][across]
    ]


def _map(data: Mapping[str, Any], across: str, title: str) -> Any:
    """Targets against time or functions: of each cell the shares of its outcomes."""
    alt = _altair()
    order = data["labels"].get(across)
    return (
        alt.Chart(alt.Data(values=_cells(data, across)), title=data["title"])
        .mark_bar()
        .encode(
            x=alt.X(
                "column:O",
                title=title,
                sort=order or "ascending",
                scale=alt.Scale(paddingInner=0.05),
                axis=alt.Axis(labelOverlap=True, labelAngle=-90 if order else 0),
            ),
            y=alt.Y("points:Q", stack="normalize", axis=None),
            color=alt.Color("outcome:N", scale=_colours(data), sort=data["outcomes"]),
            order=alt.Order("rank:Q"),
            row=alt.Row(
                "target:N",
                title=None,
                sort=data["labels"]["target"],
                spacing=1,
                header=alt.Header(labelAngle=0, labelAlign="left", labelPadding=4),
            ),
        )
        .properties(width=_WIDTH, height=_ROW)
    )


def outcomes(data: Mapping[str, Any]) -> Any:
    """The shares of the outcomes, the commonest first, with confidence intervals."""
    names = ("outcome", "runs", "points", "share", "low", "high")
    rows = [dict(zip(names, row, strict=True)) for row in data["shares"]]
    return _bars(data, rows, "outcome", "share of all points", coloured=True)


def vulnerable(data: Mapping[str, Any]) -> Any:
    """The functions in which faults did harm most often, with confidence intervals."""
    names = ("function", "runs", "points", "share", "low", "high")
    rows = [dict(zip(names, row, strict=True)) for row in data["vulnerable"]["at"]]
    return _bars(data, rows, "function", "share of harm", coloured=False)


def _bars(
    data: Mapping[str, Any], rows: list[dict[str, Any]], name: str, title: str, *, coloured: bool
) -> Any:
    alt = _altair()
    base = alt.Chart(alt.Data(values=rows), title=data["title"]).encode(
        y=alt.Y(f"{name}:N", sort=[row[name] for row in rows], title=None)
    )
    bars = base.mark_bar().encode(
        x=alt.X("share:Q", title=title, axis=alt.Axis(format="%")),
        color=alt.Color("outcome:N", scale=_colours(data), legend=None)
        if coloured
        else alt.value(_COLOURS[7]),
    )
    intervals = base.mark_rule().encode(x="low:Q", x2="high:Q")
    return (bars + intervals).properties(width=_WIDTH)


def time_map(data: Mapping[str, Any]) -> Any:
    """Targets against time."""
    return _map(data, "time", "instructions since the guest's start")


def function_map(data: Mapping[str, Any]) -> Any:
    """Targets against functions."""
    return _map(data, "at", "function")


FIGURES: Final[dict[str, Callable[[Mapping[str, Any]], Any]]] = {
    "map": time_map,
    "functions": function_map,
    "outcomes": outcomes,
    "vulnerable": vulnerable,
}
"""What can be drawn, by name."""


def figure(results: Results, name: str = "map") -> Any:
    """A figure of a campaign as an Altair chart, which notebooks show.

    Raises CampaignError for a name that there is not, MissingExtraError without Altair.
    """
    _altair()
    if name not in FIGURES:
        raise CampaignError(f"no figure {name!r}; {suggestion(name, FIGURES)}")
    return FIGURES[name](page_data(results))


def write_figure(results: Results, out: Path, name: str = "map") -> int:
    """Write a figure to a file, PNG, SVG or PDF by its suffix; its size in bytes.

    Raises as `figure` does, and TraceError if the file cannot be written.
    """
    chart = figure(results, name)
    with draft(out, "figure") as temporary:
        # PNGs are for print.
        more = {"ppi": 300} if out.suffix == ".png" else {}
        chart.save(str(temporary), format=out.suffix[1:], **more)
        return temporary.stat().st_size
