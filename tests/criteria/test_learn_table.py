"""Tables learned from traces: nothing needed is lost, and no smaller table saves as much."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tests.criteria.test_criteria_tables import exits
from tests.criteria.test_learning import written
from tests.replay.traces import journal
from trapgate.cli import app
from trapgate.criteria import CriteriaError, UndecidedError, learn_table

pytest.importorskip("z3")
pytest.importorskip("pysat")


def rows_of(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def marked(tmp_path: Path, wanted: Any, seed: int = 1) -> Path:
    """A trace of page faults, all of which exited, of which those are needed that `wanted` says."""
    rows = journal(600, seed=seed)
    rows[:, [1, 12, 15]] = 0
    path = written(tmp_path / "t.parquet", rows)
    table = pq.read_table(path)
    random = np.random.default_rng(seed)
    pages = random.integers(0, 64, len(rows))
    cpl = random.choice([0, 3], len(rows))
    columns = {
        "vector": pa.array(np.full(len(rows), 14, np.uint8)),
        "type": pa.array(np.full(len(rows), 3, np.uint8)),
        "error_code": pa.array(random.integers(0, 8, len(rows)).astype(np.uint32)),
        "linear_address": pa.array((pages * 4096 + 5).astype(np.uint64)),
        "cpl": pa.array(cpl.astype(np.uint8)),
    }
    for name, column in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(at, table.schema.field(name), column)
    exited = table["disposition"].cast(pa.string()).to_numpy(zero_copy_only=False) == "EXIT"
    need = np.array([bool(wanted(p, c)) for p, c in zip(pages, cpl, strict=True)]) & exited
    pq.write_table(table.append_column("needed", pa.array(need)), path)
    return path


def judged(path: Path, vmcs: Any) -> tuple[int, int]:
    """(needed exits missed, exits), fault by fault."""
    missed = count = 0
    for row in rows_of(path):
        fault = {
            "vector": 14,
            "type": 3,
            "code": row["error_code"],
            "page_fault_code": row["error_code"],
            "address": row["linear_address"],
            "page": row["linear_address"] >> 12,
            "cpl": row["cpl"],
        }
        goes = exits(vmcs, fault)
        count += goes
        missed += row["needed"] and not goes
    return missed, count


@pytest.mark.parametrize("unseen", ["exit", "deliver"])
def test_what_one_range_and_one_ring_tell_is_learned_exactly(tmp_path: Path, unseen: Any) -> None:
    path = marked(tmp_path, lambda page, cpl: 16 <= page < 24 and cpl == 3)
    found = learn_table(path, ["page", "cpl"], hold_out=0, unseen=unseen)
    assert found.held_out is None
    assert found.trained.missed == 0
    assert found.trained.exits_after == found.trained.needed > 0
    missed, count = judged(path, found.vmcs)
    assert (missed, count) == (0, found.trained.exits_after)
    clauses = [clause for rule in found.vmcs.criteria_table for clause in rule.clauses]
    assert len([one for one in clauses if one.value.name != "type"]) == 2


def test_fewer_clauses_save_less_and_lose_nothing(tmp_path: Path) -> None:
    path = marked(tmp_path, lambda page, _: page in (5, 20, 40))
    saved = []
    for clauses in (1, 2, 3):
        found = learn_table(path, ["page"], hold_out=0, unseen="deliver", rules=1, clauses=clauses)
        assert found.trained.missed == 0
        assert judged(path, found.vmcs) == (0, found.trained.exits_after)
        saved.append(found.trained.saved)
    assert saved[0] < saved[1] < saved[2]
    assert found.trained.exits_after == found.trained.needed


def test_the_part_held_out_is_told_apart(tmp_path: Path) -> None:
    path = marked(tmp_path, lambda page, _: page < 8)
    found = learn_table(path, ["page"], hold_out=0.25)
    assert found.held_out is not None
    assert found.whole.faults == 600
    assert "held out" in "\n".join(found.lines())


def test_what_cannot_be_learned(tmp_path: Path) -> None:
    path = marked(tmp_path, lambda page, _: page < 8)
    with pytest.raises(CriteriaError, match="did you mean page"):
        learn_table(path, ["pge"])
    with pytest.raises(CriteriaError, match="0 or more"):
        learn_table(path, ["page"], hold_out=1.0)
    with pytest.raises(UndecidedError, match="allow more"):
        learn_table(path, ["page"], unseen="deliver", clauses=-1)


def test_the_command_line(tmp_path: Path) -> None:
    path = marked(tmp_path, lambda page, _: 16 <= page < 24)
    output = tmp_path / "learned.toml"
    given = ["criteria", "learn", str(path), "--by", "page", "--by", "cpl", "-o", str(output)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "by vector, page, cpl" in result.output
    assert 'then = "deliver"' in output.read_text()
