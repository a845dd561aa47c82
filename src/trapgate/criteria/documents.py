"""Answers of the criteria compiler as documents: for pages, notebooks and mails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trapgate.criteria.problems.codes import vector_label
from trapgate.sdm.vectors import PF
from trapgate.trace.code_words import cube_words, cubes_of, karnaugh, page_fault_words, pattern
from trapgate.trace.document import Document, Heading, Listing, Paragraph, Part, Square, Table

if TYPE_CHECKING:
    from trapgate.criteria.answer import Definition
    from trapgate.criteria.check import Verdict
    from trapgate.criteria.define_table import FoundCriteria
    from trapgate.criteria.explain import Explanation, Warn
    from trapgate.criteria.explain_table import Difference, TableReading
    from trapgate.criteria.learn import Learned
    from trapgate.criteria.learn_table import LearnedTable
    from trapgate.criteria.merge import Merged
    from trapgate.criteria.merge_tables import MergedTables
    from trapgate.criteria.problems.filters import Filter
    from trapgate.criteria.vmcs02 import Vmcs02Check


def of_definition(
    definition: Definition, title: str = "Fields for wishes about faults"
) -> Document:
    """Fields, what they promise for each vector, and the truth table of page faults."""
    parts: list[Part] = [Paragraph(line) for line in definition.lines() if not line.startswith(" ")]
    parts += [Heading("Fields"), _fields(definition), *_page_faults(definition)]
    needless = [
        (one.name, f"{code:#x}", "" if one.layout is None else one.layout.describe(code))
        for one in definition.answers
        for code in one.needless[:24]
    ]
    if needless:
        parts += [
            Heading("Needless exits"),
            Table(("vector", "code", "meaning"), tuple(needless), "codes that exit for nothing"),
        ]
    parts += [Heading("As a VMCS file"), Listing(definition.toml(), "toml")]
    return Document(title, tuple(parts))


def of_merge(merged: Merged) -> Document:
    """The merged fields, and who asked for what."""
    document = of_definition(merged.definition, "Filters of several hypervisors, merged")
    shares = tuple(
        (one.name, one.words, " and ".join(one.asked) or "nobody", one.reflect)
        for one in merged.shares
    )
    table = Table(("vector", "faults", "asked by", "what to do"), shares, "who asked for what")
    return Document(document.title, (*document.parts, Heading("Who asked"), table))


def of_check(found: Vmcs02Check) -> Document:
    """Whether a vmcs02 is sound, what it loses and what is superfluous."""
    rows = []
    for one in found.verdicts:
        verdict = one.verdict
        named = ["", ""]
        for place, code in enumerate((verdict.missed, verdict.needless)):
            if code is not None:
                words = "" if verdict.layout is None else f" ({verdict.layout.describe(code)})"
                named[place] = f"{code:#x}{words}" if verdict.layout else "always"
        rows.append(
            (
                verdict.name,
                "sound" if verdict.sound else "unsound",
                named[0],
                verdict.missed_count,
                " and ".join(one.losers),
                named[1],
                verdict.needless_count,
            )
        )
    heads = ("vector", "verdict", "loses", "codes lost", "wanted by", "superfluous", "codes")
    parts: list[Part] = [
        Paragraph(f"vmcs02 is {'sound' if found.sound else 'unsound'}"),
        Table(heads, tuple(rows), "verdicts, an example each"),
    ]
    if found.missing_bits:
        parts.append(Paragraph(f"EXCEPTION_BITMAP lacks {found.missing_bits:#x}"))
    return Document("A vmcs02 checked", tuple(parts))


def _fields(definition: Definition) -> Table:
    rows = tuple(
        (field.name, f"{int(field):04X}H", f"{value:08X}H")
        for field, value in definition.fields.items()
    )
    return Table(("field", "encoding", "value"), rows, f"profile {definition.profile}")


def of_explanations(
    told: Sequence[tuple[str, Sequence[Explanation]]],
    same: Sequence[Warn] = (),
    tables: Mapping[str, TableReading] | None = None,
) -> Document:
    """What the fields of files do: in words, with warnings, as tables and grids."""
    parts: list[Part] = []
    for name, explanations in told:
        parts += [Heading(name)]
        if tables and name in tables:
            parts += [Paragraph(line.strip()) for line in tables[name].lines()]
            parts.append(Paragraph("where no rule decides:"))
        for one in explanations:
            parts.append(Paragraph(one.summary))
            parts += [Paragraph(f"warning: {warning.text}") for warning in one.warnings]
            parts += _explained(one)
    parts += [Paragraph(f"warning: {warning.text}") for warning in same]
    return Document("What fields do", tuple(parts))


def _explained(one: Explanation) -> list[Part]:
    groups = one.groups()
    if not groups or one.layout is None:
        return []
    bits = " ".join(bit.name for bit in reversed(one.layout.bits))
    rows = tuple(
        (group.pattern, group.words, group.count, f"{group.example:#x}", _goes(exits=group.exits))
        for group in groups
    )
    heads = (bits, "error code", "codes", "one of them", "goes to")
    table = Table(heads, rows, f"{vector_label(one.vector)}: a dash does not matter")
    return [table, *(_grid(one.filter) if one.vector == PF else [])]


def of_verdicts(verdicts: Sequence[Verdict]) -> Document:
    """Whether fields do what is wished, a counterexample each if not."""
    holds = all(one.exact for one in verdicts)
    rows = tuple(
        (
            one.name,
            "holds" if one.exact else "sound, not exact" if one.sound else "does not hold",
            _code(one, one.missed),
            one.missed_count,
            _code(one, one.needless),
            one.needless_count,
            ", ".join(map(str, one.wishes)),
            "; ".join(one.faults),
        )
        for one in verdicts
    )
    heads = (
        *("vector", "verdict", "must exit and does not", "codes"),
        *("should not exit and does", "codes", "lines of wishes", "a fault"),
    )
    parts = (
        Paragraph("The fields do what is wished." if holds else "The fields do something else."),
        Table(heads, rows, "proved by z3 and by trying all codes"),
    )
    return Document("Fields checked against wishes", parts)


def _code(one: Verdict, code: int | None) -> str:
    if code is None:
        return ""
    return "always" if one.layout is None else f"{code:#x} ({one.layout.describe(code)})"


def of_difference(found: Difference) -> Document:
    """Whether the same faults exit under two VMCSs."""
    said: list[Part] = [Paragraph(line) for line in found.lines()]
    return Document("Fields checked against fields", tuple(said))


def of_found_criteria(found: FoundCriteria) -> Document:
    """Criteria for wishes about whole faults."""
    parts: list[Part] = [Paragraph(line) for line in found.lines()]
    parts += [Heading("As a VMCS file"), Listing(found.toml(), "toml")]
    return Document("Criteria for wishes about faults", tuple(parts))


def of_merged_tables(merged: MergedTables) -> Document:
    """Fields and a criteria table that serve several VMCSs."""
    parts: list[Part] = [Paragraph(line.strip()) for line in merged.lines()]
    parts += [Heading("As a VMCS file"), Listing(merged.toml(), "toml")]
    return Document("Merged criteria tables", tuple(parts))


def of_learned_table(learned: LearnedTable) -> Document:
    """A criteria table learned from a trace."""
    parts: list[Part] = [Paragraph(line) for line in learned.lines()]
    parts += [Heading("As a VMCS file"), Listing(learned.toml(), "toml")]
    return Document("A criteria table learned from a trace", tuple(parts))


def of_learned(learned: Learned) -> Document:
    """Fields learned from a trace, and their effect on it."""
    effects = [("learned on", learned.trained)]
    if learned.held_out is not None:
        effects += [("held out", learned.held_out), ("whole trace", learned.whole)]
    rows = tuple(
        (
            *(name, one.faults, one.exits_before, one.exits_after, one.saved, one.needed),
            one.missed,
        )
        for name, one in effects
    )
    heads = ("part", "faults", "exits before", "exits after", "saved", "needed", "needed, missed")
    source = f"the column {learned.mark}" if learned.mark else "injections that follow"
    fields = of_definition(learned.definition)
    parts = (
        Table(heads, rows, "effect on the trace"),
        Paragraph(
            f"Needed exits are known by {source}. Codes that the trace does not show: "
            f"{learned.unseen}."
        ),
        *fields.parts,
    )
    return Document("Fields learned from a trace", parts)


def of_closed_form(text: str, said: Mapping[str, Any]) -> Document:
    """The merge of two page-fault filters as a function in C, and its proof."""
    vmcs02, proved = said["vmcs02"], said["proved"]
    rows = tuple((name, str(value)) for name, value in [*vmcs02.items(), *proved.items()])
    parts: list[Part] = [Table(("what", "value"), rows, "vmcs02, and what was proved")]
    if said["lost_by_equal_masks"] is not None:
        parts.append(
            Paragraph(
                "With mask and match used only where both are equal, and the OR of both bits 14, "
                f"error code {said['lost_by_equal_masks']} would be lost."
            )
        )
    return Document("Page-fault filters merged, in C", (*parts, Listing(text, "c")))


def _goes(*, exits: bool) -> str:
    return "exit" if exits else "guest"


def _page_faults(definition: Definition) -> list[Part]:
    """The truth table of page faults: few rows with bits that do not matter, and a grid."""
    filters = [one.filter for one in definition.answers if one.vector == PF]
    if not filters:
        return []
    (only,) = filters
    bits = _bits(only)
    goes = {code: only.exits_one(code) for code in range(1 << bits)}
    rows = [
        (pattern(cube, bits), cube_words(cube), _goes(exits=exits))
        for exits in (True, False)
        for cube in cubes_of((code for code, one in goes.items() if one is exits), bits)
    ]
    names = " ".join(("P", "W", "U", "RSVD", "ID", "PK")[:bits][::-1])
    return [
        Heading("Page faults"),
        Table((names, "error code", "goes to"), tuple(rows), "a dash does not matter"),
        *_grid(only),
    ]


def _bits(only: Filter) -> int:
    """Bits of a grid: five, or six where protection keys matter."""
    return 6 if any(value >> 5 & 1 for value in only.values) else 5


def _grid(only: Filter) -> list[Part]:
    bits = _bits(only)

    def square(code: int) -> Square:
        word = _goes(exits=only.exits_one(code))
        return Square(word, f"{code:#x}: {page_fault_words(code)}", f"s-{word}")

    higher = any(value >> bits for value in only.values)
    more = "; higher bits are 0" if higher else ""
    return [karnaugh(f"every error code of {bits} bits{more}", square, bits)]
