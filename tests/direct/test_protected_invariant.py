"""Under a frame map no guest gets out, and with any protective line left out some guest does."""

import inspect
import re
from collections.abc import Callable, Iterable
from types import ModuleType

import pytest

from tests.direct.protected_model import MODES, Model, play
from trapgate.compiler.dialect import Cells
from trapgate.decision import frame_filters as ff
from trapgate.decision.fault_filters import OWN_TABLE
from trapgate.decision.self_map import DIRECTORY, PTE
from trapgate.vmm.direct import linking, links
from trapgate.vmm.direct.links import FOUR_LEVELS, PAE, Mode, Root


@pytest.mark.parametrize("mode", [FOUR_LEVELS, PAE], ids=["four levels", "PAE"])
@pytest.mark.parametrize("name", MODES)
def test_hostile_guests_stay_in(name: str, mode: Mode) -> None:
    done = play(range(30), 250, (name,), mode)
    assert min(done[what] for what in ("data", "loaded")) > 20, done
    # With own-table all edits of PAE paging's directories complete.
    assert done["edited"] > 20 or (mode is PAE and MODES[name][1] & OWN_TABLE), done
    assert done["refused"] > 0, done
    assert (done["completed"] > 10) == (name != "none"), done


# What a VMM, or a filter, could leave out.


class Interpreted:
    """A library that compiles nothing."""

    def inside(self, function: object) -> object:
        """The function itself."""
        return function

    entry = inside


def interpreted(change: Callable[[str], str] = str) -> ModuleType:
    """The VMM's functions interpreted, with a change of their source."""
    source = inspect.getsource(linking)
    made = re.sub(r"^LIBRARY: Final = .*", "LIBRARY = Interpreted()", source, flags=re.MULTILINE)
    module = ModuleType(linking.__name__)
    vars(module)["Interpreted"] = Interpreted
    exec(compile(change(made), "linking", "exec"), vars(module))  # our own source
    return module


def changed(old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The VMM with one place in its source changed."""

    def change(source: str) -> str:
        assert source.count(old) == 1, f"{source.count(old)} places have {old!r}"
        return source.replace(old, new)

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(links, "linking", interpreted(change))

    return patch


def complete_if(
    condition: Callable[[int, int, int], bool],
) -> Callable[[pytest.MonkeyPatch], None]:
    """A filter that completes more than it should: by kind, data and old value."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = ff.filter_of

        def filter_of(v: Cells, mem: Cells, byte: int, kind: int, data: int, old: int) -> int:
            found = original(v, mem, byte, kind, data, old)
            return found or int(condition(kind, data, old))

        monkeypatch.setattr(ff, "filter_of", filter_of)

    return patch


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no flush when a table comes": changed(
        "    state[STALE] = 1\n    state[LINKED] += 1\n", "    state[LINKED] += 1\n"
    ),
    "no flush when a table goes": changed(
        "    state[STALE] = 1\n    state[RELEASED] += 1\n", "    state[RELEASED] += 1\n"
    ),
    "a new table may map anything": changed(
        "byte |= TABLE | LEAF if maps_own_alone(state, mem, frame) else TABLE",
        "byte |= TABLE | LEAF",
    ),
    "an edit may map anything": changed(
        "    if levels & 2 and not refused:\n        mark(state, mem, counts, frame)\n", ""
    ),
    "anything may be a table": changed(
        "bool(0 <= frame < state[FRAMES] and byte_of(state, mem, frame) & OWN)",
        "bool(0 <= frame < state[FRAMES] + 4)",
    ),
    "links are not followed": changed(
        "        link(state, mem, counts, (after & ADDRESS) >> 12, level - 1)\n", "        pass\n"
    ),
    "a refused edit is not undone": changed(
        "                    go(state, mem, counts, level, after, before[n])\n",
        "                    pass\n",
    ),
    "mixed tables are leaves": changed("byte |= TABLE | MIXED", "byte |= TABLE | LEAF"),
    "no table is protected": changed("    put_byte(state, mem, frame, byte)\n", "    pass\n"),
    "an entry that stays is let go": changed(
        "leads_to_table(state, before) and not is_same(before, after)",
        "leads_to_table(state, before)",
    ),
    "an entry that goes keeps its table": changed(
        "        unlink(state, mem, counts, (before & ADDRESS) >> 12, level - 1)\n",
        "        pass\n",
    ),
    "a table that goes keeps what it leads to": changed(
        "            go(state, mem, counts, level, entry_at(state, mem, frame, n), 0)\n",
        "            pass\n",
    ),
    "only one level of a table counts": changed("levels |= 1 << level", "levels = 1 << level"),
    "half of a table is looked at": changed(
        "return 512 if state[WIDTH] == 8 else 1024", "return 8"
    ),
    "a directory stays one for CR3": changed(
        "    elif counts[frame * 4 + state[LEVELS] - 1] != 0:\n", "    else:\n"
    ),
    "any leaf entry completes": complete_if(lambda kind, data, old: kind == PTE),
    "any upper entry completes": complete_if(lambda kind, data, old: kind == DIRECTORY),
    "an upper entry that comes completes": complete_if(
        lambda kind, data, old: kind == DIRECTORY and bool(data & 1) and not old & 1
    ),
    "an upper entry that goes completes": complete_if(
        lambda kind, data, old: kind == DIRECTORY and bool(old & 1) and not data & 1
    ),
}


def known(*conditions: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The filter of known tables without one of its conditions."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        source = inspect.getsource(ff.leads_to_known_table).replace("@core\n", "")
        for condition in conditions:
            assert source.count(condition) == 1, condition
            source = source.replace(condition, "True" if "if" not in condition else "if False")
        exec(source, vars(ff))  # our own source

    def restored(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ff, "leads_to_known_table", ff.leads_to_known_table)
        patch(monkeypatch)

    return restored


UNSEEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "what goes is let go": changed(
        "                elif state[UNSEEN] == 0:\n", "                else:\n"
    ),
    "any level is known": known("below >> LEVEL == level - 1"),
    "anything is a known leaf": known("bool(below & LEAF)"),
    "a table of several levels has one": changed(
        "            if found != 0:\n                return 0\n", ""
    ),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_without_this_a_known_table_lets_a_guest_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    UNSEEN[name](monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        play_both(range(1000, 1300, 5), ("known-table",))


def play_both(seeds: Iterable[int], names: tuple[str, ...] = ("none", "both")) -> None:
    """Five guests a seed in each mode, until something is wrong."""
    for seed in seeds:
        for mode in (FOUR_LEVELS, PAE):
            play(range(seed, seed + 5), 250, names, mode)


@pytest.mark.parametrize("name", MUTANTS)
def test_without_this_a_guest_gets_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS[name](monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        play_both(range(1000, 1300, 5))


def test_interpreted_and_compiled_the_vmm_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(mode: Mode) -> tuple[bytes, bytes, list[Root]]:
        model = Model(7, *MODES["all"], mode)
        for _ in range(120):
            model.step()
        return model.bytes.tobytes(), model.links.counts.tobytes(), sorted(model.links.roots)

    compiled = [end(mode) for mode in (FOUR_LEVELS, PAE)]
    monkeypatch.setattr(links, "linking", interpreted())
    assert [end(mode) for mode in (FOUR_LEVELS, PAE)] == compiled
