"""The solvers, which are optional packages: imported here, late, or refused in one line."""

from importlib import import_module
from typing import Any

from trapgate.criteria.errors import MissingSolverError


def z3_module() -> Any:
    """z3 (package z3-solver); MissingSolverError if it is not installed."""
    return _module("z3", "z3-solver")


def sat_modules() -> tuple[Any, Any]:
    """`pysat.formula` and `pysat.examples.rc2` (package python-sat); MissingSolverError."""
    return _module("pysat.formula", "python-sat"), _module("pysat.examples.rc2", "python-sat")


def _module(name: str, package: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise MissingSolverError(
            f"{package} is not installed; pip install 'trapgate[criteria]'"
        ) from None
