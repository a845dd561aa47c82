"""Answers as pages, for notebooks and as Markdown: the same words in each."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.replay.traces import journal, write
from trapgate.cli import app
from trapgate.criteria import (
    Party,
    check,
    check_vmcs02,
    compare_exits,
    define,
    define_criteria,
    explain,
    learn,
    merge,
    parse_spec,
    read_spec,
    read_wishes,
)
from trapgate.report.answer import answer_html, answer_page
from trapgate.trace.document import Document, Grid, Heading, Listing, Paragraph, Square, Table
from trapgate.vmcs.vmcs import Vmcs

pytest.importorskip("polars")

WHOLE = Document(
    "A <title>",
    (
        Paragraph("50 | 60 <b>"),
        Heading("Part"),
        Table(("name", "count"), (("a|b", 1234), ("c", None)), "told"),
        Grid("grid", ("x", "y"), (("r", (Square("1", "one", "s-exit"), Square("2", "two", ""))),)),
        Listing("x = 1\n", "toml"),
    ),
)


class Words(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_html_is_whole_and_escaped() -> None:
    page = answer_html(WHOLE)
    words = Words(page).words
    assert {"A <title>", "50 | 60 <b>", "1,234", "a|b", "x = 1\n"} <= set(words)
    assert "https:" not in page
    assert "http:" not in page
    assert "<script" not in page


def test_markdown() -> None:
    assert WHOLE.markdown() == (
        "# A \\<title\\>\n\n50 \\| 60 \\<b\\>\n\n## Part\n\ntold\n\n"
        "| name | count |\n|---|---:|\n| a\\|b | 1,234 |\n| c |  |\n\n"
        "grid\n\n|  | x | y |\n|---|---|---|\n| r | 1 | 2 |\n\n```toml\nx = 1\n```\n"
    )


def vmcs(bitmap: int, mask: int = 0, match: int = 0) -> Vmcs:
    made = Vmcs("vt-x")
    made["EXCEPTION_BITMAP"] = bitmap
    made["PAGE_FAULT_ERROR_CODE_MASK"] = mask
    made["PAGE_FAULT_ERROR_CODE_MATCH"] = match
    return made


def test_criteria_in_notebooks() -> None:
    definition = define(parse_spec('[PF]\nexit = ["present and fetch"]\ndefault = "deliver"\n'))
    words = Words(definition._repr_html_()).words
    assert {"PAGE_FAULT_ERROR_CODE_MASK", "00000011H", "present, fetch"} <= set(words)
    parties = [Party("l0", vmcs(1 << 14, 9, 1)), Party("l1", vmcs(1 << 14, 3, 3))]
    merged = merge(parties)
    assert "give the exit to l0 and l1" in Words(merged._repr_html_()).words
    found = check_vmcs02(parties, vmcs(1 << 14, 9, 1))
    assert "vmcs02 is unsound" in Words(found._repr_html_()).words


WISHES = '[PF]\nexit = ["write and present"]\ndefault = "deliver"\n'
WHOLE_FAULTS = '[[wishes]]\nwhen = "vector == PF and cpl == 3"\nthen = "exit"\n'
FIELDS = 'profile = "vt-x"\n[controls]\nexceptions = ["PF"]\n'

COMMANDS: dict[str, str] = {
    "definition": "criteria define wishes.toml",
    "whole faults": "criteria define faults.toml",
    "merge": "criteria merge f.toml g.toml",
    "closed form": "criteria merge f.toml g.toml --format kvm-c",
    "explanation": "criteria explain f.toml g.toml",
    "check": "criteria check wishes.toml f.toml --sound",
    "fields": "criteria check g.toml f.toml --sound",
    "vmcs02": "criteria check f.toml g.toml f.toml",
    "learned": "criteria learn t.parquet",
    "replay": "replay t.parquet --policy g.toml",
    "controls": "replay t.parquet --controls",
    "statistics": "trace stat t.parquet",
    "two traces": "trace stat t.parquet --beside t.parquet",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of every answer, each with its Markdown beside it."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "wishes.toml").write_text(WISHES)
    (folder / "faults.toml").write_text(WHOLE_FAULTS)
    (folder / "f.toml").write_text(FIELDS)
    more = "[fields]\nPAGE_FAULT_ERROR_CODE_MASK = 0x21\nPAGE_FAULT_ERROR_CODE_MATCH = 0x21\n"
    (folder / "g.toml").write_text(FIELDS + more)
    rows = journal(500)
    rows[:, 5] = np.where(rows[:, 5] >= 0, np.where(rows[:, 3] == 14, rows[:, 5] % 8, 0), -1)
    write(folder / "t.parquet", rows)
    pages = {}
    for name, command in COMMANDS.items():
        pages[name] = folder / f"{name}.html"
        given = [str(folder / one) if "." in one else one for one in command.split()]
        result = CliRunner().invoke(app, [*given, "--html", str(pages[name]), "--markdown"])
        assert result.exit_code == 0, (command, result.output)
        pages[name].with_suffix(".md").write_text(result.stdout)
    return pages


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_write_pages_and_markdown(answers: dict[str, Path], name: str) -> None:
    page = answers[name]
    markdown = page.with_suffix(".md").read_text()
    assert markdown.startswith("# ")
    words = " ".join(Words(page.read_text()).words)
    # The same is said in both: every cell of every table.
    for line in markdown.replace("\\", "").splitlines():
        if line.startswith("| ") and "---" not in line:
            for cell in line.strip("| ").split(" | "):
                assert cell.strip() in words, (name, cell)


def test_pages_say_it_in_words(answers: dict[str, Path]) -> None:
    told = {name: page.with_suffix(".md").read_text() for name, page in answers.items()}
    assert "| -----0--1" not in told["explanation"]
    assert "| key | 8 | " in told["explanation"]
    assert "every error code of 6 bits" in told["explanation"], "protection keys matter there"
    assert "sound, not exact" in told["check"]
    assert "should not exit and does: #PF" in told["fields"]
    assert "nested_vmx_merge_pf_filters" in told["closed form"]
    assert "| whole trace | " in told["learned"]
    assert "exits by the control that causes them" in told["controls"]


def test_what_cannot_be_written_is_told(answers: dict[str, Path], tmp_path: Path) -> None:
    trace = answers["replay"].parent / "t.parquet"
    command = ["trace", "stat", str(trace), "--html", str(tmp_path / "no" / "x.html")]
    nowhere = CliRunner().invoke(app, command)
    assert nowhere.exit_code == 2
    assert nowhere.stderr.count("\n") == 1


def test_answers_show_themselves_in_notebooks(answers: dict[str, Path]) -> None:
    folder = answers["check"].parent
    spec, fields = read_spec(folder / "wishes.toml"), Vmcs.load(folder / "g.toml")
    shown: list[Any] = [
        check(spec, fields),
        explain(fields),
        learn(folder / "t.parquet"),
        compare_exits(fields, fields),
        define_criteria(read_wishes(folder / "faults.toml")),
        WHOLE,
    ]
    for answer in shown:
        assert Words(answer._repr_html_()).words


@pytest.mark.parametrize("width", [400, 1600])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_page_fits_its_window(
    answers: dict[str, Path], name: str, width: int, browser: Any
) -> None:
    """Nothing but what scrolls by itself is wider than the window, and the keyboard reaches it."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(answers[name].as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    loose = "[...document.querySelectorAll('.scroll, pre')].filter((one) => one.tabIndex < 0)"
    assert browser.execute_script(f"return {loose}.length") == 0
    unnamed = "[...document.querySelectorAll('[role=region]')].filter((one) => !one.ariaLabel)"
    assert browser.execute_script(f"return {unnamed}.length") == 0
    assert not browser.get_log("browser")


def test_a_page_has_its_size(tmp_path: Path) -> None:
    assert answer_page(WHOLE, tmp_path / "x.html") == (tmp_path / "x.html").stat().st_size
