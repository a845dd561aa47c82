"""The solvers, which are optional packages: imported here, late, or refused in one line."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from threading import Timer
from typing import Any

from trapgate.criteria.errors import MissingSolverError
from trapgate.criteria.problems.problem import Deadline


def z3_module() -> Any:
    """z3 (package z3-solver); MissingSolverError if it is not installed."""
    return _module("z3", "z3-solver")


def sat_modules() -> tuple[Any, Any]:
    """`pysat.formula` and `pysat.examples.rc2` (package python-sat); MissingSolverError."""
    return _module("pysat.formula", "python-sat"), _module("pysat.examples.rc2", "python-sat")


@dataclass(frozen=True)
class SatModules:
    """`pysat`'s modules of formulas, cardinality constraints and solvers."""

    formula: Any
    card: Any
    solvers: Any


@cache
def solver_modules() -> SatModules:
    """The modules of python-sat; MissingSolverError."""
    names = ("pysat.formula", "pysat.card", "pysat.solvers")
    return SatModules(*(_module(name, "python-sat") for name in names))


def interruptible(solver: Any, deadline: Deadline, search: Callable[[], Any]) -> Any:
    """What `search` of a solver answers; the solver is interrupted when the time is over."""
    seconds = deadline.left()
    if seconds is None:
        return search()
    timer = Timer(seconds, solver.interrupt)
    timer.start()
    try:
        return search()
    finally:
        timer.cancel()


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise MissingSolverError(
            f"{package} is not installed; pip install 'trapgate[criteria]'"
        ) from None
