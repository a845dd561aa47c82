"""Descriptions of events inside binary recordings: where each field is, and words for numbers.

A recording holds the kernel's own `format` file of every event: the fields with offset,
size and sign, and how the kernel prints them. No version is asked: what is read is found by
its name, and what a kernel does not record is not there.
"""

import re
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trapgate.trace.imports import points
from trapgate.trace.imports.points import EVENT_KINDS
from trapgate.trace.imports.reasons import SVM_WORDS, VMX_WORDS, integer

Cells = NDArray[np.int64]

_NAME = re.compile(r"^name: (\w+)$", re.MULTILINE)
_ID = re.compile(r"^ID: (\d{1,5})$", re.MULTILINE)
_FIELD = re.compile(
    r"^\s*field:\s*(?P<type>[^;]{1,200}?)(?P<name>\w+)(?:\[[^;\]]*\])?;\s*offset:(?P<offset>\d{1,5});"
    r"\s*size:(?P<size>\d{1,5});(?:\s*signed:(?P<signed>[01]);)?",
    re.MULTILINE,
)
_SYMBOLS = re.compile(r"__print_symbolic\(")
_SYMBOL = re.compile(
    r"\{\s*((?:0x[0-9a-fA-F]{1,8}|\d{1,9})(?:\s*\+\s*(?:0x[0-9a-fA-F]{1,8}|\d{1,9}))*)"
    r'\s*,\s*"([^"]{1,60})"\s*\}'
)

# Cells that fields have besides those of a point: what they mean is worked out from them.
ISA: Final = 32
HAS_ERROR: Final = 33
REINJECTED: Final = 34
SOFT: Final = 35
WRITE: Final = 36

DESCRIPTOR: Final = 5
"""Cells of a field's description: the point's cell, offset, size, sign, bit of HAS."""
MOST_FIELDS: Final = 12
KINDS: Final = 16
TABLE: Final = KINDS * MOST_FIELDS * DESCRIPTOR

_PID = (("common_pid",), points.THREAD, 0)
_VCPU = (("vcpu_id",), points.VCPU, 0)
_EXIT = (
    _PID,
    _VCPU,
    (("exit_reason", "exit_code"), points.REASON, points.HAS_REASON),
    (("guest_rip", "rip"), points.RIP, points.HAS_RIP),
    (("isa",), ISA, 0),
    (("info1", "exit_info1"), points.INFO1, points.HAS_INFO1),
    (("info2", "exit_info2"), points.INFO2, points.HAS_INFO2),
    (("intr_info", "exit_int_info"), points.INTERRUPTION, points.HAS_INTERRUPTION),
    (("error_code", "exit_int_info_err"), points.CODE, points.HAS_CODE),
)
_FIELDS: Final = {
    points.EXIT: _EXIT,
    points.NESTED_EXIT: _EXIT,
    points.NESTED_INJECTION: _EXIT,
    points.ENTRY: (
        _PID,
        _VCPU,
        (("rip",), points.RIP, points.HAS_RIP),
        (("intr_info",), points.INTERRUPTION, points.HAS_INTERRUPTION),
        (("error_code",), points.CODE, points.HAS_CODE),
    ),
    points.PAGE_FAULT: (
        _PID,
        _VCPU,
        (("fault_address",), points.ADDRESS, points.HAS_ADDRESS),
        (("error_code",), points.CODE, points.HAS_CODE),
    ),
    points.EXCEPTION: (
        _PID,
        (("exception",), points.ADDRESS, points.HAS_ADDRESS),
        (("error_code",), points.CODE, points.HAS_CODE),
        (("has_error",), HAS_ERROR, 0),
        (("reinjected",), REINJECTED, 0),
    ),
    points.INTERRUPT: (
        _PID,
        (("vector", "irq"), points.ADDRESS, points.HAS_ADDRESS),
        (("soft",), SOFT, 0),
        (("reinjected",), REINJECTED, 0),
    ),
    points.MSR: (
        _PID,
        (("ecx",), points.ADDRESS, points.HAS_ADDRESS),
        (("data",), points.INFO1, points.HAS_INFO1),
        (("write",), WRITE, 0),
    ),
    points.CONTROL_REGISTER: (
        _PID,
        (("cr",), points.ADDRESS, points.HAS_ADDRESS),
        (("val",), points.INFO1, points.HAS_INFO1),
        (("rw",), WRITE, 0),
    ),
    points.POSTED: (
        _VCPU,
        (("gvec",), points.ADDRESS, points.HAS_ADDRESS),
        (("set",), WRITE, 0),
    ),
    points.PAUSE_WINDOW: (_PID, _VCPU, (("old",), points.INFO1, points.HAS_INFO1)),
}
"""For each kind of point its fields' names (old kernels have others), cells and bits of HAS."""

_NEEDED: Final = {
    points.EXIT: {points.REASON},
    points.NESTED_EXIT: {points.REASON},
    points.NESTED_INJECTION: {points.REASON},
    points.ENTRY: {points.VCPU},
    points.PAGE_FAULT: {points.ADDRESS, points.CODE},
    points.EXCEPTION: {points.ADDRESS},
    points.INTERRUPT: {points.ADDRESS},
    points.MSR: {points.ADDRESS, points.INFO1},
    points.CONTROL_REGISTER: {points.ADDRESS, points.INFO1},
    points.POSTED: {points.ADDRESS, points.VCPU},
    points.PAUSE_WINDOW: {points.INFO1},
}


@dataclass
class Layouts:
    """What a recording's descriptions say about the events that are read.

    `kinds` has the kind of point for each event's number, `table` the descriptions of the
    fields; `vmx` and `svm` are the kernel's words for exit reasons. `remarks` tell of events
    whose description lacks what is needed.
    """

    kinds: Cells = field(default_factory=lambda: np.zeros(1 << 16, np.int64))
    table: Cells = field(default_factory=lambda: np.zeros(TABLE, np.int64))
    vmx: dict[int, str] = field(default_factory=lambda: dict(VMX_WORDS))
    svm: dict[int, str] = field(default_factory=lambda: dict(SVM_WORDS))
    remarks: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def add(self, text: str) -> None:
        """Take the description of an event of KVM's."""
        name, number = _NAME.search(text), _ID.search(text)
        if name is None or number is None:
            return
        self.names.add(name[1])
        kind = EVENT_KINDS.get(name[1])
        if kind is None or int(number[1]) >= len(self.kinds):
            return
        fields = {match["name"]: match for match in _FIELD.finditer(text)}
        rows = []
        for names, cell, bit in _FIELDS[kind]:
            found = next((fields[one] for one in names if one in fields), None)
            if found is not None and int(found["size"]) in (1, 2, 4, 8):
                signed = int(found["signed"] or 0)
                rows.append((cell, int(found["offset"]), int(found["size"]), signed, bit))
        lacking = _NEEDED[kind] - {row[0] for row in rows}
        if lacking:
            self.remarks.append(f"{name[1]} of this kernel has fields that are not known: not read")
            return
        self.kinds[int(number[1])] = kind
        start = kind * MOST_FIELDS * DESCRIPTOR
        flat = [value for row in rows for value in row]
        self.table[start : start + MOST_FIELDS * DESCRIPTOR] = 0
        self.table[start : start + len(flat)] = flat
        if kind == points.EXIT:
            self._words(text)

    @property
    def bare(self) -> bool:
        """Whether exits have two numbers without more: then the second's meaning depends."""
        start = points.EXIT * MOST_FIELDS * DESCRIPTOR
        rows = self.table[start : start + MOST_FIELDS * DESCRIPTOR].reshape(-1, DESCRIPTOR)
        return not (rows[:, 0] == points.INTERRUPTION).any()

    def _words(self, text: str) -> None:
        starts = [match.end() for match in _SYMBOLS.finditer(text)]
        for words, start in zip((self.vmx, self.svm), starts, strict=False):
            end = text.find("__print", start)
            for numbers, word in _SYMBOL.findall(text[start : end if end > 0 else None]):
                words[sum(map(integer, numbers.split("+")))] = word

    def word(self, number: int, *, svm: bool) -> str:
        """The kernel's word for an exit reason."""
        if svm:
            return self.svm.get(number, f"EXIT_{number:#x}")
        word = self.vmx.get(number & 0xFFFF, f"UNKNOWN ({number & 0xFFFF})")
        return word + (" FAILED_VMENTRY" if number >> 31 & 1 else "")
