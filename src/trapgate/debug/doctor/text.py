"""A diagnosis as text for people and as plain values for programs."""

from collections.abc import Iterator

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs
from trapgate.debug.doctor.examine import GROUPS, Diagnosis, Finding
from trapgate.debug.doctor.repair import Repair
from trapgate.debug.doctor.words import decoded, shown
from trapgate.sdm.event_words import hexadecimal

_CHECKS = sum(len(group.rules) for group in GROUPS)


def as_text(diagnosis: Diagnosis, found: Repair | None = None) -> Iterator[str]:
    """Line by line: what fails, what else there is to know, the repair if one was looked for."""
    dumped = diagnosis.dumped
    count = len(diagnosis.findings)
    made = _CHECKS - sum(diagnosis.unchecked.values())
    verdict = (
        f"{count} check{'s' * (count != 1)} fail{'s' * (count == 1)}" if count else "no check fails"
    )
    yield f"{dumped.form}: {len(dumped.values)} fields; {verdict} of {made} that could be made"
    suspect = diagnosis.suspect
    if suspect is not None and any(one.fields[0][0] != suspect.name for one in diagnosis.findings):
        yield ""
        yield f"  {suspect.count} of these look at {shown(suspect.name, suspect.value)}"
    for finding in diagnosis.findings:
        yield ""
        yield f"  {'also ' if finding.place else ''}{finding.sentence}"
        yield f'      [SDM, "{finding.section}"; the processor reports {finding.outcome}]'
        yield f"      usual cause: {finding.rule.cause}"
    notes = (*diagnosis.notes, *dumped.notes)
    if notes or diagnosis.unchecked or dumped.unread:
        yield ""
    yield from (f"  note: {note}" for note in notes)
    if dumped.unread:
        yield f"  not understood: {'; '.join(line[:60] for line in dumped.unread)}"
    if diagnosis.unchecked:
        names = ", ".join(diagnosis.unchecked)
        yield f"  not checked, since it is not in the dump: {names}"
    if found is not None and found.changes:
        yield ""
        yield (
            "  the smallest change found that passes every check:"
            if not found.left
            else f"  no change found that passes all; this leaves {', '.join(sorted(found.left))}:"
        )
        yield from (f"      {line}" for line in found.sentences)


def as_values(diagnosis: Diagnosis, found: Repair | None = None) -> dict[str, object]:
    """The same for JSON; numbers are unsigned integers."""
    result: dict[str, object] = {
        "form": diagnosis.dumped.form,
        "passes": diagnosis.passes,
        "findings": [_finding(finding) for finding in diagnosis.findings],
        "suspect": diagnosis.suspect.name if diagnosis.suspect else None,
        "notes": [*diagnosis.notes, *diagnosis.dumped.notes],
        "not_checked": diagnosis.unchecked,
        "fields": dict(diagnosis.dumped.values),
        "assumed": sorted(diagnosis.dumped.assumed),
        "not_understood": list(diagnosis.dumped.unread),
    }
    if found is not None:
        result["repair"] = {"changes": found.changes, "still_failing": sorted(found.left)}
    return result


def _finding(finding: Finding) -> dict[str, object]:
    name, value = finding.fields[0]
    return {
        "check": finding.rule.name,
        "field": name,
        "value": value,
        "meaning": decoded(name, value),
        "rule": finding.rule.says,
        "with": dict(finding.fields[1:]),
        "section": finding.section,
        "outcome": finding.outcome,
        "cause": finding.rule.cause,
    }


def differences(one: DumpedVmcs, other: DumpedVmcs) -> Iterator[str]:
    """The fields that two dumps do not have alike, in words."""
    for name, here, there in one.differing(other):
        words = " / ".join(
            "absent" if value is None else shown(name, value).split(" = ", 1)[1]
            for value in (here, there)
        )
        changed = "" if here is None or there is None else f"  [bits {hexadecimal(here ^ there)}]"
        yield f"{name}: {words}{changed}"
