"""Conditions on an error code in a SPEC, such as `write and present and not user`.

It is the one language of `decision.conditions`, of which such wishes see the error code alone:
`code` with masks and shifts, `index` (bits 15:3), and the names of its bits. A condition is read
once and evaluated in two worlds, NumPy arrays and z3 terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from trapgate.criteria.errors import SpecError
from trapgate.criteria.problems.codes import Codes, Layout, Truths
from trapgate.criteria.problems.solvers import z3_module
from trapgate.criteria.terms.table_backends import arrays, condition_in, terms
from trapgate.decision import conditions
from trapgate.decision.conditions import ConditionError, Names, parse
from trapgate.decision.fault_values import BY_NAME, SELECTOR_INDEX, FaultValue

_INDEX = BY_NAME["selector_index"]


@dataclass(frozen=True)
class Condition:
    """A condition that has been read; `text` as it was written."""

    text: str
    tree: conditions.Condition

    def holds(self, codes: Codes) -> Truths:
        """For which of `codes` it holds."""
        world = arrays()
        truths = condition_in(self.tree, _Codes(codes.astype(np.uint64), True).fetch, world)
        return np.broadcast_to(np.asarray(truths, dtype=np.bool_), codes.shape).copy()

    def term(self, code: Any) -> Any:
        """Its truth for the code in a z3 bit-vector of 32 bits."""
        z3 = z3_module()
        world = terms()
        return condition_in(self.tree, _Codes(z3.ZeroExt(32, code), world.true).fetch, world)


@dataclass(frozen=True)
class _Codes:
    """Error codes of one world, 64 bits wide, as values of faults that have one."""

    code: Any
    true: Any

    def fetch(self, value: FaultValue) -> tuple[Any, Any]:
        """(true, the value)."""
        if value.number != SELECTOR_INDEX:
            return self.true, self.code
        if isinstance(self.code, np.ndarray):
            return self.true, (self.code >> np.uint64(3)) & np.uint64(0x1FFF)
        return self.true, z3_module().LShR(self.code, 3) & 0x1FFF


def condition(
    text: str, layout: Layout, path: str = "", line: int = 0, field: str = ""
) -> Condition:
    """Read a condition on the error codes of `layout`.

    Raises:
        SpecError: it is not a condition, or names a bit that the error code does not have.
    """
    bits = layout.names()
    code = BY_NAME["code"]
    values = {"code": code} | ({"index": _INDEX} if "index_0" in bits else {})
    try:
        tree = parse(_without_hyphens(text, bits), Names(bits=bits, values=values))
    except ConditionError as error:
        raise SpecError(str(error), path=path, line=line, field=field) from None
    return Condition(text, tree)


def _without_hyphens(text: str, names: Mapping[str, int]) -> str:
    for name in names:
        if "_" in name:
            text = text.replace(name.replace("_", "-"), name)
    return text
