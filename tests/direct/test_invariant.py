"""No guest maps what is not its own, nor its tables writable: whatever it tries.

And with any one condition of figure 8 left out, some guest does: so the conditions are all
needed, and the test would notice.
"""

from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.direct.fast_model import Attempt, Completes, Model
from tests.direct.hostile import FILTERS, PTBASE, SELF, HostileGuests, P, W

QUICK = settings(
    max_examples=60,
    stateful_step_count=40,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
HUNT = settings(
    QUICK,
    max_examples=6000,  # it stops at the first; some hundreds are enough, but not always
    database=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)


class Guests(HostileGuests):
    """On the fast model, whose filters may be more than the package has."""

    more: ClassVar[dict[str, Completes]] = {}

    def machines(self) -> Model:
        return Model(self.more)


@pytest.mark.parametrize("name", FILTERS)
def test_hostile_guests_stay_in(name: str) -> None:
    class Filtered(Guests):
        filters = (name,)

    run_state_machine_as_test(Filtered, settings=QUICK)


FRAME = 0xFFFF_F000
CONDITIONS: dict[str, Callable[[Attempt], bool]] = {
    "706: a write that R/W stopped": lambda a: bool(a.code & P and a.code & W) and a.readable,
    "708: in the page table": lambda a: a.address & 0xFFC0_0000 == PTBASE,
    "708: not a PDE": lambda a: a.address >> 12 & 0x3FF != SELF,
    "816: present already": lambda a: bool(a.old & P),
    "818: the same PFN": lambda a: (a.old ^ a.data) & FRAME == 0,
    "820: read-only stays read-only": lambda a: not a.data & W or bool(a.old & W),
}
"""Figure 8 as the seed has it, word for word: PS is no part of it."""
BOX_810 = ("816", "818", "820")


def figure_8_but(left_out: str) -> Callable[[Attempt], bool]:
    def completes(a: Attempt) -> bool:
        holds = {name: name == left_out or rule(a) for name, rule in CONDITIONS.items()}
        always = all(ok for name, ok in holds.items() if not name.startswith(BOX_810))
        return always and (not a.data & P or all(holds.values()))

    return completes


def test_figure_8_word_for_word_keeps_them_in() -> None:
    class Verbatim(Guests):
        filters = ("verbatim",)
        more: ClassVar[dict[str, Completes]] = {"verbatim": figure_8_but("nothing")}

    run_state_machine_as_test(Verbatim, settings=QUICK)


def test_an_absent_page_is_nothing_that_a_filter_completes() -> None:
    """A store by a translation whose directory entry is gone, with an error code that says so."""
    model = Model({"verbatim": figure_8_but("nothing")})

    class Verbatim(Guests):
        def machines(self) -> Model:
            return model

    game = Verbatim()
    game.model = model
    for vm in (0, 1):
        game.build(vm)
        model.start(vm, "verbatim", "figure 6", (1, 0, 0), True, game.pool(vm, 0) << 12)
    for at, which, bits in (
        (PTBASE, 0, 0),
        (PTBASE | SELF << 12 | 4, 1, P | W),
        (PTBASE, 0, 0),
        (PTBASE | SELF << 12, 0, 0),
        (PTBASE, 0, P | W),
        (PTBASE, 0, P),
    ):
        game.entry(0, at, game.pool(0, which) << 12 | bits)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_figure_8_without_one_condition_lets_a_guest_out(condition: str) -> None:
    class Broken(Guests):
        filters, orders, page_sizes = ("broken",), ("figure 6",), (True,)
        more: ClassVar[dict[str, Completes]] = {"broken": figure_8_but(condition)}

    with pytest.raises(AssertionError):
        run_state_machine_as_test(Broken, settings=HUNT)
