"""Which control causes each exit, what turning it off would save, and what would be lost.

Exceptions have filters, which `replay` judges. Every other exit has a control of its own
(SDM, "VM-Execution Control Fields"), or none: those happen always. What a trace does not
tell (which MSR, say) is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trapgate.trace.frames import count, is_weighted, lost_events, polars, reading, scan, time_unit
from trapgate.trace.selection import EVERYTHING, Selection

if TYPE_CHECKING:
    from polars import DataFrame, Expr


@dataclass(frozen=True)
class Control:
    """A control: which exits it causes, what goes when it is off, what cannot be told."""

    name: str
    reasons: tuple[str, ...]
    lost: str
    unknown: str = ""
    savable: bool = True


CONTROLS: Final = (
    Control(
        "exception bitmap, page-fault mask and match",
        ("EXCEPTION_NMI", "* excp", "EXIT_EXCP_*"),
        "the exceptions of those vectors and codes, which --policy judges one by one",
    ),
    Control(
        "external-interrupt exiting",
        ("EXTERNAL_INTERRUPT", "interrupt", "EXIT_INTR"),
        "the host's interrupts: the guest would take them",
        "which are posted interrupts",
        savable=False,
    ),
    Control(
        "interrupt-window exiting",
        ("INTERRUPT_WINDOW", "vintr", "EXIT_VINTR"),
        "the moment at which a waiting interrupt can be injected (virtual-interrupt delivery "
        "needs none)",
    ),
    Control(
        "NMI-window exiting", ("NMI_WINDOW",), "the moment at which a waiting NMI can be injected"
    ),
    Control(
        "HLT exiting",
        ("HLT", "hlt", "idle_hlt", "EXIT_HLT"),
        "the processor, while the guest idles: others cannot run on it",
    ),
    Control(
        "MWAIT and MONITOR exiting",
        ("MWAIT_INSTRUCTION", "MONITOR_INSTRUCTION", "mwait", "monitor", "EXIT_MWAIT"),
        "the processor, while the guest idles, and how deep it sleeps",
    ),
    Control(
        "PAUSE exiting, PAUSE-loop exiting",
        ("PAUSE_INSTRUCTION", "pause", "EXIT_PAUSE"),
        "lock holders that are preempted: the guest spins. A larger PLE_Window or a smaller "
        "PLE_Gap saves part of it",
        "the window and the gap in force, and how long each loop would have been",
    ),
    Control(
        "INVLPG exiting",
        ("INVLPG", "invlpg", "INVPCID", "invpcid", "EXIT_INVLPG"),
        "shadow page tables: with EPT nothing needs it",
    ),
    Control(
        "RDTSC exiting",
        ("RDTSC", "RDTSCP", "rdtsc", "rdtscp", "EXIT_RDTSC"),
        "a TSC that the VMM makes up; TSC offsetting and scaling keep most of it",
    ),
    Control("RDPMC exiting", ("RDPMC", "rdpmc"), "performance counters that the VMM makes up"),
    Control(
        "TPR threshold, use TPR shadow",
        ("TPR_BELOW_THRESHOLD", "write_cr8", "EXIT_WRITE_CR8"),
        "interrupts that wait for a lower task priority",
        "the threshold in force",
    ),
    Control(
        "VMX-preemption timer",
        ("PREEMPTION_TIMER",),
        "the deadline that it was set for; a host timer costs an exit, too",
        "the deadlines: whether an exit for another reason came in time",
    ),
    Control(
        "I/O bitmaps, unconditional I/O exiting",
        ("IO_INSTRUCTION", "io", "EXIT_IOIO"),
        "the devices behind those ports: the guest would reach the host's",
    ),
    Control(
        "MSR bitmaps",
        ("MSR_READ", "MSR_WRITE", "msr", "EXIT_MSR"),
        "what the VMM does at those MSRs (APIC registers need APIC-register virtualization)",
        "which MSRs: record kvm_msr besides",
    ),
    Control(
        "CR0 and CR4 masks and read shadows, CR3-load and CR8 exiting, CR3-target values",
        ("CR_ACCESS", "read_cr*", "write_cr*", "cr0_sel_write", "EXIT_*CR*"),
        "those bits of CR0 and CR4; with shadow page tables the guest's CR3",
        "the values written: whether a mask bit less, or a CR3 target, would do",
    ),
    Control(
        "MOV-DR exiting",
        ("DR_ACCESS", "read_dr*", "write_dr*"),
        "debug registers that the VMM keeps",
    ),
    Control(
        "EPT entries: presence and write protection",
        ("EPT_VIOLATION", "npf", "EXIT_NPF"),
        "pages that are filled late, dirty logging, and devices behind pages",
        "what the pages are for: huge pages save first touches, PML the logging",
    ),
    Control(
        "EPT misconfiguration as a mark of MMIO",
        ("EPT_MISCONFIG",),
        "emulated devices; ioeventfd and virtio make them fewer",
        savable=False,
    ),
    Control(
        "descriptor-table exiting", ("GDTR_IDTR", "LDTR_TR", "*_gdtr", "*_idtr"), "UMIP's emulation"
    ),
    Control("WBINVD exiting", ("WBINVD", "wbinvd"), "caches of devices that do not snoop"),
    Control(
        "virtual-APIC: APIC-access page, APIC-register virtualization",
        ("APIC_ACCESS", "APIC_WRITE", "EOI_INDUCED", "avic_*"),
        "the local APIC's side effects that hardware does not carry out",
    ),
    Control("enable PML", ("PML_FULL",), "dirty logging: write protection costs an exit a page"),
    Control("monitor trap flag", ("MONITOR_TRAP_FLAG",), "single steps"),
    Control("RDRAND, RDSEED exiting", ("RDRAND", "RDSEED"), "random numbers that the VMM makes up"),
)
"""Exit reasons in the words of Intel's and AMD's hosts; a star stands for anything."""

ALWAYS: Final = Control("none: always exits", (), "nothing: no control turns it off", savable=False)

TOP: Final = 5


@dataclass(frozen=True)
class ControlLine:
    """A control's exits, the time they took (None if the trace has none), and what turning it
    off would save and lose. `details` are the commonest accesses; `reflected` exits belong
    to the hypervisor above and are not `savable`.
    """

    control: str
    reasons: tuple[str, ...]
    exits: int
    reflected: int
    savable: int
    time: int | None
    savable_time: int | None
    lost: str
    unknown: str
    details: tuple[tuple[str, int], ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ControlReport:
    """All exits of a trace by the control that causes them."""

    lines: tuple[ControlLine, ...]
    time_unit: str
    lost_events: int

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "time_unit": self.time_unit,
            "lost_events": self.lost_events,
            "controls": [line.as_json() for line in self.lines],
        }


def control_of(word: str) -> Control:
    """The control that causes exits for a reason, by the host's word."""
    from fnmatch import fnmatchcase

    first = word.partition(" ")[0]
    for control in CONTROLS:
        for pattern in control.reasons:
            if fnmatchcase(word, pattern) or fnmatchcase(first, pattern):
                return control
    return ALWAYS


def by_control(paths: Sequence[Path], chosen: Selection = EVERYTHING) -> ControlReport:
    """The `chosen` exits of traces by the control that causes them, the costliest first.

    Raises: TraceError for files that are no traces.
    """
    pl = polars()
    unit = time_unit(paths)
    with reading(paths):
        lazy = scan(paths, chosen).filter(pl.col("disposition") == "EXIT")
        word = pl.coalesce(pl.col("exit_reason").cast(pl.String), pl.col("reason").cast(pl.String))
        cells = (
            lazy.group_by(
                word.alias("word"),
                _detail().alias("detail"),
                pl.col("reflected").fill_null(value=False).alias("reflected"),
            )
            .agg(
                count(weighted=is_weighted(paths)).cast(pl.Int64).alias("count"),
                pl.col("latency").sum().cast(pl.Int64).alias("time"),
                pl.col("latency").count().cast(pl.Int64).alias("timed"),
            )
            .collect(engine="streaming")
        )
    return ControlReport(tuple(_lines(cells)), unit, lost_events(paths))


def _detail() -> Expr:
    """What an exit's qualification says of the access (SDM, "Exit Qualification")."""
    pl = polars()
    word, value = pl.col("exit_reason").cast(pl.String), pl.col("qualification")
    port = pl.format("port {}", (value // 65536) % 65536)
    register = value % 16
    kind = (value // 16) % 4
    register_word = (
        pl.when(kind == 0).then(pl.format("MOV to CR{}", register))
        .when(kind == 1).then(pl.format("MOV from CR{}", register))
        .when(kind == 2).then(pl.lit("CLTS"))
        .otherwise(pl.lit("LMSW"))
    )  # fmt: skip
    detail: Expr = (
        pl.when(word == "IO_INSTRUCTION").then(port)
        .when(word == "CR_ACCESS").then(register_word)
        .otherwise(pl.col("access").cast(pl.String))
    )  # fmt: skip
    return detail


def _lines(cells: DataFrame) -> list[ControlLine]:
    found: dict[str, list[dict[str, Any]]] = {}
    controls: dict[str, Control] = {}
    for row in cells.iter_rows(named=True):
        control = control_of(row["word"])
        controls[control.name] = control
        found.setdefault(control.name, []).append(row)
    lines = []
    for name, rows in found.items():
        control = controls[name]
        mine = [row for row in rows if not row["reflected"]]
        exits, kept = sum(r["count"] for r in rows), sum(r["count"] for r in mine)
        timed = any(row["timed"] for row in rows)
        details: dict[str, int] = {}
        for row in rows:
            if row["detail"] is not None:
                details[row["detail"]] = details.get(row["detail"], 0) + row["count"]
        top = sorted(details.items(), key=lambda item: (-item[1], item[0]))[:TOP]
        lines.append(
            ControlLine(
                name,
                tuple(sorted({row["word"] for row in rows})),
                exits,
                exits - kept,
                kept if control.savable else 0,
                sum(row["time"] for row in rows) if timed else None,
                sum(row["time"] for row in mine) * control.savable if timed else None,
                control.lost,
                control.unknown,
                tuple(top),
            )
        )
    return sorted(lines, key=lambda line: (-(line.time or 0), -line.exits, line.control))
