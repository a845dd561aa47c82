"""trace-cmd's recordings (`trace.dat`), versions 6 and 7: trace-cmd.dat.v6(5) and .v7(5)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

import numpy as np

from trapgate.trace.imports.assembler import Assembler
from trapgate.trace.imports.formats import Layouts
from trapgate.trace.imports.points import POINT, TIME
from trapgate.trace.imports.raw_events import DAMAGED, EVENTS, FOREIGN, RAW_COUNTS, page_points
from trapgate.trace.imports.reasons import integer
from trapgate.trace.imports.recording import (
    MOST_DESCRIBED,
    ByteReader,
    Cells,
    DamagedError,
    PointStream,
    Progress,
    cells_of,
    merged_by_time,
    read_at,
    unpacked,
)
from trapgate.trace.imports.rows import Counters

MAGIC: Final = b"\x17\x08\x44tracing"

_COMMIT = re.compile(rb"field:\s*local_t commit;\s*offset:\d+;\s*size:([48]);")
_NUMBER = re.compile(r"-?(?:0x[0-9a-f]{1,15}|\d{1,18})")
_MOST_CPUS = 4096
_MOST_SECTIONS = 4096
_MOST_CHUNK = 64 << 20

# Options (and in version 7 sections) by number.
_DONE, _CPUSTAT, _BUFFER, _CLOCK, _OFFSET, _TSC = 0, 2, 3, 4, 7, 14
_HEADER_INFO, _EVENT_FORMATS, _BUFFER_TEXT = 16, 18, 22
_NANOSECONDS: Final = frozenset({"", "local", "global", "mono", "mono_raw", "boot", "tai", "perf"})
"""Clocks that count nanoseconds; others are counters."""


@dataclass
class Buffer:
    """One CPU's pages: where they are in the file."""

    cpu: int
    offset: int
    size: int


@dataclass
class Contents:
    """What a recording's head says. `codec` is that of compressed pages ("none": they are not)."""

    layouts: Layouts = field(default_factory=Layouts)
    long_size: int = 8
    page_size: int = 4096
    codec: str = "none"
    clock: str = ""
    buffers: list[Buffer] = field(default_factory=list)
    text: bytes | None = None
    shift: int = 0
    tsc: tuple[int, int, int] | None = None
    stats: list[str] = field(default_factory=list)


def read_tracing_data(head: ByteReader, contents: Contents) -> None:
    """The descriptions that `trace.dat` of version 6 and perf's recordings have in common."""
    _header_info(head, contents)
    for _ in range(head.number(4)):  # ftrace's own events
        head.take(head.number(8))
    _event_formats(head, contents)
    head.take(head.number(4))  # addresses of functions
    head.take(head.number(4))  # strings of trace_printk()


def _header_info(head: ByteReader, contents: Contents) -> None:
    head.expect(b"header_page\0")
    page = head.take(head.number(8))
    commit = _COMMIT.search(page)
    if commit is not None:
        contents.long_size = int(commit[1])
    head.expect(b"header_event\0")
    head.take(head.number(8))


def _event_formats(head: ByteReader, contents: Contents) -> None:
    for _ in range(head.number(4)):
        system = head.string()
        for _ in range(head.number(4)):
            text = head.take(head.number(8))
            if system == b"kvm":
                contents.layouts.add(text.decode("utf-8", "replace"))


def _initial(head: ByteReader) -> tuple[str, int]:
    """(the version, the page size); what follows the magic number."""
    version = head.string().decode("ascii", "replace")
    if head.number(1):
        raise DamagedError("written on a big-endian host, which runs no x86 guests")
    if head.number(1) not in (4, 8):
        raise DamagedError("no size of a long that any host has")
    page = head.number(4)
    if page & (page - 1) or not 4096 <= page <= 1 << 20:
        raise DamagedError(f"pages of {page} bytes, which no host has")
    return version, page


def contents_of(file: BinaryIO, size: int) -> Contents:
    """What the head of a recording says.

    Raises: DamagedError if it cannot be read.
    """
    head = ByteReader(read_at(file, 0, min(size, MOST_DESCRIBED), size, "the head"), "the head")
    head.expect(MAGIC)
    version, page = _initial(head)
    contents = Contents(page_size=page)
    if version == "6":
        _version_6(head, contents, file, size)
    elif version == "7":
        _version_7(head, contents, file, size)
    else:
        raise DamagedError(f"version {version[:20]!r}; 6 and 7 are known")
    return contents


def _version_6(head: ByteReader, contents: Contents, file: BinaryIO, size: int) -> None:
    read_tracing_data(head, contents)
    head.take(head.number(8))  # names of processes
    cpus = head.number(4)
    if cpus > _MOST_CPUS:
        raise DamagedError(f"{cpus} CPUs, more than there are")
    kind = head.take(10)
    instances: list[int] = []
    if kind == b"options  \0":
        while (option := head.number(2)) != _DONE:
            data = ByteReader(head.take(head.number(4)), "an option")
            if option == _BUFFER and len(instances) < _MOST_CPUS:
                instances.append(data.number(8))
            else:
                _option(option, data, contents)
        kind = head.take(10)
    if kind == b"latency  \0":
        contents.text = head.data[head.at :]
        return
    if kind != b"flyrecord\0":
        raise DamagedError("no list of buffers in the head")
    contents.buffers = [Buffer(n, head.number(8), head.number(8)) for n in range(cpus)]
    # Buffers of instances (trace-cmd record -B) have lists of their own.
    for offset in instances:
        what = "an instance's list of buffers"
        part = ByteReader(read_at(file, offset, 10 + 16 * cpus, size, what), what)
        part.expect(b"flyrecord\0")
        if len(contents.buffers) + cpus > _MOST_CPUS:
            raise DamagedError("more buffers than there are CPUs")
        contents.buffers += [Buffer(n, part.number(8), part.number(8)) for n in range(cpus)]


def _option(option: int, data: ByteReader, contents: Contents) -> None:
    """An option that both versions have."""
    text = data.data.rstrip(b"\0").decode("utf-8", "replace")
    if option == _CLOCK:
        chosen = re.search(r"\[([\w-]+)\]", text)
        contents.clock = chosen[1] if chosen else text.strip()[:40]
    elif option == _CPUSTAT:
        contents.stats.append(text)
    elif option == _OFFSET and _NUMBER.fullmatch(text.strip()):
        contents.shift = integer(text.strip())
    elif option == _TSC and len(data.data) >= 16:
        contents.tsc = data.number(4), data.number(4), data.number(8)


def _version_7(head: ByteReader, contents: Contents, file: BinaryIO, size: int) -> None:
    contents.codec = head.string().decode("ascii", "replace")[:20]
    head.string()
    offset = head.number(8)
    places: dict[int, int] = {}
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < _MOST_SECTIONS:
        seen.add(offset)
        options = _section(file, size, offset, contents)
        offset = 0
        while options.at < len(options.data):
            option, length = options.number(2), options.number(4)
            data = ByteReader(options.take(length), "an option")
            if option == _DONE:
                offset = data.number(8) if length >= 8 else 0
                break
            if option == _BUFFER:
                _buffer(data, contents)
            elif option >= 15 and length >= 8:
                places.setdefault(option, data.number(8))
            else:
                _option(option, data, contents)
    if _HEADER_INFO in places:
        _header_info(_section(file, size, places[_HEADER_INFO], contents), contents)
    if _EVENT_FORMATS in places:
        _event_formats(_section(file, size, places[_EVENT_FORMATS], contents), contents)
    if not contents.buffers and _BUFFER_TEXT in places:
        contents.text = _section(file, size, places[_BUFFER_TEXT], contents).data


def _buffer(data: ByteReader, contents: Contents) -> None:
    data.number(8)
    data.string()
    contents.clock = data.string().decode("ascii", "replace")[:40] or contents.clock
    page = data.number(4)
    if not page & (page - 1) and 4096 <= page <= 1 << 20:
        contents.page_size = page
    for _ in range(data.number(4)):
        if len(contents.buffers) >= _MOST_CPUS:
            raise DamagedError("more buffers than there are CPUs")
        contents.buffers.append(Buffer(data.number(4), data.number(8), data.number(8)))


def _section(file: BinaryIO, size: int, offset: int, contents: Contents) -> ByteReader:
    """A section of version 7, decompressed."""
    head = ByteReader(read_at(file, offset, 16, size, "a section"), "a section")
    number, flags = head.number(2), head.number(2)
    head.number(4)
    length = head.number(8)
    if length > MOST_DESCRIBED:
        raise DamagedError(f"section {number} of {length} bytes, more than a description takes")
    data = read_at(file, offset + 16, length, size, f"section {number}")
    if flags & 1:
        packed = ByteReader(data, f"section {number}")
        short, whole = packed.number(4), packed.number(4)
        if whole > MOST_DESCRIBED:
            raise DamagedError(f"section {number} of {whole} bytes, more than a description takes")
        data = unpacked(packed.take(short), whole, contents.codec)
    return ByteReader(data, f"section {number}")


class TraceDat:
    """Reads a recording: pages of all CPUs, put in order of time."""

    def __init__(self, file: BinaryIO, size: int, counters: Counters, assembler: Assembler) -> None:
        self.contents = contents_of(file, size)
        self._file = file
        self._size = size
        self._counters = counters
        self._assembler = assembler
        counters.remarks += self.contents.layouts.remarks

    @property
    def unit(self) -> str:
        """What times count."""
        contents = self.contents
        return "ns" if contents.clock in _NANOSECONDS or contents.tsc else "ticks"

    def read(self, progress: Progress | None) -> None:
        """Read it all."""
        contents, counters = self.contents, self._counters
        stream = PointStream(contents.layouts, self._assembler)
        done = 0
        streams = [self._points(buffer) for buffer in contents.buffers if buffer.size]
        for told in merged_by_time(streams):
            stream.add(self._timed(told))
            done += len(told) * 64
            if progress is not None:
                progress(min(done, self._size))
        self._assembler.end()
        overrun = sum(
            int(found[1])
            for stat in contents.stats
            if (found := re.search(r"^(?:overrun|dropped events): (\d{1,15})$", stat, re.MULTILINE))
        )
        if overrun and not counters.lost:
            counters.lost = overrun
            counters.remarks.append(
                f"{overrun:,} events were overwritten before they could be recorded"
            )

    def _timed(self, told: Cells) -> Cells:
        contents = self.contents
        if contents.tsc is not None and contents.clock not in _NANOSECONDS:
            multiplier, shift, offset = contents.tsc
            times = told[:, TIME].astype(np.uint64)
            factor, shift = np.uint64(multiplier), min(shift, 32)
            high, low = times >> np.uint64(32), times & np.uint64(0xFFFFFFFF)
            high, low = high * factor << np.uint64(32 - shift), low * factor >> np.uint64(shift)
            told[:, TIME] = (high + low).astype(np.int64) - offset
        if contents.shift:
            told[:, TIME] += contents.shift
        return told

    def _points(self, buffer: Buffer) -> Iterator[Cells]:
        """The points of one CPU, a few pages at a time."""
        contents, counters = self.contents, self._counters
        counts = np.zeros(RAW_COUNTS, np.int64)
        page = contents.page_size
        points = np.empty((page // 8 + 2) * POINT, np.int64)
        try:
            for data in self._pieces(buffer):
                if len(data) % page:
                    counters.truncated += 1
                made = []
                cells = cells_of(data)
                for start in range(0, len(data), page):
                    piece = cells[start : start + page]
                    count = page_points(
                        piece,
                        len(piece),
                        contents.long_size,
                        buffer.cpu,
                        contents.layouts.kinds,
                        contents.layouts.table,
                        int(contents.layouts.bare),
                        points,
                        counts,
                    )
                    if count:
                        made.append(points[: count * POINT].reshape(-1, POINT).copy())
                if made:
                    yield np.concatenate(made)
        except DamagedError as error:
            counters.truncated += 1
            counters.remarks.append(f"CPU {buffer.cpu}: {error}; what follows there is not read")
        counters.lines += int(counts[EVENTS])
        counters.foreign += int(counts[FOREIGN])
        counters.truncated += int(counts[DAMAGED])

    def _pieces(self, buffer: Buffer) -> Iterator[bytes]:
        """The pages of one CPU, decompressed."""
        size, offset = buffer.size, buffer.offset
        if offset >= self._size:
            raise DamagedError("its pages lie beyond the file's end")
        if offset + size > self._size:
            size = self._size - offset
            self._counters.truncated += 1
        if self.contents.codec == "none" or not self._is_packed():
            step = 16 * self.contents.page_size
            for start in range(offset, offset + size, step):
                yield read_at(
                    self._file, start, min(step, offset + size - start), self._size, "a page"
                )
            return
        count = ByteReader(read_at(self._file, offset, 4, self._size, "chunks"), "chunks").number(4)
        at = offset + 4
        for _ in range(count):
            if at + 8 > offset + size:
                raise DamagedError("fewer chunks than announced")
            head = ByteReader(read_at(self._file, at, 8, self._size, "a chunk"), "a chunk")
            short, whole = head.number(4), head.number(4)
            if whole > _MOST_CHUNK or short > _MOST_CHUNK:
                raise DamagedError(f"a chunk of {max(short, whole)} bytes")
            data = read_at(self._file, at + 8, short, self._size, "a chunk")
            yield unpacked(data, whole, self.contents.codec)
            at += 8 + short

    def _is_packed(self) -> bool:
        return self.contents.codec not in ("", "none")
