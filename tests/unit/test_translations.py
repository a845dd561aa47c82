"""Translations that the core remembers: for whom, and until when."""

import numpy as np
import pytest

from tests.unit.test_paging import LINEAR, Paging
from trapgate.compiler.raw import watch
from trapgate.paging.memory import TRANSLATION_SLOTS, WATCH_TRANSLATES, watch_length
from trapgate.paging.translations import forget, kind_of, remember, remembered
from trapgate.paging.walk import READ, WRITE, locate
from trapgate.sdm.state import RFLAGS_AC

OTHER = 0xA000


class Watched(Paging):
    """Paging over memory that is watched, as an engine's is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.watch = np.zeros(watch_length(0x10000 // 0x1000), np.int64)
        watch(self.mem, self.watch)

    def use(self) -> None:
        """VMCS and engine agree."""
        self.watch[WATCH_TRANSLATES] = 1

    def locate(self, access: int = READ, *, user: int = 0, rflags: int = 0) -> tuple[int, int]:
        return locate(self.v, rflags, self.mem, LINEAR, access, user)

    def move(self) -> None:
        """Let the page be another one."""
        self.change(-1, on=OTHER, off=0x9000)


@pytest.fixture(params=["two-level", "pae", "four-level"])
def machine(request: pytest.FixtureRequest) -> Watched:
    return Watched(request.param)


def test_a_translation_lives_until_it_is_forgotten(machine: Watched) -> None:
    machine.use()
    assert machine.locate() == (0x9ABC, -1)
    machine.move()
    assert machine.locate() == (0x9ABC, -1)
    forget(machine.watch)
    assert machine.locate() == (OTHER | 0xABC, -1)


def test_outside_the_engine_each_access_walks(machine: Watched) -> None:
    assert machine.locate() == (0x9ABC, -1)
    machine.move()
    assert machine.locate() == (OTHER | 0xABC, -1)
    machine.use()
    assert machine.locate() == (OTHER | 0xABC, -1)
    machine.move()
    machine.watch[WATCH_TRANSLATES] = 0
    assert machine.locate() == machine.walk()[:2]


def test_each_kind_of_access_walks_for_itself(machine: Watched) -> None:
    """A read leaves the dirty flag, and a supervisor may what users may not."""
    machine.use()
    machine.change(-1, off=0x46)
    assert machine.locate() == (0x9ABC, -1)
    assert machine.locate(WRITE) == (0, 3)
    assert machine.locate(user=1) == (0, 5)
    machine.change(-1, on=2)
    assert machine.locate(WRITE) == (0x9ABC, -1)
    assert machine.entry(-1) & 0x40


def test_faults_are_not_remembered(machine: Watched) -> None:
    machine.use()
    machine.change(-1, off=1)
    assert machine.locate() == (0, 0)
    machine.change(-1, on=1)
    assert machine.locate() == (0x9ABC, -1)


def test_kinds_differ() -> None:
    every = {
        kind_of(ac, access, user)
        for ac in (0, RFLAGS_AC)
        for access in range(3)
        for user in range(2)
    }
    assert len(every) == 12
    assert max(every) < 16


def test_pages_share_slots_and_are_told_apart(machine: Watched) -> None:
    machine.use()
    far = LINEAR + (TRANSLATION_SLOTS << 12)
    remember(machine.mem, LINEAR, 0, 0x9ABC)
    assert remembered(machine.mem, far, 0) == -1
    remember(machine.mem, far, 0, 0x7ABC)
    assert remembered(machine.mem, LINEAR, 0) == -1
    assert remembered(machine.mem, far + 1, 0) == 0x7ABD
    top = -0x1000
    remember(machine.mem, top, 3, 0x5000)
    assert remembered(machine.mem, top + 8, 3) == 0x5008
