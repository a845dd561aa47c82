"""`trapgate demo --report`: the bundled guest's page faults on a page."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trapgate.cli import app

pytest.importorskip("polars")


def test_the_replayed_filters_agree_with_the_runs(tmp_path: Path) -> None:
    out = tmp_path / "demo.html"
    arguments = ["demo", "--paging", "own", "--workload", "fork", "--json", "--report", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    runs = json.loads(result.stdout)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', out.read_text())
    assert found is not None
    data = json.loads(found[1])
    assert [policy["policy"] for policy in data["policies"]] == [run["filter"] for run in runs]
    # Each filter was run, and replayed on the first run's trace: the same faults exit.
    for policy, run in zip(data["policies"], runs, strict=True):
        assert policy["exits"] == run["faults"]["14"].get("EXIT", 0)
    assert data["policies"][0]["saved"] == 0
    assert data["policies"][2]["saved"] == data["policies"][0]["exits"] > 0
