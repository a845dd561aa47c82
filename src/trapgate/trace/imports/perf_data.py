"""perf's recordings (`perf.data`, `perf.data.guest`), as perf.data-file-format.txt has them.

The file is records one after the other; samples of trace points carry the event as the
kernel's ring buffer has it, and a feature of the file holds the events' descriptions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa

from trapgate.trace.imports.assembler import Assembler
from trapgate.trace.imports.formats import Layouts
from trapgate.trace.imports.points import POINT
from trapgate.trace.imports.raw_events import (
    DAMAGED,
    EVENTS,
    FOREIGN,
    GOOD,
    RAW_COUNTS,
    sample_points,
)
from trapgate.trace.imports.recording import (
    MOST_DESCRIBED,
    ByteReader,
    Cells,
    DamagedError,
    PointStream,
    Progress,
    Window,
    cells_of,
    read_at,
)
from trapgate.trace.imports.rows import Counters
from trapgate.trace.imports.trace_dat import MAGIC as TRACING
from trapgate.trace.imports.trace_dat import Contents, read_tracing_data

MAGIC: Final = b"PERFILE2"
SWAPPED: Final = b"2ELIFREP"

_TRACING_DATA = 1
"""The feature (by its bit), and as a record of a pipe 66."""
_R_ATTR, _R_TRACING_DATA, _R_AUXTRACE, _R_COMPRESSED, _R_COMPRESSED_2 = 64, 66, 71, 81, 83
_TRACEPOINT = 2
_MOST_ATTRIBUTES = 1 << 14
_MOST_IDS = 1 << 16
_PIECE = 1 << 18
_WORD = (1 << 64) - 1
_UNPACKED = 1 << 14
_RAW, _IDENTIFIER = 1 << 10, 1 << 16


@dataclass
class Attribute:
    """What samples of an event hold (perf_event_attr), and the numbers that they carry."""

    kind: int
    contents: int
    form: int
    ids: list[int] = field(default_factory=list)


def _attribute(data: bytes) -> Attribute:
    head = ByteReader(data, "an event's attribute")
    kind = head.number(4)
    head.take(4 + 8 + 8)
    return Attribute(kind, head.number(8), head.number(8))


class PerfData:
    """Reads a recording, of a file or of a pipe."""

    unit = "ns"

    def __init__(self, file: BinaryIO, size: int, counters: Counters, assembler: Assembler) -> None:
        self._file = file
        self._size = size
        self._counters = counters
        self._assembler = assembler
        self.layouts = Layouts()
        self._attributes: list[Attribute] = []
        self._start, self._end = self._head()
        counters.remarks += self.layouts.remarks

    def _head(self) -> tuple[int, int]:
        """Read the head; where the records begin and end."""
        head = ByteReader(read_at(self._file, 0, 16, self._size, "the head"), "the head")
        magic = head.take(8)
        if magic == SWAPPED:
            raise DamagedError("written on a big-endian host, which runs no x86 guests")
        length = head.number(8)
        if length == 16:  # a pipe: what the head would say comes as records
            return 16, self._size
        head = ByteReader(read_at(self._file, 16, 88, self._size, "the head"), "the head")
        each = head.number(8)
        attributes = head.number(8), head.number(8)
        start, data = head.number(8), head.number(8)
        head.take(16)
        features = head.number(8)
        self._read_attributes(each, *attributes)
        if start > self._size:
            raise DamagedError("its records lie beyond the file's end")
        end = min(start + data, self._size)
        if data == 0:
            self._counters.remarks.append("perf was killed: the head does not say where it ends")
            return start, self._size
        if start + data > self._size:
            self._counters.truncated += 1
            self._counters.remarks.append("the file is cut: its end, with the descriptions, lacks")
            return start, end
        self._features(start + data, features)
        return start, end

    def _read_attributes(self, each: int, offset: int, length: int) -> None:
        if not 80 <= each <= 1024 or length // each > _MOST_ATTRIBUTES:
            raise DamagedError("no list of events in the head")
        data = read_at(self._file, offset, length, self._size, "the list of events")
        for at in range(0, length - each + 1, each):
            attribute = _attribute(data[at : at + each])
            where = ByteReader(data[at + each - 16 : at + each], "an event's numbers")
            first, count = where.number(8), where.number(8) // 8
            if count > _MOST_IDS:
                raise DamagedError("more numbers of an event than there are CPUs")
            raw = read_at(self._file, first, count * 8, self._size, "an event's numbers")
            attribute.ids = np.frombuffer(raw, np.int64).tolist()
            self._attributes.append(attribute)

    def _features(self, at: int, features: int) -> None:
        if not features >> _TRACING_DATA & 1:
            return
        # One entry for each bit below it that is set.
        before = (features & ((1 << _TRACING_DATA) - 1)).bit_count()
        data = read_at(self._file, at + 16 * before, 16, self._size, "the list of features")
        entry = ByteReader(data, "the list of features")
        offset, length = entry.number(8), entry.number(8)
        self._describe(
            read_at(
                self._file,
                offset,
                min(length, MOST_DESCRIBED),
                self._size,
                "the descriptions of events",
            )
        )

    def _describe(self, data: bytes) -> None:
        head = ByteReader(data, "the descriptions of events")
        head.expect(TRACING)
        head.string()
        if head.number(1):
            raise DamagedError("written on a big-endian host, which runs no x86 guests")
        head.take(1 + 4)
        read_tracing_data(head, Contents(layouts=self.layouts))

    def _sample_layouts(self) -> Cells:
        """What the compiled reader needs to know of attributes."""
        mine = [one for one in self._attributes if one.kind == _TRACEPOINT] or self._attributes
        if not mine:
            raise DamagedError("it does not say what its samples hold")
        first = mine[0]
        ids = [(one_id, one) for one in mine for one_id in one.ids]
        differ = any((one.contents, one.form) != (first.contents, first.form) for one in mine)
        if differ and not all(one.contents & _IDENTIFIER for one in mine):
            raise DamagedError("its events are of several layouts, and samples do not say which")
        if not any(one.contents & _RAW for one in mine):
            raise DamagedError("its samples have no raw data: record trace points (kvm:*)")
        flat = [first.contents, first.form, len(ids) if differ else 0]
        if differ:
            for one_id, one in ids:
                flat += [one_id, one.contents, one.form]
        return np.array([value & _WORD for value in flat], np.uint64).view(np.int64)

    def read(self, progress: Progress | None) -> None:
        """Read it all."""
        window = Window(PointStream(self.layouts, self._assembler), self._counters)
        packed = _Packed()
        counts = np.zeros(RAW_COUNTS, np.int64)
        try:
            self._records(self._file_pieces(progress), window, packed, counts)
            if packed.payload:
                self._records(packed.pieces(), window, None, counts)
        except DamagedError as error:
            self._counters.truncated += 1
            self._counters.remarks.append(f"{error}; what follows is not read")
        finally:
            window.end()
        self._assembler.end()
        self._counters.lines += int(counts[EVENTS])
        self._counters.foreign += int(counts[FOREIGN])
        self._counters.truncated += int(counts[DAMAGED])

    def _file_pieces(self, progress: Progress | None) -> Iterator[bytes]:
        at = self._start
        while at < self._end:
            count = min(_PIECE, self._end - at)
            yield read_at(self._file, at, count, self._size, "records")
            at += count
            if progress is not None:
                progress(at)

    def _records(
        self, pieces: Iterator[bytes], window: Window, packed: "_Packed | None", counts: Cells
    ) -> None:
        rest = b""
        skip = 0
        points = np.empty((2 * _PIECE // 16 + 1) * POINT, np.int64)
        layouts: Cells | None = None
        for piece in pieces:
            if skip:
                dropped = min(skip, len(piece))
                piece, skip = piece[dropped:], skip - dropped
            rest += piece
            while len(rest) >= 8:
                kind = int.from_bytes(rest[:4], "little")
                length = int.from_bytes(rest[6:8], "little")
                if kind >= 64:
                    if length < 8:
                        raise DamagedError("a record without a length")
                    if len(rest) < length:
                        break
                    extra = self._special(kind, rest[:length], rest, packed)
                    if extra is None:
                        break  # more of it has to come
                    layouts = None
                    length += extra
                    skip = max(length - len(rest), 0)
                    rest = rest[length:]
                    continue
                if layouts is None:
                    layouts = self._sample_layouts()
                cells = cells_of(rest)
                count = sample_points(
                    cells,
                    len(cells),
                    layouts,
                    self.layouts.kinds,
                    self.layouts.table,
                    int(self.layouts.bare),
                    points,
                    counts,
                )
                window.take(points[: count * POINT].reshape(-1, POINT))
                good = int(counts[GOOD])
                if good < 0:
                    raise DamagedError("a record without a length")
                if good == 0:
                    break
                rest = rest[good:]
        if rest:
            self._counters.truncated += 1

    def _special(
        self, kind: int, record: bytes, rest: bytes, packed: "_Packed | None"
    ) -> int | None:
        """Take a record of perf's own; how many bytes follow it, None if they are not there yet."""
        body = ByteReader(record[8:], "a record")
        if kind == _R_COMPRESSED and packed is not None:
            packed.payload.append(record[8:])
        elif kind == _R_COMPRESSED_2 and packed is not None:
            packed.payload.append(body.take(body.number(8)))
        elif kind == _R_AUXTRACE:
            return body.number(8)
        elif kind == _R_TRACING_DATA:
            length = body.number(4)
            if length > MOST_DESCRIBED:
                raise DamagedError("descriptions of events that are too long")
            if len(rest) < len(record) + length:
                return None
            self._describe(rest[len(record) : len(record) + length])
            return -(-length // 8) * 8
        elif kind == _R_ATTR:
            size = int.from_bytes(record[12:16], "little") if len(record) >= 16 else 0
            if not 64 <= size <= len(record) - 8 or len(self._attributes) >= _MOST_ATTRIBUTES:
                raise DamagedError("an event's attribute of no known size")
            attribute = _attribute(record[8 : 8 + size])
            raw = record[8 + size :]
            attribute.ids = np.frombuffer(raw[: len(raw) // 8 * 8], np.int64).tolist()
            self._attributes.append(attribute)
        return 0


class _Packed:
    """Records that are compressed as one stream: they are kept packed, and unpacked in pieces."""

    def __init__(self) -> None:
        self.payload: list[bytes] = []

    def pieces(self) -> Iterator[bytes]:
        """The records that were compressed, in pieces."""
        # perf flushes its stream and never ends it: an empty last block does (RFC 8878, "Blocks").
        source = pa.BufferReader(b"".join([*self.payload, b"\1\0\0"]))
        try:
            stream = pa.CompressedInputStream(source, "zstd")
            while piece := stream.read(_UNPACKED):
                yield piece
        except (pa.ArrowException, OSError) as error:
            raise DamagedError(f"data that zstd does not unpack ({error})") from None
