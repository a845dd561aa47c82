"""Answers: field values, what they promise, and their forms (TOML, C, VMWRITE, JSON)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trapgate.criteria import pages
from trapgate.criteria.covers.cover import Remedy
from trapgate.criteria.errors import listed
from trapgate.criteria.pages import Paged
from trapgate.criteria.problems.codes import Layout, vector_label
from trapgate.criteria.problems.filters import Filter
from trapgate.criteria.proofs.proof import Proof
from trapgate.sdm.fields import Field
from trapgate.sdm.vectors import PF
from trapgate.trace.code_words import cube_words, cubes_of, pattern
from trapgate.trace.document import Document, Heading, Paragraph, Part, Table
from trapgate.vmcs.file import write_settings

_MANY = 1024
"""JSON lists so many needless codes; beyond, only their number."""


@dataclass(frozen=True)
class WhyNot:
    """Why no exact filter exists: these must exit, those be delivered, none to spare."""

    exits: tuple[int, ...]
    delivers: tuple[int, ...]


@dataclass(frozen=True)
class VectorAnswer:
    """The answer for one vector.

    `needless` are the codes that exit though they should not, `weight` what they count
    together; summed over the vectors, that is the least possible for the scheme.
    `why_not` is a reason why it is not exact, `contended` that it would be if it had the
    fields for itself that all vectors share. `remedies` say how many fields would make it
    exact; empty if it is, or None if that is unknown.
    """

    vector: int
    layout: Layout | None
    scheme: str
    filter: Filter
    must_count: int
    needless: tuple[int, ...] = ()
    weight: int = 0
    proof: Proof | None = None
    why_not: WhyNot | None = None
    contended: bool = False
    remedies: tuple[Remedy, ...] | None = ()

    @property
    def name(self) -> str:
        """#PF for 14, and so on."""
        return vector_label(self.vector)

    @property
    def exact(self) -> bool:
        """Whether no code exits that should not."""
        return not self.needless

    def document(self) -> dict[str, Any]:
        """For JSON."""
        words = None if self.why_not is None else vars(self.why_not)
        return {
            "vector": self.vector,
            "name": vector_label(self.vector),
            "scheme": self.scheme,
            "control_bit": int(self.filter.control),
            "exact": self.exact,
            "must_exit": self.must_count,
            "needless": [f"{code:#x}" for code in self.needless[:_MANY]],
            "needless_count": len(self.needless),
            "needless_weight": self.weight,
            "verified": None if self.proof is None else vars(self.proof),
            "why_not_exact": None
            if words is None
            else {key: [f"{code:#x}" for code in codes] for key, codes in words.items()},
            "exact_if_alone": self.contended,
            "exact_with": None
            if self.remedies is None
            else [vars(remedy) for remedy in self.remedies],
        }

    def lines(self) -> list[str]:
        """In words."""
        name = vector_label(self.vector)
        if self.exact:
            told = [f"{name}: exact ({self.scheme})"]
        else:
            count = len(self.needless)
            verb = "code exits" if count == 1 else "codes exit"
            needless = f"{count} needless {verb}, weight {self.weight}"
            told = [
                f"{name}: sound, not exact ({self.scheme}): {needless}",
                f"  needless: {self._named(self.needless, 6)}",
            ]
        if self.why_not is not None:
            told.append(
                f"  no exact filter: {self._named(self.why_not.exits, 6) or 'nothing'} must exit "
                f"while {self._named(self.why_not.delivers, 6) or 'nothing'} must not"
            )
        if self.contended:
            told.append(f"  exact if {name} had the fields that all vectors share for itself")
        if self.remedies is None:
            told.append("  how many fields would be exact: unknown (out of time, or too many bits)")
        for remedy in self.remedies or ():
            where = f" ({remedy.scheme})" if remedy.scheme else " (no scheme here has as many)"
            fields = "1 field" if remedy.fields == 1 else f"{remedy.fields} fields"
            told.append(f"  exact with {fields}: {remedy.kind}{where}")
        return told

    def _named(self, codes: tuple[int, ...], most: int) -> str:
        if self.layout is None:
            return listed(codes, most)
        shown = [f"{code:#x} ({self.layout.describe(code)})" for code in codes[:most]]
        more = len(codes) - most
        return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Definition(Paged):
    """Field values for all vectors, ready for a VMCS, and what they promise.

    `profile` is the least that a processor must have: "vt-x" or "extended".
    """

    scheme: str
    profile: str
    fields: Mapping[Field, int]
    answers: tuple[VectorAnswer, ...]
    notes: tuple[str, ...] = ()
    name: str = field(default="", compare=False)

    @property
    def exact(self) -> bool:
        """Whether nothing exits that should not."""
        return all(answer.exact for answer in self.answers)

    @property
    def weight(self) -> int:
        """What all needless exits count together."""
        return sum(answer.weight for answer in self.answers)

    def lines(self) -> list[str]:
        """In words; vectors about which there is nothing to say but their bit come last."""
        plain = [one for one in self.answers if one.exact and not one.filter.scheme]
        told = [line for one in self.answers if one not in plain for line in one.lines()]
        if plain:
            names = ", ".join(vector_label(one.vector) for one in plain)
            told.append(f"{names}: exact, by the exception bitmap alone")
        return told + list(self.notes)

    def page(self, title: str = "Fields for wishes about faults") -> Document:
        """Fields, what they promise for each vector, and the truth table of page faults."""
        parts: list[Part] = [Paragraph(line) for line in self.lines() if not line.startswith(" ")]
        fields = tuple(
            (field.name, f"{int(field):04X}H", f"{value:08X}H")
            for field, value in self.fields.items()
        )
        heads = ("field", "encoding", "value")
        parts += [Heading("Fields"), Table(heads, fields, f"profile {self.profile}")]
        parts += [part for one in self.answers if one.vector == PF for part in _truth(one.filter)]
        needless = [
            (one.name, f"{code:#x}", "" if one.layout is None else one.layout.describe(code))
            for one in self.answers
            for code in one.needless[:24]
        ]
        if needless:
            heads = ("vector", "code", "meaning")
            table = Table(heads, tuple(needless), "codes that exit for nothing")
            parts += [Heading("Needless exits"), table]
        return Document(title, (*parts, *pages.file(self.toml())))

    def toml(self) -> str:
        """A VMCS file, for `trapgate run --vmcs`."""
        head = [f"# {line}" for line in self.lines()]
        return "\n".join(head) + "\n" + write_settings(self.profile, self.fields)

    def c(self) -> str:
        """A C table of encodings and values."""
        rows = [
            f"    {{ 0x{int(field):04X}, 0x{value:08X} }}, /* {field.name} */"
            for field, value in self.fields.items()
        ]
        opening = "static const struct { unsigned int encoding; unsigned long long value; }"
        return "\n".join([opening, "vmcs_fields[] = {", *rows, "};"]) + "\n"

    def vmwrites(self) -> str:
        """A list of VMWRITEs: encoding, value, name."""
        rows = [
            f"vmwrite {int(field):04X}H, {value:08X}H  ; {field.name}"
            for field, value in self.fields.items()
        ]
        return "\n".join(rows) + "\n"

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scheme": self.scheme,
            "profile": self.profile,
            "exact": self.exact,
            "needless_weight": self.weight,
            "fields": [
                {"name": field.name, "encoding": f"{int(field):#06x}", "value": f"{value:#x}"}
                for field, value in self.fields.items()
            ],
            "vectors": [answer.document() for answer in self.answers],
            "notes": list(self.notes),
            "toml": self.toml(),
            "c": self.c(),
            "vmwrite": self.vmwrites(),
        }


def _truth(only: Filter) -> list[Part]:
    """The truth table of page faults: few rows with bits that do not matter, and a grid."""
    bits = pages.grid_bits(only)
    exits = {code: only.exits_one(code) for code in range(1 << bits)}
    rows = tuple(
        (pattern(cube, bits), cube_words(cube), pages.goes(exits=side))
        for side in (True, False)
        for cube in cubes_of((code for code, one in exits.items() if one is side), bits)
    )
    heads = (" ".join(("P", "W", "U", "RSVD", "ID", "PK")[:bits][::-1]), "error code", "goes to")
    table = Table(heads, rows, "a dash does not matter")
    return [Heading("Page faults"), table, pages.grid(only)]
