"""One foreign trace in, one fault trace out."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from trapgate.trace.draft import draft
from trapgate.trace.imports import bochs, kvm, qemu
from trapgate.trace.imports.rows import Counters, RowWriter, Sink
from trapgate.trace.schema import TIME_UNIT, TraceError

FORMATS: Final = ("auto", "trace-cmd", "ftrace", "perf-script", "qemu", "bochs")
"""The formats that can be asked for; `auto` looks at the first lines."""

_LONGEST_LINE = 1 << 16
_STEP = 1 << 20
_SHOWN = 120


class Reader(Protocol):
    """Turns the lines of one format into events."""

    unit: str

    def line(self, line: str) -> bool:
        """Take a line; False if it names an event but cannot be read."""
        ...

    def end(self) -> None:
        """No more lines."""
        ...


_READERS: Final[dict[str, Callable[[Counters, Sink], Reader]]] = {
    "trace-cmd": kvm.KvmReader,
    "ftrace": kvm.KvmReader,
    "perf-script": kvm.KvmReader,
    "qemu": qemu.QemuReader,
    "bochs": bochs.BochsReader,
}


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
            raise TraceError(str(source), problem, "give a file with a trace as text")
        with source.open("rb") as file:
            found = format if format != "auto" else _recognised(source, file)
            file.seek(0)
            return _copy(source, file, out, found, progress)
    except OSError as error:
        reason = error.strerror or str(error)
        raise TraceError(str(source), f"cannot be read ({reason})", "give another file") from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    # A line of a trace is short; what is longer is no trace, and must not fill the memory.
    while line := file.readline(_LONGEST_LINE):
        yield line


def _recognised(source: Path, file: BinaryIO) -> str:
    first: str | None = None
    recognisers = (kvm.recognise, qemu.recognise, bochs.recognise)
    for raw in _lines(file):
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if first is None and line.strip():
            first = line
        for recognise in recognisers:
            if found := recognise(line):
                return found
    raise _nothing(source, first)


def _nothing(source: Path, first: str | None) -> TraceError:
    if first is None:
        return TraceError(str(source), "the file is empty", "record the trace again")
    shown = " ".join(first.split())
    shown = "".join(c if c.isprintable() else "?" for c in shown[:_SHOWN])
    return TraceError(
        str(source),
        f"no event of a guest in it; the first line that is none: {shown}",
        "record kvm:kvm_exit and kvm:kvm_entry, and give the text",
    )


def _copy(
    source: Path,
    file: BinaryIO,
    out: Path,
    found: str,
    progress: Callable[[int], None] | None,
) -> Imported:
    counters = Counters()
    unread: str | None = None
    with draft(out, "trace") as temporary, RowWriter(temporary) as writer:
        reader = _READERS[found](counters, writer.add)
        told = done = 0
        for raw in _lines(file):
            counters.lines += 1
            done += len(raw)
            if progress is not None and done - told >= _STEP:
                told = done
                progress(done)
            if not raw.endswith(b"\n") and len(raw) < _LONGEST_LINE:
                # Where the line was cut cannot be told: a number may lack its last digits.
                counters.truncated += 1
                continue
            line = raw.decode("utf-8", "replace").rstrip()
            before = counters.foreign
            if line and not reader.line(line):
                counters.unreadable += 1
                unread = unread or line
            elif counters.foreign > before and line and not line.startswith("#"):
                unread = unread or line
        reader.end()
        if progress is not None:
            progress(done)
        counters.rows = writer.taken
        if not counters.rows:
            raise _nothing(source, unread or "(entries alone)")
        facts = {"source": source.name, "format": found, TIME_UNIT: reader.unit}
        writer.finish(facts | counters.facts())
    return Imported(out, found, reader.unit, counters)
