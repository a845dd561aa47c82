"""The report in a real browser: drawn, filterable, offline, and by keyboard."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.replay.traces import journal, write
from tests.trace.foreign_text import Host, workload
from trapgate.cli import app
from trapgate.replay import Policy, replay
from trapgate.report import report
from trapgate.report.chains import chains
from trapgate.report.cube import cube_of
from trapgate.report.page import truth
from trapgate.sdm.vectors import PF
from trapgate.trace import Trace, TraceError
from trapgate.trace.code_words import code_words, cubes_of, held, pattern
from trapgate.trace.imports import import_trace
from trapgate.trace.symbols import Symbols
from trapgate.vmcs.file import parse_settings

pytest.importorskip("polars")

MAP = "ffffffff81000000 T first\nffffffff81000100 T second\nffffffff81000200 T <third>\n"
POLICIES = [
    Policy.of("writes", vectors=[PF], mask=3, match=3),
    Policy.of("</script><b>none", vectors=[]),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("host")
    (folder / "host.txt").write_text("".join(workload(Host(), 2000)))
    (folder / "System.map").write_text(MAP)
    return import_trace(folder / "host.txt", folder / "host.parquet").path


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = journal(5000)
    rows[:, 14] = 0
    for start in range(100, 4000, 50):
        rows[start : start + 3, 3] = 14, 14, 8
        rows[start : start + 3, 4] = 3
        rows[start : start + 3, 5] = 2, 2, 0
        rows[start : start + 3, 12] = 1
        rows[start : start + 3, 14] = 0, 1, 2
        rows[start : start + 3, 15] = 0
    return write(tmp_path_factory.mktemp("own") / "nested.parquet", rows, row_group=101)


def test_the_cube_counts_every_event(host: Path) -> None:
    cube = cube_of([host], POLICIES, symbols=Symbols(host.parent / "System.map"))
    assert sum(cube.cells["count"]) == cube.events == 2800
    with Trace(host) as trace:
        rows = trace.table().to_pylist()
    assert sum(cube.cells["spent"]) == sum(row["latency"] or 0 for row in rows)
    assert set(cube.labels["symbol"]) == {"first", "second", "<third>", "(none)"}
    spans = [(row["time"] - cube.start) // cube.step for row in rows]
    assert (
        np.bincount(cube.cells["bin"], cube.cells["count"]).tolist() == np.bincount(spans).tolist()
    )
    for n, outcome in enumerate(replay([host], POLICIES).outcomes):
        exits = sum(
            count
            for kind, count in zip(cube.cells["kind"], cube.cells["count"], strict=True)
            if cube.verdicts[n][kind] == 0
        )
        assert exits == outcome.exits


def test_the_cube_knows_policies_on_exits(host: Path) -> None:
    text = (
        'profile = "vt-x"\n[controls]\nprimary = ["-HLT_EXITING"]\nexceptions = ["PF"]\n'
        "[intercepts]\nmsr_writes = [0]\nlate_mapping = false\n"
    )
    policies = [*POLICIES, Policy.from_settings("exits", parse_settings(text))]
    cube = cube_of([host], policies)
    (outcome,) = replay([host], policies[2:]).outcomes
    said = [0] * 5
    for kind, count in zip(cube.cells["kind"], cube.cells["count"], strict=True):
        said[cube.verdicts[2][kind]] += count
    assert said == [
        *(outcome.exits, outcome.deliveries, outcome.completions, outcome.unjudged),
        outcome.outside,
    ]
    assert sum(one.saved for one in outcome.reasons) > 0


@pytest.mark.parametrize("most", [2000, 1000, 600])
def test_the_cube_gets_coarser_not_larger(nested: Path, most: int) -> None:
    whole = cube_of([nested])
    assert len(whole.cells["count"]) > 1000
    cube = cube_of([nested], POLICIES[:1], most=most)
    assert len(cube.cells["count"]) <= most
    assert sum(cube.cells["count"]) == 5000
    pairs = zip(cube.cells["kind"], cube.cells["count"], strict=True)
    exits = sum(count for kind, count in pairs if cube.verdicts[0][kind] == 0)
    assert exits == replay([nested], POLICIES[:1]).outcomes[0].exits


def test_chains_of_nested_faults(nested: Path) -> None:
    (found,) = chains([nested])
    assert found["count"] == 78
    assert [(step["vector"], step["code"], step["disposition"]) for step in found["steps"]] == [
        ("#PF", "0x2", "deliver"),
        ("#PF", "0x2", "deliver"),
        ("#DF", "0x0", "deliver"),
    ]


def test_chains_of_several_machines_do_not_mix(tmp_path: Path) -> None:
    rows = np.zeros((6, 20), np.int64)
    rows[:, 0] = range(6)
    rows[:, 2] = 0, 1, 0, 1, 0, 1
    rows[:, 3] = 14, 13, 11, 12, 6, 6
    rows[:, 4] = 3
    rows[:, 5] = -1
    rows[:, 14] = 0, 0, 1, 1, 0, 2
    path = write(tmp_path / "t.parquet", rows)
    steps = {tuple(step["vector"] for step in c["steps"]): c["count"] for c in chains([path])}
    assert steps == {("#PF", "#NP"): 1, ("#GP", "#SS", "#UD"): 1}


def test_the_truth_table_is_the_rule() -> None:
    told = truth([Policy.of("p", vectors=[PF, 13], mask=3, match=3)])
    said = {int(label.split()[1], 16): row["said"] for row in told["rows"]
            for label in row["events"] if " " in label}  # fmt: skip
    assert said == {code: [0 if code & 3 == 3 else 1] for code in range(32)}
    assert told["grid"]["said"] == [said[code] for code in range(32)]
    others = {
        name: row["said"] for row in told["rows"] for name in row["events"] if " " not in name
    }
    assert {name for name, one in others.items() if one == [0]} == {"#GP"}
    assert len(others) == 19
    assert len(told["rows"]) <= 5


def test_rows_that_fare_the_same_are_one() -> None:
    assert cubes_of(range(32), 5) == [(0, 0)]
    assert [pattern(cube, 5) for cube in cubes_of([3, 7, 11, 15], 5)] == ["0--11"]
    for members in ({1, 2, 4}, {0, 31}, set(range(0, 32, 3)), set()):
        found: set[int] = set().union(*(held(cube, 5) for cube in cubes_of(members, 5)))
        assert found == members


def test_neighbours_of_the_grid_differ_in_one_bit() -> None:
    codes = truth([Policy.of("p")])["grid"]["codes"]
    assert sorted(code for row in codes for code in row) == list(range(32))
    for row in range(4):
        for column in range(8):
            for other in (codes[row][(column + 1) % 8], codes[(row + 1) % 4][column]):
                assert (codes[row][column] ^ other).bit_count() == 1


@pytest.mark.parametrize(
    ("vector", "code", "words"),
    [
        (14, 7, "write to a present page by user mode"),
        (14, 0x10, "fetch from a page that is not present by supervisor mode"),
        (14, 9, "read of a present page by supervisor mode (a reserved bit is set)"),
        (13, 0x32, "IDT entry 0x6"),
        (13, 0, "no selector"),
        (6, None, ""),
    ],
)
def test_codes_have_words(vector: int, code: int | None, words: str) -> None:
    assert code_words(vector, code) == words


def test_a_page_has_a_bounded_size_and_asks_for_nothing(host: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    size = report([host], out, policies=POLICIES, symbols=Symbols(host.parent / "System.map"))
    text = out.read_text()
    assert size == out.stat().st_size < 1_000_000
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in text
    assert text.count("</script>") == 2
    assert list(tmp_path.iterdir()) == [out]


def test_a_report_on_nothing_leaves_nothing(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.parquet", journal(0))
    with pytest.raises(TraceError, match="no event in it"):
        report([empty], tmp_path / "r.html")
    result = CliRunner().invoke(app, ["report", str(empty), "-o", str(tmp_path / "r.html")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    result = CliRunner().invoke(app, ["report", str(empty), "-o", str(tmp_path / "no" / "r.html")])
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == [empty]


@pytest.mark.slow
def test_ten_million_rows_stay_below_a_megabyte(tmp_path: Path) -> None:
    from trapgate.trace import TraceWriter

    path = tmp_path / "long.parquet"
    with TraceWriter(path) as writer:
        for part in range(20):
            rows = journal(500_000, seed=part)
            rows[:, 0] += part * 500_000
            rows[:, 1] += part * 125_000_000
            rows[:, 5] = np.where(rows[:, 3] == 13, rows[:, 6] % 65536, rows[:, 5])
            writer.append(rows)
    assert report([path], tmp_path / "r.html", policies=POLICIES) < 1_000_000


@pytest.fixture(scope="module")
def pages(host: Path, nested: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    symbols = Symbols(host.parent / "System.map")
    report([host], folder / "host.html", policies=POLICIES, symbols=symbols, title="<i>Host</i>")
    report([nested], folder / "nested.html", policies=POLICIES[:1])
    return {"host": folder / "host.html", "nested": folder / "nested.html"}


def shown(browser: Any) -> tuple[int, int]:
    count = browser.find_element("id", "count")
    return int(count.get_attribute("data-events")), int(count.get_attribute("data-exits"))


def opened(browser: Any, page: Path) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())


def test_charts_are_drawn(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["host"])
    assert shown(browser) == (2800, 2000)
    assert browser.find_element("id", "title").text == "<i>Host</i>"
    assert len(browser.find_elements("css selector", "#timeline rect.exit")) > 50
    for chart in ("reason", "vector", "code", "symbol"):
        assert browser.find_elements("css selector", f"#by-{chart} button"), chart
    assert len(browser.find_elements("css selector", "#heat tbody tr")) == 3
    assert len(browser.find_elements("css selector", "#policies tbody tr")) == 3
    assert len(browser.find_elements("css selector", "#truth table:first-of-type tbody tr")) < 12
    assert len(browser.find_elements("css selector", "#truth .karnaugh")) == 2
    assert "</script><b>none" in browser.find_element("id", "policies").text


def test_a_filter_changes_the_counts(browser: Any, pages: dict[str, Path], host: Path) -> None:
    opened(browser, pages["host"])
    browser.find_element("css selector", "#by-vector [data-value='#GP']").click()
    assert shown(browser) == (800, 400)
    policies = browser.find_elements("css selector", "#policies tbody tr")
    assert [cell.text for cell in policies[1].find_elements("tag name", "td")][:2] == [
        "writes",
        "0",
    ]
    browser.find_element("css selector", "#by-symbol [data-value='first']").click()
    with Trace(host) as trace:
        rows = trace.table().to_pylist()
    at = [r for r in rows if r["vector"] == 13 and r["rip"] and r["rip"] & 0xFFF < 0x100]
    assert shown(browser) == (len(at), len(at))
    browser.find_element("id", "reset").click()
    assert shown(browser) == (2800, 2000)
    browser.execute_script(
        "const f = document.getElementById('from'); f.value = 48;"
        "f.dispatchEvent(new Event('input'))"
    )
    events, exits = shown(browser)
    assert 1200 < events < 1600
    assert exits < events
    browser.find_element("id", "reset").click()
    browser.find_element("css selector", "#heat td button").click()
    assert 0 < shown(browser)[0] < 2800


def test_nested_faults_are_shown(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["nested"])
    assert "78 ×" in browser.find_element("id", "chains").text
    assert len(browser.find_elements("css selector", ".chain .step")) == 3
    browser.find_element("css selector", "#by-vector [data-value='#UD']").click()
    assert "no chain" in browser.find_element("id", "chains").text
    assert browser.find_element("id", "symbol-title").text == "By address"


def test_nothing_is_asked_for_and_nothing_complains(browser: Any, pages: dict[str, Path]) -> None:
    for page in pages.values():
        opened(browser, page)
        browser.find_element("id", "theme").click()
        assert browser.get_log("browser") == []
        requests = []
        for entry in browser.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                requests.append(message["params"]["request"]["url"])
        assert set(requests) <= {page.as_uri(), "data:,"}


def test_light_and_dark_are_legible(browser: Any, pages: dict[str, Path]) -> None:
    opened(browser, pages["host"])
    colours = set()
    for _ in range(2):
        browser.find_element("id", "theme").click()
        for selector in ("body", "#policies th", ".note"):
            ink, paper = browser.execute_script(
                "const s = getComputedStyle(document.querySelector(arguments[0]));"
                "return [s.color, getComputedStyle(document.body).backgroundColor]",
                selector,
            )
            assert contrast(ink, paper) >= 4.5, (selector, ink, paper)
            colours.add((ink, paper))
    assert len({paper for _, paper in colours}) == 2
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        opened(browser, pages["host"])
        pressed = browser.find_element("id", "theme").get_attribute("aria-pressed")
        assert pressed == str(scheme == "dark").lower()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(first: str, second: str) -> float:
    """The contrast of two CSS colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = colour[colour.index("(") + 1 : -1].split(",")
        scaled = [float(part) / 255 for part in parts[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in scaled]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_keyboard_does_everything(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, pages["host"])
    body = browser.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("class") == "skip"
    reached = None
    for _ in range(80):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        if active.get_attribute("data-dimension") == "vector" and active.tag_name == "button":
            reached = active
            break
    assert reached is not None
    value = reached.get_attribute("data-value")
    reached.send_keys(Keys.SPACE)
    filtered = shown(browser)
    assert filtered[0] < 2800
    active = browser.switch_to.active_element
    assert active.get_attribute("data-value") == value, "the focus stays where it was"
    assert active.get_attribute("aria-pressed") == "true"
    active.send_keys(Keys.ENTER)
    assert shown(browser) == (2800, 2000)


def test_the_command(host: Path, tmp_path: Path) -> None:
    policy = tmp_path / "writes.toml"
    policy.write_text('[controls]\nexceptions = ["PF"]\n')
    out = tmp_path / "r.html"
    arguments = [
        "report",
        host,
        "-o",
        out,
        "--policy",
        policy,
        "--symbols",
        host.parent / "System.map",
    ]
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    assert f"{out}: {out.stat().st_size:,} bytes" in result.stdout


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1600])
def test_the_page_fits_its_window(
    browser: Any, pages: dict[str, Path], width: int, scheme: str
) -> None:
    """Nothing but what scrolls by itself is wider than the window, and words can be read."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for page in pages.values():
        opened(browser, page)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script(CONTRAST) >= 4.5, "WCAG 2.1, 1.4.3"
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
const light = (text) => {
  const parts = text.match(/[\\d.]+/g).slice(0, 3).map((n) => n / 255)
    .map((n) => n <= .03928 ? n / 12.92 : ((n + .055) / 1.055) ** 2.4);
  return .2126 * parts[0] + .7152 * parts[1] + .0722 * parts[2];
};
const paper = light(getComputedStyle(document.body).backgroundColor);
let least = 99;
for (const one of document.querySelectorAll("p, dd, th, td, h1, h2, b, .words")) {
  if (!one.textContent.trim()) continue;
  const ink = light(getComputedStyle(one).color);
  least = Math.min(least, (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05));
}
return least;
"""
