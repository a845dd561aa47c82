"""The state of a logical processor at one moment, and the way back to it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from trapgate.compiler.dialect import Cells
from trapgate.engine import machine as stops
from trapgate.engine.written_pages import MemoryCopy
from trapgate.events.journal import COUNTS, HEAD_COMPLETED, HEAD_COUNTS, HEAD_SEQUENCE
from trapgate.processor.likeness import (
    LASTING_CELLS,
    LASTING_FIELDS,
    LASTING_VECTOR_CELLS,
    has_event,
)
from trapgate.processor.processor import Processor
from trapgate.sdm.vmx import ENTRIES
from trapgate.vmcs.vmcs import Vmcs

_NESTED = slice(HEAD_COUNTS + COUNTS, HEAD_COMPLETED)
"""Of the journal's head: counts of what happens to the guest of an x86 VMM, 0 without."""
_HOST = frozenset({"expires"})
"""Attributes of a processor that are not the guest's."""
_ALL = slice(None)
_LASTS: dict[str, Cells | slice] = {
    "registers": _ALL,
    "vmcs": LASTING_FIELDS,
    "device pages": _ALL,
    "x86 VMM": _ALL,
    "x86 VMM's VMCS": _ALL,
    "x87 and SSE": LASTING_VECTOR_CELLS,
}
"""What of which array makes a difference to what follows; the quickest to differ first."""
_PAST = frozenset({"skipped", "_drained", "_checked"})
"""Attributes of a processor that only tell of the past."""


def plain(one: object, but: frozenset[str] = frozenset()) -> dict[str, object]:
    """The attributes of an object that are numbers, texts or None."""
    return {
        name: value
        for name, value in vars(one).items()
        if isinstance(value, int | float | str | None) and name not in but
    }


class ProcessorSnapshot:
    """A processor and the VMCS of its guest as they were when this was made.

    `others` are further arrays that go back with it. `restore` costs what was changed since, or
    since the snapshot that the processor was at last taken back to, and the difference between
    the two. Translated code stays, but that of pages that are copied back.
    """

    def __init__(self, processor: Processor, vmcs: Vmcs, others: Iterable[Cells] = ()) -> None:
        processor.make_current(vmcs)
        processor.drain()
        self._processor, self._vmcs = processor, vmcs
        engine = processor.engine
        head = processor.head
        arrays = {
            "vmcs": vmcs.cells,
            "registers": processor.registers.cells,
            "device pages": engine.devices.pages,
            "counts": head[: _NESTED.start],
            "completed": head[_NESTED.stop :],
            "x86 VMM": processor.x86_vmm.state,
            "x86 VMM's VMCS": processor.x86_vmm.vmcs,
            "x87 and SSE": engine.vector_registers,
            **{f"cell {n}": engine.cells[n : n + 1] for n in stops.RUN_STATE},
        }
        self._copies = MemoryCopy(engine, (*arrays.values(), *others))
        self._lasting = {name: arrays[name][part].copy() for name, part in _LASTS.items()}
        self._arrays = arrays
        self._cells = engine.cells[LASTING_CELLS]
        self._nested_counts = head[_NESTED].copy()
        self._patience = dict(engine.patience)
        self._rows = processor.rows.copy()
        self._sequence = int(head[HEAD_SEQUENCE])
        self._launched = vmcs.launched
        self._has_event = has_event(vmcs.cells)
        self._plain = [(vars(one), plain(one, _HOST)) for one in (processor, processor.x86_vmm)]

    def restore(self) -> int:
        """Go back; how many pages of memory were copied."""
        processor, engine = self._processor, self._processor.engine
        processor.make_current(self._vmcs)
        processor.drain()
        self._restore_rows()
        if processor.x86_vmm.state[ENTRIES]:
            processor.head[_NESTED] = self._nested_counts
        if engine.patience != self._patience:
            engine.patience = dict(self._patience)
        self._vmcs.launched = self._launched
        for attributes, saved_values in self._plain:
            attributes.update(saved_values)
        return self._copies.restore()

    def is_met(self) -> bool:
        """Whether the processor is now, event for event, where it was then: the same follows.

        What only tells of the past may differ. Memory is not looked at.
        """
        arrays = self._arrays
        if has_event(arrays["vmcs"]) or self._has_event:
            return False
        for name, then in self._lasting.items():
            if not np.array_equal(arrays[name][_LASTS[name]], then):
                return False
        return (
            np.array_equal(self._processor.engine.cells[LASTING_CELLS], self._cells)
            and self._vmcs.launched == self._launched
            and all(
                vars_now[name] == value
                for vars_now, saved in self._plain
                for name, value in saved.items()
                if name not in _PAST
            )
        )

    def differing_pages(self) -> int:
        """How many pages of memory are not now as they were."""
        return self._copies.differences()

    def _restore_rows(self) -> None:
        """Rows of the journal that others have taken the place of."""
        rows = self._processor.rows
        if not self._copies.is_latest:
            rows[:] = self._rows
            return
        sequence = int(self._processor.head[HEAD_SEQUENCE])
        if sequence > len(rows):
            changed = np.arange(max(self._sequence, sequence - len(rows)), sequence) % len(rows)
            rows[changed] = self._rows[changed]
