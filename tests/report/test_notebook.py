"""What notebooks show: tables and charts that are well-formed, and escaped."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.replay.traces import journal, write
from tests.trace.foreign_text import Host, workload
from trapgate.replay import Family, Policy, replay, sweep
from trapgate.trace import Trace
from trapgate.trace.imports import import_trace

pytest.importorskip("polars")


class Balanced(HTMLParser):
    """Fails on a tag that is closed and not open; keeps what is open, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.words: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    assert parser.stack == []
    return parser


def test_traces_of_both_kinds(tmp_path: Path) -> None:
    with Trace(write(tmp_path / "t.parquet", journal(500), metadata={"guest": "<b>"})) as trace:
        found = parsed(trace._repr_html_())
    assert {"table", "svg", "rect"} <= found.seen
    assert "b" not in found.seen
    assert "<b>" in found.words
    assert "#PF exit" in found.words
    (tmp_path / "h.txt").write_text("".join(workload(Host(), 100)))
    with Trace(import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path) as trace:
        assert "EXCEPTION_NMI" in parsed(trace._repr_html_()).words
    with Trace(write(tmp_path / "e.parquet", journal(0))) as trace:
        assert "0" in parsed(trace._repr_html_()).words


def test_policies_and_replays(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", journal(500))
    policy = Policy.of("<i>writes", vectors=[14, 13], mask=3, match=3)
    words = parsed(policy._repr_html_()).words
    assert "Policy <i>writes" in words
    assert {"#PF", "#GP", "figure-3", "bitmap"} <= set(words)
    result = replay([path], [policy, Policy.of("none")])
    found = parsed(result._repr_html_())
    assert {"table", "svg"} <= found.seen
    assert f"{result.outcomes[0].exits:,}" in found.words
    many = parsed(sweep([path], Family(0xF, policy))._repr_html_())
    assert "51 more" in many.words
