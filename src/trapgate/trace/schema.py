"""What a fault trace is made of: one row per fault, its columns and their types.

The processor's journal is an array of 64-bit integers (one row a fault, see
`JOURNAL_COLUMNS`); a trace is the same facts with names, widths and nulls, so that any
Parquet reader can answer questions about them. Addresses are unsigned 64-bit values.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trapgate.decision import entry_facts as ef
from trapgate.decision.self_map import DIRECTORY
from trapgate.errors import TrapgateError

VERSION: Final = 2
"""The latest version of the schema; a reader refuses traces of a later one."""

FAULT_VERSION: Final = 1
"""The version of traces with the columns of `SCHEMA` alone, which the processor writes."""

JOURNAL_COLUMNS: Final = 20
"""Cells in one row of the processor's journal."""

DISPOSITIONS: Final = ("EXIT", "DELIVER", "COMPLETE")
"""Names of the dispositions, in the order of their numbers in the journal."""

KEY_PREFIX: Final = b"trapgate."
"""Every metadata key of a trace begins so; foreign keys are left alone."""

VERSION_KEY: Final = KEY_PREFIX + b"version"
COMPLETE_KEY: Final = KEY_PREFIX + b"complete"
RUN_PREFIX: Final = KEY_PREFIX + b"run."

# The journal's columns, by the meaning they have there.
_SEQUENCE, _TIME, _VM, _VECTOR, _TYPE, _ERROR_CODE, _RIP, _CPL, _CR3, _LINEAR = range(10)
_DATA, _ENTRY, _DISPOSITION, _REASON, _DEPTH, _INJECTED, _VMCS, _OLD_VALUE = range(10, 18)
_CURRENT, _CPU = 18, 19

_DEBUG, _PAGE_FAULT = 1, 14
_HARDWARE_EXCEPTION = 3

_NAMES = pa.dictionary(pa.int8(), pa.string())

SCHEMA: Final = pa.schema(
    [
        pa.field("sequence", pa.uint64(), nullable=False),
        pa.field("time", pa.uint64(), nullable=False),
        pa.field("vm", pa.uint32(), nullable=False),
        pa.field("vmcs", pa.uint32(), nullable=False),
        pa.field("vector", pa.uint8(), nullable=False),
        pa.field("type", pa.uint8(), nullable=False),
        pa.field("error_code", pa.uint32(), nullable=True),
        pa.field("rip", pa.uint64(), nullable=False),
        pa.field("cpl", pa.uint8(), nullable=False),
        pa.field("cr3", pa.uint64(), nullable=False),
        pa.field("linear_address", pa.uint64(), nullable=True),
        pa.field("data", pa.uint64(), nullable=True),
        pa.field("old_value", pa.uint64(), nullable=True),
        pa.field("disposition", _NAMES, nullable=False),
        pa.field("reason", _NAMES, nullable=False),
        pa.field("depth", pa.uint8(), nullable=False),
        pa.field("injected", pa.bool_(), nullable=False),
    ]
)
"""The columns of a trace.

`time` counts virtual instructions (unless the run's `time-unit` says otherwise); `type` is
the SDM's interruption type ("Format of the VM-Exit Interruption-Information Field"); `data`
and `old_value` are the value being written and the one it replaces (¶29), where the fault
was a write that carries them;
`disposition` and `reason` say what was decided and by which criterion; `depth` counts
nested faults from 0; `injected` marks events delivered at VM entry.
"""

VCPU: Final = pa.field("vcpu", pa.uint32())
"""Whose event it was: the number of the guest's processor."""

ENTRY_COLUMNS: Final = (
    pa.field("table_entry", pa.uint8()),
    pa.field("entry_size", pa.uint8()),
    pa.field("large_pages", pa.bool_()),
    pa.field("table_byte", pa.uint8()),
    pa.field("frame_byte", pa.uint8()),
    pa.field("frame_empty", pa.bool_()),
    pa.field("repeated", pa.bool_()),
)
"""Of a write to a table entry, what a fault filter looks up, before the write; else null.

`table_entry`: 1 of a last-level table, 2 of an upper one; `entry_size`: bytes; `large_pages`:
whether PS means a large page. Under a frame map also its bytes of the table and of the frame that
`data` names, whether that is empty data that an upper entry would come to lead to, and whether the
write is a repeated string store that no filter completes; then there may be no `data`."""

RUN_SCHEMA: Final = pa.schema(
    [*SCHEMA, pa.field("current_vmcs", pa.uint64(), nullable=True), VCPU, *ENTRY_COLUMNS]
)
"""The columns that the processor writes. `current_vmcs` says which VMCS was in force: the
physical address of the region of an x86 VMM's current VMCS while its guest ran, null for VMCS 0.
Traces without it, `vcpu` and `ENTRY_COLUMNS` can be read."""

_REASONS = pa.dictionary(pa.int16(), pa.string())

HOST_COLUMNS: Final = (
    VCPU,
    pa.field("thread", pa.uint32()),
    pa.field("exit_reason", _REASONS),
    pa.field("latency", pa.uint64()),
    pa.field("guest_physical", pa.uint64()),
    pa.field("level", pa.uint8()),
    pa.field("reflected", pa.bool_()),
    pa.field("code_missing", pa.bool_()),
    pa.field("interrupted_vector", pa.uint8()),
    pa.field("interrupted_type", pa.uint8()),
    pa.field("interrupted_error_code", pa.uint32()),
    pa.field("qualification", pa.uint64()),
    pa.field("access", _REASONS),
    pa.field("weight", pa.uint64()),
    pa.field("operand", pa.uint32()),
)
"""Columns that version 2 adds, for traces of real hosts and of other emulators.

All may be null, and all may be absent, which is the same. `vcpu` and `thread` say whose
event it was (`thread` is the host's thread, which tells the vCPUs of several guests
apart); `exit_reason` is the host's own word for an exit; `latency` the time from an exit
to the next entry of the same vCPU; `guest_physical` the address of a nested page fault;
`level` 1 for a guest, 2 for a guest's guest; `reflected` whether the guest hypervisor
was given the exit; `code_missing` whether the event has an error code that the trace
does not tell (where it is not true, a null `error_code` means that there is none), or is
an exception and the trace does not tell which (then `vector` is null, too).
`interrupted_vector`, `interrupted_type` and `interrupted_error_code` tell of the event whose
delivery an exit met (SDM, "Information for VM Exits That Occur During Event Delivery"; AMD's
EXITINTINFO); `qualification` is an exit's qualification (AMD's EXITINFO1), and `access` what
it says of a violation of the second stage, in words. `weight` says how many events a row
stands for (null for one). `operand` is the port, the MSR or the control register that an exit
is about; `data` then is the value that was written or read, and `old_value` what the guest had
written to CR0 or CR4 before. Of a loop of PAUSEs `data` is PLE_Window as it was then.
"""

_UNKNOWN_TO_HOSTS = frozenset({"vector", "type", "rip", "cpl", "cr3"})

HOST_SCHEMA: Final = pa.schema(
    [
        *(pa.field(f.name, f.type, f.nullable or f.name in _UNKNOWN_TO_HOSTS) for f in SCHEMA),
        *HOST_COLUMNS,
    ]
)
"""The columns of an imported trace: those of `SCHEMA`, of which a host does not know all
(its exits need not be faults), and `HOST_COLUMNS`."""

TIME_UNIT: Final = "time-unit"
"""The fact about a run that says what `time` and `latency` count: `instructions` (the
default), `ns`, `ticks` or `events`."""


CRITERIA: Final = "criteria"
"""The fact about a run that has the criteria in force, as a VMCS file (fields that are not 0)."""

POSTED_INTERRUPTS: Final = "posted-interrupts"
"""The fact about a trace that names the interrupts that go to the guest without an exit."""

WEIGHTED: Final = "weighted"
"""The fact about a trace that says (`yes`) that its rows stand for many events each."""


class TraceError(TrapgateError):
    """A trace cannot be written or read.

    Caused by a path that cannot be used, a file that is not a trace of this version or is
    damaged, or a disk that refuses a write. The message names the file, what is wrong or
    missing and the remedy; `path` and `problem` carry the first two.
    """

    def __init__(self, path: str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path = path
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[type["TraceError"], tuple[str, str, str]]:
        """What it is made of, so that it survives the way from another process."""
        return type(self), (self.path, self.problem, self.remedy)


def metadata_of(
    run: Mapping[str, str], *, complete: bool, version: int = FAULT_VERSION
) -> dict[bytes, bytes]:
    """The schema metadata of a trace: version, completeness, and facts about the run.

    `run` is free: profile, seed, guest, command line. Keys are stored sorted, so that
    equal facts give equal bytes.
    """
    stored = {
        VERSION_KEY: str(version).encode(),
        COMPLETE_KEY: b"yes" if complete else b"no",
    }
    for key in sorted(run):
        stored[RUN_PREFIX + key.encode()] = run[key].encode()
    return stored


def batch_of(rows: NDArray[np.int64], reasons: Sequence[str]) -> pa.RecordBatch:
    """The journal rows (n x 20) as typed columns; `reasons` names the journal's numbers.

    Raises: IndexError for a disposition or reason without a name, which only a broken
    journal holds.
    """
    columns = np.ascontiguousarray(rows.T)
    vector, kind, address = columns[_VECTOR], columns[_TYPE], columns[_LINEAR]
    injected = columns[_INJECTED] != 0
    # A page fault may well be at address 0; every other event without an address has 0
    # there, and what a debug exception carries is bits for DR6.
    page_fault = (vector == _PAGE_FAULT) & (kind == _HARDWARE_EXCEPTION) & ~injected
    no_address = ~(page_fault | ((address != 0) & (vector != _DEBUG)))
    entry = columns[_ENTRY]
    no_data = entry & ef.KIND == 0
    no_code = columns[_ERROR_CODE] < 0
    arrays = [
        _unsigned(columns[_SEQUENCE]),
        _unsigned(columns[_TIME]),
        pa.array(columns[_VM].astype(np.uint32)),
        pa.array(columns[_VMCS].astype(np.uint32)),
        pa.array(vector.astype(np.uint8)),
        pa.array(kind.astype(np.uint8)),
        pa.array(columns[_ERROR_CODE].astype(np.uint32), mask=no_code),
        _unsigned(columns[_RIP]),
        pa.array(columns[_CPL].astype(np.uint8)),
        _unsigned(columns[_CR3]),
        _unsigned(address, no_address),
        _unsigned(columns[_DATA], no_data),
        _unsigned(columns[_OLD_VALUE], no_data),
        _named(columns[_DISPOSITION], DISPOSITIONS),
        _named(columns[_REASON], reasons),
        pa.array(columns[_DEPTH].astype(np.uint8)),
        pa.array(injected),
        _unsigned(columns[_CURRENT], columns[_CURRENT] < 0),
        pa.array(columns[_CPU].astype(np.uint32)),
        *_entry_arrays(entry),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=RUN_SCHEMA)


def _entry_arrays(entry: NDArray[np.int64]) -> list[pa.Array]:
    """`ENTRY_COLUMNS` of the journal's cells about table entries (`decision.entry_facts`)."""
    if not entry.any():
        return [pa.nulls(len(entry), field.type) for field in ENTRY_COLUMNS]
    no_data, no_map = entry & ef.KIND == 0, entry & ef.BY_MAP == 0
    not_upper = no_map | (entry & ef.KIND != DIRECTORY)

    def byte(shift: int, null: NDArray[np.bool_]) -> pa.Array:
        return pa.array((entry >> shift & 0xFF).astype(np.uint8), mask=null)

    return [
        pa.array((entry & ef.KIND).astype(np.uint8), mask=no_data),
        pa.array(np.where(entry & ef.WIDE, 8, 4).astype(np.uint8), mask=no_data),
        pa.array(entry & ef.LARGE_PAGES != 0, mask=no_data),
        byte(ef.TABLE_BYTE, no_map),
        byte(ef.FRAME_BYTE, no_map | no_data),
        pa.array(entry & ef.EMPTY_FRAME != 0, mask=not_upper),
        pa.array(entry & ef.REPEATED != 0, mask=no_map),
    ]


def _unsigned(cells: NDArray[np.int64], null: NDArray[np.bool_] | None = None) -> pa.Array:
    return pa.array(cells.view(np.uint64), mask=null)


def _named(cells: NDArray[np.int64], names: Sequence[str]) -> pa.Array:
    if cells.size and not 0 <= cells.min() <= cells.max() < len(names):
        raise IndexError(f"journal value outside {list(names)}")
    return pa.DictionaryArray.from_arrays(cells.astype(np.int8), pa.array(names, pa.string()))
