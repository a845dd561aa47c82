"""A campaign's directory: plan, environment, golden run, and the results in parts.

A part holds the results of one batch of runs and appears whole or not at all. Which runs a
batch consists of follows from the plan and the golden run alone, so that a campaign continues where
it was stopped: batches that have no part are run.

    campaign.json   plan's digest, environment, golden run, number of runs and size of batches
    plan.toml       the plan as it was
    space.parquet   moment, number of fault and weight of each run
    pruned.parquet  rows for what is known without a run, if the plan prunes
    beginning.snapshot  the machine at the golden run's beginning, if it takes long to get there
    parts/N.parquet results of batch N
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trapgate.campaign.errors import CampaignError
from trapgate.campaign.execute import Result
from trapgate.campaign.faults import Fault
from trapgate.campaign.plan import Plan
from trapgate.campaign.runs import MOST_RUNS, Runs

FORMAT: Final = 1
KEEP_FREE: Final = 256 << 20
"""Bytes that are left free on the disk."""
_BEGINNING = "beginning.snapshot"
_SPACE_FILE = "space.parquet"
_PRUNED = "pruned.parquet"
_BATCHES = 32
_SMALLEST_BATCH, _LARGEST_BATCH = 100, 10_000

_NAME = pa.dictionary(pa.int32(), pa.string())
SCHEMA: Final = pa.schema(
    [
        ("run", pa.int64()),
        ("moment", pa.int64()),
        ("rip", pa.uint64()),
        ("symbol", _NAME),
        ("target", _NAME),
        ("bit", pa.int16()),
        ("fault", _NAME),
        ("weight", pa.float64()),
        ("outcome", _NAME),
        ("end", _NAME),
        ("status", pa.int32()),
        ("detail", _NAME),
        ("instructions", pa.int64()),
        ("output", pa.string()),
    ]
)
"""A row a run; of what is known without one `run` is null. `moment` counts instructions since the
guest's start, `bit` is null for events."""
_SPACE = pa.schema([("moment", pa.int64()), ("fault", pa.int64()), ("weight", pa.float64())])


_FACTS: Final[dict[str, type]] = {
    **dict.fromkeys(("runs", "batch", "space", "drawn", "moments", "faults"), int),
    **dict.fromkeys(("title", "plan", "plan_folder", "plan_sha256"), str),
    **dict.fromkeys(("exact", "wide"), bool),
    **dict.fromkeys(("environment", "golden"), dict),
    "confidence": float,
}
"""What campaign.json holds at least."""


def batch_size(runs: int) -> int:
    """Runs of a batch."""
    return min(max(-(-runs // _BATCHES), _SMALLEST_BATCH), _LARGEST_BATCH)


class Results:
    """The directory `folder` of a campaign. `create` makes one, `open` finds one."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder = folder
        self.facts = facts
        self.runs_total = int(facts["runs"])
        self.batch = int(facts["batch"])
        self._parts = folder / "parts"
        self._pruned = folder / _PRUNED

    @classmethod
    def create(
        cls,
        folder: Path,
        plan: Plan,
        facts: Mapping[str, Any],
        runs: Runs,
        pruned: pa.Table | None = None,
        save: Callable[[Path], None] | None = None,
    ) -> Results:
        """A new directory, or an empty one, for these runs and rows for what need not be run.

        `save` may write the golden run's beginning to a file. What somebody had begun to make who
        was killed is made anew.

        Raises CampaignError if it holds something else, and if the disk has no room.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            parts = folder / "parts"
            if not _is_begun(folder):
                raise CampaignError(f"{folder}: holds something else; give a new directory")
            for name in (_SPACE_FILE, _PRUNED, _BEGINNING):
                (folder / name).unlink(missing_ok=True)
            parts.mkdir(exist_ok=True)
            columns = [pa.array(runs.moments), pa.array(runs.faults), pa.array(runs.weights)]
            _write(folder / _SPACE_FILE, pa.Table.from_arrays(columns, schema=_SPACE))
            if pruned is not None:
                _write(folder / _PRUNED, pruned)
        except OSError as error:
            raise CampaignError(
                f"{folder}: cannot be made ({error.strerror}); give another directory"
            ) from None
        if save is not None and shutil.disk_usage(folder).free > KEEP_FREE + plan.guest.memory:
            save(folder / _BEGINNING)
        _replace(folder / "plan.toml", plan.text.encode())
        every = {
            "format": FORMAT,
            "title": plan.title,
            "plan": plan.path,
            "plan_folder": str(plan.folder.resolve()),
            "plan_sha256": plan.digest,
            "runs": len(runs),
            "space": runs.space,
            "batch": batch_size(len(runs)),
            **facts,
        }
        # The last file to appear: without it there is no campaign.
        _replace(folder / "campaign.json", json.dumps(every, indent=1).encode())
        return cls(folder, every)

    @classmethod
    def open(cls, folder: Path) -> Results:
        """The campaign in `folder`. Raises CampaignError if there is none."""
        path = folder / "campaign.json"
        try:
            facts = json.loads(path.read_bytes())
            if not isinstance(facts, dict) or facts["format"] != FORMAT:
                raise CampaignError(f"{path}: made by another version; run the campaign again")
            for name, kind in _FACTS.items():
                if not isinstance(facts[name], kind):
                    raise ValueError(name)  # noqa: TRY004, TRY301 - as for what is not JSON
            if not 0 < facts["runs"] <= MOST_RUNS or facts["batch"] != batch_size(facts["runs"]):
                raise ValueError("runs")  # noqa: TRY301
            if not 0 < facts["drawn"] <= facts["space"]:
                raise ValueError("space")  # noqa: TRY301
            return cls(folder, facts)
        except OSError as error:
            raise CampaignError(
                f"{folder}: contains no campaign ({error.strerror}); give the directory of one"
            ) from None
        except (ValueError, KeyError, TypeError):
            raise CampaignError(f"{path}: damaged; run the campaign again") from None

    @classmethod
    def exists(cls, folder: Path) -> bool:
        """Whether there is a campaign in `folder`."""
        return (folder / "campaign.json").exists()

    def demand_plan(self, plan: Plan) -> None:
        """Raise CampaignError if these are another plan's results."""
        if self.facts.get("plan_sha256") != plan.digest:
            raise CampaignError(
                f"{self.folder}: holds the results of another plan "
                f"({self.facts.get('title')!r}); give another directory"
            )

    @property
    def runs(self) -> Runs:
        """What is run. Raises CampaignError if the file is damaged."""
        table = self.read(self.folder / _SPACE_FILE, _SPACE)
        if table.num_rows != self.runs_total:
            raise CampaignError(f"{self.folder}/space.parquet: damaged; run the campaign again")
        return Runs(
            table.column("moment").to_numpy(),
            table.column("fault").to_numpy(),
            table.column("weight").to_numpy(),
            space=int(self.facts["space"]),
            exact=bool(self.facts["exact"]),
            drawn=int(self.facts["drawn"]),
        )

    @property
    def draws_per_point(self) -> float:
        """How many draws of a sample a point of the space stands for; 1 of all of it."""
        return float(self.facts["drawn"]) / float(self.facts["space"])

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-self.runs_total // self.batch)

    def range_of(self, batch: int) -> range:
        """The numbers of a batch's runs."""
        return range(batch * self.batch, min((batch + 1) * self.batch, self.runs_total))

    def part(self, batch: int) -> Path:
        """Where a batch's results are, once there are any."""
        return self._parts / f"{batch:06}.parquet"

    @property
    def beginning(self) -> Path | None:
        """The golden run's beginning as a saved machine, if it was worth that."""
        path = self.folder / _BEGINNING
        return path if path.exists() else None

    def clear_drafts(self) -> None:
        """Remove what killed processes had not finished."""
        for path in self._parts.glob(".*"):
            path.unlink(missing_ok=True)

    def missing(self) -> list[int]:
        """Batches without results."""
        return [batch for batch in range(self.batches) if not self._is_there(batch)]

    def _is_there(self, batch: int) -> bool:
        path = self.part(batch)
        try:
            found = pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            return False  # a part that is not a part is made anew
        rows = len(self.range_of(batch))
        return int(found.num_rows) == rows and found.schema.names == SCHEMA.names

    def keep(self, batch: int, table: pa.Table) -> None:
        """Store a batch's results. Raises CampaignError if the disk has no room for them."""
        try:
            if shutil.disk_usage(self._parts).free < KEEP_FREE:
                raise CampaignError(
                    f"{self._parts}: less than {KEEP_FREE >> 20} MiB are left on the disk; make "
                    "room and run the campaign again: it continues from here"
                )
            _write(self.part(batch), table)
        except OSError as error:
            raise CampaignError(
                f"{self._parts}: the disk refused a write ({error.strerror}); make room and run "
                "the campaign again: it continues from here"
            ) from None

    def parts(self) -> list[Path]:
        """The parts that there are."""
        numbers = sorted(int(path.stem) for path in self._parts.glob("[0-9]*.parquet"))
        return [self.part(batch) for batch in numbers if self._is_there(batch)]

    def tables(self) -> list[Path]:
        """The parts, and before them what is known without a run."""
        return [self._pruned, *self.parts()] if self.has_pruned else self.parts()

    @property
    def has_pruned(self) -> bool:
        """Whether there is something known without a run."""
        return self._pruned.exists()

    def row(self, run: int) -> dict[str, Any] | None:
        """The result of a run; None if it has not been run."""
        if not 0 <= run < self.runs_total:
            raise CampaignError(f"there is no run {run}; choose from 0 to {self.runs_total - 1}")
        batch = run // self.batch
        if not self._is_there(batch):
            return None
        found: dict[str, Any] = (
            self.read(self.part(batch), SCHEMA).slice(run % self.batch, 1).to_pylist()[0]
        )
        return found

    @staticmethod
    def read(path: Path, schema: pa.Schema) -> pa.Table:
        """A file of the directory. Raises CampaignError if it is damaged."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            raise CampaignError(f"{path}: cannot be read ({error}); remove it") from None
        if not table.schema.equals(schema):
            raise CampaignError(f"{path}: has other columns; remove it")
        return table

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time runs a campaign. Raises CampaignError if another one does."""
        with locked(self.folder):
            yield


def _is_begun(folder: Path) -> bool:
    """Whether a directory holds nothing, or what a killed process had begun to make."""
    drafts = [f".{name}." for name in (_SPACE_FILE, _PRUNED, _BEGINNING, "plan.toml")]
    ours = {"lock", "parts"}
    if (folder / _SPACE_FILE).exists():
        ours |= {_SPACE_FILE, _PRUNED, _BEGINNING, "plan.toml"}
    parts = folder / "parts"
    return not (parts.exists() and any(parts.iterdir())) and all(
        one.name in ours or any(one.name.startswith(draft) for draft in drafts)
        for one in folder.iterdir()
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the directory for this process; what a killed one held is free."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CampaignError(
                f"{folder}: another process is running this campaign; wait for it, or stop it"
            ) from None
        yield


def table_of(
    numbers: NDArray[np.int64] | None,
    moments: NDArray[np.int64],
    faults: Sequence[Fault],
    weights: NDArray[np.float64],
    results: Sequence[Result],
    symbols: Sequence[str],
) -> pa.Table:
    """The rows of a batch; without `numbers` of what is known without a run."""
    if not results:
        return SCHEMA.empty_table()

    def named(values: Sequence[str]) -> pa.Array:
        return pa.array(values, pa.string()).dictionary_encode()

    # A column a time, and what faults say of themselves once for each of them.
    outcomes, ends, statuses, details, rips, instructions, outputs = zip(*results, strict=True)
    which = {id(one): n for n, one in enumerate(faults)}
    known = [faults[n] for n in which.values()]
    place = {number: n for n, number in enumerate(which)}
    places = np.array([place[id(one)] for one in faults], np.int32)
    bits = np.array([one.bit for one in known], np.int16)[places]

    def of_fault(words: list[str]) -> pa.Array:
        names, inverse = np.unique(words, return_inverse=True)
        return pa.DictionaryArray.from_arrays(
            inverse.astype(np.int32)[places], pa.array(names.tolist(), pa.string())
        )

    arrays = [
        pa.nulls(len(results), pa.int64()) if numbers is None else pa.array(numbers),
        pa.array(moments),
        pa.array(np.array(rips, np.int64).view(np.uint64)),
        named(symbols),
        of_fault([one.target for one in known]),
        pa.array(bits, mask=bits < 0),
        of_fault([one.what for one in known]),
        pa.array(weights),
        named(outcomes),
        named(ends),
        pa.array(statuses, pa.int32()),
        named(details),
        pa.array(instructions, pa.int64()),
        pa.array(outputs, pa.string()),
    ]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def _write(path: Path, table: pa.Table) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, draft, compression="zstd", compression_level=1)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise CampaignError(
            f"{path}: cannot be written ({error.strerror}); give another folder"
        ) from None
    finally:
        draft.unlink(missing_ok=True)
