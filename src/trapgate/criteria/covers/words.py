"""Sets of error codes in words."""

import numpy as np

from trapgate.criteria.covers.cover import minimum_cover
from trapgate.criteria.errors import MissingSolverError, UndecidedError
from trapgate.criteria.problems.codes import Codes, Layout, Truths
from trapgate.criteria.problems.problem import Deadline, Problem

_SECONDS = 2.0


def in_words(layout: Layout, chosen: Truths, occurs: Truths) -> list[str]:
    """The codes that are `chosen`, as few conjunctions as possible; those that do not
    occur may be counted in or out. Empty if there are none, or it would be too long to find.
    """
    must, barred = chosen & occurs, ~chosen & occurs
    return sorted(layout.words(*cube) for cube in covering(layout, must, barred))


def covering(layout: Layout, must: Truths, barred: Truths) -> list[tuple[int, int]]:
    """As few cubes (mask, value) as possible that hold all codes of `must` and none of
    `barred`, the widest first. Empty if there is nothing to hold, or it would take too long.
    """
    if not must.any():
        return []
    problem = Problem(layout.positions, must, barred.astype(np.int64)).reduced()
    try:
        cubes = minimum_cover(problem.must, problem.cost > 0, Deadline(_SECONDS))
    except (UndecidedError, MissingSolverError):
        return []
    found = ((problem.code(cube.fixed), problem.code(cube.value)) for cube in cubes)
    return sorted(found, key=lambda cube: (cube[0].bit_count(), cube))


def ranges(codes: Codes, most: int = 24) -> str:
    """Ascending codes as numbers and ranges: `0x3, 0x6-0x7`."""
    parts: list[list[int]] = []
    for code in codes.tolist():
        if parts and code == parts[-1][1] + 1:
            parts[-1][1] = code
        else:
            parts.append([code, code])
    shown = [f"{a:#x}" if a == b else f"{a:#x}-{b:#x}" for a, b in parts[:most]]
    more = len(parts) - most
    return ", ".join(shown) + (f" and {more} more ranges" if more > 0 else "")
