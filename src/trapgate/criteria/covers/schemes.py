"""The schemes that wishes can be compiled to, and the best filter of each (¶87, blocks 904-908).

A scheme here is what a user may ask for: one rule of `rules.py`, or several of which the
best is taken (`comparison`: all six operators; `auto`: everything that the number of
fields and the operators allow).
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from trapgate.criteria.covers.anybits import any_or_inside
from trapgate.criteria.covers.comparisons import EXITS, best_comparison, comparable
from trapgate.criteria.covers.exactness import FORMS, MEMBERS, coverable, irreducible
from trapgate.criteria.covers.pairs import (
    Pair,
    Shape,
    best_of_one,
    inside_one,
    inside_two,
    outside_one,
)
from trapgate.criteria.errors import CriteriaError, UnknownSchemeError
from trapgate.criteria.problems.codes import Codes
from trapgate.criteria.problems.filters import Filter
from trapgate.criteria.problems.problem import NEVER, UNSERVED, Deadline, Problem
from trapgate.errors import suggestion
from trapgate.sdm.vectors import PF

COMPARISONS = tuple(EXITS)
OPERATORS = ("match", "any-bit", "invert", *COMPARISONS, "member")
"""What a criterion may be made of (block 906): `match` is AND with a mask and comparison,
`invert` the control bit with its inversion."""


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
_Solve = Callable[[Sequence[Problem], Sequence[int], Limits, Deadline], Sequence[Found | None]]


@dataclass(frozen=True)
class FilterScheme:
    """A scheme by the name that users know.

    `fields` is how many fields it needs at least, `operators` what it needs (all of
    them; of a scheme that takes any, none), `shared` whether one set of its fields
    serves all vectors, `profile` the profile of processors that have it. `solve` finds
    the filters that are best together; `exact` tells whether some filter makes all of
    some codes exit and none of others.
    """

    name: str
    meaning: str
    fields: int
    operators: frozenset[str]
    shared: bool
    profile: str
    solve: _Solve
    exact: Callable[[Codes, Codes, Limits, Deadline], bool]

    def serves(self, vector: int) -> bool:
        """Whether processors that have it apply it to that vector's error codes."""
        return vector == PF or self.profile != "vt-x"

    def within(self, limits: Limits) -> bool:
        """Whether it can be used within `limits`."""
        some = self.operators or limits.operators & set(COMPARISONS)
        return self.fields <= limits.fields and self.operators <= limits.operators and bool(some)


def _never(any_mask: int = 0) -> Pair:
    """A pair that adds nothing: inside what the mask lets exit anyway, or never equal."""
    lowest = any_mask & -any_mask
    return (lowest, lowest) if lowest else (0, 1)


def _each(rule: str, shape_of: Callable[[Problem, Deadline], Shape]) -> _Solve:
    """A scheme whose vectors have nothing to do with each other."""

    def solve(
        problems: Sequence[Problem], _unserved: Sequence[int], _limits: Limits, deadline: Deadline
    ) -> list[Found | None]:
        shapes = [shape_of(one, deadline) for one in problems]
        return [Found(one_pair_filter(rule, shape), shape.cost) for shape in shapes]

    return solve


def _inside_one(problem: Problem, _deadline: Deadline) -> Shape:
    return inside_one(problem)


def one_pair_filter(rule: str, shape: Shape) -> Filter:
    """The fields of a rule that has one pair, for one cube, or none, of either polarity."""
    if rule in ("no-control", "match-exits"):
        return Filter(rule, False, shape.pair or _never())
    # Without a cube no code is held: nothing exits, or all does if inverted. MASK and
    # MATCH 0 hold every code, and the control bit says the rest.
    matching = shape.inverted == (shape.pair is None)
    return Filter(rule, matching != (rule == "exchanged"), shape.pair or (0, 0))


def _figure_4(
    problems: Sequence[Problem], unserved: Sequence[int], limits: Limits, deadline: Deadline
) -> list[Found | None]:
    shapes = inside_two(problems, unserved, deadline, pairs=min(2, limits.fields // 2))

    def filter_of(shape: Shape) -> Filter:
        # A lone vector need not have a pair that holds nothing.
        other = shape.shared or (len(problems) == 1 and shape.pair) or _never()
        return Filter("figure-4", False, (shape.pair or other) + other)

    return [None if shape is None else Found(filter_of(shape), shape.cost) for shape in shapes]


def _figure_5(rule: str) -> _Solve:
    def solve(
        problems: Sequence[Problem], unserved: Sequence[int], _limits: Limits, deadline: Deadline
    ) -> list[Found | None]:
        invertible = rule == "figure-5"
        shapes = any_or_inside(problems, unserved, invertible=invertible, deadline=deadline)
        found: list[Found | None] = []
        for shape in shapes:
            if shape is None:
                found.append(None)
                continue
            values = (shape.any_mask, *(shape.pair or _never(shape.any_mask)))
            found.append(Found(Filter(rule, invertible and not shape.inverted, values), shape.cost))
        return found

    return solve


def _membership(
    problems: Sequence[Problem], unserved: Sequence[int], limits: Limits, deadline: Deadline
) -> list[Found | None]:
    """Every choice of vectors to serve is tried; the values are all that these must have exit."""
    most = min(MEMBERS, limits.fields - 1)
    least = sum(unserved)
    best: list[Found | None] = [None] * len(problems)
    for chosen in product((True, False), repeat=len(problems)):
        deadline.check()
        served = [one for one, yes in zip(problems, chosen, strict=True) if yes]
        members = sorted({int(code) for one in served for code in one.must_codes()})
        if len(members) > most:
            continue
        values = ((1 << len(members)) - 1, *members, *[0] * (MEMBERS - len(members)))
        filter_ = Filter("member", False, values)
        found = [
            Found(filter_, int(one.cost[filter_.exits(one.codes())].sum())) if yes else None
            for one, yes in zip(problems, chosen, strict=True)
        ]
        total = sum(
            limit if one is None else one.cost for one, limit in zip(found, unserved, strict=True)
        )
        if total < least:
            least, best = total, found
    return best


def _holds_members(must: Codes, _spare: Codes, limits: Limits, _deadline: Deadline) -> bool:
    return len(must) <= min(MEMBERS, limits.fields - 1)


def _comparison(*names: str) -> _Solve:
    def solve(
        problems: Sequence[Problem], unserved: Sequence[int], limits: Limits, _deadline: Deadline
    ) -> list[Found | None]:
        operators = [name for name in names if name in limits.operators]
        best = best_comparison(problems, unserved, operators)
        if best is None:
            return [None] * len(problems)
        filter_ = Filter(best.operator, False, (best.value,))
        return [None if cost is None else Found(filter_, cost) for cost in best.costs]

    return solve


def _comparable(*names: str) -> Callable[[Codes, Codes, Limits, Deadline], bool]:
    def exact(must: Codes, spare: Codes, limits: Limits, _deadline: Deadline) -> bool:
        return bool(comparable(must, spare, [name for name in names if name in limits.operators]))

    return exact


def _scheme(
    name: str, meaning: str, fields: int, operators: Iterable[str], solve: _Solve,
    exact: Callable[[Codes, Codes, Limits, Deadline], bool] | None = None,
    *, shared: bool = False, profile: str = "extended",
) -> FilterScheme:  # fmt: skip
    def by_forms(must: Codes, spare: Codes, limits: Limits, deadline: Deadline) -> bool:
        return any(
            coverable(*form.demand(must, spare), min(pairs, limits.fields // 2), deadline)
            for form, pairs in FORMS[name].items()
        )

    return FilterScheme(
        name, meaning, fields, frozenset(operators), shared, profile, solve, exact or by_forms
    )


def _single(name: str) -> FilterScheme:
    meaning = f"the error code is {name.replace('-', ' ')} a value"
    return _scheme(name, meaning, 1, {name}, _comparison(name), _comparable(name), shared=True)


_PAIR = ("match", "invert")

FILTER_SCHEMES: dict[str, FilterScheme] = {
    scheme.name: scheme
    for scheme in (
        _scheme("vt-x", "figure 3 for page faults, as Intel ships it", 2, _PAIR,
                _each("figure-3", best_of_one), profile="vt-x"),
        _scheme("figure-3", "a pair for each vector, and its control bit", 2, _PAIR,
                _each("figure-3", best_of_one)),
        _scheme("exchanged", "figure 3 with the polarity exchanged (¶44)", 2, _PAIR,
                _each("exchanged", best_of_one)),
        _scheme("no-bit", "what matches the pair is the guest's (¶47)", 2, ("match",),
                _each("no-control", outside_one)),
        _scheme("match-exits", "what matches the pair exits (¶50)", 2, ("match",),
                _each("match-exits", _inside_one)),
        _scheme("figure-4", "what matches either of two pairs exits", 2, ("match",), _figure_4,
                shared=True),
        _scheme("figure-5", "any bit of a mask, or a pair, and the control bit", 3,
                ("match", "any-bit", "invert"), _figure_5("figure-5"), shared=True),
        _scheme("figure-5-no-bit", "any bit of a mask, or a pair (¶56)", 3, ("match", "any-bit"),
                _figure_5("any-or-match"), shared=True),
        _scheme("comparison", "the error code compared with a value (¶38)", 1, (),
                _comparison(*COMPARISONS), _comparable(*COMPARISONS), shared=True),
        _scheme("membership", f"the error code is one of at most {MEMBERS} values (¶38)", 2,
                ("member",), _membership, _holds_members, shared=True),
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
    """Limits from what a user says; None means no limit.

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
    problems: Sequence[Problem],
    scheme: FilterScheme,
    limits: Limits = EVERYTHING,
    deadline: Deadline = NEVER,
    unserved: Sequence[int] = (),
) -> Sequence[Found | None]:
    """The sound filters, one for each vector's problem, whose needless exits weigh least together.

    `unserved` is what it costs to leave a vector to its control bit, where that is a
    choice; then the answer for it is None. It is, too, where no filter is sound.

    Raises: UndecidedError: the deadline passed.
    """
    if not scheme.within(limits):
        needs = ", ".join(sorted(scheme.operators)) or "a comparison"
        raise CriteriaError(
            f"needs {scheme.fields} fields and the operators {needs}; allow them, or use auto",
            field=scheme.name,
        )
    return scheme.solve(problems, unserved or [UNSERVED] * len(problems), limits, deadline)


_NOTHING: Codes = np.zeros(0, dtype=np.int64)


def soundness_core(
    problem: Problem, scheme: FilterScheme, limits: Limits = EVERYTHING
) -> list[int]:
    """Codes that must exit and that the scheme cannot make exit together, none to spare.

    Empty if it can make all exit that must.
    """

    def possible(codes: Codes) -> bool:
        return scheme.exact(codes, _NOTHING, limits, NEVER)

    must = problem.must_codes()
    if possible(must):
        return []
    # One of the extremes alone is the shortest reason there can be.
    for one in (must[:1], must[-1:]):
        if not possible(one):
            return [int(one[0])]
    return sorted(irreducible(must, possible).tolist())


def exactness_core(
    problem: Problem, scheme: FilterScheme, limits: Limits = EVERYTHING, deadline: Deadline = NEVER
) -> tuple[list[int], list[int]] | None:
    """Why the scheme has no exact filter: codes (to exit, to be delivered), none to spare.

    None if it has one.
    """
    codes = problem.codes()
    must, spare = codes[problem.must], codes[problem.cost > 0]

    def possible(items: Codes) -> bool:
        deadline.check()
        return scheme.exact(items[items >= 0], ~items[items < 0], limits, deadline)

    if scheme.exact(must, spare, limits, deadline):
        return None
    core = irreducible(np.concatenate([must, ~spare]), possible).tolist()
    return sorted(code for code in core if code >= 0), sorted(~code for code in core if code < 0)
