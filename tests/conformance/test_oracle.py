"""The oracle's cases on the whole processor, on each engine.

A sample runs by default; all of them with TRAPGATE_ORACLE_STEP=1 (a few seconds more).
"""

import os

import pytest

from tests.conformance.oracle_cases import BASE, MEMORY, Case, Outcome, build, compare, families
from trapgate.processor.processor import Processor
from trapgate.processor.vm_exit import VmFail
from trapgate.vmcs.vmcs import Vmcs

pytestmark = [pytest.mark.conformance, pytest.mark.slow]

STEP = int(os.environ.get("TRAPGATE_ORACLE_STEP", "5"))


@pytest.fixture(scope="module", params=["native", "portable"])
def processor(request: pytest.FixtureRequest) -> Processor:
    return Processor(MEMORY, engine=request.param)


def run(processor: Processor, case: Case) -> Outcome:
    """The case on a processor that others used before."""
    setup = build(case)
    vmcs = Vmcs()
    for name, value in setup.fields.items():
        vmcs[name] = value
    processor.registers.cells[:] = 0
    for name, value in setup.registers.items():
        setattr(processor.registers, name, value)
    processor.memory.write(BASE, setup.image)
    outcome = processor.vmlaunch(vmcs)
    error = outcome.error if isinstance(outcome, VmFail) else None
    return Outcome(
        error,
        lambda name: vmcs[name],
        lambda name: getattr(processor.registers, name),
        processor.memory.read,
    )


@pytest.mark.parametrize("family", sorted(families()))
def test_cases_of_a_family(processor: Processor, family: str) -> None:
    chosen = families()[family][::STEP]
    assert chosen
    wrong = {case["id"]: found for case in chosen if (found := compare(case, run(processor, case)))}
    assert wrong == {}


TRIGGERS = ("ac_u", "dbp_wr", "dbp_wr_tf", "ss_nc", "ss_push", "xm", "xbp")


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_what_the_engine_alone_cannot_do(processor: Processor, trigger: str) -> None:
    chosen = [case for case in families()["vec"] if case["trig"] == trigger]
    assert chosen
    assert {case["id"]: compare(case, run(processor, case)) for case in chosen} == {
        case["id"]: [] for case in chosen
    }
