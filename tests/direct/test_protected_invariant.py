"""Under a frame map no guest gets out, and with any protective line left out some guest does."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable
from textwrap import dedent
from types import ModuleType
from typing import Any

import pytest

from tests.direct.protected_model import MODES, Model, P, W, play
from trapgate.compiler.dialect import Cells
from trapgate.decision import frame_filters as ff
from trapgate.decision.fault_filters import OWN_TABLE
from trapgate.decision.self_map import DIRECTORY, PTE
from trapgate.paging.frame_map import TABLE
from trapgate.vmm.direct import linking, links
from trapgate.vmm.direct.links import FOUR_LEVELS, PAE, Mode, Root
from trapgate.vmm.direct.root_prediction import RootPredictor

RESTLESS = "none", "known-table and paragraph 80", "empty-table and paragraph 80", "every filter"


@pytest.mark.parametrize("mode", [FOUR_LEVELS, PAE], ids=["four levels", "PAE"])
@pytest.mark.parametrize("name", MODES)
def test_hostile_guests_stay_in(name: str, mode: Mode) -> None:
    done = play(range(30), 250, (name,), mode)
    assert min(done[what] for what in ("data", "loaded")) > 20, done
    # With own-table all edits of PAE paging's directories complete.
    assert done["edited"] > 20 or (mode is PAE and MODES[name][1] & OWN_TABLE), done
    assert done["refused"] > 0, done
    assert (done["completed"] > 10) == (name != "none"), done


@pytest.mark.parametrize("mode", [FOUR_LEVELS, PAE], ids=["four levels", "PAE"])
@pytest.mark.parametrize("name", RESTLESS)
def test_guests_with_many_roots_stay_in(name: str, mode: Mode) -> None:
    done = play(range(30), 250, (name,), mode, restless=True)
    assert done["loaded"] > 100, done


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
        "    state[STALE] = ALL_STALE\n    state[LINKED] += 1\n", "    state[LINKED] += 1\n"
    ),
    "no flush when a table goes": changed(
        "    state[STALE] = max(state[STALE], TABLES_STALE)\n", ""
    ),
    "what is cached of tables goes when one comes, and no translation": changed(
        "state[STALE] = ALL_STALE", "state[STALE] = TABLES_STALE"
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
        "                    unlink_entry(state, mem, counts, level, after, before[n])\n",
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
        "            unlink_entry(state, mem, counts, level, entry_at(state, mem, frame, n), 0)\n",
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


def filtered(name: str, old: str, new: str = "True") -> Callable[[pytest.MonkeyPatch], None]:
    """A function of the filters with one place in its source changed."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        source = inspect.getsource(getattr(ff, name)).replace("@core\n", "")
        assert source.count(old) == 1, f"{source.count(old)} places have {old!r}"
        monkeypatch.setattr(ff, name, getattr(ff, name))
        exec(source.replace(old, new), vars(ff))  # our own source

    return patch


def remade(
    name: str, old: str, new: str = "pass\n", of: type = links.Links
) -> Callable[[pytest.MonkeyPatch], None]:
    """A method of a class of the VMM's with one place in its source changed."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        source = dedent(inspect.getsource(getattr(of, name)))
        assert source.count(old) == 1, f"{source.count(old)} places have {old!r}"
        made: dict[str, Any] = {}
        exec(source.replace(old, new), vars(sys.modules[of.__module__]), made)  # our own source
        monkeypatch.setattr(of, name, made[name])

    return patch


UNSEEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "what goes is let go": changed(
        "                elif state[UNSEEN] == 0:\n", "                else:\n"
    ),
    "any level is known": filtered("leads_to_known_table", "below >> LEVEL == level - 1"),
    "anything is a known leaf": filtered("leads_to_known_table", "bool(below & LEAF)"),
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


OPEN: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "any frame may be a table of the last level": filtered(
        "may_lead_to_last_level", "frame_byte(v, mem, table) & OWN"
    ),
    "a table of any level may lead to one": filtered(
        "may_lead_to_last_level", "byte >> LEVEL == 1"
    ),
    "a new table may lead to what is not the guest's": changed(
        "            refuse(state, level, frame)\n        return\n    if not is_own",
        "            pass\n        return\n    if not is_own",
    ),
}


@pytest.mark.parametrize("name", OPEN)
def test_without_this_an_open_last_level_lets_a_guest_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    OPEN[name](monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        play_both(range(1000, 1300, 5), ("own-table", "own-table and known"))


COUNTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "what is not empty may be linked": filtered("may_be_linked", "is_empty(v, mem, table)"),
    "what is a table already may be linked": filtered(
        "may_be_linked", "frame_byte(v, mem, table) == OWN", "frame_byte(v, mem, table) & OWN"
    ),
    "what is not the guest's may be linked": filtered(
        "may_be_linked", "frame_byte(v, mem, table) == OWN"
    ),
    "a table of several levels may link": filtered("may_be_linked", "byte >> LEVEL == 0", "False"),
    "half of an entry is": filtered("is_empty", "present = PRESENT\n", "present = PRESENT << 1\n"),
    "what is linked becomes no table": filtered("follow_link", "OWN | TABLE | kind", "OWN"),
    "what is linked is of another level": filtered(
        "follow_link", "(level - 1) << LEVEL", "level << LEVEL"
    ),
    "what is linked is a leaf": filtered("follow_link", "LEAF if level == 1", "LEAF if True"),
    "no flush when a table comes": filtered(
        "follow_link", "kind)\n            stale = ALL_STALE\n", "kind)\n"
    ),
    "no flush when a table goes": filtered(
        "follow_link", "                stale = max(stale, TABLES_STALE)\n", ""
    ),
    "what is cached of tables goes when one comes, and no translation": filtered(
        "follow_link", "stale = ALL_STALE", "stale = TABLES_STALE"
    ),
    "links that come are not counted": filtered("follow_link", "min(links + 1, MOST_LINKS)", "1"),
    "one link of several takes the table": filtered("follow_link", "links == 1", "True"),
    "a last-level table of others' frames has links": filtered(
        "follow_link", "level == 0 or before == after", "before == after"
    ),
    "the VMM does not look": remade(
        "_catch_up", "not linking.catch_up(*self._tables, self._told)", "False"
    ),
    "the VMM does not count anew": remade("_catch_up", "self.recount()\n"),
    "the VMM keeps what it knew": changed("            counts[cell] = 0\n", "            pass\n"),
    "the VMM learns of no new level": changed(
        "counts[frame * 4 + (byte >> LEVEL)] = links", "counts[frame * 4] = links"
    ),
    "the VMM keeps tables that nothing links": changed(
        "        release_unlinked(state, mem, counts)\n", "        pass\n"
    ),
    "the VMM does not tell": remade("settle", "linking.publish(*self._tables, self._told)", "pass"),
    "the VMM tells of one level": changed(
        "            links += counts[cell]\n", "            links = counts[cell]\n"
    ),
    "links of several levels are taken for counted": changed(
        "if levels > 1 or links >= MOST_LINKS:", "if links >= MOST_LINKS:"
    ),
}


@pytest.mark.parametrize("name", COUNTED)
def test_without_this_an_empty_table_lets_a_guest_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    COUNTED[name](monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        play_counted(FOUND_BY.get(name, 1000))


FOUND_BY = {
    "no flush when a table goes": 1045,
    "a last-level table of others' frames has links": 1025,
}
"""Seeds with which some of the changes are found sooner."""


def test_without_this_a_guess_lets_a_guest_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loaded root may be dropped, as one whose process has ended."""
    remade("loaded", " - {root}):", "):", of=RootPredictor)(monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        play(range(1000, 1300), 250, RESTLESS, restless=True)


def play_counted(first: int) -> None:
    """What a processor that counts links may have to stop, and guests at random."""
    use_an_old_translation()
    names = "empty-table", "empty-table and paragraph 80", "every filter"
    play_both(range(first, 1300, 5), names)


def use_an_old_translation() -> None:
    """Store to a frame, link it as a table, and store to it by the same translation."""
    model = Model(0, *MODES["empty-table"])
    # Without the self-map each table is of one level.
    assert model.links.store(8, bytes(8)) is None
    model.settle()
    model.write(8, 5, 0x1000)
    model.write(1, 7, 8 << 12 | P | W)
    assert model.map[8] & TABLE
    model.write(8, 5, 9 << 12 | P | W)
    assert model.done == {"loaded": 1, "data": 1, "completed": 2}


def test_an_old_translation_does_not_reach_a_new_table() -> None:
    use_an_old_translation()


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
