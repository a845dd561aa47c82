"""docs/extensions.md has every extension field, with its encoding and its paragraph."""

import re
from pathlib import Path

import pytest

from trapgate.sdm.fields import EXTENSION_FIELDS, Field
from trapgate.vmx.capability_msrs import _EXTENSIONS

TEXT = (Path(__file__).parents[2] / "docs/extensions.md").read_text("utf-8")
ROWS = [line for line in TEXT.splitlines() if line.startswith("|") and "H |" in line]


def row_of(field: Field) -> str:
    """The row that has the field, by its name or by the range that it is in."""
    for row in ROWS:
        if re.search(rf"\b{field.name}\b", row):
            return row
    numbered = re.fullmatch(
        r"(MEMBER_|VECTOR_)(\d+)(_ERROR_CODE_MASK|_ERROR_CODE_MATCH)?", field.name
    )
    assert numbered, field.name
    prefix, number, rest = numbered[1], numbered[2], numbered[3] or ""
    first = {"MEMBER_": "MEMBER_0", "VECTOR_": f"VECTOR_8{rest}"}[prefix]
    (row,) = (one for one in ROWS if first in one)
    assert prefix == "MEMBER_" or f"_{number}" in row, field.name
    return row


def encodings(row: str) -> list[int]:
    return [int(text, 16) for text in re.findall(r"\b([0-9A-F]{4})H", row.split("|")[2])]


@pytest.mark.parametrize("field", sorted(EXTENSION_FIELDS), ids=lambda field: field.name)
def test_every_field_has_its_row(field: Field) -> None:
    row = row_of(field)
    told = encodings(row)
    if " to " in row.split("|")[2]:
        assert told[0] <= int(field) <= told[1]
    else:
        assert int(field) in told
    if not field.read_only:
        paragraphs = row.split("|")[3]
        assert re.fullmatch(r" \d+(-\d+)?(, \d+(-\d+)?)* ", paragraphs), row


def test_nothing_else_is_told() -> None:
    known = {int(field) for field in EXTENSION_FIELDS}
    for row in ROWS:
        if re.match(r"\| [A-Z]", row):
            assert set(encodings(row)) <= known, row


def test_the_capability() -> None:
    for low, high, value in ((0, 0, 1), (8, 15, 255), (16, 23, 64), (32, 63, 16384)):
        assert _EXTENSIONS >> low & (1 << high - low + 1) - 1 == value
        bits = f"{high}:{low}" if high > low else str(low)
        assert f"| {bits} |" in TEXT
        assert low == 0 or str(value) in TEXT
