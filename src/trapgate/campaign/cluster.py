"""A campaign on a Ray cluster: the same batches, the same parts, in whatever order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from trapgate.campaign.errors import CampaignError
from trapgate.campaign.plan import Plan, parse_plan
from trapgate.campaign.results import Results
from trapgate.campaign.worker import Tally, Worker
from trapgate.errors import TrapgateError
from trapgate.replay.cluster import connected
from trapgate.trace.frames import optional

MOST_DEATHS: Final = 3
"""How often workers may die of a batch."""


class ClusterWorker:
    """A worker in a process of the cluster's, whose machine sees the files under the same paths."""

    def __init__(self, text: str, name: str, base: str, folder: str) -> None:
        self._arguments = text, name, Path(base), Path(folder)
        self._worker: Worker | None = None

    def work(self, batch: int) -> Tally:
        """Run a batch and store its results."""
        if self._worker is None:  # not before: what is wrong with a plan comes back from here
            text, name, base, folder = self._arguments
            self._worker = Worker(parse_plan(text, name, base), folder)
        return self._worker.work(batch, {})


def work_on_cluster(
    address: str, plan: Plan, results: Results, batches: Sequence[int]
) -> Iterator[tuple[int, Tally]]:
    """Run all batches on the Ray cluster at `address`, or on a new one here if it is `local`.

    A worker that dies costs its batch, which another one begins anew. Raises MissingExtraError
    without ray, ClusterError if there is no cluster, CampaignError for what no worker can mend.
    """
    ray = optional("ray", "cluster", "--ray")
    with connected(ray, address):
        actor = ray.remote(num_cpus=1, max_restarts=0)(ClusterWorker)
        arguments = plan.text, plan.path, str(plan.folder.resolve()), str(results.folder.resolve())
        count = min(max(1, int(ray.cluster_resources().get("CPU", 1))), len(batches))
        todo = list(reversed(batches))
        deaths: Counter[int] = Counter()
        running: dict[Any, tuple[Any, int]] = {}

        def start(worker: Any) -> None:
            if todo:
                batch = todo.pop()
                running[worker.work.remote(batch)] = worker, batch

        for _ in range(count):
            start(actor.remote(*arguments))
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            worker, batch = running.pop(done[0])
            try:
                tally: Tally = ray.get(done[0])
            except ray.exceptions.RayActorError:
                deaths[batch] += 1
                if deaths[batch] >= MOST_DEATHS:
                    raise CampaignError(
                        f"workers die of batch {batch}; run the campaign without --ray, which "
                        "names the run, and continues after it"
                    ) from None
                todo.append(batch)
                worker = actor.remote(*arguments)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, TrapgateError):
                    raise error.cause from None
                raise
            else:
                yield batch, tally
            start(worker)
