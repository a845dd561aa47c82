"""Faults for which a term is true."""

from typing import Any

from trapgate.criteria.problems.problem import Deadline
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.terms.fault_terms import FaultTerms


class Search:
    """Looks for faults, within a time."""

    def __init__(self, fault: FaultTerms, deadline: Deadline) -> None:
        self._fault = fault
        self._deadline = deadline

    def find(self, condition: Any) -> dict[str, int] | None:
        """The values of a fault for which a term is true; None if there is none.

        Raises: UndecidedError when the time is over.
        """
        z3 = z3_module()
        solver = z3.Solver()
        solver.add(self._fault.facts, condition)
        self._deadline.check()
        left = self._deadline.left()
        if left is not None:
            solver.set("timeout", max(int(left * 1000), 1))
        if solver.check(self._fault.plain) == z3.sat:
            return self._fault.example(solver.model())
        answer = solver.check()
        if answer == z3.unknown:
            raise self._deadline.passed()
        return self._fault.example(solver.model()) if answer == z3.sat else None
