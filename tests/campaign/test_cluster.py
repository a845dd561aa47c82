"""A campaign on a Ray cluster has the rows of one without."""

import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.campaign.plans import EVENTS, finished, plan
from trapgate.campaign.campaign import create, prepare, run
from trapgate.campaign.errors import CampaignError
from trapgate.campaign.results import Results

pytest.importorskip("ray", reason="ray is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]


def descendants(process: int) -> list[int]:
    children = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(one) for task in children for one in task.read_text().split()]
    return found + [further for one in found for further in descendants(one)]


def is_worker(process: int) -> bool:
    return b"ray::ClusterWorker" in Path(f"/proc/{process}/cmdline").read_bytes()


def rows(results: Results) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in results.parts()]).unify_dictionaries()


def test_the_same_rows(tmp_path: Path) -> None:
    wanted = plan(EVENTS)
    results = create(prepare(wanted), tmp_path / "ray")
    tallies = list(run(wanted, results, cluster="local"))
    assert sum(count for one in tallies for count, _ in one.values()) == 450
    assert rows(results).equals(rows(finished(EVENTS, tmp_path / "here")))


def test_what_workers_find_wrong_is_told(tmp_path: Path) -> None:
    wanted = plan(EVENTS)
    results = create(prepare(wanted), tmp_path / "ray")
    facts = results.folder / "campaign.json"
    facts.write_text(facts.read_text().replace('"end": 10203000', '"end": 10203001'))
    with pytest.raises(CampaignError, match="another one"):
        list(run(wanted, Results.open(results.folder), cluster="local"))


def test_a_worker_that_dies_costs_its_batch_only(tmp_path: Path) -> None:
    import ray

    wanted = plan(EVENTS)
    results = create(prepare(wanted), tmp_path / "ray")
    work = run(wanted, results, cluster="local")
    next(work)
    victims = [one for one in descendants(os.getpid()) if is_worker(one)]
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    list(work)
    assert results.missing() == []
    assert rows(results).equals(rows(finished(EVENTS, tmp_path / "here")))
    assert not ray.is_initialized()
