"""Whether some filter makes all of some codes exit and none of others.

A form is a way to be exact with pairs of mask and match, of however many; a scheme has
some forms, with so many pairs each. Codes are given as lists, so that few are quick.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trapgate.criteria.covers.cubes import Cube, joined, spanned
from trapgate.criteria.problems.codes import Codes
from trapgate.criteria.problems.problem import NEVER, Deadline

CODE = 0xFFFFFFFF
"""All bits of an error code."""


@dataclass(frozen=True)
class Form:
    """Pairs, and with `any_mask` an any-bit mask besides; what meets one of them exits, or
    with `inverted` what meets none. `operators` are what it takes.
    """

    operators: frozenset[str]
    any_mask: bool = False
    inverted: bool = False

    def words(self, pairs: int) -> str:
        """In words, for so many pairs."""
        parts = ["an any-bit mask"] if self.any_mask else []
        if pairs or not parts:
            parts.append("1 pair" if pairs == 1 else f"{pairs} pairs")
        which = "what meets none of them" if self.inverted else "what meets one of them"
        if self.any_mask + pairs == 1:
            which = "what does not meet it" if self.inverted else "what meets it"
        return f"{' and '.join(parts)}; {which} exits"

    def demand(self, must: Codes, spare: Codes) -> tuple[Codes, Codes]:
        """The codes that pairs have to hold, and those that they may not."""
        wanted, barred = (spare, must) if self.inverted else (must, spare)
        if self.any_mask:
            # The mask can have every bit that no barred code has.
            wanted = wanted[(wanted & ~np.bitwise_or.reduce(barred, initial=0)) == 0]
        return wanted, barred


PAIRS = Form(frozenset({"match"}))
OUTSIDE = Form(frozenset({"match"}), inverted=True)
ANY_OR_PAIRS = Form(frozenset({"match", "any-bit"}), any_mask=True)
OUTSIDE_BOTH = Form(frozenset({"match", "any-bit", "invert"}), any_mask=True, inverted=True)

FORMS: dict[str, dict[Form, int]] = {
    "figure-3": {PAIRS: 1, OUTSIDE: 1},
    "vt-x": {PAIRS: 1, OUTSIDE: 1},
    "exchanged": {PAIRS: 1, OUTSIDE: 1},
    "no-bit": {OUTSIDE: 1},
    "match-exits": {PAIRS: 1},
    "figure-4": {PAIRS: 2},
    "figure-5": {ANY_OR_PAIRS: 1, OUTSIDE_BOTH: 1},
    "figure-5-no-bit": {ANY_OR_PAIRS: 1},
}
"""How many pairs each scheme of pairs has, in which forms."""

MEMBERS = 8
"""Values that the membership criterion holds."""


def coverable(wanted: Codes, barred: Codes, pairs: int, deadline: Deadline = NEVER) -> bool:
    """Whether so many cubes can hold all wanted codes and no barred one.

    Each wanted code joins a cube or begins one; cubes only grow, so that one which holds a
    barred code is given up. The last cube need not be grown: it takes all that is left.
    """

    def allowed(cube: Cube) -> bool:
        return not ((barred & cube.fixed) == cube.value).any()

    seen: set[frozenset[Cube]] = set()
    stack: list[tuple[Cube, ...]] = [()]
    while stack:
        deadline.check()
        cubes = stack.pop()
        if frozenset(cubes) in seen:
            continue
        seen.add(frozenset(cubes))
        left = wanted
        for cube in cubes:
            left = left[(left & cube.fixed) != cube.value]
        if not len(left) or (len(cubes) == pairs - 1 and allowed(spanned(left, CODE))):
            return True
        code = int(left[0])
        for place, cube in enumerate(cubes):
            wider = joined(cube, code, CODE)
            if allowed(wider):
                stack.append((*cubes[:place], wider, *cubes[place + 1 :]))
        if len(cubes) < pairs and pairs > 1:
            stack.append((*cubes, joined(None, code, CODE)))
    return False


def irreducible(items: Codes, possible: Callable[[Codes], bool]) -> Codes:
    """A part of `items` that is not `possible` together, though it is without any one of them.

    `possible` must be monotone: what is possible stays so with fewer items. `items`
    themselves must be impossible. (Junker's QuickXplain, AAAI 2004.)
    """

    def explain(background: Codes, fresh: bool, candidates: Codes) -> Codes:
        if fresh and not possible(background):
            return candidates[:0]
        if len(candidates) == 1:
            return candidates
        half = len(candidates) // 2
        first, second = candidates[:half], candidates[half:]
        needed = explain(np.concatenate([background, first]), True, second)
        more = explain(np.concatenate([background, needed]), len(needed) > 0, first)
        return np.concatenate([more, needed])

    return explain(items[:0], False, items)
