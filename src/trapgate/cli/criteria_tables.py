"""What the criteria commands answer about files that have criteria tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trapgate.criteria import Party
    from trapgate.trace.document import Document
    from trapgate.vmcs.vmcs import Vmcs

AnswerParts = tuple[
    Callable[[], list[str]], Callable[[], dict[str, Any]], int, Callable[[], "Document"]
]
"""Lines, document, exit status and page of an answer."""


def have_tables(parties: Sequence[Party]) -> bool:
    """Whether one of them has a criteria table."""
    return any(party.vmcs.criteria_table for party in parties)


def merged(
    parties: Sequence[Party],
    scheme: str,
    operators: list[str] | None,
    rules: int | None,
    clauses: int | None,
    timeout: float,
) -> tuple[str, AnswerParts]:
    """The merge of parties with tables: a VMCS file, and the answer."""
    from trapgate import criteria

    found = criteria.merge_tables(
        parties,
        scheme,
        rules=criteria.MOST_MERGED_RULES if rules is None else rules,
        clauses=clauses,
        operators=criteria.operators_named(operators),
        timeout=timeout,
    )

    def lines() -> list[str]:
        return [*found.lines(), "", found.toml().rstrip()]

    return found.toml(), (lines, found.document, 0, found.page)


def checked(parties: Sequence[Party], vmcs02: Vmcs, timeout: float) -> AnswerParts:
    """Whether a VMCS makes exit what any of the parties wants, with examples."""
    from trapgate import criteria

    found = criteria.compare_exits([party.vmcs for party in parties], vmcs02, timeout=timeout)
    losses = {
        party.name: criteria.compare_exits(party.vmcs, vmcs02, timeout=timeout).missed_text
        for party in parties
    }

    def lines() -> list[str]:
        told = [f"loses, wanted by {name}: {text}" for name, text in losses.items() if text]
        if found.needless_text:
            told.append(f"superfluous: {found.needless_text}, wanted by nobody")
        return [*told, f"vmcs02 is {'sound' if found.sound else 'unsound'}"]

    def document() -> dict[str, Any]:
        return {
            **found.document(),
            "lost_by": {name: text for name, text in losses.items() if text},
        }

    status = 0 if found.sound else 1
    return lines, document, status, found.page


def warnings_of(vmcs: Vmcs) -> Iterator[str]:
    """What is probably not meant in a criteria table: dead rules, values that no fault has."""
    from trapgate import criteria

    if vmcs.criteria_table:
        for warning in criteria.read_table(vmcs.criteria_table).warnings:
            if warning.kind != "overlap":
                yield f"warning: {warning.text}"
