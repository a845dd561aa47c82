"""Vectors of the processor's own exceptions, and the one table that says what each is.

Source: SDM, "Exception and Interrupt Vectors" and "Conditions for Generating a
Double Fault". Everything that asks whether a vector has an error code or how faults
combine reads `TABLE`, or the bit maps and tuples derived from it.
"""

from enum import IntEnum
from typing import NamedTuple


class Vector(IntEnum):
    """Exception vectors by mnemonic; the value is the index into the IDT."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    CSO = 9
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    VE = 20
    CP = 21


class FaultClass(IntEnum):
    """How a vector behaves when a second fault meets it (SDM, double-fault table)."""

    BENIGN = 0
    CONTRIBUTORY = 1
    PAGE_FAULT = 2
    DOUBLE_FAULT = 3


class Occurrence(IntEnum):
    """Whether RIP saved is that of the instruction (fault), the next (trap) or unreliable."""

    FAULT = 0
    TRAP = 1
    FAULT_OR_TRAP = 2
    INTERRUPT = 3
    ABORT = 4


class VectorRow(NamedTuple):
    """What one vector is."""

    vector: Vector
    title: str
    has_error_code: bool
    fault_class: FaultClass
    occurrence: Occurrence


_B, _C, _P, _D = FaultClass
_F, _T, _FT, _I, _A = Occurrence

TABLE: tuple[VectorRow, ...] = (
    VectorRow(Vector.DE, "divide error", False, _C, _F),
    VectorRow(Vector.DB, "debug exception", False, _B, _FT),
    VectorRow(Vector.NMI, "nonmaskable interrupt", False, _B, _I),
    VectorRow(Vector.BP, "breakpoint", False, _B, _T),
    VectorRow(Vector.OF, "overflow", False, _B, _T),
    VectorRow(Vector.BR, "BOUND range exceeded", False, _B, _F),
    VectorRow(Vector.UD, "invalid opcode", False, _B, _F),
    VectorRow(Vector.NM, "device not available", False, _B, _F),
    VectorRow(Vector.DF, "double fault", True, _D, _A),
    VectorRow(Vector.CSO, "coprocessor segment overrun", False, _B, _F),
    VectorRow(Vector.TS, "invalid TSS", True, _C, _F),
    VectorRow(Vector.NP, "segment not present", True, _C, _F),
    VectorRow(Vector.SS, "stack-segment fault", True, _C, _F),
    VectorRow(Vector.GP, "general protection", True, _C, _F),
    VectorRow(Vector.PF, "page fault", True, _P, _F),
    VectorRow(Vector.MF, "x87 floating-point error", False, _B, _F),
    VectorRow(Vector.AC, "alignment check", True, _B, _F),
    VectorRow(Vector.MC, "machine check", False, _B, _A),
    VectorRow(Vector.XM, "SIMD floating-point exception", False, _B, _F),
    VectorRow(Vector.VE, "virtualization exception", False, _P, _F),
    VectorRow(Vector.CP, "control protection", True, _C, _F),
)
"""Every vector the SDM names, in order; 15 and 22-31 are reserved, 32-255 are the user's."""

ROWS: dict[int, VectorRow] = {int(row.vector): row for row in TABLE}
"""The same, by vector."""


def _bitmap(*classes: FaultClass) -> int:
    return sum(1 << row.vector for row in TABLE if row.fault_class in classes)


ERROR_CODE_VECTORS = sum(1 << row.vector for row in TABLE if row.has_error_code)
"""Bit map, bit n = vector n: the vectors that push an error code."""

CONTRIBUTORY_VECTORS = _bitmap(FaultClass.CONTRIBUTORY)
"""Bit map of the contributory exceptions."""

PAGE_FAULT_VECTORS = _bitmap(FaultClass.PAGE_FAULT)
"""Bit map of the page-fault class."""

VECTORS_WITH_ERROR_CODE: tuple[int, ...] = tuple(
    int(row.vector) for row in TABLE if row.has_error_code
)

DE = 0
DB = 1
NMI = 2
BP = 3
OF = 4
BR = 5
UD = 6
NM = 7
DF = 8
CSO = 9
TS = 10
NP = 11
SS = 12
GP = 13
PF = 14
MF = 16
AC = 17
MC = 18
XM = 19
VE = 20
CP = 21
