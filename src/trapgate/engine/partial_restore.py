"""Back to a copy where most of an array is as it was: only what may have changed is copied.

The journal's counts have changed for the events that its rows tell of, and the criteria table of a
VMCS means nothing without a length. To copy all of them would take longer than all other arrays.
"""

from trapgate.compiler.program import jit_for_python
from trapgate.compiler.raw import cells, table
from trapgate.engine import machine as mc
from trapgate.engine.written_pages import copy_cells
from trapgate.events.journal import (
    COUNTS,
    DISPOSITIONS,
    HEAD_COUNTS,
    HEAD_LENGTH,
    HEAD_SEQUENCE,
    ROW_TYPE,
    ROW_VECTOR,
    ROW_WIDTH,
    TYPES,
    VECTORS,
)
from trapgate.sdm.cells import CRITERIA_TABLE_LENGTH, LENGTH, TABLE_START


@jit_for_python
def restore_tables(vmcss: int, count: int) -> int:
    """Restore the criteria tables of VMCSs from their copies; 0.

    At `vmcss` there are, for each of `count`, where it is and where its copy is. The fields are
    still as they are: a table without a length, then and now, is left.
    """
    pairs = cells(vmcss, 2 * count)
    for n in range(count):
        now = cells(pairs[2 * n], LENGTH)
        then = cells(pairs[2 * n + 1], LENGTH)
        if now[CRITERIA_TABLE_LENGTH] | then[CRITERIA_TABLE_LENGTH]:
            copy_cells(now[TABLE_START:], then[TABLE_START:])
    return 0


@jit_for_python
def restore_journal(machine: int, counts: int, rows: int, sequence: int, same: int) -> int:
    """Restore the journal from a copy: rows, and the counts of VMX level 0; 0.

    `counts` and `rows` are where their copies are. `sequence` is how many events there were then;
    `same` says that the journal was as it is there, and has only gone on. The head still tells
    how far: the caller restores it afterwards.
    """
    m = cells(machine, mc.CELLS)
    head = cells(m[mc.HEAD], HEAD_LENGTH)
    capacity = m[mc.ROWS_CAPACITY]
    now = table(m[mc.ROWS], capacity, ROW_WIDTH)
    then = table(rows, capacity, ROW_WIDTH)
    kept = cells(counts, COUNTS)
    # The latest row, and its count, may have been corrected later (`journal.change_disposition`).
    first = max(sequence - 1, 0)
    end = head[HEAD_SEQUENCE]
    if same == 0 or end - first > capacity:
        copy_cells(cells(m[mc.HEAD] + 8 * HEAD_COUNTS, COUNTS), kept)
        copy_cells(cells(m[mc.ROWS], capacity * ROW_WIDTH), cells(rows, capacity * ROW_WIDTH))
        return 0
    for event in range(first, end):
        row = now[event % capacity]
        kind = (row[ROW_TYPE] & (TYPES - 1)) * VECTORS + (row[ROW_VECTOR] & (VECTORS - 1))
        for count in range(kind * DISPOSITIONS, (kind + 1) * DISPOSITIONS):
            head[HEAD_COUNTS + count] = kept[count]
        if event < sequence or event >= capacity:
            copy_cells(row, then[event % capacity])
    return 0
