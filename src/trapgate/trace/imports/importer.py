"""One foreign trace in, one fault trace out."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from trapgate.trace.draft import draft
from trapgate.trace.imports import bochs, histogram, kvm, perf_data, qemu, trace_dat
from trapgate.trace.imports.assembler import Assembler
from trapgate.trace.imports.recording import DamagedError
from trapgate.trace.imports.rows import Counters, RowWriter
from trapgate.trace.imports.unknown import RECORD, no_event_error
from trapgate.trace.schema import TIME_UNIT, WEIGHTED, TraceError

FORMATS: Final = (
    *("auto", "trace-dat", "perf-data", "trace-cmd", "ftrace", "perf-script", "qemu", "bochs"),
    "bpftrace",
)
"""The formats that can be asked for; `auto` looks at the first lines."""

_PIECE = 1 << 19
"""Bytes that are read at a time."""


class Reader(Protocol):
    """Turns text of one format into events."""

    unread: bytes | None
    """The first line that was of no use."""

    @property
    def unit(self) -> str:
        """What times count."""
        ...

    def take(self, piece: bytes) -> None:
        """Take whole lines."""
        ...

    def end(self) -> None:
        """No more lines."""
        ...


def _reader(found: str, counters: Counters, writer: RowWriter) -> Reader:
    if found == "qemu":
        return qemu.QemuReader(counters, writer.add)
    if found == "bpftrace":
        return histogram.HistogramReader(counters, writer.add)
    if found == "bochs":
        return bochs.BochsReader(counters, writer.add)
    return kvm.KvmText(counters, Assembler(counters, writer))


@dataclass(frozen=True)
class Imported:
    """What an import did: the trace it wrote, the format it found, and what it counted."""

    path: Path
    format: str
    time_unit: str
    counters: Counters

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "trace": str(self.path),
            "format": self.format,
            "time_unit": self.time_unit,
            **asdict(self.counters),
            "posted": [list(one) for one in sorted(self.counters.posted)],
        }


def import_trace(
    source: Path,
    out: Path,
    *,
    format: str = "auto",  # noqa: A002 (what the command line calls it)
    progress: Callable[[int], None] | None = None,
) -> Imported:
    """Read the foreign trace `source` and write the fault trace `out`; memory stays flat.

    `progress` is told now and then how many bytes have been read.

    Raises: TraceError if `source` cannot be read or holds no event, or `out` cannot be
    written; ValueError for an unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; give one of {', '.join(FORMATS)}")
    try:
        if not source.is_file():
            problem = "not a regular file" if source.exists() else "no such file"
            raise TraceError(str(source), problem, "give a file with a recorded trace")
        with source.open("rb") as file:
            binary = _binary(file) if format in ("auto", "trace-dat", "perf-data") else None
            if binary is not None:
                return _copy_binary(source, file, out, binary, progress)
            if format in ("trace-dat", "perf-data"):
                problem = f"no {format.replace('-', '.')} (it does not begin like one)"
                raise TraceError(str(source), problem, "leave --format out")
            found = format if format != "auto" else _recognised(source, file)
            file.seek(0)
            return _copy(source, file, out, found, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(str(source), f"cannot be read ({reason})", "give another file") from None


def _binary(file: BinaryIO) -> str | None:
    """The name of the binary format that the file begins like."""
    file.seek(0)
    magic = file.read(16)
    file.seek(0)
    if magic.startswith(trace_dat.MAGIC):
        return "trace-dat"
    return "perf-data" if magic.startswith((perf_data.MAGIC, perf_data.SWAPPED)) else None


def _copy_binary(
    source: Path,
    file: BinaryIO,
    out: Path,
    found: str,
    progress: Callable[[int], None] | None,
) -> Imported:
    counters = Counters()
    size = source.stat().st_size
    with draft(out, "trace") as temporary, RowWriter(temporary) as writer:
        assembler = Assembler(counters, writer)
        try:
            make = trace_dat.TraceDat if found == "trace-dat" else perf_data.PerfData
            reader = make(file, size, counters, assembler)
            text = getattr(getattr(reader, "contents", None), "text", None)
            if text is not None:
                lines = kvm.KvmText(counters, assembler)
                lines.take(text[: text.rfind(b"\n") + 1])
                lines.end()
                unit = lines.unit
            else:
                reader.read(progress)
                unit = reader.unit if assembler.timed else "events"
        except DamagedError as error:
            problem = f"a damaged recording of {found.replace('-', '.')}: {error}"
            raise TraceError(str(source), problem, "record it again") from None
        counters.rows = writer.taken
        if not counters.rows:
            what = f"{found.replace('-', '.')} with {counters.lines:,} events"
            remarks = "".join(f"; {remark}" for remark in counters.remarks)
            raise TraceError(
                str(source), f"{what}, none of them KVM's exits or injections{remarks}", RECORD
            )
        writer.finish({"source": source.name, "format": found, TIME_UNIT: unit} | counters.facts())
    return Imported(out, found, unit, counters)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    """The file in pieces of whole lines; the last may lack its end."""
    rest = b""
    while piece := file.read(_PIECE):
        rest += piece
        end = rest.rfind(b"\n") + 1
        if end == 0 and len(rest) > _PIECE:
            end = len(rest)  # no line of a trace is so long
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


_SIGNS: Final = (
    ("kvm", kvm.SIGN),
    ("qemu", qemu.SIGN),
    ("bochs", bochs.SIGN),
    ("bpftrace", histogram.SIGN),
)


def _recognised(source: Path, file: BinaryIO) -> str:
    beginning = b""
    first: bytes | None = None
    for piece in _pieces(file):
        beginning = beginning or piece[:65536]
        if first is None:
            first = next((line for line in piece.splitlines() if line.strip()), None)
        found = [
            (match.start(), name, match) for name, sign in _SIGNS if (match := sign.search(piece))
        ]
        if found:
            _, name, match = min(found, key=lambda one: one[0])
            if name != "kvm":
                return name
            start = piece.rfind(b"\n", 0, match.end()) + 1
            end = piece.find(b"\n", match.end())
            return kvm.format_of(piece[start : end if end >= 0 else None])
    raise no_event_error(source, beginning, first)


def _copy(
    source: Path,
    file: BinaryIO,
    out: Path,
    found: str,
    progress: Callable[[int], None] | None,
) -> Imported:
    counters = Counters()
    beginning = b""
    with draft(out, "trace") as temporary, RowWriter(temporary) as writer:
        reader = _reader(found, counters, writer)
        done = 0
        for piece in _pieces(file):
            done += len(piece)
            beginning = beginning or piece[:65536]
            end = piece.rfind(b"\n") + 1
            if end != len(piece) and len(piece) <= _PIECE:
                # Where the line was cut cannot be told: a number may lack its last digits.
                counters.truncated += 1
                counters.lines += 1
                piece = piece[:end]
            if piece:
                reader.take(piece)
            if progress is not None:
                progress(done)
        reader.end()
        counters.rows = writer.taken
        if not counters.rows:
            raise no_event_error(source, beginning, reader.unread or b"(entries alone)")
        facts = {"source": source.name, "format": found, TIME_UNIT: reader.unit}
        if found == "bpftrace":
            facts[WEIGHTED] = "yes"
        writer.finish(facts | counters.facts())
    return Imported(out, found, reader.unit, counters)
