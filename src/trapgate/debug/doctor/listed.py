"""Reads dumps that have a field a line, by name or encoding."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from trapgate.debug.doctor.dumped_vmcs import DumpedVmcs, fits
from trapgate.debug.doctor.fields import FIELDS, NAMES, width
from trapgate.debug.doctor.names import field_called

_SHOWN = 5

_LABELS = {
    "pin ctls": "PIN_BASED_CONTROLS",
    "processor ctls": "PRIMARY_PROCESSOR_BASED_CONTROLS",
    "secondary processor ctls": "SECONDARY_PROCESSOR_BASED_CONTROLS",
    "vm-exit ctls": "VM_EXIT_CONTROLS",
    "vm-entry ctls": "VM_ENTRY_CONTROLS",
    "page-fault mask": "PAGE_FAULT_ERROR_CODE_MASK",
    "page-fault match": "PAGE_FAULT_ERROR_CODE_MATCH",
    "vm-entry interruption info": "VM_ENTRY_INTERRUPTION_INFORMATION",
    "vm-entry xcpt error-code": "VM_ENTRY_EXCEPTION_ERROR_CODE",
    "vm-entry instr length": "VM_ENTRY_INSTRUCTION_LENGTH",
    "posted intr notify vector": "POSTED_INTERRUPT_NOTIFICATION_VECTOR",
    "posted-intr desc addr": "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS",
    "vm-functions control": "VM_FUNCTION_CONTROLS",
    "eptp ptr": "EPT_POINTER",
    "interruptibility state": "GUEST_INTERRUPTIBILITY_STATE",
    "activity state": "GUEST_ACTIVITY_STATE",
    "vmcs link ptr": "VMCS_LINK_POINTER",
    "pending debug xcpts": "GUEST_PENDING_DEBUG_EXCEPTIONS",
    "exit reason": "EXIT_REASON",
    "exit qualification": "EXIT_QUALIFICATION",
    "vm-instruction error": "VM_INSTRUCTION_ERROR",
    **{f"cr{n} guest/host mask": f"CR{n}_GUEST_HOST_MASK" for n in (0, 4)},
    **{f"cr{n} read shadow": f"CR{n}_READ_SHADOW" for n in (0, 4)},
}
_HEADING = re.compile(
    r"^\s*(Control|Guest state|Host state|Read-only data fields)\s*:\s*$", re.IGNORECASE
)
_SEGMENT = re.compile(
    r"^(\w+)\s*=\s*\{([0-9a-f]{4})?\s*base=([0-9a-f]+)(?:\s+limit=([0-9a-f]+))?"
    r"(?:\s+flags=([0-9a-f]+))?\s*\}",
    re.IGNORECASE,
)
_ASSIGNMENT = re.compile(
    r"^[\s,;*|-]*(?P<name>[A-Za-z0-9_][\w .+/\[\]()\"'-]{0,70}?)\s*(?:\([^)]*\)\s*)?[:=|]+>?\s*"
    r"(?P<value>[\"']?(?:0x[0-9a-f_`']+|[0-9a-f`]+h?))\b(?!\s*[%\w]*://)",
    re.IGNORECASE,
)


def read_virtualbox(text: str) -> Iterator[DumpedVmcs]:
    """VirtualBox's list of the fields of a VMCS: headings, labels in words, segments in braces."""
    heading = ""
    values: dict[str, int] = {}
    for line in text.split("\n"):
        mark = _HEADING.match(line)
        if mark:
            heading = mark[1].split()[0].lower()
            continue
        segment = _SEGMENT.match(line.strip())
        if heading in ("guest", "host") and segment:
            name, *parts = segment.groups()
            for kind, digits in zip(
                ("SELECTOR", "BASE", "LIMIT", "ACCESS_RIGHTS"), parts, strict=True
            ):
                field = f"{heading.upper()}_{name.upper()}_{kind}"
                if digits and field in FIELDS:
                    values[field] = int(digits, 16)
            continue
        assignment = _ASSIGNMENT.match(line) if heading else None
        if assignment:
            label = " ".join(assignment["name"].lower().split())
            name_found = _LABELS.get(label) or field_called(f"{heading} {label}")
            name_found = name_found or field_called(label)
            if heading in ("guest", "host") and len(label) == 2 and label.isalpha():
                name_found = f"{heading.upper()}_{label.upper()}_SELECTOR"
            put(values, name_found, assignment["value"], decimal="0x" not in assignment["value"])
    yield DumpedVmcs(values, "VirtualBox's log")


_COLUMNS = re.compile(
    r"^[\s,;*|-]*(?P<name>[A-Za-z0-9_][\w .+/\[\]()\"'-]{0,70}?)[\s,]+"
    r"(?P<value>0x[0-9a-f_`]+|[0-9a-f]{4}(?:[0-9a-f]{4}){0,3}h?)\s*$",
    re.IGNORECASE,
)
"""A table's row: a name, blanks or a comma, and a number that can be nothing else."""
_HIGH = re.compile(r"(.+)_(?:HIGH|HI)", re.IGNORECASE)
_ENCODED = re.compile(r"(?:0x)?([0-9a-f]{4})\W+(?=[a-z])(.+)", re.IGNORECASE)
_AREA = re.compile(r"\W*(guest|host)(?:\b|_)[\w -]*\W*", re.IGNORECASE)


@dataclass
class _Listed:
    """What the lines of a dump say: field, digits, and whether they are bits 63:32."""

    found: list[tuple[str, str, bool]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_fields(text: str) -> Iterator[DumpedVmcs]:
    """Lines with a field's name or encoding and its value, from whatever program.

    What is after # is a comment, unless everything does.
    """
    lines = text.split("\n")
    listed = _listed(lines)
    if not listed.found:
        listed = _listed(line.lstrip("# ") for line in lines)
    bare = [digits for _, digits, _ in listed.found if not digits.lower().startswith("0x")]
    decimal = not any(re.search(r"[a-f]|h$|^0\d{3,}$", digits, re.IGNORECASE) for digits in bare)
    values: dict[str, int] = {}
    highs: dict[str, int] = {}
    for name, digits, high in listed.found:
        put(highs if high else values, name, digits, decimal=decimal)
    for name, upper in highs.items():
        if name in values and upper >> 32 == 0 and values[name] >> 32 in (0, upper):
            values[name] = values[name] & 0xFFFF_FFFF | upper << 32
    if listed.found and len(listed.found) * 4 >= len(listed.unread):
        yield DumpedVmcs(values, "fields and values", unread=tuple(listed.unread[:_SHOWN]))
    elif len(values) >= _SHOWN:
        yield DumpedVmcs(values, "fields and values among other lines")


def _listed(lines: Iterable[str]) -> _Listed:
    result = _Listed()
    area = ""
    for line in lines:
        heading = _AREA.fullmatch(line)
        if heading:
            area = heading[1]
        elif line.strip() == "}":
            area = ""
        for piece in re.split(r"[,;]\s+(?=[A-Za-z_]{2}[\w ]*[:=])", line):
            mark = _ASSIGNMENT.match(piece) or _COLUMNS.match(piece)
            named = mark and _field_named(mark["name"], area)
            if mark and named:
                result.found.append((named[0], mark["value"], named[1]))
            elif piece.strip() and not piece.lstrip().startswith("#"):
                result.unread.append(piece.strip())
    return result


def _field_named(word: str, area: str) -> tuple[str, bool] | None:
    """The field that a line is about, and whether it is about bits 63:32 of it."""
    number = re.fullmatch(r"0x([0-9a-f]{4})|([0-9a-f]{4,8})h?", word.strip(), re.IGNORECASE)
    encoding = int(number[1] or number[2], 16) if number else 0
    if encoding & 1 and encoding - 1 in NAMES:
        return NAMES[encoding - 1], True
    name = field_called(word) or field_called(f"{area} {word}")
    if name is None and area and re.fullmatch(r"[c-gs]s|tr", word.strip(), re.IGNORECASE):
        name = f"{area.upper()}_{word.strip().upper()}_SELECTOR"
    if name is not None:
        return name, False
    encoded = _ENCODED.fullmatch(word.strip())
    if encoded:
        name = NAMES.get(int(encoded[1], 16)) or field_called(encoded[2])
        return None if name is None else (name, False)
    high = _HIGH.fullmatch(word.strip())
    name = high and (field_called(high[1]) or field_called(f"{high[1]}_FULL"))
    return (name, True) if name and width(name) == 64 else None


def put(values: dict[str, int], name: str | None, digits: str, *, decimal: bool) -> None:
    """Set a field to a dump's value, unless it has one or the value is too wide."""
    digits = re.sub(r"[\"'_`]", "", digits).lower()
    try:
        base = 16 if digits.startswith("0x") or digits.endswith("h") or not decimal else 10
        value = int(digits.removesuffix("h"), base)
    except ValueError:
        return
    if name in FIELDS and name is not None and fits(name, value):
        values.setdefault(name, value)
