"""The mark of a core function: Python that the engine may also compile.

A core function takes and returns integers, booleans, tuples of them and arrays of
64-bit integers (`Cells`), calls only other core functions, and raises nothing. All
integers are two's complement of 64 bits: an address in the upper half is negative,
and "unsigned" comparisons have to be made explicit. Interpreted it is the reference;
`trapgate.compiler.program` makes machine code of the very same source.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray

Cells = NDArray[np.int64]
"""An array of 64-bit integers: a VMCS, say, or a register file."""

Memory = Annotated[NDArray[np.int64], "physical memory"]
"""Physical memory, eight bytes a cell; stores to it can be watched (`compiler.raw.watched`)."""

Rows = Annotated[NDArray[np.int64], "two dimensions"]
"""The same in two dimensions: `rows[n]` is an array of cells. A journal is one."""

F = TypeVar("F", bound=Callable[..., object])

CORE: dict[str, FunctionType] = {}
"""Every core function by its name; names are unique across modules."""


def core(function: F) -> F:
    """Mark `function` as core; it stays the same function."""
    name = function.__name__
    assert name not in CORE or CORE[name].__module__ == function.__module__, name
    assert isinstance(function, FunctionType)
    CORE[name] = function
    return function


INLINED: set[FunctionType] = set()
"""Functions that machine code never calls."""


def inlined(function: F) -> F:
    """Have the code of a core function put wherever it is called, for a hot loop's sake.

    It stands under `@core`. Without it the compiler does so with functions that are called from
    one place, or have very few instructions.
    """
    assert isinstance(function, FunctionType)
    INLINED.add(function)
    return function
