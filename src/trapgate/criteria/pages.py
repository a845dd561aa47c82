"""Answers as pages, for browsers, notebooks and mails: what the pages of several have in common."""

from abc import abstractmethod

from trapgate.criteria.problems.filters import Filter
from trapgate.trace.code_words import karnaugh, page_fault_words
from trapgate.trace.document import Document, Heading, Listing, Paragraph, Part, Square


class Paged:
    """An answer that has a page; a notebook shows that."""

    @abstractmethod
    def page(self) -> Document:
        """The answer in headings, paragraphs, tables and grids."""

    def _repr_html_(self) -> str:
        """For a notebook."""
        return self.page().notebook()


def paragraphs(lines: list[str]) -> list[Part]:
    """Each line a paragraph."""
    return [Paragraph(line.strip()) for line in lines]


def file(toml: str) -> list[Part]:
    """A VMCS file, at the end of a page."""
    return [Heading("As a VMCS file"), Listing(toml, "toml")]


def goes(*, exits: bool) -> str:
    """Where faults go, in a table or a grid."""
    return "exit" if exits else "guest"


def grid_bits(only: Filter) -> int:
    """Bits of a grid: five, or six where protection keys matter."""
    return 6 if any(value >> 5 & 1 for value in only.values) else 5


def grid(only: Filter) -> Part:
    """A filter of page faults as a Karnaugh map."""
    bits = grid_bits(only)

    def square(code: int) -> Square:
        word = goes(exits=only.exits_one(code))
        return Square(word, f"{code:#x}: {page_fault_words(code)}", f"s-{word}")

    higher = any(value >> bits for value in only.values)
    more = "; higher bits are 0" if higher else ""
    return karnaugh(f"every error code of {bits} bits{more}", square, bits)
