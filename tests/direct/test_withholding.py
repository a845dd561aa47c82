"""Each protective line of what withholds R/W: with it left out, some guest gets out or notices.

The guests are those of `test_invariant`. The functions are compiled anew with a change of their
source.
"""

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.direct.fast_model import SPLITS, Model
from tests.direct.hostile import DIRECTORY, PS, HostileGuests, P, U, W
from trapgate.vmm.direct import linking, links, tables, withholding

HUNT = settings(
    max_examples=300,  # it stops at the first
    stateful_step_count=40,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
    report_multiple_bugs=False,
)


Change = tuple[ModuleType, Callable[[str], str]]
"""A module, and what becomes of its source."""


class Guests(HostileGuests):
    """On the fast model."""

    filters = ("none", "figure 8")

    def machines(self) -> Model:
        return Model()


def changed_name(module: ModuleType) -> str:
    """What a changed module is called."""
    return f"changed_{module.__name__.rpartition('.')[2]}"


def compiled(folder: Path, changes: dict[ModuleType, Callable[[str], str]]) -> Iterator[ModuleType]:
    """Both modules with changes of their source, under other names."""
    for module in (linking, withholding):
        name = changed_name(module)
        source = inspect.getsource(module)
        source = re.sub(r"^LIBRARY: Final = .*", "LIBRARY = Library()", source, flags=re.MULTILINE)
        source = source.replace("from trapgate.vmm.direct.linking", "from changed_linking")
        file = folder / f"{name}.py"
        file.write_text(changes.get(module, str)(source))
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        spec.loader.exec_module(made)
        yield made


def changed(module: ModuleType, old: str, new: str) -> Change:
    """One place in the source of a module changed."""

    def change(source: str) -> str:
        assert source.count(old) == 1, f"{source.count(old)} places have {old!r}"
        return source.replace(old, new)

    return module, change


MUTANTS = {
    "no flush when a table comes": changed(
        linking,
        "    state[STALE] = ALL_STALE\n    state[LINKED] += 1\n",
        "    state[LINKED] += 1\n",
    ),
    "no flush when a table goes": changed(
        linking, "    state[STALE] = max(state[STALE], TABLES_STALE)\n", ""
    ),
    "entries may lead anywhere": changed(
        linking, "        demand_own(state, mem, level, after)\n", "        pass\n"
    ),
    "a new table may lead anywhere": changed(
        linking,
        "if level > 1 or (state[DEVICES] != 0 and counts[frame * 4 + 1] == 0):",
        "if level > 1:",
    ),
    "a large page may lie beyond 4 GB": changed(
        linking, " or (level > 1 and entry & LARGE_MUST_BE_ZERO != 0)", ""
    ),
    "anything may be a table": changed(
        linking,
        "bool(0 <= frame < state[FRAMES] and byte_of(state, mem, frame) & OWN)",
        "bool(0 <= frame < state[FRAMES])",
    ),
    "links are not followed": changed(
        linking,
        "            link(state, mem, counts, (after & ADDRESS) >> 12, level - 1)\n",
        "            pass\n",
    ),
    "a refused edit is not undone": changed(
        linking,
        "                    unlink_entry(state, mem, counts, level, after, before[n])\n",
        "                    pass\n",
    ),
    "an entry may let write to a table": changed(
        withholding, "return bool(byte_of(state, mem, target) & TABLE != 0)", "return False"
    ),
    "an entry may let write to a directory": changed(
        withholding, "        return is_upper(state, counts, target)\n", "        return False\n"
    ),
    "a large page may let write to a table": changed(
        withholding, "    return holds_table(state, mem, entry)\n", "    return False\n"
    ),
    "what is split is writable": changed(
        withholding,
        "                if byte_of(state, mem, page >> 12) & TABLE != 0:\n",
        "                if page < 0:\n",
    ),
    "what is split stays as it is": changed(
        withholding,
        "        if book[SPLITS][2 * slot] != 0:\n            frame =",
        "        if book[SPLITS][2 * slot] < 0:\n            frame =",
    ),
    "no table left, no matter": changed(
        withholding, "if not upper or not split(", "if not upper or split("
    ),
    "R/W is not given back": changed(
        withholding, "        put_entry(mem, book, frame, n, entry | W)\n", "        pass\n"
    ),
    "data does not get R/W back": changed(
        withholding,
        "                elif book[HELD][frame >> 6] & bit != 0:\n",
        "                elif book[HELD][frame >> 6] & bit != 0 and frame < 0:\n",
    ),
    "data stays split": changed(
        withholding, "        is_upper(state, counts, frame)\n        and state", "        state"
    ),
    "what comes is not looked at": changed(
        withholding,
        "for n in range(first, first + count):\n        review_entry(",
        "for n in range(first, first):\n        review_entry(",
    ),
}


def what_chance_finds_seldom() -> None:
    """A table comes in a 4-MByte page that is split already; and more pages than can be split."""
    game = Guests()
    model = game.model = Model()
    for vm in (0, 1):
        game.build(vm)
        model.start(vm, "none", "figure 6", (1, 0, 0), True, game.pool(vm, 0) << 12)
    for slot in range(1, SPLITS + 2):
        game.entry(0, DIRECTORY | slot << 2, model.bases[0] << 12 | PS | P | W)
    assert len(model.spaces[0].tables.replaced()) == SPLITS
    game.entry(0, DIRECTORY | 5 << 2, game.pool(0, 2) << 12 | P | W | U)
    assert model.set_pse(0, False), "tables of the VMM's are left in the directory"


def a_directory_with_a_split_page_becomes_data() -> None:
    """Another is loaded, and the guest has a new use for the first."""
    game = Guests()
    model = game.model = Model()
    for vm in (0, 1):
        game.build(vm)
        first, second = game.pool(vm, 0), game.pool(vm, 2)
        model.memory[second << 10] = model.memory[first << 10]
        model.start(vm, "none", "figure 6", (1, 0, 0), True, first << 12)
    tables, first = model.spaces[0].tables, game.pool(0, 0)
    game.entry(0, DIRECTORY | 1 << 2, model.bases[0] << 12 | PS | P | W)
    assert tables.replaced()
    assert model.load_cr3(0, game.pool(0, 2) << 12)
    assert tables.drop_roots_to(first)
    tables.settle(model.spaces[0].forget, lambda address, size: None)
    assert not tables.replaced(), "data is replaced"


def play(how: settings) -> None:
    what_chance_finds_seldom()
    a_directory_with_a_split_page_becomes_data()
    run_state_machine_as_test(Guests, settings=how)


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the VMM be one with these changes of its source."""

    def make(*changes: Change) -> None:
        for module in (linking, withholding):
            monkeypatch.setitem(sys.modules, changed_name(module), sys)
        new_linking, new_withholding = compiled(tmp_path, dict(changes))
        for user in (links, tables):
            monkeypatch.setattr(user, "linking", new_linking)
        monkeypatch.setattr(tables, "withholding", new_withholding)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_without_this_a_guest_gets_out_or_notices(name: str, change: Callable[..., None]) -> None:
    change(MUTANTS[name])
    with pytest.raises((AssertionError, IndexError)):
        play(HUNT)


def test_without_a_change_nobody_does(change: Callable[..., None]) -> None:
    change()
    play(settings(HUNT, max_examples=10))
