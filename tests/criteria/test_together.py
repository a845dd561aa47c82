"""Several vectors that want the shared fields: no choice is better than the one found."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.criteria import brute
from trapgate.criteria import define, filter_in, parse_spec
from trapgate.criteria.covers.pairs import _grow_two, inside_two, total_cost
from trapgate.criteria.covers.schemes import FILTER_SCHEMES, best
from trapgate.criteria.problems.filters import Filter
from trapgate.criteria.problems.problem import NEVER, Problem, problem, together
from trapgate.vmcs.vmcs import Vmcs

SHARED = [name for name, scheme in FILTER_SCHEMES.items() if scheme.shared]

POSITIONS = [
    ((0, 1, 2), (0, 1, 2)),
    ((0, 1), (0, 1, 2)),
    ((0, 2), (1, 2)),
    ((0, 1), (1, 2), (0, 2)),
]


def asked_at_random(
    positions: tuple[tuple[int, ...], ...], random: np.random.Generator, *, weighted: bool
) -> tuple[list[Problem], list[int]]:
    problems = []
    for own in positions:
        size = 1 << len(own)
        goals = random.choice(3, size, p=random.dirichlet([1, 1, 1]))
        goals[random.integers(size)] = 1  # nobody asks for nothing
        weights = random.choice([0, 1, 2, 5, 100], size) if weighted else None
        problems.append(problem(own, goals == 1, goals == 2, weights))
    # Alone with its control bit a vector exits on everything; some have something better.
    unserved = [int(one.cost.sum() * random.choice([1.0, 1.0, 0.3])) for one in problems]
    return problems, unserved


def over_three_bits(one: Problem) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    must, cost = np.zeros(8, dtype=np.bool_), np.zeros(8, dtype=np.int64)
    for index in range(len(one.must)):
        code = sum((index >> n & 1) << position for n, position in enumerate(one.positions))
        must[code], cost[code] = one.must[index], one.cost[index]
    return must, cost


@pytest.mark.parametrize("scheme", SHARED)
def test_no_choice_is_better(scheme: str) -> None:
    random = np.random.default_rng(41)
    for number in range(120):
        problems, unserved = asked_at_random(
            POSITIONS[number % len(POSITIONS)], random, weighted=number % 2 == 0
        )
        found = best(problems, FILTER_SCHEMES[scheme], unserved=unserved)
        total = 0
        for one, answer, limit in zip(problems, found, unserved, strict=True):
            if answer is None:
                total += limit
                continue
            exits = answer.filter.exits(one.codes())
            assert not (one.must & ~exits).any()
            assert answer.cost == int(one.cost[exits].sum())
            total += answer.cost
        wide = [over_three_bits(one) for one in problems]
        assert total == brute.least_together(scheme, wide, unserved)
        same_in_shared_fields([answer.filter for answer in found if answer is not None])


def same_in_shared_fields(filters: list[Filter]) -> None:
    assert len({one.scheme for one in filters}) <= 1, "there is one criterion"
    for one in filters:
        assert one.rule is not None
        for place, name in enumerate(one.rule.fields):
            if "{}" not in name:
                assert len({other.values[place] for other in filters}) == 1, name


def test_the_search_for_many_bits_agrees_with_the_table() -> None:
    random = np.random.default_rng(42)
    for number in range(40):
        problems, unserved = asked_at_random(
            ((0, 1, 2, 3), (0, 1, 2, 4)), random, weighted=number % 2 == 0
        )
        table = inside_two(problems, unserved)
        searched = _grow_two(together(problems), unserved, NEVER)
        assert total_cost(searched, unserved) == total_cost(table, unserved)


TEXT = """
[PF]
exit = ["write and present and not user", "fetch and user"]
default = "deliver"
[GP]
exit = ["local and external", "idt and not external"]
default = "deliver"
[CP]
exit = ["code & 7 == 1"]
default = "deliver"
[vectors]
BP = "exit"
"""


@pytest.mark.parametrize("scheme", [*SHARED, "auto"])
def test_together_in_one_vmcs(scheme: str) -> None:
    text = TEXT
    if scheme in {"equal", "membership", "comparison"}:
        text = '[PF]\nexit = [3]\ndefault = "deliver"\n[GP]\nexit = [3]\ndefault = "deliver"\n'
    spec = parse_spec(text)
    definition = define(spec, scheme)
    loaded = Vmcs.from_toml(definition.toml())
    for answer in definition.answers:
        assert answer.proof is not None
        wishes = spec.vectors[answer.vector]
        if wishes.layout is None:
            continue
        codes, goals = wishes.goals()
        exits = filter_in(loaded, answer.vector).exits(codes)
        assert exits[goals == 1].all()
        assert set(codes[exits & (goals == 2)].tolist()) == set(answer.needless)
    if text is not TEXT:
        assert definition.exact, "one value serves both"


def test_a_vector_that_has_to_give_way_says_so() -> None:
    text = '[PF]\nexit = [3, 20]\ndefault = "deliver"\n[GP]\nexit = [8, 16]\ndefault = "deliver"\n'
    definition = define(parse_spec(text), "comparison")
    assert not definition.exact
    (_, page_faults) = definition.answers
    assert page_faults.scheme == "figure-3", "page faults keep their pair"
    four = [f"[{name}]\nexit = [{n}, {n + 32}, {n + 64}]\n" for n, name in enumerate(["TS", "GP"])]
    text = "".join(f'{one}default = "deliver"\n' for one in four)
    definition = define(parse_spec(text), "membership")
    assert [answer.scheme for answer in definition.answers] == ["membership"] * 2
    assert all(len(answer.needless) == 3 for answer in definition.answers)
    assert all(answer.contended for answer in definition.answers)
    assert "exact if #GP had the fields that all vectors share for itself" in definition.toml()


def test_together_over_sixteen_bits() -> None:
    text = TEXT.replace('"idt and not external"', '"index == 5 and not idt"')
    definition = define(parse_spec(text), "figure-4")
    selectors, page_faults, control = (one for one in definition.answers if one.layout)
    assert selectors.exact
    assert control.exact
    assert (page_faults.scheme, page_faults.contended) == ("figure-3", True)
    alone = define(parse_spec(text[: text.index("[GP]")]), "figure-4")
    assert alone.exact


def test_what_is_left_out_keeps_to_the_operators() -> None:
    text = '[PF]\nexit = [3, 20]\ndefault = "deliver"\n[GP]\nexit = [8, 16]\ndefault = "deliver"\n'
    definition = define(parse_spec(text), "comparison", operators=["equal", "less"])
    assert {answer.scheme for answer in definition.answers} <= {"comparison", "control bit"}
    assert define(parse_spec(text), "comparison").weight < definition.weight
