"""The hostile guests of test_invariant, on the real processor: fewer, and slower."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.direct.engine_model import EngineModel
from tests.direct.hostile import DIRECTORY, ORDERS, PTBASE, HostileGuests, P, U, W
from trapgate.decision.decide import Disposition
from trapgate.sdm.vectors import PF
from trapgate.vmm.direct.tables import GuestTables

HOW = settings(
    max_examples=40,
    stateful_step_count=30,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


Forget = Callable[[int, int], None]
SETTLE = GuestTables.settle


def keeps_translations(tables: GuestTables, flush: object, forget: Forget) -> None:
    SETTLE(tables, lambda: None, forget)


def keeps_code(tables: GuestTables, flush: Callable[[], None], forget: object) -> None:
    SETTLE(tables, flush, lambda address, size: None)


class Sequence(HostileGuests):
    """One guest that does what follows on purpose."""

    def __init__(self, model: EngineModel) -> None:
        super().__init__()
        self.model = model
        for vm in (0, 1):
            self.build(vm)
            model.start(vm, "none", ORDERS[0], (1, 0, 0), True, self.pool(vm, 0) << 12)

    def write_to_a_table_by_the_old_translation(self) -> str:
        """A page is written to, and its frame linked as a table; then both again."""
        model, page, frame = self.model, 5 << 12, self.pool(0, 2)
        self.entry(0, PTBASE | page >> 10, frame << 12 | P | W)
        self.entry(0, page, 0)
        self.entry(0, DIRECTORY | 1 << 2, frame << 12 | P | W | U)
        model.write(0, page, (self.pool(1, 0) << 12 | P | W | U).to_bytes(4, "little"))
        try:
            model.check()
            self.replace_code(0, page | 8, [1, 2])
        except AssertionError as error:
            return "old code" if "old code" in str(error) else "out"
        return "in"


@pytest.mark.parametrize(
    ("engine", "settle", "found"),
    [
        ("native", SETTLE, "in"),
        ("native", keeps_translations, "out"),
        ("native", keeps_code, "old code"),
        ("portable", SETTLE, "in"),
        ("portable", keeps_code, "old code"),
    ],
)
def test_what_stays_in_the_processor_is_found(
    engine: str, settle: Callable[..., None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a VMM that does not have it forgotten.

    The portable engine keeps no translation over such an edit.
    """
    monkeypatch.setattr(GuestTables, "settle", settle)
    assert Sequence(EngineModel(engine)).write_to_a_table_by_the_old_translation() == found


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
