"""A writer that is killed leaves a readable trace, whenever the kill comes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from trapgate.trace import Trace, TraceError, TraceWriter, writer

ROW_GROUP = 64

WRITER = f"""
import itertools, sys
import numpy as np
from trapgate.trace import TraceWriter

trace = TraceWriter(sys.argv[1], row_group={ROW_GROUP}, reasons={{0: "none"}})
rows = np.zeros((16, 20), np.int64)
for start in itertools.count(0, 16):
    rows[:, 0] = np.arange(start, start + 16)
    trace.append(rows)
    if start % {ROW_GROUP * 4} == 0:
        print(trace.rows, flush=True)
"""


def assert_readable(path: Path) -> int:
    """The number of rows; asserts that plain pyarrow and Trapgate read them all."""
    sequence = pq.read_table(path)["sequence"].to_numpy()
    assert np.array_equal(sequence, np.arange(len(sequence)))
    assert len(sequence) % ROW_GROUP == 0
    with Trace(path) as trace:
        assert len(trace) == len(sequence)
        assert not trace.complete
    return len(sequence)


@pytest.mark.skipif(os.name != "posix", reason="kills a process by signal")
def test_sigkill_at_any_moment_leaves_every_full_row_group(tmp_path: Path) -> None:
    moments = random.Random(2003)
    counts = []
    for attempt in range(12):
        path = tmp_path / f"{attempt}.parquet"
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        if attempt == 0:
            # However busy the machine is, one of them gets far enough to prove something.
            while int(process.stdout.readline()) <= 20 * ROW_GROUP:
                pass
        time.sleep(moments.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        reported = process.stdout.read().split()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        rows = assert_readable(path)
        assert rows >= max(map(int, reported), default=0)
        counts.append(rows)
    assert max(counts) > 20 * ROW_GROUP, "killed too early to prove anything"


class CutError(Exception):
    """Stands for the kill: the write never gets further."""


class CutFile:
    """A file that dies after so many written bytes, and takes single steps of each write.

    A kernel may end a killed write after any page; 8-byte writes within a page happen whole.
    """

    def __init__(self, file: writer.RawFile, budget: int) -> None:
        self.file = file
        self.budget = budget

    def write(self, data: memoryview) -> int:
        if len(data) > 8:
            data = data[: min(len(data), 509, self.budget)]
        if self.budget <= 0 or len(data) > self.budget:
            raise CutError
        self.budget -= len(data)
        return self.file.write(data)

    def truncate(self, size: int) -> int:
        if self.budget <= 0:
            raise CutError
        return self.file.truncate(size)

    def seek(self, at: int) -> int:
        return self.file.seek(at)

    def fileno(self) -> int:
        return self.file.fileno()

    def close(self) -> None:
        self.file.close()


def rows_from(start: int, count: int) -> NDArray[np.int64]:
    rows = np.zeros((count, 20), np.int64)
    rows[:, 0] = np.arange(start, start + count)
    return rows


def test_every_prefix_of_the_writes_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    finished = False
    budget = 1
    sizes = set()
    while not finished:
        trace = TraceWriter(path, row_group=ROW_GROUP, reasons={0: "none"})
        assert trace.ledger is not None
        trace.ledger.file = CutFile(trace.ledger.file, budget)
        try:
            for start in range(0, 4 * ROW_GROUP, ROW_GROUP):
                trace.append(rows_from(start, ROW_GROUP))
            trace.close()
            finished = True
        except CutError:
            sizes.add(assert_readable(path))
            if trace.ledger is not None:
                trace.ledger.file.close()
        budget += 307
    assert sizes == {0, 64, 128, 192, 256}
    with Trace(path) as whole:
        assert (len(whole), whole.complete) == (256, True)


def test_a_refused_write_is_one_line_and_leaves_the_trace(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"

    class Full(CutFile):
        def write(self, data: memoryview) -> int:
            if self.budget < 0:
                raise OSError(28, "No space left on device")
            self.budget -= len(data)
            return self.file.write(data)

    trace = TraceWriter(path, row_group=ROW_GROUP, reasons={0: "none"})
    assert trace.ledger is not None
    trace.ledger.file = Full(trace.ledger.file, 20_000)
    with pytest.raises(TraceError, match=r"cannot write \(No space left on device\)") as error:
        trace.append(rows_from(0, 100 * ROW_GROUP))
    assert "\n" not in str(error.value)
    assert trace.stopped == "the disk refused a write"
    assert assert_readable(path) == trace.rows > 0
    with pytest.raises(TraceError, match="cannot finish"):
        trace.close()
    assert assert_readable(path) == trace.rows


MEASURED = """
import resource, sys
import numpy as np
from trapgate.trace import TraceWriter

rows = np.random.default_rng(1).integers(0, 1 << 62, (65536, 20))
rows[:, [12, 13]] = 0
with TraceWriter(sys.argv[1], reasons={0: "none"}) as trace:
    for _ in range(5):
        trace.append(rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        trace.append(rows)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts kilobytes on Linux only")
def test_memory_stays_flat(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True, check=True
    )
    written = path.stat().st_size // 1024
    assert int(done.stdout) < written / 4
