"""A policy: the fields of a VMCS that say where faults go, by a name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from trapgate.decision.conditions import Names
from trapgate.decision.criteria_rules import Rule
from trapgate.decision.criteria_table import check_table
from trapgate.decision.decide import check_extension_fields
from trapgate.decision.fault_filters import (
    EMPTY_TABLE,
    EVERY_FRAME_FILTER,
    FILTER_NONE,
    KNOWN_TABLE,
    NO_LINK,
    ORDER_FIGURE_6,
    OWN_FRAME,
    OWN_TABLE,
)
from trapgate.decision.rules import CRITERION_COMPARISON, PAIR, SCHEMES, Scheme, control_bit
from trapgate.errors import VmcsFileError
from trapgate.replay.exit_policy import ExitPolicy
from trapgate.replay.filters import Filters
from trapgate.sdm.check_words import CHECKS
from trapgate.sdm.controls import PIN_EXTERNAL_INTERRUPT_EXITING, PIN_NMI_EXITING
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import PF, ROWS
from trapgate.trace.html import table
from trapgate.vmcs.file import Settings, read_settings
from trapgate.vmcs.vmcs import Vmcs, rules_exceptions

if TYPE_CHECKING:
    from collections.abc import Iterable

_FILTER_FIELDS: Final = (
    Field.FAULT_FILTER,
    Field.FAULT_FILTER_ORDER,
    Field.PTBASE,
    Field.FRAME_FILTERS,
)
_SCHEME: Final = {(s.criterion, s.operator): s for s in SCHEMES.values()}


@dataclass(frozen=True)
class Policy:
    """The criteria of one VMCS.

    `judges_interrupts` tells whether external interrupts and NMIs are judged by its
    pin-based controls, or are left as recorded. `fault_filter`, `order`, `ptbase` and
    `frame_filters` are the fault filters' fields; without `ptbase` they are about the writes that
    a frame map stops. `exits` is what it says of exits that are not exceptions;
    `judges_exceptions` is False for a file that speaks of nothing else: then they are left
    as recorded.
    """

    name: str
    vmcs: Vmcs
    judges_interrupts: bool = False
    fault_filter: int = FILTER_NONE
    order: int = ORDER_FIGURE_6
    ptbase: int = 0
    exits: ExitPolicy = field(default_factory=ExitPolicy)
    judges_exceptions: bool = True
    frame_filters: int = 0

    @classmethod
    def load(cls, path: Path, names: Names | None = None) -> Self:
        """The policy in a VMCS file, named after the file; its conditions may use `names`.

        Raises: VmcsError for a file that is none, or asks for what cannot be replayed.
        """
        return cls.from_settings(path.stem, read_settings(path, names))

    @classmethod
    def from_settings(cls, name: str, settings: Settings) -> Self:
        """The policy that `settings` describe; raises as `load`."""
        kind, order, ptbase, frames = (settings.fields.get(one, 0) for one in _FILTER_FIELDS)
        others = {f: v for f, v in settings.fields.items() if f not in _FILTER_FIELDS}
        vmcs = Vmcs("vt-x" if settings.profile == "vt-x" else "extended")
        vmcs.apply(replace(settings, fields=others, intercepts=None))
        if settings.profile == "vt-x" and kind | frames:
            raise VmcsFileError(
                'is an extension; use profile "extended"', field="FAULT_FILTER", path=settings.path
            )
        if check_extension_fields(vmcs.cells) != 0:
            raise VmcsFileError(
                "the extension fields hold what a VM entry refuses; check TRANSFER_CRITERION "
                "and the fields that it reads",
                path=settings.path,
            )
        failed, place = check_table(vmcs.cells)
        if failed:
            raise VmcsFileError(
                f"rule {place >> 16}, clause {place & 0xFFFF}: {CHECKS[failed].rule}",
                field="rules",
                path=settings.path,
            )
        if frames & ~EVERY_FRAME_FILTER:
            raise VmcsFileError(
                f"{frames:#x} has bits without a meaning; the highest is {EMPTY_TABLE:#x}",
                field="FRAME_FILTERS",
                path=settings.path,
            )
        exits = ExitPolicy.of(settings)
        interrupts = PIN_EXTERNAL_INTERRUPT_EXITING | PIN_NMI_EXITING
        judges = exits.names(Field.PIN_BASED_CONTROLS, interrupts)
        about = {one for one in exits.named if rules_exceptions(one)}
        only_exits = exits.judges_exits and not about and settings.rules is None
        return cls(name, vmcs, judges, kind, order, ptbase, exits, not only_exits, frames)

    @classmethod
    def of(cls, name: str, *, vectors: Iterable[int] = (), mask: int = 0, match: int = 0) -> Self:
        """A VT-x policy: the exception bitmap's vectors and the page-fault mask and match."""
        vmcs = Vmcs("vt-x")
        vmcs["EXCEPTION_BITMAP"] = sum(1 << vector for vector in set(vectors))
        vmcs["PAGE_FAULT_ERROR_CODE_MASK"] = mask
        vmcs["PAGE_FAULT_ERROR_CODE_MATCH"] = match
        return cls(name, vmcs)

    @property
    def filters(self) -> Filters:
        """The fault filters."""
        return Filters(self.fault_filter, self.frame_filters, self.ptbase)

    @property
    def filters_writes(self) -> bool:
        """Whether there is a fault filter."""
        return self.fault_filter | self.frame_filters != FILTER_NONE

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The criteria table."""
        return self.vmcs.criteria_table

    def control(self, vector: int) -> bool:
        """The exception bitmap's bit of `vector` (0 to 31)."""
        return bool(control_bit(self.vmcs["EXCEPTION_BITMAP"], 1 << vector))

    def scheme(self, vector: int) -> Scheme | None:
        """The criterion for faults of `vector` that have an error code; None: the bit alone."""
        if vector not in PAIR:
            return None
        if (
            self.vmcs.profile == "extended"
            and self._value("TRANSFER_CRITERION_VECTORS") >> vector & 1
        ):
            criterion = self._value("TRANSFER_CRITERION")
            compares = criterion == CRITERION_COMPARISON
            return _SCHEME[criterion, self._value("COMPARISON_OPERATOR") if compares else 0]
        return SCHEMES["figure-3"] if vector == PF else None

    def values(self, vector: int) -> tuple[int, ...]:
        """The values of the fields that `scheme(vector)` reads, in its order."""
        scheme = self.scheme(vector)
        return () if scheme is None else tuple(map(self._value, scheme.fields_for(vector)))

    def window(self, vector: int) -> tuple[int, int]:
        """`window` and `scale` of narrow fields (¶41; see `rules.mapped_code`)."""
        extended = self.vmcs.profile == "extended" and (
            self._value("TRANSFER_CRITERION_VECTORS") >> vector & 1
        )
        width = self._value("ERROR_CODE_FIELD_WIDTH") if extended else 0
        if not width:
            return _WHOLE
        return (1 << width) - 1, 1 << self._value("ERROR_CODE_FIELD_SHIFT")

    def reads_code(self, vector: int) -> bool:
        """Whether the error code has a say about `vector`.

        It has none where nothing is masked: then all codes match, or none does. Nor has it
        where the match has bits outside of the mask: then none does.
        """
        scheme = self.scheme(vector)
        if scheme is None:
            return False
        if scheme is not SCHEMES["figure-3"] or self.window(vector) != _WHOLE:
            return True
        mask, match = self.values(vector)[:2]
        return mask != 0 and not match & ~mask

    def _value(self, name: str) -> int:
        return self.vmcs[name]

    @property
    def summary(self) -> str:
        """Its criteria on one line."""
        on = [row.vector.name for row in ROWS.values() if self.control(int(row.vector))]
        parts = [f"exceptions {', '.join(on) or 'none'}"] if self.judges_exceptions else []
        for vector in PAIR:
            scheme = self.scheme(vector)
            if scheme is None or (vector == PF and not any(self.values(vector))):
                continue
            named = zip(scheme.fields_for(vector), self.values(vector), strict=True)
            shown = ", ".join(f"{_short(name)} {value:#x}" for name, value in named)
            parts.append(f"#{ROWS[vector].vector.name} {scheme.name} ({shown})")
        if self.filters_writes:
            names = [_FILTER_NAMES[self.fault_filter]] if self.fault_filter else []
            names += [name for bit, name in _FRAME_FILTERS.items() if self.frame_filters & bit]
            where = "by the frame map" if self.filters.by_map else f"PTBASE {self.ptbase:#x}"
            parts.append(f"fault filter {', '.join(names)}, {where}")
        if self.rules:
            parts.insert(0, f"a criteria table of {len(self.rules)} rules")
        if self.exits.judges_exits:
            parts.append(f"exits: {self.exits.words}")
        return "; ".join(parts)

    def _repr_html_(self) -> str:
        """The exceptions of a policy, and the criterion of each vector that has one."""
        rows = []
        for vector, row in ROWS.items():
            scheme = self.scheme(vector)
            if scheme is None and not self.control(vector):
                continue
            values = ""
            if scheme is not None:
                named = zip(scheme.fields_for(vector), self.values(vector), strict=True)
                values = ", ".join(f"{name} = {value:#x}" for name, value in named)
            name = "bitmap" if scheme is None else scheme.name
            rows.append((f"#{row.vector.name}", int(self.control(vector)), name, values))
        exits = f"<p>exits: {escape(self.exits.words)}</p>" if self.exits.judges_exits else ""
        title = f"<h4>Policy {escape(self.name)}</h4>"
        if not self.judges_exceptions:
            return title + exits
        return title + table(("vector", "control bit", "criterion", "fields"), rows) + exits


_FILTER_NAMES: Final = ("", "figure 7", "figure 8", "¶80")
_FRAME_FILTERS: Final = {
    OWN_FRAME: "own-frame",
    NO_LINK: "no-link",
    KNOWN_TABLE: "known-table",
    OWN_TABLE: "own-table",
    EMPTY_TABLE: "empty-table",
}
_WHOLE: Final = (0xFFFFFFFF, 1)


def _short(field: str) -> str:
    return field.rpartition("ERROR_CODE_")[2].lower().replace("_", " ")
