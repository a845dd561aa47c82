"""A pruned campaign has the same weighted result as one that makes every run."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.campaign.plans import HEAD, finished, plan
from trapgate.campaign.bench import Bench
from trapgate.campaign.campaign import prepare
from trapgate.campaign.errors import PlanError
from trapgate.campaign.golden import Reference
from trapgate.campaign.memory_uses import MemoryUses
from trapgate.campaign.moments import instructions_of_golden_run
from trapgate.campaign.pruning import LIVES, OVERWRITTEN, STAYS, classes_of
from trapgate.campaign.results import Results
from trapgate.campaign.tables import frame
from trapgate.campaign.uses import ALL
from trapgate.processor.operand import Operand

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
        detail = row["detail"] if row["outcome"] not in {"no effect", "latent"} else ""
        key = row["target"], row["outcome"], detail, row["status"]
        found[key] = found.get(key, 0.0) + row["weight"]
    return found


def compared(target: str, top: str, folder: Path) -> tuple[int, int]:
    """Both campaigns, which must agree; how many runs they have."""
    every = finished(target, folder / "every", top)
    pruned = finished(target, folder / "pruned", "prune = true\n" + top)
    assert weighted(pruned) == weighted(every)
    assert sum(weighted(pruned).values()) == every.facts["space"]
    return pruned.runs_total, every.runs_total


def registers(bits: str) -> str:
    return f'[[target]]\nregister = "general"\nbits = "{bits}"\n'


def memory(top: str, count: int) -> str:
    """Targets in some of the bytes that a golden run touches, and one that it does not."""
    reference = Reference(Bench(plan('[[target]]\nregister = "EAX"', top)))
    memory_uses = instructions_of_golden_run(reference, memory=[(0, 16 << 20)]).memory_uses
    found = random.Random(1).sample(memory_uses.addresses, count)
    return "".join(
        f'[[target]]\nmemory = "{at:#x}"\nbits = "{at % 8}"\n' for at in (*found, 0xA0_0000)
    )


def linear_addresses(top: str) -> list[int]:
    """Linear addresses that a golden run accesses, and two that nobody does, one of them mapped."""
    found: set[int] = {0x7FFF_0000, 0x10_0000}

    class Noted(MemoryUses):
        def _touch(self, linear: int, size: int, *, read: bool, write: bool = False) -> None:
            found.add(linear & 0xFFFF_FFFF)
            super()._touch(linear, size, read=read, write=write)

    bench = Reference(Bench(plan('[[target]]\nregister = "EAX"', top))).bench
    bench.go_to(bench.start)
    noted = Noted(bench.vm, [])
    while bench.vm.processor.time < bench.start + bench.plan.end.count:
        noted.before(Operand(bench.vm.processor, bench.vm.vmcs.cells))
        bench.vm.step(1)
        noted.after(0)
    return sorted(found)


def linear(top: str, count: int) -> str:
    """Targets in some of the bytes that a golden run accesses by linear addresses."""
    found = random.Random(2).sample(linear_addresses(top), count)
    return "".join(f'[[target]]\nlinear = "{at:#x}"\nbits = "{at % 8}"\n' for at in found)


@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
def test_pruned_is_unpruned(workload: str, begin: int, tmp_path: Path) -> None:
    few, many = compared(registers("4"), head(workload, begin, 60), tmp_path)
    assert few < many * 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
def test_pruned_is_unpruned_in_longer_runs(workload: str, begin: int, tmp_path: Path) -> None:
    compared(registers("12"), head(workload, begin + 100_000, 900), tmp_path)


@pytest.mark.parametrize(("workload", "begin"), [("demand", 10_200_000), ("faults", 60_000)])
def test_pruned_is_unpruned_in_memory(workload: str, begin: int, tmp_path: Path) -> None:
    top = head(workload, begin, 60)
    few, many = compared(memory(top, 25), top, tmp_path)
    assert few < many * 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
def test_pruned_is_unpruned_in_memory_in_longer_runs(
    workload: str, begin: int, tmp_path: Path
) -> None:
    top = head(workload, begin + 100_000, 600)
    compared(memory(top, 60), top, tmp_path)


@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
@pytest.mark.parametrize(
    "bits",
    [
        "0",
        "6-7",
        "8-11",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("2", "4", "14-22")),
    ],
)
def test_pruned_is_unpruned_in_flags(bits: str, workload: str, begin: int, tmp_path: Path) -> None:
    target = f'[[target]]\nflags = true\nbits = "{bits}"\n'
    few, many = compared(target, head(workload, begin, 40), tmp_path)
    if int(bits[0]) < 8 and "-" not in bits:
        assert few < many * 0.8


@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
def test_pruned_is_unpruned_in_linear_memory(workload: str, begin: int, tmp_path: Path) -> None:
    top = head(workload, begin, 60)
    few, many = compared(linear(top, 12), top, tmp_path)
    assert few < many * 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("workload", "begin"), WINDOWS)
def test_pruned_is_unpruned_where_pages_come_and_go(
    workload: str, begin: int, tmp_path: Path
) -> None:
    top = head(workload, begin + 100_000, 600)
    compared(linear(top, 40), top, tmp_path)


def test_flips_leave_cached_translations_alone(tmp_path: Path) -> None:
    # The guest exchanges a page-table entry just before the byte of code that is flipped.
    target = '[[target]]\nmemory = "0x1015d9"\nbits = "1"\n'
    compared(target, head("fork", 5_100_000, 60), tmp_path)


def test_classes_end_at_accesses() -> None:
    # Something that is read at 2, overwritten at 4, and read at 5; seven instructions.
    accesses, reads = np.array([2, 4, 5]), np.array([True, False, True])
    found = classes_of(np.arange(7), accesses, reads, LIVES)
    assert found.of.tolist() == [0, 0, 0, 1, 1, 2, 3]
    assert found.fate.tolist() == [LIVES, OVERWRITTEN, LIVES, LIVES]
    assert found.last.tolist() == [2, 4, 5, 6]
    assert found.size.tolist() == [3, 2, 1, 1]
    some = classes_of(np.array([1, 4]), accesses, reads, STAYS)
    assert some.fate.tolist() == [LIVES, OVERWRITTEN]
    assert some.size.tolist() == [1, 1]
    assert classes_of(np.arange(7), accesses[:0], reads[:0], STAYS).fate.tolist() == [STAYS]


def test_a_sample_of_classes_stands_for_the_space(tmp_path: Path) -> None:
    body = '[[target]]\nregister = ["EAX", "EDI"]\nbits = "0-7"\n[sample]\nruns = 300\nseed = 3\n'
    results = finished(body, tmp_path / "s", "prune = true\n" + HEAD)
    rows = frame(results).collect()
    assert rows["weight"].sum() == pytest.approx(3000 * 16)
    assert results.runs_total < 300
    assert rows["run"].null_count() > 0


def test_a_sample_of_classes_of_memory_stands_for_the_space(tmp_path: Path) -> None:
    body = '[[target]]\nmemory = "0x100000-0x3fffff"\n[sample]\nruns = 400\nseed = 3\n'
    results = finished(body, tmp_path / "s", "prune = true\n" + HEAD)
    rows = frame(results).collect()
    assert rows["weight"].sum() == pytest.approx(3000 * (3 << 20) * 8)
    assert results.runs_total < 100
    unread = rows.filter(rows["run"].is_null())
    assert "latent" in set(unread["outcome"].cast(str)) <= {"latent", "no effect"}


@pytest.mark.parametrize(
    ("target", "top", "words"),
    [
        ("skip = true", HEAD, "only flips of general registers"),
        ('flags = true\nmode = "set 0"', HEAD, "only flips of general registers"),
        ('linear = "0-0xffffffff"', HEAD, "at most 4,096 linear pages"),
        ('entries = "0x40000000"', HEAD, "only flips of general registers"),
        ('register = "EAX"\nmode = "set 1"', HEAD, "only flips of general registers"),
        (
            'memory = "0x1000"',
            HEAD.replace("[guest]", '[guest]\npaging = "direct"'),
            "the VMM reads the guest's memory",
        ),
        (
            'linear = "0x1000"',
            HEAD.replace("[guest]", '[guest]\npaging = "direct"'),
            "the VMM reads the guest's memory",
        ),
    ],
)
def test_what_has_no_classes_is_not_pruned(target: str, top: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        prepare(plan(f"[[target]]\n{target}", "prune = true\n" + top))


def test_the_course_is_the_golden_run_s() -> None:
    reference = Reference(Bench(plan('[[target]]\nregister = "EAX"')))
    course = instructions_of_golden_run(reference, uses=True)
    assert course.times.tolist() == list(range(10_200_000, 10_203_000))
    faults = course.reads == ALL
    assert 0 < faults.sum() < 60  # steps in which something was delivered
