"""The hostile guests of test_invariant, on the real processor: fewer, and slower."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.direct.engine_model import EngineModel
from tests.direct.hostile import HostileGuests
from trapgate.decision.decide import Disposition
from trapgate.sdm.vectors import PF
from trapgate.vmm.direct.tables import GuestTables

HOW = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


Forget = Callable[[int, int], None]
HUNT = settings(HOW, max_examples=4000, database=None, report_multiple_bugs=False)
"""Until it is found: which examples come first depends on what else has been imported."""
SETTLE = GuestTables.settle


def keeps_translations(tables: GuestTables, flush: object, forget: Forget) -> None:
    SETTLE(tables, lambda: None, forget)


def keeps_code(tables: GuestTables, flush: Callable[[], None], forget: object) -> None:
    SETTLE(tables, flush, lambda address, size: None)


@pytest.mark.parametrize("settle", [keeps_translations, keeps_code])
def test_what_stays_in_the_processor_is_found(
    settle: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a VMM that does not have it forgotten."""
    monkeypatch.setattr(GuestTables, "settle", settle)
    model = EngineModel("native")

    class Guests(HostileGuests):
        def machines(self) -> EngineModel:
            model.reset()
            return model

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Guests, settings=HUNT)


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
    assert min(completed, edits, refused) > 3, (completed, edits, refused)
