"""Campaigns on other machines than the bundled guest's: drives, processors, a frame map."""

from pathlib import Path

import pytest

from tests.campaign.plans import HEAD
from tests.guests.apic_guest import MEMORY
from tests.guests.smp_guest import COUNTER, kernel, locked_increment, put_in, times
from trapgate.campaign import bench as benches
from trapgate.campaign.bench import Bench
from trapgate.campaign.campaign import create, prepare, run
from trapgate.campaign.errors import PlanError
from trapgate.campaign.golden import Reference
from trapgate.campaign.plan import Guest, Plan, parse_plan
from trapgate.campaign.results import Results
from trapgate.campaign.tables import frame
from trapgate.vmm.machine import VirtualMachine

BOOT_SECTOR = bytes.fromhex(
    "fa 31c0 8ed8 8ec0 8ed0 bc007c b91400"  # cli; ds, es, ss = 0; sp = 7C00h; cx = 20
    "51 b80102 b90200 8b16457c bb0080 cd13"  # push cx; read sector 2 to 8000h
    "ff060080 b80103 b90200 8b16457c bb0080 cd13"  # inc word [8000h]; write it back
    "baf803 a00080 0441 ee 59 e2d1"  # what was counted, as a letter, to COM1; pop cx; loop
    "baf400 30c0 ee f4 8000"  # leave with status 0
)
"""Counts in a sector of the disk, and says so."""
FLIPS = """
[[target]]
register = ["EAX", "ECX"]
bits = "0-7"
[sample]
runs = 40
[run]
budget = 20_000
"""


def plan_of(kind: str, folder: Path) -> Plan:
    """A campaign of the kind, whose files are in `folder`."""
    golden = "[golden]\nbegin = { instructions = 200 }\nend = { exit = true }\n"
    if kind in ("disk", "floppy"):
        image = BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa"
        (folder / "disk.img").write_bytes(image.ljust(1440 << 10, b"\0"))
        head = f'[guest]\n{kind} = "disk.img"\nmemory = "4M"\n{golden}'
    elif kind == "processors":
        (folder / "smp.bin").write_bytes(kernel(3))
        head = f'[guest]\nkernel = "smp.bin"\nmemory = "{MEMORY >> 20}M"\ncpus = 3\n{golden}'
    else:
        head = HEAD.replace("[golden]", 'paging = "direct"\nprotect = "frames"\n[golden]')
    return parse_plan(head + FLIPS, "plan.toml", folder)


@pytest.fixture(autouse=True)
def _work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the processors do is not in their kernel's file."""
    made = benches.make_machine

    def make(guest: Guest) -> VirtualMachine:
        vm = made(guest)
        if guest.processors > 1:
            put_in(vm, times(50_000, locked_increment(COUNTER)))
        return vm

    monkeypatch.setattr(benches, "make_machine", make)


@pytest.mark.parametrize("kind", ["disk", "floppy", "processors", "frames"])
def test_runs_without_a_fault_are_the_golden_run(kind: str, tmp_path: Path) -> None:
    reference = Reference(bench := Bench(plan_of(kind, tmp_path)))
    golden = reference.golden
    for part in (0, 1, 37, 50, 99):
        assert bench.go_to(golden.begin + golden.length * part // 100)
        halt = bench.run_to(reference.limit)
        assert (halt.end, bench.vm.processor.time) == (golden.how, golden.end)
        assert (bench.output, bench.registers()) == (golden.output, reference.registers)
        assert reference.last.differing_pages() == 0


@pytest.mark.parametrize("kind", ["disk", "floppy", "processors", "frames"])
def test_equal_plans_give_equal_rows(kind: str, tmp_path: Path) -> None:
    rows = []
    for name in ("one", "other"):
        wanted = plan_of(kind, tmp_path)
        results: Results = create(prepare(wanted), tmp_path / name)
        for _ in run(wanted, results, 1):
            pass
        rows.append(frame(results).collect())
    assert rows[0].equals(rows[1])
    assert "error" not in rows[0]["outcome"]
    assert rows[0]["outcome"].n_unique() > 1


@pytest.mark.parametrize(
    ("guest", "words"),
    [
        ('disk = "none.img"', "guest.disk: there is no file none.img"),
        ('disk = "disk.img,write"', "leave ,write out"),
        ('floppy = ["disk.img", "disk.img", "disk.img"]', "guest.floppy: there is room for 2"),
        ('cdrom = ["disk.img", "disk.img", "disk.img"]\ndisk = ["disk.img", "disk.img"]', "room"),
        ('kernel = "bundled"\nbios = "disk.img"', "guest.bios: firmware starts instead"),
        ('disk = "disk.img"\nappend = "quiet"', "guest.kernel: only a kernel has append"),
        ("cpus = 0", "guest.cpus: 0 is out of range"),
        ("cpus = 33", "guest.cpus: 33 is out of range"),
        ('cpus = 2\npaging = "direct"', "guest.cpus: direct paging is for one processor"),
    ],
)
def test_machines_that_there_are_not_are_refused(guest: str, words: str, tmp_path: Path) -> None:
    plan_of("disk", tmp_path)
    with pytest.raises(PlanError) as caught:
        parse_plan(f"[guest]\n{guest}\n{FLIPS}", "plan.toml", tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "more", ["prune = true\n", "[when]\ncondition = 'vector == PF'\n"], ids=["prune", "condition"]
)
def test_what_looks_at_one_processor_is_refused_for_several(more: str) -> None:
    with pytest.raises(PlanError, match="leave it out"):
        parse_plan(f"{more}\n[guest]\ncpus = 2\n[[target]]\nskip = true\n", "p.toml", Path())
