"""Every check of VM entry, once satisfied and once violated, by a VMM that is x86 code.

The rows are those of `tests.unit.test_entry_checks`, the expectations the oracle's of
`sdm_checks`. All of
a mode run in one boot.
"""

from collections.abc import Callable
from functools import cache
from struct import pack
from typing import NamedTuple

import pytest

from tests.conformance.tiny_guest import Tiny
from tests.conformance.vmx import harness as h
from tests.conformance.vmx import violations
from tests.conformance.vmx.sdm_checks import outcomes
from tests.conformance.vmx.violations import Changes, Row, apply
from tests.unit.test_entry_checks import complete, supported
from trapgate.sdm import checks as ck
from trapgate.sdm.cells import ENCODINGS

pytestmark = pytest.mark.conformance

PDPTES = h.AREAS
PAE: Changes = {"GUEST_CR4": violations.on(5), "GUEST_CR3": PDPTES + 0x100}
TABLE = violations.table(16, 2)
BAD_BITS = (1 << 1, 1 << 5, 1 << 8, 1 << 40)
_AT_THE_END = ((1 << 60) - 1, 1 << 60, (1 << 61) - 1)
"""Cells on both sides of 2^63, and the last: what is added to their addresses may overflow."""

ROWS = [
    *violations.ROWS,
    *violations.EXTENSIONS,
    Row(359, TABLE, ({**TABLE, "CRITERIA_TABLE_ADDRESS": 0x320004},)),
    Row(359, TABLE, ({**TABLE, "CRITERIA_TABLE_ADDRESS": h.MEMORY},)),
    *(Row(359, TABLE, ({**TABLE, "CRITERIA_TABLE_ADDRESS": n << 3},)) for n in _AT_THE_END),
    Row(1232, {"VMCS_LINK_POINTER": h.OTHER_VMCS}, ({"VMCS_LINK_POINTER": 0x310000},)),
    Row(1233, {"VMCS_LINK_POINTER": h.OTHER_VMCS}, ({"VMCS_LINK_POINTER": h.VMCS},)),
    *(Row(1300 + n, PAE, ({**PAE, "GUEST_CR3": PDPTES + 0x20 * n},), bits=(32,)) for n in range(4)),
]


class Entry(NamedTuple):
    """What became of a VM entry."""

    verdict: str
    reason: int
    qualification: int
    error: int
    check: int = 0


def base(bits: int) -> dict[str, int]:
    fields = h.guest_fields(bits, Tiny("l64" if bits == 64 else "p32"))
    return complete({**fields, "EXCEPTION_BITMAP": 0xFFFF_FFFF})


def expressible(bits: int, fields: dict[str, int]) -> bool:
    """Whether a VMM in this mode can write them: natural fields have 32 bits in 32-bit mode."""
    natural = (name for name, encoding in ENCODINGS.items() if encoding >> 13 & 3 == 3)
    return bits == 64 or not any(fields[name] >> 32 for name in natural)


Places = dict[tuple[int, int], tuple[int, list[int]]]


def build(
    bits: int,
    *,
    extensions: bool,
    revision: int = 0x54524701,
    without: Callable[[Changes], bool] = lambda changes: False,
) -> tuple[h.Script, Places]:
    """The script of all rows; places by row and number of the changes (-1: good)."""
    script = h.Script(bits, revision)
    script.begin()
    h.put_guest(script, Tiny("l64" if bits == 64 else "p32"))
    for n, bad in enumerate(BAD_BITS):
        for other in range(4):
            entry = 0x311001 | bad if other == n else 0x311001
            script.poke(PDPTES + 0x20 * n + 8 * other, pack("<Q", entry))
            script.poke(PDPTES + 0x100 + 8 * other, pack("<Q", 0x311001))
    good = base(bits)
    every = h.all_fields(good, extensions=extensions)
    names = ["EXIT_REASON", "EXIT_QUALIFICATION", "VM_INSTRUCTION_ERROR"]
    names += ["FAILED_CHECK"] * extensions
    places = {}
    for row_number, row in enumerate(ROWS):
        for n, changes in enumerate((row.good, *row.bad), -1):
            fields = apply(good, changes)
            absent = not all(name in every for name in changes)
            if bits not in row.bits or absent or without(changes) or not expressible(bits, fields):
                continue
            script.clear()
            script.write_all(every)
            for name in changes:
                script.write(name, fields[name])
            launched = script.launch()
            places[row_number, n] = launched, [script.read(name) for name in names]
    return script, places


@cache
def entries(bits: int) -> dict[tuple[int, int], Entry]:
    """By row and number of the changes (-1: good), what became of the entry."""
    script, places = build(bits, extensions=True)
    return judged(h.run(script), places)


def judged(results: h.Results, places: Places) -> dict[tuple[int, int], Entry]:
    """What became of the entries."""
    return {
        key: Entry(results.ran(launched).verdict, *(results[place] for place in read))
        for key, (launched, read) in places.items()
    }


CASES = [
    pytest.param(bits, n, id=f"{row.check}-{bits}-{n}")
    for n, row in enumerate(ROWS)
    for bits in row.bits
]


@pytest.mark.native
@pytest.mark.parametrize(("bits", "number"), CASES)
def test_satisfied_and_violated(bits: int, number: int) -> None:
    row = ROWS[number]
    ran = entries(bits)
    good = ran.get((number, -1))
    if good is not None:
        assert good.verdict == "exit", good
        assert not good.reason & 1 << 31, good
    for n, changes in enumerate(row.bad):
        entry = ran.get((number, n))
        if entry is None:
            continue
        if row.check > 1231:
            # The oracle of this table would need the harness's memory.
            wanted = {("exit", 2 if row.check >= 1300 else 4)}
        elif row.check == ck.TABLE_ADDRESS:
            wanted = {("fail", 7)}
        else:
            wanted = outcomes(apply(base(bits), changes), supported(long=bits == 64, python=False))
        if entry.verdict == "fail":
            assert wanted == {("fail", entry.error)}, (changes, entry)
        else:
            assert entry.verdict == "exit", (changes, entry)
            assert entry.reason == 1 << 31 | 33, (changes, entry)
            assert ("exit", entry.qualification) in wanted, (changes, entry)
        assert entry.check == row.check, (changes, entry)


def test_that_most_of_them_ran() -> None:
    assert len(entries(64)) > 400
    assert len(entries(32)) > 350
