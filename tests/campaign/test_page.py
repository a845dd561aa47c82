"""The page about a campaign in a real browser: drawn, offline, by keyboard, and true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.campaign.plans import HEAD, finished
from trapgate.campaign.page.data import page_data
from trapgate.campaign.page.write import render, write_page
from trapgate.campaign.results import Results
from trapgate.campaign.tables import tally

BODY = """
[[target]]
register = "general"
bits = "0-7"
[sample]
runs = 300
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("page") / "it's"
    head = HEAD.replace('"small"', '"<i>Small</i>"')
    return finished(BODY, folder, "prune = true\n" + head)


def test_every_point_is_in_the_map(results: Results) -> None:
    data = page_data(results)
    counts = tally(results)
    for way in ("time", "at"):
        cells = data["heat"][way]
        for n, outcome in enumerate(data["outcomes"]):
            runs = sum(cell[3] for cell in cells if cell[2] == n)
            points = sum(cell[4] for cell in cells if cell[2] == n)
            assert runs == counts[outcome][0]
            assert points == pytest.approx(counts[outcome][1], rel=1e-6)
    for _, _, outcome, runs, _, examples in data["heat"]["time"]:
        assert len(examples) == min(runs, 6)
        for run in examples:
            row = results.row(run)
            assert row is not None
            assert row["outcome"] == data["outcomes"][outcome]


def test_words_of_a_plan_cannot_end_the_script() -> None:
    page = render({"title": "</script><script>alert(1)</script>"})
    assert page.count("</script>") == 2


def test_the_page_in_a_browser(browser: Any, results: Results, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert write_page(results, page) < 1_000_000
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.find_element("id", "title").text == "<i>Small</i>"
    bars = browser.find_elements("css selector", "#outcomes button")
    assert len(bars) == len(tally(results))
    cells = browser.find_elements("css selector", "#heat td button")
    assert len(cells) > 50
    cells[len(cells) // 2].click()
    named = [one.text for one in browser.find_elements("css selector", "#runs code")]
    assert all(re.fullmatch(r"trapgate campaign show '.*it'\\''s' \d+", one) for one in named)
    bars[0].send_keys(" ")
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "true"
    assert "share of: " in browser.find_element("id", "shown").text
    browser.find_element("css selector", '[data-across="at"]').click()
    assert browser.find_elements("css selector", "#heat th.top")
    assert browser.find_elements("css selector", "#by-at tbody tr")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        one["params"]["request"]["url"]
        for one in asked
        if one["method"] == "Network.requestWillBeSent"
    ]
    assert all(url.startswith(("file:", "data:")) for url in urls)
    width, room = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert width <= room
