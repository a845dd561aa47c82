"""`python -m benchmarks.turns OLD NEW NAME...`: two checkouts in turns, by processor time.

Each checkout runs its own benchmarks with its own `.venv`, a fresh process for each turn, and
what counts is processor time, that of child processes included: on a machine that others use,
too, wall time says little. Peers run with the newer one's.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

_SIDE = """
import json, resource, sys, time
def processor_time():
    whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
    return sum(sum(resource.getrusage(who)[:2]) for who in whose)
time.perf_counter = processor_time
from benchmarks.measure import measure
from benchmarks.suite import SUITE
found = {}
for benchmark in SUITE:
    if benchmark.name in sys.argv[1:]:
        for outcome in measure(benchmark, runs=1, warm_up=0):
            if outcome.median is not None:
                found[f"{benchmark.name}, {outcome.side}"] = outcome.median
print(json.dumps(found))
"""


def turn(checkout: Path, names: list[str]) -> dict[str, float]:
    """The results of one turn of a checkout, by benchmark and side."""
    done = subprocess.run(
        [checkout / ".venv" / "bin" / "python", "-c", _SIDE, *names],
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print the medians of both, their spreads, and the ratio of new to old."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.turns", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    sides = {"old": arguments.old.resolve(), "new": arguments.new.resolve()}
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(arguments.runs):
        for side, checkout in sides.items():
            print(f"turn {number + 1}, {side}", file=sys.stderr)
            for name, value in turn(checkout, arguments.names).items():
                results[name][side].append(value)
    print("| | old | spread | new | spread | new by old |\n|---|---|---|---|---|---|")
    for name, found in results.items():
        cells = []
        for side in sides:
            values = found.get(side, [])
            middle = median(values) if values else 0.0
            spread = f"{100 * (max(values) - min(values)) / middle:.0f}%" if middle else ""
            cells += [f"{middle:.4g}" if values else "", spread]
        both = len(found) == len(sides)
        ratio = f"{median(found['new']) / median(found['old']):.2f}" if both else ""
        print(f"| {name} | {' | '.join(cells)} | {ratio} |")


if __name__ == "__main__":
    main()
