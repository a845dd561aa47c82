"""The state of a logical processor at one moment, and the way back to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from trapgate.compiler.dialect import Cells, Rows
from trapgate.compiler.program import bound
from trapgate.engine import machine as stops
from trapgate.engine.partial_restore import restore_journal, restore_tables
from trapgate.engine.written_pages import MemoryCopy
from trapgate.events.journal import COUNTS, HEAD_COMPLETED, HEAD_COUNTS, HEAD_SEQUENCE
from trapgate.processor.compared_state import (
    LASTING_CELLS,
    LASTING_FIELDS,
    LASTING_VECTOR_CELLS,
    has_event,
)
from trapgate.processor.processor import Processor
from trapgate.sdm.cells import TABLE_START
from trapgate.vmcs.vmcs import Vmcs

_NESTED = slice(HEAD_COUNTS + COUNTS, HEAD_COMPLETED)
"""Of the journal's head: counts of what happens to the guest of an x86 VMM, 0 without."""
_HOST = frozenset({"expires", "_sink", "_drained"})
"""Attributes of a processor that are not the guest's."""
_SOME = 2048
"""Pages that are written to a file at a time."""
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


def take_plain(now: dict[str, object], then: Mapping[str, object]) -> None:
    """Set attributes that `plain` gave to others of the same kinds. Raises ValueError."""
    if then.keys() != now.keys():
        raise ValueError(f"other attributes than {', '.join(now)}")
    for name, value in then.items():
        before = now[name]
        if value is not None and before is not None and type(value) is not type(before):
            raise ValueError(f"{name} is a {type(value).__name__}")
        if not isinstance(value, int | float | str | None):
            raise ValueError(f"{name} is not a plain value")  # noqa: TRY004 -- of a file
    now.update(then)


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
            *(array for one in waiting for array in one.saved_arrays()),
            *(engine.devices.pages, head[: _NESTED.start], head[_NESTED.stop :]),
            *others,
            engine.vectors.live,
            *(engine.cells[n : n + 1] for n in stops.RUN_STATE),
        ]
        tables = [*(one.cells for one in vmcss), *(one.x86_vmm.vmcs for one in processor.every)]
        beginnings = {array.ctypes.data: TABLE_START for array in tables}
        beginnings[head.ctypes.data] = HEAD_COUNTS
        self._copies = MemoryCopy(engine, arrays, beginnings)
        copies = {
            array.ctypes.data: copy.ctypes.data
            for array, copy in zip(arrays, self._copies.copies, strict=True)
        }
        pairs = [(at, copies[at]) for at in (array.ctypes.data for array in tables)]
        self._tables: Cells = np.array(pairs, np.int64)
        self._restore_tables = bound(restore_tables, self._tables.ctypes.data, len(pairs))
        self._vector_state = engine.vectors.state()
        self._lasting = [
            (array, part, array[part].copy())
            for array, part in (
                (processor.registers.cells, _ALL),
                (vmcs.cells, LASTING_FIELDS),
                (engine.cells, LASTING_CELLS),
                (engine.vectors.live, LASTING_VECTOR_CELLS),
                (engine.devices.pages, _ALL),
                (processor.x86_vmm.state, _ALL),
                (processor.x86_vmm.vmcs, _ALL),
            )
        ]
        self._nested_counts = head[_NESTED].copy()
        self._nested = bool(self._nested_counts.any())
        self._x86_vmms = [one.x86_vmm for one in processor.every]
        self._patience = dict(engine.patience)
        self._rows = processor.rows.copy()
        self._sequence = int(head[HEAD_SEQUENCE])
        counts = copies[head.ctypes.data] + 8 * HEAD_COUNTS
        addresses = int(engine.cells[stops.SELF]), counts, self._rows.ctypes.data
        self._restore_journal = bound(restore_journal, *addresses)
        self._is_taken = False
        """Whether `take` has changed the copies, so that nothing need be as they have it."""
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
        self._restore_tables()
        self._restore_journal(self._sequence, int(self._copies.is_latest and not self._is_taken))
        self._is_taken = False
        for x86_vmm in self._x86_vmms:
            if self._nested or x86_vmm.has_entered:
                processor.head[_NESTED] = self._nested_counts
        if engine.patience != self._patience:
            engine.patience = dict(self._patience)
        for vmcs, launched in self._launched:
            vmcs.launched = launched
        for pins, smi in self._smis:
            pins.smi = smi
        for attributes, saved_values in self._plain:
            attributes.update(saved_values)
        processor.rewind(self._sequence)
        return self._copies.restore()

    # For files.

    @property
    def arrays(self) -> list[Cells]:
        """The copies of all arrays but the engine's own state, in an order that machines share."""
        return self._copies.copies[: -len(stops.RUN_STATE) - 1]

    @property
    def smi_waits(self) -> bool:
        """Whether an SMI waits at the pins, which `values` does not tell."""
        return any(smi is not None for _, smi in self._smis)

    def values(self) -> dict[str, Any]:
        """The rest but memory, as JSON has values."""
        cells = [int(copy[0]) for copy in self._copies.copies[-len(stops.RUN_STATE) :]]
        assert stops.RUN_STATE[0] == stops.V
        cells[0] = int(cells[0] != self._processor.engine.cells[stops.HOST])
        return {
            "run state": cells,
            "x87 and SSE": self._vector_state,
            "nested counts": self._nested_counts.tolist(),
            "patience": list(self._patience.items()),
            "launched": [launched for _, launched in self._launched],
            "plain": [saved for _, saved in self._plain],
            "sequence": self._sequence,
            "journal": len(self._rows),
        }

    @property
    def rows(self) -> Rows:
        """The rows of the journal that were in use."""
        return self._rows[: min(self._sequence, len(self._rows))]

    def memory(self) -> Iterator[tuple[Cells, Cells]]:
        """The numbers of the pages that are not all zeros, and what they hold, some at a time."""
        pages = self._copies.filled_pages()
        for some in np.array_split(pages, len(pages) // _SOME + 1):
            yield some, self._copies.contents(some)

    def take(self, values: Mapping[str, Any], arrays: Sequence[Cells], rows: Cells) -> None:
        """Let `restore` lead to what another process's snapshot gave; memory is so already.

        Raises ValueError or KeyError for what is none.
        """
        self._is_taken = True
        engine = self._processor.engine
        cells = list(values["run state"])
        cells[0] = int(engine.cells[stops.N if cells[0] else stops.HOST])
        copies = self._copies.copies
        for copy, value in zip(copies[-len(stops.RUN_STATE) :], cells, strict=True):
            copy[0] = value
        for copy, array in zip(self.arrays, arrays, strict=True):
            copy[:] = array
        self._nested_counts[:] = values["nested counts"]
        self._nested = bool(self._nested_counts.any())
        self._patience = {int(shape): int(count) for shape, count in values["patience"]}
        self._sequence = int(values["sequence"])
        self._rows.reshape(-1)[: rows.size] = rows
        self._processor.rows[:] = self._rows
        launched = zip(self._launched, values["launched"], strict=True)
        self._launched = [(vmcs, bool(was)) for (vmcs, _), was in launched]
        for (_, now), then in zip(self._plain, values["plain"], strict=True):
            take_plain(now, then)

    def is_reached(self) -> bool:
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
