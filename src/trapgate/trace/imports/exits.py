"""What the fields of KVM's exits mean, on Intel and on AMD, in all the ways they are printed.

The kernel's own format has names for all of them. Older kernels, and libtraceevent's
plugin for KVM (which `trace-cmd report` and `perf script` use where it is installed),
print two bare numbers: `info A B`.
"""

import re
from dataclasses import dataclass
from typing import Final

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
from trapgate.sdm.vectors import ERROR_CODE_VECTORS, PF, Vector
from trapgate.trace.imports.rows import Event

VECTORS: Final = {vector.name: int(vector) for vector in Vector} | {"XF": int(Vector.XM)}
"""Exceptions by the names that KVM prints."""

_EXCEPTION, _INTERRUPT = "EXCEPTION_NMI", "EXTERNAL_INTERRUPT"
_SVM_EXCEPTION = re.compile(r"^(?:EXIT_EXCP_)?([A-Z]{2})(?: excp)?$")
_SVM_NESTED_FAULT: Final = frozenset({"npf", "EXIT_NPF"})
_SVM_NMI: Final = frozenset({"nmi", "EXIT_NMI"})
_SVM_INTERRUPT: Final = frozenset({"interrupt", "EXIT_INTR"})
_INTERRUPTION: Final = ("intr_info", "int_info", "ext_int")
_CODE: Final = ("error_code", "int_info_err", "ext_int_err")


@dataclass(slots=True)
class Exit:
    """An exit until its vCPU's next entry, and what the lines in between told about it.

    `bare` are the two numbers of an exit that is printed without names, `fault` the
    address and the error code of the kvm_page_fault that follows it.
    """

    event: Event
    bare: tuple[int, int] | None = None
    fault: tuple[int, int] | None = None

    def settle(self, *, vectoring: bool) -> Event:
        """The event with all that is known of it.

        `vectoring` tells what the second bare number is on Intel: the IDT-vectoring
        information (so the exit's own vector is not told), or its interruption information.
        """
        event = self.event
        if self.bare is not None:
            _bare(event, self.bare, vectoring=vectoring)
        if self.fault is not None:
            _fault(event, *self.fault)
        if event.vector is None and _word(event) == _EXCEPTION:
            event.code_missing = True
        return event


def describe(event: Event, fields: dict[str, int]) -> None:
    """Fill in `event` from the named fields of an exit, a nested one, or its injection."""
    first = fields.get("info1", fields.get("ext_inf1", 0))
    second = fields.get("info2", fields.get("ext_inf2", 0))
    interruption = next((fields[name] for name in _INTERRUPTION if name in fields), 0)
    code = next((fields[name] for name in _CODE if name in fields), None)
    if _is_svm(event):
        _svm(event, first, second)
        # On AMD the interruption field is that of the event that was being delivered.
        event.depth = int(interruption & INFO_VALID != 0)
    else:
        _vmx(event, first, interruption, code)
        _vectoring(event, second)


def _bare(event: Event, info: tuple[int, int], *, vectoring: bool) -> None:
    first, second = info
    if _is_svm(event):
        _svm(event, first, second)
    elif vectoring:
        _vmx(event, first, 0, None)
        _vectoring(event, second)
    else:
        _vmx(event, first, second, None)


def _fault(event: Event, address: int, code: int) -> None:
    """A kvm_page_fault: of the guest's tables if the exit is an exception, else of the second
    stage.
    """
    if event.vector is None and _word(event) == _EXCEPTION:
        event.vector, event.type, event.code_missing = PF, TYPE_HARDWARE_EXCEPTION, True
    if event.vector == PF and event.type == TYPE_HARDWARE_EXCEPTION:
        if event.code_missing:
            # Bits from 32 up are KVM's own notes.
            event.error_code = code & 0xFFFFFFFF
            event.code_missing = None
        event.linear_address = address
    elif event.vector is None:
        event.guest_physical = address


def _word(event: Event) -> str:
    return (event.exit_reason or "").partition(" ")[0]


def _is_svm(event: Event) -> bool:
    reason = event.exit_reason or ""
    return reason[:1].islower() or reason.endswith(" excp") or reason.startswith("EXIT_")


def _vectoring(event: Event, information: int) -> None:
    """The IDT-vectoring information: the exit met the delivery of another event."""
    event.depth = int(information & INFO_VALID != 0 and information >> 32 == 0)


def _vmx(event: Event, qualification: int, information: int, code: int | None) -> None:
    """An exit of Intel's: the interruption information has vector and type."""
    if _word(event) == _INTERRUPT:
        event.type = TYPE_EXTERNAL_INTERRUPT
    elif _word(event) != _EXCEPTION:
        return
    if not information & INFO_VALID:
        return
    event.vector = information & INFO_VECTOR_MASK
    event.type = information >> INFO_TYPE_SHIFT & INFO_TYPE_MASK
    if information & INFO_DELIVER_ERROR_CODE:
        event.error_code = None if code is None else code & 0xFFFFFFFF
        event.code_missing = True if code is None else None
    if event.vector == PF and event.type == TYPE_HARDWARE_EXCEPTION:
        event.linear_address = qualification


def _svm(event: Event, first: int, second: int) -> None:
    """An exit of AMD's: the reason names the exception, EXITINFO1 is its error code."""
    reason = event.exit_reason or ""
    if match := _SVM_EXCEPTION.match(reason):
        event.vector = VECTORS.get(match[1])
        event.type = TYPE_HARDWARE_EXCEPTION
        if event.vector is not None and ERROR_CODE_VECTORS >> event.vector & 1:
            event.error_code = first & 0xFFFFFFFF
        if event.vector == PF:
            event.linear_address = second
    elif reason in _SVM_NMI:
        event.vector, event.type = int(Vector.NMI), TYPE_NMI
    elif reason in _SVM_INTERRUPT:
        event.type = TYPE_EXTERNAL_INTERRUPT
    elif reason in _SVM_NESTED_FAULT:
        event.guest_physical = second
