"""The page as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trapgate.campaign.errors import CampaignError
from trapgate.campaign.page.data import page_data
from trapgate.campaign.results import Results
from trapgate.report.template import fill
from trapgate.trace.draft import draft
from trapgate.trace.frames import optional


def write_page(results: Results, out: Path) -> int:
    """Write the page `out` about a campaign; its size in bytes.

    Raises CampaignError without results, TraceError if it cannot be written, MissingExtraError
    without polars.
    """
    pl: Any = optional("polars", "campaign", "campaign report")
    try:
        page = render(page_data(results)).encode()
    except pl.exceptions.PolarsError as error:
        raise CampaignError(f"{results.folder}: a part cannot be read ({error})") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CampaignError(f"{results.folder}/campaign.json: damaged ({error})") from None
    with draft(out, "page") as temporary:
        temporary.write_bytes(page)
    return len(page)


def render(data: dict[str, Any]) -> str:
    """The page with `data` in it."""
    return fill("trapgate.campaign.page", "Trapgate campaign", "campaign", data)
