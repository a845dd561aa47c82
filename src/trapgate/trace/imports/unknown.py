"""What a file is that holds no event of a guest, and how to record what is needed."""

import re
from pathlib import Path
from typing import Final

from trapgate.trace.schema import TraceError

RECORD: Final = (
    "record with trace-cmd record -e kvm (or perf record -e 'kvm:*' -a); give trace.dat itself"
)
_LONGEST = 120

_MAGICS: Final[tuple[tuple[bytes, str, str], ...]] = (
    (b"\x1f\x8b", "a file compressed by gzip", "unpack it: gunzip FILE"),
    (b"\x28\xb5\x2f\xfd", "a file compressed by zstd", "unpack it: unzstd FILE"),
    (b"\xfd7zXZ", "a file compressed by xz", "unpack it: unxz FILE"),
    (b"BZh", "a file compressed by bzip2", "unpack it: bunzip2 FILE"),
    (b"PK\x03\x04", "a zip archive", "unpack it: unzip FILE"),
    (b"PAR1", "a Parquet file", "it needs no import: trapgate trace stat FILE"),
    (b"\x7fELF", "a program (ELF)", RECORD),
    (b"\xc1\x1f\xfc\xc1", "a CTF stream of LTTng's", RECORD),
)

_TEXTS: Final[tuple[tuple[re.Pattern[bytes], str, str], ...]] = (
    (
        re.compile(rb"kvm_exit:\s+(?:ret:|TRAP:|IRQ:|reason.*HSR_EC)|HSR_EC"),
        "KVM's events of an arm64 host",
        "only x86 hosts are read",
    ),
    (
        re.compile(rb"^\s*Analyze events for all VMs|^\s*VM-EXIT\s+Samples", re.MULTILINE),
        "the table of perf kvm stat report",
        "give the recording it was made from (perf.data.guest)",
    ),
    (
        re.compile(rb"Performance counter stats for"),
        "counts of perf stat, which have no events",
        RECORD,
    ),
    (
        re.compile(rb"^# Overhead|^# Samples:", re.MULTILINE),
        "a profile of perf report",
        "give perf.data itself, recorded with perf record -e 'kvm:*' -a",
    ),
    (
        re.compile(rb"\[\d{3}\][^\n]{0,40}\d+\.\d{6,9}:\s+(?:\w+:)?\w+:"),
        "a trace of other trace points than KVM's",
        RECORD,
    ),
    (
        re.compile(rb"^\d{5,19}[a-z]\[", re.MULTILINE),
        "a log of Bochs without the CPU's events",
        "have it report them: debug: action=report, cpu: in bochsrc",
    ),
    (
        re.compile(rb"^(?:EAX|RAX)=[0-9a-f]{8}", re.MULTILINE),
        "a log of QEMU without interrupts",
        "log them: qemu-system-x86_64 -d int -D FILE",
    ),
)


def no_event_error(source: Path, beginning: bytes, unread: bytes | None) -> TraceError:
    """The error about a file without events: what it is, and what to do.

    `beginning` is the file's, `unread` the first line that could have been one of a trace.
    """
    if not beginning:
        return TraceError(str(source), "the file is empty", "record the trace again")
    for magic, what, remedy in _MAGICS:
        if beginning.startswith(magic):
            return TraceError(str(source), f"{what} without an event of a guest", remedy)
    shown = ""
    if unread:
        text = " ".join(unread.decode("utf-8", "replace").split())
        text = "".join(sign if sign.isprintable() else "?" for sign in text[:_LONGEST])
        shown = f"; the first other line: {text}"
    for pattern, what, remedy in _TEXTS:
        if pattern.search(beginning):
            problem = f"contains no event of a guest, it looks like {what}{shown}"
            return TraceError(str(source), problem, remedy)
    return TraceError(str(source), f"contains no event of a guest{shown}", RECORD)
