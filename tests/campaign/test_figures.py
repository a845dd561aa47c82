"""Figures for papers: pictures as files."""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from tests.campaign.plans import REGISTERS, finished
from trapgate.campaign.errors import CampaignError
from trapgate.campaign.figures import figure
from trapgate.campaign.results import Results
from trapgate.cli import app


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return finished(REGISTERS, tmp_path_factory.mktemp("figures"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("map", ["RSP", "RAX", "detected", "no effect"]),
        ("functions", ["RSP", "page_clear"]),
        ("outcomes", ["detected", "no effect"]),
        ("vulnerable", ["page_clear", "space_fault"]),
    ],
)
def test_figures_are_svgs_with_what_they_show(
    name: str, words: list[str], results: Results, tmp_path: Path
) -> None:
    pytest.importorskip("vl_convert")
    out = tmp_path / "figure.svg"
    line = ["campaign", "report", str(results.folder), "-o", str(out), "--figure", name]
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 0, told.output
    text = {one.text for one in ET.parse(out).iter() if one.text}
    assert text >= set(words)


def test_figures_are_pictures_by_the_suffix(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("vl_convert")
    out = tmp_path / "figure.png"
    line = ["campaign", "report", str(results.folder), "-o", str(out), "--figure", "outcomes"]
    assert CliRunner().invoke(app, line).exit_code == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CampaignError, match="did you mean map"):
        figure(results, "maps")


def test_a_missing_library_is_named(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    out = tmp_path / "figure.svg"
    told = CliRunner().invoke(app, ["campaign", "report", str(results.folder), "-o", str(out)])
    assert told.exit_code == 2
    assert "pip install 'trapgate[figures]'" in told.output
    assert not out.exists()
