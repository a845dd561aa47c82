"""A pruned campaign has the same weighted result as one that makes every run."""

from pathlib import Path

import numpy as np
import pytest

from tests.campaign.plans import HEAD, finished, plan
from trapgate.campaign.bench import Bench
from trapgate.campaign.campaign import prepare
from trapgate.campaign.errors import PlanError
from trapgate.campaign.golden import Reference
from trapgate.campaign.moments import Course, course_of
from trapgate.campaign.pruning import classes_of
from trapgate.campaign.results import Results
from trapgate.campaign.tables import frame

WINDOWS = [("demand", 10_200_000), ("fork", 5_000_000), ("faults", 60_000)]


def head(workload: str, begin: int, length: int) -> str:
    """`faults` of the guest raises every exception, whose handlers look at all registers."""
    return (
        HEAD.replace('"demand"', f'"{workload}"')
        .replace("10_200_000", str(begin))
        .replace("3000", str(length))
    )


def weighted(results: Results) -> dict[tuple[str, str, str, int], float]:
    """Points by register, outcome, and the details of the outcome."""
    rows = frame(results).collect().to_dicts()
    found: dict[tuple[str, str, str, int], float] = {}
    for row in rows:
        detail = row["detail"] if row["outcome"] != "no effect" else ""
        key = row["target"], row["outcome"], detail, row["status"]
        found[key] = found.get(key, 0.0) + row["weight"]
    return found


def compared(workload: str, begin: int, length: int, bits: str, folder: Path) -> tuple[int, int]:
    """Both campaigns, which must agree; how many runs they have."""
    target = f'[[target]]\nregister = "general"\nbits = "{bits}"\n'
    top = head(workload, begin, length)
    every = finished(target, folder / "every", top)
    pruned = finished(target, folder / "pruned", "prune = true\n" + top)
    assert weighted(pruned) == weighted(every)
    assert sum(weighted(pruned).values()) == every.facts["space"]
    return pruned.runs_total, every.runs_total


@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
def test_pruned_is_unpruned(workload: str, begin: int, tmp_path: Path) -> None:
    few, many = compared(workload, begin, 60, "4", tmp_path)
    assert few < many * 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
def test_pruned_is_unpruned_in_longer_runs(workload: str, begin: int, tmp_path: Path) -> None:
    compared(workload, begin + 100_000, 900, "12", tmp_path)


def test_classes_end_at_accesses() -> None:
    # A register that is read at 2, overwritten at 4, and read at 5; seven instructions.
    reads = np.array([0, 0, 1, 0, 0, 1, 0], np.int64)
    writes = np.array([0, 0, 0, 0, 1, 0, 0], np.int64)
    times = np.arange(100, 107, dtype=np.int64)
    course = Course(times, times, reads, writes)
    found = classes_of(course, times, 0)
    assert found.of.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert found.lives.tolist() == [True, False, True, True]  # the last one may matter at the end
    assert found.last.tolist() == [2, 4, 5, 6]
    assert found.size.tolist() == [3, 2, 1, 1]
    some = classes_of(course, times[1::3], 0)  # 101, 104
    assert some.lives.tolist() == [True, False]
    assert some.size.tolist() == [1, 1]
    assert classes_of(course, times, 1).lives.tolist() == [True]


def test_a_sample_of_classes_stands_for_the_space(tmp_path: Path) -> None:
    body = '[[target]]\nregister = ["EAX", "EDI"]\nbits = "0-7"\n[sample]\nruns = 300\nseed = 3\n'
    results = finished(body, tmp_path / "s", "prune = true\n" + HEAD)
    rows = frame(results).collect()
    assert rows["weight"].sum() == pytest.approx(3000 * 16)
    assert results.runs_total < 300
    assert rows["run"].null_count() > 0


def test_what_has_no_classes_is_not_pruned() -> None:
    with pytest.raises(PlanError, match="only flips of general registers"):
        prepare(plan("[[target]]\nskip = true", "prune = true\n" + HEAD))
    with pytest.raises(PlanError, match="only flips of general registers"):
        prepare(plan('[[target]]\nregister = "EAX"\nmode = "set 1"', "prune = true\n" + HEAD))


def test_the_course_is_the_golden_run_s() -> None:
    reference = Reference(Bench(plan('[[target]]\nregister = "EAX"')))
    course = course_of(reference, uses=True)
    assert course.times.tolist() == list(range(10_200_000, 10_203_000))
    faults = course.reads == 0xFFFF
    assert 0 < faults.sum() < 60  # steps in which something was delivered
