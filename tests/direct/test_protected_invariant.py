"""Under a frame map no guest gets out, and with any protective line left out some guest does."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.direct.protected_model import MODES, play
from trapgate.compiler.dialect import Cells
from trapgate.decision import frame_filters as ff
from trapgate.decision.self_map import DIRECTORY, PTE
from trapgate.paging import frame_map as fm
from trapgate.vmm.direct import links as module
from trapgate.vmm.direct.links import FOUR_LEVELS, PAE, Links, Mode


@pytest.mark.parametrize("mode", [FOUR_LEVELS, PAE], ids=["four levels", "PAE"])
@pytest.mark.parametrize("name", MODES)
def test_hostile_guests_stay_in(name: str, mode: Mode) -> None:
    done = play(range(30), 250, (name,), mode)
    assert min(done[what] for what in ("data", "edited", "refused", "loaded")) > 20, done
    assert (done["completed"] > 10) == (name != "none"), done


# What a VMM, or a filter, could leave out.


def keep_old_translations(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Whatever marks translations stale in one method of `Links` is undone."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(Links, name)

        def without(self: Links, frame: int, level: int) -> None:
            before = self._stale
            try:
                original(self, frame, level)
            finally:
                self._stale = before

        monkeypatch.setattr(Links, name, without)

    return patch


def own_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The VMM does not look whose frames a new last-level table maps."""

    def owned(self: Links, frames: object) -> object:
        return np.full(np.shape(frames), fm.OWN, np.uint8)  # type: ignore[call-overload]

    monkeypatch.setattr(Links, "_byte_of", owned)


def edit_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The VMM stores what it is asked to store, and links nothing."""

    def come(self: Links, level: int, before: int, after: int) -> None:
        if level == 1:
            original(self, level, before, after)

    original = Links._come
    monkeypatch.setattr(Links, "_come", come)


def leave_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a refused edit has linked stays linked."""
    monkeypatch.setattr(Links, "_undo", lambda self: None)


def forget_who_is_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of several levels is taken for a leaf."""
    original = Links._mark

    def mark(self: Links, frame: int) -> None:
        original(self, frame)
        if self._map[frame] & fm.MIXED:
            self._map[frame] ^= fm.MIXED | fm.LEAF

    monkeypatch.setattr(Links, "_mark", mark)


def protect_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is linked is not marked."""
    monkeypatch.setattr(Links, "_mark", lambda self, frame: None)


def unlink_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an entry led to is let go even if it still leads there."""
    monkeypatch.setattr(Links, "_is_same", staticmethod(lambda before, after: False))
    original = Links._come

    def come(self: Links, level: int, before: int, after: int) -> None:
        if (before ^ after) & (module.ADDRESS | module.PS):
            original(self, level, before, after)

    monkeypatch.setattr(Links, "_come", come)


def complete_if(
    condition: Callable[[int, int, int], bool],
) -> Callable[[pytest.MonkeyPatch], None]:
    """A filter that completes more than it should: by kind, data and old value."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = ff.filter_of

        def filter_of(v: Cells, mem: Cells, kind: int, data: int, old: int) -> int:
            found = original(v, mem, kind, data, old)
            return found or int(condition(kind, data, old))

        monkeypatch.setattr(ff, "filter_of", filter_of)

    return patch


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no flush when a table comes": keep_old_translations("_link"),
    "no flush when a table goes": keep_old_translations("_forget"),
    "a new table may map anything": own_everything,
    "links are not followed": edit_unseen,
    "a refusal is not undone": leave_undone,
    "mixed tables are leaves": forget_who_is_mixed,
    "no table is protected": protect_no_table,
    "an entry that stays is let go": unlink_first,
    "any leaf entry completes": complete_if(lambda kind, data, old: kind == PTE),
    "any upper entry completes": complete_if(lambda kind, data, old: kind == DIRECTORY),
    "an upper entry that comes completes": complete_if(
        lambda kind, data, old: kind == DIRECTORY and bool(data & 1) and not old & 1
    ),
    "an upper entry that goes completes": complete_if(
        lambda kind, data, old: kind == DIRECTORY and bool(old & 1) and not data & 1
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_without_this_a_guest_gets_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    with pytest.raises((AssertionError, KeyError)):
        play(range(1000, 1300), 250, ("none", "both"))
