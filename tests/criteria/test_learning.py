"""Learning from traces: flat in memory, the same whatever the batches, never worse than before."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.replay.traces import journal
from trapgate.criteria import learn
from trapgate.criteria.wishes import trace_faults
from trapgate.criteria.wishes.trace_faults import read_faults
from trapgate.trace import Trace, TraceWriter
from trapgate.trace.schema import CRITERIA
from trapgate.vmcs.vmcs import Vmcs


def written(path: Path, rows: Any, **facts: str) -> Path:
    with TraceWriter(path, metadata=facts) as writer:
        writer.append(rows)
    return path


def counted_by_hand(path: Path, hold_out: float) -> list[Counter[tuple[Any, ...]]]:
    """Faults by code, exit and need, straight from the rows."""
    with Trace(path) as trace:
        rows = trace.table().to_pylist()
    faults = []
    for number, row in enumerate(rows):
        ruled = row["type"] in {3, 5, 6} and not row["injected"] and row["vector"] != 2
        with_code = row["vector"] in {8, 10, 11, 12, 13, 14, 17, 21}
        if not ruled or row["vector"] > 31 or (with_code and row["error_code"] is None):
            continue
        following = next((r for r in rows[number + 1 :] if r["vm"] == row["vm"]), None)
        reflected = (
            following is not None
            and following["injected"]
            and following["vector"] == row["vector"]
            and following["rip"] == row["rip"]
        )
        exited = row["disposition"] == "EXIT"
        code = -1 if row["error_code"] is None else row["error_code"]
        faults.append((row["vector"], code, exited, exited and not reflected))
    split = len(faults) - int(len(faults) * hold_out)
    return [Counter(faults[:split]), Counter(faults[split:])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = journal(400, seed=3)
    random = np.random.default_rng(5)
    rows[:, 2] = random.integers(0, 3, len(rows))
    # Some exits are given back at once.
    for at in range(0, 390, 4):
        rows[at + 1, [2, 3, 4, 6]] = rows[at, [2, 3, 4, 6]]
        rows[at, [12, 15]] = 0, 0
        rows[at + 1, [12, 15]] = 1, 1
    return written(tmp_path / "t.parquet", rows)


@pytest.mark.parametrize("batch", [1, 7, 64, 65536])
@pytest.mark.parametrize("hold_out", [0.0, 0.25])
def test_batches_do_not_matter(
    path: Path, batch: int, hold_out: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_faults, "BATCH", batch)
    first, rest, column, _ = read_faults(path, "", hold_out)
    assert column == ""
    for part, expected in zip((first, rest), counted_by_hand(path, hold_out), strict=True):
        columns = (part.vector, part.code, part.exited, part.needed, part.count)
        found = {tuple(row[:4]): row[4] for row in zip(*(c.tolist() for c in columns), strict=True)}
        assert found == dict(expected)


def faults(tmp_path: Path, codes: list[tuple[int, bool]], **facts: str) -> Path:
    rows = np.zeros((len(codes), 20), np.int64)
    rows[:, 0] = rows[:, 1] = range(len(codes))
    rows[:, 3], rows[:, 4] = 14, 3
    rows[:, 5] = [code for code, _ in codes]
    rows[:, 12] = [0 if exited else 1 for _, exited in codes]
    return written(tmp_path / "f.parquet", rows, **facts)


# Needed are codes 3 and 4; every filter of one pair that has both has everything.
CODES = [(3, True), (4, True), *[(code, False) for code in (0, 1, 2, 5, 6, 7) for _ in range(9)]]


def test_never_worse_than_what_was_in_force(tmp_path: Path) -> None:
    toml = (
        'profile = "extended"\n[fields]\nTRANSFER_CRITERION = 3\n'
        "TRANSFER_CRITERION_VECTORS = 0x4000\nEXCEPTION_BITMAP = 0x4000\n"
        "PAGE_FAULT_ERROR_CODE_MASK = 7\nPAGE_FAULT_ERROR_CODE_MATCH = 3\n"
        "SECOND_ERROR_CODE_MASK = 7\nSECOND_ERROR_CODE_MATCH = 4\n"
    )
    path = faults(tmp_path, CODES, **{CRITERIA: toml})
    learned = learn(path, hold_out=0)
    assert learned.whole.exits_after <= learned.whole.exits_before
    assert learned.whole.missed == 0
    assert learned.whole.exits_after == 2
    assert Vmcs.from_toml(learned.definition.toml())["SECOND_ERROR_CODE_MATCH"] == 4
    assert any("in force, so these are they" in note for note in learned.definition.notes)


def test_unknown_criteria_are_told(tmp_path: Path) -> None:
    learned = learn(faults(tmp_path, CODES), hold_out=0)
    (note,) = [one for one in learned.definition.notes if "in force" in one]
    assert note.startswith("the trace does not say which criteria were in force")
    assert learned.whole.exits_after <= learned.whole.exits_before or "keep the old ones" in note
