"""Traces for other programs: CSV, and text as ftrace prints it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv

from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_SOFTWARE_INTERRUPT,
)
from trapgate.sdm.vectors import ROWS
from trapgate.trace.draft import draft
from trapgate.trace.reader import Trace


def to_csv(trace: Trace, out: Path) -> int:
    """Write all columns as CSV, numbers in decimal; returns the number of rows.

    Raises: TraceError if `out` cannot be written or the trace is damaged.
    """
    plain = pa.schema(
        [
            pa.field(f.name, pa.string()) if pa.types.is_dictionary(f.type) else f
            for f in trace.schema
        ]
    )
    rows = 0
    with draft(out, "CSV") as temporary, pyarrow.csv.CSVWriter(temporary, plain) as writer:
        for batch in trace.batches():
            columns = [column.cast(kind) for column, kind in zip(batch, plain.types, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=plain))
            rows += batch.num_rows
    return rows


_HEADER: Final = "# tracer: nop\n#\n"
_NANO: Final = 1_000_000_000


def to_ftrace(trace: Trace, out: Path) -> int:
    """Write text in the format of ftrace's file `trace`; returns the number of lines of events.

    Exits become kvm_exit, with the kvm_entry that ends them where the trace has a latency,
    injections kvm_inj_exception and kvm_inj_virq: what reads a host's trace reads them, and an
    import gives the same rows again. What a guest got without an exit is an event of our own,
    `trapgate_fault`, which such tools show as it is. Times that count instructions are shown
    as nanoseconds.

    Raises: TraceError if `out` cannot be written or the trace is damaged.
    """
    count = 0
    with draft(out, "text") as temporary, temporary.open("w", encoding="ascii") as file:
        file.write(_HEADER)
        # An entry comes later than the events between its exit and it.
        waiting: dict[tuple[int, int], tuple[int, str]] = {}
        for batch in trace.batches():
            for row in batch.to_pylist():
                track = row["vm"], row.get("thread") or (row.get("vcpu") or 0) + 1
                entry = waiting.get(track)
                if entry is not None and (entry[0] < row["time"] or not row["injected"]):
                    file.write(waiting.pop(track)[1])
                    count += 1
                file.write(_line(row, track, row["time"], *_event(row)))
                count += 1
                if row["data"] is not None and row.get("exit_reason") is not None:
                    file.write(_line(row, track, row["time"], *_access(row)))
                    count += 1
                if row.get("latency") is not None:
                    end = row["time"] + row["latency"]
                    body = f"vcpu {row.get('vcpu') or 0}"
                    waiting[track] = end, _line(row, track, end, "kvm_entry", body)
        for _, line in waiting.values():
            file.write(line)
            count += 1
    return count


def _line(row: dict[str, Any], track: tuple[int, int], time: int, event: str, body: str) -> str:
    vcpu = row.get("vcpu") or 0
    return (
        f" CPU {vcpu}/KVM-{track[1]:<7} ({track[0] + 1:>7}) [{vcpu:03}] ..... "
        f"{time // _NANO:>5}.{time % _NANO:09}: {event}: {body}\n"
    )


def _access(row: dict[str, Any]) -> tuple[str, str]:
    """What KVM says of an MSR or a control register that an exit is about, and its value."""
    reason, qualification = row["exit_reason"], row["qualification"] or 0
    if row["operand"] is None:
        window = row["data"]
        return "kvm_ple_window_update", f"vcpu {row['vcpu'] or 0} old {window} new {2 * window}"
    name = "msr" if "MSR" in reason.upper() else "cr"
    writes = "write" in reason.lower()
    if reason == "CR_ACCESS":
        writes = qualification >> 4 & 3 != 1
    elif name == "msr" and reason.islower():
        writes = bool(qualification & 1)
    word = f"{name}_{'write' if writes else 'read'}"
    return f"kvm_{name}", f"{word} {row['operand']:x} = 0x{row['data']:x}"


def _event(row: dict[str, Any]) -> tuple[str, str]:
    vector, code = row["vector"], row["error_code"]
    coded = "" if code is None else f" (0x{code:x})"
    if row["injected"]:
        again = " [reinjected]" if row["reason"] == "KVM_REINJECTION" else ""
        if row["type"] in {TYPE_EXTERNAL_INTERRUPT, TYPE_SOFTWARE_INTERRUPT}:
            word = "IRQ" if row["type"] == TYPE_EXTERNAL_INTERRUPT else "Soft/INTn"
            return "kvm_inj_virq", f"{word} 0x{vector:x}{again}"
        name = f"#{ROWS[vector].vector.name}" if vector in ROWS else f"0x{vector:x}"
        return "kvm_inj_exception", f"{name}{coded}{again}"
    if row["disposition"] != "EXIT":
        shown = {"cpl": row["cpl"], "depth": row["depth"]}
        facts = "".join(f" {name} {value}" for name, value in shown.items() if value is not None)
        return "trapgate_fault", (
            f"vector {vector}{coded} rip 0x{row['rip'] or 0:x} disposition {row['disposition']} "
            f"reason {row['reason']}{facts}"
        )
    information = met = 0
    if vector is not None:
        information = INFO_VALID | (row["type"] or 0) << INFO_TYPE_SHIFT | vector
        information |= 0 if code is None else INFO_DELIVER_ERROR_CODE
    if row.get("interrupted_vector") is not None:
        met = INFO_VALID | row["interrupted_type"] << INFO_TYPE_SHIFT | row["interrupted_vector"]
    first = row.get("qualification")
    if first is None:
        first = row["linear_address"] or 0
    reason = row.get("exit_reason") or _reason(row)
    rip = "" if row["rip"] is None else f"rip 0x{row['rip']:x} "
    return "kvm_exit", (
        f"vcpu {row.get('vcpu') or 0} reason {reason} {rip}info1 0x{first:016x} "
        f"info2 0x{met:016x} intr_info 0x{information:08x} error_code 0x{code or 0:08x}"
    )


def _reason(row: dict[str, Any]) -> str:
    """KVM's word for an exit of our own."""
    if row["reason"] in {"TRIPLE_FAULT", "TASK_GATE"}:
        return "TRIPLE_FAULT" if row["reason"] == "TRIPLE_FAULT" else "TASK_SWITCH"
    return "EXTERNAL_INTERRUPT" if row["type"] == TYPE_EXTERNAL_INTERRUPT else "EXCEPTION_NMI"
