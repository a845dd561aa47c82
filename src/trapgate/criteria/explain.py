"""What the fields of a VMCS do: a truth table over the error code, in words, with warnings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trapgate.criteria import pages
from trapgate.criteria.covers.words import covering, in_words, ranges
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.codes import (
    Codes,
    Layout,
    Truths,
    has_error_code,
    layout_of,
    vector_label,
)
from trapgate.criteria.problems.filters import Filter, filter_in, mask_bits, without_bit
from trapgate.sdm.vectors import PF, TABLE, Vector
from trapgate.trace.document import Document, Heading, Paragraph, Part, Table
from trapgate.vmcs.vmcs import Vmcs

_MOST_ROWS = 512


@dataclass(frozen=True)
class Warn:
    """Something that is probably not what was meant. `kind` is a short name for it."""

    kind: str
    text: str


@dataclass(frozen=True)
class Group:
    """Codes that fare the same: `pattern` has the layout's bits, the highest first, a dash for
    one that does not matter; `count` of them occur, `example` being the least.
    """

    pattern: str
    exits: bool
    count: int
    example: int
    words: str

    def line(self) -> str:
        """In words."""
        codes = f"{self.count} code{'s' if self.count > 1 else ''}, e.g. {self.example:#x}"
        return f"{self.pattern}  {'exit ' if self.exits else 'guest'}  {self.words} ({codes})"


def _pattern(layout: Layout, mask: int, value: int) -> str:
    return "".join(
        ("1" if value >> n & 1 else "0") if mask >> n & 1 else "-"
        for n in reversed(layout.positions)
    )


@dataclass(frozen=True)
class Explanation:
    """What the fields do for one vector.

    `codes` are all codes of the layout (one, 0, for a vector without an error code),
    `exits` and `occurs` say which exit and which the processor can raise.
    """

    vector: int
    layout: Layout | None
    filter: Filter
    codes: Codes
    exits: Truths
    occurs: Truths
    warnings: tuple[Warn, ...]

    @property
    def summary(self) -> str:
        """In one line: what exits."""
        name = vector_label(self.vector)
        if self.layout is None or not self.filter.scheme:
            return f"{name}: {'always exits' if self.filter.control else 'never exits'}"
        seen = self.exits[self.occurs]
        if seen.all() or not seen.any():
            how = ", by a filter" if any(self.filter.values) else ""
            return f"{name}: {'always exits' if seen.any() else 'never exits'}{how}"
        told = in_words(self.layout, self.exits, self.occurs)
        count = f"{int(seen.sum())} of {len(seen)} codes"
        return f"{name}: exits ({count}) if {'; or '.join(told)}" if told else f"{name}: {count}"

    def rows(self) -> list[tuple[int, bool, str]]:
        """The truth table: code, whether it exits, words; of (at most 512) codes that occur."""
        layout = self.layout
        shown = self.codes[self.occurs][:_MOST_ROWS]
        told = self.exits[self.occurs][:_MOST_ROWS]
        return [
            (code, exits, layout.describe(code) if layout else "")
            for code, exits in zip(shown.tolist(), told.tolist(), strict=True)
        ]

    @property
    def rows_left_out(self) -> int:
        """How many codes that occur the truth table leaves out."""
        return max(int(self.occurs.sum()) - _MOST_ROWS, 0)

    def groups(self) -> list[Group]:
        """The truth table with codes that fare the same as one row; empty if that would take
        too long (`rows` has each code then).
        """
        layout = self.layout
        if layout is None or not self.filter.scheme:
            return []
        raised = self.codes[self.occurs]
        found = []
        for exits in (True, False):
            mine, others = self.exits == exits, self.exits != exits
            cubes = covering(layout, mine & self.occurs, others & self.occurs)
            if not cubes and (mine & self.occurs).any():
                return []
            for mask, value in cubes:
                held = raised[(raised & mask) == value]
                pattern = _pattern(layout, mask, value)
                words = layout.words(mask, value)
                found.append(Group(pattern, exits, len(held), int(held[0]), words))
        return found

    def lines(self, *, table: bool = True) -> list[str]:
        """In words: what exits, warnings, and the truth table where there is a filter.

        Codes that fare the same are one row, in which a dash is a bit that does not matter.
        """
        told = [self.summary, *(f"  warning: {warning.text}" for warning in self.warnings)]
        if not table or self.layout is None or not self.filter.scheme:
            return told
        groups = self.groups()
        if groups:
            names = " ".join(bit.name for bit in reversed(self.layout.bits))
            told.append(f"  bits: {names}; a dash does not matter")
            return told + [f"  {one.line()}" for one in groups]
        told += [
            f"  {code:#06x}  {'exit' if exits else '-':4}  {words}"
            for code, exits, words in self.rows()
        ]
        if self.rows_left_out:
            told.append(f"  and {self.rows_left_out} more codes")
        return told

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "vector": self.vector,
            "name": vector_label(self.vector),
            "scheme": self.filter.scheme or "control bit",
            "control_bit": int(self.filter.control),
            "values": {name: f"{value:#x}" for name, value in self.filter.named().items()},
            "summary": self.summary,
            "exit_codes": ranges(self.codes[self.exits & self.occurs], 1 << 16),
            "table": [
                {"code": f"{code:#x}", "exits": exits, "words": words}
                for code, exits, words in self.rows()
            ],
            "table_leaves_out": self.rows_left_out,
            "groups": [vars(one) for one in self.groups()],
            "impossible_codes": int((~self.occurs).sum()),
            "warnings": [vars(warning) for warning in self.warnings],
        }


class Explanations(list[Explanation], Paged):
    """What fields do for several vectors; a notebook shows them as one table."""

    def page(self) -> Document:
        """What the fields do, as tables and grids."""
        return page_of_files([("fields", self)])


def page_of_files(
    told: Sequence[tuple[str, Sequence[Explanation]]],
    same: Sequence[Warn] = (),
    tables: Mapping[str, list[str]] | None = None,
) -> Document:
    """What the fields of files do: in words, with warnings, as tables and grids.

    `same` are warnings about the files together, `tables` their criteria tables in words.
    """
    parts: list[Part] = []
    for name, explanations in told:
        parts += [Heading(name)]
        if tables and name in tables:
            parts += [*pages.paragraphs(tables[name]), Paragraph("where no rule decides:")]
        for one in explanations:
            parts.append(Paragraph(one.summary))
            parts += [Paragraph(f"warning: {warning.text}") for warning in one.warnings]
            parts += _truth(one)
    parts += [Paragraph(f"warning: {warning.text}") for warning in same]
    return Document("What fields do", tuple(parts))


def _truth(one: Explanation) -> list[Part]:
    """The truth table of a filter, and a grid of page faults."""
    groups = one.groups()
    if not groups or one.layout is None:
        return []
    bits = " ".join(bit.name for bit in reversed(one.layout.bits))
    rows = tuple(
        (
            *(group.pattern, group.words, group.count, f"{group.example:#x}"),
            pages.goes(exits=group.exits),
        )
        for group in groups
    )
    heads = (bits, "error code", "codes", "one of them", "goes to")
    table = Table(heads, rows, f"{vector_label(one.vector)}: a dash does not matter")
    return [table, *([pages.grid(one.filter)] if one.vector == PF else [])]


def explain(vmcs: Vmcs, vectors: Iterable[int] | None = None) -> Explanations:
    """What `vmcs` does, for each of `vectors`; if not given, those for which it says anything."""
    wanted = _vectors_with_criteria(vmcs) if vectors is None else list(vectors)
    told = [_explained(vmcs, vector) for vector in wanted]
    idle = [
        f"{vector}"
        for vector in range(32)
        if vmcs["EXCEPTION_BITMAP"] >> vector & 1 and vector not in _RULED
    ]
    if idle and told:
        text = f"bits {', '.join(idle)} of EXCEPTION_BITMAP rule no exception"
        if "2" in idle:
            text += " (NMIs are ruled by NMI_EXITING)"
        first = told[0]
        told[0] = replace(first, warnings=(*first.warnings, Warn("idle-bit", text)))
    return Explanations(told)


_RULED = {int(row.vector) for row in TABLE} - {int(Vector.NMI)}


def _vectors_with_criteria(vmcs: Vmcs) -> list[int]:
    bitmap = vmcs["EXCEPTION_BITMAP"]
    if vmcs.profile == "extended":
        bitmap |= vmcs["TRANSFER_CRITERION_VECTORS"]
    return [vector for vector in sorted(_RULED) if bitmap >> vector & 1 or vector == PF]


def _explained(vmcs: Vmcs, vector: int) -> Explanation:
    filter_ = filter_in(vmcs, vector)
    if not has_error_code(vector):
        one = np.zeros(1, dtype=np.int64)
        truth = np.ones(1, dtype=np.bool_)
        return Explanation(vector, None, filter_, one, truth & filter_.control, truth, ())
    layout = layout_of(vector)
    codes = layout.codes()
    exits = filter_.exits(codes)
    occurs = np.broadcast_to(np.asarray(layout.occurs(codes), dtype=np.bool_), codes.shape)
    warnings = tuple(_warnings(vector, filter_, layout, codes, exits, occurs))
    return Explanation(vector, layout, filter_, codes, exits, occurs, warnings)


def _warnings(
    vector: int, filter_: Filter, layout: Layout, codes: Codes, exits: Truths, occurs: Truths
) -> Iterable[Warn]:
    if not filter_.scheme:
        return
    raised = codes[occurs]
    for number, (mask, match) in enumerate(filter_.pairs()):
        name = "MATCH" if number == 0 else "the second MATCH"
        if match & ~mask:
            yield Warn(
                "match-outside-mask",
                f"{name} has bits outside its MASK ({match & ~mask:#x}): never equal",
            )
        elif not ((raised & mask) == match).any():
            yield Warn(
                "impossible-match",
                f"{name} {match:#x} under MASK {mask:#x} "
                f"({layout.words(mask, match)}) is not a code that the processor can raise",
            )
    yield from _impossible_values(vector, filter_, layout, raised)
    if filter_.scheme == "figure-3" and not filter_.control and any(filter_.values):
        yield Warn(
            "sense-reversed",
            f"bit {vector} of EXCEPTION_BITMAP is 0, but MASK and MATCH still count: "
            "the sense reverses, and what does not match exits",
        )
    seen = exits[occurs]
    if seen.all() or not seen.any():
        plain = Filter("figure-3", bool(seen.any()), (0, 0))
        if filter_ != plain and not (filter_.scheme != "figure-3" and not any(filter_.values)):
            verb = "exits" if seen.any() else "never exits"
            yield Warn(
                "constant",
                f"every code that occurs {verb}: bit {vector} of EXCEPTION_BITMAP "
                f"{int(seen.any())}, MASK 0 and MATCH 0 say so plainly",
            )
    else:
        yield from _idle_mask_bits(vector, filter_, layout, codes, exits, occurs)


def _impossible_values(
    vector: int, filter_: Filter, layout: Layout, raised: Codes
) -> Iterable[Warn]:
    assert filter_.rule is not None
    held = filter_.named()
    for name, field in zip(filter_.rule.fields, filter_.rule.fields_for(vector), strict=True):
        outside = held[name] & ~layout.window
        if name.endswith("_MASK") and outside:
            yield Warn(
                "impossible-bits", f"{field} has bits that the error code lacks ({outside:#x})"
            )
        used = name.startswith("MEMBER_") and held["MEMBERS_USED"] >> int(name[-1]) & 1
        if used and held[name] not in raised:
            yield Warn(
                "impossible-member",
                f"{field} {held[name]:#x} is not a code that the processor can raise",
            )


def _idle_mask_bits(
    vector: int, filter_: Filter, layout: Layout, codes: Codes, exits: Truths, occurs: Truths
) -> Iterable[Warn]:
    assert filter_.rule is not None
    names = filter_.rule.fields_for(vector)
    known = {bit.position: bit.name for bit in layout.bits}
    for place, bit in mask_bits(filter_):
        position = bit + filter_.scale.bit_length() - 1
        without = without_bit(filter_, place, bit).exits(codes)
        if position in known and np.array_equal(without[occurs], exits[occurs]):
            changed = ranges(codes[without != exits], 4)
            only = f"only codes that cannot occur ({changed})" if changed else "nothing"
            yield Warn(
                "idle-mask-bit",
                f"bit {bit} ({known[position]}) of {names[place]} decides {only}",
            )


def compare(named: Sequence[tuple[str, Vmcs]]) -> list[Warn]:
    """Pairs of VMCSs whose filters differ, but on no code that the processor can raise."""
    found = []
    for number, (name, one) in enumerate(named):
        for other_name, other in named[number + 1 :]:
            for vector in sorted(_RULED):
                first, second = filter_in(one, vector), filter_in(other, vector)
                if first == second or not has_error_code(vector):
                    continue
                layout = layout_of(vector)
                codes = layout.codes()
                occurs = np.asarray(layout.occurs(codes), dtype=np.bool_)
                differ = first.exits(codes) != second.exits(codes)
                if not (differ & occurs).any():
                    where = f": {ranges(codes[differ], 4)}" if differ.any() else ""
                    what = "codes that cannot occur" if differ.any() else "no code"
                    found.append(
                        Warn(
                            "same-in-effect",
                            f"{name} and {other_name}: the filters of {vector_label(vector)} "
                            f"differ on {what}{where}",
                        )
                    )
    return found
