"""Events to put into a guest, in words: `PF(code=2,cr2=0x1000)@1000000`.

An event is delivered by VM entry, and checked there (second seed, claims 1-9): what the checks
refuse ends the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trapgate.decision.faults import Interruption
from trapgate.errors import TrapgateError
from trapgate.sdm.interruption import InterruptionType
from trapgate.sdm.vectors import ROWS, Vector
from trapgate.vmm.moments import Moment, MomentError, parse_moment

if TYPE_CHECKING:
    from trapgate.vmm.machine import VirtualMachine

_FORM = re.compile(r"\s*(?P<event>[^@]+?)\s*@(?P<when>.*)", re.DOTALL)
_EVENT = re.compile(r"#?(?P<name>[A-Za-z]+)(?:\s*\((?P<arguments>[^()]*)\))?")
_INTERRUPT = re.compile(r"INT\s+(?P<vector>\w+)", re.IGNORECASE)
_WIDTHS = {"code": 32, "cr2": 64}
_HOW = "write it as PF(code=2,cr2=0x1000)@1000000, GP(0x10)@5000, NMI@5000 or INT 0x20@5000"


class InjectionError(TrapgateError):
    """An injection is not written as one; the message says what to write."""


@dataclass(frozen=True, slots=True)
class Injection:
    """An event, CR2 if it is to change, and when."""

    event: Interruption
    address: int | None
    when: Moment

    def plan(self, vm: VirtualMachine) -> None:
        """Plan that `vm` delivers it at its moment."""
        vm.at(self.when, self.deliver)

    def deliver(self, vm: VirtualMachine) -> None:
        """Deliver it at the next VM entry of `vm`."""
        vm.inject(self.event, address=self.address)


def parse_injection(text: str, find: Callable[[str], int] | None = None) -> Injection:
    """Read EVENT@WHEN, WHEN as `parse_moment` does.

    EVENT is an exception by its mnemonic, with the error code or `code=` and `cr2=` in
    parentheses; NMI; or INT and the vector of an external interrupt. An exception that has an
    error code and is given none gets 0.

    Raises InjectionError.
    """
    form = _FORM.fullmatch(text)
    if form is None:
        raise InjectionError(f"{text!r} is not an injection; {_HOW}")
    try:
        when = parse_moment(form["when"], find)
    except MomentError as error:
        raise InjectionError(f"{text!r}: {error}") from None
    interrupt = _INTERRUPT.fullmatch(form["event"])
    if interrupt is not None:
        vector = _number(text, interrupt["vector"], 8)
        return Injection(Interruption(vector, InterruptionType.EXTERNAL_INTERRUPT), None, when)
    found = _EVENT.fullmatch(form["event"])
    name = "" if found is None else found["name"].upper()
    if found is None or name not in Vector.__members__ or Vector[name] not in ROWS:
        raise InjectionError(f"{text!r}: no event {form['event']!r}; {_HOW}")
    vector = Vector[name]
    values = _arguments(text, found["arguments"] or "")
    if vector == Vector.NMI:
        event = Interruption(vector, InterruptionType.NMI)
    else:
        code = values.get("code", 0) if ROWS[vector].has_error_code else None
        event = Interruption(vector, InterruptionType.HARDWARE_EXCEPTION, code)
    allowed = {"code"} if event.error_code is not None else set()
    unknown = values.keys() - (allowed | {"cr2"} if vector == Vector.PF else allowed)
    if unknown:
        raise InjectionError(f"{text!r}: {name} has no {min(unknown)}; {_HOW}")
    return Injection(event, values.get("cr2"), when)


def _arguments(text: str, arguments: str) -> Mapping[str, int]:
    values = {}
    for part in filter(None, (part.strip() for part in arguments.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name, value = (name.lower(), value) if equals else ("code", name)
        if name not in _WIDTHS or name in values:
            raise InjectionError(f"{text!r}: {part!r} is neither code nor cr2, or stands twice")
        values[name] = _number(text, value, _WIDTHS[name])
    return values


def _number(text: str, word: str, bits: int) -> int:
    try:
        number = int(word, 0)
    except ValueError:
        raise InjectionError(f"{text!r}: {word!r} is not a number; {_HOW}") from None
    if not 0 <= number < 1 << bits:
        raise InjectionError(f"{text!r}: {word} does not fit {bits} bits; {_HOW}")
    return number
