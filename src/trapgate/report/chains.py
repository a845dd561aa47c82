"""Chains of nested faults: a fault whose delivery faulted, whose delivery faulted, and so on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from trapgate.trace.labels import vector_label
from trapgate.trace.reader import Trace

MOST: Final = 40
"""Chains that are told apart in a report, the commonest first."""

Step = tuple[int, int, int, int]
"""Vector (-1 for none), error code (-1 for none), disposition, injected."""

_DISPOSITIONS = ("EXIT", "DELIVER", "COMPLETE")


def chains(
    paths: Sequence[Path],
    most: int = MOST,
    progress: Callable[[float], None] | None = None,
) -> list[dict[str, Any]]:
    """The commonest chains of the traces: their steps and how often they happened.

    Events of one vCPU belong together where each has a greater depth than the one before.
    """
    found: Counter[tuple[Step, ...]] = Counter()
    for number, path in enumerate(paths):
        if progress is not None:
            progress(number / len(paths))
        with Trace(path) as trace:
            found.update(_of_trace(trace))
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:most]
    return [{"count": count, "steps": [_shown(step) for step in steps]} for steps, count in ordered]


def _of_trace(trace: Trace) -> Iterator[tuple[Step, ...]]:
    wanted = ["vm", "depth", "vector", "error_code", "disposition", "injected"]
    wanted += [name for name in ("vcpu", "thread") if name in trace.schema.names]
    before: dict[tuple[int, ...], Step] = {}
    growing: dict[tuple[int, ...], list[Step]] = {}
    for batch in trace.batches(wanted):
        columns = {name: _integers(batch.column(name)) for name in wanted}
        tracks = [columns[name] for name in ("vm", "vcpu", "thread") if name in columns]
        order = np.lexsort((np.arange(batch.num_rows), *reversed(tracks)))
        track = np.stack([column[order] for column in tracks], axis=1)
        names = ("vector", "error_code", "disposition", "injected")
        steps = np.stack([columns[name][order] for name in names], axis=1)
        depth = columns["depth"][order]
        change = np.any(track[1:] != track[:-1], axis=1)
        starts = [0, *(np.flatnonzero(change) + 1).tolist(), len(depth)]
        for first, last in pairwise(starts):
            if first == last:
                continue
            key = tuple(track[first].tolist())
            nested = np.flatnonzero(depth[first:last]) + first
            if growing.get(key) and (not len(nested) or nested[0] != first):
                yield tuple(growing.pop(key))
            yield from _nested(steps, nested, first, before.get(key), growing.setdefault(key, []))
            if growing[key] and (not len(nested) or nested[-1] != last - 1):
                yield tuple(growing.pop(key))
            before[key] = _step(steps[last - 1])
    yield from (tuple(chain) for chain in growing.values() if chain)


def _nested(
    steps: Any, nested: Any, first: int, before: Step | None, chain: list[Step]
) -> Iterator[tuple[Step, ...]]:
    """Extend `chain` by the nested events at `nested`; yield chains that end among them."""
    last = first - 1
    for at in nested.tolist():
        if chain and at != last + 1:
            yield tuple(chain)
            chain.clear()
        if not chain:
            if at > first:
                chain.append(_step(steps[at - 1]))
            elif before is not None:
                chain.append(before)
        chain.append(_step(steps[at]))
        last = at


def _step(row: Any) -> Step:
    vector, code, disposition, injected = row.tolist()
    return vector, code, disposition, injected


def _integers(column: Any) -> Any:
    if hasattr(column, "indices"):
        places = [_DISPOSITIONS.index(word) for word in column.dictionary.to_pylist()]
        return np.array(places, np.int64)[column.indices.to_numpy()]
    return column.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False)


def _shown(step: Step) -> dict[str, Any]:
    vector, code, disposition, injected = step
    label = vector_label(None if vector < 0 else vector)
    return {
        "vector": label,
        "code": "" if code < 0 else f"{code:#x}",
        "disposition": "injected" if injected else _DISPOSITIONS[disposition].lower(),
    }
