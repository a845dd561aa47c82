"""Directories of results that somebody has damaged: a line, never a traceback."""

import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.campaign.plans import EVENTS, finished
from trapgate.campaign.results import Results
from trapgate.cli import app
from trapgate.replay.cluster import ClusterError, connected

VERBS = (
    ["stat", "{}"],
    ["show", "{}", "3"],
    ["sql", "{}", "select count(*) from runs"],
    ["report", "{}", "-o", "{}/../page.html"],
    ["diff", "{}", "{}"],
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(EVENTS + "[sample]\nruns = 60\n", tmp_path_factory.mktemp("h") / "good").folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "copy")
    return tmp_path / "copy"


def demand_lines(folder: Path) -> int:
    """Every verb answers, or says in a line what is wrong; how many do the latter."""
    refused = 0
    for verb in VERBS:
        result = CliRunner().invoke(app, ["campaign", *(one.format(folder) for one in verb)])
        assert isinstance(result.exception, SystemExit | None), (verb, result.exception)
        assert result.exit_code in {0, 1, 2}
        if result.exit_code == 2:
            assert result.stderr.startswith("trapgate: ")
            assert result.stderr.count("\n") == 1
            refused += 1
    return refused


def test_good_ones_are_answered(folder: Path) -> None:
    assert demand_lines(folder) == 0


@pytest.mark.parametrize(
    "name", ["campaign.json", "space.parquet", "plan.toml", "parts/000000.parquet"]
)
@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_are_others(folder: Path, name: str, seed: int) -> None:
    rng = random.Random(seed)
    path = folder / name
    data = bytearray(path.read_bytes())
    if seed == 0:
        data = data[: len(data) // 2]
    for _ in range(0 if seed == 0 else 10**seed):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)
    demand_lines(folder)


@pytest.mark.parametrize("name", ["campaign.json", "space.parquet", "plan.toml", "parts"])
def test_files_that_are_gone(folder: Path, name: str) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert demand_lines(folder) > 0


@pytest.mark.parametrize(
    "change",
    [
        {"runs": 10**15},
        {"runs": 0},
        {"runs": "60"},
        {"batch": 0},
        {"space": 0},
        {"drawn": -1},
        {"format": 99},
        {"golden": []},
        {"golden": {}},
        {"environment": {}},
        {"confidence": "much"},
        {"plan": "../../etc/passwd"},
        {"title": "\x1b[2J</script>"},
    ],
)
def test_facts_that_are_others(folder: Path, change: dict[str, object]) -> None:
    path = folder / "campaign.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    demand_lines(folder)


@pytest.mark.parametrize(("column", "value"), [("moment", 1 << 60), ("moment", 0), ("fault", -1)])
def test_runs_that_there_are_not(folder: Path, column: str, value: int) -> None:
    path = folder / "space.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array([value] * 60, pa.int64())), path)
    assert demand_lines(folder) == 1  # show alone looks at it


def test_parts_with_other_columns_are_none(folder: Path) -> None:
    results = Results.open(folder)
    part = results.part(0)
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["outcome"]), part)
    assert results.missing() == [0]
    texts = table.set_column(1, "moment", pa.array(["x"] * 60))
    pq.write_table(texts, part)
    assert demand_lines(folder) > 0


def test_words_of_a_file_do_not_steer_a_terminal(folder: Path) -> None:
    path = folder / "campaign.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"title": "\x1b[2Jx"}))
    told = CliRunner().invoke(app, ["campaign", "stat", str(folder)])
    assert "\x1b" not in told.stdout


def test_a_cluster_that_is_not_there_is_told_in_one_line() -> None:
    class NoCluster:
        is_initialized = staticmethod(lambda: False)

        @staticmethod
        def init(**settings: object) -> None:
            raise ConnectionError(f"Could not find\nany at {settings['address']}. Start one.")

    line = r"--ray there:1: no Ray cluster answers \(Could not find any at there:1\); start one .*"
    with pytest.raises(ClusterError, match=line) as why, connected(NoCluster, "there:1"):
        pass
    assert "\n" not in str(why.value)
