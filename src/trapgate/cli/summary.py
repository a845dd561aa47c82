"""What became of a run, as tables for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trapgate.cli.terminal import vector_name

if TYPE_CHECKING:
    from rich.console import Console as Terminal
    from rich.table import Table

    from trapgate.sdm.reasons import ExitReason
    from trapgate.vmm.summary import Counts, EventKind, Summary, TableWrites

    Events = Mapping[EventKind, Counts]
    Injected = Mapping[EventKind, Mapping[int, int]]


def summary_json(summary: Summary) -> dict[str, Any]:
    """A run's summary as JSON values; `x86_vmm` is there if the guest was a VMM itself."""
    nested = summary.nested
    answer: dict[str, Any] = {
        "engine": summary.engine,
        **({"why_not_native": summary.why_not_native} if summary.why_not_native else {}),
        "instructions": summary.instructions,
        "halted": summary.halted,
        **({"resets": summary.resets} if summary.resets else {}),
        "seconds": round(summary.seconds, 6),
        **_events_json(summary.events, summary.injected),
        "exits": {reason.name: count for reason, count in summary.exits.items()},
    }
    if summary.table_writes is not None:
        writes = summary.table_writes
        answer["table_writes"] = {"completed": writes.completed, "exited": writes.exited}
    if nested is not None:
        answer["x86_vmm"] = {
            "entries": nested.entries,
            **_events_json(nested.events),
            "exits": {reason.name: count for reason, count in nested.exits.items()},
        }
    return answer


def _events_json(events: Events, injected: Injected | None = None) -> dict[str, Any]:
    """Counts of faults, interrupts and INT n, by vector and disposition."""
    answer: dict[str, Any] = {}
    for kind, counts in events.items():
        answer[kind.value] = {}
        for vector, found in counts.items():
            numbers = {disposition.name: count for disposition, count in found.items()}
            if injected is not None:
                numbers["injected"] = injected[kind].get(vector, 0)
            answer[kind.value][str(vector)] = numbers
    return answer


def show_summary(summary: Summary, out: Terminal) -> None:
    """Tables of faults and exits, those of an x86 VMM's guest apart."""
    if any(counts for by_vector in summary.events.values() for counts in by_vector.values()):
        out.print(_fault_table("faults and interrupts", summary.events, summary.injected))
    out.print(_exit_table("VM exits", summary.exits))
    nested = summary.nested
    if nested is not None:
        title = f"faults and interrupts of the x86 VMM's guest ({nested.entries:,} VM entries)"
        out.print(_fault_table(title, nested.events))
        out.print(_exit_table("VM exits to the x86 VMM", nested.exits))
    writes = summary.table_writes
    if writes is not None and (writes.completed or writes.exited):
        out.print(_writes_table(writes))
    speed = summary.executed / summary.seconds / 1e6 if summary.seconds else 0.0
    waited = f"; halted for {summary.halted:,} ns of virtual time" if summary.halted else ""
    out.print(
        f"{summary.executed:,} instruction{'s' * (summary.executed != 1)} "
        f"in {summary.seconds:.2f} s "
        f"({speed:.0f} million/s){waited}"
    )
    if summary.resets:
        out.print(f"resets: {summary.resets:,}")
    out.print(f"engine: {summary.engine_words}")


def event_name(kind: EventKind, vector: int) -> str:
    """What the event is called: #PF, interrupt 48, INT 80H."""
    from trapgate.vmm.summary import EventKind

    if kind is EventKind.INTERRUPT:
        return f"interrupt {vector}"
    return f"INT {vector:X}H" if kind is EventKind.SOFTWARE_INTERRUPT else vector_name(vector)


def _fault_table(title: str, events: Events, injected: Injected | None = None) -> Table:
    from rich.table import Table

    from trapgate.decision.decide import Disposition

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    titles = ("event", "exited", "delivered") + ("of these injected",) * (injected is not None)
    titles += ("completed",)
    for column in titles:
        table.add_column(column, justify="left" if column == "event" else "right")
    for kind, counts in events.items():
        for vector, found in counts.items():
            numbers = [found.get(Disposition.EXIT, 0), found.get(Disposition.DELIVER, 0)]
            if injected is not None:
                numbers.append(injected[kind].get(vector, 0))
            numbers.append(found.get(Disposition.COMPLETE, 0))
            table.add_row(event_name(kind, vector), *(f"{number:,}" for number in numbers))
    return table


def _exit_table(title: str, counts: Mapping[ExitReason, int]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    table.add_column("reason")
    table.add_column("count", justify="right")
    for reason, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(reason.name.replace("_", " ").lower(), f"{count:,}")
    return table


def _writes_table(writes: TableWrites) -> Table:
    """What became of writes to page tables."""
    from rich.table import Table

    total = sum(writes.completed.values()) + sum(
        count for name, count in writes.exited.items() if name != "reused"
    )
    title = "writes to page tables"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, min_width=len(title))
    for column in ("what became of it", "count", "share"):
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    for words, counts in (("completed by ", writes.completed), ("exited, ", writes.exited)):
        for name, count in counts.items():
            shown = words + name.replace("fault_filter_", "").replace("_", " ")
            if name == "reused":
                shown = "of these, tables reused as data"
            table.add_row(shown, f"{count:,}", f"{100 * count / total:.1f} %")
    return table
