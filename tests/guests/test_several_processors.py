"""Several processors: they start, count together, interrupt each other, and are reproducible."""

from struct import pack

import numpy as np
import pytest

from tests.guests.apic_guest import STI
from tests.guests.smp_guest import (
    COUNTER,
    DONE,
    HERE,
    IDS,
    PAUSE,
    STACKS,
    TAKEN,
    TO_OTHERS,
    VECTOR,
    locked_increment,
    machine,
    times,
    to,
    wait_for,
    word,
)
from trapgate.events.journal import ROW_CPU, ROW_VECTOR
from trapgate.sdm.reasons import ExitReason
from trapgate.vmm.actions import End
from trapgate.vmm.machine import VirtualMachine

ENGINES = ["native", "portable"]
LIMIT = 50_000_000
NMI = 0x400


UNLESS_FIRST = b"\x81\xfc" + pack("<I", STACKS + 0x1000) + b"\x77"
"""Cmp esp, top of the first one's stack; ja, with a distance behind it."""


def run(vm: VirtualMachine) -> VirtualMachine:
    stop = vm.run(max_instructions=LIMIT)
    assert (stop.end, stop.message) == (End.DEBUG_EXIT, "the guest exited with status 0")
    return vm


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("processors", [2, 5])
@pytest.mark.parametrize("length", [137, 10_000])
def test_locked_increments_are_never_lost(processors: int, length: int, engine: str) -> None:
    work = times(3000, locked_increment(COUNTER))
    vm = run(machine(work, processors=processors, engine=engine, length=length))
    assert word(vm, COUNTER) == 3000 * processors
    assert word(vm, HERE) == word(vm, DONE) == processors
    ids = {word(vm, IDS + 4 * n) for n in range(processors)}
    assert ids == set(range(processors))


RACE = times(3000, b"\xa1" + pack("<I", COUNTER) + b"\x40\xeb\x00" + b"\xa3" + pack("<I", COUNTER))
"""Mov eax, [COUNTER]; inc eax; jmp to the next; mov [COUNTER], eax."""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_seed_is_a_schedule(engine: str) -> None:
    def lost(seed: int) -> tuple[int, int]:
        vm = run(machine(RACE, processors=3, engine=engine, seed=seed, length=137))
        return 9000 - word(vm, COUNTER), vm.processor.time

    found = [lost(seed) for seed in range(4)]
    assert all(count > 500 for count, _ in found)
    assert len(set(found)) == 4
    assert lost(2) == found[2]


@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_interrupts_and_nmis_wake_those_who_halt(engine: str) -> None:
    # 50 to the third, each after the one before was taken, an NMI to the second, one to all others.
    fifty = b"".join(to(2, VECTOR) + wait_for(TAKEN, n + 1) for n in range(50))
    every = to(1, NMI) + to(0, TO_OTHERS | VECTOR) + wait_for(TAKEN, 54)
    vm = run(machine(b"\x90", processors=4, engine=engine, last=fifty + every))
    assert word(vm, TAKEN) == 54
    taken = [int(row[ROW_CPU]) for row in vm.processor.last_events()]
    assert [taken.count(n) for n in range(4)] == [0, 2, 51, 1]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupt_reaches_a_processor_that_spins(engine: str) -> None:
    # All wait with interrupts on, and without PAUSE; the first one sends before.
    send = to(0, TO_OTHERS | VECTOR)
    spin = STI + wait_for(TAKEN, 3, b"\x90\x90") + b"\xfa"
    work = UNLESS_FIRST + bytes((len(send),)) + send + spin
    vm = run(machine(work, processors=4, engine=engine, length=5000))
    assert word(vm, TAKEN) == 3


@pytest.mark.parametrize("engine", ENGINES)
def test_code_that_another_processor_changes_is_executed_as_changed(engine: str) -> None:
    # One that spins in "jmp to itself" goes on when another has made NOPs of it.
    jump = 0x501000
    mend = times(20_000, PAUSE) + b"\x66\xc7\x05" + pack("<I", jump) + b"\x90\x90\xc3"
    work = UNLESS_FIRST + bytes((len(mend),)) + mend + b"\xb8" + pack("<I", jump) + b"\xff\xe0"
    vm = machine(work, processors=3, engine=engine)
    vm.processor.memory.write(jump, b"\xeb\xfe" + locked_increment(COUNTER) + b"\xc3")
    run(vm)
    assert word(vm, COUNTER) == 2


def test_turns_end_early_where_processors_pause_for_others() -> None:
    vm = run(machine(RACE, processors=4, engine="native", length=1_000_000))
    assert vm.summary().exits[ExitReason.PAUSE] > 3
    # Without it each hand-over would take a turn.
    assert vm.processor.time < 1_000_000


def test_one_processor_never_leaves_its_pause_loops() -> None:
    vm = run(machine(times(20_000, PAUSE), processors=1, engine="native"))
    assert ExitReason.PAUSE not in vm.summary().exits


@pytest.mark.parametrize("engine", ENGINES)
def test_a_machine_goes_back_to_a_moment_between_turns(engine: str) -> None:
    def state(vm: VirtualMachine) -> tuple[object, ...]:
        p = vm.processor
        rows = np.array(list(p.last_events())).tobytes()
        everyone = [(cpu.vmcs["GUEST_RIP"], cpu.own.registers.rcx) for cpu in vm.cpus]
        return p.time, vm.cpu.number, p.memory.cells.tobytes(), rows, everyone, vm.turns.end

    vm = machine(RACE, processors=3, engine=engine, seed=5, length=500)
    vm.step(15_000)
    snapshot = vm.snapshot()
    before = state(vm)
    vm.step(20_000)
    after = state(vm)
    for detour in (1, 1000, 17_000):
        vm.restore(snapshot)
        assert state(vm) == before
        vm.step(detour)
        vm.restore(snapshot)
        vm.step(20_000)
        assert state(vm) == after


def test_a_vector_of_the_journal_belongs_to_a_processor() -> None:
    vm = run(machine(b"\xcd\x41", processors=3, engine="native"))
    taken = {
        int(row[ROW_CPU]) for row in vm.processor.last_events() if int(row[ROW_VECTOR]) == 0x41
    }
    assert taken == {0, 1, 2}
