"""Counting on several processes or machines, with Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trapgate.errors import TrapgateError
from trapgate.replay.replay import Tally
from trapgate.replay.tally import Asked, merged, rows_of, tally
from trapgate.trace.frames import is_weighted, optional, polars, reading, scan
from trapgate.trace.reader import Trace

if TYPE_CHECKING:
    from polars import LazyFrame

GROUPS: Final = 16
"""Row groups of a piece of work: with those that the processor writes, a million rows."""

RETRIES: Final = 5
"""How often a piece is tried again whose worker died."""


class ClusterError(TrapgateError):
    """No Ray cluster answers at the address that was given."""


def pieces(traces: Sequence[Path], groups: int = GROUPS) -> list[tuple[str, int, int]]:
    """The work: (file, first row group, last row group + 1)."""
    work = []
    for path in traces:
        with Trace(path) as trace:
            count = trace.row_groups
        work += [
            (str(Path(path).resolve()), start, min(start + groups, count))
            for start in range(0, count, groups)
        ]
    return work


def tally_piece(path: str, first: int, last: int, pairs: Sequence[Asked]) -> list[dict[str, int]]:
    """The tally of some row groups of a file, as plain rows."""
    with Trace(path) as trace:
        starts = trace.group_starts
    with reading([path]):
        lazy: LazyFrame = scan([path]).slice(starts[first], starts[last] - starts[first])
        return rows_of(tally(lazy, pairs, weighted=is_weighted([path])))


def on_cluster(address: str) -> Tally:
    """A way to count rows: on a Ray cluster at `address`, or a new one here if it is `local`.

    The machines of a remote cluster must see the files under the same paths. The result
    is the same to the last digit as in one process: pieces are counted in integers, and
    one whose worker died is counted again.

    Raises: MissingExtraError without ray; ClusterError if there is no cluster.
    """
    ray = optional("ray", "cluster", "--cluster")

    def tallied(traces: Sequence[Path], pairs: Sequence[Asked]) -> Any:
        polars()
        with connected(ray, address):
            task = ray.remote(num_cpus=1, max_retries=RETRIES)(tally_piece)
            work = pieces(traces)
            running = [task.remote(*piece, list(pairs)) for piece in work]
            try:
                return merged(ray.get(running), pairs)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, TrapgateError):
                    raise error.cause from None
                raise

    return tallied


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """A cluster while this lasts: the caller's own, the one at `address`, or a `local` new one.

    Raises ClusterError if there is none.
    """
    if ray.is_initialized():
        yield  # the caller's own cluster
        return
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        settings |= {"num_cpus": os.cpu_count() or 1, "include_dashboard": False}
    else:
        settings |= {"address": address}
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as why:
        reason = " ".join(str(why).split(". ")[0].split())
        raise ClusterError(
            f"--ray {address}: no Ray cluster answers ({reason}); start one with `ray start "
            "--head`, or use --ray local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()
