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
    """The logical processors and the VMCSs of their guest as they were when this was made.

    `vmcs` is that of the one whose turn it is, `others` are further arrays that go back with it.
    `restore` costs what was changed since, or since the snapshot that the processor was at last
    taken back to, and the difference between the two. Translated code stays, but that of pages
    that are copied back.
    """

    def __init__(self, processor: Processor, vmcs: Vmcs, others: Iterable[Cells] = ()) -> None:
        processor.make_current(vmcs)
        processor.drain()
        self._processor, self._vmcs = processor, vmcs
        self._running = next(one for one in processor.every if processor.runs(one))
        engine = processor.engine
        head = processor.head
        waiting = [one for one in processor.every if one is not self._running]
        vmcss = [vmcs, *(one.vmcs for one in waiting if one.vmcs is not None)]
        arrays = [
            *(one.cells for one in vmcss),
            *(array for one in processor.every for array in one.arrays()),
            *(array for one in waiting for array in one.put_aside_in()),
            *(engine.devices.pages, engine.vector_registers),
            *(head[: _NESTED.start], head[_NESTED.stop :]),
            *(engine.cells[n : n + 1] for n in stops.RUN_STATE),
        ]
        self._copies = MemoryCopy(engine, (*arrays, *others))
        self._lasting = [
            (array, part, array[part].copy())
            for array, part in (
                (processor.registers.cells, _ALL),
                (vmcs.cells, LASTING_FIELDS),
                (engine.cells, LASTING_CELLS),
                (engine.vector_registers, LASTING_VECTOR_CELLS),
                (engine.devices.pages, _ALL),
                (processor.x86_vmm.state, _ALL),
                (processor.x86_vmm.vmcs, _ALL),
            )
        ]
        self._nested_counts = head[_NESTED].copy()
        self._patience = dict(engine.patience)
        self._rows = processor.rows.copy()
        self._sequence = int(head[HEAD_SEQUENCE])
        self._launched = [(one, one.launched) for one in vmcss]
        parts = [part for one in processor.every for part in (one.pins, one.x86_vmm)]
        self._plain = [(vars(one), plain(one, _HOST)) for one in (processor, *parts)]
        self._smis = [(one.pins, one.pins.smi) for one in processor.every]
        self._has_event = has_event(vmcs.cells)

    def restore(self) -> int:
        """Go back; how many pages of memory were copied."""
        processor, engine = self._processor, self._processor.engine
        processor.turn_to(self._running)
        processor.make_current(self._vmcs)
        processor.drain()
        self._restore_rows()
        if any(one.x86_vmm.state[ENTRIES] for one in processor.every):
            processor.head[_NESTED] = self._nested_counts
        if engine.patience != self._patience:
            engine.patience = dict(self._patience)
        for vmcs, launched in self._launched:
            vmcs.launched = launched
        for pins, smi in self._smis:
            pins.smi = smi
        for attributes, saved_values in self._plain:
            attributes.update(saved_values)
        return self._copies.restore()

    def is_met(self) -> bool:
        """Whether the processor is now, event for event, where it was then: the same follows.

        What only tells of the past may differ. Memory is not looked at. Of several processors
        it is not known, and not said.
        """
        return (
            len(self._processor.every) == 1
            and not self._has_event
            and not has_event(self._vmcs.cells)
            and all(np.array_equal(array[part], then) for array, part, then in self._lasting)
            and all(vmcs.launched == launched for vmcs, launched in self._launched)
            and all(pins.smi == smi for pins, smi in self._smis)
            and all(
                attributes[name] == value
                for attributes, saved in self._plain
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
