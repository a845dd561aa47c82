"""Bits of general registers that are stuck: the engine's whole blocks against single steps."""

import random
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.campaign.plans import HEAD, plan
from trapgate.campaign.bench import Bench
from trapgate.campaign.execute import Result, execute
from trapgate.campaign.faults import Fault
from trapgate.campaign.golden import Reference
from trapgate.campaign.targets import Faults, faults_of
from trapgate.engine import machine as mc
from trapgate.engine.unicorn_engine import UnicornEngine
from trapgate.vmm.machine import VirtualMachine

# With the timer, so that interrupts come, and where page faults and INT 80H do.
_HEAD = HEAD.replace('append = "timer=off"\n', "").replace("3000", "800")
_STUCK = "".join(
    f'[[target]]\nregister = "general"\nbits = "0-31"\nmode = "stuck {value}"\n' for value in (0, 1)
)


class State(NamedTuple):
    """All that a run leaves behind."""

    result: Result
    time: int
    registers: bytes
    counts: bytes
    output: bytes
    memory: bytes


class Runs(NamedTuple):
    reference: Reference
    faults: Faults

    def state(self, moment: int, fault: Fault) -> State:
        result = execute(self.reference, moment, fault)
        bench = self.reference.bench
        return State(
            result,
            bench.vm.processor.time,
            bench.registers(),
            bench.counts.tobytes(),
            bench.output,
            bench.vm.processor.memory.cells.tobytes(),
        )


@pytest.fixture(scope="module", params=["2_000_000", "10_200_000"])
def runs(request: pytest.FixtureRequest) -> Runs:
    wanted = plan(_STUCK, _HEAD.replace("10_200_000", request.param))
    return Runs(Reference(Bench(wanted)), faults_of(wanted.targets, wanted.path, wide=False))


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An engine that sticks no bits: the bench does so between single steps."""
    with monkeypatch.context() as patch:
        patch.setattr(UnicornEngine, "has_stuck_bits", False)
        yield patch


def choose(runs: Runs, seed: int, name: str) -> tuple[int, Fault]:
    rng = random.Random(seed)
    golden = runs.reference.golden
    faults = (runs.faults[number] for number in range(len(runs.faults)))
    mine = [fault for fault in faults if name in fault.target]
    return golden.begin + rng.randrange(golden.length // 2), rng.choice(mine)


@pytest.mark.parametrize("name", ["", "RSP", "RAX", "RBP", "RCX", "RDI"])
@pytest.mark.parametrize("seed", range(3))
def test_as_in_single_steps(runs: Runs, name: str, seed: int, stepped: pytest.MonkeyPatch) -> None:
    moment, fault = choose(runs, seed, name)
    slow = runs.state(moment, fault)
    stepped.undo()
    assert runs.state(moment, fault) == slow


def test_whole_blocks(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = runs.reference.bench.vm.processor.engine
    if not engine.has_stuck_bits:
        pytest.skip("the portable engine makes single steps")
    steps: list[int] = []
    step = VirtualMachine.step

    def counted(vm: VirtualMachine, budget: int) -> object:
        steps.append(budget)
        return step(vm, budget)

    monkeypatch.setattr(VirtualMachine, "step", counted)
    runs.state(*choose(runs, 1, "RBX"))
    assert len(steps) <= 3  # to the moment, to the golden run's end, and to the run's


def test_free_again_whatever_happens(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = runs.reference.bench.vm.processor.engine
    moment, fault = choose(runs, 2, "RAX")
    runs.state(moment, fault)
    assert engine.cells[mc.STUCK] == 0
    step = VirtualMachine.step

    def fails(vm: VirtualMachine, budget: int) -> object:
        if engine.cells[mc.STUCK]:
            raise ValueError("while it is stuck")
        return step(vm, budget)

    monkeypatch.setattr(VirtualMachine, "step", fails)
    assert (runs.state(moment, fault).result.outcome == "error") == engine.has_stuck_bits
    assert engine.cells[mc.STUCK] == 0
