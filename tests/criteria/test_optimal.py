"""No filter of a scheme is better than the one found: against all there are."""

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.criteria import brute
from trapgate.criteria.covers.cover import minimum_cover, primes, remedies
from trapgate.criteria.covers.cubes import Cube, _search, heaviest, inside
from trapgate.criteria.covers.pairs import _grow_two, inside_two
from trapgate.criteria.covers.schemes import (
    COMPARISONS,
    EVERYTHING,
    FILTER_SCHEMES,
    OPERATORS,
    Found,
    Limits,
    best,
    exactness_core,
    limits_of,
    soundness_core,
)
from trapgate.criteria.problems.problem import NEVER, UNSERVED, Problem, problem

FREE, EXIT, DELIVER = 0, 1, 2
ONE = [UNSERVED]
"""A lone problem has to be served."""
Goals = NDArray[np.int64]


def examine(goals: Goals, weights: NDArray[np.int64] | None) -> None:
    """Every scheme's filter against all that the scheme can be."""
    width = len(goals).bit_length() - 1
    must, spare = goals == EXIT, goals == DELIVER
    asked = problem(range(width), must, spare, weights)
    codes = np.arange(1 << width)
    for name, scheme in FILTER_SCHEMES.items():
        expected: int | None
        if name == "membership" and width > 3:  # 2**16 sets and more; but what is best is plain
            expected = 0 if must.sum() <= 8 else None
        else:
            expected = brute.least_cost(name, must, asked.cost)
        found = alone(asked, name)
        if found is None:
            assert expected is None, (name, goals)
            core = soundness_core(asked, scheme)
            if name == "membership" and width > 3:
                assert len(core) == 9
            else:
                irreducible(core, name, width)
            continue
        assert not soundness_core(asked, scheme)
        assert (exactness_core(asked, scheme) is None) == (found.cost == 0), (name, goals)
        exits = found.filter.exits(codes)
        assert not (must & ~exits).any(), (name, goals, "unsound")
        assert found.cost == int(asked.cost[exits].sum()), (name, goals, "miscounted")
        assert found.cost == expected, (name, goals, weights)


def alone(asked: Problem, name: str, limits: Limits = EVERYTHING) -> Found | None:
    (found,) = best([asked], FILTER_SCHEMES[name], limits)
    return found


def irreducible(core: list[int], name: str, width: int) -> None:
    nothing = np.zeros(1 << width, dtype=np.int64)
    every = np.zeros(1 << width, dtype=np.bool_)
    every[list(core)] = True
    assert brute.least_cost(name, every, nothing) is None
    for code in core:
        fewer = every.copy()
        fewer[code] = False
        assert brute.least_cost(name, fewer, nothing) is not None


def problems(width: int, count: int, seed: int) -> list[tuple[Goals, NDArray[np.int64]]]:
    """Random goals of all densities, and weights, of which many are 0 or equal."""
    random = np.random.default_rng(seed)
    size = 1 << width
    return [
        (
            random.choice(3, size, p=random.dirichlet([1, 1, 1])),
            random.choice([0, 1, 2, 5, 100], size) * random.integers(0, 2, size),
        )
        for _ in range(count)
    ]


def test_all_problems_of_two_bits() -> None:
    for goals in product((FREE, EXIT, DELIVER), repeat=4):
        examine(np.array(goals), None)


@pytest.mark.parametrize("part", range(4))
def test_some_problems_of_three_bits(part: int) -> None:
    every = list(product((FREE, EXIT, DELIVER), repeat=8))
    random = np.random.default_rng(part)
    for number in random.choice(len(every), 100, replace=False):
        examine(np.array(every[number]), None)
        examine(np.array(every[number]), random.integers(0, 4, 8))


@pytest.mark.slow
def test_all_problems_of_three_bits() -> None:
    random = np.random.default_rng(3)
    for goals in product((FREE, EXIT, DELIVER), repeat=8):
        examine(np.array(goals), None)
        examine(np.array(goals), random.integers(0, 4, 8))


@pytest.mark.parametrize(("width", "count"), [(4, 200), (5, 100)])
def test_a_sample_of_four_and_five_bits(width: int, count: int) -> None:
    for goals, weights in problems(width, count, width):
        examine(goals, None)
        examine(goals, weights)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "count"), [(4, 3000), (5, 800)])
def test_a_large_sample_of_four_and_five_bits(width: int, count: int) -> None:
    for goals, weights in problems(width, count, 100 + width):
        examine(goals, None)
        examine(goals, weights)


def test_the_best_of_all_schemes_within_limits() -> None:
    # Two bits, everything but 3 must exit: one comparison says it, or one pair.
    must = np.array([True, True, True, False])
    asked = problem(range(2), must, ~must)
    found = alone(asked, "not-equal")
    assert found is not None
    assert found.cost == 0
    found = alone(asked, "comparison", limits_of(1, ["less", "equal"]))
    assert found is not None
    assert (found.filter.scheme, found.filter.values, found.cost) == ("less", (3,), 0)
    # With one pair only, figure 4 is no better than that pair.
    two = problem(range(2), np.array([True, False, False, True]), np.array([0, 1, 1, 0], np.bool_))
    both, single = alone(two, "figure-4"), alone(two, "figure-4", limits_of(2, None))
    assert both is not None
    assert single is not None
    assert both.cost == 0 < single.cost


def cost(asked: Problem, cube: Cube | None) -> int:
    return int(asked.cost[inside(cube, len(asked.must))].sum())


def test_searches_for_many_bits_agree_with_tables() -> None:
    for width in (4, 6, 8):
        for goals, weights in problems(width, 12, width):
            asked = problem(range(width), goals == EXIT, goals == DELIVER, weights)
            if not asked.must.any():
                continue
            if (asked.cost > 0).any():
                table = heaviest(asked.cost, asked.must)
                searched = _search(asked.cost, asked.must, width, NEVER)
                assert cost(asked, table) == cost(asked, searched)
                assert (
                    searched is None or not (asked.must & inside(searched, len(asked.must))).any()
                )
            (two,), (grown,) = inside_two([asked], ONE), _grow_two([asked], ONE, NEVER)
            assert two is not None
            assert grown is not None
            assert grown.cost == two.cost


def test_wide_problems_cut_down_to_narrow_ones() -> None:
    # Sixteen bits of which four matter, but not to the weights: the answers must agree.
    random = np.random.default_rng(16)
    for goals, _ in problems(4, 4, 16):
        narrow = problem(range(4), goals == EXIT, goals == DELIVER)
        index = np.arange(1 << 13)
        spread = index >> 9
        wide_goals = goals[spread]
        for name in ("vt-x", "no-bit", "figure-4", "figure-5", "figure-5-no-bit"):
            few = alone(narrow, name)
            wide = problem(range(13), wide_goals == EXIT, wide_goals == DELIVER)
            many = alone(wide, name)
            assert few is not None
            assert many is not None
            assert many.cost == few.cost << 9
    # And where nothing can be cut down, a search over thirteen bits keeps what it says.
    must = random.random(1 << 13) < 0.002
    asked = problem(range(13), must, ~must)
    assert asked.reduced().width == 13
    codes = asked.codes()
    for name in ("vt-x", "figure-4", "figure-5", "figure-5-no-bit"):
        found = alone(asked, name)
        assert found is not None
        exits = found.filter.exits(codes)
        assert not (must & ~exits).any()
        assert found.cost == int(asked.cost[exits].sum())


def test_covers_are_minimal() -> None:
    for goals, _ in problems(3, 60, 7):
        wanted, barred = goals == EXIT, goals == DELIVER
        cubes = minimum_cover(wanted, barred)
        held = np.zeros(8, dtype=np.bool_)
        for cube in cubes:
            held |= inside(cube, 8)
        assert not (wanted & ~held).any()
        assert not (barred & held).any()
        assert len(cubes) == brute.fewest_cubes(wanted, barred)


def test_prime_implicants_are_the_maximal_ones() -> None:
    for goals, _ in problems(4, 20, 8):
        wanted, barred = goals == EXIT, goals == DELIVER
        found = {tuple(inside(cube, 16)) for cube in primes(wanted, barred)}
        every = [
            inside(Cube(mask, value), 16)
            for mask in range(16)
            for value in range(16)
            if not value & ~mask
        ]
        allowed = [cube for cube in every if not (cube & barred).any()]
        expected = {
            tuple(cube)
            for cube in allowed
            if (cube & wanted).any()
            and not any(
                (cube & ~other).sum() == 0 and other.sum() > cube.sum() for other in allowed
            )
        }
        assert found == expected


def test_remedies_tell_the_truth_about_the_schemes() -> None:
    for goals, _ in problems(4, 40, 9):
        asked = problem(range(4), goals == EXIT, goals == DELIVER)
        promised = {remedy.scheme for remedy in remedies(asked, OPERATORS)} - {""}
        for name in ("figure-3", "figure-4", "figure-5", "membership", *COMPARISONS):
            found = alone(asked, name)
            exact = found is not None and found.cost == 0
            if name in promised:
                assert exact, (name, goals)
            # Figure 4 with one pair is figure 3.
            elif exact and name != "figure-4":
                raise AssertionError((name, goals, promised))
            elif exact:
                assert "figure-3" in promised


def test_espresso_never_needs_fewer_cubes() -> None:
    inter = pytest.importorskip("pyeda.inter", reason="pyeda is a third opinion only")
    for goals, _ in problems(4, 25, 10):
        if not (goals == EXIT).any():
            continue
        variables = inter.exprvars("x", 4)
        text = "".join({FREE: "-", EXIT: "1", DELIVER: "0"}[int(goal)] for goal in goals)
        (minimized,) = inter.espresso_tts(inter.truthtable(variables, text))
        tree = minimized.to_ast()
        products = len(tree) - 1 if tree[0] == "or" else 1
        assert len(minimum_cover(goals == EXIT, goals == DELIVER)) <= products


def test_every_comparison_is_a_scheme_of_its_own() -> None:
    assert set(brute.COMPARISONS) == set(COMPARISONS) <= set(FILTER_SCHEMES)
