"""`python -m benchmarks.direct_paging`: what fault filters save guests that nobody wrote for them.

Each guest boots with its memory for itself, and under a frame map with one filter after the other
(`trapgate.demo.any_guest.SETTINGS`), and runs its workloads at its prompt. Tables in Markdown:
page-fault exits, and processor time. Debian's kernels come from `tools/fetch-linux`, xv6 from
`--xv6 FOLDER`, where its Makefile left `xv6.img` and `fs.img`, and JOS from `--jos FOLDER`, in
whose `obj` they are. What is absent is skipped with a word; so are the workloads on pages without a
C compiler that makes static programs.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.suite import LINUX
from trapgate.decision.decide import Disposition
from trapgate.decision.fault_filters import FILTERS
from trapgate.demo.any_guest import SETTINGS, Setting
from trapgate.sdm.vectors import PF
from trapgate.vmm.actions import End
from trapgate.vmm.devices.board import Board
from trapgate.vmm.devices.storage import open_image
from trapgate.vmm.direct.protected import ProtectedMachine
from trapgate.vmm.loaders import load_guest
from trapgate.vmm.machine import VirtualMachine
from trapgate.vmm.ui.console import Console

_SOURCE = Path(__file__).with_name("page_workloads.c")
_SECONDS = 3600.0
_HUNDRED = "i=0; while [ $i -lt 100 ]; do {}; i=$((i+1)); done"
_SHELL = {
    "fork+exec": _HUNDRED.format("busybox true"),
    "fork": _HUNDRED.format("(:)"),
    "find": "find /bin /sys /proc/[0-9]* >/dev/null 2>&1",
    "compress": "dd if=/dev/zero bs=64k count=64 2>/dev/null | gzip | gunzip | wc -c",
}
_PAGES = {name: f"/bin/pages {name} 20 1000" for name in ("map", "protect", "copy", "move")}


@dataclass(frozen=True)
class Guest:
    """A guest, its prompt and what is typed there.

    `bits` makes the workloads on pages; `more` is an archive that follows the initramfs.
    """

    name: str
    memory: int
    prompt: str
    workloads: dict[str, str]
    kernel: Path | None = None
    initrd: Path | None = None
    disks: tuple[Path, ...] = ()
    bits: int = 0
    more: Path | None = None


@dataclass(frozen=True)
class Cost:
    """What one workload cost under one setting: writes to tables, and seconds of the host."""

    guest: str
    setting: str
    workload: str
    exits: int
    completed: int
    root_loads: int
    seconds: float


def guests(xv6: Path | None, jos: Path | None = None) -> list[Guest]:
    """Those that are there."""
    found = [
        Guest(
            f"Debian {name}",
            256 << 20,
            "# $",
            {**_SHELL, **_PAGES},
            LINUX / f"vmlinuz-{name}",
            LINUX / f"initrd-{architecture}.cpio",
            bits=bits,
        )
        for name, architecture, bits in (
            ("amd64", "amd64", 64),
            ("686", "i386", 32),
            ("686-pae", "i386", 32),
        )
    ]
    if xv6 is not None:
        disks = xv6 / "xv6.img", xv6 / "fs.img"
        lines = {"forktest": "forktest", "ls": "ls", "stress": "stressfs", "usertests": "usertests"}
        found.append(Guest("xv6", 512 << 20, r"\$ $", lines, disks=disks))
    if jos is not None:
        disks = jos / "obj/kern/kernel.img", jos / "obj/fs/fs.img"
        lines = {"forktree": "forktree", "pipe": "testpipe", "script": "sh < script"}
        found.append(Guest("JOS", 128 << 20, r"\$ $", lines, disks=disks))
    for guest in tuple(found):
        needed = (guest.kernel, guest.initrd, *guest.disks)
        absent = [file for file in needed if file is not None and not file.is_file()]
        if absent:
            print(f"{guest.name}: skipped, {absent[0]} is not there", file=sys.stderr)
            found.remove(guest)
    return found


def archive(bits: int, folder: Path) -> bytes:
    """An initramfs with the program of `page_workloads.c` as /bin/pages; empty if it cannot be."""
    program = folder / f"pages{bits}"
    compiler = ["cc", "-static", "-O1", f"-m{bits}", str(_SOURCE), "-o", str(program)]
    try:
        subprocess.run(compiler, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print(f"no static programs of {bits} bits: workloads on pages skipped", file=sys.stderr)
        return b""
    return _file("bin/pages", program.read_bytes()) + _file("TRAILER!!!", b"")


def _file(name: str, data: bytes) -> bytes:
    """One file in cpio's "newc" format."""
    fields = (1, 0o100755, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def prepared(
    guest: Guest, folder: Path, wanted: Sequence[str] | None
) -> tuple[Path | None, list[str]]:
    """A guest's initramfs with the program of the workloads on pages, made in `folder`.

    And the names of the workloads that can be run, of those `wanted`, if any are named.
    """
    initrd, names = guest.initrd, list(guest.workloads)
    if guest.bits and guest.initrd is not None:
        pages = archive(guest.bits, folder)
        initrd = folder / guest.initrd.name
        more = b"" if guest.more is None else guest.more.read_bytes()
        initrd.write_bytes(guest.initrd.read_bytes() + more + pages)
        names = [one for one in names if pages or one not in _PAGES]
    return initrd, [one for one in names if not wanted or one in wanted]


def start(guest: Guest, setting: Setting, initrd: Path | None) -> VirtualMachine:
    """A machine under a setting, with the guest about to boot in it."""
    kind = ProtectedMachine if setting.mapped else VirtualMachine
    disks = tuple(open_image(str(disk)) for disk in guest.disks)
    bios = guest.kernel is None
    vm = kind(guest.memory, console=_console(guest), board=Board(disks=disks, bios=bios))
    if setting.mapped:
        vm.vmcs["FAULT_FILTER"] = FILTERS[setting.fault_filter]
        vm.vmcs["FRAME_FILTERS"] = setting.frame_filters
    if guest.kernel is None:
        vm.boot()
    else:
        append = "console=ttyS0 pti=on"
        vm.load(load_guest(guest.kernel, memory=guest.memory, append=append, initrd=initrd))
    return vm


def work(guest: Guest, vm: VirtualMachine, text: str | None = None) -> None:
    """Let a guest boot, or do what is typed at its prompt, until it prompts again."""
    if text is not None:
        vm.console = _console(guest)
        vm.type(text.encode() + b"\n")
    vm.stopped = None
    stop = vm.run(timeout=_SECONDS)
    if stop.end is not End.UNTIL:
        raise SystemExit(f"{guest.name}, {text or 'boot'}: {stop.message}")


def _console(guest: Guest) -> Console:
    return Console(io.BytesIO(), until=guest.prompt)


def run(
    guest: Guest, setting: Setting, initrd: Path | None, names: Sequence[str]
) -> Iterator[Cost]:
    """Boot a guest under a setting, and run the workloads of these names at its prompt."""
    vm = start(guest, setting, initrd)
    before = (0, 0, 0)
    for name in ("boot", *names):
        began = time.process_time()
        work(guest, vm, guest.workloads.get(name))
        seconds = time.process_time() - began
        summary = vm.summary()
        root_loads = sum(n for why, n in summary.exits.items() if "CONTROL" in why.name)
        now = (summary.count(Disposition.EXIT, PF), summary.count(Disposition.COMPLETE, PF))
        exits, completed, loads = (
            after - earlier for after, earlier in zip((*now, root_loads), before, strict=True)
        )
        before = (*now, root_loads)
        yield Cost(guest.name, setting.name, name, exits, completed, loads, seconds)


def show(costs: Sequence[Cost]) -> None:
    """A guest's tables: exits and seconds, a row a setting, medians of the runs."""
    settings = list(dict.fromkeys(cost.setting for cost in costs))
    workloads = list(dict.fromkeys(cost.workload for cost in costs))

    def middle(setting: str, workload: str, of: str) -> float:
        here = [c for c in costs if (c.setting, c.workload) == (setting, workload)]
        return float(median(getattr(cost, of) for cost in here))

    print(f"\n{costs[0].guest}: page-fault exits (processor seconds)\n")
    print("| filter |", " | ".join(workloads), "|")
    print("|---" * (len(workloads) + 1) + "|")
    for setting in settings:
        cells = [
            f"{middle(setting, name, 'exits'):,.0f} ({middle(setting, name, 'seconds'):.2f})"
            for name in workloads
        ]
        print(f"| {setting} |", " | ".join(cells), "|", flush=True)


def add_choices(parser: argparse.ArgumentParser) -> None:
    """Which guests and workloads, and where the results go."""
    parser.add_argument("--xv6", type=Path, help="folder with xv6.img and fs.img")
    parser.add_argument("--jos", type=Path, help="folder of a JOS tree whose images are built")
    parser.add_argument("--guest", action="append", help="one of amd64, 686, 686-pae, xv6, JOS")
    parser.add_argument("--workload", action="append", help="only this one, after the boot")
    parser.add_argument("--add", type=Path, help="an archive behind each initramfs")
    parser.add_argument("--line", action="append", metavar="NAME=TEXT", help="a further workload")
    parser.add_argument("--memory", type=int, metavar="MB", help="of each guest")
    parser.add_argument("--json", type=Path, help="write every number here")


def chosen(options: argparse.Namespace) -> list[Guest]:
    """The guests that are there and asked for."""
    lines = dict(line.split("=", 1) for line in options.line or ())
    return [
        replace(
            one,
            memory=options.memory << 20 if options.memory else one.memory,
            workloads={**one.workloads, **lines},
            more=options.add,
        )
        for one in guests(options.xv6, options.jos)
        if not options.guest or one.name.split()[-1] in options.guest
    ]


def main() -> None:
    """Run everything that is there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.direct_paging", description=__doc__)
    add_choices(parser)
    parser.add_argument("--setting", action="append", help="only this one, and own paging")
    parser.add_argument("--runs", type=int, default=1, help="how often; medians are shown")
    options = parser.parse_args()
    wanted = [
        setting
        for setting in SETTINGS
        if not setting.mapped or not options.setting or setting.name in options.setting
    ]
    everything: list[Cost] = []
    with tempfile.TemporaryDirectory() as name:
        for guest in chosen(options):
            initrd, names = prepared(guest, Path(name), options.workload)
            costs = [
                cost
                for _ in range(options.runs)
                for setting in wanted
                for cost in run(guest, setting, initrd, names)
            ]
            show(costs)
            everything += costs
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(cost) for cost in everything], indent=2))


if __name__ == "__main__":
    main()
