"""Writing a fault trace while the machine runs.

Parquet finds everything from the end of the file, so a file that is being written is
usually no file at all until it is closed. A trace is one at every instant: whenever its
writer is killed, what is on disk is a valid Parquet file with every row group that was
full by then. `Ledger` says how.
"""

import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trapgate.trace import footer
from trapgate.trace.schema import JOURNAL_COLUMNS, RUN_SCHEMA, TraceError, batch_of, metadata_of

ROW_GROUP: Final = 65536
"""Rows in a row group, unless told otherwise."""

KEEP_FREE: Final = 256 << 20
"""Bytes that a trace leaves free on its disk, unless told otherwise."""

# Footers grow with the number of row groups and are written anew after each. Longer row
# groups in very long traces keep that a small part of the work; two doublings at most,
# so that the buffer stays small.
_GROUPS_BEFORE_DOUBLING = 1024
_DOUBLINGS = 2

# A generous bound of what one row group, and notes added on closing, add to a footer.
_FOOTER_GROWTH = 8192

_COUNTERS = ["sequence", "time"]


class TraceWriter:
    """Streams journal rows into one Parquet file; a context manager.

    `path` is created, or replaced if it is a regular file. `row_group` is the number of
    rows after which what was appended becomes part of the file, `metadata` facts about
    the run (profile, seed, guest), `reasons` the names of the journal's reason numbers
    (those of `trapgate.decision.decide` if not given). The trace never grows beyond `max_bytes`,
    nor until less than `keep_free` bytes are left on the disk: then it ends, `stopped`
    says why, and later rows only count in `dropped`. Equal rows and metadata give equal
    bytes, however the rows are cut into appends.

    Memory: one row group, and about 2 KB for each row group written.

    Raises: TraceError if the file cannot be created or the disk refuses a write.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        row_group: int = ROW_GROUP,
        metadata: Mapping[str, str] | None = None,
        reasons: Mapping[int, str] | None = None,
        max_bytes: int | None = None,
        keep_free: int = KEEP_FREE,
    ) -> None:
        if row_group < 1:
            raise ValueError(f"row_group is {row_group}; give at least 1")
        self.path = Path(path)
        self.metadata = dict(metadata or {})
        self.rows = 0
        self.dropped = 0
        self.stopped: str | None = None
        self._reasons = _names(_reasons_of_decide() if reasons is None else reasons)
        self._row_group = row_group
        self._max_bytes = max_bytes
        self._keep_free = keep_free
        self._buffer = np.empty((row_group, JOURNAL_COLUMNS), np.int64)
        self._used = 0
        try:
            self.ledger: Ledger | None = Ledger(self.path, self._template(complete=False))
        except OSError as error:
            raise self._refused("cannot create the trace", error) from error

    def append(self, rows: NDArray[np.int64]) -> None:
        """Take n journal rows (n x 20); they are copied.

        Raises: TraceError if the disk refuses a write; ValueError for another shape, or
        after `close`.
        """
        if rows.ndim != 2 or rows.shape[1] != JOURNAL_COLUMNS:
            raise ValueError(f"rows of shape {rows.shape}; give n x {JOURNAL_COLUMNS}")
        if self.ledger is None:
            raise ValueError("the trace is closed")
        taken = 0
        while taken < len(rows) and self.stopped is None:
            count = min(len(rows) - taken, len(self._buffer) - self._used)
            self._buffer[self._used : self._used + count] = rows[taken : taken + count]
            self._used += count
            taken += count
            if self._used == len(self._buffer):
                self._commit(self.ledger)
        self.dropped += len(rows) - taken

    def close(self) -> None:
        """Write what is buffered and the final footer, with `metadata` as it is now.

        Raises: TraceError if the disk refuses a write; the file then ends with the last
        full row group.
        """
        ledger, self.ledger = self.ledger, None
        if ledger is None:
            return
        try:
            if self._used:
                self._commit(ledger)
            ledger.finish(self._template(complete=self.stopped is None))
        except OSError as error:
            raise self._refused("cannot finish the trace", error) from error
        finally:
            ledger.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, ledger: "Ledger") -> None:
        batch = batch_of(self._buffer[: self._used], self._reasons)
        data, piece = footer.split(_encoded(RUN_SCHEMA, [batch]))
        self.stopped = self._why_stop(ledger, len(data))
        if self.stopped is not None:
            self.dropped += self._used
        else:
            try:
                ledger.add(data, piece)
            except OSError as error:
                self.stopped = "the disk refused a write"
                self.dropped += self._used
                self._used = 0
                raise self._refused("cannot write", error) from error
            else:
                self.rows += self._used
        self._used = 0
        doublings = min(ledger.groups // _GROUPS_BEFORE_DOUBLING, _DOUBLINGS)
        if len(self._buffer) != self._row_group << doublings:
            self._buffer = np.empty((self._row_group << doublings, JOURNAL_COLUMNS), np.int64)

    def _why_stop(self, ledger: "Ledger", data: int) -> str | None:
        needed = ledger.size_after(data)
        if self._max_bytes is not None and needed > self._max_bytes:
            return f"the trace reached its limit of {self._max_bytes} bytes"
        free = shutil.disk_usage(ledger.file.fileno()).free
        if free - (needed - ledger.size) < self._keep_free:
            return f"less than {self._keep_free} bytes would be left on the disk"
        return None

    def _template(self, *, complete: bool) -> footer.Struct:
        run = dict(self.metadata)
        if self.dropped:
            run["dropped"] = str(self.dropped)
        if self.stopped:
            run["stopped"] = self.stopped
        described = RUN_SCHEMA.with_metadata(metadata_of(run, complete=complete))
        return footer.split(_encoded(described, []))[1]

    def _refused(self, what: str, error: OSError) -> TraceError:
        reason = error.strerror or str(error)
        remedy = "give a file in a writable folder with room"
        return TraceError(str(self.path), f"{what} ({reason})", remedy)


class RawFile(Protocol):
    """What a ledger needs of an unbuffered file, as `io.RawIOBase` has it."""

    def write(self, data: memoryview, /) -> int:
        """Write at the position; return how many bytes were taken."""
        ...

    def seek(self, position: int, /) -> int:
        """Go to that byte of the file."""
        ...

    def truncate(self, size: int, /) -> int:
        """Make the file end after `size` bytes."""
        ...

    def fileno(self) -> int:
        """The descriptor."""
        ...

    def close(self) -> None:
        """Close the descriptor."""
        ...


class Ledger:
    """A Parquet file that is valid at every instant.

    The file is: row groups up to `end`; the live footer; perhaps dead bytes; a trailer
    of 8 bytes, which says how far before it the live footer begins. A reader parses the
    footer from its beginning and does not mind what lies between its end and the
    trailer, so the trailer may be far away, and rewriting the trailer is what switches
    from one footer to another. It never crosses a page, so it is written whole or not
    at all. Adding a row group never touches live bytes:

    1. a new trailer beyond the end of the file, pointing at the live footer;
    2. a copy of the live footer in the hole before it; the trailer then points there;
    3. row group and new footer over the place of the old footer; the trailer follows.

    The end is like it, except that the new trailer lies right after the last footer and
    comes to life by truncation, so that a finished file holds no dead bytes.
    """

    def __init__(self, path: Path, template: footer.Struct) -> None:
        if path.exists() and not path.is_file():
            raise OSError(None, "it exists and is not a regular file")
        self._template = template
        self._groups: list[bytes] = []
        self._rows = 0
        self._live = footer.join(template, b"", 0, 0)
        self._live_at = self.end = len(footer.MAGIC)
        self.size = _aligned(self.end + len(self._live)) + footer.TRAILER
        # The first valid file appears under its name at once, in place of an older one.
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        self.file: RawFile = draft.open("w+b", buffering=0)
        try:
            self._write(0, footer.MAGIC + self._live)
            self._point(self.end)
            draft.replace(path)
        except BaseException:
            self.file.close()
            draft.unlink(missing_ok=True)
            raise

    @property
    def groups(self) -> int:
        """The number of row groups so far."""
        return len(self._groups)

    def size_after(self, data: int) -> int:
        """An upper bound of the file's bytes while a row group of `data` bytes is added,
        and while the file is finished after that.
        """
        footers = 3 * (len(self._live) + _FOOTER_GROWTH)
        return max(self.end + data, self.size) + footers

    def add(self, data: bytes, piece: footer.Struct) -> None:
        """Append one row group: its bytes, encoded to begin after a magic number."""
        moved = self.end - len(footer.MAGIC)
        group, rows = footer.moved_row_group(piece, moved, len(self._groups))
        groups = [*self._groups, group]
        new = footer.join(self._template, b"".join(groups), len(groups), self._rows + rows)
        end = self.end + len(data)
        self._step_aside(end + len(new))
        self._write(self.end, data + new)
        self._point(end)
        self._groups, self._live, self._rows, self.end = groups, new, self._rows + rows, end

    def finish(self, template: footer.Struct) -> None:
        """Switch to the final footer and cut off everything after it."""
        last = footer.join(template, b"".join(self._groups), len(self._groups), self._rows)
        size = self.end + len(last) + footer.TRAILER
        self._step_aside(size)
        self._write(self.end, last + footer.trailer(len(last)))
        self.file.truncate(size)
        self.size = size

    def _step_aside(self, room: int) -> None:
        """Move a copy of the live footer beyond `room`, and beyond the file's end."""
        spare = max(room, self.size)
        self.size = _aligned(spare + len(self._live)) + footer.TRAILER
        self._point(self._live_at)
        self._write(spare, self._live)
        self._point(spare)

    def _point(self, start: int) -> None:
        """Make the footer at `start` the live one: one write, within one page."""
        last = self.size - footer.TRAILER
        self._write(last, footer.trailer(last - start))
        self._live_at = start

    def _write(self, at: int, data: bytes) -> None:
        self.file.seek(at)
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]


def _aligned(position: int) -> int:
    return -(-position // footer.TRAILER) * footer.TRAILER


def _encoded(schema: pa.Schema, batches: list[pa.RecordBatch]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_batches(batches, schema=schema),
        sink,
        row_group_size=1 << 30,
        compression="zstd",
        compression_level=1,
        use_dictionary=[name for name in schema.names if name not in _COUNTERS],
        column_encoding=dict.fromkeys(_COUNTERS, "DELTA_BINARY_PACKED"),
        write_page_checksum=True,
    )
    return sink.getvalue()


def _reasons_of_decide() -> Mapping[int, str]:
    # Imported late: a trace of another machine's faults brings names of its own.
    from trapgate.decision.decide import REASONS

    return REASONS


def _names(reasons: Mapping[int, str]) -> tuple[str, ...]:
    # Numbers without a name get one that shows them, should they ever appear.
    return tuple(reasons.get(number, f"reason {number}") for number in range(max(reasons) + 1))
