"""A Ray cluster of several processes gives the same result, even if a worker is killed."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.replay.traces import PTBASE, journal, write
from tests.trace.foreign_text import Host, workload
from trapgate.replay import Family, Policy, replay, sweep
from trapgate.replay import cluster as clusters
from trapgate.replay.cluster import on_cluster, pieces
from trapgate.trace import TraceError
from trapgate.trace.imports import import_trace

pytest.importorskip("polars")
ray = pytest.importorskip("ray", reason="ray is not installed (extra `cluster`)")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def started() -> Iterator[None]:
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("traces")
    return [write(folder / f"{n}.parquet", journal(6000, seed=n), row_group=100) for n in range(3)]


POLICIES = [
    Policy.of("writes", vectors=[14], mask=3, match=3),
    Policy.of("protection", vectors=[13, 6]),
    Policy("filter", Policy.of("x", vectors=[14]).vmcs, fault_filter=2, ptbase=PTBASE),
]


def test_pieces_cover_every_row_group_once(traces: list[Path]) -> None:
    work = pieces(traces, 7)
    for path in traces:
        groups = [n for name, a, b in work if name == str(path) for n in range(a, b)]
        assert groups == list(range(60))


def test_the_same_to_the_last_digit(started: None, traces: list[Path], tmp_path: Path) -> None:
    assert replay(traces, POLICIES, tallied=on_cluster("local")) == replay(traces, POLICIES)
    one = replay(traces, POLICIES[:1], tallied=on_cluster("local"))
    assert one == replay(traces, POLICIES[:1])
    family = Family(0b111, POLICIES[0])
    assert sweep(traces, family, tallied=on_cluster("local")) == sweep(traces, family)
    (tmp_path / "h.txt").write_text("".join(workload(Host(), 700)))
    hosts = [import_trace(tmp_path / "h.txt", tmp_path / "h.parquet").path]
    assert replay(hosts, POLICIES, tallied=on_cluster("local")) == replay(hosts, POLICIES)


def test_several_processes_work(started: None) -> None:
    def process() -> int:
        time.sleep(0.5)
        return os.getpid()

    task = ray.remote(num_cpus=1)(process)
    assert len(set(ray.get([task.remote() for _ in range(6)]))) >= 2


def test_a_worker_killed_in_the_middle(
    started: None, traces: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    count = clusters.tally_piece

    def slowly(*arguments: Any) -> Any:
        (tmp_path / f"{os.getpid()}").touch()
        time.sleep(0.3)
        return count(*arguments)

    monkeypatch.setattr(clusters, "tally_piece", slowly)
    killed: list[int] = []

    def kill() -> None:
        for _ in range(600):
            workers = [int(path.name) for path in tmp_path.iterdir()]
            if len(workers) >= 2:
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
                return
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    found = replay(traces, POLICIES, tallied=on_cluster("local"))
    killer.join()
    assert killed
    assert os.getpid() not in killed
    assert found == replay(traces, POLICIES)
    left = {int(path.name) for path in tmp_path.iterdir()}
    assert len(left) >= 3, "another worker took the place of the one that died"


def test_damage_is_told_as_without_a_cluster(
    started: None, traces: list[Path], tmp_path: Path
) -> None:
    content = bytearray(traces[0].read_bytes())
    content[100:20000] = bytes(19900)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(content)
    with pytest.raises(TraceError, match=r"bad\.parquet: not readable"):
        replay([bad], POLICIES, tallied=on_cluster("local"))
