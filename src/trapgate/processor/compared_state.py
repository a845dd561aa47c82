"""Which cells of a processor's state make a difference to what the guest does from now on.

A processor that is stopped between two instructions has cells that only tell of the past: the
information of the latest exit, counts, the latest fault. What is not named here counts; to
name too little is safe.
"""

from __future__ import annotations

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.engine.library import layout as at
from trapgate.sdm import cells as f
from trapgate.sdm.fields import Field

_PAST_CELLS = frozenset(
    {
        *(stops.STOP, stops.STOP_CODE, stops.STOP_INFO, stops.STOP_VALUE),
        *(stops.FAULT_ADDRESS, stops.FAULT_KIND, stops.FAULT_CODE, stops.EVENT_TIME),
        *(stops.NEW_BLOCK, stops.NEW_BLOCK_SIZE, stops.STEP_START, stops.JOURNAL_LIMIT),
        # Set anew at VM entry, from what the VMM asks for.
        *(stops.DEADLINE, stops.TIMER_END, stops.BUDGET_END, stops.ATTENTION, stops.PINS),
    }
)
LASTING_CELLS: Cells = np.array([n for n in stops.RUN_STATE if n not in _PAST_CELLS], np.int64)
"""Cells of the machine that make a difference."""
_ENTRY_EVENT = frozenset(
    {
        Field.VM_ENTRY_INTERRUPTION_INFORMATION,
        Field.VM_ENTRY_EXCEPTION_ERROR_CODE,
        Field.VM_ENTRY_INSTRUCTION_LENGTH,
        Field.VMX_PREEMPTION_TIMER_VALUE,
    }
)
_PAST_FIELDS = {one.cell for one in Field if one.read_only or one in _ENTRY_EVENT}
LASTING_FIELDS: Cells = np.array([n for n in range(f.LENGTH) if n not in _PAST_FIELDS], np.int64)
"""Cells of a VMCS that make a difference while no event waits for the VM entry."""
_VALID = 1 << 31
_XMM = (at.MXCSR - at.FPU) // 8 + 1
_STRIDE, _CELLS_OF_XMM = 8, 2
LASTING_VECTOR_CELLS: Cells = np.array(
    [
        *range(_XMM),
        *(_XMM + _STRIDE * n + cell for n in range(16) for cell in range(_CELLS_OF_XMM)),
    ],
    np.int64,
)
"""Cells of the x87 and SSE state that make a difference: all up to MXCSR, and 16 registers of 128
bits in slots of 512, whose upper parts hold what the host has left there."""


def has_event(vmcs: Cells) -> bool:
    """Whether an event waits for the VM entry."""
    return bool(vmcs[f.VM_ENTRY_INTERRUPTION_INFORMATION] & _VALID)
