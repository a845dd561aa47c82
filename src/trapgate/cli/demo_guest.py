"""`trapgate demo --guest`: any guest under direct paging, a row a filter."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trapgate.cli.board import board
from trapgate.cli.summary import summary_json
from trapgate.cli.terminal import fail, terminal

if TYPE_CHECKING:
    from trapgate.demo.any_guest import Run


def demo_guest(
    guests: list[Path],
    *,
    disks: list[str],
    initrd: Path | None,
    append: str,
    memory: int,
    text: str,
    until: str | None,
    timeout: float | None,
    engine: str,
    as_json: bool,
) -> bool:
    """Run each guest, or that of `disks`, under each setting and print one table of them.

    The other arguments are the same for all. Whether all runs of a guest ended alike.
    """
    from trapgate.demo.any_guest import SETTINGS, ended_alike, run_guest
    from trapgate.vmm.loaders import load_guest
    from trapgate.vmm.ui.console import input_bytes

    if not guests and (initrd is not None or append):
        raise fail("--initrd and --append are for a kernel; give it with --guest")
    if engine == "portable":
        raise fail("--engine: a frame map needs the native engine; leave --engine out")
    results: list[tuple[str, list[Run]]] = []
    chosen: list[Path | None] = [*guests] or [None]
    with terminal(error=True).status("running") as status:
        for guest in chosen:
            load = (
                partial(load_guest, guest, memory=memory, append=append, initrd=initrd)
                if guest is not None
                else lambda: None
            )
            runs: list[Run] = []
            results.append((disks[0] if guest is None else str(guest), runs))
            for run in run_guest(
                memory,
                load,
                board=lambda: board(disks, [], [], None, memory, kernel=bool(guests)),
                text=input_bytes(text),
                until=until,
                timeout=timeout,
                engine=engine,
            ):
                runs.append(run)
                status.update(f"{results[-1][0]}: {len(runs)} of {len(SETTINGS)} runs done")
    alike = all(ended_alike(runs) for _, runs in results)
    if as_json:
        rows = [_run_json(name, run, runs[1]) for name, runs in results for run in runs]
        print(json.dumps(rows, indent=2))
        return alike
    _show(results)
    for name, runs in results:
        where = f"{name}: under" if len(results) > 1 else "Under"
        for end in dict.fromkeys(run.stop.message for run in runs):
            names = [run.setting.name for run in runs if run.stop.message == end]
            under = "every setting" if len(names) == len(runs) else ", ".join(names)
            print(f"{where} {under}: {end}.")
    return alike


def _show(results: list[tuple[str, list[Run]]]) -> None:
    from rich.table import Table

    several = len(results) > 1

    table = Table(
        title="writes to page tables under direct paging, and what became of them",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    if several:
        table.add_column("guest", overflow="fold")
    table.add_column("filter")
    for title in ("exits", "completed", "saved", "CR exits", "CPU seconds", "relative"):
        table.add_column(title, justify="right")
    for name, runs in results:
        own, unfiltered = runs[0].seconds, runs[1]
        for run in runs:
            first = (name if run is runs[0] else "",) if several else ()
            table.add_row(
                *first,
                run.setting.name,
                f"{run.exits:,}",
                f"{run.completed:,}",
                f"{run.saved(unfiltered):.1%}" if run.setting.mapped else "",
                f"{run.root_loads:,}",
                f"{run.seconds:.2f}",
                f"{run.seconds / own:.2f}",
            )
    terminal().print(table)
    print()
    for name, runs in results:
        for run in runs:
            left = ", ".join(f"{count:,} {what}" for what, count in run.left.items())
            what = f"; exits: {left}" if left else ""
            where = f"{name}, " if several else ""
            print(f"{where}{run.setting.name}: {run.setting.meaning}{what}")
    print()


def _run_json(name: str, run: Run, unfiltered: Run) -> dict[str, Any]:
    return {
        "guest": name,
        "filter": run.setting.name,
        "fault_filter": run.setting.fault_filter,
        "frame_filters": run.setting.frame_filters,
        "end": run.stop.end.value,
        "status": run.stop.status,
        "cpu_seconds": run.seconds,
        "spared": run.saved(unfiltered) if run.setting.mapped else None,
        **summary_json(run.summary),
    }
