"""The journal: one row of integers for every event that was arbitrated.

The core writes it, the engine drains it into the trace. It is a ring: once full,
the oldest row is overwritten, so that whoever does not trace pays for no more than
the writing. A capacity of 0 keeps only the counts.
"""

from trapgate.compiler.dialect import Cells, Rows, core, inlined
from trapgate.decision.decide import COMPLETE, DELIVER, EXIT
from trapgate.decision.entry_facts import KIND
from trapgate.sdm.cells import (
    GUEST_CR3,
    GUEST_RIP,
    GUEST_SS_ACCESS_RIGHTS,
)

ROW_WIDTH = 20
(
    ROW_SEQUENCE,
    ROW_TIME,
    ROW_VM,
    ROW_VECTOR,
    ROW_TYPE,
    ROW_ERROR_CODE,
    ROW_RIP,
    ROW_CPL,
    ROW_CR3,
    ROW_ADDRESS,
    ROW_DATA,
    ROW_ENTRY,
    ROW_DISPOSITION,
    ROW_REASON,
    ROW_DEPTH,
    ROW_INJECTED,
    ROW_VMCS,
    ROW_OLD_VALUE,
    ROW_CURRENT,
    ROW_CPU,
) = range(20)

(
    HEAD_USED,
    HEAD_CAPACITY,
    HEAD_TIME,
    HEAD_VM,
    HEAD_SEQUENCE,
    HEAD_GENERATION,
    HEAD_CURRENT,
    HEAD_LEVEL,
    HEAD_ENTRY,
    HEAD_DATA,
    HEAD_OLD_VALUE,
    HEAD_CPU,
) = range(12)
"""HEAD_CURRENT: where the VMCS in force lies in memory; -1 for that of the VMM in Python.
HEAD_LEVEL: 0 for that VMM's VMCS, 1 for an x86 VMM's. HEAD_ENTRY: what is known of the
table entry that a fault is about to write (`decision.entry_facts`), 0 of all other events; the
row keeps it as ROW_ENTRY. HEAD_CPU: the number of the logical processor that runs."""
HEAD_COUNTS = 16
"""From here on, for each level, interruption type and vector 3 counts: how often each
disposition was taken (`count_of`)."""
LEVELS, TYPES, VECTORS, DISPOSITIONS = 2, 8, 256, 3
COUNTS = TYPES * VECTORS * DISPOSITIONS
"""How many counts a level has."""
HEAD_COMPLETED = HEAD_COUNTS + LEVELS * COUNTS
"""From here on, by the low four bits of the reason: how many faults were completed."""
COMPLETED = 16
HEAD_LENGTH = HEAD_COMPLETED + COMPLETED


@core
@inlined
def count_of(head: Cells, vector: int, kind: int) -> int:
    """Where in the head the counts of such events begin, of the level that runs.

    The type tells INT n from the exception whose vector it uses.
    """
    event = (kind & 7) * VECTORS + (vector & 0xFF)
    return int(HEAD_COUNTS + head[HEAD_LEVEL] * COUNTS + event * DISPOSITIONS)


@core
def record(
    v: Cells,
    rows: Rows,
    head: Cells,
    vector: int,
    kind: int,
    error_code: int,
    address: int,
    disposition: int,
    reason: int,
    depth: int,
    injected: int,
) -> None:
    """Write one row about an event that has just been decided, and count it.

    `kind` is its interruption type, `error_code` -1 if it has none, `address` the
    linear address of a page fault (else 0), `depth` how many events it is nested in.
    Whoever knows what a page fault was writing, and over what, has left it in the head.
    """
    entry = head[HEAD_ENTRY]
    head[HEAD_ENTRY] = 0
    head[count_of(head, vector, kind) + disposition] += 1
    if disposition == COMPLETE:
        head[HEAD_COMPLETED + (reason & (COMPLETED - 1))] += 1
    sequence = head[HEAD_SEQUENCE]
    head[HEAD_SEQUENCE] = sequence + 1
    capacity = head[HEAD_CAPACITY]
    if capacity <= 0:
        return
    if head[HEAD_USED] < capacity:
        head[HEAD_USED] += 1
    row = rows[sequence % capacity]
    row[ROW_SEQUENCE] = sequence
    row[ROW_TIME] = head[HEAD_TIME]
    row[ROW_VM] = head[HEAD_VM]
    row[ROW_VECTOR] = vector
    row[ROW_TYPE] = kind
    row[ROW_ERROR_CODE] = error_code
    row[ROW_RIP] = v[GUEST_RIP]
    row[ROW_CPL] = (v[GUEST_SS_ACCESS_RIGHTS] >> 5) & 3
    row[ROW_CR3] = v[GUEST_CR3]
    row[ROW_ADDRESS] = address
    row[ROW_DATA] = head[HEAD_DATA] if entry & KIND else 0
    row[ROW_ENTRY] = entry
    row[ROW_DISPOSITION] = disposition
    row[ROW_REASON] = reason
    row[ROW_DEPTH] = depth
    row[ROW_INJECTED] = injected
    row[ROW_VMCS] = head[HEAD_GENERATION]
    row[ROW_OLD_VALUE] = head[HEAD_OLD_VALUE] if entry & KIND else 0
    row[ROW_CURRENT] = head[HEAD_CURRENT]
    row[ROW_CPU] = head[HEAD_CPU]


@core
def change_to_delivered(head: Cells, rows: Rows, vector: int, kind: int) -> None:
    """Correct the row just written: the event that seemed to exit has reached the guest."""
    counts = count_of(head, vector, kind)
    head[counts + EXIT] -= 1
    head[counts + DELIVER] += 1
    if head[HEAD_CAPACITY] > 0:
        rows[(head[HEAD_SEQUENCE] - 1) % head[HEAD_CAPACITY]][ROW_DISPOSITION] = DELIVER


@core
def change_disposition(
    rows: Rows, head: Cells, vector: int, kind: int, disposition: int, reason: int
) -> None:
    """Correct the row just written: the delivery of that event ends as `disposition` after all."""
    counts = count_of(head, vector, kind)
    head[counts + DELIVER] -= 1
    head[counts + disposition] += 1
    capacity = head[HEAD_CAPACITY]
    if capacity <= 0:
        return
    row = rows[(head[HEAD_SEQUENCE] - 1) % capacity]
    row[ROW_DISPOSITION] = disposition
    row[ROW_REASON] = reason
