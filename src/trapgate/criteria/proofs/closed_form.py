"""The page-fault filters of two hypervisors as one, in closed form: what nested VMX needs.

A filter is bit 14 of the exception bitmap, a mask and a match (figure 3). What exits under
it is a cube, the error codes that agree with the match on the mask's bits, or with bit 14
clear all codes but a cube. `merged` gives the least filter (of all 2**32 codes the fewest
exit) that has everything that exits under either of two:

* two cubes: the least cube around both keeps the mask bits on which both agree,
  `m0 & m1 & ~(v0 ^ v1)`. If they agree on none, everything but a quarter: one bit of each
  mask tells codes that neither wants;
* a cube and all but a cube: the second, if they are disjoint it is exact; else it is kept
  from those codes of its cube that the first cannot want, by one bit more of the mask;
* all but a cube, twice: all but what both cubes have, which is exact.

The same expressions work on integers, NumPy arrays and z3 bit-vectors.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.errors import ProofError
from trapgate.criteria.problems.problem import NEVER, Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.decision.rules import figure_3
from trapgate.sdm.vectors import PF
from trapgate.vmcs.vmcs import Vmcs

WORD = 0xFFFFFFFF
BITS = 5
"""All pairs of filters of so many bits are tried."""


class PageFaultFilter(NamedTuple):
    """Bit 14 of the exception bitmap (0 or 1), PAGE_FAULT_ERROR_CODE_MASK and MATCH."""

    bit: Any
    mask: Any
    match: Any

    @classmethod
    def of(cls, vmcs: Vmcs) -> "PageFaultFilter":
        """The filter of a VMCS."""
        return cls(
            vmcs["EXCEPTION_BITMAP"] >> PF & 1,
            vmcs["PAGE_FAULT_ERROR_CODE_MASK"],
            vmcs["PAGE_FAULT_ERROR_CODE_MATCH"],
        )

    def exits(self, code: Any, control: Any = None) -> Any:
        """Whether a page fault with this error code exits: the processor's own rule."""
        return figure_3(self.bit != 0 if control is None else control, True, code, *self[1:])


Choose = Callable[[Any, Any, Any], Any]
"""`then if condition else otherwise`, of the world in which the numbers are."""


def _lowest(bits: Any) -> Any:
    return bits & -bits


def merged(l0: PageFaultFilter, l1: PageFaultFilter, choose: Choose | None = None) -> Any:
    """The least filter that exits wherever one of two does; no choice is better."""
    pick = choose or (lambda condition, then, otherwise: then if condition else otherwise)

    def whole(condition: Any, then: PageFaultFilter, otherwise: PageFaultFilter) -> Any:
        parts = (pick(condition, a, b) for a, b in zip(then, otherwise, strict=True))
        return PageFaultFilter(*parts)

    one, two = l0.bit != 0, l1.bit != 0
    zero = l0.mask ^ l0.mask
    everything = PageFaultFilter(zero + 1, zero, zero)
    differ = l0.mask & l1.mask & (l0.match ^ l1.match)
    found = whole(
        one & two,
        _two_cubes(l0, l1, everything, whole, pick),
        whole(
            one,
            _cube_and_rest(l0, l1, differ, everything, whole),
            whole(
                two,
                _cube_and_rest(l1, l0, differ, everything, whole),
                whole(
                    differ != 0,
                    everything,
                    PageFaultFilter(zero, l0.mask | l1.mask, l0.match | l1.match),
                ),
            ),
        ),
    )
    # A match outside its mask is never met.
    unmet = [(one.match & (one.mask ^ WORD)) != 0 for one in (l0, l1)]
    plain = [(one.mask | one.match) == 0 for one in (l0, l1)]
    for n, (mine, other) in enumerate(((l0, l1), (l1, l0))):
        found = whole(pick(mine.bit != 0, unmet[n], plain[n]), other, found)
    for n, mine in enumerate((l0, l1)):
        found = whole(pick(mine.bit != 0, plain[n], unmet[n]), everything, found)
    return found


def _two_cubes(
    l0: PageFaultFilter, l1: PageFaultFilter, everything: PageFaultFilter, whole: Any, pick: Choose
) -> Any:
    shared = l0.mask & l1.mask & (l0.match ^ l1.match ^ WORD)
    first = _lowest(l0.mask)
    others = l1.mask & (first ^ WORD)
    second = pick(others != 0, _lowest(others), l1.mask)
    first = pick(others != 0, first, _lowest(l0.mask & (l1.mask ^ WORD)))
    neither = ((l0.match ^ WORD) & first) | ((l1.match ^ WORD) & second)
    rest = PageFaultFilter(shared ^ shared, first | second, neither)
    around = PageFaultFilter((shared ^ shared) + 1, shared, l0.match & shared)
    return whole(shared != 0, around, whole(first != 0, rest, everything))


def _cube_and_rest(
    cube: PageFaultFilter,
    rest: PageFaultFilter,
    differ: Any,
    everything: PageFaultFilter,
    whole: Any,
) -> Any:
    bit = _lowest(cube.mask & (rest.mask ^ WORD))
    narrower = PageFaultFilter(rest.bit, rest.mask | bit, rest.match | ((cube.match ^ WORD) & bit))
    return whole(differ != 0, rest, whole(bit != 0, narrower, everything))


def sketch(l0: PageFaultFilter, l1: PageFaultFilter) -> PageFaultFilter:
    """What KVM's comments consider: equal masks and matches are used, else every page fault
    exits; bit 14 is the OR of both. Unsound where the two bits 14 differ.
    """
    if l0[1:] == l1[1:]:
        return PageFaultFilter(l0.bit | l1.bit, l0.mask, l0.match)
    return PageFaultFilter(l0.bit | l1.bit, 0, 0)


@dataclass(frozen=True)
class Proved:
    """How the closed form was verified: by z3 for all inputs of 32 bits, and by trying all
    `pairs` of filters of `bits` bits, which are sound and best possible.
    """

    bits: int
    pairs: int

    def words(self) -> str:
        """In words."""
        return (
            "sound for all filters and error codes of 32 bits (z3); sound, and best possible, for "
            f"all {self.pairs:,} pairs of filters of {self.bits} bits (tried)"
        )


def prove_closed_form(bits: int = BITS, deadline: Deadline = NEVER) -> Proved:
    """Verify `merged`.

    Raises:
        ProofError: it does not hold, which would be a bug.
        UndecidedError: z3 has no answer in time.
        MissingSolverError: z3-solver is not installed.
    """
    _by_z3(deadline)
    pairs = 0
    best: dict[int, int] = {}
    filters = list(_all_filters(bits))
    sets = np.array([_members(one, bits) for one in filters], np.int64)
    sizes = np.bitwise_count(np.unique(sets))
    distinct = np.unique(sets)
    columns = [np.array(part, np.int64) for part in zip(*filters, strict=True)]
    every = PageFaultFilter(*columns)
    for one, members in zip(filters, sets.tolist(), strict=True):
        deadline.check()
        mine = PageFaultFilter(*(np.full(len(filters), part, np.int64) for part in one))
        result = merged(mine, every, np.where)
        found = _members_of(result, bits)
        wanted = sets | members
        if (wanted & ~found).any():
            raise ProofError(f"the merge with {one} loses an exit; please report this")
        for want, got in set(zip(wanted.tolist(), np.bitwise_count(found).tolist(), strict=True)):
            if want not in best:
                best[want] = int(sizes[(distinct & want) == want].min())
            if got != best[want]:
                raise ProofError(f"the merge with {one} is not the best; please report this")
        pairs += len(filters)
    return Proved(bits, pairs)


def _all_filters(bits: int) -> Iterator[PageFaultFilter]:
    for bit, mask, match in product(range(2), range(1 << bits), range(1 << bits)):
        yield PageFaultFilter(bit, mask, match)


def _members(one: PageFaultFilter, bits: int) -> int:
    return sum(1 << code for code in range(1 << bits) if one.exits(code))


def _members_of(filters: PageFaultFilter, bits: int) -> NDArray[np.int64]:
    found = np.zeros(len(filters.mask), np.int64)
    for code in range(1 << bits):
        found |= filters.exits(np.full(len(found), code, np.int64)).astype(np.int64) << code
    return found


def _by_z3(deadline: Deadline) -> None:
    z3 = z3_module()
    filters = [
        PageFaultFilter(*(z3.BitVec(f"{name}{n}", 32) for name in ("bit", "mask", "match")))
        for n in range(2)
    ]
    code = z3.BitVec("code", 32)

    result = merged(filters[0], filters[1], z3.If)
    solver = z3.SolverFor("QF_BV")
    left = deadline.left()
    if left is not None:
        solver.set("timeout", max(int(left * 1000), 1))
    for one in filters:
        solver.add(z3.ULE(one.bit, 1))
    solver.add(z3.Or([one.exits(code) for one in filters]), z3.Not(result.exits(code)))
    verdict = solver.check()
    if verdict == z3.sat:
        raise ProofError(f"z3 refutes the merge: {solver.model()}; please report this")
    if verdict != z3.unsat:
        raise deadline.passed()
