"""Verification by other means than those that found the answer: z3, and trying every code.

Both use the functions of `rules.py` themselves, the very ones that the processor runs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trapgate.criteria.errors import ProofError, UndecidedError, listed
from trapgate.criteria.problems.codes import Codes, Layout, Truths
from trapgate.criteria.problems.filters import Filter
from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.wishes.spec import EXIT, VectorWishes

Term = Callable[[Any], Any]
"""Takes a z3 bit-vector of 32 bits, an error code, and gives a z3 truth value."""

_FEW_BITS = 10

EXHAUSTIVE_WIDTH = 16
"""Error codes of at most so many bits are all tried."""


@dataclass(frozen=True)
class Proof:
    """How an answer was verified: `z3` and `exhaustive` say which of the two were done.

    `codes` is how many error codes were tried.
    """

    z3: bool
    exhaustive: bool
    codes: int


@dataclass(frozen=True)
class Claim:
    """What an answer promises for one vector.

    The codes that `must` holds for exit; of those that `spare` holds for, exactly
    `needless` (a truth for each code of the layout) exit.
    """

    layout: Layout
    must: Term
    spare: Term
    needless: Truths


def wished(wishes: VectorWishes) -> tuple[Term, Term]:
    """What must exit and what should not, as z3 terms built from the wishes themselves."""
    assert wishes.layout is not None
    layout = wishes.layout

    def named(goal: str, code: Any) -> Any:
        z3 = z3_module()
        found = []
        for wish in wishes.wishes:
            if wish.goal == goal:
                if isinstance(wish.what, tuple):
                    low, high = wish.what
                    found.append(z3.And(z3.UGE(code, low), z3.ULE(code, high)))
                else:
                    found.append(wish.what.term(code))
        return z3.Or(found)

    def counts(code: Any) -> Any:
        return z3_module().BoolVal(True) if wishes.keep_impossible else layout.occurs(code)

    def unnamed(code: Any) -> Any:
        z3 = z3_module()
        return z3.Not(z3.Or([named(goal, code) for goal in ("exit", "deliver", "free")]))

    def must(code: Any) -> Any:
        z3 = z3_module()
        default = unnamed(code) if wishes.default == "exit" else z3.BoolVal(False)
        return z3.And(counts(code), z3.Or(named("exit", code), default))

    def spare(code: Any) -> Any:
        z3 = z3_module()
        default = unnamed(code) if wishes.default == "deliver" else z3.BoolVal(False)
        told = z3.And(named("deliver", code), z3.Not(named("exit", code)))
        return z3.And(counts(code), z3.Or(told, default))

    return must, spare


def membership(code: Any, members: Truths, positions: tuple[int, ...]) -> Any:
    """A z3 term for a set of codes, shared like a reduced decision diagram (Bryant, 1986)."""
    z3 = z3_module()
    known: dict[tuple[int, bytes], Any] = {}

    def node(part: Truths, bits: int) -> Any:
        if not part.any():
            return z3.BoolVal(False)
        if part.all():
            return z3.BoolVal(True)
        key = bits, part.tobytes()
        if key not in known:
            half = 1 << bits - 1
            position = positions[bits - 1]
            low, high = node(part[:half], bits - 1), node(part[half:], bits - 1)
            known[key] = z3.If(z3.Extract(position, position, code) == 1, high, low)
        return known[key]

    return node(members, len(positions))


def counterexample(broken: Term, layout: Layout, deadline: Deadline) -> int | None:
    """An error code of the layout for which the term is true; None if z3 proves that there is none.

    Raises:
        UndecidedError: z3 does not know, or not in time.
    """
    z3 = z3_module()
    code = z3.BitVec("code", 32)
    # For few bits that one which is quickest to set up.
    solver = z3.SimpleSolver() if len(layout.bits) <= _FEW_BITS else z3.SolverFor("QF_BV")
    left = deadline.left()
    if left is not None:
        solver.set("timeout", max(int(left * 1000), 1))
    solver.add((code & (0xFFFFFFFF & ~layout.window)) == 0)
    solver.add(broken(code))
    verdict = solver.check()
    if verdict == z3.unsat:
        return None
    if verdict == z3.sat:
        model = solver.model()
        return int(model.eval(code, model_completion=True).as_long())
    if left is not None:
        raise deadline.passed()
    raise UndecidedError(f"unknown: z3 gave up ({solver.reason_unknown()}); simplify the wishes")


def prove(filter_: Filter, claim: Claim, deadline: Deadline) -> Proof:
    """Verify what is claimed of a filter, by z3 and (16 bits or fewer) by trying all codes.

    Raises:
        ProofError: it does not hold.
        UndecidedError: z3 has no answer in time.
    """
    layout = claim.layout

    def broken(code: Any) -> Any:
        z3 = z3_module()
        exits = filter_.term(code)
        needless = membership(code, claim.needless, layout.positions)
        missed = z3.And(claim.must(code), z3.Not(exits))
        return z3.Or(missed, z3.And(claim.spare(code), exits != needless))

    found = counterexample(broken, layout, deadline)
    if found is not None:
        raise ProofError(f"z3 refutes the answer for error code {found:#x}; please report this")
    return Proof(True, len(layout.bits) <= EXHAUSTIVE_WIDTH, 1 << len(layout.bits))


def try_all(filter_: Filter, codes: Codes, goals: Any, needless: Truths) -> None:
    """Check every code against what is wished; ProofError if one differs."""
    exits = filter_.exits(codes)
    wrong = (goals == EXIT) & ~exits | (goals > EXIT) & (exits != needless)
    if wrong.any():
        raise ProofError(
            f"the answer fails for {listed(codes[np.flatnonzero(wrong)])}; please report this"
        )
