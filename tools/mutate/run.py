"""Runs tests on mutants: each mutant in a process forked off one that has collected the tests.

First every test runs once on the unchanged code, to see how long it takes and which lines of
the mutated modules it executes. For a mutant those tests run that execute its lines, the
shortest first, until one fails.
"""

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest

from tools.mutate.mutants import Mutant, put_in

_PATIENCE = 0.5
"""A mutant has hung if a test takes so many seconds of processor time more than on the
unchanged code with its lines traced."""

Recorder = Callable[[Mutant, str], None]


@dataclass
class Request:
    """Mutants, their modules by name, the tests' paths, and whether the core runs interpreted."""

    mutants: list[Mutant]
    modules: dict[str, ModuleType]
    tests: list[str]
    interpreted: bool


@dataclass
class Baseline:
    """What the unchanged code did in each test: seconds, and lines by file."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, set[tuple[str, int]]] = field(default_factory=dict)


class _Plugin:
    """Takes over once the tests are collected."""

    def __init__(self, request: Request, record: Recorder, processes: int) -> None:
        self.request = request
        self.record = record
        self.processes = processes
        self.failed = False

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        # The same examples for each mutant, and no search for the smallest.
        settings.register_profile(
            "mutants",
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.explicit, Phase.generate],
        )
        settings.load_profile("mutants")
        if self.request.interpreted:
            from trapgate.compiler import program

            program.alone = lambda function, *_: function

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for mutant, answer in _answers(self, session):
            self.record(mutant, answer)
        return True


def try_all(request: Request, record: Recorder, *, processes: int) -> None:
    """Try all mutants and tell `record`: died, hung, survived, or untested if no test runs them."""
    if not request.mutants:
        return
    plugin = _Plugin(request, record, processes)
    options = ["-q", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "--no-summary"]
    # Polars' threads do not live through a fork.
    options += ["-k", "not polars", "-W", "ignore"]
    status = pytest.main([*options, *request.tests], plugins=[plugin])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise SystemExit(f"pytest ended with {status!r} before any mutant")


def _answers(plugin: _Plugin, session: pytest.Session) -> Iterator[tuple[Mutant, str]]:
    baseline = _unchanged(plugin, session)
    items = {item.nodeid: item for item in session.items}
    order = sorted(baseline.lines, key=lambda test: baseline.seconds[test])
    running: dict[int, tuple[Mutant, int]] = {}
    killers: dict[str, list[str]] = {}
    began = time.monotonic()

    def ended() -> tuple[Mutant, str]:
        mutant, answer, killer = _ended(running)
        if killer:
            # The next mutant of the function may well die of the same test.
            known = killers.setdefault(mutant.function, [])
            killers[mutant.function] = [killer, *(test for test in known if test != killer)]
        return mutant, answer

    for number, mutant in enumerate(plugin.request.mutants, 1):
        file = str(plugin.request.modules[mutant.module].__file__)
        lines = {(file, line) for line in range(mutant.first, mutant.last + 1)}
        first = killers.get(mutant.function, [])
        tests = [*first, *(test for test in order if test not in first)]
        chosen = [items[test] for test in tests if not lines.isdisjoint(baseline.lines[test])]
        if not chosen:
            yield mutant, "untested"
            continue
        while len(running) >= plugin.processes:
            yield ended()
        pid, told = _start(plugin, mutant, chosen, baseline)
        running[pid] = mutant, told
        if number % 100 == 0:
            seconds = time.monotonic() - began
            print(
                f"{number:,} of {len(plugin.request.mutants):,}, {seconds:.0f} s", file=sys.stderr
            )
    while running:
        yield ended()


def _ended(running: dict[int, tuple[Mutant, int]]) -> tuple[Mutant, str, str]:
    """Wait for a mutant's end: the mutant, the answer, and the test that it died of."""
    while True:
        pid, status = os.wait()
        if pid in running:
            break
    mutant, told = running.pop(pid)
    with os.fdopen(told, "rb") as words:
        killer = words.read().decode()
    if os.WIFSIGNALED(status):
        return mutant, "hung" if os.WTERMSIG(status) == signal.SIGVTALRM else "died", ""
    return mutant, "survived" if os.WEXITSTATUS(status) == 0 else "died", killer


def _start(
    plugin: _Plugin, mutant: Mutant, items: list[pytest.Item], baseline: Baseline
) -> tuple[int, int]:
    """A process for the mutant: its number, and where it will tell which test has failed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        _discard_output()
        put_in(mutant, plugin.request.modules[mutant.module])
        plugin.failed = False
        for item in items:
            seconds = baseline.seconds[item.nodeid] + _PATIENCE
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds)  # which ends the process
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if plugin.failed:
                os.write(writing, item.nodeid.encode())
                os._exit(1)
        os._exit(0)
    except BaseException:  # noqa: BLE001  whatever it was, a test run would have seen it
        os._exit(1)


def _discard_output() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)


def _unchanged(plugin: _Plugin, session: pytest.Session) -> Baseline:
    """Every test on the code as it is; in a process of its own, whose threads end with it."""
    files = {str(module.__file__) for module in plugin.request.modules.values()}
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _discard_output()
        baseline = Baseline()
        bad = []
        for item in session.items:
            lines: set[tuple[str, int]] = set()
            began = time.process_time()
            _traced(item, files, lines)
            if plugin.failed:
                bad.append(item.nodeid)
                plugin.failed = False
            elif lines:
                baseline.lines[item.nodeid] = lines
                baseline.seconds[item.nodeid] = time.process_time() - began
        with os.fdopen(writing, "wb") as out:
            pickle.dump((baseline, bad), out)
        os._exit(0)
    os.close(writing)
    data = Path(f"/dev/fd/{reading}").read_bytes()
    os.close(reading)
    os.waitpid(pid, 0)
    told: tuple[Baseline, list[str]] = pickle.loads(data)  # our own child's
    baseline, bad = told
    for test in bad:
        print(f"fails on the unchanged code, and is left out: {test}", file=sys.stderr)
    total = sum(baseline.seconds.values())
    print(f"{len(baseline.lines):,} tests run lines of these, {total:.0f} s", file=sys.stderr)
    return baseline


def _traced(item: pytest.Item, files: set[str], lines: set[tuple[str, int]]) -> None:
    def local(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    def entered(frame: FrameType, event: str, argument: object) -> Any:
        return local if frame.f_code.co_filename in files else None

    sys.settrace(entered)
    try:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    finally:
        sys.settrace(None)
