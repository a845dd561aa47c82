"""Fault information: what is known about a fault when somebody has to decide on it (¶27-31)."""

from dataclasses import dataclass, field
from typing import Self

from trapgate.errors import FieldValueError
from trapgate.sdm.event_words import code_words, event_words, hexadecimal
from trapgate.sdm.interruption import (
    INFO_DELIVER_ERROR_CODE,
    INFO_TYPE_MASK,
    INFO_TYPE_SHIFT,
    INFO_VALID,
    INFO_VECTOR_MASK,
    InterruptionType,
)

_EXCEPTION = InterruptionType.HARDWARE_EXCEPTION
_LIMITS = {
    "error_code": 32,
    "address": 64,
    "data": 64,
    "old_value": 64,
    "rip": 64,
    "cr3": 64,
}


def _demand(name: str, value: int, bits: int) -> None:
    if not 0 <= value < 1 << bits:
        raise FieldValueError(
            f"{value:#x} does not fit; give an unsigned number of {bits} bits", field=name
        )


@dataclass(frozen=True, slots=True)
class Interruption:
    """A vectored event, as an interruption-information field describes it.

    `vector` is 8 bits, `error_code` 32 bits or None (SDM, "Information for VM Exits Due
    to Vectored Events"; second seed, claim 6).

    Raises:
        FieldValueError: a number does not fit its bits.
    """

    vector: int
    type: InterruptionType = InterruptionType.HARDWARE_EXCEPTION
    error_code: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that the fields cannot hold."""
        _demand("vector", self.vector, 8)
        _demand("type", self.type, 3)
        object.__setattr__(self, "type", InterruptionType(self.type))
        if self.error_code is not None:
            _demand("error_code", self.error_code, 32)

    def __repr__(self) -> str:
        """The event in words: <#PF(2H), page fault>."""
        code = -1 if self.error_code is None else self.error_code
        return f"<{event_words(self.vector, self.type, code)}>"

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        from html import escape

        return f"<p>{escape(repr(self)[1:-1])}</p>"

    @property
    def information(self) -> int:
        """The interruption-information word (32 bits), valid."""
        word = INFO_VALID | (self.type << INFO_TYPE_SHIFT) | self.vector
        return word if self.error_code is None else word | INFO_DELIVER_ERROR_CODE

    def encode(self) -> tuple[int, int]:
        """The interruption-information word and the error-code field (0 if there is none)."""
        return self.information, self.error_code or 0

    @classmethod
    def decode(cls, information: int, error_code: int = 0) -> Self | None:
        """The event that a field pair describes; None if the valid bit is clear."""
        if not information & INFO_VALID:
            return None
        return cls(
            vector=information & INFO_VECTOR_MASK,
            type=InterruptionType(information >> INFO_TYPE_SHIFT & INFO_TYPE_MASK),
            error_code=error_code if information & INFO_DELIVER_ERROR_CODE else None,
        )


@dataclass(frozen=True, slots=True)
class FaultInformation:
    """A fault identifier, its error code and additional data values (¶29).

    `vector` identifies the fault (8 bits), `error_code` is 32 bits or None. The rest
    are the additional data values of ¶31, None or 0 where unknown: `address` the linear
    address accessed, `rip` that of the instruction, `data` what was being written and
    `old_value` what lies there (both 64 bits), `cpl` and `cr3` as they were.

    Raises:
        FieldValueError: a number does not fit its bits.
    """

    vector: int
    error_code: int | None = None
    type: InterruptionType = InterruptionType.HARDWARE_EXCEPTION
    address: int | None = field(default=None, kw_only=True)
    data: int | None = field(default=None, kw_only=True)
    old_value: int | None = field(default=None, kw_only=True)
    rip: int = field(default=0, kw_only=True)
    cpl: int = field(default=0, kw_only=True)
    cr3: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse numbers that a processor could not have produced."""
        _demand("vector", self.vector, 8)
        _demand("type", self.type, 3)
        object.__setattr__(self, "type", InterruptionType(self.type))
        _demand("cpl", self.cpl, 2)
        for name, bits in _LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                _demand(name, value, bits)

    def __repr__(self) -> str:
        """The fault in words: what it is, its error code, and the addresses that are known."""
        code = -1 if self.error_code is None else self.error_code
        words = event_words(self.vector, self.type, code)
        meaning = code_words(self.vector, code) if self.type == _EXCEPTION else ""
        parts = [f"{words}{f': {meaning}' if meaning else ''}"]
        for name in ("address", "data", "old_value"):
            value = getattr(self, name)
            if value is not None:
                parts.append(f"{name.replace('_', ' ')} {hexadecimal(value)}")
        return f"<{', '.join(parts)}, RIP {hexadecimal(self.rip)}, CPL {self.cpl}>"

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        from html import escape

        return f"<p>{escape(repr(self)[1:-1])}</p>"

    @property
    def interruption(self) -> Interruption:
        """The event that a VM exit reports, or a VM entry injects, for this fault."""
        return Interruption(self.vector, self.type, self.error_code)


Fault = FaultInformation
"""The name for daily use: `trapgate.Fault(14, 2, address=0x40000000)`."""
