"""The faults of a trace as values of the fault information, to be judged by clauses."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trapgate.criteria.wishes.fault_wishes import FaultWishes
from trapgate.criteria.wishes.trace_faults import Faults, read_faults
from trapgate.decision import fault_values as fv
from trapgate.decision.fault_values import FaultValue
from trapgate.sdm.interruption import TYPE_HARDWARE_EXCEPTION, TYPE_SOFTWARE_EXCEPTION
from trapgate.sdm.vectors import BP, GP, NP, OF, PF, SS, TS

_FROM: Final = {
    fv.ADDRESS: "linear_address",
    fv.PAGE: "linear_address",
    fv.PAGE_OFFSET: "linear_address",
    fv.RIP: "rip",
    fv.CPL: "cpl",
    fv.CR3: "cr3",
    fv.DEPTH: "depth",
}
"""The column of a trace that has each value."""
_BY_CODE: Final = (fv.VECTOR, fv.EVENT_TYPE, fv.ERROR_CODE, fv.PAGE_FAULT_CODE, fv.SELECTOR_INDEX)
IN_TRACES: Final = tuple(value for value in fv.VALUES if value.number in (*_FROM, *_BY_CODE))
"""The values that traces of exceptions tell."""


@dataclass(frozen=True)
class FaultRows:
    """Exceptions of a trace, as far as the columns of some values tell them apart."""

    faults: Faults

    def fetch(self, value: FaultValue) -> tuple[Any, Any]:
        """(which rows have the value, the value), for `table_backends`; of `IN_TRACES`."""
        vector, code = self.faults.vector, self.faults.code
        everywhere = np.ones(len(vector), np.bool_)
        page_fault = vector == PF
        match value.number:
            case fv.VECTOR:
                return everywhere, vector.astype(np.uint64)
            case fv.EVENT_TYPE:
                software = np.isin(vector, (BP, OF))
                kind = np.where(software, TYPE_SOFTWARE_EXCEPTION, TYPE_HARDWARE_EXCEPTION)
                return everywhere, kind.astype(np.uint64)
            case fv.ERROR_CODE:
                return code >= 0, code.astype(np.uint64)
            case fv.PAGE_FAULT_CODE:
                return page_fault & (code >= 0), code.astype(np.uint64)
            case fv.SELECTOR_INDEX:
                named = np.isin(vector, (TS, NP, SS, GP)) & (code >= 0)
                return named, (code.astype(np.uint64) >> np.uint64(3)) & np.uint64(0x1FFF)
        column: NDArray[np.uint64] = self.faults.more[_FROM[value.number]].view(np.uint64)
        match value.number:
            case fv.ADDRESS:
                return page_fault, column
            case fv.PAGE:
                return page_fault, column >> np.uint64(12)
            case fv.PAGE_OFFSET:
                return page_fault, column & np.uint64(0xFFF)
        return everywhere, column


def rows_for(wishes: FaultWishes, path: Path) -> FaultRows:
    """The exceptions of a trace, told apart by the values that wishes are about.

    Raises: TraceError: the file is not a trace.
    """
    values = {clause.value for rule in wishes.rules for clause in rule.clauses}
    return read_rows(path, values)[0]


def read_rows(
    path: Path, values: Collection[FaultValue], mark: str = "", hold_out: float = 0.0
) -> tuple[FaultRows, FaultRows, str, int]:
    """As `trace_faults.read_faults`, with the columns that the values need."""
    more = sorted({_FROM[value.number] for value in values if value.number in _FROM})
    first, rest, column, unknown = read_faults(path, mark, hold_out, more=more)
    return FaultRows(first), FaultRows(rest), column, unknown
