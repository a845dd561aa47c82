"""The fault trace: what goes in comes out, always the same bytes, and bad files are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from trapgate.decision import decide
from trapgate.errors import TrapgateError
from trapgate.trace import Trace, TraceError, TraceWriter
from trapgate.trace import writer as writer_module
from trapgate.trace.schema import RUN_SCHEMA

REASONS = {0: "bitmap", 1: "page fault filter", 2: "injected"}


def journal(count: int, start: int = 0, seed: int = 7) -> NDArray[np.int64]:
    """Plausible journal rows, in the layout that the journal has."""
    random = np.random.default_rng(seed)
    rows = np.zeros((count, 20), np.int64)
    rows[:, 0] = np.arange(start, start + count)
    rows[:, 1] = rows[:, 0] * 50
    rows[:, 3] = random.choice([14, 13, 6], count)
    rows[:, 4] = 3
    rows[:, 5] = np.where(rows[:, 3] == 6, -1, random.integers(0, 32, count))
    rows[:, 6] = random.integers(-(2**47), 2**47, count)
    rows[:, 7] = random.choice([0, 3], count)
    rows[:, 8] = random.integers(1, 100, count) << 12
    rows[:, 9] = np.where(rows[:, 3] == 14, random.integers(-(2**47), 2**47, count), 0)
    rows[:, 12] = random.integers(0, 3, count)
    rows[:, 13] = random.integers(0, 3, count)
    rows[:, 14] = random.integers(0, 3, count)
    return rows


def write(path: Path, rows: NDArray[np.int64], **options: Any) -> Path:
    with TraceWriter(path, reasons=REASONS, **options) as writer:
        writer.append(rows)
    return path


def test_every_column_of_one_row(tmp_path: Path) -> None:
    row = np.array(
        [
            [
                5,
                900,
                2,
                14,
                3,
                7,
                -4096,
                3,
                0x1000,
                -8,
                -1,
                0x50963E,
                2,
                1,
                1,
                0,
                4,
                0x8001,
                0x7000,
                6,
            ]
        ],
        np.int64,
    )
    with Trace(write(tmp_path / "t.parquet", row)) as trace:
        (found,) = trace.table().to_pylist()
    assert found == {
        "current_vmcs": 0x7000,
        "vcpu": 6,
        "sequence": 5,
        "time": 900,
        "vm": 2,
        "vmcs": 4,
        "vector": 14,
        "type": 3,
        "error_code": 7,
        "rip": 2**64 - 4096,
        "cpl": 3,
        "cr3": 0x1000,
        "linear_address": 2**64 - 8,
        "data": 2**64 - 1,
        "old_value": 0x8001,
        "disposition": "COMPLETE",
        "reason": "page fault filter",
        "depth": 1,
        "injected": False,
        "table_entry": 2,
        "entry_size": 8,
        "large_pages": True,
        "table_byte": 0x96,
        "frame_byte": 0x50,
        "frame_empty": True,
        "repeated": False,
    }


@pytest.mark.parametrize(
    ("vector", "kind", "address", "injected", "expected"),
    [
        pytest.param(14, 3, 0, 0, 0, id="page fault at 0"),
        pytest.param(14, 3, 0x1000, 0, 0x1000, id="page fault"),
        pytest.param(14, 3, 0, 1, None, id="injected page fault leaves CR2 alone"),
        pytest.param(13, 3, 0, 0, None, id="general protection has no address"),
        pytest.param(17, 3, 0x1001, 0, 0x1001, id="an address that the engine knows"),
        pytest.param(1, 3, 0x4000, 0, None, id="pending DR6 bits are no address"),
        pytest.param(14, 4, 0, 0, None, id="INT 14 is no page fault"),
    ],
)
def test_linear_address_is_null_where_there_is_none(
    tmp_path: Path, vector: int, kind: int, address: int, injected: int, expected: int | None
) -> None:
    row = np.zeros((1, 20), np.int64)
    row[0, [3, 4, 9, 15]] = vector, kind, address, injected
    with Trace(write(tmp_path / "t.parquet", row)) as trace:
        assert trace.table(["linear_address"]).to_pylist() == [{"linear_address": expected}]


def test_error_code_and_data_are_null_where_there_are_none(tmp_path: Path) -> None:
    rows = np.zeros((2, 20), np.int64)
    rows[0, 5] = -1
    rows[1, 11] = 1
    with Trace(write(tmp_path / "t.parquet", rows)) as trace:
        table = trace.table()
    assert table["error_code"].to_pylist() == [None, 0]
    assert table["data"].to_pylist() == table["old_value"].to_pylist() == [None, 0]


def test_many_row_groups_keep_order_and_values(tmp_path: Path) -> None:
    rows = journal(1050)
    path = write(tmp_path / "t.parquet", rows, row_group=100)
    with Trace(path) as trace:
        assert (len(trace), trace.row_groups, trace.complete) == (1050, 11, True)
        table = trace.table()
        assert [batch.num_rows for batch in trace.batches(["time"], rows=400)] == [400, 400, 250]
    assert table["sequence"].to_pylist() == rows[:, 0].tolist()
    assert table["rip"].to_numpy().view(np.int64).tolist() == rows[:, 6].tolist()
    assert table["reason"].to_pylist() == [REASONS[number] for number in rows[:, 13]]
    assert table["error_code"].null_count == int((rows[:, 5] < 0).sum())


def test_pyarrow_sees_a_plain_file_without_dead_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", journal(1000), row_group=100)
    described = pq.read_metadata(path)
    used = 4 + sum(
        described.row_group(group).column(column).total_compressed_size
        for group in range(described.num_row_groups)
        for column in range(described.num_columns)
    )
    length = int.from_bytes(path.read_bytes()[-8:-4], "little")
    assert used + length + 8 == path.stat().st_size
    table = pq.read_table(path)
    assert (table.num_rows, table.schema.names) == (1000, RUN_SCHEMA.names)


def test_polars_reads_it(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars")
    rows = journal(1000)
    frame = polars.read_parquet(write(tmp_path / "t.parquet", rows, row_group=300))
    assert frame["time"].to_list() == rows[:, 1].tolist()
    assert frame["disposition"].cast(polars.String).n_unique() == 3


def test_equal_rows_give_equal_bytes_however_they_are_cut(tmp_path: Path) -> None:
    rows = journal(1000)
    whole = write(tmp_path / "whole.parquet", rows, row_group=128, metadata={"a": "1", "b": "2"})
    with TraceWriter(
        tmp_path / "cut.parquet", reasons=REASONS, row_group=128, metadata={"b": "2", "a": "1"}
    ) as writer:
        for start in range(0, 1000, 37):
            writer.append(rows[start : start + 37])
    assert whole.read_bytes() == (tmp_path / "cut.parquet").read_bytes()


def test_appended_rows_are_copied(tmp_path: Path) -> None:
    rows = journal(10)
    with TraceWriter(tmp_path / "t.parquet", reasons=REASONS) as writer:
        writer.append(rows)
        rows[:] = 0
    with Trace(tmp_path / "t.parquet") as trace:
        assert trace.table(["sequence"])["sequence"].to_pylist() == list(range(10))


def test_an_empty_trace_is_a_trace(tmp_path: Path) -> None:
    with Trace(
        write(tmp_path / "t.parquet", journal(0), metadata={"profile": "extended"})
    ) as trace:
        assert (len(trace), trace.complete, trace.run) == (0, True, {"profile": "extended"})
        assert trace.table().num_rows == 0


def test_metadata_noted_during_the_run_are_in_the_file(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t.parquet", reasons=REASONS, metadata={"seed": "3"}) as writer:
        writer.append(journal(3))
        writer.metadata["outcome"] = "triple fault"
    with Trace(tmp_path / "t.parquet") as trace:
        assert trace.run == {"seed": "3", "outcome": "triple fault"}


def test_the_file_is_a_trace_between_any_two_appends(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TraceWriter(path, reasons=REASONS, row_group=50) as writer:
        for start in range(0, 700, 20):
            with Trace(path) as trace:
                assert not trace.complete
                assert len(trace) == start // 50 * 50
                assert trace.table(["sequence"])["sequence"].to_pylist() == list(range(len(trace)))
            writer.append(journal(20, start))


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", journal(5000))
    write(path, journal(3))
    with Trace(path) as trace:
        assert len(trace) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_size_limit_ends_the_trace_and_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with TraceWriter(path, reasons=REASONS, row_group=100, max_bytes=300_000) as writer:
        for start in range(0, 20_000, 1000):
            writer.append(journal(1000, start))
            assert path.stat().st_size <= 300_000
    assert writer.stopped == "the trace reached its limit of 300000 bytes"
    assert writer.rows + writer.dropped == 20_000
    assert path.stat().st_size <= 300_000
    with Trace(path) as trace:
        assert 1000 < len(trace) == writer.rows
        assert not trace.complete
        assert trace.run == {"dropped": str(writer.dropped), "stopped": writer.stopped}


def test_a_nearly_full_disk_ends_the_trace(tmp_path: Path) -> None:
    with TraceWriter(
        tmp_path / "t.parquet", reasons=REASONS, row_group=10, keep_free=1 << 62
    ) as writer:
        writer.append(journal(25))
    assert writer.stopped is not None
    assert "left on the disk" in writer.stopped
    assert (writer.rows, writer.dropped) == (0, 25)


def test_long_traces_get_longer_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_GROUPS_BEFORE_DOUBLING", 16)
    with Trace(write(tmp_path / "t.parquet", journal(256), row_group=2)) as trace:
        # 16 groups of 2 rows, 16 of 4, the rest of 8 and never more.
        assert trace.row_groups == 16 + 16 + (256 - 96) // 8
        assert trace.table(["sequence"])["sequence"].to_pylist() == list(range(256))


def test_misuse_is_a_value_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="row_group is 0"):
        TraceWriter(tmp_path / "t.parquet", reasons=REASONS, row_group=0)
    writer = TraceWriter(tmp_path / "t.parquet", reasons=REASONS)
    with pytest.raises(ValueError, match="give n x 20"):
        writer.append(np.zeros((3, 19), np.int64))
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.append(journal(1))


@pytest.mark.parametrize("column", [12, 13])
def test_a_number_without_a_name_is_no_trace(tmp_path: Path, column: int) -> None:
    rows = journal(1)
    rows[0, column] = 3
    with (
        pytest.raises(IndexError, match="outside"),
        TraceWriter(tmp_path / "t.parquet", reasons=REASONS, row_group=1) as writer,
    ):
        writer.append(rows)


def one_line(error: pytest.ExceptionInfo[TraceError], path: Path) -> str:
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert error.value.remedy in text
    assert isinstance(error.value, TrapgateError)
    return text


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "t.parquet", Path("/dev/null")):
        with pytest.raises(TraceError) as error:
            TraceWriter(path, reasons=REASONS)
        assert "cannot create the trace" in one_line(error, path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "no such file", id="missing"),
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(b"PAR1", "not readable as Parquet", id="short"),
        pytest.param(b"\x7fELF" * 1000, "not readable as Parquet", id="foreign"),
        pytest.param(b"PAR1" + b"\xff" * 100 + b"\x20\0\0\0PAR1", "not readable", id="nonsense"),
    ],
)
def test_what_is_no_parquet(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "t.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceError) as error:
        Trace(path)
    assert problem in one_line(error, path)


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as error:
        Trace(tmp_path)
    assert "not a regular file" in one_line(error, tmp_path)


def rewritten(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path)
    return path


def test_what_is_no_trace_of_this_version(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", journal(10))
    table = pq.read_table(path)
    stored = table.schema.metadata
    changes = {
        "no metadata key trapgate.version": table.replace_schema_metadata(None),
        "version 99 of the trace schema": table.replace_schema_metadata(
            stored | {b"trapgate.version": b"99"}
        ),
        "version x of the trace schema": table.replace_schema_metadata(
            stored | {b"trapgate.version": b"x"}
        ),
        "missing rip, depth": table.drop_columns(["rip", "depth"]),
        "column rip has type string": table.set_column(
            table.schema.get_field_index("rip"), "rip", pa.array(["?"] * 10)
        ),
    }
    for problem, changed in changes.items():
        with pytest.raises(TraceError) as error:
            Trace(rewritten(path, changed))
        assert problem in one_line(error, path)


def test_further_columns_are_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", journal(10))
    wider = pq.read_table(path).append_column("latency", pa.array(range(10)))
    with Trace(rewritten(path, wider)) as trace:
        assert trace.table(["latency"])["latency"].to_pylist() == list(range(10))


def test_a_flipped_bit_in_the_data_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", journal(1000))
    content = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(7)
    content[column.dictionary_page_offset + column.total_compressed_size - 3] ^= 0x10
    path.write_bytes(content)
    with Trace(path) as trace, pytest.raises(TraceError) as error:
        trace.table()
    assert "not readable as Parquet" in one_line(error, path)


def test_reasons_are_those_of_decide_unless_told_otherwise(tmp_path: Path) -> None:
    numbers = sorted(decide.REASONS)
    rows = journal(len(numbers))
    rows[:, 13] = numbers
    with TraceWriter(tmp_path / "t.parquet") as writer:
        writer.append(rows)
    with Trace(tmp_path / "t.parquet") as trace:
        assert trace.table()["reason"].to_pylist() == [decide.REASONS[n] for n in numbers]
