"""The hostile guests of test_invariant, on the real processor: fewer, and slower."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.direct.engine_model import EngineModel
from tests.direct.hostile import HostileGuests
from trapgate.decision.decide import Disposition
from trapgate.sdm.vectors import PF

HOW = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("engine", ["native", "portable"])
def test_hostile_guests_stay_in(engine: str) -> None:
    model = EngineModel(engine)

    class Guests(HostileGuests):
        def machines(self) -> EngineModel:
            model.reset()
            return model

    run_state_machine_as_test(Guests, settings=HOW)
    # It was a game: guests came through, were let through, were helped, and were refused.
    assert model.came_through > model.runs / 3 > 100
    completed = sum(vm.summary().count(Disposition.COMPLETE, PF) for vm in model.machines)
    edits = sum(vm.counts.edits for vm in model.machines)
    refused = sum(vm.counts.refused for vm in model.machines)
    assert min(completed, edits, refused) > 10, (completed, edits, refused)
