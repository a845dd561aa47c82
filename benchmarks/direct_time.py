"""`python -m benchmarks.direct_time`: how much longer direct paging takes than `--paging own`.

Two machines in one process boot the same guest and run its workloads in turns, so that both meet
the same load of the host; one has its memory for itself, the other a frame map and a setting's
filters. A Markdown table for each guest: medians of wall time and of processor time, and the ratio
of those, which is the median over the turns. Guests and workloads are `benchmarks.direct_paging`'s.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from benchmarks.direct_paging import Guest, add_choices, chosen, prepared, start, work
from trapgate.demo.any_guest import SETTINGS, Setting

_OWN, *_, _DEFAULT = SETTINGS


@dataclass(frozen=True)
class Turn:
    """What one turn of a workload took, in seconds, on each side: own paging, direct paging."""

    guest: str
    setting: str
    workload: str
    wall: tuple[float, float]
    processor: tuple[float, float]


def timed(does: Callable[[], object]) -> tuple[float, float]:
    """Seconds of wall time, and of this process's processor time."""
    began, began_processor = time.perf_counter(), time.process_time()
    does()
    return time.perf_counter() - began, time.process_time() - began_processor


def turns_of(
    guest: Guest,
    initrd: Path | None,
    names: Sequence[str],
    setting: Setting,
    boots: int,
    turns: int,
) -> Iterator[Turn]:
    """Boots of one guest, and in each pair of machines turns of its workloads."""

    def turn(name: str, *sides: Callable[[], object]) -> Turn:
        (wall, processor), (direct_wall, direct_processor) = map(timed, sides)
        both = (wall, direct_wall), (processor, direct_processor)
        return Turn(guest.name, setting.name, name, *both)

    for _ in range(boots):
        pair = [start(guest, one, initrd) for one in (_OWN, setting)]
        yield turn("boot", *(lambda vm=vm: work(guest, vm) for vm in pair))
        for name in list(names) * turns:
            text = guest.workloads[name]
            yield turn(name, *(lambda vm=vm, text=text: work(guest, vm, text) for vm in pair))


def show(found: Sequence[Turn]) -> None:
    """One guest's table."""
    print(f"\n{found[0].guest}, {found[0].setting}: seconds of wall time (processor time)\n")
    print("| workload | own paging | direct paging | ratio, wall | ratio, processor | turns |")
    print("|---" * 6 + "|")
    for name in dict.fromkeys(turn.workload for turn in found):
        wall, used = (
            [getattr(turn, clock) for turn in found if turn.workload == name]
            for clock in ("wall", "processor")
        )
        cells = [
            f"{median(one[side] for one in wall):.3f} ({median(one[side] for one in used):.3f})"
            for side in (0, 1)
        ]
        cells += [f"{median(direct / own for own, direct in kind):.2f}" for kind in (wall, used)]
        print(f"| {name} |", " | ".join(cells), f"| {len(wall)} |", flush=True)


def main() -> None:
    """Run everything that is there and asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.direct_time", description=__doc__)
    add_choices(parser)
    parser.add_argument("--setting", default=_DEFAULT.name, help="of the machine with a map")
    parser.add_argument(
        "--boots",
        type=int,
        default=1,
        help="how often both boot: each time a kernel lies elsewhere",
    )
    parser.add_argument("--turns", type=int, default=3, help="of each workload, after each boot")
    options = parser.parse_args()
    setting = next(one for one in SETTINGS if one.name == options.setting)
    everything: list[Turn] = []
    with tempfile.TemporaryDirectory() as folder:
        for guest in chosen(options):
            initrd, names = prepared(guest, Path(folder), options.workload)
            how = setting, options.boots, options.turns
            found = list(turns_of(guest, initrd, names, *how))
            show(found)
            everything += found
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(turn) for turn in everything], indent=2))


if __name__ == "__main__":
    main()
