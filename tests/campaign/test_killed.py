"""A campaign that is killed at any moment goes on, and ends with the rows of one that was not."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.campaign.plans import EVENTS, HEAD, finished, plan
from trapgate.campaign.campaign import create, prepare
from trapgate.campaign.errors import CampaignError
from trapgate.campaign.results import Results

PLAN = HEAD + EVENTS.replace("every = 20", "every = 8")
RUNS = 375 * 3


def rows(results: Results) -> pa.Table:
    return pa.concat_tables([pq.read_table(part) for part in results.parts()]).unify_dictionaries()


def start(file: Path, folder: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, so that nobody else is killed."""
    command = [sys.executable, "-m", "trapgate", "campaign", "run", str(file), "-o", str(folder)]
    return subprocess.Popen(
        [*command, "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def parts(folder: Path) -> int:
    return len(list((folder / "parts").glob("[0-9]*.parquet")))


def children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task/{process}/children")
    return [int(one) for one in tasks.read_text().split()]


def kill_until_finished(file: Path, folder: Path, kill: signal.Signals, seed: int) -> int:
    """Let it run, kill it when there are more parts, again and again; how often it was killed."""
    rng = random.Random(seed)
    kills = 0
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        running = start(file, folder)
        aim = parts(folder) + rng.randint(1, 4)
        while running.poll() is None and parts(folder) < aim:
            time.sleep(0.01)
        time.sleep(rng.random() / 50)
        if running.poll() is None and kills < 4:
            if kill == signal.SIGKILL:
                os.killpg(running.pid, kill)
            else:
                running.send_signal(kill)
            kills += 1
        _, told = running.communicate()
        if running.returncode == 0:
            return kills
        if kill == signal.SIGINT:
            assert b"goes on from here" in told
    pytest.fail("did not finish")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    body = EVENTS.replace("every = 20", "every = 8")
    return rows(finished(body, tmp_path_factory.mktemp("undisturbed")))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills by /proc")
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_killed_again_and_again(
    kill: signal.Signals, undisturbed: pa.Table, tmp_path: Path
) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    folder = tmp_path / "killed"
    assert kill_until_finished(file, folder, kill, seed=int(kill)) > 0
    results = Results.open(folder)
    assert results.missing() == []
    assert rows(results).equals(undisturbed)
    assert not list((folder / "parts").glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="kills by /proc")
def test_a_killed_worker_costs_its_batch_only(undisturbed: pa.Table, tmp_path: Path) -> None:
    file = tmp_path / "plan.toml"
    file.write_text(PLAN)
    folder = tmp_path / "killed"
    running = start(file, folder)
    killed = 0
    aim = 1
    while running.poll() is None:
        if killed < 2 and parts(folder) >= aim:
            # The first child is the tracker of shared resources.
            workers = children(running.pid)[-2:]
            os.kill(workers[killed], signal.SIGKILL)
            killed += 1
            aim = parts(folder) + 2
        time.sleep(0.01)
    assert killed == 2
    assert running.returncode == 0
    running.communicate()
    assert rows(Results.open(folder)).equals(undisturbed)


def test_what_was_begun_to_be_made_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    ready = prepare(plan(EVENTS))
    create(ready, folder)
    (folder / "campaign.json").unlink()  # the last file to appear
    (folder / "pruned.parquet").write_bytes(b"of another plan")
    (folder / ".space.parquet.77").write_bytes(b"half")
    results = create(ready, folder)
    assert not results.has_pruned
    assert results.missing()
    for name in ("notes.txt", ".git", "plan.toml"):
        other = tmp_path / name.strip(".")
        other.mkdir()
        (other / name).write_text("mine")
        with pytest.raises(CampaignError, match="holds something else"):
            create(ready, other)
        assert (other / name).read_text() == "mine"


def test_a_directory_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(CampaignError, match=r"cannot be made .No space left"):
        create(prepare(plan(EVENTS)), tmp_path / "c")
