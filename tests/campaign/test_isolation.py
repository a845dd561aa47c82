"""Campaigns under direct paging: going back includes what the VMM knows; what it finds."""

from pathlib import Path

import pytest

from trapgate import guests
from trapgate.campaign.campaign import create, prepare, run
from trapgate.campaign.plan import find_plan, parse_plan
from trapgate.campaign.results import Results
from trapgate.campaign.tables import frame
from trapgate.vmcs.file import parse_settings
from trapgate.vmm.direct.host_memory import Host
from trapgate.vmm.direct.machine import DirectMachine
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.snapshots.state import SnapshotError

MEMORY = 16 << 20
PLANS = Path(str(find_plan("isolation-figure-8").folder))


def machine(workload: str, vmcs: str) -> DirectMachine:
    vm = DirectMachine(MEMORY)
    line = guests.command_line(workload, timer=False)
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=line))
    vm.apply(parse_settings((PLANS / "vmcs" / f"{vmcs}.toml").read_text(), vmcs))
    return vm


def knowledge(vm: DirectMachine) -> list[object]:
    return [*tables(vm), vars(vm.counts), bytes(vm.output), vm.processor.time]


def tables(vm: DirectMachine) -> list[object]:
    links = vm.tables.links
    return [links.counts.tobytes(), sorted(links.roots), vm.tables.replaced(), vm.tables.directory]


@pytest.mark.parametrize("vmcs", ["figure-8", "exit-on-all"])
@pytest.mark.parametrize("workload", ["demand", "fork", "swap"])
def test_a_run_from_a_snapshot_is_the_run(workload: str, vmcs: str) -> None:
    vm = machine(workload, vmcs)
    vm.step(2_000_000)
    snapshot = vm.snapshot()
    before = tables(vm)
    vm.step(300_000)
    memory, known = vm.processor.memory.read(0, vm.memory), knowledge(vm)
    for detour in (1_000, 700_000):
        vm.restore(snapshot)
        assert tables(vm) == before
        vm.step(detour)
        vm.restore(snapshot)
        vm.step(300_000)
        assert vm.processor.memory.read(0, vm.memory) == memory
        assert knowledge(vm) == known
    assert vm.run().status == 0


def test_machines_that_share_a_host_have_none() -> None:
    host = Host(2 * (4 << 20) + (8 << 20))
    first = DirectMachine(4 << 20, host=host)
    DirectMachine(4 << 20, host=host)
    with pytest.raises(SnapshotError, match="share a processor"):
        first.snapshot()


def campaign(name: str, folder: Path) -> Results:
    shipped = find_plan(name)
    text = shipped.text.replace("runs = 10_000", "runs = 2_000")
    plan = parse_plan(text, name, shipped.folder)
    results = create(prepare(plan), folder)
    for _ in run(plan, results):
        pass
    return results


def test_the_vmm_finds_the_same_behind_a_filter(tmp_path: Path) -> None:
    """Figure 8 completes writes; none of those that the VMM refuses if it sees them all."""
    found = {}
    for name in ("isolation-figure-8", "isolation-exit-on-all"):
        rows = frame(campaign(name, tmp_path / name)).collect().to_dicts()
        assert not [row for row in rows if row["outcome"] == "error"]
        found[name] = {
            (row["moment"], row["fault"]): row["detail"]
            for row in rows
            if row["outcome"] == "stopped by the VMM"
        }
    filtered, seen = found.values()
    assert len(seen) > 5
    assert filtered == seen
    assert all("the VMM refused" in detail for detail in seen.values())
