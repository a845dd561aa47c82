"""A machine goes back to a snapshot, and the run that follows is the one that followed before."""

import hashlib

import numpy as np
import pytest

from trapgate import guests
from trapgate.decision.condition_rules import rules_for
from trapgate.decision.conditions import parse
from trapgate.decision.criteria_rules import Action
from trapgate.decision.faults import Interruption
from trapgate.demo import x86 as demo_x86
from trapgate.engine.written_pages import pool_of
from trapgate.events.journal import ROW_ADDRESS, ROW_ERROR_CODE, ROW_VECTOR
from trapgate.sdm.cells import TABLE_START, VMX_PREEMPTION_TIMER_VALUE
from trapgate.sdm.interruption import InterruptionType
from trapgate.vmm.actions import End
from trapgate.vmm.loaders import parse_guest
from trapgate.vmm.machine import EventPendingError, VirtualMachine
from trapgate.vmm.snapshots.state import SnapshotError

MEMORY = 16 << 20
END = 60_000
"""Instructions from the snapshot to where runs are compared."""


def machine(workload: str, engine: str = "native", journal: int = 1 << 15) -> VirtualMachine:
    vm = VirtualMachine(MEMORY, engine=engine, journal=journal)
    command = guests.command_line(*workload.split())
    vm.load(parse_guest(guests.image(), file="guest.elf", memory=MEMORY, append=command))
    return vm


def state(vm: VirtualMachine) -> dict[str, object]:
    """All that can be compared of a machine; its VMM's timer is left out."""
    p = vm.processor
    engine = p.engine
    return {
        "output": bytes(vm.output),
        "stopped": vm.stopped,
        "time": p.time,
        "rows": hashlib.sha256(np.array(list(p.last_events())).tobytes()).hexdigest(),
        "memory": hashlib.sha256(p.memory.cells.tobytes()).hexdigest(),
        "vmcs": np.delete(vm.vmcs.cells, VMX_PREEMPTION_TIMER_VALUE).tolist(),
        "registers": p.registers.cells.tolist(),
        "x87 and SSE": [engine.vectors.read(f"xmm{n}") for n in range(16)],
        "exits": vm.summary().exits,
        "x86 VMM": vm.summary().nested,
        "injected": vm.summary().injected,
        "events": vm.summary().events,
        "criteria": vm.vmcs.cells[TABLE_START:].tolist(),
        "deadline": vm.devices.next_deadline(p.time),
        "pending": vm.devices.pending(),
    }


@pytest.mark.parametrize("workload", ["demand", "fork", "swap", "faults"])
@pytest.mark.parametrize("start", [0, 1_000, 10_200_000, 10_140_123])
def test_a_restored_machine_runs_as_it_did(workload: str, start: int) -> None:
    vm = machine(workload)
    vm.step(start)
    assert vm.processor.time == start
    snapshot = vm.snapshot()
    before = state(vm)
    vm.step(END)
    after = state(vm)
    for detour in (0, 1, 777, END):
        vm.restore(snapshot)
        assert state(vm) == before
        vm.step(detour)
        vm.restore(snapshot)
        vm.step(END)
        assert state(vm) == after
    undisturbed = machine(workload)
    undisturbed.step(start + END)
    there = state(undisturbed)
    # The stop for the snapshot was one exit more.
    assert [name for name in there if there[name] != after[name]] in ([], ["exits"])


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_what_a_fault_did_is_taken_back(engine: str) -> None:
    vm = machine("demand", engine)
    vm.step(10_200_000 if engine == "native" else 100_000)
    snapshot = vm.snapshot()
    before = state(vm)
    vm.step(2_000)
    after = state(vm)
    for vector in (6, 13, 14):
        vm.restore(snapshot)
        code = 0 if vector > 6 else None
        event = Interruption(vector, InterruptionType.HARDWARE_EXCEPTION, code)
        vm.inject(event, address=0xDEAD000)
        vm.step(2_000)
        assert state(vm) != after
        vm.restore(snapshot)
        assert state(vm) == before
        vm.step(2_000)
        assert state(vm) == after


def test_foreign_snapshots_and_what_cannot_go_back_are_refused() -> None:
    one, other = machine("demand"), machine("demand")
    with pytest.raises(SnapshotError, match="another machine"):
        one.restore(other.snapshot())


def test_restoring_costs_what_was_written() -> None:
    vm = machine("demand")
    vm.step(10_200_000)
    snapshot = vm.snapshot()
    assert vm.restore(snapshot) == 0
    vm.step(10_000)
    assert 5 < vm.restore(snapshot) < 40
    assert vm.restore(snapshot) == 0


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_one_can_go_back_to_any_of_several_snapshots(engine: str) -> None:
    vm = machine("swap", engine)
    taken = []
    for _ in range(6):
        vm.step(100_000 if engine == "native" else 5_000)
        taken.append((vm.snapshot(), state(vm)))
    for number in (0, 5, 2, 2, 4, 1, 3, 0):
        vm.step(3_000)
        snapshot, then = taken[number]
        vm.restore(snapshot)
        assert state(vm) == then


@pytest.mark.parametrize("journal", [1, 7, 4096])
def test_rows_and_counts_go_back_however_many_there_were(journal: int) -> None:
    vm = machine("fork", journal=journal)
    vm.step(10_150_000)
    snapshot = vm.snapshot()
    before = state(vm)
    for instructions in (0, 100, 3_000, 60_000):
        vm.step(instructions)
        vm.restore(snapshot)
        assert state(vm) == before
    later = (vm.step(2_000), vm.snapshot(), state(vm))[1:]
    for one, then in ((snapshot, before), later, (snapshot, before)):
        vm.restore(one)
        assert state(vm) == then


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_a_criteria_table_goes_back(engine: str) -> None:
    vm = machine("demand", engine)
    snapshots = [(vm.snapshot(), state(vm))]
    for vector in (13, 6):
        vm.vmcs.criteria_table = rules_for(parse(f"vector == {vector}"), Action.EXIT)
        vm.step(1_000)
        snapshots.append((vm.snapshot(), state(vm)))
    for number in (0, 2, 1, 0, 1, 2):
        snapshot, then = snapshots[number]
        vm.restore(snapshot)
        assert state(vm) == then


def test_snapshots_share_pages_and_give_them_back() -> None:
    vm = machine("swap")
    vm.step(10_200_000)
    first = vm.snapshot()
    pool = pool_of(vm.processor.engine)
    alone = pool.size
    assert alone < MEMORY // 2  # empty pages are one
    taken = [vm.snapshot() for _ in range(5)]
    assert pool.size == alone
    for _ in range(20):
        vm.step(5_000)
        taken.append(vm.snapshot())
    assert alone < pool.size < 6 * alone
    vm.restore(first)
    taken.clear()
    assert pool.size == alone


def test_what_is_injected_is_checked_and_delivered() -> None:
    vm = machine("demand")
    vm.step(10_200_000)
    snapshot = vm.snapshot()
    fault = Interruption(14, InterruptionType.HARDWARE_EXCEPTION, 2)
    vm.inject(fault, address=0x7000)
    with pytest.raises(EventPendingError, match="already"):
        vm.inject(fault)
    vm.step(1)
    row = next(iter(vm.processor.last_events()))
    assert (row[ROW_VECTOR], row[ROW_ERROR_CODE], row[ROW_ADDRESS]) == (14, 2, 0x7000)
    vm.restore(snapshot)
    vm.inject(Interruption(14, InterruptionType.HARDWARE_EXCEPTION, None))
    stop = vm.step(1)
    assert stop is not None
    assert stop.end is End.ENTRY_FAILED
    vm.restore(snapshot)
    assert vm.stopped is None


def test_an_x86_vmm_and_its_guest_go_back_together() -> None:
    memory = demo_x86.MEMORY
    vm = VirtualMachine(memory)
    line = f"hypervisor.elf policy=all {guests.command_line('demand')}"
    image, kernel = guests.hypervisor(), guests.image()
    vm.load(parse_guest(image, file="hypervisor.elf", memory=memory, append=line, initrd=kernel))
    for start in (500_000, 10_300_000, 10_320_123):
        vm.step(start - vm.processor.time)
        snapshot = vm.snapshot()
        before = state(vm)
        vm.step(END)
        after = state(vm)
        vm.restore(snapshot)
        assert state(vm) == before
        vm.step(END)
        assert state(vm) == after
        vm.restore(snapshot)
    assert vm.summary().nested is not None
