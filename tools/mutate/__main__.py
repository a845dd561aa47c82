"""Do the quick tests notice small faults? `python -m tools.mutate [PART ...]`.

Makes mutants of the modules that decide (`tools.mutate.mutants`), runs for each the quick
tests that execute the changed lines, and prints how many died. The core runs interpreted, so
no test detects a mutant by comparing it with machine code of the unchanged source. Results are
kept in build/mutants.jsonl: a second call repeats only what survived, and functions that have
changed. Accepted survivors are listed with their reasons in tests/mutants.toml.

Exit status: 0 if at least 95 % of the mutants of each part died, those with a reason to live
left out, else 1.

Examples:
  python -m tools.mutate                    all parts, two processes
  python -m tools.mutate events             one part
  python -m tools.mutate decision --fresh   asks again for those that have died, too
"""

import argparse
import importlib
import json
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tools.mutate.mutants import Mutant, mutants_of
from tools.mutate.run import Request, try_all

ROOT = Path(__file__).parents[2]
ANSWERS = ROOT / "build" / "mutants.jsonl"
REASONS = ROOT / "tests" / "mutants.toml"
LEAST = 0.95
ALIVE = "survived", "untested"


@dataclass(frozen=True)
class Part:
    """Modules of `trapgate`, and the quick tests that are about them."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


PARTS = {
    "decision": Part(
        (
            "decision.decide",
            "decision.faults",
            "decision.self_map",
        ),
        (
            "unit/test_criteria_table.py",
            "unit/test_decide.py",
            "unit/test_faults.py",
            "unit/test_self_map.py",
        ),
    ),
    "tables": Part(
        ("decision.criteria_table",),
        ("unit/test_criteria_table.py", "unit/test_criteria_words.py"),
    ),
    "rules": Part(
        ("decision.clauses", "decision.rules", "decision.fault_filters"),
        (
            "unit/test_criteria_table.py",
            "unit/test_rules.py",
            "unit/test_decide.py",
            "unit/test_fault_filters.py",
            "unit/test_self_map.py",
        ),
    ),
    "filters": Part(
        ("decision.entry_facts", "decision.frame_filters", "paging.frame_map"),
        ("unit/test_frame_filters.py",),
    ),
    "events": Part(
        (
            "events.breakpoints",
            "events.delivery",
            "events.descriptors",
            "events.exits",
            "events.frame",
            "events.idt",
            "events.ivt",
            "events.journal",
            "events.stack",
        ),
        (
            "unit/test_breakpoints.py",
            "unit/test_delivery.py",
            "unit/test_descriptors.py",
            "unit/test_nested_faults.py",
            "unit/test_exits.py",
            "unit/test_far_transfers.py",
            "unit/test_frame.py",
            "unit/test_idt.py",
            "unit/test_journal.py",
            "unit/test_stack.py",
        ),
    ),
    "checks": Part(
        (
            "vmx.entry",
            "vmx.checks.controls",
            "vmx.checks.guest_state",
            "vmx.checks.host_state",
            "vmx.checks.segments",
        ),
        (
            "unit/test_entry.py",
            "unit/test_entry_checks.py",
            "unit/test_entry_pages.py",
            "unit/test_host_state.py",
        ),
    ),
    "compiler": Part(
        (
            "compiler.definitions",
            "compiler.expressions",
            "compiler.kinds",
            "compiler.module",
            "compiler.operators",
            "compiler.program",
            "compiler.routine",
            "compiler.statements",
            "compiler.text",
        ),
        (
            "unit/test_core_checked.py",
            "unit/test_core_dialect.py",
            "unit/test_core_errors.py",
            "unit/test_core_module.py",
            "unit/test_core_stubs.py",
            "properties/test_core_programs.py",
        ),
    ),
}


def _modules(part: str) -> Iterator[ModuleType]:
    for name in PARTS[part].modules:
        yield importlib.import_module(f"trapgate.{name}")


def as_pattern(key: str) -> re.Pattern[str]:
    """A mutant's key in the file of reasons, where * stands for anything."""
    return re.compile(re.escape(key).replace(r"\*", ".*"))


def _reasons() -> Callable[[Mutant], bool]:
    """Whether a mutant may live: it is in the file, in which * stands for anything."""
    found: dict[tuple[str, str], list[re.Pattern[str]]] = {}
    for group in tomllib.loads(REASONS.read_text())["survivors"]:
        patterns = [as_pattern(key) for key in group["mutants"]]
        for function in group["functions"]:
            found.setdefault((f"trapgate.{group['module']}", function), []).extend(patterns)

    def explained(mutant: Mutant) -> bool:
        patterns = found.get((mutant.module, mutant.function), [])
        return any(pattern.fullmatch(mutant.key) for pattern in patterns)

    return explained


def _known() -> dict[tuple[str, str, str, str], str]:
    """Earlier answers, by module, function, key and digest."""
    if not ANSWERS.is_file():
        return {}
    rows = (json.loads(line) for line in ANSWERS.read_text().splitlines())
    return {(row[0], row[1], row[2], row[3]): row[4] for row in rows}


def _name(mutant: Mutant) -> tuple[str, str, str]:
    return mutant.module, mutant.function, mutant.key


def _try(part: str, *, processes: int, fresh: bool) -> list[tuple[Mutant, str]]:
    modules = {module.__name__: module for module in _modules(part)}
    known = {} if fresh else _known()
    mutants = [mutant for module in modules.values() for mutant in mutants_of(module)]
    answers: list[tuple[Mutant, str]] = []
    to_try = []
    for mutant in mutants:
        answer = known.get((*_name(mutant), mutant.digest), "")
        if answer in ("died", "hung"):
            answers.append((mutant, answer))
        else:
            to_try.append(mutant)
    ANSWERS.parent.mkdir(exist_ok=True)
    print(f"{part}: {len(mutants):,} mutants, {len(to_try):,} to try", file=sys.stderr)
    request = Request(
        to_try,
        modules,
        [str(ROOT / "tests" / test) for test in PARTS[part].tests],
        part != "compiler",
    )
    with ANSWERS.open("a") as out:

        def record(mutant: Mutant, answer: str) -> None:
            answers.append((mutant, answer))
            out.write(json.dumps([*_name(mutant), mutant.digest, answer]) + "\n")
            out.flush()

        try_all(request, record, processes=processes)
    return answers


def main() -> int:
    """Try the parts that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.mutate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--processes", type=int, default=2, help="mutants at a time (2)")
    parser.add_argument("--fresh", action="store_true", help="forget earlier answers")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    explained = _reasons()
    good = True
    for part in options.parts or PARTS:
        answers = _try(part, processes=options.processes, fresh=options.fresh)
        judged = [
            (mutant, "explained" if answer in ALIVE and explained(mutant) else answer)
            for mutant, answer in answers
        ]
        counts = Counter((mutant.module, answer) for mutant, answer in judged)
        for module in dict.fromkeys(mutant.module for mutant, _ in answers):
            numbers = Counter({answer: n for (of, answer), n in counts.items() if of == module})
            _row(module.removeprefix("trapgate."), numbers)
        good = _row(part, Counter(answer for _, answer in judged)) >= LEAST and good
        for mutant, answer in judged:
            if answer in ALIVE:
                where = f"{mutant.module.removeprefix('trapgate.')}:{mutant.first}"
                print(f"  {answer}: {where} {mutant.function}: {mutant.key}")
    return 0 if good else 1


def _row(name: str, numbers: Counter[str]) -> float:
    dead = numbers["died"] + numbers["hung"]
    alive = sum(numbers[answer] for answer in ALIVE)
    share = dead / (dead + alive) if dead + alive else 1.0
    print(
        f"{name:24} {numbers.total():6,} mutants {dead:6,} died {alive:5,} survived {share:7.1%}"
        f" {numbers['explained']:5,} explained"
    )
    return share


if __name__ == "__main__":
    sys.exit(main())
