"""Moments of a campaign by conditions on the faults that its golden run takes."""

import pytest

from tests.campaign.plans import HEAD, plan
from trapgate.campaign.bench import Bench
from trapgate.campaign.errors import PlanError
from trapgate.campaign.golden import Reference
from trapgate.campaign.moments import moments_of

TARGET = '[[target]]\nevent = ["NMI"]\n[when]\n'


def moments(references: dict[str, Reference], when: str) -> list[int]:
    """The moments of a golden run that is made once."""
    wanted = plan(TARGET + when, HEAD.replace("3000", "12000"))
    if not references:
        references[""] = Reference(Bench(wanted))
    made = references[""]
    made.bench.plan = wanted
    return [int(time) for time in moments_of(made, None)]


def test_moments_by_condition() -> None:
    made: dict[str, Reference] = {}
    faults = moments(made, 'faults = ["PF"]')
    assert len(faults) > 2
    for condition, wanted in (
        ("vector == PF", faults),
        ("vector == PF and type == hardware_exception and walk_level >= 1 and mode == 2", faults),
        ("vector == PF and data_size >= 1 and write or vector == PF and not write", faults),
        ("write and user and not present", faults[2:7:2]),
        ("vector == PF and rip not in symbol('demand')", faults),
    ):
        assert moments(made, f'condition = "{condition}"') == wanted, condition
    with pytest.raises(PlanError, match="the golden run is never there"):
        moments(made, 'condition = "vector == PF and walk_level == 0"')
    with pytest.raises(PlanError, match="column 1: no value is called vektor; did you mean vector"):
        moments(made, 'condition = "vektor == PF"')
    with pytest.raises(PlanError, match="condition means moments of its own"):
        moments(made, 'condition = "vector == PF"\nevery = 5')
