"""Answers as pages, for notebooks and as Markdown: the same words in each."""

from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.replay.traces import journal, write
from trapgate.cli import app
from trapgate.criteria import Party, check_vmcs02, define, merge, parse_spec
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


def test_commands_write_pages_and_markdown(tmp_path: Path) -> None:
    fields = tmp_path / "f.toml"
    fields.write_text('profile = "vt-x"\n[controls]\nexceptions = ["PF"]\n')
    trace = write(tmp_path / "t.parquet", journal(500))
    commands: list[tuple[str, ...]] = [
        ("criteria", "merge", str(fields), str(fields.rename(tmp_path / "g.toml"))),
        ("replay", str(trace), "--policy", str(tmp_path / "g.toml")),
        ("trace", "stat", str(trace)),
        ("trace", "stat", str(trace), "--beside", str(trace)),
    ]
    (tmp_path / "f.toml").write_text((tmp_path / "g.toml").read_text())
    for number, command in enumerate(commands):
        out = tmp_path / f"{number}.html"
        result = CliRunner().invoke(app, [*command, "--html", str(out), "--markdown"])
        assert result.exit_code == 0, (command, result.stderr)
        assert result.stdout.startswith("# ")
        Words(out.read_text())
    refused = CliRunner().invoke(
        app, ["criteria", "explain", str(tmp_path / "g.toml"), "--markdown"]
    )
    assert refused.exit_code == 2
    nowhere = CliRunner().invoke(app, [*commands[2], "--html", str(tmp_path / "no" / "x.html")])
    assert nowhere.exit_code == 2
    assert nowhere.stderr.count("\n") == 1


def test_a_page_has_its_size(tmp_path: Path) -> None:
    assert answer_page(WHOLE, tmp_path / "x.html") == (tmp_path / "x.html").stat().st_size
