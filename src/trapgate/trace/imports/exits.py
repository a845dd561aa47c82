"""What the fields of KVM's exits mean, on Intel and on AMD: from cells to a trace's columns.

The kernel's own format has names for all fields. Older kernels, and libtraceevent's plugin
for KVM (which `trace-cmd report` and `perf script` use where it is installed), print two
bare numbers: `info A B`. On Intel the second is the IDT-vectoring information where entries
have a RIP (so the exit's own vector is not told), else its interruption information.

Everything here works on whole columns.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    TYPE_EXTERNAL_INTERRUPT,
    TYPE_HARDWARE_EXCEPTION,
    TYPE_NMI,
)
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, NMI, PF
from trapgate.trace.imports import reasons as kinds
from trapgate.trace.imports.pairing import (
    ACCESSED,
    BEFORE,
    BY,
    BY_INJECTION,
    FAULT,
    FAULT_ADDRESS,
    FAULT_CODE,
    HAS_BEFORE,
    IS_VECTORING,
    OPERAND,
    R_CODE,
    R_HAS,
    R_INFO1,
    R_INFO2,
    R_INTERRUPTION,
    R_REASON,
    R_RIP,
    TYPE,
    VALUE,
    VECTOR,
)
from trapgate.trace.imports.points import (
    CONTROL_REGISTER,
    HAS_CODE,
    HAS_INFO1,
    HAS_INFO2,
    HAS_INTERRUPTION,
    HAS_RIP,
    IS_BARE,
    MSR,
    PAUSE_WINDOW,
)
from trapgate.trace.imports.reasons import Reasons

Cells = NDArray[np.int64]
Truths = NDArray[np.bool_]

_WITH_CODE = np.array([ERROR_CODE_VECTORS >> n & 1 for n in range(256)], np.bool_)


@dataclass
class Column:
    """Values and where they are known."""

    values: Cells
    known: Truths

    @classmethod
    def empty(cls, count: int) -> "Column":
        """Nothing known."""
        return cls(np.zeros(count, np.int64), np.zeros(count, np.bool_))

    def put(self, where: Truths, values: Cells | int) -> None:
        """Know these values there."""
        self.values = np.where(where, values, self.values)
        self.known = self.known | where


@dataclass
class Meaning:
    """What exits and injections mean, a column each."""

    count: int
    vector: Column = field(init=False)
    type: Column = field(init=False)
    error_code: Column = field(init=False)
    rip: Column = field(init=False)
    linear_address: Column = field(init=False)
    guest_physical: Column = field(init=False)
    qualification: Column = field(init=False)
    access: Column = field(init=False)
    interrupted_vector: Column = field(init=False)
    interrupted_type: Column = field(init=False)
    interrupted_error_code: Column = field(init=False)
    operand: Column = field(init=False)
    data: Column = field(init=False)
    old_value: Column = field(init=False)
    depth: Cells = field(init=False)
    code_missing: Truths = field(init=False)

    def __post_init__(self) -> None:
        for name, kind in self.__annotations__.items():
            if kind is Column:
                setattr(self, name, Column.empty(self.count))
        self.depth = np.zeros(self.count, np.int64)
        self.code_missing = np.zeros(self.count, np.bool_)


def meaning(rows: Cells, reasons: Reasons) -> Meaning:
    """The columns of rows of `pairing` (n x ROW)."""
    told = Meaning(len(rows))
    has = rows[:, R_HAS]
    injected = rows[:, BY] >= BY_INJECTION
    number = rows[:, R_REASON]
    kind = np.where(number >= 0, np.append(reasons.kinds, 0)[number], kinds.OTHER)
    kind = np.where(injected, -1, kind)
    told.rip.put(has & HAS_RIP != 0, rows[:, R_RIP])
    told.qualification.put(~injected & (has & HAS_INFO1 != 0), rows[:, R_INFO1])
    _injections(told, rows, injected)
    svm = kind >= kinds.SVM
    _vmx(told, rows, kind, ~injected & ~svm)
    _svm(told, rows, kind, np.append(reasons.vectors, -1)[number])
    _faults(told, rows, kind, injected)
    told.code_missing |= ~told.vector.known & (kind == kinds.EXCEPTION)
    _second_stage(told, kind)
    _operands(told, rows, kind)
    return told


def _injections(told: Meaning, rows: Cells, injected: Truths) -> None:
    vector = rows[:, VECTOR]
    told.vector.put(injected, vector)
    told.type.put(injected, rows[:, TYPE])
    # Kernels before 6.0 print a code of 0 for exceptions that have none.
    coded = injected & (rows[:, R_HAS] & HAS_CODE != 0) & _WITH_CODE[vector & 0xFF]
    coded &= rows[:, TYPE] == TYPE_HARDWARE_EXCEPTION
    told.error_code.put(coded, rows[:, R_CODE] & 0xFFFFFFFF)


def _vmx(told: Meaning, rows: Cells, kind: Cells, vmx: Truths) -> None:
    """Exits of Intel's: the interruption information has vector and type."""
    has, second = rows[:, R_HAS], rows[:, R_INFO2]
    bare, vectoring = has & IS_BARE != 0, rows[:, IS_VECTORING] != 0
    told.type.put(kind == kinds.INTERRUPT, TYPE_EXTERNAL_INTERRUPT)
    information = np.where(bare, np.where(vectoring, 0, second), rows[:, R_INTERRUPTION])
    own = (kind == kinds.EXCEPTION) | (kind == kinds.INTERRUPT)
    own &= information & INFO_VALID != 0
    vector = information & INFO_VECTOR_MASK
    type_ = information >> INFO_TYPE_SHIFT & INFO_TYPE_MASK
    told.vector.put(own, vector)
    told.type.put(own, type_)
    coded = own & (information & INFO_DELIVER_ERROR_CODE != 0)
    told_code = ~bare & (has & HAS_CODE != 0)
    told.error_code.put(coded & told_code, rows[:, R_CODE] & 0xFFFFFFFF)
    told.code_missing |= coded & ~told_code
    page_fault = own & (vector == PF) & (type_ == TYPE_HARDWARE_EXCEPTION)
    told.linear_address.put(page_fault, rows[:, R_INFO1])
    told.qualification.known &= ~page_fault
    met = vmx & (has & HAS_INFO2 != 0) & (~bare | vectoring) & (second >> 32 == 0)
    _interrupted(told, second, met)


def _interrupted(told: Meaning, information: Cells, where: Truths) -> Truths:
    """The exit met the delivery of another event, of which `information` tells."""
    where = where & (information & INFO_VALID != 0)
    told.depth = np.where(where, 1, told.depth)
    told.interrupted_vector.put(where, information & INFO_VECTOR_MASK)
    told.interrupted_type.put(where, information >> INFO_TYPE_SHIFT & INFO_TYPE_MASK)
    return where


def _svm(told: Meaning, rows: Cells, kind: Cells, named: Cells) -> None:
    """Exits of AMD's: the reason names the exception, EXITINFO1 is its error code."""
    has, first, second = rows[:, R_HAS], rows[:, R_INFO1], rows[:, R_INFO2]
    exception = kind == kinds.SVM_EXCEPTION
    told.qualification.known &= ~exception
    told.vector.put(exception & (named >= 0), named)
    told.type.put(exception, TYPE_HARDWARE_EXCEPTION)
    told.type.put(exception & (named == NMI), TYPE_NMI)
    informed = has & HAS_INFO1 != 0
    coded = exception & (named >= 0) & _WITH_CODE[named & 0xFF]
    told.error_code.put(coded & informed, first & 0xFFFFFFFF)
    told.code_missing |= coded & ~informed
    told.linear_address.put(exception & informed & (named == PF), second)
    told.vector.put(kind == kinds.SVM_NMI, int(NMI))
    told.type.put(kind == kinds.SVM_NMI, TYPE_NMI)
    told.type.put(kind == kinds.SVM_INTERRUPT, TYPE_EXTERNAL_INTERRUPT)
    told.guest_physical.put((kind == kinds.NESTED_PAGE_FAULT) & (has & HAS_INFO2 != 0), second)
    # On AMD the interruption field is that of the event that was being delivered.
    information = rows[:, R_INTERRUPTION]
    met = (kind >= kinds.SVM) & (has & HAS_INTERRUPTION != 0) & (has & IS_BARE == 0)
    met = _interrupted(told, information, met)
    coded = met & (information & INFO_DELIVER_ERROR_CODE != 0) & (has & HAS_CODE != 0)
    told.interrupted_error_code.put(coded, rows[:, R_CODE] & 0xFFFFFFFF)


def _faults(told: Meaning, rows: Cells, kind: Cells, injected: Truths) -> None:
    """A kvm_page_fault: of the guest's tables if the exit is an exception, else of the second
    stage.
    """
    fault = ~injected & (rows[:, FAULT] != 0)
    unnamed = fault & ~told.vector.known & (kind == kinds.EXCEPTION)
    told.vector.put(unnamed, PF)
    told.type.put(unnamed, TYPE_HARDWARE_EXCEPTION)
    told.code_missing |= unnamed
    own = fault & told.vector.known & (told.vector.values == PF)
    own &= told.type.values == TYPE_HARDWARE_EXCEPTION
    # Bits from 32 up are KVM's own notes.
    told.error_code.put(own & told.code_missing, rows[:, FAULT_CODE] & 0xFFFFFFFF)
    told.code_missing &= ~own
    told.linear_address.put(own, rows[:, FAULT_ADDRESS])
    told.guest_physical.put(fault & ~told.vector.known, rows[:, FAULT_ADDRESS])


def _operands(told: Meaning, rows: Cells, kind: Cells) -> None:
    """Ports, control registers and MSRs; their values, which KVM tells by points of their own."""
    known, value = told.qualification.known, told.qualification.values
    port = (kind == kinds.PORT) | (kind == kinds.SVM_PORT)
    told.operand.put(port & known, value >> 16 & 0xFFFF)
    register = (kind == kinds.REGISTER) & known
    # CLTS and LMSW are accesses to CR0.
    told.operand.put(register, np.where(value >> 4 & 3 < 2, value & 15, 0))
    said = rows[:, ACCESSED]
    is_msr = (kind == kinds.MSR) | (kind == kinds.SVM_MSR)
    is_register = (kind == kinds.REGISTER) | (kind == kinds.SVM_REGISTER)
    mine = (is_msr & (said == MSR)) | (is_register & (said == CONTROL_REGISTER))
    told.operand.put(mine, rows[:, OPERAND])
    window = ((kind == kinds.PAUSE) | (kind == kinds.SVM_PAUSE)) & (said == PAUSE_WINDOW)
    told.data.put(mine | window, rows[:, VALUE])
    told.old_value.put(mine & (rows[:, HAS_BEFORE] != 0), rows[:, BEFORE])


_PERMISSIONS = ("r", "w", "x")


def _rights(bits: int) -> str:
    shown = "".join(s if bits >> n & 1 else "-" for n, s in enumerate(_PERMISSIONS))
    return f"{shown} page" if bits else "absent page"


def _ept_words(bits: int) -> str:
    kinds_ = [word for n, word in enumerate(("read", "write", "fetch")) if bits >> n & 1]
    where = " in a walk of the guest's tables" if bits >> 6 & 1 else ""
    return f"{' and '.join(kinds_) or 'access'} to {_rights(bits >> 3 & 7)}{where}"


def _npf_words(bits: int) -> str:
    what = "fetch" if bits >> 4 & 1 else "write" if bits >> 1 & 1 else "read"
    page = "present page" if bits & 1 else "absent page"
    broken = " with reserved bits set" if bits >> 3 & 1 else ""
    where = " in a walk of the guest's tables" if bits >> 5 & 1 else ""
    return f"{what} to {page}{broken}{where}"


ACCESS_WORDS: Final = [
    *(_ept_words(bits) for bits in range(128)),
    *(_npf_words(bits) for bits in range(64)),
]
"""What a second stage refused, in words: an EPT violation's, then a nested page fault's."""


def access_words(kind: int, qualification: int) -> str | None:
    """What a second stage refused, in words; None for an exit of another kind."""
    if kind == kinds.EPT_VIOLATION:
        walk = qualification >> 7 & ~(qualification >> 8) & 1
        return ACCESS_WORDS[qualification & 63 | walk << 6]
    if kind == kinds.NESTED_PAGE_FAULT:
        return ACCESS_WORDS[128 + (qualification & 0x1F | (qualification >> 33 & 1) << 5)]
    return None


def _second_stage(told: Meaning, kind: Cells) -> None:
    """Decode the qualification of an EPT violation (SDM, "Exit Qualification for EPT
    Violations") and EXITINFO1 of a nested page fault (APM, "Nested Page Faults").
    """
    known, value = told.qualification.known, told.qualification.values
    # Bit 8 says, where bit 7 is set, that the access was to the page itself.
    walk = (value >> 7 & 1) & ~(value >> 8) & 1
    ept = (value & 63) | walk << 6
    told.access.put((kind == kinds.EPT_VIOLATION) & known, ept)
    npf = (value & 0x1F) | (value >> 33 & 1) << 5
    told.access.put((kind == kinds.NESTED_PAGE_FAULT) & known, 128 + npf)
