"""Numbers that have names in conditions, each beside the values that are of its kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from trapgate.decision import fault_values as fv
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.reasons import ExitReason
from trapgate.sdm.vectors import Vector

INTERCEPTED: Final = tuple(
    reason
    for reason in ExitReason
    if ExitReason.INIT_SIGNAL <= reason <= ExitReason.OTHER_SMI
    or ExitReason.CPUID <= reason <= ExitReason.WRMSR
    or reason
    in (
        *(ExitReason.MWAIT, ExitReason.MONITOR, ExitReason.PAUSE, ExitReason.WBINVD),
        *(ExitReason.RDTSCP, ExitReason.INVEPT, ExitReason.INVVPID, ExitReason.INVPCID),
        *(ExitReason.TASK_SWITCH, ExitReason.XSETBV),
        *(ExitReason.GDTR_OR_IDTR_ACCESS, ExitReason.LDTR_OR_TR_ACCESS),
    )
)
"""Exit reasons of the instructions and platform events that rules may be about."""


@dataclass(frozen=True)
class Kind:
    """Numbers with names, what they are, and the values that they can be compared with."""

    words: str
    numbers: Mapping[str, int]
    of: tuple[int, ...]


_TABLE_ACCESSES = ("SGDT", "SIDT", "LGDT", "LIDT", "SLDT", "STR", "LLDT", "LTR")

KINDS: Final = (
    Kind(
        "a vector",
        {vector.name: int(vector) for vector in Vector},
        (fv.VECTOR, fv.INTERRUPTED_VECTOR),
    ),
    Kind(
        "an interruption type",
        {kind.name.lower(): int(kind) for kind in InterruptionType},
        (fv.EVENT_TYPE,),
    ),
    Kind(
        "a mode",
        {
            "mode_real": fv.MODE_REAL,
            "mode_virtual_8086": fv.MODE_VIRTUAL_8086,
            "mode_protected": fv.MODE_PROTECTED,
            "mode_compatibility": fv.MODE_COMPATIBILITY,
            "mode_64_bit": fv.MODE_64_BIT,
        },
        (fv.MODE,),
    ),
    Kind("an exit reason", {reason.name: int(reason) for reason in INTERCEPTED}, (fv.REASON,)),
    Kind(
        "an access to a table register",
        {
            name: number
            for number, name in enumerate(
                ["SGDT", "SIDT", "LGDT", "LIDT", "SLDT", "STR", "LLDT", "LTR"]
            )
        },
        (fv.TABLE_ACCESS,),
    ),
    Kind(
        "what switches tasks",
        {"by_call": 0, "by_iret": 1, "by_jmp": 2, "by_gate": 3},
        (fv.TASK_SOURCE,),
    ),
)

CONSTANTS: Final = {name: number for kind in KINDS for name, number in kind.numbers.items()}
"""Numbers that have names."""

NUMBER_NAMES: Mapping[int, Mapping[int, str]] = {
    value: {number: name for name, number in kind.numbers.items()}
    for kind in KINDS
    for value in kind.of
}
"""The same the other way round: for a value its numbers' names."""
