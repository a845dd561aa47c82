"""`python -m benchmarks.traces [--megabytes N] [--runs N]`: import, many policies, a report.

The text is made here, as `trace-cmd report` prints it: exits of four vCPUs, two in five of
them page faults. Rates are of processor time, so that they are those of one core.
"""

import argparse
import os
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("POLARS_MAX_THREADS", "1")  # read when polars is imported

from rich.console import Console

from benchmarks.measure import Benchmark, measure
from trapgate.replay import Policy, replay
from trapgate.report import report
from trapgate.trace.imports import import_trace

EXITS = (
    *("HLT", "MSR_WRITE", "EXTERNAL_INTERRUPT", "EPT_VIOLATION", "IO_INSTRUCTION", "CR_ACCESS"),
    *["EXCEPTION_NMI"] * 4,
)
LINE = re.compile(
    r"^\s*(?P<comm>.+)-(?P<thread>\d+)\s+\[(?P<cpu>\d+)\]\s+(?P<time>\d+\.\d+):\s+(?P<event>\w+):\s+"
    r"(?P<body>.*)$"
)
POLICIES = [
    Policy.of(f"{mask:#x}", vectors=[14], mask=mask, match=match)
    for mask, match in ((1, 0), (1, 1), (2, 2), (3, 3), (4, 0), (4, 4), (5, 5), (7, 7))
]


def text(path: Path, megabytes: int) -> None:
    """Write the text: one piece, again and again, later each time."""
    source = random.Random(1)
    with path.open("w", encoding="ascii") as file:
        microseconds = 1_000_000
        while file.tell() < megabytes * 1_000_000:
            lines = []
            for _ in range(5000):
                vcpu, reason = source.randrange(4), source.choice(EXITS)
                microseconds += source.randrange(1, 9)
                rip = 0xFFFFFFFF81000000 + source.randrange(4096) * 16
                fault = reason == "EXCEPTION_NMI"
                code = source.choice((0, 2, 4, 6, 7)) if fault else 0
                head = f" qemu-system-x86-{4001 + vcpu:<5} [{vcpu:03}] "
                lines.append(
                    f"{head}{microseconds / 1e6:.6f}: kvm_exit:             vcpu {vcpu} reason "
                    f"{reason} rip 0x{rip:x} info1 0x{source.randrange(1 << 40):016x} info2 "
                    f"0x0000000000000000 intr_info 0x{0x80000B0E if fault else 0:08x} "
                    f"error_code 0x{code:08x}\n"
                    f"{head}{microseconds / 1e6 + 1e-6:.6f}: kvm_entry:            vcpu {vcpu}, "
                    f"rip 0x{rip:x}\n"
                )
            file.writelines(lines)


def used(work: Callable[[], object]) -> float:
    """The processor time of a piece of work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def by_lines(path: Path) -> int:
    """The least that a reader in Python does: a line's head, by a regular expression."""
    with path.open(encoding="ascii") as file:
        return sum(LINE.match(line) is not None for line in file)


def benchmarks(folder: Path, megabytes: int) -> list[Benchmark]:
    """All of them."""
    source, trace = folder / "trace.txt", folder / "trace.parquet"
    text(source, megabytes)
    size = source.stat().st_size / 1e6
    imported = Benchmark(
        "trace-import", "text of KVM's exits, one core", "MB/s", "higher", "60 MB/s"
    )
    imported.side("trapgate")(lambda: size / used(lambda: import_trace(source, trace)))
    imported.side("a regular expression a line")(lambda: size / used(lambda: by_lines(source)))

    many = Benchmark("replay-several", "8 policies on that trace", "s", "lower", "8 single passes")
    many.side("trapgate, one pass")(lambda: used(lambda: replay([trace], POLICIES)))
    many.side("trapgate, a pass each")(
        lambda: used(lambda: [replay([trace], [policy]) for policy in POLICIES])
    )
    page = Benchmark("report", "a page about that trace, two policies", "s", "lower", "60 s a GB")
    page.side("trapgate")(
        lambda: used(lambda: report([trace], folder / "page.html", policies=POLICIES[:2]))
    )
    return [imported, many, page]


def main() -> int:
    """Measure and print; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="of the text")
    parser.add_argument("--runs", type=int, default=3, help="of each side")
    options = parser.parse_args()
    from benchmarks.__main__ import table_of

    with TemporaryDirectory() as folder:
        found = benchmarks(Path(folder), options.megabytes)
        Console().print(table_of([(one, measure(one, runs=options.runs)) for one in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
