"""Runs that end at a checkpoint end as they would have ended."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.campaign.plans import HEAD, finished, plan
from trapgate.campaign import execute as execution
from trapgate.campaign.bench import Bench
from trapgate.campaign.golden import Reference
from trapgate.campaign.outcomes import Ending
from trapgate.campaign.results import Results
from trapgate.campaign.worker import Worker

BODY = """
[[target]]
register = "general"
[[target]]
event = ["PF(code=2,cr2=0x1000)", "PF(code=6,cr2=0x50000000)"]
[sample]
runs = 300
seed = 2
"""
ENDS = {
    "instructions": HEAD.replace("3000", "30_000"),
    "exit": HEAD.replace("10_200_000", "11_050_000").replace(
        "{ instructions = 3000 }", "{ exit = true }"
    ),
    "symbol": HEAD.replace("{ instructions = 3000 }", '{ symbol = "trap", time = 30 }'),
    "output": HEAD.replace("10_200_000", "11_990_000").replace(
        "{ instructions = 3000 }", '{ output = "done" }'
    ),
}


def rows(results: Results) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in results.parts()]).unify_dictionaries()


@pytest.mark.parametrize("end", ENDS)
def test_the_results_are_those_of_full_runs(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = 0

    def counted(*arguments: object, **more: object) -> Ending:
        nonlocal met
        met += more.get("time") is not None
        return Ending(*arguments, **more)  # type: ignore[arg-type]

    full = finished(
        BODY + "[run]\ncheckpoints = 0\nbudget = 20_000\n", tmp_path / "full", ENDS[end]
    )
    monkeypatch.setattr(execution, "Ending", counted)
    early = finished(
        BODY + "[run]\ncheckpoints = 12\nbudget = 20_000\n", tmp_path / "early", ENDS[end]
    )
    assert rows(early).equals(rows(full))
    assert met > 60
    # What comes for the n-th time is counted from the golden run's beginning, not from the fault.
    harmless = rows(full).filter(pc.equal(pc.cast(rows(full)["outcome"], "string"), "no effect"))
    ends = pc.add(harmless["moment"], harmless["instructions"])
    assert ends.to_pylist().count(full.facts["golden"]["end"]) > len(ends) / 2


def test_checkpoints_lie_behind_the_moment_at_growing_distances() -> None:
    reference = Reference(Bench(plan(BODY + "[run]\ncheckpoints = 15\n", ENDS["instructions"])))
    times = [one.snapshot.time - 10_200_000 for one in reference.checkpoints]
    assert times == [30_000 * n // 16 for n in range(1, 16)]
    ahead = [one.snapshot.time - 10_200_000 for one in reference.ahead(10_200_000 + times[2])]
    assert ahead == [times[3], times[4], times[6], times[10]]
    assert list(reference.ahead(10_229_999)) == []


def test_short_golden_runs_have_none() -> None:
    assert Reference(Bench(plan(BODY))).checkpoints == []


def test_nearer_beginnings_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = finished(BODY, tmp_path / "far")
    monkeypatch.setattr("trapgate.campaign.bench._WORTH", 0)
    near = finished(BODY, tmp_path / "near")
    assert rows(near).equals(rows(far))
    worker = Worker(plan(BODY), near.folder)
    worker.result(150)
    assert worker.bench._near is not worker.bench.snapshot
