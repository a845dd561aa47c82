"""The two big core functions as C functions, called through their addresses.

Whatever calls a compiled function directly takes a copy of it into its own machine
code; these two are so big that copies would make compilation take twice as long.
"""

from numba import types

from trapgate.engine import machine as mc
from trapgate.engine.compiled import callback, jit, linked
from trapgate.engine.raw import cells, table

_raise_event = linked("raise_event")
_execute = linked("execute")


@jit
def raise_here(
    machine: int, vector: int, kind: int, error_code: int, address: int, length: int
) -> int:
    """`raise_event` on the machine's current VMCS."""
    m = cells(machine, mc.CELLS)
    outcome: int = _raise_event(
        cells(m[mc.V], m[mc.V_CELLS]),
        cells(m[mc.R], m[mc.R_CELLS]),
        cells(m[mc.MEM], m[mc.MEM_CELLS]),
        table(m[mc.ROWS], m[mc.ROWS_CAPACITY], 20),
        cells(m[mc.HEAD], m[mc.HEAD_CELLS]),
        vector,
        kind,
        error_code,
        address,
        length,
        0,
    )
    return outcome


@jit
def execute_here(machine: int, word: int) -> int:
    """`execute` on the machine's current VMCS."""
    m = cells(machine, mc.CELLS)
    outcome: int = _execute(
        cells(m[mc.V], m[mc.V_CELLS]),
        cells(m[mc.R], m[mc.R_CELLS]),
        cells(m[mc.MEM], m[mc.MEM_CELLS]),
        word,
        m[mc.TIME],
    )
    return outcome


@callback(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, types.int64)
def raise_event_c(
    machine: int, vector: int, kind: int, error_code: int, address: int, length: int
) -> int:
    """See `raise_here`."""
    return raise_here(machine, vector, kind, error_code, address, length)


@callback(types.int64, types.int64, types.int64)
def execute_c(machine: int, word: int) -> int:
    """See `execute_here`."""
    return execute_here(machine, word)
