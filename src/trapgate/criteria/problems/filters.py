"""A filter: a rule of `rules.py` with values for its fields, and its place in a VMCS."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trapgate.criteria.errors import CriteriaError
from trapgate.criteria.problems.codes import Codes, Truths, has_error_code
from trapgate.decision.criteria_table import check_table
from trapgate.decision.decide import check_extension_fields
from trapgate.decision.rules import SCHEMES, Scheme, control_bit, mapped_code, mapped_field
from trapgate.sdm.check_words import CHECKS
from trapgate.sdm.vectors import PF
from trapgate.vmcs.vmcs import Vmcs

_BY_SELECTOR = {(scheme.criterion, scheme.operator): scheme for scheme in SCHEMES.values()}
_COMPARISON = SCHEMES["equal"].criterion

_NOT_CODES = ("MEMBERS_USED",)
"""Fields of a scheme that hold no error-code bits, and so are not mapped (¶41)."""


@dataclass(frozen=True)
class Filter:
    """Which error codes of one vector exit.

    `scheme` is a key of `rules.SCHEMES`, or empty: then the control bit decides alone.
    `control` is the vector's bit in the exception bitmap, `values` those of the
    scheme's fields in their order (32 bits each). `window` and `scale` map narrow
    fields as `rules.mapped_field` has it (¶41).
    """

    scheme: str
    control: bool
    values: tuple[int, ...] = ()
    window: int = 0xFFFFFFFF
    scale: int = 1

    @property
    def rule(self) -> Scheme | None:
        """Its rule; None if the control bit decides alone."""
        return SCHEMES[self.scheme] if self.scheme else None

    def exits(self, codes: Codes) -> Truths:
        """Which of `codes` exit."""
        if not self.scheme:
            return np.full(codes.shape, self.control)
        control = np.full(codes.shape, self.control)
        return np.asarray(self._apply(control, np.True_, codes), dtype=np.bool_)

    def exits_one(self, code: int) -> bool:
        """Whether `code` exits."""
        return self.control if not self.scheme else bool(self._apply(self.control, True, code))

    def term(self, code: Any) -> Any:
        """A z3 term that is true for the codes that exit; `code` is a bit-vector of 32 bits."""
        import z3

        if not self.scheme:
            return z3.BoolVal(self.control)
        return self._apply(z3.BoolVal(self.control), z3.BoolVal(True), code)

    def _apply(self, control: Any, has_code: Any, code: Any) -> Any:
        rule = SCHEMES[self.scheme]
        narrow = (self.window, self.scale) != (0xFFFFFFFF, 1)
        values = [
            value
            if not narrow or name in _NOT_CODES
            else mapped_field(value, self.window, self.scale)
            for name, value in zip(rule.fields, self.values, strict=True)
        ]
        seen = mapped_code(code, self.window, self.scale) if narrow else code
        return rule.function(control, has_code, seen, *values)

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Its pairs of mask and match, in the error code's bits."""
        named = self.named()
        found = []
        for mask, match in (
            ("{}_ERROR_CODE_MASK", "{}_ERROR_CODE_MATCH"),
            ("SECOND_ERROR_CODE_MASK", "SECOND_ERROR_CODE_MATCH"),
        ):
            if mask in named:
                found.append((named[mask], named[match]))
        return tuple(found)

    def named(self) -> dict[str, int]:
        """Its fields (as `Scheme.fields` names them) and values in the error code's bits."""
        if not self.scheme:
            return {}
        return {
            name: value if name in _NOT_CODES else int(mapped_field(value, self.window, self.scale))
            for name, value in zip(SCHEMES[self.scheme].fields, self.values, strict=True)
        }


def demand_valid(vmcs: Vmcs, path: str = "") -> None:
    """Raise CriteriaError if VM entry refuses the extension fields: then nothing can be said."""
    if check_extension_fields(vmcs.cells) == 0:
        return
    suspects = [field for field in vmcs if field.extension and vmcs[field]]
    for field in suspects:
        mended = vmcs.copy()
        mended[field] = 0
        if check_extension_fields(mended.cells) == 0:
            suspects = [field]
            break
    told = ", ".join(f"{field.name} = {vmcs[field]:#x}" for field in suspects)
    raise CriteriaError(f"VM entry refuses {told}; give values that the extensions have", path=path)


def demand_table(vmcs: Vmcs, path: str = "") -> None:
    """Raise CriteriaError if VM entry refuses the criteria table, and say which rule and clause."""
    failed, place = check_table(vmcs.copy().cells)
    if failed:
        where = f"rule {place >> 16}, clause {place & 0xFFFF} (counted from 0)"
        raise CriteriaError(f"{where}: {CHECKS[failed].rule}", path=path, field="rules")


def filter_in(vmcs: Vmcs, vector: int) -> Filter:
    """The filter that a VMCS has for `vector`; what `decide.decide_fault` would apply.

    Raises: CriteriaError: VM entry refuses the VMCS.
    """
    demand_valid(vmcs)
    control = bool(control_bit(vmcs["EXCEPTION_BITMAP"], 1 << vector))
    if not has_error_code(vector):
        return Filter("", control)
    extended = vmcs.profile == "extended" and vmcs["TRANSFER_CRITERION_VECTORS"] >> vector & 1
    if not extended:
        if vector != PF:
            return Filter("", control)
        pair = vmcs["PAGE_FAULT_ERROR_CODE_MASK"], vmcs["PAGE_FAULT_ERROR_CODE_MATCH"]
        return Filter("figure-3", control, pair)
    criterion = vmcs["TRANSFER_CRITERION"]
    operator = vmcs["COMPARISON_OPERATOR"] if criterion == _COMPARISON else 0
    # VM entry refuses what is not in the table.
    scheme = _BY_SELECTOR.get((criterion, operator), SCHEMES["figure-3"])
    values = tuple(vmcs[name] for name in scheme.fields_for(vector))
    width = vmcs["ERROR_CODE_FIELD_WIDTH"]
    if not width:
        return Filter(scheme.name, control, values)
    width = min(width, 32)
    shift = min(vmcs["ERROR_CODE_FIELD_SHIFT"], 32 - width)
    return Filter(scheme.name, control, values, (1 << width) - 1, 1 << shift)


def mask_bits(filter_: Filter) -> Iterator[tuple[int, int]]:
    """Every bit that one of its masks has: (field's place, bit)."""
    for place, name in enumerate(filter_.rule.fields if filter_.rule else ()):
        if name.endswith("_MASK"):
            for bit in range(32):
                if filter_.values[place] >> bit & 1:
                    yield place, bit


def without_bit(filter_: Filter, place: int, bit: int) -> Filter:
    """The same filter with one bit less in the mask at `place`, and in its match."""
    assert filter_.rule is not None
    values = list(filter_.values)
    values[place] &= ~(1 << bit)
    if filter_.rule.fields[place] != "ANY_BIT_MASK":
        values[place + 1] &= ~(1 << bit)
    return replace(filter_, values=tuple(values))


def simplified(filters: Sequence[Filter], codes: Sequence[Codes]) -> list[Filter]:
    """The same on each filter's codes, without mask bits that decide only others.

    What filters of one rule hold in fields that serve all vectors stays the same.
    """
    simple = list(filters)
    wanted = [one.exits(mine) for one, mine in zip(filters, codes, strict=True)]
    found = True
    while found:
        found = False
        for number, filter_ in enumerate(filters):
            assert filter_.rule is not None
            for place, bit in list(mask_bits(simple[number])):
                own = "{}" in filter_.rule.fields[place]
                together = [
                    other
                    for other, one in enumerate(filters)
                    if other == number or (not own and one.scheme == filter_.scheme)
                ]
                simpler = {other: without_bit(simple[other], place, bit) for other in together}
                if all(
                    np.array_equal(one.exits(codes[other]), wanted[other])
                    for other, one in simpler.items()
                ):
                    found = True
                    for other, one in simpler.items():
                        simple[other] = one
    return simple
