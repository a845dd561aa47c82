"""The schemes that wishes can be compiled to, and the best filter of each (¶87, blocks 904-908).

A scheme here is what a user may ask for: one rule of `rules.py`, or several of which the
best is taken (`comparison`: all six operators; `auto`: everything that the number of
fields and the operators allow).
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np

from trapgate.criteria.complaints import (
    CriteriaError,
    InexpressibleError,
    UnknownSchemeError,
    listed,
    suggestion,
)
from trapgate.criteria.filters import Filter
from trapgate.criteria.pairs import (
    Pair,
    Shape,
    any_or_inside,
    best_of_figure_5,
    best_of_one,
    inside_one,
    inside_two,
    outside_one,
)
from trapgate.criteria.problem import NEVER, Deadline, Problem
from trapgate.criteria.reasons import irreducible

MEMBERS = 8
"""Values that the membership criterion holds."""

OPERATORS = (
    "match",
    "any-bit",
    "invert",
    "equal",
    "not-equal",
    "less",
    "less-or-equal",
    "greater",
    "greater-or-equal",
    "member",
)
"""What a criterion may be made of (block 906): `match` is AND with a mask and comparison,
`invert` the control bit with its inversion."""

COMPARISONS = OPERATORS[3:9]
_HIGHEST = 0xFFFFFFFF


@dataclass(frozen=True)
class Found:
    """The best filter of a scheme, and the packed cost of its needless exits."""

    filter: Filter
    cost: int


@dataclass(frozen=True)
class Limits:
    """What may be used: at most `fields` fields, and of the operators only those (904, 906)."""

    fields: int = 1 + MEMBERS
    operators: frozenset[str] = frozenset(OPERATORS)


EVERYTHING = Limits()
_Solve = Callable[[Problem, Limits, Deadline], Found | None]


@dataclass(frozen=True)
class FilterScheme:
    """A scheme by the name that users know.

    `fields` is how many fields it needs at least, `operators` what it needs (all of
    them; of a scheme that takes any, none), `shared` whether one set of its fields
    serves all vectors, `profile` the profile of processors that have it.
    """

    name: str
    meaning: str
    fields: int
    operators: frozenset[str]
    shared: bool
    profile: str
    solve: _Solve

    def within(self, limits: Limits) -> bool:
        """Whether it can be used within `limits`."""
        some = self.operators or limits.operators & set(COMPARISONS)
        return self.fields <= limits.fields and self.operators <= limits.operators and bool(some)


def _never(any_mask: int = 0) -> Pair:
    """A pair that adds nothing: inside what the mask lets exit anyway, or never equal."""
    lowest = any_mask & -any_mask
    return (lowest, lowest) if lowest else (0, 1)


def _figure_3(problem: Problem, _limits: Limits, deadline: Deadline) -> Found:
    shape = best_of_one(problem, deadline)
    return Found(figure_3_filter(shape), shape.cost)


def figure_3_filter(shape: Shape) -> Filter:
    """The fields of figure 3 for one cube, or none, of either polarity."""
    if not shape.pairs:
        return Filter("figure-3", shape.inverted, (0, 0))
    return Filter("figure-3", not shape.inverted, shape.pairs[0])


def _exchanged(problem: Problem, _limits: Limits, deadline: Deadline) -> Found:
    shape = best_of_one(problem, deadline)
    if not shape.pairs:
        return Found(Filter("exchanged", not shape.inverted, (0, 0)), shape.cost)
    return Found(Filter("exchanged", shape.inverted, shape.pairs[0]), shape.cost)


def _no_bit(problem: Problem, _limits: Limits, deadline: Deadline) -> Found:
    shape = outside_one(problem, deadline)
    pair = shape.pairs[0] if shape.pairs else _never()
    return Found(Filter("no-control", False, pair), shape.cost)


def _figure_4(problem: Problem, limits: Limits, deadline: Deadline) -> Found:
    shape = inside_two(problem, deadline) if limits.fields >= 4 else inside_one(problem)
    pairs = shape.pairs or (_never(),)
    return Found(Filter("figure-4", False, pairs[0] + pairs[-1]), shape.cost)


def _any_fields(shape: Shape) -> tuple[int, ...]:
    pair = shape.pairs[0] if shape.pairs else _never(shape.any_mask)
    return shape.any_mask, *pair


def _figure_5(problem: Problem, _limits: Limits, deadline: Deadline) -> Found:
    shape = best_of_figure_5(problem, deadline)
    return Found(Filter("figure-5", not shape.inverted, _any_fields(shape)), shape.cost)


def _figure_5_no_bit(problem: Problem, _limits: Limits, deadline: Deadline) -> Found:
    shape = any_or_inside(problem, deadline)
    return Found(Filter("any-or-match", False, _any_fields(shape)), shape.cost)


def _membership(problem: Problem, limits: Limits, _deadline: Deadline) -> Found | None:
    members = [int(code) for code in problem.must_codes()]
    if len(members) > min(MEMBERS, limits.fields - 1):
        return None
    padding = [0] * (MEMBERS - len(members))
    return Found(Filter("member", False, ((1 << len(members)) - 1, *members, *padding)), 0)


def _comparison(problem: Problem, limits: Limits, _deadline: Deadline) -> Found | None:
    found = [
        compared
        for name in COMPARISONS
        if name in limits.operators and (compared := best_comparison(problem, name)) is not None
    ]
    return min(found, key=lambda one: one.cost, default=None)


def best_comparison(problem: Problem, operator: str) -> Found | None:
    """The best value for one operator of ¶38; None if no value makes all exit that must.

    A bound is best as tight as the outermost code that must exit. A value beyond all
    codes that occur stands for "none of them".
    """
    codes, must = problem.codes(), problem.must_codes()
    lowest, highest = (int(must[0]), int(must[-1])) if len(must) else (_HIGHEST, 0)
    spare = codes[problem.cost > 0]
    if operator == "equal":
        if len(must) > 1:
            return None
        value = lowest
    elif operator == "not-equal":
        # The one code that does not exit; one beyond all codes if none may be spared.
        value = int(codes[np.argmax(problem.cost)]) if len(spare) else _HIGHEST
    elif operator == "less":
        value = highest + 1 if len(must) else 0
    elif operator == "less-or-equal":
        value = highest
    elif operator == "greater":
        value = lowest - 1 if len(must) else _HIGHEST
        if value < 0:
            return None
    else:
        value = lowest
    answer = Filter(operator, False, (value,))
    return Found(answer, int(problem.cost[answer.exits(codes)].sum()))


def _single(name: str) -> FilterScheme:
    return FilterScheme(
        name,
        f"the error code is {name.replace('-', ' ')} a value",
        1,
        frozenset({name}),
        True,
        "seed",
        lambda problem, _limits, _deadline: best_comparison(problem, name),
    )


def _scheme(
    name: str, meaning: str, fields: int, operators: Iterable[str], solve: _Solve, **more: object
) -> FilterScheme:
    shared, profile = bool(more.get("shared", False)), str(more.get("profile", "seed"))
    return FilterScheme(name, meaning, fields, frozenset(operators), shared, profile, solve)


_PAIR = ("match", "invert")

FILTER_SCHEMES: dict[str, FilterScheme] = {
    scheme.name: scheme
    for scheme in (
        _scheme("vt-x", "figure 3 for page faults, as Intel ships it", 2, _PAIR, _figure_3,
                profile="vt-x"),
        _scheme("figure-3", "a pair for each vector, and its control bit", 2, _PAIR, _figure_3),
        _scheme("exchanged", "figure 3 with the polarity exchanged (¶44)", 2, _PAIR, _exchanged),
        _scheme("no-bit", "what matches the pair is the guest's (¶47)", 2, ("match",), _no_bit),
        _scheme("figure-4", "what matches either of two pairs exits", 2, ("match",), _figure_4,
                shared=True),
        _scheme("figure-5", "any bit of a mask, or a pair, and the control bit", 3,
                ("match", "any-bit", "invert"), _figure_5, shared=True),
        _scheme("figure-5-no-bit", "any bit of a mask, or a pair (¶56)", 3, ("match", "any-bit"),
                _figure_5_no_bit, shared=True),
        _scheme("comparison", "the error code compared with a value (¶38)", 1, (), _comparison,
                shared=True),
        _scheme("membership", f"the error code is one of at most {MEMBERS} values (¶38)", 2,
                ("member",), _membership, shared=True),
        *map(_single, COMPARISONS),
    )
}  # fmt: skip
"""Every scheme by name, `auto` apart."""

ALIASES = {"no-control": "no-bit", "any-or-match": "figure-5-no-bit", "member": "membership"}
"""The names of the rules in `rules.py`, where they differ."""

AUTO = "auto"


def scheme_names() -> tuple[str, ...]:
    """What can be asked for."""
    return (AUTO, *FILTER_SCHEMES)


def schemes_named(name: str, path: str = "") -> tuple[FilterScheme, ...]:
    """The schemes that a name stands for: one, or all for `auto`.

    Raises:
        UnknownSchemeError: there is none; the nearest is suggested.
    """
    known = ALIASES.get(name, name)
    if known == AUTO:
        # Their union is `comparison`.
        return tuple(s for s in FILTER_SCHEMES.values() if s.name not in COMPARISONS)
    if known not in FILTER_SCHEMES:
        raise UnknownSchemeError(
            f"no such scheme; {suggestion(name, (*scheme_names(), *ALIASES))}",
            path=path,
            field=name,
        )
    return (FILTER_SCHEMES[known],)


def limits_of(fields: int | None, operators: Collection[str] | None) -> Limits:
    """Limits from what a user says; None is no limit.

    Raises:
        UnknownSchemeError: there is no such operator; the nearest is suggested.
        CriteriaError: fewer than one field.
    """
    if fields is not None and fields < 1:
        raise CriteriaError("a criterion needs at least 1 field; give more", field="fields")
    for name in operators or ():
        if name not in OPERATORS:
            raise UnknownSchemeError(f"no such operator; {suggestion(name, OPERATORS)}", field=name)
    most = EVERYTHING.fields if fields is None else fields
    return Limits(most, frozenset(OPERATORS if operators is None else operators))


def best(
    problem: Problem,
    scheme: FilterScheme,
    limits: Limits = EVERYTHING,
    deadline: Deadline = NEVER,
) -> Found:
    """The filter with the least weight of needless exits among those that are sound.

    Raises:
        InexpressibleError: none is sound; with an irreducible reason.
        UndecidedError: the deadline passed.
    """
    if not scheme.within(limits):
        needs = ", ".join(sorted(scheme.operators)) or "a comparison"
        raise CriteriaError(
            f"needs {scheme.fields} fields and {needs}; allow them, or use auto",
            field=scheme.name,
        )
    found = scheme.solve(problem, limits, deadline)
    if found is not None:
        return found
    core = soundness_core(problem, scheme, limits)
    raise InexpressibleError(
        f"cannot make {listed(core, 9)} exit together, whatever its fields hold; "
        "use another scheme",
        core,
        field=scheme.name,
    )


def soundness_core(problem: Problem, scheme: FilterScheme, limits: Limits) -> list[int]:
    """Codes that must exit and that the scheme cannot make exit together, none to spare."""

    def possible(indices: Collection[int]) -> bool:
        must = np.zeros(len(problem.must), dtype=np.bool_)
        must[list(indices)] = True
        part = Problem(problem.positions, must, np.zeros_like(problem.cost))
        return scheme.solve(part, limits, NEVER) is not None

    items = [int(index) for index in np.flatnonzero(problem.must)]
    # One of the extremes alone is the shortest reason there can be.
    for one in (items[0], items[-1]):
        if not possible([one]):
            return [problem.code(one)]
    return [problem.code(index) for index in sorted(irreducible(items, possible))]


def exactness_core(
    problem: Problem, scheme: FilterScheme, limits: Limits = EVERYTHING, deadline: Deadline = NEVER
) -> tuple[list[int], list[int]]:
    """Why the scheme has no exact filter: codes (to exit, to be delivered), none to spare."""

    def possible(items: Collection[tuple[int, bool]]) -> bool:
        deadline.check()
        must = np.zeros(len(problem.must), dtype=np.bool_)
        cost = np.zeros_like(problem.cost)
        for index, exits in items:
            must[index] = exits
            cost[index] = not exits
        found = scheme.solve(Problem(problem.positions, must, cost), limits, deadline)
        return found is not None and found.cost == 0

    items = [(int(index), True) for index in np.flatnonzero(problem.must)]
    items += [(int(index), False) for index in np.flatnonzero(problem.cost)]
    core = irreducible(items, possible)
    exits = sorted(problem.code(index) for index, is_exit in core if is_exit)
    spared = sorted(problem.code(index) for index, is_exit in core if not is_exit)
    return exits, spared
