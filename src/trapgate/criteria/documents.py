"""Answers of the criteria compiler as documents: for pages, notebooks and mails."""

from __future__ import annotations

from trapgate.criteria.answer import Definition
from trapgate.criteria.merge import Merged
from trapgate.criteria.vmcs02 import Vmcs02Check
from trapgate.sdm.vectors import PF
from trapgate.trace.code_words import cube_words, cubes_of, karnaugh, page_fault_words, pattern
from trapgate.trace.document import Document, Heading, Listing, Paragraph, Part, Square, Table

_BITS = 5


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


def _page_faults(definition: Definition) -> list[Part]:
    """The truth table of page faults: few rows with bits that do not matter, and a grid."""
    filters = [one.filter for one in definition.answers if one.vector == PF]
    if not filters:
        return []
    (only,) = filters
    goes = {code: only.exits_one(code) for code in range(1 << _BITS)}
    rows = []
    for exits in (True, False):
        for cube in cubes_of((code for code, one in goes.items() if one is exits), _BITS):
            words = "exit" if exits else "guest"
            rows.append((pattern(cube, _BITS), cube_words(cube), words))

    def square(code: int) -> Square:
        word = "exit" if goes[code] else "guest"
        return Square(word, f"{code:#x}: {page_fault_words(code)}", f"s-{word}")

    return [
        Heading("Page faults"),
        Table(("ID RSVD U W P", "error code", "goes to"), tuple(rows), "a dash does not matter"),
        karnaugh("every error code of five bits", square, _BITS),
    ]
