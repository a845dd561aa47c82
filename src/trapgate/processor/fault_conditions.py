"""Whether a condition holds of a fault, by the processor's own reading of criteria tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trapgate.compiler.dialect import Cells
from trapgate.decision.criteria_rules import Rule
from trapgate.decision.criteria_table import NEXT, decide_by_table
from trapgate.processor.logical import LogicalProcessor, signed
from trapgate.vmcs.vmcs import Vmcs


@dataclass(frozen=True)
class Occurrence:
    """An event as `decide_by_table` takes it; `error_code` and `outer` are -1 if there is none."""

    vector: int
    type: int
    error_code: int = -1
    address: int = 0
    length: int = 0
    depth: int = 0
    outer: int = -1
    table_entry: int = 0
    old_entry: int = 0
    new_entry: int = 0


def holds(processor: LogicalProcessor, v: Cells, rules: Sequence[Rule], event: Occurrence) -> bool:
    """Whether one of `rules` (of `condition_rules.rules_for`, EXIT) matches an event.

    `v` is a VMCS with the guest's state as the event finds it. Nothing changes but accessed flags.
    """
    vmcs = Vmcs()
    vmcs.cells[:] = v
    vmcs.criteria_table = rules
    action, _ = decide_by_table(
        vmcs.cells,
        processor.registers.cells,
        processor.memory.cells,
        event.vector,
        event.type,
        event.error_code,
        signed(event.address),
        event.length,
        event.depth,
        event.outer,
        event.table_entry,
        signed(event.old_entry),
        signed(event.new_entry),
    )
    return bool(action != NEXT)
