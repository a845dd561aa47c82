"""Worker processes on this machine: who gets which batch, and what if one dies."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final, Self

from trapgate.campaign.errors import CampaignError
from trapgate.campaign.plan import Plan
from trapgate.campaign.worker import Tally, serve

LONGEST_RUN: Final = 60.0
"""Seconds that a run may take; then its worker is ended, and the run an error."""
MOST_STARTS: Final = 3
"""How often workers may die between two runs."""
_LOOK = 1.0


@dataclass
class _Process:
    """A worker as the coordinator sees it."""

    process: Any
    pipe: Any
    now: Any
    batch: int | None = None
    run: int = -1
    since: float = field(default_factory=time.monotonic)


class Pool:
    """`count` workers for the campaign in `folder`."""

    def __init__(self, plan: Plan, folder: Path, count: int) -> None:
        # Not forked: engines do not survive that.
        self._context = multiprocessing.get_context("spawn")
        self._arguments = (plan.text, plan.path, str(plan.folder)), str(folder)
        self._failed: dict[int, str] = {}
        self._suspected: set[int] = set()
        self._deaths = 0
        self._workers = [self._start() for _ in range(count)]

    def _start(self) -> _Process:
        pipe, other = self._context.Pipe()
        now = self._context.Value("q", -1, lock=False)
        process = self._context.Process(
            target=serve, args=(other, *self._arguments, now), daemon=True
        )
        process.start()
        other.close()
        return _Process(process, pipe, now)

    def work(self, batches: Sequence[int], size: int) -> Iterator[tuple[int, Tally]]:
        """Run all batches; each is given with its tally when its results are stored.

        A worker that dies takes its batch with it, which another one begins anew; a run that
        two died of is an error. Raises CampaignError for what no worker can mend.
        """
        todo = list(reversed(batches))
        left = len(todo)
        while left:
            ready = wait([one.pipe for one in self._workers], timeout=_LOOK)
            for worker in list(self._workers):
                if worker.pipe in ready:
                    done = self._receive(worker, todo)
                    if done is not None:
                        left -= 1
                        yield done
                else:
                    self._watch(worker)

    def _receive(self, worker: _Process, todo: list[int]) -> tuple[int, Tally] | None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._discard_dead(worker, todo)
            return None
        if isinstance(message, str):
            raise CampaignError(message)
        batch, worker.batch = worker.batch, None
        worker.since = time.monotonic()
        if todo:
            worker.batch = todo.pop()
            worker.pipe.send((worker.batch, self._failed))
        return None if batch is None else (batch, message)

    def _watch(self, worker: _Process) -> None:
        """End a worker whose run takes too long; its pipe then tells."""
        now, run = time.monotonic(), int(worker.now.value)
        if run != worker.run:
            worker.run, worker.since = run, now
        elif run >= 0 and now - worker.since > LONGEST_RUN:
            worker.process.kill()

    def _discard_dead(self, worker: _Process, todo: list[int]) -> None:
        worker.process.join()
        run = int(worker.now.value)
        if run in self._suspected:
            self._failed[run] = (
                f"workers die of it, or it takes longer than {LONGEST_RUN:.0f} seconds "
                f"(status {worker.process.exitcode})"
            )
        elif run >= 0:
            self._suspected.add(run)  # somebody may have killed the worker: try again
        else:
            self._deaths += 1
            if self._deaths >= MOST_STARTS:
                raise CampaignError(
                    f"workers die before they run anything (status {worker.process.exitcode}); "
                    "give --workers 1, or look for memory"
                )
        if worker.batch is not None:
            todo.append(worker.batch)
        self._workers.remove(worker)
        self._workers.append(self._start())

    def close(self) -> None:
        """End all workers, at once: their parts appear whole or not at all."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
